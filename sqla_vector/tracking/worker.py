"""The worker: takes entries from the outbox, embeds their rows, and writes the vectors."""

from __future__ import annotations

import logging
import os
import random
import socket
import time
import uuid
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, Table
from sqlalchemy.exc import DBAPIError

from sqla_vector.embedding import Embedder
from sqla_vector.exc import EmbedderUnavailable, InvalidOption, VectorError
from sqla_vector.schema import check_whole_number
from sqla_vector.tracking.calls import Calls, Made
from sqla_vector.tracking.jobs import Batch, Failure, Job, finish, take
from sqla_vector.tracking.limits import Limits, RateLimit
from sqla_vector.tracking.observe import (
    BatchFinished,
    OnEvent,
    Outage,
    Outcome,
    QueueSeen,
    RowFailed,
    Watch,
    WorkerStarted,
    WorkerStopped,
)
from sqla_vector.tracking.outbox import CHANNEL, check_outbox, is_pending, postpone
from sqla_vector.tracking.patience import Backoff, check_seconds, is_of_values, is_passing, said, stopped_by_signals
from sqla_vector.tracking.session import tracking_of
from sqla_vector.tracking.status import status
from sqla_vector.tracking.steps import AsyncDriver, Driver, Pause, Steps, Transaction, is_asynchronous
from sqla_vector.tracking.targets import Embedders, GivenEmbedders, Models, Target, targets_of

__all__ = ["Outcome", "Worker"]

logger = logging.getLogger("sqla_vector.tracking")

_LOOK_EVERY: Final = 15.0
"""Seconds between two looks at what waits: entries have to be counted for it."""


@dataclass
class _Outage:
    """An embedder that cannot be reached."""

    failures: int = 0
    until: float = 0.0
    """When it is tried again, by this process's clock."""


