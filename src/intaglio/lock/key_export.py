"""Writes one user's key network as ONNX: raw images in, keyed images out. Whoever holds the file holds the key."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from intaglio.classifiers.onnx_export import onnx_bytes
from intaglio.classifiers.onnx_file import read_onnx
from intaglio.errors import ModelError
from intaglio.files import require_new, require_writable, write_private
from intaglio.lock.frames import check_keyable, frames
from intaglio.lock.lock import UserKey
from intaglio.seeds import torch_generator
from intaglio.triggers.batches import batch_size

_TOLERANCE = 1e-4
_CHECKED = 4
_SILENT = 4


def export_key(user_key: UserKey, path: Path | str, *, input_shape: tuple[int, int, int]) -> None:
    """Writes `path` (.onnx: any batch size, weights and secrets inside, readable by its owner alone).

    Input `images`, output `keyed`, float32 `[N, C, H, W]` in [0, 1]; rounding to 8 bits is up to who writes the file.
    `input_shape` is that of an image, or of one frame of a clip (`Lock.frame_shape`). Before anything is written, ONNX
    Runtime must give the network's own values on noise within 1e-4.

    Raises:
        ModelError: it can't be exported, or answers differently.
        StorageError: it can't be written.
    """
    path = Path(path)
    require_exportable(path)
    images = torch.rand(_CHECKED, *input_shape, generator=torch_generator(0, "lock", "key-export"))
    with torch.no_grad():
        expected = user_key(images)
    content = onnx_bytes(user_key, images, path, output="keyed")
    exported = ExportedKey(content, str(path))
    found = torch.cat([exported(images[:1]), exported(images[1:])])  # in batches of other sizes than it was traced with
    if not float((found - expected).abs().max()) <= _TOLERANCE:
        raise ModelError(f"{path}: the exported key network answers differently: not written")
    write_private(path, content)


def require_exportable(path: Path) -> None:
    """Fails before a key is issued for a file that can't be written.

    Raises:
        ModelError: not a name of an ONNX file.
        StorageError: it can't be written, or is there already.
    """
    if path.suffix != ".onnx":
        raise ModelError(f"{path}: key networks are written as .onnx")
    require_new(path, "a model")
    require_writable(path)


class ExportedKey:
    """A user's exported key network, run by ONNX Runtime: what a user needs, without the owner's key.

    Args:
        source: the file, or its bytes.
        name: stands in messages.

    Raises:
        ModelError: missing, damaged, or not a key network.
        UnsafeFileError: one with tensors stored elsewhere.
    """

    def __init__(self, source: Path | bytes, name: str = "key network") -> None:
        if isinstance(source, Path):
            name = str(source)
            try:
                source = source.read_bytes()
            except OSError as error:
                raise ModelError(f"{name}: the key network can't be read: {error.strerror or error}") from error
        content = read_onnx(source, name).content
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        kinds = (kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
        self._errors: tuple[type[Exception], ...] = (*kinds, RuntimeError, ValueError)
        self._name = name
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = _SILENT
        settings.intra_op_num_threads = torch.get_num_threads()
        try:
            self._session = onnxruntime.InferenceSession(
                content, settings, providers=["CPUExecutionProvider"], enable_fallback=0
            )
        except self._errors as error:
            raise ModelError(f"{name}: ONNX Runtime refuses it: {str(error).splitlines()[0]}") from error
        ports = [port.name for port in (*self._session.get_inputs(), *self._session.get_outputs())]
        shape = self._session.get_inputs()[0].shape if ports == ["images", "keyed"] else []
        if len(shape) != 4 or not all(isinstance(side, int) for side in shape[1:]):
            raise ModelError(f"{name}: is not a lock's key network")
        #: `(C, H, W)` of the images, or frames, that it keys.
        self.input_shape: tuple[int, int, int] = (shape[1], shape[2], shape[3])

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Keyed images `[N, C, H, W]`, or clips `[N, T, C, H, W]` with every frame keyed.

        Raises:
            DataError: images of another size, or with values outside [0, 1].
            ModelError: the network fails on them, or doesn't answer with as many finite images of their size.
        """
        check_keyable(images, self.input_shape, by=self._name)
        parts = torch.split(frames(images), batch_size(self.input_shape))
        return torch.cat([self._keyed(part) for part in parts]).clamp(0, 1).view_as(images)

    def _keyed(self, images: torch.Tensor) -> torch.Tensor:
        try:
            answer: Any = self._session.run(["keyed"], {"images": images.numpy()})[0]
        except self._errors as error:
            raise ModelError(f"{self._name}: can't key these images: {str(error).splitlines()[0]}") from error
        if not isinstance(answer, np.ndarray) or answer.dtype != np.float32 or answer.shape != tuple(images.shape):
            shape = f"{answer.dtype} {answer.shape}" if isinstance(answer, np.ndarray) else type(answer).__name__
            raise ModelError(
                f"{self._name}: is not a lock's key network: it answers images {tuple(images.shape)} with {shape}"
            )
        if not np.isfinite(answer).all():  # a picture would become black or white without a word
            raise ModelError(f"{self._name}: the key network is damaged: it answers with NaN or infinity")
        return torch.from_numpy(answer)
