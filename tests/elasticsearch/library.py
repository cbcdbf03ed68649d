"""A model with every kind of field."""

from __future__ import annotations

import datetime
import decimal
import enum
import uuid
from typing import Any

from sqlalchemy import JSON, Column, Enum, ForeignKey, LargeBinary, Numeric, String, Table, Text, Time
from sqlalchemy.orm import DeclarativeBase, DynamicMapped, Mapped, mapped_column, relationship

from sqla_vector import BitVector, HalfVector, SparseVector, Vector
from sqla_vector.tracking import outbox_table


class State(enum.Enum):
    DRAFT = "d"
    PUBLISHED = "p"


def values_of(class_: type[enum.Enum]) -> list[str]:
    """Return what an Enum stores in place of the names of its members."""
    return [member.value for member in class_]


def library() -> Any:
    """Return a base with Author, Tag, Comment, Article and Page, and an outbox in its metadata as ``Base.outbox``."""

    class Base(DeclarativeBase):
        outbox: Table

    article_tag = Table(
        "article_tag",
        Base.metadata,
        Column("article_id", ForeignKey("article.id"), primary_key=True),
        Column("tag_id", ForeignKey("tag.id"), primary_key=True),
    )

    class Country(Base):
        __tablename__ = "country"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    class Author(Base):
        __tablename__ = "author"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        country_id: Mapped[int | None] = mapped_column(ForeignKey("country.id"))
        country: Mapped[Country | None] = relationship()
        portrait: Mapped[Any | None] = mapped_column(Vector(3))

    class Tag(Base):
        __tablename__ = "tag"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None]
        embedding: Mapped[Any | None] = mapped_column(Vector(3))

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]
        body: Mapped[str | None] = mapped_column(Text)
        lang: Mapped[str | None] = mapped_column(String(2))
        views: Mapped[int | None]
        score: Mapped[float | None]
        price: Mapped[decimal.Decimal | None] = mapped_column(Numeric(12, 4))
        is_free: Mapped[bool | None]
        published: Mapped[datetime.datetime | None]
        day: Mapped[datetime.date | None]
        at: Mapped[datetime.time | None] = mapped_column(Time)
        state: Mapped[State | None] = mapped_column(Enum(State))
        letter: Mapped[State | None] = mapped_column(
            Enum(State, name="letter", values_callable=lambda e: [m.value for m in e])
        )
        token: Mapped[uuid.UUID | None]
        extra: Mapped[Any | None] = mapped_column(JSON)
        raw: Mapped[bytes | None] = mapped_column(LargeBinary)
        embedding: Mapped[Any | None] = mapped_column(Vector(3))
        half: Mapped[Any | None] = mapped_column(HalfVector(3))
        bits: Mapped[Any | None] = mapped_column(BitVector(16))
        sparse: Mapped[Any | None] = mapped_column(SparseVector(3))
        free: Mapped[Any | None] = mapped_column(Vector())
        author_id: Mapped[int | None] = mapped_column(ForeignKey("author.id"))
        author: Mapped[Author | None] = relationship()
        tags: Mapped[list[Tag]] = relationship(secondary=article_tag)
        comments: Mapped[list[Comment]] = relationship(lazy="joined")
        written: DynamicMapped[Comment] = relationship(viewonly=True)

    class Comment(Base):
        __tablename__ = "comment"
        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str | None] = mapped_column(Text)
        stars: Mapped[int | None]
        embedding: Mapped[Any | None] = mapped_column(Vector(3))
        article_id: Mapped[int] = mapped_column(ForeignKey("article.id"))
        author_id: Mapped[int | None] = mapped_column(ForeignKey("author.id"))
        author: Mapped[Author | None] = relationship()

    class Page(Base):
        __tablename__ = "page"
        book: Mapped[str] = mapped_column(primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str | None]

    class Word(Base):
        __tablename__ = "word"
        spelling: Mapped[str] = mapped_column(primary_key=True)
        meaning: Mapped[str | None]

    found: Any = Base
    for class_ in (Country, Author, Tag, Article, Comment, Page, Word):
        setattr(found, class_.__name__, class_)
    Base.outbox = outbox_table(Base.metadata)
    return found
