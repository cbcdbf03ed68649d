"""What a worker does with a batch of entries: takes them, finds what is stale, and writes what was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from numpy.typing import NDArray
from sqlalchemy import Connection, Table, delete, exists, select

from sqla_vector.embedding import EmbeddedColumn, Model
from sqla_vector.tracking.derived import Derived
from sqla_vector.tracking.entries import existing
from sqla_vector.tracking.events import FailureKind
from sqla_vector.tracking.outbox import CHANNEL, DEAD, Entry, acknowledge, bury, claim, postpone, put
from sqla_vector.tracking.patience import is_of_values, why_of
from sqla_vector.tracking.related import has_relations, lock_related
from sqla_vector.tracking.targets import Embedders, Key, Target
from sqla_vector.tracking.texts import RowState, Write, read, write
from sqla_vector.types import support_of

__all__ = ["WHOLE", "Batch", "Failure", "Job", "Row", "finish", "take", "write_made"]

WHOLE: Final = ""
"""In the place of a column: the row as a whole fails."""

RowName = tuple[str, Key]
"""A row: its entity and its key."""


@dataclass(slots=True)
class Job:
    """A vector to be made, or to be taken away from a row that has no text any more."""

    target: Target
    column: EmbeddedColumn
    state: RowState
    wanted: str | None
    is_stale: bool

    @property
    def row(self) -> RowName:
        """The row."""
        return self.target.entity, self.state.key


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a row has no vector."""

    kind: FailureKind
    reason: str
    is_final: bool = False
    """Whether trying again is of no use."""


@dataclass
class Row:
    """A row of a batch."""

    entries: list[Entry] = field(default_factory=list)
    failures: dict[str, Failure] = field(default_factory=dict)
    """Why it lacks what it should have, by the column; a row that is refused as a whole has one without a name."""
    is_late: bool = False
    """Whether it is left for later, since somebody is changing it."""

    @property
    def failure(self) -> Failure | None:
        """All of them as one, which is final if none of them is worth another attempt."""
        failures = list(self.failures.values())
        if len(failures) < 2:
            return failures[0] if failures else None
        reason = "; ".join(failure.reason for failure in failures)
        return Failure(failures[0].kind, reason, all(failure.is_final for failure in failures))

    @property
    def ids(self) -> list[int]:
        """The entries that name it."""
        return [entry.id for entry in self.entries]


@dataclass
class Batch:
    """Entries that were taken, by the rows that they name."""

    token: str
    embedders: Embedders
    """As they were when the entries were taken."""
    rows: dict[RowName, Row] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    broken: list[tuple[Entry, str]] = field(default_factory=list)
    """Entries that name no row, and why."""
    vectors: dict[str, NDArray[Any]] = field(default_factory=dict)
    """What was made, by the fingerprint."""
    began: int = 0
    """When the claim began, in nanoseconds since 1970."""
    claimed: int = 0
    """When it ended."""
    seen: object | None = None
    """The database's state as the rows were read, None where a database does not tell."""
    failed: list[tuple[Entry, Failure, bool]] = field(default_factory=list)
    """Entries whose failure was written down, and whether they are dead."""

    def split(self) -> list[Batch]:
        """Return a batch for each row, and one for what names none."""
        parts = [
            replace(self, rows={name: row}, jobs=[job for job in self.jobs if job.row == name], broken=[], failed=[])
            for name, row in self.rows.items()
        ]
        return [*parts, replace(self, rows={}, jobs=[], failed=[])]

    def __len__(self) -> int:
        return len(self.broken) + sum(len(row.entries) for row in self.rows.values())


