"""Change of model: vectors of the new one are made beside the column, and take its place in one transaction."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

from sqlalchemy import Connection, Table, insert, update
from sqlalchemy.exc import DBAPIError

from sqla_vector.dialects.clock import database_now
from sqla_vector.dialects.lock import limit_lock_wait, lock_table
from sqla_vector.embedding import Embedder, Model
from sqla_vector.embedding.embedder import model_of
from sqla_vector.exc import EmbedderError, InvalidOption, MigrationError
from sqla_vector.schema import check_whole_number
from sqla_vector.tracking.aside import Shelf
from sqla_vector.tracking.contention import ATTEMPTS, insist
from sqla_vector.tracking.exchange import Cutover, NotReady, Rollback
from sqla_vector.tracking.limits import estimate_tokens
from sqla_vector.tracking.making import Making, Stopped
from sqla_vector.tracking.patience import check_seconds, is_passing, said, stopped_by_signals
from sqla_vector.tracking.progress import Meter, OnProgress, count_rows
from sqla_vector.tracking.readiness import Tally, UpgradeEstimate, UpgradeStatus
from sqla_vector.tracking.scope import Scope
from sqla_vector.tracking.steps import Pause, Steps, Transaction, is_asynchronous
from sqla_vector.tracking.targets import GivenEmbedders, Models
from sqla_vector.tracking.versions import (
    CUT_OVER,
    FILLING,
    FINISHED,
    ROLLED_BACK,
    UpgradeRow,
    is_of,
    read_upgrade,
)

__all__ = ["Upgrade"]

T = TypeVar("T")

logger = logging.getLogger("sqla_vector.tracking")


class Upgrade:
    """Changes the model of an embedded column, while searches go on.

    ``fill()`` makes the vectors of the new model beside the column, ``cutover()`` puts them into it, in one
    transaction, and ``rollback()`` puts the old ones back.  ``finish()`` gives the old ones up.  Each may be called
    again after it was interrupted or stopped, by any process; several may fill at once.  With asynchronous sessions
    each has an ``a`` before its name and is awaited.

    The embedder of the column is a :class:`~sqla_vector.tracking.Versions`, of which the last one is the new model.

    Args:
        sessions: a ``sessionmaker`` or an ``async_sessionmaker``.
        attribute: the embedded column, such as ``Article.embedding``.
        embedders: by name, if not those of :func:`track`.
        outbox: the table, if not that of :func:`track`; rollback needs it for rows that were edited meanwhile.
        models: as for :func:`track`.
        batch_size: rows embedded at a time.
        timeout: seconds after which a call of the embedder counts as failed; None waits.
        lock_wait: seconds for which the cutover waits until those who write vectors have committed.  Who writes
            after them waits behind it.  It is tried again after a while.
        on_progress: is called with a :class:`Progress` after each batch.

    Raises:
        InvalidOption: an argument is none, or the new model makes vectors of another dimension.
    """

    def __init__(
        self,
        sessions: Any,
        attribute: Any,
        *,
        embedders: GivenEmbedders | None = None,
        outbox: Table | None = None,
        models: Models | None = None,
        batch_size: int = 256,
        timeout: float | None = 120.0,
        lock_wait: float = 5.0,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._scope = Scope.of(
            "Upgrade()", sessions, embedders=embedders, outbox=outbox, models=models, columns=[attribute]
        )
        is_asynchronous(self._scope.sessions)  # a session has one transaction; here there are many
        ((self._target, self._column),) = self._scope.columns
        versions = self._scope.embedders.versions(self._column)
        if versions is None:
            name = self._column.spec.embedder
            raise InvalidOption(
                f'{self._column} has one embedder; give both, {{"{name}": Versions(old, new, upgrades=upgrades)}}, to '
                "track() and to workers, too"
            )
        self._versions = versions
        self._new_name = versions.names[-1]
        self._new = versions.all[-1]
        self._shelf = Shelf(versions.upgrades, self._target, self._column)
        self._batch_size = check_whole_number(batch_size, "batch_size", 1, 10_000)
        self._timeout = None if timeout is None else check_seconds(timeout, "timeout", 0.001)
        self._lock_wait = check_seconds(lock_wait, "lock_wait", 0.001)
        self._on_progress = on_progress
        self._filling: Any = None
        self._is_stopping = False

    def fill(self, *, signals: bool = False) -> UpgradeStatus:
        """Make the vectors of the new model beside the column; begins the change, or goes on with it.

        A row that the model refuses is noted and does not keep the others from being embedded; an embedder that
        cannot be reached is waited for.

        Args:
            signals: stop gracefully at SIGTERM or SIGINT, at once at the second one; in the main thread only.

        Raises:
            MigrationError: another change of the column is not finished, or the column has the new model already.
        """
        self._filling = self._scope.driver("fill", is_async=False)
        with stopped_by_signals(self.stop) if signals else nullcontext():
            status: UpgradeStatus = self._filling.run(self._fill())
        return status

    async def afill(self, *, signals: bool = False) -> UpgradeStatus:
        """Do the same as :meth:`fill`, with asynchronous sessions."""
        self._filling = self._scope.driver("fill", is_async=True)
        with stopped_by_signals(self.stop) if signals else nullcontext():
            status: UpgradeStatus = await self._filling.run(self._fill())
        return status

    def stop(self) -> None:
        """Have :meth:`fill` return when the batch in hand is finished; may be called from other threads."""
        self._is_stopping = True
        if self._filling is not None:
            self._filling.stop()

    def estimate(self, *, count_tokens: Callable[[str], int] | None = None) -> UpgradeEstimate:
        """Count the rows that :meth:`fill` has to embed, and the tokens of their texts; nothing is changed.

        Args:
            count_tokens: returns the number of a text's tokens; by default, and where it fails, one for four
                characters.

        Raises:
            MigrationError: as :meth:`fill` does.
        """
        return self._run(self._estimate(count_tokens), "estimate")

    async def aestimate(self, *, count_tokens: Callable[[str], int] | None = None) -> UpgradeEstimate:
        """Do the same as :meth:`estimate`, with asynchronous sessions."""
        return await self._arun(self._estimate(count_tokens), "estimate")

    def status(self) -> UpgradeStatus:
        """Count what is done, and what is left, by the texts that the rows have now."""
        return self._run(self._count(), "status")

    async def astatus(self) -> UpgradeStatus:
        """Do the same as :meth:`status`, with asynchronous sessions."""
        return await self._arun(self._count(), "status")

    def cutover(self, *, skip_failed: bool = False) -> UpgradeStatus:
        """Put the new vectors into the column, in one transaction; the old ones are kept beside it.

        What is missing is embedded first.  Searches see the old vectors until it is committed, and then the new ones.
        Programs that write vectors wait for it.

        Args:
            skip_failed: rows that the new model cannot embed lose their vector, instead of preventing the cutover.

        Raises:
            MigrationError: there is nothing to cut over, rows cannot be embedded, or rows were locked all the time.
                Nothing was changed.
        """
        return self._run(self._cut_over(skip_failed), "cutover")

    async def acutover(self, *, skip_failed: bool = False) -> UpgradeStatus:
        """Do the same as :meth:`cutover`, with asynchronous sessions."""
        return await self._arun(self._cut_over(skip_failed), "cutover")

    def rollback(self) -> UpgradeStatus:
        """Go back to the old model: before the cutover the new vectors are dropped, after it the old ones come back.

        Rows that were edited or added after the cutover are left to a worker, which embeds them by the old model.

        Raises:
            MigrationError: there is nothing to roll back.
        """
        return self._run(self._roll_back(), "rollback")

    async def arollback(self) -> UpgradeStatus:
        """Do the same as :meth:`rollback`, with asynchronous sessions."""
        return await self._arun(self._roll_back(), "rollback")

    def finish(self) -> UpgradeStatus:
        """Drop the old vectors after the cutover; there is no rollback after that.

        Raises:
            MigrationError: there was no cutover.
        """
        return self._run(self._finish(), "finish")

    async def afinish(self) -> UpgradeStatus:
        """Do the same as :meth:`finish`, with asynchronous sessions."""
        return await self._arun(self._finish(), "finish")

    def _run(self, steps: Steps[T], name: str) -> T:
        found: T = self._scope.driver(name, is_async=False).run(steps)
        return found

    async def _arun(self, steps: Steps[T], name: str) -> T:
        found: T = await self._scope.driver(name, is_async=True).run(steps)
        return found

    # Filling.

    @property
    def _model(self) -> Model:
        return self._new if isinstance(self._new, Model) else model_of(self._new)

    @property
    def _embedder(self) -> Embedder:
        if isinstance(self._new, Model):
            raise InvalidOption(f"{self._column}: {self._new_name} is only the name of a model; here it has to embed")
        return self._new

    def _fill(self) -> Steps[UpgradeStatus]:
        _ = self._embedder
        if self._is_stopping:
            self._filling.stop()
        try:
            yield from insist(self._begin)
            total, done = yield Transaction(self._count_ahead, to_write=False)
            meter = Meter(str(self._column), total, self._on_progress, done)
            yield from self._making(lambda: self._is_stopping).run(meter)
        except Stopped:
            return (yield from self._count(is_stopped=True))
        return (yield from self._count())

    def _making(self, is_stopping: Callable[[], bool] = lambda: False) -> Making:
        return Making(self._shelf, self._model, self._embedder, self._batch_size, self._timeout, is_stopping)

    def _estimate(self, count_tokens: Callable[[str], int] | None) -> Steps[UpgradeEstimate]:
        if count_tokens is not None and not callable(count_tokens):
            raise InvalidOption(f"count_tokens= is a function from a text to its tokens, got {count_tokens!r}")
        _ = self._embedder
        total = yield Transaction(self._count_to_begin, to_write=False)
        tally = Tally(self._shelf, self._model, count_tokens or estimate_tokens)
        yield from tally.count(Meter(str(self._column), total, self._on_progress))
        return UpgradeEstimate(str(self._column), self._new_name, tally.rows, tally.to_embed, tally.tokens)

    def _count_to_begin(self, connection: Connection) -> int:
        self._check_beginning(read_upgrade(connection, self._versions.upgrades, self._column))
        return count_rows(connection, self._target)

    def _begin(self, connection: Connection) -> None:
        row = read_upgrade(connection, self._versions.upgrades, self._column)
        if self._check_beginning(row):
            values = {"old_model": self._active(row), "new_model": self._new_name, "position": None}
            self._shelf.clear(connection)
            self._set_state(connection, FILLING, is_new=row is None, **values)

    def _check_beginning(self, row: UpgradeRow | None) -> bool:
        """See to it that there may be a change, and return whether it has to be begun."""
        if row is not None and row.state == FILLING and row.new == self._new_name:
            return False
        if row is not None and row.state in (FILLING, CUT_OVER) and row.new != self._new_name:
            end = "rollback() ends it" if row.state == FILLING else "finish() or rollback() ends it"
            raise MigrationError(
                f"{self._column} is being changed to {row.new} already, and only then to {self._new_name}; {end}"
            )
        active = self._active(row)
        if active == self._new_name:
            raise MigrationError(f"{self._column} has vectors of {active} already; give Versions() the new model last")
        return True

    def _active(self, row: UpgradeRow | None) -> str:
        return self._versions.names[0] if row is None else row.active

    def _set_state(self, connection: Connection, state: str, *, is_new: bool = False, **values: Any) -> None:
        upgrades = self._versions.upgrades
        values = {**values, "state": state, "changed_at": database_now()}
        if is_new:
            column: Any = self._column.column
            named = {"entity": column.table.fullname, "column_name": column.name}
            connection.execute(insert(upgrades).values(**named, **values))
        else:
            connection.execute(update(upgrades).where(*is_of(upgrades, self._column)).values(**values))

    def _count_ahead(self, connection: Connection) -> tuple[int, int]:
        """Return how many rows there are, and for how many vectors were made by an earlier run."""
        return count_rows(connection, self._target), self._shelf.count(connection)

    def _count(self, *, is_stopped: bool = False) -> Steps[UpgradeStatus]:
        row, rows, kept = yield Transaction(self._read_status, to_write=False)
        old, new, state = (None, None, None) if row is None else (row.old, row.new, row.state)
        tally = Tally(self._shelf, self._model)
        if state == FILLING and new == self._new_name and not is_stopped:
            yield from tally.count()
            rows = tally.rows
        return UpgradeStatus(
            str(self._column),
            state,
            old,
            new,
            self._active(row),
            self._new_name,
            rows,
            **tally.kinds,
            kept=kept,
            reasons=tally.reasons,
            is_stopped=is_stopped,
        )

    def _read_status(self, connection: Connection) -> tuple[UpgradeRow | None, int, int]:
        row = read_upgrade(connection, self._versions.upgrades, self._column)
        return row, count_rows(connection, self._target), self._shelf.count(connection)

    # Cutover and its way back.

    def _cut_over(self, skip_failed: bool) -> Steps[UpgradeStatus]:
        if not isinstance(skip_failed, bool):
            raise InvalidOption(f"skip_failed must be True or False, got {skip_failed!r}")
        embedder, why, is_behind = self._embedder, "", True
        for attempt in range(ATTEMPTS):
            row = yield Transaction(lambda c: read_upgrade(c, self._versions.upgrades, self._column), to_write=False)
            if row is not None and row.new == self._new_name and row.state in (CUT_OVER, FINISHED):
                return (yield from self._count())
            if row is None or row.new != self._new_name or row.state == ROLLED_BACK:
                raise MigrationError(
                    f"{self._column}: there is no change to {self._new_name} to be cut over; begin it with fill()"
                )
            if is_behind:
                yield from self._making().catch_up(retry=attempt == 0)
            try:
                yield Transaction(lambda c: self._swap(c, embedder, skip_failed))
                return (yield from self._count())
            except (NotReady, EmbedderError) as error:
                why, is_behind = str(error), True
            except DBAPIError as error:
                if not is_passing(error):
                    raise
                why, is_behind = said(error), False
            logger.warning("the cutover of %s is tried again: %s", self._column, why)
            yield Pause(random.uniform(0.1, 0.5) * min(attempt + 1, 10))
        raise MigrationError(
            f"{self._column}: the cutover was tried {ATTEMPTS} times in vain, and nothing was changed; the last time: "
            f"{why}"
        )

    def _lock(self, connection: Connection, states: Sequence[str]) -> UpgradeRow | None:
        """Keep all others from writing vectors, and return the change if it is in one of some states."""
        connection.execute(limit_lock_wait(max(1, int(self._lock_wait * 1000))))
        connection.execute(lock_table(self._versions.upgrades))
        row = read_upgrade(connection, self._versions.upgrades, self._column)
        return row if row is not None and row.state in states and row.new == self._new_name else None

    def _swap(self, connection: Connection, embedder: Embedder, skip_failed: bool) -> None:
        if self._lock(connection, [FILLING]) is None:
            return  # another process was faster
        cutover = Cutover(
            connection,
            self._shelf,
            self._model,
            self._batch_size,
            embedder=embedder,
            outbox=self._scope.outbox,
            skip_failed=skip_failed,
        )
        cutover.run()
        self._set_state(connection, CUT_OVER)
        logger.info("%s has vectors of %s now: %d rows", self._column, self._new_name, cutover.written)

    def _roll_back(self) -> Steps[UpgradeStatus]:
        for attempt in range(ATTEMPTS):
            try:
                yield Transaction(self._swap_back)
                return (yield from self._count())
            except DBAPIError as error:
                if not is_passing(error) or attempt == ATTEMPTS - 1:
                    raise
                logger.warning("the rollback of %s is tried again: %s", self._column, said(error))
            yield Pause(random.uniform(0.1, 0.5) * min(attempt + 1, 10))
        raise AssertionError

    def _swap_back(self, connection: Connection) -> None:
        row = self._lock(connection, [FILLING, CUT_OVER, ROLLED_BACK])
        if row is None:
            raise MigrationError(f"{self._column}: there is no change to {self._new_name} to be rolled back")
        if row.state == CUT_OVER:
            model = Model(*row.old.rsplit("@", 1))
            rollback = Rollback(connection, self._shelf, model, self._batch_size, outbox=self._scope.outbox)
            rollback.run()
            logger.info("%s has vectors of %s again: %d rows", self._column, row.old, rollback.written)
        self._shelf.clear(connection)
        self._set_state(connection, ROLLED_BACK)

    def _finish(self) -> Steps[UpgradeStatus]:
        yield from insist(self._drop_kept)
        return (yield from self._count())

    def _drop_kept(self, connection: Connection) -> None:
        row = read_upgrade(connection, self._versions.upgrades, self._column)
        if row is None or row.new != self._new_name or row.state not in (CUT_OVER, FINISHED):
            raise MigrationError(f"{self._column}: there was no cutover to {self._new_name} that could be finished")
        self._set_state(connection, FINISHED)
        self._shelf.clear(connection)
