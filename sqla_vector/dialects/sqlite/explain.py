"""Which index serves a statement: SQLite's EXPLAIN QUERY PLAN."""

from __future__ import annotations

import re
from typing import Any, Final

from sqlalchemy import Select
from sqlalchemy.engine import Connection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.sql.expression import Executable

from sqla_vector.dialects.settings import settings_of
from sqla_vector.dialects.sqlite.index import exists, vec0_index
from sqla_vector.dialects.sqlite.ivf import advice_on
from sqla_vector.dialects.sqlite.search import MAX_K, exceeds, knobs_of_vec0, oversample_of
from sqla_vector.expression import NearestCriterion
from sqla_vector.schema import VectorIndexKey, vector_indexes

__all__ = ["explain", "served_by", "why_unused"]

_VEC0_SCAN: Final = re.compile(r"SCAN (?:.+\.)?([^\s.]+) VIRTUAL TABLE INDEX")
_LISTS: Final = re.compile(r"S(?:CAN|EARCH) (?:.+\.)?([^\s.]+)_chunks USING")


class ExplainQueryPlan(Executable, ClauseElement):
    """EXPLAIN QUERY PLAN of a statement."""

    inherit_cache = False

    def __init__(self, stmt: Select[Any]) -> None:
        self.stmt = stmt


@compiles(ExplainQueryPlan, "sqlite")
def _render_explain(element: ExplainQueryPlan, compiler: SQLCompiler, **kw: Any) -> str:
    rendered = compiler.process(element.stmt, **kw)
    # The result is EXPLAIN's, whatever columns the statement selects.
    compiler._result_columns = []
    return f"EXPLAIN QUERY PLAN {rendered}"


def explain(connection: Connection, stmt: Select[Any]) -> tuple[set[str], str]:
    """Return the names of the vec0 tables that are searched, and the plan as text."""
    rows = connection.execute(ExplainQueryPlan(stmt)).all()
    known = {name for _, name in settings_of(connection.dialect).vec0_tables}
    depth: dict[int, int] = {0: -1}
    lines, used = [], set()
    for number, parent, _, detail in rows:
        depth[number] = depth.get(parent, -1) + 1
        lines.append("  " * depth[number] + detail)
        found = _VEC0_SCAN.search(detail) or _LISTS.search(detail)
        if found is not None and found.group(1) in known:
            used.add(found.group(1))
    return used, "\n".join(lines + [advice for name in sorted(used) if (advice := advice_on(connection, name))])


def served_by(key: VectorIndexKey) -> tuple[str, str]:
    """Return the method and precision that a declared index has here."""
    return (
        "ivfflat" if key.spec.method == "ivfflat" else "vec0",
        "full" if key.spec.precision == "half" else key.spec.precision,
    )


def why_unused(connection: Connection, name: str, key: VectorIndexKey, criterion: NearestCriterion | None) -> str:
    """Return why a declared index is not in the plan."""
    settings = settings_of(connection.dialect)
    index = next(i for i, _ in vector_indexes(key.column.table) if i.name == name)
    vec0 = vec0_index(index)
    if vec0 is None:
        return f"{name} is declared for PostgreSQL only; vector_index() declares one for both databases"
    reason = vec0.unusable()
    if reason is not None:
        return f"{name} is not built on SQLite: {reason}"
    if settings.sqlite_vec is None:
        return f"{name} is not built: sqlite-vec is not loaded here (pip install 'sqla-vector[sqlite]')"
    if not exists(vec0, connection.dialect.identifier_preparer, settings):
        return f"{name} is declared but does not exist in the database; create it (index.create(), or a migration)"
    if criterion is None:
        return f"{name} is a vec0 table, which only nearest() can use; ORDER BY distance scans exactly"
    knobs = knobs_of_vec0(criterion, vec0, connection.dialect.identifier_preparer, settings)
    if exceeds(criterion, vec0, oversample_of(criterion, vec0, knobs)):
        return f"k is over what one vec0 query returns ({MAX_K:,} candidates), so the scan is exact"
    return f"{name} exists; DISTINCT or GROUP BY make rows that are not the table's, so the scan is exact"
