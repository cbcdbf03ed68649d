"""An index

On PostgreSQL an hnsw index, on SQLite a vec0 table with its triggers, filled from the rows that are there.
``table_elements`` is the table as it is at this revision, for ``--sql``, where no database can be asked.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

import sqla_vector
import sqla_vector.alembic

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_vector_index(
        "python_docs_entry_embedding",
        "python_docs_entry",
        "embedding",
        metric="l2",
        table_elements=[
            sa.Column("id", sa.Integer(), nullable=False),
            sa.Column("embedding", sqla_vector.Vector(256), nullable=False),
            sa.PrimaryKeyConstraint("id"),
        ],
    )


def downgrade() -> None:
    op.drop_vector_index("python_docs_entry_embedding", "python_docs_entry")
