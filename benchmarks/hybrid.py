"""Hybrid search on both databases: one statement against its two parts, run one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Engine, String, create_engine, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.data import clustered, queries
from benchmarks.harness import DIM, Figure, Run, Variant
from benchmarks.postgresql import engine
from sqla_vector import Vector, bulk, match_text, nearest, text_index, vector_index
from sqla_vector.search import hybrid

GROUP = "Hybrid search"
K = 10
CANDIDATES = 50
WORDS = 5_000
"""Different words; how common they are falls as in a language (Zipf's law)."""


class Base(DeclarativeBase):
    """Of the searched table."""


class Entry(Base):
    """A text and its vector."""

    __tablename__ = "bench_hybrid"

    id: Mapped[int] = mapped_column(primary_key=True)
    words: Mapped[str] = mapped_column(String(400))
    embedding: Mapped[np.ndarray] = mapped_column(Vector(DIM))

    __table_args__ = (
        vector_index("bench_hybrid_embedding", "embedding", metric="cosine", method="hnsw"),
        text_index("bench_hybrid_words", "words"),
    )


def texts(rows: int) -> list[str]:
    """Return texts of 20 words."""
    random = np.random.default_rng(3)
    share = 1 / np.arange(1, WORDS + 1)
    drawn = random.choice(WORDS, size=(rows, 20), p=share / share.sum())
    return [" ".join(f"w{word}" for word in row) for row in drawn]


def fill(connected: Engine, entry: type[Any], matrix: NDArray[np.float32], settings: str | None) -> None:
    """Load rows, then build the indexes."""
    indexes = list(entry.__table__.indexes)
    with connected.begin() as connection:
        for index in indexes:
            index.drop(connection, checkfirst=True)
        connection.execute(entry.__table__.delete())
        columns = {"id": np.arange(len(matrix)), "words": texts(len(matrix)), "embedding": matrix}
        bulk.load(connection, entry, columns)
        if settings is not None:
            connection.execute(text(settings))
        for index in indexes:
            index.create(connection)
    with connected.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.execute(text("ANALYZE"))


def asked(rows: int, count: int) -> list[tuple[NDArray[np.float32], str]]:
    """Return vectors with queries of two words, neither frequent nor rare."""
    random = np.random.default_rng(8)
    words = random.integers(50, 500, size=(count, 2))
    return [(v, f"w{one} or w{two}") for v, (one, two) in zip(queries(rows, count=count), words, strict=True)]


def together(session: Session, question: tuple[Any, str]) -> list[Any]:
    vector, words = question
    stmt = hybrid(select(Entry.id), Entry.embedding, vector=vector, text=words, k=K, candidates=CANDIDATES)
    return session.execute(stmt).all()


def apart(session: Session, question: tuple[Any, str]) -> list[Any]:
    vector, words = question
    near = session.execute(nearest(select(Entry.id), Entry.embedding, vector, k=CANDIDATES)).all()
    return [*near, *session.execute(match_text(select(Entry.id), Entry, words, k=CANDIDATES)).all()]


def race(run: Run, connected: Engine, rows: int, database: str, settings: str | None = None) -> Figure:
    fill(connected, Entry, clustered(rows), settings)
    questions = asked(rows, run.queries)
    one, two = cycle(questions), cycle(questions)
    with Session(connected) as session:
        found = run.compare_latency(
            Variant(lambda question: together(session, question), lambda: next(one)),
            Variant(lambda question: apart(session, question), lambda: next(two)),
        )
    return found.duration(
        GROUP,
        f"{database}: hybrid(), k = {K} of {CANDIDATES} candidates of each part",
        "nearest() and match_text() for the candidates",
        1.3,
        rows=rows,
    )


def measure(run: Run) -> Iterator[Figure]:
    """Compare one statement with two, on PostgreSQL and on SQLite."""
    rows = run.size(100_000)
    with engine(run, base=Base) as connected:
        yield race(run, connected, rows, "PostgreSQL", "SET LOCAL maintenance_work_mem = '512MB'")
    with run.directory() as directory:
        connected = create_engine(f"sqlite:///{directory / 'hybrid.db'}", plugins=["sqla_vector"])
        try:
            Base.metadata.create_all(connected)
            yield race(run, connected, rows, "SQLite")
        finally:
            connected.dispose()
