"""Operations on outbox triggers, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alembic.operations import MigrateOperation, Operations

from sqla_vector.dialects.capture import Capture, capture_name
from sqla_vector.exc import InvalidOption
from sqla_vector.schema import check_existing_name

__all__ = ["CreateOutboxTriggerOp", "DropOutboxTriggerOp"]


@Operations.register_operation("create_outbox_trigger")
class CreateOutboxTriggerOp(MigrateOperation):
    """Create the triggers of a table that write into an outbox."""

    def __init__(self, definition: Capture, existing: Capture | None = None) -> None:
        self.definition = definition
        self.existing = existing

    @classmethod
    def create_outbox_trigger(
        cls,
        operations: Operations,
        table_name: str,
        *,
        outbox: str,
        marks: Sequence[Mapping[str, Any]],
        schema: str | None = None,
        outbox_schema: str | None = None,
        channel: str = "embedding",
        unique: Sequence[Sequence[str]] = (),
        deletes: bool = False,
        existing: Mapping[str, Any] | None = None,
    ) -> None:
        """Create triggers that write changes of a table into an outbox, in place of those of an older definition.

        Autogenerate writes the definition down as :func:`sqla_vector.tracking.outbox_triggers` makes it of the
        models, so that the migration stays what it is when these change.

        Args:
            operations: given by Alembic.
            table_name: the table whose changes are noticed.
            outbox: the table that they are written into.
            marks: which rows are marked: for each the ``entity``, its ``key`` (the kind of each column), the
                columns ``watched``, and a ``path`` from the table to the entity's or a ``fingerprint``.
            schema: the table's schema.
            outbox_schema: the outbox's.
            channel: whose entries they are.
            unique: the columns of the primary key and of each unique constraint, for SQLite's REPLACE.
            deletes: whether deleted rows are entries too.
            existing: the arguments of the triggers that these replace, with their ``table_name``.

        Raises:
            InvalidOption: it is no definition, or SQLite cannot have it.
            InvalidIdentifier: a name cannot be one.
        """
        if not isinstance(deletes, bool):
            raise InvalidOption(f"deletes must be True or False, got {deletes!r}")
        given = {
            "table": table_name,
            "outbox": outbox,
            "marks": marks,
            "schema": schema,
            "outbox_schema": outbox_schema,
            "channel": channel,
            "unique": unique,
            "deletes": deletes,
        }
        operations.invoke(cls(Capture.from_mapping(given), None if existing is None else _existing(existing)))

    def reverse(self) -> MigrateOperation:
        if self.existing is not None:
            return CreateOutboxTriggerOp(self.existing, self.definition)
        return DropOutboxTriggerOp.of(self.definition)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        definition = self.definition
        return ("create_outbox_trigger", definition.schema, definition.table, definition.channel, definition.hash)


def _existing(given: Mapping[str, Any]) -> Capture:
    return Capture.from_mapping({("table" if name == "table_name" else name): value for name, value in given.items()})


@Operations.register_operation("drop_outbox_trigger")
class DropOutboxTriggerOp(MigrateOperation):
    """Drop the triggers of a table that write into an outbox."""

    def __init__(
        self,
        table_name: str,
        *,
        schema: str | None = None,
        channel: str = "embedding",
        name: str | None = None,
        definition: Capture | None = None,
    ) -> None:
        self.table_name = check_existing_name(table_name, "table name")
        self.schema = None if schema is None else check_existing_name(schema, "schema")
        self.channel = check_existing_name(channel, "channel")
        usual = capture_name(table_name, channel)
        self.name = usual if name is None else check_existing_name(name, "trigger name")
        self.has_usual_name = self.name == usual
        self.definition = definition

    @classmethod
    def of(cls, definition: Capture) -> DropOutboxTriggerOp:
        """Return the operation that drops what a definition created."""
        return cls(definition.table, schema=definition.schema, channel=definition.channel, definition=definition)

    @classmethod
    def drop_outbox_trigger(
        cls,
        operations: Operations,
        table_name: str,
        *,
        schema: str | None = None,
        channel: str = "embedding",
        name: str | None = None,
    ) -> None:
        """Drop the triggers of a table that write into an outbox; if there are none, nothing is done.

        Args:
            operations: given by Alembic.
            table_name: the table, by the name that it had when they were created.
            schema: its schema.
            channel: whose entries they write.
            name: their name, if it is none that this version would give them.

        Raises:
            InvalidIdentifier: a name cannot be one.
        """
        operations.invoke(cls(table_name, schema=schema, channel=channel, name=name))

    def reverse(self) -> MigrateOperation:
        # What another version wrote may not be readable; to drop it twice does no harm.
        return self if self.definition is None else CreateOutboxTriggerOp(self.definition)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("drop_outbox_trigger", self.schema, self.table_name, self.channel)
