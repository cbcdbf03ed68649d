"""Nearest-neighbour search: a Select goes in, a Select comes out.

:func:`nearest` adds three things to a statement: the distance as a column, an ORDER BY, and one criterion that
stands for "is among the k nearest".  The criterion is turned into SQL when the statement is compiled, by
:mod:`sqla_vector.dialects`, so whatever is added to the statement later takes part in the search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Float, Integer, Select, bindparam, literal_column, or_, select, union_all
from sqlalchemy.sql.elements import ColumnElement

from sqla_vector.exc import InvalidOption, InvalidStatement
from sqla_vector.expression import Distance, NearestCriterion, ResultOrder, VectorTypeEngine, operand, vector_type_of
from sqla_vector.metrics import Metric, default_metric, resolve_metric
from sqla_vector.schema import (
    MAX_EF_SEARCH,
    MAX_OVERSAMPLE,
    MAX_PROBES,
    check_share,
    check_whole_number,
    declared_metrics,
)
from sqla_vector.search.statement import check_statement

__all__ = ["check_flag", "nearest", "nearest_each", "nearest_to"]

MAX_K = 1_000_000


def nearest(
    stmt: Select[Any],
    column: Any,
    query: object,
    k: int = 10,
    *,
    metric: str | None = None,
    max_distance: float | None = None,
    min_similarity: float | None = None,
    exact: bool = False,
    oversample: int | None = None,
    ef_search: int | None = None,
    probes: int | None = None,
    recall: float | None = None,
) -> Select[Any]:
    """Return ``stmt`` limited to the ``k`` rows nearest to a vector, nearest first, with a ``distance`` column.

    There are k rows whenever k rows of the statement have a vector, whatever it filters by; rows whose distance
    is undefined (a NULL vector; a zero vector under cosine) never appear; ties are in primary key order.  The
    result can be extended further: ``where``, ``join``, ``options``, ``offset`` for paging.

    Args:
        stmt: a select of entities or columns, without LIMIT and ORDER BY.
        column: the vector column, for example ``Article.embedding``; of an alias or of a joined table too.
        query: a vector of shape (dim,), or an SQL expression of a vector.
        k: how many rows, from 1.
        metric: the metric; by default that of the column's index, or cosine (hamming for bits).
        max_distance: leave out rows farther than this.
        min_similarity: leave out rows less similar than this; instead of ``max_distance``.
        exact: bypass indexes.
        oversample: candidates per row fetched from an index of reduced precision, before they are sorted by
            exact distance (half 2, int8 4, binary 20; on SQLite binary takes up to 40 within a margin of bits,
            and exactly as many as are given here).
        ef_search: hnsw on PostgreSQL, for this transaction, 1 to 1,000; by default what ``k`` needs.
        probes: ivfflat, how many lists to look into, on PostgreSQL for this transaction; by default the square
            root of their number.
        recall: the share of the true k nearest that is wanted, over 0 and under 1: takes the cheapest of the three
            settings above for which :func:`sqla_vector.tuning.tune` found that it holds; one that is given here
            stands.  Where nothing was found, the defaults serve, a warning is logged, and ``explain_nearest()``
            says so.  An exact search needs none.

    Returns:
        A Select whose rows end with ``distance`` (float).

    Raises:
        InvalidOption: an option out of its range.
        InvalidStatement: ``stmt`` has LIMIT, OFFSET or ORDER BY, or is no Select; the column's table has no
            primary key.
        InvalidVector: ``query`` is no vector of the column's dimension.
        UnsupportedMetric: the column has no such metric.

    Sources:
        Iterative index scans: pgvector's manual.  Reranking of quantized candidates: Jégou et al., *Searching
        in one billion vectors: re-rank with source coding*, ICASSP 2011.
    """
    element, type_, found = _resolve(column, metric)
    check_statement(stmt, "nearest")
    distance = Distance(found, type_.kind, element, operand(query, type_))
    options = _Options(exact, oversample, ef_search, probes, recall, _bound(found, type_, max_distance, min_similarity))
    criterion = options.criterion(distance, k)
    # Were the statement sorted by what an index is ordered by, PostgreSQL might read that once more for the statement
    # itself, with other settings than the search for candidates, and miss some of them.
    labelled = distance.unindexed().label("distance")
    # A literal, not a parameter: with it the server may keep one plan for all executions.
    limit = literal_column(str(criterion.k), Integer())
    return stmt.add_columns(labelled).where(criterion).order_by(ResultOrder(labelled), *criterion.keys).limit(limit)


def nearest_each(
    stmt: Select[Any],
    column: Any,
    queries: Sequence[Any],
    k: int = 10,
    *,
    metric: str | None = None,
    max_distance: float | None = None,
    min_similarity: float | None = None,
    exact: bool = False,
    oversample: int | None = None,
    ef_search: int | None = None,
    probes: int | None = None,
    recall: float | None = None,
) -> Select[Any]:
    """Return the ``k`` rows nearest to each of several vectors, in one statement.

    The rows end with ``query`` (int, the vector's position in ``queries``) and ``distance``, and are sorted by
    query, then distance, then primary key.  Each query is searched as :func:`nearest` would, with the index.

    Args:
        stmt: as for :func:`nearest`.
        column: as for :func:`nearest`.
        queries: n vectors, or an array of shape (n, dim), with 1 <= n <= 500.
        k: how many rows for each of them.
        metric: as for :func:`nearest`.
        max_distance: likewise.
        min_similarity: likewise.
        exact: likewise.
        oversample: likewise.
        ef_search: likewise.
        probes: likewise.
        recall: likewise.

    Raises:
        InvalidOption: no query or more than 500 (SQLite's limit), or as for :func:`nearest`.
    """
    element, type_, found = _resolve(column, metric)
    check_statement(stmt, "nearest_each")
    check_whole_number(len(queries), "the number of queries", 1, 500)
    rows = [
        select(literal_column(str(number), Integer()).label("number"), operand(query, type_).label("vector"))
        for number, query in enumerate(queries)
    ]
    source = (rows[0] if len(rows) == 1 else union_all(*rows)).cte("nearest_queries")
    distance = Distance(found, type_.kind, element, source.c.vector)
    options = _Options(exact, oversample, ef_search, probes, recall, _bound(found, type_, max_distance, min_similarity))
    criterion = options.criterion(distance, k, many=True)
    number, labelled = source.c.number.label("query"), distance.unindexed().label("distance")
    order = (ResultOrder(number), ResultOrder(labelled), *criterion.keys)
    return stmt.add_columns(number, labelled).where(criterion).order_by(*order)


def nearest_to(column: Any, instance_or_pk: object, k: int = 10, **options: Any) -> Select[Any]:
    """Return the ``k`` rows most like a given row of the same entity, itself excluded.

    Args:
        column: a mapped vector attribute, ``Article.embedding``.
        instance_or_pk: an object of the entity, or its primary key (a tuple for a composite key).
        k: how many rows.
        **options: as for :func:`nearest`.

    Returns:
        A Select of the entity and ``distance``; empty if the row does not exist or has no vector.

    Raises:
        InvalidOption: the column is no mapped attribute, or the key has the wrong number of parts.
    """
    from sqlalchemy.orm import aliased  # already imported by whoever has a mapped attribute

    mapper = getattr(getattr(column, "parent", None), "mapper", None)
    if mapper is None:
        raise InvalidOption("nearest_to() needs a mapped attribute, for example Article.embedding")
    entity = column.parent.entity
    if isinstance(instance_or_pk, mapper.class_):
        identity = tuple(mapper.primary_key_from_instance(instance_or_pk))
        if None in identity:
            raise InvalidOption(f"{instance_or_pk!r} has no primary key yet; flush it first")
    else:
        identity = instance_or_pk if isinstance(instance_or_pk, tuple) else (instance_or_pk,)
    keys = [mapper.get_property_by_column(key).key for key in mapper.primary_key]
    if len(identity) != len(keys):
        raise InvalidOption(f"{mapper.class_.__name__} has {len(keys)} primary key columns, got {len(identity)} values")
    parts = list(zip(keys, identity, strict=True))
    given = aliased(mapper.class_)
    vector = select(getattr(given, column.key)).where(*(getattr(given, key) == part for key, part in parts))
    others = [getattr(entity, key) != part for key, part in parts]
    return nearest(select(entity).where(or_(*others)), column, vector.scalar_subquery(), k, **options)


def _resolve(column: Any, metric: str | None) -> tuple[ColumnElement[Any], VectorTypeEngine, Metric]:
    element, type_ = vector_type_of(column)
    if metric is not None:
        return element, type_, resolve_metric(metric, type_.kind, type_.column_name)
    declared = declared_metrics(element)
    if len(declared) > 1:
        raise InvalidOption(f"{type_.column_name} has indexes for {' and '.join(declared)}; say metric=...")
    return element, type_, resolve_metric(declared[0]) if declared else default_metric(type_.kind)


@dataclass(frozen=True)
class _Options:
    """The options of a search, checked when the criterion is made."""

    exact: bool
    oversample: int | None
    ef_search: int | None
    probes: int | None
    recall: float | None
    bound: ColumnElement[float] | None

    def criterion(self, distance: Distance, k: int, *, many: bool = False) -> NearestCriterion:
        return NearestCriterion(
            distance,
            _keys_of(distance.operands[0]),
            k=check_whole_number(k, "k", 1, MAX_K),
            exact=check_flag(self.exact, "exact"),
            oversample=_optional(self.oversample, "oversample", MAX_OVERSAMPLE),
            ef_search=_optional(self.ef_search, "ef_search", MAX_EF_SEARCH),
            probes=_optional(self.probes, "probes", MAX_PROBES),
            recall=None if self.recall is None else check_share(self.recall, "recall"),
            bound=self.bound,
            many=many,
        )


def _keys_of(element: ColumnElement[Any]) -> tuple[ColumnElement[Any], ...]:
    """Return the primary key columns beside a vector column, of the same table or alias."""
    selectable = getattr(element, "table", None)
    keys = tuple(getattr(selectable, "primary_key", ()))
    if not keys:
        raise InvalidStatement(
            f"{element}: nearest() needs the primary key of the vector's table, and {selectable} shows none"
        )
    return keys


def _bound(
    metric: Metric, type_: VectorTypeEngine, max_distance: float | None, min_similarity: float | None
) -> ColumnElement[float] | None:
    if max_distance is not None and min_similarity is not None:
        raise InvalidOption("give max_distance or min_similarity, not both")
    if max_distance is None and min_similarity is None:
        return None
    for name, value in (("max_distance", max_distance), ("min_similarity", min_similarity)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value != value):
            raise InvalidOption(f"{name} must be a number, got {value!r}")
    if min_similarity is not None:
        max_distance = metric.distance(min_similarity, type_.dim or 1)
    return bindparam(None, float(max_distance), type_=Float(53), unique=True)  # type: ignore[arg-type]


def check_flag(value: object, name: str) -> bool:
    """Return a flag, or refuse what is none."""
    if not isinstance(value, bool):
        raise InvalidOption(f"{name} must be True or False, got {value!r}")
    return value


def _optional(value: int | None, name: str, high: int) -> int | None:
    return None if value is None else check_whole_number(value, name, 1, high)
