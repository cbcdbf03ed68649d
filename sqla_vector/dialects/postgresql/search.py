"""How nearest() is compiled for PostgreSQL.

The settings of a search travel inside the statement, as a one-time filter that runs ``set_config(..., true)``
before the scan starts.  They end with the transaction, cost no round trip, work behind a connection pooler and
without the plugin.

Two forms:

* *candidates*: the index gives candidates, an exact scan stands in when it stopped short of k, and the statement
  sorts the candidates by the exact distance.  Without filters too: row-level security hides rows, vectors can
  be unreachable in the graph (many equal or zero ones), and an iterative scan in strict order drops the rows that
  it finds too late.
* *exact*: no index, or none wanted.
"""

from __future__ import annotations

from math import ceil, sqrt
from typing import Any, Final

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnClause

from sqla_vector.dialects.postgresql.expression import operator_sql
from sqla_vector.dialects.postgresql.index import DEFAULTS, built, effective_precision, index_expression
from sqla_vector.dialects.scope import StatementScope
from sqla_vector.dialects.settings import settings_of
from sqla_vector.dialects.tuned import Knobs, knobs_of
from sqla_vector.expression import NearestCriterion
from sqla_vector.metrics import METRICS
from sqla_vector.schema import IndexSpec, VectorIndexKey, declared_index

__all__ = ["OVERSAMPLE", "default_probes", "indexed_distance"]

OVERSAMPLE: Final = {"full": 1, "half": 2, "binary": 20}
"""Candidates per wanted row that are fetched from an index of each precision."""

_DEFAULT_EF_SEARCH: Final = 40
_MAX_EF_SEARCH: Final = 1000


@compiles(NearestCriterion, "postgresql")
def _render_criterion(element: NearestCriterion, compiler: SQLCompiler, **kw: Any) -> str:
    scope = StatementScope(element, compiler, kw)
    distance = scope.process(element.distance)
    metric = element.distance.metric
    # PostgreSQL's NaN equals itself, so this excludes the undefined and, being NULL, the missing.
    defined = f"{distance} <> 'NaN'::float8" if metric.zero_is_undefined else f"{distance} IS NOT NULL"
    if element.bound is not None:
        defined = f"{defined} AND {distance} <= {scope.process(element.bound)}"
    if scope.grouped:
        return f"({defined})"
    column, query = element.distance.operands
    index = None if element.exact else declared_index(column, metric)
    if index is None:
        return f"({_among(scope, _exact(scope, distance))} AND {defined})"
    spec, key = index[1].spec, index[1]
    kind: str = key.vector_type.kind
    precision = effective_precision(spec, kind, key.dim)
    knobs = knobs_of(element, index[0], built(key), compiler.preparer, settings_of(compiler.dialect))
    oversample = knobs.oversample or OVERSAMPLE[precision]
    gate = _settings_gate(scope, spec, oversample, knobs)
    approximate = distance
    if precision != "full":
        approximate = indexed_distance(compiler, key, scope.process(column), scope.process(query))
    candidates = _candidates(scope, gate, approximate, distance, oversample)
    if element.many:
        # There is no LIMIT for each query outside, so exactly k keys have to come from here.
        candidates = _among(scope, _exact(scope, distance, candidates))
    return f"({candidates} AND {defined})"


def indexed_distance(compiler: SQLCompiler, key: VectorIndexKey, column: str, query: str) -> str:
    """Return the distance (SQL) by which an index is ordered."""
    kind: str = key.vector_type.kind
    precision = effective_precision(key.spec, kind, key.dim)
    left, _ = index_expression(compiler, column, kind, key.dim, precision)
    right, _ = index_expression(compiler, query, kind, key.dim, precision)
    metric = METRICS["hamming"] if precision == "binary" else key.spec.metric
    return f"{left} {operator_sql(compiler, metric.postgresql_operator)} {right}"


def _keys(scope: StatementScope) -> list[str]:
    return [scope.process(key) for key in scope.criterion.keys]


def _among(scope: StatementScope, subquery: str) -> str:
    """Return the criterion that the row's key is among those of a subquery."""
    keys = _keys(scope)
    if len(keys) == 1:
        # An array, not IN: the planner then always looks the few keys up in the primary key's index.
        return f"{keys[0]} = ANY(ARRAY({subquery}))"
    return f"({', '.join(keys)}) IN ({subquery})"


