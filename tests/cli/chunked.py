"""An application with chunks of long texts; the tests copy it into an empty directory."""

import os
from typing import Any

from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from sqla_vector import Vector
from sqla_vector.chunking import by_sentences, chunked
from sqla_vector.embedding import CallableEmbedder
from sqla_vector.tracking import outbox_table, track


class Base(DeclarativeBase): ...


class Article(Base):
    __tablename__ = "article"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None]


def split(text: str) -> Any:
    """Refuse some texts."""
    if "poison" in text:
        raise ValueError(text)
    return by_sentences(1, 0)(text)


ArticleChunk = chunked(Article, "title", vector=Vector(2), embedder="letters", splitter=split)
outbox = outbox_table(Base.metadata)
url = os.environ["SHOP_URL"]
is_async = "asyncpg" in url or "aiosqlite" in url
options: dict[str, Any] = {"plugins": ["sqla_vector"]}
engine: Any = create_async_engine(url, **options) if is_async else create_engine(url, **options)
Session: Any = async_sessionmaker(engine) if is_async else sessionmaker(engine)
letters = CallableEmbedder(lambda texts: [[len(text), 1.0] for text in texts], "letters", "1", 2)
track(Session, embedders={"letters": letters}, outbox=outbox, models=Base)
