"""An index in lists on SQLite against exact vec0, its inserts, and a million rows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from sqlalchemy import Engine, create_engine, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.data import clustered, gaussian, nearest_by_hand, queries, recall_of
from benchmarks.harness import DIM, Figure, Floor, Run, Variant
from sqla_vector import Vector, bulk, nearest, vector_index

GROUP = "SQLite, in lists"
K = 10
RECALL = 0.95
PROBES = (*range(8, 64, 4), *range(64, 257, 16))


def model_with(**options: Any) -> type[Any]:
    """Return a model whose vectors have an index with some options, or none, in a Base of its own."""

    class Base(DeclarativeBase):
        pass

    class Item(Base):
        __tablename__ = "item"

        id: Mapped[int] = mapped_column(primary_key=True)
        embedding: Mapped[np.ndarray] = mapped_column(Vector(DIM))

        __table_args__ = (vector_index("item_embedding", "embedding", metric="cosine", **options),) if options else ()

    return Item


@contextmanager
def database(path: Path, model: type[Any], matrix: NDArray[np.float32]) -> Iterator[Engine]:
    """Make a database file with the model's table, filled and then indexed."""
    engine = create_engine(f"sqlite:///{path}", plugins=["sqla_vector"])
    plain = model_with()
    try:
        with engine.begin() as connection:
            plain.metadata.create_all(connection)
            bulk.load(connection, plain, {"id": np.arange(len(matrix)), "embedding": matrix})
            for index in model.__table__.indexes:
                index.create(connection)
        yield engine
    finally:
        engine.dispose()


def search(session: Session, model: type[Any], query: Any, probes: int | None = None) -> list[Any]:
    return session.execute(nearest(select(model.id), model.embedding, query, k=K, probes=probes)).all()


def probes_for(session: Session, model: type[Any], asked: Any, truth: list[set[int]]) -> tuple[int | None, float]:
    """Return how many lists a recall of 0.95 takes, or None if it is not reached, and the recall."""
    recall = 0.0
    for probes in PROBES:
        recall = recall_of(truth, [search(session, model, query, probes) for query in asked], K)
        if recall >= RECALL:
            return probes, recall
    return None, recall


