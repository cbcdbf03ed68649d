"""A model with every kind of field, and its rows in a database and in an index."""

from __future__ import annotations

import datetime
import enum
import uuid
from collections.abc import Sequence
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import numpy as np
from elasticsearch import Elasticsearch
from sqlalchemy import BigInteger, Column, Enum, ForeignKey, Numeric, String, Table, Text, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqla_vector import Vector, text_index
from sqla_vector.elasticsearch import DenseVector, Field, Keyword, Nested, SearchIndex
from sqla_vector.tracking import outbox_table

DIM = 8


class Colour(enum.Enum):
    RED = "r"
    GREEN = "g"


def make_world(name: str) -> SimpleNamespace:
    """Map classes and declare an index of them.

    Args:
        name: of the index.
    """

    class Base(DeclarativeBase): ...

    outbox = outbox_table(Base.metadata)
    article_tag = Table(
        "article_tag",
        Base.metadata,
        Column("article_id", ForeignKey("article.id"), primary_key=True),
        Column("tag_id", ForeignKey("tag.id"), primary_key=True),
    )

    class Author(Base):
        __tablename__ = "author"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(String(50))

    class Tag(Base):
        __tablename__ = "tag"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(String(50))

    class Comment(Base):
        __tablename__ = "comment"
        id: Mapped[int] = mapped_column(primary_key=True)
        article_id: Mapped[int] = mapped_column(ForeignKey("article.id"))
        stars: Mapped[int | None]

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None] = mapped_column(String(200))
        body: Mapped[str | None] = mapped_column(Text)
        lang: Mapped[str | None] = mapped_column(String(20))
        number: Mapped[int | None] = mapped_column(BigInteger)
        price: Mapped[float | None]
        cost: Mapped[Decimal | None] = mapped_column(Numeric(10, 2))
        active: Mapped[bool | None]
        born: Mapped[datetime.date | None]
        at: Mapped[datetime.datetime | None]
        colour: Mapped[Colour | None] = mapped_column(Enum(Colour))
        token: Mapped[uuid.UUID | None]
        secret: Mapped[str | None]
        author_id: Mapped[int | None] = mapped_column(ForeignKey("author.id"))
        editor_id: Mapped[int | None] = mapped_column(ForeignKey("author.id"))
        author: Mapped[Author | None] = relationship(foreign_keys=author_id)
        editor: Mapped[Author | None] = relationship(foreign_keys=editor_id)
        tags: Mapped[list[Tag]] = relationship(secondary=article_tag)
        comments: Mapped[list[Comment]] = relationship()
        embedding: Mapped[Any | None] = mapped_column(Vector(DIM))
        other: Mapped[Any | None] = mapped_column(Vector(DIM))
        __table_args__ = (text_index("ix_article_words", "title", "body"),)

    index = SearchIndex(
        name,
        Article,
        fields={
            "id": "id",
            "title": "title",
            "body": "body",
            "lang": Keyword("lang"),
            "number": "number",
            "price": "price",
            "cost": "cost",
            "active": "active",
            "born": "born",
            "at": "at",
            "colour": "colour",
            "token": "token",
            "author": Keyword("author.name"),
            "editor": Keyword("editor.name"),
            "tags": Keyword("tags.name"),
            "comments": Nested("comments", {"stars": "stars"}),
            "unindexed": Field("lang", type="keyword", index=False, doc_values=False),
            "embedding": DenseVector("embedding", index="hnsw"),
            "embedding_flat": DenseVector("embedding", index="flat"),
            "embedding_l2": DenseVector("embedding", metric="l2", index="flat"),
            "embedding_int8": DenseVector("embedding", metric="l2", index="int8_hnsw"),
            "embedding_int4": DenseVector("embedding", metric="l2", index="int4_hnsw"),
            "embedding_ip": DenseVector("embedding", metric="inner_product", index="flat"),
            "other": DenseVector("other", metric="l2", index="hnsw"),
        },
        outbox=outbox,
        settings={"number_of_replicas": 0, "number_of_shards": 2},
    )
    return SimpleNamespace(Base=Base, Author=Author, Tag=Tag, Comment=Comment, Article=Article, index=index)


def put(session: Session, client: Elasticsearch, index: SearchIndex, keys: Sequence[Any] | None = None) -> None:
    """Write rows into the index, all of them by default, and have them found."""
    if keys is None:
        keys = [tuple(row) for row in session.execute(select(*index.target.key_attributes))]
    documents = index.documents(session.connection(), keys)
    operations: list[Any] = []
    for document in documents.values():
        operations += [{"index": {"_id": document.id}}, document.to_bytes()]
    answer = client.bulk(index=index.name, operations=operations, require_alias=True, refresh=True)
    assert not answer["errors"], [item for item in answer["items"] if "error" in item["index"]][:3]


def vectors(count: int, dim: int = DIM, seed: int = 1) -> Any:
    """Return vectors in clusters, as those of texts are."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(max(count // 50, 1), dim))
    return (centres[random.integers(len(centres), size=count)] + 0.4 * random.normal(size=(count, dim))).astype("f4")
