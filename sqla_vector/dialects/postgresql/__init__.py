"""PostgreSQL with pgvector."""

from sqla_vector.dialects.postgresql import expression, index, recency, search, text
from sqla_vector.dialects.postgresql.support import PostgreSQLSupport
from sqla_vector.types import DIALECTS

__all__ = ["expression", "index", "recency", "search", "text"]

DIALECTS["postgresql"] = PostgreSQLSupport()
