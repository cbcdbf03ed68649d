"""Documents with chunks, and an independent look at whether the chunks are those of the texts."""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlalchemy import ForeignKey, Table, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from sqla_vector import Vector
from sqla_vector.chunking import by_sentences, chunked
from sqla_vector.tracking import outbox_table
from tests.tracking.models import DIM, CountingEmbedder


def document_models(when: str = "flush", *, related: bool = False, **options: Any) -> Any:
    """Return a base with Author, Document and DocumentChunk, and an outbox in its metadata."""

    class Base(DeclarativeBase):
        outbox: Table

    class Author(Base):
        __tablename__ = "author"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None]

    class Document(Base):
        __tablename__ = "document"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]
        body: Mapped[str | None]
        author_id: Mapped[int | None] = mapped_column(ForeignKey("author.id"))
        author: Mapped[Author | None] = relationship()

    source: Any = options.pop("source", ("author.name", "body") if related else "body")
    options = {"splitter": by_sentences(2, 0), "vector": Vector(DIM), "embedder": "counting", **options}
    Base.Author, Base.Document = Author, Document  # type: ignore[attr-defined]
    Base.Chunk = chunked(Document, source, when=when, **options)  # type: ignore[attr-defined, arg-type]
    Base.outbox = outbox_table(Base.metadata)
    return Base


def paragraphs(*numbers: int) -> str:
    """Return a text with a paragraph of two sentences for each number: a chunk by two sentences."""
    return "\n\n".join(f"Paragraph {n} begins. It ends with {n}." for n in numbers)


CHUNKS = text(
    "SELECT document_id, position, start_offset, end_offset, text, embedding_fingerprint, id "
    "FROM document_chunk ORDER BY document_id, position, id"
)
TEXTS = text("SELECT id, body FROM document ORDER BY id")


def rows_of(connection: Any) -> dict[int, list[Any]]:
    """Return the rows of chunks by the document, read by other means than the package's."""
    found: dict[int, list[Any]] = {}
    for row in connection.execute(CHUNKS):
        found.setdefault(row[0], []).append(row)
    return found


def why_not_in_step(connection: Any, split: Any, embedder: CountingEmbedder | None = None) -> list[str]:
    """Say what is wrong with the chunks of all documents.

    Args:
        connection: to the database.
        split: a program of its own that returns (start, end) for each chunk of a text.
        embedder: every chunk has the fingerprint of its text by it; None if vectors may be missing.
    """
    import hashlib

    wrong: list[str] = []
    rows = rows_of(connection)
    texts = dict(tuple(row) for row in connection.execute(TEXTS))
    wrong += [f"chunks of {id_}, which is no document" for id_ in rows if id_ not in texts]
    for id_, body in texts.items():
        spans = split(body) if body and body.strip() else []
        have = rows.get(id_, [])
        if [row[1] for row in have] != list(range(len(spans))):
            wrong.append(f"{id_}: positions {[row[1] for row in have]}, for {len(spans)} chunks")
            continue
        for row, (start, end) in zip(have, spans, strict=True):
            if (row[2], row[3], row[4]) != (start, end, body[start:end]):
                wrong.append(f"{id_}: {tuple(row)}, not {(start, end)}")
            mark = hashlib.blake2b(row[4].encode(), digest_size=16).hexdigest()
            if embedder is not None and row[5] != f"{embedder.name}@{embedder.version}:{mark}":
                wrong.append(f"{id_}: {tuple(row)} has another fingerprint")
    return wrong


def vectors_of(session: Any, base: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Return the vectors of chunks by their text."""
    return {chunk.text: chunk.embedding for chunk in session.query(base.Chunk)}
