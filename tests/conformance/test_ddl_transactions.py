"""DDL belongs to the transaction, on SQLite too, and to none under AUTOCOMMIT."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sqlalchemy import (
    Column,
    Connection,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.pool import StaticPool

from sqla_vector import Vector, explain_nearest, nearest, vector_index
from tests.support.backends import Backend

SQLITE = pytest.mark.backends(family="sqlite")
VEC0 = pytest.mark.backends("sqlite_stdlib", "pysqlite3", "aiosqlite")
SYNCHRONOUS = pytest.mark.backends("sqlite_stdlib", "pysqlite3", "sqlite_numpy")
DIM = 3


class Undone(Exception):
    pass


def make(name: str = "item", schema: str | None = None, *, vectors: bool = True, key: Any = Integer) -> Table:
    return Table(
        name,
        MetaData(),
        Column("id", key, primary_key=True),
        Column("slug", String(9), unique=True),
        *([Column("e", Vector(DIM)), vector_index(f"ix_{name}", "e", metric="l2")] if vectors else []),
        Index(f"ix_{name}_slug", "slug"),
        schema=schema,
    )


def names(connection: Connection, schema: str = "") -> set[str]:
    sql = f"SELECT name FROM {schema}sqlite_master WHERE name NOT LIKE 'sqlite%'"
    return set(connection.execute(text(sql)).scalars())


def indexing(backend: Backend, **options: Any) -> Any:
    if backend.name == "sqlite_numpy":
        options["vector_skip_missing_index"] = True
    return backend.make_engine(**options)


def in_transaction(connection: Connection) -> bool:
    raw: Any = connection.connection.dbapi_connection
    inner = raw.driver_connection._conn if hasattr(raw, "driver_connection") else raw
    return bool(inner.in_transaction)


@SQLITE
def test_a_rollback_undoes_tables_and_indexes(backend):
    table, engine = make(), indexing(backend)

    def create_and_fail(connection: Connection) -> None:
        table.metadata.create_all(connection)
        connection.execute(insert(table), [{"id": 1, "e": [1, 2, 3]}])
        raise Undone

    with pytest.raises(Undone):
        backend.run_connection(engine, create_and_fail)
    assert backend.run_connection(engine, names) == set()
    backend.create_all(engine, table.metadata)
    before = backend.run_connection(engine, names)

    def drop_and_fail(connection: Connection) -> None:
        connection.execute(insert(table), [{"id": 1, "e": [1, 2, 3]}])
        table.metadata.drop_all(connection)
        assert names(connection) == set()
        raise Undone

    with pytest.raises(Undone):
        backend.run_connection(engine, drop_and_fail)
    assert backend.run_connection(engine, names) == before

    def check(connection: Connection) -> None:
        assert connection.execute(select(table)).all() == []
        connection.execute(insert(table), [{"id": 2, "e": [1, 2, 3]}])
        assert [row.id for row in connection.execute(nearest(select(table.c.id), table.c.e, [1, 2, 3]))] == [2]

    backend.run_connection(engine, check)


@SQLITE
def test_a_create_all_that_fails_leaves_nothing(backend):
    metadata = make().metadata
    Table("zz", metadata, Column("id", Integer, primary_key=True), Index("ix_zz", text("no_such_function(id)")))
    engine = indexing(backend)
    with pytest.raises(OperationalError, match="no such function: no_such_function"):
        backend.create_all(engine, metadata)
    assert backend.run_connection(engine, names) == set()


@SQLITE
def test_under_autocommit_every_statement_stands(backend):
    table = make()
    engine = indexing(backend, isolation_level="AUTOCOMMIT")

    def create_and_fail(connection: Connection) -> None:
        table.metadata.create_all(connection)
        assert not in_transaction(connection)
        raise Undone

    with pytest.raises(Undone):
        backend.run_connection(engine, create_and_fail)
    assert "item" in backend.run_connection(engine, names)

    def use(connection: Connection) -> None:
        connection.execute(insert(table), [{"id": 1, "e": [1, 2, 3]}])
        assert not in_transaction(connection)
        connection.execute(text("VACUUM"))
        table.metadata.drop_all(connection)
        assert not in_transaction(connection)

    backend.run_connection(engine, use)
    assert backend.run_connection(engine, names) == set()


@VEC0
@pytest.mark.parametrize("key", [Integer, String(5)], ids=["int", "text"])
def test_savepoints_undo_what_was_made_since(backend, key):
    outer, inner = make("outer_", key=key), make("inner_", key=key)
    engine = indexing(backend)

    def check(connection: Connection) -> None:
        outer.metadata.create_all(connection)
        first = connection.begin_nested()
        inner.metadata.create_all(connection)
        second = connection.begin_nested()
        outer.metadata.drop_all(connection)
        assert not inspect(connection).has_table("outer_")
        second.rollback()
        assert {"outer_", "inner_", "ix_outer_", "ix_inner_"} <= names(connection)
        first.rollback()
        assert not {name for name in names(connection) if "inner_" in name}
        third = connection.begin_nested()
        inner.metadata.create_all(connection)
        third.commit()

    backend.run_connection(engine, check)
    assert {"outer_", "inner_", "ix_outer_", "ix_inner_"} <= backend.run_connection(engine, names)


@SQLITE
def test_a_savepoint_may_be_what_a_transaction_begins_with(backend):
    """sqlite3 begins no transaction before SAVEPOINT, and releasing the outermost one commits."""
    table, engine = make(), indexing(backend)

    def nested_and_fail(connection: Connection) -> None:
        with connection.begin_nested():
            table.metadata.create_all(connection)
        raise Undone

    with pytest.raises(Undone):
        backend.run_connection(engine, nested_and_fail)
    assert backend.run_connection(engine, names) == set()


@SQLITE
def test_foreign_keys_can_be_switched_before_ddl_and_hold(backend):
    metadata = make().metadata
    child = Table("child", metadata, Column("id", Integer, primary_key=True), Column("item_id", ForeignKey("item.id")))
    engine = indexing(backend)

    def check(connection: Connection) -> None:
        # SQLite ignores this within a transaction; none is open before the first statement that writes.
        connection.execute(text("PRAGMA foreign_keys = ON"))
        metadata.create_all(connection)
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1
        with pytest.raises(IntegrityError, match="FOREIGN KEY"):
            connection.execute(insert(child), [{"id": 1, "item_id": 9}])

    backend.run_connection(engine, check)
    assert {"item", "child"} <= backend.run_connection(engine, names)


def _serving(connection: Connection, table: Table) -> str | None:
    stmt = nearest(select(table.c.id), table.c.e, [1, 2, 3], k=1)
    assert connection.scalars(stmt).all() == [1]
    index = explain_nearest(connection, stmt).index
    connection.rollback()
    return index


@pytest.fixture
def indexed(engine: Engine) -> tuple[Engine, Table, Index]:
    table = make()
    table.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(table), [{"id": 1, "e": [1, 2, 3]}])
    return engine, table, next(index for index in table.indexes if index.name == "ix_item")


@pytest.mark.backends("sqlite_stdlib", "pysqlite3")
@pytest.mark.parametrize("is_there", [True, False])
def test_a_savepoint_that_is_undone_before_its_transaction_leaves_nothing_stale(indexed, is_there):
    engine, table, index = indexed
    if not is_there:
        index.drop(engine)
    with engine.connect() as connection:
        transaction = connection.begin()
        (index.drop if is_there else index.create)(connection)
        connection.begin_nested().rollback()
        transaction.rollback()
        assert _serving(connection, table) == ("ix_item" if is_there else None)


@pytest.mark.backends("sqlite_stdlib", "pysqlite3")
@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_what_another_connection_does_meanwhile_leaves_nothing_stale(indexed, is_there, is_new, end):
    engine, table, index = indexed
    if not is_there:
        index.drop(engine)
    with engine.connect() as connection:
        if is_new:
            engine.dispose(close=False)
        else:
            engine.connect().close()
        (index.drop if is_there else index.create)(connection)
        with engine.connect() as other:  # rolled back as it is returned
            other.execute(select(table.c.id)).all()
        getattr(connection, end)()
        serving = "ix_item" if is_there == (end == "rollback") else None
        assert _serving(connection, table) == serving
        with engine.connect() as other:
            assert _serving(other, table) == serving


@SQLITE
def test_nothing_is_left_open_after_a_commit(backend):
    engine = indexing(backend)
    backend.create_all(engine, make().metadata)

    def vacuum(connection: Connection) -> None:
        assert not in_transaction(connection)
        connection.execute(text("VACUUM"))  # refused within a transaction
        connection.execute(text("ATTACH DATABASE ':memory:' AS other"))

    backend.run_connection(engine, vacuum)


@VEC0
def test_an_attached_database_takes_part(backend):
    table = make("item", "other")
    engine = indexing(backend)

    def create_and_fail(connection: Connection) -> None:
        connection.execute(text("ATTACH DATABASE ':memory:' AS other"))
        savepoint = connection.begin_nested()
        table.metadata.create_all(connection)
        connection.execute(insert(table), [{"id": 1, "e": np.ones(DIM)}])
        assert inspect(connection).get_table_names("other") == ["item"]
        savepoint.rollback()
        assert inspect(connection).get_table_names("other") == []
        table.metadata.create_all(connection)
        connection.execute(insert(table), [{"id": 2, "e": np.ones(DIM)}])
        assert [row.id for row in connection.execute(nearest(select(table.c.id), table.c.e, np.ones(DIM)))] == [2]
        table.metadata.drop_all(connection)
        assert names(connection, "other.") == set()

    backend.run_connection(engine, create_and_fail)


@VEC0
def test_dropping_a_table_leaves_the_index_of_its_namesake_in_another_database(backend):
    here, there = make("item"), make("item", "other")
    engine = indexing(backend)

    def check(connection: Connection) -> None:
        connection.execute(text("ATTACH DATABASE ':memory:' AS other"))
        here.metadata.create_all(connection)
        there.metadata.create_all(connection)
        Table("item", MetaData(), schema="other").drop(connection)
        assert names(connection, "other.") == set()
        assert {"item", "ix_item", "ix_item_insert"} <= names(connection)

    backend.run_connection(engine, check)


@SYNCHRONOUS
def test_a_database_in_memory_is_no_different(backend):
    table = make(vectors=backend.name != "sqlite_numpy")
    engine = indexing(backend, url=backend.url.set(database=":memory:"), poolclass=StaticPool)

    def create_and_fail(connection: Connection) -> None:
        table.metadata.create_all(connection)
        raise Undone

    with pytest.raises(Undone):
        backend.run_connection(engine, create_and_fail)
    assert backend.run_connection(engine, names) == set()
    backend.create_all(engine, table.metadata)
    assert "item" in backend.run_connection(engine, names)


@SYNCHRONOUS
def test_an_engine_without_the_plugin_is_as_it_was(backend):
    """The driver commits before DDL there, or rather: opens no transaction."""
    module = indexing(backend).dialect.dbapi
    engine = create_engine(backend.url, module=module)
    try:
        with engine.connect() as connection:
            make(vectors=False).metadata.create_all(connection)
            connection.rollback()
            assert "item" in names(connection)
    finally:
        engine.dispose()
