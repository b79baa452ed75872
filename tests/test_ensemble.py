"""The network that reads signatures, and its cross-fitted ensembles."""

import hashlib
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from intaglio.errors import DataError
from intaglio.evidence.statistics import auroc
from intaglio.scan.ensemble import Ensemble, assign_folds, concatenate, fit_ensemble, out_of_fold
from intaglio.scan.features import FEATURES
from intaglio.scan.signature_network import SignatureNetwork
from scan_models import toy_ensemble, toy_examples

WIDTH = len(FEATURES)


def network(seed: int = 0) -> SignatureNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SignatureNetwork(WIDTH).eval()


def features(count: int, classes: int, seed: int = 0) -> Tensor:
    return torch.randn(count, classes, WIDTH, generator=torch.Generator().manual_seed(seed))


def digest(ensemble: Ensemble) -> str:
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in ensemble.state_dict().values())).hexdigest()


# --- one network -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3, 10, 16])
def test_order_of_classes_does_not_matter(classes: int) -> None:
    examples = features(5, classes)
    order = torch.randperm(classes, generator=torch.Generator().manual_seed(classes))
    with torch.no_grad():
        score, suspicion = network()(examples)
        permuted_score, permuted_suspicion = network()(examples[:, order])
    assert score.shape == (5,)
    assert suspicion.shape == (5, classes)
    torch.testing.assert_close(permuted_score, score)
    torch.testing.assert_close(permuted_suspicion, suspicion[:, order])


def test_repeating_every_class_leaves_the_score_alike() -> None:
    examples = features(4, 3)
    with torch.no_grad():
        torch.testing.assert_close(network()(examples.repeat(1, 5, 1))[0], network()(examples)[0])


def test_models_do_not_influence_one_another() -> None:
    examples = features(6, 4)
    with torch.no_grad():
        together = network()(examples)[0]
        alone = torch.cat([network()(example[None])[0] for example in examples])
    torch.testing.assert_close(together, alone)


def test_features_are_standardised_and_clamped() -> None:
    net, examples = network(), 7 + 3 * features(50, 4)
    examples[:, :, 0] = 5.0  # a feature that never differs
    net.standardise(examples)
    flat = examples.flatten(0, 1)
    torch.testing.assert_close(net.mean, flat.mean(0))
    torch.testing.assert_close(net.std[1:], flat.std(0)[1:])
    assert float(net.std[0]) == pytest.approx(1e-3)
    near, far = (net.mean + factor * net.std for factor in (net.LIMIT, 1000.0))
    with torch.no_grad():
        torch.testing.assert_close(net(near.expand(1, 2, -1)), net(far.expand(1, 2, -1)))


# --- folds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clean", "backdoored", "folds"), [(8, 8, 8), (20, 9, 4), (3, 17, 3), (30, 40, 8)])
def test_folds_are_stratified_and_deterministic(clean: int, backdoored: int, folds: int) -> None:
    labels = torch.arange(clean + backdoored) >= clean
    fold = assign_folds(labels, folds, 7)
    assert torch.equal(fold, assign_folds(labels, folds, 7))
    for kind in (True, False):
        counts = torch.bincount(fold[labels == kind], minlength=folds)
        assert int(counts.max() - counts.min()) <= 1
        assert len(counts) == folds
        assert int(counts.sum()) == (backdoored if kind else clean)


def test_folds_follow_the_seed() -> None:
    labels = torch.arange(40) % 2 == 0
    assert not torch.equal(assign_folds(labels, 4, 0), assign_folds(labels, 4, 1))


@pytest.mark.parametrize(("clean", "backdoored", "what"), [(3, 10, "3 clean"), (10, 2, "2 backdoored"), (0, 9, "0 cl")])
def test_too_few_models_are_refused(clean: int, backdoored: int, what: str) -> None:
    with pytest.raises(DataError, match=rf"{what}.* models are too few to fit a detector; 4 are the least"):
        assign_folds(torch.arange(clean + backdoored) >= clean, 4, 0)


# --- ensembles -------------------------------------------------------------------------------------------------------


def test_an_ensemble_learns_what_separates() -> None:
    ensemble, _, _ = toy_ensemble()
    unseen = toy_examples(seed=9)
    with torch.no_grad():
        scores, suspicions = ensemble(unseen.features, unseen.classes)
    mean = scores.mean(1)
    assert scores.shape == (len(mean), 2)
    assert auroc(mean[unseen.backdoored].tolist(), mean[~unseen.backdoored].tolist()).value > 0.95
    hits = (suspicions.argmax(1) == unseen.target)[unseen.backdoored]
    assert float(hits.float().mean()) > 0.8


