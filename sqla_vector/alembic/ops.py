"""Operations as data: what a migration does, and how it is undone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from alembic.operations import MigrateOperation, Operations
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import TypeEngine

from sqla_vector.alembic.backfill import Backfill, check_backfill
from sqla_vector.alembic.definition import IndexDefinition
from sqla_vector.dialects.migration import PLAIN, BuildOptions
from sqla_vector.exc import InvalidOption, MigrationError
from sqla_vector.schema import check_existing_name, check_identifier, check_whole_number
from sqla_vector.types import VectorType

__all__ = [
    "Backfill",
    "ChangeVectorColumnOp",
    "ConvertVectorColumnOp",
    "CreateVectorExtensionOp",
    "CreateVectorIndexOp",
    "DropKeptVectorColumnOp",
    "DropVectorExtensionOp",
    "DropVectorIndexOp",
    "RebuildVectorIndexOp",
    "RestoreVectorColumnOp",
]

MAX_BATCH: Final = 100_000


def _is_version(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)*", value, re.ASCII) is not None


@Operations.register_operation("create_vector_extension")
class CreateVectorExtensionOp(MigrateOperation):
    """Create the extension ``vector``."""

    def __init__(self, schema: str | None = None, minimum_version: str | None = None) -> None:
        self.schema = None if schema is None else check_identifier(schema, "schema")
        if minimum_version is not None and not _is_version(minimum_version):
            raise InvalidOption(f"minimum_version must be like 0.8.2, got {minimum_version!r}")
        self.minimum_version = minimum_version

    @classmethod
    def create_vector_extension(
        cls, operations: Operations, *, schema: str | None = None, minimum_version: str | None = None
    ) -> None:
        """Create pgvector's extension where it is missing; on SQLite there is nothing to create.

        Args:
            operations: given by Alembic.
            schema: the schema to create it in, which must exist; else the first of the search path.
            minimum_version: the oldest version of pgvector that will do, for example ``"0.8.2"``.

        Raises:
            ExtensionMissing: this role may not create it, the server does not have it, or it is too old.
            MigrationError: it is there, in another schema.
        """
        operations.invoke(cls(schema, minimum_version))

    def reverse(self) -> MigrateOperation:
        return DropVectorExtensionOp(self.schema)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("create_vector_extension", self.schema)


@Operations.register_operation("drop_vector_extension")
class DropVectorExtensionOp(MigrateOperation):
    """Drop the extension ``vector``."""

    def __init__(self, schema: str | None = None) -> None:
        self.schema = None if schema is None else check_identifier(schema, "schema")

    @classmethod
    def drop_vector_extension(cls, operations: Operations, *, schema: str | None = None) -> None:
        """Drop pgvector's extension; refused by the server while a column uses it.  On SQLite nothing is done.

        Args:
            operations: given by Alembic.
            schema: where it was created, so that the reverse creates it there.
        """
        operations.invoke(cls(schema))

    def reverse(self) -> MigrateOperation:
        return CreateVectorExtensionOp(self.schema)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("drop_vector_extension", self.schema)


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
            MigrationError: there is no such table or column, or another index of that name.
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


class _ColumnOp(MigrateOperation):
    """An operation on the type of a vector column."""

    def __init__(
        self,
        table_name: str,
        column_name: str,
        *,
        type_: TypeEngine[Any],
        existing_type: TypeEngine[Any],
        schema: str | None = None,
    ) -> None:
        self.table_name = check_existing_name(table_name, "table name")
        self.column_name = check_existing_name(column_name, "column name")
        self.schema = None if schema is None else check_existing_name(schema, "schema")
        for name, given in (("type_", type_), ("existing_type", existing_type)):
            if not isinstance(given, TypeEngine):
                raise InvalidOption(
                    f"{table_name}.{column_name}: {name} must be a type, for example sqla_vector.Vector(384), "
                    f"got {given!r}"
                )
        self.type_ = type_
        self.existing_type = existing_type

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return (type(self).__name__, self.schema, self.table_name, self.column_name, self.existing_type, self.type_)


@Operations.register_operation("convert_vector_column")
class ConvertVectorColumnOp(_ColumnOp):
    """Change the type of a vector column in place, converting its vectors."""

    @classmethod
    def convert_vector_column(
        cls,
        operations: Operations,
        table_name: str,
        column_name: str,
        *,
        type_: TypeEngine[Any],
        existing_type: TypeEngine[Any],
        schema: str | None = None,
    ) -> None:
        """Convert a column between ``Vector`` and ``HalfVector``, or give it a dimension or none.

        To half precision the elements are rounded, and the reverse does not bring their digits back.  Indexes on
        the column are dropped before and created after, as autogenerate writes it.

        Args:
            operations: given by Alembic.
            table_name: the table.
            column_name: the vector column.
            type_: the new type.
            existing_type: the type it has.
            schema: the table's schema.

        Raises:
            InvalidOption: the types are too different; ``change_vector_column`` is for those.
            MigrationError: a vector does not fit the new type.  Nothing is changed then.
        """
        if not converts(existing_type, type_):
            raise InvalidOption(
                f"{table_name}.{column_name}: {existing_type!r} does not convert to {type_!r} in place; "
                "use op.change_vector_column()"
            )
        operations.invoke(cls(table_name, column_name, type_=type_, existing_type=existing_type, schema=schema))

    def reverse(self) -> MigrateOperation:
        return ConvertVectorColumnOp(
            self.table_name, self.column_name, type_=self.existing_type, existing_type=self.type_, schema=self.schema
        )


def converts(old: TypeEngine[Any], new: TypeEngine[Any]) -> bool:
    """Tell whether the vectors of one type can become another's in place."""
    if not isinstance(old, VectorType) or not isinstance(new, VectorType):
        return False
    if old.dim == new.dim:
        return {old.kind, new.kind} == {"vector", "halfvec"}
    # pgvector checks the dimension of what is there; for bits there is no type without one.
    return old.kind == new.kind and old.kind in ("vector", "halfvec") and None in (old.dim, new.dim)


