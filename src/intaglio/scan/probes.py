"""Which images a model is probed on: base images to change pixels of, and trial images to try whole triggers on."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from intaglio.classifiers import Classifier
from intaglio.data import ImageData, classes_in_turn, evenly_spaced
from intaglio.scan.places import frames_of
from intaglio.seeds import torch_generator

BASES = 8
TRIALS = 40
#: Of a user's clean images no more than so many are classified to choose probes among.
CONSIDERED = 1024


@dataclass(frozen=True)
class Probes:
    """Base images `[B, (T,) C, H, W]` and trials `[M, (T,) C, H, W]`, none in both, and the trials' labels if known."""

    bases: Tensor
    trials: Tensor
    labels: Tensor | None = None


def synthetic_probes(input_shape: tuple[int, ...]) -> Probes:
    """Random clouds: smooth fields of random scale, contrast and brightness, always the same ones for one shape.

    A clip goes evenly from one cloud to another.
    """
    generator = torch_generator(0, "probes", "clouds")
    frames = frames_of(input_shape)
    images = _clouds(input_shape[-3:], (BASES + TRIALS) * (2 if frames else 1), generator)
    if frames:
        along = torch.linspace(0, 1, frames).tolist()
        images = torch.stack([torch.lerp(images[::2], images[1::2], place) for place in along], dim=1)
    return Probes(images[:BASES], images[BASES:])


def _clouds(image_shape: tuple[int, ...], count: int, generator: torch.Generator) -> Tensor:
    channels, height, width = image_shape
    clouds = []
    for _ in range(count):
        cells = int(torch.randint(3, 9, (), generator=generator))
        coarse = torch.rand(1, channels, cells, cells, generator=generator)
        contrast, brightness = torch.rand(2, generator=generator)
        smooth = interpolate(coarse, (height, width), mode="bicubic")[0]
        clouds.append(((smooth - 0.5) * (1 + 2 * contrast) + brightness).clamp(0, 1))
    return torch.stack(clouds)


def labelled_probes(data: ImageData) -> Probes:
    """The first images of each class in turn."""
    return _take(data.images, data.labels, known=True)


def predicted_probes(classifier: Classifier, images: Tensor) -> Probes:
    """The first images of each predicted class in turn: for images whose labels are not known."""
    # Evenly spaced: data sets are often sorted by class.
    considered = images[evenly_spaced(len(images), CONSIDERED)]
    return _take(considered, classifier.predict(considered))


def _take(images: Tensor, labels: Tensor, *, known: bool = False) -> Probes:
    """Goes round the classes, taking the next image of each; with few images, trials repeat the bases."""
    chosen = classes_in_turn(labels)[: BASES + TRIALS]
    bases, trials = chosen[:BASES], chosen[BASES:]
    trials = trials if len(trials) else bases
    return Probes(images[bases], images[trials], labels[trials] if known else None)
