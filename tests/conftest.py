"""Fixtures of the whole suite: the backends, and their choice on the command line."""

from __future__ import annotations

import gc
import os
import signal
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests.support import elasticsearch, elasticsearch_server, postgresql
from tests.support.backends import NAMES, AnyEngine, Backend, Kind, kinds, open_backend

# A slow machine is no failure. In CI every run draws the same examples: a red build is about the change.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--backend``."""
    parser.addoption(
        "--backend",
        action="append",
        choices=NAMES,
        default=[],
        metavar="NAME",
        help="run the tests that need a backend on this one only; may be given several times: " + ", ".join(NAMES),
    )
    parser.addoption(
        "--soak", action="store_true", help="run what takes minutes too, which otherwise only the soak targets do"
    )
    parser.addoption(
        "--share",
        choices=("main", "again"),
        help="run the tests of what happens to tables and rows on one database each: in a main run on the one, "
        "when they run again on the other; by default on both",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the suite's markers, and take interrupts, which tests send to themselves and to programs they start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As in a job that a shell runs in the background; what it starts would ignore them too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers",
        "backends(*names, family=None, is_async=None, plugin=None): run a test that takes `backend` only on "
        "the backends named, or only on those with these properties",
    )
    config.addinivalue_line(
        "markers", "long: kills, faults and random programs; they run with the newest versions of everything only"
    )
    config.addinivalue_line("markers", "soak: takes minutes; the soak targets run it, with --soak")


RUN = pytest.StashKey[elasticsearch_server.Run]()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process of pytest-xdist what it shares with the others."""
    if os.name == "posix":
        if RUN not in node.config.stash:
            node.config.stash[RUN] = elasticsearch_server.Run()
        run = node.config.stash[RUN]
        node.workerinput["elasticsearch_run"] = str(run.directory)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End what the processes shared."""
    if run := config.stash.get(RUN, None):
        run.close()


WORK = (
    *("search", "tuning", "query", "alembic", "migrations"),
    *("embedding", "tracking", "chunking", "cli", "elasticsearch"),
)
"""Folders whose tests are of what happens to tables and rows."""

ONE_OF_EACH = ("psycopg", "asyncpg", "sqlite_stdlib", "pysqlite3", "aiosqlite")
"""What they run on if they name no drivers: a synchronous and an asynchronous one for each database."""

LEFT_TO_OTHERS = {"asyncpg": "psycopg", "pysqlite3": "aiosqlite", "sqlite_stdlib": "aiosqlite"}
"""Where they do not run if they run on the other, and the command line names none: other runs of `make test` do."""

OF_ANY_DRIVER = ("test_nearest_", "test_ddl_", "test_mappings", "test_reflection", "test_explain")
"""How the names of files begin whose tests are of statements: how vectors travel on each driver others test."""

AGAIN_ON = {"elasticsearch": ("psycopg", "aiosqlite")}
"""Where the tests of a room run again; elsewhere on asyncpg and pysqlite3."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that takes ``backend`` once on every backend that its marker admits."""
    if "backend" not in metafunc.fixturenames:
        return
    # Those not asked for are deselected later: a test without parameters would count as skipped.
    candidates = kinds(list(NAMES))
    markers = list(metafunc.definition.iter_markers("backends"))
    room = _room_of(metafunc.definition)
    if room in WORK and not any(marker.args for marker in markers):
        candidates = kinds(list(ONE_OF_EACH))
    for marker in markers:
        candidates = [kind for kind in candidates if _admits(kind, *marker.args, **marker.kwargs)]
    admitted = candidates
    if room in WORK and not metafunc.config.getoption("--backend"):
        names = {kind.name for kind in candidates}
        candidates = [kind for kind in candidates if LEFT_TO_OTHERS.get(kind.name) not in names]
    share = metafunc.config.getoption("--share")
    if room in WORK and share:
        candidates = _shared(metafunc.definition, admitted, candidates, share)
    if share == "main" and metafunc.definition.path.name.startswith(OF_ANY_DRIVER):
        candidates = _without_spare(metafunc.definition, candidates)
    if not candidates:
        raise pytest.UsageError(f"{metafunc.definition.nodeid}: its `backends` marker admits no backend")
    metafunc.parametrize("backend", candidates, indirect=True, ids=[kind.name for kind in candidates])


