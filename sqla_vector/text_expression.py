"""The nodes of a text search: the criterion, its score, the snippet, and the query that they are given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Boolean, Dialect, Float, Index, Text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import InternalTraversal
from sqlalchemy.types import TypeDecorator

from sqla_vector.exc import InvalidOption
from sqla_vector.text_index import TextIndexKey, text_index_key
from sqla_vector.types import support_of
from sqla_vector.web_query import check_query, parse

__all__ = ["Snippet", "TextMatch", "TextNode", "TextQuery", "TextScore", "TextSnippet"]

MAX_MARKER: Final = 32


@dataclass(frozen=True, slots=True)
class Snippet:
    """How the snippet of a found text is cut and marked.

    The text itself is not escaped: before it is shown as HTML, let the markers be two characters that no text has,
    escape the snippet, and put the tags in their place.

    Args:
        start: what stands before a word of the query.
        stop: what stands after it.
        words: about how many words of the text, 3 to 64.
    """

    start: str = "<mark>"
    stop: str = "</mark>"
    words: int = 24

    def __post_init__(self) -> None:
        for name in ("start", "stop"):
            marker = getattr(self, name)
            if not isinstance(marker, str) or not 0 < len(marker) <= MAX_MARKER or _NO_MARKER & set(marker):
                raise InvalidOption(
                    f"snippet: {name} is 1 to {MAX_MARKER} characters without quotes, backslash and NUL, got {marker!r}"
                )
        if isinstance(self.words, bool) or not isinstance(self.words, int) or not 3 <= self.words <= 64:
            raise InvalidOption(f"snippet: words must be a whole number from 3 to 64, got {self.words!r}")


_NO_MARKER: Final = frozenset("\"'\\\0")


class TextQuery(TypeDecorator[str]):
    """A query in web syntax, sent to each database in the form that it takes.

    The parameter is the text as it was typed, so that statements which differ in it alone are one in the cache.
    """

    impl = Text
    cache_ok = True

    def __init__(self, language: str = "simple") -> None:
        super().__init__()
        self.language = language

    def process_bind_param(self, value: Any, dialect: Dialect) -> str:
        query = parse("" if value is None else check_query(value))
        return support_of(dialect).text_query(query, self.language)


class TextNode(FunctionElement[Any]):
    """What is computed of a text index and a query; how it is spelled is in :mod:`sqla_vector.dialects`."""

    # The index decides the SQL, so it is part of the cache key.
    _traverse_internals = [
        *FunctionElement._traverse_internals,
        ("index", InternalTraversal.dp_plain_obj),
        ("columns_count", InternalTraversal.dp_plain_obj),
    ]

    def __init__(
        self,
        index: Index,
        query: ColumnElement[Any],
        columns: Sequence[ColumnElement[Any]],
        keys: Sequence[ColumnElement[Any]],
    ) -> None:
        super().__init__(query, *columns, *keys)
        self.index = index
        self.columns_count = len(columns)

    @property
    def declaration(self) -> TextIndexKey:
        """The declaration of the index."""
        found = text_index_key(self.index)
        assert found is not None
        return found

    @property
    def query(self) -> ColumnElement[Any]:
        """The query, of type :class:`TextQuery`."""
        return next(iter(self.clauses))

    @property
    def texts(self) -> tuple[ColumnElement[Any], ...]:
        """The indexed columns, of the entity that is searched."""
        return tuple(self.clauses)[1 : 1 + self.columns_count]

    @property
    def keys(self) -> tuple[ColumnElement[Any], ...]:
        """Its primary key columns."""
        return tuple(self.clauses)[1 + self.columns_count :]


class TextMatch(TextNode):
    """The criterion that a row's texts match the query."""

    name = "text_match"
    type = Boolean()
    inherit_cache = True

    def self_group(self, against: Any = None) -> TextMatch:
        # Not "(...) = 1" where the database has no boolean type, as in NearestCriterion.
        return self


class TextScore(TextNode):
    """How well a row's texts match, larger is better; NULL, or of no meaning, for a row that does not match."""

    name = "text_score"
    type = Float(53)
    inherit_cache = True


class TextSnippet(TextNode):
    """A part of a row's text with the words of the query marked."""

    _traverse_internals = [*TextNode._traverse_internals, ("snippet", InternalTraversal.dp_plain_obj)]
    name = "text_snippet"
    type = Text()

    def __init__(self, snippet: Snippet, *args: Any) -> None:
        super().__init__(*args)
        self.snippet = snippet


@compiles(TextMatch)
@compiles(TextScore)
@compiles(TextSnippet)
def _render_as_function(element: TextNode, compiler: SQLCompiler, **kw: Any) -> str:
    # print(stmt) without an engine: readable, and a database's own spelling is not pretended.
    return f"{element.name}({', '.join(compiler.process(text, **kw) for text in element.texts)})"
