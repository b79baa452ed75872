"""The Open Inference Protocol, version 2, over HTTP and JSON: KServe, Triton, MLServer, OpenVINO Model Server.

Source: the protocol's REST specification, github.com/kserve/open-inference-protocol.
"""

import json
import math
import re
from typing import Any, NamedTuple

from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from intaglio.classifiers.access import Access
from intaglio.classifiers.http_answers import expect_list, parse_answer, shown, to_labels, to_scores
from intaglio.classifiers.preprocessing import Preprocessing
from intaglio.errors import ModelError, RemoteError

_ADDRESS = re.compile(r"(.+/v2/models/[^/?]+(?:/versions/[^/?]+)?)(?:/infer)?/?")
_INPUTS = ("FP32", "FP64")
_SCORES = ("FP16", "BF16", "FP32", "FP64")
#: JSON is about 20 bytes a value: 1.3 MB a request, within the limits of usual gateways.
_VALUES = 1 << 16
_MOST_IMAGES = 64
#: 160 MB of JSON: more than any server takes, and a hostile one must not make us write it.
_MOST_VALUES = 1 << 23


class Port(BaseModel):
    """One input or output, as the metadata describes it; -1 stands for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...] = Field(max_length=8)


class _Metadata(BaseModel):
    inputs: tuple[Port, ...] | None = None
    outputs: tuple[Port, ...] | None = None


class _Output(BaseModel):
    name: str
    datatype: str
    shape: tuple[int, ...] = Field(max_length=8)
    data: list[Any]


class _Answer(BaseModel):
    outputs: tuple[_Output, ...]


class _Shapes(NamedTuple):
    raw: tuple[int, ...]  #: of one image, before preprocessing
    sent: tuple[int, ...]  #: of one image, as the server takes it


def model_address(url: str) -> str:
    """`.../v2/models/NAME` or `.../v2/models/NAME/versions/V`, without anything behind it.

    Raises:
        ModelError: another form.
    """
    match = _ADDRESS.fullmatch(url)
    if match is None:
        raise ModelError(
            f"{url}: not the address of an Open Inference Protocol model (http://host:port/v2/models/NAME, or "
            "/versions/V behind it); for any other API give a mapping"
        )
    return match[1]


class OpenInference:
    """Speaks the protocol with a model of one image input, given as FP32 or FP64 tensor.

    Floating-point outputs `[N, K]` are scores; integer ones `[N]` or `[N, 1]` labels; text (BYTES) labels by class
    name. Where there are several outputs, scores go before labels, unless `output` names one.

    Args:
        url: as `model_address` gives it.
        metadata: the body that the server answers there.

    Raises:
        RemoteError: metadata that can't be understood, that doesn't fit what was given, or a model of another form.
        ModelError: what neither the metadata nor the caller says.
    """

    format = "open-inference"

    def __init__(
        self,
        url: str,
        metadata: bytes,
        *,
        input_shape: tuple[int, ...] | None,
        num_classes: int | None,
        preprocessing: Preprocessing,
        classes: tuple[str, ...] = (),
        output: str | None = None,
    ) -> None:
        self._address = url
        self.url = f"{url}/infer"
        self.classes = classes
        ports = _metadata(metadata, url)
        inputs = ports.inputs or ()
        if len(inputs) != 1 or inputs[0].datatype not in _INPUTS:
            raise RemoteError(f"{url}: expected one input, of {' or '.join(_INPUTS)}, got {_names(inputs)}")
        self._input = inputs[0]
        self._output = _output(ports.outputs or (), output, url)
        self._name_output = len(ports.outputs or ()) > 1
        self.access = Access.SCORES if self._output.datatype in _SCORES else Access.LABELS
        self.num_classes = self._class_count(num_classes)
        self.input_shape, self._sent_shape = _shapes(self._input.shape, input_shape, preprocessing, url)
        if self._output.datatype == "BYTES" and not classes:
            raise RemoteError(f"{url}: answers with names of classes: give them as classes")
        batch = self._input.shape[0]
        self.fixed_batch = batch if batch > 0 else None
        if max(batch, 1) * math.prod(self._sent_shape) > _MOST_VALUES:
            raise RemoteError(f"{url}: wants {list(self._input.shape)}, over {_MOST_VALUES} values a request")
        self.batch_size = max(1, min(_MOST_IMAGES, _VALUES // math.prod(self._sent_shape)))

    def request(self, batch: Tensor) -> bytes:
        """One flat tensor in row-major order."""
        tensor = {
            "name": self._input.name,
            "shape": [len(batch), *self._sent_shape],
            "datatype": self._input.datatype,
            "data": batch.flatten().tolist(),
        }
        question: dict[str, Any] = {"inputs": [tensor]}
        if self._name_output:
            question["outputs"] = [{"name": self._output.name}]
        return json.dumps(question).encode()

    def answer(self, body: bytes, count: int) -> Tensor:
        """The chosen output; others are passed over."""
        output = self._find(body)
        if (output.datatype in _SCORES) is not (self.access is Access.SCORES):
            raise RemoteError(f"answers with {shown(output.datatype)}, but stated {self._output.datatype}")
        values, shape = _flat(output.data, len(output.shape)), output.shape
        if self.access is Access.SCORES:
            if len(shape) == 2 and shape[1] != self.num_classes:
                raise RemoteError(f"answers with {shape[1]} classes, but {self.num_classes} were expected")
            if shape != (count, self.num_classes):
                raise RemoteError(f"expected scores [{count}, {self.num_classes}], got {list(shape)}")
            expect_list(values, count * self.num_classes, "scores in all")
            rows = [values[start : start + self.num_classes] for start in range(0, len(values), self.num_classes)]
            return to_scores(rows, self.num_classes)
        if shape not in ((count,), (count, 1)):
            raise RemoteError(f"expected labels [{count}], got {list(shape)}")
        names = {name: index for index, name in enumerate(self.classes)} if output.datatype == "BYTES" else None
        return to_labels(expect_list(values, count, "labels"), self.num_classes, names)

    def _class_count(self, given: int | None) -> int:
        stated = self._output.shape[-1] if self.access is Access.SCORES and len(self._output.shape) == 2 else -1
        given = given or len(self.classes) or None
        if given is None and stated < 1:
            raise ModelError(f"{self._address}: doesn't say its class count: give num_classes")
        if given is not None and stated > 0 and given != stated:
            raise RemoteError(f"{self._address}: answers with {stated} classes, but {given} were expected")
        return stated if given is None else given

    def _find(self, body: bytes) -> _Output:
        try:
            outputs = _Answer.model_validate(parse_answer(body)).outputs
        except ValidationError as error:
            raise RemoteError(f"not an Open Inference Protocol answer: {_first(error)}") from error
        named = [output for output in outputs if output.name == self._output.name or len(outputs) == 1]
        if len(named) != 1:
            raise RemoteError(
                f"expected one output '{shown(self._output.name)}', got {len(named)} among {len(outputs)}"
            )
        return named[0]


def _metadata(body: bytes, url: str) -> _Metadata:
    try:
        return _Metadata.model_validate(parse_answer(body))
    except ValidationError as error:
        raise RemoteError(f"{url}: not an Open Inference Protocol server: {_first(error)}") from error
    except RemoteError as error:
        raise RemoteError(f"{url}: not an Open Inference Protocol server: {error}") from error


def _output(ports: tuple[Port, ...], name: str | None, url: str) -> Port:
    """The named output, or the only one with scores, or the only one with labels."""
    scores = [port for port in ports if port.datatype in _SCORES]
    labels = [port for port in ports if port.datatype == "BYTES" or re.fullmatch(r"U?INT(8|16|32|64)", port.datatype)]
    found = scores or labels if name is None else [port for port in scores + labels if port.name == name]
    if len(found) != 1:
        wanted = "one output with scores or labels" if name is None else f"an output '{name}' with scores or labels"
        raise RemoteError(f"{url}: expected {wanted}, got {_names(ports)}: name the right one as output")
    return found[0]


def _shapes(stated: tuple[int, ...], given: tuple[int, ...] | None, preprocessing: Preprocessing, url: str) -> _Shapes:
    """Raw and sent shape of one image; a server that takes `[N, C*H*W]` is given flat images."""
    sides = stated[1:]
    if given is None:
        if len(sides) not in (3, 4) or min(sides) < 1:
            raise ModelError(f"{url}: doesn't state the size of its images ({list(stated)}): give input_shape")
        if preprocessing.layout == "NCHW" and sides[-3] > 4 and sides[-1] in (1, 3, 4):
            raise ModelError(f"{url}: inputs {list(stated)} look like channels last: give a preprocessing with NHWC")
        return _Shapes(preprocessing.raw_shape(sides), sides)
    expected = preprocessing.model_shape(given)
    for shape in (expected, (math.prod(expected),)):
        if len(shape) == len(sides) and all(side in (-1, wanted) for side, wanted in zip(sides, shape, strict=True)):
            return _Shapes(given, shape)
    raise RemoteError(f"{url}: takes inputs {list(stated)}, but the given shape and preprocessing make {expected}")


def _flat(data: list[Any], rank: int) -> list[Any]:
    """Row-major values of a flat or nested list, both of which the protocol allows."""
    for _ in range(rank - 1):
        if not any(isinstance(part, list) for part in data):
            break
        if not all(isinstance(part, list) for part in data):
            raise RemoteError("expected lists of one depth, got a mixture")
        data = [value for part in data for value in part]
    return data


def _names(ports: tuple[Port, ...]) -> str:
    return ", ".join(f"{shown(port.name)} {shown(port.datatype)} {list(port.shape)}" for port in ports[:4]) or "none"


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'its top'}: {first['msg']}"
