"""Migrations on SQLite."""

from __future__ import annotations

import logging
from typing import Any, Final

import numpy as np
from sqlalchemy import Column, Index, Integer, LargeBinary, Table, literal_column, select, type_coerce, update
from sqlalchemy.engine import Connection
from sqlalchemy.schema import CreateIndex

from sqla_vector.dialects.migration import BuildOptions, ReflectedIndex, ReflectedText, Runner, quoted, watcher
from sqla_vector.dialects.settings import settings_of
from sqla_vector.dialects.sqlite.connection import RawConnection, begin, note_changed
from sqla_vector.dialects.sqlite.dialect import refresh_vec0_tables
from sqla_vector.dialects.sqlite.differing import statements_differ, without_schema
from sqla_vector.dialects.sqlite.index import creatable, vec0_index
from sqla_vector.dialects.sqlite.reflection import find_vec0_tables, reflect_vec0
from sqla_vector.dialects.sqlite.side_tables import only_ours
from sqla_vector.dialects.sqlite.statements import Vec0Statements, drop_statements
from sqla_vector.dialects.sqlite.text_migration import (
    create_text_index,
    drop_text_index,
    reflect_texts,
    text_difference,
)
from sqla_vector.dialects.sqlite.tuned import load, remember, remembered
from sqla_vector.exc import MigrationError
from sqla_vector.schema import IndexSpec, VectorIndexKey, index_key, is_small
from sqla_vector.text_index import TextIndexKey, text_index_key
from sqla_vector.types import VectorType

__all__ = ["SQLiteMigration"]

logger = logging.getLogger("alembic.sqla_vector")

_UNKNOWN: Final = frozenset({"method", "options"})


