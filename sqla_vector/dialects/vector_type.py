"""What the vector types of the dialects have in common."""

from __future__ import annotations

from copy import copy
from typing import Any

from sqlalchemy.types import UserDefinedType

from sqla_vector.coercion import ColumnNames
from sqla_vector.dialects.settings import Settings
from sqla_vector.types import VectorComparator, column_spec
from sqla_vector.values import Codec

__all__ = ["DialectVector"]


class DialectVector(UserDefinedType[Any]):
    """A vector type as one dialect object implements it."""

    cache_ok = True
    comparator_factory = VectorComparator

    def __init__(self, kind: str, dim: int | None, codec: Codec[Any], names: ColumnNames, settings: Settings) -> None:
        super().__init__()
        self.kind = kind
        self.dim = dim
        self._codec = codec
        self._names = names
        self._settings = settings

    def adapt(self, cls: type[Any], **kw: Any) -> Any:
        # SQLAlchemy asks an implementation for a copy of itself, to keep no cycle in its cache.
        return copy(self)

    def get_col_spec(self, **kw: Any) -> str:
        return column_spec(self.kind, self.dim)
