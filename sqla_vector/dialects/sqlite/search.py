"""How nearest() is compiled for SQLite.

With a vec0 table: a subquery asks vec0 for the k nearest (``MATCH ... AND k = ...``, which vec0 needs instead of
LIMIT), with the statement's WHERE inside, either as constraints on vec0 metadata or as ``rowid IN (...)``; the
statement then sorts these few rows by the exact distance.  vec0 breaks ties arbitrarily, so one row more is asked
for, and only if it ties with the last a second scan fetches all rows up to that distance; should these be more
than vec0 returns, an exact scan decides.

Without: an exact scan.
"""

from __future__ import annotations

from math import ceil, sqrt
from typing import Any, Final

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import operators
from sqlalchemy.sql.compiler import IdentifierPreparer, SQLCompiler
from sqlalchemy.sql.elements import BinaryExpression, BindParameter, ColumnElement

from sqla_vector.dialects.scope import StatementScope
from sqla_vector.dialects.settings import Settings, settings_of
from sqla_vector.dialects.sqlite.index import VECTOR, Metadata, Vec0Index, exists, vec0_index
from sqla_vector.dialects.tuned import NO_KNOBS, Knobs, knobs_of
from sqla_vector.expression import NearestCriterion
from sqla_vector.schema import declared_index, indexed_column

__all__ = ["MAX_K", "OVERSAMPLE", "knobs_of_vec0", "oversample_of"]

MAX_K: Final = 4_096
"""The most rows that one vec0 query returns."""

OVERSAMPLE: Final = {"full": 1, "int8": 4, "binary": 40}
"""Candidates per wanted row that are fetched from a vec0 table of each precision."""

_COMPARISONS: Final = {
    operators.eq: "=",
    operators.ne: "!=",
    operators.lt: "<",
    operators.le: "<=",
    operators.gt: ">",
    operators.ge: ">=",
}


@compiles(NearestCriterion, "sqlite")
def _render_criterion(element: NearestCriterion, compiler: SQLCompiler, **kw: Any) -> str:
    scope = StatementScope(element, compiler, kw)
    distance = scope.process(element.distance)
    defined = f"{distance} IS NOT NULL"
    if element.bound is not None:
        defined = f"{defined} AND {distance} <= {scope.process(element.bound)}"
    if scope.grouped:
        return f"({defined})"
    index = None if element.exact else serving_index(element, compiler)
    knobs = (
        NO_KNOBS if index is None else knobs_of_vec0(element, index, compiler.preparer, settings_of(compiler.dialect))
    )
    oversample = 1 if index is None else oversample_of(element, index, knobs)
    if index is None or element.k * oversample >= MAX_K:
        return f"({_among(scope, _exact(scope, distance))} AND {defined})"
    return f"({_among(scope, _from_vec0(scope, index, distance, oversample, knobs))} AND {defined})"


def knobs_of_vec0(
    element: NearestCriterion, index: Vec0Index, preparer: IdentifierPreparer, settings: Settings
) -> Knobs:
    """Return the settings of a search by a vec0 table; one that finds everything needs none for a recall."""
    if index.is_exact:
        return Knobs(element.ef_search, element.probes, element.oversample)
    return knobs_of(element, index.index, index.built, preparer, settings)


def oversample_of(element: NearestCriterion, index: Vec0Index, knobs: Knobs) -> int:
    """Return how many candidates per wanted row are fetched: as many as asked for, else what vec0 can return."""
    usual = OVERSAMPLE[index.precision]
    if index.precision == "binary" and element.k * usual >= MAX_K:
        usual //= 2
    return knobs.oversample or usual


def serving_index(element: NearestCriterion, compiler: SQLCompiler) -> Vec0Index | None:
    """Return the vec0 table that exists for the criterion's column and metric, or None."""
    column = element.distance.operands[0]
    declared = declared_index(column, element.distance.metric)
    settings = settings_of(compiler.dialect)
    # A database file may have been indexed by a Python that could load sqlite-vec, and be searched by one that cannot.
    if declared is None or settings.sqlite_vec is None:
        return None
    index = vec0_index(declared[0])
    return index if index is not None and exists(index, compiler.preparer, settings) else None


def _among(scope: StatementScope, subquery: str) -> str:
    keys = [scope.process(key) for key in scope.criterion.keys]
    subject = keys[0] if len(keys) == 1 else f"({', '.join(keys)})"
    return f"{subject} IN ({subquery})"


def _exact(scope: StatementScope, distance: str, *criteria: str, only_if: str | None = None) -> str:
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


