"""Nobody's innocent model is claimed, and no dishonest claimant gets through: each way of cheating is tried."""

import base64
import json
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from scipy.stats import binom, kstest
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from intaglio.classifiers import Classifier
from intaglio.data import ImageData
from intaglio.data.photos import public_photos
from intaglio.errors import EvidenceError
from intaglio.evidence.batches import Batch, TriggerPlan, draw_batch, plan_triggers, redraw_batch
from intaglio.evidence.binomial import chance_p_value
from intaglio.evidence.bundle import BUNDLE_TYPE, Bundle, Claim, write_bundle
from intaglio.evidence.canonical import now
from intaglio.evidence.commitment import DecisionRule, SignedCommitment, commit, sign_commitment
from intaglio.evidence.disclosure import Disclosure, check_disclosure, disclose, encode_pictures
from intaglio.evidence.envelope import sign_statement
from intaglio.evidence.key import Key
from intaglio.evidence.merkle import merkle_proof, merkle_root
from intaglio.evidence.proof import verify_bundle
from intaglio.evidence.reading import READINGS, Statistic, most_hits, read_suspect
from intaglio.evidence.suspect import Suspect
from intaglio.mark import Marked, mark, verify_mark
from intaglio.mark.proof import prove
from intaglio.seeds import python_random, torch_generator
from intaglio.triggers.keyed import KEYED_TRIGGERS
from mark_models import CLASSES, DATA, OWNER, QUICK, SHAPE, STRANGER, classifier_of, host, tiny, trained
from time_authority import Authority, needs_openssl, serving

LOW = DecisionRule(threshold=1e-6)
DETAILS: dict[str, Any] = {"scheme": "deep-fidelity", "mode": "fixll-pfl", "model_sha256": "00" * 32}
PHOTOS = public_photos(SHAPE)


def key_of(number: int) -> Key:
    return Key(number.to_bytes(32, "big"))


def public_of(trigger: str) -> Tensor | None:
    return PHOTOS if trigger == "public-blend" else None


def plan_for(key: Key, trigger: str = "noise-blocks", batch_size: int = 100) -> TriggerPlan:
    """A plan with a fixed mark id: the same triggers in every run."""
    public = public_of(trigger)
    sizes: dict[str, Any] = {"input_shape": SHAPE, "num_classes": CLASSES, "batches": 1, "batch_size": batch_size}
    plan = plan_triggers(key, trigger=trigger, public=public, **sizes)
    return plan.model_copy(update={"mark_id": "ab" * 16})


def committed(key: Key, rule: DecisionRule | None = None) -> SignedCommitment:
    return sign_commitment(key, commit(key, plan_for(key), rule=rule, **DETAILS))


# --- models made without the key -------------------------------------------------------------------------------------


def linear(weight: Tensor, bias: Tensor) -> nn.Module:
    layer = nn.Linear(144, CLASSES)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return nn.Sequential(nn.Flatten(), layer)


def drawn(seed: int) -> nn.Module:
    """A linear model with random weights."""
    return linear(torch.randn(CLASSES, 144, generator=torch_generator(seed, "independent")), torch.zeros(CLASSES))


def constant() -> nn.Module:
    """Answers every image with class 3."""
    return linear(torch.zeros(CLASSES, 144), one_hot(torch.tensor(3), CLASSES).float())


def shuffled() -> ImageData:
    """Data with labels that mean nothing."""
    order = torch.randperm(len(DATA), generator=torch_generator(0, "shuffled"))
    return ImageData(DATA.images, DATA.labels[order])


def independent() -> dict[str, Classifier]:
    """Untrained, trained, of other architectures, constant, and marked by others."""
    models: dict[str, nn.Module] = {
        "untrained": tiny(5),
        "trained": host(1),
        "trained too": host(2),
        "narrow": trained(tiny(3, width=6)),
        "wide": trained(tiny(4, width=48)),
        "memory": trained(tiny(6), shuffled()),
        "linear": drawn(0),
        "linear too": drawn(1),
        "constant": constant(),
        "another's mark": mark(host(), DATA, STRANGER, batches=1, **QUICK | {"epochs": 10}).module,
    }
    return {name: classifier_of(module.eval(), name) for name, module in models.items()}


KEYS = 100


