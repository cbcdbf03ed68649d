"""Asking for the new vectors of rows, and checking what comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol, runtime_checkable

from sqla_vector.exc import InvalidOption, InvalidVector, MigrationError, VectorError
from sqla_vector.schema import check_existing_name
from sqla_vector.types import VectorType

__all__ = ["Backfill", "Embedder", "check_backfill", "compute_vectors"]

Row = Mapping[str, Any]

SEPARATOR: Final = "\n\n"
"""What stands between the texts of two columns."""


@runtime_checkable
class Embedder(Protocol):
    """What turns texts into vectors."""

    def embed(self, texts: list[str]) -> Any:
        """Return the vectors of texts, shape (len(texts), dimension)."""


Backfill = Callable[[list[Row]], Any] | Embedder | Literal["later"] | None


def check_backfill(backfill: object, source: str | Sequence[str]) -> tuple[str, ...]:
    """Return the names of the source columns, if ``backfill`` and ``source`` are of use together.

    Raises:
        InvalidOption: they are not.
    """
    names = tuple(check_existing_name(name, "source") for name in ((source,) if isinstance(source, str) else source))
    if names and not isinstance(backfill, Embedder):
        raise InvalidOption(f"source= is for an embedder, which has a method embed(texts); backfill is {backfill!r}")
    if not names and isinstance(backfill, Embedder) and not callable(backfill):
        raise InvalidOption("backfill= is an embedder: give source= the columns whose text it shall embed")
    if not names and backfill is not None and backfill != "later" and not callable(backfill):
        raise InvalidOption(f'backfill must be a function, an embedder or "later", got {backfill!r}')
    return names


def compute_vectors(
    backfill: Any, source: tuple[str, ...], rows: list[Row], type_: Any, where: str, key: tuple[str, ...]
) -> list[Any]:
    """Return the new vectors of rows, each checked.

    Args:
        backfill: a function of rows, or an embedder.
        source: for an embedder, the columns of its text.
        rows: mappings from column name to value.
        type_: the new type.
        where: the column, for messages.
        key: the columns of the primary key, for messages.

    Raises:
        MigrationError: it failed, or gave another number of vectors, or there is no text.
        InvalidVector: it gave what is no vector of the type.
    """
    argument: list[Any] = [_text(row, source, where, key) for row in rows] if source else rows
    try:
        found = (backfill.embed if source else backfill)(argument)
    except VectorError:
        raise
    except Exception as error:
        raise MigrationError(
            f"{where}: backfill failed for the {len(rows):,} rows from {_shown(rows[0], key)}: "
            f"{type(error).__name__}: {error}; what was filled before is kept, so run the migration again"
        ) from error
    try:
        vectors = list(found)
    except TypeError as error:
        raise MigrationError(f"{where}: backfill returned {type(found).__name__}, not a list of vectors") from error
    if len(vectors) != len(rows):
        raise MigrationError(f"{where}: backfill was given {len(rows):,} rows and returned {len(vectors):,} vectors")
    for row, vector in zip(rows, vectors, strict=True):
        if vector is None:
            raise InvalidVector(f"{where}: backfill returned None for the row {_shown(row, key)}, which has a vector")
        if isinstance(type_, VectorType):
            type_.codec.coerce(vector, where)
    return vectors


def _text(row: Row, source: tuple[str, ...], where: str, key: tuple[str, ...]) -> str:
    """Return a row's text: that of its source columns, one paragraph each, without those that have none."""
    values = [row[name] for name in source]
    for name, value in zip(source, values, strict=True):
        if not isinstance(value, str | None):
            raise InvalidOption(f"{where}: the source column {name} holds {type(value).__name__}, not text")
    parts = [value for value in values if value is not None and value.strip()]
    if not parts:
        # To embed nothing would make a vector that means nothing; to leave it out would lose one unnoticed.
        raise MigrationError(
            f"{where}: the row {_shown(row, key)} has a vector and no text in {', '.join(source)}; "
            "give it a text, or set its vector to NULL"
        )
    return SEPARATOR.join(parts)


def _shown(row: Row, key: tuple[str, ...]) -> str:
    return ", ".join(f"{name}={row[name]!r}" for name in key)
