"""Another dimension or model for a column that has vectors, in steps that can be repeated.

=========================================  ===================  =================================
columns                                    what happened        what is done
=========================================  ===================  =================================
``c`` old type                             nothing              ``c__new`` is added
``c`` old type, ``c__new``                 interrupted          the rest is filled, then swapped
``c`` new type, ``c__old``                 done                 nothing
``c`` new type                             done (and dropped)   nothing
=========================================  ===================  =================================
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any, Final

from sqlalchemy import Column, Index, MetaData, Table, bindparam, func, select, tuple_, update
from sqlalchemy.engine import Connection
from sqlalchemy.types import TypeEngine

from sqla_vector.alembic import ops
from sqla_vector.alembic.backfill import compute_vectors
from sqla_vector.alembic.definition import IndexDefinition, reflect_table
from sqla_vector.alembic.runner import OperationsRunner
from sqla_vector.dialects.migration import PLAIN, BuildOptions, beside, kept
from sqla_vector.exc import MigrationError
from sqla_vector.schema import index_key, is_small

__all__ = ["ColumnChange", "ColumnRestoration", "column_of", "is_due"]

logger = logging.getLogger("alembic.sqla_vector")

_VERSION: Final = "sqla_vector_version"


def is_due(run: OperationsRunner, index: Index) -> bool:
    """Tell whether an index is to be built now: the number of rows decides for ``method="auto"``."""
    key = index_key(index)
    assert key is not None
    if key.spec.method != "auto" or run.connection is None or not is_small(run.connection, key.column.table):
        return True
    logger.info("%s is not built: its table has few rows, which an exact scan serves as well", index.name)
    return False


def column_of(table: Table, name: str) -> Column[Any]:
    """Return a column of a reflected table."""
    if name not in table.c:
        raise MigrationError(f"there is no column {table.name}.{name}")
    return table.c[name]


class _Replacement:
    """What both ways have in common: the column, its indexes, and swapping."""

    def __init__(self, run: OperationsRunner, op: ops.ReplacingOp) -> None:
        self._run = run
        self._op = op
        self._support = run.support
        self._name = f"{op.table_name}.{op.column_name}"

    def apply(self) -> None:
        """Do it, as far as it is not done yet."""
        if self._run.connection is None:
            # A script is for a column without vectors, and sees to it itself.
            self._retype()
            return
        table = self._reflect()
        self._replace(table, column_of(table, self._op.column_name))

    def _replace(self, table: Table, column: Column[Any]) -> None:
        raise NotImplementedError

    @property
    def _connection(self) -> Connection:
        connection = self._run.connection
        assert connection is not None
        return connection

    def _reflect(self) -> Table:
        return reflect_table(self._connection, self._op.table_name, self._op.schema)

    def _is(self, column: Column[Any], type_: TypeEngine[Any]) -> bool:
        """Tell whether a reflected column has a type."""
        process = self._run.dialect.type_compiler_instance.process
        return str(process(column.type)).lower() == str(process(type_)).lower()

    def _column(self, name: str, type_: TypeEngine[Any]) -> Column[Any]:
        column: Column[Any] = Column(name, type_)
        Table(self._op.table_name, MetaData(), column, schema=self._op.schema)
        return column

    def _count(self, *criteria: Any) -> int:
        (table,) = {criterion.left.table for criterion in criteria}
        return int(self._connection.scalar(select(func.count()).select_from(table).where(*criteria)) or 0)

    def _has_any(self, column: Column[Any]) -> bool:
        return self._connection.scalar(select(1).where(column.is_not(None)).limit(1)) is not None

    def _drop_indexes(self) -> None:
        for definition in self._op.existing_indexes:
            self._support.drop_index(
                self._run,
                definition.name,
                definition.table_name,
                definition.schema,
                if_exists=True,
                concurrently=False,
            )

    def _create_indexes(self) -> None:
        for definition in self._op.indexes:
            index = definition.bind(self._run.connection, self._op.type_)
            if is_due(self._run, index):
                self._support.create_index(self._run, index, PLAIN)

    def _retype(self) -> None:
        """Change the type of a column without vectors."""
        self._drop_indexes()
        self._support.retype_empty_column(self._run, self._column(self._op.column_name, self._op.type_))
        self._create_indexes()


class ColumnChange(_Replacement):
    """``op.change_vector_column()``."""

    _op: ops.ChangeVectorColumnOp

    def _replace(self, table: Table, column: Column[Any]) -> None:
        op = self._op
        shadow = table.c.get(beside(op.column_name))
        if shadow is None and self._is_done(table, column):
            logger.info("%s has been changed already", self._name)
            return
        if shadow is not None and not self._is(shadow, op.type_):
            raise MigrationError(
                f"{op.table_name}.{shadow.name} is left over from another change, its type is {shadow.type!r}; "
                f"drop it with op.drop_kept_vector_column({op.table_name!r}, {op.column_name!r})"
            )
        for name in op.source:
            column_of(table, name)
        self._support.lock(self._run, table)
        if shadow is None and not self._has_any(column):
            self._retype()
        elif op.backfill == "later":
            self._start_empty(table, column)
        elif op.backfill is None:
            raise MigrationError(
                f"{self._name} holds vectors of {op.existing_type!r}, which do not convert to {op.type_!r}: give "
                'op.change_vector_column() backfill=, a function from rows to vectors, or backfill="later"'
            )
        elif not table.primary_key.columns:
            raise MigrationError(f"{table.name} has no primary key, by which its rows could be filled in batches")
        else:
            self._fill_and_swap(table, column)

    def _is_done(self, table: Table, column: Column[Any]) -> bool:
        old, new = self._op.existing_type, self._op.type_
        before = table.c.get(kept(self._op.column_name))
        # With one type for both models nothing tells a change that was done from one that is to follow it.
        if before is not None and not self._is(column, old) and self._is(column, new) and self._is(before, old):
            return True
        if before is not None:
            raise MigrationError(
                f"{table.name}.{before.name} is kept from an earlier change; drop it first, with "
                f"op.drop_kept_vector_column({table.name!r}, {column.name!r})"
            )
        if self._is(column, old):
            return False
        if not self._is(column, new):
            raise MigrationError(f"{self._name} is {column.type!r}, neither {old!r} nor {new!r}")
        return True

    def _start_empty(self, table: Table, column: Column[Any]) -> None:
        if not column.nullable:
            raise MigrationError(f'{self._name} takes no NULL, so backfill="later" cannot be; give a function')
        name = self._op.column_name
        shadow = self._column(beside(name), self._op.type_)
        self._support.prepare_shadow(self._run, self._column(name, column.type), shadow)
        self._swap(table, column, renamed=[])

    def _fill_and_swap(self, table: Table, column: Column[Any]) -> None:
        name = self._op.column_name
        shadow = self._column(beside(name), self._op.type_)
        with self._run.autocommit():
            self._support.prepare_shadow(self._run, self._column(name, column.type), shadow)
            filling = _Filling(self._run, self._reflect(), self._op)
            filling.fill(commit=True)
        built = self._build_beside() if self._support.builds_before_swap() else []
        table = self._reflect()
        self._support.lock(self._run, table)
        # What others wrote between the last batch and the lock.
        _Filling(self._run, table, self._op).fill(commit=False)
        missing = self._count(table.c[name].is_not(None), table.c[beside(name)].is_(None))
        if missing:
            raise MigrationError(f"{missing:,} rows of {self._name} have no vector of the new type")
        self._swap(table, table.c[name], built)

    def _build_beside(self) -> list[IndexDefinition]:
        built = []
        for definition in self._op.indexes:
            fresh = replace(definition, name=beside(definition.name))
            index = fresh.bind(None, self._op.type_, beside(self._op.column_name))
            if not is_due(self._run, index):
                continue
            build = BuildOptions(concurrently=self._op.concurrently, if_not_exists=True)
            self._support.create_index(self._run, index, build)
            built.append(definition)
        return built

    def _swap(self, table: Table, column: Column[Any], renamed: list[IndexDefinition]) -> None:
        name = self._op.column_name
        shadow = self._column(beside(name), self._op.type_)
        self._support.forget_shadow(self._run, shadow)
        self._drop_indexes()
        is_required = not column.nullable
        nullable = {name: True, beside(name): False} if is_required else {}
        self._support.rename_columns(self._run, table, {name: kept(name), beside(name): name}, nullable)
        for definition in renamed:
            self._support.rename_index(self._run, beside(definition.name), definition.name, definition.schema)
        if not renamed:
            self._create_indexes()
        logger.info("%s is changed; the old vectors are kept as %s", self._name, kept(name))


class _Filling:
    """Fills a shadow column, in the order of the key and in batches."""

    def __init__(self, run: OperationsRunner, table: Table, op: ops.ChangeVectorColumnOp) -> None:
        self._run = run
        self._table = table
        self._op = op
        self._where = f"{table.name}.{op.column_name}"
        self._key = list(table.primary_key.columns)
        self._version = run.support.row_version(table.c[op.column_name])

    @property
    def _connection(self) -> Connection:
        # Not kept: within an autocommit block Alembic has another one.
        connection = self._run.connection
        assert connection is not None
        return connection

    @cached_property
    def _update(self) -> Any:
        criteria = [column == bindparam(f"key_{number}") for number, column in enumerate(self._key)]
        # A row that somebody wrote since it was read is left to the next pass.
        criteria.append(self._version == bindparam("version", type_=self._version.type))
        shadow = beside(self._op.column_name)
        return update(self._table).where(*criteria).values({shadow: bindparam("vector", type_=self._op.type_)})

    def fill(self, *, commit: bool) -> None:
        """Fill every row that has an old vector and no new one.

        Raises:
            MigrationError: backfill failed, or a row does not keep what is written.
        """
        total, number = 0, 0
        seen: dict[Any, Any] = {}
        while True:
            number += 1
            before, seen, filled = seen, {}, 0
            for rows in self._batches():
                for row in rows if number > 1 else ():  # from the second pass on there are few
                    self._check_progress(row, before)
                    seen[self._key_of(row)] = row[_VERSION]
                # Outside of any transaction, since it may take long.
                vectors = self._vectors(rows)
                with self._run.transaction() if commit else nullcontext():
                    self._write(rows, vectors)
                filled += len(rows)
                logger.info("%s: %d rows filled", self._where, total + filled)
            total += filled
            if not filled:
                return

    def _key_of(self, row: Any) -> tuple[Any, ...]:
        return tuple(row[column.name] for column in self._key)

    def _check_progress(self, row: Any, before: Mapping[Any, Any]) -> None:
        key = self._key_of(row)
        if key in before and before[key] == row[_VERSION]:
            raise MigrationError(
                f"{self._where}: the new vector of the row {key!r} was written and is not there; "
                "a trigger or a policy of the table may stand in the way, or its key is NULL"
            )

    def _batches(self) -> Iterator[list[Any]]:
        old = self._table.c[self._op.column_name]
        shadow = self._table.c[beside(self._op.column_name)]
        columns = [c for c in self._table.columns if c is not shadow]
        wanted = select(*columns, self._version.label(_VERSION)).where(old.is_not(None), shadow.is_(None))
        wanted = wanted.order_by(*self._key).limit(self._op.batch_size)
        last: tuple[Any, ...] | None = None
        while True:
            stmt = wanted if last is None else wanted.where(self._after(last))
            rows = self._connection.execute(stmt).mappings().all()
            if not rows:
                return
            yield list(rows)
            last = self._key_of(rows[-1])

    def _after(self, last: tuple[Any, ...]) -> Any:
        if len(self._key) == 1:
            return self._key[0] > last[0]
        return tuple_(*self._key) > tuple_(*last)

    def _vectors(self, rows: list[Any]) -> list[Any]:
        given = [{name: value for name, value in row.items() if name != _VERSION} for row in rows]
        key = tuple(column.name for column in self._key)
        op = self._op
        return compute_vectors(op.backfill, op.source, list(given), op.type_, self._where, key)

    def _write(self, rows: list[Any], vectors: list[Any]) -> None:
        parameters = []
        for row, vector in zip(rows, vectors, strict=True):
            values = {f"key_{number}": value for number, value in enumerate(self._key_of(row))}
            parameters.append({**values, "version": row[_VERSION], "vector": vector})
        self._connection.execute(self._update, parameters)


class ColumnRestoration(_Replacement):
    """``op.restore_vector_column()``."""

    _op: ops.RestoreVectorColumnOp

    def _replace(self, table: Table, column: Column[Any]) -> None:
        op = self._op
        old = table.c.get(kept(op.column_name))
        if old is None and self._is(column, op.type_) and not self._is(column, op.existing_type):
            logger.info("%s has been restored already", self._name)
            return
        if not self._is(column, op.existing_type):
            raise MigrationError(f"{self._name} is {column.type!r}, not {op.existing_type!r}")
        self._support.lock(self._run, table)
        if old is not None:
            self._swap_back(table, column, old)
        elif self._has_any(column):
            raise MigrationError(
                f"{self._name} holds vectors of {op.existing_type!r}, and no column {kept(op.column_name)} with the "
                "old ones is there; to go back, change the column with op.change_vector_column() and backfill="
            )
        else:
            self._retype()

    def _swap_back(self, table: Table, column: Column[Any], old: Column[Any]) -> None:
        op = self._op
        if not self._is(old, op.type_):
            raise MigrationError(f"{op.table_name}.{old.name} is {old.type!r}, not {op.type_!r}")
        without = self._count(column.is_not(None), old.is_(None))
        if without and not column.nullable:
            raise MigrationError(
                f"{without:,} rows of {op.table_name} were written after {self._name} was changed and have no old "
                "vector, which the column does not allow; fill {old.name} first"
            )
        if without:
            logger.warning("%d rows of %s have no old vector: they were written since", without, op.table_name)
        self._drop_indexes()
        if not column.nullable:
            self._support.rename_columns(self._run, table, {}, {old.name: False})
        self._support.drop_column(self._run, self._column(op.column_name, op.existing_type))
        self._support.rename_columns(self._run, table, {old.name: op.column_name}, {})
        self._create_indexes()
