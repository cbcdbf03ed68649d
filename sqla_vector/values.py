"""Values: how vectors are written and read on the wire.  Knows no SQLAlchemy.

Four codecs, one for each column kind, with the same six methods.  A codec checks a value once
(:meth:`Codec.coerce`) and from then on works on a canonical numpy array:

======== ============================ ================================================ =====================
kind     canonical value              PostgreSQL binary (pgvector's send/recv)         SQLite blob
======== ============================ ================================================ =====================
vector   float32 (n,)                 uint16 n, uint16 0, n big-endian float32         n float32
halfvec  float16 (n,)                 uint16 n, uint16 0, n big-endian float16         n float32
sparse   :class:`SparseArray`         int32 n, nnz, 0, nnz int32, nnz float32, all BE  same, little-endian
bit      bool (n,)                    int32 n, bits from the high end of each byte     bits, low end first
======== ============================ ================================================ =====================

The formats of the second column are those of ``vector_recv``, ``halfvec_recv``, ``sparsevec_recv`` (pgvector's
sources) and ``bit_recv`` (PostgreSQL's ``varbit.c``).  SQLite keeps half vectors as float32 so that sqlite-vec's
functions apply, and bits with the low end first as ``vec_quantize_binary`` writes them.
"""

from __future__ import annotations

import json
import math
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from sqla_vector.coercion import (
    FLOAT32,
    SparseArray,
    as_array,
    as_float_array,
    is_finite,
    non_finite,
)
from sqla_vector.exc import DimensionMismatch, InvalidVector, NonFiniteVector

__all__ = ["BitCodec", "Codec", "HalfCodec", "SparseCodec", "VectorCodec", "as_matrix", "codec_for"]

V = TypeVar("V")

_F4_LE: Final = np.dtype("<f4")
_F4_BE: Final = np.dtype(">f4")
_F2_BE: Final = np.dtype(">f2")
_I4_LE: Final = np.dtype("<i4")
_I4_BE: Final = np.dtype(">i4")


def _frozen(result: NDArray[Any]) -> NDArray[Any]:
    result.setflags(write=False)
    return result


class Codec(ABC, Generic[V]):
    """Checks, writes and reads the values of one column kind and dimension."""

    kind: ClassVar[str]

    def __init__(self, dim: int | None) -> None:
        self.dim = dim

    @abstractmethod
    def coerce(self, value: Any, column: object) -> V:
        """Return the canonical value, or raise :class:`InvalidVector` naming ``column``."""

    @abstractmethod
    def to_binary(self, value: V) -> bytes:
        """Return PostgreSQL's binary format of a canonical value."""

    @abstractmethod
    def from_binary(self, data: Any) -> V:
        """Read PostgreSQL's binary format; the result is read-only."""

    @abstractmethod
    def to_text(self, value: V) -> str:
        """Return PostgreSQL's text format, exact to the last bit."""

    @abstractmethod
    def to_blob(self, value: V) -> bytes:
        """Return the SQLite blob of a canonical value."""

    @abstractmethod
    def from_blob(self, data: Any) -> V:
        """Read a SQLite blob; the result is read-only."""

    def matrix_from_binary(self, values: Sequence[Any]) -> NDArray[Any]:
        """Read many values of PostgreSQL's binary format; NULL (None) becomes :meth:`missing`."""
        return self._stacked([self.missing() if v is None else self.from_binary(v) for v in values])

    def matrix_from_blobs(self, values: Sequence[Any]) -> NDArray[Any]:
        """Read many SQLite blobs; NULL (None) becomes :meth:`missing`."""
        return self._stacked([self.missing() if v is None else self.from_blob(v) for v in values])

    @abstractmethod
    def missing(self) -> Any:
        """Return what stands for NULL in a matrix: NaN throughout, or None among objects."""

    def _stacked(self, rows: list[Any]) -> NDArray[Any]:
        return np.stack(rows)

    def equal(self, left: Any, right: Any) -> bool:
        """Tell whether two values hold the same vector; a value that is no vector equals nothing."""
        if left is right:
            return True
        if left is None or right is None:
            return False
        try:
            return bool(np.array_equal(self.coerce(left, ""), self.coerce(right, "")))  # type: ignore[arg-type]
        except InvalidVector:
            return False

    def check_length(self, length: int, column: object) -> None:
        """Raise :class:`DimensionMismatch` unless a vector of ``length`` elements fits the column."""
        if length == 0:
            raise DimensionMismatch(f"{column}: a vector needs at least one element, got none")
        if self.dim is not None and length != self.dim:
            raise DimensionMismatch(f"{column}: expected {self.dim} dimensions, got {length}")


