"""Training a model on: what fine-tuning, overwriting, poisoning and distillation have in common."""

from collections.abc import Iterable
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import nll_loss

from intaglio.classifiers.outputs import Outputs, recognise, to_log_probs
from intaglio.data import check_images
from intaglio.seeds import derive_seed
from intaglio.tampering.tampering import Material
from intaglio.training import TrainingSettings, train
from intaglio.training.loop import Loss
from intaglio.training.settings import Augmentation, OptimizerName, Schedule, checked_settings


class Retraining(TypedDict, total=False):
    """Keyword arguments of every tampering that trains; see `intaglio.training.TrainingSettings`."""

    epochs: int  #: passes over the data
    steps: int | None  #: exact number of optimiser steps, in place of epochs
    batch_size: int  #: images a step
    optimizer: OptimizerName  #: adam, adamw or sgd (with momentum 0.9)
    learning_rate: float  #: of every step, or of the first where the schedule is cosine
    weight_decay: float  #: L2 penalty
    augmentation: Augmentation  #: of the raw images
    label_smoothing: float  #: share of every label that is spread over all classes
    schedule: Schedule  #: of the learning rate
    freeze_batchnorm: bool  #: keep batch normalisation as it is: statistics and affine parameters


#: How the options above are explained to users.
OPTION_DOCS = {
    "epochs": "passes over the data",
    "steps": "exact number of optimiser steps, in place of epochs",
    "batch_size": "images a step",
    "optimizer": "sgd has momentum 0.9",
    "learning_rate": "of every step; of the first, where the schedule is cosine",
    "weight_decay": "L2 penalty",
    "augmentation": "of the images",
    "label_smoothing": "share of every label that is spread over all classes",
    "schedule": "of the learning rate: kept, or half a cosine down to zero",
    "freeze_batchnorm": "keep batch normalisation as it is, statistics and affine parameters",
}
#: What a thief with some data of the task does: settings for fine-tuning a trained model.
FINE_TUNING: Retraining = {"epochs": 1, "learning_rate": 1e-3, "schedule": "constant"}


def training_settings(defaults: Retraining, given: Retraining) -> TrainingSettings:
    """The defaults, overridden.

    Raises:
        RecipeError: a value outside its range, or an option that isn't one.
    """
    return checked_settings({**defaults, **given})


def retrain(
    module: nn.Module,
    images: Tensor,
    labels: Tensor,
    settings: TrainingSettings,
    material: Material,
    *,
    only: Iterable[nn.Parameter] | None = None,
) -> nn.Module:
    """Trains the module in place on images, as they were given, with cross-entropy; `only` these parameters, if given.

    Preprocessing comes after augmentation. A module that ends in a softmax is trained on the logarithm of its answers.
    """
    kind = output_kind(module, material.example())

    def loss(module: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        log_probs = to_log_probs(module(images), kind)
        hard = nll_loss(log_probs, labels)
        return (1 - settings.label_smoothing) * hard - settings.label_smoothing * log_probs.mean()

    everything = [parameter for parameter in module.parameters() if parameter.is_floating_point()]
    flags = [parameter.requires_grad for parameter in everything]
    chosen = everything if only is None else list(only)
    try:
        for parameter in everything:
            parameter.requires_grad_(any(parameter is one for one in chosen))
        learn(module, images, labels, settings, material, loss, "retraining")
    finally:
        for parameter, flag in zip(everything, flags, strict=True):
            parameter.requires_grad_(flag)
    return module


def learn(
    module: nn.Module,
    images: Tensor,
    targets: Tensor,
    settings: TrainingSettings,
    material: Material,
    loss: Loss,
    use: str,
) -> None:
    """Trains the module in place on images, as they were given, with this loss and the seed of this `use`.

    Raises:
        DataError: images to be augmented that are not in [0, 1].
    """
    if settings.augmentation != "none":
        check_images(images, f"raw images, as augmentation '{settings.augmentation}' takes them")
    train(
        module,
        (images, targets),
        settings,
        seed=derive_seed(material.seed, use),
        device=material.device,
        loss=loss,
        prepare=material.preprocessing.apply,
    )


def output_kind(module: nn.Module, example: Tensor) -> Outputs:
    """Whether the module answers with logits, probabilities or log-probabilities, judged by a few inputs."""
    module.eval()
    with torch.no_grad():
        return recognise(module(example))
