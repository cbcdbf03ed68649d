"""How nearest() is compiled for an index in lists on SQLite.

``vector_ivf_probe`` chooses the lists nearest to the query, and vec0 is asked for the nearest rows of each
(``list IN (...)``, by which SQLite calls vec0 once a list).  The statement's WHERE goes inside where it is made of vec0
metadata; else the rows of these lists are looked up and go through it.  If too few rows of the lists qualify, an exact
scan stands in, so that k rows are found whenever there are k.

vec0 compares in single precision and in its own order, so rows that are as far as the last one up to rounding come
along, and the statement sorts them by the exact distance.  A list gives one row more than is wanted: only if there are
more rows up to that distance than wanted, a second scan fetches all of them.
"""

from __future__ import annotations

from typing import Final

from sqla_vector.dialects.scope import StatementScope
from sqla_vector.dialects.sqlite.index import LIST, VECTOR, Vec0Index
from sqla_vector.dialects.sqlite.ivf_statements import ListStatements
from sqla_vector.dialects.sqlite.search_parts import MAX_K, as_metadata, at_most, exact_keys, keys_of, with_ctes

__all__ = ["from_lists"]

_FAIR: Final = 4
_SHARES: Final = 16
"""One list of many gives at most this part of all candidates, or so many times an equal share if that is more.

vec0 takes its time for each row that it returns.
"""

_UP_TO: Final = "d * 1.000001"
_UP_TO_NORMALIZED: Final = "d + 5e-7 / max(d, 5e-4)"
"""How far vectors may seem in single precision that are as far as one at a distance.

For cosine the rounding is that of the products of vectors of length 1, and d² / 2 is the distance.
"""


def from_lists(scope: StatementScope, index: Vec0Index, distance: str, oversample: int, probes: int | None) -> str:
    """Return the subquery of the keys nearest by an index in lists."""
    preparer = scope.compiler.preparer
    schema = preparer.schema_for_object(index.table)
    prefix = f"{preparer.quote_schema(schema)}." if schema else ""
    statements = ListStatements(index, prefix, preparer.quote)
    query = scope.process(scope.criterion.distance.operands[1])
    probed = f"SELECT value FROM json_each({statements.probed(query, probes)})"
    inside = as_metadata(scope, index) if scope.filtered else []
    if inside is None:
        if scope.criterion.many and index.has_text_key and _is_shallow(scope):
            return exact_keys(scope, distance)
        return _through_where(scope, index, prefix, distance, statements.rows_of_lists(probed))
    # vec0 refuses NULL: any vector does, since the distance of the statement is NULL then and no row qualifies.
    stored = index.quantized(f"coalesce({query}, zeroblob({index.stored_bytes}))")
    source = f"FROM {prefix}{preparer.quote(index.name)} WHERE {VECTOR} MATCH {stored} AND k = "
    inner = "".join(f" AND {criterion}" for criterion in inside)
    if scope.criterion.many:
        constraint = f" AND {LIST} IN ({probed}){inner}"
        return _for_each(scope, index, prefix, distance, oversample, source, constraint)
    ctes = [f"nearest_lists AS MATERIALIZED ({probed})"]
    constraint = f" AND {LIST} IN (SELECT value FROM nearest_lists){inner}"
    wanted = scope.wanted_sql
    count = f"{wanted} + 1" if index.precision == "full" else f"{wanted} * {oversample}"
    of_list = at_most(count, scope)
    if index.precision != "full":
        share = f"{count} / max(1, min({_SHARES}, (SELECT count(*) FROM nearest_lists) / {_FAIR}))"
        of_list = f"min({MAX_K}, max({wanted} * 2, {share}))"
    first = f"SELECT rowid AS number, distance AS d {source}{of_list}{constraint}"
    ctes.append(f"nearest_top AS MATERIALIZED ({first})")
    instead = [f"(SELECT count(*) FROM nearest_top) < {wanted}"]
    if scope.offset_sql is not None:
        instead.append(f"{wanted} >= {MAX_K}")
    if index.precision == "full":
        ctes.append(
            "nearest_last AS MATERIALIZED "
            f"(SELECT {_up_to(index)} AS d FROM nearest_top ORDER BY nearest_top.d LIMIT 1 OFFSET {wanted} - 1)"
        )
        up_to_last = "d <= (SELECT d FROM nearest_last)"
        tied = f"(SELECT CASE WHEN count(*) > {wanted} THEN {MAX_K} ELSE 0 END FROM nearest_top WHERE {up_to_last})"
        ctes.append(
            f"nearest_tied AS MATERIALIZED (SELECT rowid AS number {source}{tied} "
            f"AND distance <= (SELECT d FROM nearest_last){constraint})"
        )
        numbers = f"SELECT number FROM nearest_top WHERE {up_to_last} UNION ALL SELECT number FROM nearest_tied"
        instead.append(f"(SELECT count(*) FROM nearest_tied) >= {MAX_K}")
    else:
        numbers = f"SELECT number FROM (SELECT number FROM nearest_top ORDER BY d, number LIMIT {count})"
    rows = keys_of(index, prefix, numbers)
    rows += f" UNION ALL SELECT * FROM ({exact_keys(scope, distance, only_if=' OR '.join(instead))})"
    return with_ctes(ctes, rows)


