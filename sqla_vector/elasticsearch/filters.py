"""Filters: SQLAlchemy criteria on mapped attributes become query DSL, with the meaning that they have in SQL.

A criterion is walked once and gives two queries: one for the documents where it is true and one for those where it is
false.  What is in neither is SQL's NULL.  So ``not_()`` exchanges the two, and a document without a value matches
neither ``==`` nor ``!=``, as in the database.

Values only ever become the value of a ``term``, ``terms`` or ``range`` query of a declared field, after their type was
checked; no value is taken for structure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.sql.elements import ClauseElement

from sqla_vector.criteria import SUPPORTED, Comparison, Constant, Criterion, Junction, Not, read_criterion
from sqla_vector.elasticsearch.columns import Columns, FieldRef
from sqla_vector.elasticsearch.dsl import MATCH_ALL, MATCH_NONE, Query, all_of, any_of, none_of
from sqla_vector.exc import InvalidFilter

__all__ = ["MAX_CLAUSES", "MAX_DEPTH", "MAX_TERMS", "filter_query"]

MAX_DEPTH: Final = 20
"""How deep and_() and or_() may alternate; a node refuses 30 levels of its own (max_nested_depth)."""
MAX_CLAUSES: Final = 1_000
MAX_TERMS: Final = 65_536
"""The server's index.max_terms_count."""

_RANGES: Final[dict[str, str]] = {"lt": "lt", "le": "lte", "gt": "gt", "ge": "gte"}
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
    translation = _Translation(columns)
    limits = {"max_depth": MAX_DEPTH, "max_comparisons": MAX_CLAUSES}
    read = [read_criterion(criterion, _unsupported, **limits) for criterion in criteria]
    return all_of([translation.truth(criterion).true for criterion in read])


class _Translation:
    """What criteria are in query DSL."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns

    def truth(self, criterion: Criterion) -> _Truth:
        match criterion:
            case Constant(value):
                return _Truth(MATCH_ALL, MATCH_NONE) if value else _Truth(MATCH_NONE, MATCH_ALL)
            case Not(part):
                return self.truth(part).negated()
            case Junction(is_all, parts):
                found = [self.truth(part) for part in parts]
                true, false = [one.true for one in found], [one.false for one in found]
                return _Truth(all_of(true), any_of(false)) if is_all else _Truth(any_of(true), all_of(false))
            case Comparison():
                return self._compared(criterion)

    def _compared(self, comparison: Comparison) -> _Truth:
        field, value = self._columns.find(comparison.column), comparison.value
        if field is None:
            raise _unsupported(comparison.source)
        match comparison.operator:
            case "is_true":
                if field.kind != "boolean":
                    raise InvalidFilter(
                        f"{field} is no boolean, so it is no criterion by itself; compare it with a value"
                    )
                return self._equal(field, True)
            case "is_null":
                exists = field.exists()
                return _Truth(none_of(exists), exists)
            case "is":
                true = self._equal(field, value).true
                return _Truth(true, none_of(true))  # IS is never NULL
            case "in":
                return self._in(field, value)
            case "between":
                return self._between(field, *value)
            case "eq":
                return self._equal(field, value)
            case operator:
                return self._range(field, _RANGES[operator], value)

    def _equal(self, field: FieldRef, value: Any) -> _Truth:
        if value is None:
            return _UNKNOWN
        return self._two(field, field.equal(value))

    def _in(self, field: FieldRef, values: list[Any]) -> _Truth:
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


def _unsupported(element: ClauseElement) -> InvalidFilter:
    operator = getattr(getattr(element, "operator", None), "__name__", "")
    what = f"{type(element).__name__} {operator}".strip()
    return InvalidFilter(
        f"this filter cannot be searched for in Elasticsearch: {what}; supported are {SUPPORTED}, "
        "between an attribute that is a field and a value"
    )
