"""Cutover and rollback: in one transaction every row's vector changes places with the one beside it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, Table, select, tuple_

from sqla_vector.dialects.lock import limit_lock_wait
from sqla_vector.embedding import Embedder, Model, embed
from sqla_vector.exc import InvalidOption, MigrationError
from sqla_vector.tracking.aside import Aside, Shelf
from sqla_vector.tracking.outbox import put
from sqla_vector.tracking.targets import Key
from sqla_vector.tracking.texts import RowState, Write, read, write

__all__ = ["Cutover", "NotReady", "Rollback"]

# Less than PostgreSQL's deadlock_timeout of 1,000: a program that holds a row and waits for the cutover must not be
# the one that is told of a deadlock.
_ROW_WAIT: Final = 500


class NotReady(Exception):
    """Too many rows have no vector of the new model yet."""


@dataclass
class Exchange(ABC):
    """Rows, one batch after the other, in a transaction that others' flushes and workers wait for."""

    connection: Connection
    shelf: Shelf
    model: Model
    """Whose vectors the column has at the end."""
    batch_size: int
    written: int = 0

    def run(self) -> None:
        """Exchange the vectors of all rows.

        Raises:
            MigrationError: something keeps rows from getting the model's vectors.
        """
        after: Key | None = None
        busy: list[Key] = []
        while keys := self._next_keys(after):
            found = read(self.connection, self.shelf.target, self.shelf.column, keys, lock=True, is_careful=True)
            busy += [key for key in keys if key not in found]
            self._exchange(found)
            after = keys[-1]
        self.connection.execute(limit_lock_wait(_ROW_WAIT))
        for start in range(0, len(busy), self.batch_size):
            self._exchange(self._wait_for(busy[start : start + self.batch_size]))
        self._settle()
        before: list[Key] = []
        # Rows whose keys were changed meanwhile, and what triggers of the user may have done.
        while keys := self._keys_of_others():
            if keys == before:
                listed = ", ".join(self.shelf.target.encode(key) for key in keys[:5])
                raise MigrationError(
                    f"{self.shelf.column}: the vectors of {listed} were written, and others are there; a trigger or a "
                    "policy of the table may stand in the way"
                )
            self._exchange(self._wait_for(keys))
            self._settle()
            before = keys

    def _next_keys(self, after: Key | None) -> list[Key]:
        columns = self.shelf.target.key_attributes
        stmt: Any = select(*columns).order_by(*columns).limit(self.batch_size)
        if after is not None:
            stmt = stmt.where(columns[0] > after[0] if len(after) == 1 else tuple_(*columns) > tuple_(*after))
        return [tuple(row) for row in self.connection.execute(stmt)]

    def _keys_of_others(self) -> list[Key]:
        """Return rows with vectors by other models."""
        target, column = self.shelf.target, self.shelf.column
        stored = getattr(target.mapper.class_, column.fingerprint_key)
        by_others = stored.is_not(None) & ~stored.startswith(f"{self.model}:", autoescape=True)
        stmt = select(*target.key_attributes).where(by_others).order_by(*target.key_attributes).limit(self.batch_size)
        return [tuple(row) for row in self.connection.execute(stmt)]

    def _wait_for(self, keys: Sequence[Key]) -> dict[Key, RowState]:
        return read(self.connection, self.shelf.target, self.shelf.column, keys, lock=True, wait=True, is_careful=True)

    def _write(self, rows: Sequence[Write]) -> None:
        write(self.connection, self.shelf.target, self.shelf.column, rows)
        self.written += len(rows)

    @abstractmethod
    def _exchange(self, states: Mapping[Key, RowState]) -> None:
        """Exchange the vectors of some rows, which are locked."""

    @abstractmethod
    def _settle(self) -> None:
        """See to what was left over."""


