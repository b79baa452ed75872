"""A throw-away PostgreSQL server on a free loopback port, in a temporary folder, for the length of the test session."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

#: Characters that a URL and a careless error message both stumble over.
PASSWORD = "s3cret:/%p ss"
OWNER = "owner"
DATABASE = "postgres"


class PostgresServer:
    """A running server; `database()` is the URL of an empty database."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.port = folder, port

    def url(self, database: str, password: str = PASSWORD) -> str:
        return f"postgresql+psycopg://{OWNER}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host="127.0.0.1", port=self.port, user=OWNER, password=PASSWORD, dbname=database, autocommit=True
        )

    def database(self) -> str:
        """Empties the one database and gives its URL: quicker by far than a new database for each test."""
        with self.connect(DATABASE) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
        return self.url(DATABASE)


def start_server() -> PostgresServer:
    """Starts a server, or skips the test where PostgreSQL isn't installed. The server refuses to run as root."""
    initdb, pg_ctl = _program("initdb"), _program("pg_ctl")
    if initdb is None or pg_ctl is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    account = _account()
    if account is not None:
        os.chown(folder, account.pw_uid, account.pw_gid)
    try:
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o644)
        common = ["--auth=scram-sha-256", f"--pwfile={folder / 'password'}", f"--username={OWNER}"]
        _run([initdb, "-D", str(folder / "data"), *common, "--encoding=UTF8", "--locale=C", "--no-sync"], folder)
        for attempt in range(3):
            port = _free_port()
            # -F: no fsync. The port may be taken between asking and starting, hence the attempts.
            options = f"-h 127.0.0.1 -p {port} -k {folder} -F"
            started = [pg_ctl, "-D", str(folder / "data"), "-l", str(folder / "log"), "-w", "-t", "60"]
            try:
                _run([*started, "-o", options, "start"], folder)
            except subprocess.CalledProcessError:
                if attempt == 2:
                    raise
            else:
                break
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return PostgresServer(folder, port)


def stop_server(server: PostgresServer) -> None:
    pg_ctl = _program("pg_ctl")
    assert pg_ctl is not None
    try:
        _run([pg_ctl, "-D", str(server.folder / "data"), "-m", "immediate", "-w", "stop"], server.folder)
    finally:
        shutil.rmtree(server.folder, ignore_errors=True)


def _program(name: str) -> str | None:
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name, reverse=True)
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *map(str, installed)]))


def _account() -> pwd.struct_passwd | None:
    """Whom to run as in root's stead; None when not root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    return pytest.skip("PostgreSQL refuses root, and there is no user postgres or nobody")


def _run(command: list[str], folder: Path) -> None:
    account = _account()
    subprocess.run(
        command,
        check=True,
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("PG")},
        user=None if account is None else account.pw_uid,
        group=None if account is None else account.pw_gid,
        extra_groups=None if account is None else [],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # the server inherits it: a pipe would never end
        stderr=subprocess.DEVNULL,
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
