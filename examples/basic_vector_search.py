"""The first search: a table with vectors, an index, the nearest rows, filters, thresholds, pages.

    python examples/basic_vector_search.py
    python examples/basic_vector_search.py --url postgresql+psycopg://user:password@host/database

The rows are docstrings of the standard library, and their vectors come from scikit-learn: nothing is downloaded, and no
server is needed.  The table that it makes is dropped at the end.
"""

from __future__ import annotations

import argparse

import numpy as np
from search_python_docs import read_docstrings
from sqlalchemy import create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from text_to_vector_sync import make_embedder

from sqla_vector import Vector, explain_nearest, nearest, nearest_to, search, vector_index
from sqla_vector.embedding import embed
from sqla_vector.search import cursor_of, page_after

MODULES = ("csv", "json", "math", "random", "shutil", "string", "textwrap", "zipfile")


class Base(DeclarativeBase):
    pass


class Entry(Base):
    """A function or class and its docstring."""

    __tablename__ = "basic_entry"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    kind: Mapped[str]
    text: Mapped[str]
    embedding: Mapped[np.ndarray] = mapped_column(Vector(64), info={"source": ("name", "text")})
    __table_args__ = (vector_index("basic_entry_embedding", "embedding", metric="cosine", include=["kind"]),)


def show(what: str, found: list[tuple[Entry, float]]) -> None:
    print(f"{what}:")
    for entry, distance in found:
        print(f"  {distance:.3f}  {entry.kind:<8}  {entry.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description="The first search.")
    parser.add_argument("--url", default="sqlite://", help="the database (default: SQLite in memory)")
    arguments = parser.parse_args()

    docs = read_docstrings(MODULES)
    embedder = make_embedder([f"{name} {text}" for name, _, text in docs])
    vectors = embed(embedder, [f"{name} {text}" for name, _, text in docs])
    engine = create_engine(arguments.url, plugins=["sqla_vector"])
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    try:
        with Session(engine) as session:
            rows = zip(docs, vectors, strict=True)
            session.add_all(Entry(name=n, kind=kind, text=text, embedding=vector) for (n, kind, text), vector in rows)
            session.commit()

            (vector,) = embed(embedder, ["choose a random element of a list"])
            stmt = nearest(select(Entry), Entry.embedding, vector, k=3)
            show("the 3 nearest", session.execute(stmt).all())
            show("the 3 nearest classes", session.execute(stmt.where(Entry.kind == "class")).all())
            alike = nearest(select(Entry), Entry.embedding, vector, k=100, min_similarity=0.3)
            print(f"{len(session.execute(alike).all())} of {len(docs)} are at least 0.3 similar")
            hit = search(session, stmt)[0]
            print(f"the best hit: {hit.entity.name}, similarity {hit.similarity:.3f}, its text: {hit.text[:40]!r}")

            place = cursor_of(stmt, search(session, stmt)[-1])
            show("the next 3", session.execute(page_after(stmt, place)).all())
            like = session.scalars(select(Entry).where(Entry.name == "math.sqrt")).one()
            show("most like math.sqrt", session.execute(nearest_to(Entry.embedding, like, k=3)).all())
            print(explain_nearest(session, stmt).reason)
    finally:
        Base.metadata.drop_all(engine)
        engine.dispose()


if __name__ == "__main__":
    main()
