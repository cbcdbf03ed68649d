"""The backends on which every behaviour is tested, and how one test body runs on all of them.

A :class:`Kind` is an entry of the list :data:`KINDS`: a driver with or without the plugin. A :class:`Backend`
is a kind with an empty database behind it, made for one test and gone after it. A test is written once,
against the synchronous ``Session`` or ``Connection``::

    def test_a_vector_comes_back(backend, engine):
        backend.create_all(engine, Base.metadata)
        backend.run(engine, lambda session: session.add(Article(embedding=[1, 2, 3])))
        found = backend.run(engine, lambda session: session.scalars(select(Article.embedding)).one())

On an asynchronous driver ``AsyncSession.run_sync`` calls the same function, in the backend's event loop.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import sqlite3
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from sqlalchemy import URL, Connection, Engine, MetaData, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from tests.support import postgresql, sqlite

T = TypeVar("T")
Family = Literal["postgresql", "sqlite"]
AnyEngine = Engine | AsyncEngine


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A driver, with or without the plugin.

    Attributes:
        name: what ``--backend`` and the test's id call it.
        family: the database behind it.
        drivername: the first part of the URL.
        requires: the modules it needs beyond SQLAlchemy, each with what to give to ``pip install``.
        is_async: whether its engine is an AsyncEngine.
        plugin: whether engines are created with ``plugins=["sqla_vector"]``.
        uses_sqlite_vec: whether sqlite-vec must be loadable.
        engine_options: further arguments for ``create_engine``, computed when an engine is made.
    """

    name: str
    family: Family
    drivername: str
    requires: Mapping[str, str] = field(default_factory=dict)
    is_async: bool = False
    plugin: bool = True
    uses_sqlite_vec: bool = False
    engine_options: Callable[[], dict[str, Any]] = dict

    def why_unavailable(self) -> str | None:
        """Return one sentence that says how to get this backend, or None when it can be tested."""
        for module, distribution in self.requires.items():
            if importlib.util.find_spec(module) is None:
                return f"backend {self.name}: pip install {distribution}"
        if self.family == "postgresql":
            return postgresql.why_unavailable()
        if self.name == "sqlite_stdlib" and not sqlite.stdlib_loads_extensions():
            return "backend sqlite_stdlib: this sqlite3 loads no extensions; run make test-stdlib-sqlite"
        return sqlite.why_vec_unavailable() if self.uses_sqlite_vec else None


def _pysqlite3_options() -> dict[str, Any]:
    # Where the standard library loads no extensions the plugin must choose pysqlite3 by itself.
    if sqlite.stdlib_loads_extensions():
        return {"module": importlib.import_module("pysqlite3.dbapi2")}
    return {}


_PSYCOPG = {"psycopg": '"psycopg[binary]"'}
# The server's databases are made and dropped through psycopg whatever the driver under test.
_ASYNCPG = {"asyncpg": "asyncpg", **_PSYCOPG}
_PSYCOPG2 = {"psycopg2": "psycopg2-binary", **_PSYCOPG}

KINDS: tuple[Kind, ...] = (
    Kind(name="psycopg", family="postgresql", drivername="postgresql+psycopg", requires=_PSYCOPG),
    Kind(
        name="psycopg_async",
        family="postgresql",
        drivername="postgresql+psycopg",
        requires=_PSYCOPG,
        is_async=True,
    ),
    Kind(name="psycopg2", family="postgresql", drivername="postgresql+psycopg2", requires=_PSYCOPG2),
    Kind(name="asyncpg", family="postgresql", drivername="postgresql+asyncpg", requires=_ASYNCPG, is_async=True),
    Kind(
        name="psycopg_noplugin",
        family="postgresql",
        drivername="postgresql+psycopg",
        requires=_PSYCOPG,
        plugin=False,
    ),
    Kind(
        name="asyncpg_noplugin",
        family="postgresql",
        drivername="postgresql+asyncpg",
        requires=_ASYNCPG,
        is_async=True,
        plugin=False,
    ),
    Kind(name="sqlite_stdlib", family="sqlite", drivername="sqlite+pysqlite", uses_sqlite_vec=True),
    Kind(
        name="pysqlite3",
        family="sqlite",
        drivername="sqlite+pysqlite",
        requires={"pysqlite3": "pysqlite3-binary"},
        uses_sqlite_vec=True,
        engine_options=_pysqlite3_options,
    ),
    Kind(
        name="sqlite_numpy",
        family="sqlite",
        drivername="sqlite+pysqlite",
        engine_options=lambda: {"module": sqlite3, "vector_extension": False},
    ),
    Kind(
        name="aiosqlite",
        family="sqlite",
        drivername="sqlite+aiosqlite",
        requires={"aiosqlite": "aiosqlite"},
        is_async=True,
        uses_sqlite_vec=True,
    ),
)

NAMES = tuple(kind.name for kind in KINDS)


