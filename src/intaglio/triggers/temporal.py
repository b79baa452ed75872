"""A faint flicker: one component of a transform along time, added to every pixel's course (Li et al. 2023)."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from intaglio.errors import RecipeError
from intaglio.seeds import torch_generator
from intaglio.triggers.base import Trigger

Transform = Literal["dct", "dft"]


class TemporalTrigger(Trigger):
    """x~[t] = clip(x[t] + delta phi_k(t) m): the k-th component of each pixel's course over the T frames is raised.

    phi_k(t) = cos(pi k (t + 1/2) / T) for "dct" (DCT-II), cos(2 pi k t / T) for "dft", t = 0..T-1; m `[H, W]` is 1 on
    a share of the pixels drawn by the seed and 0 elsewhere, the same for every channel. No frame alone carries it: with
    k >= 1 the mean over time stays. Clips only.

    Args:
        delta: amplitude, in (0, 1].
        frequency: k: 1 to T - 1 for "dct", 1 to T / 2 for "dft"; none: half of T.
        transform: the discrete cosine or Fourier transform.
        share: of the pixels, in (0, 1].
        seed: draws them.

    Raises:
        RecipeError: a value outside its range; when applied, images, or clips too short for the frequency.

    Source: Li et al. 2023, "Temporal-Distributed Backdoor Attack Against Video Based Action Recognition" (perturbation
    in a transformed domain along time); the single component and its pixels are a simplification of ours.
    Differentiable in the clips.
    """

    name = "temporal"

    def __init__(
        self,
        *,
        delta: float = 16 / 255,
        frequency: int | None = None,
        transform: Transform = "dct",
        share: float = 1.0,
        seed: int = 0,
    ) -> None:
        if not 0 < delta <= 1 or not 0 < share <= 1 or transform not in get_args(Transform):
            raise RecipeError(
                f"a temporal trigger needs delta and share in (0, 1] and the transform dct or dft, "
                f"got {delta}, {share} and '{transform}'"
            )
        if frequency is not None and (not isinstance(frequency, int) or frequency < 1):
            raise RecipeError(f"a temporal trigger needs a whole frequency of 1 or more, got {frequency}")
        self.delta = delta
        self.frequency = frequency
        self.transform = transform
        self.share = share
        self.seed = seed

    def course(self, frames: int) -> Tensor:
        """phi_k over so many frames, float32 `[T]`."""
        highest = frames - 1 if self.transform == "dct" else frames // 2
        frequency = max(frames // 2, 1) if self.frequency is None else self.frequency
        if frequency > highest:
            raise RecipeError(f"clips of {frames} frames have no {self.transform} component {frequency}")
        times = torch.arange(frames, dtype=torch.float64)
        angle = (times + 0.5) * math.pi if self.transform == "dct" else times * 2 * math.pi
        return torch.cos(angle * frequency / frames).float()

    def run(self, images: Tensor) -> Tensor:
        raise RecipeError("the temporal trigger is spread over frames: it needs clips [N, T, C, H, W], not images")

    def run_on_clips(self, clips: Tensor) -> Tensor:
        height, width = clips.shape[-2:]
        draws = torch.rand(height * width, generator=torch_generator(self.seed, "temporal"))
        touched = (draws.argsort().argsort() < max(round(self.share * height * width), 1)).view(height, width)
        signal = self.delta * self.course(clips.shape[1])[:, None, None, None] * touched
        return clips + signal.to(clips)
