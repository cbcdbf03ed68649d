"""Embeddings that are never stale: changes are noticed, written down, and worked off."""

from sqla_vector.tracking.captures import outbox_triggers
from sqla_vector.tracking.check import Backlog, ColumnReport, Report, acheck, check, is_current
from sqla_vector.tracking.observe import (
    BatchFinished,
    Event,
    Outage,
    Outcome,
    QueueSeen,
    RowFailed,
    TextsEmbedded,
    WorkerStarted,
    WorkerStopped,
)
from sqla_vector.tracking.outbox import outbox_table
from sqla_vector.tracking.progress import Progress
from sqla_vector.tracking.session import Tracking, track, tracking_of, untrack
from sqla_vector.tracking.worker import Worker

__all__ = [
    "Backlog",
    "BatchFinished",
    "ColumnReport",
    "Event",
    "Outage",
    "Outcome",
    "Progress",
    "QueueSeen",
    "Report",
    "RowFailed",
    "TextsEmbedded",
    "Tracking",
    "Worker",
    "WorkerStarted",
    "WorkerStopped",
    "acheck",
    "check",
    "is_current",
    "outbox_table",
    "outbox_triggers",
    "track",
    "tracking_of",
    "untrack",
]