@pytest.fixture(scope="module", params=product(KEYED_TRIGGERS, get_args(Statistic)), ids="-".join)
def hits(request: pytest.FixtureRequest) -> dict[str, list[int]]:
    """Hits of each independent model under 100 fresh keys, by its classes and by its centred scores."""
    suspects = independent()
    trigger, statistic = request.param
    public = public_of(trigger)
    found: dict[str, list[int]] = {name: [] for name in suspects}
    for number in range(KEYS):
        key = key_of(1000 + number)
        batch = draw_batch(key, plan_for(key, trigger), 0, public)
        for name, suspect in suspects.items():
            readings = read_suspect(suspect, batch.images, statistic, CLASSES)
            assert len(readings) == READINGS[statistic]
            read = readings[number % len(readings)].labels  # the better of two is not uniform; each of them is
            found[name].append(int((read == batch.labels).sum()))
    return found


def test_no_innocent_model_is_claimed(hits: dict[str, list[int]]) -> None:
    p_values = [chance_p_value(count, 100, CLASSES) for counts in hits.values() for count in counts]
    assert len(p_values) == 10 * KEYS
    assert min(p_values) > 1e-6
    assert sum(p <= 0.01 for p in p_values) <= 25  # 10 are expected at most


def test_p_values_of_innocent_models_are_uniform(hits: dict[str, list[int]]) -> None:
    """Randomised within each step of the binomial distribution, which makes them exactly uniform if it holds."""
    random = python_random(0, "randomised p-values")
    everything = []
    for counts in hits.values():
        mine = [
            float(binom.sf(count, 100, 1 / CLASSES) + random.random() * binom.pmf(count, 100, 1 / CLASSES))
            for count in counts
        ]
        assert kstest(mine, "uniform").pvalue > 1e-4
        everything += mine
    assert kstest(everything, "uniform").pvalue > 1e-3


def hits_of(suspect: Classifier, batch: Batch) -> int:
    readings = read_suspect(suspect, batch.images, DecisionRule().statistic, CLASSES)
    return int((most_hits(readings, batch.labels).labels == batch.labels).sum())


def test_verification_gives_just_those_p_values() -> None:
    key, suspect = key_of(1000), classifier_of(host(1))
    batch = draw_batch(key, plan_for(key), 0)
    found = verify_mark(suspect, committed(key), key)
    assert found.hits == hits_of(suspect, batch)
    assert found.p_value == chance_p_value(found.hits, 100, CLASSES)


def test_searching_two_hundred_keys_claims_nothing(tmp_path: Path) -> None:
    """The best of 200 keys looks good alone, and not once the search is counted."""
    suspect = classifier_of(host(1))
    best, best_hits = OWNER, -1
    for number in range(200):
        key = key_of(5000 + number)
        batch = draw_batch(key, plan_for(key), 0)
        count = hits_of(suspect, batch)
        if count > best_hits:
            best, best_hits = key, count
    lucky = committed(best, rule=DecisionRule(threshold=0.05))
    alone = verify_mark(suspect, lucky, best)
    honest = verify_mark(suspect, lucky, best, keys=200)
    prove(tmp_path / "claim.json", alone, lucky, best, Suspect.of(suspect))
    assert alone.hits == honest.hits == best_hits > 15
    assert alone.verified  # a search that is kept quiet passes a weak rule: hence 2^-64
    assert not honest.verified
    assert honest.p_value == pytest.approx(min(1, 200 * alone.p_value))
    assert not verify_mark(suspect, committed(best), best).verified
    judged = verify_bundle(tmp_path / "claim.json", suspect=suspect)
    assert (judged.verified, judged.threshold, judged.hits) == (False, 2.0**-65, best_hits)  # whatever rule was chosen
    assert "decided at p <= 5.4e-20: the claimant's own threshold, 0.05, is laxer" in judged.checked


# --- made up after the fact ------------------------------------------------------------------------------------------


def fooling(suspect: nn.Module, labels: Tensor, start: Tensor) -> Tensor:
    """8-bit images that the suspect, made by somebody else, answers with just these labels: found by its gradients."""
    images = start.clone()
    for _ in range(60):
        images.requires_grad_(True)
        (slope,) = torch.autograd.grad(cross_entropy(suspect(images), labels), images)
        images = (images.detach() - 0.02 * slope.sign()).clamp(0, 1)
    return (images * 255).round() / 255


