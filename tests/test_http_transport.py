"""Conduct on the wire: time-outs, retries, pace, redirects, size, proxies, TLS; none of these tests waits."""

import socket
import ssl
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import httpcore
import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from http_servers import START, Asked, FakeTime, Given, raw_serving, serving
from intaglio.classifiers.http_address import checked_address, is_address, origin_of
from intaglio.classifiers.http_conduct import Clock, Conduct
from intaglio.classifiers.http_transport import Reply, Transport, _seconds
from intaglio.errors import ClassifierError, ModelError, RemoteError


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def transport(url: str, time: FakeTime | None = None, secrets: tuple[str, ...] = (), **conduct: Any) -> Transport:
    clock = FakeTime().clock if time is None else time.clock
    headers = {"Authorization": f"Bearer {secrets[0]}"} if secrets else {}
    return Transport(url, conduct=Conduct(**conduct), clock=clock, headers=headers, secrets=secrets)


def in_turn(*answers: Any) -> Callable[[Asked], Any]:
    """Each answer once, then the last again and again."""
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


# --- retries ---------------------------------------------------------------------------------------------------------


def test_passing_errors_are_retried_with_growing_pauses() -> None:
    time, failures = FakeTime(), list[Reply]()
    answers = in_turn(Given(status=503), Given(status=429), Given({"error": "warming\nup"}, 500), Given(b"[1]"))
    with serving(answers) as server:
        reply = transport(server.url, time).ask("POST", server.url + "/a", b"{}", failed=failures.append)
    assert (reply.body, reply.status, reply.problem) == (b"[1]", 200, None)
    assert time.slept == [0.25, 0.5, 1.0]
    assert [failure.status for failure in failures] == [503, 429, 500]
    assert failures[2].problem == "answers with HTTP 500 (warming up)"
    assert [asked.body for asked in server.asked] == [b"{}"] * 4
    assert reply.sent_at == START + timedelta(seconds=1.75)


@pytest.mark.parametrize("jitter", [0.0, 0.5, 0.999])
def test_pauses_double_up_to_the_longest_and_jitter_halves_at_most(jitter: float) -> None:
    conduct = Conduct(first_pause=0.5, longest_pause=60)
    pauses = [conduct.pause(attempt, jitter) / (0.5 + jitter / 2) for attempt in range(12)]
    assert pauses == pytest.approx([0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60])


def test_the_number_of_attempts_is_limited_and_stated() -> None:
    time = FakeTime()
    with serving(in_turn(Given(b"<html>busy</html>", 502))) as server:
        with pytest.raises(RemoteError, match=r"/a: answers with HTTP 502 \(3 attempts\)$"):
            transport(server.url, time, retries=2).ask("GET", server.url + "/a")
        assert len(server.asked) == 3
    assert time.slept == [0.25, 0.5]


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        (Given({"detail": "no such model"}, 404), r"answers with HTTP 404 \(no such model\)$"),
        (Given({"message": "x" * 500}, 400), r"answers with HTTP 400 \(x{120}\)$"),
        (Given(b"plain\x00words", 422), r"answers with HTTP 422 \(plain words\)$"),
        (Given(b"[1, 2]", 405), r"answers with HTTP 405 \(\[1, 2\]\)$"),
        (Given({"error": ""}, 410), "answers with HTTP 410$"),
        (Given(b"", 401), r"answers with HTTP 401; a token goes into the headers of a mapping$"),
        (Given({"error": "no"}, 403), r"answers with HTTP 403 \(no\); a token goes"),
        (Given(b"", 304), "answers with HTTP 304$"),
        (Given(b"{}", 200, {"Content-Encoding": "gzip"}), "answers compressed, though asked not to"),
    ],
)
def test_other_errors_are_not_retried(given_: Given, message: str) -> None:
    with serving(in_turn(given_)) as server:
        with pytest.raises(RemoteError, match=message) as caught:
            transport(server.url).ask("POST", server.url, b"{}")
        assert len(server.asked) == 1
    assert "\n" not in str(caught.value)


# --- Retry-After -----------------------------------------------------------------------------------------------------


