"""Populations: many models from one recipe, each on disk with a record of how it was made."""

from intaglio.populations.executor import Executor, LocalExecutor
from intaglio.populations.manifest import ModelRecord, model_folder
from intaglio.populations.population import build_population, open_population, population_data
from intaglio.populations.recipe import Recipe, read_recipe

__all__ = [
    "Executor",
    "LocalExecutor",
    "ModelRecord",
    "Recipe",
    "build_population",
    "model_folder",
    "open_population",
    "population_data",
    "read_recipe",
]
