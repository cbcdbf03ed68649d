"""Which index serves a search, or why none does."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Index, Select
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import ColumnElement, Label, UnaryExpression
from sqlalchemy.sql.visitors import iterate

from sqla_vector.dialects import settings_of
from sqla_vector.dialects.tuned import tuned_for
from sqla_vector.dialects.tuning import TuningSupport
from sqla_vector.engine import connection_of
from sqla_vector.exc import InvalidStatement
from sqla_vector.expression import Distance, NearestCriterion, ResultOrder
from sqla_vector.schema import VectorIndexKey, indexed_column, vector_indexes
from sqla_vector.search import criterion_of
from sqla_vector.types import support_of

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

__all__ = ["SearchPlan", "aexplain_nearest", "explain_nearest"]


@dataclass(frozen=True)
class SearchPlan:
    """How the database runs a search."""

    index: str | None
    """The vector index that serves it, None for an exact scan."""
    method: str | None
    """``hnsw``, ``ivfflat`` or ``vec0``."""
    precision: str | None
    """Precision of the index: ``full``, ``half``, ``int8``, ``binary``."""
    reason: str
    """One sentence: what serves the search, or why no index does and what to do."""
    plan: str
    """The database's own plan."""

    def __str__(self) -> str:
        return f"{self.reason}\n\n{self.plan}"


def explain_nearest(connection: Session | Connection, stmt: Select[Any]) -> SearchPlan:
    """Return which index serves a search, from the database's own plan, or why none does.

    The statement is planned, not run.

    Args:
        connection: a Session or Connection.
        stmt: a statement made by :func:`sqla_vector.nearest`, or any select ordered by a distance.

    Raises:
        InvalidStatement: the statement is not ordered by a distance.
    """
    bind = connection_of(connection, "aexplain_nearest()")
    if not isinstance(stmt, Select):
        raise InvalidStatement(f"explain_nearest() takes a select(), got {type(stmt).__name__}")
    support = support_of(bind.dialect)
    search = _searched(stmt)
    column = indexed_column(search.distance.operands[0])
    declared = [(i, k) for i, k in vector_indexes(column.table) if k.column is column] if column is not None else []
    used, plan = support.explain(bind, stmt)
    for index, key in declared:
        if str(index.name) in used:
            method, precision = support.served_by(key)
            serves = f"{index.name} serves the search ({method}){_tuned(bind, index, key, search.criterion)}"
            return SearchPlan(str(index.name), method, precision, serves, plan)
    if used:
        name = min(used)
        return SearchPlan(name, None, None, f"{name}, an index that the model does not declare, serves it", plan)
    reason = _why_none(search, [(str(i.name), k) for i, k in declared])
    if reason is None:
        name, key = next((str(i.name), k) for i, k in declared if k.spec.metric_name == search.metric)
        reason = support.why_unused(bind, name, key, search.criterion)
    return SearchPlan(None, None, None, reason, plan)


async def aexplain_nearest(connection: AsyncSession | AsyncConnection, stmt: Select[Any]) -> SearchPlan:
    """Return the same as :func:`explain_nearest`, on an AsyncSession or AsyncConnection."""

    def run(sync: Session | Connection) -> SearchPlan:
        return explain_nearest(sync, stmt)

    return await connection.run_sync(run)


def _tuned(connection: Connection, index: Index, key: VectorIndexKey, criterion: NearestCriterion | None) -> str:
    """Return what to add to the reason when a search wants a recall."""
    if criterion is None or criterion.recall is None:
        return ""
    support: TuningSupport = support_of(connection.dialect).tuning()
    if not support.knobs(connection, index, key, criterion.k):
        return f", which finds everything, so recall {criterion.recall:g} is held"
    assert index.table is not None
    place, built = (connection.schema_for_object(index.table), str(index.name)), support.built(index, key)
    found = tuned_for(place, built, criterion.k, criterion.recall, settings_of(connection.dialect))
    if found is None:
        return (
            f" with default settings: none were found for recall {criterion.recall:g}; find them by "
            "sqla_vector.tuning.tune(), or load_tuned() what another process found"
        )
    told = ", ".join(f"{name}={value}" for name, value in found.settings.items())
    return f", tuned for recall {found.recall:g}: {told}"


@dataclass(frozen=True)
class _Search:
    """What a statement searches for."""

    distance: Distance
    criterion: NearestCriterion | None
    is_ordered_by_distance: bool
    is_descending: bool

    @property
    def metric(self) -> str:
        return self.distance.metric_name


def _searched(stmt: Select[Any]) -> _Search:
    """Return the distance that a statement is ordered by."""
    with suppress(InvalidStatement):
        criterion = criterion_of(stmt)
        return _Search(criterion.distance, criterion, is_ordered_by_distance=True, is_descending=False)
    for clause in stmt._order_by_clauses:
        element: Any = clause
        is_descending = False
        while True:
            if isinstance(element, UnaryExpression):
                is_descending = is_descending or element.modifier is operators.desc_op
                element = element.element
            elif (
                isinstance(element, (Label, ResultOrder)) or getattr(element, "__visit_name__", "") == "label_reference"
            ):
                element = element.element
            else:
                break
        if not isinstance(element, ColumnElement):
            continue
        distance = next((part for part in iterate(element) if isinstance(part, Distance)), None)
        if distance is not None:
            return _Search(distance, None, isinstance(element, Distance), is_descending)
    raise InvalidStatement("the statement is not ordered by a distance; make it with nearest(), or order_by(distance)")


def _why_none(search: _Search, declared: list[tuple[str, VectorIndexKey]]) -> str | None:
    """Return why no index can serve a search, or None if one could."""
    column = search.distance.operands[0]
    if search.criterion is not None and search.criterion.exact:
        return "exact=True asks for an exact scan"
    if not search.is_ordered_by_distance:
        return (
            "the statement is ordered by an expression over the distance; an index serves only ORDER BY distance "
            "itself, ascending: use nearest(), with min_similarity= for a threshold"
        )
    if search.is_descending:
        return "the statement is ordered by the distance descending; an index serves only the nearest first"
    if not declared:
        return f"{column} has no vector index; declare one with vector_index() in __table_args__"
    metrics = sorted({key.spec.metric_name for _, key in declared})
    if search.metric not in metrics:
        names = ", ".join(name for name, _ in declared)
        return (
            f"the statement asks for {search.metric} and {names} serves {' and '.join(metrics)}; "
            f'declare vector_index(..., metric="{search.metric}"), or search by the index\'s metric'
        )
    return None
