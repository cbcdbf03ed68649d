"""Embeddings that are never stale: changes are noticed, written down, and worked off."""

from sqla_vector.tracking.captures import outbox_triggers
from sqla_vector.tracking.check import Backlog, ColumnReport, Report, acheck, check, is_current
from sqla_vector.tracking.outbox import outbox_table
from sqla_vector.tracking.progress import Progress
from sqla_vector.tracking.session import Tracking, track, tracking_of, untrack
from sqla_vector.tracking.worker import Outcome, Worker

__all__ = [
    "Backlog",
    "ColumnReport",
    "Outcome",
    "Progress",
    "Report",
    "Tracking",
    "Worker",
    "acheck",
    "check",
    "is_current",
    "outbox_table",
    "outbox_triggers",
    "track",
    "tracking_of",
    "untrack",
]
