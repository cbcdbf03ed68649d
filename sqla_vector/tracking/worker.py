"""The worker: takes entries from the outbox, embeds their rows, and writes the vectors."""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, Table

from sqla_vector.embedding import Embedder
from sqla_vector.exc import EmbedderUnavailable, InvalidOption
from sqla_vector.schema import check_whole_number
from sqla_vector.tracking.calls import Calls, Made
from sqla_vector.tracking.consumer import Consumer
from sqla_vector.tracking.derived import Derived, derived_of
from sqla_vector.tracking.events import BatchFinished, OnEvent, Outage, Outcome, RowFailed
from sqla_vector.tracking.jobs import WHOLE, Batch, Failure, Job, Row, finish, take
from sqla_vector.tracking.limits import Limits, RateLimit
from sqla_vector.tracking.outbox import CHANNEL, is_pending
from sqla_vector.tracking.patience import check_seconds, is_of_a_row, why_of
from sqla_vector.tracking.session import tracking_of
from sqla_vector.tracking.steps import Steps, Transaction
from sqla_vector.tracking.targets import Embedders, GivenEmbedders, Models, Target, targets_of

__all__ = ["Outcome", "Worker"]

logger = logging.getLogger("sqla_vector.tracking")


@dataclass
class _Outage:
    """An embedder that cannot be reached."""

    failures: int = 0
    until: float = 0.0
    """When it is tried again, by this process's clock."""


