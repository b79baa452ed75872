"""`check_trigger`: what every trigger must hold to."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from intaglio.checks.failures import Problems
from intaglio.errors import DataError
from intaglio.seeds import torch_generator
from intaglio.triggers import Trigger

Shape = tuple[int, int, int]
SHAPES: tuple[Shape, ...] = ((1, 16, 16), (3, 16, 20), (3, 32, 32))


def check_trigger(make: Callable[..., Trigger], *, input_shapes: Sequence[Shape] = SHAPES, **options: Any) -> None:
    """Tries the trigger that `make(**options)` gives, on images of these shapes.

    Images keep shape, type and bounds, are not written into, and at least one is altered; the same trigger made twice
    does the same to the same images, one by one as in a batch, whatever torch's global generator holds, and leaves
    that alone; its description is JSON; what isn't an image is refused. A class is also tried as recipes use it: its
    hyper-parameters are keyword-only, `seed` among them, and it can be made again from its description.

    Raises:
        CheckError: listing all that does not hold.
    """
    problems = Problems()
    trigger = None
    with problems.during("making it"):
        trigger = make(**options)
    if trigger is not None and not isinstance(trigger, Trigger):
        problems.unless(False, f"it is a {type(trigger).__name__}, not an intaglio.triggers.Trigger")
    elif trigger is not None:
        problems.check_name(getattr(trigger, "name", None))
        for shape in input_shapes:
            _check_images(problems, trigger, shape)
            with problems.during("making it twice"):
                again = make(**options).apply(_images(shape))
                problems.unless(
                    torch.equal(again, trigger.apply(_images(shape))), "made twice with the same options, it differs"
                )
        with problems.during("describe()"):
            problems.check_description(trigger.describe(), "trigger", trigger.name)
        if inspect.isclass(make):
            _check_class(problems, cast(Callable[..., Trigger], make), trigger, input_shapes[0])
        _check_refusals(problems, trigger)
    problems.finish(f"trigger {getattr(trigger, 'name', None) or getattr(make, '__name__', make)}")


def _images(shape: Shape, count: int = 5) -> Tensor:
    """Noise, with an image all black and one all white."""
    noise = torch.rand(count, *shape, generator=torch_generator(1, "checks", "trigger"))
    noise[0], noise[1] = 0, 1
    return noise


def _check_images(problems: Problems, trigger: Trigger, shape: Shape) -> None:
    images = _images(shape)
    before = images.clone()
    with problems.during(f"on images {list(shape)}"):
        altered = trigger.apply(images)
        problems.unless(torch.equal(images, before), "it writes into the images it is given")
        if not isinstance(altered, Tensor) or altered.shape != before.shape or altered.dtype != torch.float32:
            problems.unless(False, f"images {list(shape)} become something else than float32 of the same shape")
            return
        inside = bool(torch.isfinite(altered).all()) and 0 <= float(altered.min()) <= float(altered.max()) <= 1
        problems.unless(inside, f"images {list(shape)} leave [0, 1]")
        shared = altered.untyped_storage().data_ptr() == images.untyped_storage().data_ptr()
        problems.unless(not shared, "its answer shares memory with the images it is given")
        problems.unless(not torch.equal(altered, before), f"images {list(shape)} are not altered at all")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(12345)
            problems.unless(torch.equal(trigger.apply(before), altered), "applied twice, it differs")
        singly = torch.cat([trigger.apply(image[None]) for image in before])
        problems.unless(torch.allclose(singly, altered, atol=1e-5), "images are altered otherwise one by one")


def _check_class(problems: Problems, make: Callable[..., Trigger], trigger: Trigger, shape: Shape) -> None:
    parameters = inspect.signature(make).parameters.values()
    positional = [one.name for one in parameters if one.kind is not inspect.Parameter.KEYWORD_ONLY]
    problems.unless(not positional, f"hyper-parameters are keyword-only, but {', '.join(positional)} can be positional")
    problems.unless("seed" in {one.name for one in parameters}, "recipes give every trigger a seed=, and it takes none")
    with problems.during("made again from its description"):
        options = {name: value for name, value in trigger.describe().items() if name != "trigger"}
        again = make(**options).apply(_images(shape))
        problems.unless(torch.equal(again, trigger.apply(_images(shape))), "made from its description, it differs")


def _check_refusals(problems: Problems, trigger: Trigger) -> None:
    for what, bad in {
        "an image without a batch": torch.zeros(1, 16, 16),
        "images in float64": torch.zeros(2, 1, 16, 16, dtype=torch.float64),
        "images beyond [0, 1]": torch.full((2, 1, 16, 16), 2.0),
        "images that are NaN": torch.full((2, 1, 16, 16), float("nan")),
    }.items():
        with problems.refused(DataError, what):
            trigger.apply(bad)
