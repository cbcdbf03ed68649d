"""The parts that a search by a vec0 table is compiled from."""

from __future__ import annotations

from math import ceil, sqrt
from typing import Final

from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, ColumnElement

from sqla_vector.dialects.scope import StatementScope
from sqla_vector.dialects.sqlite.index import Metadata, Vec0Index
from sqla_vector.schema import indexed_column

__all__ = [
    "MAX_K",
    "as_metadata",
    "at_most",
    "constraint_of",
    "exact_keys",
    "keys_of",
    "margin",
    "reranked",
    "whole_ties",
    "with_ctes",
]

MAX_K: Final = 4_096
"""The most rows that one vec0 query returns."""

_LEAST_INTEGER: Final = "-9223372036854775808"

_COMPARISONS: Final = {
    operators.eq: "=",
    operators.ne: "!=",
    operators.lt: "<",
    operators.le: "<=",
    operators.gt: ">",
    operators.ge: ">=",
}


def exact_keys(scope: StatementScope, distance: str, *criteria: str, only_if: str | None = None) -> str:
    """Return a subquery of the keys nearest by an exact scan."""
    keys = [scope.process(key) for key in scope.criterion.keys]
    names = ", ".join(f"k{number}" for number in range(len(keys)))
    columns = ", ".join(f"{key} AS k{number}" for number, key in enumerate(keys))
    # A condition on the whole scan is the outermost loop, not a criterion that may be computed for every row.
    gate = f"(SELECT 1 WHERE {only_if}) CROSS JOIN " if only_if else ""
    # In a nested SELECT, because SQLite's ORDER BY does not see the columns of an outer statement.
    return (
        f"SELECT {names} FROM (SELECT {columns}, {distance} AS d "
        f"FROM {gate}{scope.from_sql()}{scope.where_sql(*criteria)}) "
        f"ORDER BY d NULLS LAST, {names} LIMIT {scope.wanted_sql}"
    )


def at_most(count: str, scope: StatementScope) -> str:
    """Return a number of rows that is not known here when there is an OFFSET, kept to what vec0 returns."""
    return count if scope.offset_sql is None else f"min({count}, {MAX_K})"


def margin(dim: int) -> int:
    """Return how many bits farther than the k nearest by bits one of the k nearest may be.

    The distance in bits of two vectors at a given angle is binomial, with a standard deviation of at most
    ``sqrt(dim) / 2`` (Charikar, *Similarity estimation techniques from rounding algorithms*, STOC 2002); this is
    three of them.
    """
    return ceil(1.5 * sqrt(dim))


def with_ctes(ctes: list[str], rows: str) -> str:
    """Return a query after its CTEs."""
    return f"WITH {', '.join(ctes)} {rows}" if ctes else rows


def keys_of(index: Vec0Index, prefix: str, numbers: str) -> str:
    """Return the keys that belong to vec0 rowids."""
    if not index.has_text_key:
        return numbers
    # An index name is a plain identifier (check_identifier), so this is one too.
    return f"SELECT key FROM {prefix}{index.keys_name} WHERE number IN ({numbers})"


def reranked(scope: StatementScope, distance: str, candidates: str) -> str:
    """Return the k nearest of some keys by exact distance."""
    (key,) = (scope.process(key) for key in scope.criterion.keys)
    return exact_keys(scope, distance, f"{key} IN ({candidates})")