def _from_vec0(scope: StatementScope, index: Vec0Index, distance: str, oversample: int, knobs: Knobs) -> str:
    preparer = scope.compiler.preparer
    schema = preparer.schema_for_object(index.table)
    prefix = f"{preparer.quote_schema(schema)}." if schema else ""
    # vec0 refuses NULL, which an expression may be (a row without a vector): any vector does, since the distance
    # of the statement is NULL then and no row qualifies.
    query = scope.process(scope.criterion.distance.operands[1])
    query = index.quantized(f"coalesce({query}, zeroblob({index.stored_bytes}))")
    match = f"FROM {prefix}{preparer.quote(index.name)} WHERE {VECTOR} MATCH {query} AND k = "
    ctes, constraint = _constraint(scope, index, prefix)
    if scope.criterion.many:
        # This subquery runs for each query vector, and would run a CTE again for every mention of it: so plainly
        # two scans, the second for the rows that tie with the last of the first.
        count = scope.criterion.k * oversample
        rows = f"SELECT rowid {match}{count}{constraint}"
        if index.precision == "full":
            # "+": vec0 refuses the descending order by which SQLite would look for a plain maximum.
            furthest = f"SELECT max(+distance) FROM (SELECT distance {match}{count}{constraint})"
            rows = f"SELECT rowid {match}{MAX_K} AND distance <= ({furthest}){constraint}"
        return _reranked(scope, distance, _with(ctes, _by_key(index, prefix, rows)))
    wanted = scope.wanted_sql
    # The number of rows is not known here when there is an OFFSET; past vec0's limit the exact branch serves.
    count_sql = f"{wanted} * {oversample}" if oversample > 1 else f"{wanted} + 1"
    limited = _at_most(count_sql, scope)
    if index.precision == "binary" and knobs.oversample is None:
        # vec0's time grows with k times the rows.  A first scan for the k nearest by bits gives a distance, and a
        # second only looks at the rows a margin beyond it.
        nearest_bits = f"SELECT max(+distance) FROM (SELECT distance {match}{_at_most(wanted, scope)}{constraint})"
        limited += f" AND distance <= ({nearest_bits}) + {_margin(index.key.dim)}"
    ctes.append(f"nearest_top AS MATERIALIZED (SELECT rowid AS number, distance AS d {match}{limited}{constraint})")
    rows = "SELECT number FROM nearest_top"
    too_many = [] if scope.offset_sql is None else [f"{count_sql} > {MAX_K}"]
    if index.precision == "full":
        last_but_one = "SELECT d FROM nearest_top ORDER BY d DESC LIMIT 1 OFFSET 1"
        tied = (
            f"(SELECT CASE WHEN count(*) > {wanted} AND max(d) = ({last_but_one}) THEN {MAX_K} ELSE 0 END "
            "FROM nearest_top)"
        )
        ctes.append(
            f"nearest_tied AS MATERIALIZED (SELECT rowid AS number {match}{tied} "
            f"AND distance <= (SELECT max(d) FROM nearest_top){constraint})"
        )
        rows += " UNION ALL SELECT number FROM nearest_tied"
        too_many.append(f"(SELECT count(*) FROM nearest_tied) >= {MAX_K}")
    rows = _by_key(index, prefix, rows)
    if too_many:
        rows += f" UNION ALL SELECT * FROM ({_exact(scope, distance, only_if=' OR '.join(too_many))})"
    return _with(ctes, rows)


def _at_most(count: str, scope: StatementScope) -> str:
    return count if scope.offset_sql is None else f"min({count}, {MAX_K})"


def _margin(dim: int) -> int:
    """Return how many bits farther than the k nearest by bits one of the k nearest may be.

    The distance in bits of two vectors at a given angle is binomial, with a standard deviation of at most
    ``sqrt(dim) / 2`` (Charikar, *Similarity estimation techniques from rounding algorithms*, STOC 2002); this is
    three of them.
    """
    return ceil(1.5 * sqrt(dim))


def _with(ctes: list[str], rows: str) -> str:
    return f"WITH {', '.join(ctes)} {rows}" if ctes else rows


def _by_key(index: Vec0Index, prefix: str, numbers: str) -> str:
    """Return the keys that belong to vec0 rowids."""
    if not index.has_text_key:
        return numbers
    # An index name is a plain identifier (check_identifier), so this is one too.
    return f"SELECT key FROM {prefix}{index.keys_name} WHERE number IN ({numbers})"


def _reranked(scope: StatementScope, distance: str, candidates: str) -> str:
    """Return the k nearest of some keys by exact distance."""
    (key,) = (scope.process(key) for key in scope.criterion.keys)
    return _exact(scope, distance, f"{key} IN ({candidates})")


def _constraint(scope: StatementScope, index: Vec0Index, prefix: str) -> tuple[list[str], str]:
    """Return the CTEs and the criterion that keep vec0 to the rows that the statement's WHERE allows."""
    if not scope.filtered:
        return [], ""
    inside = _as_metadata(scope, index)
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


def _as_metadata(scope: StatementScope, index: Vec0Index) -> list[str] | None:
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
    return f"{item.name} {operator} {scope.process(criterion.right)}"
