"""`Tampering`: the frame of everything that a thief or a vandal does to a model's weights."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast, final

import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn.utils import parametrize

from intaglio.classifiers import Preprocessing
from intaglio.data import ImageData, check_images, check_labelled
from intaglio.errors import FORWARD_ERRORS, ClassifierError, DataError, ModelError
from intaglio.networks import Architecture
from intaglio.seeds import derive_seed

Data = ImageData | tuple[Tensor, Tensor]

_BATCH = 256


@dataclass(frozen=True)
class Material:
    """What a tampering works with beside the module: a seed, and, if the caller gave data, raw images with labels.

    `num_classes` is how many scores the module answers with (0 without data).
    """

    seed: int
    device: str
    data: tuple[Tensor, Tensor] | None = None
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    num_classes: int = 0

    @property
    def images(self) -> Tensor:
        """Raw images float32 `[N, C, H, W]`.

        Raises:
            DataError: there are none.
        """
        return self._given()[0]

    @property
    def labels(self) -> Tensor:
        """Labels int64 `[N]`.

        Raises:
            DataError: there are none.
        """
        return self._given()[1]

    def inputs(self, images: Tensor | None = None) -> Tensor:
        """The images (by default, all of them) as the module takes them."""
        images = self.images if images is None else images
        if self.preprocessing == Preprocessing():
            return images
        return torch.cat([self.preprocessing.apply(batch) for batch in torch.split(images, _BATCH)])

    def example(self) -> Tensor:
        """A few inputs, on the module's device."""
        return self.inputs(self.images[:4]).to(self.device)

    def _given(self) -> tuple[Tensor, Tensor]:
        if self.data is None:
            raise DataError("this works on images: give it data")
        return self.data


class Tampering(ABC):
    """A way of changing a model. Hyper-parameters go to `__init__`, by keyword; a subclass writes `run` alone.

    The result is an ordinary module in float32 and evaluation mode, which takes the inputs that the original takes.
    """

    name: ClassVar[str]
    #: Whether it works on images: `apply` then needs some, and refuses to go on without.
    needs_data: ClassVar[bool] = False
    #: Whether the images it is given must have labels.
    needs_labels: ClassVar[bool] = False

    @abstractmethod
    def run(self, module: nn.Module, material: Material) -> nn.Module:
        """The change itself, on a copy that may be altered.

        Random numbers come from `material.seed` or from torch's global generator, which is seeded.
        """

    @final
    def apply(
        self,
        module: nn.Module,
        data: Data | None = None,
        *,
        seed: int = 0,
        preprocessing: Preprocessing | None = None,
    ) -> nn.Module:
        """The changed module; the given one stays as it is. The same seed makes the same bytes.

        Args:
            data: images and labels, as the module takes them or, with `preprocessing`, raw: the module then takes
                preprocessed images.

        Raises:
            DataError: no data where some are needed, or data that the module can't take.
            ModelError: a module that this can't be done to.
            ClassifierError: weights or statistics that are not finite, before the change or after it.
        """
        if not isinstance(module, nn.Module):
            raise ModelError(f"{self.name} changes a torch.nn.Module, got a {type(module).__name__}")
        _require_finite(module, f"{self.name} needs finite weights, but the module has some that are not")
        try:
            copy = _with_plain_weights(deepcopy(module).float().eval())
        except (RuntimeError, TypeError, NotImplementedError) as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"{self.name} works on a copy, but this module can't be copied: {reason}") from error
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "tampering", self.name))
            result = self.run(copy, self._material(copy, data, seed, preprocessing or Preprocessing()))
        _require_finite(result, f"{self.name} made weights that are not finite")
        result.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return result.eval()

    def architecture(self, original: Architecture) -> Architecture:
        """What the result of tampering with a network of this architecture is: by default, the same."""
        return original

    def check_storable(self) -> None:
        """Refuses options whose effect no file of weights holds: by default, none.

        Raises:
            RecipeError: with the option.
        """
        return

    def describe(self) -> dict[str, Any]:
        """Name and hyper-parameters, as JSON can hold them; tensors, modules and functions as their kind."""
        return {"tampering": self.name, **{name: _plain(value) for name, value in vars(self).items()}}

    def _material(self, module: nn.Module, data: Data | None, seed: int, preprocessing: Preprocessing) -> Material:
        material = Material(seed, str(_weights(module)[0].device), preprocessing=preprocessing)
        if data is None:
            if self.needs_data:
                raise DataError(f"{self.name} works on images: give it data")
            return material
        return with_data(material, module, data, self.name, labelled=self.needs_labels)


