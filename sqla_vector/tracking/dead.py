"""Dead entries: rows that failed for the last time, with the reason why; looked at, tried again, or given up."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, delete, func, select, update

from sqla_vector.dialects.clock import database_now
from sqla_vector.exc import InvalidOption
from sqla_vector.schema import check_whole_number
from sqla_vector.tracking.outbox import CHANNEL, DEAD, PENDING, check_outbox

__all__ = ["DeadEntry", "Selection", "count_dead", "drop", "list_dead", "replay"]


@dataclass(frozen=True)
class DeadEntry:
    """An entry that nobody works on any more."""

    id: int
    entity: str
    """The table of the row."""
    row_key: str
    """The row's primary key, a JSON array."""
    reason: str | None
    attempts: int
    created_at: float
    """When the row was changed, in seconds since 1970."""
    died_at: float
    """When it failed for the last time."""
    age: float
    """Seconds since then, by the database's clock."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as what can be written as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Selection:
    """Which dead entries are meant: those for which all of it holds.

    Args:
        entity: the table of the row.
        row_keys: the row's key as the outbox has it, such as ``[7]``; one of these.
        reason: a part of the reason, in whatever case.
        older_than: seconds that it has been dead at least.
        channel: whose entries.

    Raises:
        InvalidOption: an age is none.
    """

    entity: str | None = None
    row_keys: Collection[str] | None = None
    reason: str | None = None
    older_than: float | None = None
    channel: str = CHANNEL

    def __post_init__(self) -> None:
        age = self.older_than
        if age is not None and (isinstance(age, bool) or not isinstance(age, (int, float)) or not 0 <= age < 1e12):
            raise InvalidOption(f"older_than is a number of seconds, 0 or more, got {age!r}")
        if isinstance(self.row_keys, str):
            raise InvalidOption(
                f"row_keys is a list of keys as the outbox has them, such as ['[7]'], got {self.row_keys!r}"
            )

    @property
    def is_everything(self) -> bool:
        """Whether nothing is said, so that all dead entries of the channel are meant."""
        return (self.entity, self.row_keys, self.reason, self.older_than) == (None, None, None, None)

    def criterion(self, outbox: Table) -> ColumnElement[bool]:
        """Return it as a criterion of a statement."""
        c = outbox.c
        parts: list[ColumnElement[bool]] = [c.state == DEAD, c.channel == self.channel]
        if self.entity is not None:
            parts.append(c.entity == self.entity)
        if self.row_keys is not None:
            parts.append(c.row_key.in_(sorted(self.row_keys)))
        if self.reason is not None:
            parts.append(c.reason.icontains(self.reason, autoescape=True))
        if self.older_than is not None:
            parts.append(c.available_at <= database_now() - self.older_than)
        return and_(*parts)


def list_dead(
    connection: Connection, outbox: Table, selection: Selection = Selection(), limit: int = 1000
) -> list[DeadEntry]:
    """Return dead entries, those that died last first.

    Args:
        connection: in a transaction.
        outbox: the table.
        selection: which ones.
        limit: how many at most.

    Raises:
        InvalidOption: the table is no outbox, or the limit is none.
    """
    c = check_outbox(outbox).c
    check_whole_number(limit, "limit", 1, 10**9)
    age = database_now() - c.available_at
    stmt = (
        select(c.id, c.entity, c.row_key, c.reason, c.attempts, c.created_at, c.available_at, age)
        .where(selection.criterion(outbox))
        # When an entry dies, it is available from then on to nobody.
        .order_by(c.available_at.desc(), c.id.desc())
        .limit(limit)
    )
    return [DeadEntry(*row) for row in connection.execute(stmt)]


def count_dead(connection: Connection, outbox: Table, selection: Selection = Selection()) -> int:
    """Return how many dead entries there are."""
    stmt = select(func.count()).select_from(check_outbox(outbox)).where(selection.criterion(outbox))
    return int(connection.scalar(stmt) or 0)


def replay(connection: Connection, outbox: Table, selection: Selection = Selection()) -> int:
    """Have dead entries tried again, at once and as if for the first time; return how many.

    Raises:
        InvalidOption: the table is no outbox.
    """
    stmt = (
        update(check_outbox(outbox))
        .where(selection.criterion(outbox))
        .values(state=PENDING, attempts=0, reason=None, claimed_by=None, available_at=database_now())
    )
    return connection.execute(stmt).rowcount


def drop(connection: Connection, outbox: Table, selection: Selection = Selection()) -> int:
    """Delete dead entries, whose rows stay without a current vector until they change; return how many.

    Raises:
        InvalidOption: the table is no outbox.
    """
    return connection.execute(delete(check_outbox(outbox)).where(selection.criterion(outbox))).rowcount
