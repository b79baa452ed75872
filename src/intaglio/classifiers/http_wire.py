"""One HTTP request, one bounded answer: TLS verified, no redirects, no cookies, a deadline that no trickle outlasts.

Time-outs of HTTP clients start anew with each piece received: a server that sends a byte now and then holds them for
ever. Here the network layer itself is given what is left until the deadline, so connecting, sending, headers and body
all end by then.
"""

import ssl
import urllib.request
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import httpcore
import httpx

from intaglio.classifiers.http_conduct import Clock, Conduct
from intaglio.errors import ClassifierError

#: Bytes sent between two looks at the clock.
_PIECE = 1 << 14

Headers = list[tuple[bytes, bytes]]


class DeadlineError(httpcore.TimeoutException):
    """The whole answer took too long."""


class TooLargeError(Exception):
    """The answer is larger than allowed."""


@dataclass(frozen=True)
class Answer:
    """What came back: the status, headers with lower-case names, and the body as it was sent."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Wire:
    """Keeps a connection to one origin (scheme, host, port), directly or through the environment's proxy.

    Raises:
        ClassifierError: the environment names a proxy that is not an HTTP one.
    """

    def __init__(self, origin: httpx.URL, conduct: Conduct, clock: Clock) -> None:
        self._conduct = conduct
        self._clock = clock
        self._backend = _DeadlineBackend(clock)
        self._pool = _pool(origin, self._backend)
        weakref.finalize(self, self._pool.close)

    def exchange(self, method: str, url: httpx.URL, headers: Headers, content: bytes | None) -> Answer:
        """Sends a request and reads its answer, in pieces, up to the size limit.

        Raises:
            httpcore exceptions: no connection, a broken one, not HTTP, a time-out.
            DeadlineError, TooLargeError: see there.
        """
        conduct = self._conduct
        self._backend.deadline = self._clock.monotonic() + conduct.answer_timeout
        waits = {"connect": conduct.connect_timeout, "read": conduct.read_timeout, "write": conduct.read_timeout}
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
        try:
            with self._pool.stream(
                method, target, headers=headers, content=content, extensions={"timeout": waits}
            ) as response:
                received = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
                return Answer(response.status, received, self._body(response, received.get("content-length", "")))
        except httpcore.TimeoutException as error:
            if self._clock.monotonic() >= self._backend.deadline:
                raise DeadlineError from error
            raise

    def _body(self, response: httpcore.Response, stated: str) -> bytes:
        limit = self._conduct.max_answer_bytes
        if stated.isdecimal() and int(stated) > limit:
            raise TooLargeError
        body = bytearray()
        for piece in response.iter_stream():
            body += piece
            if len(body) > limit:
                raise TooLargeError
        return bytes(body)


class _DeadlineBackend(httpcore.NetworkBackend):
    """Opens connections on which no waiting goes beyond `deadline`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._inner = httpcore.SyncBackend()
        self.deadline = 0.0

    def left(self, timeout: float | None) -> float:
        left = self.deadline - self._clock.monotonic()
        if left <= 0:
            raise DeadlineError
        return left if timeout is None else min(left, timeout)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        stream = self._inner.connect_tcp(host, port, self.left(timeout), local_address, socket_options)
        return _DeadlineStream(stream, self)


class _DeadlineStream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, backend: _DeadlineBackend) -> None:
        self._inner = inner
        self._backend = backend

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._backend.left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE):
            self._inner.write(buffer[start : start + _PIECE], self._backend.left(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        secured = self._inner.start_tls(ssl_context, server_hostname, self._backend.left(timeout))
        return _DeadlineStream(secured, self._backend)

    def get_extra_info(self, info: str) -> object:
        return self._inner.get_extra_info(info)


def _pool(origin: httpx.URL, backend: _DeadlineBackend) -> httpcore.ConnectionPool:
    context = httpx.create_ssl_context() if origin.scheme == "https" else None
    address = None
    if not urllib.request.proxy_bypass(origin.host):
        address = urllib.request.getproxies().get(origin.scheme)
    if not address:
        return httpcore.ConnectionPool(context, max_connections=1, network_backend=backend)
    try:
        proxy = httpx.Proxy(address if "://" in address else f"http://{address}")
    except (ValueError, httpx.InvalidURL) as error:
        raise ClassifierError(f"the environment's {origin.scheme} proxy is not a proxy's address") from error
    if proxy.url.scheme not in ("http", "https"):
        raise ClassifierError(f"the environment's {origin.scheme} proxy is not an HTTP proxy")
    return httpcore.HTTPProxy(
        str(proxy.url), proxy.raw_auth, ssl_context=context, max_connections=1, network_backend=backend
    )
