"""The registry on SQLite and on PostgreSQL: what goes in comes out, once, also with several writers at a time."""

import json
import multiprocessing
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, ClassVar

import pytest
from alembic import op
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from intaglio.errors import EvidenceError
from intaglio.evidence.key import Key
from intaglio.evidence.registry import Registry, schema
from intaglio.evidence.registry.models import Base
from intaglio.evidence.registry.schema import VERSION_TABLE
from intaglio.results import Result
from registry_server import DATABASE, PASSWORD, PostgresServer, start_server, stop_server

KEY = Key(bytes(32))
OWNER = KEY.public_key.hex()[:12]
DIGEST, OTHER = "0" * 63 + "1", "0" * 63 + "2"
ENVELOPE = '{ "payload":"e30=",  "signatures": [] }'
CLAIM = {"hits": 90, "trials": 100, "p_value": 1e-70, "verified": True, "scheme": "ä\u2028"}


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    running = start_server()
    yield running
    stop_server(running)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place for a registry, with nothing in it."""
    if request.param == "sqlite":
        return str(tmp_path / "made" / "registry.sqlite")
    server: PostgresServer = request.getfixturevalue("server")
    return server.database()


@pytest.fixture
def registry(place: str) -> Iterator[Registry]:
    with Registry.open(place) as opened:
        yield opened


def url_of(place: str) -> str:
    return place if "://" in place else f"sqlite:///{place}"


def committed(registry: Registry, mark_id: str = "mark-1") -> None:
    registry.add_owner(KEY.public_key, "Ada")
    registry.add_model(DIGEST, name="host", input_shape=(1, 28, 28), classes=10)
    registry.add_commitment(ENVELOPE, mark_id, KEY.public_key, DIGEST)


# --- entries ---------------------------------------------------------------------------------------------------------


def test_an_owner_is_added_once_and_keeps_the_name(registry: Registry) -> None:
    before = datetime.now(UTC)
    first = registry.add_owner(KEY.public_key)
    assert before <= first.recorded <= datetime.now(UTC)
    assert (first.public_key, first.name) == (KEY.public_key.hex(), "")
    named = registry.add_owner(KEY.public_key.hex().upper(), "Ada")
    assert named == first.model_copy(update={"name": "Ada"})
    assert registry.add_owner(KEY.public_key, "Mallory") == named
    assert registry.owners() == (named,)
    assert type(named).from_json(named.to_json()) == named


def test_a_model_is_added_once_and_keeps_its_shape(registry: Registry) -> None:
    model = registry.add_model(DIGEST, name="host", input_shape=(1, 28, 28), classes=10, notes="for café")
    assert registry.add_model(DIGEST, name="copy", input_shape=(1, 28, 28), classes=10) == model
    for shape, classes in (((3, 28, 28), 10), ((1, 28, 28), 11)):
        with pytest.raises(EvidenceError, match=r"is registered with input \(1, 28, 28\) and 10 classes, not"):
            registry.add_model(DIGEST, input_shape=shape, classes=classes)
    second = registry.add_model(OTHER, input_shape=(), classes=2)
    assert registry.models() == (model, second)


def test_a_commitment_comes_back_byte_for_byte(registry: Registry) -> None:
    with pytest.raises(EvidenceError, match=rf"owner {OWNER} is not in the registry; add it first \(add_owner\)"):
        registry.add_commitment(ENVELOPE, "mark-1", KEY.public_key, DIGEST)
    registry.add_owner(KEY.public_key)
    with pytest.raises(EvidenceError, match=r"model 000000000000 is not in the registry; add it first \(add_model\)"):
        registry.add_commitment(ENVELOPE, "mark-1", KEY.public_key, DIGEST)
    assert registry.commitments() == ()
    committed(registry)
    (found,) = registry.commitments(mark_id="mark-1")
    assert (found.envelope, found.owner, found.model_sha256, found.stamp) == (
        ENVELOPE,
        KEY.public_key.hex(),
        DIGEST,
        None,
    )
    assert registry.add_commitment(ENVELOPE, "mark-1", KEY.public_key, DIGEST) == found
    with pytest.raises(EvidenceError, match="mark-1 has another commitment already"):
        registry.add_commitment('{"payload": ""}', "mark-1", KEY.public_key, DIGEST)
    assert registry.commitments(owner=KEY.public_key.hex()) == (found,)
    assert registry.commitments(owner=DIGEST) == registry.commitments(mark_id="mark-2") == ()


def test_the_first_time_stamp_counts(registry: Registry) -> None:
    committed(registry)
    stamped = registry.add_stamp("mark-1", b"\x30\x00")
    assert stamped.stamp == "MAA="
    assert registry.add_stamp("mark-1", b"\x30\x00") == stamped
    assert registry.add_commitment(ENVELOPE, "mark-1", KEY.public_key, DIGEST, stamp=b"\x30\x00") == stamped
    with pytest.raises(EvidenceError, match="another time stamp already"):
        registry.add_stamp("mark-1", b"later")
    with pytest.raises(EvidenceError, match="another time stamp already"):
        registry.add_commitment(ENVELOPE, "mark-1", KEY.public_key, DIGEST, stamp=b"later")
    with pytest.raises(EvidenceError, match="mark-2 has no commitment"):
        registry.add_stamp("mark-2", b"\x30\x00")
    assert registry.commitments() == (stamped,)
    both = registry.add_commitment(ENVELOPE, "mark-2", KEY.public_key, DIGEST, stamp=b"\x30\x00")
    assert registry.commitments() == (stamped, both)


def test_a_batch_is_spent_once(registry: Registry) -> None:
    assert registry.next_batch("mark-1", 3) == 0
    spent = registry.spend_batch("mark-1", 0, "https://example.com/model")
    with pytest.raises(EvidenceError, match=r"batch 0 of mark mark-1 is spent: .* for https://example.com/model on 20"):
        registry.spend_batch("mark-1", 0, "another")
    registry.spend_batch("mark-1", 2, "another")
    registry.spend_batch("mark-2", 0, "another")
    assert [entry.batch for entry in registry.spent_batches("mark-1")] == [0, 2]
    assert registry.spent_batches()[0] == spent
    assert registry.next_batch("mark-1", 3) == 1
    registry.spend_batch("mark-1", 1, "third")
    with pytest.raises(EvidenceError, match="all 3 batches of mark mark-1 are spent"):
        registry.next_batch("mark-1", 3)
    assert registry.next_batch("mark-1", 4) == 3


class Check(Result):
    """Stands for the results of the capabilities, which the registry knows by their fields alone."""

    intact: bool
    mismatches: int


def test_verifications_count_suspects_and_keys(registry: Registry) -> None:
    assert registry.suspects_tried("mark-1") == registry.keys_tried("a") == 0
    assert registry.suspects_tried("mark-1", including="a") == registry.keys_tried("a", including="mark-1") == 1
    failed = CLAIM | {"hits": 9, "p_value": 0.5, "verified": False}
    first = registry.record_verification("mark-1", "a", CLAIM)
    registry.record_verification("mark-1", "a", failed)
    registry.record_verification("mark-1", "b", failed)
    last = registry.record_verification("mark-2", "a", failed)
    assert (registry.suspects_tried("mark-1"), registry.keys_tried("a"), registry.keys_tried("b")) == (2, 2, 1)
    assert registry.suspects_tried("mark-1", including="a") == 2
    assert registry.suspects_tried("mark-1", including="c") == 3
    assert registry.keys_tried("b", including="mark-9") == 2
    assert first.result == CLAIM
    assert (first.hits, first.trials, first.p_value, first.verified) == (90, 100, 1e-70, True)
    assert registry.verifications(mark_id="mark-1", suspect="a")[0] == first
    assert len(registry.verifications()) == 4
    assert registry.verifications(limit=1) == (last,)


def test_a_suspect_is_known_by_its_digest_and_not_by_its_path(registry: Registry) -> None:
    """Two paths of one file are one suspect, two files at one path are two; a server is known by its address."""
    for suspect, digest in (
        ("m.onnx", DIGEST),
        ("/home/ada/m.onnx", DIGEST),
        ("m.onnx", OTHER),
        ("http://a", None),
        ("http://a", None),
        ("http://b", None),
    ):
        registry.record_verification("mark-1", suspect, CLAIM | {"suspect_sha256": digest})
    assert registry.suspects_tried("mark-1") == registry.suspects_tried("mark-1", including=DIGEST) == 4
    assert registry.suspects_tried("mark-1", including="http://b") == 4
    assert registry.suspects_tried("mark-1", including="m.onnx") == 5  # no such file: a server of that name
    registry.record_verification("mark-2", "elsewhere.onnx", CLAIM | {"suspect_sha256": DIGEST})
    registry.record_verification("mark-3", "m.onnx", CLAIM | {"suspect_sha256": OTHER})
    assert [registry.keys_tried(known) for known in (DIGEST, OTHER, "http://a", "m.onnx")] == [2, 2, 1, 0]
    registry.record_verification("mark-4", "m.onnx", CLAIM)  # of a result that does not tell
    assert registry.keys_tried("m.onnx", including="mark-1") == 2


def test_verdicts_and_seal_checks_keep_all_of_a_result(registry: Registry) -> None:
    verdict = registry.record_verdict(DIGEST, {"flagged": True, "p_value": 0.25, "evidence": [{"index": 3}]})
    assert registry.verdicts(model_sha256=DIGEST) == (verdict,)
    assert verdict.result == {"flagged": True, "p_value": 0.25, "evidence": [{"index": 3}]}
    assert registry.verdicts(model_sha256=OTHER) == ()
    checks = [
        registry.record_seal_check("seal", "a", Check(intact=index < 2, mismatches=index // 2)) for index in range(4)
    ]
    assert registry.seal_checks(seal_id="seal", suspect="a") == tuple(checks)
    assert registry.seal_checks(limit=2) == tuple(checks[2:])
    assert [check.intact for check in checks] == [True, True, False, False]
    assert registry.seal_checks(suspect="b") == registry.seal_checks(limit=0) == ()
    assert checks[3].result == {"intact": False, "mismatches": 1}


def test_history_tells_everything_in_order(registry: Registry) -> None:
    committed(registry)
    registry.spend_batch("mark-1", 0, "a")
    registry.record_verification("mark-1", "a", CLAIM)
    registry.record_verdict(OTHER, {"flagged": False, "p_value": 0.5})
    registry.record_seal_check("seal", "a", {"intact": False})
    told = [(entry.event, entry.identity, entry.suspect, entry.statement) for entry in registry.history()]
    assert told == [
        ("owner", KEY.public_key.hex(), None, "Ada"),
        ("model", DIGEST, None, "host"),
        ("commitment", "mark-1", None, f"on model 000000000000 by owner {OWNER}"),
        ("spent", "mark-1", "a", "batch 0"),
        ("verification", "mark-1", "a", "verified: 90 of 100 triggers, p = 1e-70"),
        ("verdict", OTHER, None, "not flagged, p = 0.5"),
        ("seal check", "seal", "a", "tampered"),
    ]

    def events(identity: str | None, limit: int | None = None) -> list[str]:
        return [entry.event for entry in registry.history(identity, limit=limit)]

    assert events("mark-1") == ["commitment", "spent", "verification"]
    assert events("a") == ["spent", "verification", "seal check"]
    assert events("a", 2) == ["verification", "seal check"]
    assert events(DIGEST) == ["model", "commitment"]
    assert events(KEY.public_key.hex()) == ["owner", "commitment"]
    assert events("nobody") == events(None, 0) == []
    summary = registry.summary()
    assert (summary.version, summary.location) == ("0001", registry.name)
    assert set(summary.counts.values()) == {1}


NONSENSE: list[tuple[Callable[[Registry], Any], str]] = [
    (lambda r: r.add_owner(b"short"), "public_key: String should match pattern"),
    (lambda r: r.add_owner(bytes(32), "a\nb"), "name: holds a control character"),
    (lambda r: r.add_owner(bytes(32), "\udc80"), "name: Input should be a valid string"),
    (lambda r: r.add_model("x" * 64, input_shape=(1,), classes=2), "sha256: String should match"),
    (lambda r: r.add_model(DIGEST, input_shape=(-1,), classes=2), "input_shape.0: Input should be greater"),
    (lambda r: r.add_model(DIGEST, input_shape=(1,), classes=2**31), "classes: Input should be less than"),
    (lambda r: r.add_commitment("{", "m", bytes(32), DIGEST), "this is not JSON"),
    (lambda r: r.add_commitment("[" * 99999, "m", bytes(32), DIGEST), "this is not JSON"),
    (lambda r: r.add_commitment("[]", "m", bytes(32), DIGEST), "another kind of JSON"),
    (lambda r: r.add_commitment("{}", "", bytes(32), DIGEST), "mark_id: String should have at least 1"),
    (lambda r: r.spend_batch("m", -1, "a"), "batch: Input should be greater than or equal to 0"),
    (lambda r: r.spend_batch("m\0", 0, "a"), "mark_id: holds a control character"),
    (lambda r: r.spend_batch("m", 0, ""), "suspect: String should have at least 1"),
    (lambda r: r.record_verification("m", "a", {"hits": 1}), "a result without 'trials' can't be recorded"),
    (lambda r: r.record_verification("m", "a", CLAIM | {"hits": 101}), "101 hits in 100 trials"),
    (lambda r: r.record_verification("m", "a", CLAIM | {"p_value": 1.5}), "p_value: Input should be less than"),
    (lambda r: r.record_verdict(DIGEST, {"flagged": 1, "p_value": float("nan")}), "not JSON can't be recorded"),
    (lambda r: r.record_seal_check("s", "a", {"intact": object()}), "not JSON can't be recorded"),
    (lambda r: r.commitments(mark_id="\udc80"), "the registry can't be used"),
]


def test_what_makes_no_sense_is_refused(registry: Registry) -> None:
    for act, message in NONSENSE:
        with pytest.raises(EvidenceError, match=message):
            act(registry)
    assert set(registry.summary().counts.values()) == {0}


# --- several at once -------------------------------------------------------------------------------------------------

WRITERS, BATCHES, VERIFICATIONS = 3, 12, 15
_START: dict[str, Barrier] = {}


def _take(barrier: Barrier) -> None:
    _START["barrier"] = barrier


def _write(place: str, writer: int) -> list[int]:
    """Opens an empty place, spends what it can, records, and tells which batches it got."""
    _START["barrier"].wait(120)
    won = []
    with Registry.open(place, timeout=60) as registry:
        committed(registry)
        for index in range(BATCHES):
            try:
                registry.spend_batch("mark-1", index, f"suspect-{writer}")
            except EvidenceError as error:
                assert "is spent" in str(error)  # noqa: PT017
            else:
                won.append(index)
        for index in range(VERIFICATIONS):
            registry.record_verification("mark-1", f"suspect-{writer}-{index}", CLAIM)
    return won


@pytest.fixture(scope="module")
def writers() -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WRITERS, context, initializer=_take, initargs=(context.Barrier(WRITERS),)) as pool:
        yield pool


def test_concurrent_writers_lose_nothing(place: str, writers: ProcessPoolExecutor) -> None:
    won = list(writers.map(_write, [place] * WRITERS, range(WRITERS)))
    assert sorted(index for batches in won for index in batches) == list(range(BATCHES))
    with Registry.open(place, create=False) as registry:
        spent = registry.spent_batches("mark-1")
        assert {entry.batch: entry.suspect for entry in spent} == {
            index: f"suspect-{writer}" for writer, batches in enumerate(won) for index in batches
        }
        assert {entry.suspect for entry in registry.verifications()} == {
            f"suspect-{writer}-{index}" for writer in range(WRITERS) for index in range(VERIFICATIONS)
        }
        assert registry.suspects_tried("mark-1") == len(registry.verifications()) == WRITERS * VERIFICATIONS
        assert (len(registry.owners()), len(registry.models()), len(registry.commitments())) == (1, 1, 1)


def test_threads_share_one_registry(registry: Registry) -> None:
    def spend(suspect: int) -> bool:
        try:
            return registry.spend_batch("mark-1", 0, str(suspect)).suspect == str(suspect)
        except EvidenceError:
            return False

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(spend, range(8))) == 1
    assert len(registry.spent_batches()) == 1


@contextmanager
def locked(place: str) -> Iterator[None]:
    """Another program holds the registry's write lock."""
    if "://" not in place:
        with closing(sqlite3.connect(place, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
        return
    engine = create_engine(place)
    with engine.begin() as other_connection:
        other_connection.execute(text("LOCK TABLE spent_batches IN EXCLUSIVE MODE"))
        yield
    engine.dispose()


def test_a_locked_registry_says_so_and_readers_go_on(place: str) -> None:
    with Registry.open(place, timeout=0.05) as registry:
        registry.spend_batch("mark-1", 0, "a")
        with locked(place), Registry.open(place, create=False, timeout=0.05) as reader:
            assert reader.next_batch("mark-1", 2) == 1
            with pytest.raises(EvidenceError, match=r"locked by another program for more than 0.05 s"):
                registry.spend_batch("mark-1", 1, "a")
        registry.spend_batch("mark-1", 1, "a")
        assert len(registry.spent_batches()) == 2


def test_a_closed_registry_says_so(registry: Registry) -> None:
    registry.close()
    with pytest.raises(EvidenceError, match="this registry was closed"):
        registry.owners()


# --- the schema ------------------------------------------------------------------------------------------------------


def tables(place: str) -> set[str]:
    engine = create_engine(url_of(place))
    try:
        return set(inspect(engine).get_table_names())
    finally:
        engine.dispose()


def change(place: str, *statements: str) -> None:
    if "://" not in place:
        Path(place).parent.mkdir(exist_ok=True)
    engine = create_engine(url_of(place))
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def differences(place: str) -> list[Any]:
    """What alembic would change in the database to make it as the models are."""
    engine = create_engine(url_of(place))
    options = {"version_table": VERSION_TABLE, "compare_type": True, "compare_server_default": True}
    try:
        with engine.connect() as connection:
            return list(compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata))
    finally:
        engine.dispose()


def test_migrations_make_the_tables_of_the_models(place: str) -> None:
    Registry.open(place).close()
    assert differences(place) == []
    change(place, "DROP INDEX ix_verdicts_model_sha256", "ALTER TABLE owners DROP COLUMN name")
    assert len(differences(place)) == 2  # the comparison does see


def test_a_newer_database_is_refused_and_left_alone(place: str) -> None:
    Registry.open(place).close()
    change(place, f"UPDATE {VERSION_TABLE} SET version_num = '0099'")
    with pytest.raises(
        EvidenceError, match=r"written by a newer intaglio .tables of version '0099', this one knows up"
    ):
        Registry.open(place)
    change(place, f"UPDATE {VERSION_TABLE} SET version_num = '0001'", f"INSERT INTO {VERSION_TABLE} VALUES ('0098')")
    with pytest.raises(EvidenceError, match=r"newer intaglio .tables of version '0098'"):
        Registry.open(place)


def test_another_applications_tables_are_left_alone(place: str) -> None:
    change(place, "CREATE TABLE models (id INTEGER)", "CREATE TABLE alembic_version (version_num TEXT)")
    with pytest.raises(EvidenceError, match=r"holds another application's table '(alembic_version|models)'"):
        Registry.open(place)
    assert tables(place) == {"models", "alembic_version"}
    with pytest.raises(EvidenceError, match="holds no registry yet"):
        Registry.open(place, create=False)


def test_a_failed_migration_leaves_nothing(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(op, "create_index", fail)
        with pytest.raises(KeyboardInterrupt):
            Registry.open(place)
    assert tables(place) == set()
    with Registry.open(place) as registry:
        committed(registry)


REVISION = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = "0002", "0001"
def upgrade():
    op.add_column("owners", sa.Column("country", sa.Text, nullable=False, server_default="nowhere"))
"""


def test_an_upgrade_keeps_what_is_there(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Registry.open(place) as registry:
        committed(registry)
        before = registry.history()
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "revision_0002.py").write_text(REVISION)
    config = Config()
    config.set_main_option("script_location", "intaglio.evidence.registry:migrations")
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", f"intaglio.evidence.registry:migrations/versions\n{tmp_path / 'later'}")
    with monkeypatch.context() as later:
        later.setattr(schema, "_config", lambda: config)
        schema._versions.cache_clear()
        with Registry.open(place) as registry:
            assert registry.summary().version == "0002"
            assert registry.history() == before
        assert [difference[0] for difference in differences(place)] == ["remove_column"]
    schema._versions.cache_clear()
    with pytest.raises(EvidenceError, match="newer intaglio"):
        Registry.open(place)


# --- PostgreSQL alone ------------------------------------------------------------------------------------------------


class TestPostgres:
    SPELLINGS: ClassVar = ["postgres://", "postgresql://", "postgresql+psycopg://"]

    @pytest.mark.parametrize("scheme", SPELLINGS)
    def test_the_name_never_has_the_password(self, server: PostgresServer, scheme: str) -> None:
        url = server.database()
        with Registry.open(scheme + url.split("://")[1]) as registry:
            assert registry.name == f"postgresql+psycopg://owner@127.0.0.1:{server.port}/{DATABASE}"
            assert PASSWORD not in json.dumps(registry.summary().to_dict())

    def test_other_tables_may_stand_beside(self, server: PostgresServer) -> None:
        url = server.database()
        change(url, "CREATE TABLE stock (id INTEGER)", "CREATE TABLE alembic_version (version_num TEXT)")
        with Registry.open(url) as registry:
            committed(registry)
        assert {"stock", "alembic_version", "owners"} <= tables(url)

    def test_the_server_says_no(self, server: PostgresServer) -> None:
        for url, message in (
            (server.url("postgres", "wr%ng/s3cret"), "password authentication failed"),
            (server.url("missing"), 'database "missing" does not exist'),
            (server.url("postgres") + "?sslmode=require&password=wr%25ng%2Fs3cret", "SSL"),
            (server.url("postgres") + "?nonsense=s3cret", "invalid connection option"),
        ):
            with pytest.raises(EvidenceError, match=message) as caught:
                Registry.open(url)
            assert "s3cret" not in str(caught.value)
            assert "\n" not in str(caught.value)
