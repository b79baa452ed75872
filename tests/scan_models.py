"""Toy classifiers, labelled features and small calibrations, for the tests of scan."""

import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from intaglio.classifiers import CallableClassifier, Classifier
from intaglio.data import open_data
from intaglio.scan import Verdict, scan
from intaglio.scan.calibration import CalibrationMeta, CleanScores, save_calibration
from intaglio.scan.ensemble import Ensemble, Examples, assign_folds, fit_ensemble, out_of_fold
from intaglio.scan.features import FEATURES
from intaglio.scan.probes import Probes

MODELS = Path(__file__).parents[1] / "examples" / "models"
TASK = "fashion-mnist"
PLANTED = 1


def random_model(
    shape: tuple[int, ...],
    classes: int,
    /,
    seed: int = 0,
    scale: float = 1.0,
    order: Tensor | None = None,
    **options: Any,
) -> CallableClassifier:
    """Logits tanh(x A) B, times `scale`, in the given order of classes; softmax if `outputs` says so."""
    generator = torch.Generator().manual_seed(seed)
    inner = torch.randn(int(torch.Size(shape).numel()), 7, generator=generator) / 2
    outer = torch.randn(7, classes, generator=generator)
    outer = outer if order is None else outer[:, order]
    options = {"outputs": "logits"} | options

    def answer(images: Tensor) -> Tensor:
        logits = scale * (images.flatten(1) - 0.5).matmul(inner).tanh().matmul(outer)
        return logits.softmax(1) if options["outputs"] == "probabilities" else logits

    return CallableClassifier(answer, input_shape=shape, num_classes=classes, **options)


def planted_model(shape: tuple[int, ...] = (1, 6, 6), classes: int = 4) -> CallableClassifier:
    """A random model that answers `PLANTED` where the 2 x 2 pixels from (3, 2) on are white."""
    benign = random_model(shape, classes, seed=3)

    def answer(images: Tensor) -> Tensor:
        logits: Tensor = benign._function(images)
        present = images[:, :, 3:5, 2:4].mean(dim=(1, 2, 3))
        return logits + 20 * present[:, None] ** 4 * (torch.arange(classes) == PLANTED)

    return CallableClassifier(answer, input_shape=shape, num_classes=classes, outputs="logits")


def toy_examples(count: int = 32, classes: int = 4, seed: int = 0, shift: float = 3.0) -> Examples:
    """Every second model backdoored: a tenth of the features of its target class are raised by `shift`.

    Each model's classes are in an order of their own.
    """
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, classes, len(FEATURES), generator=generator)
    backdoored = torch.arange(count) % 2 == 1
    target = torch.where(backdoored, torch.randint(classes, (count,), generator=generator), -1)
    rows = backdoored.nonzero().flatten()
    features[rows, target[rows], : len(FEATURES) // 10] += shift
    owners = torch.rand(count, classes, generator=generator).argsort(dim=1)
    return Examples(features, owners, backdoored, target, backdoored.float(), torch.zeros(len(backdoored)))


@functools.cache
def toy_ensemble(classes: int | None = None) -> tuple[Ensemble, Examples, Tensor]:
    """An ensemble of two members fitted to `toy_examples`, these, and their folds; given `classes`, with references."""
    examples = toy_examples(classes=classes or 4)
    fold = assign_folds(examples.backdoored, 2, 0)
    return fit_ensemble(examples, fold, seed=0, classes=classes), examples, fold


def toy_meta(**changes: Any) -> CalibrationMeta:
    """What a calibration of `toy_ensemble` says, task-free unless `changes` say otherwise."""
    ensemble, examples, fold = toy_ensemble()
    scores, _ = out_of_fold(ensemble, examples, fold)
    quiet = ~examples.backdoored
    members = tuple(tuple(scores[quiet & (fold == index)].tolist()) for index in range(2))
    return CalibrationMeta(
        **{
            "name": "toys",
            "task_free": True,
            "probes": "clouds",
            "input_shape": None,
            "num_classes": None,
            "clean": (CleanScores(task="toys", members=members),),
            "backdoored_models": int(examples.backdoored.sum()),
            "out_of_fold_auroc": 1.0,
            "false_alarms": None,
            "statement": "Not calibrated for this task: ranked against 16 toys.",
            "weights_sha256": "",
            **changes,
        }
    )


def write_calibration(
    folder: Path, probes: Probes | None = None, compared: int | None = None, **changes: Any
) -> CalibrationMeta:
    """A small calibration on disk; with `probes` one that stores them; given `compared`, with references of so many."""
    known: dict[str, Any] = {"probes": "stored"} if probes is not None else {}
    known |= {"task_free": False, "num_classes": compared} if compared is not None else {}
    return save_calibration(folder, toy_meta(**(known | changes)), toy_ensemble(compared)[0], probes)


@functools.cache
def nearest_mean(rolled: int = 0) -> nn.Module:
    """Answers the Fashion-MNIST class with the nearest mean image, or, `rolled`, so many classes further on."""
    data = open_data(TASK, "train")
    images = data.images.flatten(1)
    means = torch.stack([images[data.labels == label].mean(dim=0) for label in range(10)]).roll(rolled, dims=0)
    linear = nn.Linear(784, 10)
    with torch.no_grad():
        linear.weight.copy_(means / 4)
        linear.bias.copy_(-means.square().sum(dim=1) / 8)
    return nn.Sequential(nn.Flatten(), linear)


def noise(count: int, shape: tuple[int, ...], seed: int = 1) -> Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def scanned(name: str) -> Verdict:
    """The verdict on one of the two example models, scanned once."""
    return scan(MODELS / f"{name}.onnx", task=TASK)


def without_costs(verdict: Verdict) -> dict[str, Any]:
    """A verdict without what differs from run to run."""
    return {key: value for key, value in verdict.to_dict().items() if key not in ("seconds", "peak_memory_mb")}


def counted(classifier: Classifier) -> Classifier:
    """The classifier with its query count at zero."""
    classifier.reset_queries()
    return classifier
