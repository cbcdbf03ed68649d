"""A second stage over what a search found: another order for the same rows, made in the same statement."""

from __future__ import annotations

import sys
from typing import Any

from sqlalchemy import Float, Integer, Select, case, cast, literal, literal_column, null
from sqlalchemy.sql.elements import ColumnElement

from sqla_vector.expression import DISTANCE_VALUE, Distance, ResultOrder
from sqla_vector.functions import similarity_of
from sqla_vector.schema import check_whole_number
from sqla_vector.search.boosts import expression_of
from sqla_vector.search.stages import RERANK_SCORE, RerankScore, stage_of

__all__ = ["rerank"]

_DOUBLE = Float(53)


def rerank(stmt: Select[Any], by: Any, k: int = 10) -> Select[Any]:
    """Return the ``k`` best rows of a search by another score, computed in SQL for its candidates only.

    The rows end with ``rerank_score``.  Where it is undefined (NULL, NaN, infinite) a row comes after all others;
    such rows, and equal ones, stay in the order of the first stage.  The statement may be extended further, and
    what is added takes part in the first stage; with ``offset()`` pages come out of its candidates.

    Args:
        stmt: made by :func:`nearest` or :func:`hybrid`; its ``k`` is the number of candidates.
        by: a number as an SQL expression, larger is better: ``similarity(Article.full, vector, "cosine")`` is the
            exact similarity of another column, and ``score_of(stmt) * recency(Article.published, ...)`` a boost.  A
            distance stands for its similarity.
        k: how many rows, at most as many as there are candidates.

    Raises:
        InvalidOption: ``by`` is no SQL expression, ``k`` is out of its range.
        InvalidStatement: the statement is no search, is reranked already, or has OFFSET.
    """
    expression = expression_of(by, "by= takes an SQL expression, for example score_of(stmt) * recency(...)")
    stage = stage_of(stmt, "rerank")
    check_whole_number(k, "k", 1, stage.k)
    if isinstance(expression, Distance):
        expression = similarity_of(expression)
    score = RerankScore(RERANK_SCORE, _finite(expression))
    return (
        stage.stmt.add_columns(score)
        .order_by(ResultOrder(score).desc().nulls_last(), *stage.order)
        .limit(literal_column(str(k), Integer()))
    )


def _finite(expression: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a number, or NULL in the place of one by which nothing can be sorted."""
    value = cast(expression, _DOUBLE)
    largest = literal(sys.float_info.max, _DOUBLE)
    # PostgreSQL's NaN is greater than any number.
    return case((value > largest, cast(null(), DISTANCE_VALUE)), (value < -largest, null()), else_=value)
