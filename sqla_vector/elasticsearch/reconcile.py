"""``check()`` and ``fix()``: whether an index equals its database, and what to do if it does not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

from sqlalchemy import Connection, func, select

from sqla_vector.elasticsearch.comparing import Comparison
from sqla_vector.elasticsearch.errors import index_missing
from sqla_vector.elasticsearch.index import SearchIndex
from sqla_vector.elasticsearch.report import CheckReport, Difference
from sqla_vector.elasticsearch.sync import Sync
from sqla_vector.elasticsearch.task import IndexTask
from sqla_vector.elasticsearch.writing import Writer
from sqla_vector.schema import check_whole_number
from sqla_vector.tracking.outbox import DEAD, PENDING, put
from sqla_vector.tracking.progress import Meter, OnProgress
from sqla_vector.tracking.steps import Pause, Steps

__all__ = ["Reconcile", "acheck", "afix", "check", "fix"]

_MAX_BYTES = 10_000_000


class Reconcile(IndexTask):
    """Compares all rows with all documents, and repairs what differs: ``run()``.

    Rows are read in the order of their keys and compared with the contents of their documents; then all documents are
    read as they are at one moment, and those that have no row are found.  Neither is held in memory as a whole.  The
    program goes on writing meanwhile: what differs counts only if no entry of the outbox waits for its row, and if
    nobody has written the document since it was read.

    A repair writes entries into the outbox and works them off; other programs may help.  Documents with an id that no
    row can have are deleted, with a version as any other write.

    Args:
        sessions: a ``sessionmaker`` or an ``async_sessionmaker``.
        client: ``Elasticsearch``, or ``AsyncElasticsearch`` with asynchronous sessions; it stays open.
        index: what is declared.
        fast: compare the hashes that documents say they have; a field that somebody changed in the index is not found.
        examples: how many differences the report has at most.
        workers: pages that are compared at the same time.
        page: rows that are read together.
        timeout: seconds after which a request counts as failed; less than half of ``index.gc_deletes``.
        backoff: seconds before the second attempt where the server or the database cannot be reached; doubled for
            each further one, and varied at random.
        max_backoff: seconds between two attempts at most.
        max_outage: seconds without any success after which it is given up.
        on_progress: is called with a :class:`~sqla_vector.tracking.Progress` after each page; it counts rows, and
            then documents.

    Raises:
        InvalidOption: an argument is out of its range, or of client and sessions only one is asynchronous.
    """

    _name: ClassVar[str] = "check"

    def __init__(
        self,
        sessions: Any,
        client: Any,
        index: SearchIndex,
        *,
        fast: bool = False,
        examples: int = 20,
        workers: int | None = None,
        page: int = 500,
        timeout: float = 60.0,
        backoff: float = 0.5,
        max_backoff: float = 30.0,
        max_outage: float = 120.0,
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
        self._fast = bool(fast)
        self._examples = check_whole_number(examples, "examples", 0, 1_000_000)
        self._writer = Writer(self._rows, self._sender, index.name, _MAX_BYTES, self._timeout)

    def run(self, *, fix: bool = False, signals: bool = False) -> CheckReport:
        """Compare, and say what differs.

        Args:
            fix: repair it.
            signals: stop gracefully at SIGTERM or SIGINT, at once at the second one; in the main thread only.

        Raises:
            DatabaseRestored: a document has a version that the database has not come to; rebuild the index.
            IndexMissing: there is no index.
            SearchError: the server cannot say of all documents whether they are there.
        """
        return self._run(self._steps(fix), signals=signals, other="arun")

    async def arun(self, *, fix: bool = False, signals: bool = False) -> CheckReport:
        """Do the same as :meth:`run`, with asynchronous sessions."""
        return await self._arun(self._steps(fix), signals=signals, other="run")

    def _steps(self, fix: bool) -> Steps[CheckReport]:
        begun, report = time.monotonic(), CheckReport(self._index.name)
        if not (yield from self._sender.physical(self._index.name)):
            raise index_missing(self._index.name)
        first = (yield from self._rows.draw()) if fix else 0
        meter = Meter(self._index.name, 2 * (yield from self._rows.count()), self._on_progress)
        yield from Comparison(
            self._rows,
            self._sender,
            self._index.name,
            report,
            self._fast,
            self._examples,
            self._page,
            self._workers,
            partial(self._repair, report) if fix else None,
            meter,
            lambda: self._stopping,
            self.stop,
        ).run()
        if fix and report.noted > report.repaired:
            yield from self._work_off(report, first)
        report.seconds = time.monotonic() - begun
        return report

    def _repair(self, report: CheckReport, differences: Sequence[Difference]) -> Steps[None]:
        keys = [(self._index.entity, one.row_key) for one in differences if one.row_key is not None]
        if keys:
            note = partial(put, outbox=self._index.outbox, rows=keys, channel=self._index.channel)
            yield from self._rows.write(note)
        report.noted += len(differences)
        report.repaired += yield from self._writer.delete(
            [(one.id, one.routing) for one in differences if one.row_key is None]
        )
        # The row's own document, if it was that one, is written again by the entry.
        yield from self._writer.delete(
            [(one.id, one.routing) for one in differences if one.row_key is not None and one.routing is not None]
        )

    def _work_off(self, report: CheckReport, first: int) -> Steps[None]:
        """Work off what was noted, together with all entries of before."""
        last = yield from self._rows.draw()
        sync = Sync(self._sessions, self._client, self._index, timeout=self._timeout, lease=5 * self._timeout)
        deleted, before, since = report.repaired, -1, time.monotonic()
        while True:
            waiting = yield from self._rows.read(partial(self._count, state=PENDING, first=0, last=last))
            if waiting != before:
                before, since = waiting, time.monotonic()
            is_over = self._stopping or time.monotonic() - since > self._patience.max_outage
            if not waiting or is_over:
                break
            outcome = yield from sync._once()
            if not outcome.written:
                yield Pause(0.1)
        left = 0
        for state in (PENDING, DEAD):
            left += yield from self._rows.read(partial(self._count, state=state, first=first, last=last))
        report.repaired = max(report.noted - left, deleted)

    def _count(self, connection: Connection, state: str, first: int, last: int) -> int:
        c = self._index.outbox.c
        own = (c.channel == self._index.channel, c.entity == self._index.entity, c.state == state)
        stmt = select(func.count()).where(*own, c.id > first, c.id <= last)
        return int(connection.scalar(stmt) or 0)


def check(sessions: Any, client: Any, index: SearchIndex, **options: Any) -> CheckReport:
    """Say how an index differs from its database.

    ::

        report = check(Session, client, articles)
        if not report.is_equal:
            print(report, report.examples)

    Args:
        sessions: a ``sessionmaker``.
        client: ``Elasticsearch``.
        index: what is declared.
        **options: those of :class:`Reconcile`.

    Raises:
        DatabaseRestored: a document has a version that the database has not come to; rebuild the index.
        IndexMissing: there is no index.
        InvalidOption: as :class:`Reconcile` does.
        SearchError: the server cannot say of all documents whether they are there.
    """
    return Reconcile(sessions, client, index, **options).run()


async def acheck(sessions: Any, client: Any, index: SearchIndex, **options: Any) -> CheckReport:
    """Do the same as :func:`check`, with an ``async_sessionmaker`` and ``AsyncElasticsearch``."""
    return await Reconcile(sessions, client, index, **options).arun()


def fix(sessions: Any, client: Any, index: SearchIndex, **options: Any) -> CheckReport:
    """Compare as :func:`check` does, and repair what differs."""
    return Reconcile(sessions, client, index, **options).run(fix=True)


async def afix(sessions: Any, client: Any, index: SearchIndex, **options: Any) -> CheckReport:
    """Do the same as :func:`fix`, with an ``async_sessionmaker`` and ``AsyncElasticsearch``."""
    return await Reconcile(sessions, client, index, **options).arun(fix=True)
