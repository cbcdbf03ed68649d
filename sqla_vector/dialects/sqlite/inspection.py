"""What inspection shows of vec0 and FTS5 tables: indexes, and none of the tables that they are made of."""

from __future__ import annotations

import re
from typing import Any, Final

from sqlalchemy.engine import Connection

from sqla_vector.dialects.sqlite.fts5_reflection import find_fts5_tables, fts5_names, reflect_fts5
from sqla_vector.dialects.sqlite.reflection import find_vec0_tables, master, reflect_vec0
from sqla_vector.dialects.sqlite.side_tables import index_of_side_table
from sqla_vector.schema import REFLECTED_SPEC
from sqla_vector.text_index import REFLECTED_TEXT

__all__ = ["get_indexes", "get_table_names", "get_view_names", "has_index"]

_SHADOWS: Final = re.compile(r"_(info|chunks|rowids|auxiliary|vector_chunks\d+|metadatachunks\d+|metadatatext\d+)\Z")


def get_table_names(dialect: Any, connection: Connection, schema: str | None = None, **kw: Any) -> list[str]:
    """Leave out vec0 and FTS5 tables and their shadow tables."""
    names: list[str] = type(dialect).get_table_names(dialect, connection, schema, **kw)
    vec0, fts5 = find_vec0_tables(connection, schema), fts5_names(connection, schema)
    if not vec0 and not fts5:
        return names
    rows = connection.exec_driver_sql(f"SELECT name, sql FROM {master(connection, schema)} WHERE type = 'table'")
    beside = {row.name: index_of_side_table(row.name, row.sql) for row in rows}
    hidden = vec0.keys() | fts5
    return [
        name
        for name in names
        if name not in hidden and _SHADOWS.sub("", name) not in vec0 and beside.get(name) not in hidden
    ]


def get_view_names(dialect: Any, connection: Connection, schema: str | None = None, **kw: Any) -> list[str]:
    """Leave out the views that FTS5 tables read."""
    names: list[str] = type(dialect).get_view_names(dialect, connection, schema, **kw)
    fts5 = fts5_names(connection, schema)
    return [name for name in names if name not in fts5]


def has_index(
    dialect: Any,
    connection: Connection,
    table_name: str,
    index_name: str,
    schema: str | None = None,
    **kw: Any,
) -> bool:
    """Take a vec0 or FTS5 table for an index."""
    if index_name in find_vec0_tables(connection, schema) or index_name in find_fts5_tables(connection, schema):
        return True
    return bool(type(dialect).has_index(dialect, connection, table_name, index_name, schema, **kw))


def get_indexes(dialect: Any, connection: Connection, table_name: str, schema: str | None = None, **kw: Any) -> Any:
    """Add the vec0 and FTS5 tables that are kept by triggers of the table."""
    found = type(dialect).get_indexes(dialect, connection, table_name, schema, **kw)
    info_cache = kw.get("info_cache")
    vectors = _reflect_vec0(connection, table_name, schema, info_cache)
    return [*found, *vectors, *_reflect_fts5(connection, table_name, schema, info_cache)]


def _reflect_vec0(
    connection: Connection, table_name: str, schema: str | None, info_cache: dict[Any, Any] | None
) -> list[dict[str, Any]]:
    """Return the vec0 tables that triggers of a table keep, as an inspector returns indexes.

    They are read once for all tables that one inspector looks at.
    """
    known = {} if info_cache is None else info_cache
    if (cached := ("sqla_vector", schema)) not in known:
        known[cached] = reflect_vec0(connection, schema)
    return [
        {
            "name": found.name,
            "column_names": [found.column_name],
            "unique": 0,
            "dialect_options": {REFLECTED_SPEC: found.spec},
            "vector": {
                "method": "ivfflat" if found.spec.method == "ivfflat" else "vec0",
                "element": found.element,
                "metric": found.spec.metric_name,
            },
        }
        for found in known[cached]
        if found.table_name == table_name
    ]


def _reflect_fts5(
    connection: Connection, table_name: str, schema: str | None, info_cache: dict[Any, Any] | None
) -> list[dict[str, Any]]:
    """Return the FTS5 tables that triggers of a table keep, likewise."""
    known = {} if info_cache is None else info_cache
    if (cached := ("sqla_vector_text", schema)) not in known:
        known[cached] = reflect_fts5(connection, schema)
    return [
        {
            "name": found.name,
            "column_names": list(found.spec.columns),
            "unique": 0,
            "dialect_options": {REFLECTED_TEXT: found.spec},
        }
        for found in known[cached]
        if found.table_name == table_name
    ]
