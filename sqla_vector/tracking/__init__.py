"""Embeddings that are never stale: changes are noticed, written down, and worked off."""

from sqla_vector.tracking.active import active_embedder
from sqla_vector.tracking.backfill import Backfill, BackfillReport, abackfill, backfill
from sqla_vector.tracking.captures import outbox_triggers
from sqla_vector.tracking.check import Backlog, ColumnReport, Report, acheck, check, is_current
from sqla_vector.tracking.events import (
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
from sqla_vector.tracking.limits import RateLimit, limits_table
from sqla_vector.tracking.near_text import anear_text, near_text
from sqla_vector.tracking.outbox import outbox_table
from sqla_vector.tracking.progress import Progress
from sqla_vector.tracking.readiness import UpgradeEstimate, UpgradeStatus
from sqla_vector.tracking.session import Tracking, track, tracking_of, untrack
from sqla_vector.tracking.upgrade import Upgrade
from sqla_vector.tracking.versions import Versions, upgrade_table
from sqla_vector.tracking.worker import Worker

__all__ = [
    "Backfill",
    "BackfillReport",
    "Backlog",
    "BatchFinished",
    "ColumnReport",
    "Event",
    "Outage",
    "Outcome",
    "Progress",
    "QueueSeen",
    "RateLimit",
    "Report",
    "RowFailed",
    "TextsEmbedded",
    "Tracking",
    "Upgrade",
    "UpgradeEstimate",
    "UpgradeStatus",
    "Versions",
    "Worker",
    "WorkerStarted",
    "WorkerStopped",
    "abackfill",
    "acheck",
    "active_embedder",
    "anear_text",
    "backfill",
    "check",
    "is_current",
    "limits_table",
    "near_text",
    "outbox_table",
    "outbox_triggers",
    "track",
    "tracking_of",
    "untrack",
    "upgrade_table",
]