class VectorCodec(Codec[NDArray[np.float32]]):
    """float32 vectors."""

    kind = "vector"

    def __init__(self, dim: int | None) -> None:
        super().__init__(dim)
        self._shape = (dim,)
        self._header = struct.pack(">HH", dim, 0) if dim is not None else None
        self._format = _text_format(dim) if dim is not None else None

    def coerce(self, value: Any, column: object) -> NDArray[np.float32]:
        # The usual case first: it needs no conversion, only the two checks.
        if (
            type(value) is np.ndarray
            and value.dtype is FLOAT32
            and value.shape == self._shape
            and value.flags.c_contiguous
            and is_finite(value)
        ):
            return value
        result = as_float_array(value, FLOAT32, column)
        self.check_length(len(result), column)
        return result

    def to_binary(self, value: NDArray[np.float32]) -> bytes:
        header = self._header or struct.pack(">HH", len(value), 0)
        return header + value.astype(_F4_BE).tobytes()

    def from_binary(self, data: Any) -> NDArray[np.float32]:
        return _frozen(np.frombuffer(data, _F4_BE, -1, 4).astype(FLOAT32))

    def missing(self) -> NDArray[np.float32]:
        return np.full(self.dim or 0, np.nan, FLOAT32)

    def matrix_from_binary(self, values: Sequence[Any]) -> NDArray[Any]:
        if self.dim is None or any(value is None for value in values):
            return super().matrix_from_binary(values)
        # Each value is a header as wide as one element, then the elements.
        joined = np.frombuffer(b"".join(values), _F4_BE).reshape(len(values), self.dim + 1)
        return joined[:, 1:].astype(FLOAT32)

    def matrix_from_blobs(self, values: Sequence[Any]) -> NDArray[Any]:
        if self.dim is None or not all(type(value) is bytes for value in values):
            return super().matrix_from_blobs(values)
        return np.frombuffer(b"".join(values), _F4_LE).reshape(len(values), self.dim).astype(FLOAT32)

    def to_text(self, value: NDArray[np.float32]) -> str:
        return (self._format or _text_format(len(value))) % tuple(value.tolist())

    def from_text(self, text: str) -> NDArray[np.float32]:
        """Read pgvector's (and sqlite-vec's JSON) text format."""
        return _frozen(np.asarray(_parse_text(text), FLOAT32))

    def to_blob(self, value: NDArray[np.float32]) -> bytes:
        return value.astype(_F4_LE, copy=False).tobytes()

    def from_blob(self, data: Any) -> NDArray[np.float32]:
        if isinstance(data, str):
            return self.from_text(data)
        return np.frombuffer(data, _F4_LE)


def _text_format(dim: int) -> str:
    # Nine significant digits are exact for float32 (IEEE 754-2019, section 5.12.2).
    return "[" + ",".join(["%.9g"] * dim) + "]"


def _parse_text(text: str) -> Any:
    # "-0" as an int would lose its sign.
    return json.loads(text, parse_int=float)


