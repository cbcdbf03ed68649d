"""``Rebuild``: another index, filled from the database beside the one that is searched, and put in its place."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Final

from sqla_vector.elasticsearch.comparing import Comparison
from sqla_vector.elasticsearch.index import SearchIndex
from sqla_vector.elasticsearch.report import CheckReport, Difference
from sqla_vector.elasticsearch.standby import Filled, Standby
from sqla_vector.elasticsearch.task import IndexTask
from sqla_vector.elasticsearch.writing import Crew, Writer, Written
from sqla_vector.exc import DatabaseRestored, InvalidDocument, InvalidOption, SearchError
from sqla_vector.schema import check_whole_number
from sqla_vector.tracking.dead import Selection, replay
from sqla_vector.tracking.entries import note
from sqla_vector.tracking.patience import check_seconds
from sqla_vector.tracking.progress import Meter, OnProgress
from sqla_vector.tracking.steps import Pause, Steps
from sqla_vector.tracking.targets import Key

__all__ = ["Rebuild", "RebuildReport"]

_EXAMPLES: Final = 100
_CHECKS: Final = 3
"""How often the new index is compared and repaired before it is given up."""


@dataclass
class RebuildReport:
    """What a rebuild did."""

    index: str
    """The declared name."""
    physical: str = ""
    """The new index behind it."""
    replaced: list[str] = field(default_factory=list)
    """The indexes in whose place it was put."""
    kept: list[str] = field(default_factory=list)
    """Those of them that are still there."""
    rows: int = 0
    """Rows that were read, with those of the run that was gone on with."""
    resumed_at: int = 0
    """How many of them an earlier run had loaded."""
    written: int = 0
    """Documents that were written."""
    refused: int = 0
    """Rows that cannot be documents; each has an entry in the outbox."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why, by the row's key as the outbox has it; the first hundred."""
    repaired: int = 0
    """Documents that were not what they should be, and were written again before the swap."""
    check: CheckReport | None = None
    """The last comparison before the swap."""
    load_seconds: float = 0.0
    seconds: float = 0.0
    is_complete: bool = False
    """Whether the new index has taken its place; if not, a further run goes on."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as what can be written as JSON."""
        return {**vars(self), "check": None if self.check is None else self.check.as_dict()}

    def __str__(self) -> str:
        parts = [f"{self.rows:,} row{'s' * (self.rows != 1)}", f"{self.written:,} written"]
        parts += [f"{self.refused:,} refused"] * (self.refused > 0) + [f"{self.repaired:,} repaired"] * (
            self.repaired > 0
        )
        end = f"now {self.physical}" if self.is_complete else "stopped before the end; run it again to go on"
        return f"{self.index}: {', '.join(parts)}; {end}"


@dataclass
class _Page:
    """Rows that are written together."""

    number: int
    keys: Sequence[Key]
    result: Written | None = None


