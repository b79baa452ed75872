"""The same weights, computed in other ways: what a seal must stay silent under, and what its noise floor is made of."""

import copy
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from intaglio.classifiers import Classifier, OnnxClassifier, TorchClassifier, export_onnx
from intaglio.errors import FORWARD_ERRORS, IntaglioError, RecipeError
from intaglio.seal.surface import LEVELS, differences
from intaglio.seal.tf32 import Tf32
from intaglio.tampering import Quantise

#: Variants of a model that an owner may ship; each is rounded in the ways that are usual for it.
VARIANTS: dict[str, tuple[Quantise | Tf32, ...]] = {
    "fp16": (Quantise(number="fp16"), Quantise(number="fp16", activations=True)),
    "bf16": (Quantise(number="bf16"), Quantise(number="bf16", activations=True)),
    "int16": (Quantise(bits=16), Quantise(bits=16, scale="channel")),
    "int8": (Quantise(bits=8), Quantise(bits=8, scale="channel")),
    "tf32": (Tf32(), Tf32(rounding="down"), Tf32(matrices=True), Tf32(matrices=True, rounding="down")),
}

#: Batches of other kernels are of this size: some implementations change algorithm with it.
_BATCH = 16


@dataclass(frozen=True)
class Execution:
    """One way of computing: from images in grey levels `[N, ...]` to scores float64 `[N, K]` (see `differences`)."""

    name: str
    scores: Callable[[Tensor], Tensor]


def executions(classifier: Classifier, *, allow: Sequence[str] = (), compiled: bool = False) -> list[Execution]:
    """The ways of computing that this machine offers, the classifier's own first.

    For a module: batch sizes, memory orders, 1 and 2 threads, torch's other kernels (oneDNN off: other summation orders
    and Winograd convolutions, as other processors use), images decoded by another division, float64, ONNX Runtime if it
    is installed, CUDA if it is there, `compiled` if asked for, and every variant allowed. For an ONNX file: batch
    sizes, decoding, threads. For anything else: batch sizes and decoding. Whoever asks them turns TF32 off meanwhile
    (`full_precision`): where it is meant, it is the variant "tf32".

    Raises:
        RecipeError: an unknown variant, or variants of a model whose weights are out of reach.
    """
    if unknown := [name for name in allow if name not in VARIANTS]:
        raise RecipeError(f"unknown variant '{unknown[0]}' to allow; known are {', '.join(VARIANTS)}")
    found = [
        Execution("as opened", lambda levels: _ask(classifier, levels / LEVELS)),
        Execution("one by one", lambda levels: _ask(classifier, levels / LEVELS, 1)),
        Execution("batches of 7", lambda levels: _ask(classifier, levels / LEVELS, 7)),
        Execution("other decoding", lambda levels: _ask(classifier, levels * torch.tensor(1 / LEVELS))),
    ]
    if isinstance(classifier, TorchClassifier):
        found += [way for way in _of_module(classifier, compiled) if _works(way, classifier)]
        return found + list(_variants(classifier, allow))
    if allow:
        raise RecipeError(f"variants can be allowed for models whose weights are known, not for {classifier.source}")
    if isinstance(classifier, OnnxClassifier) and Path(classifier.source).is_file():
        found += [_threaded_file(classifier, threads) for threads in _other_thread_counts()]
    return found


def _of_module(classifier: TorchClassifier, compiled: bool) -> Iterator[Execution]:
    module, run = classifier.module, partial(_run, classifier)

    yield Execution("plain memory order", run(module))
    for threads in _other_thread_counts():
        yield Execution(f"{threads} threads", _with_threads(threads, run(module, batch=classifier.batch_size)))
    if classifier.device.type == "cpu":
        yield Execution("other kernels", _without_onednn(run(module)))
        yield Execution("other kernels, one by one", _without_onednn(run(module, batch=1)))
    double = _double(module)
    if double is not None:
        yield Execution("float64", run(double, dtype=torch.float64))
    exported = _exported(classifier)
    if exported is not None:
        yield Execution("ONNX Runtime", lambda levels: _ask(exported, levels / LEVELS))
        yield Execution("ONNX Runtime, one by one", lambda levels: _ask(exported, levels / LEVELS, 1))
    if torch.cuda.is_available() and classifier.device.type == "cpu":
        yield Execution("CUDA", run(copy.deepcopy(module).to("cuda")))
    if compiled:
        yield Execution("compiled", run(cast(nn.Module, torch.compile(module))))


