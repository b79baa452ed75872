"""Hugging Face image and video classifiers (ViT, VideoMAE, TimeSformer, ViViT, ...), from a local folder."""

import hashlib
import importlib
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from intaglio.classifiers.base import Options
from intaglio.classifiers.outputs import Outputs
from intaglio.classifiers.preprocessing import Preprocessing
from intaglio.classifiers.torch_classifier import TorchClassifier
from intaglio.errors import ModelError, UnsafeFileError
from intaglio.files import sha256_file

#: Those whose clips are `pixel_values` `[N, T, C, H, W]`; every other model type is asked as an image classifier.
VIDEO_TYPES = ("videomae", "timesformer", "vivit")

_CONFIG_LIMIT = 16 << 20
_SHOWN = 60
_CONFIG = "config.json"
_PROCESSOR = "preprocessor_config.json"
#: With the package peft, transformers would load these on top of weights that lie elsewhere.
_ADAPTER = "adapter_config.json"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")
#: Entries that would make transformers run code which came with the model, or fetch some.
_EXECUTABLE = ("auto_map", "custom_pipelines")
#: Of other weights than those that are checked and hashed here; transformers would even unpickle them.
_OTHER_WEIGHTS = "transformers_weights"

#: A configuration of a few bytes may claim any number of classes and layers, and each takes memory when it is built.
_LIMITS = {
    **dict.fromkeys(("num_labels", "id2label", "label2id"), 100_000),
    **dict.fromkeys(("num_hidden_layers", "depths"), 1_000),
}

#: What transformers answers to damaged files and to configurations that make no sense.
_REFUSALS = (
    OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, ImportError, ArithmeticError,
    SafetensorError,
)  # fmt: skip

#: Flags that change nothing in RGB images of the size that the model sees, or that are of frames and segmentations.
_HARMLESS = frozenset(
    {
        "do_resize", "do_center_crop", "do_convert_rgb", "do_pad", "do_thumbnail", "do_align_long_axis",
        "do_reduce_labels", "do_sample_frames",
    }
)  # fmt: skip
#: Entries of processors that cut images into patches by themselves.
_PATCHES = ("max_num_patches", "max_patches")
#: What processors do though their file doesn't say so, by how the name of their type, or of the model's, begins.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "efficientnet": {"include_top": True},
    "imagegpt": {"do_color_quantize": True},
    "mobilevit": {"do_flip_channel_order": True, "do_normalize": False},
    "siglip2": {"max_num_patches": 256},
    "vivit": {"rescale_factor": 1 / 127.5, "offset": True},
}


