"""Sealing and checking: what is noticed, what is not taken for tampering, and what a seal gives away."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from conftest import bands
from http_servers import Asked, Given, metadata, serving
from intaglio.classifiers import (
    Access,
    CallableClassifier,
    Classifier,
    Conduct,
    HttpClassifier,
    HttpMapping,
    OnnxClassifier,
    Preprocessing,
    TorchClassifier,
    export_onnx,
)
from intaglio.errors import (
    ClassifierError,
    DataError,
    EvidenceError,
    IntaglioError,
    NothingToExamineError,
    RecipeError,
    RemoteError,
)
from intaglio.evidence.key import Key
from intaglio.seal import (
    METHODS,
    Boundary,
    FineGrained,
    RandomImages,
    Seal,
    SealCheck,
    SealMethod,
    SealRecord,
    Sensitive,
    Variance,
    check_seal,
    make_seal,
    sealed_answers,
)
from intaglio.seal.checking import ALPHA
from intaglio.seal.digest import weights_digest
from intaglio.seal.draws import seal_identity
from intaglio.tampering import FineTune, Noise, Poison, Prune, Quantise, Tampering
from seal_models import KEY, PAIRS, SHAPE, Linear, classifier, linear, toy_seal

OTHER = Key(b"o" * 32)


@pytest.fixture(autouse=True, scope="module")
def _sealed() -> None:
    """The seal with all threads is made before there are fewer executions."""
    toy_seal()


@pytest.fixture(autouse=True)
def _few_executions(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX export takes seconds, and threads of several test processes wait for each other."""
    monkeypatch.setattr("intaglio.seal.executions._exported", lambda classifier: None)
    monkeypatch.setattr("intaglio.seal.executions._other_thread_counts", list)


def labels_of(model: TorchClassifier) -> CallableClassifier:
    """The same model, answering with labels alone."""
    return CallableClassifier(
        model.predict, input_shape=model.input_shape, num_classes=model.num_classes, access=Access.LABELS
    )


# --- the untouched model ---------------------------------------------------------------------------------------------


def test_other_names_for_the_classes_are_another_model() -> None:
    names = ("cat", "dog", "owl")
    seal = make_seal(classifier(classes=names), KEY, method=Boundary(ways=2), pairs=2)
    assert seal.record.classes == names
    for suspect in (classifier(classes=names), classifier(), labels_of(classifier())):
        assert check_seal(suspect, seal, KEY).intact
    with pytest.raises(ClassifierError, match="calls class 0 'owl', but the sealed model 'cat'"):
        check_seal(classifier(classes=names[::-1]), seal, KEY)
    assert check_seal(classifier(classes=names), toy_seal(), KEY).intact


def test_the_untouched_model_is_intact_and_unchanged() -> None:
    model = classifier()
    before = weights_digest(model.module)
    seal = make_seal(model, KEY, pairs=4)
    assert weights_digest(model.module) == before == seal.record.digest
    assert not model.module.training
    assert all(parameter.grad is None for parameter in model.module.parameters())
    check = check_seal(model, seal, KEY)
    assert (check.intact, check.mismatches, check.queries, check.p_value, check.first_mismatch) == (
        True,
        0,
        8,
        1.0,
        None,
    )
    assert check.statement == "Intact: all 8 answers are as sealed."
    assert (check.planned, check.undecided, check.method, check.seed) == (8, 0, "boundary", None)
    assert SealCheck.from_json(check.to_json()) == check


def test_what_a_seal_records() -> None:
    seal = toy_seal()
    record = seal.record
    assert (record.pairs, record.input_shape, record.num_classes, record.allowed) == (PAIRS, SHAPE, 3, ())
    assert record.method["method"] == "boundary"
    noise = record.noise
    assert noise.changed == 0
    assert noise.answers == 2 * PAIRS * len(noise.executions)
    assert noise.deviations == 8 * 16 * 2 * len(noise.executions)
    assert {"as opened", "float64", "other kernels", "2 threads"} <= set(noise.executions)
    assert 2.5 * noise.eta <= noise.smallest_margin <= noise.largest_margin <= 10 * noise.eta
    assert noise.flip_bound < noise.silence_bound < 0.05
    images, answers = sealed_answers(seal, KEY)
    assert images.shape == (PAIRS, 2, *SHAPE)
    assert torch.equal(images * 255, (images * 255).round())
    assert bool((answers[:, 0] != answers[:, 1]).all())
    assert torch.equal(classifier().predict(images.flatten(0, 1)), answers.flatten())
    counts = torch.bincount(answers[:, 0], minlength=3)
    assert int(counts.max() - counts.min()) <= 2


