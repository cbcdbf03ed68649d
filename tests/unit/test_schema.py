"""vector_index(): what is refused before any I/O, and the DDL that the rest becomes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from sqlalchemy import Column, Engine, Index, Integer, MetaData, String, Table, create_engine, create_mock_engine, event
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateIndex, DropIndex
from sqlalchemy.sql.elements import quoted_name

from sqla_vector import (
    BitVector,
    HalfVector,
    IndexNotUsable,
    InvalidIdentifier,
    InvalidOption,
    PluginMissing,
    SparseVector,
    UnsupportedMetric,
    Vector,
    attach,
    vector_index,
)
from sqla_vector.schema import check_identifier, index_key, vector_indexes

POSTGRESQL = postgresql.dialect()

# shared by names of indexes, schemas and columns
BAD_NAMES = [
    'a"b',
    "a;DROP TABLE x",
    "'; --",
    "a\nb",
    "a\x00b",
    "",
    " ",
    "%s",
    ":p",
    "a.b",
    "a" * 64,
    "é",
    "1a",
    "select",
    "TABLE",
    None,
    1,
    b"name",
    quoted_name('a"b', quote=False),
    quoted_name("a b", quote=True),
    "a\n",
]


def make_table(kind: object, *indexes: Index) -> Table:
    return Table(
        "item",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("language", String),
        Column("embedding", kind),
        *indexes,
    )


def created(index: Index, dialect=POSTGRESQL) -> str:
    return str(CreateIndex(index).compile(dialect=dialect))


@pytest.fixture
def sqlite_engine() -> Iterator[Engine]:
    """An engine that has connected, and so knows whether it has sqlite-vec."""
    engine = create_engine("sqlite://", plugins=["sqla_vector"])
    engine.connect().close()
    yield engine
    engine.dispose()


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_a_name_that_is_no_plain_identifier_is_refused(name):
    with pytest.raises(InvalidIdentifier, match="index name"):
        vector_index(name, "embedding")
    with pytest.raises(InvalidIdentifier, match="thing"):
        check_identifier(name, "thing")
    if name:  # None and "" mean that no schema is given
        with pytest.raises(InvalidIdentifier, match="schema"):
            attach(create_engine("postgresql+psycopg://nobody@localhost/nothing"), schema=name)
        with pytest.raises(InvalidIdentifier, match="schema"):
            create_engine("postgresql+psycopg://nobody@localhost/x", plugins=["sqla_vector"], vector_schema=name)


@pytest.mark.parametrize("name", ["a", "_", "A1", "a" * 63, "ix_article_embedding", "a$b"])
def test_a_plain_identifier_is_kept_as_it_is(name):
    assert check_identifier(name, "thing") == name
    assert vector_index(name, "embedding").name == name


@pytest.mark.parametrize(
    "options",
    [
        {"m": 1},
        {"m": 101},
        {"m": 0},
        {"m": -1},
        {"m": 2.5},
        {"m": "16"},
        {"m": True},
        {"ef_construction": 3},
        {"ef_construction": 1_001},
        {"ef_construction": 16.0},
        {"m": 16, "ef_construction": 31},
        {"m": 33},
        {"ef_construction": 31},
        {"lists": 10},
        {"method": "ivfflat", "lists": 0},
        {"method": "ivfflat", "lists": 32_769},
        {"method": "ivfflat", "lists": "100"},
        {"method": "ivfflat", "lists": float("nan")},
        {"method": "ivfflat", "m": 16},
        {"method": "ivfflat", "ef_construction": 64},
        {"method": "auto", "lists": 10},
        {"method": "flat"},
        {"method": None},
        {"method": ["hnsw"]},
        {"precision": "float8"},
        {"precision": None},
        {"precision": 8},
        {"metric": "manhattan"},
        {"metric": "COSINE"},
        {"metric": 1},
        {"metric": ""},
        {"value_range": 0},
        {"value_range": -1},
        {"value_range": float("nan")},
        {"value_range": float("inf")},
        {"value_range": True},
        {"value_range": "1"},
        {"include": ("a", "a")},
        {"include": (1,)},
        {"include": (None,)},
        {"partition_by": ("a", "a")},
        {"partition_by": (b"a",)},
    ],
    ids=str,
)
def test_an_option_out_of_its_range_is_refused(options):
    with pytest.raises(InvalidOption):
        vector_index("ix", "embedding", **options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "USING hnsw (embedding vector_cosine_ops)"),
        ({"m": 2, "ef_construction": 4}, "USING hnsw (embedding vector_cosine_ops) WITH (m = 2, ef_construction = 4)"),
        ({"m": 100, "ef_construction": 1_000}, "WITH (m = 100, ef_construction = 1000)"),
        ({"method": "ivfflat", "lists": 1}, "USING ivfflat (embedding vector_cosine_ops) WITH (lists = 1)"),
        ({"method": "ivfflat", "lists": 32_768}, "WITH (lists = 32768)"),
        ({"method": "auto", "metric": "l2"}, "USING hnsw (embedding vector_l2_ops)"),
        ({"metric": "l1"}, "vector_l1_ops"),
        ({"metric": "inner_product"}, "vector_ip_ops"),
        ({"precision": "half"}, "((embedding::HALFVEC(8)) halfvec_cosine_ops)"),
        ({"precision": "int8"}, "((embedding::HALFVEC(8)) halfvec_cosine_ops)"),
        ({"precision": "binary"}, "((binary_quantize(embedding)::BIT(8)) bit_hamming_ops)"),
        ({"method": "ivfflat", "precision": "binary", "metric": "l1"}, "ivfflat ((binary_quantize(embedding)::BIT(8))"),
        ({"include": ("language",), "partition_by": "id"}, "USING hnsw (embedding vector_cosine_ops)"),
    ],
    ids=str,
)
def test_options_become_pgvector_s(options, expected):
    index = vector_index("ix_item", "embedding", **options)
    make_table(Vector(8), index)
    sql = created(index)
    assert sql.startswith("CREATE INDEX ix_item ON item USING ")
    assert expected in sql


@pytest.mark.parametrize(
    ("kind", "metric", "opclass"),
    [
        (HalfVector(8), None, "halfvec_cosine_ops"),
        (HalfVector(8), "l1", "halfvec_l1_ops"),
        (SparseVector(8), "inner_product", "sparsevec_ip_ops"),
        (SparseVector(8), "l2", "sparsevec_l2_ops"),
        (BitVector(8), None, "bit_hamming_ops"),
        (BitVector(8), "jaccard", "bit_jaccard_ops"),
    ],
    ids=str,
)
def test_every_kind_has_its_operator_class(kind, metric, opclass):
    index = vector_index("ix_item", "embedding", metric=metric)
    make_table(kind, index)
    assert f"(embedding {opclass})" in created(index)


@pytest.mark.parametrize(
    ("kind", "options", "error", "message"),
    [
        (Vector(8), {"metric": "hamming"}, UnsupportedMetric, "item.embedding is a vector column and has no hamming"),
        (BitVector(8), {"metric": "l2"}, UnsupportedMetric, "it has hamming, jaccard"),
        (Vector(), {}, IndexNotUsable, r"item.embedding has no dimension; declare it, for example Vector\(384\)"),
        (String(), {}, InvalidOption, "item.embedding is no vector column"),
        (BitVector(8), {"precision": "binary"}, InvalidOption, "is for float vectors"),
        (SparseVector(8), {"precision": "half"}, InvalidOption, "is for float vectors"),
        (SparseVector(8), {"method": "ivfflat"}, IndexNotUsable, "ivfflat has no cosine for sparsevec"),
        (Vector(8), {"method": "ivfflat", "metric": "l1"}, IndexNotUsable, "ivfflat has no l1 for vector"),
        (BitVector(8), {"method": "ivfflat", "metric": "jaccard"}, IndexNotUsable, "ivfflat has no jaccard"),
        (Vector(8), {"include": ("nothing",)}, InvalidOption, "item has no column 'nothing'"),
        (Vector(8), {"partition_by": "a;DROP TABLE x"}, InvalidOption, "item has no column"),
        (Vector(8), {"include": ('language"',)}, InvalidOption, "item has no column"),
    ],
    ids=str,
)
def test_an_index_that_does_not_fit_its_column_is_refused_when_they_meet(kind, options, error, message):
    with pytest.raises(error, match=message):
        make_table(kind, vector_index("ix_item", "embedding", **options))


def test_a_missing_column_is_refused_with_its_name():
    with pytest.raises(ArgumentError, match="no column named 'nothing'"):
        make_table(Vector(8), vector_index("ix_item", "nothing"))


@pytest.mark.parametrize("dim", [2_001, 4_000])
def test_over_2000_dimensions_half_precision_is_taken_with_a_notice(dim, caplog):
    index = vector_index("ix_item", "embedding")
    make_table(Vector(dim), index)
    assert f"((embedding::HALFVEC({dim})) halfvec_cosine_ops)" in created(index)
    assert f"item.embedding has {dim} dimensions, over 2,000: its index is built in half precision" in caplog.text


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Vector(4_001), {}),
        (Vector(4_001), {"precision": "half"}),
        (HalfVector(4_001), {}),
        (Vector(16_000), {"precision": "int8"}),
    ],
    ids=str,
)
def test_more_dimensions_than_pgvector_indexes_are_refused(kind, options):
    index = vector_index("ix_item", "embedding", **options)
    make_table(kind, index)
    with pytest.raises(IndexNotUsable, match="use vector_index"):
        created(index)


def test_more_dimensions_than_vec0_takes_are_refused_before_any_statement(sqlite_engine):
    index = vector_index("ix_item", "embedding")
    table = make_table(Vector(8_193), index)
    with pytest.raises(IndexNotUsable, match=r"item\.embedding has 8,193 dimensions and vec0 takes at most 8,192"):
        index.create(sqlite_engine)
    fits = vector_index("ix_item", "embedding")
    make_table(Vector(8_192), fits)
    with sqlite_engine.connect():
        assert "float[8192]" in created(fits, sqlite_engine.dialect)
    assert table.name == "item"


def test_an_index_is_a_plain_index_and_a_copy_keeps_all_of_it():
    index = vector_index(
        "ix_item",
        "embedding",
        metric="l2",
        precision="int8",
        include=("language",),
        partition_by="id",
        value_range=3,
        m=5,
        ef_construction=20,
    )
    table = make_table(Vector(8), index)
    assert type(index) is Index
    copy = table.to_metadata(MetaData(), schema="other")
    again = copy.to_metadata(MetaData())
    for copied in (copy, again):
        ((found, key),) = vector_indexes(copied)
        assert (type(found), found.name) == (Index, "ix_item")
        assert key.spec == index_key(index).spec
        assert key.column is copied.c.embedding
        assert created(found).endswith("((embedding::HALFVEC(8)) halfvec_l2_ops) WITH (m = 5, ef_construction = 20)")
    assert "ON other.item" in created(vector_indexes(copy)[0][0])


def test_a_column_may_be_named_or_be_an_attribute():
    class Base(DeclarativeBase):
        pass

    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        embedding: Mapped[np.ndarray] = mapped_column(Vector(8))

    class Mixed(Base):
        __tablename__ = "mixed"
        id: Mapped[int] = mapped_column(primary_key=True)
        vector = mapped_column("vector_column", Vector(8))
        __table_args__ = (vector_index("ix_mixed", vector),)

    late = vector_index("ix_late", Item.embedding)
    late._set_parent_with_dispatch(Item.__table__)
    assert "ON item USING hnsw (embedding vector_cosine_ops)" in created(late)
    (mixed,) = Mixed.__table__.indexes
    assert "ON mixed USING hnsw (vector_column vector_cosine_ops)" in created(mixed)


def test_a_script_without_a_connection_has_every_statement():
    """``create_mock_engine``, as used to print a schema; method="auto" is written out there."""
    metadata = MetaData()
    Table(
        "item",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("embedding", Vector(8)),
        vector_index("ix_item", "embedding", method="auto"),
    )
    script: list[str] = []
    engine = create_mock_engine(
        "postgresql+psycopg://", lambda sql, *_, **__: script.append(str(sql.compile(dialect=engine.dialect)))
    )
    metadata.create_all(engine, checkfirst=False)
    assert [statement.split()[0:2] for statement in map(str.strip, script)] == [
        ["CREATE", "EXTENSION"],
        ["CREATE", "TABLE"],
        ["CREATE", "INDEX"],
    ]


def test_the_ddl_of_sqlite_is_one_script_of_plain_names(sqlite_engine):
    index = vector_index("ix_item", "embedding", include=("language",), partition_by="id")
    make_table(Vector(8), index)
    sql = created(index, sqlite_engine.dialect)
    assert sql.startswith(
        "CREATE VIRTUAL TABLE ix_item USING vec0(vector float[8] distance_metric=cosine, "
        "partition_1 integer partition key, include_1 text)"
    )
    assert sql.count("CREATE TRIGGER ix_item_") == 5
    dropped = str(DropIndex(index).compile(dialect=sqlite_engine.dialect))
    assert dropped.endswith("DROP TABLE IF EXISTS ix_item")


def test_names_of_tables_and_columns_are_quoted_in_every_statement(sqlite_engine):
    """The table's names are the application's and may be anything; the index's own are plain identifiers."""
    table = Table(
        'we"ird; --',
        MetaData(),
        Column("the key", Integer, primary_key=True),
        Column("order", String),
        Column("embedding", Vector(8)),
        vector_index("ix_weird", "embedding", metric="l2", include=("order",)),
    )
    table.metadata.create_all(sqlite_engine)
    with sqlite_engine.begin() as connection:
        connection.execute(table.insert(), [{"the key": 7, "order": "a'b", "embedding": np.ones(8)}])
        connection.execute(table.update().values({"order": "%s"}))
        assert connection.exec_driver_sql("SELECT rowid, include_1 FROM ix_weird").all() == [(7, "%s")]
    table.metadata.drop_all(sqlite_engine)


def test_without_the_plugin_sqlite_is_told_which_line_to_add():
    index = vector_index("ix_item", "embedding")
    table = make_table(Vector(8), index)
    engine = create_engine("sqlite://")
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda c, cursor, sql, *rest: statements.append(sql))
    with pytest.raises(PluginMissing, match=r'plugins=\["sqla_vector"\]'):
        index.create(engine)
    assert statements == []
    assert table.indexes == {index}
    engine.dispose()
