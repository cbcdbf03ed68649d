"""nearest(), nearest_each(), nearest_to(): what is refused before any I/O, and how the rest reads as SQL."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, func, select, text, union_all, values
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column

from sqla_vector import (
    BitVector,
    DimensionMismatch,
    InvalidOption,
    InvalidStatement,
    InvalidVector,
    NonFiniteVector,
    UnsupportedMetric,
    Vector,
    VectorError,
    nearest,
    nearest_each,
    nearest_to,
    search,
    vector_index,
)

QUERY = [1.0, 2.0, 3.0]
POSTGRESQL = postgresql.dialect()


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    language: Mapped[str]
    embedding: Mapped[np.ndarray] = mapped_column(Vector(3))
    bits: Mapped[np.ndarray] = mapped_column(BitVector(3))
    __table_args__ = (vector_index("ix_item", "embedding", metric="l2"),)


class Part(Base):
    __tablename__ = "part"
    tenant: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    embedding: Mapped[np.ndarray] = mapped_column(Vector(3))


def forms(**options):
    """Return each form of the search as a function of nothing."""
    return {
        "nearest": lambda: nearest(select(Item), Item.embedding, QUERY, **options),
        "nearest_each": lambda: nearest_each(select(Item), Item.embedding, [QUERY], **options),
        "nearest_to": lambda: nearest_to(Item.embedding, 1, **options),
    }


FORMS = pytest.mark.parametrize("form", ["nearest", "nearest_each", "nearest_to"])
BAD_NUMBERS = [0, -1, 2.5, "3", True, None, float("nan"), float("inf"), [3], 10**12]


@FORMS
@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("k", value) for value in BAD_NUMBERS),
        *(("ef_search", value) for value in BAD_NUMBERS if value is not None),
        *(("probes", value) for value in BAD_NUMBERS if value is not None),
        *(("oversample", value) for value in BAD_NUMBERS if value is not None),
        ("k", 1_000_001),
        ("ef_search", 1_001),
        ("probes", 32_769),
        ("oversample", 1_001),
        ("exact", 1),
        ("exact", "yes"),
        ("exact", None),
        ("max_distance", float("nan")),
        ("max_distance", "1"),
        ("max_distance", True),
        ("max_distance", [1]),
        ("min_similarity", float("nan")),
        ("min_similarity", "0.5"),
        ("metric", "L2"),
        ("metric", "euclidean"),
        ("metric", 2),
        ("metric", "l2; DROP TABLE item"),
    ],
    ids=str,
)
def test_an_option_out_of_its_range_is_refused(form, option, value):
    with pytest.raises(InvalidOption):
        forms(**{option: value})[form]()


@FORMS
def test_two_thresholds_are_one_too_many(form):
    with pytest.raises(InvalidOption, match="not both"):
        forms(max_distance=1, min_similarity=0.5)[form]()


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ([1, 2], DimensionMismatch),
        ([1, 2, 3, 4], DimensionMismatch),
        ([], InvalidVector),
        (1, InvalidVector),
        ("[1,2,3]", InvalidVector),
        ([1, float("nan"), 3], NonFiniteVector),
        ([1, float("inf"), 3], NonFiniteVector),
        ([1, 1e39, 3], NonFiniteVector),
        (["1", "2", "3"], InvalidVector),
        ([True, False, True], InvalidVector),
        ([1j, 2, 3], InvalidVector),
        ([[1, 2, 3]], InvalidVector),
        ([[1], [2, 3]], InvalidVector),
        (b"\x00" * 12, InvalidVector),
        (None, InvalidVector),
        (object(), InvalidVector),
    ],
)
def test_a_query_that_is_no_vector_of_the_column_is_refused(query, error):
    with pytest.raises(error):
        nearest(select(Item), Item.embedding, query)
    with pytest.raises(VectorError):
        nearest_each(select(Item), Item.embedding, [QUERY, query])


@pytest.mark.parametrize("queries", [[], np.ones((0, 3)), np.ones((501, 3)), np.ones((2, 4))], ids=np.shape)
def test_no_queries_too_many_or_of_another_dimension_are_refused(queries):
    with pytest.raises(VectorError):
        nearest_each(select(Item), Item.embedding, queries)


@pytest.mark.parametrize(
    "stmt",
    [
        select(Item).limit(3),
        select(Item).offset(3),
        select(Item).fetch(3),
        select(Item).order_by(Item.id),
        nearest(select(Item), Item.embedding, QUERY),
        union_all(select(Item.id), select(Item.id)),
        text("SELECT * FROM item"),
        Item,
        None,
    ],
    ids=lambda stmt: type(stmt).__name__,
)
def test_a_statement_that_is_ordered_or_limited_already_is_refused(stmt):
    with pytest.raises(InvalidStatement):
        nearest(stmt, Item.embedding, QUERY)
    with pytest.raises(InvalidStatement):
        nearest_each(stmt, Item.embedding, [QUERY])


@pytest.mark.parametrize("column", [Item.language, Item, "embedding", 1, None, func.count()])
def test_what_is_no_vector_column_is_refused(column):
    with pytest.raises(InvalidOption):
        nearest(select(Item), column, QUERY)


def test_a_metric_that_the_column_does_not_have_is_refused():
    with pytest.raises(UnsupportedMetric, match=r"item\.embedding is a vector column and has no hamming metric"):
        nearest(select(Item), Item.embedding, QUERY, metric="hamming")
    with pytest.raises(UnsupportedMetric, match=r"item\.bits"):
        nearest(select(Item), Item.bits, [1, 0, 1], metric="cosine")


def test_a_table_without_a_primary_key_is_refused():
    bare = Table("bare", MetaData(), Column("embedding", Vector(3)))
    with pytest.raises(InvalidStatement, match="primary key"):
        nearest(select(bare), bare.c.embedding, QUERY)
    inline = values(Column("embedding", Vector(3)), name="v")
    with pytest.raises(InvalidStatement, match="primary key"):
        nearest(select(inline), inline.c.embedding, QUERY)


@pytest.mark.parametrize(
    ("column", "given"),
    [
        (Item.__table__.c.embedding, 1),
        ("embedding", 1),
        (Item.embedding, (1, 2)),
        (Item.embedding, ()),
        (Part.embedding, 1),
        (Part.embedding, ("a",)),
        (Part.embedding, ("a", 1, 2)),
        (Item.embedding, Item(language="en")),
        (Item.language, 1),
    ],
)
def test_nearest_to_refuses_what_names_no_row(column, given):
    with pytest.raises(InvalidOption):
        nearest_to(column, given)


def test_search_takes_only_statements_of_nearest():
    with Session(create_engine("sqlite://")) as session:
        for stmt in (select(Item), text("SELECT 1"), select(Item).where(Item.id > 3)):
            with pytest.raises(InvalidStatement, match=r"nearest\(\)"):
                search(session, stmt)


def test_the_metric_is_that_of_the_index_unless_another_is_named():
    assert "<->" in str(nearest(select(Item.id), Item.embedding, QUERY).compile(dialect=POSTGRESQL))
    assert "<=>" in str(nearest(select(Part.number), Part.embedding, QUERY).compile(dialect=POSTGRESQL))
    assert "<~>" in str(nearest(select(Item.id), Item.bits, [1, 0, 1]).compile(dialect=POSTGRESQL))
    assert "<+>" in str(nearest(select(Item.id), Item.embedding, QUERY, metric="l1").compile(dialect=POSTGRESQL))


def test_a_statement_prints_without_an_engine():
    printed = str(nearest(select(Item.id).where(Item.language == "en"), Item.embedding, QUERY, k=7))
    assert "nearest(l2_distance(item.embedding" in printed
    assert "ORDER BY distance, item.id" in printed


def test_values_travel_as_parameters_and_never_as_sql():
    hostile = "' OR 1=1; --"
    stmt = nearest(select(Item.id).where(Item.language == hostile), Item.embedding, QUERY, max_distance=3).offset(2)
    for dialect in (POSTGRESQL, create_engine("sqlite://", plugins=["sqla_vector"]).dialect):
        compiled = stmt.compile(dialect=dialect)
        assert "OR 1=1" not in str(compiled)
        assert hostile in [value for value in compiled.params.values() if isinstance(value, str)]


def test_settings_are_in_the_statement_and_local_to_the_transaction():
    def sql(**options) -> str:
        return str(nearest(select(Item.id), Item.embedding, QUERY, **options).compile(dialect=POSTGRESQL))

    assert "set_config('hnsw.iterative_scan', 'strict_order', true)" in sql()
    assert "hnsw.ef_search" not in sql(k=40)
    assert "set_config('hnsw.ef_search', greatest(" in sql(k=41)
    assert "set_config('hnsw.ef_search', '200', true)" in sql(ef_search=200)
    assert ", 1000)::text" in sql(k=5_000)
    assert "set_config" not in sql(exact=True)
    assert "set_config" not in sql(metric="cosine")


def test_two_searches_share_a_cache_entry_only_if_they_compile_alike():
    def key(stmt):
        return stmt._generate_cache_key().key

    base = nearest(select(Item), Item.embedding, QUERY)
    assert key(base) == key(nearest(select(Item), Item.embedding, [3, 2, 1]))
    near = nearest(select(Item), Item.embedding, QUERY, max_distance=1)
    assert key(near) == key(nearest(select(Item), Item.embedding, QUERY, max_distance=2))
    others = [
        near,
        nearest(select(Item), Item.embedding, QUERY, k=11),
        nearest(select(Item), Item.embedding, QUERY, metric="cosine"),
        nearest(select(Item), Item.embedding, QUERY, exact=True),
        nearest(select(Item), Item.embedding, QUERY, oversample=3),
        nearest(select(Item), Item.embedding, QUERY, ef_search=100),
        nearest(select(Item), Item.embedding, QUERY, probes=3),
        nearest(select(other := aliased(Item)), other.embedding, QUERY),
        nearest(select(Item), Item.bits, [1, 0, 1]),
        nearest_each(select(Item), Item.embedding, [QUERY]),
        nearest_each(select(Item), Item.embedding, [QUERY, QUERY]),
    ]
    keys = [key(stmt) for stmt in [base, *others]]
    assert len({str(k) for k in keys}) == len(keys)


def test_a_statement_survives_pickling_and_changes_nothing_in_what_it_was_made_of():
    table = Item.__table__
    before = select(table.c.id)
    stmt = nearest(before, table.c.embedding, QUERY, k=3)
    assert str(before) == str(select(table.c.id))
    restored = pickle.loads(pickle.dumps(stmt))
    assert str(restored) == str(stmt)
    assert restored.selected_columns.keys() == ["id", "distance"]


def test_names_that_need_quotes_are_quoted():
    weird = Table(
        'we"ird',
        MetaData(schema="my schema"),
        Column("the key", Integer, primary_key=True),
        Column("order", String),
        Column("vector %s", Vector(3)),
        vector_index("ix_weird", "vector %s", metric="l2"),
    )
    stmt = nearest(select(weird.c["the key"]).where(weird.c.order == "x"), weird.c["vector %s"], QUERY)
    sql = str(stmt.compile(dialect=POSTGRESQL))
    assert '"my schema"."we""ird"."vector %%s" <-> ' in sql
    assert '"my schema"."we""ird"."order" = ' in sql
