"""`fidelity_report`: everything that marking changed in a model, measured on images it did not learn from."""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from intaglio.classifiers import Preprocessing
from intaglio.data import ImageData, classes_in_turn
from intaglio.mark.fidelity import (
    agreement,
    prototype_feature_loss,
    soft_prediction_loss,
    total_weight_loss,
)
from intaglio.mark.foreign import photos
from intaglio.mark.scheme import Host
from intaglio.results import Result, package_versions
from intaglio.seeds import torch_generator

#: Images in the picture of features, and images of foreign kinds.
SHOWN, FOREIGN = 300, 512
Point = tuple[float, float]


class FeaturePicture(Result):
    """The same images' features in host and marked model, on the two main axes of the host's."""

    labels: tuple[int, ...]
    host: tuple[Point, ...]
    marked: tuple[Point, ...]
    explained: float = Field(description="share of the host features' variance that the two axes show")


class FidelityReport(Result):
    """How faithful a marked model is to its host. Agreement: share of images that both give the same class."""

    scheme: str
    mode: str
    images: int
    triggers: int
    host_accuracy: float
    clean_accuracy: float
    trigger_accuracy: float
    twl: float = Field(description="total weight loss: sum of squared changes of all parameters")
    pfl: float = Field(description="prototype feature loss: mean squared distance of penultimate features")
    spl: float = Field(description="soft prediction loss: KL divergence from the host's softmax, nats")
    prototype_shift: float = Field(description="squared distance of the last layer's weights from the host's")
    agreement_clean: float
    agreement_corrupted: float
    agreement_out_of_distribution: float
    picture: FeaturePicture
    versions: dict[str, str]


def fidelity_report(
    host: nn.Module,
    marked: nn.Module,
    data: ImageData,
    triggers: ImageData,
    *,
    scheme: str,
    mode: str,
    preprocessing: Preprocessing | None = None,
    layer: str | None = None,
) -> FidelityReport:
    """Measures a marked model against its host.

    Args:
        data: labelled test images that neither learned from.
        triggers: all of the mark's.

    Raises:
        ModelError: there is no final linear layer.
    """
    preprocessing = preprocessing or Preprocessing()
    frame = Host.of(host, preprocessing, data.images, layer)
    host_logits, host_features = frame.answers(host, data.images)
    logits, features = frame.answers(marked, data.images)
    heads = [module.get_submodule(frame.head) for module in (host, marked)]
    with torch.no_grad():
        twl = total_weight_loss(marked.parameters(), host.parameters())
        shift = total_weight_loss(*(list(head.parameters()) for head in heads))

    def agrees(images: Tensor) -> float:
        return agreement(frame.answers(marked, images)[0], frame.answers(host, images)[0])

    return FidelityReport(
        scheme=scheme,
        mode=mode,
        images=len(data),
        triggers=len(triggers),
        host_accuracy=_accuracy(host_logits, data.labels),
        clean_accuracy=_accuracy(logits, data.labels),
        trigger_accuracy=_accuracy(frame.answers(marked, triggers.images)[0], triggers.labels),
        twl=float(twl),
        pfl=float(prototype_feature_loss(features, host_features)),
        spl=float(soft_prediction_loss(logits, host_logits)),
        prototype_shift=float(shift),
        agreement_clean=agreement(logits, host_logits),
        agreement_corrupted=agrees(corrupted(data.images)),
        agreement_out_of_distribution=agrees(photos(data.input_shape, FOREIGN, seed=1)),
        picture=_picture(host_features, features, data.labels),
        versions=package_versions(),
    )


def corrupted(images: Tensor) -> Tensor:
    """A third of the images each with Gaussian noise (0.1), blurred (3 x 3 mean), and at half their contrast."""
    noisy, blurred, faint = (images[start::3] for start in range(3))
    noise = 0.1 * torch.randn(noisy.shape, generator=torch_generator(0, "mark", "corruption"))
    smooth = avg_pool2d(blurred.flatten(0, -4), 3, 1, 1, count_include_pad=False).view_as(blurred)  # frame by frame
    return torch.cat([(noisy + noise).clamp(0, 1), smooth, 0.25 + faint / 2])


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())


def _picture(host_features: Tensor, features: Tensor, labels: Tensor) -> FeaturePicture:
    """Both on the first two principal axes of the host's features."""
    middle = host_features.mean(0)
    _, strengths, axes = torch.linalg.svd(host_features - middle, full_matrices=False)
    shown = classes_in_turn(labels)[:SHOWN]
    points = [
        tuple((round(float(x), 3), round(float(y), 3)) for x, y in _flat(part[shown], middle, axes))
        for part in (host_features, features)
    ]
    power = strengths.square()
    return FeaturePicture(
        labels=tuple(labels[shown].tolist()),
        host=points[0],
        marked=points[1],
        explained=float(power[:2].sum() / power.sum().clamp_min(1e-12)),
    )


def _flat(features: Tensor, middle: Tensor, axes: Tensor) -> Tensor:
    """`[n, 2]`; features of one dimension get a second coordinate of 0."""
    flat = (features - middle) @ axes[:2].T
    return torch.nn.functional.pad(flat, (0, 2 - flat.shape[1]))
