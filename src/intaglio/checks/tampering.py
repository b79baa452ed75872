"""`check_tampering`: what every tampering must hold to."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.checks.failures import Problems, state_of
from intaglio.checks.toy import ARCHITECTURE, CLASSES, toy_data, toy_module
from intaglio.data import ImageData
from intaglio.errors import DataError, ModelError
from intaglio.tampering import Tampering
from intaglio.tampering.options import options_of


def check_tampering(make: Callable[..., Tampering], **options: Any) -> None:
    """Tries the tampering that `make(**options)` gives on a small network, with data if it needs some.

    The result is a new module in evaluation mode, of finite float32 weights, which takes the same inputs and shares no
    memory with the given one; something in it has changed. The given module, the data and torch's global generator
    are left alone; the same seed gives the same bytes; the description is JSON; the options can be given as text;
    data that are needed and missing are refused; `architecture` says what the result is, or that it can't.

    Raises:
        CheckError: listing all that does not hold.
    """
    problems = Problems()
    tampering = None
    with problems.during("making it"):
        tampering = make(**options)
    if tampering is not None and not isinstance(tampering, Tampering):
        problems.unless(False, f"it is a {type(tampering).__name__}, not an intaglio.tampering.Tampering")
    elif tampering is not None:
        problems.check_name(getattr(tampering, "name", None))
        with problems.during("describe()"):
            problems.check_description(tampering.describe(), "tampering", tampering.name)
        with problems.during("reading its options"):
            options_of(type(tampering))
        _check_application(problems, tampering)
        _check_data(problems, tampering)
    problems.finish(f"tampering {getattr(tampering, 'name', None) or getattr(make, '__name__', make)}")


def _check_application(problems: Problems, tampering: Tampering) -> None:
    module, data = toy_module().train(), toy_data()
    next(module.parameters()).requires_grad_(False)
    before, images, labels = state_of(module), data.images.clone(), data.labels.clone()
    given = data if tampering.needs_data else None
    result = None
    with problems.during("applying it"):
        result = tampering.apply(module, given, seed=3)
    problems.unless(state_of(module) == before, "it changes the module that it is given")
    kept = torch.equal(data.images, images) and torch.equal(data.labels, labels)
    problems.unless(kept, "it writes into the data that it is given")
    if not isinstance(result, nn.Module):
        problems.unless(result is None, f"the result is a {type(result).__name__}, not a module")
        return
    with problems.during("the result"):
        _check_result(problems, tampering, module, result)
    with problems.during("applying it again"):
        again = tampering.apply(module, given, seed=3)
        problems.unless(_weights(again) == _weights(result), "with the same seed, the result differs")
        problems.unless(_weights(result) != _weights(module), "nothing has changed")


def _check_result(problems: Problems, tampering: Tampering, module: nn.Module, result: nn.Module) -> None:
    problems.unless(not any(part.training for part in result.modules()), "the result is not in evaluation mode")
    parameters = list(result.parameters())
    problems.unless(all(one.dtype == torch.float32 for one in parameters), "the result's weights are not float32")
    problems.unless(all(bool(one.isfinite().all()) for one in parameters), "the result's weights are not finite")
    shared = _places(module) & _places(result)
    problems.unless(not shared, "the result shares memory with the module that it was made of")
    with torch.no_grad():
        answers = result(toy_data().images[:6])
    expected = isinstance(answers, Tensor) and answers.shape == (6, len(CLASSES)) and bool(answers.isfinite().all())
    problems.unless(expected, "the result does not answer [N, C, H, W] with finite scores [N, K]")
    try:
        architecture = tampering.architecture(ARCHITECTURE)
    except ModelError:  # no architecture that a file could name
        return
    with torch.random.fork_rng(devices=[]):
        architecture.build().load_state_dict(result.state_dict())


def _check_data(problems: Problems, tampering: Tampering) -> None:
    data = toy_data(24)
    if tampering.needs_data:
        with problems.refused(DataError, "working without the data that it needs"):
            tampering.apply(toy_module(), None)
        with problems.refused(DataError, "data of another shape"):
            tampering.apply(toy_module(), ImageData(torch.zeros(8, 3, 5, 5), torch.zeros(8).long()))
    if tampering.needs_labels:
        with problems.refused(DataError, "working without the labels that it needs"):
            tampering.apply(toy_module(), ImageData(data.images, torch.full_like(data.labels, -1)))


def _weights(module: nn.Module) -> dict[str, bytes]:
    return {name: value.detach().contiguous().numpy().tobytes() for name, value in module.state_dict().items()}


def _places(module: nn.Module) -> set[int]:
    tensors = (*module.parameters(), *module.buffers())
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.numel()}