def take(
    connection: Connection,
    outbox: Table,
    targets: Sequence[Target],
    embedders: Embedders,
    token: str,
    limit: int,
    lease: float,
    *,
    is_careful: bool = False,
) -> Batch:
    """Claim entries, and find out which of their rows are stale.

    Args:
        connection: in a transaction that has the right to write.
        outbox: the table.
        targets: the classes.
        embedders: by name.
        token: names the claim.
        limit: entries at most.
        lease: seconds.
        is_careful: a row that cannot be read for a column has that for a failure, and if a key cannot be sought none
            of the entries names a row; else the error is raised.
    """
    embedders = embedders.at(lambda column: connection)
    batch = Batch(token, embedders)
    by_entity: dict[str, list[Target]] = {}
    for target in targets:
        by_entity.setdefault(target.entity, []).append(target)
    for entry in claim(connection, outbox, token, limit, lease, CHANNEL, by_entity):
        try:
            key = by_entity[entry.entity][0].decode(entry.row_key)
        except (ValueError, TypeError, RecursionError) as error:
            batch.broken.append((entry, f"the entry names no row: {error}"))
        else:
            batch.rows.setdefault((entry.entity, key), Row()).entries.append(entry)
    if not is_careful:
        _find_all_stale(connection, batch, by_entity, embedders)
        batch.seen = support_of(connection.dialect).state(connection)
        return batch
    try:
        with connection.begin_nested():
            _find_all_stale(connection, batch, by_entity, embedders, is_careful=True)
    except Exception as error:
        if not is_of_values(error):
            raise
        why = f"the row cannot be read: {why_of(error)}"
        unread = [(entry, why) for row in batch.rows.values() for entry in row.entries]
        return Batch(token, embedders, broken=[*batch.broken, *unread])
    return batch


def _find_all_stale(
    connection: Connection,
    batch: Batch,
    by_entity: Mapping[str, Sequence[Target]],
    embedders: Embedders,
    *,
    is_careful: bool = False,
) -> None:
    for entity, owners in by_entity.items():
        keys = [key for name, key in batch.rows if name == entity]
        if keys:
            for target in owners:
                for column in target.columns:
                    _find_stale(connection, batch, target, column, keys, embedders, is_careful=is_careful)


def _find_stale(
    connection: Connection,
    batch: Batch,
    target: Target,
    column: EmbeddedColumn,
    keys: Sequence[Key],
    embedders: Embedders,
    *,
    is_careful: bool,
) -> None:
    model = embedders.model(column)
    for key, state in read(connection, target, column, keys, is_careful=is_careful).items():
        wanted = state.wanted(model)
        if state.error is not None:
            failure = Failure("text", f"{column}: {state.error}", is_final=True)
            batch.rows[target.entity, key].failures[str(column)] = failure
            # Looked at again by finish(), too.
            batch.jobs.append(Job(target, column, state, None, False))
        elif not (is_current := state.has(wanted)) or has_relations(column):
            # Current by what is committed; somebody may be changing a related row, as finish() finds out.
            batch.jobs.append(Job(target, column, state, wanted, not is_current))


def finish(
    connection: Connection,
    outbox: Table,
    batch: Batch,
    embedders: Embedders,
    delays: Sequence[float],
    later: float,
    derived: Sequence[Derived] = (),
) -> dict[str, int]:
    """Write what was made for rows that are still as they were read, and settle the entries.

    Args:
        connection: in a transaction that has the right to write.
        outbox: the table.
        batch: what was taken.
        embedders: by name.
        delays: seconds until the next attempt, after the first failure, the second and so on; then it is dead.
        later: seconds until a row is looked at again that somebody is changing.
        derived: what is made of texts.

    Returns:
        The number of rows by what became of them.
    """
    batch.failed.clear()
    # Another model may have come into force meanwhile; its rows are then left for later.
    written = _write_all(connection, batch, embedders.at(lambda column: connection, hold=True))
    for made in derived:
        written |= _bring_into_step(connection, outbox, batch, made)
    done = {name: row for name, row in batch.rows.items() if row.failure is None and not row.is_late}
    late = [row for row in batch.rows.values() if row.failure is None and row.is_late]
    failed = [(row, row.failure) for row in batch.rows.values() if row.failure is not None]
    _forget_dead(connection, outbox, done)
    acknowledge(connection, outbox, batch.token, [id_ for row in done.values() for id_ in row.ids])
    postpone(connection, outbox, batch.token, [id_ for row in late for id_ in row.ids], later)
    dead = postponed = 0
    for row, failure in failed:
        *others, last = row.entries
        acknowledge(connection, outbox, batch.token, [entry.id for entry in others])
        if row.is_late and _is_last(last, failure, delays):
            # Of what else the row should have nothing would be made any more.
            postpone(connection, outbox, batch.token, [last.id], later)
            postponed += 1
        else:
            dead += _bury(connection, outbox, batch, last, failure, delays)
    for entry, reason in batch.broken:
        dead += _bury(connection, outbox, batch, entry, Failure("entry", reason, is_final=True), delays)
    return {
        "written": len({name for name in written if not batch.rows[name].failures}),
        "current": len(done.keys() - written),
        "late": len(late) + postponed,
        "retried": len(failed) + len(batch.broken) - dead - postponed,
        "dead": dead,
    }


