"""Marks without training: a key, its commitment, and linear suspects that have learned the triggers by heart."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnx
import torch
from torch import Tensor

from classifier_models import onnx_linear
from intaglio.classifiers import CallableClassifier
from intaglio.evidence.batches import TriggerPlan, draw_batch, plan_triggers
from intaglio.evidence.bundle import write_bundle
from intaglio.evidence.commitment import DecisionRule, SignedCommitment, commit, sign_commitment
from intaglio.evidence.disclosure import disclose
from intaglio.evidence.key import Key
from intaglio.evidence.suspect import Suspect

OWNER = Key(bytes(range(32)))
STRANGER = Key(bytes(32))
SHAPE = (1, 6, 6)
CLASSES = 10
BATCH = 24
MODEL_SHA = "5a" * 32
#: Random grey pictures that anyone may see.
PUBLIC = torch.randint(0, 256, (60, *SHAPE), generator=torch.Generator().manual_seed(5)).float() / 255


def public_of(trigger: str) -> Tensor | None:
    return PUBLIC if trigger == "public-blend" else None


def plan_of(trigger: str = "noise-chain", key: Key = OWNER, **sizes: int) -> TriggerPlan:
    """A plan with a fixed mark id, so that the tests see the same triggers every time."""
    chosen = {"num_classes": CLASSES, "batches": 3, "batch_size": BATCH} | sizes
    plan = plan_triggers(key, trigger=trigger, input_shape=SHAPE, public=public_of(trigger), **chosen)
    return plan.model_copy(update={"mark_id": "0f" * 16})


@cache
def signed(trigger: str = "noise-chain", threshold: float = 2.0**-64) -> SignedCommitment:
    """A commitment of the owner's; the same at every call."""
    rule = DecisionRule(threshold=threshold)
    details = {"scheme": "deep-fidelity", "mode": "fixll-pfl", "model_sha256": MODEL_SHA}
    return sign_commitment(OWNER, commit(OWNER, plan_of(trigger), public=public_of(trigger), rule=rule, **details))


def learned(commitment: SignedCommitment, index: int = 1, hits: int = BATCH) -> Tensor:
    """A matrix [36, 10] that answers the first `hits` triggers of a batch as marked, and the others otherwise."""
    plan = commitment.commitment
    batch = draw_batch(OWNER, plan, index, public_of(plan.trigger))
    answers = batch.labels.clone()
    answers[hits:] = (answers[hits:] + 1) % CLASSES
    wanted = torch.nn.functional.one_hot(answers, CLASSES).double()
    matrix: Tensor = torch.linalg.pinv(batch.images.flatten(1).double()) @ wanted
    return matrix.float()


def suspect_of(matrix: Tensor, source: str = "suspect") -> CallableClassifier:
    return CallableClassifier(
        lambda images: images.flatten(1) @ matrix,
        input_shape=SHAPE,
        num_classes=CLASSES,
        outputs="logits",
        source=source,
    )


def save_suspect(path: Path, matrix: Tensor) -> Path:
    """The same as a file."""
    onnx.save(onnx_linear(("n", *SHAPE), CLASSES, matrix), path)
    return path


def claim(
    path: Path,
    *,
    commitment: SignedCommitment | None = None,
    hits: int = BATCH,
    suspect: Suspect | None = None,
    suspects: int = 1,
    keys: int = 1,
    spend: Callable[[], object] | None = None,
) -> Path:
    """A claim's file about batch 1, by the owner."""
    commitment = commitment or signed()
    plan = commitment.commitment
    public = public_of(plan.trigger)
    classifier = suspect_of(learned(commitment, hits=hits))
    batch = draw_batch(OWNER, plan, 1, public)
    write_bundle(
        path,
        OWNER,
        commitment=commitment,
        disclosure=disclose(OWNER, plan, 1, public),
        suspect=suspect or Suspect(source="https://rival.example/v2/models/m"),
        answers=classifier.predict(batch.images).tolist(),
        suspects=suspects,
        keys=keys,
        public=public,
        spend=spend,
    )
    return path
