"""The FTS5 tables of a database that a text index made, and the declarations they were made from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from sqlalchemy.engine import Connection

from sqla_vector.dialects.sqlite.fts5 import LABEL, SOURCE, TRIGGERS
from sqla_vector.dialects.sqlite.reflection import master
from sqla_vector.dialects.sqlite.side_tables import KEYS, REPLACED, index_of_side_table
from sqla_vector.text_index import TextIndexSpec, weights_of_labels

__all__ = ["FTS5_TABLE", "ReflectedFts5", "find_fts5_tables", "fts5_names", "reflect_fts5"]

FTS5_TABLE: Final = "CREATE VIRTUAL TABLE%USING fts5(%"
"""What the SQL of an FTS5 table is LIKE."""

_SHADOWS: Final = ("", "_data", "_idx", "_docsize", "_config", SOURCE)
_COMMENT: Final = re.compile(rf"/\* {LABEL}: ([\w.$]+) ([A-D]+) \*/")
_COLUMN: Final = re.compile(r't\.("(?:[^"]|"")*"|\w+) AS "?text_\d+\b')


@dataclass(frozen=True)
class ReflectedFts5:
    """An FTS5 table that triggers keep equal to a table; the weights are those that its labels usually have."""

    name: str
    table_name: str
    spec: TextIndexSpec
    statements: dict[str, str]
    """The SQL of the FTS5 table, its side tables, view and triggers, by their names."""


def find_fts5_tables(connection: Connection, schema: str | None = None) -> dict[str, str]:
    """Return name and SQL of the FTS5 tables that text indexes made."""
    at = master(connection, schema)
    rows = connection.exec_driver_sql(
        f"SELECT fts5.name, fts5.sql FROM {at} AS fts5 JOIN {at} AS source ON source.name = fts5.name || '{SOURCE}' "
        f"WHERE fts5.type = 'table' AND fts5.sql LIKE '{FTS5_TABLE}' "
        f"AND source.type = 'view' AND source.sql LIKE '%/* {LABEL}: %'"
    )
    return {row.name: row.sql for row in rows}


def fts5_names(connection: Connection, schema: str | None = None) -> set[str]:
    """Return the names of the tables and views that are FTS5's, and of the views that it reads."""
    return {f"{name}{part}" for name in find_fts5_tables(connection, schema) for part in _SHADOWS}


def reflect_fts5(connection: Connection, schema: str | None = None) -> list[ReflectedFts5]:
    """Return the FTS5 tables that are kept by triggers, by two queries."""
    fts5 = find_fts5_tables(connection, schema)
    if not fts5:
        return []
    rows = connection.exec_driver_sql(
        f"SELECT type, name, tbl_name, sql FROM {master(connection, schema)} "
        "WHERE type IN ('trigger', 'view') OR (type = 'table' AND (name LIKE '%\\_keys' ESCAPE '\\' "
        "OR name LIKE '%\\_replaced' ESCAPE '\\'))"
    ).all()
    known = {row.name: row for row in rows if row.type != "table" or index_of_side_table(row.name, row.sql)}
    found = []
    for name, sql in fts5.items():
        insert, source = known.get(f"{name}_insert"), known[f"{name}{SOURCE}"]
        comment = _COMMENT.search(source.sql)
        if insert is None or comment is None:
            continue
        language, labels = comment.groups()
        columns = tuple(_unquoted(column) for column in _COLUMN.findall(source.sql))
        if len(columns) != len(labels):
            continue
        parts = (known.get(f"{name}{part}") for part in (REPLACED, KEYS, SOURCE, *(f"_{event}" for event in TRIGGERS)))
        found.append(
            ReflectedFts5(
                name,
                insert.tbl_name,
                TextIndexSpec(columns, weights_of_labels(labels), language),
                {name: sql} | {part.name: part.sql for part in parts if part is not None},
            )
        )
    return found


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
