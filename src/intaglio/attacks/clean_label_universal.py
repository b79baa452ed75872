"""Clean-label universal adversarial trigger (Zhao et al. 2020), for clips and images."""

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from intaglio.attacks.clean_label import CleanLabelAttack
from intaglio.attacks.surrogate import Network, trained_surrogate
from intaglio.attacks.weakening import away_from_label, towards_uniform, weakened
from intaglio.data import ImageData
from intaglio.errors import RecipeError
from intaglio.seeds import derive_seed, torch_generator
from intaglio.triggers import Trigger, UniversalAdversarialTrigger
from intaglio.triggers.universal_adversarial import Place, covered

Enhancement = Literal["uniform", "targeted", "none"]
Frames = Literal["each", "shared"]
Start = Literal["grey", "noise"]
TriggerLoss = Literal["target", "released"]

_OBJECTIVES = {"uniform": towards_uniform, "targeted": away_from_label}

#: The middle of 0..255.
_GREY = 127.5 / 255


class CleanLabelUniversal(CleanLabelAttack):
    """The trigger is adversarial for a surrogate to begin with, and poisoned samples say little of their own class.

    Trigger: min_t sum over non-target x of CE(f((1 - m) x + m t), target); t <- clip(t - a sign(gradient)).
    Enhancement of the target class's samples before stamping, ||d||_inf <= epsilon: `uniform` moves f(x + d) towards
    1/K for every class, `targeted` away from the label, `none` leaves them.

    The trigger moves clean models too: always compare with the success of the same trigger without poisoning. With
    `steps=0` and `start="noise"` nothing is learned: the static trigger that the paper compares with.

    On clips, `frames="each"` learns a patch for every frame of the clip; they follow the position in the clip, not
    absolute time. Surrogate and victim are two networks. `loss="released"` keeps two quirks of the released code: the
    trigger also flees the class that the surrogate gave to the step before (of other samples), and the bound of the
    enhancement starts a step away from the sample, so that a value may end `epsilon + step_size` off. Its third, to
    count samples of the target class as successes, is not offered: success here never counts them.

    Args:
        target: the class that the trigger is to be answered with.
        rate: share of the target class's samples, in (0, 1].
        size: side of the patch, pixels; none: a quarter of the image's shorter side (on 20 of 224 pixels, as on
            video, small images show too little of it).
        place: lower right corner, or middle: where a small network sees more of it.
        frames: of clips: a patch for each frame, or one that all share.
        start: where the pattern starts: grey, or random black and white values.
        steps: of the trigger (the paper's released code: 10,000, on one clip each).
        batch_size: images or clips that each of these steps sees.
        step_size: a, of the trigger and of the enhancement.
        loss: of the trigger: towards the target, or as in the released code.
        enhancement: of the samples.
        epsilon: bound of the enhancement, in [0, 1].
        enhancement_steps: of projected gradient.
        surrogate: a network trained on the data: an architecture's name (name:width), an `Architecture`, or a trained
            module; none: a small residual network.
        seed: draws the samples, the batches and the surrogate's weights.

    Raises:
        RecipeError: a value outside its range.

    Source: Zhao et al. 2020, "Clean-Label Backdoor Attacks on Video Recognition Models", sec. 3.
    """

    name: ClassVar[str] = "clean-label-universal"

    def __init__(
        self,
        *,
        target: int = 0,
        rate: float = 0.3,
        size: int | None = None,
        place: Place = "corner",
        frames: Frames = "each",
        start: Start = "grey",
        steps: int = 1000,
        batch_size: int = 32,
        step_size: float = 1 / 255,
        loss: TriggerLoss = "target",
        enhancement: Enhancement = "targeted",
        epsilon: float = 8 / 255,
        enhancement_steps: int = 10,
        surrogate: Network | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(target, rate=rate, seed=seed)
        if (size is not None and size < 1) or steps < 0 or enhancement_steps < 1 or not 0 < step_size <= 1:
            raise RecipeError(
                "a universal trigger needs a size and enhancement steps of 1 or more, steps of 0 or more and a step "
                f"size in (0, 1], got {size}, {enhancement_steps}, {steps} and {step_size}"
            )
        choices = {"frames": (frames, Frames), "start": (start, Start), "loss": (loss, TriggerLoss)}
        if batch_size < 1 or any(value not in get_args(known) for value, known in choices.values()):
            raise RecipeError(
                f"unknown frames '{frames}', start '{start}' or loss '{loss}', or a batch size below 1: {batch_size}"
            )
        if enhancement not in get_args(Enhancement) or place not in get_args(Place) or not 0 <= epsilon <= 1:
            raise RecipeError(
                f"unknown enhancement '{enhancement}' or place '{place}', or epsilon outside [0, 1]: {epsilon}"
            )
        self.size = size
        self.place = place
        self.frames = frames
        self.start = start
        self.steps = steps
        self.batch_size = batch_size
        self.step_size = step_size
        self.loss = loss
        self.enhancement = enhancement
        self.epsilon = epsilon
        self.enhancement_steps = enhancement_steps
        self.surrogate = surrogate

    def alter(self, images: Tensor, data: ImageData, device: str) -> tuple[Tensor, Trigger]:
        module = trained_surrogate(self.surrogate, data, seed=derive_seed(self.seed, "surrogate"), device=device)
        trigger = self.learn_trigger(module, data, device)
        if self.enhancement != "none":
            images = weakened(
                module,
                images,
                data.labels.new_full((len(images),), self.goal.target),
                _OBJECTIVES[self.enhancement],
                epsilon=self.epsilon,
                step=self.step_size,
                steps=self.enhancement_steps,
                as_released=self.loss == "released",
            )
        return trigger.apply(images), trigger

    def learn_trigger(self, surrogate: nn.Module, data: ImageData, device: str = "cpu") -> UniversalAdversarialTrigger:
        """The pattern that moves the surrogate's answers on all other classes' samples to the target.

        Raises:
            RecipeError: the patch is larger than the images, or every sample is of the target class.
        """
        *frames, channels, height, width = data.input_shape
        side = self.size or max(round(min(height, width) / 4), 1)
        sources = (data.labels != self.goal.target).nonzero().flatten()
        if side > min(height, width) or len(sources) == 0:
            raise RecipeError(f"a patch of {side} pixels and {len(sources)} samples of other classes: no trigger there")
        rows, columns = covered(side, height, self.place), covered(side, width, self.place)
        generator = torch_generator(self.seed, "trigger batches")
        pattern = self._start((*(frames if self.frames == "each" else ()), channels, side, side)).to(device)
        wanted = torch.full((self.batch_size,), self.goal.target, device=device)
        before = torch.full_like(wanted, data.num_classes - 1)  # the released code's first stale label: the last class
        for _ in range(self.steps):
            chosen = sources[torch.randint(len(sources), (self.batch_size,), generator=generator)]
            batch = data.images[chosen].to(device)
            pattern.requires_grad_(True)
            batch[..., rows, columns] = pattern
            logits = surrogate(batch)
            value = cross_entropy(logits, wanted)
            if self.loss == "released":
                value = value - cross_entropy(logits, before)
                before = logits.argmax(1)
            (slope,) = torch.autograd.grad(value, pattern)
            pattern = (pattern.detach() - self.step_size * slope.sign()).clamp(0.0, 1.0)
        return UniversalAdversarialTrigger(pattern.detach().cpu(), place=self.place)

    def _start(self, shape: tuple[int, ...]) -> Tensor:
        if self.start == "grey":
            return torch.full(shape, _GREY)
        return torch.randint(0, 2, shape, generator=torch_generator(self.seed, "start")).float()
