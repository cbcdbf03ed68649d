"""The outbox triggers that models declare, compared with those of the database."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

from alembic.util import PriorityDispatchResult
from sqlalchemy import MetaData, Table

from sqla_vector.alembic import ops
from sqla_vector.dialects.capture import Capture, CaptureSupport, ReflectedCapture, captures_of
from sqla_vector.types import DIALECTS, support_of

__all__ = ["compare_captures", "put_outside"]

logger = logging.getLogger("alembic.sqla_vector")

_Key = tuple[str | None, str, str]


def compare_captures(context: Any, upgrade_ops: Any, schemas: Iterable[str | None]) -> PriorityDispatchResult:
    """Compare the outbox triggers, by the hashes of their definitions."""
    if context.dialect.name in DIALECTS:
        upgrade_ops.ops.extend(_Comparison(context, set(schemas)).operations())
    return PriorityDispatchResult.CONTINUE


class _Comparison:
    def __init__(self, context: Any, schemas: set[str | None]) -> None:
        self._context = context
        self._support: CaptureSupport = support_of(context.dialect).captures()
        self._schemas = {self._plain(schema) for schema in schemas}

    def operations(self) -> Iterator[Any]:
        declared = {self._key(c.schema, c.table, c.channel): c for c in self._declared()}
        existing = {}
        for found in self._existing:
            channel = "embedding" if found.definition is None else found.definition.channel
            existing[self._key(found.schema, found.table_name, channel)] = found
        for key, found in existing.items():
            if key not in declared:
                logger.info("Detected removed outbox triggers on '%s'", found.table_name)
                yield self._drop(found, key[2])
        for key, capture in declared.items():
            there = existing.get(key)
            if there is None:
                logger.info("Detected added outbox triggers on '%s'", capture.table)
                yield ops.CreateOutboxTriggerOp(capture)
            elif not there.is_of(capture):
                logger.info("Detected changed outbox triggers on '%s'", capture.table)
                if there.name == capture.name and there.definition is not None:
                    yield ops.CreateOutboxTriggerOp(capture, _renamed(there.definition, self._renamings))
                else:
                    yield self._drop(there, key[2])
                    yield ops.CreateOutboxTriggerOp(capture)

    def _drop(self, found: ReflectedCapture, channel: str) -> ops.DropOutboxTriggerOp:
        table = found.table_name if found.definition is None else found.definition.table
        renamed = found.definition and _renamed(found.definition, self._renamings)
        return ops.DropOutboxTriggerOp(table, schema=found.schema, channel=channel, name=found.name, definition=renamed)

    @cached_property
    def _renamings(self) -> dict[tuple[str | None, str], str]:
        """The tables that were renamed since they have triggers, whose definitions have the old names."""
        return {
            (found.definition.schema, found.definition.table): found.table_name
            for found in self._existing
            if found.definition is not None and found.definition.table != found.table_name
        }

    def _declared(self) -> Iterator[Capture]:
        given = self._context.metadata
        tables = self._tables()
        seen = set()
        for metadata in (given,) if isinstance(given, MetaData) else given or ():
            for capture in captures_of(metadata):
                key = self._key(capture.schema, capture.table, capture.channel)
                if key in seen or self._plain(capture.schema) not in self._schemas:
                    continue
                seen.add(key)
                table = tables.get(key[:2])
                if table is not None and self._context.run_object_filters(table, table.name, "table", False, None):
                    yield capture

    @cached_property
    def _existing(self) -> list[ReflectedCapture]:
        return list(self._reflected())

    def _reflected(self) -> Iterator[ReflectedCapture]:
        for schema in sorted(self._schemas, key=str):
            for found in self._support.reflect(self._context.connection, schema):
                table = self._tables().get((schema, found.table_name))
                included = self._context.run_name_filters(found.table_name, "table", {"schema_name": schema})
                if included and table is not None:
                    included = self._context.run_object_filters(table, table.name, "table", False, None)
                if included:
                    yield found

    def _tables(self) -> dict[tuple[str | None, str], Table]:
        return {(self._plain(table.schema), table.name): table for table in self._context.sorted_tables}

    def _key(self, schema: str | None, table: str, channel: str) -> _Key:
        return self._plain(schema), table, channel

    def _plain(self, schema: str | None) -> str | None:
        """Return a schema, None for the default one, as Alembic has it."""
        return None if schema == self._context.dialect.default_schema_name else schema


def _renamed(definition: Capture, names: Mapping[tuple[str | None, str], str]) -> Capture:
    """Return a definition with the names that its tables have now, so that a downgrade can create it."""
    return definition.relocated(lambda schema, table: (schema, names.get((schema, table), table)))


def put_outside(operations: list[Any], first: int) -> list[Any]:
    """Put the operations on outbox triggers around those on tables, which they name columns of.

    Args:
        operations: all of a migration.
        first: how many of them change no table that a trigger is about, and may be repeated.
    """
    own = [op for op in operations if isinstance(op, (ops.CreateOutboxTriggerOp, ops.DropOutboxTriggerOp))]
    others = [op for op in operations if op not in own]
    drops = [op for op in own if isinstance(op, ops.DropOutboxTriggerOp)]
    creates = [op for op in own if isinstance(op, ops.CreateOutboxTriggerOp)]
    for number, op in enumerate(creates):
        if op.existing is not None and others:
            drops.append(ops.DropOutboxTriggerOp.of(op.existing))
            creates[number] = ops.CreateOutboxTriggerOp(op.definition)
    return [*others[:first], *drops, *others[first:], *creates]
