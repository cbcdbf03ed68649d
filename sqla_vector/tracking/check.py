"""``check()``: whether every row has the vector of its text, and ``is_current()``, the same for one row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Final, Literal

from sqlalchemy import Connection, Table, inspect
from sqlalchemy.orm import InstanceState, Session

from sqla_vector.embedding import EmbeddedColumn, Model
from sqla_vector.exc import InvalidOption
from sqla_vector.tracking.entries import count_by_state, note, read_entries, rows_without
from sqla_vector.tracking.outbox import DEAD, PENDING
from sqla_vector.tracking.progress import Meter, OnProgress, count_rows
from sqla_vector.tracking.scope import Scope
from sqla_vector.tracking.session import tracking_behind
from sqla_vector.tracking.steps import Steps, Transaction
from sqla_vector.tracking.targets import Embedders, GivenEmbedders, Key, Models, Target, target_of, targets_of
from sqla_vector.tracking.texts import RowState, read, read_after

__all__ = ["Backlog", "ColumnReport", "Report", "acheck", "check", "is_current"]

_BATCH: Final = 1000
_EXAMPLES: Final = 5

Kind = Literal["current", "missing", "stale", "other_model", "orphaned", "invalid"]


@dataclass
class ColumnReport:
    """How the rows of one embedded column are."""

    column: str
    """The column, such as ``Article.embedding``."""
    entity: str
    """The table, as the outbox names it."""
    model: str
    """The present model, ``name@version``."""
    rows: int = 0
    current: int = 0
    """Rows with the vector of their text, and rows that have neither."""
    missing: int = 0
    """Rows with a text and without a vector, or with one of which nothing says what it is of."""
    stale: int = 0
    """Rows with the vector of another text."""
    other_models: dict[str, int] = field(default_factory=dict)
    """Rows with a vector by another model, or another version, by ``name@version``; ``unknown`` if none is named."""
    orphaned: int = 0
    """Rows without a text, with a vector."""
    invalid: int = 0
    """Rows whose text cannot be embedded."""
    unnoticed: int | None = None
    """Rows that are not current and that no entry names: no worker will look at them.  None without an outbox."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Some row keys of each kind, as the outbox has them: ``[7]``."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why the texts of those that are examples of invalid ones cannot be embedded, by row key."""

    @property
    def other_model(self) -> int:
        """Rows with a vector by another model, or another version."""
        return sum(self.other_models.values())

    @property
    def is_clean(self) -> bool:
        """Whether all rows are current."""
        return self.current == self.rows

    def add(self, target: Target, state: RowState, model: Model) -> bool:
        """Count a row, and tell whether it is current."""
        kind = _kind(state, model, self.model)
        self.rows += 1
        if kind == "current":
            self.current += 1
            return True
        if kind == "other_model":
            other = str(state.stored).rpartition(":")[0] or "unknown"
            self.other_models[other] = self.other_models.get(other, 0) + 1
        else:
            setattr(self, kind, getattr(self, kind) + 1)
        listed = self.examples.setdefault(kind, [])
        if len(listed) < _EXAMPLES:
            listed.append(target.encode(state.key))
            if state.error is not None:
                self.reasons[listed[-1]] = state.error
        return False


@dataclass
class Backlog:
    """The entries of one table in the outbox."""

    entity: str
    pending: int = 0
    dead: int = 0
    without_row: int = 0
    """Entries whose row is gone, or that name none.  A worker clears them away."""
    examples: dict[str, list[str]] = field(default_factory=dict)
    """Some row keys of those without a row."""


@dataclass
class Report:
    """What :func:`check` found."""

    columns: list[ColumnReport] = field(default_factory=list)
    backlogs: list[Backlog] = field(default_factory=list)
    """Empty without an outbox."""
    fixed: int = 0
    """Entries that were written by ``fix=True``."""

    @property
    def is_clean(self) -> bool:
        """Whether all rows are current, and no entry is dead."""
        return all(column.is_clean for column in self.columns) and not any(one.dead for one in self.backlogs)

    @property
    def unnoticed(self) -> int:
        """Rows that are not current and that no entry names, those that ``fix=True`` has just noted not counted."""
        return sum(column.unnoticed or 0 for column in self.columns)

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as what can be written as JSON."""
        return {"is_clean": self.is_clean, **asdict(self)}

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        for column in self.columns:
            counts = {
                "missing": column.missing,
                "stale": column.stale,
                **{f"by {other}": number for other, number in sorted(column.other_models.items())},
                "orphaned": column.orphaned,
                "invalid": column.invalid,
            }
            found = [f"{number:,} {kind}" for kind, number in counts.items() if number]
            if column.unnoticed:
                found.append(f"{column.unnoticed:,} unnoticed")
            yield f"{column.column}: " + ", ".join([f"{column.current:,} of {column.rows:,} rows current", *found])
        for one in self.backlogs:
            yield f"outbox, {one.entity}: {one.pending:,} pending, {one.dead:,} dead, {one.without_row:,} without a row"
        if self.fixed:
            yield f"{self.fixed:,} entries written"


