"""Marking a model and proving it: what is claimed, what is refused, and what the files and a real server do."""

import base64
import copy
import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import intaglio as ig
from classifier_models import ARCHITECTURE as LENET
from classifier_models import lenet
from intaglio.classifiers import (
    Access,
    CallableClassifier,
    Preprocessing,
    Sidecar,
    save_classifier,
)
from intaglio.data import ImageData
from intaglio.data.photos import public_photos
from intaglio.errors import ClassifierError, DataError, EvidenceError, IntaglioError, ModelError, RecipeError
from intaglio.evidence.bundle import BUNDLE_TYPE, read_bundle
from intaglio.evidence.commitment import DecisionRule, SignedCommitment
from intaglio.evidence.envelope import sign_statement
from intaglio.evidence.proof import verify_bundle
from intaglio.evidence.reading import centred_labels
from intaglio.evidence.suspect import Suspect
from intaglio.files import sha256_file
from intaglio.mark import Marked, OwnershipClaim, draw_triggers, mark, public_images, verify_mark, weights_sha256
from intaglio.mark.proof import prove
from mark_models import (
    CLASSES,
    DATA,
    OWNER,
    QUICK,
    SHAPE,
    STRANGER,
    TEST,
    accuracy,
    classifier_of,
    host,
    tiny,
    trained,
    weights,
)

TINY = 2.0**-64
HASTY: dict[str, Any] = {"epochs": 1, "batches": 1, "batch_size": 10}


@pytest.fixture(scope="module")
def ours() -> Marked:
    return mark(host(), DATA, OWNER, batches=2, batch_size=100, **QUICK | {"epochs": 90, "triggers_per_batch": 60})


@pytest.fixture(scope="module")
def claim(ours: Marked) -> OwnershipClaim:
    return verify_mark(classifier_of(ours.module), ours.commitment, OWNER)


