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
from sqla_vector.alembic.ops.text import CreateTextIndexOp, DropTextIndexOp, RebuildTextIndexOp

__all__ = [
    "ChangeVectorColumnOp",
    "ConvertVectorColumnOp",
    "CreateOutboxTriggerOp",
    "CreateTextIndexOp",
    "CreateVectorExtensionOp",
    "CreateVectorIndexOp",
    "DropKeptVectorColumnOp",
    "DropOutboxTriggerOp",
    "DropTextIndexOp",
    "DropVectorExtensionOp",
    "DropVectorIndexOp",
    "RebuildTextIndexOp",
    "RebuildVectorIndexOp",
    "ReplacingOp",
    "RestoreVectorColumnOp",
    "converts",
]
