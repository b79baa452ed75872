"""Triggers bound to their plan, commitments to them, and disclosures that hold nothing a claimant could have chosen."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from evidence_cases import BATCH, CLASSES, MODEL_SHA, OWNER, PUBLIC, SHAPE, STRANGER, plan_of, public_of, signed
from intaglio.errors import EvidenceError
from intaglio.evidence import batches
from intaglio.evidence.batches import TriggerPlan, draw_batch, images_sha256, plan_triggers, redraw_batch
from intaglio.evidence.commitment import (
    COMMITMENT_TYPE,
    Commitment,
    DecisionRule,
    SignedCommitment,
    commit,
    read_commitment,
    sign_commitment,
)
from intaglio.evidence.disclosure import Disclosure, check_disclosure, decode_pictures, disclose, encode_pictures
from intaglio.evidence.envelope import sign_statement
from intaglio.evidence.merkle import merkle_root
from intaglio.triggers.keyed import keyed_batch
from time_authority import Authority, Server, needs_openssl, openssl, serving

KINDS = ("noise-chain", "public-blend")
DETAILS: dict[str, Any] = {"scheme": "deep-fidelity", "mode": "fixll-pfl", "model_sha256": MODEL_SHA}


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trigger", KINDS)
def test_a_disclosed_seed_gives_the_owners_batch(trigger: str) -> None:
    plan, public = plan_of(trigger), public_of(trigger)
    drawn = [draw_batch(OWNER, plan, index, public) for index in range(plan.batches)]
    for batch in drawn:
        again = redraw_batch(plan, batch.index, batch.seed, public)
        assert torch.equal(batch.images, again.images)
        assert torch.equal(batch.labels, again.labels)
        assert batch.images.shape == (BATCH, *SHAPE)
        assert batch.seed == OWNER.derive(f"mark/{plan.mark_id}/{batch.index}")
    assert len({tuple(batch.labels.tolist()) for batch in drawn}) == plan.batches


def test_every_plan_has_a_mark_id_of_its_own() -> None:
    sizes: dict[str, Any] = {"input_shape": SHAPE, "num_classes": CLASSES, "batches": 1, "batch_size": 2}
    first, second = (plan_triggers(OWNER, trigger="noise-chain", **sizes) for _ in range(2))
    assert first.mark_id != second.mark_id
    assert draw_batch(OWNER, first, 0).seed != draw_batch(OWNER, second, 0).seed


@pytest.mark.parametrize(
    "change",
    [
        {"owner_public_key": STRANGER.public_key.hex()},
        {"mark_id": "f0" * 16},
        {"batches": 4},
        {"num_classes": 11},
        {"batch_size": 25},
        {"trigger": "noise-chain", "public_images_sha256": None},
    ],
)
def test_a_seed_is_worth_nothing_in_another_plan(change: dict[str, Any]) -> None:
    """So that a batch that was disclosed can't be claimed by another, nor a plan be shaped around known labels."""
    plan = plan_of("public-blend")
    other = plan.model_copy(update=change)
    seed = draw_batch(OWNER, plan, 0, PUBLIC).seed
    public = PUBLIC if other.public_images_sha256 else None
    first, second = redraw_batch(plan, 0, seed, PUBLIC), redraw_batch(other, 0, seed, public)
    agreeing = (first.labels[:BATCH] == second.labels[:BATCH]).float().mean()
    assert agreeing < 0.5
    assert not torch.equal(first.images, second.images[:BATCH])


def test_choosing_other_public_images_draws_all_labels_anew() -> None:
    """Otherwise a claimant who knows the labels could shape the images until the suspect answers with them."""
    plan = plan_of("public-blend")
    shaped = PUBLIC.clone()
    shaped[0, 0, 0, 0] = (shaped[0, 0, 0, 0] + 0.5) % 1
    shaped = (shaped * 255).round() / 255
    other = plan.model_copy(update={"public_images_sha256": images_sha256(shaped)})
    seed = draw_batch(OWNER, plan, 0, PUBLIC).seed
    first, second = redraw_batch(plan, 0, seed, PUBLIC), redraw_batch(other, 0, seed, shaped)
    assert (first.labels == second.labels).float().mean() < 0.5


def test_the_leaf_is_canonical_json() -> None:
    batch = draw_batch(OWNER, plan_of(), 2)
    pixels = (batch.images * 255).round().to(torch.uint8).numpy()
    digest = hashlib.sha256(b"uint8 24,1,6,6\n" + pixels.tobytes()).hexdigest()
    labels = ",".join(str(label) for label in batch.labels.tolist())
    expected = f'{{"images_sha256":"{digest}","index":2,"labels":[{labels}],"seed":"{batch.seed.hex()}"}}'
    assert batch.leaf() == expected.encode()


