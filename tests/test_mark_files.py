"""Marked model files: what is written and what is not; and a copy behind a real server, proved by its labels alone."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

from classifier_models import onnx_linear
from intaglio.classifiers import (
    Access,
    CallableClassifier,
    Classifier,
    HttpClassifier,
    OnnxClassifier,
    Preprocessing,
    Sidecar,
    TorchClassifier,
    open_classifier,
    save_classifier,
)
from intaglio.data import ImageData
from intaglio.errors import (
    ClassifierError,
    DataError,
    EvidenceError,
    IntaglioError,
    ModelError,
    RecipeError,
    StorageError,
)
from intaglio.evidence.batches import draw_batch
from intaglio.evidence.commitment import read_commitment
from intaglio.evidence.proof import verify_bundle
from intaglio.evidence.reading import read_suspect
from intaglio.evidence.suspect import Suspect
from intaglio.evidence.transcript import sign_transcript
from intaglio.files import sha256_file
from intaglio.mark import mark_file as mark_file_module
from intaglio.mark import verify_mark
from intaglio.mark.mark_file import COMMITMENT, FIDELITY, MODEL, ONNX, mark_file
from intaglio.mark.proof import prove
from mark_models import ARCHITECTURE, CLASSES, DATA, OWNER, QUICK, SHAPE, TEST, classifier_of, host, known_network
from open_inference_server.serving import INSTALLED, WHY_SKIPPED, Served, open_inference_server
from scan_models import MODELS
from time_authority import Authority, needs_openssl, serving

HASTY: dict[str, Any] = {"epochs": 1, "batches": 1, "batch_size": 10}
DARK = Preprocessing(scale=0.9)


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The host as a file, with everything that a side-car can say."""
    with known_network():
        path = tmp_path_factory.mktemp("host") / "host.safetensors"
        names = tuple("abcdefghij")
        save_classifier(
            host(), path, Sidecar(architecture=ARCHITECTURE, task="rows", classes=names, preprocessing=DARK)
        )
        yield path


@pytest.fixture(scope="module")
def marked(hosted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that marking it writes."""
    out = tmp_path_factory.mktemp("marked") / "new" / "folder"
    written = mark_file(open_classifier(hosted), DATA, OWNER, out, test=TEST, batches=1, onnx=True, **QUICK)
    assert json.loads((out / FIDELITY).read_text()) == written.fidelity.to_dict()
    assert read_commitment(out / COMMITMENT) == written.commitment
    assert (written.fidelity.images, written.fidelity.triggers) == (len(TEST), 100)
    assert written.fidelity.prototype_shift == 0
    assert written.undone == ()
    assert written.unverified == ()
    return out


def test_a_commitment_is_never_overwritten(hosted: Path, marked: Path) -> None:
    before = (marked / COMMITMENT).read_bytes()
    with pytest.raises(StorageError, match="a commitment that is overwritten is lost"):
        mark_file(open_classifier(hosted), DATA, OWNER, marked, test=TEST, batches=1, **QUICK)
    assert (marked / COMMITMENT).read_bytes() == before


@pytest.mark.parametrize("name", [MODEL, "model.intaglio.json", ONNX])
def test_a_model_is_never_overwritten(name: str, hosted: Path, tmp_path: Path) -> None:
    """Whoever marks into the host's own folder keeps the host."""
    (tmp_path / name).write_text("the only one")
    worked: list[int] = []
    with pytest.raises(StorageError, match=f"{name} exists already, and a model that is overwritten is lost"):
        mark_file(
            open_classifier(hosted),
            DATA,
            OWNER,
            tmp_path,
            onnx=True,
            progress=lambda done, _: worked.append(done),
            **HASTY,
        )
    assert worked == []
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "the only one")]


