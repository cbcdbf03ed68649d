"""What tune() found, in a table of one row beside the vec0 table: ``<index>_tuned``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import Index
from sqlalchemy.engine import Connection, Dialect

from sqla_vector.dialects.migration import quoted
from sqla_vector.dialects.settings import settings_of
from sqla_vector.dialects.sqlite.connection import RawConnection, begin, note_changed
from sqla_vector.dialects.sqlite.side_tables import TUNED, check_names_are_free, index_of_side_table
from sqla_vector.dialects.tuned import TunedIndex, note_tuned

__all__ = ["load", "read_tuned", "remember", "remembered"]

_Execute = Callable[..., Iterable[Any]]


def read_tuned(dialect: Dialect, execute: _Execute, vec0_tables: set[tuple[str | None, str]]) -> None:
    """Learn what is remembered of vec0 tables; ``execute`` runs SQL on a raw connection and returns its rows."""
    found = {}
    for schema in sorted({schema or "main" for schema, _ in vec0_tables}):
        tables = execute(
            f"SELECT name, sql FROM {quoted(dialect, schema)}.sqlite_master "
            "WHERE type = 'table' AND substr(name, -6) = ?",
            TUNED,
        )
        for table, sql in list(tables):
            place = (None if schema == "main" else schema, index_of_side_table(table, sql))
            if place in vec0_tables and (tuned := _read(dialect, execute, schema, table)) is not None:
                found[place] = tuned
    note_tuned(settings_of(dialect), found)


def _read(dialect: Dialect, execute: _Execute, schema: str | None, table: str) -> TunedIndex | None:
    rows = list(execute(f"SELECT document FROM {quoted(dialect, schema, table)}"))
    return TunedIndex.from_json(rows[0][0]) if rows else None


def load(connection: Connection) -> None:
    """Learn what is remembered in a database."""
    dialect = connection.dialect
    raw = RawConnection(connection.connection.dbapi_connection)
    read_tuned(dialect, raw.rows, settings_of(dialect).vec0_tables)


def remembered(connection: Connection, index: Index) -> TunedIndex | None:
    """Return what is remembered of an index."""
    raw = RawConnection(connection.connection.dbapi_connection)
    schema, table = _place(connection, index)
    master = f"{quoted(connection.dialect, schema)}.sqlite_master"
    rows = list(raw.rows(f"SELECT sql FROM {master} WHERE type = 'table' AND name = ?", table))
    if not rows or index_of_side_table(table, rows[0][0]) is None:
        return None
    return _read(connection.dialect, raw.rows, schema, table)


def remember(connection: Connection, index: Index, tuned: TunedIndex | None) -> None:
    """Write it beside an index, in the transaction, or remove it."""
    schema, table = _place(connection, index)
    name = quoted(connection.dialect, schema, table)
    raw = RawConnection(connection.connection.dbapi_connection)
    check_names_are_free(connection.dialect, raw.rows, schema, str(index.name), [TUNED])
    begin(connection)
    connection.exec_driver_sql(f"DROP TABLE IF EXISTS {name}")
    if tuned is not None:
        connection.exec_driver_sql(f"CREATE TABLE {name} (document TEXT NOT NULL)")
        connection.exec_driver_sql(f"INSERT INTO {name} (document) VALUES (?)", (tuned.to_json(),))
    # A rollback undoes it, and has it read again.
    note_changed(connection)


def _place(connection: Connection, index: Index) -> tuple[str, str]:
    assert index.table is not None
    return connection.schema_for_object(index.table) or "main", f"{index.name}{TUNED}"
