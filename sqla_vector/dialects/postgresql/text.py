"""How text indexes and searches are spelled for PostgreSQL: GIN over a weighted ``tsvector``.

The texts are cut into words here, not by PostgreSQL's parser, which would make one word of an e-mail address, a path
or a number with its sign: all that is no letter, digit or mark becomes a space first.  (``regexp_replace()`` takes a
third of the time of ``translate()`` for that, and ranges need no locale.)

Between columns stands a word that no text has, at a distance that no phrase bridges.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from sqla_vector.text_expression import TextMatch, TextNode, TextScore, TextSnippet
from sqla_vector.text_index import TextIndexKey, TextIndexSpec
from sqla_vector.web_query import ENGLISH_STOP_WORDS, Phrase, WebQuery

__all__ = ["GAP", "SEPARATOR", "text_query"]

SEPARATOR: Final = (
    r"["
    # ASCII and Latin-1 but letters and digits
    r"\u0001-\u002f\u003a-\u0040\u005b-\u0060\u007b-\u00a9\u00ab-\u00b1\u00b4\u00b6-\u00b8\u00bb\u00bf\u00d7\u00f7"
    # punctuation of Greek, Armenian, Hebrew, Arabic and Devanagari
    r"\u037e\u0387\u055a-\u055f\u0589-\u058f\u05be\u05c0\u05c3\u05c6\u05f3-\u060f\u061b-\u061f\u066a-\u066d\u06d4"
    r"\u0964\u0965"
    # general punctuation, signs of currencies, arrows, mathematics, symbols
    r"\u2000-\u206f\u207a-\u207e\u208a-\u208e\u20a0-\u20c0\u2190-\u23ff\u2500-\u2775\u2794-\u2bff\u2e00-\u2e2e"
    r"\u2e30-\u2e5d"
    # of Chinese and Japanese, and in full width
    r"\u3000-\u3004\u3008-\u3020\u3030\u303d-\u303f\u30a0\u30fb\ufe10-\ufe19\ufe30-\ufe6b\uff01-\uff0f\uff1a-\uff20"
    r"\uff3b-\uff40\uff5b-\uff65\uffe0-\uffee"
    # emoji and other pictures
    r"\U0001f000-\U0001f0f5\U0001f10d-\U0001faff]+"
)
"""Matches what stands between words."""

GAP: Final = "'|:100'::tsvector"


def _configuration(language: str) -> str:
    return f"'{language}'::regconfig"  # a plain identifier, or two


def vector_sql(spec: TextIndexSpec, columns: Iterable[str]) -> str:
    """Return the indexed expression over columns in SQL."""
    parts = []
    for column, label in zip(columns, spec.labels, strict=True):
        # NULL is seen to last: within coalesce() the column's type would be part of the expression, which then is
        # another one after the type has been changed.
        spaced = f"coalesce(regexp_replace({column}, '{SEPARATOR}', ' ', 'g'), '')"
        vector = f"to_tsvector({_configuration(spec.language)}, {spaced})"
        parts.append(f"setweight({vector}, '{label}')" if spec.is_weighted else vector)
    return f"({f' || {GAP} || '.join(parts)})"


def text_query(query: WebQuery, language: str) -> str:
    """Return a query as text for ``websearch_to_tsquery()``, which takes what is quoted for phrases."""
    if language == "english":
        # PostgreSQL would leave stop words out by itself, but an alternative of nothing else would find everything.
        query = query.without(ENGLISH_STOP_WORDS)
    return " or ".join(
        " ".join([*map(_quoted, one.wanted), *(f"-{_quoted(phrase)}" for phrase in one.unwanted)])
        for one in query.alternatives
    )


def _quoted(phrase: Phrase) -> str:
    return f'"{" ".join(phrase)}"'


@compiles(TextIndexKey, "postgresql")
def _render_key(element: TextIndexKey, compiler: SQLCompiler, **kw: Any) -> str:
    return vector_sql(element.spec, [compiler.process(column, **kw) for column in element.columns])


def _vector(element: TextNode, compiler: SQLCompiler, kw: dict[str, Any]) -> str:
    return vector_sql(element.declaration.spec, [compiler.process(text, **kw) for text in element.texts])


def _query(element: TextNode, compiler: SQLCompiler, kw: dict[str, Any]) -> str:
    language = _configuration(element.declaration.spec.language)
    return f"websearch_to_tsquery({language}, {compiler.process(element.query, **kw)})"


@compiles(TextMatch, "postgresql")
def _render_match(element: TextMatch, compiler: SQLCompiler, **kw: Any) -> str:
    query = _query(element, compiler, kw)
    matches = f"{_vector(element, compiler, kw)} @@ {query}"
    if element.declaration.spec.language in ("simple", "english"):
        return matches
    # Here the server's configuration may leave out all that an alternative wants, and what remains finds everything.
    return f"({matches} AND querytree({query}) <> 'T')"


@compiles(TextScore, "postgresql")
def _render_score(element: TextScore, compiler: SQLCompiler, **kw: Any) -> str:
    kw.pop("within_columns_clause", None)
    weights = ",".join(repr(weight) for weight in element.declaration.spec.label_weights)
    # For ranking, any of the wanted words: ts_rank() takes a word that must not be there for a missing one, and then
    # gives all rows the same rank.  querytree() is the query without them.
    # In a SELECT of its own, which is computed once in a plan that is kept for all parameters, too.
    any_word = f"(SELECT regexp_replace(querytree({_query(element, compiler, kw)}), '&|<[^>]*>', '|', 'g')::tsquery)"
    # 1: divided by the logarithm of the length
    return f"ts_rank('{{{weights}}}', {_vector(element, compiler, kw)}, {any_word}, 1)::float8"


@compiles(TextSnippet, "postgresql")
def _render_snippet(element: TextSnippet, compiler: Any, **kw: Any) -> str:
    kw.pop("within_columns_clause", None)
    texts = ", ".join(compiler.process(text, **kw) for text in element.texts)
    cut = element.snippet
    options = f'StartSel="{cut.start}", StopSel="{cut.stop}", MaxWords={cut.words}, MinWords={max(1, cut.words // 2)}'
    options = compiler.escape_literal_column(options)
    language = _configuration(element.declaration.spec.language)
    return f"ts_headline({language}, concat_ws(E'\\n', {texts}), {_query(element, compiler, kw)}, '{options}')"
