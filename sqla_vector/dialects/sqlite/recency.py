"""How the age of a row is spelled on SQLite, whose dates are texts and whose builds may lack pow()."""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from sqla_vector.recency import HalfLife

__all__: list[str] = []

_SECONDS_OF_A_DAY = 86_400


@compiles(HalfLife, "sqlite")
def _render_half_life(element: HalfLife, compiler: SQLCompiler, **kw: Any) -> str:
    kw.pop("within_columns_clause", None)
    moment, now, seconds = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"vector_half_life((julianday({now}) - julianday({moment})) * {_SECONDS_OF_A_DAY} / {seconds})"
