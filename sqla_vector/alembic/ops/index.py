"""Operations on vector indexes, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from alembic.operations import MigrateOperation, Operations
from sqlalchemy.schema import SchemaItem

from sqla_vector.alembic.definition import IndexDefinition
from sqla_vector.dialects.migration import PLAIN, BuildOptions
from sqla_vector.exc import MigrationError
from sqla_vector.schema import check_existing_name, check_identifier

__all__ = ["CreateVectorIndexOp", "DropVectorIndexOp", "RebuildVectorIndexOp"]


@Operations.register_operation("create_vector_index")
class CreateVectorIndexOp(MigrateOperation):
    """Build a vector index."""

    def __init__(self, definition: IndexDefinition, build: BuildOptions = PLAIN) -> None:
        self.definition = definition
        self.build = build

    @classmethod
    def create_vector_index(
        cls,
        operations: Operations,
        index_name: str,
        table_name: str,
        column_name: str,
        *,
        schema: str | None = None,
        table_elements: Sequence[SchemaItem] = (),
        concurrently: bool = False,
        if_not_exists: bool = False,
        maintenance_work_mem: str | None = None,
        parallel_workers: int | None = None,
        **options: Any,
    ) -> None:
        """Build a vector index: hnsw or ivfflat on PostgreSQL, a vec0 table and its triggers on SQLite.

        Args:
            operations: given by Alembic.
            index_name: the index's name.
            table_name: its table.
            column_name: the vector column.
            schema: the table's schema.
            table_elements: the columns that the index uses, the primary key and the unique constraints, as they
                are at this revision.  Autogenerate writes them; without them the table is reflected, which needs
                a database (no ``--sql``).
            concurrently: PostgreSQL builds without blocking writes, outside of the migration's transaction: what
                the migration did before is committed.  Give it a revision of its own.  What an interrupted build
                left behind is dropped and built anew; an index that is there already is left as it is.
            if_not_exists: do nothing if the same index is there.
            maintenance_work_mem: PostgreSQL's memory for this build, for example ``"2GB"``.
            parallel_workers: further processes for this build on PostgreSQL.
            **options: those of :func:`sqla_vector.vector_index`; ``where`` as SQL text.

        Raises:
            InvalidIdentifier: a name cannot be one.
            InvalidOption: an option is unknown or out of range, or the column holds no vectors.
            MigrationError: there is no such table or column; or, with ``if_not_exists`` or ``concurrently``, another
                index of that name.
            IndexNotUsable: this database cannot build it.
        """
        definition = IndexDefinition(
            index_name, table_name, column_name, options, schema=schema, elements=tuple(table_elements)
        )
        build = BuildOptions(concurrently, if_not_exists, maintenance_work_mem, parallel_workers)
        operations.invoke(cls(definition, build))

    def reverse(self) -> MigrateOperation:
        return DropVectorIndexOp.of(self.definition, concurrently=self.build.concurrently)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("create_vector_index", self.definition.name, self.definition.table_name, self.definition.written())


@Operations.register_operation("drop_vector_index")
class DropVectorIndexOp(MigrateOperation):
    """Drop a vector index."""

    def __init__(
        self,
        index_name: str,
        table_name: str,
        schema: str | None = None,
        *,
        if_exists: bool = False,
        concurrently: bool = False,
        definition: IndexDefinition | None = None,
    ) -> None:
        self.index_name = check_identifier(index_name, "index name")
        self.table_name = check_existing_name(table_name, "table name")
        self.schema = None if schema is None else check_existing_name(schema, "schema")
        self.if_exists = if_exists
        self.concurrently = concurrently
        self.definition = definition

    @classmethod
    def of(cls, definition: IndexDefinition, *, concurrently: bool = False) -> DropVectorIndexOp:
        """Return the operation that drops an index, and whose reverse builds it."""
        return cls(
            definition.name,
            definition.table_name,
            definition.schema,
            if_exists=definition.is_automatic,
            concurrently=concurrently,
            definition=definition,
        )

    @classmethod
    def drop_vector_index(
        cls,
        operations: Operations,
        index_name: str,
        table_name: str,
        *,
        schema: str | None = None,
        if_exists: bool = False,
        concurrently: bool = False,
    ) -> None:
        """Drop a vector index; on SQLite the vec0 table with all that belongs to it.

        Args:
            operations: given by Alembic.
            index_name: the index's name.
            table_name: its table.
            schema: the table's schema.
            if_exists: a missing index is no error.  On SQLite it never is, since not every index of PostgreSQL
                is built there.
            concurrently: PostgreSQL drops without blocking, outside of the migration's transaction.
        """
        operations.invoke(cls(index_name, table_name, schema, if_exists=if_exists, concurrently=concurrently))

    def reverse(self) -> MigrateOperation:
        if self.definition is None:
            raise MigrationError(f"{self.index_name} cannot be built again: nothing says what it was like")
        return CreateVectorIndexOp(self.definition, BuildOptions(concurrently=self.concurrently))

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("drop_vector_index", self.index_name, self.table_name)


@Operations.register_operation("rebuild_vector_index")
class RebuildVectorIndexOp(MigrateOperation):
    """Build a vector index anew, as it was or otherwise."""

    def __init__(
        self,
        definition: IndexDefinition,
        existing: IndexDefinition | None = None,
        build: BuildOptions = PLAIN,
    ) -> None:
        self.definition = definition
        self.existing = existing
        self.build = build

    @classmethod
    def rebuild_vector_index(
        cls,
        operations: Operations,
        index_name: str,
        table_name: str,
        column_name: str,
        *,
        schema: str | None = None,
        table_elements: Sequence[SchemaItem] = (),
        existing: Mapping[str, Any] | None = None,
        concurrently: bool = False,
        maintenance_work_mem: str | None = None,
        parallel_workers: int | None = None,
        **options: Any,
    ) -> None:
        """Build a vector index anew under its name; the old one serves until the new one is there.

        PostgreSQL builds ``<index_name>__new`` and puts it in the place of the old one.  SQLite replaces the vec0
        table within the transaction.

        Args:
            operations: given by Alembic.
            index_name: the index's name.
            table_name: its table.
            column_name: the vector column.
            schema: the table's schema.
            table_elements: as for ``create_vector_index``.
            existing: the options that the index had before.  If they differ from the new ones, an index that has
                the new ones already is not built again, so that an interrupted migration can be repeated.
            concurrently: as for ``create_vector_index``.
            maintenance_work_mem: as for ``create_vector_index``.
            parallel_workers: as for ``create_vector_index``.
            **options: those of :func:`sqla_vector.vector_index`, as they shall be.

        Raises:
            MigrationError: there is no such table or column.
        """
        new = IndexDefinition(
            index_name, table_name, column_name, options, schema=schema, elements=tuple(table_elements)
        )
        old = None if existing is None else replace(new, options=dict(existing))
        build = BuildOptions(concurrently, False, maintenance_work_mem, parallel_workers)
        operations.invoke(cls(new, old, build))

    def reverse(self) -> MigrateOperation:
        if self.existing is None:
            return RebuildVectorIndexOp(self.definition, None, self.build)
        return RebuildVectorIndexOp(self.existing, self.definition, self.build)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        before = None if self.existing is None else self.existing.written()
        return ("rebuild_vector_index", self.definition.name, before, self.definition.written())
