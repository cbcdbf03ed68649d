"""How the statements that SQLite keeps differ from those that a declaration asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

__all__ = ["statements_differ"]

_QUOTES: Final = re.compile(r"[\"`\[\]]")
_SPACE: Final = re.compile(r"\s+")
_WORD: Final = re.compile(r"[^\s,]+")
_CREATED: Final = re.compile(r"CREATE (VIRTUAL TABLE|TABLE|TRIGGER|VIEW) (?:\w+\.)?(\w+)", re.IGNORECASE)


def statements_differ(found: Mapping[str, str], statements: Sequence[str]) -> str | None:
    """Return in what an index differs from its declaration, None if in nothing.

    Args:
        found: the SQL of its tables, view and triggers in the database, by name.
        statements: those that would make it.
    """
    kept = (sql for sql in statements if sql.startswith("CREATE ") and not sql.startswith("CREATE INDEX"))
    if sorted(found.values()) == sorted(kept):
        return None  # the usual case, word for word
    declared = _definitions(statements)
    is_there = {name: _plain(sql) for name, sql in found.items()}
    for name in sorted(declared.keys() | is_there.keys()):
        old, new = is_there.get(name), declared.get(name)
        if old != new and _unordered(old) != _unordered(new):
            return f"{name}, which is {is_there.get(name, 'missing')}"
    return None


def _plain(sql: str) -> str:
    """Return SQL without what SQLite may write another way: quotes after a table is renamed, white space."""
    return _SPACE.sub(" ", _QUOTES.sub("", sql)).strip()


def _unordered(sql: str | None) -> object:
    """Return the words of each statement of a trigger, in no order; the rest as it is.

    Columns and statements stand in the order of the columns' names, which a column that is renamed does not keep.
    """
    if sql is None or not sql.startswith("CREATE TRIGGER"):
        return sql
    return sorted(sorted(_WORD.findall(statement)) for statement in re.split(" BEGIN |; ", sql))


def _definitions(statements: Sequence[str]) -> dict[str, str]:
    """Return the statements that SQLite keeps, by the name of what they create and as it keeps them."""
    found = {}
    for statement in statements:
        created = _CREATED.match(_plain(statement))
        if created is not None:
            what, name = created.groups()
            found[name] = f"CREATE {what} {name}{_plain(statement)[created.end() :]}"
    return found
