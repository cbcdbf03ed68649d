"""The fingerprint: which model made a vector, and from which text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, Final

from sqlalchemy import String
from sqlalchemy.types import TypeDecorator

from sqla_vector.exc import InvalidOption

__all__ = ["Fingerprint", "Model", "digest", "fingerprint"]

MAX_LENGTH: Final = 255
_MAX_NAME: Final = 150
_MAX_VERSION: Final = 64
_NAME: Final = re.compile(r"[^\s@]+\Z")
_VERSION: Final = re.compile(r"[^\s@:]+\Z")


def _is_valid(part: object, pattern: re.Pattern[str], longest: int) -> bool:
    # Printable: databases refuse NUL and lone surrogates.
    return isinstance(part, str) and bool(pattern.match(part)) and part.isprintable() and len(part) <= longest


@dataclass(frozen=True)
class Model:
    """An embedding model, as it is written into fingerprints: ``name@version``.

    Raises:
        InvalidOption: the name or the version is empty, too long, or has a character that separates them.
    """

    name: str
    version: str

    def __post_init__(self) -> None:
        if not _is_valid(self.name, _NAME, _MAX_NAME):
            raise InvalidOption(
                f"a model's name has 1 to {_MAX_NAME} printable characters, without white space and @, "
                f"got {self.name!r}"
            )
        if not _is_valid(self.version, _VERSION, _MAX_VERSION):
            raise InvalidOption(
                f"a model's version has 1 to {_MAX_VERSION} printable characters, without white space, @ and :, "
                f"got {self.version!r}"
            )

    @cached_property
    def _text(self) -> str:
        return f"{self.name}@{self.version}"

    def __str__(self) -> str:
        return self._text


class Fingerprint(TypeDecorator[str]):
    """A column of fingerprints, beside the vector column that they tell about.

    ``embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())``

    ``model@version:hash``, written with the vector in one UPDATE.  A vector is stale when its fingerprint differs
    from the one that the row's present text and the present model give.  NULL: the row has no text, or its vector
    is not made yet.
    """

    impl = String(MAX_LENGTH)
    cache_ok = True

    def __repr__(self) -> str:
        return "Fingerprint()"

    @property
    def python_type(self) -> type[Any]:
        return str


def digest(text: str) -> str:
    """Return the hash of a text, 32 hexadecimal digits (BLAKE2b, 128 bits)."""
    return blake2b(text.encode(), digest_size=16).hexdigest()


def fingerprint(model: Model, text: str | None) -> str | None:
    """Return the fingerprint of a text's vector by a model; None for a row without text."""
    return None if text is None else f"{model}:{digest(text)}"
