"""How the statements that SQLite keeps differ from those that a declaration asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Final

from sqlalchemy.sql.compiler import IdentifierPreparer

__all__ = ["statements_differ", "without_schema"]

_QUOTES: Final = re.compile(r"[\"`\[\]]")
_SPACE: Final = re.compile(r"\s+")
_CREATED: Final = re.compile(r"CREATE (VIRTUAL TABLE|TABLE|TRIGGER|VIEW) ([\w$]+)", re.IGNORECASE)
_UPDATE_OF: Final = re.compile(r"(?<= UPDATE OF ).*?(?= ON )")
_NOTES: Final = re.compile(r"CREATE TRIGGER [\w$]+_replace(_update)? ")
_NOTE: Final = re.compile(r"INSERT INTO [\w$]+_replaced \(.*? WHERE ")


def statements_differ(found: Mapping[str, str], statements: Sequence[str]) -> str | None:
    """Return in what an index differs from its declaration, None if in nothing.

    Args:
        found: the SQL of its tables, view and triggers in the database, by name.
        statements: those that would make it, in no schema: see :func:`without_schema`.
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


def without_schema(preparer: IdentifierPreparer) -> IdentifierPreparer:
    """Return a preparer of names without their schema, as SQLite keeps statements."""
    found = copy(preparer)
    found.schema_for_object = lambda _: None  # type: ignore[assignment]
    return found


def _plain(sql: str) -> str:
    """Return SQL without what SQLite may write another way: quotes after a table is renamed, white space."""
    return _SPACE.sub(" ", _QUOTES.sub("", sql)).strip()


def _unordered(sql: str | None) -> object:
    """Return a trigger with what has no order in one order, and anything else as it is.

    The columns of UPDATE OF and of UNIQUE constraints stand in the order of their names, which a column that is renamed
    does not keep.  The order of anything else, such as of the values of an INSERT, is what it means.
    """
    if sql is None or not sql.startswith("CREATE TRIGGER"):
        return sql
    head, _, body = sql.partition(" BEGIN ")
    head = _UPDATE_OF.sub(lambda found: ", ".join(sorted(found.group().split(", "))), head, count=1)
    statements = [_unordered_note(statement) for statement in body.split("; ")]
    return head, sorted(statements) if _NOTES.match(head) else statements


def _unordered_note(statement: str) -> tuple[str, list[list[str]]]:
    """Return a statement with the criteria by which it notes what is replaced, if it does, in one order."""
    noted = _NOTE.match(statement)
    if noted is None:
        return statement, []
    criteria = statement[noted.end() :]
    same, _, more = criteria[1:].rpartition(")") if criteria.startswith("(") else (criteria, "", "")
    return noted.group() + more, sorted(sorted(columns.split(" AND ")) for columns in same.split(" OR "))


def _definitions(statements: Sequence[str]) -> dict[str, str]:
    """Return the statements that SQLite keeps, by the name of what they create and as it keeps them."""
    found = {}
    for statement in statements:
        created = _CREATED.match(_plain(statement))
        if created is not None:
            what, name = created.groups()
            found[name] = f"CREATE {what} {name}{_plain(statement)[created.end() :]}"
    return found
