"""The engine plugin: how it is put on, taken off, and what it finds on connections."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, create_engine, event, insert, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool, StaticPool

import sqla_vector as sv
from sqla_vector import HalfVector, InvalidOption, PluginMissing, SparseVector, Vector
from tests.support.backends import AnyEngine, Backend
from tests.support.statements import sync_engine

metadata = MetaData()
item = Table(
    "item",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("e", Vector(3)),
    Column("h", HalfVector(3)),
    Column("s", SparseVector(3)),
)


def works(backend: Backend, engine: AnyEngine, id_: int) -> None:
    """Write a row and read it back, by a statement each and by a batch."""

    def body(connection: Connection) -> None:
        connection.execute(insert(item).values(id=id_, e=[1, 2, 3], h=[1, 2, 3], s=[0, 2, 0]))
        connection.execute(insert(item), [{"id": id_ + n, "e": [n, 2, 3], "h": [n, 2, 3]} for n in (1, 2)])
        statement = select(item.c.id, item.c.e, item.c.h, item.c.s, sv.l2_distance(item.c.e, [1, 2, 3]).label("d"))
        rows = connection.execute(statement.where(item.c.id >= id_).order_by("d", item.c.id)).all()
        assert [row.id for row in rows] == [id_, id_ + 1, id_ + 2]
        assert rows[0].e.tolist() == rows[0].h.tolist() == [1, 2, 3]
        assert rows[0].s.to_dense().tolist() == [0, 2, 0]
        assert rows[2].d == 1.0
        quantized = sv.binary_quantize(item.c.e)
        assert connection.scalars(select(quantized).where(item.c.id == id_)).one().tolist() == [True] * 3

    backend.run_connection(engine, body)


def is_binary(backend: Backend, engine: AnyEngine) -> bool:
    function: Callable[[Connection], bool] = lambda connection: sv.capabilities(connection).binary_wire  # noqa: E731
    return backend.run_connection(engine, function)


def disconnect(backend: Backend, engine: AnyEngine) -> None:
    """Close the connections of the pool; the next one is a new one."""
    if isinstance(engine, AsyncEngine):
        backend.wait(engine.dispose())
    else:
        engine.dispose()


def options_of(backend: Backend) -> dict[str, Any]:
    """Return the options of attach() that correspond to those with which the backend makes engines."""
    return {"load_extension": backend.kind.engine_options().get("vector_extension", True)}


def plain_engine(backend: Backend, **options: Any) -> AnyEngine:
    """Return an engine without the plugin, on a driver that can load extensions where the backend needs that."""
    if backend.name == "pysqlite3":
        import pysqlite3.dbapi2

        options.setdefault("module", pysqlite3.dbapi2)
    return backend.make_engine(plugins=[], **options)


@pytest.mark.backends(plugin=True)
def test_the_plugin_in_the_url(backend: Backend) -> None:
    url = backend.url.update_query_dict({"plugin": "sqla_vector"})
    engine = plain_engine(backend, url=url)
    backend.create_all(engine, metadata)
    works(backend, engine, 1)
    assert "plugin" not in sync_engine(engine).url.query


@pytest.mark.backends(plugin=True)
def test_an_existing_engine_is_attached(backend: Backend) -> None:
    engine = plain_engine(backend)
    # A connection that is in the pool already is prepared when it is next taken.
    backend.run_connection(engine, lambda connection: connection.execute(text("SELECT 1")))
    sv.attach(engine, **options_of(backend))
    backend.create_all(engine, metadata)
    works(backend, engine, 1)
    assert is_binary(backend, engine) == (backend.name != "psycopg2")


@pytest.mark.backends(plugin=True)
def test_attaching_twice_is_attaching_once(backend: Backend) -> None:
    engine = plain_engine(backend)
    sync = sync_engine(engine)
    before = len(list(sync.pool.dispatch.connect)), sync.dialect.statement_compiler
    for _ in range(3):
        sv.attach(engine, **options_of(backend))
        sv.attach(sync, **options_of(backend))
    assert len(list(sync.pool.dispatch.connect)) == before[0] + 1
    backend.create_all(engine, metadata)
    works(backend, engine, 1)
    sv.detach(engine)
    assert (len(list(sync.pool.dispatch.connect)), sync.dialect.statement_compiler) == before


@pytest.mark.backends(family="postgresql", plugin=True)
def test_a_detached_engine_of_postgresql_is_an_engine_without_the_plugin(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, metadata)
    works(backend, engine, 1)
    sv.detach(engine)
    sv.detach(engine)
    assert not is_binary(backend, engine)
    works(backend, engine, 11)
    disconnect(backend, engine)
    works(backend, engine, 21)
    sv.attach(engine)
    works(backend, engine, 31)
    assert is_binary(backend, engine) == (backend.name != "psycopg2")


@pytest.mark.backends(family="sqlite")
def test_a_detached_engine_of_sqlite_asks_for_the_plugin(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, metadata)
    works(backend, engine, 1)
    dialect = sync_engine(engine).dialect
    sv.detach(engine)
    sv.detach(engine)
    with pytest.raises(PluginMissing):
        works(backend, engine, 11)
    # What attach() set on the dialect object is gone: its class shows again.
    assert {"statement_compiler", "ddl_compiler", "execution_ctx_cls", "get_table_names"}.isdisjoint(vars(dialect))
    assert "VECTOR" not in dialect.ischema_names
    sv.attach(engine, **options_of(backend))
    works(backend, engine, 21)


@pytest.mark.backends(plugin=True)
def test_one_engine_of_two_is_attached(backend: Backend, engine: AnyEngine) -> None:
    other = plain_engine(backend)
    backend.create_all(engine, metadata)
    works(backend, engine, 1)
    if backend.family == "sqlite":
        with pytest.raises(PluginMissing):
            works(backend, other, 11)
    else:
        works(backend, other, 11)
        assert not is_binary(backend, other)
    works(backend, engine, 21)
    third = backend.make_engine()
    works(backend, third, 31)
    sv.detach(third)
    works(backend, engine, 41)


@pytest.mark.backends("psycopg")
def test_engines_of_both_databases_in_one_process_share_a_model(backend: Backend, engine: AnyEngine) -> None:
    assert isinstance(engine, Engine)
    embedded = create_engine("sqlite://", plugins=["sqla_vector"], poolclass=StaticPool)
    statement = select(item.c.id, sv.cosine_distance(item.c.e, [1, 1, 1])).order_by(
        sv.cosine_distance(item.c.e, [1, 1, 1])
    )
    found = []
    for one in (engine, embedded, engine, embedded):
        metadata.create_all(one)
        with one.begin() as connection:
            connection.execute(item.delete())
            connection.execute(insert(item), [{"id": n, "e": [n, n * n, 1]} for n in range(1, 6)])
            found.append([(row[0], pytest.approx(row[1], rel=1e-5)) for row in connection.execute(statement)])
    embedded.dispose()
    assert [[id_ for id_, _ in rows] for rows in found] == [[id_ for id_, _ in found[0]]] * 4


@pytest.mark.backends(plugin=True)
def test_a_new_connection_after_a_lost_one_is_prepared(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, metadata)
    works(backend, engine, 1)

    def lose(connection: Connection) -> None:
        connection.invalidate()
        connection.rollback()

    backend.run_connection(engine, lose)
    works(backend, engine, 11)
    disconnect(backend, engine)
    works(backend, engine, 21)


@pytest.mark.backends("psycopg", "psycopg_async", "psycopg2", "asyncpg")
def test_a_connection_that_the_server_ended_is_replaced(backend: Backend) -> None:
    engine = backend.make_engine(pool_pre_ping=True, pool_size=1, max_overflow=1)
    backend.create_all(engine, metadata)
    works(backend, engine, 1)
    victim = backend.run_connection(engine, lambda connection: connection.scalar(text("SELECT pg_backend_pid()")))
    killer = plain_engine(backend)
    ended = backend.run_connection(
        killer, lambda connection: connection.scalar(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": victim})
    )
    assert ended
    works(backend, engine, 11)


@pytest.mark.backends(plugin=True)
def test_engines_without_a_pool(backend: Backend) -> None:
    engine = backend.make_engine(poolclass=NullPool)
    backend.create_all(engine, metadata)
    works(backend, engine, 1)


@pytest.mark.backends(family="postgresql", plugin=True)
def test_an_extension_created_after_connecting_is_used(backend: Backend, engine: AnyEngine) -> None:
    # The pool's connection is made, and prepared as far as possible, before there is an extension.
    assert backend.run_connection(engine, lambda connection: sv.capabilities(connection).extension) is None
    other = plain_engine(backend)
    backend.create_all(other, metadata)
    works(backend, engine, 1)
    assert backend.run_connection(engine, lambda connection: sv.capabilities(connection).extension) is not None


@pytest.mark.backends(family="postgresql", plugin=True)
def test_an_extension_created_in_the_same_transaction_is_used(backend: Backend, engine: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        metadata.create_all(connection)
        connection.execute(insert(item).values(id=1, e=[1, 2, 3], h=[1, 2, 3]))
        row = connection.execute(select(item)).one()
        assert row.e.tolist() == row.h.tolist() == [1, 2, 3]
        connection.rollback()

    backend.run_connection(engine, body)
    # The extension went with the transaction, and comes again.
    backend.create_all(engine, metadata)
    works(backend, engine, 1)


def _register_pgvector(backend: Backend, engine: AnyEngine) -> None:
    """Do what pgvector's manual says for a SQLAlchemy engine."""

    @event.listens_for(sync_engine(engine), "connect")
    def register(dbapi_connection: Any, record: Any) -> None:
        if backend.name == "psycopg":
            from pgvector.psycopg import register_vector

            register_vector(dbapi_connection)
        elif backend.name == "psycopg_async":
            from pgvector.psycopg import register_vector_async

            dbapi_connection.run_async(register_vector_async)
        else:
            from pgvector.asyncpg import register_vector as register_asyncpg

            dbapi_connection.run_async(register_asyncpg)


