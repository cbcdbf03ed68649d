"""What a dialect module provides for measuring, tuning and looking after indexes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Index
from sqlalchemy.engine import Connection

from sqla_vector.dialects.tuned import TunedIndex
from sqla_vector.schema import VectorIndexKey

__all__ = ["IndexFacts", "Knob", "ServerFacts", "TuningSupport"]


@dataclass(frozen=True)
class Knob:
    """A setting of a search that trades time for recall: the higher, the better it finds."""

    name: str
    """As ``nearest()`` calls it."""
    lowest: int
    highest: int
    usual: int
    """What is taken where nobody says."""
    beyond: str
    """What can be done when the highest value finds too little."""


@dataclass(frozen=True)
class IndexFacts:
    """What a database tells of an index."""

    bytes: int | None
    """Its size on disk; None where the database does not tell."""
    table_bytes: int | None
    """That of its table."""
    state: str
    """``ready``, ``building`` (with how far it is), ``invalid`` or ``missing``."""
    options: dict[str, int]
    """With which it was built."""
    dead: int | None
    """PostgreSQL: dead rows of the table.  SQLite: places of the index that hold no vector."""
    scans: int | None
    """How often it was used since the server's statistics were reset; None where nobody counts."""
    analyzed: str | None
    """When the planner's statistics were last gathered."""
    trained_rows: int | None = None
    """From how many rows its lists were learned, where the database keeps it."""
    advice: str | None = None
    """What to do about its lists."""


@dataclass(frozen=True)
class ServerFacts:
    """What building and keeping an index has at hand; None where that is no question."""

    maintenance_work_mem: int | None
    shared_buffers: int | None
    parallel_workers: int


class TuningSupport(Protocol):
    """What a dialect module provides for measuring, tuning and looking after indexes."""

    builds_concurrently: bool
    """Whether an index can be built anew while others write, which is outside of any transaction."""

    def built(self, index: Index, key: VectorIndexKey) -> str:
        """Return what a declared index is here, in the words of :attr:`TunedIndex.built`."""

    def knobs(self, connection: Connection, index: Index, key: VectorIndexKey, k: int) -> tuple[Knob, ...]:
        """Return what can be set for a search of k rows, in the order of tuning; nothing where the index is exact."""

    def isolated(self, connection: Connection) -> AbstractContextManager[None]:
        """Return a block after which the settings are those of before, whatever searches have set."""

    def load(self, connection: Connection) -> None:
        """Learn what was found for all indexes, and have statements compiled anew if it is something else."""

    def remembered(self, connection: Connection, index: Index) -> TunedIndex | None:
        """Return what is written beside an index."""

    def remember(self, connection: Connection, index: Index, tuned: TunedIndex | None) -> None:
        """Write what was found beside an index, or remove it; :meth:`load` has it known."""

    def facts(self, connection: Connection, index: Index, key: VectorIndexKey) -> IndexFacts:
        """Return what the database tells of an index."""

    def imbalance(
        self, connection: Connection, index: Index, key: VectorIndexKey, rows: int, samples: Sequence[Any]
    ) -> float | None:
        """Return how uneven the lists of an index are, 1 being even; None if it has none.

        Args:
            connection: to the database.
            index: which.
            key: its key.
            rows: how many it has.
            samples: vectors of rows, by which lists are looked at where the database does not tell their sizes.

        Sources:
            The imbalance factor of Jégou et al., *Searching in one billion vectors*, ICASSP 2011: the sum of the
            squared sizes, times the number of lists, by the squared number of rows.
        """

    def server(self, connection: Connection) -> ServerFacts:
        """Return what building an index has at hand."""

    def optimize(self, connection: Connection, index: Index, key: VectorIndexKey, *, concurrently: bool) -> list[str]:
        """Build an index anew and gather statistics; return what was done."""

    def vacuum(self, connection: Connection, index: Index) -> list[str]:
        """Give the space of what is gone back, outside of any transaction; return what was done."""
