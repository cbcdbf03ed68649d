"""What an inspector and ``autoload_with`` find; the suite makes every warning an error."""

from __future__ import annotations

from typing import Any

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
    event,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.ext.automap import automap_base
from sqlalchemy.orm import Session

import sqla_vector as sv
from sqla_vector import BitVector, HalfVector, SparseVector, Vector, vector_index
from sqla_vector.types import VectorType
from tests.support.backends import AnyEngine, Backend
from tests.support.statements import sync_engine

metadata = MetaData()
author = Table("author", metadata, Column("id", Integer, primary_key=True), Column("name", String(20), index=True))
item = Table(
    "item",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("author_id", ForeignKey("author.id")),
    Column("lang", String(2)),
    Column("e", Vector(4), nullable=False),
    Column("h", HalfVector(4)),
    Column("s", SparseVector(4)),
    Column("b", BitVector(8)),
    Column("free", Vector()),
    Index("ix_item_lang", "lang"),
    vector_index("ix_item_e", "e", metric="cosine", include=("lang",)),
    vector_index("ix_item_b", "b", metric="hamming"),
)
# A table whose name looks like that of a shadow table, but is none.
decoy = Table("ix_item_info", metadata, Column("id", Integer, primary_key=True))

with_plugin = pytest.mark.backends(plugin=True)


def has_indexes(backend: Backend) -> bool:
    return backend.name != "sqlite_numpy"


@pytest.fixture
def created(backend: Backend) -> AnyEngine:
    # Where sqlite-vec is missing the indexes are left out, and the rest is as elsewhere.
    options = {} if has_indexes(backend) else {"vector_skip_missing_index": True}
    engine = backend.make_engine(**options)
    backend.create_all(engine, metadata)
    row = {"id": 1, "lang": "en", "e": [1, 2, 3, 4], "h": [1, 2, 3, 4], "s": [0, 0, 0, 1], "b": [1, 0] * 4, "free": [1]}
    backend.run_connection(engine, lambda connection: connection.execute(insert(item).values(row)))
    return engine


def inspected(backend: Backend, engine: AnyEngine, function: Any) -> Any:
    # An engine that knows nothing of the tables, as another process would.
    other = backend.make_engine(**({} if has_indexes(backend) else {"vector_skip_missing_index": True}))
    return backend.run_connection(other, function)


