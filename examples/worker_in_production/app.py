"""An application whose texts are embedded by workers: its models, its outbox, its sessions.

    export DATABASE_URL=sqlite:///app.db          # or postgresql+psycopg://user:password@host/database
    python app.py                                 # makes the tables, adds and edits rows; embeds nothing
    sqla-vector worker --app app:Session          # embeds; in production by systemd or in a container
    sqla-vector status --app app:Session          # what waits, what is dead

Without EMBEDDER_URL, the address of an Ollama server, vectors are made by scikit-learn's hashing: it needs no
download and no fitting, so that every process makes the same vectors.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import create_engine, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from sqla_vector import Vector
from sqla_vector.embedding import Embedder, Fingerprint, embedding_column
from sqla_vector.embedding.adapters import OllamaEmbedder, ScikitLearnEmbedder
from sqla_vector.tracking import outbox_table, track

DIMENSIONS = 768


class Base(DeclarativeBase):
    pass


class Article(Base):
    __tablename__ = "article"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    body: Mapped[str]
    embedding: Mapped[np.ndarray | None] = embedding_column(
        Vector(DIMENSIONS), source=("title", "body"), embedder="text", when="worker"
    )
    embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())


outbox = outbox_table(Base.metadata)


def make_embedder() -> Embedder:
    url = os.environ.get("EMBEDDER_URL")
    if url:
        return OllamaEmbedder("nomic-embed-text", dimensions=DIMENSIONS, base_url=url, timeout=15, attempts=1)
    from sklearn.feature_extraction.text import HashingVectorizer

    return ScikitLearnEmbedder(HashingVectorizer(n_features=DIMENSIONS), name="hashing", version="1")


engine = create_engine(os.environ.get("DATABASE_URL", "sqlite:///app.db"), plugins=["sqla_vector"], pool_pre_ping=True)
Session = sessionmaker(engine)
track(Session, embedders={"text": make_embedder()}, outbox=outbox, models=Base)


def texts() -> list[dict[str, Any]]:
    """Return real texts: docstrings of the standard library."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from search_python_docs import read_docstrings

    return [
        {"title": name, "body": text}
        for name, _, text in read_docstrings(("argparse", "csv", "json", "logging", "shutil"))
    ]


def main() -> None:
    Base.metadata.create_all(engine)
    with Session.begin() as session:
        session.add_all(Article(**text) for text in texts())
    with Session.begin() as session:
        session.scalars(select(Article).limit(1)).one().title = "A new title"
    with Session() as session:
        rows = session.scalar(select(func.count()).select_from(Article))
        embedded = session.scalar(select(func.count()).where(Article.embedding.is_not(None)))
    print(f"{rows} articles, {embedded} with a vector; run: sqla-vector worker --app app:Session")
    engine.dispose()


if __name__ == "__main__":
    main()
