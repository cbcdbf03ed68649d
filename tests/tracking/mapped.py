"""What tests of mappings declare their models with, and how they see that vectors followed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from sqlalchemy import Table, select
from sqlalchemy.orm import DeclarativeBase, Session, mapped_column

from sqla_vector import Vector
from sqla_vector.embedding import Fingerprint, embedding_column
from sqla_vector.tracking import outbox_table
from tests.tracking.conftest import Tracked
from tests.tracking.models import DIM
from tests.tracking.stale import joined, stale_rows

Make = Callable[..., Tracked]

SYNC = pytest.mark.backends("psycopg", "sqlite_stdlib", "pysqlite3")
SYNC_AND_ASYNC = pytest.mark.backends("psycopg", "asyncpg", "sqlite_stdlib", "pysqlite3", "aiosqlite")
WHEN = pytest.mark.parametrize("when", ["flush", "worker"])


def base(*more: type) -> Any:
    """Return a declarative base with an outbox in its metadata."""

    class Base(*more, DeclarativeBase):  # type: ignore[misc]
        outbox: ClassVar[Table]

    Base.outbox = outbox_table(Base.metadata)
    return Base


def vector(source: Any, when: Any = "flush", **options: Any) -> Any:
    """Declare an embedded column."""
    return embedding_column(Vector(DIM), source=source, embedder="counting", when=when, **options)


def mark() -> Any:
    """Declare its fingerprint."""
    return mapped_column(Fingerprint())


def title(row: Any) -> str | None:
    """Return the text of a row with a title."""
    return joined(row.title)


def settle(t: Tracked, class_: Any, text_of: Callable[[Any], str | None], key: str = "embedding") -> int:
    """Let a worker finish, see that all is current, and return the number of rows."""
    t.work()
    assert t.entries() == []

    def look(session: Session) -> int:
        found = [text_of(row) for row in stale_rows(session, class_, text_of, t.embedder, key)]
        assert found == []
        return len(session.scalars(select(class_)).unique().all())

    return int(t.untracked(look))


def edit(t: Tracked, class_: Any, key: Any, **values: Any) -> None:
    """Set attributes of a row."""

    def do(session: Session) -> None:
        row = session.get_one(class_, key)
        for name, value in values.items():
            setattr(row, name, value)

    t.run(do)
