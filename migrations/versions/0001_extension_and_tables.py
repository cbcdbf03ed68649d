"""The extension, and the tables

As autogenerate wrote it: on PostgreSQL the extension comes before the first column of its types, on SQLite
``create_vector_extension`` does nothing.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

import sqla_vector
import sqla_vector.alembic

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_vector_extension()
    op.create_table(
        "python_docs_entry",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("text", sa.String(), nullable=False),
        sa.Column("embedding", sqla_vector.Vector(256), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "python_docs_model",
        sa.Column("version", sa.String(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("version"),
    )


def downgrade() -> None:
    op.drop_table("python_docs_model")
    op.drop_table("python_docs_entry")
    op.drop_vector_extension()
