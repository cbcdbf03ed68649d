"""How much a moment counts by its age, as an SQL expression; how it is spelled is in :mod:`sqla_vector.dialects`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Float
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.sql.visitors import InternalTraversal

__all__ = ["MAX_HALF_LIVES", "HalfLife"]

MAX_HALF_LIVES = 1_000
"""What is older counts as if it were so old: 0.5 to that power is still a number that a double has."""


class HalfLife(FunctionElement[float]):
    """``0.5 ** (age / half_life)``, the age that of a moment; 1 for one that is still to come."""

    _traverse_internals = [
        *FunctionElement._traverse_internals,
        ("zoned", InternalTraversal.dp_boolean),
    ]
    name = "half_life"

    def __init__(
        self, moment: ColumnElement[Any], now: ColumnElement[Any], seconds: ColumnElement[float], zoned: bool
    ) -> None:
        self.type = Float(53)  # before FunctionElement.__init__, see Distance
        super().__init__(moment, now, seconds)
        self.zoned = zoned


@compiles(HalfLife)
def _render_as_function(element: HalfLife, compiler: SQLCompiler, **kw: Any) -> str:
    return f"half_life({compiler.process(element.clauses, **kw)})"
