"""The number that a table's counting key gave out last, rows that are gone included."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Table, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

__all__ = ["last_number"]


class last_number(FunctionElement[int]):  # noqa: N801
    """The number given out last by the primary key of a table; NULL before the first one."""

    type = BigInteger()
    inherit_cache = False  # the statement has the table's name in it

    def __init__(self, table: Table) -> None:
        super().__init__()
        self.table = table


@compiles(last_number, "postgresql")
def _postgresql(element: last_number, compiler: Any, **kw: Any) -> str:
    (key,) = element.table.primary_key.columns
    # The first name is parsed as an identifier, the second is not.
    table = compiler.process(literal(compiler.preparer.format_table(element.table)), **kw)
    column = compiler.process(literal(key.name), **kw)
    sequence = f"pg_catalog.pg_get_serial_sequence(CAST({table} AS text), CAST({column} AS text))"
    return f"pg_catalog.pg_sequence_last_value(CAST({sequence} AS pg_catalog.regclass))"


@compiles(last_number, "sqlite")
def _sqlite(element: last_number, compiler: Any, **kw: Any) -> str:
    table = element.table
    counters = "sqlite_sequence" if table.schema is None else f"{compiler.preparer.quote(table.schema)}.sqlite_sequence"
    return f"(SELECT seq FROM {counters} WHERE name = {compiler.process(literal(table.name), **kw)})"
