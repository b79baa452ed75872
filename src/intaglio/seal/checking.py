"""`check_seal`: asks a suspect a few sealed questions, and stops as soon as tampering is certain."""

import os
import time
from typing import Literal

import torch
from torch import Tensor

from intaglio.classifiers import Access, Classifier, OnnxClassifier, TorchClassifier
from intaglio.errors import ClassifierError, EvidenceError, NothingToExamineError, RecipeError
from intaglio.evidence.key import Key
from intaglio.results import Result, package_versions
from intaglio.seal.draws import Draws
from intaglio.seal.noise import sequence_p_value
from intaglio.seal.precision import full_precision
from intaglio.seal.sealed import Seal, SealRecord

#: A verdict of tampering is wrong at most this often, as far as the sealing machine's executions tell.
ALPHA = 0.01


class SealCheck(Result):
    """Whether a suspect still answers as sealed.

    `p_value` bounds the probability that the untouched model, computed in any of the ways measured when sealing, gives
    so many mismatches (1 if there are none); `intact` is false where it is at most `alpha`. `undecided` answers, in
    which rounded scores tie, count neither way. `nonce` fixed, with the key, which questions were asked.
    """

    kind: Literal["intaglio.seal-check/1"] = "intaglio.seal-check/1"
    statement: str
    intact: bool
    mismatches: int
    queries: int
    undecided: int
    first_mismatch: int | None
    p_value: float
    alpha: float
    planned: int
    seal_id: str
    method: str
    suspect: str
    suspect_sha256: str | None
    digest: str
    nonce: str
    seconds: float
    seed: int | None
    versions: dict[str, str]


