"""Searching and writing on SQLite: nearest() over vec0, reduced precision, inserts into an indexed table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, create_engine, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.data import clustered, docstrings, nearest_by_hand, queries, recall_of
from benchmarks.harness import DIM, Comparison, Figure, Floor, Run, Variant
from sqla_vector import Vector, bulk, nearest, vector_index

GROUP = "SQLite"
K = 10


def model_with(precision: str, dim: int = DIM) -> type[Any]:
    """Return a model whose vectors have an index of a precision, in a Base of its own."""

    class Base(DeclarativeBase):
        pass

    class Item(Base):
        __tablename__ = "item"

        id: Mapped[int] = mapped_column(primary_key=True)
        embedding: Mapped[np.ndarray] = mapped_column(Vector(dim))

        __table_args__ = (
            (vector_index("item_embedding", "embedding", metric="cosine", precision=precision),)
            if precision != "none"
            else ()
        )

    return Item


@contextmanager
def database(path: Path, model: type[Any], matrix: NDArray[np.float32] | None = None) -> Iterator[Engine]:
    """Make a database file with the model's table, filled and then indexed."""
    engine = create_engine(f"sqlite:///{path}", plugins=["sqla_vector"])
    indexes = list(model.__table__.indexes)
    try:
        with engine.begin() as connection:
            if matrix is None:
                model.metadata.create_all(connection)
            else:
                # The index after the rows: it is filled in one statement then.
                plain = model_with("none", matrix.shape[1])
                plain.metadata.create_all(connection)
                bulk.load(connection, plain, {"id": np.arange(len(matrix)), "embedding": matrix})
                for index in indexes:
                    index.create(connection)
        yield engine
    finally:
        engine.dispose()


def search(session: Session, model: type[Any], query: Any) -> list[Any]:
    return session.execute(nearest(select(model.id), model.embedding, query, k=K)).all()


def search_by_hand(raw: Any, query: NDArray[np.float32]) -> list[Any]:
    return raw.execute(
        f"SELECT rowid, distance FROM item_embedding WHERE vector MATCH ? AND k = {K}", (query.tobytes(),)
    ).fetchall()


def over_vec0(run: Run, directory: Path) -> Iterator[Figure]:
    """nearest() over vec0, against the vec0 query alone; then binary precision against full."""
    rows = run.size(100_000)
    matrix, asked = clustered(rows), queries(rows, count=run.queries)
    full, binary = model_with("full"), model_with("binary")
    rounds = min(run.latency_rounds, 150)
    mine, other = cycle(asked), cycle(asked)
    with database(directory / "full.db", full, matrix) as engine, Session(engine) as session:
        raw = session.connection().connection.driver_connection
        yield run.compare(
            Variant(lambda query: search(session, full, query), lambda: next(mine)),
            Variant(lambda query: search_by_hand(raw, query), lambda: next(other)),
            rounds=rounds,
            warm_up=5,
        ).duration(GROUP, "nearest() over vec0", "the same vec0 query by hand", 1.1, rows=rows)
        with database(directory / "binary.db", binary, matrix) as small, Session(small) as reranking:
            truth = [nearest_by_hand(matrix, query, K) for query in asked]
            recall = recall_of(truth, [search(reranking, binary, query) for query in asked])
            found = run.compare(
                Variant(lambda query: search(reranking, binary, query), lambda: next(mine)),
                Variant(lambda query: search(session, full, query), lambda: next(other)),
                rounds=rounds,
                warm_up=5,
            )
            yield times_as_fast(found, "clustered vectors", rows, None, recall)


def binary_with_rerank(run: Run, directory: Path) -> Iterator[Figure]:
    """Binary precision against full precision, on the vectors of the standard library's docstrings."""
    matrix, asked = docstrings(run.rows)
    asked = asked[: run.queries]
    full, binary = model_with("full"), model_with("binary")
    truth = [nearest_by_hand(matrix, query, K) for query in asked]
    with (
        database(directory / "docs-full.db", full, matrix) as full_engine,
        database(directory / "docs-binary.db", binary, matrix) as binary_engine,
        Session(full_engine) as full_session,
        Session(binary_engine) as binary_session,
    ):
        recall = recall_of(truth, [search(binary_session, binary, query) for query in asked])
        mine, other = cycle(asked), cycle(asked)
        found = run.compare_latency(
            Variant(lambda query: search(binary_session, binary, query), lambda: next(mine)),
            Variant(lambda query: search(full_session, full, query), lambda: next(other)),
        )
        yield times_as_fast(found, "docstrings", len(matrix), 4, recall)


def times_as_fast(found: Comparison, data: str, rows: int, floor: float | None, recall: float) -> Figure:
    """Return the figure of binary precision against full."""
    return Figure(
        GROUP,
        f"nearest(), binary with rerank, {data}",
        "full-precision vec0",
        f"{found.ours * 1000:.3g} ms",
        f"{found.other * 1000:.3g} ms",
        1 / found.ours_to_other,
        "times as fast",
        None if floor is None else Floor(floor),
        f"recall@{K} {recall:.3f}",
        rows,
    )


def writes(run: Run, directory: Path) -> Iterator[Figure]:
    """Core insert() into an indexed table, against executemany into the same table with the same triggers."""
    rows = run.size(20_000)
    vectors = list(clustered(rows))
    model = model_with("full")
    with database(directory / "writes.db", model) as engine:

        def emptied(make: Callable[[], Any]) -> Callable[[], Any]:
            def prepare() -> Any:
                with engine.begin() as connection:
                    model.metadata.drop_all(connection)
                    model.metadata.create_all(connection)
                return make()

            return prepare

        def ours(dicts: list[dict[str, Any]]) -> None:
            with engine.begin() as connection:
                connection.execute(insert(model.__table__), dicts)

        def by_hand(found: list[NDArray[np.float32]]) -> None:
            raw = engine.raw_connection()
            raw.cursor().executemany("INSERT INTO item (embedding) VALUES (?)", [(v.tobytes(),) for v in found])
            raw.commit()
            raw.close()

        yield run.compare(
            Variant(ours, emptied(lambda: [{"embedding": vector} for vector in vectors])),
            Variant(by_hand, emptied(lambda: vectors)),
        ).speed(GROUP, "Core insert() of dicts, indexed table", "executemany, same table and triggers", rows, 0.6)
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT count(*) FROM item_embedding")) == rows


def measure(run: Run) -> Iterator[Figure]:
    """Run the three."""
    for program in (over_vec0, binary_with_rerank, writes):
        with run.directory() as directory:
            yield from program(run, directory)
