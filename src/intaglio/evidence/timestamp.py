"""Time stamps (RFC 3161): an authority's signed word that bytes existed at a time, asked for over HTTP.

Only the SHA-256 of the bytes is sent.
"""

import hashlib
import re
import time
from base64 import b64encode
from datetime import UTC, datetime
from http import HTTPStatus
from http.client import responses
from pathlib import Path

import httpcore
import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509 import DuplicateExtension, InvalidVersion, load_pem_x509_certificates
from rfc3161_client import (
    HashAlgorithm,
    TimestampRequestBuilder,
    TimeStampResponse,
    VerificationError,
    VerifierBuilder,
    decode_timestamp_response,
)

from intaglio.classifiers.http_conduct import Clock, Conduct
from intaglio.classifiers.http_wire import Answer, DeadlineError, TooLargeError, Wire
from intaglio.errors import EvidenceError, RemoteError
from intaglio.evidence.canonical import read_limited
from intaglio.evidence.certificate_order import with_sorted_certificates

_SIZE_LIMIT = 1 << 18
_ROOTS_LIMIT = 1 << 22
_MOST_REDIRECTS = 3
_HEADERS = {
    "Content-Type": "application/timestamp-query",
    "Accept": "application/timestamp-reply",
    "Accept-Encoding": "identity",
}
_BROKEN = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError)
_GRANTED = 0
#: What the libraries raise for stamps and certificates that are damaged, foreign or made of something unknown.
_UNTRUSTWORTHY = (VerificationError, ValueError, TypeError, InvalidVersion, DuplicateExtension, UnsupportedAlgorithm)
_WRONG_ANSWER = "the time stamp is not one of these bytes: another statement's, or changed"


def request_time_stamp(message: bytes, url: str, *, timeout: float = 10) -> bytes:
    """The authority's answer (DER) to a request for a stamp of `message`; keep it whole.

    Args:
        timeout: seconds for all of it, after which it is given up.

    Raises:
        RemoteError: the authority can't be reached, hangs, redirects to another host or answers garbage.
        EvidenceError: it answers well, but refuses, or stamps something else.
    """
    shown = without_login(url)
    request = TimestampRequestBuilder().data(message).hash_algorithm(HashAlgorithm.SHA256).build()
    answer = _post(url, request.as_bytes(), timeout)
    try:
        response = _decoded(answer)
    except EvidenceError as error:
        raise RemoteError(f"{shown}: answers something that is not a time stamp") from error
    if response.status != _GRANTED:
        reason = "; ".join(response.status_string) or f"status {response.status}"
        raise EvidenceError(f"{shown}: the authority refuses to stamp: {' '.join(reason.split())[:200]}")
    stamped = response.tst_info
    if stamped.message_imprint.message != request.message_imprint.message or stamped.nonce != request.nonce:
        raise EvidenceError(f"{shown}: {_WRONG_ANSWER}")
    return answer


def verify_time_stamp(response: bytes, message: bytes, roots: bytes) -> datetime:
    """When `message` was stamped (UTC), if the stamp is good and leads to one of `roots` (PEM certificates).

    The authority's certificate has to be valid at the stamped time, not today.

    Raises:
        EvidenceError: no certificates in `roots`, a stamp of other bytes, of a foreign authority, or damaged.
    """
    try:
        certificates = load_pem_x509_certificates(roots)
    except ValueError as error:
        raise EvidenceError("the roots of time-stamp authorities are not PEM certificates") from error
    stamp = _decoded(response)
    if stamp.status != _GRANTED:
        raise EvidenceError("the time stamp can't be trusted: it is an authority's refusal to stamp")
    builder = VerifierBuilder()
    for certificate in dict.fromkeys(certificates):  # a root that is there twice is refused
        builder = builder.add_root_certificate(certificate)
    try:
        builder.build().verify_message(stamp, message)
        stamped: datetime = stamp.tst_info.gen_time
    except _UNTRUSTWORTHY as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise EvidenceError(f"the time stamp can't be trusted: {reason or type(error).__name__}") from error
    return stamped.astimezone(UTC)


