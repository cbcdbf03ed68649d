"""SQLite with sqlite-vec, or with numpy functions where no extension can be loaded."""

from sqla_vector.dialects.sqlite import expression, index, recency, search, text
from sqla_vector.dialects.sqlite.support import SQLiteSupport
from sqla_vector.types import DIALECTS

__all__ = ["expression", "index", "recency", "search", "text"]

DIALECTS["sqlite"] = SQLiteSupport()