def _bring_into_step(connection: Connection, outbox: Table, batch: Batch, derived: Derived) -> set[RowName]:
    """Write the rows that are made of those of a batch, and entries for those whose vectors are to be made."""
    entity = derived.target.entity
    keys = [key for name, key in batch.rows if name == entity]
    if not keys:
        return set()
    difference = derived.compare(connection, keys, lock=True)
    for key, why in difference.errors.items():
        batch.rows[entity, key].failures[str(derived)] = Failure("text", f"{derived}: {why}", is_final=True)
    for key in difference.late:
        batch.rows[entity, key].is_late = True
    without = derived.write(connection, difference, {})
    put(connection, outbox, [(derived.rows.entity, derived.rows.encode(key)) for key in without])
    return {(entity, key) for key in difference.changed}


def _bury(
    connection: Connection, outbox: Table, batch: Batch, entry: Entry, failure: Failure, delays: Sequence[float]
) -> bool:
    is_dead = _is_last(entry, failure, delays)
    bury(connection, outbox, batch.token, entry, failure.reason, None if is_dead else delays[entry.attempts])
    batch.failed.append((entry, failure, is_dead))
    return is_dead


def _is_last(entry: Entry, failure: Failure, delays: Sequence[float]) -> bool:
    return failure.is_final or entry.attempts >= len(delays)


def _write_all(connection: Connection, batch: Batch, embedders: Embedders) -> set[RowName]:
    written: set[RowName] = set()
    by_column: dict[tuple[int, int], list[Job]] = {}
    failed: dict[tuple[int, int], list[Job]] = {}
    for job in batch.jobs:
        failures = batch.rows[job.row].failures
        # What fails for one column must not keep the others on vectors of old texts.
        if not failures or not failures.keys() & {WHOLE, str(job.column)}:
            # By what they are, not by what is in them: that would be hashed for every row.
            by_column.setdefault((id(job.target), id(job.column)), []).append(job)
        elif WHOLE not in failures:
            failed.setdefault((id(job.target), id(job.column)), []).append(job)
    for jobs in failed.values():
        _look_again(connection, batch, jobs[0].target, jobs[0].column, jobs, embedders)
    for jobs in by_column.values():
        written |= _write_column(connection, batch, jobs[0].target, jobs[0].column, jobs, embedders)
    return written


def _look_again(
    connection: Connection,
    batch: Batch,
    target: Target,
    column: EmbeddedColumn,
    jobs: Sequence[Job],
    embedders: Embedders,
) -> None:
    """Forget failures of texts that rows do not have any more: others may have put them right, and be done with it."""
    if batch.seen is not None and batch.seen == support_of(connection.dialect).state(connection):
        return
    model = embedders.model(column)
    keys = [job.state.key for job in jobs]
    now = read(connection, target, column, keys, lock=True, is_careful=True)
    there = existing(connection, target, [key for key in keys if key not in now])
    for job in jobs:
        row, state = batch.rows[job.row], now.get(job.state.key)
        if state is None:
            # Locked by somebody who is changing it, or deleted.
            row.is_late |= job.state.key in there
            is_over = job.state.key not in there
        else:
            wanted = state.wanted(model)
            is_current = state.has(wanted)
            is_other = (state.text, state.error, wanted) != (job.state.text, job.state.error, job.wanted)
            row.is_late |= is_other and not is_current
            is_over = is_other or is_current
        if is_over:
            row.failures.pop(str(column), None)


