"""An application with a vector index, as users write it, whose sessions are not tracked."""

import os
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from sqla_vector import Vector, vector_index
from sqla_vector.embedding import CallableEmbedder, Fingerprint, embedding_column
from sqla_vector.tracking import track


class Base(DeclarativeBase): ...


class Article(Base):
    __tablename__ = "article"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(default="article")
    title: Mapped[str | None]
    embedding: Mapped[Any | None] = embedding_column(Vector(16), source="title", embedder="none")
    embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "article"}
    __table_args__ = (vector_index("ix_article", "embedding", metric="l2", precision="binary"),)


class Letter(Article):
    __mapper_args__ = {"polymorphic_identity": "letter"}


class Photo(Base):
    __tablename__ = "photo"
    id: Mapped[int] = mapped_column(primary_key=True)
    pixels: Mapped[Any | None] = mapped_column(Vector(4))


url = os.environ["SHOP_URL"]
is_async = "asyncpg" in url or "aiosqlite" in url
engine: Any = (create_async_engine if is_async else create_engine)(url, plugins=["sqla_vector"])
Session: Any = (async_sessionmaker if is_async else sessionmaker)(engine)
Tracked: Any = (async_sessionmaker if is_async else sessionmaker)(engine)
Unbound: Any = sessionmaker()
Away: Any = sessionmaker(create_engine("postgresql+psycopg://me:hunter22@127.0.0.1:1/none"))
track(Tracked, embedders={"none": CallableEmbedder(len, "none", "1", 16)}, models=Base)  # type: ignore[arg-type]


def make() -> Any:
    """Return the sessions."""
    return Session
