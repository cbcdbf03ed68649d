"""How nearest() is compiled for SQLite.

With a vec0 table: a subquery asks vec0 for the k nearest (``MATCH ... AND k = ...``, which vec0 needs instead of
LIMIT), with the statement's WHERE inside, either as constraints on vec0 metadata or as ``rowid IN (...)``; the
statement then sorts these few rows by the exact distance.  vec0 breaks ties arbitrarily, so one row more is asked
for, and only if it ties with the last that is wanted a second scan fetches all rows up to that distance; should these
be more than vec0 returns, an exact scan decides.  At reduced precision codes tie, far more often than vectors, and
what must hold is that of equal vectors, which have equal codes, all are candidates or none is.  So candidates that tie
with the row that is one too many are left out, and only if fewer than wanted would remain is there a second scan.

With an index in lists: see :mod:`sqla_vector.dialects.sqlite.ivf_search`.

Without: an exact scan.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import IdentifierPreparer, SQLCompiler

from sqla_vector.dialects.scope import StatementScope
from sqla_vector.dialects.settings import Settings, settings_of
from sqla_vector.dialects.sqlite.index import VECTOR, Vec0Index, exists, is_in_lists, vec0_index
from sqla_vector.dialects.sqlite.ivf_search import from_lists
from sqla_vector.dialects.sqlite.search_parts import (
    MAX_K,
    at_most,
    constraint_of,
    exact_keys,
    keys_of,
    margin,
    reranked,
    whole_ties,
    with_ctes,
)
from sqla_vector.dialects.tuned import NO_KNOBS, Knobs, knobs_of
from sqla_vector.expression import NearestCriterion
from sqla_vector.schema import declared_index

__all__ = ["MAX_K", "OVERSAMPLE", "exceeds", "knobs_of_vec0", "oversample_of"]

OVERSAMPLE: Final = {"full": 1, "int8": 4, "binary": 40}
"""Candidates per wanted row that are fetched from a vec0 table of each precision."""


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
    if index is None or exceeds(element, index, oversample):
        return f"({_among(scope, exact_keys(scope, distance))} AND {defined})"
    if index.in_lists:
        found = from_lists(scope, index, distance, oversample, knobs.probes)
        return f"({_among(scope, found)} AND {defined})"
    return f"({_among(scope, _from_vec0(scope, index, distance, oversample, knobs))} AND {defined})"


def knobs_of_vec0(
    element: NearestCriterion, index: Vec0Index, preparer: IdentifierPreparer, settings: Settings
) -> Knobs:
    """Return the settings of a search by a vec0 table; one that finds everything needs none for a recall."""
    if index.is_exact:
        return Knobs(element.ef_search, element.probes, element.oversample)
    return knobs_of(element, index.index, index.built, preparer, settings)


def exceeds(element: NearestCriterion, index: Vec0Index, oversample: int) -> bool:
    """Tell whether more rows are needed than one vec0 query returns; of lists each is a query."""
    return element.k * (1 if index.in_lists else oversample) >= MAX_K


def oversample_of(element: NearestCriterion, index: Vec0Index, knobs: Knobs) -> int:
    """Return how many candidates per wanted row are fetched: as many as asked for, else what vec0 can return."""
    usual = OVERSAMPLE[index.precision]
    if index.precision == "binary" and not index.in_lists and element.k * usual >= MAX_K:
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
    if index is None or not exists(index, compiler.preparer, settings):
        return None
    # By what is there: the declaration may have changed since.
    index.in_lists = is_in_lists(index, compiler.preparer, settings)
    return index


def _among(scope: StatementScope, subquery: str) -> str:
    keys = [scope.process(key) for key in scope.criterion.keys]
    subject = keys[0] if len(keys) == 1 else f"({', '.join(keys)})"
    return f"{subject} IN ({subquery})"


def _from_vec0(scope: StatementScope, index: Vec0Index, distance: str, oversample: int, knobs: Knobs) -> str:
    preparer = scope.compiler.preparer
    schema = preparer.schema_for_object(index.table)
    prefix = f"{preparer.quote_schema(schema)}." if schema else ""
    # vec0 refuses NULL, which an expression may be (a row without a vector): any vector does, since the distance
    # of the statement is NULL then and no row qualifies.
    query = scope.process(scope.criterion.distance.operands[1])
    query = index.quantized(f"coalesce({query}, zeroblob({index.stored_bytes}))")
    match = f"FROM {prefix}{preparer.quote(index.name)} WHERE {VECTOR} MATCH {query} AND k = "
    ctes, constraint = constraint_of(scope, index, prefix)
    if scope.criterion.many:
        # This subquery runs for each query vector, and would run a CTE again for every mention of it: so plainly
        # two scans, the second for the rows that tie with the last of the first.
        count = scope.criterion.k * oversample
        if index.precision == "full":
            # "+": vec0 refuses the descending order by which SQLite would look for a plain maximum.
            furthest = f"SELECT max(+distance) FROM (SELECT distance {match}{count}{constraint})"
            rows = f"SELECT rowid {match}{MAX_K} AND distance <= ({furthest}){constraint}"
        else:
            first = f"SELECT rowid AS number, distance AS d, 0 AS list {match}{count + 1}{constraint}"
            rows = whole_ties(scope.criterion.k, count, count + 1, first, match, constraint)
        return reranked(scope, distance, with_ctes(ctes, keys_of(index, prefix, rows)))
    wanted = scope.wanted_sql
    # The number of rows is not known here when there is an OFFSET; past vec0's limit the exact branch serves.
    count_sql = f"{wanted} * {oversample} + 1" if oversample > 1 else f"{wanted} + 1"
    limited = at_most(count_sql, scope)
    if index.precision == "binary" and knobs.oversample is None:
        # vec0's time grows with k times the rows.  A first scan for the k nearest by bits gives a distance, and a
        # second only looks at the rows a margin beyond it.
        nearest_bits = f"SELECT max(+distance) FROM (SELECT distance {match}{at_most(wanted, scope)}{constraint})"
        limited += f" AND distance <= ({nearest_bits}) + {margin(index.key.dim)}"
    ctes.append(f"nearest_top AS MATERIALIZED (SELECT rowid AS number, distance AS d {match}{limited}{constraint})")
    # The row that is one too many, if there is one, and whether too few are nearer than it.
    nearer = f"(SELECT count(*) FROM nearest_top WHERE nearest_top.d < last.d) < {wanted}"
    ctes.append(
        f"nearest_cut AS MATERIALIZED (SELECT d, {nearer} AS tied FROM (SELECT max(d) AS d FROM nearest_top) AS last "
        f"WHERE (SELECT count(*) FROM nearest_top) >= {count_sql})"
    )
    tied = f"coalesce((SELECT {MAX_K} FROM nearest_cut WHERE tied), 0)"
    ctes.append(
        f"nearest_tied AS MATERIALIZED (SELECT rowid AS number {match}{tied} "
        f"AND distance <= (SELECT d FROM nearest_cut){constraint})"
    )
    rows = "SELECT number FROM nearest_top"
    if index.precision != "full":
        rows += " WHERE d < coalesce((SELECT d FROM nearest_cut), 9e999)"
    rows += " UNION ALL SELECT number FROM nearest_tied"
    too_many = [f"(SELECT count(*) FROM nearest_tied) >= {MAX_K}"]
    if scope.offset_sql is not None:
        too_many.append(f"{count_sql} > {MAX_K}")
    rows = keys_of(index, prefix, rows)
    rows += f" UNION ALL SELECT * FROM ({exact_keys(scope, distance, only_if=' OR '.join(too_many))})"
    return with_ctes(ctes, rows)
