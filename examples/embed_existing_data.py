"""Vectors for rows that are there already: look, count the cost, embed, and keep up.

    python examples/embed_existing_data.py
    python examples/embed_existing_data.py --url postgresql+psycopg://user:password@host/database

The table is filled before anybody thinks of vectors, with docstrings of the standard library.  Then it gets two
columns, and ``backfill()`` fills them while the table is in use.  Nothing is downloaded: the embedder is
scikit-learn's.  The tables that it makes are dropped at the end.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from search_python_docs import read_docstrings, split_words
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sqlalchemy import Engine, create_engine, insert, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from sqla_vector import Vector, nearest
from sqla_vector.embedding import Fingerprint, embed, embedding_column
from sqla_vector.embedding.adapters import ScikitLearnEmbedder
from sqla_vector.tracking import Progress, backfill, check, outbox_table, track

MODULES = ("argparse", "csv", "json", "logging", "math", "pathlib", "random", "shutil", "string", "textwrap")


class Base(DeclarativeBase):
    pass


class Entry(Base):
    """A table of an application, and the two columns that are new."""

    __tablename__ = "existing_entry"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    text: Mapped[str]
    embedding: Mapped[np.ndarray | None] = embedding_column(
        Vector(64), source=("name", "text"), embedder="lsa", when="worker"
    )
    embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())


outbox = outbox_table(Base.metadata, "existing_outbox")


def make_embedder(texts: list[str]) -> ScikitLearnEmbedder:
    """Fit latent semantic analysis (TF-IDF, then a truncated SVD) to some texts."""
    pipeline = make_pipeline(
        TfidfVectorizer(tokenizer=split_words, token_pattern=None, sublinear_tf=True), TruncatedSVD(64, random_state=0)
    )
    return ScikitLearnEmbedder(pipeline.fit(texts), name="lsa", version="1")


def run(engine: Engine) -> None:
    docs = read_docstrings(MODULES)
    with engine.begin() as connection:
        connection.execute(insert(Entry), [{"name": name, "text": text} for name, _, text in docs])
    print(f"{len(docs)} rows, of which nothing is embedded")

    embedder = make_embedder([f"{name} {text}" for name, _, text in docs])
    sessions = sessionmaker(engine)
    track(sessions, embedders={"lsa": embedder}, outbox=outbox, models=Base)

    # What is missing, and what it would cost.
    (column,) = check(sessions, models=Base).columns
    print(f"check: {column.missing} missing, {column.current} current")
    print(backfill(sessions, Entry.embedding, models=Base, dry_run=True, price_per_million_tokens=0.02))

    # Rows are read in the order of their keys, embedded outside of transactions, and written if their text is still
    # the same.  A run that is killed loses the batch in hand; the next one passes over what is done.
    steps: list[Progress] = []
    print(backfill(sessions, Entry.embedding, models=Base, batch_size=100, on_progress=steps.append))
    print(f"progress was told {len(steps)} times; at last {steps[-1].done} of {steps[-1].total}")
    print(backfill(sessions, Entry.embedding, models=Base))

    with sessions() as session:
        (vector,) = embed(embedder, ["wrap a paragraph to a width"])
        for entry, distance in session.execute(nearest(select(Entry), Entry.embedding, vector, k=3)):
            print(f"  {distance:.3f}  {entry.name}")

    # A statement that sessions do not see leaves a vector of another text.  check() finds it, backfill() mends it.
    with engine.begin() as connection:
        connection.execute(update(Entry).where(Entry.name == "csv").values(text="Another text."))
    (column,) = check(sessions, models=Base).columns
    print(f"check: {column.stale} stale, {column.current} current")
    backfill(sessions, Entry.embedding, models=Base)
    print("all rows are current" if check(sessions, models=Base).is_clean else "some rows are not current")


def main() -> None:
    parser = argparse.ArgumentParser(description="Vectors for rows that are there already.")
    parser.add_argument("--url", help="the database (default: a SQLite file, removed at the end)")
    url = parser.parse_args().url
    with tempfile.TemporaryDirectory() as directory:
        engine = create_engine(url or f"sqlite:///{Path(directory) / 'entries.db'}", plugins=["sqla_vector"])
        Base.metadata.drop_all(engine)
        Base.metadata.create_all(engine)
        try:
            run(engine)
        finally:
            Base.metadata.drop_all(engine)
            engine.dispose()


if __name__ == "__main__":
    main()
