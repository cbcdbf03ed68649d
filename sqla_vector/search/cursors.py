"""Cursors: a place in a result as a short text that a web page may hand out and take back.

A cursor has the number and the key of a row and nothing else that is used; it is not signed.  Whoever makes one up
can ask for another place in the result, and no more: its parts are checked and travel as parameters.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Integer
from sqlalchemy.sql.elements import ColumnElement

from sqla_vector.coercion import as_float
from sqla_vector.exc import InvalidOption, shown
from sqla_vector.schema import bits_of

__all__ = ["check_place", "decode", "digest", "encode"]

VERSION: Final = 1
_MOST_DIGITS: Final = 1_000
MAX_LENGTH: Final = 4_000

_TAGS: Final[dict[str, tuple[type[Any], Callable[[Any], str], Callable[[str], Any]]]] = {
    "uuid": (UUID, str, UUID),
    "datetime": (datetime, datetime.isoformat, datetime.fromisoformat),
    "date": (date, date.isoformat, date.fromisoformat),
    "decimal": (Decimal, str, Decimal),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "float": (float, float.hex, float.fromhex),
}
"""How what JSON does not have is written; a datetime is a date too, so it comes first."""


def digest(parts: Sequence[bytes]) -> str:
    """Return what tells one search from another."""
    found = hashlib.blake2b(digest_size=6)
    for part in parts:
        found.update(len(part).to_bytes(8, "big") + part)
    return found.hexdigest()


def encode(search: str, number: float, keys: Sequence[Any]) -> str:
    """Return a cursor.

    Args:
        search: the :func:`digest` of the search.
        number: the distance or score of a row.
        keys: its primary key.
    """
    text = json.dumps([VERSION, search, number.hex(), [_written(key) for key in keys]], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode(cursor: str, search: str) -> tuple[float, list[Any]]:
    """Return the number and the key in a cursor.

    Raises:
        InvalidOption: it is no cursor, or one of another search.
    """
    if len(cursor) > MAX_LENGTH:
        raise InvalidOption(f"the cursor is longer than {MAX_LENGTH:,} characters, which cursor_of() makes none of")
    try:
        found = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        version, of, number, keys = found
        if version != VERSION or not isinstance(of, str) or not isinstance(keys, list):
            raise ValueError("another version")
        place = float.fromhex(number), [_read(key) for key in keys]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, binascii.Error, InvalidOperation):
        raise InvalidOption("the cursor is none that cursor_of() has made; begin with the first page") from None
    if of != search:
        raise InvalidOption("the cursor is of another search: its vector, text, column and metric must be the same")
    return place


def check_place(number: Any, keys: Sequence[Any], columns: Sequence[ColumnElement[Any]]) -> tuple[float, list[Any]]:
    """Return a number and a key if they can be those of a row.

    Raises:
        InvalidOption: they cannot.
    """
    # A distance may be infinite, of vectors that are far apart.
    place = as_float(number)
    if place is None:
        raise InvalidOption(f"a cursor begins with a number, the distance or score of a row, got {shown(number)}")
    if len(keys) != len(columns):
        raise InvalidOption(f"a cursor has {len(columns)} parts of a primary key here, got {len(keys)}")
    for key, column in zip(keys, columns, strict=True):
        try:
            expected: Any = column.type.python_type
        except NotImplementedError:
            expected = object
        if key is None or not isinstance(key, expected) or (isinstance(key, bool) and expected is not bool):
            raise InvalidOption(f"the cursor's part for {column} is no {expected.__name__}")
        if not _can_be_compared(key, column.type):
            raise InvalidOption(f"the cursor's part for {column} is outside of what a database can compare")
    return place, list(keys)


def _can_be_compared(key: Any, type_: Any) -> bool:
    match key:
        case bool():
            return True
        case int():
            bits = bits_of(type_) if isinstance(type_, Integer) else 64
            return bool(-(2 ** (bits - 1)) <= key < 2 ** (bits - 1))
        case Decimal():
            return key.is_finite() and abs(key.adjusted()) < _MOST_DIGITS and len(key.as_tuple().digits) < _MOST_DIGITS
        case str():
            return "\0" not in key and not any("\ud800" <= one <= "\udfff" for one in key)
    return True


def _written(key: Any) -> Any:
    if isinstance(key, (int, str)) and not isinstance(key, Enum):
        return key
    for tag, (type_, write, _) in _TAGS.items():
        if isinstance(key, type_):
            return [tag, write(key)]
    raise InvalidOption(f"a key of type {type(key).__name__} cannot be in a text; give (distance, key) as a tuple")


def _read(key: Any) -> Any:
    if isinstance(key, (int, str)):
        return key
    tag, text = key
    if not isinstance(text, str):
        raise TypeError(tag)
    return _TAGS[tag][2](text)
