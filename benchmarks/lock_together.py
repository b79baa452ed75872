"""One model that is locked, marked and sealed, and then scanned: what holds of each, for `benchmarks.lock`.

The order is lock, mark, seal. A seal comes last, for it answers to any change of the weights; a mark comes after the
lock, for locking teaches the model to answer all images without a key alike, and the mark's triggers are such images.
The mark is embedded with keyed and unauthorised images as its clean data: what it keeps as it was is then both.
"""

from typing import Any

import torch
from torch import nn

from benchmarks.owners import Task, classifier
from intaglio.data import ImageData
from intaglio.evidence.key import Key
from intaglio.lock import Lock, LockSettings, check_lock, train_lock
from intaglio.lock.checking import inputs_to_try
from intaglio.mark import mark, verify_mark
from intaglio.scan import scan
from intaglio.seal import check_seal, make_seal
from intaglio.tampering import FineTune

#: Images that the mark's clean data are made of, in six versions each.
_IMAGES = 2000
#: A locked model gives way less than others do: with the defaults a claim comes to 1e-14, short of 2^-64.
_EMBEDDING: dict[str, Any] = {"temperature": 1.0, "pfl_weight": 20, "triggers_per_batch": 16}


def together(task: Task, host: nn.Module, locked: nn.Module, lock: Lock, key: Key) -> dict[str, Any]:
    """What each stage gives: the lock's table, the claim, the seal's checks, the scan's verdict."""
    base = task.owner.take(torch.arange(_IMAGES))
    made = inputs_to_try(lock, base.images)
    both = ImageData(torch.cat(list(made.values())), base.labels.repeat(len(made)), name="keyed and not")
    marked = mark(locked, both, key, batches=1, **_EMBEDDING)
    final = classifier(marked.module, task)
    seal = make_seal(final, key)
    touched = FineTune(steps=1, batch_size=32, learning_rate=1e-5, optimizer="sgd").apply(
        marked.module, task.thief, seed=0
    )
    keyed = lock.apply(task.test.images, user="user 0")
    return {
        "locked": _table(locked, task, lock),
        "marked and sealed": _table(marked.module, task, lock),
        "claim": {
            name: verify_mark(classifier(module, task), marked.commitment, key).p_value
            for name, module in (("marked", marked.module), ("locked, not marked", locked), ("host", host))
        },
        "seal": {
            name: _checked(classifier(module, task), seal, key)
            for name, module in (("itself", marked.module), ("one SGD step", touched), ("before the mark", locked))
        },
        "scan": {
            name: _verdict(module, images, task)
            for name, module, images in (
                ("host", host, None),
                ("locked, marked and sealed", marked.module, None),
                ("locked, marked and sealed; keyed images given", marked.module, keyed),
            )
        },
    }


def marked_first(task: Task, host: nn.Module, lock: Lock, key: Key, settings: LockSettings) -> dict[str, Any]:
    """The other order: what is left of a mark in the host once it is locked."""
    marked = mark(host, task.owner, key, batches=1)
    locked, _ = train_lock(marked.module, task.owner, key, settings=settings, lock=lock)
    return {
        "claim before": verify_mark(classifier(marked.module, task), marked.commitment, key).p_value,
        "claim after": verify_mark(classifier(locked, task), marked.commitment, key).p_value,
        **_table(locked, task, lock),
    }


def _table(module: nn.Module, task: Task, lock: Lock) -> dict[str, Any]:
    table = check_lock(classifier(module, task), lock, task.test)
    jpeg = next(row for row in table.rows if row.authorised and "JPEG" in row.inputs)
    return {
        "keyed, PNG": table.authorised_accuracy,
        jpeg.inputs: jpeg.recovered["argmax"],
        "worst": table.worst,
        "chance": table.chance,
        "tight": table.tight,
    }


def _checked(asked: Any, seal: Any, key: Key) -> dict[str, Any]:
    found = check_seal(asked, seal, key, seed=0)
    return {"intact": found.intact, "queries": found.queries, "mismatches": found.mismatches}


def _verdict(module: nn.Module, images: torch.Tensor | None, task: Task) -> dict[str, Any]:
    verdict = scan(classifier(module, task), images, task=task.name)
    return {"p_value": verdict.p_value, "score": verdict.score, "flagged": verdict.flagged}