def _is_shallow(scope: StatementScope) -> bool:
    """Tell whether SQLite's parser refuses what is nested too deeply, as it does before 3.46."""
    return getattr(scope.compiler.dialect.dbapi, "sqlite_version_info", (3, 46)) < (3, 46)


def _up_to(index: Vec0Index) -> str:
    return _UP_TO_NORMALIZED if index.is_normalized else _UP_TO


def _through_where(scope: StatementScope, index: Vec0Index, prefix: str, distance: str, rows_of_lists: str) -> str:
    """Return the keys of the nearest rows of the lists that the statement's WHERE lets through, by exact distance."""
    (key,) = (scope.process(key) for key in scope.criterion.keys)
    listed = f"{key} IN ({keys_of(index, prefix, rows_of_lists)})"
    found = exact_keys(scope, distance, listed)
    wanted = scope.wanted_sql
    if scope.criterion.many:
        enough = f"(SELECT count(*) FROM ({found})) >= {wanted}"
        return _either(scope, distance, found, enough)
    ctes = [f"nearest_found AS MATERIALIZED ({found})"]
    instead = exact_keys(scope, distance, only_if=f"(SELECT count(*) FROM nearest_found) < {wanted}")
    return with_ctes(ctes, f"SELECT * FROM nearest_found UNION ALL SELECT * FROM ({instead})")


def _for_each(
    scope: StatementScope,
    index: Vec0Index,
    prefix: str,
    distance: str,
    oversample: int,
    source: str,
    constraint: str,
) -> str:
    """Return the k keys nearest to one of many vectors.

    This subquery runs for each of them, and would run a CTE again for every mention of it.
    """
    k = scope.criterion.k
    count = k + 1 if index.precision == "full" else k * oversample
    first = f"SELECT rowid AS number, distance AS d {source}{min(count, MAX_K)}{constraint}"
    if index.precision == "full":
        last = f"SELECT {_up_to(index)} FROM ({first}) ORDER BY +d LIMIT 1 OFFSET {k - 1}"
        numbers = f"SELECT rowid {source}{MAX_K} AND distance <= ({last}){constraint}"
    else:
        numbers = f"SELECT number FROM ({first} ORDER BY +distance LIMIT {count})"
    (key,) = (scope.process(key) for key in scope.criterion.keys)
    found = exact_keys(scope, distance, f"{key} IN ({keys_of(index, prefix, numbers)})")
    return _either(scope, distance, found, f"(SELECT count(*) FROM ({first})) >= {k}")


def _either(scope: StatementScope, distance: str, found: str, enough: str) -> str:
    """Return the keys that were found if there are enough, else those of an exact scan; never both."""
    gated = f"SELECT * FROM ({found}) WHERE {enough}"
    return f"{gated} UNION ALL SELECT * FROM ({exact_keys(scope, distance, only_if=f'NOT {enough}')})"
