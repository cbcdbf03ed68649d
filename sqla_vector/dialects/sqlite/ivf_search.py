"""How nearest() is compiled for an index in lists on SQLite.

``vector_ivf_probe`` chooses the lists nearest to the query, and vec0 is asked for the nearest rows of each
(``list IN (...)``, by which SQLite calls vec0 once a list).  The statement's WHERE goes inside where it is made of vec0
metadata; else the rows of these lists are looked up and go through it.  If too few rows of the lists qualify, an exact
scan stands in, so that k rows are found whenever there are k.

vec0 compares in single precision and in its own order, so rows that are as far as the last one up to rounding come
along, and the statement sorts them by the exact distance.  A list gives one row more than is wanted: only if there are
more rows up to that distance than wanted, a second scan fetches all of them.  At reduced precision equal vectors, which
are in one list and have equal codes, are candidates together or not at all: of a list that has more rows than it gave,
those that tie with its last are left out, and a second scan fetches those that are as near as the last that is wanted.
"""

from __future__ import annotations

from typing import Final

from sqla_vector.dialects.scope import StatementScope
from sqla_vector.dialects.sqlite.index import LIST, VECTOR, Vec0Index
from sqla_vector.dialects.sqlite.ivf_statements import ListStatements
from sqla_vector.dialects.sqlite.search_parts import (
    MAX_K,
    as_metadata,
    at_most,
    exact_keys,
    keys_of,
    whole_ties,
    with_ctes,
)

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
    is_deep = inside is None or index.precision != "full"
    if is_deep and scope.criterion.many and index.has_text_key and _is_shallow(scope):
        return exact_keys(scope, distance)
    if inside is None:
        return _through_where(scope, index, prefix, distance, statements.rows_of_lists(probed))
    # vec0 refuses NULL: any vector does, since the distance of the statement is NULL then and no row qualifies.
    stored = index.quantized(f"coalesce({query}, zeroblob({index.stored_bytes}))")
    source = f"FROM {prefix}{preparer.quote(index.name)} WHERE {VECTOR} MATCH {stored} AND k = "
    inner = "".join(f" AND {criterion}" for criterion in inside)
    if scope.criterion.many:
        return _for_each(scope, index, prefix, distance, oversample, source, probed, inner)
    ctes = [f"nearest_lists AS MATERIALIZED ({probed})"]
    constraint = f" AND {LIST} IN (SELECT value FROM nearest_lists){inner}"
    wanted = scope.wanted_sql
    count = f"{wanted} + 1" if index.precision == "full" else f"{wanted} * {oversample}"
    of_list = at_most(count, scope)
    if index.precision != "full":
        share = f"{count} / max(1, min({_SHARES}, (SELECT count(*) FROM nearest_lists) / {_FAIR}))"
        of_list = f"min({MAX_K}, max({wanted} * 2, {share}))"
    if index.precision == "full":
        first = f"SELECT rowid AS number, distance AS d {source}{of_list}{constraint}"
    else:
        first = _by_lists(scope, index, "nearest_lists", source, of_list, inner)
    ctes.append(f"nearest_top AS MATERIALIZED ({first})")
    # Of equal codes vec0 computes equal distances; only between vectors there is rounding.
    up_to = _up_to(index) if index.precision == "full" else "d"
    last = f"SELECT {up_to} AS d FROM nearest_top ORDER BY nearest_top.d LIMIT 1 OFFSET {wanted} - 1"
    ctes.append(f"nearest_last AS MATERIALIZED ({last})")
    if index.precision == "full":
        up_to_last = "d <= (SELECT d FROM nearest_last)"
        tied = f"(SELECT CASE WHEN count(*) > {wanted} THEN {MAX_K} ELSE 0 END FROM nearest_top WHERE {up_to_last})"
        numbers = f"SELECT number FROM nearest_top WHERE {up_to_last}"
    else:
        whole = f"SELECT list, max(d) AS d FROM nearest_top GROUP BY list HAVING count(*) >= {of_list}"
        ctes.append(f"nearest_cut AS MATERIALIZED ({whole})")
        tied = f"CASE WHEN (SELECT min(d) FROM nearest_cut) <= (SELECT d FROM nearest_last) THEN {MAX_K} ELSE 0 END"
        numbers = (
            "SELECT number FROM nearest_top AS top LEFT JOIN nearest_cut AS cut ON cut.list = top.list "
            "WHERE (cut.d IS NULL OR top.d < cut.d) AND top.d <= coalesce("
            f"(SELECT d FROM nearest_top ORDER BY d LIMIT 1 OFFSET {count} - 1), 9e999)"
        )
    ctes.append(
        f"nearest_tied AS MATERIALIZED (SELECT rowid AS number {source}{tied} "
        f"AND distance <= (SELECT d FROM nearest_last){constraint})"
    )
    numbers += " UNION ALL SELECT number FROM nearest_tied"
    instead = [
        f"(SELECT count(*) FROM nearest_top) < {wanted}",
        f"(SELECT count(*) FROM nearest_tied) >= {MAX_K}",
    ]
    if scope.offset_sql is not None:
        instead.append(f"{wanted} >= {MAX_K}")
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
    probed: str,
    inner: str,
) -> str:
    """Return the k keys nearest to one of many vectors.

    This subquery runs for each of them, and would run a CTE again for every mention of it.
    """
    k = scope.criterion.k
    count = k + 1 if index.precision == "full" else k * oversample
    of_list = min(count, MAX_K)
    constraint = f" AND {LIST} IN ({probed}){inner}"
    first = f"SELECT rowid AS number, distance AS d {source}{of_list}{constraint}"
    if index.precision == "full":
        last = f"SELECT {_up_to(index)} FROM ({first}) ORDER BY +d LIMIT 1 OFFSET {k - 1}"
        numbers = f"SELECT rowid {source}{MAX_K} AND distance <= ({last}){constraint}"
    else:
        by_lists = _by_lists(scope, index, f"({probed})", source, str(of_list), inner)
        numbers = whole_ties(k, count, of_list, by_lists, source, constraint)
    (key,) = (scope.process(key) for key in scope.criterion.keys)
    found = exact_keys(scope, distance, f"{key} IN ({keys_of(index, prefix, numbers)})")
    return _either(scope, distance, found, f"(SELECT count(*) FROM ({first})) >= {k}")


def _by_lists(scope: StatementScope, index: Vec0Index, lists: str, source: str, of_list: str, inner: str) -> str:
    """Return the scan of some lists that tells of which each row is.

    By a join, since vec0 takes two queries for each row to tell it.
    """
    number = f"{scope.compiler.preparer.quote(index.name)}.rowid"
    joined = source.replace("FROM ", f"FROM {lists} AS listed CROSS JOIN ", 1)
    return (
        f"SELECT {number} AS number, distance AS d, listed.value AS list {joined}{of_list} "
        f"AND {LIST} = listed.value{inner}"
    )


def _either(scope: StatementScope, distance: str, found: str, enough: str) -> str:
    """Return the keys that were found if there are enough, else those of an exact scan; never both."""
    gated = f"SELECT * FROM ({found}) WHERE {enough}"
    return f"{gated} UNION ALL SELECT * FROM ({exact_keys(scope, distance, only_if=f'NOT {enough}')})"
