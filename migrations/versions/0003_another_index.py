"""Another index: by cosine, and on SQLite with the kind of the entries inside

A change of what an index is builds a new one while the old one serves.  ``concurrently`` lets PostgreSQL go on
writing to the table meanwhile; such a build is outside of any transaction, so it has this revision to itself.
Interrupted, it is repeated by ``alembic upgrade head``.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

import sqla_vector
import sqla_vector.alembic

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

INDEX = ("python_docs_entry_embedding", "python_docs_entry", "embedding")
BEFORE = {"metric": "l2"}
AFTER = {"metric": "cosine", "include": ["kind"]}


def table_elements() -> list[sa.schema.SchemaItem]:
    """Return the part of the table that the indexes are made from."""
    return [
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("embedding", sqla_vector.Vector(256), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    ]


def upgrade() -> None:
    op.rebuild_vector_index(*INDEX, **AFTER, existing=BEFORE, concurrently=True, table_elements=table_elements())


def downgrade() -> None:
    op.rebuild_vector_index(*INDEX, **BEFORE, existing=AFTER, concurrently=True, table_elements=table_elements())
