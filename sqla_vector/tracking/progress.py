"""How far a run over many rows has come."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, func, select

from sqla_vector.tracking.steps import Call, Steps
from sqla_vector.tracking.targets import Key, Target
from sqla_vector.tracking.texts import keys_after

__all__ = ["Meter", "OnProgress", "Progress", "count_rows"]


@dataclass(frozen=True)
class Progress:
    """How far a run has come with the rows of one embedded column."""

    column: str
    """The column, such as ``Article.embedding``."""
    done: int
    """Rows that were looked at."""
    total: int
    """Rows that there were in the beginning."""
    seconds: float
    """How long it took."""
    before: int = 0
    """How many of the rows that are done an earlier run had done."""

    @property
    def rate(self) -> float:
        """Rows a second, on average."""
        return (self.done - self.before) / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the end at this rate; None before the first row."""
        return max(self.total - self.done, 0) / self.rate if self.rate > 0 else None


OnProgress = Callable[[Progress], Any]
"""Is called with each :class:`Progress`; it may be asynchronous in an asynchronous program."""


@dataclass
class Meter:
    """Counts rows and tells somebody about it."""

    column: str
    total: int
    on_progress: OnProgress | None
    before: int = 0
    """Rows that an earlier run had done."""
    done: int = field(init=False)
    _begun: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.done = self.before

    @property
    def seconds(self) -> float:
        """How long it took up to now."""
        return time.monotonic() - self._begun

    @property
    def _progress(self) -> Progress:
        return Progress(self.column, self.done, self.total, self.seconds, self.before)

    def advance(self, rows: int) -> Steps[None]:
        """Count rows."""
        self.done += rows
        if self.on_progress is not None:
            yield Call(self.on_progress, (self._progress,))


def count_rows(connection: Connection, target: Target, after: Key | None = None) -> int:
    """Return how many rows a target has, of those whose keys follow one, if that is given."""
    stmt = select(func.count()).select_from(target.mapper.class_)
    if after is not None:
        stmt = stmt.where(keys_after(target, after))
    return int(connection.scalar(stmt) or 0)
