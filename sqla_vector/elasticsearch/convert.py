"""Values of columns as JSON, and the field types that take them."""

from __future__ import annotations

import datetime
import decimal
import enum
import math
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from sqlalchemy import (
    ARRAY,
    JSON,
    Boolean,
    Date,
    DateTime,
    Enum,
    Float,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    String,
    Time,
    Uuid,
)
from sqlalchemy import Text as SqlText
from sqlalchemy.types import TypeDecorator, TypeEngine

from sqla_vector.exc import InvalidDocument

__all__ = ["IGNORE_ABOVE", "TEXTUAL", "Convert", "converter", "mapping_of", "raw_type"]

Convert = Callable[[Any], Any]
"""From a value that is not None to JSON."""

IGNORE_ABOVE: Final = 8191
"""Characters: Elasticsearch indexes no term of more than 32,766 bytes, and UTF-8 has up to 4 for a character."""

TEXTUAL: Final = frozenset(
    {"text", "match_only_text", "search_as_you_type", "keyword", "constant_keyword", "wildcard", "ip", "version"}
)
"""Field types whose values are texts."""

_INTEGERS: Final[Mapping[str, tuple[int, int]]] = {
    "byte": (-(2**7), 2**7 - 1),
    "short": (-(2**15), 2**15 - 1),
    "integer": (-(2**31), 2**31 - 1),
    "long": (-(2**63), 2**63 - 1),
    "unsigned_long": (0, 2**64 - 1),
}
_OBJECTS: Final = frozenset({"object", "flattened"})