def with_data(material: Material, module: nn.Module, data: Data, what: str, *, labelled: bool) -> Material:
    """The material with these data, which the module takes; `what` stands in messages.

    Raises:
        DataError: not images and labels, or not such that the module can take them.
        ModelError: the module doesn't answer with scores.
    """
    images, labels = checked_data(data, what, raw=material.preprocessing != Preprocessing())
    if labelled:
        check_labelled(labels, what, "this tampering")
    material = replace(material, data=(images, labels))
    classes = _class_count(module, material.example(), what)
    if int(labels.max()) >= classes:
        raise DataError(f"{what}: labels go up to {int(labels.max())}, but the model has {classes} classes")
    return replace(material, num_classes=classes)


def checked_data(data: Data, what: str, *, raw: bool = False) -> tuple[Tensor, Tensor]:
    """Images float32 `[N, ...]` and labels int64 `[N]` of what a caller gave.

    Raises:
        DataError: not such a pair, empty, not finite, or, if they are `raw` images, not in [0, 1].
    """
    try:
        images, labels = data
    except (TypeError, ValueError) as error:
        raise DataError(f"{what}: expected a pair of images and labels, got {type(data).__name__}") from error
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        kinds = f"{type(images).__name__} and {type(labels).__name__}"
        raise DataError(f"{what}: expected a pair of tensors, images and labels, got {kinds}")
    if images.dtype != torch.float32 or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise DataError(
            f"{what}: expected float32 images [N, ...] and int64 labels [N], got {images.dtype} {list(images.shape)} "
            f"and {labels.dtype} {list(labels.shape)}"
        )
    if len(images) == 0:
        raise DataError(f"{what}: there are no images in the data")
    if not bool(torch.isfinite(images).all()):
        raise DataError(f"{what}: the images hold values that are not finite")
    if raw:
        check_images(images, what)
    return images, labels


def weights_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Matrices and kernels, by name: parameters of two or more dimensions, hence no biases, no batch normalisation."""
    for name, parameter in module.named_parameters():
        if parameter.ndim >= 2:
            yield name, parameter


def _with_plain_weights(module: nn.Module) -> nn.Module:
    """Takes parametrisations (weight normalisation, say) out in place: else what is changed is computed anew."""
    for part in list(module.modules()):
        if parametrize.is_parametrized(part):
            for name in list(part.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(part, name, leave_parametrized=True)
    return module


def _class_count(module: nn.Module, example: Tensor, what: str) -> int:
    try:
        with torch.no_grad():
            answer = module(example)
    except FORWARD_ERRORS as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{what}: the model can't take images {list(example.shape[1:])}: {reason}") from error
    if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != len(example):
        found = list(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise ModelError(f"{what}: expected scores [{len(example)}, classes] from the model, got {found}")
    return answer.shape[1]


def _weights(module: nn.Module) -> list[nn.Parameter]:
    tensors = [parameter for parameter in module.parameters() if parameter.is_floating_point()]
    if not tensors:
        raise ModelError("the module has no weights to tamper with")
    return tensors


def _require_finite(module: nn.Module, message: str) -> None:
    """Looks at what a file of the module would hold: parameters, and buffers such as running statistics."""
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ClassifierError(f"{message}: {name}")


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_defaults=True)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, tuple):
        return [_plain(cast(Any, entry)) for entry in value]
    if isinstance(value, Tensor):
        return f"tensor {list(value.shape)}"
    describe = getattr(value, "describe", None)
    return describe() if callable(describe) else getattr(value, "__name__", type(value).__name__)
