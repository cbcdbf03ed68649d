"""Functions that the plugin registers on SQLite connections.

Two groups: those that sqlite-vec does not have, registered always; and numpy stand-ins for sqlite-vec's own, under
sqlite-vec's names, registered where no extension can be loaded.  Vectors are blobs of float32, bits are packed
with the low end first, sparse vectors as :class:`sqla_vector.values.SparseCodec` writes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sqla_vector.coercion import SparseArray
from sqla_vector.recency import MAX_HALF_LIVES
from sqla_vector.values import SparseCodec, VectorCodec

__all__ = ["AGGREGATES", "FUNCTIONS", "STAND_INS"]

_VECTOR: Final = VectorCodec(None)
_SPARSE: Final = SparseCodec(None)
_INT8_MAX: Final = 127


def _vector(blob: Any) -> NDArray[np.float32]:
    return _VECTOR.from_blob(blob)


def _pair(left: Any, right: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    a, b = _vector(left), _vector(right)
    if a.shape != b.shape:
        raise ValueError(f"vectors of {a.size} and {b.size} dimensions")
    return a, b


def _blob(vector: NDArray[Any]) -> bytes:
    """Return a result as a blob; as on PostgreSQL one that overflows is an error, not a vector with infinity."""
    with np.errstate(over="ignore"):
        result = vector.astype("<f4")
    if not np.isfinite(result).all():
        raise ValueError("value out of range: overflow")
    return result.tobytes()


def _elementwise(operation: Callable[[Any, Any], NDArray[Any]]) -> Callable[[Any, Any], bytes]:
    def call(left: Any, right: Any) -> bytes:
        a, b = _pair(left, right)
        with np.errstate(over="ignore", invalid="ignore"):
            return _blob(operation(a, b))

    return call


def _cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float | None:
    with np.errstate(over="ignore", invalid="ignore"):
        product = float(np.dot(a, a)) * float(np.dot(b, b))
    if product == 0.0:
        return None
    return float(min(2.0, max(0.0, 1.0 - float(np.dot(a, b)) / product**0.5)))


def _cosine_distance(left: Any, right: Any) -> float | None:
    return _cosine(*_pair(left, right))


def _l2_distance(left: Any, right: Any) -> float:
    a, b = _pair(left, right)
    # In double precision, where what is in range of single precision cannot overflow.
    return float(np.linalg.norm(np.subtract(a, b, dtype=np.float64)))


def _l1_distance(left: Any, right: Any) -> float:
    a, b = _pair(left, right)
    return float(np.abs(np.subtract(a, b, dtype=np.float64)).sum())


def _negative_inner_product(left: Any, right: Any) -> float:
    a, b = _pair(left, right)
    with np.errstate(over="ignore", invalid="ignore"):
        return -float(np.dot(a, b))


def _hamming_distance(left: bytes, right: bytes) -> float:
    if len(left) != len(right):
        raise ValueError(f"bit vectors of {len(left)} and {len(right)} bytes")
    return float((int.from_bytes(left, "big") ^ int.from_bytes(right, "big")).bit_count())


def _jaccard_distance(left: bytes | None, right: bytes | None) -> float | None:
    if left is None or right is None:
        return None
    a, b = int.from_bytes(left, "big"), int.from_bytes(right, "big")
    common = (a & b).bit_count()
    return 1.0 if common == 0 else 1.0 - common / (a | b).bit_count()


def _binary_quantize(blob: Any) -> bytes:
    return np.packbits(_vector(blob) > 0, bitorder="little").tobytes()


def _int8_quantize(blob: Any, value_range: float) -> bytes:
    """Scale to -127..127; a range of 0 means the vector's own largest element (enough under cosine)."""
    vector = _vector(blob)
    largest = value_range or float(np.abs(vector).max()) or 1.0
    scaled = np.clip(np.rint(vector * (_INT8_MAX / largest)), -_INT8_MAX, _INT8_MAX)
    return bytes(scaled.astype(np.int8).tobytes())


def _normalize(blob: Any) -> bytes:
    vector = _vector(blob)
    length = float(np.linalg.norm(vector))
    return _blob(vector / length) if length else _blob(vector)


