"""Populations: many models from one recipe, each on disk with a record of how it was made."""

from intaglio.populations.executor import Executor, LocalExecutor
from intaglio.populations.manifest import FailedModel, ModelRecord, model_folder, read_failures
from intaglio.populations.population import build_population, open_population, population_data
from intaglio.populations.recipe import Recipe, read_recipe

__all__ = [
    "Executor",
    "FailedModel",
    "LocalExecutor",
    "ModelRecord",
    "Recipe",
    "build_population",
    "model_folder",
    "open_population",
    "population_data",
    "read_failures",
    "read_recipe",
]