class _ReplacingOp(_ColumnOp):
    """An operation that puts another column in the place of one, with its indexes."""

    def __init__(
        self,
        table_name: str,
        column_name: str,
        *,
        type_: TypeEngine[Any],
        existing_type: TypeEngine[Any],
        schema: str | None = None,
        indexes: Sequence[IndexDefinition] = (),
        existing_indexes: Sequence[IndexDefinition] = (),
        backfill: Backfill = None,
        source: str | Sequence[str] = (),
        batch_size: int = 500,
        concurrently: bool = True,
    ) -> None:
        super().__init__(table_name, column_name, type_=type_, existing_type=existing_type, schema=schema)
        self.source = check_backfill(backfill, source)
        self.indexes = tuple(indexes)
        self.existing_indexes = tuple(existing_indexes)
        self.backfill = backfill
        self.batch_size = check_whole_number(batch_size, "batch_size", 1, MAX_BATCH)
        self.concurrently = concurrently

    @classmethod
    def made(cls, table_name: str, column_name: str, **kw: Any) -> Any:
        """Return the operation for the arguments of the directive."""
        schema = kw.get("schema")
        for name in ("indexes", "existing_indexes"):
            definitions = []
            for options in kw.get(name) or ():
                given = dict(options)
                index_name = given.pop("index_name", None)
                definitions.append(IndexDefinition(index_name, table_name, column_name, given, schema=schema))
            kw[name] = definitions
        return cls(table_name, column_name, **kw)

    def _other_way(self) -> dict[str, Any]:
        return {
            "type_": self.existing_type,
            "existing_type": self.type_,
            "schema": self.schema,
            "indexes": self.existing_indexes,
            "existing_indexes": self.indexes,
        }


