"""Training: one loop, one set of settings, checkpoints that are safetensors."""

from intaglio.training.loop import train
from intaglio.training.settings import TrainingSettings

__all__ = ["TrainingSettings", "train"]
