"""What programs do all day, at 100,000 rows: storing one row, storing a hundred, searching."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count, cycle
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from sqlalchemy import Engine, String, create_engine, event, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.data import clustered, queries
from benchmarks.harness import DIM, Figure, Floor, Run
from benchmarks.hybrid import asked, fill, texts
from benchmarks.postgresql import engine
from sqla_vector import Vector, nearest, text_index, vector_index
from sqla_vector.search import hybrid

GROUP = "Everyday"
ROUNDS = 100


def entry_with(**options: Any) -> type[Any]:
    """Return a model with a text, a vector and an index of each, in a Base of its own."""

    class Base(DeclarativeBase):
        pass

    class Entry(Base):
        __tablename__ = "bench_everyday"

        id: Mapped[int] = mapped_column(primary_key=True)
        words: Mapped[str] = mapped_column(String(400))
        embedding: Mapped[np.ndarray] = mapped_column(Vector(DIM))

        __table_args__ = (
            vector_index("bench_everyday_embedding", "embedding", metric="cosine", **options),
            text_index("bench_everyday_words", "words"),
        )

    return Entry


def milliseconds(work: Callable[[Any], object], arguments: Iterator[Any], rounds: int) -> float:
    """Return the median duration of some work."""
    durations = []
    for _ in range(rounds + 3):
        argument = next(arguments)
        started = perf_counter()
        work(argument)
        durations.append(perf_counter() - started)
    return median(durations[3:]) * 1000


def figures(run: Run, database: str, connected: Engine, entry: type[Any], settings: str | None) -> Iterator[Figure]:
    rows = run.size(100_000)
    fill(connected, entry, clustered(rows), settings)
    words, vectors = cycle(texts(1_000)), cycle(queries(rows))
    keys, rounds = count(rows), ROUNDS if run.rows is None else 10

    def made(number: int) -> list[Any]:
        return [entry(id=next(keys), words=next(words), embedding=next(vectors)) for _ in range(number)]

    def store(objects: list[Any]) -> None:
        with Session(connected) as session, session.begin():
            session.add_all(objects)

    def near(question: Any) -> None:
        with Session(connected) as session:
            session.execute(nearest(select(entry), entry.embedding, question[0], k=10)).all()

    def both(question: Any) -> None:
        vector, text = question
        stmt = hybrid(select(entry), entry.embedding, vector=vector, text=text, k=10)
        with Session(connected) as session:
            session.execute(stmt).all()

    questions = cycle(asked(rows, run.queries))
    for what, work, arguments, most in (
        ("one row stored and committed", store, iter(lambda: made(1), None), 10),
        ("100 rows stored and committed", store, iter(lambda: made(100), None), 100),
        ("nearest(), k = 10", near, questions, 50),
        ("hybrid(), k = 10", both, questions, 100),
    ):
        found = milliseconds(work, arguments, rounds)
        shown = f"{database}: {what}"
        yield Figure(GROUP, shown, "", f"{found:.3g} ms", "", found, "ms", Floor(most, at_most=True), rows=rows)


def measure(run: Run) -> Iterator[Figure]:
    """Measure through objects and sessions, with an index of the vectors and one of the texts."""
    settings = "SET LOCAL maintenance_work_mem = '1GB'"
    for method in ("hnsw", "ivfflat"):
        with engine(run) as connected:
            entry = entry_with(method=method)
            entry.metadata.create_all(connected)
            try:
                yield from figures(run, f"PostgreSQL, {method}", connected, entry, settings)
            finally:
                entry.metadata.drop_all(connected)
    with run.directory() as directory:
        connected = create_engine(f"sqlite:///{directory / 'everyday.db'}", plugins=["sqla_vector"])
        event.listen(connected, "connect", lambda connection, _: connection.execute("PRAGMA journal_mode = WAL"))
        entry = entry_with(method="ivfflat")
        entry.metadata.create_all(connected)
        try:
            yield from figures(run, "SQLite, ivfflat", connected, entry, None)
        finally:
            connected.dispose()
