"""An ONNX file as a classifier, run by ONNX Runtime on the CPU: scores only."""

from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from torch import Tensor

from intaglio.classifiers.access import Access
from intaglio.classifiers.base import Classifier, Options
from intaglio.classifiers.onnx_file import OnnxFile, read_onnx
from intaglio.classifiers.preprocessing import Preprocessing
from intaglio.errors import ClassifierError, ModelError

_INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
_NUMBERS = "fiub"  # NumPy's kinds of types; texts and maps are none
_SILENT = 4  # ONNX Runtime prints failures by itself, besides raising them


class _Port(NamedTuple):
    """What the graph states of an input or output."""

    name: str
    type: str
    shape: list[int | str | None]


class OnnxClassifier(Classifier):
    """Examines an ONNX model given as a path or as bytes; one image input, one score output.

    `input_shape` (raw: channels first, before preprocessing) and `num_classes` are read from the graph where it states
    them. Float16 and float64 inputs are cast to; a fixed batch size is respected by padding, and found out if the graph
    keeps it to itself. As many threads are used as torch is set to use.

    Raises:
        UnsafeFileError: a tensor stored outside the model's folder.
        ModelError: a file that isn't ONNX, operators that ONNX Runtime doesn't know, several inputs or outputs, or
            shapes that are not stated and not given.
        ClassifierError: answers of a wrong shape.
    """

    def __init__(
        self,
        model: Path | str | bytes,
        *,
        input_shape: tuple[int, ...] | None = None,
        num_classes: int | None = None,
        **options: Unpack[Options],
    ) -> None:
        path = model if isinstance(model, bytes) else Path(model)
        name = options.setdefault("source", "onnx" if isinstance(path, bytes) else str(path))
        if isinstance(path, Path) and not path.is_file():
            raise ModelError(f"no such file: {path}")
        file = read_onnx(path, name)
        self._errors, self._session = _start(file, name)
        image = _only(self._session.get_inputs(), "inputs", name)
        scores = _only(self._session.get_outputs(), "outputs", name)
        if image.type not in _INPUT_TYPES:
            raise ModelError(f"{name}: input '{image.name}' is {image.type}, expected a tensor of floats")
        self._input_name, self._input_type = image.name, _INPUT_TYPES[image.type]
        if image.shape and isinstance(image.shape[0], int):
            options["fixed_batch"] = image.shape[0]
        options.setdefault("sha256", file.sha256)
        super().__init__(
            input_shape=_input_shape(image.shape, input_shape, options.get("preprocessing", Preprocessing()), name),
            num_classes=_num_classes(scores.shape, num_classes, name),
            access=Access.SCORES,
            format="onnx",
            **options,
        )
        try:
            self._probe()
        except ClassifierError:
            if self.batch_size == 1:
                raise
            # Many graphs say that any batch size will do, but reshape to the one they were exported with.
            self.fixed_batch = self.batch_size = 1
            self._probe()

    def _forward(self, batch: Tensor) -> Tensor:
        array = np.ascontiguousarray(batch.detach().cpu().numpy(), dtype=self._input_type)
        try:
            (answer,) = self._session.run(None, {self._input_name: array})
            scores = np.asarray(answer)
        except self._errors as error:
            raise ClassifierError(f"{self.source}: can't answer inputs {list(array.shape)}: {_line(error)}") from error
        if scores.dtype.kind not in _NUMBERS:
            raise ClassifierError(f"{self.source}: expected a tensor of scores, but its answers are no numbers")
        return torch.from_numpy(scores)


def _start(file: OnnxFile, name: str) -> tuple[tuple[type[Exception], ...], Any]:
    """ONNX Runtime's exceptions (they share no base class), and a session."""
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state
    except ImportError as error:
        raise ModelError("ONNX models need onnx and onnxruntime: pip install 'intaglio[onnx]'") from error
    errors = tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    errors = (*errors, RuntimeError, ValueError)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _SILENT
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.inter_op_num_threads = 1
    if file.folder is not None:
        settings.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(file.folder.resolve())
        )
    try:
        # Without enable_fallback=0 it prints, and tries the same again.
        return errors, onnxruntime.InferenceSession(
            file.content, settings, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except errors as error:
        raise ModelError(f"{name}: ONNX Runtime refuses it: {_line(error)}") from error


def _only(nodes: list[Any], kind: str, name: str) -> _Port:
    try:
        ports = [_Port(node.name, node.type, node.shape) for node in nodes]
    except UnicodeDecodeError as error:
        raise ModelError(f"{name}: is damaged: a name of its {kind} is not text") from error
    if len(ports) != 1:
        names = ", ".join(port.name for port in ports)
        raise ModelError(f"{name}: expected one of its {kind}, got {len(ports)} ({names}): export a model with one")
    return ports[0]


def _input_shape(
    graph: list[int | str | None], given: tuple[int, ...] | None, preprocessing: Preprocessing, name: str
) -> tuple[int, ...]:
    """The raw input shape: the given one if it fits the graph's, else the graph's own."""
    stated = graph[1:]
    if len(stated) not in (3, 4):
        raise ModelError(f"{name}: input of rank {len(graph)}; images have rank 4, videos 5")
    if given is not None:
        expected = preprocessing.model_shape(tuple(given))
        if len(expected) != len(stated) or any(
            isinstance(side, int) and side != wanted for side, wanted in zip(stated, expected, strict=True)
        ):
            raise ModelError(f"{name}: takes inputs {stated}, but the given shape and preprocessing make {expected}")
        return tuple(given)
    sides = tuple(side for side in stated if isinstance(side, int))
    if len(sides) != len(stated):
        raise ModelError(f"{name}: doesn't state its input size ({stated}): give input_shape")
    if preprocessing.layout == "NCHW" and sides[-3] > 4 and sides[-1] in (1, 3, 4):
        raise ModelError(f"{name}: inputs {stated} look like channels last: give a preprocessing with layout NHWC")
    if preprocessing.layout == "NCHW" and len(sides) == 4 and sides[0] in (1, 3) and sides[1] not in (1, 3, 4):
        raise ModelError(f"{name}: inputs {stated} look like channels before time: give a preprocessing with NCTHW")
    return preprocessing.raw_shape(sides)


def _num_classes(graph: list[int | str | None], given: int | None, name: str) -> int:
    stated = graph[-1] if len(graph) == 2 else None
    if isinstance(stated, int) and given is not None and stated != given:
        raise ModelError(f"{name}: answers with {stated} classes, but {given} were given")
    if given is not None:
        return given
    if not isinstance(stated, int):
        raise ModelError(f"{name}: doesn't state how many classes it has ({graph}): give num_classes")
    return stated


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
