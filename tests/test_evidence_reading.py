"""What suspects are read as, by hand and under a bias; and what claims of scores are held to."""

import json
import math
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from evidence_cases import BATCH, CLASSES, OWNER, SHAPE, learned, plan_of, signed, suspect_of
from intaglio.classifiers import Access, CallableClassifier, Classifier, Exchange, image_digest
from intaglio.errors import ClassifierError, EvidenceError
from intaglio.evidence.batches import draw_batch
from intaglio.evidence.bundle import BUNDLE_TYPE, read_bundle
from intaglio.evidence.commitment import DecisionRule, SignedCommitment, commit, sign_commitment
from intaglio.evidence.envelope import Envelope, sign_statement
from intaglio.evidence.proof import verify_bundle
from intaglio.evidence.reading import Statistic, centred_labels, read_scores, read_suspect
from intaglio.evidence.suspect import Suspect
from intaglio.evidence.transcript import sign_transcript
from intaglio.mark import OwnershipClaim, verify_mark
from intaglio.mark.proof import prove

#: What a thief's tuning may do to the answers to all triggers: it makes them one class.
BIAS = torch.zeros(CLASSES).index_fill(0, torch.tensor([3]), 9.0)


def biased(source: str = "rival") -> CallableClassifier:
    """Knows every trigger of batch 1, and says 3 to all of them."""
    matrix = learned(signed())
    return CallableClassifier(
        lambda images: images.flatten(1) @ matrix + BIAS,
        input_shape=SHAPE,
        num_classes=CLASSES,
        outputs="logits",
        source=source,
    )


def old_rule(statistic: Statistic = "binomial") -> SignedCommitment:
    """As commitments were before scores were read, or before classes counted beside them."""
    rule = DecisionRule(statistic=statistic)
    made = commit(OWNER, plan_of(), rule=rule, scheme="deep-fidelity", mode="fixll-pfl", model_sha256="5a" * 32)
    return sign_commitment(OWNER, made)


# --- reading ---------------------------------------------------------------------------------------------------------


def test_centred_labels_by_hand() -> None:
    log_probs = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.1, 0.3], [0.7, 0.2, 0.1]], dtype=torch.float64).log()
    means = log_probs.mean(dim=0)
    assert log_probs.argmax(dim=1).tolist() == [0, 0, 0]
    assert centred_labels(log_probs).tolist() == [1, 2, 0]
    assert centred_labels(log_probs).tolist() == [int((row - means).argmax()) for row in log_probs]


def test_what_is_common_to_all_triggers_makes_no_difference() -> None:
    draw = torch.Generator().manual_seed(3)
    logits = torch.randn(50, 10, generator=draw, dtype=torch.float64)
    bias, scale = torch.randn(10, generator=draw, dtype=torch.float64), torch.randn(50, 1, generator=draw).double()
    assert torch.equal(centred_labels(logits), centred_labels(logits + 5 * bias + scale))


def test_rounded_zeros_count_as_a_tenth_of_the_smallest() -> None:
    probabilities = torch.tensor([[0.99, 0.01, 0.0], [0.98, 0.01, 0.01], [0.98, 0.02, 0.0]], dtype=torch.float64)
    floored = probabilities.clamp_min(0.001)
    assert centred_labels(probabilities.clamp_min(1e-38).log()).tolist() == centred_labels(floored.log()).tolist()
    assert centred_labels(floored.log()).tolist() == [0, 2, 1]
    assert centred_labels(torch.full((4, 3), -90.0, dtype=torch.float64)).tolist() == [0, 0, 0, 0]


def test_a_buried_mark_is_found_in_scores_and_not_in_classes() -> None:
    plan = signed().commitment
    batch = draw_batch(OWNER, plan, 1)
    suspect = biased()
    assert set(suspect.predict(batch.images).tolist()) == {3}
    found = verify_mark(suspect, signed(), OWNER, batch=1)
    assert (found.hits, found.verified) == (BATCH, True)
    by_classes = verify_mark(suspect, old_rule(), OWNER, batch=1)
    assert (by_classes.hits, by_classes.verified) == (int((batch.labels == 3).sum()), False)
    assert by_classes.log_probs is None
    assert OwnershipClaim.from_json(found.to_json()) == found


def test_a_suspect_that_names_classes_is_read_by_them() -> None:
    named = CallableClassifier(biased().predict, input_shape=SHAPE, num_classes=CLASSES, access=Access.LABELS)
    batch = draw_batch(OWNER, plan_of(), 1)
    (reading,) = read_suspect(named, batch.images, "centred-binomial", CLASSES)
    assert (reading.labels.tolist(), reading.log_probs) == ([3] * BATCH, None)


