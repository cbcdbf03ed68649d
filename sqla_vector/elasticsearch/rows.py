"""The rows of an index as steps: their keys, their documents, and what the outbox has of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError

from sqla_vector.elasticsearch.documents import Document
from sqla_vector.elasticsearch.index import SearchIndex
from sqla_vector.elasticsearch.sending import Patience
from sqla_vector.exc import InvalidDocument
from sqla_vector.tracking.outbox import DEAD, PENDING, draw
from sqla_vector.tracking.patience import is_of_values, said
from sqla_vector.tracking.progress import count_rows
from sqla_vector.tracking.steps import Steps, Transaction
from sqla_vector.tracking.targets import Key

__all__ = ["ALL_ROWS", "Rows"]

T = TypeVar("T")

ALL_ROWS: Final = "[]"
"""The row key of an entry that is about all rows: the table was emptied."""

_PART: Final = 500


@dataclass(frozen=True)
class Rows:
    """Reads what an index is made of.

    Args:
        index: what is declared.
        patience: for the database.
    """

    index: SearchIndex
    patience: Patience

    def _do(self, function: Callable[[Connection], T], *, to_write: bool = False) -> Steps[T]:
        def attempt() -> Steps[T]:
            result: T = yield Transaction(function, to_write=to_write)
            return result

        return (yield from self.patience.insist(attempt))

    def write(self, function: Callable[[Connection], T]) -> Steps[T]:
        """Call a function in a transaction that may write."""
        return (yield from self._do(function, to_write=True))

    def read(self, function: Callable[[Connection], T]) -> Steps[T]:
        """Call a function in a transaction that reads."""
        return (yield from self._do(function))

    def draw(self) -> Steps[int]:
        """Return the next number of the database, the version of what is read from now on."""
        return (yield from self.write(partial(draw, outbox=self.index.outbox)))

    def count(self, after: Key | None = None) -> Steps[int]:
        """Return how many rows there are, of those whose keys follow one, if that is given."""
        return (yield from self._do(partial(count_rows, target=self.index.target, after=after)))

    def after(self, key: Key | None, limit: int) -> Steps[list[Key]]:
        """Return the next keys in the order of the database."""
        return (yield from self._do(lambda connection: self.index.keys_after(connection, key, limit)))

    def documents(self, keys: Sequence[Key]) -> Steps[dict[Key, Document]]:
        """Return the documents of rows; one that cannot be read has an error, one that is not there is missing."""
        if not keys:
            return {}
        try:
            found: dict[Key, Document] = yield from self._do(lambda c: self.index.documents(c, keys))
        except Exception as error:
            if not is_of_values(error):
                raise
            if len(keys) == 1:
                why = said(error) if isinstance(error, DBAPIError) else type(error).__name__
                (key,) = keys
                return {key: Document(self.id_of(key) or "", key, {}, "", f"the row cannot be read: {why}")}
            # Halved, until it is the one that cannot be read.
            half = len(keys) // 2
            found = yield from self.documents(keys[:half])
            found |= yield from self.documents(keys[half:])
        return found

    def id_of(self, key: Key) -> str | None:
        """Return the id of a row's document, None if it cannot have one."""
        try:
            return self.index.document_id(key)
        except InvalidDocument:
            return None

    def states(self, keys: Sequence[Key]) -> Steps[dict[Key, str]]:
        """Return of which rows the outbox has an entry: the state, pending before dead."""
        if not keys:
            return {}
        found: dict[str, str] = yield from self._do(partial(self._states, keys=keys))
        everything = found.get(ALL_ROWS)
        by_key = {key: found.get(self.index.target.encode(key), everything) for key in keys}
        return {key: PENDING if everything == PENDING else state for key, state in by_key.items() if state is not None}

    def _states(self, connection: Connection, keys: Sequence[Key]) -> dict[str, str]:
        c, target = self.index.outbox.c, self.index.target
        names = [ALL_ROWS, *(target.encode(key) for key in keys)]
        found: dict[str, Any] = {}
        for start in range(0, len(names), _PART):
            own = (c.channel == target.channel, c.entity == target.entity, c.state.in_([PENDING, DEAD]))
            stmt = select(c.row_key, c.state).where(*own, c.row_key.in_(names[start : start + _PART]))
            for row_key, state in connection.execute(stmt):
                if found.get(row_key) != PENDING:
                    found[row_key] = state
        return found
