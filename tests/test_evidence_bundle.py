"""Claims of ownership: verified by a stranger from one file, and refused when any of it is changed or made up."""

import base64
import errno
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from evidence_cases import (
    BATCH,
    CLASSES,
    MODEL_SHA,
    OWNER,
    SHAPE,
    STRANGER,
    claim,
    learned,
    plan_of,
    save_suspect,
    signed,
    suspect_of,
)
from intaglio.classifiers import CallableClassifier, Classifier, Exchange, image_digest, open_classifier
from intaglio.errors import DataError, EvidenceError, StorageError
from intaglio.evidence import bundle as bundle_module
from intaglio.evidence.batches import draw_batch
from intaglio.evidence.binomial import chance_p_value, needed_hits
from intaglio.evidence.bundle import BUNDLE_TYPE, read_bundle, write_bundle
from intaglio.evidence.commitment import SignedCommitment, commit, sign_commitment
from intaglio.evidence.disclosure import disclose, encode_pictures
from intaglio.evidence.documents import CommitmentCheck, Evidence, read_evidence, verify_evidence
from intaglio.evidence.envelope import Envelope, sign_statement
from intaglio.evidence.key import Key
from intaglio.evidence.proof import Proof, verify_bundle
from intaglio.evidence.suspect import Suspect
from intaglio.evidence.transcript import SignedTranscript, sign_transcript
from time_authority import Authority, needs_openssl, serving

