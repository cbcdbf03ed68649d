"""The statement around a nearest() criterion, as seen while it is compiled.

The criterion renders a subquery over the same FROM and WHERE as its statement.  It takes them from the compiler
at that moment, so criteria added after nearest(), loader criteria and inheritance criteria all take part.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from sqlalchemy import Table, and_
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import Alias, FromClause

from sqla_vector.exc import InvalidStatement
from sqla_vector.expression import NearestCriterion

__all__ = ["StatementScope"]


class StatementScope:
    """The FROM, WHERE and OFFSET of the SELECT that holds a criterion."""

    def __init__(self, criterion: NearestCriterion, compiler: SQLCompiler, kw: dict[str, Any]) -> None:
        if not compiler.stack:
            raise InvalidStatement("nearest() is a criterion of a SELECT and cannot stand alone")
        self.criterion = criterion
        self.compiler = compiler
        # Of the keyword arguments only this one may reach the parts that are rendered a second time.
        self.kw = {"literal_binds": True} if kw.get("literal_binds") else {}
        entry = compiler.stack[-1]
        self._select: Any = entry["selectable"]
        self._compile_state: Any = entry["compile_state"]
        self._displayed = entry["asfrom_froms"]
        linter = kw.get("from_linter")
        if linter is not None:
            froms = criterion._from_objects
            linter.edges.update((left, right) for left in froms for right in froms if left is not right)

    @cached_property
    def froms(self) -> list[FromClause]:
        """The FROM items to search in: those of the statement but for a table of query vectors."""
        _, query = self.criterion.distance.operands
        queries = set(query._from_objects)
        return [f for f in self._compile_state._get_display_froms() if f in self._displayed and f not in queries]

    @cached_property
    def criteria(self) -> list[ColumnElement[bool]]:
        """The statement's other WHERE criteria."""
        return [c for c in self._select._where_criteria if not isinstance(c, NearestCriterion)]

    @cached_property
    def single_table(self) -> bool:
        """Whether the statement reads nothing but the table of the vectors."""
        if len(self.froms) != 1:
            return False
        (source,) = self.froms
        while isinstance(source, Alias):
            source = source.element
        return isinstance(source, Table)

    @property
    def filtered(self) -> bool:
        """Whether some of the table's rows may not qualify."""
        return bool(self.criteria) or not self.single_table

    @property
    def locked(self) -> bool:
        """Whether rows are locked (FOR UPDATE and the like), which may wait and then see them changed."""
        return any(getattr(e["selectable"], "_for_update_arg", None) is not None for e in self.compiler.stack)

    @property
    def grouped(self) -> bool:
        """Whether rows of the result are not rows of the FROM (DISTINCT, GROUP BY)."""
        select = self._select
        return bool(select._distinct or select._group_by_clauses or select._having_criteria)

    def process(self, element: Any) -> str:
        """Render an element."""
        return self.compiler.process(element, **self.kw)

    def from_sql(self) -> str:
        """Return the FROM list."""
        return ", ".join(self.compiler.process(f, asfrom=True, **self.kw) for f in self.froms)

    def where_sql(self, *more: str) -> str:
        """Return " WHERE ..." of the statement's other criteria and of more SQL, or nothing."""
        parts = [f"({self.process(and_(*self.criteria))})"] if self.criteria else []
        parts.extend(more)
        return f" WHERE {' AND '.join(parts)}" if parts else ""

    @cached_property
    def offset_sql(self) -> str | None:
        """Return the statement's OFFSET, or None."""
        clause = self._select._offset_clause
        return None if clause is None or self.criterion.many else self.process(clause)

    @property
    def wanted_sql(self) -> str:
        """Return how many rows are needed: k, and those that OFFSET skips."""
        k = self.criterion.k
        return str(k) if self.offset_sql is None else f"({k} + {self.offset_sql})"
