"""Time stamps: asked of a real authority, accepted by `openssl ts -verify`, and refused when anything is off."""

import contextlib
import re
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intaglio.errors import EvidenceError, IntaglioError, RemoteError
from intaglio.evidence import timestamp
from intaglio.evidence.certificate_order import with_sorted_certificates
from intaglio.evidence.timestamp import (
    read_roots,
    request_time_stamp,
    require_stamp_of,
    verify_time_stamp,
    without_login,
)
from time_authority import Authority, Server, needs_openssl, openssl, serving

pytestmark = needs_openssl
MESSAGE = b"what was said"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[Server]:
    with serving(authority) as server:
        yield server


@pytest.fixture(scope="module")
def stamp(server: Server) -> bytes:
    return request_time_stamp(MESSAGE, server.url)


def test_a_stamp_tells_when(server: Server, stamp: bytes, authority: Authority) -> None:
    stamped = verify_time_stamp(stamp, MESSAGE, read_roots(authority.root))
    assert stamped.tzinfo == UTC
    assert abs(datetime.now(UTC) - stamped) < timedelta(minutes=5)
    require_stamp_of(stamp, MESSAGE)
    assert server.asked[0] == "/ application/timestamp-query"


def test_openssl_accepts_it(stamp: bytes, authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(MESSAGE)
    (tmp_path / "stamp.tsr").write_bytes(stamp)
    verify = ("ts", "-verify", "-in", tmp_path / "stamp.tsr", "-CAfile", authority.root)
    openssl(*verify, "-data", tmp_path / "data")
    (tmp_path / "data").write_bytes(MESSAGE + b".")
    with pytest.raises(subprocess.CalledProcessError):
        openssl(*verify, "-data", tmp_path / "data")


def certificates(stamp: bytes) -> tuple[int, bytes, bytes, int]:
    """Where the two certificates of a stamp begin, they themselves, and where they end."""
    headers = [match.start() for match in re.finditer(rb"\x30\x82..\x30\x82.{2}\xa0\x03\x02\x01\x02", stamp, re.DOTALL)]
    assert len(headers) == 2
    ends = [start + 4 + int.from_bytes(stamp[start + 2 : start + 4], "big") for start in headers]
    assert ends[0] == headers[1]
    return headers[0], stamp[headers[0] : ends[0]], stamp[headers[1] : ends[1]], ends[1]


def test_certificates_are_accepted_in_any_order(stamp: bytes, authority: Authority) -> None:
    start, first, second, end = certificates(stamp)
    swapped = stamp[:start] + second + first + stamp[end:]
    assert first > second  # as the authority sends them, against the rule
    assert with_sorted_certificates(stamp) == with_sorted_certificates(swapped) == swapped
    roots = read_roots(authority.root)
    assert verify_time_stamp(swapped, MESSAGE, roots) == verify_time_stamp(stamp, MESSAGE, roots)


@given(st.binary(max_size=60))
def test_sorting_leaves_everything_else_alone(content: bytes) -> None:
    assert sorted(with_sorted_certificates(content)) == sorted(content)


def test_only_the_digest_leaves_the_machine(monkeypatch: pytest.MonkeyPatch, stamp: bytes) -> None:
    sent = []

    def post(url: str, body: bytes, *rest: float) -> bytes:
        sent.append(body)
        return stamp

    monkeypatch.setattr(timestamp, "_post", post)
    with pytest.raises(EvidenceError, match="the time stamp is not one of these bytes"):
        request_time_stamp(MESSAGE, "http://127.0.0.1")  # the stamp at hand answers an older request's nonce
    assert MESSAGE not in sent[0]
    assert len(sent[0]) < 100


def test_a_name_and_password_in_the_address_are_told_to_that_host(server: Server) -> None:
    request_time_stamp(MESSAGE, server.url)
    request_time_stamp(MESSAGE, server.url.replace("//", "//user:se%20cret@") + "/moved")
    assert server.logins[-3:] == [None, *["Basic dXNlcjpzZSBjcmV0"] * 2]


def test_a_redirect_on_the_same_host_is_followed(server: Server, authority: Authority) -> None:
    answer = request_time_stamp(MESSAGE, f"{server.url}/moved")
    assert verify_time_stamp(answer, MESSAGE, read_roots(authority.root))


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("hang", RemoteError, "/hang: gives no answer in time"),
        ("missing", RemoteError, "/missing: answers 404 Not Found"),
        ("broken", RemoteError, "/broken: answers 500 Internal Server Error"),
        ("loop", RemoteError, "/loop: redirects more than 3 times"),
        ("elsewhere", RemoteError, "/elsewhere: redirects to http://elsewhere.invalid; if that is right, name it"),
        ("insecure", RemoteError, "/insecure: redirects to ftp://127.0.0.1"),
        ("garbage", RemoteError, "/garbage: answers something that is not a time stamp"),
        ("huge", RemoteError, "/huge: answers more than 262144 bytes"),
        ("strict", EvidenceError, "/strict: the authority refuses to stamp: "),
        ("other", EvidenceError, "/other: the time stamp is not one of these bytes"),
    ],
)
def test_an_authority_that_misbehaves(
    path: str, kind: type[IntaglioError], message: str, server: Server, stamp: bytes
) -> None:
    server.other = stamp
    with pytest.raises(kind, match=re.escape(message)) as caught:
        request_time_stamp(b"something else", f"{server.url}/{path}", timeout=0.3 if path == "hang" else 10)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "no url", "gopher://127.0.0.1/", "http://[bad/", "http://"])
