"""`Classifier`: the one way in which every method asks a model, wherever the model comes from."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, TypedDict, Unpack, final

import torch
from torch import Tensor

from intaglio.classifiers.access import Access
from intaglio.classifiers.outputs import Outputs, recognise, to_log_probs
from intaglio.classifiers.preprocessing import Preprocessing
from intaglio.errors import ClassifierError, DataError
from intaglio.seeds import torch_generator

#: Bytes of activations alive at once per byte of input, raw or resized: about right from LeNet to ResNet-18.
_ACTIVATION_FACTOR = 64
#: 64 MiB, hence 1 MiB of input per batch: measured fastest on CPUs (256 images of 1x28x28, 64 of 3x32x32, 1 of
#: 3x224x224); batches 8 times larger fall out of the cache and run at a fifth to a half of that speed.
CPU_MEMORY_BUDGET = 64 << 20
_MAX_BATCH = 1024
#: 256 MiB per input: a file may state any shape, and probing must not exhaust the memory.
_MAX_INPUT = 1 << 26
#: 1 GiB per fixed batch, for the same reason: every question is padded to it.
_MAX_FIXED = 1 << 28
_PROBES = 4


class Options(TypedDict, total=False):
    """Keyword arguments common to every classifier; all have defaults."""

    preprocessing: Preprocessing  #: from raw images to the model's input (default: none)
    outputs: Outputs  #: what the scores are (default "auto": recognised on a few fixed images)
    memory_budget: int  #: bytes that activations of one batch may take; decides the batch size
    batch_size: int | None  #: images per batch, overriding the budget
    fixed_batch: int | None  #: the only batch size that the model takes: smaller batches are padded, and cut again
    source: str  #: where the model came from: a path, a URL, or "module"
    sha256: str | None  #: of the file it came from
    task: str | None  #: the name of the data it was trained for
    classes: tuple[str, ...]  #: class names, none or one per class


class Classifier(ABC):
    """A model under examination: images in raw pixel space in, scores out.

    Images are float32 `[N, *input_shape]` in [0, 1], where `input_shape` is `(C, H, W)` or, for video, `(T, C, H, W)`.
    The public methods are final: they check, preprocess, batch and count. A subclass writes only `_forward`, which is
    given one batch, already preprocessed, and returns scores `[n, K]` (labels `[n]` where access is `LABELS`).

    Raises (every method that asks):
        DataError: images of a wrong type, shape or range.
        ClassifierError: answers of a wrong shape, not finite, or an access that isn't offered.
    """

    #: The range of every input value.
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __init__(
        self, *, input_shape: tuple[int, ...], num_classes: int, access: Access, format: str, **options: Unpack[Options]
    ) -> None:
        self.input_shape = _checked_shape(input_shape)
        self.num_classes = _checked_class_count(num_classes)
        self.access = access
        self.format = format
        self.preprocessing = options.get("preprocessing", Preprocessing())
        if problem := self.preprocessing.problem(self.input_shape):
            raise ClassifierError(problem)
        self.source = options.get("source", format)
        self._check_resize()
        self.sha256 = options.get("sha256")
        self.task = options.get("task")
        self.classes = tuple(options.get("classes", ()))
        if self.classes and len(self.classes) != self.num_classes:
            raise ClassifierError(f"{self.source}: {len(self.classes)} class names for {self.num_classes} classes")
        self.fixed_batch = options.get("fixed_batch")
        self.batch_size = self.fixed_batch or options.get("batch_size") or _batch_size(self._values, options)
        if self.batch_size < 1:
            raise ClassifierError(f"batch size must be at least 1, got {self.batch_size}")
        if self.fixed_batch:
            self._check_fixed_batch(self.fixed_batch)
        self._outputs: Outputs = options.get("outputs", "auto")
        self._queries = 0

    @abstractmethod
    def _forward(self, batch: Tensor) -> Tensor:
        """Scores `[n, K]` (or labels `[n]`) of one preprocessed batch."""

    @property
    def queries(self) -> int:
        """Images asked so far, gradients included."""
        return self._queries

    @final
    def reset_queries(self) -> None:
        """Starts counting from zero again."""
        self._queries = 0

    @final
    def count_queries(self, count: int) -> None:
        """Counts images that the model was asked by other means than this object's methods."""
        self._queries += count

    @final
    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """What is asked inside doesn't count: checks of the machinery, not questions about the model."""
        asked = self._queries
        try:
            yield
        finally:
            self._queries = asked

    @property
    def outputs(self) -> Outputs:
        """What the scores are: the declared kind, or the recognised one.

        An undeclared kind is recognised once, on 4 fixed noise images: when a local model is opened (not counted as
        queries), or, for a function, at first need (counted).
        """
        if self._outputs == "auto":
            self._outputs = recognise(self.scores(self._probe_images()))
        return self._outputs

    @final
    def scores(self, images: Tensor) -> Tensor:
        """Float32 `[N, K]` on the images' device, just as the model gives them: see `outputs` for what they are."""
        self.require(Access.SCORES)
        return self._ask(images)

    @final
    def log_probs(self, images: Tensor) -> Tensor:
        """Log-probabilities float32 `[N, K]`, whatever the model answers with."""
        kind = self.outputs
        return to_log_probs(self.scores(images), kind)

    @final
    def predict(self, images: Tensor) -> Tensor:
        """The predicted class of each image, int64 `[N]`."""
        answers = self._ask(images)
        return answers if self.access is Access.LABELS else answers.argmax(dim=1)

    @final
    def require(self, access: Access) -> None:
        """Does nothing if `access` is offered.

        Raises:
            ClassifierError: it is not.
        """
        if self.access < access:
            raise ClassifierError(
                f"needs {access.name} access, but this classifier ({self.source}) offers {self.access.name}"
            )

    def __repr__(self) -> str:
        shape = "x".join(str(side) for side in self.input_shape)
        return f"{type(self).__name__}({self.source}, {shape}, {self.num_classes} classes, {self.access.name})"

    def _ask(self, images: Tensor) -> Tensor:
        self._check_images(images)
        with torch.no_grad():
            answers = [self._answer(batch) for batch in torch.split(images, self.batch_size)]
            return torch.cat(answers).to(images.device)

    def _answer(self, batch: Tensor) -> Tensor:
        self.count_queries(len(batch))
        return self.checked_answer(self._forward(self._prepared(batch))[: len(batch)], len(batch))

    def _prepared(self, batch: Tensor) -> Tensor:
        """The batch as the model takes it: preprocessed, and padded with its last image to a fixed batch size."""
        missing = (self.fixed_batch or 0) - len(batch)
        if missing > 0:
            batch = torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])])
        return self.preprocessing.apply(batch)

    @property
    def _values(self) -> int:
        """Of one image, as it is asked or as the model takes it, whichever are more."""
        return max(math.prod(self.input_shape), math.prod(self.preprocessing.model_shape(self.input_shape)))

    def _check_resize(self) -> None:
        if self._values > _MAX_INPUT:
            shape = self.preprocessing.model_shape(self.input_shape)
            raise ClassifierError(f"{self.source}: its preprocessing makes {shape}, over {_MAX_INPUT} values an image")

    def _check_fixed_batch(self, count: int) -> None:
        """Refuses a batch that could not be filled up: both as it is asked and as the model takes it."""
        values = count * self._values
        if values > _MAX_FIXED:
            raise ClassifierError(
                f"{self.source}: takes batches of {count} images only, {values} values in each, over {_MAX_FIXED}; "
                "export it with a smaller batch, or one of any size"
            )

    def _probe(self) -> None:
        """Asks once, uncounted, so that a model which can't answer is refused where it is opened."""
        with self.uncounted():
            if self._outputs == "auto" and self.access >= Access.SCORES:
                _ = self.outputs
            else:
                self._ask(self._probe_images())

    def _probe_images(self) -> Tensor:
        """Noise of growing contrast: constant images are left out, for they make some normalisations divide by 0."""
        noise = torch.rand(_PROBES, *self.input_shape, generator=torch_generator(0, "classifiers", "probe"))
        contrast = torch.arange(1, _PROBES + 1) / _PROBES
        return noise * contrast.view(-1, *[1] * len(self.input_shape))

    def _check_images(self, images: Tensor) -> None:
        expected = f"float32 images [N, {', '.join(str(side) for side in self.input_shape)}]"
        if not isinstance(images, Tensor):
            raise DataError(f"expected a tensor of {expected}, got {type(images).__name__}")
        if images.dtype != torch.float32 or tuple(images.shape[1:]) != self.input_shape:
            raise DataError(f"{self.source}: expected {expected}, got {images.dtype} {list(images.shape)}")
        if len(images) == 0:
            raise DataError(f"{self.source}: there are no images to classify")
        low, high = (float(bound) for bound in torch.aminmax(images.detach()))
        if not (low >= self.bounds[0] and high <= self.bounds[1]):  # also true for NaN
            raise DataError(
                f"{self.source}: pixel values span {low:.4g}..{high:.4g}, expected [0, 1]; divide 8-bit images by 255 "
                "and leave mean and std to the preprocessing"
            )

    def checked_answer(self, answer: Tensor, count: int) -> Tensor:
        """Scores `[count, K]` as float32 (or labels `[count]` as int64), once they are found to be what they should be.

        Raises:
            ClassifierError: another shape or type, or not finite.
        """
        if self.access is Access.LABELS:
            return self._checked_labels(answer, count)
        if answer.ndim != 2 or len(answer) != count:
            raise ClassifierError(
                f"{self.source}: expected scores [{count}, {self.num_classes}], got {list(answer.shape)}"
            )
        if answer.shape[1] != self.num_classes:
            raise ClassifierError(
                f"{self.source}: declares {self.num_classes} classes, but answers with {answer.shape[1]}"
            )
        if not answer.is_floating_point():
            raise ClassifierError(f"{self.source}: expected floating-point scores, got {answer.dtype}")
        answer = answer.float()
        if not bool(torch.isfinite(answer).all()):
            bad = int((~torch.isfinite(answer)).any(dim=1).sum())
            raise ClassifierError(f"{self.source}: scores of {bad} of {count} images are not finite")
        return answer

    def _checked_labels(self, labels: Tensor, count: int) -> Tensor:
        if labels.shape != (count,) or labels.is_floating_point() or labels.is_complex():
            raise ClassifierError(
                f"{self.source}: expected {count} integer labels, got {labels.dtype} {list(labels.shape)}"
            )
        labels = labels.long()
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= self.num_classes:
            raise ClassifierError(f"{self.source}: labels span {low}..{high}, but there are {self.num_classes} classes")
        return labels


def _checked_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    shape = tuple(shape)
    if len(shape) not in (3, 4) or any(not isinstance(side, int) or side < 1 for side in shape):
        raise ClassifierError(f"input shape must be (C, H, W), or (T, C, H, W) for video, got {shape}")
    if math.prod(shape) > _MAX_INPUT:
        raise ClassifierError(f"input shape {shape} has more than {_MAX_INPUT} values")
    return shape


def _checked_class_count(count: int) -> int:
    if count == 1:
        raise ClassifierError(
            "a model with a single output has no classes to compare: wrap it so that it answers [N, 2], "
            "e.g. torch.cat([-z, z], dim=1) / 2 for a logit z"
        )
    if count < 2:
        raise ClassifierError(f"a classifier has at least 2 classes, got {count}")
    return count


def _batch_size(values: int, options: Options) -> int:
    """The largest power of two whose activations fit the budget, between 1 and 1024; `values` are those of an image."""
    per_image = 4 * values * _ACTIVATION_FACTOR
    fitting = max(1, options.get("memory_budget", CPU_MEMORY_BUDGET) // per_image)
    return min(_MAX_BATCH, 1 << (fitting.bit_length() - 1))
