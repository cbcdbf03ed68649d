"""Alembic for vectors: operations, autogenerate without drift, and rendering.

Two lines in ``env.py``::

    import sqla_vector.alembic
    ...
    context.configure(..., **sqla_vector.alembic.options())

Importing registers the operations (``op.create_vector_index()`` and the like) and the comparators, once.  There is
no entry point for Alembic: it would be imported in the middle of ``import alembic``, which then fails (1.18 to 1.20).
"""

from contextlib import suppress

from sqla_vector.exc import PackageMissing

try:
    from alembic.runtime.plugins import Plugin
except ImportError as error:
    raise PackageMissing("migrations need Alembic 1.18 or newer: pip install 'sqla-vector[alembic]'") from error

from sqla_vector.alembic import compare, implement
from sqla_vector.alembic.filters import PLUGIN, options
from sqla_vector.alembic.ops import (
    ChangeVectorColumnOp,
    ConvertVectorColumnOp,
    CreateOutboxTriggerOp,
    CreateTextIndexOp,
    CreateVectorExtensionOp,
    CreateVectorIndexOp,
    DropKeptVectorColumnOp,
    DropOutboxTriggerOp,
    DropTextIndexOp,
    DropVectorExtensionOp,
    DropVectorIndexOp,
    RebuildTextIndexOp,
    RebuildVectorIndexOp,
    RestoreVectorColumnOp,
)

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
    "RestoreVectorColumnOp",
    "implement",
    "options",
]

# The name is taken where this module is imported anew; the comparators are registered then.
with suppress(ValueError):
    Plugin.setup_plugin_from_module(compare, PLUGIN)
