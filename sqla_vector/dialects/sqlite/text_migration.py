"""Migrations of text indexes on SQLite."""

from __future__ import annotations

import logging

from sqlalchemy import Index
from sqlalchemy.engine import Connection
from sqlalchemy.schema import CreateIndex

from sqla_vector.dialects.migration import BuildOptions, ReflectedText, Runner
from sqla_vector.dialects.sqlite.connection import RawConnection, begin, note_changed
from sqla_vector.dialects.sqlite.dialect import refresh_vec0_tables
from sqla_vector.dialects.sqlite.differing import statements_differ, without_schema
from sqla_vector.dialects.sqlite.fts5 import Fts5Statements, drop_fts5_statements, fts5_index
from sqla_vector.dialects.sqlite.fts5_reflection import find_fts5_tables, reflect_fts5
from sqla_vector.dialects.sqlite.side_tables import only_ours
from sqla_vector.exc import MigrationError

__all__ = ["create_text_index", "drop_text_index", "reflect_texts", "text_difference"]

logger = logging.getLogger("alembic.sqla_vector")


def reflect_texts(connection: Connection, schema: str | None) -> list[ReflectedText]:
    """Return the text indexes of a schema."""
    return [
        ReflectedText(found.name, found.table_name, found.spec, found.statements)
        for found in reflect_fts5(connection, schema)
    ]


def text_difference(connection: Connection, index: Index, found: ReflectedText) -> str | None:
    """Return in what an index differs from its declaration, None if in nothing."""
    fts5 = fts5_index(index)
    assert fts5 is not None
    return statements_differ(
        found.definition, Fts5Statements(fts5, without_schema(connection.dialect.identifier_preparer)).create()
    )


def create_text_index(run: Runner, index: Index, build: BuildOptions) -> None:
    """Make the FTS5 table of an index."""
    fts5, connection = fts5_index(index), run.connection
    assert fts5 is not None
    assert index.table is not None
    if connection is None:
        statements = Fts5Statements(fts5, run.dialect.identifier_preparer)
        for statement in [*(statements.drop() if build.if_not_exists else []), *statements.create()]:
            run.execute(statement)
        return
    found = next((f for f in reflect_texts(connection, index.table.schema) if f.name == index.name), None)
    if found is not None and (build.if_not_exists or build.concurrently):
        differs = text_difference(connection, index, found)
        if differs is not None:
            raise MigrationError(
                f"there is another index {index.name} already, which differs: {differs}; drop it first"
            )
        logger.info("%s is there already", index.name)
        return
    run.execute(CreateIndex(index))


def drop_text_index(run: Runner, name: str, schema: str | None, *, if_exists: bool) -> None:
    """Drop the FTS5 table of an index and all that belongs to it."""
    connection = run.connection
    if connection is not None:
        if name not in find_fts5_tables(connection, schema):
            if if_exists:
                return
            raise MigrationError(f"there is no text index {name} to drop")
        begin(connection)
    statements = drop_fts5_statements(name, schema, run.dialect.identifier_preparer)
    if connection is not None:
        raw = RawConnection(connection.connection.dbapi_connection)
        statements = only_ours(run.dialect, raw.rows, statements)
    for statement in statements:
        run.execute(statement)
    if connection is not None:
        note_changed(connection)
        refresh_vec0_tables(run.dialect, RawConnection(connection.connection.dbapi_connection).rows)