def raw_type(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return a type without those that decorate it."""
    # An Interval is no date, whatever databases without intervals keep it as.
    while isinstance(type_, TypeDecorator) and not isinstance(type_, Interval):
        type_ = type_.impl_instance
    return type_


def mapping_of(type_: TypeEngine[Any]) -> dict[str, Any] | None:
    """Return the mapping that follows from a column's type, None if there is none.

    A ``String`` is searched by words, and compared as a whole by its sub-field; whole numbers are ``long`` whatever
    their column, since SQLite's are; ``Numeric`` becomes ``double``, which has 15 digits.
    """
    raw = raw_type(type_)
    if isinstance(raw, ARRAY):
        return mapping_of(raw.item_type)
    if isinstance(raw, (Enum, Uuid, Time)):
        return {"type": "keyword"}
    if isinstance(raw, SqlText):
        return {"type": "text"}
    if isinstance(raw, String):
        return {"type": "text", "fields": {"keyword": {"type": "keyword", "ignore_above": IGNORE_ABOVE}}}
    for kind, field_type in ((Boolean, "boolean"), (Integer, "long"), (Numeric, "double"), (Float, "double")):
        if isinstance(raw, kind):
            return {"type": field_type}
    if isinstance(raw, (Date, DateTime)):
        return {"type": "date", "format": "strict_date_optional_time"}
    if isinstance(raw, JSON):
        return {"type": "object", "enabled": False}
    return None


def is_binary(type_: TypeEngine[Any]) -> bool:
    """Tell whether a column has bytes, of which JSON knows nothing."""
    return isinstance(raw_type(type_), LargeBinary)


def converter(type_: TypeEngine[Any], field_type: str) -> Convert:
    """Return what makes JSON for a type of field of the values of a column.

    Raises (when called):
        InvalidDocument: a value that JSON, or the field, does not take.
    """
    raw = raw_type(type_)
    if isinstance(raw, ARRAY) or field_type not in _OBJECTS:
        names = _names_of(raw.item_type if isinstance(raw, ARRAY) else raw)
        return lambda value: _scalar(value, field_type, names)
    return _json


def _names_of(type_: TypeEngine[Any]) -> Mapping[Any, str]:
    """Return the names that an Enum stores for its members."""
    raw = raw_type(type_)
    if not isinstance(raw, Enum) or raw.enum_class is None:
        return {}
    members = list(raw.enum_class.__members__.values())
    if len(members) != len(raw.enums):
        members = list(dict.fromkeys(members))
    return dict(zip(members, raw.enums, strict=True))


def _scalar(value: Any, field_type: str, names: Mapping[Any, str]) -> Any:
    plain = _plain(value, names)
    if isinstance(plain, list):
        return [item for item in (_scalar(v, field_type, names) for v in plain if v is not None) if item is not None]
    if field_type in TEXTUAL:
        return plain if isinstance(plain, str) else _as_text(plain)
    if isinstance(plain, decimal.Decimal):
        if not plain.is_finite():
            raise InvalidDocument(f"{plain} is no number that JSON has")
        is_whole = field_type in _INTEGERS and plain == plain.to_integral_value()
        if field_type in _INTEGERS and not is_whole:
            raise _no_whole(value, field_type)
        plain = int(plain) if is_whole else float(plain)
        if isinstance(plain, float) and not math.isfinite(plain):
            raise InvalidDocument(f"{value} is larger than any double")
    if field_type in _INTEGERS and isinstance(plain, float):
        if not plain.is_integer():
            raise _no_whole(value, field_type)
        plain = int(plain)
    if field_type in _INTEGERS and isinstance(plain, int):
        least, most = _INTEGERS[field_type]
        if not least <= plain <= most:
            raise InvalidDocument(f"{plain} is out of the range of a field of type {field_type}")
    return plain


def _no_whole(value: Any, field_type: str) -> InvalidDocument:
    # The server would keep the fraction, and index the number without it.
    return InvalidDocument(f"{value} is no whole number, which a field of type {field_type} has; declare another type")


def _as_text(plain: Any) -> str:
    if isinstance(plain, bool):
        return str(plain).lower()
    return f"{plain:f}" if isinstance(plain, decimal.Decimal) and plain.is_finite() else str(plain)


def _plain(value: Any, names: Mapping[Any, str]) -> Any:
    """Return a value as JSON, except that a Decimal is left as it is."""
    kind = type(value)
    if kind is str:
        return checked_text(value)
    if kind is int or kind is bool or kind is decimal.Decimal:
        return value
    if kind is float:
        if not math.isfinite(value):
            raise InvalidDocument(f"{value} is no number that JSON has")
        return value
    if isinstance(value, enum.Enum):
        name = names.get(value)
        return checked_text(name) if name is not None else _plain(value.value, names)
    if isinstance(value, datetime.datetime):
        return _instant(value)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        items = [_plain(v, names) for v in value]
        return sorted(items, key=repr) if isinstance(value, (set, frozenset)) else items
    if isinstance(value, np.generic):
        return _plain(value.item(), names)
    for base in (bool, int, float, str):
        if isinstance(value, base):
            return _plain(base(value), names)
    raise InvalidDocument(f"values of type {kind.__name__} cannot be written as JSON")


def _instant(value: datetime.datetime) -> str:
    """Return a time in UTC with microseconds; one without a zone is taken to be in UTC."""
    try:
        utc = value if value.tzinfo is None else value.astimezone(datetime.UTC)
    except OverflowError:
        raise InvalidDocument(f"{value} is out of the range of dates in UTC") from None
    return utc.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def checked_text(text: str) -> str:
    """Return a text that can be sent.

    Raises:
        InvalidDocument: it has half a character (a lone surrogate).
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidDocument(f"the text has half a character at position {error.start}") from None
    return text


def _json(value: Any) -> Any:
    """Check what a JSON column has; NaN and half characters are what databases take and JSON does not."""
    try:
        return _checked_json(value)
    except RecursionError:
        raise InvalidDocument("the JSON is nested too deeply") from None


def _checked_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {checked_text(str(key)): _checked_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_checked_json(item) for item in value]
    plain = value if value is None else _plain(value, {})
    return float(plain) if isinstance(plain, decimal.Decimal) else plain
