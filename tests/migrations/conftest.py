"""pytest-alembic's checks are functions with a marker of its plugin, which is not loaded here."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", "alembic: a check of pytest-alembic")
