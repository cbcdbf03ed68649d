"""What the shared rooms call on SQLite."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import Thread
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Column, ColumnElement, FromClause, Select, Table, Text, bindparam, func, literal, select
from sqlalchemy import column as sa_column
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.types import TypeEngine

from sqla_vector.dialects.capture import CaptureSupport
from sqla_vector.dialects.migration import MigrationSupport
from sqla_vector.dialects.settings import settings_of
from sqla_vector.dialects.sqlite.connection import RawConnection, begin, brief_lock_wait, is_prepared, prepare, state
from sqla_vector.dialects.sqlite.dialect import adapt, refresh_vec0_tables, restore
from sqla_vector.dialects.sqlite.explain import explain, served_by, why_unused
from sqla_vector.dialects.sqlite.text import text_query
from sqla_vector.dialects.sqlite.types import SQLiteVector
from sqla_vector.dialects.tuning import TuningSupport
from sqla_vector.expression import NearestCriterion
from sqla_vector.schema import VectorIndexKey, keep_automatic
from sqla_vector.types import VectorType
from sqla_vector.values import Codec, as_matrix
from sqla_vector.web_query import WebQuery

__all__ = ["SQLiteSupport"]


class SQLiteSupport:
    """Implements :class:`sqla_vector.types.DialectSupport`."""

    def implementation(self, type_: VectorType[Any], dialect: Dialect) -> TypeEngine[Any]:
        return SQLiteVector(type_.kind, type_.dim, type_.codec, type_.column_names, settings_of(dialect))

    def before_table_create(self, table: Table, connection: Connection) -> None:
        # sqlite-vec belongs to the connection, not to the database: nothing else to prepare.
        keep_automatic(table)

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

    def prepare_connection(self, dialect: Dialect, dbapi_connection: Any, *, in_transaction: bool = False) -> bool:
        connection = RawConnection(dbapi_connection)
        first = not is_prepared(connection)
        if first:
            prepare(connection, settings_of(dialect))
        refresh_vec0_tables(dialect, connection.rows)
        # Once more at checkout: an application attaches further databases when it is told of the connection.
        return not first

    def begin(self, connection: Connection, *, to_write: bool = False) -> None:
        # A savepoint opened outside a transaction would commit when released.
        begin(connection, to_write=to_write)

    def state(self, connection: Connection) -> object | None:
        return state(connection)

    def sees_commits(self) -> ColumnElement[bool]:
        # Of a transaction that may write: nobody else commits meanwhile.
        return literal(True)

    def members(self, column: ColumnElement[Any], values: Sequence[Any]) -> ColumnElement[bool]:
        if not all(type(value) is int or (type(value) is str and "\0" not in value) for value in values):
            return column.in_(values)
        return column.in_(select(self.texts(values).c.value))

    def texts(self, values: Sequence[str]) -> FromClause:
        array = bindparam(None, json.dumps(list(values)), type_=Text)
        return func.json_each(array).table_valued(sa_column("value", Text))

    def brief_lock_wait(self, connection: Connection) -> AbstractContextManager[None]:
        return brief_lock_wait(connection)

    def insert_batches(
        self, connection: Connection, table: Table, names: Sequence[str], batches: Iterable[tuple[int, list[Any]]]
    ) -> None:
        dialect = connection.dialect
        preparer = dialect.identifier_preparer
        columns = [table.c[name] for name in names]
        listed = ", ".join(preparer.quote(column.name) for column in columns)
        marks = ", ".join("?" * len(columns))
        statement = f"INSERT INTO {preparer.format_table(table)} ({listed}) VALUES ({marks})"
        encoders = [_encoder(column, dialect) for column in columns]
        for _, values in batches:
            encoded = [encode(column) for encode, column in zip(encoders, values, strict=True)]
            connection.exec_driver_sql(statement, list(zip(*encoded, strict=True)))

    def read_binary(self, connection: Connection, stmt: Select[Any]) -> AbstractContextManager[None]:
        return nullcontext()

    def raw_kinds(self, dialect: Dialect, types: Sequence[TypeEngine[Any]]) -> Collection[str]:
        return ()  # a blob needs no function around it anyway

    def matrix_decoder(self, codec: Codec[Any]) -> Callable[[Sequence[Any]], NDArray[Any]]:
        return codec.matrix_from_blobs

    def explain(self, connection: Connection, stmt: Select[Any]) -> tuple[set[str], str]:
        return explain(connection, stmt)

    def served_by(self, key: VectorIndexKey) -> tuple[str, str]:
        return served_by(key)

    def why_unused(
        self, connection: Connection, name: str, key: VectorIndexKey, criterion: NearestCriterion | None
    ) -> str:
        return why_unused(connection, name, key, criterion)

    def text_query(self, query: WebQuery, language: str) -> str:
        return text_query(query, language)

    def migration(self) -> MigrationSupport:
        from sqla_vector.dialects.sqlite.migration import SQLiteMigration  # not needed by most programs

        return SQLiteMigration()

    def tuning(self) -> TuningSupport:
        from sqla_vector.dialects.sqlite.tuning import SQLiteTuning

        return SQLiteTuning()

    def captures(self) -> CaptureSupport:
        from sqla_vector.dialects.sqlite.capture import SQLiteCapture

        return SQLiteCapture()

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


def _encoder(column: Column[Any], dialect: Dialect) -> Callable[[Any], Iterable[Any]]:
    """Return what turns a batch of a column's values into the driver's parameters."""
    process = column.type.dialect_impl(dialect).bind_processor(dialect)
    codec = column.type.codec if isinstance(column.type, VectorType) else None

    def encode(values: Any) -> Iterable[Any]:
        if codec is not None and codec.kind == "vector" and isinstance(values, np.ndarray):
            matrix = as_matrix(values, codec.dim, f"{column.table.name}.{column.name}")
            data, size = matrix.astype("<f4", copy=False).tobytes(), 4 * matrix.shape[1]
            return [data[start : start + size] for start in range(0, len(data), size)]
        plain = values.tolist() if isinstance(values, np.ndarray) and codec is None else values
        return plain if process is None else [process(value) for value in plain]

    return encode


def _aiosqlite_over(module: Any, dialect_args: dict[str, Any]) -> dict[str, Any]:
    """Make aiosqlite run another SQLite module, which it takes as a connector."""
    import aiosqlite
    from sqlalchemy.dialects.sqlite.aiosqlite import AsyncAdapt_aiosqlite_dbapi

    adapted: Any = AsyncAdapt_aiosqlite_dbapi(aiosqlite, module)
    # aiosqlite names the errors and the version of sqlite3. By these SQLAlchemy knows what to wrap and what it can use.
    for name in _ERRORS_AND_VERSION:
        setattr(adapted, name, getattr(module, name))
    dialect_args["dbapi"] = adapted

    def connect(*args: Any, iter_chunk_size: int = 64, **kw: Any) -> Any:
        connection = aiosqlite.Connection(lambda: module.connect(*args, **kw), iter_chunk_size)
        # As SQLAlchemy does, so that an engine that was not disposed of does not keep the process from ending.
        thread: Any = connection if isinstance(connection, Thread) else connection._thread
        thread.daemon = True
        return connection

    return {"async_creator_fn": connect}


_ERRORS_AND_VERSION: Final = (
    "DatabaseError",
    "Error",
    "IntegrityError",
    "NotSupportedError",
    "OperationalError",
    "ProgrammingError",
    "sqlite_version",
    "sqlite_version_info",
)