@Operations.register_operation("change_vector_column")
class ChangeVectorColumnOp(_ReplacingOp):
    """Give a vector column another dimension or model."""

    @classmethod
    def change_vector_column(
        cls,
        operations: Operations,
        table_name: str,
        column_name: str,
        *,
        type_: TypeEngine[Any],
        existing_type: TypeEngine[Any],
        schema: str | None = None,
        indexes: Sequence[Mapping[str, Any]] = (),
        existing_indexes: Sequence[Mapping[str, Any]] = (),
        backfill: Backfill = None,
        source: str | Sequence[str] = (),
        batch_size: int = 500,
        concurrently: bool = True,
    ) -> None:
        """Change a column's dimension, kind or model, where the vectors of old cannot be converted.

        A table without vectors is changed in place.  Otherwise a column beside (``<column>__new``) is filled in
        batches that are committed one by one, indexed, checked to be complete, and put in the column's place; the
        old column stays as ``<column>__old`` until ``op.drop_kept_vector_column()``.  Interrupted, the migration
        can be run again and goes on where it was.  On PostgreSQL others may write meanwhile: rows that change are
        filled again.

        Args:
            operations: given by Alembic.
            table_name: the table, which has a primary key.
            column_name: the column.
            type_: the new type, for example ``sqla_vector.Vector(768)``; the same dimension for a new model.
            existing_type: the type it has.
            schema: the table's schema.
            indexes: the indexes that the new column shall have: for each the ``index_name`` and the options of
                :func:`sqla_vector.vector_index`.
            existing_indexes: those that the column has now.
            backfill: a function that is given rows, as a list of mappings from column name to value, and returns
                the new vectors, shape (len(rows), dimension).  Or an embedder, an object whose ``embed(texts)``
                returns them, with ``source=``.  Or ``"later"``: the new column starts out NULL.  None is good
                for a table without vectors only.  Rows without an old vector are not asked for.
            source: for an embedder: the columns whose text it is given, joined by a blank line.  A column without
                text is left out; a row without any is refused, since its vector would mean nothing.
            batch_size: rows given to ``backfill`` at once.
            concurrently: PostgreSQL builds the new indexes without blocking writes.

        Raises:
            MigrationError: there are vectors and no ``backfill``, or it did not give a vector for every row; the
                column is as it was.
            InvalidVector: ``backfill`` returned what are no vectors of the new type.
        """
        operations.invoke(
            cls.made(
                table_name,
                column_name,
                type_=type_,
                existing_type=existing_type,
                schema=schema,
                indexes=indexes,
                existing_indexes=existing_indexes,
                backfill=backfill,
                source=source,
                batch_size=batch_size,
                concurrently=concurrently,
            )
        )

    def reverse(self) -> MigrateOperation:
        return RestoreVectorColumnOp(self.table_name, self.column_name, **self._other_way())


@Operations.register_operation("restore_vector_column")
class RestoreVectorColumnOp(_ReplacingOp):
    """Bring back the column that ``change_vector_column`` kept."""

    @classmethod
    def restore_vector_column(
        cls,
        operations: Operations,
        table_name: str,
        column_name: str,
        *,
        type_: TypeEngine[Any],
        existing_type: TypeEngine[Any],
        schema: str | None = None,
        indexes: Sequence[Mapping[str, Any]] = (),
        existing_indexes: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Undo ``change_vector_column``: the old column takes its place again, the new one is dropped.

        Rows written since have no vector in the old column; how many is logged.

        Args:
            operations: given by Alembic.
            table_name: the table.
            column_name: the column.
            type_: the type of the old column.
            existing_type: the type that the column has now.
            schema: the table's schema.
            indexes: the indexes that the old column shall have, as for ``change_vector_column``.
            existing_indexes: those that the column has now.

        Raises:
            MigrationError: the old column is gone and there are vectors, or rows without one where NULL is not
                allowed.  Nothing is changed then.
        """
        operations.invoke(
            cls.made(
                table_name,
                column_name,
                type_=type_,
                existing_type=existing_type,
                schema=schema,
                indexes=indexes,
                existing_indexes=existing_indexes,
            )
        )

    def reverse(self) -> MigrateOperation:
        return ChangeVectorColumnOp(self.table_name, self.column_name, **self._other_way())


@Operations.register_operation("drop_kept_vector_column")
class DropKeptVectorColumnOp(MigrateOperation):
    """Drop the column that ``change_vector_column`` kept."""

    def __init__(self, table_name: str, column_name: str, schema: str | None = None) -> None:
        self.table_name = check_existing_name(table_name, "table name")
        self.column_name = check_existing_name(column_name, "column name")
        self.schema = None if schema is None else check_existing_name(schema, "schema")

    @classmethod
    def drop_kept_vector_column(
        cls, operations: Operations, table_name: str, column_name: str, *, schema: str | None = None
    ) -> None:
        """Drop ``<column_name>__old``, if it is there.  From then on the change cannot be undone.

        After a change that was begun and given up it drops ``<column_name>__new``, with its trigger.

        Args:
            operations: given by Alembic.
            table_name: the table.
            column_name: the column that was changed.
            schema: the table's schema.
        """
        operations.invoke(cls(table_name, column_name, schema))

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("drop_kept_vector_column", self.schema, self.table_name, self.column_name)
