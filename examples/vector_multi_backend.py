"""One model, searched in SQLite, PostgreSQL and Elasticsearch: the same rows in the same order, at the same distances.

    python examples/vector_multi_backend.py
    python examples/vector_multi_backend.py --postgresql postgresql+psycopg://user:password@host/database
    python examples/vector_multi_backend.py --elasticsearch http://localhost:9200

It needs ``pip install 'sqla-vector[sqlite,postgresql,elasticsearch,examples]'``.  SQLite is in memory; the others take
part where they are named.  What it makes (a table, and an index named ``sqla-vector-multi-backend`` or as ``--index``
says) is dropped at the end.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from elasticsearch import Elasticsearch
from search_python_docs import read_docstrings
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from text_to_vector_sync import make_embedder

from sqla_vector import Vector, nearest
from sqla_vector.elasticsearch import DenseVector, Keyword, Knn, Searcher, SearchIndex, Sync
from sqla_vector.embedding import embed
from sqla_vector.tracking import outbox_table, track, untrack

MODULES = ("csv", "json", "math", "random", "shutil", "string", "textwrap", "zipfile")
QUESTIONS = ("square root", "shuffle a list", "copy a directory tree", "a random choice")
K = 10

Answer = list[tuple[str, float]]
"""Names and distances, nearest first."""


# --- 1. One model for all of them. ---------------------------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class Entry(Base):
    """A function or class, and the vector of its docstring."""

    __tablename__ = "multi_entry"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    kind: Mapped[str]
    embedding: Mapped[np.ndarray] = mapped_column(Vector(64))


outbox = outbox_table(Base.metadata, name="multi_outbox")


# --- 2. The same question, asked in two ways. ----------------------------------------------------------------------


def by_sql(session: Session, vector: np.ndarray) -> Answer:
    """Search in the database, whichever it is."""
    stmt = nearest(select(Entry).where(Entry.kind == "function"), Entry.embedding, vector, k=K, exact=True)
    return [(entry.name, distance) for entry, distance in session.execute(stmt)]


def by_elasticsearch(session: Session, searcher: Searcher, vector: np.ndarray) -> Answer:
    """Search in the index; the objects and the distances are the database's."""
    knn = Knn("embedding", vector, exact=True)
    page = searcher.search(session, knn=knn, where=Entry.kind == "function", k=K)
    return [(hit.entity.name, hit.distance or 0.0) for hit in page]


# --- 3. Each backend in turn. --------------------------------------------------------------------------------------


@contextmanager
def filled(engine: Engine, entries: list[dict[str, object]]) -> Iterator[sessionmaker[Session]]:
    """Make the tables with all entries, and drop them at the end."""
    sessions = sessionmaker(engine)
    track(sessions, embedders={}, outbox=outbox, models=Base)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    try:
        with sessions.begin() as session:
            session.add_all(Entry(**values) for values in entries)
        yield sessions
    finally:
        Base.metadata.drop_all(engine)
        untrack(sessions)
        engine.dispose()


@contextmanager
def mirrored(sessions: sessionmaker[Session], url: str, index: SearchIndex) -> Iterator[Searcher]:
    """Make the index with all entries, and delete it at the end."""
    with Elasticsearch(url, api_key=os.environ.get("ELASTICSEARCH_API_KEY")) as client:
        physical = index.create(client)
        try:
            Sync(sessions, client, index, refresh="wait_for").run(until_empty=True)
            yield Searcher(client, index)
        finally:
            client.indices.delete(index=physical)


def main() -> None:
    parser = argparse.ArgumentParser(description="One model in several databases.")
    parser.add_argument("--postgresql", metavar="URL", help="of a PostgreSQL with pgvector")
    parser.add_argument("--elasticsearch", metavar="URL", help="of an Elasticsearch")
    parser.add_argument("--index", default="sqla-vector-multi-backend", help="the name of the index")
    arguments = parser.parse_args()

    docs = read_docstrings(MODULES)
    embedder = make_embedder([f"{name} {text}" for name, _, text in docs])
    vectors = embed(embedder, [f"{name} {text}" for name, _, text in docs])
    entries: list[dict[str, object]] = [
        {"name": name, "kind": kind, "embedding": vector}
        for (name, kind, _), vector in zip(docs, vectors, strict=True)
        if np.any(vector)
    ]
    asked = embed(embedder, list(QUESTIONS))
    index = SearchIndex(
        arguments.index,
        Entry,
        fields={"kind": Keyword("kind"), "embedding": DenseVector("embedding", metric="cosine", index="flat")},
        outbox=outbox,
        settings={"number_of_replicas": 0},
    )

    answers: dict[str, list[Answer]] = {}
    with filled(create_engine("sqlite://", plugins=["sqla_vector"]), entries) as sessions:
        with sessions() as session:
            answers["SQLite"] = [by_sql(session, vector) for vector in asked]
        if arguments.elasticsearch:
            with mirrored(sessions, arguments.elasticsearch, index) as searcher, sessions() as session:
                answers["Elasticsearch"] = [by_elasticsearch(session, searcher, vector) for vector in asked]
    if arguments.postgresql:
        engine = create_engine(arguments.postgresql, plugins=["sqla_vector"])
        with filled(engine, entries) as sessions, sessions() as session:
            answers["PostgreSQL"] = [by_sql(session, vector) for vector in asked]

    first = answers["SQLite"]
    for question, answer in zip(QUESTIONS, first, strict=True):
        print(f"{question}: {', '.join(f'{name} {distance:.3f}' for name, distance in answer[:3])}")
    for backend, found in answers.items():
        same = all(
            [name for name, _ in one] == [name for name, _ in other]
            and np.allclose([distance for _, distance in one], [distance for _, distance in other], atol=1e-6)
            for one, other in zip(found, first, strict=True)
        )
        print(f"{backend}: {len(found)} questions, {K} rows each, {'the same' if same else 'other'} rows and distances")


if __name__ == "__main__":
    main()
