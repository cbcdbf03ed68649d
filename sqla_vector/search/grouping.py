"""The best row of each group: the nearest chunk of each of the k nearest documents.

The k nearest chunks may all be of one document.  So the search looks at more rows than are wanted, at many more if it
must, and at all of them in the end; which of these it does is decided inside the one statement.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Float, Integer, Select, and_, func, literal, literal_column, select, true, union_all
from sqlalchemy.sql.elements import ColumnClause, ColumnElement

from sqla_vector.exc import InvalidOption, InvalidStatement
from sqla_vector.expression import DISTANCE_VALUE, NearestCriterion
from sqla_vector.ranked import (
    PLACE,
    Composer,
    RankedRows,
    Template,
    key_name,
    ordered_by,
    ranked_rows_of,
    refers_to,
)
from sqla_vector.schema import check_whole_number
from sqla_vector.search.boosts import expression_of
from sqla_vector.search.hybrid import HybridComposer
from sqla_vector.search.nearest import MAX_K, check_flag
from sqla_vector.search.parts import select_keys
from sqla_vector.search.stages import is_reranked, without
from sqla_vector.search.statement import criterion_of

__all__ = ["best_per_group"]

NARROW = 4
"""Rows per wanted group that are looked at first."""
WIDE = 64
"""Rows per wanted group that are looked at if that was not enough."""
LEAST_NARROW = 40

_INTEGER = Integer()


def best_per_group(stmt: Select[Any], group: Any, k: int | None = None, *, exact: bool = False) -> Select[Any]:
    """Return the best row of each of the ``k`` groups that have the best rows, best first.

    Of :func:`nearest` there are k rows whenever k groups have a row of the statement with a vector, however many rows
    the other groups have.  Of :func:`hybrid` the groups are those of its candidates, and ``candidates=`` says how many
    these are.  The result can be extended further, as that of :func:`nearest`; ``offset()`` skips groups.

    Args:
        stmt: made by :func:`nearest` or :func:`hybrid`, such as ``nearest(select(Chunk), Chunk.embedding, vector)``.
        group: the column that tells groups apart, of the same table: ``Chunk.document_id``.  NULL is a group as well.
        k: how many groups; by default the ``k`` of the search.
        exact: bypass indexes: look at all rows at once.

    Returns:
        A Select with the columns of ``stmt``.

    Raises:
        InvalidOption: an option out of its range, a group that is no column of the vectors' table.
        InvalidStatement: the statement was made by neither, is reranked or has OFFSET.
    """
    rows = ranked_rows_of(stmt) if isinstance(stmt, Select) else None
    if rows is not None and isinstance(rows.composer, HybridComposer):
        return _of_fused(stmt, rows, rows.composer, group, k)
    criterion = criterion_of(stmt)
    if criterion.many or is_reranked(stmt):
        raise InvalidStatement(
            "best_per_group() takes a search for one vector, made by nearest(); rerank() is for after"
        )
    if stmt._offset_clause is not None:
        raise InvalidStatement("the statement has OFFSET already; call offset() after best_per_group()")
    k = criterion.k if k is None else check_whole_number(k, "k", 1, MAX_K)
    keys = criterion.keys
    column = _group_of(group, keys)
    named = (column.label("grouped"), criterion.distance.unindexed().label("distance"))
    composer = GroupComposer(k, len(keys))
    templates = [Template(_all_rows(criterion, named), keys)]
    if not check_flag(exact, "exact") and not criterion.exact:
        templates += [Template(_nearest(criterion, named, count), keys) for count in composer.counts]
    rows = RankedRows.of(templates, composer, k)
    plain = without(stmt, criterion).limit(literal_column(str(k), _INTEGER))
    return plain.where(*(rows.c[key_name(number)] == key for number, key in enumerate(keys)))


def _of_fused(stmt: Select[Any], rows: RankedRows, fused: HybridComposer, group: Any, k: int | None) -> Select[Any]:
    about_rows = [criterion for criterion in stmt._where_criteria if refers_to(criterion, rows)]
    if is_reranked(stmt) or len(about_rows) != len(rows.keys):
        raise InvalidStatement("best_per_group() takes what hybrid() has made; rerank() and page_after() are for after")
    if stmt._offset_clause is not None:
        raise InvalidStatement("the statement has OFFSET already; call offset() after best_per_group()")
    k = rows.k if k is None else check_whole_number(k, "k", 1, MAX_K)
    column = _group_of(group, rows.keys)
    groups = RankedRows.of(rows.templates, FusedGroupComposer(fused, column, rows.keys), k)
    stmt = stmt._generate()
    stmt._raw_columns = [
        groups.c[str(one.key)] if isinstance(one, ColumnClause) and one.table is rows else one
        for one in stmt._raw_columns
    ]
    joined = (groups.c[key_name(number)] == key for number, key in enumerate(rows.keys))
    stmt._where_criteria = (*(one for one in stmt._where_criteria if not refers_to(one, rows)), *joined)
    by = ordered_by(fused.order, groups.c)
    return stmt.order_by(None).order_by(*by, *rows.keys).limit(literal_column(str(k), _INTEGER))


def _group_of(group: Any, keys: Sequence[ColumnElement[Any]]) -> ColumnElement[Any]:
    column = expression_of(group, "group= takes a column, such as Chunk.document_id")
    if getattr(column, "table", None) != keys[0].table:
        raise InvalidOption(f"group= is {column}, which is no column of {keys[0].table}, where the vectors are")
    return column


def _nearest(criterion: NearestCriterion, named: Sequence[Any], count: int) -> Select[Any]:
    limited: Any = criterion._clone()
    limited.k = count
    limit = literal_column(str(count), _INTEGER)
    return select_keys(criterion.keys, *named).where(limited).order_by(named[1], *criterion.keys).limit(limit)


def _all_rows(criterion: NearestCriterion, named: Sequence[Any]) -> Select[Any]:
    # PostgreSQL's NaN, an undefined distance, is greater than any number.
    bound = criterion.bound
    bound = literal(sys.float_info.max, Float(53)) if bound is None else bound
    return select_keys(criterion.keys, *named).where(criterion.distance <= bound)


class GroupComposer(Composer):
    """Chooses the best row of each group among those of searches that widen."""

    columns = (("distance", DISTANCE_VALUE), (PLACE, _INTEGER))
    order = ("distance",)

    def __init__(self, k: int, keys: int) -> None:
        narrow = min(MAX_K, max(LEAST_NARROW, NARROW * k))
        self.counts = (narrow, min(MAX_K, max(narrow, WIDE * k)))
        self._keys = [key_name(number) for number in range(keys)]

    @property
    def plan(self) -> tuple[Any, ...]:
        return self.counts

    def compose(self, searches: Sequence[Select[Any]], wanted: ColumnElement[int] | None) -> Select[Any]:
        everything, *limited = searches
        if not limited:
            return self._best(everything)
        if wanted is None:
            # How many groups will be needed is not known, so all of them are.
            return self._best(everything)
        narrow = limited[0].cte()
        too_few = self._too_few(narrow, self.counts[0], wanted)
        wide = limited[1].where(too_few).cte()
        still_too_few = self._too_few(wide, self.counts[1], wanted)
        # A condition on a whole scan is the outer loop of a join, or SQLite would look at it for every row.
        gate = select(literal_column("1", _INTEGER).label("one")).where(still_too_few).subquery()
        table = everything.get_final_froms()[0]
        rest = everything.select_from(gate.join(table, true()))
        return self._best(union_all(select(narrow), select(wide), rest))

    @staticmethod
    def _too_few(rows: Any, count: int, wanted: ColumnElement[int]) -> ColumnElement[bool]:
        """Return whether rows have too few groups, although there may be more rows."""
        groups = select(func.count(rows.c.grouped.distinct())).scalar_subquery()
        number = select(func.count()).select_from(rows).scalar_subquery()
        return and_(number >= literal_column(str(count), _INTEGER), groups < wanted)

    def _best(self, searched: Any) -> Select[Any]:
        rows = searched.subquery()
        keys = [rows.c[name] for name in self._keys]
        first = func.row_number().over(partition_by=rows.c.grouped, order_by=(rows.c.distance, *keys))
        named = select(*keys, rows.c.distance, first.label("first")).subquery()
        keys = [named.c[name] for name in self._keys]
        place = func.row_number().over(order_by=(named.c.distance, *keys)).label(PLACE)
        return select(*keys, named.c.distance, place).where(named.c.first == literal_column("1", _INTEGER))


class FusedGroupComposer(Composer):
    """Chooses the best row of each group among the fused rows of a hybrid search."""

    def __init__(self, fused: HybridComposer, group: ColumnElement[Any], keys: Sequence[ColumnElement[Any]]) -> None:
        self._fused = fused
        self._group = group
        self._keys = keys
        self.parts, self.fusion = fused.parts, fused.fusion
        self.columns, self.order = fused.columns, fused.order
        self.parameters = [*fused.parameters, group]

    @property
    def plan(self) -> tuple[Any, ...]:
        return self._fused.plan

    def compose(self, searches: Sequence[Select[Any]], wanted: ColumnElement[int] | None) -> Select[Any]:
        rows = self._fused.compose(searches, None).subquery()
        names = [key_name(number) for number in range(len(self._keys))]
        same = and_(*(rows.c[name] == key for name, key in zip(names, self._keys, strict=True)))
        best = (*ordered_by(self.order, rows.c), *(rows.c[name] for name in names))
        first = func.row_number().over(partition_by=self._group, order_by=best).label("first")
        grouped = select(*rows.c, first).select_from(rows.join(self._keys[0].table, same)).subquery()
        best = (*ordered_by(self.order, grouped.c), *(grouped.c[name] for name in names))
        kept = [column for column in grouped.c if column.key not in (PLACE, "first")]
        place = func.row_number().over(order_by=best).label(PLACE)
        return select(*kept, place).where(grouped.c.first == literal_column("1", _INTEGER))
