"""Schema items: ``text_index()``, one declaration of a full-text index for both databases.

As for vectors, the result is a plain :class:`sqlalchemy.Index` whose only expression, a :class:`TextIndexKey`, holds
the declaration and is copied with the index by ``Table.to_metadata()``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Column, Enum, Index, String, Table, Text, event
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.visitors import InternalTraversal

from sqla_vector.exc import InvalidIdentifier, InvalidOption
from sqla_vector.schema import check_identifier

__all__ = ["REFLECTED_TEXT", "TextIndexKey", "TextIndexSpec", "text_index", "text_index_key", "text_indexes"]

LABELS: Final = "ABCD"
"""PostgreSQL's labels of words, from the most to the least important."""

REFLECTED_TEXT: Final = "sqlite_text"
"""The option of a reflected Index that holds its :class:`TextIndexSpec`."""


@dataclass(frozen=True, slots=True)
class TextIndexSpec:
    """A text index as declared."""

    columns: tuple[str, ...]
    weights: tuple[float, ...]
    """A weight for each column, in (0, 1]."""
    language: str = "simple"

    @property
    def labels(self) -> tuple[str, ...]:
        """A label for each column, by rank of its weight: what of the weights is in an index."""
        ranked = sorted(set(self.weights), reverse=True)
        return tuple(LABELS[ranked.index(weight)] for weight in self.weights)

    @property
    def label_weights(self) -> tuple[float, float, float, float]:
        """The weights of the labels D, C, B and A, in the order that ``ts_rank()`` takes them."""
        by_label = dict(zip(self.labels, self.weights, strict=True))
        least = min(self.weights)
        d, c, b, a = (by_label.get(label, least) for label in reversed(LABELS))
        return d, c, b, a

    @property
    def is_weighted(self) -> bool:
        """Whether some columns weigh more than others."""
        return len(set(self.weights)) > 1


_LABEL_WEIGHTS: Final = {"A": 1.0, "B": 0.4, "C": 0.2, "D": 0.1}


def weights_of_labels(labels: Iterable[str]) -> tuple[float, ...]:
    """Return the weights that PostgreSQL gives its labels by default, for an index of which only these are known."""
    return tuple(_LABEL_WEIGHTS[label] for label in labels)


class TextIndexKey(ColumnElement[Any]):
    """What a text index is on: its columns, and how they are indexed."""

    __visit_name__ = "sqla_vector_text_index_key"
    _traverse_internals = [
        ("columns", InternalTraversal.dp_clauseelement_list),
        ("spec", InternalTraversal.dp_plain_obj),
    ]

    def __init__(self, columns: Sequence[Column[Any]], spec: TextIndexSpec) -> None:
        self.columns = list(columns)
        self.spec = spec
        self.type = Text()


def text_index(
    name: str,
    *columns: str | Any,
    weights: Sequence[float] | None = None,
    language: str = "simple",
) -> Index:
    """Declare a full-text index for :func:`sqla_vector.match_text`.

    Place it in ``__table_args__`` or among a ``Table``'s arguments.  PostgreSQL builds a GIN index over a weighted
    ``tsvector`` expression.  SQLite builds an FTS5 table of the same name beside the table, which holds no copy of
    the texts, is filled at once and kept by triggers.

    Args:
        name: the index's name, a plain identifier.
        *columns: the text columns, by name or as attributes.
        weights: how much a word counts in each column, in (0, 1]; by default 1.0 in all.  At most four different
            ones, since PostgreSQL has four labels of words.
        language: ``simple``: words as they are, in lower case.  ``english``: words are stemmed, and those that are in
            every text (*the*, *of*) left out; the two databases stem a few words otherwise.  Any other text search
            configuration of PostgreSQL by its name; SQLite does not stem then.

    Returns:
        An :class:`sqlalchemy.Index`.

    Raises:
        InvalidIdentifier: the name or the language is no plain identifier.
        InvalidOption: no column, a column twice, a column that is not of text (when the index meets its table), or
            weights that do not fit.
    """
    check_identifier(name, "index name")
    names = tuple(_column_name(name, column) for column in columns)
    if not names:
        raise InvalidOption(f'{name}: text_index() needs at least one column: text_index("{name}", "title", "body")')
    if len(set(names)) != len(names):
        raise InvalidOption(f"{name}: a text index names each column once")
    spec = TextIndexSpec(names, _weights(name, weights, len(names)), _language(language))
    index = Index(name, *names, postgresql_using="gin")

    @event.listens_for(index, "after_parent_attach")
    def attached(_: Index, table: Any) -> None:
        key = TextIndexKey([_text_column(name, table, column) for column in names], spec)
        index.expressions = index._table_bound_expressions = [key]

    return index


def _column_name(index_name: str, column: object) -> str:
    name = column if isinstance(column, str) else getattr(column, "key", None) or getattr(column, "name", None)
    if not isinstance(name, str):
        raise InvalidOption(f"{index_name}: a text index takes names of columns, got {type(column).__name__}")
    return name


def _weights(name: str, weights: Sequence[float] | None, count: int) -> tuple[float, ...]:
    if weights is None:
        return (1.0,) * count
    if isinstance(weights, (str, bytes)) or not isinstance(weights, Sequence) or len(weights) != count:
        raise InvalidOption(f"{name}: weights has a number for each of the {count} columns, got {weights!r}")
    for weight in weights:
        is_number = isinstance(weight, (int, float)) and not isinstance(weight, bool) and math.isfinite(weight)
        if not is_number or not 0 < weight <= 1:
            raise InvalidOption(f"{name}: a weight is a number above 0 and up to 1, got {weight!r}")
    found = tuple(float(weight) for weight in weights)
    if len(set(found)) > len(LABELS):
        raise InvalidOption(f"{name}: at most {len(LABELS)} different weights, got {len(set(found))}")
    return found


def _language(language: object) -> str:
    if not isinstance(language, str) or language.count(".") > 1:
        raise InvalidIdentifier(f"language {language!r} is no name of a text search configuration")
    return ".".join(check_identifier(part, "language") for part in language.split("."))


def _text_column(name: str, table: Table, column_name: str) -> Column[Any]:
    column: Column[Any] = table.c[column_name]
    if not is_text(column):
        raise InvalidOption(
            f"{name}: {table.name}.{column_name} is no text column, its type is {column.type!r}; "
            "a text index is on columns of String or Text"
        )
    return column


def is_text(column: Column[Any]) -> bool:
    """Tell whether a column is of text, and no enumeration."""
    impl = getattr(column.type, "impl_instance", column.type)
    return isinstance(impl, String) and not isinstance(impl, Enum)


def text_index_key(index: Index) -> TextIndexKey | None:
    """Return the key of a text index, declared or reflected, or None for any other index."""
    expressions = list(index.expressions)
    if len(expressions) == 1 and isinstance(expressions[0], TextIndexKey):
        return expressions[0]
    # A reflected index has columns and options, among them the declaration.
    spec = index.dialect_kwargs.get(REFLECTED_TEXT)
    if isinstance(spec, TextIndexSpec) and all(isinstance(column, Column) for column in expressions):
        return TextIndexKey([column for column in expressions if isinstance(column, Column)], spec)
    return None


def text_indexes(table: Table) -> list[tuple[Index, TextIndexKey]]:
    """Return the text indexes of a table, by name."""
    found = [(index, key) for index in table.indexes if (key := text_index_key(index)) is not None]
    return sorted(found, key=lambda pair: str(pair[0].name))
