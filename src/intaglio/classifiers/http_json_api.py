"""Any JSON API, as a mapping describes it."""

import base64
import io
import json
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from intaglio.classifiers.access import Access
from intaglio.classifiers.http_answers import expect_list, follow, parse_answer, steps, to_labels, to_scores
from intaglio.classifiers.http_mapping import IMAGE, IMAGES, HttpMapping
from intaglio.classifiers.preprocessing import Preprocessing
from intaglio.errors import ModelError

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class JsonApi:
    """Speaks as an `HttpMapping` says: see there for requests and answers.

    Raises:
        ModelError: input shape or class count aren't given, labels name a class that doesn't exist, or the
            preprocessing makes what can't be written as PNG.
    """

    format = "json-api"
    fixed_batch = None

    def __init__(
        self,
        url: str,
        mapping: HttpMapping,
        *,
        input_shape: tuple[int, ...] | None,
        num_classes: int | None,
        preprocessing: Preprocessing,
    ) -> None:
        self.url = url
        self.access = Access.LABELS if mapping.gives == "labels" else Access.SCORES
        self.batch_size = 1 if mapping.single else mapping.batch
        self._mapping = mapping
        self._names = mapping.names or None
        if input_shape is None:
            raise ModelError(f"{url}: a JSON API doesn't say its input_shape: give it")
        if num_classes is None and self._names is None:
            raise ModelError(f"{url}: give num_classes, or the labels in the mapping")
        self.input_shape = input_shape
        self.num_classes = max((self._names or {}).values(), default=0) + 1 if num_classes is None else num_classes
        outside = [name for name, index in (self._names or {}).items() if index >= self.num_classes]
        if outside:
            raise ModelError(f"{url}: the mapping's label '{outside[0]}' is beyond the {self.num_classes} classes")
        self.classes = _class_names(mapping, self.num_classes)
        if mapping.encoding == "png":
            _require_pixels(url, input_shape, preprocessing)

    def request(self, batch: Tensor) -> bytes:
        """The mapping's `request` with its placeholder filled in."""
        write = _png if self._mapping.encoding == "png" else Tensor.tolist
        if self._mapping.single:
            (image,) = batch
            content = _fill(self._mapping.request, IMAGE, write(image))
        else:
            images = [_fill(self._mapping.each, IMAGE, write(image)) for image in batch]
            content = _fill(self._mapping.request, IMAGES, images)
        return json.dumps(content, allow_nan=False).encode()

    def answer(self, body: bytes, count: int) -> Tensor:
        """What lies at the mapping's `answer`."""
        value, path = parse_answer(body), steps(self._mapping.answer)
        if self._mapping.single:
            found = [follow(value, path)]
        else:
            star = path.index("*") if "*" in path else len(path)
            items = expect_list(follow(value, path[:star]), count, "answers")
            found = [follow(item, path[star + 1 :]) for item in items]
        if self.access is Access.LABELS:
            return to_labels(found, self.num_classes, self._names)
        return to_scores(found, self.num_classes, self._names)


def _class_names(mapping: HttpMapping, num_classes: int) -> tuple[str, ...]:
    """One name for each class, the first the mapping has; none unless it has one for all."""
    first: dict[int, str] = {}
    for name, index in mapping.names.items():
        first.setdefault(index, name)
    return tuple(first[index] for index in range(num_classes)) if len(first) == num_classes else ()


def _require_pixels(url: str, input_shape: tuple[int, ...], preprocessing: Preprocessing) -> None:
    if len(input_shape) != 3 or input_shape[0] not in _MODES:
        raise ModelError(f"{url}: PNG holds images of 1, 3 or 4 channels, not {input_shape}: use encoding floats")
    scaled = preprocessing.scale != 1.0 or any(preprocessing.mean) or any(std != 1.0 for std in preprocessing.std)
    if scaled or preprocessing.layout != "NCHW":
        raise ModelError(f"{url}: PNG holds pixels: leave scale, mean, std and layout to the server, or encode floats")


def _png(image: Tensor) -> str:
    """An image `[C, H, W]` in [0, 1] as base64 of an 8-bit PNG."""
    pixels = (image.clamp(0, 1) * 255).round().to("cpu").numpy().astype(np.uint8).transpose(1, 2, 0)
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels, _MODES[pixels.shape[2]])
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()


def _fill(template: Any, placeholder: str, value: Any) -> Any:
    """The template with `value` in the placeholder's stead; text may stand around it where the value is text."""
    if isinstance(template, str):
        if template == placeholder:
            return value
        return template.replace(placeholder, value) if isinstance(value, str) else template
    if isinstance(template, dict):
        return {name: _fill(part, placeholder, value) for name, part in template.items()}
    if isinstance(template, list):
        return [_fill(part, placeholder, value) for part in template]
    return template