def test_float_and_byte_pixels_have_one_digest() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert images_sha256(pixels) == images_sha256(pixels.float() / 255)
    assert images_sha256(pixels) != images_sha256(pixels.view(1, 1, 8, 32))
    assert images_sha256(pixels.transpose(2, 3)) == images_sha256(pixels.transpose(2, 3).contiguous())


@pytest.mark.parametrize("value", [0.5, 1.5, -1 / 255, float("nan"), float("inf")])
def test_images_that_are_not_8_bit_are_not_committed_to(value: float) -> None:
    with pytest.raises(EvidenceError, match="must be 8-bit: multiples of 1/255 between 0 and 1"):
        images_sha256(torch.full((1, 1, 2, 2), value))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_batch(STRANGER, plan_of(), 0), f"the mark belongs to key {OWNER.public_key.hex()[:16]}, not to"),
        (lambda: draw_batch(OWNER, plan_of(), 3), "there is no batch 3: the mark has 3, counted from 0"),
        (lambda: draw_batch(OWNER, plan_of(), -1), "there is no batch -1"),
        (lambda: draw_batch(OWNER, plan_of("public-blend"), 0), "the public images that .* are missing"),
        (lambda: draw_batch(OWNER, plan_of(), 0, PUBLIC), "are not the committed ones"),
        (lambda: draw_batch(OWNER, plan_of("public-blend"), 0, PUBLIC.flip(0)), "are not the committed ones"),
        (
            lambda: draw_batch(OWNER, plan_of("sparkles"), 0),
            "can't be drawn: unknown kind of keyed triggers 'sparkles'",
        ),
        (lambda: plan_of(num_classes=1), "triggers: num_classes: Input should be greater than or equal to 2"),
        (lambda: plan_of(batch_size=1 << 20, batches=0), "triggers: batches: Input should be greater"),
        (lambda: plan_of(batch_size=1 << 21), "triggers: batch_size: Input should be less than or equal to"),
        (lambda: plan_of("bell \a"), "triggers: trigger: String should match pattern"),
    ],
)
def test_batches_that_are_not_there(call: Callable[[], object], message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        call()


def test_a_batch_beyond_memory_is_refused_before_it_is_drawn() -> None:
    fields = plan_of().to_dict() | {"input_shape": [3, 4096, 4096]}
    with pytest.raises(ValueError, match="a batch has more than 67108864 pixel values"):
        TriggerPlan.model_validate(fields)


# --- commitments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trigger", KINDS)
def test_a_commitment_holds_the_plan_and_the_root(trigger: str) -> None:
    plan, public = plan_of(trigger), public_of(trigger)
    commitment = commit(OWNER, plan, public=public, rule=DecisionRule(threshold=1e-6), **DETAILS)
    leaves = [draw_batch(OWNER, plan, index, public).leaf() for index in range(plan.batches)]
    assert commitment.merkle_root == merkle_root(leaves).hex()
    assert commitment.rule == DecisionRule(statistic="either-binomial", threshold=1e-6)
    assert commitment.to_dict().items() >= (plan.to_dict() | DETAILS).items()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", commitment.created)
    assert Commitment.from_json(commitment.to_json()) == commitment
    drawn = draw_batch(OWNER, commitment, 0, public)  # a commitment is a plan
    assert drawn.leaf() == leaves[0]


def test_the_default_rule_is_two_to_the_minus_64() -> None:
    assert commit(OWNER, plan_of(), **DETAILS).rule.threshold == 2.0**-64


def test_the_file_round_trips_and_gives_no_trigger_away(tmp_path: Path) -> None:
    commitment = signed()
    commitment.write(tmp_path / "c.json")
    read = read_commitment(tmp_path / "c.json")
    assert read == commitment
    assert read.commitment == commitment.commitment
    assert read.verify() is None
    payload = base64.b64decode(json.loads((tmp_path / "c.json").read_text())["envelope"]["payload"])
    statement = json.loads(payload)
    assert statement["subject"] == [{"name": "model", "digest": {"sha256": MODEL_SHA}}]
    assert statement["predicateType"] == COMMITMENT_TYPE
    for index in range(3):
        batch = draw_batch(OWNER, commitment.commitment, index)
        assert batch.seed.hex().encode() not in payload
        assert hashlib.sha256(b"\x00" + batch.leaf()).hexdigest().encode() not in payload


def test_only_the_owner_commits_and_signs() -> None:
    with pytest.raises(EvidenceError, match="the mark belongs to key"):
        commit(STRANGER, plan_of(), **DETAILS)
    with pytest.raises(EvidenceError, match="only that can sign it"):
        sign_commitment(STRANGER, signed().commitment)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_sha256": "short"}, "commitment: model_sha256: String should match pattern"),
        ({"scheme": "\x1b[31mred"}, "commitment: scheme: String should match pattern"),
    ],
)
def test_commitments_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EvidenceError, match=message):
        commit(OWNER, plan_of(), **(DETAILS | changes))


