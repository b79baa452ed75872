"""What each part of the detector is worth: signature variant, base image, number of values, and the steps beyond it.

    python -m benchmarks.ablation

Needs the `fashion-virus` population of `benchmarks.populations`. Writes results/ablation.json, with the AUROC over it
(all attempted backdoors) of

- one hand-made number, fitted to nothing: the largest 3x3-averaged peak of a class's map over the median of the
  classes' peaks, by variant and base, and by number of values;
- networks like the detector's, cross-validated on that population, on parts of its features: the paper's signature
  read literally (absolute change of the probability), the same maps as logits, and what composed triggers and refined
  windows add.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.detection import CLASSES
from benchmarks.populations import folder, measured
from benchmarks.results import interval, record
from intaglio.classifiers import open_classifier
from intaglio.data import open_data
from intaglio.evidence.statistics import auroc
from intaglio.files import atomic_path
from intaglio.populations import LocalExecutor, ModelRecord, model_folder
from intaglio.scan.composition import REFINED
from intaglio.scan.ensemble import Examples, assign_folds, fit_ensemble, out_of_fold
from intaglio.scan.features import FEATURES, MAP_FEATURES, map_features, smoothed
from intaglio.scan.signature import VARIANTS, BaseName, base_images, one_pixel_responses, pixel_values, signature_maps

CACHE = "ablation-v1.safetensors"
DATA_FREE: tuple[BaseName, ...] = ("black", "grey", "noise")
BASES = (*DATA_FREE, "mean")
FITTED = ("probability", "increase", "logit")
#: Of 16 evenly spaced levels, those kept.
LEVELS = {2: (0, 15), 4: (0, 5, 10, 15), 8: (0, 2, 4, 6, 9, 11, 13, 15), 16: tuple(range(16))}


class Job(NamedTuple):
    """One model of a population."""

    population: Path
    number: int


def peak_ratio(maps: Tensor) -> Tensor:
    """Largest peak of the smoothed maps `[K, H, W]` over the median of the classes' peaks."""
    peaks = smoothed(maps.clamp_min(0)).flatten(1).amax(dim=1)
    return peaks.max() / peaks.median().clamp_min(1e-12)


def measure_model(job: Job) -> None:
    """Writes a model's hand-made numbers and map features beside it."""
    out = model_folder(job.population, job.number)
    classifier = open_classifier(out / "model.safetensors")
    mean = open_data("fashion-mnist", "test").images.mean(dim=0)
    tensors = {}
    for base, image in zip(BASES, (*base_images((1, 28, 28), DATA_FREE), mean), strict=True):
        unaltered = classifier.log_probs(image[None])[0]
        levels = pixel_values(1, 16 if base == "grey" else 5)
        responses = one_pixel_responses(classifier, image, levels)
        kept = responses[[0, 4, 8, 12, 15]] if base == "grey" else responses
        for variant, maps in zip(VARIANTS, signature_maps(kept, unaltered), strict=True):
            tensors[f"ratio/{variant}/{base}"] = peak_ratio(maps)
            if variant in FITTED:
                tensors[f"features/{variant}/{base}"] = map_features(maps.clamp_min(0), unaltered)
        if base == "grey":
            for count, chosen in LEVELS.items():
                maps = signature_maps(responses[list(chosen)], unaltered, ("logit",))[0]
                tensors[f"levels/{count}"] = peak_ratio(maps)
    with atomic_path(out / CACHE) as temporary:
        save_file(tensors, temporary)


def measure(name: str, records: list[ModelRecord]) -> list[dict[str, Tensor]]:
    """Every model's numbers; what was measured before is read back."""
    jobs = [Job(folder(name), entry.index) for entry in records]
    missing = [job for job in jobs if not (model_folder(*job) / CACHE).exists()]
    for _ in LocalExecutor().map(measure_model, missing):
        pass
    return [load_file(model_folder(*job) / CACHE) for job in jobs]


def area(scores: Tensor, backdoored: Tensor) -> dict[str, float]:
    """AUROC with its interval."""
    return interval(auroc(scores[backdoored].tolist(), scores[~backdoored].tolist()))


def fitted(examples: Examples, classes: int | None = None) -> dict[str, float]:
    """Out-of-fold AUROC of networks fitted to these features; with `classes`, each is compared with clean models'."""
    folds = assign_folds(examples.backdoored, 8, 0)
    scores, _ = out_of_fold(fit_ensemble(examples, folds, seed=0, classes=classes), examples, folds)
    return area(scores, examples.backdoored)


def columns(examples: Examples, wanted: list[int]) -> Examples:
    """The examples with some of their features."""
    return replace(examples, features=examples.features[:, :, wanted])


def signature_alone(models: list[dict[str, Tensor]], known: Examples, variant: str) -> Examples:
    """The examples with the features of one signature variant on the black and the grey base, and no others."""
    keys = [f"features/{variant}/{base}" for base in ("black", "grey")]
    features = torch.stack([torch.cat([model[key] for key in keys], dim=1) for model in models])
    classes = torch.arange(features.shape[1]).expand(len(features), -1)
    return replace(known, features=features, classes=classes, target=torch.full_like(known.target, -1))


def main() -> None:
    torch.set_num_threads(1)
    virus = measured("fashion-virus")
    tested = measure("fashion-virus", virus.records)
    truth = virus.examples.backdoored

    def number(key: str) -> dict[str, float]:
        return area(torch.stack([model[key] for model in tested]), truth)

    figures: dict[str, Any] = {
        "hand-made number by variant and base": {
            f"{variant}, {base}": number(f"ratio/{variant}/{base}")
            for variant in VARIANTS
            if variant != "argmax"
            for base in BASES
        },
        "hand-made number by values (logit, grey)": {str(count): number(f"levels/{count}") for count in LEVELS},
    }
    networks: dict[str, Any] = {}
    for variant in FITTED:
        networks[f"one-pixel signature, {variant}, black and grey bases"] = fitted(
            signature_alone(tested, virus.examples, variant)
        )
    maps = [FEATURES.index(name) for name in MAP_FEATURES]
    refined = [index for index, name in enumerate(FEATURES) if name.startswith(REFINED)]
    composed = [index for index in range(len(FEATURES)) if index not in {*maps, *refined}]
    parts = {
        "one-pixel signature, logit, 8 images of the task as bases": maps,
        "and composed triggers": sorted(maps + composed),
        "and refined windows": list(range(len(FEATURES))),
    }
    for label, chosen in parts.items():
        networks[label] = fitted(columns(virus.examples, chosen))
    networks["and each class against clean models of the task (the detector)"] = fitted(virus.examples, CLASSES)
    figures["fitted networks"] = networks
    print(record("ablation", figures))


if __name__ == "__main__":
    main()