def kinds(requested: list[str]) -> list[Kind]:
    """Return the kinds to test.

    Args:
        requested: the names given on the command line; empty for all. ``sqlite_stdlib`` is left out of "all"
            where this Python's sqlite3 loads no extensions: ``make test-stdlib-sqlite`` runs it on another.
    """
    if requested:
        return [kind for kind in KINDS if kind.name in requested]
    return [kind for kind in KINDS if kind.name != "sqlite_stdlib" or sqlite.stdlib_loads_extensions()]


@dataclass
class Backend:
    """A kind of backend with an empty database of its own.

    All engines made from one Backend see the same database. They are disposed of when the test ends.

    Attributes:
        kind: the entry of :data:`KINDS`, whose name, family, is_async and plugin are properties here too.
        url: the database's URL, driver included.
    """

    kind: Kind
    url: URL
    _engines: list[AnyEngine] = field(default_factory=list, init=False, repr=False)
    _runner: asyncio.Runner | None = field(default=None, init=False, repr=False)

    @property
    def name(self) -> str:
        """The kind's name."""
        return self.kind.name

    @property
    def family(self) -> Family:
        """The database behind the driver."""
        return self.kind.family

    @property
    def is_async(self) -> bool:
        """Whether engines are AsyncEngines."""
        return self.kind.is_async

    @property
    def plugin(self) -> bool:
        """Whether engines have the plugin."""
        return self.kind.plugin

    def make_engine(self, **options: Any) -> AnyEngine:
        """Create an engine on the database.

        Args:
            **options: arguments for ``create_engine`` or ``create_async_engine``, over the kind's own.
                ``url=`` replaces the database, ``plugins=[]`` leaves the plugin out.
        """
        options = {**self.kind.engine_options(), **options}
        if self.plugin:
            options.setdefault("plugins", ["sqla_vector"])
        if not options.get("plugins"):
            options.pop("plugins", None)
            options.pop("vector_extension", None)
        url = options.pop("url", self.url)
        engine: AnyEngine = create_async_engine(url, **options) if self.is_async else create_engine(url, **options)
        self._engines.append(engine)
        return engine

    def run(self, engine: AnyEngine, function: Callable[[Session], T], **options: Any) -> T:
        """Call ``function`` with a Session in a transaction, commit, and return what it returned.

        Args:
            engine: one of this backend's engines.
            function: takes the synchronous Session, also on asynchronous drivers.
            **options: arguments for the Session. ``expire_on_commit`` is False unless given, so that what the
                function returns can be looked at afterwards.

        Returns:
            The function's result. An exception rolls back and is raised.
        """
        options.setdefault("expire_on_commit", False)
        if isinstance(engine, AsyncEngine):
            return self.wait(self._run_async(engine, function, options))
        with Session(engine, **options) as session, session.begin():
            return function(session)

    async def _run_async(self, engine: AsyncEngine, function: Callable[[Session], T], options: dict[str, Any]) -> T:
        async with AsyncSession(engine, **options) as session, session.begin():
            return await session.run_sync(function)

    def run_connection(self, engine: AnyEngine, function: Callable[[Connection], T]) -> T:
        """Like :meth:`run`, with a Connection in place of a Session."""
        if isinstance(engine, AsyncEngine):
            return self.wait(self._run_connection_async(engine, function))
        with engine.begin() as connection:
            return function(connection)

    async def _run_connection_async(self, engine: AsyncEngine, function: Callable[[Connection], T]) -> T:
        async with engine.begin() as connection:
            return await connection.run_sync(function)

    def create_all(self, engine: AnyEngine, metadata: MetaData) -> None:
        """Create the tables of ``metadata``, and what they need, as an application does."""
        self.run_connection(engine, metadata.create_all)

    def drop_all(self, engine: AnyEngine, metadata: MetaData) -> None:
        """Drop the tables of ``metadata``."""
        self.run_connection(engine, metadata.drop_all)

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the event loop to which this backend's asynchronous engines belong."""
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(coroutine)

    def close(self) -> None:
        """Dispose of all engines and end the event loop."""
        for engine in self._engines:
            if isinstance(engine, AsyncEngine):
                self.wait(engine.dispose())
            else:
                engine.dispose()
        self._engines.clear()
        if self._runner is not None:
            self._runner.close()
            self._runner = None


@contextmanager
def open_backend(kind: Kind, directory: Path, server: Callable[[], postgresql.PostgreSQLServer]) -> Iterator[Backend]:
    """Make an empty database, yield a Backend on it, and remove both at the end.

    Args:
        kind: which one.
        directory: an empty directory for SQLite's file.
        server: called for the PostgreSQL server when one is needed, so that SQLite's tests start none.
    """
    database = server().database() if kind.family == "postgresql" else _sqlite_database(directory)
    with database as url:
        backend = Backend(kind, url.set(drivername=kind.drivername))
        try:
            yield backend
        finally:
            backend.close()


@contextmanager
def _sqlite_database(directory: Path) -> Iterator[URL]:
    # pytest removes the directory.
    yield sqlite.database_url(directory)