@pytest.mark.parametrize("first", ["register_vector", "attach"])
@pytest.mark.backends("psycopg", "psycopg_async", "asyncpg")
def test_pgvectors_own_registration_and_the_plugin_do_not_disturb_each_other(backend: Backend, first: str) -> None:
    setup = plain_engine(backend)
    backend.create_all(setup, metadata)
    engine = plain_engine(backend)
    if first == "attach":
        sv.attach(engine)
        _register_pgvector(backend, engine)
    else:
        _register_pgvector(backend, engine)
        sv.attach(engine)
    works(backend, engine, 1)

    def raw(connection: Connection) -> None:
        """The user's own queries, with vectors as pgvector returns and takes them."""
        placeholder = "$1" if backend.name == "asyncpg" else "%s"
        (found,) = connection.exec_driver_sql("SELECT e FROM item WHERE id = 1").one()
        values = found.to_list() if hasattr(found, "to_list") else np.asarray(found).tolist()
        assert values == [1, 2, 3]
        import pgvector

        for own in (pgvector.Vector([1, 2, 3]), np.array([1, 2, 3], np.float32)):
            ids = connection.exec_driver_sql(f"SELECT id FROM item WHERE e = {placeholder}", (own,)).scalars().all()
            assert {1, 2} <= set(ids)
            assert {id_ % 10 for id_ in ids} <= {1, 2}

    backend.run_connection(engine, raw)
    works(backend, engine, 11)
    # And with neither of the two in the way of the other after a reconnect.
    disconnect(backend, engine)
    works(backend, engine, 21)
    backend.run_connection(engine, raw)
    sv.detach(engine)
    works(backend, engine, 31)
    backend.run_connection(engine, raw)