class SQLiteMigration:
    """Implements :class:`sqla_vector.dialects.migration.MigrationSupport`."""

    def lacks_extension(self, connection: Connection) -> None:
        return None  # sqlite-vec belongs to the connection, not to the database

    def create_extension(self, run: Runner, schema: str | None, minimum_version: str | None) -> None:
        """Do nothing: sqlite-vec belongs to the connection, not to the database."""

    def drop_extension(self, run: Runner, schema: str | None) -> None:
        """Do nothing, as for :meth:`create_extension`."""

    def reflect(self, connection: Connection, schema: str | None) -> list[ReflectedIndex]:
        return [
            ReflectedIndex(
                name=found.name,
                table_name=found.table_name,
                column_name=found.column_name,
                spec=found.spec,
                where=None,
                is_valid=True,
                definition=found.statements,
                unknown=_unknown(found.spec),
                is_shared=False,
                type_=found.type_,
            )
            for found in reflect_vec0(connection, schema)
        ]

    def is_wanted(self, connection: Connection, index: Index, key: VectorIndexKey) -> bool:
        if key.spec.method == "auto" and is_small(connection, key.column.table):
            return False
        vec0 = vec0_index(index)
        return vec0 is not None and creatable(vec0, settings_of(connection.dialect))

    def difference(
        self, connection: Connection, index: Index, key: VectorIndexKey, found: ReflectedIndex
    ) -> str | None:
        vec0 = vec0_index(index)
        assert vec0 is not None
        statements = Vec0Statements(vec0, without_schema(connection.dialect.identifier_preparer)).create()
        return statements_differ(found.definition, statements)

    def reflect_texts(self, connection: Connection, schema: str | None) -> list[ReflectedText]:
        return reflect_texts(connection, schema)

    def text_difference(
        self, connection: Connection, index: Index, key: TextIndexKey, found: ReflectedText
    ) -> str | None:
        return text_difference(connection, index, found)

    def create_index(self, run: Runner, index: Index, build: BuildOptions) -> None:
        if text_index_key(index) is not None:
            create_text_index(run, index, build)
            return
        vec0 = vec0_index(index)
        assert vec0 is not None
        assert index.table is not None
        connection = run.connection
        if connection is None:
            reason = vec0.unusable()
            if reason is not None:
                logger.warning("%s is not built on SQLite: %s; searches scan exactly", index.name, reason)
                return
            statements = Vec0Statements(vec0, run.dialect.identifier_preparer)
            for statement in [*(statements.drop() if build.if_not_exists else []), *statements.write()]:
                run.execute(statement)
            return
        found = next((f for f in self.reflect(connection, index.table.schema) if f.name == index.name), None)
        if found is not None and (build.if_not_exists or build.concurrently):
            key = index_key(index)
            assert key is not None
            differs = self.difference(connection, index, key, found)
            if differs is not None:
                raise MigrationError(
                    f"there is another index {index.name} already, which differs: {differs}; drop it first"
                )
            logger.info("%s is there already", index.name)
            return
        run.execute(CreateIndex(index))

    def drop_index(
        self, run: Runner, name: str, table: str, schema: str | None, *, if_exists: bool, concurrently: bool
    ) -> None:
        # What is missing is no error: not every index that PostgreSQL has can be built here.
        connection = run.connection
        if connection is not None:
            if name not in find_vec0_tables(connection, schema):
                logger.warning("there is no vec0 table %s to drop", name)
                return
            begin(connection)
        statements = drop_statements(name, schema, run.dialect.identifier_preparer)
        if connection is not None:
            raw = RawConnection(connection.connection.dbapi_connection)
            statements = only_ours(run.dialect, raw.rows, statements)
        for statement in statements:
            run.execute(statement)
        if connection is not None:
            note_changed(connection)
            refresh_vec0_tables(run.dialect, RawConnection(connection.connection.dbapi_connection).rows)

    def drop_text_index(
        self, run: Runner, name: str, table: str, schema: str | None, *, if_exists: bool, concurrently: bool
    ) -> None:
        drop_text_index(run, name, schema, if_exists=if_exists)

    def rebuild_index(self, run: Runner, index: Index, build: BuildOptions) -> None:
        # vec0 tables cannot be renamed; the transaction is what keeps the old one until the new one is there.
        assert index.table is not None
        if text_index_key(index) is not None:
            drop_text_index(run, str(index.name), index.table.schema, if_exists=True)
            create_text_index(run, index, build)
            return
        connection = run.connection
        tuned = None if connection is None else remembered(connection, index)
        self.drop_index(run, str(index.name), index.table.name, index.table.schema, if_exists=True, concurrently=False)
        self.create_index(run, index, build)
        if connection is not None and tuned is not None:
            remember(connection, index, tuned)
            load(connection)

    def convert_column(self, run: Runner, column: Column[Any], existing: Column[Any]) -> None:
        connection = self._online(run, column)
        assert isinstance(column.type, VectorType)
        _convert_values(connection, column, existing)
        self.retype_empty_column(run, column)

    def retype_empty_column(self, run: Runner, column: Column[Any]) -> None:
        self._online(run, column)
        with run.rebuild_table(column.table.name, column.table.schema) as batch:
            batch.alter_column(column.name, type_=column.type)

    def _online(self, run: Runner, column: Column[Any]) -> Connection:
        if run.connection is None:
            raise MigrationError(
                f"{column.table.name}.{column.name}: SQLite changes a column's type by copying the table, which a "
                "script cannot do without knowing the table; run this migration online"
            )
        return run.connection

    def lock(self, run: Runner, table: Table) -> None:
        if run.connection is not None:
            begin(run.connection, to_write=True)

    def prepare_shadow(self, run: Runner, column: Column[Any], shadow: Column[Any]) -> None:
        dialect = run.dialect
        schema, table = column.table.schema, quoted(dialect, column.table.name)
        assert run.connection is not None
        columns = run.connection.exec_driver_sql(f"PRAGMA {_in(dialect, schema)}table_info({table})").all()
        if shadow.name not in {row[1] for row in columns}:
            type_ = dialect.type_compiler_instance.process(shadow.type)
            run.execute(f"ALTER TABLE {_in(dialect, schema)}{table} ADD COLUMN {quoted(dialect, shadow.name)} {type_}")
        name, other = quoted(dialect, column.name), quoted(dialect, shadow.name)
        # Not by the rowid where there is a key: a table may be WITHOUT ROWID.
        keys = [quoted(dialect, row[1]) for row in columns if row[5]] or ["rowid"]
        same = " AND ".join(f"{key} IS NEW.{key}" for key in keys)
        run.execute(
            f"CREATE TRIGGER IF NOT EXISTS {_in(dialect, schema)}{quoted(dialect, watcher(shadow))} "
            f"AFTER UPDATE OF {name} ON {table} "
            f"FOR EACH ROW WHEN NEW.{name} IS NOT OLD.{name} BEGIN "
            f"UPDATE {table} SET {other} = NULL WHERE {same}; END"
        )

    def forget_shadow(self, run: Runner, column: Column[Any]) -> None:
        name = quoted(run.dialect, watcher(column))
        run.execute(f"DROP TRIGGER IF EXISTS {_in(run.dialect, column.table.schema)}{name}")

    def row_version(self, column: Column[Any]) -> Any:
        return type_coerce(column, LargeBinary)  # the stored bytes: SQLite counts no versions

    def builds_before_swap(self) -> bool:
        return False

    def rename_index(self, run: Runner, old: str, new: str, schema: str | None) -> None:
        raise NotImplementedError("vec0 tables cannot be renamed")

    def rename_columns(self, run: Runner, table: Table, names: dict[str, str], nullable: dict[str, bool]) -> None:
        if nullable:
            with run.rebuild_table(table.name, table.schema) as batch:
                for name, is_nullable in nullable.items():
                    batch.alter_column(name, nullable=is_nullable)
        alter = f"ALTER TABLE {quoted(run.dialect, table.schema, table.name)}"
        for old, new in names.items():
            run.execute(f"{alter} RENAME COLUMN {quoted(run.dialect, old)} TO {quoted(run.dialect, new)}")

    def drop_column(self, run: Runner, column: Column[Any]) -> None:
        table = quoted(run.dialect, column.table.schema, column.table.name)
        run.execute(f"ALTER TABLE {table} DROP COLUMN {quoted(run.dialect, column.name)}")