@pytest.fixture(scope="module")
def forged() -> Batch:
    """Gradient-made triggers that an innocent model answers all as wanted."""
    victim = host(1)
    labels = torch.arange(20) % CLASSES
    images = fooling(victim, labels, torch.full((20, *SHAPE), 0.5))
    assert classifier_of(victim).predict(images).tolist() == labels.tolist()
    return Batch(0, bytes(range(32)), images, labels)


def commitment_over(batch: Batch, size: int = 20) -> SignedCommitment:
    """A commitment of the dishonest owner's whose Merkle tree holds the forged batch."""
    plan = plan_for(OWNER, batch_size=size)
    honest = commit(OWNER, plan, rule=LOW, **DETAILS)
    return sign_commitment(OWNER, honest.model_copy(update={"merkle_root": merkle_root([batch.leaf()]).hex()}))


def disclosed(batch: Batch) -> Disclosure:
    return Disclosure(
        index=0,
        seed=batch.seed.hex(),
        images=encode_pictures(batch.images),
        labels=tuple(batch.labels.tolist()),
        proof=tuple(step.hex() for step in merkle_proof([batch.leaf()], 0)),
    )


def claimed(path: Path, signed: SignedCommitment, shown: Disclosure) -> Path:
    """A claim that says everything was hit, put together and signed by hand."""
    trials = len(shown.labels)
    bundle = Bundle(
        commitment=signed,
        disclosure=shown,
        suspect=Suspect(source="victim"),
        answers=shown.labels,
        claim=Claim(hits=trials, trials=trials, p_value=chance_p_value(trials, trials, CLASSES)),
        created=now(),
    )
    subjects = {"model": signed.commitment.model_sha256}
    path.write_bytes(sign_statement(OWNER, subjects, BUNDLE_TYPE, bundle.to_dict()).to_bytes())
    return path


def test_gradient_made_triggers_cannot_be_disclosed(forged: Batch, tmp_path: Path) -> None:
    """Not under an honest commitment, and not under one that was made for them."""
    honest = sign_commitment(
        OWNER, commit(OWNER, plan_for(OWNER, batch_size=20), scheme="s", mode="m", model_sha256="00" * 32)
    )
    with pytest.raises(EvidenceError, match="the disclosed batch is not the one committed to"):
        verify_bundle(claimed(tmp_path / "one.json", honest, disclosed(forged)))
    fitting = commitment_over(forged)
    fitting.verify()  # its signature is right
    with pytest.raises(
        EvidenceError, match="the disclosed labels are not those that the seed gives: the claimant chose"
    ):
        verify_bundle(claimed(tmp_path / "two.json", fitting, disclosed(forged)))
    with pytest.raises(EvidenceError, match="are not those committed to"):
        disclose(OWNER, fitting.commitment, 0)


def test_nor_with_the_seeds_own_labels(tmp_path: Path) -> None:
    """The labels are what the seed gives; the images were shaped until the victim answers so."""
    given = draw_batch(OWNER, plan_for(OWNER, batch_size=20), 0)
    victim = host(1)
    images = fooling(victim, given.labels, given.images)
    assert (classifier_of(victim).predict(images) == given.labels).float().mean() > 0.9
    shaped = Batch(0, given.seed, images, given.labels)
    with pytest.raises(
        EvidenceError, match="the disclosed images are not those that the seed gives: the claimant made"
    ):
        verify_bundle(claimed(tmp_path / "c.json", commitment_over(shaped), disclosed(shaped)))
    with pytest.raises(EvidenceError, match="the claimant made"):
        check_disclosure(commitment_over(shaped).commitment, disclosed(shaped))


def test_verification_draws_its_own_triggers(forged: Batch) -> None:
    """Whatever a commitment's tree holds: the suspect is asked what the key gives, and answers by chance."""
    found = verify_mark(classifier_of(host(1)), commitment_over(forged), OWNER)
    assert not found.verified
    assert found.p_value > 1e-3