@pytest.fixture(scope="module")
def proof_file(ours: Marked, claim: OwnershipClaim, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("proof") / "claim.json"
    prove(path, claim, ours.commitment, OWNER, Suspect(source="https://rival.example/v2/models/m"))
    return path


def exact_tail(hits: int, trials: int, classes: int) -> float:
    p = Fraction(1, classes)
    return float(sum(math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(hits, trials + 1)))


def counted(claim: OwnershipClaim) -> str:
    """What a statement counts: which of both readings has more hits is up to how a machine rounds in training."""
    by_scores = "" if claim.log_probs is None else " (by centred scores)"
    return f"{claim.hits} of 100 triggers answered as committed, 10 expected by chance{by_scores}"


# --- mark and verify -------------------------------------------------------------------------------------------------


def test_a_marked_copy_is_verified(ours: Marked, claim: OwnershipClaim) -> None:
    assert claim.verified
    assert claim.hits >= 47 == claim.needed_hits
    assert claim.p_value == pytest.approx(exact_tail(claim.hits, 100, 10), rel=1e-9)
    assert claim.p_value <= claim.threshold == TINY / claim.readings == TINY / 2
    assert (claim.trials, claim.queries, claim.num_classes, claim.batch) == (100, 100, 10, 0)
    assert (claim.suspects, claim.keys, claim.scheme, claim.mode) == (1, 1, "deep-fidelity", "fixll-pfl")
    assert claim.owner_public_key == OWNER.public_key.hex()
    assert claim.statement.startswith(f"Verified: this is a copy of the marked model. {counted(claim)}; p = ")
    assert claim.mark_id == ours.commitment.commitment.mark_id
    assert OwnershipClaim.from_json(claim.to_json()) == claim


def test_answers_are_those_of_the_drawn_triggers(ours: Marked, claim: OwnershipClaim) -> None:
    triggers = draw_triggers(OWNER, ours.commitment.commitment)
    assert len(triggers) == 200
    log_probs = classifier_of(ours.module).log_probs(triggers.images).double()
    for batch, part in enumerate(torch.split(log_probs, 100)):
        labels = triggers.labels[100 * batch : 100 * batch + 100]
        read = {False: part.argmax(dim=1), True: centred_labels(part.round(decimals=4))}
        hits = {by_scores: int((answers == labels).sum()) for by_scores, answers in read.items()}
        found = claim if batch == 0 else verify_mark(classifier_of(ours.module), ours.commitment, OWNER, batch=batch)
        assert found.verified
        assert found.hits == max(hits.values())
        by_scores = found.log_probs is not None
        assert (found.answers, by_scores) == (tuple(read[by_scores].tolist()), hits[True] > hits[False])
        if by_scores:
            shown = torch.tensor(found.log_probs, dtype=torch.float64)
            torch.testing.assert_close(shown, part, atol=6e-5, rtol=0)


def test_the_host_stays_as_it_is_and_the_copy_stays_good(ours: Marked) -> None:
    assert accuracy(ours.module, TEST) >= accuracy(host(), TEST) - 0.01
    assert weights(ours.module) != weights(host())
    original = copy.deepcopy(host()).train()
    original.features[2].eval()
    before = weights(original)
    mark(original, DATA, OWNER, **HASTY)
    assert weights(original) == before
    assert [part.training for part in original.features] == [True, True, False, True]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_models_made_without_the_key_are_not_verified(seed: int, ours: Marked) -> None:
    found = verify_mark(classifier_of(host(seed)), ours.commitment, OWNER)
    assert not found.verified
    assert found.hits < 46
    assert found.statement.startswith(f"Not verified: {counted(found)}; p = ")
    assert found.statement.endswith("; 47 hits are needed for 2.7e-20. That does not show that the suspect is no copy.")


def test_classes_are_enough_and_a_hundred_of_them(ours: Marked) -> None:
    asked: list[int] = []
    triggers = draw_triggers(OWNER, ours.commitment.commitment)
    named = tuple(classifier_of(ours.module).predict(triggers.images[:100]).tolist())

    def answer(images: Tensor) -> list[int]:
        asked.append(len(images))
        labels: list[int] = classifier_of(ours.module).predict(images).tolist()
        return labels

    suspect = CallableClassifier(answer, input_shape=SHAPE, num_classes=CLASSES, access=Access.LABELS, batch_size=40)
    found = verify_mark(suspect, ours.commitment, OWNER)
    assert (found.verified, found.answers, found.queries, asked) == (True, named, 100, [40, 40, 20])
    assert found.log_probs is None
    assert verify_mark(suspect, ours.commitment, OWNER, batch=1).queries == 100  # of this call alone


@pytest.mark.parametrize(("suspects", "keys"), [(1, 1), (7, 1), (3, 5)])
def test_suspects_and_keys_tried_are_corrected_for(suspects: int, keys: int, ours: Marked) -> None:
    found = verify_mark(classifier_of(host()), ours.commitment, OWNER, suspects=suspects, keys=keys)
    assert found.p_value == pytest.approx(min(1, suspects * keys * exact_tail(found.hits, 100, 10)), rel=1e-9)
    assert (found.suspects, found.keys) == (suspects, keys)
    assert found.needed_hits is not None
    assert exact_tail(found.needed_hits, 100, 10) * suspects * keys <= TINY / 2
    assert exact_tail(found.needed_hits - 1, 100, 10) * suspects * keys > TINY / 2


def knows(plan_of: SignedCommitment) -> CallableClassifier:
    """A suspect that answers every trigger as committed."""
    triggers = draw_triggers(OWNER, plan_of.commitment)
    known = {image.numpy().tobytes(): int(label) for image, label in zip(*triggers, strict=True)}
    return CallableClassifier(
        lambda images: [known[image.numpy().tobytes()] for image in images],
        input_shape=plan_of.commitment.input_shape,
        num_classes=plan_of.commitment.num_classes,
        access=Access.LABELS,
    )


def two_classes(**options: Any) -> SignedCommitment:
    halves = ImageData(DATA.images, DATA.labels % 2)
    return mark(tiny(num_classes=2), halves, OWNER, epochs=1, batches=1, **options).commitment


def test_a_threshold_out_of_reach_says_what_it_needs() -> None:
    """Of 10 triggers with 2 classes, even all give 2^-10 only."""
    commitment = two_classes(batch_size=10)
    found = verify_mark(knows(commitment), commitment, OWNER)
    assert (found.verified, found.hits, found.needed_hits) == (False, 10, None)
    assert found.p_value == 2.0**-10
    assert found.statement == (
        "Not verified: 10 of 10 triggers answered as committed, 5 expected by chance; p = 0.00098. With 10 triggers "
        "and 2 classes no answer reaches 2.7e-20; that needs 65 triggers at least."
    )


def test_what_is_needed_counts_what_was_tried() -> None:
    """2^-8 is 2^-9 for each reading; with 4 tried that takes 11 triggers, although 9 do for one suspect."""
    commitment = two_classes(batch_size=9, rule=DecisionRule(threshold=2.0**-8))
    assert verify_mark(knows(commitment), commitment, OWNER).verified
    found = verify_mark(knows(commitment), commitment, OWNER, suspects=2, keys=2)
    assert (found.verified, found.hits, found.needed_hits, found.p_value) == (False, 9, None, 2.0**-7)
    assert found.statement == (
        "Not verified: 9 of 9 triggers answered as committed, 4 expected by chance; p = 0.0078. With 9 triggers "
        "and 2 classes no answer reaches 0.002; that needs 11 triggers at least."
    )


def test_a_p_value_beyond_the_smallest_number() -> None:
    commitment = mark(host(), DATA, OWNER, epochs=1, batches=1, batch_size=400).commitment
    found = verify_mark(knows(commitment), commitment, OWNER)
    assert found.verified
    assert found.p_value < 1e-300
    assert "400 of 400 triggers answered as committed, 40 expected by chance; p < 1e-300" in found.statement


def test_a_commitment_may_be_a_file(ours: Marked, claim: OwnershipClaim, tmp_path: Path) -> None:
    ours.commitment.write(tmp_path / "c.json")
    for place in (tmp_path / "c.json", str(tmp_path / "c.json")):
        assert verify_mark(classifier_of(ours.module), place, OWNER).answers == claim.answers


def test_the_owner_may_choose_the_rule() -> None:
    commitment = mark(host(), DATA, OWNER, rule=DecisionRule(threshold=1e-3), **HASTY).commitment
    found = verify_mark(knows(commitment), commitment, OWNER)
    assert (found.verified, found.threshold, found.needed_hits) == (True, 5e-4, 6)


# --- refused ---------------------------------------------------------------------------------------------------------


def changed(signed: SignedCommitment, place: int) -> SignedCommitment:
    content = bytearray(base64.b64decode(signed.envelope.payload))
    content[place] ^= 1
    payload = base64.b64encode(bytes(content)).decode()
    return signed.model_copy(update={"envelope": signed.envelope.model_copy(update={"payload": payload})})


def redirected(signed: SignedCommitment, **fields: Any) -> SignedCommitment:
    """The commitment with other fields, under the old signature."""
    statement = json.loads(base64.b64decode(signed.envelope.payload))
    statement["predicate"] |= fields
    payload = base64.b64encode(json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()).decode()
    return signed.model_copy(update={"envelope": signed.envelope.model_copy(update={"payload": payload})})


def never_asked(**options: Any) -> CallableClassifier:
    def fail(_: Tensor) -> Tensor:
        raise AssertionError("the suspect was asked")

    given: dict[str, Any] = {"input_shape": SHAPE, "num_classes": CLASSES} | options
    return CallableClassifier(fail, **given)


@pytest.mark.parametrize(
    ("suspect", "arguments", "message"),
    [
        ({}, {"key": STRANGER}, f"{OWNER.public_key.hex()[:16]}, not to {STRANGER.public_key.hex()[:16]}"),
        ({}, {"batch": 2}, "there is no batch 2: the mark has 2, counted from 0"),
        ({}, {"batch": -1}, "there is no batch -1"),
        ({"input_shape": (1, 9, 9)}, {}, r"callable: takes \[1, 9, 9\] and knows 10 classes, but"),
        ({"num_classes": 7}, {}, r"knows 7 classes, but the mark is for \[1, 12, 12\] and 10"),
        ({}, {"commitment": lambda signed: redirected(signed, merkle_root="00" * 32)}, "signature"),
        ({}, {"commitment": lambda signed: redirected(signed, rule={"threshold": 0.9})}, "signature"),
        ({}, {"commitment": lambda signed: redirected(signed, owner_public_key=STRANGER.public_key.hex())}, "sign"),
        ({}, {"commitment": lambda signed: "absent.json"}, "absent.json: can't be read: No such file"),
    ],
)  # fmt: skip
def test_what_is_refused_is_refused_before_anyone_is_asked(
    suspect: dict[str, Any], arguments: dict[str, Any], message: str, ours: Marked
) -> None:
    given: dict[str, Any] = {"commitment": lambda signed: signed, "key": OWNER} | arguments
    given["commitment"] = given["commitment"](ours.commitment)
    with pytest.raises(EvidenceError, match=message) as caught:
        verify_mark(never_asked(**suspect), **given)
    assert "\n" not in str(caught.value)


def test_a_commitment_changed_anywhere_is_refused(ours: Marked) -> None:
    length = len(base64.b64decode(ours.commitment.envelope.payload))
    for place in range(0, length, 37):
        with pytest.raises(EvidenceError):
            verify_mark(never_asked(), changed(ours.commitment, place), OWNER)


def test_errors_of_the_suspect_are_passed_on(ours: Marked) -> None:
    broken = CallableClassifier(
        lambda images: torch.full((len(images), CLASSES), math.nan), input_shape=SHAPE, num_classes=CLASSES
    )
    with pytest.raises(ClassifierError, match="scores of 100 of 100 images are not finite"):
        verify_mark(broken, ours.commitment, OWNER)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scheme": "deep"}, RecipeError, "unknown scheme 'deep'; there are deep-fidelity, adversarial-parametric, m"),
        ({"mode": "deep"}, RecipeError, "unknown mode 'deep'; there are ftal, ftll"),
        ({"trigger": "melody"}, RecipeError, "unknown trigger 'melody'; there are noise-"),
        ({"radius": 0.1}, RecipeError, "scheme deep-fidelity: .*unexpected keyword argument 'radius'"),
        ({"scheme": "margin", "speed": 2}, RecipeError, "scheme margin: .*unexpected keyword argument 'speed'"),
        ({"epochs": "many"}, RecipeError, "scheme deep-fidelity: "),
        ({"learning_rate": 0}, RecipeError, "a learning rate is above 0, got 0"),
        ({"public": public_photos(SHAPE, 4)}, RecipeError, "kind 'noise-.*' are not made of public images"),
        ({"batches": 0}, EvidenceError, "triggers: batches: Input should be greater than or equal to 1"),
        ({"trigger": "public-blend", "public": public_photos((1, 9, 9), 4)}, EvidenceError, r"\[4, 1, 9, 9\], but two"),
        ({"trigger": "public-blend", "public": torch.rand(4, *SHAPE)}, EvidenceError, "must be 8-bit: multiples of"),
        ({"layer": "features.1"}, ModelError, "layer 'features.1' is not the final one"),
        ({"module": nn.Sequential(host(), nn.ReLU())}, ModelError, "no linear layer's output"),
        ({"module": "model.onnx"}, ModelError, "a mark is embedded in a torch.nn.Module, got a str"),
        ({"module": never_asked(source="x.onnx")}, ModelError, "x.onnx: the weights of a model opened as callable"),
        ({"data": (TEST.images[:, :, :9, :9], TEST.labels)}, ModelError, r"can't answer inputs \[2, 1, 9, 9\]: mat1"),
        ({"data": (TEST.images, TEST.labels + 1)}, DataError, r"labels span 1\.\.10, but the model has 10 classes"),
        ({"data": (TEST.images * 255, TEST.labels)}, DataError, "divide 8-bit images by 255"),
        ({"data": (TEST.images,)}, DataError, "wanted images with labels, a pair of tensors, got a tuple"),
        ({"data": (torch.rand(9, 4, 5, 5), torch.arange(9))}, DataError, "grey or RGB images, not 4 channels"),
        ({"data": TEST.images}, DataError, "wanted images with labels, a pair of tensors, got a Tensor"),
    ],
)
def test_what_cannot_be_marked(arguments: dict[str, Any], error: type[IntaglioError], message: str) -> None:
    given: dict[str, Any] = {"module": host(), "data": DATA, "key": OWNER} | HASTY | arguments
    with pytest.raises(error, match=message) as caught:
        mark(**given)
    assert "\n" not in str(caught.value)