class Worker:
    """Works off an outbox: ``run()`` until it is stopped, ``run_once()`` a batch.

    Any number of workers share the work.  Entries are taken for the time of a lease, by the database's clock; texts
    are embedded outside of transactions; a vector is written if the row still has the text that it was made of, in
    the transaction that deletes the entry.  So a worker may be killed at any moment: what it had not finished is
    taken up by others when the lease ends.

    Args:
        sessions: a ``sessionmaker`` or an ``async_sessionmaker``.  What :func:`track` was given for it holds here too.
        embedders: by name, if not those of ``track()``.
        outbox: the table, if not that of ``track()``.
        models: as for ``track()``.
        batch_size: entries taken at a time.
        lease: seconds after which others may take what this worker has not finished.
        timeout: seconds after which a call of an embedder counts as failed, less than the lease; None waits.
        attempts: how often a row is tried before it is dead.
        backoff: seconds before the second attempt; doubled for each further one, and varied at random.
        max_backoff: seconds between two attempts at most, also while an embedder or the database cannot be reached.
        poll: seconds between two looks at an empty outbox.
        name: of the worker, in ``claimed_by``; by default the host's name and the process.
        limits: how much of each embedder may be used, by the names that models call them, by all workers and backfills
            together: ``{"minilm": RateLimit(requests=60)}``.  A worker waits for its share without a transaction.
        limits_table: made by :func:`limits_table`; needed for ``limits``.
        on_event: is called with each :data:`~sqla_vector.tracking.Event`: start and stop, batches, rows that failed,
            outages, what waits.  Asynchronous workers await it if it is asynchronous.  One that fails is logged.

    Raises:
        InvalidOption: an argument is out of its range, or an embedder is missing.
    """

    def __init__(
        self,
        sessions: Any,
        *,
        embedders: GivenEmbedders | None = None,
        outbox: Table | None = None,
        models: Models | None = None,
        batch_size: int = 256,
        lease: float = 300.0,
        timeout: float | None = 120.0,
        attempts: int = 5,
        backoff: float = 1.0,
        max_backoff: float = 300.0,
        poll: float = 1.0,
        name: str | None = None,
        limits: Mapping[str, RateLimit] | None = None,
        limits_table: Table | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        self.is_async = is_asynchronous(sessions)
        tracking = tracking_of(sessions)
        if embedders is None and tracking is None:
            raise InvalidOption("the worker has no embedders; give embedders=, or track() the sessions before")
        self._embedders = Embedders(embedders) if embedders is not None else tracking.embedders  # type: ignore[union-attr]
        known = outbox if outbox is not None else None if tracking is None else tracking.outbox
        if known is None:
            raise InvalidOption("the worker has no outbox; give outbox=, the table of outbox_table(Base.metadata)")
        self._outbox = check_outbox(known)
        self._targets = targets_of(models) if models is not None or tracking is None else tracking.targets
        self._targets = _served(self._targets, self._embedders)
        self._batch_size = check_whole_number(batch_size, "batch_size", 1, 10_000)
        self._lease = check_seconds(lease, "lease", 0.001)
        self._timeout = None if timeout is None else check_seconds(timeout, "timeout", 0.001)
        if self._timeout is not None and self._timeout >= self._lease:
            raise InvalidOption(
                f"lease ({lease:g} s) must be longer than timeout ({timeout:g} s): others would take up what this "
                "worker is still embedding"
            )
        self._backoff = Backoff(check_seconds(backoff, "backoff", 0.0), check_seconds(max_backoff, "max_backoff", 0.0))
        self._attempts = check_whole_number(attempts, "attempts", 1, 1000)
        self._poll = check_seconds(poll, "poll", 0.001)
        self.name = f"{socket.gethostname()[:24]}:{os.getpid()}" if name is None else _name(name)
        self._watch = Watch(on_event, is_async=self.is_async)
        known_limits = Limits(limits, limits_table, list(self._embedders.given))
        self._calls = Calls(known_limits, self._timeout, self._watch, "worker")
        self._next_look = 0.0
        self._stopping = False
        self._outages: dict[str, _Outage] = {}
        driver: type[Any] = AsyncDriver if self.is_async else Driver
        self._driver: Any = driver(sessions, self._outbox, [target.mapper for target in self._targets])

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
        batch: Batch | None = None
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
            yield from self._give_back(batch)
        yield from self._watch.tell(WorkerStopped(self.name, total))
        return total

    def _pause(self, failures: int, error: DBAPIError) -> Steps[None]:
        pause = self._backoff.after(failures)
        yield from self._watch.tell(Outage("database", "", said(error), pause))
        yield Pause(pause)

    def _look(self) -> Steps[None]:
        """Tell what waits in the outbox, now and then."""
        now = time.monotonic()
        if self._watch.sees_queue and now >= self._next_look:
            self._next_look = now + _LOOK_EVERY
            total = (yield Transaction(lambda connection: status(connection, self._outbox), to_write=False)).total
            yield from self._watch.tell(QueueSeen(total.pending, total.dead, total.oldest or 0.0))

    def _is_pending(self, connection: Connection) -> bool:
        return is_pending(connection, self._outbox, CHANNEL, {target.entity for target in self._targets})

    def _once(self) -> Steps[Outcome]:
        yield from self._look()
        batch = yield from self._take()
        if batch is None:
            return Outcome()
        outcome, _ = yield from self._work_off(batch, go_on=False)
        return outcome

    def _take(self) -> Steps[Batch | None]:
        batch: Batch | None
        try:
            batch = yield Transaction(self._claim)
        except Exception as error:
            if not is_of_values(error):
                raise
            # One entry at a time, until it is the one that names what cannot be read: that one is broken.
            logger.warning("%s takes entries one by one, since a row cannot be read", self.name)
            batch = yield Transaction(lambda connection: self._claim(connection, is_careful=True))
        return batch

    def _claim(self, connection: Connection, *, is_careful: bool = False) -> Batch | None:
        targets = self._reachable()
        if not targets:
            return None
        token = f"{self.name}:{uuid.uuid4().hex[:16]}"
        began = time.time_ns()
        limit = 1 if is_careful else self._batch_size
        batch = take(
            connection, self._outbox, targets, self._embedders, token, limit, self._lease, is_careful=is_careful
        )
        batch.began, batch.claimed = began, time.time_ns()
        return batch if len(batch) else None

    def _give_back(self, batch: Batch) -> Steps[None]:
        """Let others have at once what was taken and not begun."""
        ids = [id_ for row in batch.rows.values() for id_ in row.ids] + [entry.id for entry, _ in batch.broken]
        try:
            yield Transaction(lambda connection: postpone(connection, self._outbox, batch.token, ids))
        except DBAPIError as error:
            # They come back when the lease ends.
            logger.warning("%d entries could not be given back: %s", len(ids), said(error))

    def _work_off(self, batch: Batch, *, go_on: bool) -> Steps[tuple[Outcome, Batch | None]]:
        """Embed a batch and settle it, and take the next one in the same transaction."""
        with self._watch.span("sqla_vector.worker.batch", batch.began, entries=len(batch)):
            self._watch.past("sqla_vector.worker.claim", batch.began, batch.claimed)
            started = time.time_ns()
            postponed = yield from self._embed_all(batch)
            embedded = time.time_ns()
            with self._watch.span("sqla_vector.worker.write"):
                counts, following = yield from self._finish(batch, go_on=go_on)
        written = time.time_ns() - (0 if following is None else following.claimed - following.began)
        outcome = Outcome(entries=len(batch), postponed=postponed, **counts)
        seconds = (batch.claimed - batch.began, embedded - started, written - embedded)
        yield from self._watch.tell(BatchFinished(self.name, outcome, *(part / 1e9 for part in seconds)))
        return outcome, following

    def _embed_all(self, batch: Batch) -> Steps[int]:
        """Embed what is stale, and return the number of entries that an outage leaves for later."""
        postponed: set[int] = set()
        for name, embedder, jobs in self._by_embedder(batch):
            try:
                yield from self._embed(batch, name, embedder, jobs)
                self._outages.pop(name, None)
            except EmbedderUnavailable as error:
                yield from self._note_outage(name, embedder, error)
                for job in jobs:
                    row = batch.rows[job.row]
                    if str(job.wanted) not in batch.vectors and row.failure is None:
                        row.is_late = True
                        postponed.update(row.ids)
        return len(postponed)

    def _reachable(self) -> tuple[Target, ...]:
        """Return the targets, without tables for which an embedder is needed that cannot be reached."""
        now = time.monotonic()
        out = {name for name, outage in self._outages.items() if outage.until > now}
        waiting = {t.entity for t in self._targets for c in t.columns if c.spec.embedder in out}
        return tuple(target for target in self._targets if target.entity not in waiting)

    def _note_outage(self, name: str, embedder: Embedder, error: EmbedderUnavailable) -> Steps[None]:
        outage = self._outages.setdefault(name, _Outage())
        outage.failures += 1
        pause = self._backoff.after(outage.failures, error.retry_after)
        outage.until = time.monotonic() + pause
        if not self._stopping:
            yield from self._watch.tell(Outage("embedder", embedder.name, str(error), pause))

    def _by_embedder(self, batch: Batch) -> list[tuple[str, Embedder, list[Job]]]:
        found: dict[int, tuple[str, Embedder, list[Job]]] = {}
        for job in batch.jobs:
            if job.is_stale and job.wanted is not None:
                embedder = batch.embedders.embedder(job.column)
                found.setdefault(id(embedder), (job.column.spec.embedder, embedder, []))[2].append(job)
        return list(found.values())

    def _embed(self, batch: Batch, name: str, embedder: Embedder, jobs: list[Job]) -> Steps[None]:
        by_text: dict[str, list[Job]] = {}
        for job in jobs:
            by_text.setdefault(str(job.state.text), []).append(job)
        made: Made = {}
        # Whoever waits for a share longer than the lease lasts would wait for rows that others have taken up.
        until = time.monotonic() + self._lease - (self._lease / 2 if self._timeout is None else self._timeout)
        try:
            yield from self._calls.embed(name, embedder, list(by_text), made, until)
        finally:
            # What was made before an outage is not made again.
            for text, result in made.items():
                for job in by_text[text]:
                    if isinstance(result, np.ndarray):
                        batch.vectors[str(job.wanted)] = result
                    else:
                        batch.rows[job.row].failure = Failure("embedder", f"{job.column}: {result}")

    def _finish(self, batch: Batch, *, go_on: bool) -> Steps[tuple[dict[str, int], Batch | None]]:
        """Write what was made; a row that the database refuses fails alone."""
        delays = [self._backoff.after(number) for number in range(1, self._attempts)]
        later = random.uniform(0.02, 0.1)

        def settle(part: Batch, *, go_on: bool = False) -> Transaction:
            def run(connection: Connection) -> tuple[dict[str, int], Batch | None]:
                counts = finish(connection, self._outbox, part, self._embedders, delays, later)
                return counts, self._claim(connection) if go_on and not self._stopping else None

            return Transaction(run)

        answer: tuple[dict[str, int], Batch | None]
        try:
            answer = yield from self._insist(settle(batch, go_on=go_on), go_on=go_on)
            yield from self._tell_failed(batch)
            return answer
        except Exception as error:
            # Also of a row that was to be the next batch's; there :meth:`_take` will meet it.
            if is_passing(error) or not (isinstance(error, (DBAPIError, VectorError)) or is_of_values(error)):
                raise
        counts: dict[str, int] = {}
        for part in batch.split():
            try:
                found, _ = yield from self._insist(settle(part), go_on=go_on)
            except (DBAPIError, VectorError) as error:
                if is_passing(error):
                    raise
                for row in part.rows.values():
                    row.failure = Failure("database", f"cannot be written: {said(error)}")
                found, _ = yield from self._insist(settle(part), go_on=go_on)
            yield from self._tell_failed(part)
            counts = {name: counts.get(name, 0) + number for name, number in found.items()}
        return counts, None

    def _insist(self, step: Transaction, *, go_on: bool) -> Steps[Any]:
        """Do a step again while the database cannot be used: vectors that were paid for are not thrown away."""
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

    def _tell_failed(self, batch: Batch) -> Steps[None]:
        for entry, failure, is_dead in batch.failed:
            name, attempts = (self.name, entry.entity, entry.row_key), entry.attempts + 1
            yield from self._watch.tell(RowFailed(*name, failure.kind, failure.reason, attempts, is_dead))


def _served(targets: tuple[Target, ...], embedders: Embedders) -> tuple[Target, ...]:
    for target in targets:
        for column in target.columns:
            embedders.check(column, to_embed=True)
    return targets


def _name(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable() or not 1 <= len(value) <= 40:
        raise InvalidOption(f"a worker's name has 1 to 40 printable characters, got {value!r}")
    return value
