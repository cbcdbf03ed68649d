"""Creating and dropping vector indexes: with their table, beside it, in other schemas, all or nothing."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
from sqlalchemy import (
    Column,
    Connection,
    Date,
    Engine,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    event,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.schema import CreateIndex, DropIndex

from sqla_vector import (
    BitVector,
    HalfVector,
    IndexNotUsable,
    SparseVector,
    UnsupportedMetric,
    Vector,
    VectorError,
    nearest,
    vector_index,
)
from sqla_vector.tuning import optimize
from tests.support.brute_force import assert_equal, engine_that_indexes, make_bits, make_vectors
from tests.support.brute_force import nearest as brute_force

DIM = 8
VECTORS = make_vectors(60, DIM)
QUERY = np.random.default_rng(3).normal(size=DIM).astype(np.float32)
VEC0 = pytest.mark.backends("sqlite_stdlib", "pysqlite3", "aiosqlite")


def make_item(metadata: MetaData | None = None, *, key: object = Integer, index: bool = True, **options) -> Table:
    options = {"metric": "l2", **options}
    return Table(
        "item",
        MetaData() if metadata is None else metadata,
        Column("id", key, primary_key=True, autoincrement=False),
        Column("language", String(8)),
        Column("slug", String(20)),
        Column("embedding", Vector(DIM)),
        UniqueConstraint("slug"),
        *([vector_index("ix_item", "embedding", **options)] if index else []),
    )


def rows_of(key=lambda number: number) -> list[dict[str, object]]:
    return [
        {"id": key(number), "language": "en" if number % 2 else None, "slug": f"s{number}", "embedding": vector}
        for number, vector in VECTORS.items()
    ]


def has_index(connection: Connection, table: str = "item", schema: str | None = None) -> bool:
    """Tell from the catalogue whether the index is there."""
    if connection.dialect.name == "sqlite":
        master = f"{schema}.sqlite_master" if schema else "sqlite_master"
        found = text(f"SELECT count(*) FROM {master} WHERE sql LIKE 'CREATE VIRTUAL TABLE%vec0%'")
        return bool(connection.scalar(found))
    found = text("SELECT count(*) FROM pg_indexes WHERE tablename = :table AND indexdef ~ 'hnsw|ivfflat'")
    return bool(connection.scalar(found, {"table": table}))


def names_in(connection: Connection, schema: str = "main") -> set[str]:
    """Return everything that the SQLite database holds, shadow tables and triggers included."""
    names = connection.execute(text(f"SELECT name FROM {schema}.sqlite_master")).scalars()
    # SQLite's own, which stays once any table (of vec0) has counted its rows.
    return set(names) - {"sqlite_sequence"}


def check_search(connection: Connection, table: Table, vectors=VECTORS, metric: str = "l2") -> None:
    stmt = nearest(select(table.c.id), table.c.embedding, QUERY, k=9, metric=metric)
    assert_equal(connection.execute(stmt), brute_force(vectors, QUERY, 9, metric))


def can_index(backend) -> bool:
    return backend.name != "sqlite_numpy"


def test_create_all_and_drop_all_leave_nothing_behind(backend):
    metadata = MetaData()
    table = make_item(metadata, include=("language",))
    by_text = Table(
        "page",
        metadata,
        Column("id", String(20), primary_key=True),
        Column("embedding", Vector(DIM)),
        vector_index("ix_page", "embedding", metric="cosine"),
    )
    engine = engine_that_indexes(backend)

    def check(connection: Connection) -> None:
        before = names_in(connection) if backend.family == "sqlite" else set()
        for _ in range(2):
            metadata.create_all(connection)
            metadata.create_all(connection)  # checkfirst
            assert has_index(connection) == can_index(backend)
            connection.execute(insert(table), rows_of())
            connection.execute(insert(by_text), [{"id": f"k{k}", "embedding": v} for k, v in VECTORS.items()])
            check_search(connection, table)
            names = inspect(connection).get_table_names()
            assert sorted(names) == ["item", "page"]
            metadata.drop_all(connection)
            metadata.drop_all(connection)
            assert inspect(connection).get_table_names() == []
            assert not has_index(connection)
            if backend.family == "sqlite":
                assert names_in(connection) == before

    backend.run_connection(engine, check)


def test_an_index_is_built_on_rows_that_are_there_and_dropped_without_them(backend):
    table = make_item(index=False)
    engine = engine_that_indexes(backend)

    def check(connection: Connection) -> None:
        table.create(connection)
        connection.execute(insert(table), rows_of())
        check_search(connection, table)
        before = names_in(connection) if backend.family == "sqlite" else set()
        index = vector_index("ix_item", "embedding", metric="l2", include=("language",))
        index._set_parent_with_dispatch(table)
        index.create(connection)
        index.create(connection, checkfirst=True)
        assert has_index(connection) == can_index(backend)
        check_search(connection, table)
        english = nearest(select(table.c.id).where(table.c.language == "en"), table.c.embedding, QUERY, k=9)
        expected = brute_force(VECTORS, QUERY, 9, "l2", keep=lambda key: key % 2 == 1)
        assert_equal(connection.execute(english), expected)
        index.drop(connection)
        index.drop(connection, checkfirst=True)
        assert not has_index(connection)
        if backend.family == "sqlite":
            assert names_in(connection) == before
        check_search(connection, table)
        assert_equal(connection.execute(english), expected)
        connection.execute(CreateIndex(index, if_not_exists=True))
        connection.execute(CreateIndex(index, if_not_exists=True))
        check_search(connection, table)
        connection.execute(DropIndex(index, if_exists=True))
        connection.execute(DropIndex(index, if_exists=True))
        assert not has_index(connection)

    backend.run_connection(engine, check)


def test_an_index_made_by_another_engine_is_found_and_used(backend):
    table = make_item()
    engine = engine_that_indexes(backend)
    backend.create_all(engine, table.metadata)

    def check(connection: Connection) -> None:
        connection.execute(insert(table), rows_of())
        check_search(connection, table)
        if backend.family == "sqlite" and can_index(backend):
            compiled = str(nearest(select(table.c.id), table.c.embedding, QUERY).compile(connection))
            assert "ix_item" in compiled

    backend.run_connection(engine_that_indexes(backend), check)


@pytest.mark.parametrize("key", [Integer, String(20)], ids=["int", "text"])
def test_a_copied_table_has_the_index_too(backend, key):
    table = make_item(key=key, include=("language",), precision="half", m=5, ef_construction=20)
    copy = table.to_metadata(MetaData())
    renamed = table.to_metadata(MetaData(), name="copied")
    renamed.indexes.clear()
    (original,), (copied,) = table.indexes, copy.indexes
    assert (copied.name, dict(copied.dialect_options["postgresql"])) == (
        original.name,
        dict(original.dialect_options["postgresql"]),
    )
    assert copied.expressions[0].spec == original.expressions[0].spec
    assert copied.expressions[0].column is copy.c.embedding
    to_key = (lambda number: number) if key is Integer else (lambda number: f"k{number:03}")

    def check(connection: Connection) -> None:
        copy.metadata.create_all(connection)
        assert has_index(connection) == can_index(backend)
        connection.execute(insert(copy), rows_of(to_key))
        check_search(connection, copy, {to_key(number): vector for number, vector in VECTORS.items()})
        copy.metadata.drop_all(connection)
        assert not has_index(connection)

    backend.run_connection(engine_that_indexes(backend), check)


def test_a_table_in_another_schema_is_indexed_and_searched_there(backend, tmp_path):
    table = make_item(MetaData(schema="archive"), key=String(20), include=("language",))
    same_name = make_item(key=String(20), include=("language",))
    engine = engine_that_indexes(backend)
    sync_engine = engine if isinstance(engine, Engine) else engine.sync_engine
    if backend.family == "sqlite":

        @event.listens_for(sync_engine, "connect")
        def attach(dbapi_connection, record) -> None:
            cursor = dbapi_connection.cursor()
            cursor.execute(f"ATTACH DATABASE '{tmp_path / 'archive.db'}' AS archive")
            cursor.close()

    vectors = {f"k{number:03}": vector for number, vector in VECTORS.items()}
    others = {f"k{number:03}": vector for number, vector in make_vectors(60, DIM, seed=99).items()}

    def create(connection: Connection) -> None:
        if backend.family == "postgresql":
            connection.execute(text("CREATE SCHEMA archive"))
        same_name.metadata.create_all(connection)
        table.metadata.create_all(connection)
        table.metadata.create_all(connection)
        connection.execute(insert(table), rows_of(lambda number: f"k{number:03}"))
        connection.execute(insert(same_name), [{"id": key, "embedding": v} for key, v in others.items()])

    def check(connection: Connection) -> None:
        check_search(connection, table, vectors)
        check_search(connection, same_name, others)
        english = nearest(select(table.c.id).where(table.c.language == "en"), table.c.embedding, QUERY, k=9)
        expected = brute_force(vectors, QUERY, 9, "l2", keep=lambda key: int(key[1:]) % 2 == 1)
        assert_equal(connection.execute(english), expected)
        on_slug = nearest(select(table.c.id).where(table.c.slug > "s3"), table.c.embedding, QUERY, k=9)
        expected = brute_force(vectors, QUERY, 9, "l2", keep=lambda key: f"s{int(key[1:])}" > "s3")
        assert_equal(connection.execute(on_slug), expected)
        if backend.family == "sqlite" and can_index(backend):
            script = str(english.compile(connection, compile_kwargs={"literal_binds": True}))
            plan = "\n".join(row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {script}"))
            assert re.search(r"SCAN (archive\.)?ix_item VIRTUAL TABLE INDEX", plan)
            assert inspect(connection).get_table_names(schema="archive") == ["item"]
            assert [i["name"] for i in inspect(connection).get_indexes("item", schema="archive")] == ["ix_item"]

    def drop(connection: Connection) -> None:
        table.metadata.drop_all(connection)
        assert not inspect(connection).has_table("item", schema="archive")
        if backend.family == "sqlite":
            assert names_in(connection, "archive") == set()
        check_search(connection, same_name, others)
        same_name.metadata.drop_all(connection)
        if backend.family == "sqlite":
            assert names_in(connection) == set()

    backend.run_connection(engine, create)
    backend.run_connection(engine, check)
    # A new connection learns about the index of the attached database as well.
    if isinstance(engine, Engine):
        engine.dispose()
    backend.run_connection(engine, check)
    backend.run_connection(engine, drop)


@VEC0
def test_an_index_in_an_attached_database_is_used_by_a_new_engine(backend, tmp_path):
    table = make_item(MetaData(schema="archive"))

    def attached_engine():
        engine = backend.make_engine()

        @event.listens_for(engine if isinstance(engine, Engine) else engine.sync_engine, "connect")
        def attach(dbapi_connection, record) -> None:
            cursor = dbapi_connection.cursor()
            cursor.execute(f"ATTACH DATABASE '{tmp_path / 'archive.db'}' AS archive")
            cursor.close()

        return engine

    def create(connection: Connection) -> None:
        table.metadata.create_all(connection)
        connection.execute(insert(table), rows_of())

    def check(connection: Connection) -> None:
        stmt = nearest(select(table.c.id), table.c.embedding, QUERY, k=9)
        assert "ix_item" in str(stmt.compile(connection))
        check_search(connection, table)

    backend.run_connection(attached_engine(), create)
    backend.run_connection(attached_engine(), check)


def test_a_translated_schema_holds_the_index(backend, tmp_path):
    """``schema_translate_map``, as multi-tenant applications use it."""
    table = make_item(MetaData(schema="tenant"), include=("language",))
    engine = engine_that_indexes(backend)
    if backend.family == "sqlite":

        @event.listens_for(engine if isinstance(engine, Engine) else engine.sync_engine, "connect")
        def attach(dbapi_connection, record) -> None:
            cursor = dbapi_connection.cursor()
            for name in ("one", "two"):
                cursor.execute(f"ATTACH DATABASE '{tmp_path / name}' AS {name}")
            cursor.close()

    def check(connection: Connection) -> None:
        vectors = {"one": VECTORS, "two": make_vectors(60, DIM, seed=5)}
        for schema, rows in vectors.items():
            if backend.family == "postgresql":
                connection.execute(text(f"CREATE SCHEMA {schema}"))
            translated = connection.execution_options(schema_translate_map={"tenant": schema})
            table.create(translated)
            translated.execute(insert(table), [{"id": k, "language": "en", "embedding": v} for k, v in rows.items()])
        for schema, rows in vectors.items():
            translated = connection.execution_options(schema_translate_map={"tenant": schema})
            check_search(translated, table, rows)
            stmt = nearest(select(table.c.id).where(table.c.language == "en"), table.c.embedding, QUERY, k=5)
            assert_equal(translated.execute(stmt), brute_force(rows, QUERY, 5, "l2"))
        for schema in vectors:
            table.drop(connection.execution_options(schema_translate_map={"tenant": schema}))
            if backend.family == "sqlite":
                assert names_in(connection, schema) == set()

    backend.run_connection(engine, check)


def test_method_auto_builds_no_index_on_a_small_table(backend):
    """Under 10,000 rows at the time of CREATE INDEX an exact scan is as fast."""
    table = make_item(method="auto")
    copy = table.to_metadata(MetaData())
    engine = engine_that_indexes(backend)

    def check(connection: Connection) -> None:
        for made in (table, copy):
            made.metadata.create_all(connection)
            assert not has_index(connection)
            connection.execute(insert(made), rows_of())
            check_search(connection, made)
            (index,) = made.indexes
            index.create(connection)
            assert not has_index(connection)
            index.drop(connection)  # nothing to drop is no error
            made.metadata.drop_all(connection)

    backend.run_connection(engine, check)


@pytest.mark.backends("psycopg", "asyncpg", "sqlite_stdlib", "pysqlite3", "sqlite_numpy", "aiosqlite")
def test_method_auto_builds_the_index_on_a_large_table(backend):
    table = make_item(method="auto", m=4, ef_construction=8)
    vectors = dict(enumerate(np.random.default_rng(0).normal(size=(10_000, DIM)).astype(np.float32), start=1))
    engine = engine_that_indexes(backend)

    def check(connection: Connection) -> None:
        table.create(connection)
        rows = [{"id": key, "embedding": vector} for key, vector in vectors.items()]
        connection.execute(insert(table), rows[:-1])
        (index,) = table.indexes
        index.create(connection)
        assert not has_index(connection)
        connection.execute(insert(table), rows[-1:])
        index.create(connection)
        assert has_index(connection) == can_index(backend)
        connection.execute(table.delete().where(table.c.id > 100))
        few = {key: vector for key, vector in vectors.items() if key <= 100}
        # The graph of hnsw is of 10,000 rows still, and approximate.
        assert len(connection.execute(nearest(select(table.c.id), table.c.embedding, QUERY, k=9)).all()) == 9
        # It is dropped although the table is small again.
        index.drop(connection)
        assert not has_index(connection)
        check_search(connection, table, few)

    backend.run_connection(engine, check)


def test_composite_keys_are_indexed_on_postgresql_and_refused_on_sqlite(backend):
    table = Table(
        "part",
        MetaData(),
        Column("tenant", String(5), primary_key=True),
        Column("number", Integer, primary_key=True),
        Column("embedding", Vector(DIM)),
        vector_index("ix_part", "embedding", metric="l2"),
    )
    rows = [{"tenant": "ab"[k % 2], "number": k, "embedding": v} for k, v in VECTORS.items()]

    def check(connection: Connection) -> None:
        if backend.family == "sqlite":
            before = names_in(connection)
            with pytest.raises(
                IndexNotUsable, match=r"ix_part: .* primary key of one integer or text column; part has"
            ):
                table.create(connection)
            assert "part" not in names_in(connection) - before or not has_index(connection, "part")
            return
        table.create(connection)
        connection.execute(insert(table), rows)
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        for stmt, keep in (
            (select(table.c.number), lambda key: True),
            (select(table.c.number).where(table.c.tenant == "a"), lambda key: key % 2 == 0),
        ):
            found = connection.execute(nearest(stmt, table.c.embedding, QUERY, k=9)).all()
            assert_equal(found, brute_force(VECTORS, QUERY, 9, "l2", keep=keep))

    backend.run_connection(engine_that_indexes(backend), check)


REFUSED_ON_SQLITE = {
    "a key of bytes": (Column("id", LargeBinary, primary_key=True), Vector(DIM), {}),
    "a key of dates": (Column("id", Date, primary_key=True), Vector(DIM), {}),
    "too many dimensions": (Column("id", Integer, primary_key=True), Vector(8_193), {"precision": "binary"}),
    "included bytes": (Column("id", Integer, primary_key=True), Vector(DIM), {"include": ("data",)}),
    "partition of floats": (Column("id", Integer, primary_key=True), Vector(DIM), {"partition_by": "data"}),
}


@VEC0
@pytest.mark.parametrize("case", REFUSED_ON_SQLITE)
def test_what_vec0_cannot_keep_is_refused_before_anything_is_written(backend, engine, case):
    key, kind, options = REFUSED_ON_SQLITE[case]
    table = Table("t", MetaData(), key._copy(), Column("data", LargeBinary), Column("embedding", kind))
    index = vector_index("ix_t", "embedding", **options)
    index._set_parent_with_dispatch(table)

    def check(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE t (id, data, embedding)"))
        with pytest.raises(IndexNotUsable, match="ix_t"):
            index.create(connection)
        assert names_in(connection) == {"t"}

    backend.run_connection(engine, check)


@pytest.mark.parametrize("dim", [2_001, 4_001])
@pytest.mark.backends("psycopg", "asyncpg_noplugin")
def test_more_dimensions_than_pgvector_indexes(backend, engine, dim, caplog):
    """Over 2,000 half precision is taken, with a notice; over 4,000 only binary can be."""
    caplog.set_level(logging.WARNING, "sqla_vector")
    table = Table(
        "t",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("embedding", Vector(dim)),
        vector_index("ix_t", "embedding", metric="cosine"),
    )
    rng = np.random.default_rng(0)
    vectors = dict(enumerate(rng.normal(size=(30, dim)).astype(np.float32), start=1))
    query = rng.normal(size=dim).astype(np.float32)

    def check(connection: Connection) -> None:
        connection.execute(text("CREATE EXTENSION vector"))
        if dim > 4_000:
            with pytest.raises(IndexNotUsable, match=r"t\.embedding has 4,001 dimensions .* 4,000 .*binary"):
                table.create(connection)
            return
        table.create(connection)
        assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
            "t.embedding has 2001 dimensions, over 2,000: its index is built in half precision"
        ]
        connection.execute(insert(table), [{"id": k, "embedding": v} for k, v in vectors.items()])
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        found = connection.execute(nearest(select(table.c.id), table.c.embedding, query, k=5)).all()
        assert_equal(found, brute_force(vectors, query, 5, "cosine"))

    backend.run_connection(engine, check)


@pytest.mark.backends(family="postgresql")
def test_binary_precision_takes_as_many_dimensions_as_a_vector_has(backend, engine):
    table = Table(
        "t",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("embedding", Vector(4_001)),
        vector_index("ix_t", "embedding", metric="cosine", precision="binary"),
    )

    def check(connection: Connection) -> None:
        table.create(connection)
        connection.execute(insert(table), [{"id": 1, "embedding": np.ones(4_001)}])
        found = connection.execute(nearest(select(table.c.id), table.c.embedding, np.ones(4_001))).all()
        assert [row.id for row in found] == [1]

    backend.run_connection(engine, check)


NOT_IN_VEC0 = {
    "inner product": (Vector, {"metric": "inner_product"}, "vec0 has no inner_product metric"),
    "jaccard": (BitVector, {"metric": "jaccard"}, "vec0 has no jaccard metric"),
    "sparse": (SparseVector, {"metric": "l2"}, "vec0 has no sparse vectors"),
}


@VEC0
@pytest.mark.parametrize("case", NOT_IN_VEC0)
def test_an_index_that_vec0_cannot_have_is_left_out_with_a_notice(backend, engine, case, caplog):
    kind, options, reason = NOT_IN_VEC0[case]
    caplog.set_level(logging.WARNING, "sqla_vector")
    table = Table(
        "t",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("embedding", kind(DIM)),
        vector_index("ix_t", "embedding", **options),
    )
    vectors = make_bits(60, DIM) if kind is BitVector else VECTORS
    query = QUERY > 0 if kind is BitVector else QUERY

    def check(connection: Connection) -> None:
        table.metadata.create_all(connection)
        assert [r.getMessage() for r in caplog.records] == [
            f"ix_t is not built on SQLite: {reason}; searches scan exactly"
        ]
        assert names_in(connection) == {"t"}
        connection.execute(insert(table), [{"id": k, "embedding": v} for k, v in vectors.items()])
        found = connection.execute(nearest(select(table.c.id), table.c.embedding, query, k=9)).all()
        assert_equal(found, brute_force(vectors, query, 9, options["metric"]))
        table.metadata.drop_all(connection)
        assert names_in(connection) == set()

    backend.run_connection(engine, check)


@pytest.mark.backends("sqlite_numpy")
def test_without_sqlite_vec_an_index_is_refused_with_the_sentence_that_helps(backend, engine, caplog):
    caplog.set_level(logging.WARNING, "sqla_vector")
    table = make_item()
    with pytest.raises(IndexNotUsable) as caught:
        backend.create_all(engine, table.metadata)
    message = str(caught.value)
    assert "ix_item: this Python's SQLite cannot load sqlite-vec" in message
    assert "pip install 'sqla-vector[sqlite]'" in message
    assert "vector_skip_missing_index=True" in message
    assert isinstance(caught.value, VectorError)

    def check(connection: Connection) -> None:
        assert caplog.records == []
        table.metadata.create_all(connection)
        assert [r.getMessage() for r in caplog.records] == [
            "ix_item is not built: sqlite-vec is missing; searches scan exactly"
        ]
        connection.execute(insert(table), rows_of())
        check_search(connection, table)
        table.metadata.drop_all(connection)
        assert names_in(connection) == set()

    backend.run_connection(engine_that_indexes(backend, url=backend.url.set(database=":memory:")), check)


@VEC0
@pytest.mark.parametrize("key", [Integer, String(20)], ids=["int", "text"])
def test_a_fill_that_fails_leaves_nothing_of_the_index(backend, engine, key):
    """One row holds a vector of another dimension, written by another program; vec0 refuses it half-way."""
    table = make_item(key=key)
    (index,) = table.indexes

    def check(connection: Connection) -> None:
        table.indexes.remove(index)
        table.create(connection)
        connection.execute(insert(table), rows_of(str if key is not Integer else int))
        before = names_in(connection)
        wrong = text("INSERT INTO item (id, embedding) VALUES (:id, :vector)")
        connection.execute(wrong, {"id": 777, "vector": np.ones(DIM + 1, np.float32).tobytes()})
        with pytest.raises(Exception, match=r"(?i)dimension"):
            index.create(connection)
        assert names_in(connection) == before
        # What the transaction wrote before is still there, and the table works.
        assert connection.scalar(text("SELECT count(*) FROM item")) == len(VECTORS) + 1
        connection.execute(text("DELETE FROM item WHERE id = '777'"))
        table.indexes.add(index)
        index.create(connection)
        assert has_index(connection)

    backend.run_connection(engine, check)


SIDES = pytest.mark.parametrize("side", ["keys", "replaced", "centroids", "tuned"])


@VEC0
@SIDES
def test_an_index_leaves_a_table_alone_whose_name_is_like_that_of_its_own(backend, engine, side):
    index = vector_index("ix_item", "embedding", metric="l2")
    table = Table("item", MetaData(), Column("id", Integer, primary_key=True), Column("embedding", Vector(2)), index)
    name = f"ix_item_{side}"

    def check(connection: Connection) -> None:
        table.create(connection)
        connection.exec_driver_sql(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, secret TEXT)")
        connection.exec_driver_sql(f"INSERT INTO {name} VALUES (1, 'kept')")
        assert sorted(inspect(connection).get_table_names()) == ["item", name]
        with pytest.raises(IndexNotUsable, match=f"and {name} is the name of another one"):
            optimize(connection, table.c.embedding)
        connection.execute(insert(table), [{"id": 1, "embedding": [1, 2]}])
        assert connection.scalars(nearest(select(table.c.id), table.c.embedding, [0, 0], k=1)).all() == [1]
        index.drop(connection)
        with pytest.raises(IndexNotUsable, match=f"and {name} is the name of another one"):
            index.create(connection)
        table.drop(connection)
        assert connection.exec_driver_sql(f"SELECT * FROM {name}").all() == [(1, "kept")]
        assert inspect(connection).get_table_names() == [name]

    backend.run_connection(engine, check)


@VEC0
def test_an_index_leaves_the_tables_of_attached_databases_alone(backend, engine):
    table = make_item()
    (index,) = table.indexes

    def check(connection: Connection) -> None:
        connection.exec_driver_sql("ATTACH DATABASE ':memory:' AS side")
        table.create(connection)
        for columns in ("(id INTEGER)", "(number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE)"):
            connection.exec_driver_sql(f"CREATE TABLE side.ix_item_keys {columns}")
            index.drop(connection)
            index.create(connection)
            connection.exec_driver_sql("DROP TABLE side.ix_item_keys")

    backend.run_connection(engine, check)


@VEC0
@SIDES
def test_models_with_a_table_of_the_name_of_an_index_s_own_are_refused(backend, engine, side):
    metadata = MetaData()
    make_item(metadata)
    Table(f"ix_item_{side}", metadata, Column("id", Integer, primary_key=True))
    with pytest.raises(IndexNotUsable, match=f"and ix_item_{side} is the name of another one"):
        backend.create_all(engine, metadata)


def test_an_index_whose_creation_is_rolled_back_is_not_searched(backend):
    table = make_item(index=False)
    engine = engine_that_indexes(backend)
    index = vector_index("ix_item", "embedding", metric="l2")

    def create(connection: Connection) -> None:
        table.create(connection)

    class Undone(Exception):
        pass

    def build_and_fail(connection: Connection) -> None:
        connection.execute(insert(table), [{"id": 1, "embedding": QUERY}])
        index.create(connection)
        check_search(connection, table, {1: QUERY})
        raise Undone

    backend.run_connection(engine, create)
    index._set_parent_with_dispatch(table)
    with pytest.raises(Undone):
        backend.run_connection(engine, build_and_fail)

    def check(connection: Connection) -> None:
        assert not has_index(connection)
        assert connection.execute(select(table)).all() == []
        connection.execute(insert(table), rows_of())
        check_search(connection, table)
        index.create(connection)
        check_search(connection, table)

    backend.run_connection(engine, check)

    def drop_and_fail(connection: Connection) -> None:
        connection.execute(insert(table), [{"id": 1_000, "embedding": QUERY}])
        index.drop(connection)
        raise Undone

    with pytest.raises(Undone):
        backend.run_connection(engine, drop_and_fail)

    def check_again(connection: Connection) -> None:
        assert has_index(connection) == can_index(backend)
        check_search(connection, table)
        connection.execute(table.delete().where(table.c.id == 7))
        check_search(connection, table, {key: v for key, v in VECTORS.items() if key != 7})

    backend.run_connection(engine, check_again)


@pytest.mark.backends(family="postgresql")
def test_build_options_and_operator_classes_reach_the_server(backend, engine):
    indexes = {
        "ix_hnsw": ({"metric": "l2", "m": 5, "ef_construction": 33}, "hnsw (e) WITH (m='5', ef_construction='33')"),
        "ix_ivfflat": (
            {"metric": "cosine", "method": "ivfflat", "lists": 7},
            "ivfflat (e vector_cosine_ops) WITH (lists='7')",
        ),
        "ix_half": (
            {"metric": "inner_product", "precision": "half"},
            "hnsw (((e)::halfvec(8)) halfvec_ip_ops)",
        ),
        "ix_binary": (
            {"metric": "l1", "precision": "binary"},
            "hnsw (((binary_quantize(e))::bit(8)) bit_hamming_ops)",
        ),
        "ix_partial": ({"metric": "l1", "where": text("id > 3")}, "hnsw (e vector_l1_ops) WHERE (id > 3)"),
    }
    table = Table(
        "t",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("e", Vector(DIM)),
        *(vector_index(name, "e", **options) for name, (options, _) in indexes.items()),
    )

    def check(connection: Connection) -> None:
        table.create(connection)
        found = dict(connection.execute(text("SELECT indexname, indexdef FROM pg_indexes")).all())
        for name, (_, expected) in indexes.items():
            definition = found[name].partition(" USING ")[2].replace("vector_l2_ops", "").replace(" )", ")")
            assert definition == expected

    backend.run_connection(engine, check)


@VEC0
def test_one_table_has_several_vector_columns_and_indexes(backend, engine):
    table = Table(
        "t",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("a", Vector(DIM)),
        Column("b", HalfVector(4)),
        Column("c", BitVector(12)),
        vector_index("ix_a_l2", "a", metric="l2"),
        vector_index("ix_a_cosine", "a", metric="cosine", precision="int8"),
        vector_index("ix_a_binary", "a", metric="cosine", precision="binary"),
        vector_index("ix_b", "b", metric="l1"),
        vector_index("ix_c", "c"),
    )

    def check(connection: Connection) -> None:
        table.create(connection)
        bits = make_bits(60, 12)
        rows = [{"id": k, "a": v, "b": None if v is None else v[:4], "c": bits[k]} for k, v in VECTORS.items()]
        connection.execute(insert(table), rows)
        for metric, name in (("l2", "ix_a_l2"), ("cosine", "ix_a_cosine")):
            stmt = nearest(select(table.c.id), table.c.a, QUERY, k=5, metric=metric)
            assert f"FROM {name} " in str(stmt.compile(connection))
        check_l2 = nearest(select(table.c.id), table.c.a, QUERY, k=5, metric="l2")
        assert_equal(connection.execute(check_l2), brute_force(VECTORS, QUERY, 5, "l2"))
        found = connection.execute(nearest(select(table.c.id), table.c.c, bits[2], k=5)).all()
        assert_equal(found, brute_force(bits, bits[2], 5, "hamming"))
        with pytest.raises(VectorError, match=r"t\.a has indexes for cosine and l2; say metric="):
            nearest(select(table.c.id), table.c.a, QUERY)
        with pytest.raises(UnsupportedMetric):
            nearest(select(table.c.id), table.c.c, bits[2], metric="l2")
        table.drop(connection)
        assert names_in(connection) == set()

    backend.run_connection(engine, check)
