"""SQL expressions over vectors: distances, similarity, elementwise operators, functions and aggregates.

The elements here say *what* is computed; how it is spelled is in :mod:`sqla_vector.dialects`.  Free functions are
the primary, typed form; the comparator methods of a column (``Article.embedding.cosine_distance(v)``) call them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Final

from sqlalchemy import Boolean, Float, Integer, bindparam, literal_column, type_coerce
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.inspection import inspect
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, ClauseElement, ColumnElement, SQLColumnExpression
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import NullType, TypeDecorator, TypeEngine

from sqla_vector.exc import InvalidOption
from sqla_vector.metrics import Kind, Metric, resolve_metric
from sqla_vector.values import Codec

__all__ = [
    "Distance",
    "NearestCriterion",
    "VectorComparison",
    "VectorFunction",
    "VectorParameter",
    "avg",
    "binary_quantize",
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
    "similarity",
    "subvector",
    "sum",
    "vector_dims",
]


class VectorTypeEngine(ABC):
    """What an expression needs to know about the type of a vector column.

    A base class, not a Protocol: every search asks whether a type is one, and a Protocol takes ten times longer.
    """

    kind: ClassVar[Kind]
    dim: int | None

    @property
    @abstractmethod
    def codec(self) -> Codec[Any]:
        """Checks and converts values of this kind and dimension."""

    @property
    @abstractmethod
    def column_name(self) -> str:
        """The column's name for messages, for example ``article.embedding``."""

    @abstractmethod
    def resized(self, dim: int | None) -> TypeEngine[Any]:
        """Return the same type with another dimension."""

    @abstractmethod
    def quantized(self) -> TypeEngine[Any]:
        """Return the type of this vector's :func:`sqla_vector.binary_quantize`."""


class _Double(Float[float]):
    class Comparator(Float.Comparator[float]):
        def _adapt_expression(self, op: Any, other_comparator: Any) -> tuple[Any, TypeEngine[Any]]:
            # Arithmetic over a distance can be as undefined as it; SQLAlchemy 2.0 would make it a plain Float.
            op, type_ = super()._adapt_expression(op, other_comparator)
            return op, self.type if isinstance(type_, Float) else type_

    comparator_factory = Comparator


class DistanceValue(TypeDecorator[float]):
    """A float whose undefined value (PostgreSQL's NaN, SQLite's NULL) is None on every backend."""

    impl = _Double
    cache_ok = True

    def process_result_value(self, value: float | None, dialect: Any) -> float | None:
        return None if value is None or value != value else value


_DISTANCE_VALUE: Final = DistanceValue(53)
_BOOLEAN: Final = Boolean()


class Distance(FunctionElement[float]):
    """The distance between two vectors under one metric."""

    # The metric decides the SQL, so it is part of the cache key: without it a cosine and an l2 query would
    # share one compiled statement.
    _traverse_internals = [
        *FunctionElement._traverse_internals,
        ("metric_name", InternalTraversal.dp_string),
        ("kind", InternalTraversal.dp_string),
    ]

    def __init__(self, metric: Metric, kind: Kind, left: ColumnElement[Any], right: ColumnElement[Any]) -> None:
        # Before FunctionElement.__init__, which asks for the name: were it missing, the element would look for it
        # in the comparator of its type, and keep that of no type.
        self.name = metric.function
        self.type = _DISTANCE_VALUE
        super().__init__(left, right)
        self.metric_name: str = metric.name
        self.kind: str = kind

    @property
    def metric(self) -> Metric:
        return resolve_metric(self.metric_name)

    @property
    def operands(self) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
        """The two vectors: the column, and what it is compared with."""
        left, right = self.clauses
        return left, right


class VectorFunction(FunctionElement[Any]):
    """An operator, function or aggregate over vectors, known by its name in pgvector."""

    _traverse_internals = [
        *FunctionElement._traverse_internals,
        ("operation", InternalTraversal.dp_string),
        ("kind", InternalTraversal.dp_string),
        ("type", InternalTraversal.dp_type),
    ]

    def __init__(self, operation: str, kind: Kind, type_: TypeEngine[Any], *clauses: ColumnElement[Any]) -> None:
        self.name = operation  # before FunctionElement.__init__, see Distance
        self.type = type_
        super().__init__(*clauses)
        self.operation = operation
        self.kind: str = kind


