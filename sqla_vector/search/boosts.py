"""Boosts: what else decides the order of rows that a search found, as SQL expressions.

They are numbers to be multiplied or added to a score, ``score_of(stmt) * recency(Article.published, ...)``, and are
given to :func:`sqla_vector.search.rerank`.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Date, DateTime, Float, cast, func, literal
from sqlalchemy.sql.elements import ClauseElement, ColumnElement

from sqla_vector.exc import InvalidOption
from sqla_vector.recency import HalfLife

__all__ = ["recency", "saturation"]

_DOUBLE = Float(53)


def recency(
    column: Any, half_life: timedelta, *, now: datetime | None = None, missing: float = 0.0
) -> ColumnElement[float]:
    """Return how recent a row is: 1 now, one half after ``half_life``, a quarter after twice that.

    Args:
        column: a date, or a time with or without zone; without, it is taken as UTC.
        half_life: the age at which a row counts half.
        now: the moment to which the age is reckoned, taken as UTC if it has no zone; by default when this is called.
        missing: what a row without a date gets, from 0 to 1.

    Returns:
        An expression of a number from 0 to 1; 1 too for a moment that is still to come.

    Raises:
        InvalidOption: the column is no date, or an option is out of its range.
    """
    element = expression_of(column, "recency() takes a column of dates or times")
    kind = element.type._type_affinity
    if kind is not DateTime and kind is not Date:
        raise InvalidOption(f"recency() takes a column of dates or times, {element} is {element.type!r}")
    if not isinstance(half_life, timedelta) or half_life <= timedelta(0):
        raise InvalidOption(f"half_life must be a positive timedelta, got {half_life!r}")
    if now is not None and not isinstance(now, datetime):
        raise InvalidOption(f"now must be a datetime, got {now!r}")
    if isinstance(missing, bool) or not isinstance(missing, (int, float)) or not 0.0 <= missing <= 1.0:
        raise InvalidOption(f"missing must be a number from 0 to 1, got {missing!r}")
    zoned = bool(getattr(getattr(element.type, "impl", element.type), "timezone", False))
    moment = datetime.now(UTC) if now is None else now
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    bound = literal(moment if zoned else moment.replace(tzinfo=None), DateTime(timezone=zoned))
    half = HalfLife(element, bound, literal(half_life.total_seconds(), _DOUBLE), zoned)
    return func.coalesce(half, literal(float(missing), _DOUBLE))


def saturation(column: Any, pivot: float) -> ColumnElement[float]:
    """Return ``x / (x + pivot)``: how large a count is, from 0 towards 1, one half at the pivot; NULL counts 0.

    For numbers of views, votes or links, which are not negative and of which twice as many are not twice as good.

    Args:
        column: a number, from 0.
        pivot: the number that counts half, over 0.

    Raises:
        InvalidOption: the pivot is no positive number, or the column no expression.

    Source: Craswell et al., *Relevance weighting for query independent evidence*, SIGIR 2005.
    """
    if isinstance(pivot, bool) or not isinstance(pivot, (int, float)) or not 0.0 < pivot < float("inf"):
        raise InvalidOption(f"pivot must be a positive number, got {pivot!r}")
    element = expression_of(column, "saturation() takes a column of numbers")
    value = func.coalesce(cast(element, _DOUBLE), literal(0.0, _DOUBLE))
    return value / (value + literal(float(pivot), _DOUBLE))


def expression_of(value: Any, expected: str) -> ColumnElement[Any]:
    """Return the SQL expression that is meant by a column, attribute or expression, or refuse it."""
    element = value.__clause_element__() if hasattr(value, "__clause_element__") else value
    if not isinstance(element, ColumnElement):
        what = "an SQL clause of another kind" if isinstance(element, ClauseElement) else type(value).__name__
        raise InvalidOption(f"{expected}, got {what}")
    return element
