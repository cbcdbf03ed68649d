"""SQLite with sqlite-vec, or with numpy functions where no extension can be loaded."""

from sqla_vector.dialects.sqlite import expression, index, search, text
from sqla_vector.dialects.sqlite.support import SQLiteSupport
from sqla_vector.types import DIALECTS

__all__ = ["expression", "index", "search", "text"]

DIALECTS["sqlite"] = SQLiteSupport()
