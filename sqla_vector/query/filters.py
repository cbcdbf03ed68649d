"""Filters as data: a tree of comparisons of named attributes, that travels as JSON.

A filter names attributes and holds values; it holds no SQL.  Which attributes it may name is said where it is turned
into a criterion, by :meth:`Filter.criterion`, and values become bound parameters of the attribute's type or are
refused.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from sqlalchemy import and_, false, not_, or_, true
from sqlalchemy.sql.elements import ClauseElement, ColumnElement

from sqla_vector import criteria
from sqla_vector.exc import InvalidFilter, shown
from sqla_vector.query.values import as_json, checked, has_order, value_of

__all__ = ["AllOf", "AnyOf", "Compare", "Filter", "Not", "Op", "filter_from_json", "filter_of"]

MAX_DEPTH: Final = 10
MAX_COMPARISONS: Final = 100
MAX_VALUES: Final = 1_000
"""Of one list."""
MAX_ALL_VALUES: Final = 10_000
"""Of all comparisons: a statement has 32,766 parameters at most on SQLite, and 32,767 with asyncpg."""
MAX_PARTS: Final = 1_000
"""Comparisons and what they are combined by."""

Op = Literal["eq", "ne", "lt", "le", "gt", "ge", "in", "between", "is_null"]

Columns = Mapping[str, Any]
"""The attributes that a filter may name."""


class Filter(ABC):
    """A criterion as data."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return the filter as JSON has it."""

    @abstractmethod
    def criterion(self, columns: Columns) -> ColumnElement[bool]:
        """Return the filter as an SQL criterion.

        Args:
            columns: the attributes that it may name.

        Raises:
            InvalidFilter: it names another one, or has a value of another type.
        """


@dataclass(frozen=True, slots=True)
class Compare(Filter):
    """An attribute compared with a value: ``{"field": "lang", "op": "eq", "value": "en"}``."""

    field: str
    op: Op
    value: Any = None
    """As JSON has it: a list for ``in``, two values for ``between``, nothing for ``is_null``."""

    def __post_init__(self) -> None:
        if not isinstance(self.field, str) or not self.field.isidentifier():
            raise InvalidFilter(f"a filter names an attribute, got {shown(self.field)}")
        if self.op not in get_args(Op):
            raise InvalidFilter(f"a filter compares by one of {', '.join(get_args(Op))}, got {shown(self.op)}")
        match self.op:
            case "in" | "between":
                if not isinstance(self.value, (list, tuple)):
                    raise InvalidFilter(f"{self.field}: {self.op} takes a list, got {type(self.value).__name__}")
                if self.op == "between" and len(self.value) != 2:
                    raise InvalidFilter(f"{self.field}: between takes two values, got {len(self.value):,}")
                if len(self.value) > MAX_VALUES:
                    raise InvalidFilter(
                        f"{self.field}: in takes {MAX_VALUES:,} values at most, got {len(self.value):,}"
                    )
                object.__setattr__(self, "value", tuple(checked(value, self.field) for value in self.value))
            case "is_null":
                if self.value is not None:
                    raise InvalidFilter(f"{self.field}: is_null takes no value")
            case _:
                object.__setattr__(self, "value", checked(self.value, self.field))

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"field": self.field, "op": self.op}
        if self.op != "is_null":
            found["value"] = list(self.value) if isinstance(self.value, tuple) else self.value
        return found

    def criterion(self, columns: Columns) -> ColumnElement[bool]:
        column = columns.get(self.field)
        if column is None:
            known = ", ".join(sorted(columns)) or "none"
            raise InvalidFilter(f"a filter may not name {self.field!r}; allowed are: {known}")
        if self.op in _ORDERED and not has_order(column):
            raise InvalidFilter(f"{self.field} has values that databases do not order; compare by eq, ne or in")
        match self.op:
            case "is_null":
                return _bool(column.is_(None))
            case "in":
                return _bool(column.in_([value_of(column, value, self.field) for value in self.value]))
            case "between":
                low, high = (value_of(column, value, self.field) for value in self.value)
                return _bool(column.between(low, high))
        return _bool(_COMPARED[self.op](column, value_of(column, self.value, self.field)))


_ORDERED: Final = frozenset({"lt", "le", "gt", "ge", "between"})
_COMPARED: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "eq": lambda column, value: column == value,
    "ne": lambda column, value: column != value,
    "lt": lambda column, value: column < value,
    "le": lambda column, value: column <= value,
    "gt": lambda column, value: column > value,
    "ge": lambda column, value: column >= value,
}


@dataclass(frozen=True, slots=True)
class _Junction(Filter):
    parts: tuple[Filter, ...]

    name = ""

    def to_json(self) -> dict[str, Any]:
        return {self.name: [part.to_json() for part in self.parts]}


class AllOf(_Junction):
    """Several filters that must all be met; none is met by every row: ``{"all": [...]}``."""

    __slots__ = ()
    name = "all"

    def criterion(self, columns: Columns) -> ColumnElement[bool]:
        return and_(true(), *(part.criterion(columns) for part in self.parts))


class AnyOf(_Junction):
    """Several filters of which one must be met; none is met by no row: ``{"any": [...]}``."""

    __slots__ = ()
    name = "any"

    def criterion(self, columns: Columns) -> ColumnElement[bool]:
        return or_(false(), *(part.criterion(columns) for part in self.parts))


