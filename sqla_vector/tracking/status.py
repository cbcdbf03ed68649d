"""How an outbox is: what waits, what is being worked on and by whom, what is dead, and how fast it goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import Connection, Table, and_, case, func, or_, select
from sqlalchemy.exc import DBAPIError

from sqla_vector.dialects.clock import database_now
from sqla_vector.dialects.counter import last_number
from sqla_vector.tracking.outbox import CHANNEL, DEAD, PENDING, check_outbox
from sqla_vector.tracking.patience import is_passing

__all__ = ["Lease", "Queue", "Rates", "Status", "rates", "status"]


@dataclass(frozen=True)
class Queue:
    """The entries of one table, or of all."""

    entity: str | None
    """The table, as the outbox names it; None for all."""
    due: int = 0
    """Entries that a worker can take now."""
    leased: int = 0
    """Entries that a worker has."""
    retrying: int = 0
    """Entries that failed, and wait for their next attempt."""
    postponed: int = 0
    """Entries that did not fail and wait: somebody was changing the row, or the embedder is out of reach."""
    dead: int = 0
    oldest: float | None = None
    """Seconds since the oldest entry that is not dead was written; None without one."""

    @property
    def pending(self) -> int:
        """Entries that are not dead."""
        return self.due + self.leased + self.retrying + self.postponed

    def as_dict(self) -> dict[str, Any]:
        """Return it as what can be written as JSON."""
        return {**asdict(self), "pending": self.pending}


@dataclass(frozen=True)
class Lease:
    """A worker that has entries."""

    worker: str
    entries: int
    seconds_left: float
    """Until the first of its leases ends."""


@dataclass(frozen=True)
class Rates:
    """What went on between two looks, in all channels of the outbox."""

    seconds: float
    written: float | None
    """Entries written per minute; None where this role may not see the counter.

    On PostgreSQL entries whose transaction was rolled back count too: their numbers are used up."""
    done: float | None
    """Entries settled per minute, derived from those written and those left."""


@dataclass(frozen=True)
class Status:
    """How an outbox is."""

    at: float
    """When, by the database's clock, in seconds since 1970."""
    last_number: int | None = field(repr=False)
    """The number of the entry written last, gone or not; None where it cannot be known."""
    entries: int = field(default=0, repr=False)
    """All entries there are, those of other channels included."""
    queues: tuple[Queue, ...] = ()
    leases: tuple[Lease, ...] = ()

    @property
    def total(self) -> Queue:
        """All entries."""
        ages = [one.oldest for one in self.queues if one.oldest is not None]
        names = ("due", "leased", "retrying", "postponed", "dead")
        counts: Mapping[str, int] = {name: sum(getattr(one, name) for one in self.queues) for name in names}
        return Queue(None, **counts, oldest=max(ages, default=None))

    def as_dict(self) -> dict[str, Any]:
        """Return it as what can be written as JSON."""
        return {
            "at": self.at,
            "total": self.total.as_dict(),
            "entities": [one.as_dict() for one in self.queues],
            "workers": [asdict(lease) for lease in self.leases],
        }


def status(connection: Connection, outbox: Table, channel: str = CHANNEL) -> Status:
    """Return how an outbox is.

    Args:
        connection: in a transaction.
        outbox: the table.
        channel: whose entries.

    Raises:
        InvalidOption: the table is no outbox.
    """
    c = check_outbox(outbox).c
    # One moment for all of it, in whatever order entries are looked at.
    now: float = connection.scalars(select(database_now())).one()
    waits = and_(c.state == PENDING, c.available_at > now)
    failed = or_(c.attempts > 0, c.reason.is_not(None))
    counts = {
        "due": and_(c.state == PENDING, c.available_at <= now),
        "leased": and_(waits, c.claimed_by.is_not(None)),
        "retrying": and_(waits, c.claimed_by.is_(None), failed),
        "postponed": and_(waits, c.claimed_by.is_(None), ~failed),
        "dead": c.state == DEAD,
    }
    oldest = func.min(case((c.state == PENDING, c.created_at)))
    columns = [func.count(case((criterion, 1))).label(name) for name, criterion in counts.items()]
    stmt = select(c.entity, *columns, oldest.label("oldest")).where(c.channel == channel)
    queues = tuple(
        Queue(
            row.entity,
            **{name: getattr(row, name) for name in counts},
            oldest=None if row.oldest is None else max(now - row.oldest, 0.0),
        )
        for row in connection.execute(stmt.group_by(c.entity).order_by(c.entity))
    )
    entries = connection.scalars(select(func.count()).select_from(outbox)).one()
    return Status(now, _last_number(connection, outbox), entries, queues, _leases(connection, outbox, channel, now))


def _leases(connection: Connection, outbox: Table, channel: str, now: float) -> tuple[Lease, ...]:
    c = outbox.c
    stmt = (
        select(c.claimed_by, func.count(), func.min(c.available_at))
        .where(c.channel == channel, c.state == PENDING, c.claimed_by.is_not(None), c.available_at > now)
        .group_by(c.claimed_by)
    )
    found: dict[str, Lease] = {}
    for claim, entries, until in connection.execute(stmt):
        # A claim is the worker's name and a number of its own.
        name = claim.rpartition(":")[0] or claim
        before = found.get(name, Lease(name, 0, float("inf")))
        found[name] = Lease(name, before.entries + entries, min(before.seconds_left, until - now))
    return tuple(lease for _, lease in sorted(found.items()))


def _last_number(connection: Connection, outbox: Table) -> int | None:
    try:
        with connection.begin_nested():
            return int(connection.scalar(select(last_number(outbox))) or 0)
    except DBAPIError as error:
        if is_passing(error):
            raise
        return None  # this role may not look at the sequence


def rates(before: Status, after: Status) -> Rates:
    """Return how fast it went between two looks."""
    seconds = after.at - before.at
    if seconds <= 0 or before.last_number is None or after.last_number is None:
        return Rates(max(seconds, 0.0), None, None)
    written = after.last_number - before.last_number
    done = written - (after.entries - before.entries)
    return Rates(seconds, 60 * written / seconds, 60 * max(done, 0) / seconds)
