"""A `torch.nn.Module` as a classifier: scores, gradients and weights."""

from typing import Unpack, final

import torch
from torch import Tensor, nn

from intaglio.classifiers.access import Access
from intaglio.classifiers.base import Classifier, Options
from intaglio.errors import FORWARD_ERRORS, ClassifierError
from intaglio.networks.freezing import frozen
from intaglio.networks.layout import channels_last_is_safe, narrow_shortcuts

#: Where batches live in the accelerator's own memory, larger ones keep it busy.
ACCELERATOR_MEMORY_BUDGET = 4 << 30


class TorchClassifier(Classifier):
    """Examines a module in evaluation mode; the module maps preprocessed `[N, ...]` to scores `[N, K]`.

    The module is used as it is, not copied: `eval()` is called on it once, here, and, if `device` is given, it is
    moved there. Four noise images are put through it at once, so that a wrong shape or class count shows here.

    On a CPU, 4-D batches are handed over in channels-last memory order: measured 1.3 to 4 times as fast for small
    convolutional networks, with nothing changed in the module; a module that can't take this (`x.view(...)`) gets the
    usual order.

    Raises:
        ClassifierError: weights that are not finite, a device that isn't there, or answers of a wrong shape.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        input_shape: tuple[int, ...],
        num_classes: int,
        device: str | torch.device | None = None,
        format: str = "module",
        **options: Unpack[Options],
    ) -> None:
        self._device = _place(module, device)
        if self._device.type != "cpu":
            options.setdefault("memory_budget", ACCELERATOR_MEMORY_BUDGET)
        super().__init__(
            input_shape=input_shape, num_classes=num_classes, access=Access.WEIGHTS, format=format, **options
        )
        _check_weights(module, self.source)
        self._module = module.eval()
        self._channels_last = False
        self._channels_last = self._takes_channels_last()
        self._probe()

    @property
    def module(self) -> nn.Module:
        """The examined module itself, in evaluation mode; it expects preprocessed inputs."""
        return self._module

    @property
    def device(self) -> torch.device:
        """Where the module computes."""
        return self._device

    @final
    def differentiable(self, images: Tensor, *, weights: bool = False) -> Tensor:
        """Scores `[N, K]` with a gradient to `images`, in one batch, on the module's device.

        Checked and counted like `scores`; preprocessing is part of what is differentiated.

        Args:
            weights: with a gradient to the module's weights, too; else there is none, which costs less.

        Raises:
            ClassifierError: as `scores`; or there is no gradient, as in a module that turns gradients off itself.
        """
        self._check_images(images)
        batches = torch.split(images, self.fixed_batch or len(images))
        self.count_queries(len(images))
        first = weights and bool(narrow_shortcuts(self._module))
        # gradients to weights are unwanted here, and more than `narrow_shortcuts` can bear with channels last
        with frozen(() if weights else self._module.parameters()):
            answers = [
                self.checked_answer(self._run(self._prepared(batch), channels_first=first)[: len(batch)], len(batch))
                for batch in batches
            ]
        scores = torch.cat(answers)
        if images.requires_grad and torch.is_grad_enabled() and not scores.requires_grad:
            raise ClassifierError(
                f"{self.source}: its answers have no gradient to the images: the module turns gradients off, or does "
                "not look at them; what needs scores only can still be asked"
            )
        return scores

    def _forward(self, batch: Tensor) -> Tensor:
        with torch.inference_mode():
            return self._run(batch)

    def _run(self, batch: Tensor, *, channels_first: bool = False) -> Tensor:
        # A copy, always: a module that works in place must not write into its caller's images.
        batch = batch.to(self._device)
        last = self._channels_last and not channels_first
        batch = _channels_last_copy(batch) if last else batch.clone(memory_format=torch.contiguous_format)
        try:
            answer = self._module(batch)
        except FORWARD_ERRORS as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ClassifierError(f"{self.source}: can't answer inputs {list(batch.shape)}: {reason}") from error
        if not isinstance(answer, Tensor):
            raise ClassifierError(f"{self.source}: expected a tensor of scores, got {type(answer).__name__}")
        return answer

    def _takes_channels_last(self) -> bool:
        if self._device.type != "cpu" or len(self.input_shape) != 3 or self.preprocessing.layout != "NCHW":
            return False
        if not channels_last_is_safe(self._module, self.preprocessing.model_shape(self.input_shape)):
            return False
        self._channels_last = True
        try:
            self._forward(self._prepared(self._probe_images()[: self.batch_size]))
        except ClassifierError:
            return False
        return True


def _channels_last_copy(batch: Tensor) -> Tensor:
    """`[N, C, H, W]` with channels innermost in memory."""
    if batch.shape[1] > 1:
        return batch.clone(memory_format=torch.channels_last)
    # With one channel both orders are the same bytes, and convolutions go by the strides: say which one is meant.
    height, width = batch.shape[-2:]
    return batch.clone(memory_format=torch.contiguous_format).as_strided(batch.shape, (height * width, 1, width, 1))


def _place(module: nn.Module, device: str | torch.device | None) -> torch.device:
    """Moves the module if asked to, and says where it is."""
    if device is None:
        first = next(module.parameters(), next(module.buffers(), None))
        return torch.device("cpu") if first is None else first.device
    try:
        place = torch.device(device)
        module.to(place)
    except (RuntimeError, AssertionError) as error:  # torch's own "not compiled with CUDA" is an AssertionError
        raise ClassifierError(f"can't use device '{device}': {str(error).splitlines()[0]}") from error
    return place


def _check_weights(module: nn.Module, source: str) -> None:
    """Parameters must be finite; buffers may hold infinities (attention masks do), but no NaN."""
    bad = {name: int((~torch.isfinite(value)).sum()) for name, value in module.named_parameters()}
    bad |= {name: int(torch.isnan(value).sum()) for name, value in module.named_buffers()}
    if count := sum(bad.values()):
        total = sum(value.numel() for value in (*module.parameters(), *module.buffers()))
        first = next(name for name, value in bad.items() if value)
        raise ClassifierError(f"{source}: {count} of {total} parameters are not finite, first in '{first}'")