def _sparse_pair(left: Any, right: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return two sparse vectors as dense ones over the indices that either has."""
    a, b = _SPARSE.from_blob(left), _SPARSE.from_blob(right)
    if a.dim != b.dim:
        raise ValueError(f"sparse vectors of {a.dim} and {b.dim} dimensions")
    indices = np.union1d(a.indices, b.indices)
    dense = np.zeros((2, len(indices)), np.float32)
    for row, sparse in zip(dense, (a, b), strict=True):
        row[np.searchsorted(indices, sparse.indices)] = sparse.values
    return dense[0], dense[1]


def _sparse_distance(measure: Callable[[Any, Any], float | None]) -> Callable[[Any, Any], float | None]:
    def distance(left: Any, right: Any) -> float | None:
        return measure(*_sparse_pair(left, right))

    return distance


def _sparse_normalize(blob: Any) -> bytes:
    sparse = _SPARSE.from_blob(blob)
    length = float(np.linalg.norm(sparse.values))
    return _SPARSE.to_blob(SparseArray(sparse.dim, (sparse.indices, sparse.values / (length or 1.0))))


def _half_life(lives: float | None) -> float | None:
    return None if lives is None else 0.5 ** min(max(lives, 0.0), MAX_HALF_LIVES)


FUNCTIONS: Final[dict[str, tuple[int, Callable[..., Any]]]] = {
    "vector_negative_inner_product": (2, _negative_inner_product),
    "vector_jaccard_distance": (2, _jaccard_distance),
    # sqlite-vec's vec_add and vec_sub would store infinity.
    "vector_add": (2, _elementwise(np.add)),
    "vector_sub": (2, _elementwise(np.subtract)),
    "vector_mul": (2, _elementwise(np.multiply)),
    "vector_concat": (2, lambda left, right: _blob(np.concatenate([_vector(left), _vector(right)]))),
    "vector_l2_norm": (1, lambda blob: float(np.linalg.norm(_vector(blob)))),
    "vector_l2_normalize": (1, _normalize),
    "vector_binary_quantize": (1, _binary_quantize),
    "vector_int8_quantize": (2, _int8_quantize),
    "vector_sparse_cosine_distance": (2, _sparse_distance(_cosine)),
    "vector_sparse_l2_distance": (2, _sparse_distance(lambda a, b: float(np.linalg.norm(a - b)))),
    "vector_sparse_l1_distance": (
        2,
        _sparse_distance(lambda a, b: float(np.abs(a - b).sum(dtype=np.float64))),
    ),
    "vector_sparse_inner_product_distance": (2, _sparse_distance(lambda a, b: -float(np.dot(a, b)))),
    "vector_sparse_l2_norm": (1, lambda blob: float(np.linalg.norm(_SPARSE.from_blob(blob).values))),
    "vector_sparse_l2_normalize": (1, _sparse_normalize),
    "vector_half_life": (1, _half_life),
}
"""Name to number of arguments and function: what sqlite-vec does not have."""

STAND_INS: Final[dict[str, tuple[int, Callable[..., Any]]]] = {
    "vec_distance_cosine": (2, _cosine_distance),
    "vec_distance_l2": (2, _l2_distance),
    "vec_distance_l1": (2, _l1_distance),
    "vec_distance_hamming": (2, _hamming_distance),
    "vec_bit": (1, lambda blob: blob),
    "vec_length": (1, lambda blob: len(_vector(blob))),
    "vec_slice": (3, lambda blob, start, stop: _blob(_vector(blob)[start:stop])),
}
"""numpy stand-ins for sqlite-vec's functions."""


class _Sum:
    """Elementwise sum of the non-NULL vectors of a group."""

    def __init__(self) -> None:
        self.total: NDArray[np.float64] | None = None
        self.count = 0

    def step(self, blob: Any) -> None:
        if blob is None:
            return
        vector = _vector(blob)
        if self.total is None:
            self.total = np.zeros(len(vector), np.float64)
        if len(vector) != len(self.total):  # numpy would stretch a vector of one element
            raise ValueError(f"vectors of {len(self.total)} and {len(vector)} dimensions")
        self.total += vector
        self.count += 1

    def finalize(self) -> bytes | None:
        return None if self.total is None else _blob(self.total)


class _Mean(_Sum):
    """Elementwise mean of the non-NULL vectors of a group."""

    def finalize(self) -> bytes | None:
        return None if self.total is None else _blob(self.total / self.count)


AGGREGATES: Final[dict[str, tuple[int, type[Any]]]] = {"vector_sum": (1, _Sum), "vector_avg": (1, _Mean)}
"""Name to number of arguments and aggregate class."""
