"""Locks that a transaction takes for its whole length, beyond those of the rows that it writes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Table
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import ClauseElement
from sqlalchemy.sql.expression import Executable

__all__ = ["limit_lock_wait", "lock_table"]


class lock_table(Executable, ClauseElement):  # noqa: N801
    """Wait until no other transaction has locked rows of a table, and keep others from it; reading stays free.

    Those who come later queue up behind, so that a stream of them cannot keep it waiting, as it could with FOR UPDATE.
    On SQLite a transaction that may write has that lock already.
    """

    inherit_cache = False

    def __init__(self, table: Table) -> None:
        self.table = table


class limit_lock_wait(Executable, ClauseElement):  # noqa: N801
    """Have later statements of the transaction fail that wait longer for a lock, in milliseconds."""

    inherit_cache = False

    def __init__(self, milliseconds: int) -> None:
        self.milliseconds = milliseconds


@compiles(lock_table, "postgresql")
def _lock_on_postgresql(element: lock_table, compiler: Any, **kw: Any) -> str:
    return f"LOCK TABLE {compiler.preparer.format_table(element.table)} IN EXCLUSIVE MODE"


@compiles(limit_lock_wait, "postgresql")
def _limit_on_postgresql(element: limit_lock_wait, compiler: Any, **kw: Any) -> str:
    return f"SET LOCAL lock_timeout = {element.milliseconds:d}"


@compiles(lock_table, "sqlite")
@compiles(limit_lock_wait, "sqlite")
def _nothing_on_sqlite(element: ClauseElement, compiler: Any, **kw: Any) -> str:
    return "SELECT 1"
