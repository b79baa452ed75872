"""What a check suite found: it goes on after a failure, and says everything at once."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from intaglio.errors import IntaglioError

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class CheckError(IntaglioError, AssertionError):
    """A method breaks what every method of its kind must hold to; `problems` lists all that were found."""

    def __init__(self, subject: str, problems: list[str]) -> None:
        super().__init__(f"{subject}: " + "; ".join(problems))
        self.problems = tuple(problems)


class Problems:
    """Collects what is wrong."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def unless(self, holds: bool, problem: str) -> None:
        """Notes the problem if the condition does not hold; the same problem once."""
        if not holds and problem not in self.found:
            self.found.append(problem)

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """An exception inside is a problem, and what stands below goes on; torch's global generator must stay."""
        state = torch.random.get_rng_state()
        try:
            yield
        except Exception as error:  # noqa: BLE001  (whatever the code under test raises is looked for)
            self.unless(False, f"{what}: {type(error).__name__}: {' '.join(str(error).split())}")
        self.unless(
            torch.equal(torch.random.get_rng_state(), state),
            f"{what}: draws from torch's global generator; draw from intaglio.seeds.torch_generator(seed, ...)",
        )
        torch.random.set_rng_state(state)

    def check_name(self, name: Any) -> None:
        """Names stand in recipes, manifests and commands."""
        known = isinstance(name, str) and _NAME.fullmatch(name) is not None
        self.unless(known, f"its name is {name!r}: lower-case words joined with '-' are expected")

    def check_description(self, description: Any, key: str, name: Any) -> None:
        """A description is a dictionary that JSON holds as it is."""
        try:
            kept = json.loads(json.dumps(description, allow_nan=False)) == description
        except (TypeError, ValueError):
            kept = False
        self.unless(kept, f"describe() is not what JSON gives back: {description!r}")
        named = isinstance(description, dict) and description.get(key) == name
        self.unless(named, f"describe() doesn't name it: expected {key}={name!r}")

    @contextmanager
    def refused(self, error: type[Exception], what: str) -> Iterator[None]:
        """Inside, exactly this error is expected."""
        try:
            yield
        except error:
            return
        except Exception as other:  # noqa: BLE001  (the wrong refusal is a finding, too)
            self.unless(False, f"{what}: expected {error.__name__}, got {type(other).__name__}: {other}")
            return
        self.unless(False, f"{what} is not refused: expected {error.__name__}")

    def finish(self, subject: str) -> None:
        """Does nothing if all is well.

        Raises:
            CheckError: listing the problems.
        """
        if self.found:
            raise CheckError(subject, self.found)


def state_of(module: nn.Module) -> tuple[Any, ...]:
    """Everything about a module that a method given it must leave alone; compares by ==."""
    return (
        {name: value.detach().cpu().contiguous().numpy().tobytes() for name, value in module.state_dict().items()},
        {name: parameter.requires_grad for name, parameter in module.named_parameters()},
        {name: parameter.grad is None for name, parameter in module.named_parameters()},
        {name: part.training for name, part in module.named_modules()},
        {name: len(part._forward_hooks) + len(part._forward_pre_hooks) for name, part in module.named_modules()},
    )