def against_exact(run: Run, directory: Path, name: str, matrix: Any, asked: Any) -> Iterator[Figure]:
    """Compare searches of lists, with as many probes as the recall takes, with exact vec0."""
    rows = len(matrix)
    truth = [nearest_by_hand(matrix, query, K) for query in asked]
    exact = model_with(method="hnsw")
    with database(directory / f"exact-{name}.db", exact, matrix) as whole, Session(whole) as scanning:
        for precision in ("full", "binary"):
            model = model_with(method="ivfflat", precision=precision, lists=max(1, rows // 100))
            path = directory / f"{precision}-{name}.db"
            with database(path, model, matrix) as engine, Session(engine) as session:
                probes, recall = probes_for(session, model, asked, truth)
                mine, other = cycle(asked), cycle(asked)

                def ours(query: Any, model: Any = model, session: Session = session, n: Any = probes) -> Any:
                    return search(session, model, query, n or PROBES[-1])

                found = run.compare(
                    Variant(ours, lambda source=mine: next(source)),
                    Variant(lambda query: search(scanning, exact, query), lambda source=other: next(source)),
                    rounds=min(run.latency_rounds, 200),
                    warm_up=5,
                )
                floor = Floor(10) if name == "clustered" else None
                yield Figure(
                    GROUP,
                    f"nearest(), {precision} precision, {name} vectors",
                    "exact vec0",
                    f"{found.ours * 1000:.3g} ms",
                    f"{found.other * 1000:.3g} ms",
                    1 / found.ours_to_other,
                    "times as fast",
                    floor,
                    f"recall@{K} {recall:.3f} with {probes or PROBES[-1]} probes of {max(1, rows // 100):,} lists",
                    rows,
                )
            path.unlink()


def inserts(run: Run, directory: Path) -> Iterator[Figure]:
    """Insert into an index of as many lists as a million rows have, a row a statement of one transaction."""
    rows = run.size(100_000)
    matrix, more = clustered(rows), list(clustered(run.size(10_000), seed=1))
    for precision in ("full", "binary"):
        model = model_with(method="ivfflat", precision=precision, lists=min(2_000, rows))
        with database(directory / f"insert-{precision}.db", model, matrix) as engine:
            found = []
            for number in range(run.repeat):
                dicts = [{"id": rows * (number + 1) + n, "embedding": vector} for n, vector in enumerate(more)]
                started = perf_counter()
                with engine.begin() as connection:
                    connection.execute(insert(model.__table__), dicts)
                found.append(len(more) / (perf_counter() - started))
        rate = median(found)
        yield Figure(
            GROUP,
            f"Core insert() of dicts, {precision} precision",
            "3,000 rows/s",
            f"{rate:,.0f} rows/s",
            "",
            rate / 3_000,
            "times as fast",
            Floor(1),
            f"into {min(2_000, rows):,} lists",
            rows,
        )


def million(directory: str, rows: int) -> dict[str, float]:
    """Build an index of a million rows in a file that has them, in this process; return what it took."""
    model = model_with(method="ivfflat")
    engine = create_engine(f"sqlite:///{directory}/million.db", plugins=["sqla_vector"])
    started = perf_counter()
    with engine.begin() as connection:
        for index in model.__table__.indexes:
            index.create(connection)
    found = {"build": perf_counter() - started}
    kept = np.load(f"{directory}/million.npz")
    truth = [set(row.tolist()) for row in kept["truth"]]
    with Session(engine) as session:
        probes, found["recall"] = probes_for(session, model, kept["asked"], truth)
        found["probes"] = probes or PROBES[-1]
        times = []
        for query in kept["asked"]:
            started = perf_counter()
            search(session, model, query, int(found["probes"]))
            times.append(perf_counter() - started)
        found["milliseconds"] = median(times) * 1000
    more = [{"id": rows + n, "embedding": vector} for n, vector in enumerate(np.tile(kept["asked"], (50, 1)))]
    started = perf_counter()
    with engine.begin() as connection:
        connection.execute(insert(model.__table__), more)
    found["inserts"] = len(more) / (perf_counter() - started)
    found["megabytes"] = _peak()
    engine.dispose()
    return found


def _peak() -> float:
    """Return the most memory that this process has had, in MB."""
    # What getrusage() tells begins with that of the process which started this one.
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    usage = psutil.Process().memory_info()
    return float(getattr(usage, "peak_wset", usage.rss)) / 1e6


def a_million(run: Run, directory: Path) -> Iterator[Figure]:
    """Search, build and insert with a million rows, in a process of its own."""
    rows = run.size(1_000_000)
    matrix, asked = clustered(rows), queries(rows, count=min(100, run.queries))
    truth = np.stack([np.argsort(-(matrix @ query))[:K] for query in asked])
    np.savez(directory / "million.npz", asked=asked, truth=truth)
    with database(directory / "million.db", model_with(), matrix):
        pass
    command = [sys.executable, "-m", "benchmarks.lists", str(directory), str(rows)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    note = f"recall@{K} {found['recall']:.3f} with {found['probes']:.0f} probes"
    limits = (
        ("nearest(), full precision, a process of its own", "milliseconds", "ms", 25.0, note),
        ("building the index", "build", "s", 900.0, ""),
        ("memory of the process that builds and searches", "megabytes", "MB", 500.0, ""),
    )
    for what, name, unit, most, said in limits:
        value = found[name]
        yield Figure(
            GROUP,
            what,
            f"{most:g} {unit}",
            f"{value:.3g} {unit}",
            "",
            value / most,
            "times that",
            Floor(1, True),
            said,
            rows,
        )
    yield Figure(
        GROUP,
        "Core insert() of dicts, full precision",
        "3,000 rows/s, into a million rows",
        f"{found['inserts']:,.0f} rows/s",
        "",
        found["inserts"] / 3_000,
        "times as fast",
        Floor(1),
        "",
        rows,
    )


def measure(run: Run) -> Iterator[Figure]:
    """Compare at 100,000 rows; go up to a million if asked to."""
    rows = run.size(100_000)
    with run.directory() as directory:
        yield from against_exact(run, directory, "clustered", clustered(rows), queries(rows, count=run.queries))
        yield from against_exact(run, directory, "Gaussian", *gaussian(rows, count=run.queries))
        yield from inserts(run, directory)
        if run.million or run.rows is not None:
            yield from a_million(run, directory)


if __name__ == "__main__":
    print(json.dumps(million(sys.argv[1], int(sys.argv[2]))))
