"""What this Python can do with SQLite, and a fresh database file for each test."""

from __future__ import annotations

import importlib.util
import sqlite3
from pathlib import Path

from sqlalchemy import URL


def stdlib_loads_extensions() -> bool:
    """Whether this interpreter's own ``sqlite3`` was built with extension loading."""
    return hasattr(sqlite3.Connection, "enable_load_extension")


def why_vec_unavailable() -> str | None:
    """Return the sentence that says how to get sqlite-vec loaded, or None when it can be."""
    if importlib.util.find_spec("sqlite_vec") is None:
        return "no sqlite-vec: pip install sqlite-vec"
    if not stdlib_loads_extensions() and importlib.util.find_spec("pysqlite3") is None:
        return (
            "this Python's sqlite3 cannot load extensions: pip install pysqlite3-binary, or use a Python "
            "built with --enable-loadable-sqlite-extensions"
        )
    return None


def database_url(directory: Path) -> URL:
    """Return the URL of a database file that does not exist yet, with the driver left open."""
    return URL.create("sqlite", database=str(directory / "test.db"))
