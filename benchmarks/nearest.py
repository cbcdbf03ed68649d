"""Searching on PostgreSQL: nearest() on an hnsw index against the same query by hand."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import numpy as np
import psycopg
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.data import clustered, nearest_by_hand, queries
from benchmarks.harness import DIM, Figure, Run, Variant
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




def ids(connected: Engine, query: Any) -> list[Any]:
    with Session(connected) as session:
        return session.execute(nearest(select(Indexed.id), Indexed.embedding, query, k=K)).all()


def entities(connected: Engine, query: Any) -> list[Any]:
    with Session(connected) as session:
        return session.execute(nearest(select(Indexed), Indexed.embedding, query, k=K)).all()


def by_hand(connection: psycopg.Connection, columns: str, query: Any) -> list[Any]:
    with connection.cursor(binary=True) as cursor:
        cursor.execute(
            f"SELECT {columns}, embedding <=> %b FROM bench_indexed ORDER BY embedding <=> %b LIMIT {K}",
            (query, query),
            prepare=True,
        )
        found = cursor.fetchall()
    connection.rollback()
    return found


def measure(run: Run) -> Iterator[Figure]:
    """Compare one transaction per query: a Session of its own, and a raw connection that rolls back."""
    rows = run.size(20_000)
    matrix, asked = clustered(rows), queries(rows)
    with engine(run, base=Base) as connected, raw_connection(run) as raw:
        with connected.begin() as connection:
            connection.execute(text("DROP INDEX IF EXISTS bench_indexed_embedding"))
            connection.execute(text("TRUNCATE bench_indexed"))
            bulk.load(connection, Indexed, {"id": np.arange(rows), "embedding": matrix})
            connection.execute(text("SET LOCAL maintenance_work_mem = '512MB'"))
            connection.execute(text("SET LOCAL max_parallel_maintenance_workers = 1"))
            (index,) = Indexed.__table__.indexes
            index.create(connection)
        with connected.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(text("VACUUM (ANALYZE) bench_indexed"))
        truth = [nearest_by_hand(matrix, query, K) for query in asked]
        recall = {
            "ours": np.mean([len(t & {row.id for row in ids(connected, q)}) / K for t, q in zip(truth, asked, strict=True)]),
            "by hand": np.mean([len(t & {row[0] for row in by_hand(raw, "id", q)}) / K for t, q in zip(truth, asked, strict=True)]),
        }
        note = ", ".join(f"recall@{K} {name} {value:.3f}" for name, value in recall.items())
        for what, search, columns, floor in (("ids", ids, "id", 1.25), ("entities", entities, "id, embedding", 1.6)):
            mine, other = cycle(asked), cycle(asked)
            yield run.compare_latency(
                Variant(lambda query, search=search: search(connected, query), lambda mine=mine: next(mine)),
                Variant(
                    lambda query, columns=columns: by_hand(raw, columns, query), lambda other=other: next(other)
                ),
            ).duration(GROUP, f"nearest(), hnsw, k = {K}, {what}", "psycopg, prepared, binary", floor, note)
