"""Filters: SQLAlchemy criteria on mapped attributes become query DSL, with the meaning that they have in SQL.

A criterion is walked once and gives two queries: one for the documents where it is true and one for those where it is
false.  What is in neither is SQL's NULL.  So ``not_()`` exchanges the two, and a document without a value matches
neither ``==`` nor ``!=``, as in the database.

Values only ever become the value of a ``term``, ``terms`` or ``range`` query of a declared field, after their type was
checked; no value is taken for structure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

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

from sqla_vector.elasticsearch.columns import Columns, FieldRef
from sqla_vector.elasticsearch.dsl import MATCH_ALL, MATCH_NONE, Query, all_of, any_of, none_of
from sqla_vector.exc import InvalidFilter

__all__ = ["MAX_CLAUSES", "MAX_DEPTH", "MAX_TERMS", "filter_query"]

MAX_DEPTH: Final = 20
"""How deep and_() and or_() may alternate; a node refuses 30 levels of its own (max_nested_depth)."""
MAX_CLAUSES: Final = 1_000
MAX_TERMS: Final = 65_536
"""The server's index.max_terms_count."""

SUPPORTED: Final = (
    "==, !=, <, <=, >, >=, between(), in_(), not_in(), is_(None), is_not(None), a boolean attribute, "
    "and_(), or_() and not_()"
)

_MIRRORED: Final[dict[Any, Any]] = {
    operators.eq: operators.eq,
    operators.ne: operators.ne,
    operators.lt: operators.gt,
    operators.le: operators.ge,
    operators.gt: operators.lt,
    operators.ge: operators.le,
}
_RANGES: Final[dict[Any, str]] = {operators.lt: "lt", operators.le: "lte", operators.gt: "gt", operators.ge: "gte"}
_OPPOSITE: Final = {"lt": "gte", "lte": "gt", "gt": "lte", "gte": "lt"}


@dataclass(frozen=True, slots=True)
class _Truth:
    """The documents of which a criterion is true, and those of which it is false."""

    true: Query
    false: Query

    def negated(self) -> _Truth:
        return _Truth(self.false, self.true)


_UNKNOWN: Final = _Truth(MATCH_NONE, MATCH_NONE)


def filter_query(columns: Columns, criteria: Sequence[Any]) -> Query | None:
    """Return the query for the documents of which all criteria are true; None if there are no criteria.

    Args:
        columns: the index's fields by the columns they are of.
        criteria: expressions of mapped attributes.

    Raises:
        InvalidFilter: anything that is not supported, a column that is no field, a value of another type.
    """
    if not criteria:
        return None
    walk = _Walk(columns)
    return all_of([walk.truth(_element(criterion), 0).true for criterion in criteria])


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


