"""What a backfill does with a batch: reads rows in the order of their keys, embeds them, writes what was made."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, Table
from sqlalchemy.exc import DBAPIError

from sqla_vector.embedding import EmbeddedColumn, Embedder, Model
from sqla_vector.exc import EmbedderUnavailable
from sqla_vector.tracking.calls import Calls, Made
from sqla_vector.tracking.entries import forget_dead, note
from sqla_vector.tracking.events import Outage
from sqla_vector.tracking.jobs import Job, write_made
from sqla_vector.tracking.limits import tokens_of
from sqla_vector.tracking.patience import Backoff, is_of_a_row, is_passing, said, why_of
from sqla_vector.tracking.steps import Pause, Steps, Transaction
from sqla_vector.tracking.targets import Key, Target
from sqla_vector.tracking.texts import RowState, read, read_after

__all__ = ["Batch", "Filling", "Reader"]

_READ: Final = 1000
"""Rows in one query: what is current costs no more than being read."""
_LOOKS: Final = 20
"""Queries for one batch at most, so that progress is seen also where few rows are stale."""
_ATTEMPTS: Final = 6
"""How often the database is tried, and a row that somebody is changing."""

Vectors = dict[str, NDArray[Any]]


@dataclass
class Batch:
    """Rows that are embedded together, and all rows between the batch before and the last of these."""

    number: int
    rows: int
    """How many there are, with those that are current."""
    end: Key | None
    """The key of the last one."""
    jobs: list[Job] = field(default_factory=list)
    refused: dict[Key, str] = field(default_factory=dict)
    """Rows that cannot have a vector, and why."""
    stale: int = 0
    written: int = 0
    left: int = 0
    """Rows that somebody was changing all the time."""
    tokens: int = 0
    is_done: bool = False
    """Whether all rows are seen to; not if the run was stopped before."""


@dataclass
class Filling:
    """Embeds and writes the rows of one embedded column."""

    target: Target
    column: EmbeddedColumn
    model: Model
    embedder: Embedder | None
    """None if nothing is to be embedded."""
    outbox: Table | None
    calls: Calls
    backoff: Backoff
    max_outage: float | None
    count_tokens: Callable[[str], int]

    def job_of(self, state: RowState) -> Job | str | None:
        """Return what is to be done with a row: nothing if it is current, a reason if it cannot have a vector."""
        if state.error is not None:
            return state.error
        wanted = state.wanted(self.model)
        return None if state.has(wanted) else Job(self.target, self.column, state, wanted, True)

    def estimate(self, batch: Batch) -> None:
        """Count what a batch would cost."""
        texts = {job.state.text for job in batch.jobs if job.state.text is not None}
        batch.tokens = sum(tokens_of(text, self.count_tokens) for text in texts)
        batch.is_done = True

    def work_off(self, batch: Batch) -> Steps[Batch]:
        """Embed and write the rows of a batch, unless the run is stopped before."""
        vectors: Vectors = {}
        jobs, attempt = batch.jobs, 0
        while jobs:
            if not (yield from self._embed(batch, jobs, vectors)):
                return batch
            late: set[Key] = set()
            yield from self._write(batch, [job for job in jobs if job.state.key not in batch.refused], vectors, late)
            if not late:
                break
            attempt += 1
            if attempt == _ATTEMPTS or (yield Pause(0.02 * 2.0**attempt)):
                batch.left = len(late)
                yield from self._note(late)
                break
            jobs = yield from self.insist(
                Transaction(partial(self._read_again, batch=batch, keys=sorted(late, key=repr)), to_write=False)
            )
        if batch.refused:
            yield from self._note(batch.refused)
        batch.jobs.clear()
        batch.is_done = True
        return batch

    def _read_again(self, connection: Connection, batch: Batch, keys: Sequence[Key]) -> list[Job]:
        jobs = []
        for key, state in read(connection, self.target, self.column, keys, is_careful=True).items():
            job = self.job_of(state)
            if isinstance(job, str):
                batch.refused[key] = job
            elif job is not None:
                jobs.append(job)
        return jobs

    def _embed(self, batch: Batch, jobs: Sequence[Job], vectors: Vectors) -> Steps[bool]:
        """Embed texts, waiting for the embedder as long as need be; False if the run was stopped meanwhile."""
        name, embedder = self.column.spec.embedder, self.embedder
        assert embedder is not None
        by_text: dict[str, list[Job]] = {}
        for job in jobs:
            if job.state.text is not None and str(job.wanted) not in vectors:
                by_text.setdefault(job.state.text, []).append(job)
        made: Made = {}
        failures, begun = 0, 0.0
        while rest := [text for text in by_text if text not in made]:
            known = len(made)
            try:
                yield from self.calls.embed(name, embedder, rest, made)
            except EmbedderUnavailable as error:
                failures = 1 if len(made) > known else failures + 1
                begun = time.monotonic() if failures == 1 else begun
                if self.max_outage is not None and time.monotonic() - begun > self.max_outage:
                    raise
                pause = self.backoff.after(failures, error.retry_after)
                yield from self.calls.watch.tell(Outage("embedder", embedder.name, str(error), pause))
                if (yield Pause(pause)):
                    return False
        for text, result in made.items():
            if isinstance(result, np.ndarray):
                vectors[str(by_text[text][0].wanted)] = result
                batch.tokens += tokens_of(text, self.count_tokens)
            else:
                batch.refused.update(dict.fromkeys((job.state.key for job in by_text[text]), result))
        return True

    def _write(self, batch: Batch, jobs: Sequence[Job], vectors: Vectors, late: set[Key]) -> Steps[None]:
        """Write what was made; rows that the database refuses are halved until the one is found."""
        if not jobs:
            return

        def run(connection: Connection) -> tuple[set[Key], set[Key]]:
            written, changing = write_made(connection, self.target, self.column, self.model, jobs, vectors)
            if self.outbox is not None and len(self.target.columns) == 1:
                # With several columns the entry may be about another one.
                forget_dead(connection, self.outbox, self.target, written)
            return written, changing

        try:
            written, changing = yield from self.insist(Transaction(run))
        except Exception as error:
            if not is_of_a_row(error):
                raise
            if len(jobs) == 1:
                batch.refused[jobs[0].state.key] = f"cannot be written: {why_of(error)}"
                return
            middle = len(jobs) // 2
            yield from self._write(batch, jobs[:middle], vectors, late)
            yield from self._write(batch, jobs[middle:], vectors, late)
        else:
            batch.written += len(written)
            late |= changing

    def _note(self, keys: Any) -> Steps[None]:
        """Leave rows to a worker, which tries again and says in the outbox why it fails."""
        if self.outbox is not None:
            yield from self.insist(Transaction(partial(note, outbox=self.outbox, target=self.target, keys=list(keys))))

    def insist(self, step: Transaction) -> Steps[Any]:
        """Do a step again while the database cannot be used, a few times."""
        failures = 0
        while True:
            try:
                return (yield step)
            except DBAPIError as error:
                failures += 1
                if not is_passing(error) or failures == _ATTEMPTS:
                    raise
                pause = self.backoff.after(failures)
                yield from self.calls.watch.tell(Outage("database", "", said(error), pause))
                if (yield Pause(pause)):
                    raise


@dataclass
class Reader:
    """Reads rows in the order of their keys, and puts together those that are not current."""

    filling: Filling
    after: Key | None
    size: int
    """Rows that are embedded together."""
    at_end: bool = False
    _found: list[tuple[int, Key, Job | str]] = field(default_factory=list)
    """Rows that are not current, each with its place among all."""
    _read: int = 0
    _given: int = 0
    _number: int = 0

    @property
    def is_exhausted(self) -> bool:
        """Whether all rows were given."""
        return self.at_end and self._given == self._read

    def next(self) -> Steps[Batch | None]:
        """Return the next rows; None after the last one."""
        looks = 0
        while len(self._found) < self.size and not self.at_end and looks < _LOOKS:
            yield from self._look()
            looks += 1
            if not self._found:
                break
        if self._read == self._given:
            return None
        part, self._found = self._found[: self.size], self._found[self.size :]
        # The rows after the last of these belong to the next batch, if there is one.
        place, end = (part[-1][0], part[-1][1]) if self._found else (self._read, self.after)
        batch = Batch(self._number, place - self._given, end, stale=len(part))
        for _, key, job in part:
            if isinstance(job, str):
                batch.refused[key] = job
            else:
                batch.jobs.append(job)
        self._number, self._given = self._number + 1, place
        return batch

    def _look(self) -> Steps[None]:
        filling = self.filling
        step = Transaction(
            partial(read_after, target=filling.target, column=filling.column, after=self.after, limit=_READ),
            to_write=False,
        )
        states: list[RowState] = yield from filling.insist(step)
        for place, state in enumerate(states, start=self._read + 1):
            job = filling.job_of(state)
            if job is not None:
                self._found.append((place, state.key, job))
        self._read += len(states)
        self.at_end = len(states) < _READ
        if states:
            self.after = states[-1].key