def test_what_fails_after_the_training_takes_nothing_away(
    hosted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise ModelError("no such operator")

    monkeypatch.setattr(mark_file_module, "export_onnx", failing)
    out = tmp_path / "out"
    written = mark_file(open_classifier(hosted), DATA, OWNER, out, onnx=True, stamp_url="http://127.0.0.1:9/", **HASTY)
    assert {path.name for path in out.iterdir()} == {MODEL, COMMITMENT, FIDELITY, "model.intaglio.json"}
    assert written.commitment.time_stamp is None
    assert read_commitment(out / COMMITMENT) == written.commitment
    assert verify_mark(open_classifier(out / MODEL), out / COMMITMENT, OWNER).trials == 10
    exported, stamped = written.undone
    assert exported == "no ONNX copy was written: no such operator"
    assert f"which `intaglio evidence stamp {out / COMMITMENT} --authority URL` can still add: " in stamped
    assert "127.0.0.1:9" in stamped


def test_a_marked_file_opens_as_the_original_did(hosted: Path, marked: Path) -> None:
    assert {path.name for path in marked.iterdir()} == {MODEL, ONNX, COMMITMENT, FIDELITY, "model.intaglio.json"}
    copied, exported, original = (open_classifier(path) for path in (marked / MODEL, marked / ONNX, hosted))
    for one in (copied, exported):
        for name in ("input_shape", "num_classes", "classes", "task", "preprocessing", "outputs"):
            assert getattr(one, name) == getattr(original, name), name
    assert isinstance(exported, OnnxClassifier)
    torch.testing.assert_close(copied.scores(TEST.images), exported.scores(TEST.images), atol=1e-4, rtol=1e-4)
    assert copied.sha256 == read_commitment(marked / COMMITMENT).commitment.model_sha256 == sha256_file(marked / MODEL)


def classes_of(suspect: Classifier) -> CallableClassifier:
    """The same, without scores."""
    return CallableClassifier(suspect.predict, input_shape=SHAPE, num_classes=CLASSES, access=Access.LABELS)


def test_both_files_are_proved_copies(hosted: Path, marked: Path, tmp_path: Path) -> None:
    for name in (MODEL, ONNX):
        suspect = open_classifier(marked / name)
        found = verify_mark(suspect, marked / COMMITMENT, OWNER)
        assert found.verified
        assert found.suspect_sha256 == sha256_file(marked / name)
        named = verify_mark(classes_of(suspect), marked / COMMITMENT, OWNER)  # as fidelity counts
        assert named.hits == round(100 * json.loads((marked / FIDELITY).read_text())["trigger_accuracy"])
        prove(tmp_path / name, found, read_commitment(marked / COMMITMENT), OWNER, Suspect.of(suspect))
        assert verify_bundle(tmp_path / name, suspect=suspect).verified
    with pytest.raises(EvidenceError, match="the claim is about a model with SHA-256"):
        verify_bundle(tmp_path / MODEL, suspect=open_classifier(hosted))
    assert not verify_mark(open_classifier(hosted), marked / COMMITMENT, OWNER).verified


def from_onnx(_: Path) -> Any:
    return open_classifier(MODELS / "clean.onnx")


def unnamed(_: Path) -> TorchClassifier:
    return classifier_of(host())


def channels_last(_: Path) -> TorchClassifier:
    module = nn.Sequential(nn.Flatten(), nn.Linear(144, CLASSES))
    return classifier_of(module, preprocessing=Preprocessing(layout="NHWC"))


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (from_onnx, {}, ModelError, "opened as onnx can't be changed here"),
        (unnamed, {}, ModelError, "could not be opened again without the name of its architecture"),
        (unnamed, {"architecture": "lenet"}, ModelError, "suspect: for lenet, tensor '"),
        (unnamed, {"architecture": ARCHITECTURE.model_copy(update={"width": 23})}, ModelError, r"must be \[23"),
        (open_classifier, {"data": ImageData(torch.rand(9, 1, 9, 9), torch.arange(9))}, DataError, "images are"),
        (open_classifier, {"test": ImageData(torch.rand(9, 1, 9, 9), torch.arange(9))}, DataError, r"\(1, 9, 9\), but"),
        (open_classifier, {"mode": "x"}, RecipeError, "unknown mode 'x'"),
        (open_classifier, {"learning_rate": 1e30, "mode": "ftal"}, ClassifierError, "training diverged"),
    ],
)
def test_when_marking_fails_nothing_is_written(
    make: Callable[[Path], Any],
    options: dict[str, Any],
    error: type[IntaglioError],
    message: str,
    hosted: Path,
    tmp_path: Path,
) -> None:
    given: dict[str, Any] = {"data": DATA, "onnx": True} | HASTY | options
    with pytest.raises(error, match=message) as caught:
        mark_file(make(hosted), key=OWNER, out=tmp_path / "out", **given)
    assert "\n" not in str(caught.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_onnx_copy_that_cannot_be_made_is_refused_before_the_work(tmp_path: Path) -> None:
    worked: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mark_file_module, "check_fits", lambda *_: None)
        with pytest.raises(DataError, match="a model of layout NHWC can't be exported"):
            mark_file(
                channels_last(tmp_path),
                DATA,
                OWNER,
                tmp_path / "out",
                architecture=ARCHITECTURE,
                onnx=True,
                progress=lambda done, _: worked.append(done),
                **HASTY,
            )
    assert worked == []


@needs_openssl
def test_a_commitment_is_stamped_when_it_is_made(hosted: Path, tmp_path: Path) -> None:
    (tmp_path / "tsa").mkdir()
    authority = Authority(tmp_path / "tsa")
    with serving(authority) as server:
        written = mark_file(open_classifier(hosted), DATA, OWNER, tmp_path / "out", stamp_url=server.url, **HASTY)
    assert written.commitment.verify(authority.root.read_bytes()) is not None
    assert read_commitment(tmp_path / "out" / COMMITMENT) == written.commitment
    found = verify_mark(open_classifier(tmp_path / "out" / MODEL), tmp_path / "out" / COMMITMENT, OWNER)
    assert found.trials == 10


