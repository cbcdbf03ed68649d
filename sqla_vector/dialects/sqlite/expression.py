"""How distances and vector functions are spelled on SQLite.

sqlite-vec's functions refuse NULL; here a NULL vector gives NULL, as on PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnElement

from sqla_vector.expression import Distance, VectorFunction, VectorParameter

__all__ = ["distance_sql"]

_FUNCTIONS: Final = {
    "add": "vector_add",
    "sub": "vector_sub",
    "mul": "vector_mul",
    "concat": "vector_concat",
    "l2_norm": "vector_l2_norm",
    "l2_normalize": "vector_l2_normalize",
    "vector_dims": "vec_length",
    "binary_quantize": "vector_binary_quantize",
}

_AGGREGATES: Final = {"avg": "vector_avg", "sum": "vector_sum"}


def _unless_null(call: str, operands: Iterable[tuple[ColumnElement[Any], str]]) -> str:
    nullable = [sql for element, sql in operands if not isinstance(element, VectorParameter)]
    if not nullable:
        return call
    return f"CASE WHEN {' AND '.join(f'{sql} IS NOT NULL' for sql in nullable)} THEN {call} END"


def distance_sql(element: Distance, left: str, right: str) -> str:
    """Return the distance function's call on two operands in SQL."""
    metric = element.metric
    if element.kind == "sparsevec":
        return f"vector_sparse_{metric.name}_distance({left}, {right})"
    if metric.name == "hamming":
        return f"{metric.sqlite_function}(vec_bit({left}), vec_bit({right}))"
    call = f"{metric.sqlite_function}({left}, {right})"
    # Rounding takes sqlite-vec's cosine distance a little below 0, and a similarity above 1; pgvector clamps too.
    return f"max({call}, 0.0)" if metric.name == "cosine" else call


@compiles(Distance, "sqlite")
def _render_distance(element: Distance, compiler: SQLCompiler, **kw: Any) -> str:
    kw.pop("within_columns_clause", None)
    rendered = [(operand, compiler.process(operand, **kw)) for operand in element.operands]
    return _unless_null(distance_sql(element, rendered[0][1], rendered[1][1]), rendered)


@compiles(VectorFunction, "sqlite")
def _render_function(element: VectorFunction, compiler: SQLCompiler, **kw: Any) -> str:
    kw.pop("within_columns_clause", None)
    operation = element.operation
    rendered = [(clause, compiler.process(clause, **kw)) for clause in element.clauses]
    arguments = [sql for _, sql in rendered]
    if operation in _AGGREGATES:
        return f"{_AGGREGATES[operation]}({arguments[0]})"
    if operation == "subvector":
        vector, start, count = arguments
        return _unless_null(f"vec_slice({vector}, {start} - 1, {start} - 1 + {count})", rendered[:1])
    name = _FUNCTIONS[operation]
    if element.kind == "sparsevec":
        name = name.replace("vector_", "vector_sparse_")
    return _unless_null(f"{name}({', '.join(arguments)})", rendered)
