"""Statements that are built once, and indexes that were declared for pgvector-python."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import Index, bindparam, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_vector import DimensionMismatch, Vector, bulk, explain_nearest, nearest
from tests.support.backends import AnyEngine, Backend

ROWS = np.random.default_rng(5).standard_normal((12_000, 8)).astype(np.float32)


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    embedding: Mapped[np.ndarray] = mapped_column(Vector(8))
    __table_args__ = (
        Index(
            "ix_item_embedding",
            "embedding",
            postgresql_using="hnsw",
            postgresql_ops={"embedding": "vector_l2_ops"},
        ),
    )


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


@pytest.mark.backends(family="postgresql")
def test_an_index_declared_for_pgvector_python_gives_the_metric_and_serves(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, Base.metadata)
    backend.run(engine, lambda s: bulk.load(s, Item, {"id": np.arange(len(ROWS)), "embedding": ROWS}))
    backend.run_connection(engine, lambda c: c.exec_driver_sql("ANALYZE item"))
    plan = backend.run(engine, lambda s: explain_nearest(s, nearest(select(Item.id), Item.embedding, ROWS[0])))
    assert plan.index == "ix_item_embedding"
    assert plan.method == "hnsw"
