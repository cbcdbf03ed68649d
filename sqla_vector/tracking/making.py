"""Vectors of a new model for all rows, made beside the column while everything goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, update

from sqla_vector.embedding import Embedder, Model
from sqla_vector.exc import EmbedderError, EmbedderUnavailable, MigrationError
from sqla_vector.tracking.aside import Aside, Shelf
from sqla_vector.tracking.contention import insist
from sqla_vector.tracking.patience import Backoff
from sqla_vector.tracking.progress import Meter
from sqla_vector.tracking.steps import Embedding, Pause, Steps, Transaction
from sqla_vector.tracking.targets import Key
from sqla_vector.tracking.texts import RowState, read_after
from sqla_vector.tracking.versions import FILLING, UpgradeRow, is_of, read_upgrade

__all__ = ["Kind", "Making", "Stopped", "kind_of"]

logger = logging.getLogger("sqla_vector.tracking")

_PASSES: Final = 3

Kind = Literal["ready", "missing", "stale", "failed"]


def kind_of(state: RowState, have: Aside | None, model: Model) -> Kind:
    """Return what there is of the new model for a row."""
    if state.error is not None:
        return "failed"
    wanted = state.wanted(model)
    if wanted is None:
        return "ready"
    if have is None:
        return "missing"
    if have.fingerprint != wanted:
        return "stale"
    return "ready" if have.reason is None else "failed"


class Stopped(Exception):
    """The filling was told to stop; what is left is found by the next one."""


@dataclass
class _Part:
    """Rows that were looked at, and what is to be done for them."""

    last: Key | None = None
    seen: int = 0
    todo: dict[Key, RowState] = field(default_factory=dict)
    needless: list[Key] = field(default_factory=list)


@dataclass(frozen=True)
class Making:
    """What the processes do that fill.

    Args:
        shelf: where the vectors go.
        model: the new one.
        embedder: the same, to embed.
        batch_size: rows embedded at a time.
        timeout: seconds after which a call of the embedder counts as failed.
        is_stopping: whether to end, by :class:`Stopped`, instead of going on with another batch.
    """

    shelf: Shelf
    model: Model
    embedder: Embedder
    batch_size: int
    timeout: float | None
    is_stopping: Callable[[], bool] = lambda: False

    def run(self, meter: Meter) -> Steps[None]:
        """Take rows in the order of their keys until there are no more, and then look through all."""
        while True:
            self._check_going_on()
            part: _Part = yield from insist(self._take)
            if part.last is None:
                break
            yield from self._make(part)
            yield from meter.advance(part.seen)
        yield from self.catch_up(retry=True)

    def _check_going_on(self) -> None:
        if self.is_stopping():
            raise Stopped

    def _take(self, connection: Connection) -> _Part:
        """Take the next rows, which nobody else takes then; those of a process that is killed are found later."""
        upgrades = self.shelf.upgrades
        mine = is_of(upgrades, self.shelf.column)
        # The lock that keeps two from taking the same rows.
        connection.execute(update(upgrades).where(*mine).values(position=upgrades.c.position))
        row = self._check_filling(connection)
        after = None if row.position is None else self.shelf.target.decode(row.position)
        part = self._look(connection, after=after, retry=True)
        if part.last is not None:
            position = self.shelf.target.encode(part.last)
            connection.execute(update(upgrades).where(*mine).values(position=position))
        return part

    def _check_filling(self, connection: Connection, *, hold: bool = False) -> UpgradeRow:
        row = read_upgrade(connection, self.shelf.upgrades, self.shelf.column, hold=hold)
        if row is None or row.state != FILLING or row.new != str(self.model):
            raise MigrationError(f"{self.shelf.column}: the change to {self.model!s} was ended meanwhile")
        return row

    def _look(self, connection: Connection, *, after: Key | None, retry: bool) -> _Part:
        """Find out which of the next rows have no new vector of their present text."""
        states = read_after(connection, self.shelf.target, self.shelf.column, after, self.batch_size)
        if not states:
            return _Part()
        beside = self.shelf.read(connection, [state.key for state in states])
        part = _Part(states[-1].key, len(states))
        for state in states:
            have = beside.get(state.key)
            kind = kind_of(state, have, self.model)
            if kind in ("missing", "stale") or (kind == "failed" and (retry or have is None)):
                part.todo[state.key] = state
            elif kind == "ready" and have is not None and state.wanted(self.model) is None:
                part.needless.append(state.key)
        return part

    def _make(self, part: _Part) -> Steps[int]:
        """Embed rows and put their vectors beside the column, and return how many that were."""
        texts = [state.text for state in part.todo.values() if state.error is None and state.text is not None]
        made = yield from self._embed(list(dict.fromkeys(texts)))
        rows: dict[Key, Aside | None] = dict.fromkeys(part.needless)
        for key, state in part.todo.items():
            result = made.get(state.text or "", state.error)
            is_vector = isinstance(result, np.ndarray)
            vector, reason = (result, None) if is_vector else (None, str(result))
            rows[key] = Aside(state.wanted(self.model), vector, reason)
        if rows:
            yield from insist(lambda connection: self._put(connection, rows))
        return len(rows)

    def _put(self, connection: Connection, rows: dict[Key, Aside | None]) -> None:
        self._check_filling(connection, hold=True)
        self.shelf.write(connection, rows)

    def _embed(self, texts: list[str]) -> Steps[dict[str, Any]]:
        """Embed texts; those that fail have a reason instead of a vector."""
        failures = 0
        while True:
            try:
                return (yield from self._bisect(texts))
            except EmbedderUnavailable as error:
                failures += 1
                pause = Backoff(1.0, 300.0).after(failures, error.retry_after)
                logger.warning("next attempt in %.1f s: %s", pause, error)
                if (yield Pause(pause)):
                    raise Stopped from None

    def _bisect(self, texts: list[str]) -> Steps[dict[str, NDArray[Any] | str]]:
        if not texts:
            return {}
        try:
            vectors = yield Embedding(self.embedder, texts, self.timeout)
        except EmbedderUnavailable:
            raise
        except EmbedderError as error:
            if len(texts) == 1:
                return {texts[0]: str(error)}
            middle = len(texts) // 2
            left = yield from self._bisect(texts[:middle])
            right = yield from self._bisect(texts[middle:])
            return left | right
        return dict(zip(texts, vectors, strict=True))

    def catch_up(self, *, retry: bool) -> Steps[None]:
        """Look through all rows for those that were edited, or left behind by a process that was killed."""
        for _ in range(_PASSES):
            made = 0
            after: Key | None = None
            while True:
                self._check_going_on()
                look = partial(self._look, after=after, retry=retry)
                part: _Part = yield Transaction(look, to_write=False)
                if part.last is None:
                    break
                made += yield from self._make(part)
                after = part.last
            if not made:
                return
            retry = False
