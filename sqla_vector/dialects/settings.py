"""What is known about one dialect object: whether the plugin serves it, and where the extension is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from sqlalchemy.engine import Dialect

if TYPE_CHECKING:
    from sqla_vector.dialects.tuned import TunedIndex

__all__ = ["Settings", "settings_of"]


@dataclass
class Settings:
    """Filled by ``attach()`` and by the first connection; read when SQL is compiled and values are sent."""

    attached: bool = False
    """Whether the engine plugin serves this dialect."""
    schema: str | None = None
    """PostgreSQL: the extension's schema where names must be qualified, else None."""
    skip_missing_index: bool = False
    """SQLite: leave out a vector index that cannot be built here, instead of refusing it."""
    load_extension: bool = True
    """SQLite: use sqlite-vec where it can be loaded."""
    sqlite_vec: str | None = None
    """SQLite: the version of the loaded sqlite-vec, or None."""
    vec0_tables: set[tuple[str | None, str]] = field(default_factory=set)
    """SQLite: the vec0 tables that exist, as ``(schema, name)``; the schema of the main database is None."""
    list_tables: set[tuple[str | None, str]] = field(default_factory=set)
    """SQLite: those of them that hold their rows in lists (``method="ivfflat"``)."""
    has_fts5: bool = True
    """SQLite: whether its FTS5 is compiled in."""
    fts5_tables: set[tuple[str | None, str]] = field(default_factory=set)
    """SQLite: likewise the FTS5 tables."""
    tuned: dict[tuple[str | None, str], TunedIndex] = field(default_factory=dict)
    """What was found by tune() for indexes, as ``(schema, name)``; the schema is None where none need be named."""
    forget_compiled: Callable[[], None] = lambda: None
    """Empties the engine's cache of compiled statements, which depend on these settings."""


_SETTINGS: WeakKeyDictionary[Dialect, Settings] = WeakKeyDictionary()


def settings_of(dialect: Dialect) -> Settings:
    """Return the settings of a dialect object, default ones if nobody set any."""
    found = _SETTINGS.get(dialect)
    if found is None:
        found = _SETTINGS[dialect] = Settings()
    return found