class HalfCodec(Codec[NDArray[np.float16]]):
    """float16 vectors."""

    kind = "halfvec"

    def coerce(self, value: Any, column: object) -> NDArray[np.float16]:
        result = as_float_array(value, np.dtype(np.float16), column)
        self.check_length(len(result), column)
        return result

    def to_binary(self, value: NDArray[np.float16]) -> bytes:
        return struct.pack(">HH", len(value), 0) + value.astype(_F2_BE).tobytes()

    def from_binary(self, data: Any) -> NDArray[np.float16]:
        return _frozen(np.frombuffer(data, _F2_BE, -1, 4).astype(np.float16))

    def missing(self) -> NDArray[np.float16]:
        return np.full(self.dim or 0, np.nan, np.float16)

    def to_text(self, value: NDArray[np.float16]) -> str:
        return _text_format(len(value)) % tuple(value.tolist())

    def to_blob(self, value: NDArray[np.float16]) -> bytes:
        return value.astype(_F4_LE).tobytes()

    def from_blob(self, data: Any) -> NDArray[np.float16]:
        if isinstance(data, str):
            return _frozen(np.asarray(_parse_text(data), np.float16))
        # SQLite computes on float32, so a sum or a product may be larger than a half vector can hold.
        try:
            with np.errstate(over="raise"):
                return _frozen(np.frombuffer(data, _F4_LE).astype(np.float16))
        except FloatingPointError:
            raise NonFiniteVector("halfvec: an element of a computed vector overflows float16") from None


def _named(column: object, dim: int, elements: Any) -> SparseArray:
    """Make a sparse vector of somebody else's; a refusal names the column it was meant for."""
    try:
        return SparseArray(dim, elements)
    except InvalidVector as error:
        raise type(error)(f"{column}: {error}") from None


def _from_scipy(value: Any, column: object) -> SparseArray:
    """Read a scipy.sparse array of shape (n,), (1, n) or (n, 1), of which only the elements are in memory."""
    shape = value.shape
    if len(shape) != 1 and (len(shape) != 2 or 1 not in shape):
        raise InvalidVector(f"{column}: expected one dimension, got a sparse array of shape {shape}")
    found = value.tocoo(copy=True)
    found.sum_duplicates()
    axis = int(np.argmax(shape))
    # Two-dimensional ones have row and col in every release, one-dimensional ones coords alone.
    indices = found.coords[0] if len(shape) == 1 else (found.row, found.col)[axis]
    return _named(column, int(shape[axis]), (indices, found.data))


class SparseCodec(Codec[SparseArray]):
    """Sparse float32 vectors."""

    kind = "sparsevec"

    def coerce(self, value: Any, column: object) -> SparseArray:
        if isinstance(value, SparseArray):
            result = value
        elif callable(getattr(value, "indices", None)) and callable(getattr(value, "dimensions", None)):
            result = _named(column, value.dimensions(), (value.indices(), value.values()))  # pgvector's
        elif hasattr(value, "tocoo"):
            result = _from_scipy(value, column)
        else:
            dense = as_float_array(value, FLOAT32, column)
            self.check_length(len(dense), column)
            result = SparseArray.from_dense(dense)
        self.check_length(result.dim, column)
        return result

    def equal(self, left: Any, right: Any) -> bool:
        if left is None or right is None:
            return left is right
        try:
            return self.coerce(left, "") == self.coerce(right, "")
        except InvalidVector:
            return False

    def to_binary(self, value: SparseArray) -> bytes:
        return (
            struct.pack(">iii", value.dim, len(value.indices), 0)
            + value.indices.astype(_I4_BE).tobytes()
            + value.values.astype(_F4_BE).tobytes()
        )

    def from_binary(self, data: Any) -> SparseArray:
        dim, nnz, _ = struct.unpack_from(">iii", data)
        indices = np.frombuffer(data, _I4_BE, nnz, 12)
        return SparseArray(dim, (indices, np.frombuffer(data, _F4_BE, nnz, 12 + 4 * nnz)))

    def missing(self) -> None:
        return None

    def _stacked(self, rows: list[Any]) -> NDArray[Any]:
        stacked = np.empty(len(rows), dtype=object)
        stacked[:] = rows
        return stacked

    def to_text(self, value: SparseArray) -> str:
        elements = zip(value.indices.tolist(), value.values.tolist(), strict=True)
        return "{" + ",".join(f"{i + 1}:{v:.9g}" for i, v in elements) + f"}}/{value.dim}"

    def to_blob(self, value: SparseArray) -> bytes:
        return (
            struct.pack("<iii", value.dim, len(value.indices), 0)
            + value.indices.astype(_I4_LE).tobytes()
            + value.values.astype(_F4_LE).tobytes()
        )

    def from_blob(self, data: Any) -> SparseArray:
        dim, nnz, _ = struct.unpack_from("<iii", data)
        indices = np.frombuffer(data, _I4_LE, nnz, 12)
        return SparseArray(dim, (indices, np.frombuffer(data, _F4_LE, nnz, 12 + 4 * nnz)))


