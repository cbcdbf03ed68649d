"""What distances and functions over vectors are, computed with numpy in double precision."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sqla_vector import SparseArray

# How far a database may be off: it computes in single precision, and half vectors have eleven bits.
TOLERANCE: Final = {"vector": 1e-5, "sparsevec": 1e-5, "halfvec": 1e-3, "bit": 0.0}


def dense(vector: Any) -> NDArray[np.float64]:
    """Return any of the values that columns give, as an array of doubles."""
    if isinstance(vector, SparseArray):
        vector = vector.to_dense()
    return np.asarray(vector, np.float64)


def distance(metric: str, left: Any, right: Any) -> float | None:
    """Return the distance, or None where it is undefined."""
    if left is None or right is None:
        return None
    a, b = dense(left), dense(right)
    if metric == "l2":
        return float(np.linalg.norm(a - b))
    if metric == "l1":
        return float(np.abs(a - b).sum())
    if metric == "inner_product":
        return -float(a @ b)
    if metric == "cosine":
        lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
        return 1.0 - float(a @ b) / lengths if lengths else None
    if metric == "hamming":
        return float((a != b).sum())
    if metric == "jaccard":
        common, either = float((a * b).sum()), float(((a + b) > 0).sum())
        return 1.0 - common / either if common else 1.0
    raise ValueError(metric)


def similarity(metric: str, left: Any, right: Any) -> float | None:
    """Return the similarity, larger is more similar, or None where it is undefined."""
    d = distance(metric, left, right)
    if d is None:
        return None
    if metric == "inner_product":
        return -d
    if metric in ("l2", "l1"):
        return 1.0 / (1.0 + d)
    if metric == "hamming":
        return 1.0 - d / len(dense(left))
    return 1.0 - d
