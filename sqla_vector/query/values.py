"""Values of filters: as JSON has them, and as columns take them."""

from __future__ import annotations

import datetime
import enum
import math
import uuid
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import numpy as np
from sqlalchemy import DateTime, Enum, Time, Uuid

from sqla_vector.exc import InvalidFilter, shown
from sqla_vector.schema import bits_of

__all__ = ["as_json", "checked", "has_order", "value_of"]

LONGEST: Final = 10_000
_LARGEST: Final = 2**63
_DIGITS: Final = (131_072, 16_383)
"""Of a number of PostgreSQL, before and after the point."""


def checked(value: Any, field: str) -> Any:
    """Return a value that JSON can have and a database can take.

    Raises:
        InvalidFilter: it is none: NULL, a list, an object, a number that is not finite, a text with NUL.
    """
    if value is None:
        raise InvalidFilter(f"{field}: a value is missing; is_null asks for rows without one")
    if isinstance(value, str):
        if len(value) > LONGEST:
            raise InvalidFilter(f"{field}: a text has {LONGEST:,} characters at most, got {len(value):,}")
        if "\0" in value or not _is_unicode(value):
            raise InvalidFilter(f"{field}: the text has NUL or half a character, which no column has")
        return value
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -_LARGEST <= value < _LARGEST:
            raise InvalidFilter(f"{field}: the number does not fit into 64 bits")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidFilter(f"{field}: a number must be finite, got {value}")
        return value
    raise InvalidFilter(f"{field}: a value is a text, a number, true or false, got {type(value).__name__}")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError
    return value


def _decimal(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError
    found = Decimal(str(value))
    before, after = _DIGITS
    if not found.is_finite() or found.adjusted() >= before or -int(found.as_tuple().exponent) > after:
        raise ValueError
    return found


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _date(value: Any) -> datetime.date:
    return datetime.date.fromisoformat(_text(value))


_READ: Final[dict[type, tuple[Callable[[Any], Any], str]]] = {
    bool: (_flag, "true or false"),
    int: (_whole, "a whole number"),
    float: (_number, "a number"),
    Decimal: (_decimal, "a number"),
    str: (_text, "a text"),
    datetime.datetime: (lambda value: datetime.datetime.fromisoformat(_text(value)), "a date with a time (ISO 8601)"),
    datetime.date: (_date, "a date (ISO 8601)"),
    datetime.time: (lambda value: datetime.time.fromisoformat(_text(value)), "a time (ISO 8601)"),
    uuid.UUID: (lambda value: uuid.UUID(_text(value)), "a UUID"),
}


def value_of(column: Any, value: Any, field: str) -> Any:
    """Return a value of JSON as a column's type has it.

    Raises:
        InvalidFilter: the column has values of another type, or of one that filters do not have.
    """
    type_ = column.type
    if isinstance(type_, Enum):
        return _member(type_, value, field)
    kind = uuid.UUID if isinstance(type_, Uuid) else _kind(type_)
    if kind is None:
        raise InvalidFilter(f"{field}: a filter does not compare columns of type {type_!r}")
    read, wanted = _READ[kind]
    try:
        found = read(value)
    except (TypeError, ValueError, InvalidOperation):
        raise InvalidFilter(f"{field} is compared with {wanted}, got {shown(value)}") from None
    if kind is int and not -(2 ** (bits_of(type_) - 1)) <= found < 2 ** (bits_of(type_) - 1):
        raise InvalidFilter(f"{field} has numbers of {bits_of(type_)} bits, and {found:,} is none")
    if isinstance(type_, (DateTime, Time)):
        return _in_zone(type_, found, field)
    return str(found) if isinstance(type_, Uuid) and not type_.as_uuid else found


def _in_zone(type_: DateTime | Time, value: Any, field: str) -> Any:
    """Return a time as all databases understand it: in UTC, or without a zone where the column has none."""
    if value.tzinfo is not None and (isinstance(type_, Time) or not type_.timezone):
        raise InvalidFilter(f"{field} has times without a zone, and {value.isoformat()} has one")
    if isinstance(type_, Time) or not type_.timezone:
        return value
    try:
        return value.replace(tzinfo=datetime.UTC) if value.tzinfo is None else value.astimezone(datetime.UTC)
    except OverflowError:
        raise InvalidFilter(f"{field}: {value.isoformat()} is outside of the years 1 to 9999") from None


def has_order(column: Any) -> bool:
    """Tell whether all databases agree which of two values of a column is the larger."""
    return not isinstance(column.type, Enum) and _kind(column.type) is not bool


def _member(type_: Enum, value: Any, field: str) -> Any:
    # By their names, whatever the database has of them.
    members: Any = {name: name for name in type_.enums} if type_.enum_class is None else type_.enum_class.__members__
    if not isinstance(value, str) or value not in members:
        raise InvalidFilter(f"{field} is one of {', '.join(members)}, got {shown(value)}")
    return members[value]


def _kind(type_: Any) -> type | None:
    """Return the Python type of a column's values, None if filters do not have it."""
    try:
        found = type_.python_type
    except NotImplementedError:
        return None
    return found if found in _READ else None


def as_json(value: Any, column: Any, field: str) -> Any:
    """Return a Python value as JSON has it.

    Raises:
        InvalidFilter: JSON has no such value.
    """
    if isinstance(value, enum.Enum):
        # Elsewhere a member of StrEnum or IntEnum is what it is made of.
        return value.name if isinstance(column.type, Enum) else checked(value.value, field)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Decimal) and _kind(column.type) is float:
        value = float(value)
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (Decimal, uuid.UUID)):
        return str(value)
    return checked(value, field)
