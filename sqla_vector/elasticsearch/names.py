"""Names of indexes, fields and documents: what Elasticsearch takes, and what this package takes of it."""

from __future__ import annotations

import hashlib
import re
from typing import Final

from sqla_vector.exc import InvalidIdentifier
from sqla_vector.schema import check_identifier
from sqla_vector.tracking.outbox import CHANNEL

__all__ = ["META_FIELD", "REBUILD", "channel_of", "check_field_name", "check_index_name", "check_suffix"]

META_FIELD: Final = "_sqla_vector"
"""The object in every document that says of which row and which contents it is."""

REBUILD: Final = "-rebuild"
"""Ends the alias of an index that is being filled."""

_LONGEST_NAME: Final = 200
"""Bytes; Elasticsearch takes 255, and names of physical indexes have a suffix."""
_LONGEST_SUFFIX: Final = 40

_FORBIDDEN: Final = re.compile(r"[\\/*?\"<>| ,#:\x00-\x1f\x7f]")
_FIELD: Final = re.compile(r"[^\W_][\w-]{0,254}\Z")
_SUFFIX: Final = re.compile(r"[a-z0-9][a-z0-9_.]*\Z")


def check_index_name(name: object) -> str:
    r"""Return the name of an index if Elasticsearch takes it, else raise.

    Source: Elasticsearch reference, *Create an index*: lower case, none of ``\ / * ? " < > | , # :`` and space, not
    beginning with ``-``, ``_`` or ``+``.  A dot in front would make the index a hidden one.

    Raises:
        InvalidIdentifier: it is something else, as a pattern or ``_all``; or it ends with ``-rebuild``, which names the
            index that is being filled.
    """
    if not isinstance(name, str) or not name or not name.isprintable():
        raise InvalidIdentifier(f"{name!r} cannot name an index; give a text such as 'articles'")
    if name != name.lower():
        raise InvalidIdentifier(f"{name!r} cannot name an index: Elasticsearch takes lower case only")
    if name[0] in "-_+." or _FORBIDDEN.search(name):
        raise InvalidIdentifier(
            f"{name!r} cannot name an index: it may not begin with - _ + or a dot, and there may be no space and none "
            'of \\ / * ? " < > | , # : in it'
        )
    if len(name.encode()) > _LONGEST_NAME:
        raise InvalidIdentifier(f"{name!r} is longer than {_LONGEST_NAME} bytes; its indexes have a suffix to it")
    if name.endswith(REBUILD):
        raise InvalidIdentifier(f"{name!r} ends with {REBUILD}, as the names of indexes do that are being filled")
    return name


def check_suffix(suffix: object) -> str:
    """Return what follows the name of an index in the name of a physical one.

    Raises:
        InvalidIdentifier: it is something else than small letters, digits, dots and underscores.
    """
    if not isinstance(suffix, str) or not _SUFFIX.match(suffix) or len(suffix) > _LONGEST_SUFFIX:
        raise InvalidIdentifier(
            f"suffix= is up to {_LONGEST_SUFFIX} small letters, digits, dots and underscores, got {suffix!r}"
        )
    return suffix


def check_field_name(name: object) -> str:
    """Return the name of a field, else raise.

    A dot would make it a field of an object, and names with an underscore in front are Elasticsearch's own.

    Raises:
        InvalidIdentifier: it is no such name.
    """
    if not isinstance(name, str) or not _FIELD.match(name):
        raise InvalidIdentifier(
            f"{name!r} cannot name a field: use letters, digits, underscores and hyphens, beginning with a letter or a "
            'digit; for a related value give a name of its own, {"author": "author.name"}'
        )
    return name


def channel_of(name: str) -> str:
    """Return the channel of the outbox for an index: its name, where that is a plain identifier."""
    try:
        if name != CHANNEL:
            return check_identifier(name, "channel")
    except InvalidIdentifier:
        pass
    plain = re.sub(r"[^a-z0-9_]", "_", name)
    return f"es_{plain[:40]}_{hashlib.sha256(name.encode()).hexdigest()[:10]}"
