"""``backfill()``: vectors for rows that are there already, in the order of their keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection, Table
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.pool import SingletonThreadPool, StaticPool

from sqla_vector.asynchrony import AsyncSession
from sqla_vector.embedding import Embedder, Model
from sqla_vector.exc import InvalidOption
from sqla_vector.schema import check_whole_number
from sqla_vector.tracking.calls import Calls
from sqla_vector.tracking.filling import Batch, Filling, Reader
from sqla_vector.tracking.limits import Limits, RateLimit, estimate_tokens
from sqla_vector.tracking.observe import Watch
from sqla_vector.tracking.patience import Backoff, check_seconds, stopped_by_signals
from sqla_vector.tracking.progress import Meter, OnProgress, count_rows
from sqla_vector.tracking.scope import Scope
from sqla_vector.tracking.steps import AnyOf, Start, Steps, Transaction
from sqla_vector.tracking.targets import Key, Models

__all__ = ["Backfill", "BackfillReport", "abackfill", "backfill"]

_EXAMPLES: Final = 100


@dataclass
class BackfillReport:
    """What a backfill did, or with ``dry_run`` what there is to do."""

    column: str
    """The column, such as ``Article.embedding``."""
    model: str
    """The present model, ``name@version``."""
    is_dry_run: bool
    rows: int = 0
    """Rows that were looked at."""
    current: int = 0
    """Rows that were current already, or have become so meanwhile, or are gone."""
    stale: int = 0
    """Rows that were not current, with those whose text cannot be embedded."""
    written: int = 0
    """Rows that were written."""
    failed: int = 0
    """Rows whose text or vector was refused."""
    left: int = 0
    """Rows that somebody was changing all the time."""
    tokens: int = 0
    """Of the texts that were embedded, or are to be, as ``count_tokens`` counts them."""
    cost: float | None = None
    """By ``price_per_million_tokens``; None if that was not given."""
    seconds: float = 0.0
    after: Key | None = None
    """The key up to which everything is done: what a further run may begin after."""
    is_complete: bool = False
    """Whether the end was reached."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why rows failed, by the row's key as the outbox has it; the first hundred."""

    def __str__(self) -> str:
        cost = "" if self.cost is None else f", cost about {self.cost:,.2f}"
        if self.is_dry_run:
            return f"{self.column}: {self.stale:,} of {self.rows:,} rows to embed, about {self.tokens:,} tokens{cost}"
        found = {"written": self.written, "current": self.current, "failed": self.failed, "being changed": self.left}
        parts = ", ".join(f"{number:,} {kind}" for kind, number in found.items() if number or kind == "written")
        end = "" if self.is_complete else "; stopped before the end"
        return f"{self.column}: {self.rows:,} rows, {parts}{cost}{end}"