def _unknown(spec: IndexSpec) -> frozenset[str]:
    """Return what of a declaration the database cannot tell."""
    # Binary l2 and l1 are the same; cosine leaves out zero vectors.
    unknown = {"metric_name"} if spec.metric_name == "l2" else set()
    return frozenset(unknown) if spec.method == "ivfflat" else _UNKNOWN | unknown


def _in(dialect: Any, schema: str | None) -> str:
    return f"{quoted(dialect, schema)}." if schema else ""


def _convert_values(connection: Connection, column: Column[Any], existing: Column[Any]) -> None:
    """Check that every vector fits the new type; round those that have more digits than a half vector."""
    table = existing.table
    # A table without a key has its rowid; without any criterion each UPDATE would meet every row.
    key: list[Any] = list(table.primary_key.columns) or [literal_column("rowid", Integer)]
    old, new = existing.type, column.type
    assert isinstance(old, VectorType)
    assert isinstance(new, VectorType)
    rows = connection.execute(
        select(existing, *key).where(existing.is_not(None)), execution_options={"yield_per": 1000}
    )
    for part in rows.partitions():
        converted = []
        for vector, *values in part:
            try:
                fitting = new.codec.coerce(vector, f"{table.name}.{column.name}")
            except ValueError as error:
                raise MigrationError(f"{table.name}.{column.name} has a vector that does not fit: {error}") from error
            if new.kind == "halfvec" and old.kind == "vector":
                converted.append((old.codec.coerce(np.asarray(fitting, np.float32), existing.name), values))
        for vector, values in converted:
            same = [c == v for c, v in zip(key, values, strict=True)]
            connection.execute(update(table).where(*same).values({existing.name: vector}))
