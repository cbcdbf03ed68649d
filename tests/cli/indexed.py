"""An application of which Elasticsearch has an index; the tests copy it into an empty directory."""

import os
import sys
import time
from typing import Any

import numpy as np
from elasticsearch import AsyncElasticsearch, Elasticsearch
from sqlalchemy import create_engine, event
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from sqla_vector import Vector
from sqla_vector.elasticsearch import DenseVector, Keyword, SearchIndex
from sqla_vector.embedding import CallableEmbedder, Fingerprint, embedding_column
from sqla_vector.tracking import outbox_table, outbox_triggers, track


class Base(DeclarativeBase): ...


class Article(Base):
    __tablename__ = "article"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None]
    embedding: Mapped[Any | None] = embedding_column(Vector(4), source="title", embedder="letters", when="worker")
    embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())


class Page(Base):
    __tablename__ = "page"
    book: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)


outbox = outbox_table(Base.metadata)
name = os.environ["INDEX_NAME"]
articles = SearchIndex(
    name,
    Article,
    fields={"title": "title", "embedding": DenseVector("embedding", index="flat")},
    outbox=outbox,
    settings={"index.number_of_replicas": int(os.environ.get("INDEX_REPLICAS", "0"))},
)
pages = SearchIndex(
    f"{name}-pages", Page, fields={"book": Keyword("book")}, outbox=outbox, settings={"index.number_of_replicas": 0}
)
outbox_triggers(Base, outbox)


def embed(texts: list[str]) -> Any:
    """Count letters."""
    return np.array([[len(text), text.count("a"), text.count("e"), 1.0] for text in texts], dtype=np.float32)


url = os.environ["SHOP_URL"]
is_async = "asyncpg" in url or "aiosqlite" in url
options: dict[str, Any] = {"plugins": ["sqla_vector"]}
engine: Any = create_async_engine(url, **options) if is_async else create_engine(url, **options)
Session: Any = async_sessionmaker(engine) if is_async else sessionmaker(engine)
letters = CallableEmbedder(embed, "letters", "1", 4)
track(Session, embedders={"letters": letters}, outbox=outbox, models=Base)


if "INDEX_SLOW" in os.environ:

    @event.listens_for(engine, "before_cursor_execute")
    def wait(connection: Any, cursor: Any, statement: str, *others: Any) -> None:
        """Say that documents are read, and wait for the file ``go``."""
        if statement.startswith("SELECT") and "article.title" in statement and not os.path.exists("go"):  # noqa: PTH110
            sys.stderr.write("reading begins\n")
            sys.stderr.flush()
            while not os.path.exists("go"):  # noqa: PTH110 - as a user might
                time.sleep(0.01)


def make_client() -> Any:
    """Return the client as the sessions need it."""
    class_: Any = AsyncElasticsearch if is_async else Elasticsearch
    return class_(os.environ["NODE_URL"], request_timeout=60, basic_auth=("me", "hunter2222"))


def make_other_client() -> Any:
    """Return a client that does not go with the sessions."""
    class_: Any = Elasticsearch if is_async else AsyncElasticsearch
    return class_(os.environ["NODE_URL"])


def fail() -> Any:
    """Have no client."""
    raise RuntimeError("no client, the password is password=hunter2222")


async def make_later() -> Any:
    """Return a client to whoever awaits."""
    return make_client()