class Backfill:
    """Adds vectors to rows that are there already, without the outbox: ``run()``.

    Rows are read in the order of their keys.  What is current is passed over; the rest is embedded, outside of any
    transaction, and written if the row still has the text that was embedded.  A run that is killed, at any moment,
    loses at most the batches in hand, and the next one passes over what is done.  The program goes on writing
    meanwhile, and workers may run.

    A row that the embedder or the database refuses is reported, and gets an entry if there is an outbox.  While the
    embedder cannot be reached, it is waited for.

    Args:
        sessions: a ``sessionmaker`` or an ``async_sessionmaker``.
        column: an attribute such as ``Article.embedding``.
        embedders: by name, if not those of :func:`track`.
        outbox: the table, if not that of :func:`track`; there may be none.
        models: as for :func:`track`.
        batch_size: texts that are embedded together.
        workers: batches that are embedded at the same time, in threads, in asynchronous programs in tasks.
        after: a key; rows up to it are left out.
        timeout: seconds after which a call of the embedder counts as failed; None waits.
        backoff: seconds before the second attempt where an embedder or the database cannot be reached; doubled for
            each further one, and varied at random.
        max_backoff: seconds between two attempts at most.
        max_outage: seconds after which an embedder that cannot be reached is waited for no longer; None waits.
        limits: as for :class:`Worker`, shared with workers.
        limits_table: likewise.
        price_per_million_tokens: for the cost, in any currency.
        count_tokens: returns the number of a text's tokens; by default, and where it fails, one for four characters.
        on_progress: is called with a :class:`Progress` when a batch is done.

    Raises:
        InvalidOption: an argument is out of its range, the column is none, or its embedder is missing.
    """

    def __init__(
        self,
        sessions: Any,
        column: Any,
        *,
        embedders: dict[str, Embedder | Model] | None = None,
        outbox: Table | None = None,
        models: Models | None = None,
        batch_size: int = 256,
        workers: int = 1,
        after: Any = None,
        timeout: float | None = 120.0,
        backoff: float = 1.0,
        max_backoff: float = 300.0,
        max_outage: float | None = None,
        limits: Mapping[str, RateLimit] | None = None,
        limits_table: Table | None = None,
        price_per_million_tokens: float | None = None,
        count_tokens: Callable[[str], int] | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        if isinstance(sessions, (Session, AsyncSession)):
            raise InvalidOption("backfill() has many transactions; give it a sessionmaker, not a session")
        self._scope = Scope.of(
            "backfill()", sessions, embedders=embedders, outbox=outbox, models=models, columns=[column]
        )
        self._batch_size = check_whole_number(batch_size, "batch_size", 1, 10_000)
        self._workers = check_whole_number(workers, "workers", 1, 64)
        ((self._target, self._column),) = self._scope.columns
        self._after = None if after is None else self._key(after)
        seconds = None if timeout is None else check_seconds(timeout, "timeout", 0.001)
        self._price = None if price_per_million_tokens is None else _price(price_per_million_tokens)
        if count_tokens is not None and not callable(count_tokens):
            raise InvalidOption(f"count_tokens= is a function from a text to its tokens, got {count_tokens!r}")
        self._on_progress = on_progress
        self._stopping = False
        watch = Watch(None, is_async=self._scope.is_async)
        self._filling = Filling(
            self._target,
            self._column,
            self._scope.embedders.model(self._column),
            None,
            self._scope.outbox,
            Calls(Limits(limits, limits_table, list(self._scope.embedders.given)), seconds, watch, "backfill"),
            Backoff(check_seconds(backoff, "backoff", 0.0), check_seconds(max_backoff, "max_backoff", 0.0)),
            None if max_outage is None else check_seconds(max_outage, "max_outage", 0.0),
            estimate_tokens if count_tokens is None else count_tokens,
        )
        self._driver = self._scope.driver("backfill", is_async=self._scope.is_async)
        if self._workers > 1:
            check_pool(sessions, self._target.mapper)

    def run(self, *, dry_run: bool = False, signals: bool = False) -> BackfillReport:
        """Embed and write all rows that are not current.

        Args:
            dry_run: count rows, tokens and cost; embed and write nothing.
            signals: stop gracefully at SIGTERM or SIGINT, at once at the second one; in the main thread only.
        """
        self._scope.driver("backfill", is_async=False)
        with stopped_by_signals(self.stop) if signals else nullcontext():
            report: BackfillReport = self._driver.run(self._steps(dry_run))
        return report

    async def arun(self, *, dry_run: bool = False, signals: bool = False) -> BackfillReport:
        """Do the same as :meth:`run`, with asynchronous sessions."""
        self._scope.driver("backfill", is_async=True)
        with stopped_by_signals(self.stop) if signals else nullcontext():
            report: BackfillReport = await self._driver.run(self._steps(dry_run))
        return report

    def stop(self) -> None:
        """Have :meth:`run` return when the batches in hand are finished; may be called from other threads."""
        self._stopping = True
        self._driver.stop()

    def _key(self, after: Any) -> Key:
        key = tuple(after) if isinstance(after, (tuple, list)) else (after,)
        if len(key) != len(self._target.key_columns):
            wanted = ", ".join(self._target.key_names)
            raise InvalidOption(f"after= is a key of {self._target.entity} ({wanted}), got {after!r}")
        return key

    def _steps(self, dry_run: bool) -> Steps[BackfillReport]:
        if not isinstance(dry_run, bool):
            raise InvalidOption(f"dry_run must be True or False, got {dry_run!r}")
        report = BackfillReport(str(self._column), str(self._filling.model), dry_run, after=self._after)
        if not dry_run:
            self._filling.embedder = self._scope.embedders.embedder(self._column)
        total: int = yield Transaction(partial(count_rows, target=self._target, after=self._after), to_write=False)
        meter = Meter(report.column, total, self._on_progress)
        reader = Reader(self._filling, self._after, self._batch_size)
        if dry_run:
            yield from self._estimate(reader, report, meter)
        else:
            yield from self._fill(reader, report, meter)
        report.seconds = meter.seconds
        return report

    def _estimate(self, reader: Reader, report: BackfillReport, meter: Meter) -> Steps[None]:
        while not self._stopping and (batch := (yield from reader.next())) is not None:
            self._filling.estimate(batch)
            yield from self._count(report, meter, batch)
            report.after = batch.end
        report.is_complete = reader.is_exhausted

    def _fill(self, reader: Reader, report: BackfillReport, meter: Meter) -> Steps[None]:
        """Read batches, and have as many of them worked off at the same time as there are workers."""
        running: list[Any] = []
        waiting: dict[int, Batch] = {}
        try:
            while True:
                batch = None if self._stopping else (yield from reader.next())
                ended = []
                if batch is not None:
                    waiting[batch.number] = batch
                    if self._workers == 1 or not (batch.jobs or batch.refused):
                        ended.append((yield from self._filling.work_off(batch)))
                    else:
                        running.append((yield Start(self._filling.work_off(batch))))
                if running and (batch is None or len(running) == self._workers):
                    done = yield AnyOf(list(running))
                    running = [run for run in running if run not in done]
                    ended += [run.result() for run in done]
                elif batch is None:
                    break
                for one in ended:
                    if one.is_done:
                        yield from self._count(report, meter, one)
                # Everything up to the first one that is not done.
                while waiting and (first := waiting[min(waiting)]).is_done:
                    report.after = first.end
                    del waiting[first.number]
        except GeneratorExit:
            raise
        except BaseException:
            # What is begun is finished; then the error, or the interrupt, goes its way.
            self.stop()
            while running:
                done = yield AnyOf(list(running))
                running = [run for run in running if run not in done]
            raise
        report.is_complete = reader.is_exhausted and not waiting

    def _count(self, report: BackfillReport, meter: Meter, batch: Batch) -> Steps[None]:
        report.rows += batch.rows
        report.stale += batch.stale
        report.written += batch.written
        report.failed += len(batch.refused)
        report.left += batch.left
        report.tokens += batch.tokens
        settled = batch.stale if report.is_dry_run else batch.written + len(batch.refused) + batch.left
        report.current += batch.rows - settled
        if self._price is not None:
            report.cost = report.tokens * self._price / 1_000_000
        for key, reason in batch.refused.items():
            if len(report.failures) < _EXAMPLES:
                report.failures[self._target.encode(key)] = reason
        yield from meter.advance(batch.rows)


def backfill(sessions: Any, column: Any, *, dry_run: bool = False, **options: Any) -> BackfillReport:
    """Add vectors to the rows of ``Article.embedding`` that have none, or another text's or model's.

    ::

        backfill(Session, Article.embedding, embedders={"minilm": embedder}, workers=4)

    Args:
        sessions: a ``sessionmaker``.
        column: an attribute such as ``Article.embedding``.
        dry_run: count rows, tokens and cost; embed and write nothing.
        **options: those of :class:`Backfill`.

    Raises:
        InvalidOption: as :class:`Backfill` does, or the sessions are asynchronous.
    """
    return Backfill(sessions, column, **options).run(dry_run=dry_run)


async def abackfill(sessions: Any, column: Any, *, dry_run: bool = False, **options: Any) -> BackfillReport:
    """Do the same as :func:`backfill`, with an ``async_sessionmaker``."""
    return await Backfill(sessions, column, **options).arun(dry_run=dry_run)


def _price(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise InvalidOption(f"price_per_million_tokens must be a number from 0, got {value!r}")
    return float(value)


def check_pool(sessions: Any, mapper: Mapper[Any]) -> None:
    """Refuse workers that would be in each other's transactions."""
    session = sessions()
    session = getattr(session, "sync_session", session)
    try:
        bind = session.get_bind(mapper=mapper)
    except UnboundExecutionError:
        return  # said by the first statement
    if isinstance(bind, Connection) or isinstance(bind.pool, (SingletonThreadPool, StaticPool)):
        raise InvalidOption(
            "workers= over 1 needs a connection for each, and these sessions have one for everybody, as SQLite in "
            "memory has; use a file, or workers=1"
        )
