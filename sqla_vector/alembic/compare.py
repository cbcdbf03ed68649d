"""How models and database are compared, and which operations follow.

Per table, before Alembic compares its indexes: those of vectors are claimed, and operations noted among the
table's.  At the end they are lifted out of the table's container, which may be a batch, to where they can run:
what must be gone before the table changes before it, what needs the change after it.
"""

from __future__ import annotations

import logging
from typing import Any

from alembic.operations import ops as alembic_ops
from alembic.runtime.plugins import Plugin
from alembic.util import DispatchPriority, PriorityDispatchResult
from sqlalchemy import Column, Index, Table
from sqlalchemy.dialects import postgresql

from sqla_vector.alembic import ops
from sqla_vector.alembic.arrange import arrange, is_of_extension
from sqla_vector.alembic.captures import compare_captures
from sqla_vector.alembic.definition import IndexDefinition
from sqla_vector.alembic.filters import PLUGIN, Comparison, comparison_of
from sqla_vector.alembic.texts import compare_texts
from sqla_vector.dialects.migration import MigrationSupport, ReflectedIndex, beside, kept
from sqla_vector.dialects.settings import settings_of
from sqla_vector.engine import attach_connection
from sqla_vector.schema import VectorIndexKey, index_key, vector_indexes
from sqla_vector.types import DIALECTS, VectorType, support_of

__all__ = ["setup"]

logger = logging.getLogger("alembic.sqla_vector")


def _support(context: Any) -> MigrationSupport:
    support: MigrationSupport = support_of(context.dialect).migration()
    return support


def _is_served(context: Any) -> bool:
    """Tell whether the database is one of ours; a project may migrate others with the same environment."""
    return context.dialect.name in DIALECTS


def prepare(context: Any, upgrade_ops: Any) -> PriorityDispatchResult:
    """Make reflection know the types, and see to the extension."""
    if not _is_served(context):
        return PriorityDispatchResult.CONTINUE
    attach_connection(context.connection)
    comparison = comparison_of(context.opts)
    if _needs_extension(context):
        comparison.lacks_extension = _support(context).lacks_extension(context.connection)
    if comparison.lacks_extension:
        upgrade_ops.ops.append(ops.CreateVectorExtensionOp(settings_of(context.dialect).schema))
        logger.info("Detected missing extension 'vector'")
    return PriorityDispatchResult.CONTINUE


def _needs_extension(context: Any) -> bool:
    return any(
        any(is_of_extension(column) for column in table.columns)
        and context.run_object_filters(table, table.name, "table", False, None)
        for table in context.sorted_tables
    )


def compare_type(
    context: Any, alter_op: Any, schema: str | None, table_name: str, column_name: str, conn_column: Any, column: Any
) -> PriorityDispatchResult:
    """Compare the type of a column, where one of the two is a vector."""
    old, new = conn_column.type, column.type
    if not _is_served(context) or not (isinstance(old, VectorType) or isinstance(new, VectorType)):
        return PriorityDispatchResult.CONTINUE
    user = context.opts.get("compare_type", True)
    if user is False:
        return PriorityDispatchResult.STOP
    alter_op.existing_type = old
    differs = user(context.migration_context, conn_column, column, old, new) if callable(user) else None
    if differs is False:
        return PriorityDispatchResult.STOP
    if not differs and _is_vector_of_another_package(context, column):
        return _as_without_us(context, alter_op, conn_column, column)
    if differs or not _is_same(context, old, column):
        logger.info("Detected type change from %r to %r on '%s.%s'", old, new, table_name, column_name)
        comparison_of(context.opts).retyped.append((conn_column, column))
    return PriorityDispatchResult.STOP


def _is_vector_of_another_package(context: Any, column: Column[Any]) -> bool:
    if isinstance(column.type, VectorType):
        return False
    return _type_sql(context, column.type, column).partition("(")[0] in ("vector", "halfvec", "sparsevec", "bit")