def test_twins_differ_by_a_few_grey_levels() -> None:
    images, _ = sealed_answers(toy_seal(), KEY)
    apart = (images[:, 0] - images[:, 1]).abs().flatten(1).sum(dim=1) * 255
    assert 1 <= float(apart.min()) <= float(apart.max()) <= 100


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_other_ways_of_computing_raise_no_alarm(threads: int, batch: int) -> None:
    torch.set_num_threads(threads)
    try:
        check = check_seal(classifier(batch_size=batch), toy_seal(), KEY)
        double = copy.deepcopy(classifier().module).double()
        wide = CallableClassifier(lambda images: double(images.double()), input_shape=SHAPE, num_classes=3)
        assert check_seal(wide, toy_seal(), KEY).intact
    finally:
        torch.set_num_threads(1)
    assert check.intact


# --- tampering -------------------------------------------------------------------------------------------------------

TAMPERINGS: list[tuple[str, Tampering]] = [
    ("one step of SGD at 1e-5", FineTune(optimizer="sgd", steps=1, learning_rate=1e-5)),
    ("last layer", FineTune(layers="last", optimizer="sgd", learning_rate=1e-3)),
    ("poison", Poison(rate=0.1, optimizer="sgd", learning_rate=1e-3)),
    ("noise 1e-5", Noise(sigma=1e-5)),
    ("int16", Quantise(bits=16)),
    ("int8", Quantise(bits=8)),
    ("fp16", Quantise(number="fp16")),
    ("prune 1 %", Prune(share=0.01)),
]


@pytest.mark.parametrize("tampering", [entry for _, entry in TAMPERINGS], ids=[name for name, _ in TAMPERINGS])
def test_tampering_is_noticed_by_labels_alone(tampering: Tampering) -> None:
    module = tampering.apply(classifier().module, bands(96, 1), seed=1)
    suspect = labels_of(classifier(module))
    check = check_seal(suspect, toy_seal(), KEY)
    assert not check.intact
    assert check.p_value <= ALPHA
    assert 1 <= check.mismatches <= 2
    assert check.first_mismatch is not None
    assert check.first_mismatch <= check.queries == suspect.queries <= 12
    assert check.statement.startswith(f"Tampered: {check.mismatches} of {check.queries} answers differ")


def test_another_model_is_noticed() -> None:
    torch.manual_seed(3)
    assert not check_seal(linear(SHAPE), toy_seal(), KEY).intact


def test_a_check_asks_no_more_than_it_may() -> None:
    for most, asked in ((2, 2), (5, 4), (16, 16), (1000, 16)):
        model = classifier()
        check = check_seal(model, toy_seal(), KEY, max_queries=most)
        assert (check.queries, model.queries, check.planned) == (asked, asked, asked)
    with pytest.raises(RecipeError, match=r"at least 2 questions \(one pair\), got 1"):
        check_seal(classifier(), toy_seal(), KEY, max_queries=1)


def test_a_seal_that_was_asked_whole_by_others_is_called_spent() -> None:
    served = labels_of(classifier())
    spent = "Intact: all 16 answers are as sealed. The suspect has seen the whole seal now: make the next one with "
    assert check_seal(served, toy_seal(), KEY).statement == f"{spent}another --seed."
    assert check_seal(served, toy_seal(), KEY, max_queries=14).statement == "Intact: all 14 answers are as sealed."
    assert check_seal(classifier(), toy_seal(), KEY).statement == "Intact: all 16 answers are as sealed."


