"""A SQLite file that was indexed with sqlite-vec, opened where sqlite-vec cannot be loaded."""

from __future__ import annotations

import pytest
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_vector import Vector, nearest, vector_index
from tests.support.backends import AnyEngine, Backend

pytestmark = pytest.mark.backends("sqlite_stdlib", "pysqlite3")


class Base(DeclarativeBase):
    pass


class Point(Base):
    __tablename__ = "point"
    id: Mapped[int] = mapped_column(primary_key=True)
    place: Mapped[list[float]] = mapped_column(Vector(2))
    __table_args__ = (vector_index("point_place", "place", metric="l2"),)


def test_an_indexed_file_is_searched_exactly_where_the_extension_is_missing(backend: Backend, engine: AnyEngine):
    backend.create_all(engine, Base.metadata)
    backend.run(engine, lambda session: session.add_all(Point(id=n, place=[n, 0]) for n in range(1, 6)))
    without = backend.make_engine(vector_extension=False)
    stmt = nearest(select(Point.id), Point.place, [3.2, 0], k=2)
    found = backend.run(without, lambda session: session.scalars(stmt).all())
    assert list(found) == [3, 4]
