"""What the shared rooms call on SQLite."""

from __future__ import annotations

import importlib
from typing import Any

from sqlalchemy import Table
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.types import TypeEngine

from sqla_vector.dialects.settings import settings_of
from sqla_vector.dialects.sqlite.connection import prepare
from sqla_vector.dialects.sqlite.dialect import adapt, refresh_vec0_tables, restore
from sqla_vector.dialects.sqlite.types import SQLiteVector
from sqla_vector.types import VectorType

__all__ = ["SQLiteSupport"]


class SQLiteSupport:
    """Implements :class:`sqla_vector.types.DialectSupport`."""

    def implementation(self, type_: VectorType[Any], dialect: Dialect) -> TypeEngine[Any]:
        return SQLiteVector(type_.kind, type_.dim, type_.codec, type_.column_names, settings_of(dialect))

    def before_table_create(self, table: Table, connection: Connection) -> None:
        """Nothing to prepare: sqlite-vec belongs to the connection, not to the database."""

    def choose_driver(self, driver: str, dialect_args: dict[str, Any]) -> dict[str, Any]:
        """Take pysqlite3 where Python's own sqlite3 cannot load extensions and pysqlite3 is installed."""
        import sqlite3

        if hasattr(sqlite3.Connection, "enable_load_extension"):
            return {}
        try:
            pysqlite3: Any = importlib.import_module("pysqlite3.dbapi2")
        except ImportError:
            return {}
        if driver == "pysqlite":
            dialect_args["dbapi"] = pysqlite3
        elif driver == "aiosqlite":
            return _aiosqlite_over(pysqlite3, dialect_args)
        return {}

    def attach(self, dialect: Any) -> None:
        adapt(dialect)

    def detach(self, dialect: Any) -> None:
        restore(dialect)

    def prepare_connection(self, dialect: Dialect, dbapi_connection: Any) -> bool:
        connection = prepare(dbapi_connection, settings_of(dialect))
        refresh_vec0_tables(dialect, connection.rows)
        return True

    def capabilities(self, connection: Connection) -> dict[str, Any]:
        settings = settings_of(connection.dialect)
        module = getattr(connection.dialect.dbapi, "sqlite", connection.dialect.dbapi)
        return {
            "driver": f"{connection.dialect.driver} ({module.__name__} {module.sqlite_version})",  # type: ignore[union-attr]
            "extension": settings.sqlite_vec,
            "schema": None,
            "index_methods": ("vec0",) if settings.sqlite_vec else (),
            "half": True,
            "sparse": True,
            "bit": True,
            "iterative_scan": settings.sqlite_vec is not None,
            "binary_wire": True,
        }


def _aiosqlite_over(module: Any, dialect_args: dict[str, Any]) -> dict[str, Any]:
    """Make aiosqlite run another SQLite module, which it takes as a connector."""
    import aiosqlite
    from sqlalchemy.dialects.sqlite.aiosqlite import AsyncAdapt_aiosqlite_dbapi

    dialect_args["dbapi"] = AsyncAdapt_aiosqlite_dbapi(aiosqlite, module)

    def connect(*args: Any, iter_chunk_size: int = 64, **kw: Any) -> Any:
        return aiosqlite.Connection(lambda: module.connect(*args, **kw), iter_chunk_size)

    return {"async_creator_fn": connect}
