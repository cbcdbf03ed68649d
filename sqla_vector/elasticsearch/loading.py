"""The rows of the documents that were found, in one query, with the distances that the database computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

__all__ = ["Row", "loader"]

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
    own = [number for number, knn in enumerate(knns) if knn.is_own]
    distances = [
        distance(knns[n].spec.attribute, knns[n].given, knns[n].spec.metric).label(f"distance_{n}") for n in own
    ]
    stmt = select(index.mapper.class_, *target.key_attributes, *distances).options(*options)
    width = len(target.key_attributes)

    def load(session: Session) -> dict[str, Row]:
        connection = session.connection(bind_arguments={"mapper": index.mapper})
        found: dict[str, Row] = {}
        step = len(keys) if width == 1 else _MOST_PARTS // width
        for start in range(0, len(keys), step or 1):
            part = keys_in(connection, target.key_attributes, keys[start : start + step])
            for row in session.execute(stmt.where(part)).unique():
                values: list[float | None] = [None] * len(knns)
                for number, value in zip(own, row[1 + width :], strict=True):
                    values[number] = None if value is None else float(value)
                found[index.document_id(row[1 : 1 + width])] = Row(row[0], tuple(values))
        return found

    return load