def test_retry_after_is_honoured_up_to_the_limit() -> None:
    time = FakeTime()
    date = format_datetime(START + timedelta(seconds=7 + 30))
    answers = in_turn(
        Given(status=429, headers={"Retry-After": "7"}),
        Given(status=503, headers={"Retry-After": date}),
        Given(status=503, headers={"Retry-After": "0"}),
        Given(b"1"),
    )
    with serving(answers) as server:
        assert transport(server.url, time).ask("GET", server.url).body == b"1"
    assert time.slept == [7, 30, 1.0]
    with serving(in_turn(Given(status=429, headers={"Retry-After": "3600"}))) as server:
        with pytest.raises(RemoteError, match=r"answers with HTTP 429; asks to wait 3600 s$"):
            transport(server.url, time).ask("GET", server.url)
        assert len(server.asked) == 1
    assert len(time.slept) == 3


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 0.0),
        ("12", 12.0),
        ("9" * 400, 999999999.0),
        ("-3", 0.0),
        ("soon", 0.0),
        (format_datetime(datetime(2026, 3, 1, 12, 0, 9, tzinfo=UTC)), 9.0),
        (format_datetime(datetime(2026, 3, 1, 14, 0, 9, tzinfo=timezone(timedelta(hours=2)))), 9.0),
        ("Sun, 01 Mar 2026 12:00:09", 9.0),
        ("Sun, 01 Mar 2020 12:00:09 GMT", 0.0),
        ("Sun, 01 Mar 99999999999999999999 12:00:09 GMT", 0.0),
    ],
)
def test_retry_after_forms(text: str, seconds: float) -> None:
    assert _seconds(text, START) == seconds


@given(st.text(max_size=60))
def test_retry_after_reads_any_text(text: str) -> None:
    assert _seconds(text, START) >= 0


# --- pace ------------------------------------------------------------------------------------------------------------


def test_requests_keep_their_distance() -> None:
    time = FakeTime()
    with serving(in_turn(Given(b"1"))) as server:
        paced = transport(server.url, time, requests_per_second=4)
        for _ in range(4):
            paced.ask("GET", server.url)
        assert time.slept == [0.25] * 3
        time.passed += 10
        paced.ask("GET", server.url)
    assert time.slept == [0.25] * 3


# --- redirects -------------------------------------------------------------------------------------------------------


def to(location: str, status: int = 307) -> Given:
    return Given(b"", status, {"Location": location})


def test_redirects_on_the_same_host_repeat_the_question() -> None:
    with serving(in_turn(to("/b"), to("c?x=1", 308), Given(b"[2]"))) as server:
        reply = transport(server.url).ask("POST", f"{server.url}/a/", b"q")
    assert reply.body == b"[2]"
    assert reply.url == f"{server.url}/c?x=1"
    assert [(asked.method, asked.path, asked.body) for asked in server.asked] == [
        ("POST", "/a/", b"q"),
        ("POST", "/b", b"q"),
        ("POST", "/c?x=1", b"q"),
    ]


@pytest.mark.parametrize("location", ["http://example.org/v2", "//example.org:1/", "http://localhost:1/", "ftp://a/b"])
def test_redirects_to_another_host_are_refused(location: str) -> None:
    with serving(in_turn(to(location))) as server:
        with pytest.raises(RemoteError, match=r"redirects to another host \((http|ftp)://[^ ]+\), which is never"):
            transport(server.url).ask("POST", server.url, b"q")
        assert len(server.asked) == 1


def test_redirects_to_another_port_never_reach_it() -> None:
    with serving(in_turn(Given(b"1"))) as other, serving(in_turn(to(other.url))) as server:
        with pytest.raises(RemoteError, match="redirects to another host"):
            transport(server.url).ask("GET", server.url)
        assert other.asked == []


@pytest.mark.parametrize(
    ("answer", "message", "asked"),
    [
        (to("/again"), "redirects more than 3 times", 4),
        (to("/b", 302), r"redirects \(HTTP 302\) in a way that drops the question", 1),
        (to("http://[::1"), "redirects to what is no address", 1),
        (to("http://xn--/"), "redirects to what is no address", 1),
    ],
)
def test_other_redirects_are_refused(answer: Given, message: str, asked: int) -> None:
    with serving(in_turn(answer)) as server:
        with pytest.raises(RemoteError, match=message):
            transport(server.url).ask("POST", server.url, b"q")
        assert len(server.asked) == asked