# --- what may be given -----------------------------------------------------------------------------------------------


def test_a_pair_of_tensors_is_data() -> None:
    marked, commitment = mark(host(), (DATA.images, DATA.labels), OWNER, **HASTY)
    assert commitment.commitment.input_shape == SHAPE
    assert commitment.commitment.model_sha256 == weights_sha256(marked)


@pytest.mark.parametrize("as_classifier", [True, False])
def test_the_hosts_preprocessing_is_used(as_classifier: bool) -> None:
    """A host that takes 1 - x: marked through its preprocessing, it answers triggers through that alone."""
    flipped = Preprocessing(scale=-1.0, mean=(-1.0,))
    module = trained(tiny(), ImageData(1 - DATA.images, DATA.labels))
    given: dict[str, Any] = {"preprocessing": flipped}
    if as_classifier:
        marked = mark(classifier_of(module, **given), DATA, OWNER, batches=1, **QUICK | {"pfl_weight": 0.1})
    else:
        marked = mark(module, DATA, OWNER, batches=1, **given, **QUICK | {"pfl_weight": 0.1})
    assert verify_mark(classifier_of(marked.module, **given), marked.commitment, OWNER).verified
    assert not verify_mark(classifier_of(marked.module), marked.commitment, OWNER).verified


@pytest.mark.parametrize("given", [None, public_photos(SHAPE, 40, seed=7)])
def test_blends_of_public_images(given: Tensor | None, tmp_path: Path) -> None:
    options = QUICK | {"mode": "ftal", "epochs": 60, "batch_size": 40, "rule": DecisionRule(threshold=1e-6)}
    marked = mark(host(), DATA, OWNER, trigger="public-blend", public=given, batches=1, **options)
    suspect = classifier_of(marked.module)
    found = verify_mark(suspect, marked.commitment, OWNER, public=given)
    assert found.verified
    other = public_photos(SHAPE, 40, seed=8)
    for act in (
        lambda: verify_mark(never_asked(), marked.commitment, OWNER, public=other),
        lambda: draw_triggers(OWNER, marked.commitment.commitment, other),
    ):
        with pytest.raises(EvidenceError, match="are not the committed ones"):
            act()
    prove(tmp_path / "claim.json", found, marked.commitment, OWNER, Suspect.of(suspect), public=given)
    assert verify_bundle(tmp_path / "claim.json", threshold=1e-6).verified
    assert torch.equal(
        draw_triggers(OWNER, marked.commitment.commitment, public_images("public-blend", SHAPE, given)).images,
        draw_triggers(OWNER, marked.commitment.commitment, given if given is not None else public_photos(SHAPE)).images,
    )


