"""What is accepted as a vector: any sequence of numbers, checked once and made into one kind of array.

Knows neither SQLAlchemy nor a wire format; those of :mod:`sqla_vector.values` take it from here.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sqla_vector.exc import InvalidOption, InvalidVector, NonFiniteVector

__all__ = ["FLOAT32", "MAX_DIMENSIONS", "ColumnNames", "SparseArray", "as_array", "as_float_array", "check_dimension"]

FLOAT32: Final = np.dtype("=f4")

MAX_DIMENSIONS: Final[Mapping[str, int]] = {
    "vector": 16_000,
    "halfvec": 16_000,
    "sparsevec": 1_000_000_000,
    "bit": 64_000,
}
"""The largest dimension of each kind (pgvector manual; ``bit`` is the largest that pgvector can index)."""


def check_dimension(dim: object, kind: str, type_name: str) -> int | None:
    """Return ``dim`` if it is None or a whole number that a column of this kind can have.

    Raises:
        InvalidOption: anything else.
    """
    if dim is None:
        return None
    limit = MAX_DIMENSIONS[kind]
    if isinstance(dim, bool) or not isinstance(dim, (int, np.integer)) or not 1 <= dim <= limit:
        raise InvalidOption(f"{type_name}({dim!r}): the dimension must be a whole number from 1 to {limit:,}")
    return int(dim)


class SparseArray:
    """A sparse vector: its dimension and its non-zero elements.

    Args:
        dim: number of dimensions.
        elements: a mapping ``{index: value}`` with indices counted from 0, or a pair ``(indices, values)`` of
            equally long sequences.  Zero elements are dropped, indices are sorted.

    Raises:
        InvalidVector: an index outside ``0 <= index < dim``, repeated, or a value that is not a finite float32.

    >>> SparseArray(5, {1: 2.0, 3: 0.5})
    SparseArray(5, {1: 2.0, 3: 0.5})
    """

    __slots__ = ("dim", "indices", "values")

    dim: int
    indices: NDArray[np.int32]
    values: NDArray[np.float32]

    def __init__(self, dim: int, elements: Mapping[int, float] | tuple[Sequence[int] | NDArray[Any], Any]) -> None:
        checked = check_dimension(dim, "sparsevec", "SparseArray")
        if checked is None:
            raise InvalidOption("SparseArray needs its dimension")
        if isinstance(elements, Mapping):
            raw_indices, raw_values = list(elements.keys()), list(elements.values())
        else:
            raw_indices, raw_values = elements[0], elements[1]  # type: ignore[assignment]
        indices = np.asarray(raw_indices if len(raw_indices) else np.empty(0, np.int32))
        if indices.ndim != 1 or indices.dtype.kind not in "iu":
            raise InvalidVector("SparseArray: indices must be whole numbers")
        values = as_float_array(raw_values if len(raw_values) else np.empty(0, FLOAT32), FLOAT32, "SparseArray")
        if indices.shape != values.shape:
            raise InvalidVector(f"SparseArray: {len(indices)} indices but {len(values)} values")
        if indices.size and (int(indices.min()) < 0 or int(indices.max()) >= checked):
            raise InvalidVector(f"SparseArray: an index is outside 0..{checked - 1}")
        kept = values != 0
        order = np.argsort(indices[kept], kind="stable")
        self.dim = checked
        self.indices = indices[kept][order].astype(np.int32)
        self.values = values[kept][order]
        if (np.diff(self.indices) == 0).any():
            raise InvalidVector("SparseArray: an index is repeated")
        self.indices.setflags(write=False)
        self.values.setflags(write=False)

    @classmethod
    def from_dense(cls, values: Any) -> SparseArray:
        """Make a sparse vector of the non-zero elements of a dense one of shape (n,)."""
        dense = as_float_array(values, FLOAT32, "SparseArray")
        (indices,) = np.nonzero(dense)
        return cls(len(dense), (indices, dense[indices]))

    def to_dense(self) -> NDArray[np.float32]:
        """Return the vector as float32 of shape (dim,)."""
        dense = np.zeros(self.dim, FLOAT32)
        dense[self.indices] = self.values
        return dense

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SparseArray):
            return NotImplemented
        return (
            self.dim == other.dim
            and np.array_equal(self.indices, other.indices)
            and np.array_equal(self.values, other.values)
        )

    def __hash__(self) -> int:
        return hash((self.dim, self.indices.tobytes(), self.values.tobytes()))

    def __repr__(self) -> str:
        elements = dict(zip(self.indices.tolist(), self.values.tolist(), strict=True))
        return f"SparseArray({self.dim}, {elements})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (SparseArray, (self.dim, (self.indices, self.values)))


def _reject_elements(value: Iterable[object], column: object) -> None:
    """Raise for an element that numpy would silently convert, or convert into an object array."""
    for position, element in enumerate(value):
        if isinstance(element, (bool, np.bool_)):
            raise InvalidVector(f"{column}: element {position} is a bool, expected a number")
        if isinstance(element, (str, bytes)):
            raise InvalidVector(f"{column}: element {position} is text, expected a number")
        if isinstance(element, (complex, np.complexfloating)):
            raise InvalidVector(f"{column}: element {position} is complex, expected a real number")
        if element is None:
            raise InvalidVector(f"{column}: element {position} is None, expected a number")
        if isinstance(element, (list, tuple)) or (isinstance(element, np.ndarray) and element.ndim):
            raise InvalidVector(f"{column}: expected a flat sequence of numbers, element {position} is nested")


_PLAIN_NUMBERS: Final = frozenset({float, int})


def as_array(value: Any, column: object) -> NDArray[Any]:
    """Return any accepted input as a one-dimensional numeric array, without copying where possible."""
    result: NDArray[Any]
    if isinstance(value, (list, tuple)):
        if not _PLAIN_NUMBERS.issuperset(map(type, value)):
            _reject_elements(value, column)
        try:
            result = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidVector(f"{column}: expected a flat sequence of numbers ({error})") from None
    elif isinstance(value, (str, bytes, bytearray)):
        raise InvalidVector(
            f"{column}: expected a sequence of numbers, got {type(value).__name__}; "
            "parse text and decode bytes before (numpy.frombuffer)"
        )
    elif isinstance(value, SparseArray):
        result = value.to_dense()
    elif isinstance(value, np.ma.MaskedArray):
        raise InvalidVector(f"{column}: a masked array has elements without a value; fill it first")
    else:
        if not isinstance(value, (np.ndarray, np.generic, array, memoryview)):
            if hasattr(value, "to_numpy"):  # pgvector's value objects, pandas
                value = value.to_numpy()
            elif not hasattr(value, "__array__"):
                raise InvalidVector(f"{column}: expected a sequence of numbers, got {type(value).__name__}")
        result = np.asarray(value)
    if result.ndim != 1:
        raise InvalidVector(f"{column}: expected one dimension, got an array of shape {result.shape}")
    return result


def as_float_array(value: Any, dtype: np.dtype[Any], column: object) -> NDArray[Any]:
    """Return ``value`` as a finite, contiguous array of ``dtype`` in the machine's byte order."""
    given = as_array(value, column)
    if given.dtype.kind not in "fiu":
        raise InvalidVector(f"{column}: expected numbers, got an array of {given.dtype}")
    with np.errstate(over="ignore", invalid="ignore"):
        result = np.ascontiguousarray(given, dtype=dtype)
    if not is_finite(result):
        raise non_finite(given, result, column)
    return result


def as_float(value: object) -> float | None:
    """Return a number as a float; None if it is none, NaN or larger than any float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def is_finite(values: NDArray[Any]) -> bool:
    # A search through the bytes of the mask takes a third of the time of mask.all() on a short array.
    mask: bytes = np.isfinite(values).tobytes()
    return b"\0" not in mask


class ColumnNames(list[str]):
    """The names of the columns of one type, made into text only when a message needs it."""

    def __str__(self) -> str:
        return " or ".join(self) or "vector"


def non_finite(given: NDArray[Any], result: NDArray[Any], column: object) -> NonFiniteVector:
    position = int(np.flatnonzero(~np.isfinite(result))[0])
    element = given[position]
    if np.isfinite(element):
        return NonFiniteVector(f"{column}: element {position} is {element}, which overflows {result.dtype}")
    return NonFiniteVector(f"{column}: element {position} is {element}, expected a finite number")
