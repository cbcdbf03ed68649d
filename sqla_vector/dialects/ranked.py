"""How ranked rows are completed: their searches see the rows that the statement around them sees.

Alike on both databases, since all of it is SQLAlchemy's; the searches inside are compiled as ever.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Integer, Select, and_, literal_column, select, tuple_
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import BinaryExpression, ColumnElement
from sqlalchemy.sql.selectable import FromClause

from sqla_vector.exc import InvalidStatement
from sqla_vector.ranked import PLACE, RankedRows, Template, key_name, ordered_by, refers_to

__all__: list[str] = []


@compiles(RankedRows)
def _render_ranked_rows(element: RankedRows, compiler: SQLCompiler, **kw: Any) -> str:
    # Without a statement around it, or only named (FOR UPDATE OF), there is nothing to follow.
    if not compiler.stack or not kw.get("asfrom"):
        return str(compiler.visit_subquery(element, **kw))  # type: ignore[no-untyped-call]
    live = element.with_element(_completed(element, compiler))
    return str(compiler.visit_subquery(live, **kw))  # type: ignore[no-untyped-call]


def _completed(rows: RankedRows, compiler: SQLCompiler) -> Select[Any]:
    entry = compiler.stack[-1]
    stmt: Any = entry["selectable"]
    compile_state: Any = entry["compile_state"]
    own = rows._cloned_set
    shown = [source for source in compile_state._get_display_froms() if source in entry["asfrom_froms"]]
    froms = [source for source in shown if own.isdisjoint(source._cloned_set)]
    about_rows = [criterion for criterion in stmt._where_criteria if refers_to(criterion, rows)]
    criteria = [criterion for criterion in stmt._where_criteria if not refers_to(criterion, rows)]
    _check_not_correlated(criteria, [*froms, *(template.keys[0].table for template in rows.templates)])
    # With a criterion beside those that bind the two, or groups, more rows may be needed than are wanted.
    placed = [criterion for criterion in about_rows if _is_of_places(criterion)]
    plain = len(about_rows) - len(placed) == len(rows.keys)
    grouped = stmt._distinct or stmt._group_by_clauses or stmt._having_criteria
    wanted: ColumnElement[int] | None = None
    if rows.k is not None and plain and (placed or not grouped):
        wanted = literal_column(str(rows.k), Integer())
        if stmt._offset_clause is not None and not placed:
            wanted = wanted + stmt._offset_clause
    found = rows.composer.compose([_within(template, froms, criteria) for template in rows.templates], wanted)
    if wanted is not None:
        found = found.order_by(*_order(rows, found)).limit(wanted)
    if any(getattr(one["selectable"], "_for_update_arg", None) is not None for one in compiler.stack):
        # PostgreSQL locks the rows of a subquery with those of the statement, and refuses where they are grouped;
        # what a WITH has it leaves alone.
        return select(found.cte())
    return found


def _check_not_correlated(criteria: list[ColumnElement[bool]], froms: list[FromClause]) -> None:
    """Refuse a criterion on a statement further out: the searches are derived tables and CTEs, which see none of it."""
    known = {one for source in froms for one in source._from_objects}
    for criterion in criteria:
        for source in criterion._from_objects:
            if source not in known:
                raise InvalidStatement(
                    f"a criterion names {getattr(source, 'name', source)}, which is of the statement around this one: "
                    "hybrid(), best_per_group() and rerank(match_text()) cannot be correlated; "
                    "run one for each row, or take nearest() or match_text()"
                )


def _is_of_places(criterion: ColumnElement[Any]) -> bool:
    """Tell whether a criterion keeps the first rows only, for a second stage, which has its own pages."""
    return isinstance(criterion, BinaryExpression) and getattr(criterion.left, "key", None) == PLACE


def _order(rows: RankedRows, found: Select[Any]) -> list[ColumnElement[Any]]:
    columns = found.selected_columns
    by = ordered_by(rows.composer.order, columns)
    return [*by, *(columns[key_name(number)] for number in range(len(rows.keys)))]


def _within(template: Template, froms: list[FromClause], criteria: list[ColumnElement[bool]]) -> Select[Any]:
    """Return a search that finds only rows which the statement has."""
    table = template.keys[0].table
    if len(froms) == 1 and froms[0] == table:
        return template.stmt.where(*criteria)
    # By key: a row that joins repeat must count once.
    subject = template.keys[0] if len(template.keys) == 1 else tuple_(*template.keys)
    allowed = select(*template.keys).select_from(*froms).where(and_(True, *criteria)).correlate(None)
    return template.stmt.where(subject.in_(allowed))
