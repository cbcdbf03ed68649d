"""hybrid() and its parts: what is refused before any I/O, and how the rest reads as SQL."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sqlalchemy import MetaData, String, Table, bindparam, func, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

from sqla_vector import (
    DimensionMismatch,
    InvalidOption,
    InvalidStatement,
    UnsupportedMetric,
    Vector,
    best_per_group,
    hybrid,
    nearest,
    nearest_each,
    rerank,
    text_index,
    text_part,
    vector_part,
)
from sqla_vector.exc import InvalidIdentifier, InvalidText
from sqla_vector.fusion import rrf, weighted

QUERY = [1.0, 2.0, 3.0]
POSTGRESQL = postgresql.dialect()


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    group_id: Mapped[int | None]
    words: Mapped[str] = mapped_column(String(80))
    embedding: Mapped[np.ndarray] = mapped_column(Vector(3))
    __table_args__ = (text_index("ix_item_words", "words"),)


class Other(Base):
    __tablename__ = "other"
    id: Mapped[int] = mapped_column(primary_key=True)
    embedding: Mapped[np.ndarray] = mapped_column(Vector(3))


def make(**options: Any) -> Any:
    return hybrid(select(Item), Item.embedding, vector=QUERY, text="cat", **options)


BAD_NUMBERS = [0, -1, 2.5, "3", True, float("nan"), [3], 10**12]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("k", value) for value in [*BAD_NUMBERS, None]),
        *(("candidates", value) for value in [*BAD_NUMBERS, 9]),
        *(("fusion", value) for value in ("rrf", 60, {"alpha": 0.5})),
        ("metric", "euclidean"),
        ("max_distance", float("nan")),
        ("min_similarity", "0.5"),
        ("exact", 1),
        ("index", "ix_other"),
        ("min_score", float("nan")),
        ("min_score", "1"),
    ],
    ids=str,
)
def test_an_option_out_of_its_range_is_refused(option: str, value: Any):
    with pytest.raises(InvalidOption):
        make(**{option: value})


@pytest.mark.parametrize(
    "parts",
    [
        [],
        (),
        None,
        {},
        "text",
        [None],
        [("embedding", QUERY)],
        [text_part(Item, f"w{n}", name=f"n{n}") for n in range(33)],
    ],
    ids=lambda parts: f"{type(parts).__name__}-{len(parts or ())}",
)
def test_parts_are_a_list_of_one_or_more(parts: Any):
    with pytest.raises(InvalidOption, match="parts"):
        hybrid(select(Item), parts=parts)


def test_what_is_searched_must_be_clear():
    with pytest.raises(InvalidOption, match="not both"):
        make(parts=[text_part(Item, "cat")])
    with pytest.raises(InvalidOption, match="rrf"):
        make(fusion=rrf)
    with pytest.raises(InvalidOption, match="needs the vector column"):
        hybrid(select(Item), vector=QUERY)
    with pytest.raises(InvalidOption, match="cannot tell what text= is of"):
        hybrid(select(Item, Other), text="cat")
    with pytest.raises(InvalidOption, match="cannot tell what text= is of"):
        hybrid(select(func.now()), text="cat")
    with pytest.raises(InvalidOption, match="different tables"):
        hybrid(select(Item), parts=[vector_part(Other.embedding, QUERY), text_part(Item, "cat")])
    with pytest.raises(InvalidOption, match="different tables"):
        hybrid(select(Item), parts=[vector_part(aliased(Item).embedding, QUERY), text_part(Item, "cat")])
    with pytest.raises(InvalidOption, match="two parts are called text"):
        hybrid(select(Item), parts=[text_part(Item, "cat"), text_part(Item, "dog")])
    with pytest.raises(InvalidStatement, match="needs the primary key"):
        vector_part(func.coalesce(Item.embedding, Item.embedding, type_=Vector(3)), QUERY)


@pytest.mark.parametrize("alpha", [0, 1])
def test_a_fusion_that_counts_no_part_is_refused(alpha: float):
    part = vector_part(Item.embedding, QUERY) if alpha == 0 else text_part(Item, "cat")
    with pytest.raises(InvalidOption, match=f"with alpha={alpha} no part"):
        hybrid(select(Item), parts=[part], fusion=weighted(alpha))


@pytest.mark.parametrize(
    "name", ["", "a b", 'a"b', "a;DROP TABLE item", "1a", "a\n", "é", "%s", ":p", "a" * 63, 3, b"x"]
)
def test_a_name_is_a_plain_identifier(name: Any):
    with pytest.raises(InvalidIdentifier):
        vector_part(Item.embedding, QUERY, name=name)
    with pytest.raises(InvalidIdentifier):
        text_part(Item, "cat", name=name)


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan"), "1", True, None])
def test_a_weight_is_a_positive_number(weight: Any):
    with pytest.raises(InvalidOption, match="positive number"):
        vector_part(Item.embedding, QUERY, weight=weight)
    with pytest.raises(InvalidOption, match="positive number"):
        text_part(Item, "cat", weight=weight)


def test_a_part_is_checked_when_it_is_made():
    with pytest.raises(DimensionMismatch):
        vector_part(Item.embedding, [1, 2])
    with pytest.raises(UnsupportedMetric):
        vector_part(Item.embedding, QUERY, metric="hamming")
    with pytest.raises(InvalidOption, match="not both"):
        vector_part(Item.embedding, QUERY, max_distance=1, min_similarity=0.5)
    with pytest.raises(InvalidOption, match="no text index"):
        text_part(Other, "cat")
    with pytest.raises(InvalidText):
        text_part(Item, "\ud800")
    with pytest.raises(InvalidText):
        text_part(Item, 3)


@pytest.mark.parametrize(
    "stmt",
    [
        select(Item).limit(3),
        select(Item).offset(3),
        select(Item).order_by(Item.id),
        nearest(select(Item), Item.embedding, QUERY),
        select(Item).union(select(Item)),
        "select 1",
        None,
    ],
    ids=["limit", "offset", "order", "nearest", "union", "text", "None"],
)
def test_a_statement_that_cannot_be_extended_is_refused(stmt: Any):
    with pytest.raises(InvalidStatement, match=r"hybrid\(\)"):
        hybrid(stmt, Item.embedding, vector=QUERY)


def test_a_statement_without_a_database_can_be_read():
    sql = str(make())
    assert "row_number() OVER" in sql
    assert "nearest(cosine_distance(item.embedding" in sql
    assert sql.count("LIMIT") >= 3
    assert str(select(make().subquery().c.score))


def test_values_are_parameters_and_statements_of_one_form_share_the_cache():
    one = make(fusion=rrf(10))
    two = hybrid(select(Item), Item.embedding, vector=[0, 0, 1], text="dog", fusion=rrf(99))
    assert one._generate_cache_key() == two._generate_cache_key()
    late = hybrid(select(Item), Item.embedding, vector=bindparam("v"), text=bindparam("q"), fusion=rrf(10))
    compiled = late.compile(dialect=POSTGRESQL)
    assert {"v", "q"} <= set(compiled.params)
    others = [
        make(k=5),
        make(candidates=60),
        make(fusion=weighted()),
        make(fusion=weighted(0.5, "max")),
        make(fusion=weighted(0)),
        make(metric="l2"),
        make(max_distance=0.5),
        hybrid(select(Item), parts=[text_part(Item, "cat", name="a"), vector_part(Item.embedding, QUERY, name="b")]),
        hybrid(select(Item), Item.embedding, vector=QUERY),
        make().where(Item.id > 3),
    ]
    keys = [one._generate_cache_key(), *(stmt._generate_cache_key() for stmt in others)]
    assert len({key.key for key in keys if key is not None}) == len(keys)


def test_a_group_is_a_column_beside_the_vectors():
    stmt = nearest(select(Item), Item.embedding, QUERY, k=5)
    for group in ("group_id", None, 3, select(Item.group_id)):
        with pytest.raises(InvalidOption, match="group= takes a column"):
            best_per_group(stmt, group)
    for group in (Other.id, aliased(Item).group_id, func.abs(Item.group_id)):
        with pytest.raises(InvalidOption, match="where the vectors are"):
            best_per_group(stmt, group)
    for k in BAD_NUMBERS:
        with pytest.raises(InvalidOption, match="k must be"):
            best_per_group(stmt, Item.group_id, k)
    with pytest.raises(InvalidOption, match="exact must be"):
        best_per_group(stmt, Item.group_id, exact=1)  # type: ignore[arg-type]
    for other in (
        stmt.offset(3),
        nearest_each(select(Item), Item.embedding, [QUERY]),
        rerank(stmt, Item.group_id, k=3),
        make().offset(3),
        rerank(make(), Item.group_id, k=3),
        select(Item),
        None,
    ):
        with pytest.raises(InvalidStatement):
            best_per_group(other, Item.group_id)  # type: ignore[arg-type]


def test_a_copied_table_is_searched_as_itself():
    copied = Item.__table__.to_metadata(MetaData())
    assert isinstance(copied, Table)
    sql = str(hybrid(select(copied.c.id), copied.c.embedding, vector=QUERY, text="cat"))
    assert "item.words" in sql
