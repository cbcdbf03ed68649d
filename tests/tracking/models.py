"""Models that most tests of tracking use, and an embedder that counts."""

import hashlib
import threading
from typing import Any

import numpy as np
from sqlalchemy import ForeignKey, String, Table, TypeDecorator, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from sqla_vector import Vector
from sqla_vector.embedding import Fingerprint, embedding_column
from sqla_vector.tracking import outbox_table

DIM = 4


class CountingEmbedder:
    """Makes a vector of a text's hash, and notes each call.

    Args:
        version: of the model.
        fail: is given the texts of each call, and may raise.
    """

    def __init__(self, version: str = "1", name: str = "counting", fail: Any = None, dim: int = DIM) -> None:
        self.name = name
        self.version = version
        self.dimensions = dim
        self.calls: list[list[str]] = []
        self.fail = fail
        self._lock = threading.Lock()

    def embed(self, texts: list[str]) -> Any:
        """Return the vectors of texts."""
        with self._lock:
            self.calls.append(list(texts))
        if self.fail is not None:
            self.fail(texts)
        return np.stack([self.vector(text) for text in texts])

    def vector(self, text: str) -> Any:
        """Return the vector of a text."""
        digest = hashlib.sha256(f"{self.version}:{text}".encode()).digest() * (1 + self.dimensions // 32)
        return np.frombuffer(digest[: self.dimensions], np.uint8).astype(np.float32) / 255

    @property
    def texts(self) -> list[str]:
        """Every text that was embedded, in order."""
        return [text for call in self.calls for text in call]


def article_models(when: str = "flush", *, related: bool = False, source: Any = None) -> Any:
    """Return a base with Author and Article, and an outbox in its metadata as ``Base.outbox``."""

    class Base(DeclarativeBase):
        outbox: Table

    class Author(Base):
        __tablename__ = "author"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None]
        articles: Mapped[list["Article"]] = relationship(back_populates="author", cascade="all, delete-orphan")

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]
        body: Mapped[str | None]
        views: Mapped[int] = mapped_column(default=0)
        author_id: Mapped[int | None] = mapped_column(ForeignKey("author.id", ondelete="CASCADE"))
        author: Mapped[Author | None] = relationship(back_populates="articles")
        embedding: Mapped[Any | None] = embedding_column(
            Vector(DIM),
            source=source or (("title", "body", "author.name") if related else ("title", "body")),
            depends_on=("title",) if source else (),
            embedder="counting",
            when=when,  # type: ignore[arg-type]
        )
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

    Base.Author, Base.Article = Author, Article  # type: ignore[attr-defined]
    Base.outbox = outbox_table(Base.metadata)
    return Base


def picky_models(error: type[Exception] = KeyError, *, with_body: bool = False) -> Any:
    """Return a base with an Article whose titles are of a type that raises at "weird", and an outbox.

    Args:
        error: what it raises.
        with_body: whether there is a vector of an ordinary column besides.
    """

    class Picky(TypeDecorator[str]):
        impl = String
        cache_ok = True

        def process_result_value(self, value: Any, dialect: Any) -> Any:
            if value == "weird":
                raise error(value)
            return value

    class Base(DeclarativeBase):
        outbox: Table

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None] = mapped_column(Picky())
        body: Mapped[str | None]
        embedding: Mapped[Any | None] = embedding_column(
            Vector(DIM), source="title", embedder="counting", when="worker"
        )
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())
        if with_body:
            of_body: Mapped[Any | None] = embedding_column(
                Vector(DIM), source="body", embedder="counting", when="worker"
            )
            of_body_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

    Base.Article = Article  # type: ignore[attr-defined]
    Base.outbox = outbox_table(Base.metadata)
    return Base


POISON = text("UPDATE article SET title = 'weird' WHERE id = 2")
"""Makes a row of these that cannot be read."""