def whole_ties(k: int, count: int, of_list: int, first: str, source: str, constraint: str) -> str:
    """Return the vec0 rowids of the candidates for one of many vectors, of equal codes all or none.

    All in one mention of the first scan, since this runs for each of the vectors.

    Args:
        k: how many rows are wanted.
        count: how many candidates.
        of_list: how many rows the first scan returns of a list that has more.
        first: that scan, with ``number``, the distance ``d`` and ``list``.
        source: from where a second one fetches those as near as the k-th, where these were cut off.
        constraint: what that is kept to.
    """
    placed = (
        "SELECT number, d, rank() OVER (ORDER BY d) AS place, max(d) OVER (PARTITION BY list) AS last, "
        f"count(*) OVER (PARTITION BY list) >= {of_list} AS is_cut FROM ({first})"
    )
    found = (
        f"SELECT json_group_array(number) FILTER (WHERE place <= {count} AND (NOT is_cut OR d < last)) AS whole, "
        f"max(d) FILTER (WHERE place <= {k}) AS d, min(last) FILTER (WHERE is_cut) AS cut FROM ({placed})"
    )
    tied = (
        f"SELECT rowid AS number {source}{MAX_K} AND distance <= found.d{constraint} "
        "UNION ALL SELECT value FROM json_each(found.whole)"
    )
    candidates = f"CASE WHEN found.cut <= found.d THEN (SELECT json_group_array(number) FROM ({tied})) ELSE whole END"
    return f"SELECT candidate.value FROM ({found}) AS found CROSS JOIN json_each({candidates}) AS candidate"


def constraint_of(scope: StatementScope, index: Vec0Index, prefix: str) -> tuple[list[str], str]:
    """Return the CTEs and the criterion that keep vec0 to the rows that the statement's WHERE allows."""
    if not scope.filtered:
        return [], ""
    inside = as_metadata(scope, index)
    if inside is not None:
        return [], "".join(f" AND {criterion}" for criterion in inside)
    (key,) = (scope.process(key) for key in scope.criterion.keys)
    allowed = f"SELECT {key} FROM {scope.from_sql()}{scope.where_sql()}"
    if index.has_text_key:
        allowed = f"SELECT number FROM {prefix}{index.keys_name} WHERE key IN ({allowed})"
    return (
        [f"nearest_allowed(number) AS MATERIALIZED ({allowed})"],
        " AND rowid IN (SELECT number FROM nearest_allowed)",
    )


def as_metadata(scope: StatementScope, index: Vec0Index) -> list[str] | None:
    """Return the whole WHERE as constraints on vec0 metadata, or None if some of it is not such."""
    if not scope.single_table:
        return None
    by_column = {item.column.name: item for item in index.metadata}
    found = [_metadata_constraint(scope, by_column, criterion) for criterion in scope.criteria]
    return None if None in found else [constraint for constraint in found if constraint is not None]


def _metadata_constraint(
    scope: StatementScope, by_column: dict[str, Metadata], criterion: ColumnElement[bool]
) -> str | None:
    if not isinstance(criterion, BinaryExpression) or not isinstance(criterion.right, BindParameter):
        return None
    if not isinstance(criterion.left, ColumnElement) or indexed_column(criterion.left) is None:
        return None
    item = by_column.get(getattr(criterion.left, "key", None) or "")
    operator = _COMPARISONS.get(criterion.operator)
    if item is None or operator is None or getattr(item.column.type, "collation", None):
        return None
    if item.nullable and (operator != "=" or item.vec0_type == "boolean"):
        return None  # a stand-in for NULL must not satisfy the comparison
    if item.partition and operator == "!=":
        return None
    if item.vec0_type == "boolean" and operator not in ("=", "!="):
        return None
    if item.vec0_type == "text" and not item.partition and operator not in ("=", "!="):
        # sqlite-vec 0.1.9 fails at the order of a text of exactly 12 bytes, and any row may have one.
        return None
    value = scope.process(criterion.right)
    # "=" takes fractions cut off too, but the statement itself compares once more.
    if item.vec0_type == "integer" and not item.partition and operator != "=":
        value = _whole(operator, value)
    return f"{item.name} {operator} {value}"


def _whole(operator: str, value: str) -> str:
    """Return the whole number with which a comparison is true of the same ones, since vec0 cuts fractions off."""
    value = f"({value} + 0)"  # a number, if it is text
    cut = f"CAST({value} AS INTEGER)"
    match operator:
        case "<" | ">=":
            return f"{cut} + ({value} > {cut})"
        case "<=" | ">":
            return f"{cut} - ({value} < {cut})"
        case _:
            # A fraction differs from all, and this is a number that no column has.
            return f"CASE WHEN {value} = {cut} THEN {cut} ELSE {_LEAST_INTEGER} END"
