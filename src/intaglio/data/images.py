"""`ImageData`: images or clips in raw pixel space with their labels, checked once, where they come in."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from intaglio.errors import DataError

#: The label of an image whose class is not known.
UNLABELLED = -1


@dataclass(frozen=True)
class ImageData:
    """Images float32 `[N, C, H, W]` in [0, 1], labels int64 `[N]` (-1: not known) and the class names.

    Videos are images with one axis more: `[N, T, C, H, W]`. Unpacks like a pair: `images, labels = data`.

    Raises:
        DataError: a wrong type, shape, range or label, or nothing in it.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...] = ()
    name: str = field(default="data", compare=False)

    def __post_init__(self) -> None:
        check_images(self.images, self.name)
        if self.labels.dtype != torch.int64 or self.labels.shape != (len(self.images),):
            raise DataError(
                f"{self.name}: expected {len(self.images)} int64 labels, "
                f"got {self.labels.dtype} of shape {tuple(self.labels.shape)}"
            )
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < UNLABELLED or (self.classes and high >= len(self.classes)):
            raise DataError(f"{self.name}: labels span {low}..{high}, but there are {len(self.classes)} classes")

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.images, self.labels))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(C, H, W)`, or `(T, C, H, W)`."""
        return tuple(self.images.shape[1:])

    @property
    def num_classes(self) -> int:
        """The number of named classes, or, without names, the largest label plus one."""
        return len(self.classes) or int(self.labels.max()) + 1

    def take(self, indices: Tensor) -> "ImageData":
        """The images at `indices` (int64, or a boolean mask)."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])


#: What every function takes for labelled images: `ImageData`, or a pair of tensors.
Data = ImageData | tuple[Tensor, Tensor]


def image_data(data: Data) -> ImageData:
    """Labelled images as `ImageData`, whether they were given so or as a pair `(images, labels)`.

    Raises:
        DataError: neither, or as `ImageData` raises it.
    """
    if isinstance(data, ImageData):
        return data
    if not isinstance(data, tuple | list) or len(data) != 2 or not all(isinstance(part, Tensor) for part in data):
        raise DataError(f"wanted images with labels, a pair of tensors, got a {type(data).__name__}")
    return ImageData(*data)


def images_alone(data: Data | Tensor | None, name: str) -> Tensor | None:
    """The images of what was given, labelled or not, checked; None if nothing was. `name` stands in errors.

    Raises:
        DataError: something else, or of a wrong type, shape or range.
    """
    if isinstance(data, ImageData | tuple | list):
        return image_data(data).images
    if data is not None:
        check_images(data, name)
    return data


def evenly_spaced(count: int, most: int) -> Tensor:
    """Places int64 of `most` of `count` things, evenly spaced, the first and the last among them; of fewer, all."""
    return torch.linspace(0, count - 1, min(count, most)).round().long()


def classes_in_turn(labels: Tensor) -> Tensor:
    """An order of labels `[N]` that goes round the classes: the first of each, then the second of each, and so on.

    Any prefix is as balanced as can be, whatever the order of the labels (data sets are often sorted by class).
    """
    rank = torch.empty_like(labels)
    for label in set(labels.tolist()):
        mine = labels == label
        rank[mine] = torch.arange(int(mine.sum()))
    return (rank * (int(labels.max()) + 2) + labels).argsort(stable=True)


def check_labelled(labels: Tensor, name: str, purpose: str, *, of: str = "images") -> None:
    """Refuses labels `[N]` of which some are not known; `purpose` and what they are labels `of` stand in the message.

    Raises:
        DataError: with how many are missing.
    """
    if unknown := int((labels < 0).sum()):
        raise DataError(f"{name}: {unknown} {of} have no label; {purpose} needs them all")


def check_answerable(labels: Tensor, name: str, classes: int) -> None:
    """Refuses labels `[N]` that a model of so many classes can't answer.

    Raises:
        DataError: with the highest label.
    """
    if (highest := int(labels.max())) >= classes:
        raise DataError(f"{name}: has labels up to {highest}, but the model answers with {classes} classes")


def check_images(images: Tensor, name: str) -> None:
    """Refuses what is not float32 `[N, C, H, W]` or `[N, T, C, H, W]` with finite values in [0, 1].

    Raises:
        DataError: with the first thing that is wrong.
    """
    if not isinstance(images, Tensor):
        raise DataError(f"{name}: expected a tensor of float32 images, got a {type(images).__name__}")
    if images.dtype != torch.float32 or images.ndim not in (4, 5):
        raise DataError(
            f"{name}: expected float32 images [N, C, H, W], got {images.dtype} {tuple(images.shape)} "
            "(videos are [N, T, C, H, W])"
        )
    if images.numel() == 0:
        raise DataError(f"{name}: there are no images in it")
    low, high = float(images.detach().min()), float(images.detach().max())
    if not (low >= 0.0 and high <= 1.0):  # also true for NaN
        raise DataError(f"{name}: pixel values span {low:.4g}..{high:.4g}, expected [0, 1]; divide 8-bit images by 255")
