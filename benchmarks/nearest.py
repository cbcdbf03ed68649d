"""Searching on PostgreSQL: nearest() on an hnsw index against the same query by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import numpy as np
import psycopg
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.data import clustered, nearest_by_hand, queries
from benchmarks.harness import DIM, Comparison, Figure, Run, Variant
from benchmarks.postgresql import engine, raw_connection
from sqla_vector import Vector, bulk, nearest, vector_index

GROUP = "PostgreSQL, searching"
K = 10


class Base(DeclarativeBase):
    """Of the indexed table."""


class Indexed(Base):
    """A vector column with an hnsw index."""

    __tablename__ = "bench_indexed"

    id: Mapped[int] = mapped_column(primary_key=True)
    embedding: Mapped[np.ndarray] = mapped_column(Vector(DIM))

    __table_args__ = (vector_index("bench_indexed_embedding", "embedding", metric="cosine", method="hnsw"),)


def ids(session: Session, query: Any) -> list[Any]:
    return session.execute(nearest(select(Indexed.id), Indexed.embedding, query, k=K)).all()


def entities(session: Session, query: Any) -> list[Any]:
    return session.execute(nearest(select(Indexed), Indexed.embedding, query, k=K)).all()


def one_transaction_each(connected: Engine, query: Any) -> list[Any]:
    with Session(connected) as session:
        return ids(session, query)


def by_hand(connection: psycopg.Connection, columns: str, query: Any) -> list[Any]:
    with connection.cursor(binary=True) as cursor:
        cursor.execute(
            f"SELECT {columns}, embedding <=> %(query)b FROM bench_indexed ORDER BY embedding <=> %(query)b LIMIT {K}",
            {"query": query},
            prepare=True,
        )
        return cursor.fetchall()


def one_transaction_each_by_hand(connection: psycopg.Connection, query: Any) -> list[Any]:
    found = by_hand(connection, "id", query)
    connection.rollback()
    return found


def recall(truth: list[set[int]], found: list[list[Any]]) -> str:
    """Return which part of the true k nearest was found, on average."""
    return f"{np.mean([len(t & {row[0] for row in f}) / K for t, f in zip(truth, found, strict=True)]):.3f}"


def measure(run: Run) -> Iterator[Figure]:
    """Compare many queries in one transaction, and then a transaction for each."""
    rows = run.size(20_000)
    matrix, asked = clustered(rows), queries(rows)
    with engine(run, base=Base) as connected, raw_connection(run) as raw:
        with connected.begin() as connection:
            connection.execute(text("DROP INDEX IF EXISTS bench_indexed_embedding"))
            connection.execute(text("TRUNCATE bench_indexed"))
            bulk.load(connection, Indexed, {"id": np.arange(rows), "embedding": matrix})
            connection.execute(text("SET LOCAL maintenance_work_mem = '512MB'"))
            (index,) = Indexed.__table__.indexes
            index.create(connection)
        with connected.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(text("VACUUM (ANALYZE) bench_indexed"))

        def race(mine: Callable[[Any], Any], other: Callable[[Any], Any]) -> Comparison:
            one, two = cycle(asked), cycle(asked)
            return run.compare_latency(Variant(mine, lambda: next(one)), Variant(other, lambda: next(two)))

        what, against = f"nearest() on hnsw, k = {K}", "psycopg, prepared, binary"
        with Session(connected) as session:
            truth = [nearest_by_hand(matrix, query, K) for query in asked]
            note = (
                f"recall {recall(truth, [ids(session, query) for query in asked])}, "
                f"by hand {recall(truth, [by_hand(raw, 'id', query) for query in asked])}"
            )
            yield race(lambda query: ids(session, query), lambda query: by_hand(raw, "id", query)).duration(
                GROUP, f"{what}, ids", against, 1.25, note
            )
            yield race(
                lambda query: entities(session, query), lambda query: by_hand(raw, "id, embedding", query)
            ).duration(GROUP, f"{what}, entities", against, 1.6)
        raw.rollback()
        yield race(
            lambda query: one_transaction_each(connected, query),
            lambda query: one_transaction_each_by_hand(raw, query),
        ).duration(GROUP, f"{what}, ids, a Session each", f"{against}, a transaction each", None)