@pytest.mark.parametrize("kind", ["logits", "probabilities", "log-probabilities"])
def test_one_question_a_trigger_whatever_the_scores_are(kind: str) -> None:
    """A function that says nothing of its scores would be asked 4 times more to find out what they are."""
    matrix = learned(signed())

    def answer(images: Tensor) -> Tensor:
        logits = images.flatten(1) @ matrix + BIAS
        return {"logits": logits, "probabilities": logits.softmax(1), "log-probabilities": logits.log_softmax(1)}[kind]

    suspect = CallableClassifier(answer, input_shape=SHAPE, num_classes=CLASSES)
    found = verify_mark(suspect, signed(), OWNER, batch=1)
    assert (found.hits, found.queries) == (BATCH, BATCH)
    assert found.log_probs is not None
    assert all(math.isclose(sum(map(math.exp, row)), 1, abs_tol=1e-3) for row in found.log_probs)


# --- claims ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A claim of scores about a biased suspect."""
    path = tmp_path_factory.mktemp("claims") / "claim.json"
    suspect = biased()
    prove(path, verify_mark(suspect, signed(), OWNER, batch=1), signed(), OWNER, Suspect.of(suspect))
    return path


def altered(path: Path, whole: Path, **changes: Any) -> Path:
    """The claim with other contents, signed by the owner, who may be the one that cheats."""
    envelope = Envelope.from_file(whole)
    statement = envelope.unverified()
    predicate = dict(statement.predicate) | changes
    path.write_text(json.dumps(sign_statement(OWNER, dict(statement.subjects), BUNDLE_TYPE, predicate).to_dict()))
    return path


def test_a_stranger_counts_the_scores_again(whole: Path) -> None:
    proof = verify_bundle(whole, suspect=biased())
    assert proof.verified
    assert proof.asked_again is not None
    assert (proof.hits, proof.asked_again.hits, proof.asked_again.differing) == (BATCH, BATCH, 0)
    assert any("the answers are what the claimed scores are read as" in line for line in proof.checked)
    innocent = suspect_of(torch.zeros(SHAPE[1] * SHAPE[2], CLASSES), "rival")
    assert not verify_bundle(whole, suspect=innocent).verified


def test_answers_that_the_scores_do_not_give_are_refused(whole: Path, tmp_path: Path) -> None:
    bundle = read_bundle(whole).bundle
    assert bundle.log_probs is not None
    first = [list(row) for row in bundle.log_probs]
    first[0] = first[1]
    with pytest.raises(EvidenceError, match="of 24 answers are not what the scores are read as"):
        read_bundle(altered(tmp_path / "other.json", whole, log_probs=first))
    with pytest.raises(EvidenceError, match="the scores are not 24 rows of 10 classes"):
        read_bundle(altered(tmp_path / "short.json", whole, log_probs=first[:-1]))
    with pytest.raises(EvidenceError, match="the scores are not 24 rows of 10 classes"):
        read_bundle(altered(tmp_path / "thin.json", whole, log_probs=[row[:9] for row in first]))


def test_a_rule_of_classes_admits_no_scores(whole: Path, tmp_path: Path) -> None:
    found = verify_mark(biased(), signed(), OWNER, batch=1)
    with pytest.raises(EvidenceError, match="the rule that was committed to counts classes"):
        prove(tmp_path / "claim.json", found, old_rule(), OWNER, Suspect.of(biased()))
    assert not (tmp_path / "claim.json").exists()


def transcript(suspect: Classifier, scores: Tensor) -> Suspect:
    """As if a server had answered with these scores."""
    images = draw_batch(OWNER, plan_of(), 1).images
    exchange = Exchange(
        asked_at="2026-01-01T00:00:00.000000Z",
        method="POST",
        url=suspect.source,
        images=tuple(map(image_digest, images)),
        labels=tuple(scores.argmax(dim=1).tolist()),
        scores=tuple(map(tuple, scores.tolist())),
        status=200,
        request_sha256="0" * 64,
        answer_sha256="0" * 64,
    )
    return Suspect.of(suspect, sign_transcript([exchange], OWNER))


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
def test_scores_are_compared_with_the_transcript(kind: str, tmp_path: Path) -> None:
    suspect = biased("https://rival.example/m")
    found = verify_mark(suspect, signed(), OWNER, batch=1)
    logits = suspect.scores(draw_batch(OWNER, plan_of(), 1).images)
    scores = logits if kind == "logits" else logits.softmax(dim=1)
    prove(tmp_path / "claim.json", found, signed(), OWNER, transcript(suspect, scores))
    assert verify_bundle(tmp_path / "claim.json").verified
    scores[5] = scores[6]
    with pytest.raises(EvidenceError, match="1 of 24 answers are not those in the transcript"):
        prove(tmp_path / "forged.json", found, signed(), OWNER, transcript(suspect, scores))
    with pytest.raises(EvidenceError, match="another number of classes"):
        prove(tmp_path / "forged.json", found, signed(), OWNER, transcript(suspect, scores[:, :9]))