def foreign_signature(_: Any) -> Any:
    """The owner's commitment in a stranger's envelope."""
    envelope = sign_statement(STRANGER, {"model": MODEL_SHA}, COMMITMENT_TYPE, signed().commitment.to_dict())
    return {"envelope": envelope.to_dict(), "time_stamp": None}


def owner_says(predicate_type: str = COMMITMENT_TYPE, subject: str = MODEL_SHA, **changes: Any) -> Callable[[Any], Any]:
    """Signed by the owner, but not as the tool would."""

    def make(_: Any) -> Any:
        predicate = signed().commitment.to_dict() | changes
        envelope = sign_statement(OWNER, {"model": subject}, predicate_type, predicate)
        return {"envelope": envelope.to_dict(), "time_stamp": None}

    return make


def rewritten(**changes: Any) -> Callable[[Any], Any]:
    """The payload changed, the signature left."""

    def make(fields: Any) -> Any:
        payload = json.loads(base64.b64decode(fields["envelope"]["payload"]))
        payload["predicate"] |= changes
        text = base64.b64encode(json.dumps(payload).encode()).decode()
        return fields | {"envelope": fields["envelope"] | {"payload": text}}

    return make


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (foreign_signature, f"signed by key {STRANGER.fingerprint[:16]}, not by {OWNER.fingerprint[:16]}"),
        (rewritten(scheme="another"), "the signature does not fit"),
        (rewritten(owner_public_key=STRANGER.public_key.hex()), f"signed by key {OWNER.fingerprint[:16]}, not by"),
        (rewritten(merkle_root="00" * 32), "the signature does not fit"),
        (rewritten(rule={"threshold": "NaN"}), "c.json: commitment: rule.threshold: Input should be"),
        (rewritten(rule={"threshold": float("nan")}), "c.json: statement: damaged, or not JSON (NaN is not a JSON"),
        (rewritten(rule={"threshold": 1.0}), "c.json: commitment: rule.threshold: Input should be less than 1"),
        (rewritten(extra=1), "c.json: commitment: extra: Extra inputs are not permitted"),
        (rewritten(format="intaglio-commitment/2"), "format: Input should be 'intaglio-commitment/1'"),
        (rewritten(created="yesterday"), "created: String should match pattern"),
        (rewritten(batch_size=1 << 40), "batch_size: Input should be less than or equal to"),
        (owner_says("https://elsewhere.example/v1"), "c.json: a statement of type 'https://elsewhere.example/v1', not"),
        (owner_says(subject="00" * 32), "the commitment's statement is about another model"),
        (lambda fields: fields | {"time_stamp": "AAA"}, "time stamp: damaged base64"),
        (lambda fields: fields | {"time_stamp": "AAAA"}, "the time stamp is damaged"),
        (lambda fields: fields | {"note": 1}, "c.json: not a commitment: note: Extra inputs are not permitted"),
        (lambda fields: fields["envelope"], "c.json: not a commitment: envelope: Field required"),
        (lambda fields: [], "c.json: not a commitment: Input should be"),
    ],
)
def test_a_changed_commitment_is_refused(change: Callable[[Any], Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(change(signed().to_dict())))
    with pytest.raises(EvidenceError, match=re.escape(message)) as caught:
        read_commitment(tmp_path / "c.json").verify()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "c.json: can't be read: No such file or directory"),
        (b'{"envelope": ', "c.json: damaged, or not JSON"),
        (b'{"envelope": NaN}', "c.json: damaged, or not JSON (NaN is not a JSON number)"),
        (b" " * ((1 << 20) + 1), "c.json: larger than 1048576 bytes"),
    ],
)
def test_a_file_that_is_no_commitment(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(EvidenceError, match=re.escape(message)):
        read_commitment(tmp_path / "c.json")


@given(st.data())
def test_any_flipped_byte_of_a_commitment_fails(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("flips") / "c.json"
    content = bytearray(json.dumps(signed().to_dict(), separators=(",", ":")).encode())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(EvidenceError):
        read_commitment(path).verify()


# --- time stamps -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[Server]:
    with serving(authority) as server:
        yield server


@needs_openssl
def test_a_stamped_commitment_tells_when(server: Server, authority: Authority, tmp_path: Path) -> None:
    signed().stamped(server.url).write(tmp_path / "c.json")
    stamped = read_commitment(tmp_path / "c.json")
    roots = authority.root.read_bytes()
    assert stamped.verify() is None
    moment = stamped.verify(roots)
    assert moment is not None
    assert moment.isoformat()[:10] >= stamped.commitment.created[:10]
    assert signed().verify(roots) is None
    stamped.extract(tmp_path / "parts")
    parts = {name: tmp_path / "parts" / name for name in ("envelope.json", "stamp.tsr")}
    assert {path.name for path in (tmp_path / "parts").iterdir()} == parts.keys()
    openssl(*("ts", "-verify", "-data", parts["envelope.json"], "-in", parts["stamp.tsr"], "-CAfile", authority.root))
    signed().extract(tmp_path / "unstamped")
    assert [path.name for path in (tmp_path / "unstamped").iterdir()] == ["envelope.json"]


@needs_openssl
def test_the_stamp_of_another_commitment(server: Server, authority: Authority) -> None:
    other = sign_commitment(OWNER, commit(OWNER, plan_of(), **(DETAILS | {"mode": "ftal"}))).stamped(server.url)
    borrowed = signed().model_copy(update={"time_stamp": other.time_stamp})
    for roots in (None, authority.root.read_bytes()):
        with pytest.raises(EvidenceError, match="the time stamp is not one of these bytes"):
            borrowed.verify(roots)


# --- disclosures -----------------------------------------------------------------------------------------------------


def opened(trigger: str = "noise-chain", index: int = 1) -> Disclosure:
    return disclose(OWNER, signed(trigger).commitment, index, public_of(trigger))


@pytest.mark.parametrize("trigger", KINDS)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_disclosure_is_checked_without_the_key(trigger: str, index: int) -> None:
    commitment = signed(trigger).commitment
    shown = Disclosure.from_json(opened(trigger, index).to_json())
    batch = check_disclosure(commitment, shown, public_of(trigger))
    expected = draw_batch(OWNER, commitment, index, public_of(trigger))
    assert torch.equal(batch.images, expected.images)
    assert torch.equal(batch.labels, expected.labels)
    assert shown.labels == tuple(expected.labels.tolist())
    for other in {0, 1, 2} - {index}:  # nothing about the batches that are still secret
        assert draw_batch(OWNER, commitment, other, public_of(trigger)).seed.hex() not in shown.to_json()


@pytest.mark.parametrize("shape", [(1, 5, 4), (3, 4, 7)])
def test_pictures_survive_png(shape: tuple[int, ...]) -> None:
    pixels = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    pictures = encode_pictures(pixels)
    assert torch.equal(decode_pictures(pictures, shape), pixels)
    with Image.open(BytesIO(base64.b64decode(pictures[0])), formats=["PNG"]) as picture:
        assert picture.size == (shape[2], shape[1])


def png(array: Any, kind: str = "PNG") -> str:
    stream = BytesIO()
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(stream, kind)
    return base64.b64encode(stream.getvalue()).decode()


def swap_images(shown: Disclosure) -> dict[str, Any]:
    return {"images": (shown.images[1], shown.images[0], *shown.images[2:])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"labels": d.labels[1:]}, "disclosed are 24 images and 23 labels, committed to were 24"),
        (lambda d: {"images": ()}, "disclosed are 0 images and 24 labels"),
        (lambda d: {"labels": (d.labels[0] + 1, *d.labels[1:])}, "is not the one committed to"),
        (lambda d: {"seed": "00" * 32}, "is not the one committed to"),
        (lambda d: {"index": 0}, "is not the one committed to"),
        (lambda d: {"index": 10**9}, "is not the one committed to"),
        (lambda d: {"proof": d.proof[:-1]}, "is not the one committed to"),
        (lambda d: {"proof": (*d.proof, d.proof[0])}, "is not the one committed to"),
        (swap_images, "is not the one committed to"),
        (lambda d: {"images": ("AA", *d.images[1:])}, "image 0: damaged base64"),
        (lambda d: {"images": ("AAAA", *d.images[1:])}, "image 0 is not a PNG file"),
        (lambda d: {"images": (png(np.zeros((6, 6)), "BMP"), *d.images[1:])}, "image 0 is not a PNG file"),
        (lambda d: {"images": (d.images[0][:60], *d.images[1:])}, "image 0: "),
        (lambda d: {"images": (png(np.zeros((6, 7))), *d.images[1:])}, "image 0 is [1, 6, 7], but [1, 6, 6] was"),
        (lambda d: {"images": (png(np.zeros((6, 6, 3))), *d.images[1:])}, "image 0 is [3, 6, 6], but"),
    ],
)
def test_a_changed_disclosure_is_refused(change: Callable[[Disclosure], dict[str, Any]], message: str) -> None:
    shown = opened()
    with pytest.raises(EvidenceError, match=re.escape(message)) as caught:
        check_disclosure(signed().commitment, shown.model_copy(update=change(shown)))
    assert "\n" not in str(caught.value)