@dataclass(frozen=True, slots=True)
class Not(Filter):
    """The opposite of a filter; a row without a value meets neither, as in SQL: ``{"not": {...}}``."""

    part: Filter

    def to_json(self) -> dict[str, Any]:
        return {"not": self.part.to_json()}

    def criterion(self, columns: Columns) -> ColumnElement[bool]:
        return not_(self.part.criterion(columns))


def _bool(criterion: Any) -> ColumnElement[bool]:
    found: ColumnElement[bool] = criterion
    return found


def filter_from_json(data: object) -> Filter:
    """Return the filter that a JSON value describes.

    Raises:
        InvalidFilter: it describes none, or is too deep or too long.
    """
    return checked_size(_Reading().read(data, 0))


def checked_size(given: Filter) -> Filter:
    """Return a filter that is not too much for a database or for JSON.

    Raises:
        InvalidFilter: it is.
    """
    left = [(given, 0)]
    comparisons = values = parts = 0
    while left:
        part, depth = left.pop()
        parts += 1
        if depth > MAX_DEPTH:
            raise InvalidFilter(f"a filter may be {MAX_DEPTH} levels deep; write it flatter")
        match part:
            case _Junction():
                left += [(one, depth + 1) for one in part.parts]
            case Not():
                left.append((part.part, depth + 1))
            case Compare():
                comparisons += 1
                values += len(part.value) if isinstance(part.value, tuple) else 1
        if comparisons > MAX_COMPARISONS:
            raise InvalidFilter(f"a filter may have {MAX_COMPARISONS:,} comparisons at most")
        if values > MAX_ALL_VALUES:
            raise InvalidFilter(f"a filter may have {MAX_ALL_VALUES:,} values at most")
        if parts > MAX_PARTS:
            raise InvalidFilter(f"a filter may have {MAX_PARTS:,} parts at most")
    return given


class _Reading:
    """One reading, which stops before it is too much."""

    def __init__(self) -> None:
        self._parts = 0

    def read(self, data: object, depth: int) -> Filter:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidFilter(f"a filter may have {MAX_PARTS:,} parts at most")
        if depth > MAX_DEPTH:
            raise InvalidFilter(f"a filter may be {MAX_DEPTH} levels deep; write it flatter")
        if not isinstance(data, dict):
            raise InvalidFilter(f"a filter is an object, got {type(data).__name__}")
        keys = set(data)
        if keys == {"all"} or keys == {"any"}:
            (parts,) = data.values()
            if not isinstance(parts, list):
                raise InvalidFilter(f"{keys.pop()} takes a list of filters, got {type(parts).__name__}")
            return (AllOf if "all" in data else AnyOf)(tuple(self.read(part, depth + 1) for part in parts))
        if keys == {"not"}:
            return Not(self.read(data["not"], depth + 1))
        if keys in ({"field", "op", "value"}, {"field", "op"}):
            return Compare(data["field"], data["op"], data.get("value"))
        named = ", ".join(sorted(str(key)[:40] for key in list(keys)[:10])) or "nothing"
        raise InvalidFilter(f"a filter has all, any, not, or field with op and value; this one has {named}")


def filter_of(expression: Any) -> Filter:
    """Return the filter for an SQLAlchemy criterion on attributes of one class.

    Supported are ==, !=, <, <=, >, >=, between(), in_(), not_in(), is_(None), is_not(None), a boolean attribute,
    and_(), or_() and not_(), between an attribute and a value.

    Raises:
        InvalidFilter: anything else.
    """
    limits = {"max_depth": MAX_DEPTH, "max_comparisons": MAX_COMPARISONS}
    return _filter_of(criteria.read_criterion(expression, _unsupported, **limits))


def _filter_of(criterion: criteria.Criterion) -> Filter:
    match criterion:
        case criteria.Constant(value):
            return AllOf(()) if value else AnyOf(())
        case criteria.Not(criteria.Comparison(operator="eq") as comparison):
            return dataclasses.replace(_compare(comparison), op="ne")
        case criteria.Comparison(operator="is"):
            # Never NULL, so that its opposite finds the rows without a value.
            compared = _compare(criterion)
            return AllOf((compared, Not(Compare(compared.field, "is_null"))))
        case criteria.Not(part):
            return Not(_filter_of(part))
        case criteria.Junction(is_all, parts):
            return (AllOf if is_all else AnyOf)(tuple(_filter_of(part) for part in parts))
        case criteria.Comparison():
            return _compare(criterion)


def _compare(comparison: criteria.Comparison) -> Compare:
    column, value = comparison.column, comparison.value
    name = getattr(column, "_annotations", {}).get("proxy_key") or getattr(column, "key", None)
    if getattr(column, "__visit_name__", "") != "column" or not isinstance(name, str):
        raise _unsupported(comparison.source)
    match comparison.operator:
        case "is_null":
            return Compare(name, "is_null")
        case "is_true" | "is":
            return Compare(name, "eq", value)
        case "in" | "between":
            return Compare(name, comparison.operator, [as_json(one, column, name) for one in value])
        case operator:
            return Compare(name, operator, as_json(value, column, name))


def _unsupported(element: ClauseElement) -> InvalidFilter:
    operator = getattr(getattr(element, "operator", None), "__name__", "")
    what = f"{type(element).__name__} {operator}".strip()
    return InvalidFilter(
        f"this filter cannot be written as data: {what}; supported are {criteria.SUPPORTED}, between an attribute "
        "and a value"
    )


def both(first: Filter | None, second: Filter) -> Filter:
    """Return the filter that two make together."""
    if first is None:
        return second
    parts: Sequence[Filter] = first.parts if isinstance(first, AllOf) else (first,)
    return AllOf((*parts, second))