@pytest.mark.backends("psycopg_noplugin", "asyncpg_noplugin")
def test_pgvectors_own_registration_without_the_plugin(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, metadata)
    registered = backend.make_engine()
    name = "asyncpg" if backend.name.startswith("asyncpg") else "psycopg"

    @event.listens_for(sync_engine(registered), "connect")
    def register(dbapi_connection: Any, record: Any) -> None:
        if name == "psycopg":
            from pgvector.psycopg import register_vector

            register_vector(dbapi_connection)
        else:
            from pgvector.asyncpg import register_vector as register_asyncpg

            dbapi_connection.run_async(register_asyncpg)

    works(backend, registered, 1)


@pytest.mark.backends("asyncpg")
def test_hand_written_sql_may_pass_pgvectors_text_on_asyncpg(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, metadata)
    works(backend, engine, 1)

    def raw(connection: Connection) -> list[int]:
        statement = "SELECT id FROM item WHERE e = $1 AND h = $2 ORDER BY id"
        return list(connection.exec_driver_sql(statement, ("[1, 2, 3]", "[1,2,3]")).scalars())

    assert backend.run_connection(engine, raw) == [1, 2]


def test_what_is_no_engine_of_ours_is_refused() -> None:
    with pytest.raises(InvalidOption, match="expected an Engine or AsyncEngine, got str"):
        sv.attach("sqlite://")  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="expected an Engine or Connection, got str"):
        sv.capabilities("sqlite://")  # type: ignore[arg-type]
    for bad in ("no", 1, None):
        for option in ("vector_extension", "vector_skip_missing_index"):
            with pytest.raises(InvalidOption, match=f"{option} must be True or False"):
                create_engine("sqlite://", plugins=["sqla_vector"], **{option: bad})
    for bad in ('a"b', "a;DROP TABLE x", "'", "--", "a\nb", "a\0b", "%s", ":p", "a.b", "x" * 64, "select"):
        with pytest.raises(InvalidOption, match="schema"):
            create_engine("postgresql+psycopg://", plugins=["sqla_vector"], vector_schema=bad)


