"""What happens to flushes and workers, as values: for callbacks, the log and OpenTelemetry.

Nothing here has a text, a vector or the key of a service in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

__all__ = [
    "BatchFinished",
    "Event",
    "FailureKind",
    "OnEvent",
    "Outage",
    "Outcome",
    "QueueSeen",
    "RowFailed",
    "TextsEmbedded",
    "WorkerStarted",
    "WorkerStopped",
]


@dataclass(frozen=True)
class Outcome:
    """What became of the rows of a batch, or of several."""

    entries: int = 0
    """Entries that were taken."""
    written: int = 0
    """Rows whose vectors were written."""
    current: int = 0
    """Rows that were current already, or are gone."""
    late: int = 0
    """Rows that are left for later because they were being changed."""
    retried: int = 0
    """Rows that failed and are tried again."""
    dead: int = 0
    """Rows that failed for the last time."""
    postponed: int = 0
    """Entries given back because the embedder cannot be reached."""

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


FailureKind = Literal["embedder", "text", "database", "entry", "document"]
"""Whose failure it was: the embedder refused the text, there is none that could be embedded, the database refused
the vector, the entry names no row, or the row is no document that Elasticsearch takes."""


@dataclass(frozen=True)
class WorkerStarted:
    """A worker began to run."""

    worker: str


@dataclass(frozen=True)
class WorkerStopped:
    """A worker ended, because it was told to or nothing was left."""

    worker: str
    outcome: Outcome
    """Of all its batches."""


@dataclass(frozen=True)
class BatchFinished:
    """A worker is done with a batch; what it wrote is committed."""

    worker: str
    outcome: Outcome
    claim_seconds: float
    """Taking the entries and reading their rows."""
    embed_seconds: float
    write_seconds: float


@dataclass(frozen=True)
class RowFailed:
    """A row was not embedded; its entry says why and when it is tried again."""

    worker: str
    entity: str
    """The table."""
    row_key: str
    """The primary key, a JSON array."""
    kind: FailureKind
    reason: str
    """What the entry has; for eyes that may see the table."""
    attempts: int
    """How often it failed by now."""
    is_dead: bool
    """Whether it is not tried again by itself."""


@dataclass(frozen=True)
class Outage:
    """An embedder, the database or an index cannot be reached; no row is to blame, and no attempt is counted."""

    of: Literal["embedder", "database", "index"]
    name: str
    """The embedder's, as models have it, or the index's; empty for the database."""
    reason: str
    pause: float | None
    """Seconds until it is tried again; None at a flush, whose rows are left to a worker."""


@dataclass(frozen=True)
class TextsEmbedded:
    """An embedder made vectors, in one call."""

    origin: Literal["flush", "worker", "backfill"]
    model: str
    """Name and version, as fingerprints have them."""
    texts: int
    seconds: float


@dataclass(frozen=True)
class QueueSeen:
    """What a worker saw in the outbox; it looks between batches, and no more than every 15 seconds."""

    pending: int
    dead: int
    age: float
    """Seconds since the oldest pending entry was written, 0 if there is none."""


Event = WorkerStarted | WorkerStopped | BatchFinished | RowFailed | Outage | TextsEmbedded | QueueSeen
OnEvent = Callable[[Event], Any]
"""Is called with each event; it may be asynchronous in an asynchronous program."""
