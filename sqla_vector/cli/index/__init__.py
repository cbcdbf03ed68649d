"""``sqla-vector index``: vector indexes, how well they find, and what to set."""

from sqla_vector.cli.index.group import register

__all__ = ["register"]
