"""Whether a text begins with another one, to the letter, and so that the planner can estimate how many rows do."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Boolean, String, bindparam
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement

__all__ = ["begins_with"]


class begins_with(FunctionElement[bool]):  # noqa: N801
    """Whether a column's text begins with a prefix, upper and lower case told apart, whatever the collation.

    LIKE is none of this: SQLite's knows no case.  A comparison of substrings is one of which PostgreSQL's planner
    thinks that few rows pass, so that it leaves the vector index alone; of ``^@`` it knows from statistics.
    """

    type = Boolean()
    inherit_cache = True

    def __init__(self, column: ColumnElement[Any], prefix: str) -> None:
        # In the order of code points, the first text after all those with the prefix.
        after = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        ends = (bindparam(None, text, type_=String(), unique=True) for text in (prefix, after))
        super().__init__(column, *ends)


@compiles(begins_with)
def _default(element: begins_with, compiler: Any, **kw: Any) -> str:
    column, prefix, after = (compiler.process(part, **kw) for part in element.clauses)
    return f"({column} >= {prefix} AND {column} < {after})"


@compiles(begins_with, "postgresql")
def _postgresql(element: begins_with, compiler: Any, **kw: Any) -> str:
    column, prefix = (compiler.process(part, **kw) for part in list(element.clauses)[:2])
    return f"({column} OPERATOR(pg_catalog.^@) {prefix})"
