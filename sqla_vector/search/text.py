"""Full-text search: a Select goes in, a Select comes out.

:func:`match_text` adds a criterion, the score as a column, and an ORDER BY; all three are spelled when the statement
is compiled, by :mod:`sqla_vector.dialects`.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index, Integer, Select, Table, bindparam, literal_column
from sqlalchemy.inspection import inspect
from sqlalchemy.sql.elements import BindParameter, ColumnElement
from sqlalchemy.sql.selectable import Alias

from sqla_vector.exc import InvalidOption
from sqla_vector.expression import ResultOrder, as_type
from sqla_vector.schema import check_whole_number
from sqla_vector.search.nearest import MAX_K
from sqla_vector.search.statement import check_statement
from sqla_vector.text_expression import Snippet, TextMatch, TextQuery, TextScore, TextSnippet
from sqla_vector.text_index import TextIndexKey, is_text, text_indexes
from sqla_vector.web_query import check_query

__all__ = ["match_text"]


def match_text(
    stmt: Select[Any],
    entity: Any,
    query: str | BindParameter[Any],
    k: int = 10,
    *,
    index: str | None = None,
    min_score: float | None = None,
    snippet: Snippet | bool | None = None,
) -> Select[Any]:
    """Return ``stmt`` limited to the ``k`` rows whose texts match a query best, best first, with a ``score`` column.

    The query is what people type into a search box: all words must be there, ``"words in this order"``, ``this or
    that``, ``-without``; the same rows match on both databases.  No input is a syntax error.  Ties are in primary key
    order.  The result can be extended further: ``where``, ``join``, ``options``, ``offset`` for paging.

    Args:
        stmt: a select of entities or columns, without LIMIT and ORDER BY.
        entity: what is searched: a mapped class, an alias of one, or a Table, with a :func:`text_index`.
        query: the query, or ``bindparam("q")`` for a statement that is executed with many.  Words after the first 64
            are left out.
        k: how many rows, from 1.
        index: the name of the text index, if the entity has several.
        min_score: leave out rows that score less.
        snippet: True, or a :class:`Snippet`, adds a column ``snippet``: a part of the text in which the words of the
            query are marked.  The text is not escaped for HTML.

    Returns:
        A Select whose rows end with ``score`` (float, larger is better: ``ts_rank`` on PostgreSQL, ``bm25`` on SQLite,
        which are not comparable) and, if wanted, ``snippet`` (str).

    Raises:
        InvalidOption: the entity has no text index, or several and none is named; an option out of its range.
        InvalidStatement: ``stmt`` has LIMIT, OFFSET or ORDER BY, or is no Select.
        InvalidText: ``query`` is no string, or no Unicode that can be encoded.
        IndexNotUsable: SQLite, when the statement is executed: the index is declared and not in the database.

    Sources:
        PostgreSQL's manual, chapter 12.  Robertson and Zaragoza, *The Probabilistic Relevance Framework: BM25 and
        Beyond*, 2009.
    """
    check_statement(stmt, "match_text")
    check_whole_number(k, "k", 1, MAX_K)
    found, key, columns, keys = _resolve(entity, index)
    arguments = (found, _query(query, key.spec.language), columns, keys)
    ranked = TextScore(*arguments)
    score = ranked.label("score")
    added: list[ColumnElement[Any]] = [score]
    if snippet:
        added.append(TextSnippet(snippet if isinstance(snippet, Snippet) else Snippet(), *arguments).label("snippet"))
    result = stmt.add_columns(*added).where(TextMatch(*arguments))
    if min_score is not None:
        result = result.where(ranked >= _check_score(min_score))
    # A literal, not a parameter: with it the server may keep one plan for all executions.
    return result.order_by(ResultOrder(score).desc(), *keys).limit(literal_column(str(k), Integer()))


def _query(query: object, language: str) -> ColumnElement[Any]:
    if isinstance(query, BindParameter):
        if query.value is not None:
            check_query(query.value)
        return as_type(query, TextQuery(language))
    return bindparam(None, check_query(query), type_=TextQuery(language), unique=True)


def _check_score(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise InvalidOption(f"min_score must be a number, got {value!r}")
    return float(value)


def _resolve(
    entity: Any, name: str | None
) -> tuple[Index, TextIndexKey, list[ColumnElement[Any]], list[ColumnElement[Any]]]:
    """Return the text index of an entity, and its text and key columns as those of the entity."""
    inspected: Any = inspect(entity, raiseerr=False)
    mapper = getattr(inspected, "mapper", None)
    if mapper is not None:
        tables = [table for table in mapper.tables if isinstance(table, Table)]
    else:
        table = inspected
        while isinstance(table, Alias):
            table = table.element
        if not isinstance(table, Table):
            raise InvalidOption(
                f"match_text() searches a mapped class, an alias of one, or a Table, not {type(entity).__name__}"
            )
        tables = [table]
    index, key = _choose(tables, name)

    def column_of(column: Any) -> ColumnElement[Any]:
        found: ColumnElement[Any]
        if mapper is None:
            found = inspected.c[column.key]
        else:
            found = getattr(inspected.entity, mapper.get_property_by_column(column).key).__clause_element__()
        return found

    def key_of(column: Any) -> ColumnElement[Any]:
        # Not that of the property, which of a class with joined tables is the key of its own table, where the texts
        # and the vectors need not be.
        source = column.table if inspected is mapper else inspected.selectable
        found: ColumnElement[Any] | None = source.corresponding_column(column)
        return column_of(column) if found is None else found

    texts = [column_of(column) for column in key.columns]
    return index, key, texts, [key_of(column) for column in key.columns[0].table.primary_key]


def _choose(tables: list[Table], name: str | None) -> tuple[Index, TextIndexKey]:
    found = [pair for table in tables for pair in text_indexes(table)]
    chosen = [pair for pair in found if name is None or pair[0].name == name]
    if len(chosen) == 1:
        return chosen[0]
    names = " and ".join(str(index.name) for index, _ in found)
    of = " and ".join(table.name for table in tables)
    if len(chosen) > 1:
        raise InvalidOption(f"{of} has the text indexes {names}; say which by index=...")
    if found:
        raise InvalidOption(f"{of} has no text index {name!r}; it has {names}")
    texts = [column.name for table in tables for column in table.columns if is_text(column) and not column.primary_key]
    listed = ", ".join(f'"{column}"' for column in texts) or '"title", "body"'
    raise InvalidOption(
        f'{of} has no text index; add text_index("ix_{tables[0].name}_text", {listed}) to its __table_args__'
    )
