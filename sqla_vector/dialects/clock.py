"""The database's clock, by which leases run: clocks of several machines differ."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Double
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

__all__ = ["NOW", "database_now"]

NOW = {
    # Not now(), which is the time at which the transaction began.
    "postgresql": "extract(epoch from pg_catalog.clock_timestamp())::double precision",
    # Not unixepoch('subsec'), which SQLite before 3.42 lacks.
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
}
"""The present time in SQL, in seconds since 1970, by dialect."""


class database_now(FunctionElement[float]):  # noqa: N801
    """The present time of the database, in seconds since 1970."""

    type = Double()
    inherit_cache = True


@compiles(database_now, "postgresql")
def _postgresql(element: database_now, compiler: Any, **kw: Any) -> str:
    return NOW["postgresql"]


@compiles(database_now, "sqlite")
def _sqlite(element: database_now, compiler: Any, **kw: Any) -> str:
    return NOW["sqlite"]
