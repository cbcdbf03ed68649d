"""Functions over vectors, typed: distances, similarity, elementwise operators, functions and aggregates.

They are the primary form; the comparator methods of a column (``Article.embedding.cosine_distance(v)``) call them.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Integer, literal_column, type_coerce
from sqlalchemy.sql.elements import ClauseElement, ColumnElement, SQLColumnExpression

from sqla_vector.exc import InvalidOption
from sqla_vector.expression import DISTANCE_VALUE, Distance, VectorFunction, VectorTypeEngine, operand, vector_type_of
from sqla_vector.metrics import resolve_metric

__all__ = [
    "add",
    "avg",
    "binary_quantize",
    "concat",
    "cosine_distance",
    "distance",
    "hamming_distance",
    "inner_product",
    "jaccard_distance",
    "l1_distance",
    "l2_distance",
    "l2_norm",
    "l2_normalize",
    "max_inner_product",
    "multiply",
    "similarity",
    "similarity_from",
    "similarity_of",
    "subtract",
    "subvector",
    "sum",
    "vector_dims",
]


def distance(column: SQLColumnExpression[Any], value: object, metric: str) -> ColumnElement[float]:
    """Return the distance between a vector column and a vector, under a metric given by name.

    Args:
        column: a vector column or expression.
        value: a vector of shape (dim,), or another vector expression.
        metric: ``cosine``, ``l2``, ``l1``, ``inner_product``, ``hamming`` or ``jaccard``.

    Returns:
        An expression; its value is None where the distance is undefined (a NULL vector; a zero vector under
        cosine).

    Raises:
        UnsupportedMetric: the column's type has no such metric.
        InvalidVector: ``value`` is no vector of the column's dimension.
    """
    element, type_ = vector_type_of(column)
    found = resolve_metric(metric, type_.kind, type_.column_name)
    return Distance(found, type_.kind, element, operand(value, type_))


def l2_distance(column: SQLColumnExpression[Any], value: object) -> ColumnElement[float]:
    """Return the Euclidean distance, ``sqrt(sum((a - b)**2))``.  Arguments as for :func:`distance`."""
    return distance(column, value, "l2")


def cosine_distance(column: SQLColumnExpression[Any], value: object) -> ColumnElement[float]:
    """Return the cosine distance, ``1 - a.b / (|a| |b|)``, from 0 to 2.  Arguments as for :func:`distance`."""
    return distance(column, value, "cosine")


def max_inner_product(column: SQLColumnExpression[Any], value: object) -> ColumnElement[float]:
    """Return the *negative* inner product, ``-a.b``: the largest product sorts first.

    The name and the sign are pgvector's (its operator ``<#>``).  Arguments as for :func:`distance`.
    """
    return distance(column, value, "inner_product")


def inner_product(column: SQLColumnExpression[Any], value: object) -> ColumnElement[float]:
    """Return the inner product ``a.b`` itself, the similarity of the metric ``inner_product``."""
    return similarity(column, value, "inner_product")


def l1_distance(column: SQLColumnExpression[Any], value: object) -> ColumnElement[float]:
    """Return the taxicab distance, ``sum(abs(a - b))``.  Arguments as for :func:`distance`."""
    return distance(column, value, "l1")


def hamming_distance(column: SQLColumnExpression[Any], value: object) -> ColumnElement[float]:
    """Return the number of differing bits.  Arguments as for :func:`distance`."""
    return distance(column, value, "hamming")


def jaccard_distance(column: SQLColumnExpression[Any], value: object) -> ColumnElement[float]:
    """Return ``1 - |a & b| / |a | b|`` over set bits, 1 where no bit is common (as pgvector does)."""
    return distance(column, value, "jaccard")


def similarity_of(element: Distance) -> ColumnElement[float]:
    """Return the similarity that belongs to a distance, larger is more similar."""
    return similarity_from(element, element.metric_name, vector_type_of(element.operands[0])[1])


def similarity_from(distance: ColumnElement[float], metric_name: str, type_: VectorTypeEngine) -> ColumnElement[float]:
    """Return the similarity that belongs to an expression of a distance of vectors of a type."""
    one = literal_column("1.0", DISTANCE_VALUE)
    expression: ColumnElement[Any]
    match metric_name:
        case "inner_product":
            expression = -distance
        case "l2" | "l1":
            expression = one / (one + distance)
        case "hamming":
            if type_.dim is None:
                raise InvalidOption(f"{type_.column_name}: the similarity of bits needs their number")
            expression = one - distance / literal_column(f"{type_.dim}.0", DISTANCE_VALUE)
        case _:
            expression = one - distance
    return _typed(expression)


def _typed(expression: ColumnElement[Any]) -> ColumnElement[float]:
    return type_coerce(expression, DISTANCE_VALUE)


def similarity(column: SQLColumnExpression[Any], value: object, metric: str) -> ColumnElement[float]:
    """Return the similarity of a vector column and a vector: larger is more similar, equal on every backend.

    cosine ``1 - d``; l2 and l1 ``1 / (1 + d)``; inner_product the product itself; hamming ``1 - d / n``;
    jaccard ``1 - d``.  For a threshold prefer ``nearest(..., min_similarity=...)``, which an index can serve;
    ORDER BY similarity DESC never uses one.

    Args:
        column: a vector column or expression.
        value: a vector of shape (dim,), or another vector expression.
        metric: the metric's name.
    """
    found = distance(column, value, metric)
    assert isinstance(found, Distance)
    return similarity_of(found)


def _elementwise(operation: str, column: object, value: object) -> ColumnElement[Any]:
    element, type_ = vector_type_of(column)
    _require_kind(operation, type_, ("vector", "halfvec"))
    other = operand(value, type_)
    return VectorFunction(operation, type_.kind, type_, element, other)  # type: ignore[arg-type]


def add(column: object, value: object) -> ColumnElement[Any]:
    """Return the elementwise sum, a vector."""
    return _elementwise("add", column, value)


def subtract(column: object, value: object) -> ColumnElement[Any]:
    """Return the elementwise difference, a vector."""
    return _elementwise("sub", column, value)


def multiply(column: object, value: object) -> ColumnElement[Any]:
    """Return the elementwise product, a vector."""
    return _elementwise("mul", column, value)


def concat(column: object, value: object) -> ColumnElement[Any]:
    """Return the concatenation of two vectors; its dimension is the sum of theirs."""
    element, type_ = vector_type_of(column)
    _require_kind("concat", type_, ("vector", "halfvec"))
    if isinstance(value, ClauseElement) or hasattr(value, "__clause_element__"):
        other, other_type = vector_type_of(value)
    else:
        other_type = type_.resized(None)  # type: ignore[assignment]
        other = operand(value, other_type)
        other_type = type_.resized(len(other.value))  # type: ignore[assignment]
        other.type = other_type  # type: ignore[assignment]
    dim = type_.dim + other_type.dim if type_.dim is not None and other_type.dim is not None else None
    return VectorFunction("concat", type_.kind, type_.resized(dim), element, other)


def _require_kind(function: str, type_: VectorTypeEngine, kinds: tuple[str, ...]) -> None:
    if type_.kind not in kinds:
        raise InvalidOption(f"{function} is not defined for {type_.column_name}, a {type_.kind} column")


def l2_norm(column: SQLColumnExpression[Any]) -> ColumnElement[float]:
    """Return the Euclidean length of a vector."""
    element, type_ = vector_type_of(column)
    _require_kind("l2_norm", type_, ("vector", "halfvec", "sparsevec"))
    return VectorFunction("l2_norm", type_.kind, DISTANCE_VALUE, element)


def l2_normalize(column: SQLColumnExpression[Any]) -> ColumnElement[Any]:
    """Return the vector divided by its Euclidean length; the zero vector stays zero."""
    element, type_ = vector_type_of(column)
    _require_kind("l2_normalize", type_, ("vector", "halfvec", "sparsevec"))
    return VectorFunction("l2_normalize", type_.kind, type_, element)  # type: ignore[arg-type]


def vector_dims(column: SQLColumnExpression[Any]) -> ColumnElement[int]:
    """Return the number of dimensions of a vector."""
    element, type_ = vector_type_of(column)
    _require_kind("vector_dims", type_, ("vector", "halfvec"))
    return VectorFunction("vector_dims", type_.kind, Integer(), element)


def subvector(column: SQLColumnExpression[Any], start: int, count: int) -> ColumnElement[Any]:
    """Return ``count`` elements of a vector from position ``start``, counted from 1 as in pgvector.

    Raises:
        InvalidOption: the range is not inside the column's dimension.
    """
    element, type_ = vector_type_of(column)
    _require_kind("subvector", type_, ("vector", "halfvec"))
    for name, number in (("start", start), ("count", count)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise InvalidOption(f"subvector: {name} must be a whole number from 1, got {number!r}")
    if type_.dim is not None and start + count - 1 > type_.dim:
        raise InvalidOption(
            f"subvector: elements {start} to {start + count - 1} of {type_.column_name} with {type_.dim} dimensions"
        )
    return VectorFunction(
        "subvector",
        type_.kind,
        type_.resized(count),
        element,
        literal_column(str(start), Integer()),
        literal_column(str(count), Integer()),
    )


def binary_quantize(column: SQLColumnExpression[Any]) -> ColumnElement[Any]:
    """Return one bit for each element: 1 where it is greater than 0."""
    element, type_ = vector_type_of(column)
    _require_kind("binary_quantize", type_, ("vector", "halfvec"))
    return VectorFunction("binary_quantize", type_.kind, type_.quantized(), element)


def avg(column: SQLColumnExpression[Any]) -> ColumnElement[Any]:
    """Return the elementwise mean of the vectors of a group, ignoring NULL (an aggregate)."""
    return _aggregate("avg", column)


def sum(column: SQLColumnExpression[Any]) -> ColumnElement[Any]:
    """Return the elementwise sum of the vectors of a group, ignoring NULL (an aggregate)."""
    return _aggregate("sum", column)


def _aggregate(operation: str, column: object) -> ColumnElement[Any]:
    element, type_ = vector_type_of(column)
    _require_kind(operation, type_, ("vector", "halfvec"))
    return VectorFunction(operation, type_.kind, type_, element)  # type: ignore[arg-type]