class NearestCriterion(FunctionElement[bool]):
    """The WHERE criterion of :func:`sqla_vector.nearest`: the row is one of the k nearest of its statement.

    How it is computed is decided when the statement is compiled, because only then the whole statement is
    known, criteria that were added later included.
    """

    _traverse_internals = [
        *FunctionElement._traverse_internals,
        ("k", InternalTraversal.dp_plain_obj),
        ("exact", InternalTraversal.dp_boolean),
        ("oversample", InternalTraversal.dp_plain_obj),
        ("ef_search", InternalTraversal.dp_plain_obj),
        ("probes", InternalTraversal.dp_plain_obj),
        ("many", InternalTraversal.dp_boolean),
        ("is_bounded", InternalTraversal.dp_boolean),
    ]
    name = "nearest"

    def __init__(
        self,
        distance: Distance,
        keys: tuple[ColumnElement[Any], ...],
        *,
        k: int,
        exact: bool,
        oversample: int | None,
        ef_search: int | None,
        probes: int | None,
        bound: ColumnElement[float] | None = None,
        many: bool = False,
    ) -> None:
        self.type = Boolean()  # before FunctionElement.__init__, see Distance
        super().__init__(distance, *keys, *(() if bound is None else (bound,)))
        self.k = k
        self.exact = exact
        self.oversample = oversample
        self.ef_search = ef_search
        self.probes = probes
        self.many = many
        self.is_bounded = bound is not None

    def self_group(self, against: Any = None) -> NearestCriterion:
        # Not "(...) = 1" where the database has no boolean type: SQLite would scan instead of looking keys up.
        return self

    @property
    def distance(self) -> Distance:
        found = next(iter(self.clauses))
        assert isinstance(found, Distance)
        return found

    @property
    def keys(self) -> tuple[ColumnElement[Any], ...]:
        """The primary key columns of the table that holds the vectors."""
        clauses = tuple(self.clauses)
        return clauses[1:-1] if self.is_bounded else clauses[1:]

    @property
    def bound(self) -> ColumnElement[float] | None:
        """The largest distance wanted, or None."""
        return tuple(self.clauses)[-1] if self.is_bounded else None


def vector_type_of(column: object) -> tuple[ColumnElement[Any], VectorTypeEngine]:
    """Return the SQL expression and the vector type of a column, attribute or expression.

    Raises:
        InvalidOption: it is no vector column.
    """
    element: Any = column
    if not isinstance(element, ClauseElement):
        inspected = inspect(column, raiseerr=False)
        element = getattr(inspected, "selectable", None) if inspected is None else column
        if hasattr(column, "__clause_element__"):
            element = column.__clause_element__()
    if not isinstance(element, ColumnElement):
        raise InvalidOption(f"expected a vector column, got {type(column).__name__}")
    if not isinstance(element.type, VectorTypeEngine):
        raise InvalidOption(f"{element} is no vector column: its type is {element.type!r}")
    return element, element.type


class VectorParameter(BindParameter[Any]):
    """A vector that was checked when the statement was built, and so is never NULL, as a user's parameter may be."""

    inherit_cache = True


class VectorComparison(BinaryExpression[Any]):
    """A comparison of vectors or with NULL, ``column == vector``, that SQLAlchemy cannot evaluate in Python.

    Were it an ordinary one, an ORM-enabled UPDATE or DELETE would compare arrays, which gives an array and not True,
    and the session's objects would silently stay as they were.  As it is, the rows are fetched instead.
    """

    __visit_name__ = "sqla_vector_comparison"
    inherit_cache = True

    @classmethod
    def of(cls, comparison: BinaryExpression[Any]) -> VectorComparison:
        """Return a comparison of vectors that is equal to any other one."""
        return cls(
            comparison.left,
            comparison.right,
            comparison.operator,
            type_=comparison.type,
            negate=comparison.negate,
            modifiers=comparison.modifiers,
        )

    def _negate(self) -> Any:
        found = super()._negate()  # type: ignore[no-untyped-call]
        return VectorComparison.of(found) if isinstance(found, BinaryExpression) else found


def operand(value: object, like: VectorTypeEngine) -> ColumnElement[Any]:
    """Return ``value`` as an SQL expression, checking a Python value against a column's type at once."""
    if isinstance(value, BindParameter) and isinstance(value.type, NullType):
        # bindparam("query"): a statement that is built once and executed with many vectors.
        return bindparam(value.key, value.value, type_=like, unique=value.unique)  # type: ignore[arg-type]
    if isinstance(value, ClauseElement) or hasattr(value, "__clause_element__"):
        return vector_type_of(value)[0]
    return VectorParameter(
        None,
        like.codec.coerce(value, like.column_name),
        type_=like,  # type: ignore[arg-type]
        unique=True,
    )


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
    one = literal_column("1.0", _DISTANCE_VALUE)
    expression: ColumnElement[Any]
    match element.metric_name:
        case "inner_product":
            expression = -element
        case "l2" | "l1":
            expression = one / (one + element)
        case "hamming":
            _, type_ = vector_type_of(element.operands[0])
            if type_.dim is None:
                raise InvalidOption(f"{type_.column_name}: the similarity of bits needs their number")
            expression = one - element / literal_column(f"{type_.dim}.0", _DISTANCE_VALUE)
        case _:
            expression = one - element
    return _typed(expression)


def _typed(expression: ColumnElement[Any]) -> ColumnElement[float]:
    return type_coerce(expression, _DISTANCE_VALUE)


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
    return VectorFunction("l2_norm", type_.kind, _DISTANCE_VALUE, element)


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


@compiles(Distance)
@compiles(VectorFunction)
def _render_as_function(element: Any, compiler: SQLCompiler, **kw: Any) -> str:
    # print(stmt) without an engine: readable, and a database's own spelling is not pretended.
    return f"{element.name}({compiler.process(element.clauses, **kw)})"


@compiles(VectorComparison)
def _render_comparison(element: VectorComparison, compiler: SQLCompiler, **kw: Any) -> str:
    return str(compiler.visit_binary(element, **kw))  # type: ignore[no-untyped-call]


@compiles(NearestCriterion)
def _render_criterion(element: NearestCriterion, compiler: SQLCompiler, **kw: Any) -> str:
    return f"nearest({compiler.process(element.distance, **kw)}, {element.k})"
