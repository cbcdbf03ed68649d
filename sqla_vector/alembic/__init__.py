"""Alembic for vectors: operations, autogenerate without drift, and rendering.

Two lines in ``env.py``::

    import sqla_vector.alembic
    ...
    context.configure(..., **sqla_vector.alembic.options())

Importing registers the operations (``op.create_vector_index()`` and the like) and the comparators, once.
"""

from alembic.runtime.plugins import Plugin

from sqla_vector.alembic import compare, implement
from sqla_vector.alembic.filters import PLUGIN, options
from sqla_vector.alembic.ops import (
    ChangeVectorColumnOp,
    ConvertVectorColumnOp,
    CreateVectorExtensionOp,
    CreateVectorIndexOp,
    DropKeptVectorColumnOp,
    DropVectorExtensionOp,
    DropVectorIndexOp,
    RebuildVectorIndexOp,
    RestoreVectorColumnOp,
)

__all__ = [
    "ChangeVectorColumnOp",
    "ConvertVectorColumnOp",
    "CreateVectorExtensionOp",
    "CreateVectorIndexOp",
    "DropKeptVectorColumnOp",
    "DropVectorExtensionOp",
    "DropVectorIndexOp",
    "RebuildVectorIndexOp",
    "RestoreVectorColumnOp",
    "implement",
    "options",
]

Plugin.setup_plugin_from_module(compare, PLUGIN)
