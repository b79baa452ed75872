"""Locking anew: keys of earlier locks are refused, none is forgotten, and no run goes on under other secrets."""

from typing import Any

import pytest
import torch
from torch import Tensor

from intaglio.data import ImageData
from intaglio.errors import DataError
from intaglio.lock import Lock, negatives, train_lock
from intaglio.lock.decoys import OtherKey, keyed_by
from lock_models import OWNER, TINY, tiny_lock, tiny_model


def test_keys_of_earlier_locks_are_refused_and_the_next_generation_begins(
    toy: ImageData, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaked, seen = tiny_lock(seed=1), list[list[OtherKey]]()

    def spied(others: list[OtherKey], *given: Any, **options: Any) -> Tensor:
        seen.append(others)
        return keyed_by(others, *given, **options)

    monkeypatch.setattr(negatives, "keyed_by", spied)
    locked, lock = train_lock(tiny_model(), toy, OWNER, settings=TINY, earlier=leaked)
    assert len(seen) == TINY.steps + TINY.refining_steps  # in every step of both phases
    assert all(len(others) == 1 and torch.equal(others[0].mixing, leaked.secrets.mixing) for others in seen)
    assert (lock.facts.generation, lock.facts.earlier) == (1, (leaked.facts.lock_id,))
    assert torch.equal(lock.secrets.mixing, tiny_lock(generation=1).secrets.mixing)
    assert locked(toy.images[:2]).shape == (2, 3)
    third = tiny_lock(generation=2, seed=2)
    _, lock = train_lock(tiny_model(), toy, OWNER, settings=TINY, earlier=[leaked, third])
    assert lock.facts.generation == 3


def test_training_leaves_an_earlier_lock_as_it_is(toy: ImageData) -> None:
    leaked, short = tiny_lock(seed=1), TINY.model_copy(update={"steps": 1, "refining_steps": 0})
    keyed = leaked.apply(toy.images, user="alice")
    train_lock(tiny_model(), toy, OWNER, settings=short, earlier=leaked)  # it ends with louder residuals
    assert leaked.network.encoder.relief == 1
    assert torch.equal(leaked.apply(toy.images, user="alice"), keyed)


def test_earlier_locks_that_cannot_be_refused(toy: ImageData) -> None:
    leaked, first = tiny_lock(seed=1), tiny_lock(seed=2)
    facts = leaked.facts.model_copy(update={"lock_id": "1" * 32, "generation": 1, "earlier": (first.facts.lock_id,)})
    second = Lock(leaked.network, OWNER, facts)
    for options, message in (
        ({"earlier": leaked, "generation": 0}, f"{'0' * 32} has the very secrets of this one: .* above 0"),
        ({"earlier": tiny_lock(shape=(1, 16, 16))}, f"earlier lock {'0' * 32} is for images of 1x16x16"),
        ({"earlier": second}, f"earlier lock {'1' * 32} refused {'0' * 32}: name that one too"),
        ({"earlier": leaked, "lock": tiny_lock()}, "an existing lock is used as it is"),
        ({"generation": 1, "lock": tiny_lock()}, "an existing lock is used as it is"),
    ):
        with pytest.raises(DataError, match=message):
            train_lock(tiny_model(), toy, OWNER, settings=TINY, **options)
    _, lock = train_lock(tiny_model(), toy, OWNER, settings=TINY, earlier=[first, second])
    assert (lock.facts.generation, lock.facts.earlier) == (2, (first.facts.lock_id, second.facts.lock_id))