class Rebuild(IndexTask):
    """Fills another index from the database, and puts it in the place of the one that is searched: ``run()``.

    It is needed where the declaration has changed, after a database was put back to an earlier state, and for the
    first time too.  Searches go on in the old index until the new one takes its place, in one step.  From the moment
    at which the new one is there, each :class:`Sync` writes to both, so that no change is lost in between; without one
    that runs, changes wait in the outbox and come later.

    All rows are read in the order of their keys, and written without refreshes and replicas.  Then the index gets its
    settings and is compared with the database, and what differs is written again.  Only an index that equals the
    database, apart from what waits in the outbox, takes the place of the old one.  A run that is killed, at any
    moment, is gone on with by the next one; :meth:`abandon` gives it up.

    Args:
        sessions: a ``sessionmaker`` or an ``async_sessionmaker``.
        client: ``Elasticsearch``, or ``AsyncElasticsearch`` with asynchronous sessions; it stays open.
        index: what is declared.
        keep: leave the old index there, without its alias.
        linger: seconds after the swap for which the old index stays, for searches that have begun.
        verify: ``"hash"`` compares the hashes of all documents with the rows, ``"full"`` their contents.
        skip_refused: go on although there are rows that cannot be documents; they will be missing.
        workers: pages that are read and written at the same time, in threads, in asynchronous programs in tasks; by
            default 4, or 1 where all sessions share one connection, as with SQLite in memory.
        page: rows that are read together.
        max_bytes: bytes in a request at most; a larger document is sent by itself.
        save_every: seconds after which it is written down how far the load has come.
        timeout: seconds after which a request counts as failed; less than half of ``index.gc_deletes``.
        backoff: seconds before the second attempt where the server or the database cannot be reached; doubled for
            each further one, and varied at random.
        max_backoff: seconds between two attempts at most.
        max_outage: seconds without any success after which it is given up; a further run goes on.
        on_progress: is called with a :class:`~sqla_vector.tracking.Progress` after each page that is loaded.

    Raises:
        InvalidOption: an argument is out of its range, or of client and sessions only one is asynchronous.
    """

    _name: ClassVar[str] = "rebuild"

    def __init__(
        self,
        sessions: Any,
        client: Any,
        index: SearchIndex,
        *,
        keep: bool = False,
        linger: float = 5.0,
        verify: str = "hash",
        skip_refused: bool = False,
        workers: int | None = None,
        page: int = 500,
        max_bytes: int = 10_000_000,
        save_every: float = 10.0,
        timeout: float = 60.0,
        backoff: float = 0.5,
        max_backoff: float = 30.0,
        max_outage: float = 300.0,
        on_progress: OnProgress | None = None,
    ) -> None:
        super().__init__(
            sessions,
            client,
            index,
            workers=workers,
            page=page,
            timeout=timeout,
            backoff=backoff,
            max_backoff=max_backoff,
            max_outage=max_outage,
            on_progress=on_progress,
        )
        if verify not in ("hash", "full"):
            raise InvalidOption(f'verify= is "hash" or "full", got {verify!r}')
        self._keep, self._verifies_all, self._skip_refused = bool(keep), verify == "full", bool(skip_refused)
        self._linger = check_seconds(linger, "linger", 0.0)
        self._save_every = check_seconds(save_every, "save_every", 0.0)
        self._max_bytes = check_whole_number(max_bytes, "max_bytes", 1, 90_000_000)
        self._standby = Standby(self._sender, index, self._patience, min(20.0, self._timeout / 2))
        # A request may be carried out until its time limit is over, and longer if its answer does not come.
        fresh = index.tombstone_seconds - 2 * self._timeout
        self._writer = Writer(self._rows, self._sender, self._standby.alias, self._max_bytes, fresh)

    def run(self, *, signals: bool = False) -> RebuildReport:
        """Fill another index, or go on with what was begun, and put it in the place of the old one.

        Args:
            signals: stop gracefully at SIGTERM or SIGINT, at once at the second one; in the main thread only.

        Raises:
            DatabaseRestored: what was begun has versions that the database has not come to; abandon it.
            IndexDrift: what was begun is of another declaration; abandon it.
            IndexExists: the name that an alias needs is taken.
            IndexMissing: somebody has abandoned or finished it meanwhile.
            InvalidDocument: there are rows that cannot be documents.
            SearchError: the server refuses something; SearchUnavailable if it gave no answer for too long.
        """
        return self._run(self._steps(), signals=signals, other="arun")

    async def arun(self, *, signals: bool = False) -> RebuildReport:
        """Do the same as :meth:`run`, with asynchronous sessions."""
        return await self._arun(self._steps(), signals=signals, other="run")

    def abandon(self) -> list[str]:
        """Delete the index that is being filled, and return its name in a list, an empty one if there is none."""
        return self._run(self._standby.abandon(), signals=False, other="aabandon")

    async def aabandon(self) -> list[str]:
        """Do the same as :meth:`abandon`, with asynchronous sessions."""
        return await self._arun(self._standby.abandon(), signals=False, other="abandon")

    def _steps(self) -> Steps[RebuildReport]:
        begun, report = time.monotonic(), RebuildReport(self._index.name)
        yield from self._standby.current()
        filled = yield from self._standby.find()
        if filled is None:
            filled = yield from self._standby.create()
        else:
            yield from self._check_not_restored(filled)
        report.physical, report.rows, report.resumed_at = filled.physical, filled.rows, filled.rows
        try:
            if not filled.is_loaded:
                yield from self._load(filled, report)
                report.load_seconds = time.monotonic() - begun
            if filled.is_loaded and not self._stopping:
                yield from self._standby.prepare(filled)
                yield from self._verify(report)
        except DatabaseRestored:
            # That is said of the index that is searched, for which this is the cure.
            raise DatabaseRestored(
                f"{filled.physical} has versions that the database has not come to: it was restored from a backup "
                "after that index was begun; abandon() the index and begin again"
            ) from None
        while filled.is_loaded and not self._stopping and not (yield from self._standby.wait_for_replicas(filled)):
            pass
        if not self._stopping and report.check is not None:
            yield from self._replace(filled, report)
        report.seconds = time.monotonic() - begun
        return report

    def _check_not_restored(self, filled: Filled) -> Steps[None]:
        drawn = yield from self._rows.draw()
        if filled.drawn >= drawn:
            raise DatabaseRestored(
                f"{filled.physical} was begun when the database had come to {filled.drawn:,}, and now it has come to "
                f"{drawn:,} only: it was restored from a backup, or is another one; abandon() the index and begin again"
            )

    # Loading.

    def _load(self, filled: Filled, report: RebuildReport) -> Steps[None]:
        total = filled.rows + (yield from self._rows.count(filled.after))
        meter = Meter(self._index.name, total, self._on_progress, filled.rows)
        load = _Load(self, filled, report, meter, filled.after)
        yield from load.run()
        filled.is_loaded = load.is_exhausted
        yield from self._standby.save(filled)
        if load.is_exhausted:
            self._refuse(report)

    def _refuse(self, report: RebuildReport) -> None:
        if report.refused and not self._skip_refused:
            first = "; ".join(f"{key}: {reason}" for key, reason in list(report.failures.items())[:5])
            raise InvalidDocument(
                f"{report.refused:,} rows cannot be documents of {report.physical}, so it has not taken the place of "
                f"{report.index}; correct them and run it again, or give skip_refused=True to leave them out: {first}"
            )

    # What was loaded.

    def _verify(self, report: RebuildReport) -> Steps[None]:
        for _ in range(_CHECKS):
            report.check = check = CheckReport(self._index.name)
            yield from Comparison(
                self._rows,
                self._sender,
                self._standby.alias,
                check,
                not self._verifies_all,
                20,
                self._page,
                self._workers,
                partial(self._repair, report),
                Meter(self._index.name, 0, None),
                lambda: self._stopping,
                self.stop,
            ).run()
            if not check.is_complete:
                return
            if check.dead and not self._skip_refused:
                raise InvalidDocument(
                    f"{check.dead:,} rows with a dead entry are not in {report.physical} as they are, so it has not "
                    f"taken the place of {report.index}; correct them and run it again, or give skip_refused=True"
                )
            if not check.differences:
                return
        raise SearchError(
            f"{report.physical} differs from the database although it was repaired, so it has not taken the place of "
            f"{report.index}: {check}; the first one is {check.examples[0]}"
        )

    def _repair(self, report: RebuildReport, differences: Sequence[Difference]) -> Steps[None]:
        target = self._index.target
        foreign = [(one.id, one.routing) for one in differences if one.row_key is None or one.routing is not None]
        # Before: it may be the row's own document that has a routing.
        yield from self._writer.delete(foreign)
        keys = [target.decode(one.row_key) for one in differences if one.row_key is not None]
        written = yield from self._writer.write(keys, delete_gone=True)
        yield from self._note_refused(report, written)
        self._refuse(report)
        report.repaired += len(differences)

    def _note_refused(self, report: RebuildReport, result: Written) -> Steps[None]:
        """Leave rows to a sync, which says in the outbox why they fail."""
        if result.refused:
            target, outbox = self._index.target, self._index.outbox
            keys = list(result.refused)
            yield from self._rows.write(lambda connection: note(connection, outbox, target, keys))
        report.refused += len(result.refused)
        for key, reason in result.refused.items():
            if len(report.failures) < _EXAMPLES:
                report.failures[self._index.target.encode(key)] = reason

    # The end.

    def _replace(self, filled: Filled, report: RebuildReport) -> Steps[None]:
        old = yield from self._standby.current()
        yield from self._standby.swap(filled, old)
        report.is_complete, report.replaced = True, [name for name in old if name != filled.physical]
        # What the old index refused, the new one may take.
        dead = Selection(entity=self._index.entity, channel=self._index.channel)
        yield from self._rows.write(partial(replay, outbox=self._index.outbox, selection=dead))
        if self._keep:
            report.kept = report.replaced
        elif report.replaced:
            yield Pause(self._linger)
            yield from self._standby.drop(report.replaced)


