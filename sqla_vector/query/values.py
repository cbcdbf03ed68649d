"""Values of filters: as JSON has them, and as columns take them."""

from __future__ import annotations

import datetime
import enum
import math
import uuid
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from sqlalchemy import BigInteger, Enum, SmallInteger

from sqla_vector.exc import InvalidFilter

__all__ = ["as_json", "checked", "shown", "value_of"]

LONGEST: Final = 10_000
_LARGEST: Final = 2**63


def shown(value: Any) -> str:
    """Return a value as messages have it, however long it is."""
    found = repr(value)
    return found if len(found) <= 60 else f"{found[:60]}..."


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
    if not found.is_finite():
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
    kind = _kind(type_)
    if kind is None:
        raise InvalidFilter(f"{field}: a filter does not compare columns of type {type_!r}")
    read, wanted = _READ[kind]
    try:
        found = read(value)
    except (TypeError, ValueError, InvalidOperation):
        raise InvalidFilter(f"{field} is compared with {wanted}, got {shown(value)}") from None
    if kind is int and not -(2 ** (_bits(type_) - 1)) <= found < 2 ** (_bits(type_) - 1):
        raise InvalidFilter(f"{field} has numbers of {_bits(type_)} bits, and {found:,} is none")
    return found


def _bits(type_: Any) -> int:
    # A driver would refuse it, or compare with another number.
    return 16 if isinstance(type_, SmallInteger) else 64 if isinstance(type_, BigInteger) else 32


def _member(type_: Enum, value: Any, field: str) -> Any:
    if not isinstance(value, str) or value not in type_.enums:
        raise InvalidFilter(f"{field} is one of {', '.join(map(str, type_.enums))}, got {shown(value)}")
    return value if type_.enum_class is None else type_.enum_class[value]


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
        return value.name
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (Decimal, uuid.UUID)):
        return str(value)
    return checked(value, field)
