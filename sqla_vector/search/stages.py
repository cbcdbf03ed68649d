"""What a second stage knows of the first: its score, its candidates, and its statement without order and limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Float, Integer, Select, literal_column
from sqlalchemy.sql.elements import ColumnElement, Label

from sqla_vector.exc import InvalidStatement
from sqla_vector.expression import Distance, NearestCriterion
from sqla_vector.functions import similarity_of
from sqla_vector.ranked import PLACE, Composer, RankedRows, Template, key_name, ranked_rows_of
from sqla_vector.search.parts import select_keys
from sqla_vector.search.statement import criterion_of
from sqla_vector.text_expression import TextScore

__all__ = [
    "RERANK_SCORE",
    "RerankScore",
    "Stage",
    "distance_column_of",
    "distance_of",
    "is_reranked",
    "rerank_column_of",
    "score_of",
    "stage_of",
    "text_score_column_of",
    "text_score_of",
    "without",
]

RERANK_SCORE = "rerank_score"


class RerankScore(Label[float]):
    """The column by which a second stage sorts."""

    inherit_cache = True


@dataclass(frozen=True)
class Stage:
    """The search that a statement makes."""

    stmt: Select[Any]
    """The statement, its rows limited to the candidates, unsorted."""
    score: ColumnElement[float]
    """Larger is better."""
    order: tuple[ColumnElement[Any], ...]
    """How the search sorts."""
    k: int
    """The number of candidates."""


def score_of(stmt: Select[Any]) -> ColumnElement[float]:
    """Return the score by which a search ranks, as an SQL expression for its statement; larger is better.

    Args:
        stmt: made by :func:`nearest`, whose score is the metric's similarity, by :func:`match_text` or
            :func:`hybrid`.

    Raises:
        InvalidStatement: the statement is no search.
    """
    rows = ranked_rows_of(stmt) if isinstance(stmt, Select) else None
    score: ColumnElement[float]
    if rows is not None and "score" in rows.c:
        score = rows.c.score
        return score
    text = text_score_of(stmt)
    return similarity_of(distance_of(stmt)) if text is None else text


def distance_of(stmt: Select[Any]) -> Distance:
    """Return the distance that :func:`nearest` put into a statement, however its rows are chosen now.

    Raises:
        InvalidStatement: there is none.
    """
    found = distance_column_of(stmt)
    return criterion_of(stmt).distance if found is None else found.element  # type: ignore[return-value]


def distance_column_of(stmt: Select[Any]) -> Label[float] | None:
    """Return the column that :func:`nearest` put into a statement, or None.

    By what it is: the name may be that of another one, too.
    """
    return next(
        (one for one in _labels(stmt) if one.name == "distance" and isinstance(one.element, Distance)),
        None,
    )


def text_score_column_of(stmt: Select[Any]) -> Label[float] | None:
    """Return the column that :func:`match_text` put into a statement, or None."""
    return next((one for one in _labels(stmt) if isinstance(one.element, TextScore)), None)


def text_score_of(stmt: Select[Any]) -> TextScore | None:
    """Return the score that :func:`match_text` put into a statement, or None."""
    found = text_score_column_of(stmt)
    return None if found is None else found.element  # type: ignore[return-value]


def rerank_column_of(stmt: Select[Any]) -> RerankScore | None:
    """Return the column that :func:`rerank` put into a statement, or None."""
    return next((one for one in _labels(stmt) if isinstance(one, RerankScore)), None)


def is_reranked(stmt: Select[Any]) -> bool:
    """Tell whether a statement has a second stage."""
    return rerank_column_of(stmt) is not None


def _labels(stmt: object) -> Iterator[Label[Any]]:
    columns = stmt._raw_columns if isinstance(stmt, Select) else ()
    return (column for column in columns if isinstance(column, Label))


def stage_of(stmt: Select[Any], name: str) -> Stage:
    """Return the search of a statement as the first stage of another one.

    Args:
        stmt: made by a search.
        name: the function that takes it, for messages.

    Raises:
        InvalidStatement: the statement is no search, or cannot be a first stage.
    """
    score = score_of(stmt)
    if is_reranked(stmt):
        raise InvalidStatement("the statement is reranked already; put both scores into one expression")
    if stmt._offset_clause is not None:
        raise InvalidStatement(f"the statement has OFFSET already; call offset() after {name}()")
    order = tuple(stmt._order_by_clauses)
    rest = stmt.order_by(None).limit(None)
    rows = ranked_rows_of(stmt)
    if rows is not None:
        assert rows.k is not None
        return Stage(rest.where(rows.c[PLACE] <= rows.k), score, order, rows.k)
    if isinstance(score, TextScore):
        return _of_text(stmt, rest, score, order)
    criterion = criterion_of(stmt)
    if criterion.many:
        raise InvalidStatement(f"{name}() takes a search for one vector, made by nearest() or hybrid()")
    return Stage(_alone(rest, criterion), score, order, criterion.k)


def _of_text(stmt: Select[Any], rest: Select[Any], score: TextScore, order: tuple[ColumnElement[Any], ...]) -> Stage:
    k = int(str(stmt._limit_clause))
    keys = tuple(key._deannotate() for key in score.keys)
    best = select_keys(keys, score.label("score"))
    best = best.order_by(best.selected_columns.score.desc(), *keys).limit(literal_column(str(k), Integer()))

    rows = RankedRows.of([Template(best, keys)], _Alone())
    criteria = (rows.c[key_name(number)] == key for number, key in enumerate(keys))
    return Stage(rest.where(*criteria), score, order, k)


class _Alone(Composer):
    """Takes one search as it is."""

    columns = (("score", Float(53)),)
    order = ("-score",)
    plan = ()

    def compose(self, searches: Sequence[Select[Any]], wanted: ColumnElement[int] | None) -> Select[Any]:
        return searches[0]


def without(stmt: Select[Any], criterion: NearestCriterion, instead: NearestCriterion | None = None) -> Select[Any]:
    """Return a statement without the criterion of its search, or with another one in its place."""
    stmt = stmt._generate()
    replaced = (instead if one is criterion else one for one in stmt._where_criteria)
    stmt._where_criteria = tuple(one for one in replaced if one is not None)
    return stmt


def _alone(stmt: Select[Any], criterion: NearestCriterion) -> Select[Any]:
    """Return a statement whose criterion itself leaves exactly k rows, since no LIMIT follows that would."""
    alone: Any = criterion._clone()
    alone.many = True
    return without(stmt, criterion, alone)
