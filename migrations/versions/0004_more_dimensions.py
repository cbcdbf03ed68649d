"""More dimensions: 384 in place of 256

Vectors of another length are those of another model, so each is computed from its row.  That happens in batches
into a column beside the old one; then the two change names, and the old vectors stay as ``embedding__old``.
Interrupted, it goes on where it was.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from alembic import op

import sqla_vector
import sqla_vector.alembic

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TABLE, COLUMN = "python_docs_entry", "embedding"
INDEXES = [{"index_name": "python_docs_entry_embedding", "metric": "cosine", "include": ["kind"]}]


def embed(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return the vectors of rows, shape (len(rows), 384).

    Here would be your embedding model.  This one counts words by their hash (Weinberger et al. 2009, "Feature
    Hashing for Large Scale Multitask Learning"), which needs nothing but the text.
    """
    vectors = np.zeros((len(rows), 384), np.float32)
    for vector, row in zip(vectors, rows, strict=True):
        for word in re.findall(r"[a-z0-9]+", f"{row['name']} {row['text']}".lower()):
            number = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "little")
            vector[number % 384] += 1 if number >> 31 else -1
        vector /= np.linalg.norm(vector) or 1
    return vectors


def upgrade() -> None:
    op.change_vector_column(
        TABLE,
        COLUMN,
        type_=sqla_vector.Vector(384),
        existing_type=sqla_vector.Vector(256),
        indexes=INDEXES,
        existing_indexes=INDEXES,
        backfill=embed,
    )


def downgrade() -> None:
    op.restore_vector_column(
        TABLE,
        COLUMN,
        type_=sqla_vector.Vector(256),
        existing_type=sqla_vector.Vector(384),
        indexes=INDEXES,
        existing_indexes=INDEXES,
    )
