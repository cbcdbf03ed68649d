"""PostgreSQL with pgvector."""

from sqla_vector.dialects.postgresql import expression, index, search, text
from sqla_vector.dialects.postgresql.support import PostgreSQLSupport
from sqla_vector.types import DIALECTS

__all__ = ["expression", "index", "search", "text"]

DIALECTS["postgresql"] = PostgreSQLSupport()