TINY = 2.0**-64
NEEDED = needed_hits(BATCH, CLASSES, TINY / 2)  # of each of two readings
assert NEEDED == 22


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An honest claim with every trigger hit."""
    return claim(tmp_path_factory.mktemp("claims") / "claim.json")


# --- honest claims ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trigger", ["noise-chain", "public-blend"])
def test_a_claim_is_derived_again_from_its_file(trigger: str, tmp_path: Path) -> None:
    proof = verify_bundle(claim(tmp_path / "claim.json", commitment=signed(trigger)))
    assert proof.verified
    assert (proof.hits, proof.trials, proof.num_classes, proof.needed_hits) == (BATCH, BATCH, CLASSES, NEEDED)
    assert proof.p_value == chance_p_value(BATCH, BATCH, CLASSES) == pytest.approx(1e-24)
    assert proof.threshold == TINY / 2
    assert proof.owner_public_key == OWNER.public_key.hex()
    assert (proof.model_sha256, proof.suspect_source) == (MODEL_SHA, "https://rival.example/v2/models/m")
    assert (proof.stamped, proof.asked_again) == (None, None)
    assert proof.statement == (
        "The suspect was not asked; on the claimant's word for its answers, verified: 24 of 24 triggers answered as "
        "committed; by chance p = 1e-24 (threshold 2.7e-20, 1 suspect and 1 key tried)."
    )
    assert proof.unverified == (
        f"the commitment has no time stamp: {proof.created} is by its owner's clock",
        "the answers are as the claimant reports them: the suspect was not asked again (--suspect)",
        "that only 1 suspect and 1 key were tried",
        "that batch 1 was new to all: whoever has seen it can train it into a model",
        "that the model committed to, with SHA-256 5a5a5a5a5a5a5a5a..., exists and bears this mark (--model)",
        "that batch 1 of 3 was not picked for its luck; if it was the best of all, p = 3e-24",
    )
    assert len(proof.checked) == 4
    assert Proof.from_json(proof.to_json()) == proof


@pytest.mark.parametrize(("hits", "verified"), [(NEEDED, True), (NEEDED - 1, False), (3, False), (0, False)])
def test_the_threshold_decides(hits: int, verified: bool, tmp_path: Path) -> None:
    proof = verify_bundle(claim(tmp_path / "claim.json", hits=hits))
    assert (proof.verified, proof.hits) == (verified, hits)
    assert (proof.p_value <= TINY / 2) == verified
    if not verified:
        assert proof.statement.startswith(f"Not verified: {hits} of 24")
        assert proof.statement.endswith("That does not show that the suspect is no copy.")


@pytest.mark.parametrize(
    ("suspects", "keys", "verified"), [(1, 1, True), (10, 10, True), (1, 1000, False), (50, 9, False)]
)
def test_suspects_and_keys_tried_are_corrected_for(suspects: int, keys: int, verified: bool, tmp_path: Path) -> None:
    proof = verify_bundle(claim(tmp_path / "claim.json", hits=23, suspects=suspects, keys=keys))
    assert proof.p_value == pytest.approx(chance_p_value(23, BATCH, CLASSES) * suspects * keys)
    assert proof.verified == verified
    assert proof.needed_hits == needed_hits(BATCH, CLASSES, TINY / 2 / suspects / keys)
    tried = f"{suspects} suspect{'s' * (suspects > 1)} and {keys} key{'s' * (keys > 1)} tried"
    assert tried in proof.statement


def test_the_claimants_weak_threshold_does_not_count(tmp_path: Path) -> None:
    path = claim(tmp_path / "claim.json", commitment=signed(threshold=1e-6), hits=15)
    proof = verify_bundle(path)
    assert (proof.verified, proof.threshold, proof.needed_hits) == (False, TINY / 2, NEEDED)
    assert proof.statement.startswith("Not verified: 15 of 24")
    laxer = "decided at p <= 5.4e-20: the claimant's own threshold, 1e-06, is laxer"
    assert laxer in proof.checked
    asked = verify_bundle(path, suspect=suspect_of(learned(signed(threshold=1e-6), hits=15)))
    assert asked.asked_again is not None
    assert (asked.verified, asked.asked_again.hits) == (False, 15)
    enough = verify_bundle(claim(tmp_path / "good.json", commitment=signed(threshold=1e-6)))
    assert enough.verified
    assert laxer in enough.checked
    assert not any("weak" in line for line in proof.unverified + enough.unverified)


def test_who_verifies_may_be_content_with_less_or_want_more(tmp_path: Path) -> None:
    path = claim(tmp_path / "claim.json", commitment=signed(threshold=1e-6), hits=15)
    content = verify_bundle(path, threshold=1e-3)
    assert (content.verified, content.threshold) == (True, 1e-6 / 2)
    assert not any("laxer" in line for line in content.checked)
    assert (
        "you and the claimant chose a weak threshold, 1e-06: trying about 1e+06 keys in secret reaches it by chance"
        in (content.unverified)
    )
    strict = verify_bundle(path, threshold=1e-12)
    assert (strict.verified, strict.threshold) == (False, 1e-12 / 2)
    assert not verify_bundle(claim(tmp_path / "strict.json", hits=15), threshold=1e-3).verified
    for nonsense in (0.0, 1.0, 2.0, float("nan")):
        with pytest.raises(DataError, match="a threshold lies between 0 and 1, got"):
            verify_bundle(path, threshold=nonsense)


def test_a_claim_beyond_the_smallest_number(tmp_path: Path) -> None:
    plan = plan_of(batch_size=400, batches=1)
    commitment = sign_commitment(OWNER, commit(OWNER, plan, scheme="s", mode="m", model_sha256=MODEL_SHA))
    shown = disclose(OWNER, commitment.commitment, 0)
    suspect = Suspect(source="rival")
    write_bundle(
        tmp_path / "c.json", OWNER, commitment=commitment, disclosure=shown, suspect=suspect, answers=shown.labels
    )
    proof = verify_bundle(tmp_path / "c.json")
    assert proof.verified
    assert "400 of 400 triggers answered as committed; by chance p < 1e-300 (" in proof.statement


# --- asking again ----------------------------------------------------------------------------------------------------


def test_the_suspect_is_asked_again(whole: Path) -> None:
    suspect = suspect_of(learned(signed()), source="rival")
    proof = verify_bundle(whole, suspect=suspect)
    assert proof.verified
    assert proof.statement.startswith("Verified: 24 of 24 triggers answered as committed; ")
    asked = proof.asked_again
    assert asked is not None
    assert (asked.hits, asked.differing, asked.queries, asked.source) == (BATCH, 0, BATCH, "rival")
    assert asked.p_value == proof.p_value
    assert proof.checked[-1] == ("rival was asked again: 24 hits, 0 answers differ")
    assert any("no file digests" in line for line in proof.unverified)
    assert not any("reports them" in line for line in proof.unverified)


def test_answers_that_were_made_up(whole: Path) -> None:
    innocent = suspect_of(torch.randn(36, CLASSES, generator=torch.Generator().manual_seed(3)))
    proof = verify_bundle(whole, suspect=innocent)
    assert not proof.verified
    asked = proof.asked_again
    assert asked is not None
    assert asked.hits < 10
    assert asked.differing == BATCH - asked.hits
    assert proof.statement.startswith(f"Not verified: {asked.hits} of 24")


def test_a_claim_is_not_mended_by_asking_again(tmp_path: Path) -> None:
    path = claim(tmp_path / "claim.json", hits=5)
    proof = verify_bundle(path, suspect=suspect_of(learned(signed())))
    assert not proof.verified
    assert proof.statement == "Not verified: the reported answers hold only 5 of 24 hits."


def test_a_file_is_known_by_its_digest(tmp_path: Path) -> None:
    model = open_classifier(save_suspect(tmp_path / "rival.onnx", learned(signed())))
    described = Suspect(source="rival.onnx", sha256=model.sha256)
    path = claim(tmp_path / "claim.json", suspect=described)
    proof = verify_bundle(path, suspect=model)
    assert proof.verified
    assert proof.asked_again is not None
    assert proof.asked_again.sha256 == proof.suspect_sha256 == model.sha256
    assert not any("digests" in line for line in proof.unverified)
    other = open_classifier(save_suspect(tmp_path / "other.onnx", learned(signed(), hits=3)))
    with pytest.raises(EvidenceError, match=r"the claim is about a model with SHA-256 .* but .*other.onnx has"):
        verify_bundle(path, suspect=other)


def shaped(shape: tuple[int, ...], classes: int) -> Classifier:
    return CallableClassifier(lambda images: images, input_shape=shape, num_classes=classes, source="odd")


@pytest.mark.parametrize("suspect", [shaped((1, 7, 7), CLASSES), shaped(SHAPE, 9)])
def test_a_suspect_of_another_kind(suspect: Classifier, whole: Path) -> None:
    with pytest.raises(EvidenceError, match=r"odd: takes .* classes, but the mark is for \[1, 6, 6\] and 10"):
        verify_bundle(whole, suspect=suspect)


def test_the_committed_model_is_asked_too(tmp_path: Path) -> None:
    """A commitment to the digest of nothing, stamped early, would otherwise go before an honest one."""
    marked = open_classifier(save_suspect(tmp_path / "marked.onnx", learned(signed())))
    plain = open_classifier(save_suspect(tmp_path / "plain.onnx", learned(signed(), hits=3)))

    def claimed(name: str, committed: Classifier) -> Path:
        made = commit(OWNER, plan_of(), scheme="s", mode="m", model_sha256=str(committed.sha256))
        return claim(tmp_path / name, commitment=sign_commitment(OWNER, made))

    honest, hollow = claimed("honest.json", marked), claimed("hollow.json", plain)
    proof = verify_bundle(honest, model=marked)
    assert proof.verified
    assert proof.committed_model is not None
    assert (proof.committed_model.hits, proof.committed_model.sha256) == (BATCH, marked.sha256)
    assert proof.checked[-1] == f"{marked.source} is the model committed to; it was asked: 24 hits"
    assert not any("--model" in line for line in proof.unverified)
    refused = verify_bundle(hollow, model=plain)
    assert not refused.verified
    assert refused.statement == f"Not verified: {plain.source}, which was committed to, bears no such mark: 3 hits."
    assert verify_bundle(hollow).verified  # on the claimant's word, and said so
    with pytest.raises(EvidenceError, match=r"the commitment is to a model with SHA-256 .* but .*plain.onnx has"):
        verify_bundle(honest, model=plain)
    with pytest.raises(EvidenceError, match=r"but suspect has none"):
        verify_bundle(honest, model=suspect_of(learned(signed())))


def test_a_claim_that_nobody_could_read_spends_no_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "SIZE_LIMIT", 8000)
    spent: list[int] = []
    with pytest.raises(EvidenceError, match=r"the claim would have [0-9]+ bytes, and more than 8000 are not read"):
        claim(tmp_path / "claim.json", spend=lambda: spent.append(1))
    assert (spent, list(tmp_path.iterdir())) == ([], [])


# --- time ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stamped(tmp_path_factory: pytest.TempPathFactory) -> tuple[SignedCommitment, bytes]:
    authority = Authority(tmp_path_factory.mktemp("authority"))
    with serving(authority) as server:
        return signed().stamped(server.url), authority.root.read_bytes()


@needs_openssl
def test_a_stamped_claim(stamped: tuple[SignedCommitment, bytes], tmp_path: Path) -> None:
    commitment, roots = stamped
    path = claim(tmp_path / "claim.json", commitment=commitment)
    proof = verify_bundle(path, roots=roots)
    assert proof.stamped is not None
    assert any(f"existed at {proof.stamped} (time stamp)" in line for line in proof.checked)
    assert not any("stamp" in line for line in proof.unverified)
    without = verify_bundle(path)
    assert without.verified
    assert without.stamped is None
    assert any(line.startswith("the time stamp was not verified") for line in without.unverified)
    with pytest.raises(EvidenceError, match=r"claim.json: the roots of time-stamp authorities"):
        verify_bundle(path, roots=b"")


@needs_openssl
@pytest.mark.parametrize(("days", "trusted", "verified"), [(1, True, True), (-1, True, False), (1, False, False)])
def test_a_commitment_made_after_the_dispute_proves_nothing(
    days: int, trusted: bool, verified: bool, stamped: tuple[SignedCommitment, bytes], tmp_path: Path
) -> None:
    commitment, roots = stamped
    before = datetime.now(UTC).replace(tzinfo=None) + timedelta(days=days)
    path = claim(tmp_path / "claim.json", commitment=commitment)
    proof = verify_bundle(path, roots=roots if trusted else None, before=before)
    assert proof.verified == verified
    if not verified:
        assert proof.statement.startswith("Not verified: no trusted stamp shows that the commitment was made before ")


# --- changed files ---------------------------------------------------------------------------------------------------


def test_any_flipped_byte_fails(whole: Path, tmp_path: Path) -> None:
    """Every byte near both ends, where the structure is, and every 23rd of the payload, each with one bit changed."""
    content = whole.read_bytes()
    assert content.endswith(b"}\n")
    size = len(content) - 1
    path = tmp_path / "flipped.json"
    for position in sorted({*range(60), *range(60, size, 23), *range(size - 400, size)}):
        changed = bytearray(content)
        changed[position] ^= 1 << position % 7
        path.write_bytes(changed)
        with pytest.raises(EvidenceError):
            verify_bundle(path)


def test_spaces_mean_nothing(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "pretty.json"
    path.write_text(json.dumps(json.loads(whole.read_text()), indent=4))
    assert verify_bundle(path) == verify_bundle(whole)


def resigned(whole: Path, change: Callable[[dict[str, Any]], object], key: Key = OWNER) -> Envelope:
    """The claim changed, and signed again."""
    predicate = json.loads(base64.b64decode(json.loads(whole.read_text())["payload"]))["predicate"]
    change(predicate)
    return sign_statement(key, {"model": MODEL_SHA}, BUNDLE_TYPE, predicate)


def set_claim(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda predicate: predicate["claim"].update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_claim(hits=23), "23 hits are claimed, but the answers hold 24"),
        (set_claim(p_value=1e-30), "p = 1e-30 is claimed, but 24 hits give 1e-24"),
        (set_claim(p_value=0.0), "p = 0 is claimed, but 24 hits give 1e-24"),
        (set_claim(suspects=100), "p = 1e-24 is claimed, but 24 hits give 1e-22"),
        (set_claim(trials=25), "24 answers and 25 trials are claimed for 24 triggers"),
        (set_claim(suspects=0), "claim: claim.suspects: Input should be greater than or equal to 1"),
        (set_claim(hits=-1), "claim: claim.hits: Input should be greater"),
        (set_claim(p_value="NaN"), "claim: claim.p_value: Input should be"),
        (lambda p: p.update(answers=p["answers"][1:]), "23 answers and 24 trials are claimed for 24 triggers"),
        (lambda p: p["answers"].__setitem__(0, 10), "an answer is not one of the 10 classes"),
        (lambda p: p["answers"].__setitem__(0, -1), "an answer is not one of the 10 classes"),
        (lambda p: p["disclosure"].update(seed="00" * 32), "is not the one committed to"),
        (lambda p: p["disclosure"]["images"].reverse(), "is not the one committed to"),
        (lambda p: p.update(public_images=[]), "claim: public_images: Tuple should have at least 1 item"),
        (lambda p: p.update(public_images=p["disclosure"]["images"]), "are not the committed ones"),
        (lambda p: p["suspect"].update(sha256="00" * 32), "the statement is about other models than the claim"),
        (lambda p: p["suspect"].update(source="\x1b[2J"), "claim: suspect.source: String should match pattern"),
        (lambda p: p["commitment"]["envelope"].update(payload="e30="), "not an in-toto statement"),
        (lambda p: p["commitment"].update(time_stamp="AAAA"), "the time stamp is damaged"),
        (lambda p: p.update(format="intaglio-ownership-claim/9"), "claim: format: Input should be"),
        (lambda p: p.update(note=""), "claim: note: Extra inputs are not permitted"),
        (lambda p: p.pop("answers"), "claim: answers: Field required"),
    ],
)
def test_an_owner_who_lies_is_refused(
    change: Callable[[dict[str, Any]], object], message: str, whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "lie.json").write_bytes(resigned(whole, change).to_bytes())
    with pytest.raises(EvidenceError, match=re.escape(message)) as caught:
        verify_bundle(tmp_path / "lie.json")
    assert str(caught.value).startswith(f"{tmp_path / 'lie.json'}: ")
    assert "\n" not in str(caught.value)


def test_nobody_else_can_make_the_owners_claim(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "stolen.json").write_bytes(resigned(whole, lambda predicate: None, STRANGER).to_bytes())
    with pytest.raises(EvidenceError, match=f"signed by key {STRANGER.fingerprint[:16]}, not by"):
        verify_bundle(tmp_path / "stolen.json")


def test_a_disclosed_batch_is_of_no_use_to_another(whole: Path) -> None:
    """A thief takes the disclosed seed and pictures, and commits to them under a key of his own."""
    from intaglio.evidence.batches import batch_leaf, images_sha256
    from intaglio.evidence.commitment import Commitment
    from intaglio.evidence.disclosure import check_disclosure, decode_pictures
    from intaglio.evidence.merkle import merkle_root

    owners = read_bundle(whole)
    shown = owners.bundle.disclosure
    digest = images_sha256(decode_pictures(shown.images, SHAPE))
    leaf = batch_leaf(0, shown.seed, digest, list(shown.labels))
    thiefs = Commitment.model_validate(
        owners.commitment.to_dict()
        | {"owner_public_key": STRANGER.public_key.hex(), "merkle_root": merkle_root([leaf]).hex(), "batches": 1}
    )
    with pytest.raises(EvidenceError, match="not those that the seed gives"):
        check_disclosure(thiefs, shown.model_copy(update={"index": 0, "proof": ()}))


def test_public_images_shaped_after_the_labels_are_refused(tmp_path: Path) -> None:
    path = claim(tmp_path / "claim.json", commitment=signed("public-blend"))

    def shape(predicate: dict[str, Any]) -> None:
        pictures = encode_pictures(torch.zeros(60, *SHAPE))
        predicate["public_images"] = list(pictures)

    path.write_bytes(resigned(path, shape).to_bytes())
    with pytest.raises(EvidenceError, match="are not the committed ones"):
        verify_bundle(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "claim.json: can't be read: No such file or directory"),
        (b"", "claim.json: envelope: damaged, or not JSON"),
        (b"\x00\xff", "claim.json: envelope: damaged, or not JSON"),
        (b"{}", "claim.json: not a DSSE envelope: payload: Field required"),
        (signed().envelope.to_bytes(), f"a statement of type '{signed().envelope.unverified().predicate_type}', not"),
    ],
)
def test_a_file_that_is_no_claim(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "claim.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EvidenceError, match=re.escape(message)):
        verify_bundle(path)


def test_a_huge_file_is_refused_unread(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "SIZE_LIMIT", 5000)
    with pytest.raises(EvidenceError, match=r"claim.json: larger than 5000 bytes"):
        verify_bundle(whole)


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"answers": [0] * 23}, EvidenceError, "there are 23 answers to 24 triggers"),
        ({"answers": [10] * 24}, EvidenceError, "an answer is not one of the 10 classes"),
        ({"suspects": 0}, DataError, "at least 1 suspect and 1 key were tried, got 0 and 1"),
        ({"commitment": signed("public-blend")}, EvidenceError, "is not the one committed to"),
    ],
)
def test_nothing_wrong_is_written(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    honest: dict[str, Any] = {
        "commitment": signed(),
        "disclosure": disclose(OWNER, signed().commitment, 1),
        "suspect": Suspect(source="rival"),
        "answers": [0] * 24,
    }
    with pytest.raises(error, match=message):
        write_bundle(tmp_path / "claim.json", OWNER, **(honest | changes))
    with pytest.raises(EvidenceError, match="signed by key"):
        write_bundle(tmp_path / "claim.json", STRANGER, **honest)
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_an_envelope_that_others_read(whole: Path) -> None:
    from securesystemslib.dsse import Envelope as DsseEnvelope
    from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]

    envelope = DsseEnvelope.from_dict(json.loads(whole.read_text()))
    public = SSlibKey(OWNER.fingerprint, "ed25519", "ed25519", {"public": OWNER.public_key.hex()})
    assert envelope.verify([public], threshold=1).keys() == {OWNER.fingerprint}


# --- transcripts -----------------------------------------------------------------------------------------------------


BY_OWNER = "the transcript of the questions is signed by the claimant, not by the suspect"


def transcript(key: Key, hits: int = BATCH, count: int = BATCH) -> SignedTranscript:
    """Of asking a suspect with so many hits for the first `count` triggers of batch 1."""
    images = draw_batch(OWNER, signed().commitment, 1).images[:count]
    exchange = Exchange(
        asked_at="2026-03-01T12:00:00.000000Z",
        method="POST",
        url="https://rival.example/v2/models/m/infer",
        images=tuple(image_digest(image) for image in images),
        labels=tuple(suspect_of(learned(signed(), hits=hits)).predict(images).tolist()),
        status=200,
        request_sha256="aa" * 32,
    )
    return sign_transcript([exchange], key)


def with_transcript(path: Path, signed_transcript: SignedTranscript, **changes: Any) -> Path:
    suspect = Suspect.of(suspect_of(learned(signed()), "https://rival.example/v2/models/m"), signed_transcript)
    return claim(path, suspect=suspect.model_copy(update=changes))


@pytest.mark.parametrize(
    ("key", "changes", "line", "compared"),
    [
        (OWNER, {}, BY_OWNER, True),
        (OWNER, {"transcript_lines": None}, f"{BY_OWNER}; its lines were not given, and not compared", False),
        (STRANGER, {}, "the transcript of the questions is signed by another key, which is not known here", False),
    ],
)
def test_a_transcript_is_only_as_good_as_its_signer(
    key: Key, changes: dict[str, Any], line: str, compared: bool, tmp_path: Path
) -> None:
    proof = verify_bundle(with_transcript(tmp_path / "claim.json", transcript(key), **changes))
    assert line in proof.unverified
    assert ("the answers are those in the transcript that the claimant signed" in proof.checked) == compared
    assert proof.verified


@pytest.mark.parametrize(
    ("signed_transcript", "changes", "message"),
    [
        (transcript(OWNER, hits=20), {}, "4 of 24 answers are not those in the transcript"),
        (transcript(OWNER, count=23), {}, "the transcript holds no answer for 1 of 24 images"),
        (transcript(OWNER), {"transcript": transcript(OWNER, hits=3).envelope}, "are not the 1 that were signed"),
        (transcript(OWNER), {"transcript": None}, "the transcript of the questions is not signed"),
        (transcript(OWNER), {"transcript_lines": ""}, "transcript: truncated"),
    ],
)
def test_a_transcript_of_something_else(
    signed_transcript: SignedTranscript, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(EvidenceError, match=message):
        with_transcript(tmp_path / "claim.json", signed_transcript, **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_transcript(tmp_path: Path) -> None:
    good, other = transcript(OWNER), transcript(OWNER, hits=3)
    mixed = good.envelope.model_copy(update={"payload": other.envelope.payload})
    with pytest.raises(EvidenceError, match="the signature does not fit"):
        with_transcript(tmp_path / "claim.json", good, transcript=mixed, transcript_lines=None)


# --- files of unknown kind -------------------------------------------------------------------------------------------


def test_what_a_file_states(whole: Path, tmp_path: Path) -> None:
    signed().write(tmp_path / "c.json")
    commitment, within = read_evidence(tmp_path / "c.json")
    claimed, same = read_evidence(whole)
    assert within == same == signed()
    assert (commitment.kind, claimed.kind) == ("commitment", "claim")
    assert commitment.statement == claimed.statement == signed().commitment
    assert claimed.claim is not None
    assert (claimed.claim.hits, claimed.disclosed_batch, commitment.claim) == (BATCH, 1, None)
    assert Evidence.from_json(claimed.to_json()) == claimed
    assert claimed.owner == OWNER.fingerprint
    assert claimed.lines()[:5] == [f"claim, signed by key {OWNER.fingerprint}", *commitment.lines()[1:]]
    assert "claimed    24 of 24 triggers of batch 1, p = 1e-24 (1 suspect and 1 key tried)" in claimed.lines()


def test_a_commitment_is_verified_alone(tmp_path: Path) -> None:
    signed().write(tmp_path / "c.json")
    check = verify_evidence(tmp_path / "c.json")
    assert isinstance(check, CommitmentCheck)
    assert check.verified
    assert check.checked == ("the commitment is signed by its owner, and unchanged",)
    assert len(check.unverified) == 1
    with pytest.raises(EvidenceError, match="a commitment, which claims nothing about a suspect"):
        verify_evidence(tmp_path / "c.json", suspect=suspect_of(torch.zeros(36, CLASSES)))
    with pytest.raises(EvidenceError, match="a commitment, which claims nothing about a suspect"):
        verify_evidence(tmp_path / "c.json", threshold=0.01)


def test_no_batch_is_spent_on_a_file_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spent: list[str] = []
    claim(tmp_path / "good.json", spend=lambda: spent.append("good"))
    assert spent == ["good"]

    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="No space left on device"):
        claim(tmp_path / "lost.json", spend=lambda: spent.append("lost"))
    assert spent == ["good"]
    assert [path.name for path in tmp_path.iterdir()] == ["good.json"]


@needs_openssl
def test_a_stamped_commitment_is_verified_alone(stamped: tuple[SignedCommitment, bytes], tmp_path: Path) -> None:
    commitment, roots = stamped
    commitment.write(tmp_path / "c.json")
    check = verify_evidence(tmp_path / "c.json", roots=roots)
    assert verify_evidence(tmp_path / "c.json", roots=roots + roots) == check  # as bundles put together often are
    assert isinstance(check, CommitmentCheck)
    assert check.stamped is not None
    assert check.checked[1] == f"it existed at {check.stamped} (time stamp)"
    assert check.unverified == ()
    assert verify_evidence(tmp_path / "c.json").unverified[0].startswith("the time stamp was not verified")
    with pytest.raises(EvidenceError, match=r"c.json: the roots"):
        verify_evidence(tmp_path / "c.json", roots=b"none")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "neither a commitment nor a claim"),
        (b'{"envelope": 1}', "not a commitment: envelope"),
        (b"nothing", "damaged, or not JSON"),
    ],
)
def test_a_file_of_no_known_kind(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(EvidenceError, match=f"x.json: .*{message}"):
        read_evidence(tmp_path / "x.json")
