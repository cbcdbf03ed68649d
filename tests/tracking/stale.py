"""Which rows are not as they should be, worked out from models and rows alone, without the code under test."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

__all__ = ["digest_of", "is_current", "joined", "stale_rows"]


def digest_of(embedder: Any, text: str | None) -> str | None:
    """Return the fingerprint of a text, by the format that is documented."""
    if text is None or not text.strip():
        return None
    return f"{embedder.name}@{embedder.version}:{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"


def joined(*parts: object) -> str | None:
    """Return the text that several attributes make."""
    return "\n\n".join(str(part) for part in parts if part is not None and str(part).strip()) or None


def is_current(row: Any, key: str, text: str | None, embedder: Any) -> bool:
    """Tell whether a row has the vector and the fingerprint of a text."""
    wanted = digest_of(embedder, text)
    vector, fingerprint = getattr(row, key), getattr(row, f"{key}_fingerprint")
    if wanted is None or text is None:
        return vector is None and fingerprint is None
    return vector is not None and np.array_equal(vector, embedder.vector(text)) and fingerprint == wanted


def stale_rows(
    session: Session, class_: Any, text_of: Callable[[Any], str | None], embedder: Any, key: str = "embedding"
) -> list[Any]:
    """Return the rows of a class, as a new session reads them, that have not what their texts demand."""
    return [row for row in session.scalars(select(class_)).unique() if not is_current(row, key, text_of(row), embedder)]
