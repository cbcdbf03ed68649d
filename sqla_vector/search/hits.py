"""Results of a search as objects with distance, similarity and source text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy import Select
from sqlalchemy.inspection import inspect
from sqlalchemy.sql.elements import ColumnElement

from sqla_vector.expression import NearestCriterion, vector_type_of
from sqla_vector.search.nearest import criterion_of

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

__all__ = ["Hit", "asearch", "search"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Hit(Generic[T]):
    """One row that :func:`search` found."""

    entity: T
    """The first thing the statement selects: an object, or a column's value."""
    distance: float
    similarity: float
    """Larger is more similar; see :mod:`sqla_vector.metrics`."""
    text: str | None
    """The source text, where the vector column declares it: ``mapped_column(..., info={"source": ("title",)})``."""
    row: Any
    """The whole result row."""


def search(session: Session, stmt: Select[Any]) -> list[Hit[Any]]:
    """Run a statement made by :func:`nearest` and return its rows as hits, nearest first.

    Raises:
        InvalidStatement: the statement was not made by :func:`nearest` or :func:`nearest_to`.
    """
    criterion = criterion_of(stmt)
    return [_hit(row, criterion) for row in session.execute(stmt).unique()]


async def asearch(session: AsyncSession, stmt: Select[Any]) -> list[Hit[Any]]:
    """Return the same as :func:`search`, on an AsyncSession."""
    # In a greenlet as a whole: the source text may be that of a related row, which is loaded then.
    return await session.run_sync(search, stmt)


def _hit(row: Any, criterion: NearestCriterion) -> Hit[Any]:
    column, type_ = vector_type_of(criterion.distance.operands[0])
    distance = float(row.distance)
    similarity = criterion.distance.metric.similarity(distance, type_.dim or 1)
    return Hit(row[0], distance, similarity, _source_text(row[0], column), row)


def _source_text(entity: object, column: ColumnElement[Any]) -> str | None:
    state = inspect(entity, raiseerr=False)
    if state is None:
        return None
    # The column of an alias has no info, and an entity that is joined to the vector's has not its attributes.
    tables = state.mapper.tables
    source = next((base.info.get("source") for base in column.base_columns if base.table in tables), None)
    if source is None:
        return None
    if callable(source):
        text = source(entity)
        return None if text is None else str(text)
    names = (source,) if isinstance(source, str) else source
    return "\n\n".join(str(part) for name in names if (part := getattr(entity, name, None)) is not None)
