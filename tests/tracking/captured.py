"""Models whose texts come from all kinds of tables, and what their triggers wrote."""

from typing import Any

import numpy as np
from sqlalchemy import Column, Connection, ForeignKey, MetaData, String, Table, delete, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from sqla_vector import Vector, vector_index
from sqla_vector.embedding import Fingerprint, embedding_column
from sqla_vector.tracking import outbox_table, outbox_triggers
from tests.support.backends import AnyEngine, Backend


def library(*, cascade: str | None = None, schema: str | None = None, names: dict[str, str] | None = None) -> Any:
    """Return a base with articles, whose text is made of authors, publishers, tags and labels too.

    Args:
        cascade: what becomes of the articles of an author who is deleted: ``ON DELETE``.
        schema: of all tables.
        names: other names of tables.
    """
    named = (names or {}).get

    class Base(DeclarativeBase):
        metadata = MetaData(schema=schema)
        outbox: Any

    def reference(table: str, **kw: Any) -> Any:
        full = ".".join(filter(None, (schema, named(table, table))))
        return ForeignKey(f"{full}.id", onupdate="CASCADE", **kw)

    class Publisher(Base):
        __tablename__ = named("publisher", "publisher")
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None]

    class Author(Base):
        __tablename__ = named("author", "author")
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None]
        email: Mapped[str | None] = mapped_column(unique=True)
        born: Mapped[int | None]
        publisher_id: Mapped[int | None] = mapped_column(reference("publisher"), index=True)
        publisher: Mapped[Publisher | None] = relationship()

    labelled = Table(
        "labelled",
        Base.metadata,
        Column("article_id", reference("article", ondelete="CASCADE"), primary_key=True),
        Column("label_id", reference("label", ondelete="CASCADE"), primary_key=True),
    )

    class Label(Base):
        __tablename__ = "label"
        id: Mapped[int] = mapped_column(primary_key=True)
        word: Mapped[str | None]

    class Tag(Base):
        __tablename__ = named("tag", "tag")
        id: Mapped[int] = mapped_column(primary_key=True)
        word: Mapped[str | None] = mapped_column(unique=True)
        color: Mapped[str | None]
        article_id: Mapped[int | None] = mapped_column(reference("article", ondelete="CASCADE"), index=True)

    def said(article: Any) -> str:
        return " ".join(thing.word for thing in (*article.tags, *article.labels))

    class Article(Base):
        __tablename__ = named("article", "article")
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None] = mapped_column("headline")
        slug: Mapped[str | None] = mapped_column(unique=True)
        views: Mapped[int] = mapped_column(server_default="0")
        author_id: Mapped[int | None] = mapped_column(reference("author", ondelete=cascade), index=True)
        author: Mapped[Author | None] = relationship()
        tags: Mapped[list[Tag]] = relationship()
        labels: Mapped[list[Label]] = relationship(secondary=labelled)
        embedding: Mapped[np.ndarray | None] = embedding_column(
            Vector(2), source=("title", "author.name", "author.publisher.name"), embedder="e"
        )
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())
        words: Mapped[np.ndarray | None] = embedding_column(
            Vector(2), source=said, depends_on=("tags.word", "labels.word"), embedder="e"
        )
        words_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

    Base.outbox = outbox_table(Base.metadata)
    Base.captures = outbox_triggers(Base, Base.outbox)  # type: ignore[attr-defined]
    return Base


def notes(*, indexed: bool = False, key: Any = None) -> Any:
    """Return a base with one table, ``note``, whose text is its own."""

    class Base(DeclarativeBase):
        outbox: Any

    class Note(Base):
        __tablename__ = "note"
        id: Mapped[Any] = mapped_column(*([key] if key is not None else [String(40)]), primary_key=True)
        body: Mapped[str | None]
        embedding: Mapped[np.ndarray | None] = embedding_column(Vector(2), source="body", embedder="e")
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())
        if indexed:
            __table_args__ = (vector_index("ix_note", "embedding", metric="l2"),)

    Base.outbox = outbox_table(Base.metadata)
    Base.captures = outbox_triggers(Base, Base.outbox)  # type: ignore[attr-defined]
    return Base


def numbers() -> Any:
    """Return a base whose table has a key of two columns."""

    class Base(DeclarativeBase):
        outbox: Any

    class Num(Base):
        __tablename__ = "num"
        a: Mapped[int | None] = mapped_column(primary_key=True, nullable=True)
        b: Mapped[str] = mapped_column(primary_key=True)
        embedding: Mapped[np.ndarray | None] = embedding_column(Vector(2), source="b", embedder="e")
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

    Base.outbox = outbox_table(Base.metadata, "numbers_outbox")
    outbox_triggers(Base, Base.outbox)
    return Base


def entries(connection: Connection, outbox: Table) -> list[tuple[str, str, str]]:
    """Take the entries out of an outbox."""
    c = outbox.c
    found = connection.execute(select(c.entity, c.row_key, c.operation).order_by(c.id)).all()
    connection.execute(delete(outbox))
    return [tuple(row) for row in found]  # type: ignore[misc]


class Captured:
    """A database with the tables of a base and their triggers."""

    def __init__(self, backend: Backend, engine: AnyEngine, base: Any) -> None:
        self.backend, self.engine, self.base = backend, engine, base
        self.tables = base.metadata.tables
        backend.create_all(engine, base.metadata)

    def run(self, function: Any) -> Any:
        """Call a function with a connection in a transaction."""
        return self.backend.run_connection(self.engine, function)

    def sql(self, *statements: Any) -> set[tuple[str, str, str]]:
        """Run statements in a transaction and return the entries that they wrote."""
        return set(self.written(*statements))

    def written(self, *statements: Any) -> list[tuple[str, str, str]]:
        """Run statements in a transaction and return the entries that they wrote, each as often as it was."""

        def run(connection: Connection) -> Any:
            entries(connection, self.base.outbox)
            for statement in statements:
                if isinstance(statement, str):
                    connection.exec_driver_sql(statement)
                else:
                    connection.execute(*(statement if isinstance(statement, tuple) else (statement,)))
            return entries(connection, self.base.outbox)

        return self.run(run)  # type: ignore[no-any-return]