def _place(scope: StatementScope) -> str:
    """Return the row's physical place.

    An indexed table has one, and within a statement it is the cheapest way back to a row.  In a partitioned
    table it is not unique; a row too many does no harm, since the statement sorts by the exact distance.
    """
    return scope.process(ColumnClause("ctid", _selectable=scope.criterion.keys[0].table))


def _exact(scope: StatementScope, distance: str, *criteria: str, result: str | None = None) -> str:
    """Return a subquery of the keys (or of another ``result``) nearest by an exact scan."""
    keys = ", ".join(_keys(scope))
    # "+ 0" makes it an expression that no vector index matches.
    return (
        f"SELECT {result or keys} FROM {scope.from_sql()}{scope.where_sql(*criteria)} "
        f"ORDER BY {distance} + 0, {keys} LIMIT {scope.wanted_sql}"
    )


def _candidates(scope: StatementScope, gate: str, approximate: str, distance: str, oversample: int) -> str:
    """Return the criterion that the row is among the nearest by the index, or by an exact scan if it gave too few."""
    keys = ", ".join(_keys(scope))
    # A row that somebody updates while FOR UPDATE waits for it moves to another place, but keeps its key.
    result = keys if scope.locked else _place(scope)
    limit = scope.wanted_sql if oversample == 1 else f"{scope.wanted_sql} * {oversample}"
    too_few = f"(SELECT count(*) FROM nearest_candidates) < {scope.wanted_sql}"
    found = (
        f"WITH nearest_candidates AS MATERIALIZED ("
        f"SELECT {result} FROM {scope.from_sql()}{scope.where_sql(gate)} "
        f"ORDER BY {approximate}, {keys} LIMIT {limit}) "
        f"SELECT * FROM nearest_candidates UNION ALL ({_exact(scope, distance, too_few, result=result)})"
    )
    return _among(scope, found) if scope.locked else f"{result} = ANY(ARRAY({found}))"


def _settings_gate(scope: StatementScope, spec: IndexSpec, oversample: int, knobs: Knobs) -> str:
    """Return a criterion that is always true and sets what the scan needs, for this transaction only."""
    criterion = scope.criterion
    settings: list[tuple[str, str]] = []
    if spec.method == "ivfflat":
        default = default_probes(spec)
        settings.append(("ivfflat.probes", _at_least("ivfflat.probes", knobs.probes, str(default))))
        settings.append(("ivfflat.iterative_scan", "'relaxed_order'"))
    else:
        wanted = criterion.k * oversample
        if knobs.ef_search is not None:
            settings.append(("hnsw.ef_search", f"'{knobs.ef_search}'"))
        elif scope.offset_sql is not None:
            number = f"least({_MAX_EF_SEARCH}, {scope.wanted_sql} * {oversample})"
            settings.append(("hnsw.ef_search", _at_least("hnsw.ef_search", None, number)))
        elif wanted > _DEFAULT_EF_SEARCH:
            number = str(min(_MAX_EF_SEARCH, wanted))
            settings.append(("hnsw.ef_search", _at_least("hnsw.ef_search", None, number)))
        # Strict order: the rows come by distance, which an incremental sort by key relies on.
        settings.append(("hnsw.iterative_scan", "'strict_order'"))
    calls = ", ".join(f"pg_catalog.set_config('{name}', {value}, true)" for name, value in settings)
    return f"(SELECT ROW({calls})) IS NOT NULL"


def default_probes(spec: IndexSpec) -> int:
    """Return how many lists are looked into if nobody says how many: pgvector's manual advises the square root."""
    return max(1, ceil(sqrt(spec.option("lists", DEFAULTS["ivfflat"]["lists"]))))


def _at_least(name: str, chosen: int | None, number: str) -> str:
    """Return a setting's value: the one chosen, else a number unless the session has a larger one."""
    if chosen is not None:
        return f"'{chosen}'"
    return f"greatest(nullif(pg_catalog.current_setting('{name}', true), '')::int, {number})::text"