def test_nobody_there(url: str) -> None:
    with pytest.raises(RemoteError) as caught:
        request_time_stamp(MESSAGE, url, timeout=5)
    assert str(caught.value).startswith(f"{url}: ")


def test_an_answer_that_trickles_is_given_up(server: Server) -> None:
    started = time.monotonic()
    with pytest.raises(RemoteError, match="/trickle: gives no answer in time"):
        request_time_stamp(MESSAGE, f"{server.url}/trickle", timeout=0.4)
    assert time.monotonic() - started < 5


# --- verification ----------------------------------------------------------------------------------------------------


def test_a_stamp_of_other_bytes(stamp: bytes, authority: Authority) -> None:
    with pytest.raises(EvidenceError, match="the time stamp can't be trusted: Mismatch between messages"):
        verify_time_stamp(stamp, MESSAGE + b".", read_roots(authority.root))
    with pytest.raises(EvidenceError, match="another statement's, or changed"):
        require_stamp_of(stamp, MESSAGE + b".")


def test_a_foreign_authority(stamp: bytes, tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="the time stamp can't be trusted: Error while verifying certificates"):
        verify_time_stamp(stamp, MESSAGE, read_roots(Authority(tmp_path).root))


def test_a_refusal_is_no_stamp(authority: Authority) -> None:
    from rfc3161_client import HashAlgorithm, TimestampRequestBuilder

    request = TimestampRequestBuilder().data(MESSAGE).hash_algorithm(HashAlgorithm.SHA256).build()
    refusal = authority.reply(request.as_bytes(), "strict")
    with pytest.raises(EvidenceError, match="it is an authority's refusal to stamp"):
        verify_time_stamp(refusal, MESSAGE, read_roots(authority.root))
    with pytest.raises(EvidenceError, match="the time stamp is damaged"):
        require_stamp_of(refusal, MESSAGE)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "can't be read: No such file"), (b"", "holds no PEM"), (b"\x00" * 9, "holds no PEM")],
)
def test_roots_that_are_none(content: bytes | None, message: str, tmp_path: Path, stamp: bytes) -> None:
    path = tmp_path / "roots.pem"
    if content is not None:
        path.write_bytes(content)
        with pytest.raises(EvidenceError, match="the roots of time-stamp authorities are not PEM certificates"):
            verify_time_stamp(stamp, MESSAGE, content)
    with pytest.raises(EvidenceError, match=f"roots.pem: {message}"):
        read_roots(path)


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x30\x00", bytes(100)])
def test_bytes_that_are_no_stamp(content: bytes, authority: Authority) -> None:
    with pytest.raises(EvidenceError, match="the time stamp is damaged"):
        verify_time_stamp(content, MESSAGE, read_roots(authority.root))
    with pytest.raises(EvidenceError, match="the time stamp is damaged"):
        require_stamp_of(content, MESSAGE)


@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_changed_stamp_gives_one_error_or_the_same_time(
    stamp: bytes, authority: Authority, position: int, bit: int
) -> None:
    """Nothing but an `EvidenceError` escapes, and the time that is believed can't be changed."""
    changed = bytearray(stamp)
    changed[position % len(stamp)] ^= 1 << bit
    roots = read_roots(authority.root)
    with contextlib.suppress(EvidenceError):
        assert verify_time_stamp(bytes(changed), MESSAGE, roots) == verify_time_stamp(stamp, MESSAGE, roots)


def test_no_bit_of_the_certificates_escapes_as_another_error(stamp: bytes, authority: Authority) -> None:
    """An X.509 version of 3, for one, is neither a `ValueError` nor a `VerificationError`."""
    start, _, _, end = certificates(stamp)
    roots = read_roots(authority.root)
    for position in range(start, min(start + 40, end)):
        for bit in range(8):
            changed = bytearray(stamp)
            changed[position] ^= 1 << bit
            with contextlib.suppress(EvidenceError):
                verify_time_stamp(bytes(changed), MESSAGE, roots)


@pytest.mark.parametrize(
    "address", ["http://u:s%40cret@127.0.0.1:1/tsa", "ftp://u:s@cret@host/tsa", "http://u:secret@[::"]
)
def test_a_password_in_an_address_is_not_shown(address: str) -> None:
    with pytest.raises(RemoteError) as raised:
        request_time_stamp(b"statement", address, timeout=2)
    assert "cret" not in str(raised.value)
    assert without_login("https://u:p@host/a@b?c=@d") == "https://host/a@b?c=@d"