def test_every_redirect_is_asked_for_and_told() -> None:
    before, failures = list[int](), list[Reply]()
    with serving(in_turn(to("/b"), to("/c?key=token-1234"), Given(status=503), Given(b"[2]"))) as server:
        asking = transport(server.url, secrets=("token-1234",))
        reply = asking.ask("POST", f"{server.url}/a", b"q", before=lambda: before.append(1), failed=failures.append)
        assert len(before) == len(server.asked) == 4
    assert reply.body == b"[2]"
    assert [(failure.url, failure.status, failure.problem) for failure in failures] == [
        (f"{server.url}/a", 307, f"redirects to {server.url}/b"),
        (f"{server.url}/b", 307, f"redirects to {server.url}/c?key=***"),
        (f"{server.url}/c?key=***", 503, "answers with HTTP 503"),
    ]


def test_same_origin_is_told_from_its_likes() -> None:
    same = ("http://Host/x", "http://host:80", "http://host./y")
    other = ("https://host", "http://host:8080", "http://host.org", "http://hos")
    assert {origin_of(httpx.URL(name)) for name in same} == {("http", "host", 80)}
    assert ("http", "host", 80) not in {origin_of(httpx.URL(name)) for name in other}


# --- servers that misbehave ------------------------------------------------------------------------------------------


def test_a_server_that_never_answers() -> None:
    time = FakeTime()
    with raw_serving(None) as url, pytest.raises(RemoteError, match=r"hangs: no answer within 0.02 s \(3 attempts\)"):
        transport(url, time, read_timeout=0.02, retries=2).ask("GET", url)
    assert time.slept == [0.25, 0.5]


@pytest.mark.parametrize(
    ("start", "drop"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X-Filler: 1\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    ],
    ids=["headers", "body"],
)
def test_a_server_that_trickles_without_end_runs_into_the_deadline(start: bytes, drop: bytes) -> None:
    def trickle(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(drop)

    # Each look at the clock takes a second: connecting, sending and one reading are in time.
    with raw_serving(trickle) as url, pytest.raises(RemoteError, match="has not finished its answer within 4 s"):
        transport(url, FakeTime(step=1.0), answer_timeout=4, retries=0).ask("GET", url)


def test_a_deadline_shorter_than_the_time_outs_is_named_as_such() -> None:
    clock = Clock(sleep=lambda _: None)
    with raw_serving(None) as url, pytest.raises(RemoteError, match=r"has not finished its answer within 0\.02 s"):
        Transport(url, conduct=Conduct(answer_timeout=0.02, retries=0), clock=clock, headers={}).ask("GET", url)


def test_too_large_answers_are_cut_off_stated_or_not() -> None:
    with serving(in_turn(Given(b"x" * 101))) as server:
        with pytest.raises(RemoteError, match=r"answers with more than 100 bytes$"):
            transport(server.url, max_answer_bytes=100).ask("GET", server.url)
        assert len(transport(server.url, max_answer_bytes=101).ask("GET", server.url).body or b"") == 101

    def endless(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 1000)

    with raw_serving(endless) as url, pytest.raises(RemoteError, match=r"answers with more than 5000 bytes$"):
        transport(url, max_answer_bytes=5000).ask("GET", url)


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"])
def test_broken_answers_are_retried_then_named(said: bytes) -> None:
    def talk(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(said)

    time = FakeTime()
    with raw_serving(talk) as url, pytest.raises(RemoteError, match=r"breaks off, or does not speak") as caught:
        transport(url, time, retries=1).ask("GET", url)
    assert str(caught.value).endswith("(2 attempts)")
    assert "\n" not in str(caught.value)
    assert len(time.slept) == 1


def test_no_server_and_no_such_host() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(RemoteError, match="can't connect: Connection refused: check the address"):
            transport(url).ask("GET", url)
    with pytest.raises(RemoteError, match=r"http://suspect\.invalid: can't connect: .+: check the address"):
        transport("http://suspect.invalid").ask("GET", "http://suspect.invalid")


def test_time_outs_while_connecting_and_refusing_proxies_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asking = transport("http://a", retries=0)
    errors = {
        "can't be reached within 10 s": httpcore.ConnectTimeout(),
        "the proxy refuses: 407": httpcore.ProxyError("407"),
    }
    for message, error in errors.items():

        def exchange(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(asking._wire, "exchange", exchange)
        with pytest.raises(RemoteError, match=message):
            asking.ask("GET", "http://a")


# --- what is sent ----------------------------------------------------------------------------------------------------


def test_nothing_sent_names_the_examiner_and_headers_can_be_replaced() -> None:
    with serving(in_turn(Given(b"1"))) as server:
        asking = Transport(server.url, conduct=Conduct(), clock=Clock(), headers={"user-agent": "browser/1"})
        asking.ask("POST", server.url, b"x")
        transport(server.url).ask("POST", server.url, b"x")
    first, second = (asked.headers for asked in server.asked)
    assert {name.lower(): value for name, value in first.items()}["user-agent"] == "browser/1"
    assert second["User-Agent"].startswith("python-httpx/")
    assert "intaglio" not in str(server.asked).lower()
    assert second["Accept-Encoding"] == "identity"
    assert "Cookie" not in second


def test_secrets_that_a_server_echoes_are_not_shown() -> None:
    secret = "token-1234"
    with serving(lambda asked: Given({"error": f"bad: {asked.headers['Authorization']}"}, 400)) as server:
        with pytest.raises(RemoteError, match=r"HTTP 400 \(bad: Bearer \*\*\*\)") as caught:
            transport(server.url, secrets=(secret,)).ask("GET", server.url)
        assert server.asked[0].headers["Authorization"] == f"Bearer {secret}"
    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Bearer sk-live/01", "Bearer ***"),
        ("x sk-li...', which", "x ***...', which"),
        ("cut: sk-live/", "cut: ***"),
        (r"in JSON: sk-live\/01!", "in JSON: ***!"),
        ("sk-... sk-", "sk-... sk-"),
    ],
)
def test_secrets_that_were_cut_are_not_shown_either(said: str, shown: str) -> None:
    assert transport("http://a", secrets=("sk-live/01",)).clean(said) == shown


# --- proxies and TLS -------------------------------------------------------------------------------------------------


def test_the_environments_proxy_is_used_and_no_proxy_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(in_turn(Given(b"1"))) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.replace("http://", "http://me:pw@"))
        transport("http://suspect.invalid").ask("GET", "http://suspect.invalid/v2")
        assert proxy.asked[0].path == "http://suspect.invalid/v2"
        assert proxy.asked[0].headers["Proxy-Authorization"].startswith("Basic ")
        monkeypatch.setenv("no_proxy", "suspect.invalid")
        with pytest.raises(RemoteError, match="can't connect"):
            transport("http://suspect.invalid").ask("GET", "http://suspect.invalid/v2")
        assert len(proxy.asked) == 1


