"""What a rebuild and a comparison have in common: sessions and client that go together, patience, an end."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, ClassVar, TypeVar

from sqla_vector.elasticsearch.index import SearchIndex
from sqla_vector.elasticsearch.rows import Rows
from sqla_vector.elasticsearch.sending import Patience, Sender, check_client
from sqla_vector.exc import InvalidOption
from sqla_vector.schema import check_whole_number
from sqla_vector.tracking.backfill import check_pool
from sqla_vector.tracking.patience import Backoff, check_seconds, stopped_by_signals
from sqla_vector.tracking.progress import OnProgress
from sqla_vector.tracking.steps import AsyncDriver, Driver, Steps, is_asynchronous

__all__ = ["IndexTask"]

T = TypeVar("T")

_WORKERS = 4


class IndexTask:
    """Works on all rows and documents of an index.

    Args:
        sessions: a ``sessionmaker`` or an ``async_sessionmaker``.
        client: ``Elasticsearch``, or ``AsyncElasticsearch`` with asynchronous sessions; it stays open.
        index: what is declared.
        workers: pages that are worked on at the same time, in threads, in asynchronous programs in tasks; by default
            4, or 1 where all sessions share one connection, as with SQLite in memory.
        page: rows that are read together.
        timeout: seconds after which a request counts as failed; less than half of ``index.gc_deletes``.
        backoff: seconds before the second attempt where the server or the database cannot be reached; doubled for
            each further one, and varied at random.
        max_backoff: seconds between two attempts at most.
        max_outage: seconds without any success after which it is given up.
        on_progress: is called with a :class:`~sqla_vector.tracking.Progress` after each page.

    Raises:
        InvalidOption: an argument is out of its range, or of client and sessions only one is asynchronous.
    """

    _name: ClassVar[str]

    def __init__(
        self,
        sessions: Any,
        client: Any,
        index: SearchIndex,
        *,
        workers: int | None,
        page: int,
        timeout: float,
        backoff: float,
        max_backoff: float,
        max_outage: float,
        on_progress: OnProgress | None,
    ) -> None:
        if not isinstance(index, SearchIndex):
            raise InvalidOption(f"expected the SearchIndex that is declared, got {index!r}")
        self.is_async = is_asynchronous(sessions)
        self._sessions, self._client, self._index = sessions, check_client(client, is_async=self.is_async), index
        self._page = check_whole_number(page, "page", 1, 10_000)
        self._timeout = check_seconds(timeout, "timeout", 0.001)
        if self._timeout * 2 >= index.tombstone_seconds:
            raise InvalidOption(
                f"timeout ({timeout:g} s) must be less than half of index.gc_deletes "
                f"({index.tombstone_seconds:g} s): what comes later could bring deleted documents back"
            )
        self._workers = _checked_workers(workers, sessions, index)
        waits = Backoff(check_seconds(backoff, "backoff", 0.0), check_seconds(max_backoff, "max_backoff", 0.0))
        self._patience = Patience(
            f"the {self._name} of {index.name}", waits, check_seconds(max_outage, "max_outage", 0.0)
        )
        self._sender = Sender(self._client, index, self._timeout)
        self._rows = Rows(index, self._patience)
        self._on_progress = on_progress
        self._stopping = False
        driver: type[Any] = AsyncDriver if self.is_async else Driver
        self._driver: Any = driver(sessions, index.outbox, [index.mapper])

    def stop(self) -> None:
        """Have the run return when the pages in hand are finished; may be called from other threads."""
        self._stopping = True
        self._driver.stop()

    def _run(self, steps: Steps[T], *, signals: bool, other: str) -> T:
        if self.is_async:
            steps.close()
            raise InvalidOption(f"the sessions of this {self._name} are asynchronous: await {other}()")
        with stopped_by_signals(self.stop) if signals else nullcontext():
            result: T = self._driver.run(steps)
        return result

    async def _arun(self, steps: Steps[T], *, signals: bool, other: str) -> T:
        if not self.is_async:
            steps.close()
            raise InvalidOption(f"the sessions of this {self._name} are not asynchronous: call {other}()")
        with stopped_by_signals(self.stop) if signals else nullcontext():
            result: T = await self._driver.run(steps)
        return result


def _checked_workers(workers: int | None, sessions: Any, index: SearchIndex) -> int:
    if workers is None:
        try:
            check_pool(sessions, index.mapper)
        except InvalidOption:
            return 1
        return _WORKERS
    if check_whole_number(workers, "workers", 1, 64) > 1:
        check_pool(sessions, index.mapper)
    return workers