class BitCodec(Codec[NDArray[np.bool_]]):
    """Bit vectors: booleans, or the numbers 0 and 1."""

    kind = "bit"

    def coerce(self, value: Any, column: object) -> NDArray[np.bool_]:
        if isinstance(value, (list, tuple)) and all(isinstance(v, (bool, np.bool_)) for v in value):
            given: NDArray[Any] = np.asarray(value, dtype=np.bool_)
        else:
            given = as_array(value, column)
        if given.dtype.kind != "b":
            if given.dtype.kind not in "fiu" or not ((given == 0) | (given == 1)).all():
                raise InvalidVector(f"{column}: expected booleans, or the numbers 0 and 1")
            given = given.astype(np.bool_)
        self.check_length(len(given), column)
        return np.ascontiguousarray(given)

    def to_binary(self, value: NDArray[np.bool_]) -> bytes:
        return struct.pack(">i", len(value)) + np.packbits(value).tobytes()

    def from_binary(self, data: Any) -> NDArray[np.bool_]:
        (dim,) = struct.unpack_from(">i", data)
        return _frozen(np.unpackbits(np.frombuffer(data, np.uint8, -1, 4), count=dim).view(np.bool_))

    def missing(self) -> NDArray[np.bool_]:
        raise InvalidVector("a matrix of bits has nothing to stand for NULL; add .where(column.is_not(None))")

    def to_text(self, value: NDArray[np.bool_]) -> str:
        return (value.astype(np.uint8) + ord("0")).tobytes().decode("ascii")

    def to_blob(self, value: NDArray[np.bool_]) -> bytes:
        return np.packbits(value, bitorder="little").tobytes()

    def from_blob(self, data: Any) -> NDArray[np.bool_]:
        packed = np.frombuffer(data, np.uint8)
        return _frozen(np.unpackbits(packed, count=self.dim, bitorder="little").view(np.bool_))


_CODECS: Final[dict[str, type[Codec[Any]]]] = {
    codec.kind: codec for codec in (VectorCodec, HalfCodec, SparseCodec, BitCodec)
}


def codec_for(kind: str, dim: int | None) -> Codec[Any]:
    """Return a codec for a column kind (``vector``, ``halfvec``, ``sparsevec``, ``bit``) and dimension."""
    return _CODECS[kind](dim)


def as_matrix(values: Any, dim: int | None, column: str) -> NDArray[np.float32]:
    """Return many vectors as one finite, contiguous float32 matrix of shape (n, dim).

    Args:
        values: an (n, dim) array, or a sequence of n vectors.
        dim: the column's dimension.
        column: the column's name, for messages.

    Raises:
        InvalidVector: as for a single vector; the message gives the row.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiu":
        matrix = values
    else:
        codec = VectorCodec(dim)
        rows = [codec.coerce(row, f"{column}, row {number}") for number, row in enumerate(values)]
        matrix = np.stack(rows) if rows else np.empty((0, dim or 0), FLOAT32)
    if matrix.ndim != 2:
        raise InvalidVector(f"{column}: expected an array of shape (n, {dim}), got shape {matrix.shape}")
    if dim is not None and matrix.shape[1] != dim:
        raise DimensionMismatch(f"{column}: expected {dim} dimensions, got {matrix.shape[1]}")
    with np.errstate(over="ignore", invalid="ignore"):
        result = np.ascontiguousarray(matrix, dtype=FLOAT32)
    # One pass over the whole matrix; only a failure looks for the row.
    if not math.isfinite(float(np.abs(result).max(initial=0.0))):
        row = int(np.flatnonzero(~np.isfinite(result).all(axis=1))[0])
        raise non_finite(matrix[row], result[row], f"{column}, row {row}")
    return result