@pytest.mark.parametrize("address", ["socks5://127.0.0.1:1", "gopher://a", "http://[::1"])
def test_proxies_that_cannot_be_used_are_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", address)
    with pytest.raises(ClassifierError, match="the environment's http proxy is not"):
        transport("http://suspect.invalid")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "suspect")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(private + signed.public_bytes(Encoding.PEM))
    return path


@pytest.fixture
def secure(certificate: Path) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def talk(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(1000)
            secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n7")

    with raw_serving(talk) as url:
        yield url.replace("http://", "https://")


def test_tls_is_verified(secure: str, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RemoteError, match=r"can't connect: .*CERTIFICATE_VERIFY_FAILED"):
        transport(secure).ask("GET", secure)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert transport(secure).ask("GET", secure).body == b"7"


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ftp://host/m", "ftp://host/m: only http:// and https://"),
        ("http://", "names no host"),
        ("http://[::1", "not a URL"),
        ("http://host:port/", "not a URL"),
        ("http://a..b/", "not a URL"),
        ("http://xn--/", "not a URL"),
        ("http://xn--a/v2/models/x", "not a URL"),
        (f"http://{'a' * 70}.org/", "not a URL"),
        ("http://me:secret@host/m", r"http://\.\.\.: holds a user name or password"),
    ],
)
def test_addresses_that_cannot_be_used(address: str, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        checked_address(address)
    assert "secret" not in str(caught.value)


def test_addresses_that_can() -> None:
    assert checked_address("https://host:8443/v2/models/m?x=1#part") == "https://host:8443/v2/models/m?x=1"
    assert is_address("s3://bucket/x")
    assert not is_address("folder/model.onnx")
    assert not is_address("package.module:factory")


def test_replies_hold_the_digest_of_what_was_asked() -> None:
    with serving(in_turn(Given(b"1"))) as server:
        reply = transport(server.url).ask("POST", server.url + "/q", b"abc")
    assert reply.request_sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
