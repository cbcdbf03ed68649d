"""What the tables that stand beside an indexed one have in common, vec0 and FTS5 alike."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Integer, String, Table, UniqueConstraint

from sqla_vector.exc import IndexNotUsable

__all__ = ["single_key", "unique_constraints"]


def single_key(table: Table, what: str) -> Column[Any]:
    """Return the primary key column of a table, which numbers the rows of an index.

    Raises:
        IndexNotUsable: the key is none of one integer or text column.
    """
    columns = list(table.primary_key.columns)
    if len(columns) == 1 and isinstance(columns[0].type, (Integer, String)):
        return columns[0]
    found = ", ".join(f"{column.name} {column.type!r}" for column in columns) or "none"
    raise IndexNotUsable(
        f"{what} on SQLite needs a primary key of one integer or text column; {table.name} has {found}"
    )


def unique_constraints(table: Table) -> list[list[Column[Any]]]:
    """Return the columns of each UNIQUE constraint of a table beside its primary key."""
    found = [list(c.columns) for c in table.constraints if isinstance(c, UniqueConstraint)]
    found += [list(i.columns) for i in table.indexes if i.unique and i.columns]
    # In one order, whatever the sets gave: the same declaration is the same SQL.
    by_names = {tuple(sorted(column.name for column in columns)): columns for columns in found}
    return [sorted(by_names[names], key=lambda column: str(column.name)) for names in sorted(by_names)]