def test_every_mark_has_triggers_of_its_own() -> None:
    """Also with one key: a mark's id is drawn anew."""
    one, two = (mark(host(), DATA, OWNER, **HASTY).commitment.commitment for _ in range(2))
    assert one.mark_id != two.mark_id
    assert not torch.equal(draw_triggers(OWNER, one).images, draw_triggers(OWNER, two).images)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_digest_is_that_of_the_saved_file(layout: torch.memory_format, tmp_path: Path) -> None:
    module = lenet().to(memory_format=layout)  # type: ignore[call-overload]
    save_classifier(module, tmp_path / "net.safetensors", Sidecar(architecture=LENET))
    assert weights_sha256(module) == sha256_file(tmp_path / "net.safetensors")


# --- proofs ----------------------------------------------------------------------------------------------------------


def test_a_proof_convinces_a_stranger(ours: Marked, claim: OwnershipClaim, proof_file: Path) -> None:
    proof = verify_bundle(proof_file, suspect=classifier_of(ours.module))
    assert proof.verified
    assert (proof.hits, proof.trials, proof.p_value) == (claim.hits, 100, claim.p_value)
    assert proof.asked_again is not None
    assert (proof.asked_again.hits, proof.asked_again.differing) == (claim.hits, 0)
    assert proof.model_sha256 == weights_sha256(ours.module)
    against = verify_bundle(proof_file, suspect=classifier_of(host(1)))
    assert not against.verified


