"""Migrations on PostgreSQL."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any, Final

from sqlalchemy import Column, Index, String, Table, literal_column
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex, DropIndex
from sqlalchemy.sql.elements import quoted_name

from sqla_vector.dialects.migration import (
    BuildOptions,
    ReflectedIndex,
    ReflectedText,
    Runner,
    beside,
    named_index,
    quoted,
    verbatim,
    watcher,
)
from sqla_vector.dialects.postgresql.extension import create_extension, find_extension, version_tuple
from sqla_vector.dialects.postgresql.progress import watch_build
from sqla_vector.dialects.postgresql.reflection import difference, reflect
from sqla_vector.dialects.postgresql.text_reflection import reflect_texts, text_difference
from sqla_vector.dialects.postgresql.tuned import carry_comment
from sqla_vector.dialects.settings import settings_of
from sqla_vector.exc import ExtensionMissing, MigrationError
from sqla_vector.schema import VectorIndexKey, index_key, is_small
from sqla_vector.text_index import TextIndexKey, text_index_key
from sqla_vector.types import VectorType, support_of

__all__ = ["PostgreSQLMigration"]

logger = logging.getLogger("alembic.sqla_vector")

_QUOTE: Final = "$sqla_vector$"
"""Around code: a name may hold two dollars."""
_OUT_OF_RANGE: Final = "22003"


class PostgreSQLMigration:
    """Implements :class:`sqla_vector.dialects.migration.MigrationSupport`."""

    def lacks_extension(self, connection: Connection) -> bool:
        return find_extension(connection) is None

    def create_extension(self, run: Runner, schema: str | None, minimum_version: str | None) -> None:
        connection = run.connection
        if connection is None:
            run.execute(_create_statement(run, schema))
            settings_of(run.dialect).schema = schema
            return
        create_extension(connection, _create_statement(run, schema))
        found = find_extension(connection)
        if found is None:
            raise ExtensionMissing("the extension was created and is not there; ask an administrator")
        version, where, is_visible = found
        if schema is not None and where != schema:
            raise MigrationError(
                f"the extension vector is in the schema {where}, not in {schema}; "
                f"ask an administrator to run: ALTER EXTENSION vector SET SCHEMA {quoted(run.dialect, schema)};"
            )
        if minimum_version is not None and version_tuple(version) < version_tuple(minimum_version):
            raise ExtensionMissing(
                f"pgvector {version} is older than {minimum_version}; "
                "ask an administrator to run: ALTER EXTENSION vector UPDATE;"
            )
        self._note_schema(run, connection, None if is_visible else where)

    def _note_schema(self, run: Runner, connection: Connection | None, schema: str | None) -> None:
        """Have the statements to come look for types and functions where the extension is."""
        settings = settings_of(run.dialect)
        if settings.schema != schema:
            settings.forget_compiled()
        settings.schema = schema
        if connection is not None and settings.attached:
            # This connection was made before the extension was.
            support = support_of(run.dialect)
            support.attach(run.dialect)
            support.prepare_connection(run.dialect, connection.connection.dbapi_connection, in_transaction=True)

    def drop_extension(self, run: Runner, schema: str | None) -> None:
        run.execute("DROP EXTENSION IF EXISTS vector")
        self._note_schema(run, None, None)

    def reflect(self, connection: Connection, schema: str | None) -> list[ReflectedIndex]:
        return reflect(connection, schema)

    def reflect_texts(self, connection: Connection, schema: str | None) -> list[ReflectedText]:
        return reflect_texts(connection, schema)

    def text_difference(
        self, connection: Connection, index: Index, key: TextIndexKey, found: ReflectedText
    ) -> str | None:
        return text_difference(key, found)

    def is_wanted(self, connection: Connection, index: Index, key: VectorIndexKey) -> bool:
        return key.spec.method != "auto" or not is_small(connection, key.column.table)

    def difference(
        self, connection: Connection, index: Index, key: VectorIndexKey, found: ReflectedIndex
    ) -> str | None:
        return difference(connection, index, key, found)

    def create_index(self, run: Runner, index: Index, build: BuildOptions) -> None:
        assert index.table is not None
        # Compared while there is a transaction: two predicates are compared within a savepoint.
        found = _find_index(run, index)
        if found is not None and found.is_valid and (build.concurrently or build.if_not_exists):
            _check_same(run, index, found)
            logger.info("%s is there already", index.name)
            return
        with run.autocommit() if build.concurrently else nullcontext():
            if found is not None and not found.is_valid:
                logger.warning("%s is left over from a build that was interrupted; building it anew", index.name)
                self._drop(run, index, build.concurrently)
            self._build(run, index, build)

    def drop_index(
        self, run: Runner, name: str, table: str, schema: str | None, *, if_exists: bool, concurrently: bool
    ) -> None:
        with run.autocommit() if concurrently else nullcontext():
            # Run again after an interruption it may be gone already.
            self._drop(run, named_index(name, table, schema), concurrently, if_exists or concurrently)

    def drop_text_index(
        self, run: Runner, name: str, table: str, schema: str | None, *, if_exists: bool, concurrently: bool
    ) -> None:
        self.drop_index(run, name, table, schema, if_exists=if_exists, concurrently=concurrently)

    def rebuild_index(self, run: Runner, index: Index, build: BuildOptions) -> None:
        assert index.table is not None
        name, schema = index.name, index.table.schema
        assert name is not None
        fresh = beside(name)
        index.name = quoted_name(fresh, None)
        if run.connection is None:
            # A script cannot ask whether an interrupted run left one behind.
            self.drop_index(run, fresh, index.table.name, schema, if_exists=True, concurrently=build.concurrently)
        self.create_index(run, index, replace(build, if_not_exists=True))
        index.name = name
        run.execute(carry_comment(run.dialect, schema, str(name), fresh))
        # A swap is two changes of the catalogue and, unlike the build, can be one transaction.
        self._drop(run, index, if_exists=True)
        self.rename_index(run, fresh, name, schema)

    def rename_index(self, run: Runner, old: str, new: str, schema: str | None) -> None:
        run.execute(f"ALTER INDEX {quoted(run.dialect, schema, old)} RENAME TO {quoted(run.dialect, new)}")

    def _build(self, run: Runner, index: Index, build: BuildOptions) -> None:
        if build.concurrently:
            index.dialect_options["postgresql"]["concurrently"] = True
        with _build_settings(run, build), watch_build(run.connection, str(index.name)):
            # A script cannot ask; a connection has been asked, and IF NOT EXISTS would pass over an INVALID one.
            run.execute(CreateIndex(index, if_not_exists=build.if_not_exists and run.connection is None))

    def _drop(self, run: Runner, index: Index, concurrently: bool = False, if_exists: bool = False) -> None:
        index.dialect_options["postgresql"]["concurrently"] = concurrently
        run.execute(DropIndex(index, if_exists=if_exists))

    def convert_column(self, run: Runner, column: Column[Any], existing: Column[Any]) -> None:
        name, type_ = quoted(run.dialect, column.name), _type_sql(run, column)
        assert isinstance(column.type, VectorType)
        if column.type.dim is not None and existing.type.dim is None:  # type: ignore[attr-defined]
            _check_dimensions(run, column, column.type.dim)
        try:
            run.execute(f"{_alter(run, column)} ALTER COLUMN {name} TYPE {type_} USING {name}::{type_}")
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", getattr(error.orig, "pgcode", None)) != _OUT_OF_RANGE:
                raise
            raise MigrationError(
                f"{column.table.name}.{column.name} has an element that {type_} cannot hold: {error.orig}"
            ) from error

    def retype_empty_column(self, run: Runner, column: Column[Any]) -> None:
        name, type_ = quoted(run.dialect, column.name), _type_sql(run, column)
        if run.connection is None:
            # The script asks what could not be asked when it was written.
            message = f"{column.table.name}.{column.name} holds vectors; run this migration online, with backfill="
            run.execute(
                f"DO {_QUOTE} BEGIN IF EXISTS (SELECT 1 FROM {_table(run, column)} WHERE {name} IS NOT NULL) THEN "
                f"RAISE EXCEPTION USING MESSAGE = '{message}'; END IF; END {_QUOTE}"
            )
        run.execute(f"{_alter(run, column)} ALTER COLUMN {name} TYPE {type_} USING NULL::{type_}")

    def lock(self, run: Runner, table: Table) -> None:
        run.execute(f"LOCK TABLE {quoted(run.dialect, table.schema, table.name)} IN ACCESS EXCLUSIVE MODE")

    def prepare_shadow(self, run: Runner, column: Column[Any], shadow: Column[Any]) -> None:
        dialect = run.dialect
        table, name = _table(run, column), quoted(dialect, column.name)
        trigger, function = quoted(dialect, watcher(shadow)), quoted(dialect, column.table.schema, watcher(shadow))
        run.execute(
            f"{_alter(run, column)} ADD COLUMN IF NOT EXISTS {quoted(dialect, shadow.name)} {_type_sql(run, shadow)}"
        )
        run.execute(
            f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS {_QUOTE} BEGIN "
            f"IF NEW.{name} IS DISTINCT FROM OLD.{name} THEN NEW.{quoted(dialect, shadow.name)} := NULL; END IF; "
            f"RETURN NEW; END {_QUOTE}"
        )
        run.execute(
            f"CREATE OR REPLACE TRIGGER {trigger} BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {function}()"
        )

    def forget_shadow(self, run: Runner, column: Column[Any]) -> None:
        dialect, name = run.dialect, watcher(column)
        run.execute(f"DROP TRIGGER IF EXISTS {quoted(dialect, name)} ON {_table(run, column)}")
        run.execute(f"DROP FUNCTION IF EXISTS {quoted(dialect, column.table.schema, name)}()")

    def row_version(self, column: Column[Any]) -> Any:
        return literal_column("xmin::text", String)

    def builds_before_swap(self) -> bool:
        return True

    def rename_columns(self, run: Runner, table: Table, names: dict[str, str], nullable: dict[str, bool]) -> None:
        alter = f"ALTER TABLE {quoted(run.dialect, table.schema, table.name)}"
        for name, is_nullable in nullable.items():
            what = "DROP" if is_nullable else "SET"
            run.execute(f"{alter} ALTER COLUMN {quoted(run.dialect, name)} {what} NOT NULL")
        for old, new in names.items():
            run.execute(f"{alter} RENAME COLUMN {quoted(run.dialect, old)} TO {quoted(run.dialect, new)}")

    def drop_column(self, run: Runner, column: Column[Any]) -> None:
        # Who runs a script may have had an empty table, whose change kept no column.
        drop = "DROP COLUMN IF EXISTS" if run.connection is None else "DROP COLUMN"
        run.execute(f"{_alter(run, column)} {drop} {quoted(run.dialect, column.name)}")


def _create_statement(run: Runner, schema: str | None) -> str:
    into = f" SCHEMA {quoted(run.dialect, schema)}" if schema else ""
    return f"CREATE EXTENSION IF NOT EXISTS vector{into}"


def _table(run: Runner, column: Column[Any]) -> str:
    return quoted(run.dialect, column.table.schema, column.table.name)


def _alter(run: Runner, column: Column[Any]) -> str:
    return f"ALTER TABLE {_table(run, column)}"


def _type_sql(run: Runner, column: Column[Any]) -> str:
    return str(run.dialect.type_compiler_instance.process(column.type))


def _find_index(run: Runner, index: Index) -> ReflectedIndex | ReflectedText | None:
    if run.connection is None:
        return None
    assert index.table is not None
    schema = index.table.schema
    found: list[ReflectedIndex | ReflectedText] = [
        *(reflect(run.connection, schema) if text_index_key(index) is None else reflect_texts(run.connection, schema))
    ]
    return next((candidate for candidate in found if candidate.name == index.name), None)


def _check_same(run: Runner, index: Index, found: ReflectedIndex | ReflectedText) -> None:
    assert run.connection is not None
    assert index.table is not None
    here = index.table.name
    # The names of indexes are those of a schema, not of a table.
    differs = None if found.table_name == here else f"it is on {found.table_name}, not on {here}"
    key, text = index_key(index), text_index_key(index)
    if differs is None and isinstance(found, ReflectedText):
        assert text is not None
        differs = text_difference(text, found)
    elif differs is None:
        assert key is not None
        assert isinstance(found, ReflectedIndex)
        differs = difference(run.connection, index, key, found)
    if differs is not None:
        raise MigrationError(f"there is another index {index.name} already, which differs: {differs}; drop it first")


def _check_dimensions(run: Runner, column: Column[Any], dim: int) -> None:
    if run.connection is None:
        return
    name, schema = quoted(run.dialect, column.name), settings_of(run.dialect).schema
    dims = f"{quoted(run.dialect, schema)}.vector_dims" if schema else "vector_dims"
    wrong = run.connection.execute(
        verbatim(f"SELECT count(*) FROM {_table(run, column)} WHERE {dims}({name}) <> {dim}")
    ).scalar_one()
    if wrong:
        raise MigrationError(
            f"{column.table.name}.{column.name} has {wrong:,} vectors that do not have {dim:,} dimensions; "
            "correct or remove them first"
        )


@contextmanager
def _build_settings(run: Runner, build: BuildOptions) -> Iterator[None]:
    """Set what was asked for, for the build alone."""
    wanted = {}
    if build.maintenance_work_mem is not None:
        wanted["maintenance_work_mem"] = build.maintenance_work_mem
    if build.parallel_workers is not None:
        wanted["max_parallel_maintenance_workers"] = str(build.parallel_workers)
    before = {}
    for name, value in wanted.items():
        if run.connection is not None:
            before[name] = run.connection.exec_driver_sql(f"SHOW {name}").scalar_one()
        run.execute(f"SET {name} = '{value}'")
    try:
        yield
    except BaseException:
        # The end of a transaction that failed undoes them; outside of one they would stay with the connection.
        if build.concurrently:
            with suppress(DBAPIError):
                _set_back(run, wanted, before)
        raise
    _set_back(run, wanted, before)


def _set_back(run: Runner, names: Iterable[str], before: Mapping[str, str]) -> None:
    for name in names:
        run.execute(f"SET {name} = '{before[name]}'" if name in before else f"RESET {name}")
