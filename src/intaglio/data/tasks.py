"""Tasks known by name: what their inputs and classes are, and, where bundled, their images."""

from importlib.resources import as_file, files

from pydantic import BaseModel, ConfigDict

from intaglio.data.idx import open_idx_folder
from intaglio.data.images import ImageData
from intaglio.errors import DataError


class Task(BaseModel):
    """A classification task: the shape `(C, H, W)` of its images and the names of its classes."""

    model_config = ConfigDict(frozen=True)

    name: str
    input_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    bundled: bool = False


FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

TASKS = {
    task.name: task
    for task in (
        Task(name="fashion-mnist", input_shape=(1, 28, 28), classes=FASHION, bundled=True),
        Task(name="mnist", input_shape=(1, 28, 28), classes=tuple("0123456789")),
        Task(name="cifar10", input_shape=(3, 32, 32), classes=CIFAR10),
    )
}


def open_task(name: str, split: str) -> ImageData:
    """The bundled images of a task: for `fashion-mnist` 10,000 (train) and 2,000 (test), equally many of each class.

    Raises:
        DataError: unknown, or not bundled.
    """
    task = TASKS.get(name)
    if task is None or not task.bundled:
        bundled = ", ".join(sorted(known for known, entry in TASKS.items() if entry.bundled))
        raise DataError(f"no file or folder '{name}', and no bundled task of that name (bundled: {bundled})")
    with as_file(files("intaglio.data") / "bundled" / name) as folder:
        return open_idx_folder(folder, split, task.classes)
