"""``check_chunks()``: whether the chunks of all rows are those of their texts, and a repair."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Final, Literal

from sqlalchemy import Connection, Table, exists, select, tuple_
from sqlalchemy.orm import Session, scoped_session

from sqla_vector.asynchrony import AsyncSession, async_scoped_session
from sqla_vector.chunking.rows import Chunking
from sqla_vector.exc import InvalidOption
from sqla_vector.tracking.derived import derived_of
from sqla_vector.tracking.mirrors import is_among
from sqla_vector.tracking.outbox import check_outbox, put
from sqla_vector.tracking.progress import Meter, OnProgress, count_rows
from sqla_vector.tracking.scope import Scope
from sqla_vector.tracking.session import tracking_behind
from sqla_vector.tracking.steps import Steps, Transaction, is_asynchronous
from sqla_vector.tracking.targets import Embedders, Key, Models
from sqla_vector.tracking.texts import keys_after

__all__ = ["ChunkReport", "ChunksOf", "acheck_chunks", "check_chunks"]

_BATCH: Final = 200
_EXAMPLES: Final = 5

Kind = Literal["missing", "stale", "orphaned", "invalid"]


@dataclass
class ChunksOf:
    """How the chunks of one class are."""

    chunks: str
    """What they are called, such as ``Document.chunks``."""
    rows: int = 0
    """Rows that have a text, or could have one."""
    current: int = 0
    """Those of which the chunks are those of the text."""
    missing: int = 0
    """Those with a text and without any chunk."""
    stale: int = 0
    """Those with other chunks than the text gives."""
    invalid: int = 0
    """Those of whose text no chunks can be made."""
    orphaned: int = 0
    """Rows that are gone, and have chunks still."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Some keys of each kind, as the outbox has them: ``[7]``."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why no chunks can be made of those that are examples, by the key."""

    @property
    def is_clean(self) -> bool:
        """Whether all chunks are those of their texts."""
        return self.current == self.rows and not self.orphaned

    def add(self, kind: Kind, names: Sequence[str]) -> None:
        """Count rows that are not as they should be."""
        setattr(self, kind, getattr(self, kind) + len(names))
        listed = self.examples.setdefault(kind, [])
        listed += names[: _EXAMPLES - len(listed)]


@dataclass
class ChunkReport:
    """What :func:`check_chunks` found."""

    chunks: list[ChunksOf] = field(default_factory=list)
    fixed: int = 0
    """Rows whose chunks were put right by ``fix=True``."""

    @property
    def is_clean(self) -> bool:
        """Whether all chunks were those of their texts."""
        return all(one.is_clean for one in self.chunks)

    @property
    def is_settled(self) -> bool:
        """Whether all chunks are those of their texts now, after ``fix=True``."""
        wrong = sum(one.missing + one.stale + one.orphaned for one in self.chunks)
        return wrong == self.fixed and not any(one.invalid for one in self.chunks)

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as what can be written as JSON."""
        return {"is_clean": self.is_clean, **asdict(self)}

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for one in self.chunks:
            counts = {"missing": one.missing, "stale": one.stale, "invalid": one.invalid, "orphaned": one.orphaned}
            found = [f"{number:,} {kind}" for kind, number in counts.items() if number]
            yield f"{one.chunks}: " + ", ".join([f"{one.current:,} of {one.rows:,} rows current", *found])
        if self.fixed:
            yield f"{self.fixed:,} put right"


def check_chunks(
    sessions: Any,
    *,
    models: Models | None = None,
    outbox: Table | None = None,
    fix: bool = False,
    on_progress: OnProgress | None = None,
) -> ChunkReport:
    """Compare the chunks of every row with what its text gives, also where nothing noticed a change.

    Rows are read in the order of their keys, in batches, each in a transaction of its own.  Whether the chunks have
    vectors is the matter of :func:`sqla_vector.tracking.check`.

    Args:
        sessions: a ``sessionmaker``, or a session, in whose transaction all of it happens then.
        models: a declarative base, a registry or mapped classes, where not all are meant.
        outbox: the table, if not that of :func:`~sqla_vector.tracking.track`; there may be none.
        fix: write the chunks that should be there, and delete the others.  Those that are new get an entry in the
            outbox, so that a worker embeds them; without an outbox ``backfill()`` does.
        on_progress: is called with a :class:`~sqla_vector.tracking.Progress` after each batch.

    Raises:
        InvalidOption: an argument is none, or no class of the models has chunks.
    """
    scope, chunkings = _scope(sessions, models, outbox, fix)
    report: ChunkReport = scope.driver("check_chunks", is_async=False).run(_check(scope, chunkings, fix, on_progress))
    return report


async def acheck_chunks(
    sessions: Any,
    *,
    models: Models | None = None,
    outbox: Table | None = None,
    fix: bool = False,
    on_progress: OnProgress | None = None,
) -> ChunkReport:
    """Do the same as :func:`check_chunks`, with asynchronous sessions."""
    scope, chunkings = _scope(sessions, models, outbox, fix)
    driver = scope.driver("check_chunks", is_async=True)
    report: ChunkReport = await driver.run(_check(scope, chunkings, fix, on_progress))
    return report


