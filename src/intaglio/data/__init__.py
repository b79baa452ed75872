"""Data: images with labels, from IDX files, picture folders, NumPy archives and bundled tasks."""

from intaglio.data.images import UNLABELLED, ImageData, check_images, classes_in_turn
from intaglio.data.opening import open_data
from intaglio.data.tasks import TASKS, Task

__all__ = ["TASKS", "UNLABELLED", "ImageData", "Task", "check_images", "classes_in_turn", "open_data"]
