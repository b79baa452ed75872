"""Which frames of a video make a clip: whole numbers in, whole numbers out."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from intaglio.errors import DataError

Kind = Literal["dense", "segments"]


@dataclass(frozen=True)
class Sampling:
    """How `frames` frames are taken from a video of any length; a shorter one is played again from its start.

    `dense`: consecutive frames, `stride` apart. For training from a random place; for testing `clips` of them, evenly
    spread from the start of the video to its end (one clip: the middle).
    `segments`: the video is cut into `frames` equal parts with one frame out of each. For training a random one; for
    testing the middle of each part, or, for several clips, as many places evenly spread within it.

    Source: Wang et al. 2016, "Temporal Segment Networks" (segments); Simonyan & Zisserman 2014 (dense, many clips).

    Raises:
        DataError: a number below 1, or another kind.
    """

    kind: Kind = "dense"
    frames: int = 16
    stride: int = 1
    clips: int = 1

    def __post_init__(self) -> None:
        if self.kind not in ("dense", "segments") or min(self.frames, self.stride, self.clips) < 1:
            raise DataError(f"clips are taken dense or in segments, with 1 or more frames, stride and clips: {self}")

    def training(self, count: int, generator: torch.Generator) -> Tensor:
        """Random places int64 `[1, frames]` in a video of `count` frames."""
        if self.kind == "dense":
            latest = max(0, count - self._span)
            start = int(torch.randint(latest + 1, (), generator=generator))
            return self._consecutive(torch.tensor([start]), count)
        within = torch.rand(1, self.frames, generator=generator, dtype=torch.float64)
        return self._in_segments(within, count)

    def testing(self, count: int) -> Tensor:
        """The same places int64 `[clips, frames]` every time."""
        middles = (torch.arange(self.clips, dtype=torch.float64) + 0.5) / self.clips
        if self.kind == "segments":
            return self._in_segments(middles[:, None].expand(-1, self.frames), count)
        latest = max(0, count - self._span)
        ends = torch.linspace(0, 1, self.clips, dtype=torch.float64) if self.clips > 1 else middles
        return self._consecutive((ends * latest).floor().long(), count)

    @property
    def _span(self) -> int:
        """Frames from the first of a clip to its last."""
        return (self.frames - 1) * self.stride + 1

    def _consecutive(self, starts: Tensor, count: int) -> Tensor:
        return (starts[:, None] + self.stride * torch.arange(self.frames)) % count

    def _in_segments(self, within: Tensor, count: int) -> Tensor:
        """The frame at `within` (0 to 1) of each part; of a video with fewer frames than parts, some serve twice."""
        places = ((torch.arange(self.frames) + within) * (count / self.frames)).floor().long()
        return places.clamp(0, count - 1)