def _as_without_us(context: Any, alter_op: Any, conn_column: Any, column: Column[Any]) -> PriorityDispatchResult:
    """Leave a column to Alembic, which shall see the type that it would see without this package."""
    if _type_sql(context, conn_column.type, column) == _type_sql(context, column.type, column):
        return PriorityDispatchResult.STOP
    kind, dim = conn_column.type.kind, conn_column.type.dim
    known = getattr(type(context.dialect), "ischema_names", {}).get(kind)
    if known is not None:
        conn_column.type = known() if dim is None else known(dim)
    return PriorityDispatchResult.CONTINUE


def _type_sql(context: Any, type_: Any, column: Column[Any]) -> str:
    return str(context.dialect.type_compiler_instance.process(type_, type_expression=column)).lower()


def _is_same(context: Any, old: Any, column: Column[Any]) -> bool:
    new = column.type
    if isinstance(old, VectorType) and isinstance(new, VectorType):
        return old.kind == new.kind and old.dim == new.dim
    # Types of other packages, and bits, which PostgreSQL's own dialect reflects.
    return _type_sql(context, old, column) == _type_sql(context, new, column)


def compare_table(
    context: Any, modify_ops: Any, schema: str | None, table_name: str, conn_table: Any, table: Any
) -> PriorityDispatchResult:
    """Compare the vector and text indexes of a table, and turn its changes of type into operations."""
    if not _is_served(context):
        return PriorityDispatchResult.CONTINUE
    comparison = comparison_of(context.opts)
    comparison.show()
    comparison.claimed.clear()
    comparison.written.clear()
    comparison.kept.clear()
    if conn_table is not None:
        comparison.has_vectors |= any(map(is_of_extension, conn_table.columns))
    retyped, comparison.retyped = comparison.retyped, []
    found = [] if conn_table is None else _reflected(context, comparison, schema, table_name)
    declared = {} if table is None else {str(i.name): (i, key) for i, key in vector_indexes(table)}
    if conn_table is not None and table is not None:
        comparison.kept.update(_kept_columns(conn_table, table))
    if found or declared or retyped:
        _TableComparison(context, comparison, modify_ops, conn_table, table, declared).compare(found, retyped)
    for index, key in declared.values():
        if index_key(index) is not None or index.name in comparison.written:
            comparison.hide(key.column.table, index)
    compare_texts(context, comparison, modify_ops, schema, table_name, conn_table, table)
    return PriorityDispatchResult.CONTINUE


def _reflected(context: Any, comparison: Comparison, schema: str | None, table_name: str) -> list[ReflectedIndex]:
    where = (id(context.connection), schema)
    if where not in comparison.reflected:
        by_table: dict[str, list[ReflectedIndex]] = {}
        for index in _support(context).reflect(context.connection, schema):
            by_table.setdefault(index.table_name, []).append(index)
        comparison.reflected[where] = by_table
    return [
        index
        for index in comparison.reflected[where].get(table_name, [])
        if index.has_plain_names()
        and context.run_name_filters(index.name, "index", {"table_name": table_name, "schema_name": schema})
    ]


def _kept_columns(conn_table: Table, table: Table) -> list[str]:
    """Return the columns that a change of dimension left, or is using."""
    found = []
    for column in table.columns:
        if not isinstance(column.type, VectorType):
            continue
        for name in (kept(column.name), beside(column.name)):
            if name in conn_table.c and name not in table.c:
                logger.info("%s.%s is kept; drop it with op.drop_kept_vector_column()", table.name, name)
                found.append(name)
    return found