def _shared(test: pytest.Function, admitted: list[Kind], candidates: list[Kind], share: str) -> list[Kind]:
    """Return the backends on which a test runs that runs a second time elsewhere, on another database if it can."""
    names = AGAIN_ON.get(_room_of(test), ("asyncpg", "pysqlite3"))
    again = [kind for kind in admitted if kind.name in names and test.get_closest_marker("long") is None]
    families = sorted({kind.family for kind in again})
    if not families:
        return candidates
    family = families[zlib.crc32(test.nodeid.encode()) % len(families)]
    if share == "again":
        return [kind for kind in again if kind.family == family][:1]
    return [kind for kind in candidates if kind.family != family] or candidates


def _without_spare(test: pytest.Function, candidates: list[Kind]) -> list[Kind]:
    """Leave one of the further drivers of PostgreSQL, another one for each test."""
    spare = [kind for kind in candidates if kind.family == "postgresql" and kind.name != "psycopg"]
    left = spare and [spare[zlib.crc32(test.nodeid.encode()) % len(spare)]]
    return [kind for kind in candidates if kind not in spare or kind in left]


def _admits(kind: Kind, *names: str, **properties: Any) -> bool:
    """Whether the marker ``backends(*names, **properties)`` admits ``kind``."""
    unknown = {*names}.difference(NAMES) | {*properties}.difference({"family", "is_async", "plugin"})
    if unknown:
        raise pytest.UsageError(f"unknown in a `backends` marker: {', '.join(sorted(unknown))}")
    return (not names or kind.name in names) and all(
        getattr(kind, key) == value for key, value in properties.items() if value is not None
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the backends that ``--backend`` does not name."""
    if addresses := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        # Every process of a parallel run has others, and none of them would run anything.
        raise pytest.UsageError(f"the name of a test has an address in it: {addresses[0]}; give ids=")
    chosen = {kind.name for kind in kinds(config.getoption("--backend"))}
    deselected = [item for item in items if _kind_of(item) not in {None, *chosen}]
    if not config.getoption("--soak"):
        deselected += [item for item in items if item.get_closest_marker("soak") and item not in deselected]
    if deselected:
        config.hook.pytest_deselected(items=deselected)
        items[:] = [item for item in items if item not in set(deselected)]


def pytest_collection_finish() -> None:
    """Leave the tests to themselves.

    Thousands of them are no rubbish: whoever looks for some need not look at them.  And what they write is not compiled
    to be kept, since two versions of a module in one second would be taken for one.
    """
    gc.collect()
    gc.freeze()
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


def _room_of(item: pytest.Item) -> str:
    return item.path.relative_to(Path(__file__).parent).parts[0]


def _kind_of(item: pytest.Item) -> str | None:
    """Return the name of the backend on which a test runs, None when it needs none."""
    callspec = getattr(item, "callspec", None)
    kind = callspec.params.get("backend") if callspec else None
    return kind.name if isinstance(kind, Kind) else None


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[postgresql.PostgreSQLServer]:
    """A PostgreSQL server with pgvector, for this process; its ``database()`` makes an empty database."""
    if reason := postgresql.why_unavailable():
        _unavailable(reason)
    with postgresql.running_server() as server:
        yield server


@pytest.fixture
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """Each backend in turn, with an empty database of its own."""
    kind: Kind = request.param
    if reason := kind.why_unavailable():
        _unavailable(reason)
    with open_backend(kind, tmp_path, lambda: request.getfixturevalue("postgresql_server")) as opened:
        yield opened


@pytest.fixture
def engine(backend: Backend) -> AnyEngine:
    """An Engine or AsyncEngine on the backend's empty database, where ``vector`` is not created yet."""
    return backend.make_engine()


@pytest.fixture(scope="session")
def elasticsearch_node(request: pytest.FixtureRequest) -> Iterator[elasticsearch_server.Server]:
    """An Elasticsearch server for all processes of this run; it has a ``url``."""
    if reason := elasticsearch.why_unavailable():
        _unavailable(reason)
    worker = getattr(request.config, "workerinput", {})
    run = worker.get("elasticsearch_run")
    with elasticsearch_server.shared_server(Path(run) if run else None) as server:
        yield server


@pytest.fixture
def needs_own_node() -> None:
    """For tests that start nodes of their own, to kill them: skip where that cannot be done."""
    if reason := elasticsearch.why_no_node():
        _unavailable(reason)


def _unavailable(reason: str) -> None:
    """Skip, but fail in CI, where everything is there by intention."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason} (CI is set, so this is not skipped)", pytrace=False)
    pytest.skip(reason)
