"""Operations on vector columns, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from alembic.operations import MigrateOperation, Operations
from sqlalchemy.types import TypeEngine

from sqla_vector.alembic.backfill import Backfill, check_backfill
from sqla_vector.alembic.definition import IndexDefinition
from sqla_vector.exc import InvalidOption
from sqla_vector.schema import check_existing_name, check_whole_number
from sqla_vector.types import VectorType

__all__ = [
    "ChangeVectorColumnOp",
    "ConvertVectorColumnOp",
    "DropKeptVectorColumnOp",
    "ReplacingOp",
    "RestoreVectorColumnOp",
    "converts",
]

MAX_BATCH: Final = 100_000


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


class ReplacingOp(_ColumnOp):
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
class ChangeVectorColumnOp(ReplacingOp):
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
class RestoreVectorColumnOp(ReplacingOp):
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