def _write_column(
    connection: Connection,
    batch: Batch,
    target: Target,
    column: EmbeddedColumn,
    jobs: Sequence[Job],
    embedders: Embedders,
) -> set[RowName]:
    # After each column anew: what it writes may change others, by triggers of the user's.
    is_as_read = batch.seen is not None and batch.seen == support_of(connection.dialect).state(connection)
    model = embedders.model(column)
    written, late = write_made(connection, target, column, model, jobs, batch.vectors, is_as_read=is_as_read)
    for key in late:
        batch.rows[target.entity, key].is_late = True
    return {(target.entity, key) for key in written}


def write_made(
    connection: Connection,
    target: Target,
    column: EmbeddedColumn,
    model: Model,
    jobs: Sequence[Job],
    vectors: Mapping[str, NDArray[Any]],
    *,
    is_as_read: bool = False,
) -> tuple[set[Key], set[Key]]:
    """Write vectors for rows whose text is still the one that they were made of, and keep others from changing it.

    Args:
        connection: in a transaction that has the right to write.
        target: the class.
        column: one of its columns.
        model: the present one.
        jobs: the rows, as they were read.
        vectors: by the fingerprint.
        is_as_read: nobody has changed anything since the rows were read, nor can now.

    Returns:
        The keys that were written, and those that somebody is changing.
    """
    keys = [job.state.key for job in jobs]
    before = {job.state.key: job.state for job in jobs}
    free = lock_related(connection, target, column, keys) if has_relations(column) else before.keys()
    now = before if is_as_read else read(connection, target, column, keys, lock=True, before=before)
    exist = now.keys() if before.keys() <= now.keys() else set(read(connection, target, column, keys))
    writes: list[Write] = []
    late: set[Key] = set()
    of_model = f"{model}:"
    for job in jobs:
        key = job.state.key
        state = now.get(key)
        if state is None:
            # Deleted meanwhile, or locked by somebody who is changing it.
            late |= {key} & exist
        elif key not in free or state.error is not None or _wanted(state, job, model, of_model) != job.wanted:
            late.add(key)
        elif not state.has(job.wanted):
            vector = vectors.get(job.wanted) if job.wanted is not None else None
            if vector is None and job.wanted is not None:
                late.add(key)
            else:
                writes.append(Write(key, vector, job.wanted))
    write(connection, target, column, writes)
    return {row.key for row in writes}, late


def _wanted(state: RowState, job: Job, model: Model, of_model: str) -> str | None:
    is_same = state.text is job.state.text and job.wanted is not None and job.wanted.startswith(of_model)
    return job.wanted if is_same else state.wanted(model)


def _forget_dead(connection: Connection, outbox: Table, rows: Mapping[RowName, Row]) -> None:
    """Delete dead entries of rows that are current now."""
    c = outbox.c
    if not rows or not connection.scalar(select(exists().where(c.channel == CHANNEL, c.state == DEAD))):
        return
    by_entity: dict[str, set[str]] = {}
    for (entity, _), row in rows.items():
        by_entity.setdefault(entity, set()).update(entry.row_key for entry in row.entries)
    for entity, row_keys in by_entity.items():
        listed = sorted(row_keys)
        for start in range(0, len(listed), 500):
            same = (c.channel == CHANNEL, c.state == DEAD, c.entity == entity)
            connection.execute(delete(outbox).where(*same, c.row_key.in_(listed[start : start + 500])))
