"""What all that work off an outbox have in common: the loop, its pauses, its end."""

from __future__ import annotations

import logging
import os
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import Connection, Table
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapper

from sqla_vector.exc import InvalidOption
from sqla_vector.tracking.events import OnEvent, Outage, Outcome, QueueSeen, WorkerStarted, WorkerStopped
from sqla_vector.tracking.observe import Watch
from sqla_vector.tracking.outbox import check_outbox, postpone
from sqla_vector.tracking.patience import Backoff, check_seconds, is_of_values, is_passing, said, stopped_by_signals
from sqla_vector.tracking.status import status
from sqla_vector.tracking.steps import AsyncDriver, Driver, Pause, Steps, Transaction, is_asynchronous

__all__ = ["Consumer"]

logger = logging.getLogger("sqla_vector.tracking")

B = TypeVar("B")
"""What is taken at a time."""

_LOOK_EVERY: Final = 15.0
"""Seconds between two looks at what waits: entries have to be counted for it."""


class Consumer(ABC, Generic[B]):
    """Works off an outbox: ``run()`` until it is stopped, ``run_once()`` a batch.

    Args:
        sessions: a ``sessionmaker`` or an ``async_sessionmaker``.
        outbox: the table.
        mappers: the classes whose rows it is about.
        lease: seconds after which others may take what this one has not finished.
        backoff: seconds before the second attempt; doubled for each further one, and varied at random.
        max_backoff: seconds between two attempts at most.
        poll: seconds between two looks at an empty outbox.
        name: in ``claimed_by``; by default the host's name and the process.
        on_event: is called with each event.

    Raises:
        InvalidOption: an argument is out of its range.
    """

    def __init__(
        self,
        sessions: Any,
        outbox: Table,
        mappers: Iterable[Mapper[Any]],
        *,
        lease: float,
        backoff: float,
        max_backoff: float,
        poll: float,
        name: str | None,
        on_event: OnEvent | None,
    ) -> None:
        self.is_async = is_asynchronous(sessions)
        self._outbox = check_outbox(outbox)
        self._lease = check_seconds(lease, "lease", 0.001)
        self._backoff = Backoff(check_seconds(backoff, "backoff", 0.0), check_seconds(max_backoff, "max_backoff", 0.0))
        self._poll = check_seconds(poll, "poll", 0.001)
        self.name = f"{socket.gethostname()[:24]}:{os.getpid()}" if name is None else _name(name)
        self._watch = Watch(on_event, is_async=self.is_async)
        self._next_look = 0.0
        self._stopping = False
        driver: type[Any] = AsyncDriver if self.is_async else Driver
        self._driver: Any = driver(sessions, self._outbox, list(mappers))

    def run_once(self) -> Outcome:
        """Work off one batch; nothing to do is an outcome of zeros.

        Raises:
            InvalidOption: the sessions are asynchronous; await :meth:`arun_once`.
        """
        outcome: Outcome = self._synchronous("arun_once").run(self._once())
        return outcome

    async def arun_once(self) -> Outcome:
        """Do the same as :meth:`run_once`, with asynchronous sessions."""
        outcome: Outcome = await self._asynchronous("run_once").run(self._once())
        return outcome

    def run(self, *, until_empty: bool = False, signals: bool = False) -> Outcome:
        """Work until :meth:`stop` is called.

        Args:
            until_empty: stop as soon as no entry is pending; retries and the leases of others are waited for.
            signals: stop gracefully at SIGTERM or SIGINT, at once at the second one; in the main thread only.

        Returns:
            What became of all rows.
        """
        driver = self._synchronous("arun")
        with stopped_by_signals(self._stop_at_signal) if signals else nullcontext():
            outcome: Outcome = driver.run(self._loop(until_empty))
        return outcome

    async def arun(self, *, until_empty: bool = False, signals: bool = False) -> Outcome:
        """Do the same as :meth:`run`, with asynchronous sessions."""
        driver = self._asynchronous("run")
        with stopped_by_signals(self._stop_at_signal) if signals else nullcontext():
            outcome: Outcome = await driver.run(self._loop(until_empty))
        return outcome

    def stop(self) -> None:
        """Have :meth:`run` return when the batch in hand is finished; may be called from other threads."""
        self._stopping = True
        self._driver.stop()

    def _synchronous(self, other: str) -> Any:
        if self.is_async:
            raise InvalidOption(f"the sessions of this worker are asynchronous: await worker.{other}()")
        return self._driver

    def _asynchronous(self, other: str) -> Any:
        if not self.is_async:
            raise InvalidOption(f"the sessions of this worker are not asynchronous: call worker.{other}()")
        return self._driver

    def _stop_at_signal(self) -> None:
        logger.info("%s stops when its batch is finished", self.name)
        self.stop()

    # The algorithm.

    def _loop(self, until_empty: bool) -> Steps[Outcome]:
        total, failures = Outcome(), 0
        batch: B | None = None
        yield from self._watch.tell(WorkerStarted(self.name))
        while not self._stopping:
            try:
                yield from self._look()
                if batch is None:
                    batch = yield from self._take()
                if batch is None:
                    if until_empty and not (yield Transaction(self._is_pending, to_write=False)):
                        break
                    yield Pause(min(self._poll, 0.05) if until_empty else self._poll)
                    continue
                in_hand, batch = batch, None
                outcome, batch = yield from self._work_off(in_hand, go_on=True)
                failures = 0
                total += outcome
                if outcome.late == outcome.entries:
                    yield Pause(min(self._poll, 0.1))
            except DBAPIError as error:
                if not is_passing(error):
                    raise
                failures += 1
                yield from self._pause(failures, error)
        if batch is not None:
            yield from self._give_back(*self._held(batch))
        yield from self._watch.tell(WorkerStopped(self.name, total))
        return total

    def _once(self) -> Steps[Outcome]:
        yield from self._look()
        batch = yield from self._take()
        if batch is None:
            return Outcome()
        outcome, _ = yield from self._work_off(batch, go_on=False)
        return outcome

    def _take(self) -> Steps[B | None]:
        batch: B | None
        try:
            batch = yield Transaction(self._claim)
        except Exception as error:
            if not is_of_values(error):
                raise
            # One entry at a time, until it is the one that names what cannot be read: that one is broken.
            logger.warning("%s takes entries one by one, since a row cannot be read", self.name)
            batch = yield Transaction(lambda connection: self._claim(connection, is_careful=True))
        return batch

    def _pause(self, failures: int, error: DBAPIError) -> Steps[None]:
        pause = self._backoff.after(failures)
        yield from self._watch.tell(Outage("database", "", said(error), pause))
        yield Pause(pause)

    def _look(self) -> Steps[None]:
        """Tell what waits in the outbox, now and then."""
        now = time.monotonic()
        if self._watch.sees_queue and now >= self._next_look:
            self._next_look = now + _LOOK_EVERY
            found = yield Transaction(lambda connection: status(connection, self._outbox, self.channel), to_write=False)
            total = found.total
            yield from self._watch.tell(QueueSeen(total.pending, total.dead, total.oldest or 0.0))

    def _give_back(self, token: str, ids: list[int]) -> Steps[None]:
        """Let others have at once what was taken and not begun."""
        try:
            yield Transaction(lambda connection: postpone(connection, self._outbox, token, ids))
        except DBAPIError as error:
            # They come back when the lease ends.
            logger.warning("%d entries could not be given back: %s", len(ids), said(error))

    def _insist(self, step: Transaction, *, go_on: bool) -> Steps[Any]:
        """Do a step again while the database cannot be used: what was paid for is not thrown away."""
        until, failures = time.monotonic() + self._lease, 0
        while True:
            try:
                return (yield step)
            except DBAPIError as error:
                # A step whose commit got no answer may be done already; then there is nothing left for it to do.
                if not go_on or self._stopping or not is_passing(error) or time.monotonic() > until:
                    raise
                failures += 1
                yield from self._pause(failures, error)

    @property
    @abstractmethod
    def channel(self) -> str:
        """Whose entries it works off."""

    @abstractmethod
    def _is_pending(self, connection: Connection) -> bool:
        """Tell whether anything is left to be done."""

    @abstractmethod
    def _claim(self, connection: Connection, *, is_careful: bool = False) -> B | None:
        """Take what is due, in a transaction, and read its rows; None if nothing is due.

        Args:
            connection: in a transaction that has the right to write.
            is_careful: take one entry, and if its row cannot be read say so of the entry; else the error is raised.
        """

    @abstractmethod
    def _work_off(self, batch: B, *, go_on: bool) -> Steps[tuple[Outcome, B | None]]:
        """Do what a batch asks for, and take the next one in the transaction that settles it."""

    @abstractmethod
    def _held(self, batch: B) -> tuple[str, list[int]]:
        """Return the token of a batch, and its entries."""


def _name(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 1 <= len(value) <= 40:
        raise InvalidOption(f"a worker's name has 1 to 40 printable characters, got {value!r}")
    return value
