"""What the operations do."""

from __future__ import annotations

import logging

from alembic.operations import Operations
from sqlalchemy import Column, MetaData, Table

from sqla_vector.alembic import change, ops
from sqla_vector.alembic.definition import reflect_table
from sqla_vector.alembic.runner import OperationsRunner
from sqla_vector.dialects.migration import beside, kept
from sqla_vector.schema import index_key
from sqla_vector.types import support_of

__all__: list[str] = []

logger = logging.getLogger("alembic.sqla_vector")


@Operations.implementation_for(ops.CreateVectorExtensionOp)
def create_vector_extension(operations: Operations, op: ops.CreateVectorExtensionOp) -> None:
    run = OperationsRunner(operations)
    run.support.create_extension(run, op.schema, op.minimum_version)


@Operations.implementation_for(ops.DropVectorExtensionOp)
def drop_vector_extension(operations: Operations, op: ops.DropVectorExtensionOp) -> None:
    run = OperationsRunner(operations)
    run.support.drop_extension(run, op.schema)


@Operations.implementation_for(ops.CreateVectorIndexOp)
def create_vector_index(operations: Operations, op: ops.CreateVectorIndexOp) -> None:
    run = OperationsRunner(operations)
    index = op.definition.bind(run.connection)
    if change.is_due(run, index):
        run.support.create_index(run, index, op.build)


@Operations.implementation_for(ops.DropVectorIndexOp)
def drop_vector_index(operations: Operations, op: ops.DropVectorIndexOp) -> None:
    run = OperationsRunner(operations)
    run.support.drop_index(
        run, op.index_name, op.table_name, op.schema, if_exists=op.if_exists, concurrently=op.concurrently
    )


@Operations.implementation_for(ops.RebuildVectorIndexOp)
def rebuild_vector_index(operations: Operations, op: ops.RebuildVectorIndexOp) -> None:
    run = OperationsRunner(operations)
    index = op.definition.bind(run.connection)
    key = index_key(index)
    assert key is not None
    if run.connection is not None and op.existing is not None and op.existing.options != op.definition.options:
        found = run.support.reflect(run.connection, op.definition.schema)
        name = (op.definition.table_name, op.definition.name)
        same = next((f for f in found if (f.table_name, f.name) == name), None)
        if same is not None and run.support.difference(run.connection, index, key, same) is None:
            logger.info("%s has been rebuilt already", index.name)
            return
    run.support.rebuild_index(run, index, op.build)


@Operations.implementation_for(ops.CreateTextIndexOp)
def create_text_index(operations: Operations, op: ops.CreateTextIndexOp) -> None:
    run = OperationsRunner(operations)
    run.support.create_index(run, op.definition.bind(run.connection), op.build)


@Operations.implementation_for(ops.DropTextIndexOp)
def drop_text_index(operations: Operations, op: ops.DropTextIndexOp) -> None:
    run = OperationsRunner(operations)
    run.support.drop_text_index(
        run, op.index_name, op.table_name, op.schema, if_exists=op.if_exists, concurrently=op.concurrently
    )


@Operations.implementation_for(ops.RebuildTextIndexOp)
def rebuild_text_index(operations: Operations, op: ops.RebuildTextIndexOp) -> None:
    run = OperationsRunner(operations)
    run.support.rebuild_index(run, op.definition.bind(run.connection), op.build)


@Operations.implementation_for(ops.CreateOutboxTriggerOp)
def create_outbox_trigger(operations: Operations, op: ops.CreateOutboxTriggerOp) -> None:
    run = OperationsRunner(operations)
    support, definition = support_of(run.dialect).captures(), op.definition
    names = dict.fromkeys((one.name, one.schema) for one in (op.existing, definition) if one is not None)
    statements = [s for name, schema in names for s in support.drop(name, schema, run.dialect)]
    _run_ddl(run, [*statements, *support.create(definition, run.dialect)])


@Operations.implementation_for(ops.DropOutboxTriggerOp)
def drop_outbox_trigger(operations: Operations, op: ops.DropOutboxTriggerOp) -> None:
    run = OperationsRunner(operations)
    _run_ddl(run, support_of(run.dialect).captures().drop(op.name, op.schema, run.dialect))


def _run_ddl(run: OperationsRunner, statements: list[str]) -> None:
    if run.connection is not None:
        support_of(run.dialect).begin(run.connection)
    for statement in statements:
        run.execute(statement)


@Operations.implementation_for(ops.ConvertVectorColumnOp)
def convert_vector_column(operations: Operations, op: ops.ConvertVectorColumnOp) -> None:
    run = OperationsRunner(operations)
    column = Column(op.column_name, op.type_)
    Table(op.table_name, MetaData(), column, schema=op.schema)
    if run.connection is None:
        existing = Column(op.column_name, op.existing_type)
        Table(op.table_name, MetaData(), existing, schema=op.schema)
    else:
        existing = change.column_of(reflect_table(run.connection, op.table_name, op.schema), op.column_name)
    run.support.convert_column(run, column, existing)


@Operations.implementation_for(ops.ChangeVectorColumnOp)
def change_vector_column(operations: Operations, op: ops.ChangeVectorColumnOp) -> None:
    change.ColumnChange(OperationsRunner(operations), op).apply()


@Operations.implementation_for(ops.RestoreVectorColumnOp)
def restore_vector_column(operations: Operations, op: ops.RestoreVectorColumnOp) -> None:
    change.ColumnRestoration(OperationsRunner(operations), op).apply()


@Operations.implementation_for(ops.DropKeptVectorColumnOp)
def drop_kept_vector_column(operations: Operations, op: ops.DropKeptVectorColumnOp) -> None:
    run = OperationsRunner(operations)
    names = [kept(op.column_name)]
    if run.connection is not None:
        there = reflect_table(run.connection, op.table_name, op.schema).c
        names = [name for name in (kept(op.column_name), beside(op.column_name)) if name in there][:1]
    for name in names:
        column: Column[object] = Column(name)
        Table(op.table_name, MetaData(), column, schema=op.schema)
        if name == beside(op.column_name):
            # Without its column the trigger would fail every UPDATE.
            run.support.forget_shadow(run, column)
        run.support.drop_column(run, column)
    if not names:
        logger.info("%s.%s has no kept column", op.table_name, op.column_name)
