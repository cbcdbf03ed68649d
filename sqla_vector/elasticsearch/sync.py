"""``Sync``: works off an index's entries in the outbox, so that its documents follow their rows."""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from sqla_vector.elasticsearch.actions import Action, Verdict, delete_action, index_action, parts
from sqla_vector.elasticsearch.documents import document_id
from sqla_vector.elasticsearch.errors import index_missing
from sqla_vector.elasticsearch.index import SearchIndex
from sqla_vector.elasticsearch.mapping import mapping_differences
from sqla_vector.elasticsearch.names import REBUILD
from sqla_vector.elasticsearch.sending import Sender, check_client
from sqla_vector.elasticsearch.sweep import sweep
from sqla_vector.exc import (
    IndexDrift,
    IndexMissing,
    InvalidDocument,
    InvalidOption,
    SearchError,
    SearchUnavailable,
    VectorError,
)
from sqla_vector.schema import check_whole_number
from sqla_vector.tracking.consumer import Consumer
from sqla_vector.tracking.entries import dead_entries
from sqla_vector.tracking.events import BatchFinished, OnEvent, Outage, Outcome, RowFailed
from sqla_vector.tracking.jobs import Failure
from sqla_vector.tracking.outbox import Entry, acknowledge, bury, claim, draw, forget, is_held, is_pending, postpone
from sqla_vector.tracking.patience import check_seconds, is_of_values, is_passing, said
from sqla_vector.tracking.related import has_relations, lock_related
from sqla_vector.tracking.steps import Steps, Transaction
from sqla_vector.tracking.targets import Key

__all__ = ["Sync"]

logger = logging.getLogger("sqla_vector.elasticsearch")

_ALL: Final = "truncate"
_PART: Final = 500

State = Literal["done", "late", "waiting"]


@dataclass(slots=True)
class _Row:
    """A row that entries name, and what became of its document."""

    entries: list[Entry]
    state: State = "late"
    failure: Failure | None = None
    dead: list[tuple[int, float]] = field(default_factory=list)
    """Entries that had died of what it was before it was read; those that die later know more of it."""


@dataclass
class _Batch:
    """Entries that were taken, by the rows that they name."""

    token: str
    version: int
    rows: dict[Key, _Row] = field(default_factory=dict)
    actions: list[Action] = field(default_factory=list)
    broken: list[tuple[Entry, str]] = field(default_factory=list)
    """Entries that name no row, and why."""
    all_rows: list[Entry] = field(default_factory=list)
    """Entries that name all rows: the table was emptied."""
    must_wait: bool = False
    """Whether others still send documents of rows that they read before the table was emptied."""
    swept: bool = False
    began: int = 0
    claimed: int = 0
    until: float = 0.0
    """When nothing may be sent any more, by this process's clock."""
    failed: list[tuple[Entry, Failure, bool]] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        """Its entries."""
        named = [entry.id for row in self.rows.values() for entry in row.entries]
        return [*named, *(entry.id for entry, _ in self.broken), *(entry.id for entry in self.all_rows)]


