"""Servers on 127.0.0.1 that answer as a test says, well or badly, and a clock on which nothing takes time."""

import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import torch
from torch import Tensor

from intaglio.classifiers import Clock

SHAPE = (1, 4, 4)
CLASSES = 3
WEIGHT = torch.linspace(-1, 1, 48).sin().reshape(16, 3)
START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def pictures(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def toy_scores(images: Tensor) -> Tensor:
    """What the honest servers here compute."""
    return images.flatten(1) @ WEIGHT


class Asked(NamedTuple):
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Given(NamedTuple):
    body: Any = b""  #: bytes, or what is written as JSON
    status: int = 200
    headers: Mapping[str, str] = {}


class Server(NamedTuple):
    url: str
    asked: list[Asked]


@contextmanager
def serving(answer: Callable[[Asked], Any]) -> Iterator[Server]:
    """A server whose answers are `Given`, or a value for status 200 and JSON."""
    asked: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append(Asked(self.command, self.path, dict(self.headers), body))
            given = answer(asked[-1])
            given = given if isinstance(given, Given) else Given(given)
            content = given.body if isinstance(given.body, bytes) else json.dumps(given.body).encode()
            self.send_response(given.status)
            for name, value in {"Content-Length": str(len(content)), **given.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Nothing."""

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_: object) -> None:
            """Clients that hang up on a bad server are what is tested."""

    server = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield Server(f"http://127.0.0.1:{server.server_port}", asked)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def raw_serving(talk: Callable[[socket.socket], None] | None) -> Iterator[str]:
    """A server of bytes: `talk` is called with each connection; with None it never even looks at one."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    assert talk is not None
                    talk(connection)
                except OSError:
                    continue

    if talk is not None:
        threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def metadata(output: tuple[str, str, list[int]] = ("scores", "FP32", [-1, CLASSES]), **changes: Any) -> dict[str, Any]:
    """What an Open Inference Protocol server says of a model."""
    described = {
        "name": "m",
        "platform": "test",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, *SHAPE]}],
        "outputs": [dict(zip(("name", "datatype", "shape"), output, strict=True))],
    }
    return described | changes


def inferred(question: Any, **changes: Any) -> dict[str, Any]:
    """The honest answer to an inference request, with changes to its one output."""
    (tensor,) = question["inputs"]
    scores = toy_scores(torch.tensor(tensor["data"]).reshape(tensor["shape"]))
    output = {"name": "scores", "datatype": "FP32", "shape": list(scores.shape), "data": scores.flatten().tolist()}
    return {"model_name": "m", "outputs": [output | changes]}


def honest(asked: Asked) -> Any:
    return metadata() if asked.method == "GET" else inferred(asked.json)


class FakeTime:
    """A clock that stands still, but for sleeping (and for `step` seconds whenever it is read)."""

    def __init__(self, step: float = 0.0, jitter: float = 0.0) -> None:
        self.passed = 0.0
        self.slept: list[float] = []
        self._step = step
        self.clock = Clock(self._monotonic, self._sleep, self._now, lambda: jitter)

    def _monotonic(self) -> float:
        self.passed += self._step
        return self.passed

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.passed += seconds

    def _now(self) -> datetime:
        return START + timedelta(seconds=self.passed)
