"""How the age of a row is spelled on PostgreSQL."""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from sqla_vector.recency import MAX_HALF_LIVES, HalfLife

__all__: list[str] = []


@compiles(HalfLife, "postgresql")
def _render_half_life(element: HalfLife, compiler: SQLCompiler, **kw: Any) -> str:
    kw.pop("within_columns_clause", None)
    moment, now, seconds = (compiler.process(clause, **kw) for clause in element.clauses)
    type_ = "timestamptz" if element.zoned else "timestamp"
    age = f"extract(epoch FROM (CAST({now} AS {type_}) - CAST({moment} AS {type_})))::float8"
    # greatest() and least() ignore NULL, so that a row without a date is told apart.
    lives = f"least({MAX_HALF_LIVES}, greatest(0, {age} / CAST({seconds} AS float8)))"
    return f"CASE WHEN {moment} IS NOT NULL THEN power(0.5::float8, {lives}) END"
