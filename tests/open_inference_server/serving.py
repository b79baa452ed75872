"""Starts MLServer on ONNX files, waits until it is ready, and stops it."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx

HERE = Path(__file__).parent
ENVIRONMENT = HERE.parents[1] / ".venv-oip"
#: True where `install.sh` has been run with the present requirements.
INSTALLED = (ENVIRONMENT / "installed.txt").is_file() and (ENVIRONMENT / "installed.txt").read_bytes() == (
    HERE / "requirements.txt"
).read_bytes()
WHY_SKIPPED = "needs MLServer: run tests/open_inference_server/install.sh"
_READY_WITHIN = 90.0
_TENSORS = {"scores": "FP32", "labels": "INT64"}


class Served(NamedTuple):
    """An ONNX file to serve; `outputs` are "scores", "labels" or both; `version` also names it in its address."""

    file: Path
    input_shape: tuple[int, ...]
    num_classes: int
    outputs: tuple[str, ...] = ("scores",)
    version: str | None = None


@contextmanager
def open_inference_server(models: Mapping[str, Served], folder: Path) -> Iterator[str]:
    """`http://127.0.0.1:port` of a server with these models, by name; its files and its log lie in `folder`."""
    for name, model in models.items():
        (folder / name).mkdir()
        shutil.copy(HERE / "onnx_runtime.py", folder / name)
        (folder / name / "model-settings.json").write_text(json.dumps(_settings(name, model)))
    port = _free_port()
    settings = {
        "host": "127.0.0.1",
        "http_port": port,
        "grpc_port": 0,  # any
        "metrics_endpoint": None,
        "parallel_workers": 0,
        "debug": False,
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    address = f"http://127.0.0.1:{port}"
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [ENVIRONMENT / "bin" / "mlserver", "start", folder],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            _await_ready(process, address, folder / "server.log")
            yield address
        finally:
            process.terminate()
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _settings(name: str, model: Served) -> dict[str, Any]:
    shapes = {"scores": [-1, model.num_classes], "labels": [-1]}
    return {
        "name": name,
        "implementation": "onnx_runtime.OnnxModel",
        "parameters": {"uri": str(model.file.resolve()), "version": model.version},
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, *model.input_shape]}],
        "outputs": [{"name": out, "datatype": _TENSORS[out], "shape": shapes[out]} for out in model.outputs],
    }


def _await_ready(process: "subprocess.Popen[bytes]", address: str, log: Path) -> None:
    """Polls until the server and all its models are ready."""
    deadline = time.monotonic() + _READY_WITHIN
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{address}/v2/health/ready", timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        try:
            process.wait(timeout=0.1)
        except subprocess.TimeoutExpired:
            continue
        break
    raise RuntimeError(f"MLServer did not become ready:\n{log.read_text(errors='replace')[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