def test_the_order_is_fresh_unless_a_seed_fixes_it() -> None:
    images, _ = sealed_answers(toy_seal(), KEY)
    twins = {
        image.numpy().tobytes(): (pair, twin) for pair, both in enumerate(images) for twin, image in enumerate(both)
    }

    def asked(**options: Any) -> bytes:
        seen: list[Tensor] = []
        model = classifier()

        def answer(images: Tensor) -> Tensor:
            seen.append(images.clone())
            return model.predict(images)

        recorder = CallableClassifier(answer, input_shape=SHAPE, num_classes=3, access=Access.LABELS)
        check_seal(recorder, toy_seal(), KEY, **options)
        assert all(len(images) == 1 for images in seen)
        first, then = ([twins[image[0].numpy().tobytes()] for image in part] for part in (seen[:PAIRS], seen[PAIRS:]))
        assert {pair for pair, _ in first} == {pair for pair, _ in then} == set(range(PAIRS))
        assert {(pair, 1 - twin) for pair, twin in then} == set(first)
        assert len({twin for _, twin in first}) == 2
        return torch.cat(seen).numpy().tobytes()

    assert asked(seed=1) == asked(seed=1) != asked(seed=2)
    assert len({asked() for _ in range(4)}) == 4


# --- methods ---------------------------------------------------------------------------------------------------------


