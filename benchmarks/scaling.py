"""How long nearest() takes with each kind of index, as rows and dimensions grow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.data import clustered, nearest_by_hand, queries, recall_of
from benchmarks.harness import Point, Run
from benchmarks.postgresql import engine as postgresql_engine
from benchmarks.sqlite import database, model_with
from sqla_vector import Vector, bulk, nearest, vector_index

K = 10
QUERIES = 40
PASSES = 3
DIM = 128
DIMS = (64, 384, 768)
MILLION_DIM = 64
SQLITE = {"exact": "none", "vec0": "full", "int8": "int8", "binary": "binary"}
POSTGRESQL = {"exact": None, "hnsw": "full", "half": "half", "binary": "binary"}


def sizes(run: Run) -> list[tuple[int, int]]:
    """Return the numbers of rows and dimensions to measure, each pair once."""
    found = [(run.size(10_000), dim) for dim in (*DIMS, DIM)] + [(run.size(100_000), DIM)]
    return list(dict.fromkeys(found))


def timed(run: Run, search: Callable[[Any], list[Any]], rows: int, dim: int, database_name: str, method: str) -> Point:
    """Search for each query a few times, after others to warm up; the fastest counts, as the machine may be shared."""
    matrix, asked = clustered(rows, dim), queries(rows, dim, QUERIES if run.rows is None else 5)
    for query in asked[:3]:
        search(query)
    times: list[list[float]] = []
    for _ in range(PASSES):
        found = []
        times.append([])
        for query in asked:
            started = perf_counter()
            found.append(search(query))
            times[-1].append(perf_counter() - started)
    fastest = [min(of_query) for of_query in zip(*times, strict=True)]
    truth = [nearest_by_hand(matrix, query, K) for query in asked]
    return Point(database_name, method, rows, dim, median(fastest) * 1000, recall_of(truth, found, K))


def sqlite(run: Run, directory: Path, rows: int, dim: int) -> Iterator[Point]:
    """Measure each precision in a database file of its own."""
    for method, precision in SQLITE.items():
        model = model_with(precision, dim)
        path = directory / "growth.db"
        with database(path, model, clustered(rows, dim)) as engine, Session(engine) as session:

            def search(query: Any, model: Any = model, session: Session = session) -> list[Any]:
                return session.execute(nearest(select(model.id), model.embedding, query, k=K)).all()

            yield timed(run, search, rows, dim, "SQLite", method)
        path.unlink()


def indexed_model(dim: int, precision: str | None) -> type[Any]:
    """Return a model in a Base of its own."""

    class Base(DeclarativeBase):
        pass

    class Item(Base):
        __tablename__ = "bench_growth"

        id: Mapped[int] = mapped_column(primary_key=True)
        embedding: Mapped[np.ndarray] = mapped_column(Vector(dim))

        __table_args__ = (
            (vector_index("bench_growth_index", "embedding", metric="cosine", method="hnsw", precision=precision),)
            if precision is not None
            else ()
        )

    return Item


def postgresql(run: Run, engine: Engine, rows: int, dim: int) -> Iterator[Point]:
    """Fill one table, and measure each index on it in turn."""
    plain = indexed_model(dim, None)
    with engine.begin() as connection:
        plain.metadata.drop_all(connection)
        plain.metadata.create_all(connection)
        bulk.load(connection, plain, {"id": np.arange(rows), "embedding": clustered(rows, dim)})
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("VACUUM (ANALYZE) bench_growth"))
    for method, precision in POSTGRESQL.items():
        model = indexed_model(dim, precision)
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL maintenance_work_mem = '1GB'"))
            for index in model.__table__.indexes:
                index.create(connection)
        with Session(engine) as session:
            if precision is not None:
                # Of the few rows of a trial run a scan may seem cheaper.
                session.execute(text("SET LOCAL enable_seqscan = off"))

            def search(query: Any, model: Any = model, session: Session = session) -> list[Any]:
                return session.execute(nearest(select(model.id), model.embedding, query, k=K)).all()

            yield timed(run, search, rows, dim, "PostgreSQL", method)
        with engine.begin() as connection:
            for index in model.__table__.indexes:
                index.drop(connection)
    with engine.begin() as connection:
        plain.metadata.drop_all(connection)


def measure(run: Run) -> Iterator[Point]:
    """Measure both databases at every size."""
    with run.directory() as directory:
        for rows, dim in sizes(run):
            yield from sqlite(run, directory, rows, dim)
        if run.million:
            yield from sqlite(run, directory, run.size(1_000_000), MILLION_DIM)
    with postgresql_engine(run) as engine:
        for rows, dim in sizes(run):
            yield from postgresql(run, engine, rows, dim)
