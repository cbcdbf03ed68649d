"""Criteria of mapped attributes, read: an SQLAlchemy expression becomes a small tree that can be carried elsewhere.

A safe subset: comparisons of a column with values, and their combinations.  Whoever carries the tree on (into query
DSL, into JSON) sees no other part of SQL, and values only as values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import (
    AsBoolean,
    BinaryExpression,
    BindParameter,
    BooleanClauseList,
    ClauseElement,
    ExpressionClauseList,
    False_,
    Grouping,
    Null,
    True_,
    UnaryExpression,
)

from sqla_vector.exc import InvalidFilter

__all__ = ["SUPPORTED", "Comparison", "Constant", "Criterion", "Junction", "Not", "Operator", "read_criterion"]

SUPPORTED: Final = (
    "==, !=, <, <=, >, >=, between(), in_(), not_in(), is_(None), is_not(None), a boolean attribute, "
    "and_(), or_() and not_()"
)

Operator = Literal["eq", "lt", "le", "gt", "ge", "in", "between", "is_null", "is", "is_true"]
"""``is`` is SQL's IS with true or false, which is never NULL; ``is_true`` a boolean attribute by itself."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A criterion that every row meets, or none."""

    value: bool


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite of a criterion; what is NULL stays NULL."""

    part: Criterion


@dataclass(frozen=True, slots=True)
class Junction:
    """Several criteria, all or any of which are to be met."""

    is_all: bool
    parts: tuple[Criterion, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A column compared with a value: with a list of them for ``in``, with two for ``between``."""

    column: Any
    """The expression on the left side; whether it is a column that may be asked for is the reader's to decide."""
    operator: Operator
    value: Any
    source: ClauseElement
    """The whole comparison, for messages."""


Criterion = Constant | Not | Junction | Comparison

_MIRRORED: Final[dict[Any, Any]] = {
    operators.eq: operators.eq,
    operators.ne: operators.ne,
    operators.lt: operators.gt,
    operators.le: operators.ge,
    operators.gt: operators.lt,
    operators.ge: operators.le,
}
_COMPARED: Final[dict[Any, Operator]] = {
    operators.eq: "eq",
    operators.lt: "lt",
    operators.le: "le",
    operators.gt: "gt",
    operators.ge: "ge",
}
_CONSTANTS: Final[dict[type, Callable[[], Any]]] = {Null: lambda: None, True_: lambda: True, False_: lambda: False}


def read_criterion(
    given: Any, unsupported: Callable[[ClauseElement], InvalidFilter], *, max_depth: int, max_comparisons: int
) -> Criterion:
    """Return what an SQLAlchemy criterion says.

    Args:
        given: an expression of mapped attributes.
        unsupported: makes the error for a part that is not of the subset.
        max_depth: how deep ``and_()`` and ``or_()`` may alternate.
        max_comparisons: how many there may be.

    Raises:
        InvalidFilter: a part that is not of the subset, no expression, or too much of it.
    """
    return _Reader(unsupported, max_depth, max_comparisons).read(_element(given), 0)


def _element(criterion: Any) -> ClauseElement:
    found = criterion.__clause_element__() if hasattr(criterion, "__clause_element__") else criterion
    if isinstance(found, bool):
        raise InvalidFilter(
            f"a filter is {found}: two Python values were compared; use true() or false() for a constant"
        )
    if not isinstance(found, ClauseElement):
        raise InvalidFilter(
            f"a filter must be an SQLAlchemy expression of mapped attributes, got {type(found).__name__}"
        )
    return found


class _Reader:
    """One reading, which counts what it finds."""

    def __init__(
        self, unsupported: Callable[[ClauseElement], InvalidFilter], max_depth: int, max_comparisons: int
    ) -> None:
        self._unsupported = unsupported
        self._max_depth = max_depth
        self._left = self._max = max_comparisons

    def read(self, given: ClauseElement, depth: int) -> Criterion:
        element: Any = _plain(given)
        match element:
            case True_():
                return Constant(True)
            case False_():
                return Constant(False)
            case BindParameter() if isinstance(element.effective_value, bool):
                return Constant(element.effective_value)
            case BooleanClauseList():
                return self._junction(element, depth)
            case AsBoolean():
                found = self.read(element.element, depth)
                return Not(found) if element.operator is operators.is_false else found
            case UnaryExpression() if element.operator is operators.inv:
                return Not(self.read(element.element, depth))
            case BinaryExpression():
                return self._comparison(element)
            case _ if element.__visit_name__ in ("column", "label"):
                return self._compared(element, "is_true", True, element)
        raise self._unsupported(element)

    def _junction(self, element: BooleanClauseList, depth: int) -> Criterion:
        if depth >= self._max_depth:
            raise InvalidFilter(f"a filter may nest and_() and or_() {self._max_depth} levels deep; write it flatter")
        if element.operator not in (operators.and_, operators.or_):
            raise self._unsupported(element)
        parts = tuple(self.read(clause, depth + 1) for clause in element.clauses)
        return Junction(element.operator is operators.and_, parts)

    def _comparison(self, element: BinaryExpression[Any]) -> Criterion:
        left, right, operator = _plain(element.left), _plain(element.right), element.operator
        if isinstance(left, BindParameter) and operator in _MIRRORED:
            left, right, operator = right, left, _MIRRORED[operator]
        if operator in (operators.is_, operators.is_not):
            found = self._is(left, right, element)
            return Not(found) if operator is operators.is_not else found
        if operator in (operators.in_op, operators.not_in_op):
            values = self._value(right, element)
            if not isinstance(values, (list, tuple, set, frozenset)):
                raise self._unsupported(element)
            found = self._compared(left, "in", list(values), element)
            return Not(found) if operator is operators.not_in_op else found
        if operator in (operators.between_op, operators.not_between_op) and not element.modifiers.get("symmetric"):
            if not isinstance(right, ExpressionClauseList):
                raise self._unsupported(element)
            bounds = tuple(self._value(_plain(clause), element) for clause in right.clauses)
            found = self._compared(left, "between", bounds, element)
            return Not(found) if operator is operators.not_between_op else found
        if operator is operators.ne:
            return Not(self._compared(left, "eq", self._value(right, element), element))
        if operator in _COMPARED:
            return self._compared(left, _COMPARED[operator], self._value(right, element), element)
        raise self._unsupported(element)

    def _is(self, left: Any, right: Any, element: ClauseElement) -> Comparison:
        if isinstance(right, Null):
            return self._compared(left, "is_null", None, element)
        if isinstance(right, (True_, False_)):
            return self._compared(left, "is", isinstance(right, True_), element)
        raise self._unsupported(element)

    def _compared(self, column: Any, operator: Operator, value: Any, source: ClauseElement) -> Comparison:
        self._left -= 1
        if self._left < 0:
            raise InvalidFilter(f"a filter may have {self._max:,} comparisons at most; use in_() for many values")
        return Comparison(column, operator, value, source)

    def _value(self, element: Any, whole: ClauseElement) -> Any:
        for kind, constant in _CONSTANTS.items():
            if isinstance(element, kind):
                return constant()
        if isinstance(element, BindParameter):
            if element.required:
                raise InvalidFilter(
                    f"the parameter {element.key!r} of a filter has no value; give it one with bindparam(value=...)"
                )
            return element.effective_value
        raise self._unsupported(whole)


def _plain(element: Any) -> Any:
    while isinstance(element, Grouping):
        element = element.element
    return element