class Opposite(nn.Module):
    """Never answers as the given module does: the likeliest class is the one that was least likely."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = -self.module(images)
        return scores


QUICK: list[SealMethod] = [
    Boundary(ways=2, surplus=1.5),
    Boundary(ways=3),
    Variance(steps=5, channels=4),
    FineGrained(steps=5),
    Sensitive(steps=2),
    RandomImages(),
]


@pytest.mark.parametrize("method", QUICK, ids=lambda method: "-".join(str(part) for part in method.describe().values()))
def test_every_method_seals_and_notices_a_great_change(method: SealMethod) -> None:
    model = classifier()
    steps: list[tuple[int, int]] = []
    seal = make_seal(model, KEY, method=method, pairs=4, progress=lambda done, total: steps.append((done, total)))
    assert seal.record.method == method.describe()
    assert check_seal(model, seal, KEY).intact
    check = check_seal(classifier(Opposite(classifier().module)), seal, KEY)
    assert (check.intact, check.mismatches) == (False, check.queries)
    assert all(0 < done <= total for done, total in steps)


def test_methods_by_name() -> None:
    assert list(METHODS) == ["boundary", "variance", "ftg", "sensitive", "random"]
    assert make_seal(classifier(), KEY, method="random", pairs=2).record.method == {"method": "random"}
    with pytest.raises(RecipeError, match="unknown way of sealing 'wax'; known are boundary, variance, ftg"):
        make_seal(classifier(), KEY, method="wax")
    with pytest.raises(RecipeError, match="at least 1 pair of triggers, got 0"):
        make_seal(classifier(), KEY, pairs=0)


def test_the_same_seed_gives_the_same_triggers_and_another_fresh_ones() -> None:
    first, again, other = (
        make_seal(classifier(), KEY, method=Boundary(ways=2), pairs=2, seed=seed).record for seed in (1, 1, 2)
    )
    assert (first.triggers, first.commitments, first.seal_id) == (again.triggers, again.commitments, again.seal_id)
    assert not set(first.triggers) & set(other.triggers)
    assert first.seal_id != other.seal_id
    stranger = make_seal(classifier(), OTHER, method=Boundary(ways=2), pairs=2, seed=1).record
    assert not set(first.triggers) & set(stranger.triggers)


def test_a_seal_is_named_by_all_that_its_triggers_depend_on() -> None:
    """Two seals of one name would share their secrets: places, orders and commitments."""
    torch.set_num_threads(1)
    noise = [torch.rand(12, *SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    scaled = Preprocessing(scale=2.0)

    def sealed(model: TorchClassifier | None = None, **options: Any) -> SealRecord:
        return make_seal(model or classifier(), KEY, method="random", pairs=4, **options).record

    with patch("torch.compile", lambda module: module):
        records = [
            sealed(),
            sealed(data=noise[0]),
            sealed(data=noise[1]),
            sealed(data=noise[0].flip(0)),
            sealed(compiled=True),
            sealed(classifier(preprocessing=scaled)),
            sealed(classifier(outputs="probabilities")),
            sealed(allow=["fp16"]),
            sealed(seed=1),
        ]
    assert len({record.seal_id for record in records}) == len(records)
    again = sealed(data=noise[0].clone())
    assert (again.seal_id, again.triggers, again.commitments) == (
        records[1].seal_id,
        records[1].triggers,
        records[1].commitments,
    )


def test_seals_named_by_fewer_facts_are_still_checked() -> None:
    """Files from before keep the identity they have: nothing is reckoned from the model again."""
    facts = {"digest": weights_digest(classifier().module), "method": "random", "pairs": 4, "allow": [], "seed": 0}
    older = seal_identity(KEY, facts)
    with patch("intaglio.seal.making.seal_identity", lambda key, named: older):
        seal = make_seal(classifier(), KEY, method="random", pairs=4)
    assert seal.record.seal_id == older != make_seal(classifier(), KEY, method="random", pairs=4).record.seal_id
    assert check_seal(classifier(), seal, KEY).intact


def test_triggers_can_start_from_the_owners_images() -> None:
    data = bands(30, 5)
    seal = make_seal(classifier(), KEY, method=Boundary(ways=2), data=data, pairs=4)
    images, _ = sealed_answers(seal, KEY)
    assert float(images.mean()) == pytest.approx(float(data.images.mean()), abs=0.1)  # noise has a mean of 0.5
    assert check_seal(classifier(), seal, KEY).intact
    with pytest.raises(DataError, match="images are"):
        make_seal(classifier(), KEY, data=torch.rand(3, 1, 5, 5))
    with pytest.raises(DataError, match="expected"):
        make_seal(classifier(), KEY, data=torch.rand(3, 1, 12, 12) * 2)


def test_allowed_variants_raise_no_alarm() -> None:
    model = classifier()
    strict, lenient = (
        make_seal(model, KEY, method=Boundary(ways=2), pairs=6, allow=allow) for allow in ((), ("fp16", "int8"))
    )
    assert lenient.record.allowed == ("fp16", "int8")
    assert lenient.record.noise.eta > 100 * strict.record.noise.eta
    for variant in (Quantise(number="fp16"), Quantise(bits=8), Quantise(bits=8, scale="channel")):
        shipped = classifier(variant.apply(model.module))
        assert not check_seal(shipped, strict, KEY).intact
        check = check_seal(shipped, lenient, KEY)
        assert check.intact
        assert check.statement == "Intact: all 12 answers are as sealed; fp16, int8 allowed."
    assert not check_seal(classifier(Quantise(bits=2).apply(model.module)), lenient, KEY).intact


def test_two_classes_and_colours() -> None:
    for shape, classes in (((3, 8, 8), 2), ((2, 1, 6, 6), 3)):
        model = linear(shape, classes)
        seal = make_seal(model, KEY, method=Boundary(ways=2), pairs=2)
        assert seal.record.input_shape == shape
        assert check_seal(model, seal, KEY).intact


def test_weights_that_are_no_parameters_are_sealed_too() -> None:
    class Frozen(nn.Module):
        weight: Tensor

        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.register_buffer("weight", weight)

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1) @ self.weight

    weight = torch.randn(144, 3, generator=torch.Generator().manual_seed(0))
    seal = make_seal(classifier(Frozen(weight)), KEY, method=Boundary(ways=2), pairs=2)
    assert check_seal(classifier(Frozen(weight)), seal, KEY).intact
    assert not check_seal(classifier(Frozen(weight * torch.linspace(1, 1.001, 144)[:, None])), seal, KEY).intact


# --- without gradients -----------------------------------------------------------------------------------------------


def test_a_file_of_scores_is_sealed_by_asking(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(classifier().module, path, input_shape=SHAPE)
    model = OnnxClassifier(path)
    seal = make_seal(model, KEY, pairs=3, data=bands(30, 5))
    assert seal.record.digest == seal.record.model_sha256 == model.sha256
    assert check_seal(model, seal, KEY).intact
    assert check_seal(classifier(), seal, KEY).intact
    assert not check_seal(classifier(Noise(sigma=1e-3).apply(classifier().module)), seal, KEY).intact


def test_what_cannot_be_sealed() -> None:
    model = classifier()
    nameless = CallableClassifier(model.scores, input_shape=SHAPE, num_classes=3, outputs="logits")
    with pytest.raises(ClassifierError, match="can't be named in a seal, for neither its weights nor its file"):
        make_seal(nameless, KEY)
    with pytest.raises(ClassifierError, match="needs SCORES access"):
        make_seal(labels_of(model), KEY)
    with pytest.raises(ClassifierError, match="needs GRADIENTS access"):
        make_seal(nameless, KEY, method="ftg")
    one_sided = linear()
    with torch.no_grad():
        one_sided.module.bias.add_(torch.tensor([1e6, 0.0, 0.0]))  # type: ignore[operator]
    with pytest.raises(ClassifierError, match="no images were found at which its classes tie"):
        make_seal(one_sided, KEY, pairs=2)
    known = CallableClassifier(
        lambda images: torch.tensor([[5.0, 1.0, 1.0]]).expand(len(images), -1), input_shape=SHAPE, num_classes=3,
        sha256="ab" * 32, outputs="logits",
    )  # fmt: skip
    with pytest.raises(ClassifierError, match=r"every image to start from is answered alike: .*--data"):
        make_seal(known, KEY)
    tie = CallableClassifier(
        lambda images: torch.zeros(len(images), 3), input_shape=SHAPE, num_classes=3, sha256="ab" * 32, outputs="logits"
    )
    with pytest.raises(ClassifierError, match="none of the triggers is answered alike"):
        make_seal(tie, KEY, method="random")


# --- what a seal gives away, and to whom -----------------------------------------------------------------------------


def test_a_seal_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "m.seal"
    toy_seal().write(path)
    seal = Seal.read(path)
    assert path.stat().st_mode & 0o077 == 0
    assert seal == toy_seal()
    assert check_seal(classifier(), seal, KEY).intact
    assert SealRecord.from_json(seal.record.to_json()) == seal.record


def test_a_wrong_key_opens_nothing() -> None:
    with pytest.raises(EvidenceError, match=r"the seal is of key .*: a seal is checked with the key that made it"):
        check_seal(classifier(), toy_seal(), OTHER)
    with pytest.raises(EvidenceError, match="the seal is of key"):
        sealed_answers(toy_seal(), OTHER)


def edited(change: Callable[[dict[str, Any]], None]) -> Seal:
    """The seal with a changed record, under the old signature."""
    import base64

    envelope = toy_seal().envelope
    statement = json.loads(base64.b64decode(envelope.payload))
    change(statement)
    payload = base64.b64encode(json.dumps(statement, sort_keys=True, separators=(",", ":")).encode()).decode()
    return Seal(envelope=envelope.model_copy(update={"payload": payload}))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: s["predicate"]["commitments"].reverse(), "was changed"),
        (lambda s: s["predicate"]["triggers"].__setitem__(0, s["predicate"]["triggers"][1]), "was changed"),
        (lambda s: s["predicate"].__setitem__("digest", "0" * 64), "was changed"),
        (lambda s: s["predicate"]["noise"].__setitem__("flip_bound", 1.0), "was changed"),
        (lambda s: s["predicate"]["commitments"].pop(), "16 triggers with 15 commitments"),
        (lambda s: s["predicate"].pop("noise"), "not a seal: noise"),
        (lambda s: s.__setitem__("predicateType", "https://x/y"), "not a seal, but a statement of type"),
    ],
)
def test_edited_seals_are_refused(change: Callable[[dict[str, Any]], None], problem: str, tmp_path: Path) -> None:
    seal = edited(change)
    with pytest.raises(EvidenceError, match=problem):
        check_seal(classifier(), seal, KEY)
    if "changed" not in problem:
        seal.write(tmp_path / "s")
        with pytest.raises(EvidenceError, match=problem):
            Seal.read(tmp_path / "s")


def test_a_seal_signed_about_another_model_is_refused() -> None:
    from intaglio.evidence.envelope import sign_statement
    from intaglio.seal.sealed import SEAL_TYPE

    record = toy_seal().record
    envelope = sign_statement(KEY, {"model": "0" * 64}, SEAL_TYPE, record.to_dict())
    with pytest.raises(EvidenceError, match="about another model than the seal itself"):
        check_seal(classifier(), Seal(envelope=envelope), KEY)
    made_up = record.model_copy(update={"commitments": ("0" * 64,) * 16})
    with pytest.raises(EvidenceError, match="does not open to any class"):
        check_seal(classifier(), Seal.sign(KEY, made_up), KEY)


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b'{"payload": 1}'])
def test_files_that_are_no_seals(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(content)
    with pytest.raises(EvidenceError, match=str(tmp_path / "s")):
        Seal.read(tmp_path / "s")
    with pytest.raises(EvidenceError, match="can't be read"):
        Seal.read(tmp_path / "absent")


def test_the_file_and_the_sealed_model_are_all_the_answers() -> None:
    """Why the file is kept from whoever serves the model: what docs/seal.md says that they could do with it."""
    record = toy_seal().record
    images = record.images(list(range(2 * PAIRS)))
    known = {
        image.numpy().tobytes(): int(label) for image, label in zip(images, classifier().predict(images), strict=True)
    }
    tampered = classifier(Noise(sigma=1e-3).apply(classifier().module))

    def answer(asked: Tensor) -> Tensor:
        own = tampered.predict(asked).tolist()
        return torch.tensor(
            [known.get(image.numpy().tobytes(), label) for image, label in zip(asked, own, strict=True)]
        )

    liar = CallableClassifier(answer, input_shape=SHAPE, num_classes=3, access=Access.LABELS)
    assert not check_seal(tampered, toy_seal(), KEY).intact
    assert check_seal(liar, toy_seal(), KEY).intact


def liar_by_twins(tampered: TorchClassifier) -> CallableClassifier:
    """Keeps what it was asked, and tells from the difference of twins' scores which of them was sealed as which.

    Tampering moves the scores of both alike, so the difference is as it was in the original: of the classes that
    are about as likely, the one that gains most from the first twin to the second is the second's.
    """
    asked: list[tuple[Tensor, Tensor]] = []

    def answer(images: Tensor) -> Tensor:
        asked.extend(zip(images, tampered.scores(images), strict=True))
        labels = []
        for image, own in asked[-len(images) :]:
            gain = [own - other for twin, other in asked if 0 < float((twin - image).abs().sum()) < 1]
            far = own < own.max() - 0.1
            labels.append(int((gain[0].masked_fill(far, -1.0) if gain else own).argmax()))
        return torch.tensor(labels)

    return CallableClassifier(answer, input_shape=SHAPE, num_classes=3, access=Access.LABELS)


def test_whoever_compares_twins_has_answered_one_of_each_before() -> None:
    """The differences are worth all answers; so no twin is asked before one of every pair was answered alone."""
    tampered = classifier()
    with torch.no_grad():
        tampered.module.get_parameter("fc.bias")[0] += 1e-3
    images, answers = sealed_answers(toy_seal(), KEY)
    knows = torch.stack([liar_by_twins(tampered).predict(pair) for pair in images])
    assert torch.equal(knows, answers)
    for seed in range(5):
        assert not check_seal(liar_by_twins(tampered), toy_seal(), KEY, seed=seed).intact
    assert check_seal(liar_by_twins(classifier()), toy_seal(), KEY).intact


def test_order_and_commitments_tell_no_answer() -> None:
    """A forger with the file and a tampered model guesses by the model, by the commitments, and by the order."""
    seal = make_seal(classifier(), KEY, pairs=24)
    record = seal.record
    images, answers = sealed_answers(seal, KEY)
    text = seal.envelope.to_bytes() + record.to_json().encode()
    assert KEY.derive("sign") not in text
    tampered = classifier(Noise(sigma=1e-3).apply(classifier().module, seed=2))
    by_model = float((tampered.predict(images.flatten(0, 1)) == answers.flatten()).float().mean())
    assert by_model < 0.75
    # Commitments are as good as random: equal answers share no commitment, bytes are spread evenly.
    assert len(set(record.commitments)) == len(record.commitments)
    bits = torch.tensor([[int(bit) for bit in f"{int(one, 16):0256b}"] for one in record.commitments]).float()
    assert abs(float(bits.mean()) - 0.5) < 0.03
    # The place in the file tells nothing: no half of it holds more of one pair's first answers than chance allows.
    places = [record.images([place])[0] for place in range(len(record.triggers))]
    firsts = {image.numpy().tobytes() for image in images[:, 0]}
    early = sum(image.numpy().tobytes() in firsts for image in places[: len(places) // 2])
    assert 4 <= early <= 20


# --- suspects that don't answer as they should -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suspect", "problem"),
    [
        (linear((1, 8, 8)), r"takes images \(1, 8, 8\), but the sealed model takes \(1, 12, 12\): this is another"),
        (linear(SHAPE, 4), "has 4 classes, but the sealed model has 3: this is another"),
    ],
)
def test_what_does_not_fit_is_an_error_and_no_verdict(suspect: Classifier, problem: str) -> None:
    with pytest.raises(ClassifierError, match=problem):
        check_seal(suspect, toy_seal(), KEY)


def rounded(digits: int, answers: Callable[[Tensor], Tensor]) -> CallableClassifier:
    return CallableClassifier(
        lambda images: answers(images).softmax(dim=1).round(decimals=digits), input_shape=SHAPE, num_classes=3,
        outputs="probabilities",
    )  # fmt: skip


def test_rounded_scores_that_tie_are_no_tampering() -> None:
    with pytest.raises(NothingToExamineError, match="16 of 16 answers are ties, for the scores are rounded: ask the"):
        check_seal(rounded(2, classifier().scores), toy_seal(), KEY)
    other = classifier(Linear(torch.randn(144, 3, generator=torch.Generator().manual_seed(1))))
    assert not check_seal(rounded(2, other.scores), toy_seal(), KEY).intact


def test_ties_around_a_mismatch_that_is_certain_hide_nothing() -> None:
    model, count = classifier(), [0]

    def answer(images: Tensor) -> Tensor:
        count[0] += 1
        scores = model.scores(images)
        return -scores if count[0] == 4 else torch.zeros_like(scores)

    suspect = CallableClassifier(answer, input_shape=SHAPE, num_classes=3, outputs="logits")
    check = check_seal(suspect, toy_seal(), KEY)
    assert (check.intact, check.mismatches, check.undecided, check.queries) == (False, 1, 3, 4)


def test_a_few_undecided_answers_are_left_out() -> None:
    model, count = classifier(), [0]

    def answer(images: Tensor) -> Tensor:
        count[0] += 1
        return model.scores(images).round(decimals=1) if count[0] <= 2 else model.scores(images)

    suspect = CallableClassifier(answer, input_shape=SHAPE, num_classes=3, outputs="logits")
    check = check_seal(suspect, toy_seal(), KEY)
    assert check.intact
    assert 1 <= check.undecided <= 4
    assert f"({check.undecided} undecided)" in check.statement


def test_one_mismatch_is_no_proof_where_noise_is_loud() -> None:
    record = toy_seal().record
    loud = record.model_copy(update={"noise": record.noise.model_copy(update={"flip_bound": 0.01})})
    seal = Seal.sign(KEY, loud)
    model, calls = classifier(), [0]

    def answer(images: Tensor) -> Tensor:
        calls[0] += 1
        labels = model.predict(images)
        return (labels + int(calls[0] == 3)) % 3

    suspect = CallableClassifier(answer, input_shape=SHAPE, num_classes=3, access=Access.LABELS)
    check = check_seal(suspect, seal, KEY)
    assert (check.intact, check.mismatches, check.queries, check.first_mismatch) == (True, 1, 16, 3)
    assert check.p_value == pytest.approx(1 - 0.99**16)
    assert check.statement.startswith("Not shown to be tampered: 1 of 16 answers differ")


# --- over the network ------------------------------------------------------------------------------------------------

#: No retries, for the servers here fail on purpose.
HASTY = Conduct(retries=0, connect_timeout=2, read_timeout=0.2, answer_timeout=2)


def remote() -> tuple[TorchClassifier, Seal]:
    model = linear((1, 4, 4))
    return model, make_seal(model, KEY, method=Boundary(ways=2), pairs=3)


def served(model: TorchClassifier, asked: Asked) -> Any:
    """An Open Inference Protocol server around a model."""
    if asked.method == "GET":
        return metadata()
    (tensor,) = asked.json["inputs"]
    scores = model.scores(torch.tensor(tensor["data"], dtype=torch.float32).reshape(tensor["shape"]))
    output = {"name": "scores", "datatype": "FP32", "shape": list(scores.shape), "data": scores.flatten().tolist()}
    return {"model_name": "m", "outputs": [output]}


def test_a_remote_model_is_checked() -> None:
    model, seal = remote()
    tampered = classifier_like(model, Noise(sigma=1e-3).apply(model.module))
    for answering, intact in ((model, True), (tampered, False)):
        with serving(lambda asked, answering=answering: served(answering, asked)) as server:  # type: ignore[misc]
            suspect = HttpClassifier(f"{server.url}/v2/models/m", conduct=HASTY)
            check = check_seal(suspect, seal, KEY)
        assert check.intact is intact
        assert check.suspect == suspect.source


def classifier_like(model: TorchClassifier, module: nn.Module) -> TorchClassifier:
    return TorchClassifier(module, input_shape=model.input_shape, num_classes=model.num_classes)


@pytest.mark.parametrize(
    ("failure", "problem"),
    [
        (Given({"error": "only PNG uploads here"}, 415), "only PNG uploads here|415"),
        (Given({"error": "down"}, 503), "503"),
        ({"outputs": [{"name": "scores", "datatype": "FP32", "shape": [2, 2], "data": [0] * 4}]}, "2 classes|2, 2"),
        (Given(b"<html>"), "not JSON"),
    ],
)  # fmt: skip
def test_a_network_failure_is_never_a_verdict(failure: Any, problem: str) -> None:
    model, seal = remote()

    def answer(asked: Asked) -> Any:
        return served(model, asked) if asked.method == "GET" else failure

    with serving(answer) as server:
        suspect = HttpClassifier(f"{server.url}/v2/models/m", conduct=HASTY)
        with pytest.raises(RemoteError, match=problem) as caught:
            check_seal(suspect, seal, KEY)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, IntaglioError)


@pytest.mark.parametrize("gives", ["labels", "scores"])
def test_the_best_few_classes_are_enough_to_check_by_their_first(gives: Literal["labels", "scores"]) -> None:
    """An API that names only its likeliest classes is checked by the first; as scores they are incomplete."""
    model, seal = remote()

    def api(asked: Asked) -> Any:
        scores = model.scores(torch.tensor([asked.json["x"]]))[0]
        best = scores.topk(2)
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return {"top": [{"class": label, "score": score} for label, score in pairs]} if gives == "labels" else {
            "top": {str(label): score for label, score in pairs}
        }  # fmt: skip

    answer = "top.0.class" if gives == "labels" else "top"
    names = ["0", "1", "2"] if gives == "scores" else None
    mapping = HttpMapping(
        request={"x": "{image}"}, encoding="floats", answer=answer, gives=gives, labels=names, conduct=HASTY
    )
    with serving(api) as server:
        suspect = HttpClassifier(
            server.url, mapping=mapping, input_shape=model.input_shape, num_classes=model.num_classes
        )
        if gives == "labels":
            assert check_seal(suspect, seal, KEY).intact
        else:
            with pytest.raises(RemoteError, match="answers with 2 classes, but 3 were expected") as caught:
                check_seal(suspect, seal, KEY)
            assert "\n" not in str(caught.value)
