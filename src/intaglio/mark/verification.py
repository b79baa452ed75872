"""`verify_mark`: is this suspect a copy of the marked model? Classes suffice; the answer is an exact p-value."""

import time
from pathlib import Path

from pydantic import Field
from torch import Tensor

from intaglio.classifiers import Classifier
from intaglio.errors import EvidenceError
from intaglio.evidence.batches import draw_batch
from intaglio.evidence.binomial import chance_p_value, needed_hits, needed_trials
from intaglio.evidence.commitment import SignedCommitment, read_commitment
from intaglio.evidence.key import Key
from intaglio.evidence.reading import read_suspect
from intaglio.mark.marking import public_images
from intaglio.results import Result, package_versions


class OwnershipClaim(Result):
    """What asking a suspect gave. Not verified means not shown: it never means that the suspect is no copy."""

    verified: bool
    statement: str
    hits: int
    trials: int
    num_classes: int
    p_value: float = Field(description="exact binomial tail, times the suspects and the keys tried")
    threshold: float
    needed_hits: int | None = Field(description="for the threshold, corrected; None: no number of hits is enough")
    suspects: int
    keys: int
    batch: int
    mark_id: str
    scheme: str
    mode: str
    owner_public_key: str
    suspect_source: str
    suspect_sha256: str | None
    answers: tuple[int, ...] = Field(description="what the suspect's answer to each trigger of the batch is read as")
    log_probs: tuple[tuple[float, ...], ...] | None = Field(
        default=None, repr=False, description="its scores, where they are what was read: centred over the batch"
    )
    queries: int
    seconds: float
    versions: dict[str, str]


def verify_mark(
    suspect: Classifier,
    commitment: SignedCommitment | Path | str,
    key: Key,
    *,
    batch: int = 0,
    public: Tensor | None = None,
    suspects: int = 1,
    keys: int = 1,
) -> OwnershipClaim:
    """Asks the suspect about one batch of triggers, drawn again from the key.

    Where it gives scores, and the committed rule makes use of them, its answers are read from centred scores (see
    `evidence.reading`); otherwise they are the classes it names. For every model made without the key,
    hits ~ Binomial(n, 1/K) either way; p = P(hits or more) * suspects * keys.

    Args:
        commitment: signed before the dispute, or its file.
        batch: which batch; once laid open to others it is spent.
        public: the committed public images, where the triggers are made of some.
        suspects, keys: how many were tried in all, this one included.

    Raises:
        EvidenceError: the commitment is not genuine, is another key's, or its triggers can't be drawn again.
        ClassifierError: the suspect can't answer, or is of another shape or class count.
    """
    signed = commitment if isinstance(commitment, SignedCommitment) else read_commitment(commitment)
    signed.verify()
    plan = signed.commitment
    if tuple(suspect.input_shape) != plan.input_shape or suspect.num_classes != plan.num_classes:
        raise EvidenceError(
            f"{suspect.source}: takes {list(suspect.input_shape)} and knows {suspect.num_classes} classes, but the "
            f"mark is for {list(plan.input_shape)} and {plan.num_classes}"
        )
    drawn = draw_batch(key, plan, batch, public_images(plan.trigger, plan.input_shape, public))
    asked, started = suspect.queries, time.perf_counter()
    answers, log_probs = read_suspect(suspect, drawn.images, plan.rule.statistic)
    hits, trials = int((answers == drawn.labels).sum()), len(answers)
    p_value = chance_p_value(hits, trials, plan.num_classes, suspects=suspects, keys=keys)
    threshold = plan.rule.threshold
    needed = needed_hits(trials, plan.num_classes, threshold / suspects / keys)
    return OwnershipClaim(
        verified=p_value <= threshold,
        statement=_statement(
            hits, trials, plan.num_classes, p_value, threshold, needed, suspects * keys, log_probs is not None
        ),
        hits=hits,
        trials=trials,
        num_classes=plan.num_classes,
        p_value=p_value,
        threshold=threshold,
        needed_hits=needed,
        suspects=suspects,
        keys=keys,
        batch=batch,
        mark_id=plan.mark_id,
        scheme=plan.scheme,
        mode=plan.mode,
        owner_public_key=plan.owner_public_key,
        suspect_source=suspect.source,
        suspect_sha256=suspect.sha256,
        answers=tuple(answers.tolist()),
        log_probs=None if log_probs is None else tuple(map(tuple, log_probs.tolist())),
        queries=suspect.queries - asked,
        seconds=round(time.perf_counter() - started, 3),
        versions=package_versions(),
    )


def _statement(
    hits: int,
    trials: int,
    num_classes: int,
    p_value: float,
    threshold: float,
    needed: int | None,
    tried: int,
    by_scores: bool,
) -> str:
    shown = f"p = {p_value:.2g}" if p_value > 1e-300 else "p < 1e-300"
    counted = (
        f"{hits} of {trials} triggers answered as committed, {trials / num_classes:.0f} expected by chance"
        f"{' (by centred scores)' if by_scores else ''}; {shown}"
    )
    if p_value <= threshold:
        return f"Verified: this is a copy of the marked model. {counted} (threshold {threshold:.2g})."
    if needed is None:
        wanted = needed_trials(num_classes, threshold / tried)
        return (
            f"Not verified: {counted}. With {trials} triggers and {num_classes} classes no answer reaches "
            f"{threshold:.2g}; that needs {wanted} triggers at least."
        )
    return (
        f"Not verified: {counted}; {needed} hits are needed for {threshold:.2g}. "
        f"That does not show that the suspect is no copy."
    )
