"""The tables beside a vec0 or FTS5 table: their names, and how ours are told from a user's of the same name."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Final

from sqlalchemy import Table
from sqlalchemy.engine import Dialect

from sqla_vector.dialects.migration import quoted
from sqla_vector.exc import IndexNotUsable

__all__ = [
    "CENTROIDS",
    "KEYS",
    "REPLACED",
    "TUNED",
    "DropSideTable",
    "check_names",
    "check_names_are_free",
    "drop_side_table",
    "index_of_side_table",
    "only_ours",
]

KEYS: Final = "_keys"
REPLACED: Final = "_replaced"
CENTROIDS: Final = "_centroids"
TUNED: Final = "_tuned"
"""What stands after an index's name in that of the table where tune() keeps what it found."""

_COLUMNS: Final = {
    KEYS: r"\(number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE\)",
    REPLACED: r"\(key(, number INTEGER(, text_\d+ TEXT)+)?\)",
    CENTROIDS: r"\(number INTEGER PRIMARY KEY CHECK \(number = 1\), generation TEXT NOT NULL, .*\)",
    TUNED: r"\(document TEXT NOT NULL\)",
}
_MADE: Final = {side: re.compile(rf"CREATE TABLE [^(]+ {columns}\Z", re.DOTALL) for side, columns in _COLUMNS.items()}

_Execute = Callable[..., Iterable[Any]]


class DropSideTable(str):
    """A statement that drops the side table of an index, if there is one: on a connection only if it is ours."""

    __slots__ = ()


def drop_side_table(name: str) -> DropSideTable:
    """Return the statement that drops a table of this name, which is quoted and has its schema."""
    return DropSideTable(f"DROP TABLE IF EXISTS {name}")


def index_of_side_table(name: str, sql: str | None) -> str | None:
    """Return the name of the index that a table stands beside, None if it was not made for one."""
    side = f"_{name.rpartition('_')[2]}"
    if side not in _MADE or sql is None or _MADE[side].match(sql) is None:
        return None
    return name.removesuffix(side)


def only_ours(dialect: Dialect, execute: _Execute, statements: Sequence[str]) -> list[str]:
    """Leave out what would drop a user's table; ``execute`` runs SQL on a raw connection and returns its rows.

    A statement without a schema is of ``main``: SQLite would look for the table in all databases.
    """
    if not any(isinstance(statement, DropSideTable) for statement in statements):
        return list(statements)
    ours = set()
    for (schema,) in list(execute("SELECT name FROM pragma_database_list")):
        for name, sql in execute(f"SELECT name, sql FROM {quoted(dialect, schema)}.sqlite_master WHERE type = 'table'"):
            if index_of_side_table(name, sql) is not None:
                ours.add(_plain(f"{schema}.{name}"))
                ours |= {_plain(name)} if schema == "main" else set()
    drop = len("DROP TABLE IF EXISTS ")
    return [s for s in statements if not isinstance(s, DropSideTable) or _plain(s[drop:]) in ours]


def check_names(table: Table, name: str) -> None:
    """Raise :class:`IndexNotUsable` if the models have a table of a name that an index keeps for its own."""
    reserved = _reserved(name)
    for other in table.metadata.tables.values():
        if other.schema == table.schema and other.name.lower() in reserved:
            raise _taken(name, other.name)


def check_names_are_free(
    dialect: Dialect, execute: _Execute, schema: str | None, name: str, sides: Collection[str] = tuple(_COLUMNS)
) -> None:
    """Raise :class:`IndexNotUsable` if the database has a table, not of ours, of a name that an index keeps."""
    reserved = sorted(_reserved(name, sides))
    rows = execute(
        f"SELECT name, sql FROM {quoted(dialect, schema or 'main')}.sqlite_master "
        f"WHERE type IN ('table', 'view') AND lower(name) IN ({', '.join('?' * len(reserved))})",
        *reserved,
    )
    for other, sql in list(rows):
        if index_of_side_table(other, sql) is None:
            raise _taken(name, other)


def _reserved(name: str, sides: Collection[str] = tuple(_COLUMNS)) -> set[str]:
    return {f"{name}{side}".lower() for side in sides}


def _taken(name: str, table: str) -> IndexNotUsable:
    return IndexNotUsable(
        f"{name}: on SQLite an index keeps tables of its own beside it, and {table} is the name of another one; give "
        "one of the two another name"
    )


def _plain(name: str) -> str:
    return name.replace('"', "").lower()