def _kind(state: RowState, model: Model, name: str) -> Kind:
    if state.error is not None:
        return "invalid"
    wanted = state.wanted(model)
    if wanted is None:
        return "orphaned" if state.has_vector or state.stored is not None else "current"
    if state.stored is None or not state.has_vector:
        return "missing"
    if state.stored == wanted:
        return "current"
    return "stale" if state.stored.rpartition(":")[0] == name else "other_model"


def check(
    sessions: Any,
    *,
    models: Models | None = None,
    columns: Iterable[Any] | None = None,
    embedders: GivenEmbedders | None = None,
    outbox: Table | None = None,
    fix: bool = False,
    on_progress: OnProgress | None = None,
) -> Report:
    """Compare every row's fingerprint with the one that its text and the present model give.

    Rows are read in the order of their keys, in batches, each in a transaction of its own; vectors are not read.
    Whether a vector is made at flush or by a worker makes no difference.

    Args:
        sessions: a ``sessionmaker``, or a session, in whose transaction all of it happens then.
        models: a declarative base, a registry or mapped classes, where not all are meant.
        columns: attributes such as ``Article.embedding``, where not all are meant.
        embedders: by name, if not those of :func:`track`; a :class:`~sqla_vector.embedding.Model` is enough.
        outbox: the table, if not that of :func:`track`; there may be none.
        fix: write an entry for each row that is not current and that no entry names, so that a worker sees to it.
            Rows with a dead entry are left to whoever reads the reason.
        on_progress: is called with a :class:`Progress` after each batch.

    Raises:
        InvalidOption: an argument is none, there are no embedders, or no outbox for ``fix``.
    """
    scope = Scope.of("check()", sessions, embedders=embedders, outbox=outbox, models=models, columns=columns)
    report: Report = scope.driver("check", is_async=False).run(_check(scope, fix, on_progress))
    return report


async def acheck(
    sessions: Any,
    *,
    models: Models | None = None,
    columns: Iterable[Any] | None = None,
    embedders: GivenEmbedders | None = None,
    outbox: Table | None = None,
    fix: bool = False,
    on_progress: OnProgress | None = None,
) -> Report:
    """Do the same as :func:`check`, with asynchronous sessions."""
    scope = Scope.of("acheck()", sessions, embedders=embedders, outbox=outbox, models=models, columns=columns)
    report: Report = await scope.driver("check", is_async=True).run(_check(scope, fix, on_progress))
    return report


def _check(scope: Scope, fix: bool, on_progress: OnProgress | None) -> Steps[Report]:
    if not isinstance(fix, bool):
        raise InvalidOption(f"fix must be True or False, got {fix!r}")
    if fix and scope.outbox is None:
        raise InvalidOption("fix=True writes entries into an outbox; give outbox=, what outbox_table() returned")
    report = Report()
    for target, column in scope.columns:
        found = yield from _check_column(scope, target, column, fix, on_progress, report)
        report.columns.append(found)
    if scope.outbox is not None:
        for target in scope.targets:
            backlog = yield from _check_entries(scope.outbox, target)
            report.backlogs.append(backlog)
    return report


