"""The extension: is it there, which version, in which schema; creating it when it is missing."""

from __future__ import annotations

import logging
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from sqla_vector.dialects.settings import settings_of
from sqla_vector.exc import ExtensionMissing

__all__ = ["CREATE_OPTION", "create_extension", "create_extension_if_missing", "find_extension", "version_tuple"]

logger = logging.getLogger("sqla_vector.postgresql")

CREATE_OPTION: Final = "vector_create_extension"
"""Execution option: False leaves creating the extension to an administrator."""

OLDEST_SUPPORTED: Final = (0, 8, 2)
"""Older versions have known faults in filtered and parallel HNSW (pgvector's changelog)."""

_INSUFFICIENT_PRIVILEGE: Final = "42501"

_FIND: Final = text(
    "SELECT e.extversion, n.nspname, pg_catalog.pg_type_is_visible(t.oid)"
    " FROM pg_catalog.pg_extension e"
    " JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace"
    " JOIN pg_catalog.pg_type t ON t.typnamespace = n.oid AND t.typname = 'vector'"
    " WHERE e.extname = 'vector'"
)


def version_tuple(version: str) -> tuple[int, ...]:
    """Return ``"0.8.5"`` as ``(0, 8, 5)``."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def find_extension(connection: Connection) -> tuple[str, str, bool] | None:
    """Return the extension's version, its schema and whether that is on the search path, or None."""
    row = connection.execute(_FIND).first()
    return None if row is None else (row[0], row[1], row[2])


def note_extension(connection: Connection) -> tuple[str, str, bool] | None:
    """Find the extension, remember its schema where names need it, and warn of an old version."""
    found = find_extension(connection)
    if found is None:
        return None
    version, schema, visible = found
    if not visible:
        settings_of(connection.dialect).schema = schema
    if version_tuple(version) < OLDEST_SUPPORTED:
        logger.warning(
            "pgvector %s is older than %s: filtered searches may return too few rows; "
            "ask an administrator to run ALTER EXTENSION vector UPDATE",
            version,
            ".".join(map(str, OLDEST_SUPPORTED)),
        )
    return found


def create_extension_if_missing(connection: Any) -> bool:
    """Create the extension unless it is there, or the option ``vector_create_extension`` is False.

    Returns:
        Whether it was created.

    Raises:
        ExtensionMissing: this role may not create it, or the server does not have it.
    """
    schema = settings_of(connection.dialect).schema
    into = f" SCHEMA {connection.dialect.identifier_preparer.quote_schema(schema)}" if schema else ""
    statement = f"CREATE EXTENSION IF NOT EXISTS vector{into}"
    if not isinstance(connection, Connection):  # create_mock_engine(): there is nobody to ask
        connection.execute(text(statement))
        return False
    if not connection.get_execution_options().get(CREATE_OPTION, True):
        return False
    if note_extension(connection) is not None:
        return False
    create_extension(connection, statement)
    note_extension(connection)
    return True


def create_extension(connection: Connection, statement: str) -> None:
    """Run a CREATE EXTENSION unless the extension is there.

    Raises:
        ExtensionMissing: this role may not create it, or the server does not have it.
    """
    try:
        # Two processes that create it at the same moment: the second waits here, then finds it.
        connection.execute(text("SELECT pg_catalog.pg_advisory_xact_lock(1936289901)"))
        if find_extension(connection) is None:
            connection.execute(text(statement))
    except DBAPIError as error:
        raise ExtensionMissing(_explanation(error.orig, statement)) from error


def _explanation(error: Any, statement: str) -> str:
    sqlstate = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if sqlstate == _INSUFFICIENT_PRIVILEGE:
        return f"this role may not create the extension; ask an administrator to run: {statement};"
    return f"the server could not create the extension; install pgvector there and run: {statement}; ({error})"
