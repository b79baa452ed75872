"""Asking a server politely and suspiciously: paced, retried, limited, and never sent on to another host."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import httpcore
import httpx

from intaglio.classifiers.http_address import origin_of
from intaglio.classifiers.http_conduct import Clock, Conduct
from intaglio.classifiers.http_wire import Answer, DeadlineError, TooLargeError, Wire
from intaglio.errors import RemoteError, one_line

_MAX_REDIRECTS = 3
#: Redirects under which method and body are sent again unchanged.
_REPEATING = (HTTPStatus.TEMPORARY_REDIRECT, HTTPStatus.PERMANENT_REDIRECT)
_PASSING = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
_SHOWN = 120
#: Of a secret that was cut off; fewer letters give nothing away, and are found in any text.
_SHORTEST_PREFIX = 4
#: No word of who asks: a suspect that knows its examiner may answer as the examiner hopes.
_HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",  # a small answer can't unpack to a large one
    "Content-Type": "application/json",
    "User-Agent": f"python-httpx/{httpx.__version__}",
}


@dataclass(frozen=True)
class Reply:
    """What became of one attempt; `problem` is None when there is an answer in `body`."""

    method: str
    url: str
    sent_at: datetime
    request_sha256: str
    status: int | None = None
    body: bytes | None = None
    problem: str | None = None
    passing: bool = False  #: the next attempt may do better
    retry_after: float = 0.0  #: seconds that the server asks to wait


def _nothing(*_: object) -> None:
    return None


class Transport:
    """Requests to one origin: `scheme://host:port`.

    Args:
        url: any address at that origin.
        conduct: limits and manners.
        clock: what time it is.
        headers: sent with every request.
        secrets: header values that must never be shown: they are blotted out of whatever the server says.
    """

    def __init__(
        self,
        url: str,
        *,
        conduct: Conduct,
        clock: Clock,
        headers: Mapping[str, str],
        secrets: tuple[str, ...] = (),
    ) -> None:
        self._origin = httpx.URL(url)
        self._conduct = conduct
        self._clock = clock
        self._headers = httpx.Headers(_HEADERS)
        self._headers.update(headers)
        self._secrets = sorted({form for secret in secrets for form in _written(secret)}, key=len, reverse=True)
        self._wire = Wire(self._origin, conduct, clock)
        self._next_start = clock.monotonic()

    def ask(
        self,
        method: str,
        url: str,
        content: bytes | None = None,
        *,
        before: Callable[[], None] = _nothing,
        failed: Callable[[Reply], None] = _nothing,
    ) -> Reply:
        """The answer, after as many attempts as it takes.

        `before` is called ahead of whatever is sent, `failed` after what brought no answer: of vain attempts, and of
        those that a server redirects, in which the whole question is sent again.

        Raises:
            RemoteError: none of the attempts, or one that can't get better, brought an answer.
        """
        for attempt in range(self._conduct.retries + 1):
            reply = self._attempt(method, url, content, before, failed)
            if reply.problem is None:
                return reply
            pause = max(self._conduct.pause(attempt, self._clock.jitter()), reply.retry_after)
            if pause > self._conduct.longest_pause:
                reply = replace(reply, passing=False, problem=f"{reply.problem}; asks to wait {pause:.0f} s")
            failed(reply)
            if not reply.passing or attempt == self._conduct.retries:
                break
            self._clock.sleep(pause)
        raise RemoteError(f"{url}: {reply.problem}{f' ({attempt + 1} attempts)' if attempt else ''}")

    def clean(self, text: str) -> str:
        """One short printable line of what a server said, without the secrets it was sent."""
        text = one_line(text)
        for secret in self._secrets:
            text = _without(text, secret)
        return text

    def _attempt(
        self,
        method: str,
        url: str,
        content: bytes | None,
        before: Callable[[], None],
        failed: Callable[[Reply], None],
    ) -> Reply:
        digest = hashlib.sha256(content or b"").hexdigest()
        target = httpx.URL(url)
        for hops in range(_MAX_REDIRECTS + 1):
            before()
            self._pace()
            # A server may lead to an address that holds what it was sent.
            reply = Reply(method, self.clean(str(target)) if hops else url, self._clock.now(), digest)
            try:
                answer = self._wire.exchange(method, target, self._headers.raw, content)
            except (httpcore.TimeoutException, TooLargeError) as error:
                return self._overdrawn(reply, error)
            except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError) as error:
                return self._broken(reply, error)
            reply = replace(reply, status=answer.status, body=answer.body)
            if not 300 <= answer.status < 400 or "location" not in answer.headers:
                return self._judged(reply, answer)
            target, problem = self._redirected(method, target, answer)
            if problem is not None:
                return replace(reply, problem=self.clean(problem))
            if hops < _MAX_REDIRECTS:
                failed(replace(reply, problem=self.clean(f"redirects to {target}")[:_SHOWN]))
        return replace(reply, problem=f"redirects more than {_MAX_REDIRECTS} times")

    def _pace(self) -> None:
        if self._conduct.requests_per_second is None:
            return
        wait = self._next_start - self._clock.monotonic()
        if wait > 0:
            self._clock.sleep(wait)
        self._next_start = self._clock.monotonic() + 1 / self._conduct.requests_per_second

    def _overdrawn(self, reply: Reply, error: Exception) -> Reply:
        conduct = self._conduct
        if isinstance(error, TooLargeError):
            return replace(reply, problem=f"answers with more than {conduct.max_answer_bytes} bytes")
        if isinstance(error, httpcore.ConnectTimeout):
            problem = f"can't be reached within {conduct.connect_timeout:g} s"
        elif isinstance(error, DeadlineError):
            problem = f"has not finished its answer within {conduct.answer_timeout:g} s"
        else:
            problem = f"hangs: no answer within {conduct.read_timeout:g} s"
        return replace(reply, problem=problem, passing=True)

    def _broken(self, reply: Reply, error: Exception) -> Reply:
        why = self.clean(re.sub(r"^\[Errno -?\d+\] ", "", str(error)) or type(error).__name__)[:_SHOWN]
        if isinstance(error, httpcore.ConnectError):
            return replace(reply, problem=f"can't connect: {why}: check the address, and that the server runs")
        if isinstance(error, httpcore.ProxyError):
            return replace(reply, problem=f"the proxy refuses: {why}")
        return replace(reply, problem=f"breaks off, or does not speak HTTP: {why}", passing=True)

    def _judged(self, reply: Reply, answer: Answer) -> Reply:
        """The reply to a request that was not redirected, with its problem if it has one."""
        if 200 <= answer.status < 300:
            if answer.headers.get("content-encoding", "identity").lower() != "identity":
                return replace(reply, problem="answers compressed, though asked not to")
            return reply
        said = self.clean(_said(answer.body))[:_SHOWN]
        problem = f"answers with HTTP {answer.status}{f' ({said})' if said else ''}"
        if answer.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            problem += "; a token goes into the headers of a mapping"
        passing = answer.status in _PASSING or answer.status >= 500
        wait = _seconds(answer.headers.get("retry-after", ""), self._clock.now()) if passing else 0.0
        return replace(reply, problem=problem, passing=passing, retry_after=wait)

    def _redirected(self, method: str, url: httpx.URL, answer: Answer) -> tuple[httpx.URL, str | None]:
        """Where a redirect leads, and why it isn't followed, if it isn't."""
        try:
            target = url.join(answer.headers["location"])
            origin = origin_of(target)
        except (httpx.InvalidURL, UnicodeError):  # the latter: a host that only claims to be written in IDNA
            return url, "redirects to what is no address"
        if target.scheme not in ("http", "https") or origin != origin_of(self._origin):
            where = f"{target.scheme}://{target.netloc.decode('ascii', 'replace')}"[:_SHOWN]
            return (
                url,
                f"redirects to another host ({where}), which is never followed: give the right address",
            )
        if method != "GET" and answer.status not in _REPEATING:
            return url, f"redirects (HTTP {answer.status}) in a way that drops the question; give the new address"
        return target, None


def _written(secret: str) -> set[str]:
    """A secret as a server may send it back: as it is, or as it stands in JSON."""
    return {one_line(form) for form in (secret, json.dumps(secret)[1:-1], secret.replace("/", "\\/"))}


def _without(text: str, secret: str) -> str:
    """The text with a secret blotted out, also where it was cut: before dots, and at the end."""
    text = text.replace(secret, "***")
    for length in range(len(secret) - 1, _SHORTEST_PREFIX - 1, -1):
        start = secret[:length]
        text = text.replace(f"{start}...", "***...")
        if text.endswith(start):
            text = f"{text[:-length]}***"
    return text


def _said(body: bytes) -> str:
    """What an error's body says, from the JSON forms in use, or its text."""
    text = body[:4096].decode(errors="replace")
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return "" if "<" in text else text
    if isinstance(fields, dict):
        return next((str(fields[name]) for name in ("error", "message", "detail") if fields.get(name)), "")
    return text


def _seconds(retry_after: str, now: datetime) -> float:
    """The wait that a Retry-After header asks for: seconds, or a date."""
    if retry_after.isascii() and retry_after.isdecimal():
        return float(retry_after[:9])
    try:
        date = parsedate_to_datetime(retry_after)
    except (ValueError, OverflowError):
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())
