"""What a search found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqla_vector.tracking.targets import Key

if TYPE_CHECKING:
    from sqla_vector.elasticsearch.plan import Plan

__all__ = ["Bucket", "Cursor", "PartHit", "SearchHit", "SearchPage"]

T = TypeVar("T")


# Hits are not frozen: making a frozen one takes ten times as long, which shows in searches for keys alone.
@dataclass(slots=True)
class PartHit:
    """What one of several lists has of a row."""

    rank: int
    """From 1."""
    score: float
    """Elasticsearch's."""
    distance: float | None
    """Of a list of vectors."""
    similarity: float | None


@dataclass(slots=True)
class SearchHit(Generic[T]):
    """A row that was found."""

    entity: T
    """The object; None if only keys were asked for."""
    key: Key
    """The row's primary key."""
    rank: int
    """From 1, on all pages together."""
    score: float
    """Elasticsearch's, or that of the fusion of several lists; larger is better, comparable within one search only."""
    distance: float | None
    """Of the first list of vectors: the number that the database computes for the loaded row, or without one what
    follows from the score, in float32's precision.  None if that list has not the row."""
    similarity: float | None
    """Larger is more similar; see :mod:`sqla_vector.metrics`."""
    highlights: Mapping[str, list[str]]
    """Parts of the texts with the words in ``<em>``, by field; the text is escaped for HTML."""
    parts: tuple[PartHit | None, ...]
    """What each list has of the row: first that of the text, if there was one, then those of the vectors."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where the next page begins.

    It names a view of the index that the server keeps open for a while.  It is for the program that searched, and not
    to be handed out: whoever has the view's name can read all of it.
    """

    plan: Plan = field(repr=False)
    pit: str = field(repr=False)
    after: list[Any] = field(repr=False)
    found: int
    """How many rows the pages before had."""


@dataclass(frozen=True, slots=True)
class SearchPage(Generic[T]):
    """The rows of one search, or of one page of it."""

    hits: tuple[SearchHit[T], ...]
    """Best first."""
    aggregations: Mapping[str, Any]
    """Elasticsearch's answer to each aggregation, by its name."""
    dropped: tuple[str, ...]
    """The ids of documents that were found and have no row in the database, or none that this session may see, or in a
    search for one vector a row that has none any more."""
    total: int | None
    """How many documents match a text or a filter, up to 10,000; None where vectors were searched."""
    next: Cursor | None
    """The next page, if the search was ``paged`` and there is one."""

    def __iter__(self) -> Iterator[SearchHit[T]]:
        return iter(self.hits)

    def __len__(self) -> int:
        return len(self.hits)

    @property
    def entities(self) -> list[T]:
        """The objects, best first."""
        return [hit.entity for hit in self.hits]


@dataclass(frozen=True, slots=True)
class Bucket(Generic[T]):
    """The rows nearest to a vector among those with one value of a field."""

    value: Any
    count: int | None
    """How many documents have the value; None if the values were given."""
    hits: tuple[SearchHit[T], ...]
    """Nearest first."""
    dropped: tuple[str, ...]
    """As for :class:`SearchPage`."""