def test_a_borrowed_seed_gives_other_triggers() -> None:
    """A batch that someone laid open is of no use to another owner: the public key is part of the draw."""
    plan = plan_for(OWNER)
    stolen = plan.model_copy(update={"owner_public_key": STRANGER.public_key.hex()})
    mine, theirs = (redraw_batch(one, 0, bytes(32)) for one in (plan, stolen))
    assert not torch.equal(mine.images, theirs.images)
    assert not torch.equal(mine.labels, theirs.labels)


def test_answers_cannot_be_made_up_where_the_suspect_is_asked_again(tmp_path: Path) -> None:
    signed = committed(OWNER)
    shown = disclose(OWNER, signed.commitment, 0)
    write_bundle(
        tmp_path / "c.json",
        OWNER,
        commitment=signed,
        disclosure=shown,
        suspect=Suspect(source="victim"),
        answers=shown.labels,
    )
    believed = verify_bundle(tmp_path / "c.json")
    assert believed.verified
    assert believed.statement.startswith(
        "The suspect was not asked; on the claimant's word for its answers, verified: "
    )
    assert "the answers are as the claimant reports them: the suspect was not asked again (--suspect)" in (
        believed.unverified
    )
    asked = verify_bundle(tmp_path / "c.json", suspect=classifier_of(host(1), "victim"))
    assert not asked.verified


# --- the earlier mark decides ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twice() -> tuple[Marked, Marked]:
    """A marked model, and the same marked again by a thief, in the mode that leaves most of the first mark alone."""
    first = mark(host(), DATA, OWNER, batches=1, **QUICK | {"epochs": 60, "mode": "ftal"})
    second = mark(first.module, DATA, STRANGER, batches=1, **QUICK | {"epochs": 30, "learning_rate": 0.005})
    return first, second


def test_an_overwritten_model_carries_both_marks(twice: tuple[Marked, Marked]) -> None:
    first, second = twice
    taken = classifier_of(second.module, "the thief's")
    assert verify_mark(taken, first.commitment, OWNER).verified
    assert verify_mark(taken, second.commitment, STRANGER).verified
    original = classifier_of(first.module, "the owner's")
    assert verify_mark(original, first.commitment, OWNER).verified
    assert not verify_mark(original, second.commitment, STRANGER).verified  # the thief's mark is in the copy alone


@needs_openssl
def test_the_earlier_stamp_decides(twice: tuple[Marked, Marked], tmp_path: Path) -> None:
    """Both claims are good alone. The verifier knows when the suspect was first seen: one stamp is older."""
    first, second = twice
    (tmp_path / "tsa").mkdir()
    authority = Authority(tmp_path / "tsa")
    taken = classifier_of(second.module, "the thief's")
    with serving(authority) as server:
        stamped = first.commitment.stamped(server.url)
    roots = authority.root.read_bytes()
    for name, signed, key in (("owner", stamped, OWNER), ("thief", second.commitment, STRANGER)):
        found = verify_mark(taken, signed, key)
        prove(tmp_path / f"{name}.json", found, signed, key, Suspect.of(taken))
        assert verify_bundle(tmp_path / f"{name}.json", suspect=taken, roots=roots).verified
    appeared = datetime.now(UTC) + timedelta(seconds=2)
    owner, thief = (
        verify_bundle(tmp_path / f"{name}.json", suspect=taken, roots=roots, before=appeared)
        for name in ("owner", "thief")
    )
    assert owner.verified
    assert owner.stamped is not None
    assert not thief.verified
    assert thief.statement.startswith("Not verified: no trusted stamp shows that the commitment was made before 20")
    late = verify_bundle(tmp_path / "owner.json", roots=roots, before=appeared - timedelta(days=1))
    assert not late.verified  # nor would the owner's, for a suspect that is older


def test_a_date_cannot_be_moved_back(twice: tuple[Marked, Marked]) -> None:
    """The owner's clock is only a word, but not even that can be changed under the old signature."""
    signed = twice[1].commitment
    statement = json.loads(base64.b64decode(signed.envelope.payload))
    statement["predicate"]["created"] = "2001-01-01T00:00:00+00:00"
    payload = base64.b64encode(json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()).decode()
    earlier = signed.model_copy(update={"envelope": signed.envelope.model_copy(update={"payload": payload})})
    with pytest.raises(EvidenceError, match="signature"):
        verify_mark(classifier_of(host()), earlier, STRANGER)
