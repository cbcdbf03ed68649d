"""Which index serves a statement: PostgreSQL's EXPLAIN."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Select, text
from sqlalchemy.engine import Connection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.sql.expression import Executable

from sqla_vector.dialects.postgresql.index import MAX_INDEXED, effective_precision
from sqla_vector.expression import NearestCriterion
from sqla_vector.schema import VectorIndexKey, is_small

__all__ = ["explain", "served_by", "why_unused"]


class Explain(Executable, ClauseElement):
    """EXPLAIN of a statement."""

    inherit_cache = False

    def __init__(self, stmt: Select[Any], *, as_json: bool) -> None:
        self.stmt = stmt
        self.as_json = as_json


@compiles(Explain, "postgresql")
def _render_explain(element: Explain, compiler: SQLCompiler, **kw: Any) -> str:
    rendered = compiler.process(element.stmt, **kw)
    # The result is EXPLAIN's, whatever columns the statement selects.
    compiler._result_columns = []
    return f"EXPLAIN {'(FORMAT JSON) ' if element.as_json else ''}{rendered}"


def explain(connection: Connection, stmt: Select[Any]) -> tuple[set[str], str]:
    """Return the names of the indexes that give rows by distance, and the plan as text."""
    found = connection.execute(Explain(stmt, as_json=True)).scalar_one()
    nodes = _nodes(json.loads(found) if isinstance(found, str) else found)
    used = {node["Index Name"] for node in nodes if "Index Name" in node and "Order By" in node}
    plan = "\n".join(connection.execute(Explain(stmt, as_json=False)).scalars())
    return used, plan


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, list):
        for part in tree:
            yield from _nodes(part)
    elif isinstance(tree, dict):
        yield tree
        for part in tree.values():
            yield from _nodes(part)


def served_by(key: VectorIndexKey) -> tuple[str, str]:
    """Return the method and precision that a declared index has here."""
    method = "ivfflat" if key.spec.method == "ivfflat" else "hnsw"
    return method, effective_precision(key.spec, key.vector_type.kind, key.dim)


def why_unused(connection: Connection, name: str, key: VectorIndexKey, criterion: NearestCriterion | None) -> str:
    """Return why a declared index is not in the plan."""
    _, precision = served_by(key)
    kind = {"half": "halfvec", "binary": "bit"}.get(precision, key.vector_type.kind)
    if key.dim > MAX_INDEXED[kind]:
        return f"{name} cannot exist: pgvector indexes at most {MAX_INDEXED[kind]:,} dimensions of {kind}"
    schema = key.column.table.schema
    exists = connection.scalar(
        text(
            "SELECT i.indisvalid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid"
            " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
            " WHERE c.relname = :name AND n.nspname = coalesce(CAST(:schema AS text), current_schema())"
        ),
        {"name": name, "schema": schema},
    )
    if exists is None:
        return f"{name} is declared but does not exist in the database; create it (index.create(), or a migration)"
    if not exists:
        return f"{name} is INVALID, its build was interrupted; drop it and create it again"
    if criterion is None and precision != "full":
        return f"{name} has {precision} precision, which only nearest() can use: it sorts again by the exact distance"
    if is_small(connection, key.column.table):
        return f"{name} exists; the planner found an exact scan cheaper, the table being small"
    return (
        f"{name} exists; the planner found another way cheaper: a selective filter, no LIMIT, or old statistics "
        "(run ANALYZE)"
    )