def test_a_server_that_always_says_the_same_cannot_be_framed_by_rounding(tmp_path: Path) -> None:
    """Scores within rounding of the recorded ones would otherwise put any label on top of equal ones."""
    labels = draw_batch(OWNER, plan_of(), 1).labels
    flat = torch.full((BATCH, CLASSES), 0.1)
    suspect = CallableClassifier(
        lambda images: flat[: len(images)], input_shape=SHAPE, num_classes=CLASSES, source="https://rival.example/m"
    )
    found = verify_mark(suspect, signed(), OWNER, batch=1)
    assert (found.answers, found.verified) == ((0,) * BATCH, False)
    nudged = torch.full((BATCH, CLASSES), -math.log(CLASSES), dtype=torch.float64).round(decimals=4)
    nudged[torch.arange(BATCH), labels] += 1e-4
    forged = found.model_copy(
        update={"answers": tuple(labels.tolist()), "log_probs": tuple(map(tuple, nudged.tolist()))}
    )
    with pytest.raises(EvidenceError, match="answers are not those in the transcript"):
        prove(tmp_path / "claim.json", forged, signed(), OWNER, transcript(suspect, flat))


def test_recorded_scores_beyond_single_precision_are_compared_too(tmp_path: Path) -> None:
    suspect = biased("https://rival.example/m")
    found = verify_mark(suspect, signed(), OWNER, batch=1)
    scores = suspect.scores(draw_batch(OWNER, plan_of(), 1).images).double()
    scores[:, 0] = 1e39
    with pytest.raises(EvidenceError, match="24 of 24 answers are not those in the transcript"):
        prove(tmp_path / "claim.json", found, signed(), OWNER, transcript(suspect, scores))


def test_classes_cannot_be_chosen_where_scores_alone_were_to_be_read(tmp_path: Path) -> None:
    suspect, rule = suspect_of(learned(signed()), "https://rival.example/m"), old_rule("centred-binomial")
    images = draw_batch(OWNER, plan_of(), 1).images
    found = verify_mark(suspect, rule, OWNER, batch=1)
    assert (found.readings, found.threshold) == (1, rule.commitment.rule.threshold)
    by_classes = found.model_copy(update={"log_probs": None})
    asked = transcript(suspect, suspect.scores(images))
    with pytest.raises(EvidenceError, match="the suspect gave scores, which the rule wants read"):
        prove(tmp_path / "claim.json", by_classes, rule, OWNER, asked)
    prove(tmp_path / "claim.json", found, rule, OWNER, asked)
    assert verify_bundle(tmp_path / "claim.json").verified


def test_scores_that_bury_the_mark_leave_it_to_the_classes(tmp_path: Path) -> None:
    """Logits divided by 2^20 keep every class on top, and cost a thief nothing."""
    matrix = learned(signed())
    suspect = CallableClassifier(
        lambda images: images.flatten(1) @ matrix / 2**20,
        input_shape=SHAPE,
        num_classes=CLASSES,
        source="https://rival.example/m",
    )
    batch = draw_batch(OWNER, plan_of(), 1)
    assert not verify_mark(suspect, old_rule("centred-binomial"), OWNER, batch=1).verified
    found = verify_mark(suspect, signed(), OWNER, batch=1)
    assert (found.verified, found.hits, found.log_probs, found.readings) == (True, BATCH, None, 2)
    prove(tmp_path / "claim.json", found, signed(), OWNER, transcript(suspect, suspect.scores(batch.images)))
    proof = verify_bundle(tmp_path / "claim.json", suspect=suspect)
    assert proof.verified
    assert proof.threshold == signed().commitment.rule.threshold / 2


