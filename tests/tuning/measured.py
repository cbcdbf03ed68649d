"""Rows to measure on, and the recall of a search by numpy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlalchemy import bindparam, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_vector import Vector, bulk, nearest, vector_index
from tests.support.backends import AnyEngine, Backend

DIM = 32
ROWS = 3_000


def vectors(rows: int = ROWS, *, seed: int = 1) -> Any:
    """Return vectors around centres, as embeddings are, none equal to another; by id from 1."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(60, DIM))
    found = centres[random.integers(0, len(centres), rows)] + random.normal(scale=0.9, size=(rows, DIM))
    return found.astype(np.float32)


def model(**options: Any) -> Any:
    """Return a mapped class with a vector index of these options; None is no index."""

    class Base(DeclarativeBase): ...

    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        part: Mapped[int]
        e: Mapped[Any | None] = mapped_column(Vector(DIM))
        __table_args__ = (vector_index("ix_item_e", "e", **{"metric": "l2", **options}),)

    return Item


def filled(backend: Backend, engine: AnyEngine, item: Any, matrix: Any) -> None:
    """Create the table with rows, then its index, as ivfflat wants it."""
    (index,) = item.__table__.indexes

    def fill(connection: Any) -> None:
        item.metadata.create_all(connection)
        index.drop(connection)
        ids = np.arange(1, len(matrix) + 1)
        bulk.load(connection, item, {"id": ids, "part": ids % 10, "e": matrix})
        index.create(connection)
        connection.exec_driver_sql("ANALYZE item")

    backend.run_connection(engine, fill)


def true_ids(matrix: Any, query: Any, k: int) -> set[int]:
    """Return the ids of the k nearest by l2, in double precision."""
    distances = ((matrix.astype(np.float64) - np.asarray(query, np.float64)) ** 2).sum(axis=1)
    return {int(number) + 1 for number in np.argsort(distances, kind="stable")[:k]}


def recall_of(session: Session, item: Any, matrix: Any, queries: Any, k: int = 10, **options: Any) -> float:
    """Return the mean recall of searches for vectors, by numpy's truth and not by an exact search."""
    return float(np.mean([_share(session, item, matrix, query, None, k, options) for query in queries]))


def recall_by_rows(session: Session, item: Any, matrix: Any, ids: Any, k: int = 10, **options: Any) -> float:
    """Return the same of searches for rows, each of which is not to find itself."""
    return float(np.mean([_share(session, item, matrix, matrix[own - 1], own, k, options) for own in ids.tolist()]))


def _share(session: Session, item: Any, matrix: Any, query: Any, own: int | None, k: int, options: Any) -> float:
    more = k + (own is not None)
    stmt = nearest(select(item.id), item.e, bindparam("query"), k=more, **options)
    with session.begin_nested() as savepoint:
        found = [row.id for row in session.execute(stmt, {"query": query}) if row.id != own][:k]
        savepoint.rollback()  # with the settings of the search
    return len(set(found) & (true_ids(matrix, query, more) - {own})) / k