class HuggingFaceLogits(nn.Module):
    """The logits `[N, K]` alone out of a model's answer; weights are below `model`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=x).logits
        return logits


class _Processor(BaseModel):
    """What matters of `preprocessor_config.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    source: str = _PROCESSOR
    not_understood: tuple[str, ...] = ()
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    offset: bool = False
    rescale_offset: bool = False
    do_normalize: bool = True
    image_mean: float | tuple[float, ...] = 0.0
    image_std: float | tuple[float, ...] = 1.0
    include_top: bool = False
    do_flip_channel_order: bool = False
    size: int | dict[str, int | None] | None = None
    crop_size: int | dict[str, int | None] | None = None

    def preprocessing(self, resize: tuple[int, int] | None) -> Preprocessing:
        """`(255 factor x - offset - mean) / std` for raw x in [0, 1]; EfficientNet's top divides by std once more.

        Raises:
            ModelError: it does more than that, or with numbers that make no sense.
        """
        if self.not_understood:
            first = self.not_understood[0][:_SHOWN]
            raise ModelError(f"{self.source}: '{first}' isn't supported: give a preprocessing instead")
        scale = 255 * self.rescale_factor if self.do_rescale else 255.0
        if math.isclose(scale, 1.0, rel_tol=1e-6):
            scale = 1.0
        shift = 1.0 if (self.offset or self.rescale_offset) and self.do_rescale else 0.0
        means = _tuple(self.image_mean if self.do_normalize else 0.0)
        divisions = int(self.do_normalize) + int(self.include_top)
        stds = _tuple(self.image_std if divisions else 1.0)
        try:
            return Preprocessing(
                resize=resize,
                scale=scale,
                mean=tuple(value + shift for value in means),
                std=tuple(math.prod([value] * divisions) for value in stds),
                channel_order="bgr" if self.do_flip_channel_order else "rgb",
            )
        except ValidationError as error:
            raise ModelError(f"{self.source}: {_first_problem(error)}") from error

    def sides(self) -> tuple[int, int] | None:
        """Height and width of what the model sees."""
        for size in (self.crop_size, self.size):
            if isinstance(size, int):
                return size, size
            if size and (edge := size.get("shortest_edge")):
                return edge, edge
            if size and (height := size.get("height")) and (width := size.get("width")):
                return height, width
        return None


def _tuple(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)


def open_huggingface(
    folder: Path | str,
    *,
    input_shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
    preprocessing: Preprocessing | None = None,
    outputs: Outputs = "auto",
    device: str | torch.device | None = None,
    task: str | None = None,
    batch_size: int | None = None,
) -> TorchClassifier:
    """Opens a folder that `save_pretrained` wrote: `config.json`, `model.safetensors`, `preprocessor_config.json`.

    Nothing is fetched, no code that came with the model is run, and only safetensors are read. Mean, std and scale are
    the processor's, unless a `preprocessing` is given, which takes its place as a whole; raw inputs are `(C, H, W)`, or
    `(T, C, H, W)` for video, of the size that the model sees, or of any `input_shape`, which is then resized to it
    (without the crop that some processors make). Outputs are logits, unless said otherwise. Class names are the
    configuration's. The digest is `folder_digest`'s.

    Raises:
        UnsafeFileError: pickled weights, code that came with the model, or weights elsewhere.
        ModelError: no such folder, damaged, weights that are missing or of another shape, an adapter, a processor that
            does more than a preprocessing can, another shape or class count than the given one, too many classes or
            layers, or transformers is missing.
        ClassifierError: it opens, but doesn't answer as it says.
    """
    folder = Path(folder)
    settings = _read_json(folder / _CONFIG)
    if found := [key for key in _EXECUTABLE if settings.get(key)]:
        raise UnsafeFileError(f"{folder}: its configuration names code of its own ({found[0]}), which is never run")
    if settings.get(_OTHER_WEIGHTS) is not None:
        raise UnsafeFileError(f"{folder}: its configuration names other weights ({_OTHER_WEIGHTS}): remove the entry")
    if settings.get("quantization_config"):
        raise ModelError(f"{folder}: quantised weights are not supported; save the model without")
    if (folder / _ADAPTER).exists():
        raise ModelError(f"{folder}: holds an adapter ({_ADAPTER}); merge it into its model and save that")
    _check_counts(settings, folder)
    stored = _stored_values(folder)
    processor = _read_processor(folder / _PROCESSOR, str(settings.get("model_type")))
    transformers = _load_transformers()
    model, config = _load(transformers, folder, stored)
    sides = _sides(config, processor, input_shape)
    if sides is None:
        raise ModelError(f"{folder}: doesn't say how large its images are: give input_shape")
    video = config.model_type in VIDEO_TYPES
    shape = (*((config.num_frames,) if video else ()), getattr(config, "num_channels", 3), *sides)
    raw = tuple(input_shape or shape)
    if len(raw) != len(shape) or raw[:-2] != shape[:-2]:
        raise ModelError(f"{folder}: takes inputs {shape} or of another height and width, got {raw}")
    if num_classes is not None and num_classes != config.num_labels:
        raise ModelError(f"{folder}: answers with {config.num_labels} classes, but {num_classes} were given")
    resize = None if raw == shape else sides
    if preprocessing is None:
        preprocessing = processor.preprocessing(resize)
    elif preprocessing.resize is None:
        preprocessing = preprocessing.model_copy(update={"resize": resize})
    if preprocessing.model_shape(raw) != shape:
        raise ModelError(f"{folder}: takes {shape}, but the preprocessing makes {preprocessing.model_shape(raw)}")
    labels = config.id2label
    names = tuple(str(labels[number]) for number in sorted(labels))
    options = Options(
        preprocessing=preprocessing,
        outputs="logits" if outputs == "auto" else outputs,
        batch_size=batch_size,
        source=str(folder),
        sha256=folder_digest(folder),
        task=task,
        classes=names if len(set(names)) == len(names) else (),
    )
    return TorchClassifier(
        HuggingFaceLogits(model),
        input_shape=raw,
        num_classes=config.num_labels,
        device=device,
        format="huggingface",
        **options,
    )


def folder_digest(folder: Path) -> str:
    """Hex SHA-256 of what a model's folder is opened from: configuration, processor, weights, and their index.

    It is that of the lines `<SHA-256 of the file>  <name>`, in order of name, so that
    `LC_ALL=C sha256sum config.json model.safetensors preprocessor_config.json | sha256sum` gives the same; other
    files, such as a README, have no part in it.

    Raises:
        UnsafeFileError, ModelError: no weights, or an index that names files elsewhere.
    """
    names = {_CONFIG, _PROCESSOR, *(path.name for path in _weight_files(folder))}
    if not (folder / _WEIGHTS).is_file():
        names.add(_INDEX)
    found = sorted(name for name in names if (folder / name).is_file())
    listing = "".join(f"{sha256_file(folder / name)}  {name}\n" for name in found)
    return hashlib.sha256(listing.encode()).hexdigest()


def _load_transformers() -> ModuleType:
    try:
        return importlib.import_module("transformers")
    except (ImportError, RuntimeError) as error:  # the latter: one of its own optional parts is broken
        reason = str(error).splitlines()[0]
        raise ModelError(f"Hugging Face models need transformers: pip install 'intaglio[hf]' ({reason})") from error


def _strict_error() -> type[Exception]:
    """What newer releases raise for an entry of a wrong type: a class of its own, which is no ValueError."""
    errors = importlib.import_module("huggingface_hub.errors")
    found: type[Exception] = getattr(errors, "StrictDataclassError", ValueError)
    return found


def _load(transformers: ModuleType, folder: Path, stored: int) -> tuple[nn.Module, Any]:
    """The model in evaluation mode and its configuration."""
    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        video = config.model_type in VIDEO_TYPES
        auto = transformers.AutoModelForVideoClassification if video else transformers.AutoModelForImageClassification
        # "eager": any other name of an attention may be that of code on a hub.
        chosen = {"trust_remote_code": False, "attn_implementation": "eager"}
        with torch.device("meta"):
            claimed = sum(value.numel() for value in auto.from_config(config, **chosen).parameters())
        if claimed > stored:
            raise ModelError(f"{folder}: its configuration has {claimed} parameters, but its files hold {stored}")
        model, report = auto.from_pretrained(
            str(folder),
            config=config,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            dtype=torch.float32,
            **chosen,
        )
    except (*_REFUSALS, _strict_error()) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{folder}: can't be opened as a Hugging Face classifier: {reason}") from error
    for kind in ("missing_keys", "mismatched_keys"):
        if names := sorted(str(key) for key in report.get(kind, ())):
            raise ModelError(f"{folder}: {len(names)} weights are {kind.split('_')[0]}, first '{names[0]}'; "
                             "is it a classifier that was trained?")  # fmt: skip
    return model.eval(), config


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors that hold the weights: the one, or those that an index names.

    Raises:
        UnsafeFileError: there are none, but pickled weights; or an index that names files elsewhere.
        ModelError: there are none.
    """
    paths = [folder / _WEIGHTS]
    if not paths[0].is_file() and (folder / _INDEX).is_file():
        index = _read_json(folder / _INDEX).get("weight_map")
        names = sorted(set(map(str, index.values()))) if isinstance(index, dict) else []
        if outside := [name for name in names if name != Path(name).name or not name.endswith(".safetensors")]:
            raise UnsafeFileError(
                f"{folder}: its index names '{outside[0]}', which is no safetensors file in this folder"
            )
        paths = [folder / name for name in names]
    elif not paths[0].is_file():
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLED)
        if pickled:
            raise UnsafeFileError(
                f"{folder}: holds {pickled[0]}, which may execute code when loaded; save it as safetensors"
            )
        raise ModelError(f"{folder}: no {_WEIGHTS} in it")
    return paths


def _stored_values(folder: Path) -> int:
    """How many values the safetensors hold, by their headers.

    Raises:
        UnsafeFileError, ModelError: as `_weight_files`; or one is damaged.
    """
    total = 0
    for path in _weight_files(folder):
        try:
            with safe_open(path, "pt") as stream:
                total += sum(math.prod(stream.get_slice(key).get_shape()) for key in stream.keys())  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{path}: not a safetensors file, or truncated ({error})") from error
    return total


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            content = stream.read(_CONFIG_LIMIT + 1)
    except OSError as error:
        raise ModelError(f"{path}: can't be read: {error.strerror or error}") from error
    if len(content) > _CONFIG_LIMIT:
        raise ModelError(f"{path}: larger than {_CONFIG_LIMIT} bytes")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected an object")
    return value


def _check_counts(settings: dict[str, Any], folder: Path) -> None:
    """Refuses more classes or layers than any classifier has, also in a configuration's parts, such as vision's."""
    parts = [settings]
    while parts:
        part = parts.pop()
        for name, most in _LIMITS.items():
            if _claimed(part.get(name)) > most:
                raise ModelError(f"{folder}: its configuration claims more than {most} in '{name}'")
        parts += [value for value in part.values() if isinstance(value, dict)]


def _claimed(value: Any) -> float:
    """A number, the sum of numbers in a list, or else how much there is in it."""
    if isinstance(value, int | float):
        return value
    if isinstance(value, list) and all(isinstance(item, int | float) for item in value):
        return sum(value)
    return len(value) if isinstance(value, dict | list) else 0


def _read_processor(path: Path, model_type: str = "") -> _Processor:
    """A model without one is taken to want raw images."""
    if not path.is_file():
        return _Processor()
    stated = {name: value for name, value in _read_json(path).items() if value is not None}
    kind = str(stated.get("image_processor_type") or stated.get("feature_extractor_type") or model_type).lower()
    values = next((usual for name, usual in _DEFAULTS.items() if kind.startswith(name)), {}) | stated
    if any(values.get(name) for name in _PATCHES):
        raise ModelError(f"{path}: cuts images into patches by itself, which isn't supported")
    known = _HARMLESS | _Processor.model_fields.keys()
    others = tuple(name for name in values if name.startswith("do_") and name not in known and values[name])
    described = {"source": str(path), "not_understood": others}
    try:
        return _Processor.model_validate(values | described)
    except ValidationError as error:
        raise ModelError(f"{path}: {_first_problem(error)}") from error


def _first_problem(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return ": ".join(part for part in (".".join(map(str, first["loc"])), first["msg"]) if part)


def _sides(config: Any, processor: _Processor, given: tuple[int, ...] | None) -> tuple[int, int] | None:
    """Height and width of what the model sees: its own, else its processor's, else the given ones; None: unknown."""
    size = getattr(config, "image_size", None)
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) for side in size):
        return size[0], size[1]
    return processor.sides() or (None if given is None else (given[-2], given[-1]))
