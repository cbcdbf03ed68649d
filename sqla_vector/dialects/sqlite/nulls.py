"""Where NULL distances sort: last, as on PostgreSQL."""

from __future__ import annotations

from typing import Any

from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import UnaryExpression

from sqla_vector.expression import DistanceValue

__all__ = ["VectorSQLCompiler"]


class VectorSQLCompiler:
    """Mixin for the statement compiler: NULL distances sort last, as on PostgreSQL."""

    def order_by_clause(self, select: Any, **kw: Any) -> str:
        return super().order_by_clause(_NullsLast(select), **kw)  # type: ignore[misc,no-any-return]

    def visit_over(self, over: Any, **kw: Any) -> str:
        if over.order_by is not None and any(_needs_nulls_last(clause, None) for clause in over.order_by):
            over = over._clone()
            over.order_by = over.order_by._clone()
            over.order_by.clauses = [_with_nulls_placed(clause, None) for clause in over.order_by.clauses]
        return super().visit_over(over, **kw)  # type: ignore[misc,no-any-return]


class _NullsLast:
    """A select, or a union of them, as its ORDER BY is rendered."""

    def __init__(self, select: Any) -> None:
        self._order_by_clauses = tuple(_with_nulls_placed(c, select) for c in select._order_by_clauses)


def _with_nulls_placed(clause: Any, select: Any) -> Any:
    if not _needs_nulls_last(clause, select):
        return clause
    return clause.nulls_first() if _is_descending(clause) else clause.nulls_last()


def _is_descending(clause: Any) -> bool:
    while clause.__visit_name__ == "label_reference":  # around label.desc()
        clause = clause.element
    return isinstance(clause, UnaryExpression) and clause.modifier is operators.desc_op


def _needs_nulls_last(clause: Any, select: Any) -> bool:
    """Tell whether an ORDER BY item is made of a distance, without a placement of NULL chosen by the user.

    The type tells, since arithmetic, aggregates and columns of subqueries keep it.
    """
    while True:
        if isinstance(clause, UnaryExpression):
            if clause.modifier in (operators.nulls_first_op, operators.nulls_last_op):
                return False
            if clause.modifier is None:
                break
            clause = clause.element
        elif clause.__visit_name__ == "label_reference":
            clause = clause.element
        elif clause.__visit_name__ == "textual_label_reference" and select is not None:
            clause = select.selected_columns.get(clause.element)
            if clause is None:
                return False
        else:
            break
    return isinstance(getattr(clause, "type", None), DistanceValue)