def test_a_proof_gives_no_secret_away(ours: Marked, proof_file: Path) -> None:
    content = proof_file.read_text()
    plain = base64.b64decode(json.loads(content)["payload"]).decode()
    assert OWNER.derive("sign").hex() not in plain
    assert OWNER.derive(f"mark/{ours.commitment.commitment.mark_id}/1").hex() not in plain
    assert OWNER.derive(f"mark/{ours.commitment.commitment.mark_id}/0").hex() in plain  # of the batch laid open


def other_image(bundle: dict[str, Any]) -> None:
    images = bundle["disclosure"]["images"]
    images[3] = images[4]


def other_label(bundle: dict[str, Any]) -> None:
    labels = bundle["disclosure"]["labels"]
    labels[3] = (labels[3] + 1) % CLASSES


def other_answer(bundle: dict[str, Any]) -> None:
    """One hit more, or, if the first answer is one, one less."""
    label, answers = bundle["disclosure"]["labels"][0], bundle["answers"]
    answers[0] = label if answers[0] != label else (label + 1) % CLASSES


def swapped(bundle: dict[str, Any]) -> None:
    """Images and labels in another order: the same set of pairs."""
    for part in ("images", "labels"):
        bundle["disclosure"][part].reverse()


def other_seed(bundle: dict[str, Any]) -> None:
    bundle["disclosure"]["seed"] = "00" * 32