def test_capabilities_say_what_is_there(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, metadata)
    found = backend.wait(sv.acapabilities(engine)) if isinstance(engine, AsyncEngine) else sv.capabilities(engine)
    assert found == backend.run_connection(engine, sv.capabilities)
    assert found.database == backend.family
    assert (found.half, found.sparse, found.bit) == (True, True, True)
    if backend.family == "postgresql":
        assert found.driver == backend.url.drivername.partition("+")[2]
        assert found.extension is not None
        assert found.extension.split(".")[0].isdigit()
        assert found.schema == "public"
        assert found.index_methods == ("hnsw", "ivfflat")
        assert found.iterative_scan
        assert found.binary_wire == (backend.plugin and backend.name != "psycopg2")
    else:
        has_vec = backend.name != "sqlite_numpy"
        assert (found.extension is not None) == has_vec
        assert found.index_methods == (("vec0",) if has_vec else ())
        assert found.schema is None
        assert found.binary_wire
    shown = str(found)
    assert f"database        {found.database}" in shown
    assert f"extension       {found.extension or 'missing'}" in shown


@pytest.mark.backends(family="postgresql")
def test_capabilities_without_the_extension(backend: Backend, engine: AnyEngine) -> None:
    found = backend.run_connection(engine, sv.capabilities)
    assert (found.extension, found.schema, found.index_methods) == (None, None, ())
    assert (found.half, found.sparse, found.bit, found.iterative_scan) == (False, False, False, False)
    assert "extension       missing" in str(found)
    assert "index_methods   none" in str(found)


@pytest.mark.backends("psycopg")
def test_passwords_are_not_in_messages(backend: Backend) -> None:
    engine = create_engine(
        backend.url.set(username="nobody", password="hunter2secret", host="127.0.0.1", port=1),
        plugins=["sqla_vector"],
    )
    with pytest.raises(DBAPIError) as caught:
        sv.capabilities(engine)
    engine.dispose()
    assert "hunter2secret" not in str(caught.value)


@pytest.mark.backends(family="sqlite")
def test_errors_of_the_chosen_sqlite_module_are_sqlalchemys(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, metadata)
    works(backend, engine, 1)
    with pytest.raises(IntegrityError, match=r"UNIQUE constraint failed: item\.id"):
        works(backend, engine, 1)
    with pytest.raises(OperationalError, match="no such table: absent"):
        backend.run_connection(engine, lambda connection: connection.execute(text("SELECT 1 FROM absent")))
    version = backend.run_connection(engine, lambda connection: connection.scalar(text("SELECT sqlite_version()")))
    assert sync_engine(engine).dialect.dbapi.sqlite_version == version  # type: ignore[union-attr]


@pytest.mark.backends("aiosqlite")
def test_an_engine_left_open_does_not_keep_the_process_alive(backend: Backend) -> None:
    program = f"""
import asyncio
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

engine = create_async_engine({str(backend.url)!r}, plugins=["sqla_vector"])

async def main():
    connection = await engine.connect()
    print(await connection.scalar(text("SELECT 42")))

asyncio.run(main())
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == "42"
