"""The points of a piece of work at which something may go wrong, found by listening, one after the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import URL, event
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support.backends import AnyEngine
from tests.tracking.models import CountingEmbedder

_NAME = re.compile(r"\b(vector_outbox|article|author)\b")


class Boom(Exception):
    """What goes wrong."""


def boom() -> None:
    """Go wrong."""
    raise Boom


class Points:
    """Names each point that is reached, and does something at one of them, once.

    Points are before and after each statement, each commit, and the embedder's work.

    Args:
        engine: whose statements are meant.
    """

    def __init__(self, engine: AnyEngine) -> None:
        self.names: list[str] = []
        self.has_fired = False
        self._engine = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
        self._at = 0
        self._act: Callable[[], None] = boom
        self._is_on = False
        event.listen(self._engine, "before_cursor_execute", self._before)
        event.listen(self._engine, "after_cursor_execute", self._after)
        dialect: Any = self._engine.dialect
        do_commit = dialect.do_commit

        def commit(connection: Any) -> None:
            self.reach("before commit")
            do_commit(connection)
            self.reach("after commit")

        # The engine tells of a commit before it, and of none that is done.
        dialect.do_commit = commit

    def reach(self, name: str) -> None:
        """Come to a point."""
        if not self._is_on:
            return
        self.names.append(name)
        if len(self.names) == self._at:
            self.has_fired = True
            self._act()

    @contextmanager
    def watched(self, at: int = 0, act: Callable[[], None] = boom) -> Iterator[Points]:
        """Name the points that are reached from now on, and act at one of them; the first is 1."""
        self.names, self.has_fired, self._at, self._act, self._is_on = [], False, at, act, True
        try:
            yield self
        finally:
            self._is_on = False

    def _before(self, connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        self.reach(f"before {_short(statement)}")

    def _after(self, connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        self.reach(f"after {_short(statement)}")


def _short(statement: str) -> str:
    verb = statement.split(None, 1)[0]
    tables = list(dict.fromkeys(_NAME.findall(statement.replace("article.author_id", ""))))
    return " ".join([verb, *tables[:1], *(["FOR UPDATE"] if " FOR NO KEY UPDATE" in statement else [])])


class PointedEmbedder(CountingEmbedder):
    """An embedder whose calls are points."""

    points: Points | None = None

    def embed(self, texts: list[str]) -> Any:
        if self.points is not None:
            self.points.reach("before embed")
        vectors = super().embed(texts)
        if self.points is not None:
            self.points.reach("after embed")
        return vectors


def cut_all(url: URL) -> Callable[[], None]:
    """Return what ends all connections of a PostgreSQL database, and waits until they are gone."""
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)

    def cut() -> None:
        with psycopg.connect(plain, autocommit=True) as administrator:
            administrator.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
            ).fetchall()

    return cut