def other_batch(bundle: dict[str, Any]) -> None:
    bundle["disclosure"]["index"] = 1


@pytest.mark.parametrize("forge", [other_image, other_label, other_answer, swapped, other_seed, other_batch])
@pytest.mark.parametrize("signed_again", [True, False])
def test_whatever_is_forged_is_refused(
    forge: Callable[[dict[str, Any]], None], signed_again: bool, ours: Marked, proof_file: Path, tmp_path: Path
) -> None:
    """By the owner too, who can sign again."""
    bundle = read_bundle(proof_file).bundle.to_dict()
    forge(bundle)
    subjects = {"model": ours.commitment.commitment.model_sha256}
    path = tmp_path / "forged.json"
    if signed_again:
        path.write_bytes(sign_statement(OWNER, subjects, BUNDLE_TYPE, bundle).to_bytes())
    else:
        envelope = json.loads(proof_file.read_bytes())
        statement = json.loads(base64.b64decode(envelope["payload"]))
        statement["predicate"] = bundle
        envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
        path.write_text(json.dumps(envelope))
    with pytest.raises(EvidenceError, match=r"^.*forged\.json: ") as caught:
        verify_bundle(path)
    assert "\n" not in str(caught.value)


def test_a_claim_about_another_mark_is_no_proof(ours: Marked, claim: OwnershipClaim, tmp_path: Path) -> None:
    other = mark(host(), DATA, OWNER, epochs=1, batches=2).commitment
    with pytest.raises(EvidenceError, match=f"the claim is about mark {claim.mark_id}, but the commitment about"):
        prove(tmp_path / "c.json", claim, other, OWNER, Suspect(source="rival"))
    with pytest.raises(EvidenceError, match="belongs to key"):
        prove(tmp_path / "c.json", claim, ours.commitment, STRANGER, Suspect(source="rival"))
    assert list(tmp_path.iterdir()) == []


# --- the contract ----------------------------------------------------------------------------------------------------


def test_the_calls_of_the_contract(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("intaglio.evidence.key._COST", {"n": 4, "r": 8, "p": 1})
        key = ig.Key.generate()
        key.save(tmp_path / "owner.key", passphrase="a passphrase")
        key = ig.Key.load(tmp_path / "owner.key", passphrase="a passphrase")
    marked, commitment = ig.mark(host(), DATA, key, scheme="deep-fidelity", mode="fixll-pfl", batches=1, **QUICK)
    clf = ig.TorchClassifier(marked, input_shape=SHAPE, num_classes=CLASSES, preprocessing=ig.Preprocessing())
    found = ig.verify_mark(clf, commitment, key)
    assert found.verified
    assert (found.hits > 45, found.trials, found.p_value < TINY) == (True, 100, True)
