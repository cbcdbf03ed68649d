"""Looking at what an engine sends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event

from tests.support.backends import AnyEngine


def sync_engine(engine: AnyEngine) -> Engine:
    """Return the Engine, also of an AsyncEngine; events are listened to there."""
    return engine if isinstance(engine, Engine) else engine.sync_engine


@contextmanager
def statements_of(engine: AnyEngine) -> Iterator[list[str]]:
    """Yield a list that is filled with the SQL of every statement executed in the block."""
    sent: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    event.listen(sync_engine(engine), "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(sync_engine(engine), "before_cursor_execute", note)