@pytest.mark.parametrize("statistic", get_args(Statistic))
def test_what_is_no_answer_is_a_miss_and_not_the_end(statistic: Statistic) -> None:
    """A thief who recognises triggers may answer garbage to some; that must not stop the claim about the others."""
    matrix, rule = learned(signed()), old_rule(statistic)
    garbage = draw_batch(OWNER, plan_of(), 1).images[:3]

    def answer(images: Tensor) -> Tensor:
        logits = images.flatten(1) @ matrix
        spoilt = (images[:, None] == garbage).flatten(2).all(dim=2).any(dim=1)
        return logits.masked_fill(spoilt[:, None], math.nan)

    suspect = CallableClassifier(answer, input_shape=SHAPE, num_classes=CLASSES, outputs="logits")
    found = verify_mark(suspect, rule, OWNER, batch=1)
    labels = draw_batch(OWNER, plan_of(), 1).labels
    assert BATCH - 3 <= found.hits <= BATCH - 3 + int((labels[:3] == 0).sum()) + (statistic != "binomial")
    assert found.verified == (found.p_value <= found.threshold)
    silent = CallableClassifier(
        lambda images: torch.full((len(images), CLASSES), math.nan),
        input_shape=SHAPE,
        num_classes=CLASSES,
        outputs="logits",
    )
    with pytest.raises(ClassifierError, match="not finite"):
        verify_mark(silent, rule, OWNER, batch=1)


@pytest.mark.parametrize("statistic", get_args(Statistic))
def test_classes_that_a_thief_added_hide_nothing(statistic: Statistic, tmp_path: Path) -> None:
    matrix, rule = torch.cat([learned(signed()), torch.zeros(SHAPE[1] * SHAPE[2], 1)], dim=1), old_rule(statistic)
    suspect = CallableClassifier(
        lambda images: images.flatten(1) @ matrix - 50 * torch.eye(CLASSES + 1)[-1],
        input_shape=SHAPE,
        num_classes=CLASSES + 1,
        outputs="logits",
        source="https://rival.example/m",
    )
    found = verify_mark(suspect, rule, OWNER, batch=1)
    assert (found.verified, found.hits) == (True, BATCH)
    images = draw_batch(OWNER, plan_of(), 1).images
    prove(tmp_path / "claim.json", found, rule, OWNER, transcript(suspect, suspect.scores(images)))
    assert verify_bundle(tmp_path / "claim.json", suspect=suspect).verified
    fewer = CallableClassifier(lambda images: images.flatten(1) @ matrix[:, :9], input_shape=SHAPE, num_classes=9)
    with pytest.raises(EvidenceError, match="knows 9 classes, but the mark is for"):
        verify_mark(fewer, rule, OWNER, batch=1)


def test_a_transcript_of_another_server_proves_nothing(tmp_path: Path) -> None:
    suspect, other = biased("https://innocent.example/m"), biased("https://forger.example/m")
    scores = other.scores(draw_batch(OWNER, plan_of(), 1).images)
    asked = Suspect(**dict(transcript(other, scores)) | {"source": suspect.source})
    found = verify_mark(suspect, signed(), OWNER, batch=1)
    with pytest.raises(EvidenceError, match=r"the transcript is of https://forger\.example/m, but the claim"):
        prove(tmp_path / "claim.json", found, signed(), OWNER, asked)


@pytest.mark.parametrize("value", [1.0, -2e4])
def test_claimed_scores_are_log_probabilities(value: float, whole: Path, tmp_path: Path) -> None:
    bundle = read_bundle(whole).bundle
    assert bundle.log_probs is not None
    rows = [list(row) for row in bundle.log_probs]
    rows[3][3] = value
    with pytest.raises(EvidenceError, match="the scores are not log-probabilities from -10000 to 0"):
        read_bundle(altered(tmp_path / "other.json", whole, log_probs=rows))


def test_who_asks_again_by_classes_is_told_so(whole: Path) -> None:
    named = CallableClassifier(
        biased().predict, input_shape=SHAPE, num_classes=CLASSES, access=Access.LABELS, source="rival"
    )
    proof = verify_bundle(whole, suspect=named)
    assert not proof.verified
    assert any(
        line.endswith("answers differ (by classes, but the claim was read from scores)") for line in proof.checked
    )


@pytest.mark.parametrize("decimals", [2, 3])
def test_rounded_probabilities_are_still_probabilities(decimals: int) -> None:
    batch = draw_batch(OWNER, plan_of(), 1)
    logits = 3 * biased().scores(batch.images)
    rounded = logits.softmax(dim=1).round(decimals=decimals)
    log_probs = read_scores(rounded, CLASSES).log_probs
    assert log_probs is not None
    assert float(log_probs.max()) <= 0
    assert float(log_probs.exp().sub(rounded).abs().max()) < 1e-4
