"""A network's steps on changed windows, and on whole maps from where the plan says so."""

from typing import Any

from torch import Tensor

from intaglio.scan.locality.geometry import SAME, Footprint
from intaglio.scan.locality.planning import Plan, Program, filled
from intaglio.scan.locality.tracing import resolve
from intaglio.scan.locality.window import Window


def run(
    program: Program,
    plan: Plan,
    window: Window,
    *,
    start: int = 0,
    stop: int | None = None,
) -> Window | Tensor:
    """Scores `[N, K]` of the probes that change this window; given `stop`, what step number `stop - 1` makes of it.

    The window is of the image, or of what step number `start - 1` makes.
    """
    network, batch = program.network, window.batch
    windows: dict[str, Window] = {window.name: window}
    whole: dict[str, Any] = {}

    def full(name: str) -> Any:
        """A result for all probes at once."""
        if name not in whole:
            changed = windows.get(name)
            whole[name] = _repeated(program, name, len(batch)) if changed is None else changed.whole()
        return whole[name]

    for step in network.steps[start:stop]:
        place = plan.places[step.name]
        if step.name in plan.local and place != SAME:
            assert step.local is not None
            wanted = filled([plan.places[name] for name in step.inputs])
            inputs = [
                windows[name] if name in windows else Window.unchanged(batch, name, footprint)
                for name, footprint in zip(step.inputs, wanted, strict=True)
            ]
            result = step.local.apply(inputs, place if isinstance(place, Footprint) else wanted[0])
            if isinstance(result, Window):
                windows[step.name] = result
            else:
                whole[step.name] = result
        elif step.shape_only:
            known = {name: whole.get(name, _repeated(program, name, len(batch))) for name in step.inputs}
            whole[step.name] = step.run(*resolve(step.args, known), **step.kwargs)
        elif place != SAME:
            known = {**network.constants, **{name: full(name) for name in step.inputs}}
            whole[step.name] = step.run(*resolve(step.args, known), **resolve(step.kwargs, known))
        for name in step.last_uses:
            windows.pop(name, None)
            whole.pop(name, None)
    last = network.output if stop is None else network.steps[stop - 1].name
    if stop is not None and last in windows:
        return windows[last]
    made: Tensor = full(last)
    return made


def finish(program: Program, made: Tensor, start: int) -> Tensor:
    """Scores of what step number `start - 1` made, whole, where nothing else is needed any more."""
    network = program.network
    whole: dict[str, Any] = {network.steps[start - 1].name: made}
    for step in network.steps[start:]:
        known = {**network.constants, **{name: whole[name] for name in step.inputs}}
        whole[step.name] = step.run(*resolve(step.args, known), **resolve(step.kwargs, known))
        for name in step.last_uses:
            whole.pop(name, None)
    scores: Tensor = whole[network.output]
    return scores


def _repeated(program: Program, name: str, count: int) -> Any:
    """What the base image gives, as if there were `count` of them: for what no probe changes, or for its shape."""
    value = program.base.activations[name]
    return value.expand(count, *value.shape[1:]) if isinstance(value, Tensor) and value.ndim else value
