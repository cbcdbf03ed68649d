"""Embeddings that are never stale: changes are noticed, written down, and worked off."""

from sqla_vector.tracking.captures import outbox_triggers
from sqla_vector.tracking.outbox import outbox_table
from sqla_vector.tracking.session import Tracking, track, tracking_of, untrack
from sqla_vector.tracking.worker import Outcome, Worker

__all__ = ["Outcome", "Tracking", "Worker", "outbox_table", "outbox_triggers", "track", "tracking_of", "untrack"]
