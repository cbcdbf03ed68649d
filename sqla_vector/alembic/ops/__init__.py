"""Operations as data: what a migration does, and how it is undone."""

from sqla_vector.alembic.ops.capture import CreateOutboxTriggerOp, DropOutboxTriggerOp
from sqla_vector.alembic.ops.column import (
    ChangeVectorColumnOp,
    ConvertVectorColumnOp,
    DropKeptVectorColumnOp,
    ReplacingOp,
    RestoreVectorColumnOp,
    converts,
)
from sqla_vector.alembic.ops.extension import CreateVectorExtensionOp, DropVectorExtensionOp
from sqla_vector.alembic.ops.index import CreateVectorIndexOp, DropVectorIndexOp, RebuildVectorIndexOp

__all__ = [
    "ChangeVectorColumnOp",
    "ConvertVectorColumnOp",
    "CreateOutboxTriggerOp",
    "CreateVectorExtensionOp",
    "CreateVectorIndexOp",
    "DropKeptVectorColumnOp",
    "DropOutboxTriggerOp",
    "DropVectorExtensionOp",
    "DropVectorIndexOp",
    "RebuildVectorIndexOp",
    "ReplacingOp",
    "RestoreVectorColumnOp",
    "converts",
]
