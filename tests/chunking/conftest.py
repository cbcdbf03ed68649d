"""Tracked sessions on every backend."""

from tests.tracking.conftest import tracked

__all__ = ["tracked"]