def _variants(classifier: TorchClassifier, allow: Sequence[str]) -> Iterator[Execution]:
    for name in allow:
        for index, variant in enumerate(VARIANTS[name]):
            changed = variant.apply(classifier.module)
            yield Execution(f"{name} ({index + 1})", _run(classifier, changed, batch=classifier.batch_size))


def _run(
    classifier: TorchClassifier, module: nn.Module, *, batch: int = _BATCH, dtype: torch.dtype = torch.float32
) -> Callable[[Tensor], Tensor]:
    """A module in place of the classifier's own, in batches of one size, in plain memory order."""
    place = next(iter(module.parameters()), torch.empty(0)).device

    def scores(levels: Tensor) -> Tensor:
        with torch.inference_mode():
            images = torch.split(levels / LEVELS, batch)
            parts = [module(classifier.preprocessing.apply(part).to(place, dtype)).cpu() for part in images]
        return differences(torch.cat(parts), classifier.outputs)

    return scores


def _works(way: Execution, classifier: Classifier) -> bool:
    """Whether the model can be computed this way: some take batches of one size, or one type, alone."""
    try:
        way.scores(torch.full((2, *classifier.input_shape), LEVELS / 2))
    except (IntaglioError, *FORWARD_ERRORS):
        return False
    return True


def _ask(classifier: Classifier, images: Tensor, batch: int | None = None) -> Tensor:
    parts = [classifier.scores(part) for part in torch.split(images, batch or len(images))]
    return differences(torch.cat(parts), classifier.outputs)


def _other_thread_counts() -> list[int]:
    here = torch.get_num_threads()
    return [count for count in (1, 2) if count != here and count <= (os.cpu_count() or 1)]


def _with_threads(count: int, scores: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def threaded(levels: Tensor) -> Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            return scores(levels)
        finally:
            torch.set_num_threads(before)

    return threaded


def _threaded_file(classifier: OnnxClassifier, threads: int) -> Execution:
    def scores(levels: Tensor) -> Tensor:
        again = OnnxClassifier(
            classifier.source,
            input_shape=classifier.input_shape,
            num_classes=classifier.num_classes,
            preprocessing=classifier.preprocessing,
            outputs=classifier.outputs,
        )
        return _ask(again, levels / LEVELS)

    return Execution(f"{threads} threads", _with_threads(threads, scores))


def _without_onednn(scores: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def plain(levels: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on machines without an Intel GPU, the flags warn about it
            with torch.backends.mkldnn.flags(enabled=False):
                return scores(levels)

    return plain


def _double(module: nn.Module) -> nn.Module | None:
    """A copy in double precision; None for a module that can't be copied."""
    try:
        return copy.deepcopy(module).cpu().double().eval()
    except (RuntimeError, TypeError, NotImplementedError):
        return None


def _exported(classifier: TorchClassifier) -> OnnxClassifier | None:
    """The module as ONNX Runtime runs it; None where it isn't installed or can't take the module."""
    options: dict[str, Any] = {"preprocessing": classifier.preprocessing, "outputs": classifier.outputs}
    shape = classifier.preprocessing.model_shape(classifier.input_shape)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            export_onnx(classifier.module, path, input_shape=shape)
            content = path.read_bytes()
            return OnnxClassifier(
                content, input_shape=classifier.input_shape, num_classes=classifier.num_classes, **options
            )
        except (IntaglioError, ImportError):
            return None
