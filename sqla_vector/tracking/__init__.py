"""Embeddings that are never stale: changes are noticed, written down, and worked off."""

from sqla_vector.tracking.outbox import outbox_table

__all__ = ["outbox_table"]
