"""Where the operations that were found are put, so that they can run."""

from __future__ import annotations

from typing import Any

from alembic.operations import ops as alembic_ops
from alembic.util import PriorityDispatchResult
from sqlalchemy import Column

from sqla_vector.alembic import ops
from sqla_vector.alembic.captures import put_outside
from sqla_vector.alembic.filters import comparison_of
from sqla_vector.dialects.migration import MigrationSupport
from sqla_vector.dialects.settings import settings_of
from sqla_vector.types import DIALECTS, VectorType, support_of

__all__ = ["arrange", "is_of_extension"]

_BEFORE = (ops.DropVectorIndexOp, ops.DropTextIndexOp, ops.ConvertVectorColumnOp)
_AFTER = (ops.CreateVectorIndexOp, ops.RebuildVectorIndexOp, ops.CreateTextIndexOp, ops.RebuildTextIndexOp)
_DROPS = (ops.DropVectorIndexOp, ops.DropTextIndexOp)


def is_of_extension(column: Column[Any]) -> bool:
    """Tell whether a column needs the extension."""
    # Bits too: the type is PostgreSQL's, but what is asked of it is pgvector's, and create_all() sees to it as well.
    return isinstance(column.type, VectorType)


def arrange(context: Any, upgrade_ops: Any) -> PriorityDispatchResult:
    """Lift the operations out of the tables' containers to where they can run."""
    comparison = comparison_of(context.opts)
    comparison.show()
    if context.dialect.name not in DIALECTS:
        return PriorityDispatchResult.CONTINUE
    support: MigrationSupport = support_of(context.dialect).migration()
    first: list[Any] = []
    rest: list[Any] = []
    if comparison.lacks_extension is None and not comparison.has_vectors and _adds_vectors(upgrade_ops):
        # The history may be run on another database, where the first column needs it.
        first.append(ops.CreateVectorExtensionOp(settings_of(context.dialect).schema))
    for op in upgrade_ops.ops:
        if isinstance(op, ops.CreateVectorExtensionOp):
            first.insert(0, op)
            continue
        if not isinstance(op, alembic_ops.ModifyTableOps):
            rest.append(op)
            continue
        # They commit as they go, so that nothing that cannot be repeated may come before.
        changes = [o for o in op.ops if isinstance(o, ops.ChangeVectorColumnOp)]
        first.extend(changes)
        own = [o for o in op.ops if isinstance(o, (*_BEFORE, *_AFTER))]
        op.ops = [o for o in op.ops if not isinstance(o, (*_BEFORE, *_AFTER, ops.ChangeVectorColumnOp))]
        if op.ops:
            own = [split for o in own for split in _split(o)]
            added = {o.column.name for o in op.ops if isinstance(o, alembic_ops.AddColumnOp)}
            own.extend(late for change in changes for late in _postponed(change, added, support))
        rest.extend(sorted((o for o in own if isinstance(o, _BEFORE)), key=lambda o: _BEFORE.index(type(o))))
        if op.ops:
            rest.append(op)
        rest.extend(o for o in own if isinstance(o, _AFTER))
    # The name of an index may go from one table to another, in the order of whose names the operations come.
    created = {o.definition.name for o in rest if isinstance(o, (ops.CreateVectorIndexOp, ops.CreateTextIndexOp))}
    rest.sort(key=lambda o: not (isinstance(o, _DROPS) and o.index_name in created))
    upgrade_ops.ops = put_outside([*first, *rest], len(first))
    return PriorityDispatchResult.CONTINUE


def _adds_vectors(upgrade_ops: Any) -> bool:
    """Tell whether a table or a column of vectors is added."""
    for op in upgrade_ops.ops:
        inner = op.ops if isinstance(op, alembic_ops.ModifyTableOps) else [op]
        for one in inner:
            added = one.columns if isinstance(one, alembic_ops.CreateTableOp) else [getattr(one, "column", None)]
            if any(isinstance(column, Column) and is_of_extension(column) for column in added):
                return True
    return False


def _split(op: Any) -> list[Any]:
    """Return a rebuild as two operations, between which the table changes; anything else as it is."""
    if isinstance(op, ops.RebuildTextIndexOp) and op.existing is not None:
        return [ops.DropTextIndexOp.of(op.existing), ops.CreateTextIndexOp(op.definition)]
    if not isinstance(op, ops.RebuildVectorIndexOp) or op.existing is None:
        return [op]
    return [ops.DropVectorIndexOp.of(op.existing), ops.CreateVectorIndexOp(op.definition)]


def _postponed(
    change: ops.ChangeVectorColumnOp, added: set[str], support: MigrationSupport
) -> list[ops.CreateVectorIndexOp]:
    """Take from a change of a column the indexes that may need what becomes of the table after it."""
    late = [
        definition
        for definition in change.indexes
        if definition.options.get("where") or added.intersection(definition.others) or not support.builds_before_swap()
    ]
    change.indexes = tuple(definition for definition in change.indexes if definition not in late)
    return [ops.CreateVectorIndexOp(definition) for definition in late]
