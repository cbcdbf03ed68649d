"""The index that is meant, found by its column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Index, func, select
from sqlalchemy.engine import Connection

from sqla_vector.dialects.tuning import TuningSupport
from sqla_vector.engine import connection_of
from sqla_vector.exc import IndexNotUsable, InvalidOption
from sqla_vector.expression import vector_type_of
from sqla_vector.metrics import default_metric, resolve_metric
from sqla_vector.schema import VectorIndexKey, declared_metrics, indexed_column, vector_indexes
from sqla_vector.types import support_of

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

__all__ = ["Searched", "count_vectors", "declared_on", "searched", "searched_column", "support_for"]


@dataclass(frozen=True)
class Searched:
    """What is searched: a column of a table, by a metric."""

    column: Column[Any]
    metric: str
    indexes: tuple[tuple[Index, VectorIndexKey], ...]
    """What is declared on it for the metric, the most precise first, which is the one that serves."""

    @property
    def name(self) -> str:
        """Its name for messages."""
        return f"{self.column.table.name}.{self.column.name}"

    def index(self) -> tuple[Index, VectorIndexKey]:
        """Return the index that serves.

        Raises:
            IndexNotUsable: none is declared.
        """
        if not self.indexes:
            raise IndexNotUsable(
                f"{self.name} has no vector index for {self.metric}, so its searches are exact; declare one: "
                f'vector_index(..., metric="{self.metric}")'
            )
        return self.indexes[0]


def searched(column: Any, metric: str | None = None) -> Searched:
    """Return what a search of a column would search.

    Raises:
        InvalidOption: it is no vector column of a table, or has indexes for several metrics and none was chosen.
        UnsupportedMetric: its type has no such metric.
    """
    element, type_ = vector_type_of(column)
    found = searched_column(column)
    if metric is None:
        declared = declared_metrics(element)
        if len(declared) > 1:
            raise InvalidOption(f"{type_.column_name} has indexes for {' and '.join(declared)}; say metric=...")
        name = declared[0] if declared else default_metric(type_.kind).name
    else:
        name = resolve_metric(metric, type_.kind, type_.column_name).name
    indexes = tuple((i, k) for i, k in declared_on(found) if k.spec.metric_name == name)
    return Searched(found, name, indexes)


def searched_column(column: Any) -> Column[Any]:
    """Return the column of a table that is meant by an attribute, or by that of an alias.

    Raises:
        InvalidOption: it is none.
    """
    element, _ = vector_type_of(column)
    found = indexed_column(element)
    if found is None:
        raise InvalidOption(f"{element} is no column of a table, so no index can serve it")
    return found


def declared_on(column: Column[Any]) -> list[tuple[Index, VectorIndexKey]]:
    """Return the vector indexes of a column, the most precise first."""
    return [(index, key) for index, key in vector_indexes(column.table) if key.column is column]


def support_for(session: Session | Connection, for_async: str) -> tuple[Connection, TuningSupport]:
    """Return the connection of a session, and what its database provides.

    Raises:
        InvalidOption: it is no Session or Connection, or of another database.
    """
    connection = connection_of(session, for_async)
    support: TuningSupport = support_of(connection.dialect).tuning()
    return connection, support


def count_vectors(connection: Connection, column: Column[Any]) -> int:
    """Return how many rows have a vector."""
    stmt = select(func.count()).select_from(column.table).where(column.is_not(None))
    return int(connection.scalar(stmt) or 0)
