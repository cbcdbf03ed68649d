"""How distances and vector functions are spelled for pgvector."""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from sqla_vector.dialects.postgresql.types import qualified
from sqla_vector.dialects.settings import settings_of
from sqla_vector.expression import Distance, VectorFunction

__all__ = ["operator_sql"]

_OPERATORS: Final = {"add": "+", "sub": "-", "mul": "*", "concat": "||"}

_FUNCTIONS: Final = {
    # pgvector calls the length of a vector vector_norm, and that of the two other types l2_norm.
    ("l2_norm", "vector"): "vector_norm",
}


def operator_sql(compiler: Any, operator: str) -> str:
    """Return an operator of pgvector, with the extension's schema where that is needed."""
    schema = settings_of(compiler.dialect).schema
    # "<%>" is a formatting character to drivers that take parameters as %(name)s.
    operator = compiler.escape_literal_column(operator)
    return operator if schema is None else f"OPERATOR({qualified(compiler, operator)})"


@compiles(Distance, "postgresql")
def _render_distance(element: Distance, compiler: SQLCompiler, **kw: Any) -> str:
    kw.pop("within_columns_clause", None)
    left, right = (compiler.process(operand, **kw) for operand in element.operands)
    distance = f"({left} {operator_sql(compiler, element.metric.postgresql_operator)} {right})"
    # "+ 0" makes it an expression that no vector index matches.
    return f"({distance} + 0)" if element.is_unindexed else distance


@compiles(VectorFunction, "postgresql")
def _render_function(element: VectorFunction, compiler: SQLCompiler, **kw: Any) -> str:
    kw.pop("within_columns_clause", None)
    operation, kind = element.operation, element.kind
    arguments = [compiler.process(clause, **kw) for clause in element.clauses]
    if operation in _OPERATORS:
        return f"({arguments[0]} {operator_sql(compiler, _OPERATORS[operation])} {arguments[1]})"
    name = qualified(compiler, _FUNCTIONS.get((operation, kind), operation))
    call = f"{name}({', '.join(arguments)})"
    if operation == "binary_quantize":
        dim = getattr(element.type, "dim", None)
        return f"{call}::BIT({dim})" if dim is not None else call
    return call
