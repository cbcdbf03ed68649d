"""The text indexes that models declare, compared with those of the database."""

from __future__ import annotations

import logging
from typing import Any

from sqlalchemy import Index, Table

from sqla_vector.alembic import ops
from sqla_vector.alembic.filters import Comparison
from sqla_vector.alembic.text_definition import TextIndexDefinition
from sqla_vector.dialects.migration import MigrationSupport, ReflectedText
from sqla_vector.exc import InvalidIdentifier
from sqla_vector.schema import check_identifier
from sqla_vector.text_index import text_indexes
from sqla_vector.types import support_of

__all__ = ["compare_texts"]

logger = logging.getLogger("alembic.sqla_vector")


def compare_texts(
    context: Any,
    comparison: Comparison,
    modify_ops: Any,
    schema: str | None,
    table_name: str,
    conn_table: Table | None,
    table: Table | None,
) -> None:
    """Compare the text indexes of a table, claim those in the database, and hide those that are declared."""
    support: MigrationSupport = support_of(context.dialect).migration()
    found = {} if conn_table is None else _reflected(context, comparison, support, schema, table_name)
    declared = {} if table is None else {str(index.name): (index, key) for index, key in text_indexes(table)}
    # Such an index in reflected metadata is Alembic's to compare, as it is any other.
    others = set() if table is None else {str(index.name) for index in table.indexes} - declared.keys()
    found = {name: index for name, index in found.items() if not (index.is_shared and name in others)}
    for name in sorted(found.keys() | declared.keys()):
        old, pair = found.get(name), declared.get(name)
        if old is None:
            assert pair is not None
            if context.run_object_filters(pair[0], name, "index", False, None):
                logger.info("Detected added text index %r on '%s'", name, table_name)
                modify_ops.ops.append(ops.CreateTextIndexOp(TextIndexDefinition.of(*pair)))
            continue
        existing = Index(name)
        included = (
            context.run_object_filters(existing, name, "index", True, None)
            if pair is None
            else context.run_object_filters(pair[0], name, "index", False, existing)
        )
        if not included:
            continue
        comparison.claimed.add(name)
        assert conn_table is not None
        if pair is None:
            logger.info("Detected removed text index %r on '%s'", name, table_name)
            definition = TextIndexDefinition.of_reflected(old, conn_table, None)
            modify_ops.ops.append(ops.DropTextIndexOp.of(definition))
            continue
        reason = support.text_difference(context.connection, *pair, old)
        if reason is not None:
            logger.info("Detected changed text index %r on '%s': %s", name, table_name, reason)
            before = TextIndexDefinition.of_reflected(old, conn_table, pair[1].spec)
            modify_ops.ops.append(ops.RebuildTextIndexOp(TextIndexDefinition.of(*pair), before))
    for index, _ in declared.values():
        assert table is not None
        comparison.hide(table, index)


def _reflected(
    context: Any, comparison: Comparison, support: MigrationSupport, schema: str | None, table_name: str
) -> dict[str, ReflectedText]:
    where = (id(context.connection), schema)
    if where not in comparison.reflected_texts:
        by_table: dict[str, list[ReflectedText]] = {}
        for index in support.reflect_texts(context.connection, schema):
            by_table.setdefault(index.table_name, []).append(index)
        comparison.reflected_texts[where] = by_table
    return {
        index.name: index
        for index in comparison.reflected_texts[where].get(table_name, [])
        if _is_plain(index.name)
        and context.run_name_filters(index.name, "index", {"table_name": table_name, "schema_name": schema})
    }


def _is_plain(name: str) -> bool:
    """Tell whether an index could have been declared under its name."""
    try:
        check_identifier(name, "index name")
    except InvalidIdentifier:
        return False
    return True