@dataclass
class Cutover(Exchange):
    """The new vectors go into the column, the old ones are kept beside it."""

    embedder: Embedder = field(kw_only=True)
    outbox: Table | None = field(kw_only=True)
    skip_failed: bool = field(kw_only=True)
    failed: dict[Key, str] = field(default_factory=dict)
    """Rows that cannot be embedded, and why."""
    _missing: dict[Key, RowState] = field(default_factory=dict)

    def _exchange(self, states: Mapping[Key, RowState]) -> None:
        beside = self.shelf.read(self.connection, list(states), vectors=True)
        made: dict[Key, Any] = {}
        needless: dict[Key, None] = {}
        for key, state in states.items():
            wanted, have = state.wanted(self.model), beside.get(key)
            if state.error is not None:
                self.failed[key] = state.error
            elif state.has(wanted):
                needless |= {key: None} if have is not None else {}
            elif wanted is None:
                made[key] = None
            elif have is None or have.fingerprint != wanted:
                self._missing[key] = state
            elif have.reason is not None:
                self.failed[key] = have.reason
            else:
                made[key] = have.vector
        self.shelf.write(self.connection, needless)
        self._put(states, made)

    def _put(self, states: Mapping[Key, RowState], made: Mapping[Key, Any]) -> None:
        old = self.shelf.in_column(self.connection, [key for key in made if states[key].has_vector])
        self._write(
            [
                Write(key, vector, None if vector is None else states[key].wanted(self.model))
                for key, vector in made.items()
            ]
        )
        kept = {key: Aside(states[key].stored, old[key]) if states[key].has_vector else None for key in made}
        self.shelf.write(self.connection, kept)

    def _settle(self) -> None:
        """Embed what was edited a moment ago, while nobody can edit it again."""
        column, missing, failed = self.shelf.column, self._missing, self.failed
        if failed and not self.skip_failed:
            listed = "; ".join(f"{self.shelf.target.encode(key)}: {why}" for key, why in list(failed.items())[:5])
            raise MigrationError(
                f"{column}: {len(failed):,} rows cannot be embedded by {self.model}, so there was no cutover; correct "
                f"them and fill() again, or give skip_failed=True, which leaves them without a vector: {listed}"
            )
        if len(missing) > self.batch_size:
            raise NotReady(f"{len(missing):,} rows were edited meanwhile")
        texts = list(dict.fromkeys(str(state.text) for state in missing.values()))
        vectors = dict(zip(texts, embed(self.embedder, texts), strict=True)) if texts else {}
        self._put(missing, {key: vectors[str(state.text)] for key, state in missing.items()})
        if failed:
            states = self._wait_for(list(failed))
            self._put(states, dict.fromkeys(states))
            if self.outbox is not None:
                entity = self.shelf.target.entity
                put(self.connection, self.outbox, [(entity, self.shelf.target.encode(key)) for key in states])
        missing.clear()
        failed.clear()


@dataclass
class Rollback(Exchange):
    """The old vectors come back; rows whose text is another now are left to the worker."""

    outbox: Table | None = field(kw_only=True)
    noted: int = 0
    """Rows that were left to the worker."""

    def _exchange(self, states: Mapping[Key, RowState]) -> None:
        beside = self.shelf.read(self.connection, list(states), vectors=True)
        writes: list[Write] = []
        stale: list[Key] = []
        for key, state in states.items():
            wanted, have = state.wanted(self.model), beside.get(key)
            if state.has(wanted):
                continue
            is_old = have is not None and (have.fingerprint or "").startswith(f"{self.model}:")
            if have is not None and is_old and (wanted is not None or state.error is not None):
                writes.append(Write(key, have.vector, have.fingerprint))
            else:
                writes.append(Write(key, None, None))
            if state.error is not None or writes[-1].fingerprint != wanted:
                stale.append(key)
        self._write(writes)
        if not stale:
            return
        if self.outbox is None:
            raise InvalidOption(
                f"{self.shelf.column}: rows were edited since the cutover, and are embedded by the old model again by "
                "a worker; give outbox=, what outbox_table() returned"
            )
        entity = self.shelf.target.entity
        put(self.connection, self.outbox, [(entity, self.shelf.target.encode(key)) for key in stale])
        self.noted += len(stale)

    def _settle(self) -> None:
        """Nothing is left over."""
