"""The rows of the documents that were found, in one query, with the distances that the database computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from sqla_vector.elasticsearch.query import KnnQuery
from sqla_vector.functions import distance
from sqla_vector.tracking.related import keys_in
from sqla_vector.tracking.targets import Key

if TYPE_CHECKING:
    from sqla_vector.elasticsearch.index import SearchIndex

__all__ = ["Row", "loader", "measurer"]

_MOST_PARTS: Final = 10_000
"""Parts of composite keys in one statement: each is a parameter, and SQLite takes 32,766."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row that the session sees."""

    entity: Any
    distances: tuple[float | None, ...]
    """To each query in turn; None where the row has no distance to it."""


def loader(
    index: SearchIndex, keys: Sequence[Key], knns: Sequence[KnnQuery], options: Sequence[Any]
) -> Callable[[Session], dict[str, Row]]:
    """Return the function of a Session that loads rows, by the ids of their documents.

    Args:
        index: the declared index.
        keys: of the rows.
        knns: to whose vectors the distances are computed, where that is the row's own vector.
        options: loader options of the query.
    """
    target = index.target
    own, distances = _distances(knns)
    stmt = select(index.mapper.class_, *target.key_attributes, *distances).options(*options)
    width = len(target.key_attributes)

    def load(session: Session) -> dict[str, Row]:
        found: dict[str, Row] = {}
        for row in _executed(session, stmt, index, keys):
            values: list[float | None] = [None] * len(knns)
            for number, value in zip(own, row[1 + width :], strict=True):
                values[number] = None if value is None else float(value)
            found[index.document_id(row[1 : 1 + width])] = Row(row[0], tuple(values))
        return found

    return load


def measurer(
    index: SearchIndex, keys: Sequence[Key], knns: Sequence[KnnQuery]
) -> Callable[[Session], dict[str, tuple[float | None, ...]]]:
    """Return the function of a Session that computes distances, by the ids of documents, and loads nothing.

    Args:
        index: the declared index.
        keys: of the rows.
        knns: to whose vectors, all of which are the rows' own.
    """
    target = index.target
    width = len(target.key_attributes)
    stmt = select(*target.key_attributes, *_distances(knns)[1])

    def measure(session: Session) -> dict[str, tuple[float | None, ...]]:
        return {
            index.document_id(row[:width]): tuple(None if value is None else float(value) for value in row[width:])
            for row in _executed(session, stmt, index, keys)
        }

    return measure


def _distances(knns: Sequence[KnnQuery]) -> tuple[list[int], list[Any]]:
    """Return which queries are of the row's own vector, and the distances to them as columns."""
    own = [number for number, knn in enumerate(knns) if knn.is_own]
    return own, [
        distance(knns[n].spec.attribute, knns[n].given, knns[n].spec.metric).label(f"distance_{n}") for n in own
    ]


def _executed(session: Session, stmt: Any, index: SearchIndex, keys: Sequence[Key]) -> Iterator[Any]:
    attributes = index.target.key_attributes
    connection = session.connection(bind_arguments={"mapper": index.mapper})
    step = len(keys) if len(attributes) == 1 else _MOST_PARTS // len(attributes)
    for start in range(0, len(keys), step or 1):
        part = keys_in(connection, attributes, keys[start : start + step])
        yield from session.execute(stmt.where(part)).unique()
