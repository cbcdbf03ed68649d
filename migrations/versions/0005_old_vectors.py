"""Without the old vectors

Once the new ones have proved themselves.  From here the way back is closed: where the table has rows, the
downgrade of 0004 says so and changes nothing.
"""

from __future__ import annotations

from alembic import op

import sqla_vector.alembic  # noqa: F401 - op.drop_kept_vector_column

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_kept_vector_column("python_docs_entry", "embedding")


def downgrade() -> None:
    pass
