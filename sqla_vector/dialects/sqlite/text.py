"""How text searches are spelled for FTS5.

The score is that of one ranked scan of the FTS5 table, kept in memory for the statement (a materialized CTE that
does not depend on the row), because ``bm25()`` counts the whole index anew for each scan it is asked in.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, Final

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from sqla_vector.dialects.settings import settings_of
from sqla_vector.dialects.sqlite.fts5 import Fts5Index
from sqla_vector.dialects.sqlite.types import PLUGIN_HINT
from sqla_vector.exc import PluginMissing
from sqla_vector.text_expression import TextMatch, TextNode, TextScore, TextSnippet
from sqla_vector.web_query import ENGLISH_STOP_WORDS, Alternative, Phrase, WebQuery

__all__ = ["text_query"]

logger = logging.getLogger("sqla_vector.sqlite")

_NOTHING: Final = '""'
"""An expression that no text matches; the empty one is an error."""


def text_query(query: WebQuery, language: str) -> str:
    """Return a query as an FTS5 expression of quoted phrases; it serves to find and to rank."""
    if language == "english":
        query = query.without(ENGLISH_STOP_WORDS)
    elif language != "simple":
        _tell_unstemmed(language)
    return " OR ".join(map(_expression, query.alternatives)) or _NOTHING


@cache
def _tell_unstemmed(language: str) -> None:
    logger.warning("FTS5 has no stemmer for %s: SQLite finds words as they are written", language)


def _expression(one: Alternative) -> str:
    wanted = " AND ".join(map(_quoted, one.wanted))
    if not one.unwanted:
        return f"({wanted})"
    return f"(({wanted}) NOT ({' OR '.join(map(_quoted, one.unwanted))}))"


def _quoted(phrase: Phrase) -> str:
    return f'"{" ".join(phrase)}"'


class _Search:
    """The parts of a node in SQL."""

    def __init__(self, element: TextNode, compiler: Any, kw: dict[str, Any]) -> None:
        if not settings_of(compiler.dialect).attached:
            raise PluginMissing(PLUGIN_HINT)
        index = Fts5Index(element.index, element.declaration)
        preparer = compiler.preparer
        schema = preparer.schema_for_object(index.table)
        prefix = f"{preparer.quote_schema(schema)}." if schema else ""
        if compiler.schema_translate_map is None:
            # Looked for when the statement is executed. Under a map the schema is not known before.
            compiler.text_tables = getattr(compiler, "text_tables", frozenset()) | {(schema, index.name)}
        self.name = preparer.quote(index.name)
        self.index = index
        self.keys = f"{prefix}{preparer.quote(index.keys_name)}"
        (key,) = (compiler.process(key, **kw) for key in element.keys)
        self.key = key
        query = compiler.process(element.query, **kw)
        self.matching = f"FROM {prefix}{self.name} WHERE {self.name} MATCH {query}"

    @property
    def number(self) -> str:
        """The FTS5 rowid of the row."""
        return f"(SELECT number FROM {self.keys} WHERE key = {self.key})" if self.index.has_text_key else self.key


@compiles(TextMatch, "sqlite")
def _render_match(element: TextMatch, compiler: SQLCompiler, **kw: Any) -> str:
    search = _Search(element, compiler, kw)
    numbers = f"SELECT rowid {search.matching}"
    if search.index.has_text_key:
        numbers = f"SELECT key FROM {search.keys} WHERE number IN ({numbers})"
    return f"{search.key} IN ({numbers})"


@compiles(TextScore, "sqlite")
def _render_score(element: TextScore, compiler: SQLCompiler, **kw: Any) -> str:
    kw.pop("within_columns_clause", None)
    search = _Search(element, compiler, kw)
    weights = "".join(f", {weight!r}" for weight in element.declaration.spec.weights)
    return (
        f"(WITH text_hits AS MATERIALIZED (SELECT rowid AS number, -bm25({search.name}{weights}) AS score "
        f"{search.matching}) SELECT score FROM text_hits WHERE number = {search.number})"
    )


@compiles(TextSnippet, "sqlite")
def _render_snippet(element: TextSnippet, compiler: SQLCompiler, **kw: Any) -> str:
    kw.pop("within_columns_clause", None)
    search = _Search(element, compiler, kw)
    cut = element.snippet
    call = f"snippet({search.name}, -1, '{cut.start}', '{cut.stop}', '...', {cut.words})"
    return f"(SELECT {call} {search.matching} AND rowid = {search.number})"
