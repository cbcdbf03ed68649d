"""What the tables that stand beside an indexed one have in common, vec0 and FTS5 alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from sqlalchemy import Column, Integer, String, Table, UniqueConstraint
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import UnaryExpression

from sqla_vector.exc import IndexNotUsable

__all__ = ["check_table", "single_key", "unique_constraints"]

_BYTES: Final = "BINARY"
"""The collation of SQLite that tells texts apart byte by byte."""
_EXPRESSION: Final = -2
"""What SQLite says in place of the number of an index's column."""


def single_key(table: Table, what: str) -> Column[Any]:
    """Return the primary key column of a table, which numbers the rows of an index.

    Raises:
        IndexNotUsable: the key is none of one integer or text column, or has a collation.
    """
    columns = list(table.primary_key.columns)
    if len(columns) == 1 and isinstance(columns[0].type, (Integer, String)):
        collation = getattr(columns[0].type, "collation", None)
        if collation is not None and collation.upper() != _BYTES:
            raise _collated(what, table, collation)
        return columns[0]
    found = ", ".join(f"{column.name} {column.type!r}" for column in columns) or "none"
    raise IndexNotUsable(
        f"{what} on SQLite needs a primary key of one integer or text column; {table.name} has {found}"
    )


def unique_constraints(table: Table) -> list[list[Column[Any]]]:
    """Return the columns of each UNIQUE constraint of a table beside its primary key.

    Raises:
        IndexNotUsable: a unique index is on an expression, of which the columns do not tell what it takes for equal.
    """
    for index in table.indexes:
        # One with ddl_if() may be another database's; if it is in this one, check_table() finds it.
        is_here = index.unique and getattr(index, "_ddl_if", None) is None
        if is_here and not all(isinstance(_sorted_by(item), Column) for item in index.expressions):
            raise _on_an_expression(table, index.name)
    found = [list(c.columns) for c in table.constraints if isinstance(c, UniqueConstraint)]
    found += [list(i.columns) for i in table.indexes if i.unique and i.columns]
    # In one order, whatever the sets gave: the same declaration is the same SQL.
    by_names = {tuple(sorted(column.name for column in columns)): columns for columns in found}
    return [sorted(by_names[names], key=lambda column: str(column.name)) for names in sorted(by_names)]


def check_table(execute: Callable[..., Iterable[Any]], schema: str | None, table: Table, what: str) -> None:
    """Look in the database for what :func:`single_key` and :func:`unique_constraints` refuse: reflection leaves it out.

    Args:
        execute: runs SQL on a raw connection and returns its rows.
        schema: of the table.
        table: the one to be indexed.
        what: the index, and what it is.

    Raises:
        IndexNotUsable: the key has a collation, or a unique index is on an expression.
    """
    place = (table.name, schema or "main", schema or "main")
    rows = execute(
        "SELECT i.name, i.origin, c.cid, c.coll FROM pragma_index_list(?, ?) AS i "
        'JOIN pragma_index_xinfo(i.name, ?) AS c WHERE i."unique" AND c.key',
        *place,
    )
    for name, origin, number, collation in list(rows):
        if origin == "pk" and collation.upper() != _BYTES:
            raise _collated(what, table, collation)
        if number == _EXPRESSION:
            raise _on_an_expression(table, name)


def _sorted_by(item: Any) -> Any:
    """Return what an item of an index sorts by."""
    if isinstance(item, UnaryExpression) and item.modifier in (operators.asc_op, operators.desc_op):
        return item.element
    return item


def _collated(what: str, table: Table, collation: str) -> IndexNotUsable:
    return IndexNotUsable(
        f"{what} on SQLite tells keys apart byte by byte, and that of {table.name} has the collation {collation}; "
        "make another column the primary key and this one unique"
    )


def _on_an_expression(table: Table, name: object) -> IndexNotUsable:
    return IndexNotUsable(
        f"{table.name}: the unique index {name} is on an expression, by which the triggers of a vector or text index "
        "on SQLite cannot tell what INSERT OR REPLACE replaces; make it one on columns, computed ones or with a "
        "collation"
    )