class _TableComparison:
    """The comparison of one table."""

    def __init__(
        self,
        context: Any,
        comparison: Comparison,
        modify_ops: Any,
        conn_table: Table | None,
        table: Table | None,
        declared: dict[str, tuple[Index, VectorIndexKey]],
    ) -> None:
        self._context = context
        self._comparison = comparison
        self._ops: list[Any] = modify_ops.ops
        self._conn_table = conn_table
        self._table = table
        self._declared = declared
        self._support = _support(context)

    def compare(self, found: list[ReflectedIndex], retyped: list[tuple[Any, Any]]) -> None:
        changed = {column.name for column, _ in retyped}
        # On a column that changes Alembic only makes anew what it knows: the index has to be gone before.
        existing = {i.name: i for i in found if not self._is_foreign(i) or i.column_name in changed}
        declared = {name: pair for name, pair in self._declared.items() if index_key(pair[0]) is not None}
        for old, new in retyped:
            self._compare_column(old, new, existing, declared)
        for name in sorted(existing.keys() | declared.keys()):
            pair = declared.get(name)
            if name in existing:
                self._compare_index(existing[name], pair, changed)
            elif pair is not None and pair[1].column.name not in changed and self._is_to_add(*pair):
                # It is not claimed: a plain index of this name is Alembic's to drop.
                self._add(pair)
        for name, (index, key) in self._declared.items():
            if name not in declared and name not in existing and name in {i.name for i in found}:
                self._compare_pgvector_index(next(i for i in found if i.name == name), index, key)

    def _is_foreign(self, index: ReflectedIndex) -> bool:
        """Tell whether an index belongs to a model of another package, or is declared as pgvector-python does it."""
        if self._table is None or not index.is_shared:
            return False
        if index.name in {str(i.name) for i in self._table.indexes}:
            return index.name not in self._declared or index_key(self._declared[index.name][0]) is None
        column = self._table.c.get(index.column_name)
        return column is not None and not isinstance(column.type, VectorType)

    def _is_included(self, index: Index, key: VectorIndexKey, compare_to: Index | None) -> bool:
        """Ask the environment's own filter."""
        return bool(self._context.run_object_filters(index, index.name, "index", False, compare_to))

    def _is_to_add(self, index: Index, key: VectorIndexKey) -> bool:
        if not self._is_included(index, key, None):
            return False
        # A new table's indexes are always written: the migration may run on another database.
        if self._conn_table is None or self._support.is_wanted(self._context.connection, index, key):
            return True
        logger.info("%s is not built on this database", index.name)
        return False

    def _add(self, pair: tuple[Index, VectorIndexKey]) -> None:
        logger.info("Detected added vector index %r on '%s'", pair[0].name, pair[1].column.name)
        self._ops.append(ops.CreateVectorIndexOp(self._definition(*pair)))

    def _compare_index(self, old: ReflectedIndex, pair: tuple[Index, VectorIndexKey] | None, changed: set[str]) -> None:
        existing = Index(old.name)
        included = (
            self._context.run_object_filters(existing, old.name, "index", True, None)
            if pair is None
            else self._is_included(*pair, existing)
        )
        if not included:
            return
        self._comparison.claimed.add(old.name)
        moved = old.column_name in changed
        if pair is None:
            if not moved:
                logger.info("Detected removed vector index %r on '%s'", old.name, old.table_name)
                self._ops.append(ops.DropVectorIndexOp.of(self._existing(old, pair)))
            return
        moves = pair[1].column.name in changed
        if moved or moves:
            # The operation on the column sees to its indexes.
            if not moved:
                self._ops.append(ops.DropVectorIndexOp.of(self._existing(old, pair)))
            if not moves:
                self._add(pair)
            return
        reason = self._support.difference(self._context.connection, *pair, old)
        if reason is not None:
            logger.info("Detected changed vector index %r on '%s': %s", old.name, old.table_name, reason)
            self._ops.append(ops.RebuildVectorIndexOp(self._definition(*pair), self._existing(old, pair)))

    def _existing(self, old: ReflectedIndex, pair: tuple[Index, VectorIndexKey] | None) -> IndexDefinition:
        # Only made for what differs: it costs more than the comparison.
        assert self._conn_table is not None
        return IndexDefinition.of_reflected(old, self._conn_table, None if pair is None else pair[1].spec)

    def _compare_column(
        self,
        old: Column[Any],
        new: Column[Any],
        existing: dict[str, ReflectedIndex],
        declared: dict[str, tuple[Index, VectorIndexKey]],
    ) -> None:
        assert self._conn_table is not None
        before = [
            IndexDefinition.of_reflected(index, self._conn_table, self._hint(name))
            for name, index in sorted(existing.items())
            if index.column_name == old.name
        ]
        after = [self._definition(*pair) for _, pair in sorted(declared.items()) if pair[1].column is new]
        # Bits are reflected as PostgreSQL's own type; an index on them knows that they are a vector.
        known = next((i.type_ for i in existing.values() if i.column_name == old.name and i.type_ is not None), None)
        was = old.type if isinstance(old.type, VectorType) or known is None else known
        types: dict[str, Any] = {"type_": new.type, "existing_type": was, "schema": self._conn_table.schema}
        if ops.converts(old.type, new.type):
            self._ops.extend(ops.DropVectorIndexOp.of(definition) for definition in before)
            self._ops.append(ops.ConvertVectorColumnOp(self._conn_table.name, old.name, **types))
            self._ops.extend(ops.CreateVectorIndexOp(definition) for definition in after)
        else:
            types |= {"indexes": after, "existing_indexes": before}
            self._ops.append(ops.ChangeVectorColumnOp(self._conn_table.name, old.name, **types))

    def _hint(self, name: str) -> Any:
        return self._declared[name][1].spec if name in self._declared else None

    def _definition(self, index: Index, key: VectorIndexKey) -> IndexDefinition:
        where = index.dialect_options["postgresql"]["where"]
        sql = None if where is None else _predicate(where)
        return IndexDefinition.of(index, key, sql)

    def _compare_pgvector_index(self, old: ReflectedIndex, index: Index, key: VectorIndexKey) -> None:
        """Compare an index declared as for pgvector-python; Alembic sees too little of it, but can write it."""
        reason = self._support.difference(self._context.connection, index, key, old)
        if reason is None or not self._is_included(index, key, None):
            return
        assert self._conn_table is not None
        logger.info("Detected changed vector index %r on '%s': %s", old.name, old.table_name, reason)
        self._comparison.claimed.add(old.name)
        self._comparison.written.add(old.name)
        before = IndexDefinition.of_reflected(old, self._conn_table, None)
        self._ops.append(ops.DropVectorIndexOp.of(before))
        self._ops.append(alembic_ops.CreateIndexOp.from_index(index))


def _predicate(where: Any) -> str:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    # A dialect that was never connected doubles backslashes, as servers did before standard_conforming_strings.
    dialect._backslash_escapes = False
    compiled = where.compile(dialect=dialect, compile_kwargs={"literal_binds": True, "include_table": False})
    return str(compiled).replace("%%", "%")


def release(context: Any, *arguments: Any) -> PriorityDispatchResult:
    """Give a table its indexes back, when Alembic has compared the others."""
    comparison_of(context.opts).show()
    return PriorityDispatchResult.CONTINUE


def setup(plugin: Plugin) -> None:
    """Register the comparators."""
    first, last = DispatchPriority.FIRST, DispatchPriority.LAST
    plugin.add_autogenerate_comparator(prepare, "autogenerate", PLUGIN, priority=first)
    plugin.add_autogenerate_comparator(compare_type, "column", "types", priority=first)
    plugin.add_autogenerate_comparator(compare_table, "table", PLUGIN, priority=first)
    plugin.add_autogenerate_comparator(release, "table", PLUGIN, priority=last)
    plugin.add_autogenerate_comparator(compare_captures, "schema", PLUGIN)
    plugin.add_autogenerate_comparator(arrange, "autogenerate", PLUGIN + ".arrange", priority=last)
