"""`VideoData`: clips in memory. It is an `ImageData`, so whatever takes images with labels takes it."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from intaglio.data.images import ImageData
from intaglio.errors import DataError


@dataclass(frozen=True)
class VideoData(ImageData):
    """Clips float32 `[N, T, C, H, W]` in [0, 1] as `images`, labels int64 `[N]` and the class names.

    `videos` int64 `[N]` says which video each clip is from (by default each its own), so that the answers to several
    clips of one video can be averaged (`per_video`). `skipped` names the videos that could not be read.

    Raises:
        DataError: as `ImageData`; or not five axes.
    """

    videos: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64), compare=False)
    skipped: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.images.ndim != 5:
            raise DataError(f"{self.name}: expected clips [N, T, C, H, W], got {tuple(self.images.shape)}")
        if not self.videos.numel():
            object.__setattr__(self, "videos", torch.arange(len(self.images)))
        if self.videos.dtype != torch.int64 or self.videos.shape != self.labels.shape:
            raise DataError(f"{self.name}: expected the numbers of {len(self.images)} videos")

    def take(self, indices: Tensor) -> "VideoData":
        """The clips at `indices` (int64, or a boolean mask)."""
        return replace(self, images=self.images[indices], labels=self.labels[indices], videos=self.videos[indices])

    def per_video(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """The mean of `scores` `[N, K]` over the clips of each video `[V, K]`, and the labels of the videos `[V]`.

        Videos come in the order of their numbers.
        """
        numbers, place = torch.unique(self.videos, return_inverse=True)
        total = torch.zeros(len(numbers), scores.shape[1], dtype=scores.dtype).index_add_(0, place, scores)
        labels = torch.empty(len(numbers), dtype=torch.int64).index_copy_(0, place, self.labels)
        return total / place.bincount()[:, None], labels
