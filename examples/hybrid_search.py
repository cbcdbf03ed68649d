"""Hybrid search in SQL: by meaning and by words in one statement, then a second stage.

    python examples/hybrid_search.py
    python examples/hybrid_search.py "read a zip archive"
    python examples/hybrid_search.py --url postgresql+psycopg://user:password@host/database

The rows are docstrings of the standard library, and their vectors come from scikit-learn: nothing is downloaded, and no
server is needed.  The table that it makes is dropped at the end.  The same with Elasticsearch is in
elasticsearch_hybrid_search.py.
"""

from __future__ import annotations

import argparse

import numpy as np
from search_python_docs import read_docstrings
from sqlalchemy import String, case, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from text_to_vector_sync import make_embedder

from sqla_vector import Hit, Vector, search, text_index, vector_index
from sqla_vector.embedding import embed
from sqla_vector.fusion import weighted
from sqla_vector.search import hybrid, mmr, rerank, score_of, text_part, vector_part

MODULES = ("csv", "json", "math", "random", "shutil", "string", "textwrap", "zipfile")


class Base(DeclarativeBase):
    pass


class Entry(Base):
    """A function or class and its docstring."""

    __tablename__ = "hybrid_entry"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    module: Mapped[str] = mapped_column(String(40))
    kind: Mapped[str] = mapped_column(String(20))
    text: Mapped[str]
    name_embedding: Mapped[np.ndarray] = mapped_column(Vector(64))
    embedding: Mapped[np.ndarray] = mapped_column(Vector(64))
    __table_args__ = (
        vector_index("hybrid_entry_name_embedding", "name_embedding", metric="cosine"),
        vector_index("hybrid_entry_embedding", "embedding", metric="cosine"),
        text_index("hybrid_entry_text", "name", "text", weights=(1.0, 0.4), language="english"),
    )


def show(what: str, hits: list[Hit[Entry]]) -> None:
    """Print hits, and which part has found each of them at which place."""
    print(f"{what}:")
    for hit in hits:
        why = ", ".join(f"{name} {part.rank}" for name, part in hit.parts.items() if part is not None)
        print(f"  {hit.score:.4f}  {hit.entity.kind:<8}  {hit.entity.name}  ({why})")


def main() -> None:
    parser = argparse.ArgumentParser(description="Hybrid search in SQL.")
    parser.add_argument("question", nargs="?", default="choose a random element of a list")
    parser.add_argument("--url", default="sqlite://", help="the database (default: SQLite in memory)")
    arguments = parser.parse_args()

    docs = read_docstrings(MODULES)
    embedder = make_embedder([f"{name} {text}" for name, _, text in docs])
    of_names = embed(embedder, [name.replace(".", " ") for name, _, _ in docs])
    of_texts = embed(embedder, [text for _, _, text in docs])
    engine = create_engine(arguments.url, plugins=["sqla_vector"])
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    try:
        with Session(engine) as session:
            for (name, kind, text), of_name, of_text in zip(docs, of_names, of_texts, strict=True):
                module = name.partition(".")[0]
                entry = Entry(name=name, module=module, kind=kind, text=text, name_embedding=of_name, embedding=of_text)
                session.add(entry)
            session.commit()

            (vector,) = embed(embedder, [arguments.question])
            # Any of the words: the vectors decide what is meant.
            words = " or ".join(arguments.question.split())
            both = hybrid(select(Entry), Entry.embedding, vector=vector, text=words, k=5)
            show("by both", search(session, both))
            show("by both, classes only", search(session, both.where(Entry.kind == "class")))
            mostly = hybrid(select(Entry), Entry.embedding, vector=vector, text=words, k=5, fusion=weighted(alpha=0.9))
            show("by both, words count for a tenth", search(session, mostly))
            parts = [
                vector_part(Entry.embedding, vector, name="text"),
                vector_part(Entry.name_embedding, vector, name="name", weight=0.5),
                text_part(Entry, words, name="words"),
            ]
            show("by two vectors and words", search(session, hybrid(select(Entry), parts=parts, k=5)))

            # A second stage: of 50 candidates functions are preferred, then the five that repeat each other least.
            wide = hybrid(select(Entry), Entry.embedding, vector=vector, text=words, k=50)
            preferred = rerank(wide, score_of(wide) * case((Entry.kind == "function", 1.5), else_=1.0), k=5)
            show("functions preferred", search(session, preferred))
            show("that differ", mmr(search(session, wide, vectors=True), k=5, lambda_=0.4))
    finally:
        Base.metadata.drop_all(engine)
        engine.dispose()


if __name__ == "__main__":
    main()