class Sync(Consumer[_Batch]):
    """Keeps the documents of an index as their rows are: ``run()`` until it is stopped, ``run_once()`` a batch.

    Any number of them, in any number of processes, share the work.  Entries of the outbox are taken for the time of a
    lease; documents are made of the rows as they are then and written with a version that the database counts, so
    that of two writes of one document the one that has seen more wins, whenever it arrives.  An entry is deleted when
    the server has said of its very document that it is written.  While the server cannot be reached or takes no more,
    entries stay, and no attempt is counted.  A document that it refuses for good is a dead entry with the reason.

    Args:
        sessions: a ``sessionmaker`` or an ``async_sessionmaker``.
        client: ``Elasticsearch``, or ``AsyncElasticsearch`` with asynchronous sessions; it stays open.
        index: what is declared.
        batch_size: entries taken at a time.
        max_actions: documents in a request at most.
        max_bytes: bytes in a request at most; a larger document is sent by itself.
        lease: seconds after which others may take what this one has not finished.
        timeout: seconds after which a request counts as failed; less than the lease.
        backoff: seconds before the second attempt; doubled for each further one, and varied at random.
        max_backoff: seconds between two attempts at most.
        poll: seconds between two looks at an empty outbox.
        name: in ``claimed_by``; by default the host's name and the process.
        refresh: ``"wait_for"`` has each request wait until searches see what it wrote; None leaves it to the index.
        on_event: is called with each :data:`~sqla_vector.tracking.Event`.

    Raises:
        InvalidOption: an argument is out of its range, or of client and sessions only one is asynchronous.
    """

    def __init__(
        self,
        sessions: Any,
        client: Any,
        index: SearchIndex,
        *,
        batch_size: int = 1000,
        max_actions: int = 1000,
        max_bytes: int = 10_000_000,
        lease: float = 300.0,
        timeout: float = 60.0,
        backoff: float = 0.5,
        max_backoff: float = 60.0,
        poll: float = 1.0,
        name: str | None = None,
        refresh: Literal["wait_for"] | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        if not isinstance(index, SearchIndex):
            raise InvalidOption(f"expected the SearchIndex that is declared, got {index!r}")
        super().__init__(
            sessions,
            index.outbox,
            [index.mapper],
            lease=lease,
            backoff=backoff,
            max_backoff=max_backoff,
            poll=poll,
            name=name,
            on_event=on_event,
        )
        if refresh not in (None, "wait_for"):
            raise InvalidOption(f'refresh= is "wait_for" or None, got {refresh!r}')
        self._index = index
        self._batch_size = check_whole_number(batch_size, "batch_size", 1, 10_000)
        self._most = check_whole_number(max_actions, "max_actions", 1, 10_000)
        self._most_bytes = check_whole_number(max_bytes, "max_bytes", 1, 90_000_000)
        self._timeout = check_seconds(timeout, "timeout", 0.001)
        if self._timeout >= self._lease:
            raise InvalidOption(
                f"lease ({lease:g} s) must be longer than timeout ({timeout:g} s): others would take up what is "
                "still being sent"
            )
        self._sender = Sender(check_client(client, is_async=self.is_async), index, self._timeout, refresh)
        self._failures = 0
        self._closed_until = 0.0
        self._is_checked = False
        self._until_empty = False

    @property
    def channel(self) -> str:
        """The channel of the index's entries."""
        return self._index.channel

    # The algorithm.

    def _loop(self, until_empty: bool) -> Steps[Outcome]:
        self._until_empty = until_empty
        return (yield from super()._loop(until_empty))

    def _once(self) -> Steps[Outcome]:
        self._until_empty = True
        return (yield from super()._once())

    def _is_pending(self, connection: Connection) -> bool:
        return is_pending(connection, self._outbox, self.channel, [self._index.entity])

    def _held(self, batch: _Batch) -> tuple[str, list[int]]:
        return batch.token, batch.ids

    def _claim(self, connection: Connection, *, is_careful: bool = False) -> _Batch | None:
        if time.monotonic() < self._closed_until:
            return None
        began = time.time_ns()
        until = time.monotonic() + self._lease - self._timeout
        token = f"{self.name}:{uuid.uuid4().hex[:16]}"
        limit = 1 if is_careful else self._batch_size
        entries = claim(connection, self._outbox, token, limit, self._lease, self.channel, [self._index.entity])
        if not entries:
            return None
        # After the entries and before their rows: whoever draws a larger number has seen all that this one has.
        batch = _Batch(token, draw(connection, self._outbox), began=began, until=until)
        for entry in entries:
            if entry.operation == _ALL:
                batch.all_rows.append(entry)
                continue
            try:
                key = self._index.target.decode(entry.row_key)
                document_id(self._index.target, key)
            except InvalidDocument as error:
                batch.broken.append((entry, f"the row cannot be a document: {error}"))
            except (ValueError, TypeError, RecursionError) as error:
                batch.broken.append((entry, f"the entry names no row: {error}"))
            else:
                batch.rows.setdefault(key, _Row([])).entries.append(entry)
        if batch.all_rows:
            newest = max(entry.id for entry in batch.all_rows)
            batch.must_wait = is_held(connection, self._outbox, token, self.channel, newest)
        try:
            if is_careful:
                with connection.begin_nested():
                    self._read(connection, batch)
            else:
                self._read(connection, batch)
        except Exception as error:
            if not (is_careful and is_of_values(error)):
                raise
            why = said(error) if isinstance(error, DBAPIError) else type(error).__name__
            for row in batch.rows.values():
                row.failure = Failure("database", f"the row cannot be read: {why}", is_final=True)
        batch.claimed = time.time_ns()
        return batch

    def _read(self, connection: Connection, batch: _Batch) -> None:
        dead = dead_entries(connection, self._outbox, self._index.target, batch.rows)
        free = self._free(connection, list(batch.rows))
        found = self._index.documents(connection, [key for key in batch.rows if key in free])
        for key, row in batch.rows.items():
            row.dead = dead.get(self._index.target.encode(key), []) if dead else []
            if key not in free:
                continue
            document = found.get(key)
            if document is None:
                batch.actions.append(delete_action(self._index.document_id(key), key, batch.version))
            elif document.error is not None:
                row.failure = Failure("document", document.error, is_final=True)
            else:
                batch.actions.append(index_action(document, batch.version))

    def _free(self, connection: Connection, keys: Sequence[Key]) -> Collection[Key]:
        """Return the rows of whose related rows nobody is changing one.

        Whoever changes an author does not see, and so does not note, an article that is just being added.  To read
        that article before the author is committed would be to keep the old author for good.
        """
        index = self._index
        if not has_relations(index.mirror):
            return keys
        parts = (keys[start : start + _PART] for start in range(0, len(keys), _PART))
        return {key for part in parts for key in lock_related(connection, index.target, index.mirror, part)}

    def _work_off(self, batch: _Batch, *, go_on: bool) -> Steps[tuple[Outcome, _Batch | None]]:
        sent = time.time_ns()
        pause: float | None = None
        problem: VectorError | None = None
        with self._watch.span("sqla_vector.elasticsearch.batch", batch.began, entries=len(batch.ids)):
            self._watch.past("sqla_vector.elasticsearch.claim", batch.began, batch.claimed)
            try:
                yield from self._check()
                yield from self._send_all(batch)
                if batch.all_rows and not batch.must_wait:
                    yield from sweep(self._ask, self._index, self._index.name)
                    batch.swept = True
                self._failures = 0
            except (SearchError, IndexMissing, IndexDrift) as error:
                problem = error
                self._failures += 1
                pause = self._backoff.after(self._failures)
                self._closed_until = time.monotonic() + pause
                self._is_checked = False
            answered = time.time_ns()
            outcome, following = yield from self._settle(batch, pause, go_on=go_on and problem is None)
        written = time.time_ns() - (0 if following is None else following.claimed - following.began)
        seconds = (batch.claimed - batch.began, answered - sent, written - answered)
        yield from self._watch.tell(BatchFinished(self.name, outcome, *(part / 1e9 for part in seconds)))
        if problem is not None:
            if self._until_empty and not isinstance(problem, SearchUnavailable):
                raise problem
            yield from self._watch.tell(Outage("index", self._index.name, str(problem), pause))
        return outcome, following

    def _ask(self, method: str, **arguments: Any) -> Steps[Any]:
        try:
            return (yield from self._sender.ask(method, **arguments))
        except SearchError as error:
            # It says nothing of the documents, which may be written as soon as somebody has seen to it.
            raise SearchUnavailable(str(error)) from None

    def _check(self) -> Steps[None]:
        """See to it, once, that there is an index of the declared mapping: it would refuse all documents."""
        if self._is_checked:
            return
        name = self._index.name
        found = yield from self._ask("indices.get_mapping", index=name, ignore_unavailable=True)
        if name in found or not found:
            raise index_missing(name)
        wanted = self._index.mapping()
        for physical, one in found.items():
            if differences := mapping_differences(wanted, one["mappings"]):
                raise IndexDrift(f"{physical} is not what is declared: {'; '.join(differences)}; rebuild {name}")
        self._is_checked = True

    def _send_all(self, batch: _Batch) -> Steps[None]:
        # Whoever rebuilds has made this alias before it reads the first row.  Entries that were taken before it was
        # there are of changes that are committed, so that the rebuild reads them.
        rebuild = self._index.name + REBUILD
        # A 404 could be of anybody's making; an answer without indexes is the server's.
        is_rebuilt = yield from self._ask("indices.get_alias", index=rebuild, ignore_unavailable=True)
        for part in parts(batch.actions, self._most, self._most_bytes):
            if time.monotonic() > batch.until:
                logger.warning("%s had no time for %s: the lease ends", self.name, self._index.name)
                return
            filled = (yield from self._send(part, rebuild)) if is_rebuilt else []
            for action, verdict, reason in (yield from self._send(part, self._index.name)):
                self._note(batch, action, verdict, reason)
            for action, verdict, reason in filled:
                # Missing: a rebuild that was given up, or has come to its end, so that the alias has its index.
                if verdict not in (Verdict.DONE, Verdict.MISSING):
                    self._note(batch, action, verdict, reason)

    def _note(self, batch: _Batch, action: Action, verdict: Verdict, reason: str) -> None:
        assert action.key is not None
        row = batch.rows[action.key]
        if verdict is Verdict.DONE:
            row.state = "done"
        elif verdict is Verdict.REFUSED:
            row.failure = Failure("document", f"Elasticsearch refuses the document: {reason}", is_final=True)
        elif verdict is Verdict.MISSING:
            raise index_missing(self._index.name)
        else:
            row.state = "waiting" if verdict is Verdict.LATER else "late"
            if verdict is Verdict.LATER:
                logger.info("%s tries a document of %s again: %s", self.name, self._index.name, reason)

    def _send(self, actions: Sequence[Action], alias: str) -> Steps[list[tuple[Action, Verdict, str]]]:
        """Send actions, and return what became of each."""
        found = yield from self._sender.send(actions, alias)
        if any(verdict is Verdict.REFUSED for _, verdict, _ in found) and alias == self._index.name:
            # Is it the document, or has the alias another index by now?
            self._is_checked = False
            yield from self._check()
        return found

    def _settle(self, batch: _Batch, pause: float | None, *, go_on: bool) -> Steps[tuple[Outcome, _Batch | None]]:
        """Delete the entries whose documents are written, and take the next ones in the same transaction."""
        later = random.uniform(0.02, 0.1)

        def run(connection: Connection, *, follow: bool) -> tuple[Outcome, _Batch | None]:
            outcome = self._finish(connection, batch, later if pause is None else pause)
            return outcome, self._claim(connection) if follow and not self._stopping else None

        try:
            settled = Transaction(lambda connection: run(connection, follow=go_on))
            answer: tuple[Outcome, _Batch | None] = yield from self._insist(settled, go_on=go_on)
        except Exception as error:
            if is_passing(error) or not is_of_values(error):
                raise
            # Of a row that was to be the next batch's; there _take() will meet it.
            settled = Transaction(lambda connection: run(connection, follow=False))
            answer = yield from self._insist(settled, go_on=go_on)
        for entry, failure, is_dead in batch.failed:
            name, attempts = (self.name, entry.entity, entry.row_key), entry.attempts + 1
            yield from self._watch.tell(RowFailed(*name, failure.kind, failure.reason, attempts, is_dead))
        return answer

    def _finish(self, connection: Connection, batch: _Batch, later: float) -> Outcome:
        batch.failed.clear()
        outbox, token = self._outbox, batch.token
        done, waiting, late = (
            {key: row for key, row in batch.rows.items() if row.failure is None and row.state == state}
            for state in ("done", "waiting", "late")
        )
        forget(connection, outbox, [entry for row in done.values() for entry in row.dead])
        finished = batch.all_rows if batch.swept else []
        acknowledge(connection, outbox, token, [*_ids(done), *(entry.id for entry in finished)])
        unswept = [] if batch.swept else [entry.id for entry in batch.all_rows]
        postpone(connection, outbox, token, [*_ids(waiting), *_ids(late), *unswept], later)
        for row in batch.rows.values():
            if row.failure is not None:
                *others, last = row.entries
                acknowledge(connection, outbox, token, [entry.id for entry in others])
                self._bury(connection, batch, last, row.failure)
        for entry, reason in batch.broken:
            self._bury(connection, batch, entry, Failure("entry", reason, is_final=True))
        return Outcome(
            entries=len(batch.ids),
            written=len(done),
            late=len(_ids(late)) + len(unswept),
            dead=len(batch.failed),
            postponed=len(_ids(waiting)),
        )

    def _bury(self, connection: Connection, batch: _Batch, entry: Entry, failure: Failure) -> None:
        bury(connection, self._outbox, batch.token, entry, failure.reason, None, self.channel)
        batch.failed.append((entry, failure, True))


def _ids(rows: Mapping[Key, _Row] | Iterable[_Row]) -> list[int]:
    all_rows = rows.values() if isinstance(rows, Mapping) else rows
    return [entry.id for row in all_rows for entry in row.entries]