@full_precision()
def check_seal(
    classifier: Classifier,
    seal: Seal,
    key: Key,
    *,
    max_queries: int | None = None,
    seed: int | None = None,
) -> SealCheck:
    """Asks `classifier` for labels, image by image in a secret order, until the answer is clear.

    Of every pair one image is asked, and only then all their twins, each in a request of its own: whoever sees both
    twins can tell from the difference of a tampered model's scores which was sealed as which.

    Any access will do. A failure to answer is passed on as it is (RemoteError and its like), never taken for tampering.
    A suspect that this process computes is computed without TF32, which PyTorch's defaults allow on a GPU.

    Args:
        max_queries: questions at most (default: all triggers of the seal); rounded down to whole pairs.
        seed: fixes the order, for a check that is to be repeated; by default it is drawn afresh, so that whoever
            answers can't know which questions come.

    Raises:
        EvidenceError: a seal of another key, or an edited one.
        ClassifierError: the suspect takes other images, or has another number of classes, than the sealed model; or it
            can't answer.
        RecipeError: fewer than 2 questions.
        NothingToExamineError: the suspect's scores are rounded so much that its answers tie.
    """
    record = seal.verify(key.public_key)
    planned = planned_questions(record, max_queries)
    _require_fitting(classifier, record)
    nonce = os.urandom(16).hex() if seed is None else f"seed {seed}"
    started = time.perf_counter()
    draws = Draws(key, record.seal_id)
    mismatches = queries = undecided = 0
    first: int | None = None
    p_value = 1.0
    for place in _questions(draws, record, planned // 2, nonce):
        agrees = _agrees(classifier, record, place, _expected(draws, record, place))
        queries += 1
        undecided += agrees is None
        if agrees is False:
            mismatches += 1
            first = first or queries
        p_value = sequence_p_value(mismatches, planned, record.noise.flip_bound)
        if p_value <= ALPHA:
            break
    if p_value > ALPHA and undecided > queries // 2:
        raise NothingToExamineError(
            f"{classifier.source}: {undecided} of {queries} answers are ties, for the scores are rounded: ask the "
            "model for labels, or for scores of full precision"
        )
    intact = p_value > ALPHA
    return SealCheck(
        statement=_statement(intact, mismatches, queries, undecided, p_value, record)
        + _spent(classifier, queries, record),
        intact=intact,
        mismatches=mismatches,
        queries=queries,
        undecided=undecided,
        first_mismatch=first,
        p_value=p_value,
        alpha=ALPHA,
        planned=planned,
        seal_id=record.seal_id,
        method=str(record.method.get("method")),
        suspect=classifier.source,
        suspect_sha256=classifier.sha256,
        digest=record.digest,
        nonce=nonce,
        seconds=round(time.perf_counter() - started, 3),
        seed=seed,
        versions=package_versions(),
    )


def sealed_answers(seal: Seal, key: Key) -> tuple[Tensor, Tensor]:
    """What only the owner can know: triggers `[P, 2, *input_shape]` in [0, 1] by pairs, and their answers `[P, 2]`.

    Raises:
        EvidenceError: a seal of another key, or an edited one.
    """
    record = seal.verify(key.public_key)
    draws = Draws(key, record.seal_id)
    pairs = pair_places(draws, record)
    images = torch.stack([record.images(places) for places in pairs])
    return images, torch.tensor([[_expected(draws, record, place) for place in places] for places in pairs])


def pair_places(draws: Draws, record: SealRecord) -> list[list[int]]:
    """For each pair the two places of the seal at which its triggers lie: a secret of the key."""
    order = draws.shuffled(2 * record.pairs, "places")
    place = {index: place for place, index in enumerate(order)}
    return [[place[2 * pair], place[2 * pair + 1]] for pair in range(record.pairs)]


def planned_questions(record: SealRecord, max_queries: int | None) -> int:
    """How many questions a check asks if nothing differs: whole pairs of at most `max_queries` (default: all).

    Raises:
        RecipeError: fewer than 2.
    """
    if max_queries is not None and max_queries < 2:
        raise RecipeError(f"a check asks at least 2 questions (one pair), got {max_queries}")
    return 2 * min(record.pairs, record.pairs if max_queries is None else max_queries // 2)


def _require_fitting(classifier: Classifier, record: SealRecord) -> None:
    if classifier.input_shape != tuple(record.input_shape):
        raise ClassifierError(
            f"{classifier.source}: takes images {classifier.input_shape}, but the sealed model takes "
            f"{tuple(record.input_shape)}: this is another model, or another seal"
        )
    if classifier.num_classes != record.num_classes:
        raise ClassifierError(
            f"{classifier.source}: has {classifier.num_classes} classes, but the sealed model has "
            f"{record.num_classes}: this is another model, or another seal"
        )
    if record.classes and classifier.classes:
        for label, (name, sealed) in enumerate(zip(classifier.classes, record.classes, strict=True)):
            if name != sealed:  # the answers are numbers; what they are taken for was changed
                raise ClassifierError(
                    f"{classifier.source}: calls class {label} '{name}', but the sealed model '{sealed}'"
                )


def _expected(draws: Draws, record: SealRecord, place: int) -> int:
    label = draws.opened(place, record.commitments[place], record.num_classes)
    if label is None:
        raise EvidenceError(f"the seal's commitment {place} does not open to any class: it was not made by this key")
    return label


def _questions(draws: Draws, record: SealRecord, pairs: int, nonce: str) -> list[int]:
    """The places to ask in turn: of so many pairs one image each, a secret one, and then their twins."""
    places = pair_places(draws, record)
    chosen = draws.shuffled(record.pairs, "order", nonce)[:pairs]
    first = {pair: draws.number("first", nonce, pair) % 2 for pair in chosen}
    return [places[pair][twin ^ first[pair]] for twin in (0, 1) for pair in chosen]


def _agrees(classifier: Classifier, record: SealRecord, place: int, expected: int) -> bool | None:
    """Whether a trigger's answer is the expected one; None where it ties with another."""
    image = record.images([place])
    if classifier.access is Access.LABELS:
        return int(classifier.predict(image)) == expected
    scores = classifier.scores(image)[0]
    best = scores == scores.max()
    right = bool(best[expected])
    return None if right and int(best.sum()) > 1 else right


def _statement(intact: bool, mismatches: int, queries: int, undecided: int, p_value: float, record: SealRecord) -> str:
    """The check in words."""
    skipped = f" ({undecided} undecided)" if undecided else ""
    if not intact:
        return (
            f"Tampered: {mismatches} of {queries} answers differ from the sealed ones{skipped}; numeric noise as "
            f"it was measured when sealing makes that happen with probability {p_value:.2g} or less."
        )
    if mismatches:
        return (
            f"Not shown to be tampered: {mismatches} of {queries} answers differ{skipped}, which numeric noise may do "
            f"(p = {p_value:.2g})."
        )
    scope = f"; {', '.join(record.allowed)} allowed" if record.allowed else ""
    return f"Intact: all {queries} answers are as sealed{skipped}{scope}."


def _spent(classifier: Classifier, queries: int, record: SealRecord) -> str:
    """A warning once a suspect was asked everything, unless it was computed here, where nobody records its answers."""
    if queries < 2 * record.pairs or isinstance(classifier, TorchClassifier | OnnxClassifier):
        return ""
    return " The suspect has seen the whole seal now: make the next one with another --seed."
