"""Vectors that follow their text: add, edit and delete rows, and never think of vectors again.

    python examples/text_to_vector_sync.py
    python examples/text_to_vector_sync.py --url postgresql+psycopg://user:password@host/database

The rows are docstrings of the standard library, and the embedder is scikit-learn's: nothing is downloaded, and no
server is needed.  The tables that it makes are dropped at the end.
"""

from __future__ import annotations

import argparse

import numpy as np
from search_python_docs import read_docstrings, split_words
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqla_vector import Vector, nearest
from sqla_vector.embedding import Embedder, Fingerprint, embed, embedding_column
from sqla_vector.embedding.adapters import ScikitLearnEmbedder
from sqla_vector.tracking import Event, TextsEmbedded, check, track

MODULES = ("csv", "json", "math", "random", "shutil", "string", "textwrap")


# --- 1. The model says which text feeds the vector. ----------------------------------------------------------------


class Base(DeclarativeBase):
    pass


class Entry(Base):
    """A function or class and its docstring."""

    __tablename__ = "sync_entry"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    text: Mapped[str | None]
    views: Mapped[int] = mapped_column(default=0)
    embedding: Mapped[np.ndarray | None] = embedding_column(Vector(64), source=("name", "text"), embedder="lsa")
    embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())


# --- 2. An embedder: any function from texts to vectors will do. ---------------------------------------------------


def make_embedder(texts: list[str]) -> ScikitLearnEmbedder:
    """Fit latent semantic analysis (TF-IDF, then a truncated SVD) to some texts."""
    pipeline = make_pipeline(
        TfidfVectorizer(tokenizer=split_words, token_pattern=None, sublinear_tf=True), TruncatedSVD(64, random_state=0)
    )
    return ScikitLearnEmbedder(pipeline.fit(texts), name="lsa", version="1")


# --- 3. The program: ordinary sessions, tracked. -------------------------------------------------------------------


def best(session: Session, embedder: Embedder, question: str) -> str:
    """Return the name of the entry nearest to a question."""
    (vector,) = embed(embedder, [question])
    entry, _ = session.execute(nearest(select(Entry), Entry.embedding, vector, k=1)).one()
    return str(entry.name)


def main() -> None:
    parser = argparse.ArgumentParser(description="Vectors that follow their text.")
    parser.add_argument("--url", default="sqlite://", help="the database (default: SQLite in memory)")
    engine = create_engine(parser.parse_args().url, plugins=["sqla_vector"])

    docs = read_docstrings(MODULES)
    embedder = make_embedder([f"{name} {text}" for name, _, text in docs])
    embedded: list[int] = []

    def count(event: Event) -> None:
        if isinstance(event, TextsEmbedded):
            embedded.append(event.texts)

    def report(what: str) -> None:
        print(f"{what:<48}  texts embedded: {embedded or 'none'}")
        embedded.clear()

    sessions = sessionmaker(engine)
    track(sessions, embedders={"lsa": embedder}, models=Base, on_event=count)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    try:
        with sessions.begin() as session:
            session.add_all(Entry(name=name, text=text) for name, _, text in docs)
        report(f"{len(docs)} entries added")

        with sessions.begin() as session:
            print(f'  "read rows of a csv file" finds {best(session, embedder, "read rows of a csv file")}')
            entry = session.scalars(select(Entry).where(Entry.name == "math.sqrt")).one()
            entry.views += 1
        report("a column changed that is no source")

        with sessions.begin() as session:
            entry = session.scalars(select(Entry).where(Entry.name == "math.sqrt")).one()
            entry.text = "Choose a random password from letters and digits."
            session.flush()
            print(f'  "random password of digits" finds {best(session, embedder, "random password of digits")}')
        report("a text changed")

        with sessions() as session:
            entry = session.scalars(select(Entry).where(Entry.name == "math.sqrt")).one()
            entry.text = "This is taken back."
            session.rollback()
        report("a change taken back before it was written")

        with sessions.begin() as session:
            entry = session.scalars(select(Entry).where(Entry.name == "math.sqrt")).one()
            entry.name, entry.text = " ", None
            session.flush()
            print(f"  a row without text has the vector {entry.embedding}")
        report("a text removed")

        with sessions.begin() as session:
            session.delete(session.scalars(select(Entry).where(Entry.name == " ")).one())
        report("a row deleted")

        with sessions() as session:
            total = session.scalar(select(func.count()).select_from(Entry))
        (column,) = check(sessions).columns
        print(f"{column.current} of {total} rows have the vector of their text")
    finally:
        Base.metadata.drop_all(engine)
        engine.dispose()


if __name__ == "__main__":
    main()
