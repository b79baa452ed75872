"""Distillation, or extraction: another network learns to answer as the victim does, without any true label."""

from collections.abc import Callable
from copy import deepcopy
from typing import ClassVar, Literal, Unpack, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, nll_loss

from intaglio.classifiers.outputs import to_log_probs
from intaglio.errors import FORWARD_ERRORS, ModelError, RecipeError
from intaglio.networks import NETWORKS, VIDEO_NETWORKS, Architecture
from intaglio.tampering.retraining import Retraining, learn, output_kind, training_settings
from intaglio.tampering.tampering import Material, Tampering

Answers = Literal["soft", "hard"]
Student = str | Architecture | Callable[[], nn.Module] | None

_BATCH = 256


class Distil(Tampering):
    """Trains a student from scratch on the victim's answers to the given images; their labels are not looked at.

    Soft answers: L = T^2 KL(softmax(t / T) || softmax(s / T)), with t and s the teacher's and student's logits, or
    log-probabilities where they answer with those. Hard: cross-entropy with the victim's labels alone. Each image is
    asked once, before any augmentation.

    Args:
        answers: what the victim gives away: soft (scores) or hard (labels).
        temperature: T of soft answers, above 0.
        student: the student's architecture: a name, an `Architecture`, or a function that makes a module; by default
            the victim's own, with its weights drawn anew.
        width: of a student given by name (default: the network's own).

    Raises:
        RecipeError: a value outside its range.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"; Tramer et al. 2016, "Stealing Machine
    Learning Models via Prediction APIs".
    """

    name = "distil"
    needs_data = True
    training_defaults: ClassVar[Retraining] = {"epochs": 10, "learning_rate": 2e-3}

    def __init__(
        self,
        *,
        answers: Answers = "soft",
        temperature: float = 1.0,
        student: Student = None,
        width: int | None = None,
        **training: Unpack[Retraining],
    ) -> None:
        if answers not in get_args(Answers):
            raise RecipeError(f"unknown answers '{answers}'; known are {', '.join(get_args(Answers))}")
        if not 0 < temperature < float("inf"):
            raise RecipeError(f"the temperature is above 0 and finite, got {temperature}")
        if isinstance(student, str) and student not in NETWORKS | VIDEO_NETWORKS:
            known = f"{', '.join(sorted(NETWORKS))}; for videos {', '.join(sorted(VIDEO_NETWORKS))}"
            raise RecipeError(f"unknown student '{student}'; known architectures are {known}")
        if width is not None and (not isinstance(student, str) or width < 1):
            raise RecipeError(f"a width of 1 or more goes with the name of a student's architecture, got {width}")
        self.answers = answers
        self.temperature = temperature
        self.student = student
        self.width = width
        self.training = training_settings(self.training_defaults, training)

    def architecture(self, original: Architecture) -> Architecture:
        if isinstance(self.student, Architecture):
            return self.student
        if isinstance(self.student, str):
            return original.model_copy(update={"name": self.student, "width": self.width})
        if self.student is None:
            return original
        raise ModelError("distil: a student made by a function has no architecture that a file could name")

    def run(self, module: nn.Module, material: Material) -> nn.Module:
        images, example = material.images, material.example()
        kind = output_kind(module, example)
        with torch.no_grad():
            answers = torch.cat(
                [module(material.inputs(batch).to(material.device)).cpu() for batch in torch.split(images, _BATCH)]
            )
        teacher = to_log_probs(answers, kind)
        student = self._student(module, example, teacher.shape[1]).to(material.device)
        student_kind = output_kind(student, example)

        def loss(student: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
            log_probs = to_log_probs(student(images), student_kind)
            if self.answers == "hard":
                return nll_loss(log_probs, targets)
            # Log-probabilities differ from logits by a constant for each image, which a softmax does not see.
            softened = (log_probs / self.temperature).log_softmax(1)
            wanted = (targets / self.temperature).log_softmax(1)
            return self.temperature**2 * kl_div(softened, wanted, reduction="batchmean", log_target=True)

        targets = teacher.argmax(1) if self.answers == "hard" else teacher
        learn(student, images, targets, self.training, material, loss, "distilling")
        if self.student is None:
            for parameter, own in zip(student.parameters(), module.parameters(), strict=True):
                parameter.requires_grad_(own.requires_grad)
        return student

    def _student(self, module: nn.Module, example: Tensor, classes: int) -> nn.Module:
        if self.student is None:
            return _drawn_anew(module)
        if isinstance(self.student, str):
            shape = tuple(example.shape[1:])
            return Architecture(name=self.student, input_shape=shape, num_classes=classes, width=self.width).build()
        student = self.student.build() if isinstance(self.student, Architecture) else deepcopy(self.student())
        try:
            with torch.no_grad():
                answer = student.eval()(example.to("cpu"))
        except FORWARD_ERRORS as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"distil: the student can't take the victim's inputs: {reason}") from error
        if answer.shape != (len(example), classes):
            raise ModelError(f"distil: the student answers {list(answer.shape)}, but the victim has {classes} classes")
        return student


def _drawn_anew(module: nn.Module) -> nn.Module:
    """The same network with its weights drawn again, by each layer's own rule."""
    fresh = deepcopy(module).requires_grad_(True)  # while it learns: frozen layers would stay as they were drawn
    for name, part in fresh.named_modules():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
        elif next(part.parameters(recurse=False), None) is not None:
            raise ModelError(
                f"distil: the weights of '{name or type(part).__name__}' can't be drawn anew; name a student's "
                "architecture, or give a function that makes one"
            )
    return fresh