def _scope(sessions: Any, models: Models | None, outbox: Table | None, fix: bool) -> tuple[Scope, list[Chunking]]:
    if not isinstance(fix, bool):
        raise InvalidOption(f"fix must be True or False, got {fix!r}")
    if isinstance(sessions, (scoped_session, async_scoped_session)):
        sessions = sessions.session_factory
    is_async = isinstance(sessions, AsyncSession)
    if not isinstance(sessions, (Session, AsyncSession)):
        is_async = is_asynchronous(sessions)
    tracking = tracking_behind(sessions)
    if tracking is not None:
        models = tracking.plans.models if models is None else models
        outbox = tracking.outbox if outbox is None else outbox
    found = [one for one in derived_of() if isinstance(one, Chunking)]
    chunkings = [one for one in found if is_among(one.mapper, models) or is_among(one.rows.mapper, models)]
    if not chunkings:
        raise InvalidOption("there is nothing to check: no class of these models was given to chunked()")
    columns = tuple((one.target, one.column) for one in chunkings)
    return Scope(
        sessions, is_async, Embedders({}), None if outbox is None else check_outbox(outbox), columns
    ), chunkings


def _check(
    scope: Scope, chunkings: Sequence[Chunking], fix: bool, on_progress: OnProgress | None
) -> Steps[ChunkReport]:
    report = ChunkReport()
    for chunking in chunkings:
        found = ChunksOf(str(chunking))
        report.chunks.append(found)
        total = 0
        if on_progress is not None:
            total = yield Transaction(partial(count_rows, target=chunking.target), to_write=False)
        meter = Meter(found.chunks, total, on_progress)
        after: Key | None = None
        while True:
            keys: list[Key] = yield Transaction(partial(_keys, chunking=chunking, after=after), to_write=False)
            if not keys:
                break
            wrong = yield Transaction(partial(_look, chunking=chunking, keys=keys, found=found), to_write=False)
            if fix and wrong:
                report.fixed += yield Transaction(partial(_fix, chunking=chunking, keys=wrong, outbox=scope.outbox))
            yield from meter.advance(len(keys))
            after = keys[-1]
        report.fixed += yield from _check_orphans(chunking, found, fix)
    return report


def _keys(connection: Connection, chunking: Chunking, after: Key | None) -> list[Key]:
    names = chunking.target.key_attributes
    stmt: Any = select(*names).order_by(*names).limit(_BATCH)
    if after is not None:
        stmt = stmt.where(keys_after(chunking.target, after))
    return [tuple(row) for row in connection.execute(stmt)]


def _look(connection: Connection, chunking: Chunking, keys: Sequence[Key], found: ChunksOf) -> list[Key]:
    """Count rows, and return those whose chunks can be put right."""
    difference = chunking.compare(connection, keys)
    encode = chunking.target.encode
    found.rows += len(keys)
    found.current += len(keys) - len(difference.changed) - len(difference.errors)
    found.add("missing", [encode(key) for key in keys if key in difference.missing])
    found.add("stale", [encode(key) for key in keys if key in difference.changed - difference.missing])
    found.add("invalid", [encode(key) for key in keys if key in difference.errors])
    for key, why in difference.errors.items():
        if encode(key) in found.examples["invalid"]:
            found.reasons[encode(key)] = why
    return [key for key in keys if key in difference.changed]


def _fix(connection: Connection, chunking: Chunking, keys: Sequence[Key], outbox: Table | None) -> int:
    """Put chunks right, but for those of rows that somebody is just changing."""
    difference = chunking.compare(connection, keys, lock=True)
    without = chunking.write(connection, difference, {})
    if outbox is not None:
        put(connection, outbox, [(chunking.rows.entity, chunking.rows.encode(key)) for key in without])
    return len(difference.changed)


def _check_orphans(chunking: Chunking, found: ChunksOf, fix: bool) -> Steps[int]:
    fixed = 0
    after: Key | None = None
    while True:
        keys: list[Key] = yield Transaction(partial(_orphans, chunking=chunking, after=after), to_write=False)
        if not keys:
            return fixed
        found.add("orphaned", [chunking.target.encode(key) for key in keys])
        if fix:
            fixed += yield Transaction(partial(_fix, chunking=chunking, keys=keys, outbox=None))
        after = keys[-1]


def _orphans(connection: Connection, chunking: Chunking, after: Key | None) -> list[Key]:
    """Return the next keys that chunks name and no row has."""
    table = chunking.made.__table__
    names = [table.c[name] for name in chunking.key_names]
    own = chunking.target.key_attributes
    is_there = exists(select(own[0]).where(*(a == b for a, b in zip(own, names, strict=True))).correlate(table))
    stmt: Any = select(*names).distinct().where(~is_there).order_by(*names).limit(_BATCH)
    if after is not None:
        stmt = stmt.where(names[0] > after[0] if len(after) == 1 else tuple_(*names) > tuple_(*after))
    return [tuple(row) for row in connection.execute(stmt)]
