"""What the shared rooms call on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from numpy.typing import NDArray
from sqlalchemy import ColumnElement, FromClause, Select, Table, Text, any_, bindparam, func, insert
from sqlalchemy import column as sa_column
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.types import TypeEngine

from sqla_vector.dialects.capture import CaptureSupport
from sqla_vector.dialects.migration import MigrationSupport
from sqla_vector.dialects.postgresql.connection import binary_results, prepare, raw_kinds
from sqla_vector.dialects.postgresql.explain import explain, served_by, why_unused
from sqla_vector.dialects.postgresql.extension import (
    create_extension_if_missing,
    find_extension,
    version_tuple,
)
from sqla_vector.dialects.postgresql.text import text_query
from sqla_vector.dialects.postgresql.types import PostgreSQLVector
from sqla_vector.dialects.settings import settings_of
from sqla_vector.dialects.tuning import TuningSupport
from sqla_vector.expression import NearestCriterion
from sqla_vector.schema import VectorIndexKey, keep_automatic
from sqla_vector.types import HalfVector, SparseVector, Vector, VectorType
from sqla_vector.values import Codec
from sqla_vector.web_query import WebQuery

__all__ = ["PostgreSQLSupport"]


class PostgreSQLSupport:
    """Implements :class:`sqla_vector.types.DialectSupport`."""

    def implementation(self, type_: VectorType[Any], dialect: Dialect) -> TypeEngine[Any]:
        return PostgreSQLVector(type_.kind, type_.dim, type_.codec, type_.column_names, settings_of(dialect))

    def before_table_create(self, table: Table, connection: Connection) -> None:
        keep_automatic(table)
        if create_extension_if_missing(connection) and settings_of(connection.dialect).attached:
            # This connection was made before the extension was.
            self.prepare_connection(connection.dialect, connection.connection.dbapi_connection, in_transaction=True)

    def choose_driver(self, driver: str, dialect_args: dict[str, Any]) -> dict[str, Any]:
        return {}

    def attach(self, dialect: Any) -> None:
        known = dialect.ischema_names
        types: dict[str, type[VectorType[Any]]] = {"vector": Vector, "halfvec": HalfVector, "sparsevec": SparseVector}
        reflected = {name: _reflecting(type_) for name, type_ in types.items()}
        schema = settings_of(dialect).schema
        if schema:
            # PostgreSQL writes the schema with or without quotes, by rules of its own; SQLAlchemy looks for the
            # name in lower case.
            quoted = '"' + schema.replace('"', '""') + '"'
            reflected |= {f"{name}.{type_}".lower(): reflected[type_] for name in (schema, quoted) for type_ in types}
        dialect.ischema_names = {**known, **reflected}

    def detach(self, dialect: Any) -> None:
        vars(dialect).pop("ischema_names", None)

    def prepare_connection(self, dialect: Dialect, dbapi_connection: Any, *, in_transaction: bool = False) -> bool:
        settings = settings_of(dialect)
        before = settings.schema
        prepared = prepare(dbapi_connection, dialect.driver, settings, in_transaction=in_transaction)
        if settings.schema != before:
            self.attach(dialect)
        return prepared

    def begin(self, connection: Connection, *, to_write: bool = False) -> None:
        """Every driver's connection is in a transaction already."""

    def state(self, connection: Connection) -> object | None:
        return None

    def sees_commits(self) -> ColumnElement[bool]:
        return func.current_setting("transaction_isolation").in_(["read committed", "read uncommitted"])

    def members(self, column: ColumnElement[Any], values: Sequence[Any]) -> ColumnElement[bool]:
        return column == any_(bindparam(None, list(values), type_=ARRAY(column.type)))

    def texts(self, values: Sequence[str]) -> FromClause:
        array = bindparam(None, list(values), type_=ARRAY(Text))
        return func.unnest(array).table_valued(sa_column("value", Text)).render_derived()

    def brief_lock_wait(self, connection: Connection) -> AbstractContextManager[None]:
        connection.exec_driver_sql("SET LOCAL lock_timeout = '100ms'")
        return nullcontext()

    def insert_batches(
        self, connection: Connection, table: Table, names: Sequence[str], batches: Iterable[tuple[int, list[Any]]]
    ) -> None:
        from sqla_vector.dialects.postgresql.copy import copy_encoder, send  # not needed by most programs

        encoder = copy_encoder(connection, table, names)
        if encoder is not None:
            send(connection, table, names, encoder.blocks(batches))
            return
        for _, columns in batches:
            rows = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
            connection.execute(insert(table), rows)

    def read_binary(self, connection: Connection, stmt: Select[Any]) -> AbstractContextManager[None]:
        return binary_results(connection, stmt)

    def raw_kinds(self, dialect: Dialect, types: Sequence[TypeEngine[Any]]) -> Collection[str]:
        return raw_kinds(dialect, types)

    def matrix_decoder(self, codec: Codec[Any]) -> Callable[[Sequence[Any]], NDArray[Any]]:
        return codec.matrix_from_binary

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
        from sqla_vector.dialects.postgresql.migration import PostgreSQLMigration  # not needed by most programs

        return PostgreSQLMigration()

    def tuning(self) -> TuningSupport:
        from sqla_vector.dialects.postgresql.tuning import PostgreSQLTuning

        return PostgreSQLTuning()

    def captures(self) -> CaptureSupport:
        from sqla_vector.dialects.postgresql.capture import PostgreSQLCapture

        return PostgreSQLCapture()

    def capabilities(self, connection: Connection) -> dict[str, Any]:
        found = find_extension(connection)
        version = version_tuple(found[0]) if found else (0,)
        settings = settings_of(connection.dialect)
        return {
            "driver": connection.dialect.driver,
            "extension": found[0] if found else None,
            "schema": found[1] if found else None,
            "index_methods": ("hnsw", "ivfflat") if version >= (0, 5) else ("ivfflat",) if found else (),
            "half": version >= (0, 7),
            "sparse": version >= (0, 7),
            "bit": version >= (0, 7),
            "iterative_scan": version >= (0, 8),
            "binary_wire": settings.attached and connection.dialect.driver in ("psycopg", "asyncpg"),
        }


def _reflecting(type_: type[VectorType[Any]]) -> Any:
    def reflect(dim: str | None = None) -> VectorType[Any]:
        return type_(int(dim) if dim else None)

    return reflect
