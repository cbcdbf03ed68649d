"""explain_nearest: reduced precision asks for more candidates, so it reaches vec0's limit sooner."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_vector import Vector, explain_nearest, nearest, vector_index
from tests.support.backends import AnyEngine, Backend


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    e: Mapped[np.ndarray] = mapped_column(Vector(8))
    __table_args__ = (vector_index("ix_item_e", "e", metric="cosine", precision="binary"),)


@pytest.mark.backends("pysqlite3", "sqlite_stdlib", "aiosqlite")
def test_a_k_whose_candidates_exceed_vec0_s_limit_is_given_as_the_reason(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, Base.metadata)
    few, many = (
        backend.run(engine, lambda s, k=k: explain_nearest(s, nearest(select(Item.id), Item.e, np.ones(8), k=k)))
        for k in (200, 300)
    )
    assert few.index == "ix_item_e"
    assert many.index is None
    assert "k is over what one vec0 query returns" in many.reason