@with_plugin
def test_tables_are_the_users_alone(backend: Backend, created: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        inspector = inspect(connection)
        assert set(inspector.get_table_names()) == {"author", "item", "ix_item_info"}
        assert inspector.get_view_names() == []
        assert inspector.has_table("item")
        assert not inspector.has_table("nothing")

    inspected(backend, created, body)


@with_plugin
def test_columns_have_their_types_and_dimensions(backend: Backend, created: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        columns = {column["name"]: column for column in inspect(connection).get_columns("item")}
        types = {name: column["type"] for name, column in columns.items()}
        assert [types[name].dim for name in ("e", "h", "s", "free")] == [4, 4, 4, None]
        assert [type(types[name]) for name in ("e", "h", "s", "free")] == [Vector, HalfVector, SparseVector, Vector]
        assert not columns["e"]["nullable"]
        assert columns["h"]["nullable"]
        # BIT belongs to PostgreSQL and is reflected as its own type there.
        if backend.family == "sqlite":
            assert (type(types["b"]), types["b"].dim) == (BitVector, 8)
        else:
            assert (type(types["b"]).__name__, types["b"].length) == ("BIT", 8)

    inspected(backend, created, body)


@with_plugin
def test_an_autoloaded_table_reads_and_writes(backend: Backend, created: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        table = Table("item", MetaData(), autoload_with=connection)
        row = connection.execute(select(table, sv.l2_distance(table.c.e, [1, 2, 3, 5]).label("d"))).one()
        assert row.e.tolist() == row.h.tolist() == [1, 2, 3, 4]
        assert row.s.to_dense().tolist() == [0, 0, 0, 1]
        assert row.free.tolist() == [1]
        assert row.d == 1.0
        connection.execute(insert(table).values(id=2, lang="de", e=[4, 3, 2, 1], h=[0, 0, 0, 1]))
        assert connection.scalars(select(table.c.e).where(table.c.id == 2)).one().tolist() == [4, 3, 2, 1]
        with pytest.raises(sv.DimensionMismatch, match=r"^item\.e: expected 4 dimensions, got 2"):
            connection.execute(insert(table).values(id=3, e=[1, 2]))
        reflected = MetaData()
        reflected.reflect(connection)
        assert set(reflected.tables) == {"author", "item", "ix_item_info"}
        assert [key.column.table.name for key in reflected.tables["item"].foreign_keys] == ["author"]

    inspected(backend, created, body)


@with_plugin
def test_indexes_are_named_with_their_columns(backend: Backend, created: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        inspector = inspect(connection)
        found = {index["name"]: index["column_names"] for index in inspector.get_indexes("item")}
        vectors = {"ix_item_e": ["e"], "ix_item_b": ["b"]} if has_indexes(backend) else {}
        assert found == {"ix_item_lang": ["lang"], **vectors}
        assert {index["name"] for index in inspector.get_indexes("author")} == {"ix_author_name"}
        assert inspector.has_index("item", "ix_item_lang")
        assert inspector.has_index("item", "ix_item_e") == has_indexes(backend)
        assert not inspector.has_index("item", "ix_nothing")
        multi = inspector.get_multi_indexes()
        assert {index["name"] for index in multi[(None, "item")]} == set(found)

    inspected(backend, created, body)


@with_plugin
def test_what_is_there_is_not_created_again(backend: Backend, created: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        metadata.create_all(connection)
        for index in item.indexes:
            if has_indexes(backend) or index.name == "ix_item_lang":
                index.create(connection, checkfirst=True)
        assert connection.scalars(select(item.c.id)).all() == [1]

    inspected(backend, created, body)


@with_plugin
def test_another_process_drops_all_of_it(backend: Backend, created: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        metadata.drop_all(connection)
        if backend.family == "sqlite":
            left = "SELECT name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
        else:
            left = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        assert connection.scalars(text(left)).all() == []

    inspected(backend, created, body)


@with_plugin
def test_automap_maps_vector_columns(backend: Backend, created: AnyEngine) -> None:
    def prepare(connection: Connection) -> Any:
        base = automap_base()
        base.prepare(autoload_with=connection)
        return base

    base = inspected(backend, created, prepare)
    entity = base.classes.item

    def body(session: Session) -> list[float]:
        session.add(entity(id=2, e=[4, 3, 2, 1]))
        session.flush()
        return list(session.scalars(select(entity.e.l2_distance([1, 2, 3, 4])).order_by(entity.id)))

    assert backend.run(created, body) == pytest.approx([0.0, 20**0.5], rel=1e-5)


@pytest.mark.backends("psycopg", "psycopg_async", "asyncpg", "psycopg2")
def test_tables_of_another_schema_are_reflected(backend: Backend, engine: AnyEngine) -> None:
    other = MetaData(schema="other")
    Table("thing", other, Column("id", Integer, primary_key=True), Column("e", Vector(3)))

    def body(connection: Connection) -> None:
        connection.execute(text("CREATE SCHEMA other"))
        other.create_all(connection)
        table = Table("thing", MetaData(), schema="other", autoload_with=connection)
        assert isinstance(table.c.e.type, VectorType)
        assert table.c.e.type.dim == 3
        connection.execute(insert(table).values(id=1, e=[1, 2, 3]))
        assert connection.scalars(select(table.c.e)).one().tolist() == [1, 2, 3]

    backend.run_connection(engine, body)


@pytest.mark.backends("pysqlite3", "sqlite_stdlib", "aiosqlite")
def test_an_attached_database_of_sqlite_is_reflected(backend: Backend, engine: AnyEngine) -> None:
    @event.listens_for(sync_engine(engine), "connect")
    def attach_other(dbapi_connection: Any, record: Any) -> None:
        cursor = dbapi_connection.cursor()
        cursor.execute("ATTACH DATABASE ':memory:' AS other")
        cursor.close()

    def body(connection: Connection) -> None:
        elsewhere = MetaData(schema="other")
        Table("thing", elsewhere, Column("id", Integer, primary_key=True), Column("e", Vector(3)))
        elsewhere.create_all(connection)
        inspector = inspect(connection)
        assert inspector.get_table_names(schema="other") == ["thing"]
        assert inspector.get_indexes("thing", schema="other") == []
        table = Table("thing", MetaData(), schema="other", autoload_with=connection)
        assert (type(table.c.e.type), table.c.e.type.dim) == (Vector, 3)

    backend.run_connection(engine, body)