@pytest.mark.parametrize("compared", [None, 4])
def test_ensembles_do_not_depend_on_order_or_number_of_classes(compared: int | None) -> None:
    ensemble, examples, _ = toy_ensemble(compared)
    features, classes, order = examples.features, examples.classes, torch.tensor([3, 1, 0, 2])
    with torch.no_grad():
        scores, suspicions = ensemble(features, classes)
        permuted_scores, permuted_suspicions = ensemble(features[:, order], classes[:, order])
        torch.testing.assert_close(permuted_scores, scores)
        torch.testing.assert_close(permuted_suspicions, suspicions[:, order])
        torch.testing.assert_close(ensemble(features.repeat(1, 3, 1), classes.repeat(1, 3))[0], scores)
        misnamed, _ = ensemble(features, classes[:, order])
        assert torch.equal(misnamed, scores) == (compared is None)


@pytest.mark.parametrize("compared", [None, 4])
def test_out_of_fold_asks_only_the_member_that_never_saw_the_model(compared: int | None) -> None:
    ensemble, examples, fold = toy_ensemble(compared)
    scores, suspicions = out_of_fold(ensemble, examples, fold)
    with torch.no_grad():
        everyone = ensemble(examples.features, examples.classes)[0]
        torch.testing.assert_close(scores, everyone[torch.arange(len(fold)), fold])
        for index, member in enumerate(ensemble.members):
            expected = member(examples.features[fold == index], examples.classes[fold == index])[1]
            torch.testing.assert_close(suspicions[fold == index], expected)


@pytest.fixture(scope="module")
def small() -> tuple[Ensemble, Tensor]:
    examples = toy_examples(16, 3)
    fold = assign_folds(examples.backdoored, 2, 0)
    return fit_ensemble(examples, fold, seed=4, networks=1), fold


def test_same_seed_same_bytes(small: tuple[Ensemble, Tensor]) -> None:
    ensemble, fold = small
    torch.manual_seed(12345)  # what the caller did before is of no influence
    assert digest(fit_ensemble(toy_examples(16, 3), fold, seed=4, networks=1)) == digest(ensemble)
    assert digest(fit_ensemble(toy_examples(16, 3), fold, seed=5, networks=1)) != digest(ensemble)


def test_a_member_never_sees_its_fold(small: tuple[Ensemble, Tensor]) -> None:
    ensemble, fold = small
    examples = toy_examples(16, 3)
    altered = examples.features.clone()
    altered[fold == 0] += 5
    other = fit_ensemble(replace(examples, features=altered), fold, seed=4, networks=1)
    for name, tensor in ensemble.state_dict().items():
        same = torch.equal(tensor, other.state_dict()[name])
        assert same or name.startswith("members.1."), name
    assert digest(other) != digest(ensemble)


def test_backdoors_that_do_not_work_teach_nothing(small: tuple[Ensemble, Tensor]) -> None:
    _, fold = small
    examples = toy_examples(16, 3)
    asr = examples.asr.clone()
    asr[[1, 3]] = 0.4
    altered = examples.features.clone()
    altered[[1, 3]] = 9.0
    weak = replace(examples, asr=asr)
    first, second = (fit_ensemble(part, fold, seed=4, networks=1) for part in (weak, replace(weak, features=altered)))
    assert digest(first) == digest(second)


def test_backdoors_without_a_single_target_are_learned_from_all_the_same() -> None:
    examples = toy_examples(16, 3)
    fold = assign_folds(examples.backdoored, 2, 0)
    ensemble = fit_ensemble(replace(examples, target=torch.full((16,), -1)), fold, seed=4, networks=1)
    with torch.no_grad():
        scores = ensemble(examples.features, examples.classes)[0].mean(1)
    assert bool(torch.isfinite(scores).all())
    assert auroc(scores[examples.backdoored].tolist(), scores[~examples.backdoored].tolist()).value > 0.9


def test_populations_join() -> None:
    parts = [toy_examples(8, 3), toy_examples(6, 3, seed=1)]
    whole = concatenate(parts)
    for name in ("features", "classes", "backdoored", "target", "asr"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
    assert torch.equal(whole.take(torch.arange(14) < 8).classes, parts[0].classes)
    with pytest.raises(DataError, match="populations with 3 and 5 classes can't be fitted together"):
        concatenate([toy_examples(8, 3), toy_examples(8, 5)])