# --- a real server ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(marked: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serves the marked model by labels and by scores, and a stranger's of the same shape."""
    if not INSTALLED:
        pytest.skip(WHY_SKIPPED)
    folder = tmp_path_factory.mktemp("mlserver")
    stranger = folder / "stranger.onnx"
    weight = torch.randn(144, CLASSES, generator=torch.Generator().manual_seed(1))
    onnx.save(onnx_linear(("n", *SHAPE), CLASSES, weight), stranger)
    models = {
        "marked": Served(marked / ONNX, SHAPE, CLASSES, ("labels",)),
        "scores": Served(marked / ONNX, SHAPE, CLASSES),
        "stranger": Served(stranger, SHAPE, CLASSES, ("labels",)),
    }
    with open_inference_server(models, folder) as address:
        yield f"{address}/v2/models"


def remote(address: str) -> HttpClassifier:
    return HttpClassifier(address, num_classes=CLASSES, preprocessing=DARK)


def test_a_remote_copy_is_proved_by_its_scores(server: str, marked: Path, tmp_path: Path) -> None:
    suspect, commitment = remote(f"{server}/scores"), read_commitment(marked / COMMITMENT)
    assert suspect.access is Access.SCORES
    found = verify_mark(suspect, commitment, OWNER)
    assert (found.verified, found.queries) == (True, 100)
    transcript = sign_transcript(suspect.transcript.exchanges, OWNER)
    plan = commitment.commitment
    classes, centred = read_suspect(suspect, draw_batch(OWNER, plan, 0).images, plan.rule.statistic, CLASSES)
    assert centred.log_probs is not None
    assert found.answers in (tuple(classes.labels.tolist()), tuple(centred.labels.tolist()))
    by_scores = {"answers": tuple(centred.labels.tolist()), "log_probs": tuple(map(tuple, centred.log_probs.tolist()))}
    for name, claim in (("claim.json", found), ("scores.json", found.model_copy(update=by_scores))):
        prove(tmp_path / name, claim, commitment, OWNER, Suspect.of(suspect, transcript))
        proof = verify_bundle(tmp_path / name, suspect=remote(f"{server}/scores"))
        assert proof.asked_again is not None
        assert (proof.verified, proof.asked_again.hits) == (True, found.hits)
        assert "the answers are those in the transcript that the claimant signed" in proof.checked


def test_a_remote_copy_is_proved_by_its_labels(server: str, marked: Path, tmp_path: Path) -> None:
    suspect, commitment = remote(f"{server}/marked"), read_commitment(marked / COMMITMENT)
    assert suspect.access is Access.LABELS
    found = verify_mark(suspect, commitment, OWNER)
    assert found.verified
    assert (found.queries, suspect.images_sent) == (100, 100)
    assert (found.suspect_sha256, found.suspect_source) == (None, f"{server}/marked")
    assert found.answers == verify_mark(classes_of(open_classifier(marked / MODEL)), commitment, OWNER).answers

    transcript = sign_transcript(suspect.transcript.exchanges, OWNER)
    prove(tmp_path / "claim.json", found, commitment, OWNER, Suspect.of(suspect, transcript))
    proof = verify_bundle(tmp_path / "claim.json")
    assert proof.verified
    assert "the answers are those in the transcript that the claimant signed" in proof.checked
    again = verify_bundle(tmp_path / "claim.json", suspect=remote(f"{server}/marked"))
    assert again.asked_again is not None
    assert (again.verified, again.asked_again.differing, again.asked_again.queries) == (True, 0, 100)

    lied = found.model_copy(update={"answers": ((found.answers[0] + 1) % CLASSES, *found.answers[1:])})
    with pytest.raises(EvidenceError, match="1 of 100 answers are not those in the transcript"):
        prove(tmp_path / "lie.json", lied, commitment, OWNER, Suspect.of(suspect, transcript))
    assert [path.name for path in tmp_path.iterdir()] == ["claim.json"]


def test_scores_over_http_do_as_well(server: str, marked: Path) -> None:
    suspect = open_classifier(f"{server}/scores", preprocessing=DARK)
    assert suspect.access is Access.SCORES
    assert verify_mark(suspect, marked / COMMITMENT, OWNER).verified


def test_a_remote_stranger_is_no_copy(server: str, marked: Path) -> None:
    found = verify_mark(remote(f"{server}/stranger"), marked / COMMITMENT, OWNER)
    assert (found.verified, found.queries) == (False, 100)
    assert found.p_value > 1e-6
