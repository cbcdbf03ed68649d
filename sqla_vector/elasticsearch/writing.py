"""Documents of rows written into an index, by any number of threads or tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Generic, TypeVar

from sqla_vector.elasticsearch.actions import Action, Verdict, delete_action, index_action, parts
from sqla_vector.elasticsearch.rows import Rows
from sqla_vector.elasticsearch.sending import Sender
from sqla_vector.exc import IndexMissing, SearchUnavailable
from sqla_vector.tracking.steps import AnyOf, Start, Steps
from sqla_vector.tracking.targets import Key

__all__ = ["Crew", "Writer", "Written"]

T = TypeVar("T")

_MOST_ACTIONS: Final = 2000


@dataclass
class Written:
    """What became of rows."""

    written: int = 0
    refused: dict[Key, str] = field(default_factory=dict)
    """Rows that cannot be documents, and why."""
    is_done: bool = False
    """Whether all were seen to; not if the run was stopped before."""


@dataclass
class Writer:
    """Writes the documents of rows as the rows are now.

    Each attempt draws a number, reads rows after that, and sends them with that number as their version.  A change
    that is committed later has an entry, and whoever works that off draws a larger number.  So nothing that is sent
    here can undo it, as long as the server remembers the versions of deleted documents, which is why rows that were
    read too long ago are read again.

    Args:
        rows: where they are.
        sender: where they go.
        alias: of the index; it must be one, so that no index is ever made by a write.
        max_bytes: of a request.
        fresh: seconds after which what was read is not sent any more.
    """

    rows: Rows
    sender: Sender
    alias: str
    max_bytes: int
    fresh: float
    drawn: int = 0
    """The largest number so far."""

    def write(self, keys: Sequence[Key], *, delete_gone: bool = False) -> Steps[Written]:
        """Write the documents of rows, and read and write those again that the server does not take now.

        Args:
            keys: of the rows.
            delete_gone: delete the documents of those that are not there.

        Raises:
            IndexMissing: there is no index behind the alias.
            SearchUnavailable: the server took none of them for too long.
        """
        result, rest = Written(), list(keys)
        failures, since = 0, time.monotonic()
        while rest:
            version = yield from self.rows.draw()
            self.drawn = max(self.drawn, version)
            until = time.monotonic() + self.fresh
            found = yield from self.rows.documents(rest)
            actions = []
            for key in rest:
                document = found.get(key)
                if document is not None and document.error is not None:
                    result.refused[key] = document.error
                elif document is not None:
                    actions.append(index_action(document, version))
                elif delete_gone:
                    actions.append(delete_action(self.rows.index.document_id(key), key, version))
            found.clear()
            late, reason = yield from self._send_all(actions, until, result)
            if len(late) < len(rest):
                failures, since = 0, time.monotonic()
            rest = late
            if not rest:
                break
            failures += 1
            if time.monotonic() - since > self.rows.patience.max_outage:
                raise SearchUnavailable(
                    f"{self.alias} takes no documents: {reason}; what is written stays, go on later"
                )
            if (yield from self.rows.patience.wait(failures, reason)):
                return result
        result.is_done = True
        return result

    def _send_all(self, actions: Sequence[Action], until: float, result: Written) -> Steps[tuple[list[Key], str]]:
        """Send actions, and return the keys of those that are to be read again, and why."""
        late: list[Key] = []
        reason, is_over = "", False
        for part in parts(actions, _MOST_ACTIONS, self.max_bytes):
            if time.monotonic() > until:
                reason, is_over = "what was read is too old to be sent", True
            try:
                answers = [] if is_over else (yield from self.sender.send(part, self.alias))
            except SearchUnavailable as error:
                reason, is_over = str(error), True
            if is_over:
                late += [action.key for action in part if action.key is not None]
                continue
            for action, verdict, why in answers:
                assert action.key is not None
                if verdict is Verdict.DONE:
                    result.written += action.source is not None
                elif verdict is Verdict.REFUSED:
                    result.refused[action.key] = f"Elasticsearch refuses the document: {why}"
                elif verdict is Verdict.MISSING:
                    raise IndexMissing(
                        f"there is no index {self.alias} any more: somebody abandoned it, or finished it"
                    )
                else:
                    late.append(action.key)
                    reason = why
        return late, reason

    def delete(self, documents: Sequence[tuple[str, str | None]]) -> Steps[int]:
        """Delete documents that are of no row, by ids and routings; return of how many the server said so."""
        if not documents:
            return 0
        version = yield from self.rows.draw()
        self.drawn = max(self.drawn, version)
        number = 0
        actions = [delete_action(id_, None, version, routing) for id_, routing in documents]
        for part in parts(actions, _MOST_ACTIONS, self.max_bytes):
            answers = yield from self.rows.patience.insist(partial(self.sender.send, part, self.alias))
            number += sum(verdict is Verdict.DONE for _, verdict, _ in answers)
        return number


class Crew(Generic[T]):
    """Has steps done at the same time: in threads, in asynchronous programs in tasks.

    Args:
        workers: how many at a time; a single one works in the caller's place.
        done: is given each result, in the order in which they come.
        stop: is called if one fails; the others are finished then, and the error is raised.
    """

    def __init__(self, workers: int, done: Callable[[T], Steps[None]], stop: Callable[[], object]) -> None:
        self._workers, self._done, self._stop = workers, done, stop
        self._running: list[Any] = []

    def run(self, orders: Callable[[], Steps[None]]) -> Steps[None]:
        """Do steps that call :meth:`add`, and wait until all is done that they have added."""
        try:
            yield from orders()
            while self._running:
                yield from self._wait()
        except GeneratorExit:
            raise
        except BaseException:
            self._stop()
            while self._running:
                finished = yield AnyOf(list(self._running))
                self._running = [run for run in self._running if run not in finished]
            raise

    def add(self, steps: Steps[T]) -> Steps[None]:
        """Begin with steps, and wait if there are enough that are begun."""
        if self._workers == 1:
            yield from self._done((yield from steps))
            return
        self._running.append((yield Start(steps)))
        if len(self._running) >= self._workers:
            yield from self._wait()

    def _wait(self) -> Steps[None]:
        finished = yield AnyOf(list(self._running))
        self._running = [run for run in self._running if run not in finished]
        for run in finished:
            yield from self._done(run.result())