def read_roots(path: Path | str) -> bytes:
    """The PEM certificates of trusted authorities from a file.

    Raises:
        EvidenceError: it can't be read, or holds none.
    """
    content = read_limited(path, _ROOTS_LIMIT)
    try:
        load_pem_x509_certificates(content)
    except ValueError as error:
        raise EvidenceError(f"{path}: holds no PEM certificates") from error
    return content


def require_stamp_of(response: bytes, message: bytes) -> None:
    """Does nothing if the stamp says that it is of `message`: all that can be seen without an authority's certificate.

    Raises:
        EvidenceError: it is of something else, or damaged.
    """
    try:
        imprint = _decoded(response).tst_info.message_imprint
    except ValueError as error:
        raise EvidenceError("the time stamp is damaged") from error
    if imprint.message not in (hashlib.new(name, message).digest() for name in ("sha256", "sha384", "sha512")):
        raise EvidenceError(_WRONG_ANSWER)


def without_login(url: str) -> str:
    """The address as it may be shown: without a name and password."""
    return re.sub(r"//[^/?#]*@", "//", url)


def _decoded(answer: bytes) -> TimeStampResponse:
    try:
        return decode_timestamp_response(with_sorted_certificates(answer))
    except ValueError as error:
        raise EvidenceError("the time stamp is damaged") from error


def _post(url: str, body: bytes, timeout: float) -> bytes:
    """The answer's body, within `timeout` seconds, whatever comes how slowly."""
    deadline = time.monotonic() + timeout
    try:
        target = _address(httpx.URL(url), url)
        headers = httpx.Headers(_HEADERS | _login(target)).raw
        for _ in range(_MOST_REDIRECTS + 1):
            answer = Wire(target, _until(deadline), Clock()).exchange("POST", target, headers, body)
            if not (300 <= answer.status < 400 and "location" in answer.headers):
                return _content(answer, target)
            target = _next(target, answer.headers["location"])
    except (httpcore.TimeoutException, TooLargeError, httpx.InvalidURL, *_BROKEN) as error:
        raise RemoteError(f"{without_login(url)}: {_reason(error)}") from error
    raise RemoteError(f"{without_login(str(target))}: redirects more than {_MOST_REDIRECTS} times")


def _address(url: httpx.URL, given: str) -> httpx.URL:
    if url.scheme not in ("http", "https") or not url.host:
        raise RemoteError(f"{without_login(given)}: is no address that starts with http:// or https://")
    return url


def _login(url: httpx.URL) -> dict[str, str]:
    """HTTP basic authentication, where the address has a name and password; redirects keep to its host."""
    if not url.userinfo:
        return {}
    return {"Authorization": "Basic " + b64encode(f"{url.username}:{url.password}".encode()).decode()}


def _until(deadline: float) -> Conduct:
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineError
    return Conduct(connect_timeout=left, read_timeout=left, answer_timeout=left, max_answer_bytes=_SIZE_LIMIT)


def _next(asked: httpx.URL, location: str) -> httpx.URL:
    """Where a redirect leads: never to another host, and never from https to http."""
    target = asked.join(location)
    if (target.host, target.port) != (asked.host, asked.port) or target.scheme not in (asked.scheme, "https"):
        shown = without_login(str(asked))
        raise RemoteError(f"{shown}: redirects to {target.scheme}://{target.host}; if that is right, name it yourself")
    return target


def _content(answer: Answer, url: httpx.URL) -> bytes:
    if answer.status != HTTPStatus.OK:
        raise RemoteError(
            f"{without_login(str(url))}: answers {answer.status} {responses.get(answer.status, '')}".rstrip()
        )
    return answer.body


def _reason(error: Exception) -> str:
    if isinstance(error, httpcore.TimeoutException):
        return "gives no answer in time"
    if isinstance(error, TooLargeError):
        return f"answers more than {_SIZE_LIMIT} bytes, which is no time stamp"
    return str(error) or type(error).__name__
