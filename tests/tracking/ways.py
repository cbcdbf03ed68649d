"""Every way to change a row, and who notices it: for the test of it, and for the table in docs/tracking.md."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ForeignKey, Table, delete, insert, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqla_vector import Vector
from sqla_vector.embedding import Fingerprint, embedding_column
from sqla_vector.tracking import outbox_table, outbox_triggers
from tests.tracking.models import DIM

__all__ = ["WAYS", "Way", "models", "rows", "table"]


def models(*, triggers: bool) -> Any:
    """Return a base with articles whose texts are made of rows of four other tables."""

    class Base(DeclarativeBase):
        outbox: Table

    class Reader(Base):
        __tablename__ = "reader"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Topic(Base):
        __tablename__ = "topic"
        code: Mapped[str] = mapped_column(primary_key=True)
        name: Mapped[str | None]

    class Author(Base):
        __tablename__ = "author"
        code: Mapped[str] = mapped_column(primary_key=True)
        name: Mapped[str | None]
        articles = relationship(lambda: Article, back_populates="author")

    class Comment(Base):
        __tablename__ = "comment"
        id: Mapped[int] = mapped_column(primary_key=True)
        word: Mapped[str]
        article_id: Mapped[int | None] = mapped_column(ForeignKey("article.id", ondelete="CASCADE"))
        reader_id: Mapped[int | None] = mapped_column(ForeignKey("reader.id", ondelete="CASCADE"))

    def said(article: Any) -> str:
        return " ".join([f"{article.id}:", *(comment.word for comment in article.comments)])

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]
        code: Mapped[str | None] = mapped_column(ForeignKey("author.code", ondelete="SET NULL", onupdate="CASCADE"))
        author: Mapped[Author | None] = relationship(back_populates="articles")
        # Not enforced, so that the other table can be emptied.
        topic_code: Mapped[str | None]
        topic: Mapped[Topic | None] = relationship(
            primaryjoin=lambda: Topic.code == Article.topic_code, foreign_keys=lambda: Article.topic_code
        )
        comments: Mapped[list[Comment]] = relationship(order_by=Comment.id, cascade="all, delete-orphan")
        embedding: Mapped[Any | None] = embedding_column(Vector(DIM), source="title", embedder="first")
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())
        whole: Mapped[Any | None] = embedding_column(
            Vector(DIM), source=("title", "code", "author.name", "topic.name"), embedder="second", when="worker"
        )
        whole_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())
        words: Mapped[Any | None] = embedding_column(
            Vector(DIM), source=said, depends_on=("id", "comments.word"), embedder="third", when="worker"
        )
        words_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

    Base.Reader, Base.Topic, Base.Author, Base.Comment, Base.Article = Reader, Topic, Author, Comment, Article  # type: ignore[attr-defined]
    Base.outbox = outbox_table(Base.metadata)
    if triggers:
        outbox_triggers(Base, Base.outbox)
    return Base


def rows(base: Any) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    """Yield what is there before anything is changed."""
    yield base.Reader, [{"id": 1}]
    yield base.Topic, [{"code": "t", "name": "Topic"}]
    yield base.Author, [{"code": "a", "name": "Ada"}, {"code": "b", "name": "Bob"}]
    yield base.Article, [{"id": n, "title": f"title {n}", "code": "a", "topic_code": "t"} for n in (1, 2)]
    yield base.Comment, [{"id": n, "word": f"w{n}", "article_id": 1, "reader_id": 1} for n in (1, 2)]


@dataclass(frozen=True)
class Way:
    """A way to change rows."""

    name: str
    """As the documentation has it."""
    change: Callable[[Session, Any], Any]
    """Changes rows, given a session and the models."""
    listener: bool
    """Whether sessions that are tracked notice it."""
    triggers: bool = True
    family: str | None = None
    """The only database that has it."""


def _get(session: Session, class_: Any, key: Any) -> Any:
    return session.get_one(class_, key)


def _remove_comment(session: Session, base: Any) -> None:
    article = _get(session, base.Article, 1)
    article.comments.remove(article.comments[0])


def _merge(session: Session, base: Any) -> None:
    session.merge(base.Article(id=1, title="merged"))


def _move_comment(session: Session, base: Any) -> None:
    article = _get(session, base.Article, 2)
    article.comments.append(_get(session, base.Comment, 1))


def _in_author(session: Session, base: Any) -> None:
    author = _get(session, base.Author, "b")
    author.articles.append(base.Article(id=3, title="of an author"))


def _upsert(session: Session, base: Any) -> None:
    make: Any = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    stmt = make(base.Article.__table__).values(id=1, title="upserted")
    session.execute(stmt.on_conflict_do_update(index_elements=["id"], set_={"title": stmt.excluded.title}))


def _copy(session: Session, base: Any) -> None:
    connection = session.connection().connection.driver_connection
    assert connection is not None
    with connection.cursor().copy("COPY article (id, title) FROM STDIN") as copy:
        copy.write_row((3, "copied"))


def _other_client(session: Session, base: Any) -> None:
    """Write through the driver alone, on a connection of its own."""
    url = session.get_bind().engine.url  # type: ignore[union-attr]
    statement = "UPDATE article SET title = 'by another program' WHERE id = 1"
    connection: Any
    if url.get_backend_name() == "postgresql":
        import psycopg

        connection = psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False))
    else:
        connection = sqlite3.connect(url.database or "")
    try:
        connection.execute(statement)
        connection.commit()
    finally:
        connection.close()


def _sql(statement: str) -> Callable[[Session, Any], Any]:
    return lambda s, b: s.connection().exec_driver_sql(statement)


WAYS: tuple[Way, ...] = (
    Way("`session.add()`", lambda s, b: s.add(b.Article(id=3, title="added", code="a")), True),
    Way("`session.add()`, the related row too", lambda s, b: s.add(b.Article(id=3, author=b.Author(code="c"))), True),
    Way("an attribute is set", lambda s, b: setattr(_get(s, b.Article, 1), "title", "edited"), True),
    Way(
        "an attribute is set to an SQL expression",
        lambda s, b: setattr(_get(s, b.Article, 1), "title", b.Article.title + "!"),
        True,
    ),
    Way("the primary key is set", lambda s, b: setattr(_get(s, b.Article, 2), "id", 7), True),
    Way("`session.merge()`", _merge, True),
    Way("`session.delete()` of a related row", lambda s, b: s.delete(_get(s, b.Author, "a")), True),
    Way("an attribute of a related row is set", lambda s, b: setattr(_get(s, b.Author, "a"), "name", "Lovelace"), True),
    Way(
        "a relationship is assigned",
        lambda s, b: setattr(_get(s, b.Article, 1), "author", _get(s, b.Author, "b")),
        True,
    ),
    Way("a foreign key is set", lambda s, b: setattr(_get(s, b.Article, 1), "code", "b"), True),
    Way("a row comes with a collection (`save-update` cascade)", _in_author, True),
    Way("a row leaves a collection (`delete-orphan` cascade)", _remove_comment, True),
    Way("a row is put into another collection", _move_comment, True),
    Way("`session.delete()` of a row of a collection", lambda s, b: s.delete(_get(s, b.Comment, 1)), True),
    Way(
        "the key of a related row is set (`ON UPDATE CASCADE`)",
        lambda s, b: setattr(_get(s, b.Author, "a"), "code", "z"),
        True,
    ),
    Way(
        "`session.execute(update(Article))`",
        lambda s, b: s.execute(update(b.Article).where(b.Article.id == 1).values(title="updated")),
        False,
    ),
    Way(
        "`session.execute(insert(Article), rows)`",
        lambda s, b: s.execute(insert(b.Article), [{"id": 3, "title": "inserted"}]),
        False,
    ),
    Way(
        "`session.execute(delete(Comment))`",
        lambda s, b: s.execute(delete(b.Comment).where(b.Comment.id == 1)),
        False,
    ),
    Way("`session.bulk_save_objects()`", lambda s, b: s.bulk_save_objects([b.Article(id=3, title="bulk")]), False),
    Way(
        "`session.bulk_insert_mappings()`",
        lambda s, b: s.bulk_insert_mappings(b.Article, [{"id": 3, "title": "bulk"}]),
        False,
    ),
    Way(
        "`session.bulk_update_mappings()`",
        lambda s, b: s.bulk_update_mappings(b.Article, [{"id": 1, "title": "bulk"}]),
        False,
    ),
    Way("Core `insert()`", lambda s, b: s.connection().execute(insert(b.Article.__table__).values(id=3)), False),
    Way(
        "Core `update()`",
        lambda s, b: s.connection().execute(update(b.Author.__table__).values(name="updated")),
        False,
    ),
    Way("Core `delete()`", lambda s, b: s.connection().execute(delete(b.Comment.__table__)), False),
    Way("raw SQL", _sql("UPDATE article SET title = 'raw' WHERE id = 1"), False),
    Way("`INSERT … ON CONFLICT DO UPDATE`", _upsert, False),
    Way(
        "`INSERT OR REPLACE`",
        _sql("INSERT OR REPLACE INTO article (id, title, code) VALUES (1, 'replaced', 'a')"),
        False,
        family="sqlite",
    ),
    Way("`ON DELETE SET NULL`", _sql("DELETE FROM author WHERE code = 'a'"), False),
    Way("`ON DELETE CASCADE`, of the rows of a collection", _sql("DELETE FROM reader"), False),
    Way(
        "the same after `session.delete()`, where no relationship leads there",
        lambda s, b: s.delete(_get(s, b.Reader, 1)),
        False,
    ),
    Way("`ON UPDATE CASCADE`", _sql("UPDATE author SET code = 'z' WHERE code = 'a'"), False),
    Way("`COPY`", _copy, False, family="postgresql"),
    Way("`TRUNCATE` of a related table", _sql("TRUNCATE topic"), False, family="postgresql"),
    Way("another program, without this package", _other_client, False),
)


def table() -> str:
    """Return the table of the documentation."""
    only = {"postgresql": " (PostgreSQL)", "sqlite": " (SQLite)", None: ""}
    noticed = {True: "noticed", False: "`check()` reports it"}
    lines = ["| how a row is changed | by a tracked session | with triggers |", "|---|---|---|"]
    lines += [f"| {way.name}{only[way.family]} | {noticed[way.listener]} | {noticed[way.triggers]} |" for way in WAYS]
    return "\n".join(lines) + "\n"
