"""How vector types are stored on SQLite: blobs under a declared type name, so that reflection finds the dimension."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import Table
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles

from sqla_vector.dialects.vector_type import DialectVector
from sqla_vector.exc import PluginMissing

__all__ = ["PLUGIN_HINT", "SQLiteVector"]

PLUGIN_HINT = (
    "SQLite needs sqla_vector's functions on its connections: "
    'create_engine(url, plugins=["sqla_vector"]), or sqla_vector.attach(engine)'
)


class SQLiteVector(DialectVector):
    """A vector type on SQLite."""

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        coerce, to_blob = self._codec.coerce, self._codec.to_blob
        names, settings = self._names, self._settings

        def process(value: Any) -> Any:
            if not settings.attached:
                raise PluginMissing(PLUGIN_HINT)
            return None if value is None else to_blob(coerce(value, names))

        return process

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        from_blob = self._codec.from_blob

        def process(value: Any) -> Any:
            return None if value is None else from_blob(value)

        return process

    def literal_processor(self, dialect: Dialect) -> Callable[[Any], str]:
        codec, names = self._codec, self._names

        def process(value: Any) -> str:
            return f"X'{codec.to_blob(codec.coerce(value, names)).hex()}'"

        return process


@compiles(SQLiteVector)
def _render_type(type_: SQLiteVector, compiler: Any, **kw: Any) -> str:
    table = getattr(kw.get("type_expression"), "table", None)
    if isinstance(table, Table) and table.kwargs.get("sqlite_strict"):
        return "BLOB"  # a STRICT table takes only SQLite's own type names
    return type_.get_col_spec()
