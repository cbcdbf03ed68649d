"""The fixtures themselves: an empty database on every backend, one test body for all, nothing left over.

The engines are made without the plugin, so that a fault here is one of the fixtures.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from sqlalchemy import (
    URL,
    Column,
    Connection,
    Integer,
    MetaData,
    Table,
    create_engine,
    func,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

from tests.support import postgresql
from tests.support.backends import AnyEngine, Backend

metadata = MetaData()
number = Table("number", metadata, Column("id", Integer, primary_key=True))


@pytest.fixture
def plain_engine(backend: Backend) -> AnyEngine:
    return backend.make_engine(plugins=[])


def insert_one(connection: Connection | Session) -> None:
    connection.execute(insert(number).values(id=1))


def count(connection: Connection | Session) -> int:
    return connection.scalar(select(func.count()).select_from(number)) or 0


def test_the_database_is_empty(backend: Backend, plain_engine: AnyEngine) -> None:
    assert backend.run_connection(plain_engine, lambda connection: inspect(connection).get_table_names()) == []
    # Would be seen by the next test to run, were the database not its own.
    backend.create_all(plain_engine, metadata)


@pytest.mark.backends(family="postgresql")
def test_the_extension_is_available_but_not_created(backend: Backend, plain_engine: AnyEngine) -> None:
    def versions(connection: Connection) -> tuple[str | None, str]:
        query = text("SELECT installed_version, default_version FROM pg_available_extensions WHERE name = 'vector'")
        installed, available = connection.execute(query).one()
        return installed, available

    installed, available = backend.run_connection(plain_engine, versions)
    assert installed is None
    assert tuple(map(int, available.split("."))) >= (0, 8, 2)


def test_an_engine_is_asynchronous_where_the_driver_is(backend: Backend, plain_engine: AnyEngine) -> None:
    assert isinstance(plain_engine, AsyncEngine) is backend.is_async


def test_run_commits_and_returns(backend: Backend, plain_engine: AnyEngine) -> None:
    backend.create_all(plain_engine, metadata)
    backend.run(plain_engine, insert_one)
    backend.run_connection(plain_engine, lambda connection: connection.execute(insert(number).values(id=2)))
    assert backend.run(plain_engine, count) == 2
    assert backend.run_connection(plain_engine, count) == 2
    backend.drop_all(plain_engine, metadata)


def test_run_rolls_back_and_raises(backend: Backend, plain_engine: AnyEngine) -> None:
    def insert_and_fail(connection: Connection | Session) -> None:
        insert_one(connection)
        raise LookupError("after the insert")

    backend.create_all(plain_engine, metadata)
    with pytest.raises(LookupError, match="after the insert"):
        backend.run(plain_engine, insert_and_fail)
    with pytest.raises(LookupError, match="after the insert"):
        backend.run_connection(plain_engine, insert_and_fail)
    assert backend.run(plain_engine, count) == 0


def test_two_engines_see_the_same_database(backend: Backend, plain_engine: AnyEngine) -> None:
    backend.create_all(plain_engine, metadata)
    backend.run(plain_engine, insert_one)
    assert backend.run(backend.make_engine(plugins=[]), count) == 1


@pytest.mark.backends(is_async=True)
def test_wait_runs_a_coroutine_in_the_engines_event_loop(backend: Backend, plain_engine: AnyEngine) -> None:
    assert isinstance(plain_engine, AsyncEngine)

    async def select_one() -> int:
        async with plain_engine.connect() as connection:
            return (await connection.execute(text("SELECT 1"))).scalar_one()

    assert backend.wait(select_one()) == 1
    assert backend.wait(select_one()) == 1


@pytest.mark.backends("psycopg")
def test_a_session_option_is_passed_on(backend: Backend, plain_engine: AnyEngine) -> None:
    assert backend.run(plain_engine, lambda session: session.autoflush, autoflush=False) is False


def is_alive(process: psutil.Process) -> bool:
    # Where process 1 reaps nothing, as in many containers, what has ended remains as a zombie.
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.skipif(postgresql.URL_VARIABLE in os.environ, reason="an external server is not ours to stop")
def test_a_server_ends_with_the_process_that_started_it_even_when_killed() -> None:
    if reason := postgresql.why_unavailable():
        pytest.skip(reason)
    script = (
        "import time\n"
        "from tests.support.postgresql import running_server\n"
        "with running_server() as server:\n"
        "    print(server.url.query['host'], flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout is not None
        data = Path(process.stdout.readline().strip())
        server = psutil.Process(int((data / "postmaster.pid").read_text().splitlines()[0]))
        assert is_alive(server)
        process.kill()

    deadline = time.monotonic() + 20
    while (is_alive(server) or data.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_alive(server)
    assert not data.exists()


LEFT_BEHIND = {
    "tables, types and functions": (
        "CREATE TABLE item (id serial PRIMARY KEY)",
        "CREATE TYPE mood AS ENUM ('good')",
        "CREATE FUNCTION one() RETURNS int LANGUAGE sql RETURN 1",
    ),
    "schemas": ("CREATE SCHEMA other", "CREATE TABLE other.item (id int)", "DROP SCHEMA public"),
    "the extension": ("CREATE SCHEMA other", "CREATE EXTENSION vector SCHEMA other"),
    "a temporary table": ("CREATE TEMPORARY TABLE item (id int)",),
    "a setting": ("ALTER DATABASE {name} SET enable_seqscan = off",),
    "a publication": ("CREATE PUBLICATION everything",),
    "a large object": ("SELECT lo_create(0)",),
}


@pytest.mark.parametrize("statements", LEFT_BEHIND.values(), ids=LEFT_BEHIND.keys())
def test_the_next_database_is_as_a_new_one(
    postgresql_server: postgresql.PostgreSQLServer, statements: tuple[str, ...]
) -> None:
    opened = []

    def run(url: URL, *statements: str) -> list[Any]:
        connection = psycopg.connect(url.render_as_string(hide_password=False), autocommit=True)
        opened.append(connection)  # and left open while the database is emptied
        done = [connection.execute(statement.format(name=url.database)) for statement in statements]
        return [result.fetchall() for result in done if result.description]

    dumped = (
        "SELECT current_setting('enable_seqscan'), (SELECT count(*) FROM pg_class WHERE"
        " relnamespace::regnamespace::text !~ 'temp'), (SELECT count(*) FROM pg_proc), (SELECT count(*) FROM pg_type),"
        " (SELECT count(*) FROM pg_largeobject_metadata), (SELECT count(*) FROM pg_publication),"
        " (SELECT array_agg((nspname, nspacl, nspowner::regrole, obj_description(oid))::text ORDER BY nspname)"
        " FROM pg_namespace WHERE nspname !~ '^pg_.*temp'), (SELECT array_agg(extname) FROM pg_extension)"
    )
    with postgresql_server.database() as url, postgresql_server.database() as other:
        assert url != other
        expected = run(other, dumped)
        run(url, *statements)
    with postgresql_server.database() as url, postgresql_server.database() as other:
        assert [run(again, dumped) for again in (url, other)] == [expected, expected]
    for connection in opened:
        connection.close()


def test_databases_are_dropped_with_the_server(postgresql_server: postgresql.PostgreSQLServer) -> None:
    server = postgresql.PostgreSQLServer(postgresql_server.url)
    with server.database() as url:
        name = url.database
    server.close()
    engine = create_engine(postgresql_server.url.set(drivername="postgresql+psycopg"))
    with engine.connect() as connection:
        names = connection.scalars(text("SELECT datname FROM pg_database")).all()
    engine.dispose()
    assert name not in names
