"""`verify_mark`: is this suspect a copy of the marked model? Classes suffice; the answer is an exact p-value."""

import time
from pathlib import Path

from pydantic import Field
from torch import Tensor

from intaglio.classifiers import Classifier
from intaglio.evidence.batches import draw_batch
from intaglio.evidence.binomial import chance_p_value, needed_hits, needed_trials, shared_threshold
from intaglio.evidence.commitment import SignedCommitment, read_commitment
from intaglio.evidence.key import Key
from intaglio.evidence.reading import most_hits, read_suspect
from intaglio.evidence.suspect import require_comparable
from intaglio.mark.marking import public_images
from intaglio.results import Result, package_versions


class OwnershipClaim(Result):
    """What asking a suspect gave. Not verified means not shown: it never means that the suspect is no copy."""

    verified: bool
    statement: str
    hits: int
    trials: int
    num_classes: int
    p_value: float = Field(description="exact binomial tail of the hits, times the suspects and the keys tried")
    threshold: float = Field(description="what decided: the committed rule's, shared among its readings")
    readings: int = Field(default=1, description="ways of reading the same answers that share the rule's threshold")
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

    Its answers are the classes it names or, where it gives scores and more hits are found in them, what centred scores
    are read as (see `evidence.reading`). For every model made without the key, hits ~ Binomial(n, 1/K) either way;
    p = P(hits or more) * suspects * keys, and each of the two ways has half of the rule's threshold. (Older commitments
    say that one of them alone counts; it has all of it.)

    Args:
        commitment: signed before the dispute, or its file.
        batch: which batch; once laid open to others it is spent.
        public: the committed public images, where the triggers are made of some.
        suspects, keys: how many were tried in all, this one included.

    Raises:
        EvidenceError: the commitment is not genuine, is another key's, its triggers can't be drawn again, or the
            suspect takes other inputs or knows fewer classes.
        ClassifierError: the suspect can't answer.
        DataError: counts of suspects or keys that can't be.
    """
    signed = commitment if isinstance(commitment, SignedCommitment) else read_commitment(commitment)
    signed.verify()
    plan = signed.commitment
    require_comparable(suspect, plan)
    drawn = draw_batch(key, plan, batch, public_images(plan.trigger, plan.input_shape, public))
    asked, started = suspect.queries, time.perf_counter()
    readings = read_suspect(suspect, drawn.images, plan.rule.statistic, plan.num_classes)
    answers, log_probs = most_hits(readings, drawn.labels)
    hits, trials = int((answers == drawn.labels).sum()), len(answers)
    p_value = chance_p_value(hits, trials, plan.num_classes, suspects=suspects, keys=keys)
    threshold = shared_threshold(plan.rule.threshold, plan.rule.readings)
    needed = needed_hits(trials, plan.num_classes, shared_threshold(threshold, suspects * keys))
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
        readings=plan.rule.readings,
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
        wanted = needed_trials(num_classes, shared_threshold(threshold, tried))
        return (
            f"Not verified: {counted}. With {trials} triggers and {num_classes} classes no answer reaches "
            f"{threshold:.2g}; that needs {wanted} triggers at least."
        )
    return (
        f"Not verified: {counted}; {needed} hits are needed for {threshold:.2g}. "
        f"That does not show that the suspect is no copy."
    )
