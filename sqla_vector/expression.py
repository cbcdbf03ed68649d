"""SQL expressions over vectors: what is computed; how it is spelled is in :mod:`sqla_vector.dialects`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Final

from sqlalchemy import Boolean, Float
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.inspection import inspect
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, ClauseElement, ColumnElement, Label
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import NullType, TypeDecorator, TypeEngine

from sqla_vector.exc import InvalidOption
from sqla_vector.metrics import Kind, Metric, resolve_metric
from sqla_vector.values import Codec

__all__ = [
    "Distance",
    "DistanceValue",
    "NearestCriterion",
    "ResultOrder",
    "VectorComparison",
    "VectorFunction",
    "VectorParameter",
    "VectorTypeEngine",
    "as_type",
    "operand",
    "vector_type_of",
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


DISTANCE_VALUE: Final = DistanceValue(53)
_BOOLEAN: Final = Boolean()


class Distance(FunctionElement[float]):
    """The distance between two vectors under one metric."""

    # The metric decides the SQL, so it is part of the cache key: without it a cosine and an l2 query would
    # share one compiled statement.
    _traverse_internals = [
        *FunctionElement._traverse_internals,
        ("metric_name", InternalTraversal.dp_string),
        ("kind", InternalTraversal.dp_string),
        ("is_unindexed", InternalTraversal.dp_boolean),
    ]
    is_unindexed = False

    def __init__(self, metric: Metric, kind: Kind, left: ColumnElement[Any], right: ColumnElement[Any]) -> None:
        # Before FunctionElement.__init__, which asks for the name: were it missing, the element would look for it
        # in the comparator of its type, and keep that of no type.
        self.name = metric.function
        self.type = DISTANCE_VALUE
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

    def unindexed(self) -> Distance:
        """Return the same distance as an expression that no index is ordered by."""
        found: Distance = self._clone()
        found.is_unindexed = True
        return found


class ResultOrder(FunctionElement[Any]):
    """A column of the result, as what its rows are sorted by.

    By its name where that is the only one, or it may be computed twice; else, as of an entity that has such a column
    too, as an expression.
    """

    _traverse_internals = [*FunctionElement._traverse_internals, ("label_name", InternalTraversal.dp_string)]
    name = "result_order"

    def __init__(self, label: Label[Any]) -> None:
        self.type = label.type  # before FunctionElement.__init__, see Distance
        super().__init__(label.element)
        self.label_name = label.name

    @property
    def element(self) -> ColumnElement[Any]:
        """What is sorted by."""
        return next(iter(self.clauses))


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
        ("recall", InternalTraversal.dp_plain_obj),
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
        recall: float | None = None,
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
        self.recall = recall
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


def as_type(parameter: BindParameter[Any], type_: TypeEngine[Any]) -> BindParameter[Any]:
    """Return a user's parameter with a type, and else as it is: it may be required, or have its value of a function."""
    typed: BindParameter[Any] = parameter._clone()
    typed.type = type_
    return typed


def operand(value: object, like: VectorTypeEngine) -> ColumnElement[Any]:
    """Return ``value`` as an SQL expression, checking a Python value against a column's type at once."""
    if isinstance(value, BindParameter) and isinstance(value.type, NullType):
        # bindparam("query"): a statement that is built once and executed with many vectors.
        return as_type(value, like)  # type: ignore[arg-type]
    if isinstance(value, ClauseElement) or hasattr(value, "__clause_element__"):
        return vector_type_of(value)[0]
    return VectorParameter(
        None,
        like.codec.coerce(value, like.column_name),
        type_=like,  # type: ignore[arg-type]
        unique=True,
    )


@compiles(Distance)
@compiles(VectorFunction)
def _render_as_function(element: Any, compiler: SQLCompiler, **kw: Any) -> str:
    # print(stmt) without an engine: readable, and a database's own spelling is not pretended.
    return f"{element.name}({compiler.process(element.clauses, **kw)})"


@compiles(ResultOrder)
def _render_order(element: ResultOrder, compiler: Any, **kw: Any) -> str:
    if compiler.stack and not kw.get("within_columns_clause"):
        columns = compiler.stack[-1]["selectable"]._all_selected_columns
        names = [str(getattr(column, "name", "")).lower() for column in columns]
        if names.count(element.label_name) == 1:
            return str(compiler.preparer.quote(element.label_name))
    return str(compiler.process(element.element, **kw))


@compiles(VectorComparison)
def _render_comparison(element: VectorComparison, compiler: SQLCompiler, **kw: Any) -> str:
    return str(compiler.visit_binary(element, **kw))  # type: ignore[no-untyped-call]


@compiles(NearestCriterion)
def _render_criterion(element: NearestCriterion, compiler: SQLCompiler, **kw: Any) -> str:
    return f"nearest({compiler.process(element.distance, **kw)}, {element.k})"
