"""Searching on PostgreSQL: nearest() on an hnsw index against the same query by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from sqlalchemy import Engine, bindparam, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.data import clustered, gaussian, nearest_by_hand, queries, recall_of
from benchmarks.harness import DIM, Comparison, Figure, Run, Variant
from benchmarks.postgresql import engine, raw_connection
from sqla_vector import Vector, bulk, cosine_distance, nearest, vector_index

GROUP = "PostgreSQL, searching"
K = 10
WHAT = f"nearest() on hnsw, k = {K}"
AGAINST = "psycopg, prepared, binary"


class Base(DeclarativeBase):
    """Of the indexed table."""


class Indexed(Base):
    """A vector column with an hnsw index."""

    __tablename__ = "bench_indexed"

    id: Mapped[int] = mapped_column(primary_key=True)
    embedding: Mapped[np.ndarray] = mapped_column(Vector(DIM))

    __table_args__ = (vector_index("bench_indexed_embedding", "embedding", metric="cosine", method="hnsw"),)


DISTANCE = cosine_distance(Indexed.embedding, bindparam("q"))
BUILT_ONCE = {
    "ids": nearest(select(Indexed.id), Indexed.embedding, bindparam("q"), k=K),
    "entities": nearest(select(Indexed), Indexed.embedding, bindparam("q"), k=K),
}
PLAIN_ONCE = select(Indexed.id, DISTANCE).order_by(DISTANCE).limit(K)


def ids(session: Session, query: Any) -> list[Any]:
    return session.execute(nearest(select(Indexed.id), Indexed.embedding, query, k=K)).all()


def entities(session: Session, query: Any) -> list[Any]:
    return session.execute(nearest(select(Indexed), Indexed.embedding, query, k=K)).all()


def built_once(session: Session, stmt: Any, query: Any) -> list[Any]:
    return session.execute(stmt, {"q": query}).all()


def plain(session: Session, query: Any) -> list[Any]:
    distance = cosine_distance(Indexed.embedding, query)
    return session.execute(select(Indexed.id, distance).order_by(distance).limit(K)).all()


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


def fill(connected: Engine, matrix: NDArray[np.float32]) -> None:
    """Load vectors, then build the index."""
    (index,) = Indexed.__table__.indexes
    with connected.begin() as connection:
        index.drop(connection, checkfirst=True)
        connection.execute(text("TRUNCATE bench_indexed"))
        bulk.load(connection, Indexed, {"id": np.arange(len(matrix)), "embedding": matrix})
        connection.execute(text("SET LOCAL maintenance_work_mem = '512MB'"))
        index.create(connection)
    with connected.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("VACUUM (ANALYZE) bench_indexed"))


@contextmanager
def racing(
    run: Run, connected: Engine, matrix: NDArray[np.float32], asked: NDArray[np.float32]
) -> Iterator[tuple[Session, psycopg.Connection, Callable[..., Comparison], str]]:
    """Fill the table; make what searches it, and a note about the recall."""

    def race(mine: Callable[[Any], Any], other: Callable[[Any], Any]) -> Comparison:
        one, two = cycle(asked), cycle(asked)
        return run.compare_latency(Variant(mine, lambda: next(one)), Variant(other, lambda: next(two)))

    fill(connected, matrix)
    with raw_connection(run) as raw, Session(connected) as session:
        truth = [nearest_by_hand(matrix, query, K) for query in asked]
        note = (
            f"recall@{K} {recall_of(truth, [ids(session, query) for query in asked], K):.3f}, "
            f"by hand {recall_of(truth, [by_hand(raw, 'id', query) for query in asked], K):.3f}"
        )
        yield session, raw, race, note


def more(found: Comparison, note: str) -> str:
    """Say in a note how much longer ours takes than the same query by hand."""
    return f"{note}; {(found.ours - found.other) * 1000:.2f} ms more than by hand"


def variants(
    session: Session, raw: psycopg.Connection, race: Callable[..., Comparison], rows: int, recalls: str, data: str
) -> Iterator[Figure]:
    """Compare nearest() built for each query and built once, and a plain select(), with the query by hand."""
    is_usual = not data

    def hand(columns: str) -> Callable[[Any], Any]:
        return lambda query: by_hand(raw, columns, query)

    found = race(lambda query: ids(session, query), hand("id"))
    yield found.duration(
        GROUP, f"{WHAT}, ids{data}", AGAINST, 1.25 if is_usual else None, more(found, recalls), rows=rows
    )
    found = race(lambda query: built_once(session, BUILT_ONCE["ids"], query), hand("id"))
    yield found.duration(GROUP, f"{WHAT}, ids, built once{data}", AGAINST, None, more(found, recalls), rows=rows)

    found = race(lambda query: entities(session, query), hand("id, embedding"))
    yield found.duration(
        GROUP, f"{WHAT}, entities{data}", AGAINST, 1.6 if is_usual else None, more(found, recalls), rows=rows
    )
    found = race(lambda query: built_once(session, BUILT_ONCE["entities"], query), hand("id, embedding"))
    yield found.duration(GROUP, f"{WHAT}, entities, built once{data}", AGAINST, None, more(found, recalls), rows=rows)

    note = "what SQLAlchemy's own execution costs, without nearest()"
    found = race(lambda query: plain(session, query), hand("id"))
    yield found.duration(
        GROUP, f"plain select().order_by().limit(), ids{data}", AGAINST, None, more(found, note), rows=rows
    )
    found = race(lambda query: built_once(session, PLAIN_ONCE, query), hand("id"))
    yield found.duration(
        GROUP, f"plain select().order_by().limit(), ids, built once{data}", AGAINST, None, more(found, note), rows=rows
    )


def measure(run: Run) -> Iterator[Figure]:
    """Compare many queries in one transaction, then a transaction for each; then without structure in the data."""
    rows = run.size(20_000)
    with engine(run, base=Base) as connected:
        with racing(run, connected, clustered(rows), queries(rows, count=run.queries)) as (session, raw, race, recalls):
            yield from variants(session, raw, race, rows, recalls, "")
            session.rollback()
            raw.rollback()
            found = race(
                lambda query: one_transaction_each(connected, query),
                lambda query: one_transaction_each_by_hand(raw, query),
            ).duration(GROUP, f"{WHAT}, ids, a Session each", f"{AGAINST}, a transaction each", None, rows=rows)
            yield replace(found, note="a transaction has to begin, be configured and end")
        with racing(run, connected, *gaussian(rows, count=run.queries)) as (session, raw, race, recalls):
            yield from variants(session, raw, race, rows, recalls, ", Gaussian vectors")
