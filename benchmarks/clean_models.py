"""Clean models like those of the bench but trained otherwise, for benchmarks that ask who accuses them."""

from typing import Any

from intaglio.attacks.surrogate import built
from intaglio.bench import BenchRecipe
from intaglio.classifiers import TorchClassifier
from intaglio.data import ImageData
from intaglio.training import train

TASK = "fashion-mnist"
ALPHA = 0.05


def clean_model(recipe: BenchRecipe, index: int, data: ImageData, seed: int, **changes: Any) -> TorchClassifier:
    """The bench's network of this index, trained on `data` with other settings than the bench's."""
    architecture = recipe.network(index, data.input_shape, data.num_classes)
    settings = recipe.training.model_copy(update=changes)
    module = train(built(architecture, data, seed=seed), data, settings, seed=seed)
    return TorchClassifier(module.eval(), input_shape=data.input_shape, num_classes=data.num_classes)