class Worker(Consumer[Batch]):
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
        tracking = tracking_of(sessions)
        if embedders is None and tracking is None:
            raise InvalidOption("the worker has no embedders; give embedders=, or track() the sessions before")
        self._embedders = Embedders(embedders) if embedders is not None else tracking.embedders  # type: ignore[union-attr]
        known = outbox if outbox is not None else None if tracking is None else tracking.outbox
        if known is None:
            raise InvalidOption("the worker has no outbox; give outbox=, the table of outbox_table(Base.metadata)")
        targets = targets_of(models) if models is not None or tracking is None else tracking.targets
        self._targets = _served(targets, self._embedders)
        own = models is None and tracking is not None
        self._derived = tracking.plans.derived if own and tracking is not None else derived_of(models)
        super().__init__(
            sessions,
            known,
            [target.mapper for target in (*self._targets, *(derived.target for derived in self._derived))],
            lease=lease,
            backoff=backoff,
            max_backoff=max_backoff,
            poll=poll,
            name=name,
            on_event=on_event,
        )
        self._batch_size = check_whole_number(batch_size, "batch_size", 1, 10_000)
        self._timeout = None if timeout is None else check_seconds(timeout, "timeout", 0.001)
        if self._timeout is not None and self._timeout >= self._lease:
            raise InvalidOption(
                f"lease ({lease:g} s) must be longer than timeout ({timeout:g} s): others would take up what this "
                "worker is still embedding"
            )
        self._attempts = check_whole_number(attempts, "attempts", 1, 1000)
        known_limits = Limits(limits, limits_table, list(self._embedders.given))
        self._calls = Calls(known_limits, self._timeout, self._watch, "worker")
        self._outages: dict[str, _Outage] = {}

    @property
    def channel(self) -> str:
        """The channel of entries whose rows have vectors to be made."""
        return CHANNEL

    # The algorithm.

    def _is_pending(self, connection: Connection) -> bool:
        targets = (*self._targets, *(derived.target for derived in self._derived))
        return is_pending(connection, self._outbox, CHANNEL, {target.entity for target in targets})

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

    def _held(self, batch: Batch) -> tuple[str, list[int]]:
        ids = [id_ for row in batch.rows.values() for id_ in row.ids] + [entry.id for entry, _ in batch.broken]
        return batch.token, ids

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
        postponed: dict[int, Row] = {}
        for name, embedder, jobs in self._by_embedder(batch):
            try:
                yield from self._embed(batch, name, embedder, jobs)
                self._outages.pop(name, None)
            except EmbedderUnavailable as error:
                yield from self._note_outage(name, embedder, error)
                for job in jobs:
                    row = batch.rows[job.row]
                    if str(job.wanted) not in batch.vectors and str(job.column) not in row.failures:
                        row.is_late = True
                        postponed |= dict.fromkeys(row.ids, row)
        return sum(not row.failures for row in postponed.values())

    def _reachable(self) -> tuple[Target, ...]:
        """Return the targets, without tables for which an embedder is needed that cannot be reached."""
        now = time.monotonic()
        out = {name for name, outage in self._outages.items() if outage.until > now}
        waiting = {t.entity for t in self._targets for c in t.columns if c.spec.embedder in out}
        # Rows are made of texts without an embedder.
        texts = tuple(derived.target for derived in self._derived)
        return tuple(target for target in (*self._targets, *texts) if target.entity not in waiting)

    def _note_outage(self, name: str, embedder: Embedder, error: EmbedderUnavailable) -> Steps[None]:
        outage = self._outages.setdefault(name, _Outage())
        outage.failures += 1
        pause = self._backoff.after(outage.failures, error.retry_after)
        outage.until = time.monotonic() + pause
        if not self._stopping:
            yield from self._watch.tell(Outage("embedder", embedder.name, str(error), pause))

    def _by_embedder(self, batch: Batch) -> list[tuple[str, Embedder, list[Job]]]:
        by_column: dict[int, list[Job]] = {}
        for job in batch.jobs:
            if job.is_stale and job.wanted is not None:
                by_column.setdefault(id(job.column), []).append(job)
        found: dict[int, tuple[str, Embedder, list[Job]]] = {}
        for jobs in by_column.values():
            column = jobs[0].column
            embedder = batch.embedders.embedder(column)
            found.setdefault(id(embedder), (column.spec.embedder, embedder, []))[2].extend(jobs)
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
                        failure = Failure("embedder", f"{job.column}: {result}")
                        batch.rows[job.row].failures[str(job.column)] = failure

    def _finish(self, batch: Batch, *, go_on: bool) -> Steps[tuple[dict[str, int], Batch | None]]:
        """Write what was made; a row that the database refuses fails alone."""
        delays = [self._backoff.after(number) for number in range(1, self._attempts)]
        later = random.uniform(0.02, 0.1)

        def settle(part: Batch, derived: Sequence[Derived] = self._derived, *, go_on: bool = False) -> Transaction:
            def run(connection: Connection) -> tuple[dict[str, int], Batch | None]:
                counts = finish(connection, self._outbox, part, self._embedders, delays, later, derived)
                return counts, self._claim(connection) if go_on and not self._stopping else None

            return Transaction(run)

        answer: tuple[dict[str, int], Batch | None]
        try:
            answer = yield from self._insist(settle(batch, go_on=go_on), go_on=go_on)
            yield from self._tell_failed(batch)
            return answer
        except Exception as error:
            # Also of a row that was to be the next batch's; there :meth:`_take` will meet it.
            if not is_of_a_row(error):
                raise
        counts: dict[str, int] = {}
        for part in batch.split():
            try:
                found, _ = yield from self._insist(settle(part), go_on=go_on)
            except Exception as error:
                if not is_of_a_row(error):
                    raise
                for row in part.rows.values():
                    row.failures[WHOLE] = Failure("database", f"cannot be written: {why_of(error)}")
                found, _ = yield from self._insist(settle(part, ()), go_on=go_on)
            yield from self._tell_failed(part)
            counts = {name: counts.get(name, 0) + number for name, number in found.items()}
        return counts, None

    def _tell_failed(self, batch: Batch) -> Steps[None]:
        for entry, failure, is_dead in batch.failed:
            name, attempts = (self.name, entry.entity, entry.row_key), entry.attempts + 1
            yield from self._watch.tell(RowFailed(*name, failure.kind, failure.reason, attempts, is_dead))


def _served(targets: tuple[Target, ...], embedders: Embedders) -> tuple[Target, ...]:
    for target in targets:
        for column in target.columns:
            embedders.check(column, to_embed=True)
    return targets
