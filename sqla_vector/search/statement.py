"""What a search asks of the statement it extends, and finds in the one that another made."""

from __future__ import annotations

from typing import Any, Final, TypeVar

from sqlalchemy import Select
from sqlalchemy.sql.visitors import iterate

from sqla_vector.exc import InvalidStatement
from sqla_vector.expression import NearestCriterion
from sqla_vector.text_expression import TextMatch

__all__ = ["check_statement", "criterion_of", "text_match_of"]

T = TypeVar("T")

_MAKERS: Final[dict[type[Any], str]] = {NearestCriterion: "nearest", TextMatch: "match_text"}
"""The functions that put a criterion into a statement."""


def check_statement(stmt: object, name: str) -> None:
    """Refuse what a search cannot extend.

    Args:
        stmt: the statement.
        name: the function's, for messages.

    Raises:
        InvalidStatement: it is no select, has LIMIT, OFFSET or ORDER BY, or was made by a search already.
    """
    if not isinstance(stmt, Select):
        raise InvalidStatement(f"{name}() extends a select(), got {type(stmt).__name__}")
    if stmt._limit_clause is not None or stmt._offset_clause is not None or stmt._fetch_clause is not None:
        raise InvalidStatement(
            f"the statement has LIMIT or OFFSET already; give k to {name}(), and call offset() after"
        )
    if stmt._order_by_clauses:
        raise InvalidStatement(f"the statement has ORDER BY already; {name}() sorts its rows itself")
    for kind, maker in _MAKERS.items():
        if any(isinstance(criterion, kind) for criterion in stmt._where_criteria):
            raise InvalidStatement(f"the statement was made by {maker}() already")


def criterion_of(stmt: Select[Any]) -> NearestCriterion:
    """Return the criterion that :func:`~sqla_vector.nearest` put into a statement.

    Raises:
        InvalidStatement: there is none.
    """
    return _found(stmt, NearestCriterion)


def text_match_of(stmt: Select[Any]) -> TextMatch:
    """Return the criterion that :func:`~sqla_vector.match_text` put into a statement.

    Raises:
        InvalidStatement: there is none.
    """
    return _found(stmt, TextMatch)


def _found(stmt: Select[Any], kind: type[T]) -> T:
    whereclause = getattr(stmt, "whereclause", None)
    if whereclause is not None:
        for element in iterate(whereclause):
            if isinstance(element, kind):
                return element
    raise InvalidStatement(f"expected a statement made by {_MAKERS[kind]}()")
