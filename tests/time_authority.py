"""A time-stamp authority on 127.0.0.1, made with `openssl ts`: one that behaves, and one for each way to misbehave."""

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="the openssl program is not installed")

_CONFIG = """
[tsa]
default_tsa = tsa_config
[tsa_config]
serial = {folder}/serial
signer_cert = {folder}/tsa.pem
certs = {folder}/root.pem
signer_key = {folder}/tsa.key
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = {digests}
accuracy = secs:1
ordering = no
tsa_name = no
ess_cert_id_chain = no
ess_cert_id_alg = sha256
"""
_EXTENSIONS = """
[root]
basicConstraints = critical,CA:true
keyUsage = critical,keyCertSign
[tsa]
basicConstraints = critical,CA:false
keyUsage = critical,digitalSignature
extendedKeyUsage = critical,timeStamping
"""


def openssl(*arguments: str | Path) -> str:
    """What the program prints; fails where it fails."""
    return subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, text=True).stdout


class Authority:
    """A root and an authority's certificate under it, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root.pem"
        extensions = folder / "extensions.cnf"
        extensions.write_text(_EXTENSIONS)
        (folder / "serial").write_text("01\n")
        for name, digests in (("tsa", "sha256"), ("strict", "sha512")):
            (folder / f"{name}.cnf").write_text(_CONFIG.format(folder=folder, digests=digests))
        for name in ("root", "tsa"):
            openssl(
                "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", folder / f"{name}.key"
            )
            subject = ("-subj", f"/O=A test/CN={name}")
            openssl("req", "-new", "-key", folder / f"{name}.key", *subject, "-out", folder / f"{name}.csr")
            issuer: tuple[str | Path, ...] = ("-CA", self.root, "-CAkey", folder / "root.key", "-CAcreateserial")
            if name == "root":
                issuer = ("-signkey", folder / "root.key")
            openssl(
                *("x509", "-req", "-in", folder / f"{name}.csr", *issuer, "-days", "2"),
                *("-extfile", extensions, "-extensions", name, "-out", folder / f"{name}.pem"),
            )

    def reply(self, query: bytes, config: str = "tsa") -> bytes:
        """The authority's answer to a request."""
        (self.folder / "query.tsq").write_bytes(query)
        openssl(
            *("ts", "-reply", "-config", self.folder / f"{config}.cnf", "-section", "tsa_config"),
            *("-queryfile", self.folder / "query.tsq", "-out", self.folder / "reply.tsr"),
        )
        return (self.folder / "reply.tsr").read_bytes()


class Server:
    """The authority over HTTP; the path of the URL decides how it behaves."""

    def __init__(self, authority: Authority) -> None:
        self.asked: list[str] = []
        self.logins: list[str | None] = []
        self.released = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                server.asked.append(f"{self.path} {self.headers['Content-Type']}")
                server.logins.append(self.headers["Authorization"])
                query = self.rfile.read(int(self.headers["Content-Length"]))
                name = self.path.strip("/")
                if name == "hang":
                    server.released.wait(30)
                elif name == "trickle":
                    self.trickle()
                elif name in ("missing", "broken"):
                    self.answer({"missing": 404, "broken": 500}[name], b"")
                elif name in ("loop", "moved", "elsewhere", "insecure"):
                    targets = {"moved": "/", "elsewhere": "http://elsewhere.invalid/", "insecure": "ftp://127.0.0.1/"}
                    self.answer(307, b"", location=targets.get(name, "/loop"))
                elif name == "garbage":
                    self.answer(200, b"<html>busy</html>")
                elif name == "huge":
                    self.answer(200, bytes(1 << 19))
                elif name == "other":
                    self.answer(200, server.other)
                else:
                    self.answer(200, authority.reply(query, "strict" if name == "strict" else "tsa"))

            def trickle(self) -> None:
                """Headers without end, so that something comes before any wait for more of them is over."""
                self.wfile.write(b"HTTP/1.0 200 OK\r\n")
                while not server.released.wait(0.05):
                    try:
                        self.wfile.write(b"X: 1\r\n")
                    except OSError:  # whoever asked has gone
                        return

            def answer(self, status: int, content: bytes, location: str | None = None) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                if location is not None:
                    self.send_header("Location", location)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.other = b""
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@contextmanager
def serving(authority: Authority) -> Iterator[Server]:
    """The authority's server, stopped at the end."""
    server = Server(authority)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.http.shutdown()
        thread.join()
        server.http.server_close()
