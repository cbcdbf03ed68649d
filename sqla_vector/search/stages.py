"""What a second stage knows of the first: its score, its candidates, and its statement without order and limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select
from sqlalchemy.sql.elements import ColumnElement

from sqla_vector.exc import InvalidStatement
from sqla_vector.expression import NearestCriterion
from sqla_vector.functions import similarity_of
from sqla_vector.ranked import RankedRows, ranked_rows_of
from sqla_vector.search.nearest import criterion_of

__all__ = ["RERANK_SCORE", "Stage", "is_reranked", "score_of", "stage_of"]

RERANK_SCORE = "rerank_score"


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
        stmt: made by :func:`nearest`, whose score is the metric's similarity, or by :func:`hybrid`.

    Raises:
        InvalidStatement: the statement is no search.
    """
    rows = ranked_rows_of(stmt) if isinstance(stmt, Select) else None
    if rows is not None:
        score: ColumnElement[float] = rows.c.score
        return score
    return similarity_of(criterion_of(stmt).distance)


def is_reranked(stmt: Select[Any]) -> bool:
    """Tell whether a statement has a second stage."""
    return any(getattr(column, "name", None) == RERANK_SCORE for column in stmt._raw_columns)


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
        return _of_ranked_rows(rest, rows, score, order, name)
    criterion = criterion_of(stmt)
    if criterion.many:
        raise InvalidStatement(f"{name}() takes a search for one vector, made by nearest() or hybrid()")
    return Stage(_alone(rest, criterion), score, order, criterion.k)


def _of_ranked_rows(
    stmt: Select[Any], rows: RankedRows, score: ColumnElement[float], order: tuple[ColumnElement[Any], ...], name: str
) -> Stage:
    if rows.k is None:
        raise InvalidStatement(f"{name}() takes a search for one vector, made by nearest() or hybrid()")
    return Stage(stmt.where(rows.c.place <= rows.k), score, order, rows.k)


def _alone(stmt: Select[Any], criterion: NearestCriterion) -> Select[Any]:
    """Return a statement whose criterion itself leaves exactly k rows, since no LIMIT follows that would."""
    alone: Any = criterion._clone()
    alone.many = True
    stmt = stmt._generate()
    stmt._where_criteria = tuple(alone if one is criterion else one for one in stmt._where_criteria)
    return stmt
