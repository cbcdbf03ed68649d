"""An application as users write it; the tests copy it into an empty directory and name it on the command line."""

import os
import sys
import threading
import time
from typing import Any

import numpy as np
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from sqla_vector import Vector
from sqla_vector.embedding import CallableEmbedder, Fingerprint, Model, embedding_column
from sqla_vector.tracking import Versions, outbox_table, outbox_triggers, track, upgrade_table

print("this application talks as it is imported")


class Base(DeclarativeBase): ...


class Article(Base):
    __tablename__ = "article"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None]
    embedding: Mapped[Any | None] = embedding_column(Vector(4), source="title", embedder="letters", when="worker")
    embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())


outbox = outbox_table(Base.metadata)
upgrades = upgrade_table(Base.metadata)
outbox_triggers(Base, outbox)


def embed(texts: list[str]) -> Any:
    """Count letters; refuse poison, and wait for the file ``go`` where a text says so."""
    if any("poison" in text for text in texts):
        raise ValueError("cannot embed this; my server is https://me:hunter22@models.example/")
    if any("slow" in text for text in texts):
        wait()
    return np.array([[len(text), text.count("a"), text.count("e"), 1.0] for text in texts], dtype=np.float32)


def wait() -> None:
    """Say so, and wait for the file ``go``."""
    sys.stderr.write("embedding begins\n")
    sys.stderr.flush()
    while not os.path.exists("go"):  # noqa: PTH110 - as a user might
        time.sleep(0.01)


def embed_anew(texts: list[str]) -> Any:
    """Be the next model, which refuses and waits for other texts."""
    if any("sour" in text for text in texts):
        raise ValueError("cannot embed this; my server is https://me:hunter22@models.example/")
    if any("late" in text for text in texts):
        wait()
    return 2 * embed(texts)


def hang(texts: list[str]) -> Any:
    """Never answer."""
    threading.Event().wait()


url = os.environ["SHOP_URL"]
is_async = "asyncpg" in url or "aiosqlite" in url
plugins = os.environ.get("SHOP_PLUGINS", "sqla_vector").split()
options: dict[str, Any] = {"plugins": plugins} if plugins else {}
engine: Any = create_async_engine(url, **options) if is_async else create_engine(url, **options)
Session: Any = async_sessionmaker(engine) if is_async else sessionmaker(engine)
untracked: Any = sessionmaker()
function = hang if os.environ.get("SHOP_HANGS") else embed
letters: Any = CallableEmbedder(function, "letters", os.environ.get("SHOP_VERSION", "1"), 4)
if "SHOP_NEXT" in os.environ:
    following = [CallableEmbedder(embed_anew, "letters", one, 4) for one in os.environ["SHOP_NEXT"].split()]
    letters = Versions(letters, *following, upgrades=upgrades)
if "SHOP_NAMED" in os.environ:
    letters = Versions(letters, Model("letters", os.environ["SHOP_NAMED"]), upgrades=upgrades)
tracking = track(Session, embedders={"letters": letters}, outbox=outbox, models=Base)


def make() -> Any:
    """Return the sessions."""
    return Session


async def make_later() -> Any:
    """Return the sessions to whoever awaits."""
    return Session


def need(argument: str) -> Any:
    """Be no function that can be named."""
    return argument