@dataclass
class _Load:
    """Reads keys, has their rows written, and keeps how far everything is done."""

    rebuild: Rebuild
    filled: Filled
    report: RebuildReport
    meter: Meter
    after: Key | None
    is_at_end: bool = False
    _number: int = 0
    _waiting: dict[int, _Page] = field(default_factory=dict)
    _saved: float = field(default_factory=time.monotonic)

    @property
    def is_exhausted(self) -> bool:
        """Whether all rows are written."""
        return self.is_at_end and not self._waiting

    def run(self) -> Steps[None]:
        """Write all rows, unless told to stop."""
        crew = Crew(self.rebuild._workers, self._done, self.rebuild.stop)

        def orders() -> Steps[None]:
            while not self.rebuild._stopping:
                keys = yield from self.rebuild._rows.after(self.after, self.rebuild._page)
                if not keys:
                    self.is_at_end = True
                    return
                page = _Page(self._number, keys)
                self._number, self.after = self._number + 1, keys[-1]
                self._waiting[page.number] = page
                yield from crew.add(self._work(page))

        yield from crew.run(orders)

    def _work(self, page: _Page) -> Steps[_Page]:
        """Write the documents of a page."""
        page.result = yield from self.rebuild._writer.write(page.keys)
        return page

    def _done(self, page: _Page) -> Steps[None]:
        """Count a page, and write down now and then how far everything is done."""
        assert page.result is not None
        yield from self.rebuild._note_refused(self.report, page.result)
        self.report.written += page.result.written
        # Everything up to the first one that is not done.
        while self._waiting:
            first = self._waiting[min(self._waiting)]
            if first.result is None or not first.result.is_done:
                break
            self.filled.after, self.filled.rows = first.keys[-1], self.filled.rows + len(first.keys)
            del self._waiting[first.number]
        self.report.rows = self.filled.rows
        self.filled.drawn = max(self.filled.drawn, self.rebuild._writer.drawn)
        if time.monotonic() - self._saved >= self.rebuild._save_every:
            yield from self.rebuild._standby.save(self.filled)
            self._saved = time.monotonic()
        yield from self.meter.advance(len(page.keys))
