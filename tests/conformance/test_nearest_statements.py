"""Statements that are built once, and indexes that were declared for pgvector-python."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from sqlalchemy import ForeignKey, Index, bindparam, literal, select
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, joinedload, mapped_column, relationship

from sqla_vector import (
    DimensionMismatch,
    Vector,
    bulk,
    explain_nearest,
    match_text,
    nearest,
    nearest_each,
    search,
    text_index,
)
from sqla_vector.search import best_per_group, cursor_of, hybrid, page_after, rerank
from tests.support.backends import AnyEngine, Backend

ROWS = np.random.default_rng(5).standard_normal((12_000, 8)).astype(np.float32)


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    embedding: Mapped[np.ndarray] = mapped_column(Vector(8))
    parts: Mapped[list[Part]] = relationship()
    __table_args__ = (
        Index(
            "ix_item_embedding",
            "embedding",
            postgresql_using="hnsw",
            postgresql_ops={"embedding": "vector_l2_ops"},
        ),
    )


class Part(Base):
    __tablename__ = "part"
    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("item.id"))


class Named(Base):
    """Its columns have the names of those that searches add."""

    __tablename__ = "named"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    title: Mapped[str]
    distance: Mapped[float]
    score: Mapped[float]
    query: Mapped[int]
    rerank_score: Mapped[float]
    embedding: Mapped[np.ndarray] = mapped_column(Vector(2))
    __table_args__ = (text_index("ix_named_title", "title"),)


def test_columns_of_the_entity_may_have_the_names_of_those_that_a_search_adds(
    backend: Backend, engine: AnyEngine
) -> None:
    backend.create_all(engine, Base.metadata)

    def fill(session: Session) -> None:
        for key in range(1, 9):
            texts = {"title": "red " * (9 - key) + "blue " * key, "embedding": [float(key), 0.0]}
            numbers = dict.fromkeys(("distance", "score", "rerank_score"), 100.0 - key)
            session.add(Named(id=key, query=-key, **texts, **numbers))

    def check(session: Session) -> None:
        columns = select(Named.id, Named.distance, Named.score, Named.query, Named.rerank_score)
        for base in (select(Named), columns, select(Named.__table__)):

            def ids(found: Iterable[Any]) -> list[int]:
                return [row.id if hasattr(row, "id") else row[0].id for row in found]

            # Twice: the second statement is an equal one with columns of its own.
            for _ in range(2):
                near = nearest(base, Named.embedding, [0.0, 0.0], k=3, metric="l2")
                hits = search(session, near)
                assert ids(hit.row for hit in hits) == [1, 2, 3]
                assert [hit.distance for hit in hits] == pytest.approx([1, 2, 3])
                assert [hit.score for hit in hits] == pytest.approx([1 / 2, 1 / 3, 1 / 4])
            assert ids(session.execute(page_after(near, cursor_of(near, hits[-1])))) == [4, 5, 6]
            text = match_text(base, Named, "red", k=3)
            hits = search(session, text)
            assert ids(hit.row for hit in hits) == [1, 2, 3]
            assert all(hit.score < 1 for hit in hits)
            assert ids(session.execute(page_after(text, cursor_of(text, hits[-1])))) == [4, 5, 6]
            again = rerank(near, Named.id, k=2)
            hits = search(session, again)
            assert ids(hit.row for hit in hits) == [3, 2]
            assert [(hit.score, hit.distance) for hit in hits] == [(3, pytest.approx(3)), (2, pytest.approx(2))]
            assert ids(session.execute(best_per_group(near, Named.query))) == [1, 2, 3]
            each = nearest_each(base, Named.embedding, [[0.0, 0.0], [9.0, 0.0]], k=2, metric="l2")
            assert ids(session.execute(each)) == [1, 2, 8, 7]
            both = hybrid(base, Named.embedding, vector=[0.0, 0.0], text="red", k=2, metric="l2")
            assert ids(hit.row for hit in search(session, both)) == [1, 2]

    backend.run(engine, fill)
    backend.run(engine, check)


def test_a_search_returns_every_row_of_its_statement_and_none_twice(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, Base.metadata)

    def fill(session: Session) -> None:
        session.add_all(Item(id=key, embedding=[1.0] * 8, parts=[Part(), Part()]) for key in range(1, 6))

    def check(session: Session) -> None:
        for columns in (select(literal("same").label("word")), select(Item.embedding)):
            stmt = nearest(columns, Item.embedding, [1.0] * 8, k=5)
            assert len(session.execute(stmt).all()) == 5
            assert len(search(session, stmt)) == len(search(session, stmt, vectors=True)) == 5
        # Each item once for each of its parts, as the statement says, and once for all of those it is loaded with.
        joined = nearest(select(Item).join(Part), Item.embedding, [1.0] * 8, k=10)
        assert [hit.entity.id for hit in search(session, joined)] == [row[0].id for row in session.execute(joined)]
        session.expunge_all()
        loaded = nearest(select(Item).options(joinedload(Item.parts)), Item.embedding, [1.0] * 8, k=5)
        hits = search(session, loaded, vectors=True)
        assert [(hit.entity.id, len(hit.entity.parts)) for hit in hits] == [(key, 2) for key in range(1, 6)]

    backend.run(engine, fill)
    backend.run(engine, check)


def test_a_statement_with_a_parameter_is_built_once_and_run_with_many_vectors(
    backend: Backend, engine: AnyEngine
) -> None:
    stmt = nearest(select(Item.id), Item.embedding, bindparam("query"), k=3)
    backend.create_all(engine, Base.metadata)
    backend.run(engine, lambda s: bulk.load(s, Item, {"id": np.arange(len(ROWS)), "embedding": ROWS}))
    for row in (3, 4, 5):
        found = backend.run(engine, lambda s, row=row: s.scalars(stmt, {"query": ROWS[row]}).all())
        expected = np.argsort(np.linalg.norm(ROWS - ROWS[row], axis=1))[:3]
        assert found == expected.tolist()
    with pytest.raises(DimensionMismatch, match=r"item\.embedding: expected 8 dimensions, got 2"):
        backend.run(engine, lambda s: s.scalars(stmt, {"query": [1, 2]}).all())


def test_a_parameter_stays_what_the_user_made_it(backend: Backend, engine: AnyEngine) -> None:
    """One without a value is asked for, and one with a function takes its value, for vectors and for texts."""
    backend.create_all(engine, Base.metadata)

    def fill(session: Session) -> None:
        numbers = dict.fromkeys(("distance", "score", "rerank_score"), 1.0)
        for key in (1, 2):
            session.add(Named(id=key, title=f"word{key}", embedding=[key, 0.0], query=1, **numbers))

    def check(session: Session) -> None:
        def near(parameter: Any) -> Any:
            return nearest(select(Named.id), Named.embedding, parameter, k=1, metric="l2")

        def matching(parameter: Any) -> Any:
            return match_text(select(Named.id), Named, parameter, k=1)

        for make, value in ((near, [2.0, 0.0]), (matching, "word2")):
            stmt = make(bindparam("q"))
            assert session.scalars(stmt, {"q": value}).all() == [2]
            for wrong in ({}, {"typo": value}):
                with pytest.raises(StatementError, match="A value is required for bind parameter 'q'"):
                    session.execute(stmt, wrong)
            for parameter in (bindparam("f", callable_=lambda value=value: value), bindparam("v", value)):
                assert session.scalars(make(parameter)).all() == [2]

    backend.run(engine, fill)
    backend.run(engine, check)


@pytest.mark.backends(family="postgresql")
def test_an_index_declared_for_pgvector_python_gives_the_metric_and_serves(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, Base.metadata)
    backend.run(engine, lambda s: bulk.load(s, Item, {"id": np.arange(len(ROWS)), "embedding": ROWS}))
    backend.run_connection(engine, lambda c: c.exec_driver_sql("ANALYZE item"))
    plan = backend.run(engine, lambda s: explain_nearest(s, nearest(select(Item.id), Item.embedding, ROWS[0])))
    assert plan.index == "ix_item_embedding"
    assert plan.method == "hnsw"
