"""Operations on text indexes, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from alembic.operations import MigrateOperation, Operations
from sqlalchemy.schema import SchemaItem

from sqla_vector.alembic.text_definition import TextIndexDefinition
from sqla_vector.dialects.migration import PLAIN, BuildOptions
from sqla_vector.exc import InvalidOption, MigrationError
from sqla_vector.schema import check_existing_name, check_identifier

__all__ = ["CreateTextIndexOp", "DropTextIndexOp", "RebuildTextIndexOp"]

_OPTIONS = frozenset({"columns", "weights", "language"})


@Operations.register_operation("create_text_index")
class CreateTextIndexOp(MigrateOperation):
    """Build a text index."""

    def __init__(self, definition: TextIndexDefinition, build: BuildOptions = PLAIN) -> None:
        self.definition = definition
        self.build = build

    @classmethod
    def create_text_index(
        cls,
        operations: Operations,
        index_name: str,
        table_name: str,
        columns: Sequence[str],
        *,
        weights: Sequence[float] | None = None,
        language: str = "simple",
        schema: str | None = None,
        table_elements: Sequence[SchemaItem] = (),
        concurrently: bool = False,
        if_not_exists: bool = False,
        maintenance_work_mem: str | None = None,
    ) -> None:
        """Build a text index: GIN on PostgreSQL, an FTS5 table and its triggers on SQLite.

        Args:
            operations: given by Alembic.
            index_name: the index's name.
            table_name: its table.
            columns: the text columns.
            weights: as for :func:`sqla_vector.text_index`; on an index is only their order.
            language: as for :func:`sqla_vector.text_index`.
            schema: the table's schema.
            table_elements: the columns that the index uses, the primary key and the unique constraints, as they
                are at this revision.  Autogenerate writes them; without them the table is reflected, which needs
                a database (no ``--sql``).
            concurrently: PostgreSQL builds without blocking writes, outside of the migration's transaction: what
                the migration did before is committed.  Give it a revision of its own.  What an interrupted build
                left behind is dropped and built anew; an index that is there already is left as it is.
            if_not_exists: do nothing if the same index is there.
            maintenance_work_mem: PostgreSQL's memory for this build, for example ``"1GB"``.

        Raises:
            InvalidIdentifier: a name cannot be one.
            InvalidOption: an option is out of range, or a column is not of text.
            MigrationError: there is no such table or column; or, with ``if_not_exists`` or ``concurrently``, another
                index of that name.
            IndexNotUsable: this database cannot build it.
        """
        definition = TextIndexDefinition(
            index_name,
            table_name,
            tuple(columns),
            None if weights is None else tuple(weights),
            language,
            schema,
            tuple(table_elements),
        )
        operations.invoke(cls(definition, BuildOptions(concurrently, if_not_exists, maintenance_work_mem)))

    def reverse(self) -> MigrateOperation:
        return DropTextIndexOp.of(self.definition, concurrently=self.build.concurrently)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        definition = self.definition
        return ("create_text_index", definition.name, definition.table_name, definition.columns, definition.written())


@Operations.register_operation("drop_text_index")
class DropTextIndexOp(MigrateOperation):
    """Drop a text index."""

    def __init__(
        self,
        index_name: str,
        table_name: str,
        schema: str | None = None,
        *,
        if_exists: bool = False,
        concurrently: bool = False,
        definition: TextIndexDefinition | None = None,
    ) -> None:
        self.index_name = check_identifier(index_name, "index name")
        self.table_name = check_existing_name(table_name, "table name")
        self.schema = None if schema is None else check_existing_name(schema, "schema")
        self.if_exists = if_exists
        self.concurrently = concurrently
        self.definition = definition

    @classmethod
    def of(cls, definition: TextIndexDefinition, *, concurrently: bool = False) -> DropTextIndexOp:
        """Return the operation that drops an index, and whose reverse builds it."""
        where = (definition.name, definition.table_name, definition.schema)
        return cls(*where, concurrently=concurrently, definition=definition)

    @classmethod
    def drop_text_index(
        cls,
        operations: Operations,
        index_name: str,
        table_name: str,
        *,
        schema: str | None = None,
        if_exists: bool = False,
        concurrently: bool = False,
    ) -> None:
        """Drop a text index; on SQLite the FTS5 table with all that belongs to it.

        Args:
            operations: given by Alembic.
            index_name: the index's name.
            table_name: its table.
            schema: the table's schema.
            if_exists: a missing index is no error.
            concurrently: PostgreSQL drops without blocking, outside of the migration's transaction.

        Raises:
            MigrationError: SQLite: there is no such index.
        """
        operations.invoke(cls(index_name, table_name, schema, if_exists=if_exists, concurrently=concurrently))

    def reverse(self) -> MigrateOperation:
        if self.definition is None:
            raise MigrationError(f"{self.index_name} cannot be built again: nothing says what it was like")
        return CreateTextIndexOp(self.definition, BuildOptions(concurrently=self.concurrently))

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("drop_text_index", self.index_name, self.table_name)


@Operations.register_operation("rebuild_text_index")
class RebuildTextIndexOp(MigrateOperation):
    """Build a text index anew, as it was or otherwise."""

    def __init__(
        self,
        definition: TextIndexDefinition,
        existing: TextIndexDefinition | None = None,
        build: BuildOptions = PLAIN,
    ) -> None:
        self.definition = definition
        self.existing = existing
        self.build = build

    @classmethod
    def rebuild_text_index(
        cls,
        operations: Operations,
        index_name: str,
        table_name: str,
        columns: Sequence[str],
        *,
        weights: Sequence[float] | None = None,
        language: str = "simple",
        schema: str | None = None,
        table_elements: Sequence[SchemaItem] = (),
        existing: Mapping[str, Any] | None = None,
        concurrently: bool = False,
        maintenance_work_mem: str | None = None,
    ) -> None:
        """Build a text index anew under its name.

        PostgreSQL builds ``<index_name>__new`` and puts it in the place of the old one, which serves until then.
        SQLite replaces the FTS5 table within the transaction.

        Args:
            operations: given by Alembic.
            index_name: the index's name.
            table_name: its table.
            columns: the text columns, as they shall be.
            weights: likewise.
            language: likewise.
            schema: the table's schema.
            table_elements: as for ``create_text_index``.
            existing: what the index had before: ``columns``, ``weights``, ``language``.  For the downgrade.
            concurrently: as for ``create_text_index``.
            maintenance_work_mem: as for ``create_text_index``.

        Raises:
            InvalidOption: ``existing`` has something else.
            MigrationError: there is no such table or column.
        """
        new = TextIndexDefinition(
            index_name,
            table_name,
            tuple(columns),
            None if weights is None else tuple(weights),
            language,
            schema,
            tuple(table_elements),
        )
        build = BuildOptions(concurrently, False, maintenance_work_mem)
        operations.invoke(cls(new, None if existing is None else _before(new, existing), build))

    def reverse(self) -> MigrateOperation:
        if self.existing is None:
            return RebuildTextIndexOp(self.definition, None, self.build)
        return RebuildTextIndexOp(self.existing, self.definition, self.build)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        definition, existing = self.definition, self.existing
        before = None if existing is None else (existing.columns, existing.written())
        return ("rebuild_text_index", definition.name, before, (definition.columns, definition.written()))


def _before(new: TextIndexDefinition, existing: Mapping[str, Any]) -> TextIndexDefinition:
    """Return the definition that an index had."""
    unknown = sorted(existing.keys() - _OPTIONS)
    if unknown:
        raise InvalidOption(f"{new.name}: existing has {', '.join(unknown)}; there are {', '.join(sorted(_OPTIONS))}")
    weights = existing.get("weights")
    return replace(
        new,
        columns=tuple(existing.get("columns", new.columns)),
        weights=None if weights is None else tuple(weights),
        language=existing.get("language", "simple"),
    )
