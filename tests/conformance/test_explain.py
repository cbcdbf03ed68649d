"""explain_nearest: which index serves, or why none does, as the database's own plan has it."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_vector import (
    InvalidOption,
    InvalidStatement,
    SearchPlan,
    Vector,
    aexplain_nearest,
    bulk,
    explain_nearest,
    nearest,
    nearest_each,
    vector_index,
)
from tests.support.backends import AnyEngine, Backend

N, DIM = 1_000, 8
X = np.random.default_rng(2).standard_normal((N, DIM)).astype(np.float32)
Q = X[0]


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    lang: Mapped[str]
    e: Mapped[np.ndarray] = mapped_column(Vector(DIM))
    plain: Mapped[np.ndarray | None] = mapped_column(Vector(DIM))
    __table_args__ = (
        vector_index("ix_item_cosine", "e", metric="cosine", include=("lang",)),
        vector_index("ix_item_binary", "e", metric="l2", precision="half"),
    )


def fill(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, Base.metadata)
    languages = np.array(["en", "de", "fr"], dtype=object)[np.arange(N) % 3]
    backend.run(engine, lambda s: bulk.load(s, Item, {"id": np.arange(N), "lang": languages, "e": X}))
    backend.run_connection(engine, lambda c: c.exec_driver_sql("ANALYZE"))


def plan(session: Session, stmt: object) -> SearchPlan:
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SET LOCAL enable_seqscan = off"))  # the table is small: without, every plan is exact
    return explain_nearest(session, stmt)  # type: ignore[arg-type]


@pytest.mark.backends("psycopg", "asyncpg", "psycopg_noplugin", "pysqlite3", "sqlite_stdlib", "aiosqlite")
def test_the_index_that_serves_is_named_with_its_method_and_precision(backend: Backend, engine: AnyEngine) -> None:
    fill(backend, engine)
    method = "hnsw" if backend.family == "postgresql" else "vec0"
    half = "half" if backend.family == "postgresql" else "full"

    def check(session: Session) -> None:
        by_cosine = plan(session, nearest(select(Item), Item.e, Q, metric="cosine"))
        assert (by_cosine.index, by_cosine.method, by_cosine.precision) == ("ix_item_cosine", method, "full")
        assert by_cosine.reason == f"ix_item_cosine serves the search ({method})"
        assert by_cosine.plan in str(by_cosine)
        assert "ix_item_cosine" in by_cosine.plan
        by_l2 = plan(session, nearest(select(Item.id), Item.e, Q, metric="l2"))
        assert (by_l2.index, by_l2.precision) == ("ix_item_binary", half)
        filtered = plan(session, nearest(select(Item.id), Item.e, Q, metric="cosine").where(Item.lang == "en"))
        assert filtered.index == "ix_item_cosine"
        each = plan(session, nearest_each(select(Item.id), Item.e, X[:2], metric="cosine"))
        assert each.index == "ix_item_cosine"
        ordered = select(Item.id).order_by(Item.e.cosine_distance(Q)).limit(3)
        if backend.family == "postgresql":
            assert plan(session, ordered).index == "ix_item_cosine"
        else:
            assert "only nearest() can use" in plan(session, ordered).reason

    backend.run(engine, check)


@pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib", "sqlite_numpy")
def test_why_no_index_serves_is_one_sentence(backend: Backend, engine: AnyEngine) -> None:
    if backend.name == "sqlite_numpy":
        engine = backend.make_engine(vector_skip_missing_index=True)
    fill(backend, engine)

    def why(stmt: object) -> str:
        found = backend.run(engine, lambda s: plan(s, stmt))
        assert found.index is None
        assert found.method is None
        return found.reason

    assert "exact=True" in why(nearest(select(Item), Item.e, Q, metric="cosine", exact=True))
    assert "asks for l1" in why(nearest(select(Item), Item.e, Q, metric="l1"))
    assert "no vector index" in why(nearest(select(Item), Item.plain, Q))
    distance = Item.e.cosine_distance(Q)
    assert "descending" in why(select(Item.id).order_by(distance.desc()).limit(3))
    assert "descending" in why(select(Item.id, distance.label("d")).order_by(distance.label("d").desc()).limit(3))
    assert "min_similarity" in why(select(Item.id).order_by(Item.e.similarity(Q, "cosine").desc()).limit(3))
    if backend.name == "sqlite_numpy":
        assert "sqlite-vec is not loaded" in why(nearest(select(Item), Item.e, Q, metric="cosine"))
        return
    if backend.family == "sqlite":
        assert "k is over" in why(nearest(select(Item), Item.e, Q, k=5_000, metric="cosine"))
        assert "DISTINCT" in why(nearest(select(Item.id).distinct(), Item.e, Q, metric="cosine"))
    (dropped,) = (index for index in Item.__table__.indexes if index.name == "ix_item_cosine")
    backend.run_connection(engine, dropped.drop)
    assert "does not exist in the database" in why(nearest(select(Item), Item.e, Q, metric="cosine"))


@pytest.mark.backends("psycopg")
def test_a_small_table_and_an_invalid_index_are_told_apart(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, Base.metadata)
    backend.run(engine, lambda s: bulk.load(s, Item, [{"id": n, "lang": "en", "e": X[n]} for n in range(20)]))
    backend.run_connection(engine, lambda c: c.exec_driver_sql("ANALYZE"))
    stmt = nearest(select(Item.id), Item.e, Q, metric="cosine")
    assert "table being small" in backend.run(engine, lambda s: explain_nearest(s, stmt)).reason
    backend.run_connection(
        engine,
        lambda c: c.exec_driver_sql(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_item_cosine'::regclass"
        ),
    )
    assert "INVALID" in backend.run(engine, lambda s: explain_nearest(s, stmt)).reason


@pytest.mark.backends("psycopg")
def test_an_index_that_the_model_does_not_declare_is_named(backend: Backend, engine: AnyEngine) -> None:
    fill(backend, engine)
    backend.run_connection(
        engine, lambda c: c.exec_driver_sql("CREATE INDEX by_hand ON item USING hnsw (e vector_l1_ops)")
    )
    stmt = select(Item.id).order_by(Item.e.l1_distance(Q)).limit(3)
    found = backend.run(engine, lambda s: plan(s, stmt))
    assert found.index == "by_hand"
    assert "does not declare" in found.reason


@pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")
def test_what_is_no_search_is_refused(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, Base.metadata)
    with pytest.raises(InvalidStatement, match="not ordered by a distance"):
        backend.run(engine, lambda s: explain_nearest(s, select(Item).order_by(Item.id)))
    with pytest.raises(InvalidStatement, match="select"):
        backend.run(engine, lambda s: explain_nearest(s, text("SELECT 1")))  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="aexplain_nearest"):
        explain_nearest(engine, select(Item))  # type: ignore[arg-type]


@pytest.mark.backends(is_async=True)
def test_async_sessions_are_served_too(backend: Backend, engine: AnyEngine) -> None:
    fill(backend, engine)

    async def run() -> SearchPlan:
        async with AsyncSession(engine) as session:  # type: ignore[arg-type]
            return await aexplain_nearest(session, nearest(select(Item.id), Item.e, Q, metric="l1"))

    assert "asks for l1" in backend.wait(run()).reason