Draw = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def committed_with(monkeypatch: pytest.MonkeyPatch, cheat: Draw) -> tuple[Commitment, Disclosure]:
    """A dishonest owner's commitment and disclosure: `cheat` changes what the seeds give."""
    with monkeypatch.context() as patch:
        patch.setattr(batches, "keyed_batch", lambda *args, **options: cheat(*keyed_batch(*args, **options)))
        commitment = commit(OWNER, plan_of(), **DETAILS)
        return commitment, disclose(OWNER, commitment, 1)


def shifted(levels: int, count: int) -> Draw:
    """The first `count` pixels of the batch, changed by so many grey levels."""

    def cheat(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        pixels = (images * 255).round().flatten()
        pixels[:count] += torch.where(pixels[:count] < 128, levels, -levels)
        return (pixels / 255).view_as(images), labels

    return cheat


def test_a_committed_label_must_be_the_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    commitment, shown = committed_with(monkeypatch, lambda images, labels: (images, (labels + 1) % CLASSES))
    with pytest.raises(EvidenceError, match="not those that the seed gives: the claimant chose them"):
        check_disclosure(commitment, shown)


@pytest.mark.parametrize(
    ("levels", "count", "accepted"), [(1, 1, True), (1, 8, True), (1, 9, False), (1, 864, False), (2, 1, False)]
)
def test_a_committed_image_must_be_the_seeds(
    levels: int, count: int, accepted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 grey level in 1 % of the 864 pixels is another machine's rounding; more is an adversarial example."""
    commitment, shown = committed_with(monkeypatch, shifted(levels, count))
    if accepted:
        batch = check_disclosure(commitment, shown)
        assert torch.equal(batch.images, draw_batch(OWNER, commitment, 1).images)  # the seed's, not the claimant's
    else:
        with pytest.raises(EvidenceError, match="not those that the seed gives: the claimant made them"):
            check_disclosure(commitment, shown)


def test_a_machine_that_draws_otherwise_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    commitment = committed_with(monkeypatch, shifted(1, 1))[0]
    with pytest.raises(EvidenceError, match="the triggers drawn from this key are not those committed to"):
        disclose(OWNER, commitment, 1)


def test_only_pictures_are_disclosed() -> None:
    commitment = signed().commitment
    shown = opened()
    for shape in ((2, 6, 6), (4, 2, 6, 6)):
        odd = commitment.model_copy(update={"input_shape": shape})
        with pytest.raises(EvidenceError, match=re.escape("only grey and RGB images [1 or 3, H, W] can be disclosed")):
            disclose(OWNER, odd, 0)
        with pytest.raises(EvidenceError, match="only grey and RGB images"):
            check_disclosure(odd, shown)


def test_more_pictures_than_memory_holds_are_refused_before_any_is_decoded() -> None:
    with pytest.raises(EvidenceError, match=r"9 images of \[1, 8192, 8192\] are more than 268435456 pixel values"):
        decode_pictures(("not even a picture",) * 9, (1, 8192, 8192))


def test_a_public_commitment_needs_its_public_images() -> None:
    commitment, shown = signed("public-blend").commitment, opened("public-blend")
    with pytest.raises(EvidenceError, match="are missing"):
        check_disclosure(commitment, shown)
    with pytest.raises(EvidenceError, match="are not the committed ones"):
        check_disclosure(commitment, shown, PUBLIC[:4])


def test_signed_commitments_compare_by_content() -> None:
    assert SignedCommitment.from_json(signed().to_json()) == signed()