class _Walk:
    """One translation, which counts what it makes."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._clauses = 0

    def truth(self, given: ClauseElement, depth: int) -> _Truth:
        element: Any = _plain(given)
        match element:
            case True_():
                return _Truth(MATCH_ALL, MATCH_NONE)
            case False_():
                return _Truth(MATCH_NONE, MATCH_ALL)
            case BindParameter() if isinstance(element.effective_value, bool):
                return _Truth(MATCH_ALL, MATCH_NONE) if element.effective_value else _Truth(MATCH_NONE, MATCH_ALL)
            case BooleanClauseList():
                return self._list(element, depth)
            case AsBoolean():
                found = self.truth(element.element, depth)
                return found.negated() if element.operator is operators.is_false else found
            case UnaryExpression() if element.operator is operators.inv:
                return self.truth(element.element, depth).negated()
            case BinaryExpression():
                return self._binary(element)
        if (field := self._columns.find(element)) is not None:
            if field.kind != "boolean":
                raise InvalidFilter(f"{field} is no boolean, so it is no criterion by itself; compare it with a value")
            self._count()
            return self._equal(field, True)
        raise _unsupported(element)

    def _list(self, element: BooleanClauseList, depth: int) -> _Truth:
        if depth >= MAX_DEPTH:
            raise InvalidFilter(f"a filter may nest and_() and or_() {MAX_DEPTH} levels deep; write it flatter")
        found = [self.truth(clause, depth + 1) for clause in element.clauses]
        true, false = [one.true for one in found], [one.false for one in found]
        if element.operator is operators.and_:
            return _Truth(all_of(true), any_of(false))
        if element.operator is operators.or_:
            return _Truth(any_of(true), all_of(false))
        raise _unsupported(element)

    def _binary(self, element: BinaryExpression[Any]) -> _Truth:
        self._count()
        left, right, operator = _plain(element.left), _plain(element.right), element.operator
        if isinstance(left, BindParameter) and operator in _MIRRORED:
            left, right, operator = right, left, _MIRRORED[operator]
        field = self._columns.find(left)
        if field is None:
            raise _unsupported(element)
        if operator in (operators.is_, operators.is_not):
            found = self._is(field, right, element)
            return found.negated() if operator is operators.is_not else found
        if operator in (operators.in_op, operators.not_in_op):
            found = self._in(field, _value(right, element), element)
            return found.negated() if operator is operators.not_in_op else found
        if operator in (operators.between_op, operators.not_between_op) and not element.modifiers.get("symmetric"):
            if not isinstance(right, ExpressionClauseList):
                raise _unsupported(element)
            low, high = (_value(_plain(clause), element) for clause in right.clauses)
            found = self._between(field, low, high)
            return found.negated() if operator is operators.not_between_op else found
        if operator in (operators.eq, operators.ne):
            found = self._equal(field, _value(right, element))
            return found.negated() if operator is operators.ne else found
        if operator in _RANGES:
            return self._range(field, _RANGES[operator], _value(right, element))
        raise _unsupported(element)

    def _is(self, field: FieldRef, right: Any, element: ClauseElement) -> _Truth:
        if isinstance(right, Null):
            exists = field.exists()
            return _Truth(none_of(exists), exists)
        if isinstance(right, (True_, False_)):
            true = self._equal(field, isinstance(right, True_)).true
            return _Truth(true, none_of(true))  # IS is never NULL
        raise _unsupported(element)

    def _equal(self, field: FieldRef, value: Any) -> _Truth:
        if value is None:
            return _UNKNOWN
        return self._two(field, field.equal(value))

    def _in(self, field: FieldRef, values: Any, element: ClauseElement) -> _Truth:
        if not isinstance(values, (list, tuple, set, frozenset)):
            raise _unsupported(element)
        if not values:
            return _Truth(MATCH_NONE, MATCH_ALL)  # also where there is no value, as in SQL
        if len(values) > MAX_TERMS:
            raise InvalidFilter(f"{field}: in_() takes {MAX_TERMS:,} values at most, got {len(values):,}")
        given = [value for value in values if value is not None]
        found = self._two(field, field.one_of(given))
        return _Truth(found.true, MATCH_NONE) if len(given) < len(values) else found

    def _range(self, field: FieldRef, operator: str, value: Any) -> _Truth:
        if value is None:
            return _UNKNOWN
        true = field.range(operator, value)
        if field.is_collection:
            return _Truth(true, none_of(true))
        return _Truth(true, field.range(_OPPOSITE[operator], value))

    def _between(self, field: FieldRef, low: Any, high: Any) -> _Truth:
        if field.is_collection and low is not None and high is not None:
            # One and the same value lies between both.
            true = field.between(low, high)
            return _Truth(true, none_of(true))
        above, below = self._range(field, "gte", low), self._range(field, "lte", high)
        return _Truth(all_of([above.true, below.true]), any_of([above.false, below.false]))

    def _two(self, field: FieldRef, true: Query) -> _Truth:
        if field.is_collection:
            return _Truth(true, none_of(true))
        return _Truth(true, all_of([field.exists(), none_of(true)]))

    def _count(self) -> None:
        self._clauses += 1
        if self._clauses > MAX_CLAUSES:
            raise InvalidFilter(f"a filter may have {MAX_CLAUSES:,} comparisons at most; use in_() for many values")


def _plain(element: Any) -> Any:
    while isinstance(element, Grouping):
        element = element.element
    return element


_CONSTANTS: Final[dict[type, Callable[[], Any]]] = {Null: lambda: None, True_: lambda: True, False_: lambda: False}


def _value(element: Any, whole: ClauseElement) -> Any:
    for kind, constant in _CONSTANTS.items():
        if isinstance(element, kind):
            return constant()
    if isinstance(element, BindParameter):
        if element.required:
            raise InvalidFilter(
                f"the parameter {element.key!r} of a filter has no value; give it one with bindparam(value=...)"
            )
        return element.effective_value
    raise _unsupported(whole)


def _unsupported(element: ClauseElement) -> InvalidFilter:
    operator = getattr(getattr(element, "operator", None), "__name__", "")
    what = f"{type(element).__name__} {operator}".strip()
    return InvalidFilter(
        f"this filter cannot be searched for in Elasticsearch: {what}; supported are {SUPPORTED}, "
        "between an attribute that is a field and a value"
    )