def _check_column(
    scope: Scope,
    target: Target,
    column: EmbeddedColumn,
    fix: bool,
    on_progress: OnProgress | None,
    report: Report,
) -> Steps[ColumnReport]:
    model = yield Transaction(lambda c: scope.embedders.at(lambda _: c).model(column), to_write=False)
    outbox = scope.outbox
    found = ColumnReport(str(column), target.entity, str(model), unnoticed=None if outbox is None else 0)
    total = 0
    if on_progress is not None:
        total = yield Transaction(lambda connection: count_rows(connection, target), to_write=False)
    meter = Meter(found.column, total, on_progress)
    after: Key | None = None

    def look(connection: Connection) -> tuple[int, Key | None, list[Key]]:
        states = read_after(connection, target, column, after, _BATCH)
        wrong = [state.key for state in states if not found.add(target, state, model)]
        unknown = rows_without(connection, outbox, target, wrong) if outbox is not None and wrong else []
        return len(states), states[-1].key if states else None, unknown

    while True:
        number, after, unknown = yield Transaction(look, to_write=False)
        if unknown and fix and outbox is not None:
            report.fixed += yield Transaction(partial(note, outbox=outbox, target=target, keys=unknown))
        elif found.unnoticed is not None:
            found.unnoticed += len(unknown)
        yield from meter.advance(number)
        if number < _BATCH:
            return found


def _check_entries(outbox: Table, target: Target) -> Steps[Backlog]:
    found = Backlog(target.entity)
    counts = yield Transaction(lambda c: count_by_state(c, outbox, target), to_write=False)
    found.pending, found.dead = counts.get(PENDING, 0), counts.get(DEAD, 0)
    after = 0
    while True:
        after, entries = yield Transaction(
            partial(read_entries, outbox=outbox, target=target, after=after, limit=_BATCH), to_write=False
        )
        for row_key, is_there in entries:
            if not is_there:
                found.without_row += 1
                listed = found.examples.setdefault("without_row", [])
                if len(listed) < _EXAMPLES:
                    listed.append(row_key)
        if len(entries) < _BATCH:
            return found


def is_current(
    session: Session,
    entity: object,
    attribute: Any,
    *,
    embedders: GivenEmbedders | None = None,
) -> bool:
    """Tell whether the database holds the vector of a row's text, in one query.

    The row is read as this session's transaction sees it; what the object has and was not flushed does not count.
    With an ``AsyncSession``: ``await session.run_sync(is_current, article, "embedding")``.

    Args:
        session: any session; those that are tracked know the embedders.
        entity: an object that was flushed or loaded.
        attribute: the embedded column: ``Article.embedding`` or ``"embedding"``.
        embedders: by name, if not those of :func:`track`.

    Returns:
        False also if the row is gone.

    Raises:
        InvalidOption: there are no embedders, no such column, or the object was never flushed.
    """
    state = inspect(entity, raiseerr=False)
    if not isinstance(state, InstanceState) or state.key is None:
        raise InvalidOption(f"{type(entity).__name__} has no row to look at; flush the object first")
    tracking = tracking_behind(session)
    if embedders is None and tracking is None:
        raise InvalidOption("is_current() has no embedders; give embedders=, or track() the sessions before")
    known = Embedders(embedders) if embedders is not None else tracking.embedders  # type: ignore[union-attr]
    if isinstance(attribute, str):
        attribute = getattr(state.mapper.class_, attribute, attribute)
    above = [mapper.class_ for mapper in state.mapper.iterate_to_root()]
    targets = tracking.targets if tracking is not None else targets_of(above)
    target, column = target_of(attribute, targets)
    key = target.key_of(state.mapper, state.key[1])
    connection = session.connection(bind_arguments={"mapper": target.mapper})
    found = read(connection, target, column, [key])
    return key in found and found[key].is_current(known.at(lambda _: connection).model(column))
