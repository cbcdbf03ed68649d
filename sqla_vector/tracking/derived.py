"""Rows that are made of a row's text, such as its chunks, and are kept in step with it.

What declares them is registered here.  A flush brings the rows of what it writes into step at once, in the same
transaction.  Of changes that only triggers notice, and of those of related rows, a worker sees to it: their entries
name the row that has the text, in the channel of embeddings.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from weakref import WeakSet

from numpy.typing import NDArray
from sqlalchemy import Connection
from sqlalchemy.orm import InstanceState, Mapper, Session

from sqla_vector.embedding import EmbeddedColumn
from sqla_vector.tracking.mirrors import is_among
from sqla_vector.tracking.related import Dependant, Made
from sqla_vector.tracking.targets import Key, Models, Target

__all__ = ["Derived", "Difference", "declare_derived", "derived_of", "expire_again", "expire_written"]

_DECLARED: Final = "sqla_vector_derived"
_WRITTEN: Final = "sqla_vector_written"


@dataclass
class Difference:
    """What separates the rows that are made of some rows from what they should be."""

    texts: dict[str, None] = field(default_factory=dict)
    """The texts of rows that are to be added, each once."""
    errors: dict[Key, str] = field(default_factory=dict)
    """Rows of whose text nothing can be made, and why."""
    late: set[Key] = field(default_factory=set)
    """Rows that somebody is just changing."""
    changed: set[Key] = field(default_factory=set)
    """Rows of which anything is made anew, or taken away."""


class Derived(Made, Protocol):
    """Rows that are made of the text of rows."""

    @property
    def target(self) -> Target:
        """The rows that have the texts, as entries name them."""

    @property
    def rows(self) -> Target:
        """The rows that are made of them."""

    @property
    def column(self) -> EmbeddedColumn:
        """The vectors of these."""

    @property
    def watched(self) -> frozenset[str]:
        """The attributes of a row itself whose change may change its text, or its name."""

    @property
    def dependants(self) -> tuple[Dependant, ...]:
        """What has to be watched elsewhere."""

    @property
    def is_related(self) -> bool:
        """Whether the texts are made of related rows."""

    def compare(
        self, connection: Connection, keys: Sequence[Key], *, lock: bool = False, wait: bool = False
    ) -> Difference:
        """Find out what is to be done, without doing it.

        Args:
            connection: in a transaction that has the right to write.
            keys: of the rows that have the texts, also of rows that are gone.
            lock: keep others from changing these until the transaction ends, and leave out those that somebody is
                just changing, and those of whose related rows that is so.
            wait: for those that somebody is changing, instead of leaving them out; of related rows nothing is locked.
        """

    def write(
        self, connection: Connection, difference: Difference, vectors: Mapping[str, tuple[NDArray[Any], str | None]]
    ) -> list[Key]:
        """Do it, and return the keys of the rows that have a vector still to be made.

        Args:
            connection: in the transaction of the comparison.
            difference: what :meth:`compare` returned.
            vectors: those that were made, with their fingerprints, by the text.
        """

    def expire(
        self, session: Session, difference: Difference, entities: Iterable[object], gone: Collection[Key]
    ) -> None:
        """Have a session's objects read again what was written.

        Args:
            session: the session.
            difference: what was written.
            entities: its objects that have the texts.
            gone: the keys of rows that were deleted, or have another key now.
        """


def expire_written(session: Session, state: InstanceState[Any]) -> None:
    """Have an object read again what was written, and once more when that is rolled back to a savepoint."""
    session.expire(state.obj())
    session.info.setdefault(_WRITTEN, WeakSet()).add(state)


def expire_again(session: Session) -> None:
    """Have the objects read again of which something was written that may have been rolled back.

    A session does that by itself for objects that it changed within the savepoint.
    """
    for state in session.info.pop(_WRITTEN, ()):
        entity = state.obj()
        if entity is not None and entity in session:
            expire_written(session, state)


_CLASSES: WeakSet[Mapper[Any]] = WeakSet()
_lock = threading.Lock()


def declare_derived(derived: Derived, mapper: Mapper[Any]) -> None:
    """Have rows kept in step from now on with the text of a class's rows."""
    with _lock:
        kept = mapper.class_manager.info
        kept[_DECLARED] = (*kept.get(_DECLARED, ()), derived)
        _CLASSES.add(mapper)


def derived_of(models: Models | None = None) -> tuple[Derived, ...]:
    """Return what is declared for classes that are alive, and are among some models; None are all."""
    if not _CLASSES:
        return ()
    found = (
        derived
        for mapper in list(_CLASSES)
        if is_among(mapper, models)
        for derived in mapper.class_manager.info.get(_DECLARED, ())
    )
    return tuple(sorted(found, key=str))
