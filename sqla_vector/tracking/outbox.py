"""The outbox: rows whose vectors have to be looked at, written in the transaction that changed them.

An entry says which row, not what to do with it: whoever takes it reads the row as it is then.  So two entries of one
row are as good as one, an entry too many costs a look, and a lost one is the only fault.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    and_,
    delete,
    exists,
    insert,
    literal,
    select,
    update,
)

from sqla_vector.dialects.clock import database_now
from sqla_vector.exc import InvalidOption
from sqla_vector.schema import check_identifier
from sqla_vector.types import support_of

__all__ = [
    "CHANNEL",
    "DEAD",
    "PENDING",
    "Entry",
    "Operation",
    "acknowledge",
    "bury",
    "check_outbox",
    "claim",
    "draw",
    "forget",
    "is_held",
    "is_pending",
    "outbox_table",
    "postpone",
    "put",
]

CHANNEL: Final = "embedding"
"""The channel of entries whose rows have vectors to be made."""

Operation = Literal["upsert", "delete", "truncate"]

PENDING: Final = "pending"
DEAD: Final = "dead"

_MARK: Final = "sqla_vector_outbox"
_LONGEST_REASON: Final = 2000


@dataclass(slots=True)
class Entry:
    """An entry that was claimed."""

    id: int
    entity: str
    """The table of the row, with its schema if it has one: ``article``, ``shop.article``."""
    row_key: str
    """The row's primary key, a JSON array."""
    operation: Operation
    attempts: int
    """How often it failed."""


def outbox_table(metadata: MetaData, name: str = "vector_outbox", schema: str | None = None) -> Table:
    """Declare the outbox among a project's own tables, to be created and migrated with them.

    Columns: ``id`` counts up, and of two changes of one row the later one has the larger; ``channel`` is whose
    entry it is; ``entity`` and ``row_key`` say which row; times are in seconds since 1970 by the database's clock.
    An entry is pending until its row was seen to, when it is deleted, or dead with a reason.  While a worker has it,
    ``available_at`` is when the worker's lease ends.

    Args:
        metadata: the project's.
        name: the table's name.
        schema: its schema.

    Raises:
        InvalidIdentifier: a name cannot be one.
    """
    check_identifier(name, "table name")
    if schema is not None:
        check_identifier(schema, "schema")
    return Table(
        name,
        metadata,
        Column("id", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True),
        Column("channel", String(63), nullable=False, server_default=CHANNEL),
        Column("entity", String(255), nullable=False),
        Column("row_key", Text, nullable=False),
        Column("operation", String(8), nullable=False, server_default="upsert"),
        Column("created_at", Double, nullable=False),
        Column("available_at", Double, nullable=False),
        Column("state", String(8), nullable=False, server_default=PENDING),
        Column("attempts", Integer, nullable=False, server_default="0"),
        Column("claimed_by", String(64)),
        Column("reason", Text),
        Index(f"ix_{name}_due"[:63], "channel", "state", "available_at", "id"),
        Index(f"ix_{name}_row"[:63], "entity", "row_key"),
        schema=schema,
        info={_MARK: True},
        # Without it SQLite gives the number of a deleted entry to the next one.
        sqlite_autoincrement=True,
    )


def check_outbox(table: object) -> Table:
    """Return a table made by :func:`outbox_table`.

    Raises:
        InvalidOption: it is none.
    """
    if not isinstance(table, Table) or not table.info.get(_MARK):
        raise InvalidOption(f"outbox= is the table that outbox_table(Base.metadata) returns, got {table!r}")
    return table


def put(
    connection: Connection,
    outbox: Table,
    rows: Iterable[tuple[str, str]],
    channel: str = CHANNEL,
    operation: Operation = "upsert",
) -> None:
    """Write entries, in the transaction in which their rows change, and after these.

    Args:
        connection: the transaction's.
        outbox: the table.
        rows: entity and row key of each.
        channel: whose entries they are.
        operation: what was done to the rows.
    """
    by_entity: dict[str, list[str]] = {}
    for entity, row_key in rows:
        by_entity.setdefault(entity, []).append(row_key)
    for entity, row_keys in by_entity.items():
        keys = support_of(connection.dialect).texts(row_keys)
        now = database_now()
        fixed = (literal(channel), literal(entity), literal(operation), now, now)
        names = ["channel", "entity", "operation", "created_at", "available_at", "row_key"]
        connection.execute(insert(outbox).from_select(names, select(*fixed, keys.c.value), include_defaults=False))


def claim(
    connection: Connection,
    outbox: Table,
    token: str,
    limit: int,
    lease: float,
    channel: str,
    entities: Collection[str],
) -> list[Entry]:
    """Take entries that are due, the longest due first, for as long as a lease lasts.

    Other claims pass over them meanwhile (SKIP LOCKED; on SQLite one transaction writes at a time).

    Args:
        connection: in a transaction that has the right to write.
        outbox: the table.
        token: names this claim.
        limit: how many at most.
        lease: seconds until others may take what was neither acknowledged nor postponed.
        channel: whose entries.
        entities: of which tables; what another program knows is left to that.
    """
    c = outbox.c
    due = (
        select(c.id)
        .where(c.channel == channel, c.state == PENDING, c.available_at <= database_now())
        .where(c.entity.in_(sorted(entities)))
        .order_by(c.available_at, c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    taken = (
        update(outbox)
        .where(c.id.in_(due))
        .values(claimed_by=token, available_at=database_now() + lease)
        .returning(c.id, c.entity, c.row_key, c.operation, c.attempts)
    )
    return sorted((Entry(*row) for row in connection.execute(taken)), key=lambda entry: entry.id)


def draw(connection: Connection, outbox: Table) -> int:
    """Return a number larger than those of all entries that were written, and of all that were drawn.

    Args:
        connection: in a transaction that has the right to write, which should be committed soon.
        outbox: the table.

    Raises:
        InvalidOption: what is read after it in this transaction might be from before it.
    """
    now = database_now()
    entry = insert(outbox).values(channel="", entity="", row_key="[]", created_at=now, available_at=now)
    sees_commits = support_of(connection.dialect).sees_commits()
    number, is_usable = connection.execute(entry.returning(outbox.c.id, sees_commits.label("sees_commits"))).one()
    if not is_usable:
        # Rows would be as they were when the transaction began, under a number that says that they are newer.
        raise InvalidOption(
            "versions are counted in READ COMMITTED transactions only: make these sessions with "
            'engine.execution_options(isolation_level="READ COMMITTED")'
        )
    connection.execute(delete(outbox).where(outbox.c.id == number))
    return int(number)


def is_pending(connection: Connection, outbox: Table, channel: str, entities: Collection[str]) -> bool:
    """Tell whether there is an entry that waits, or that somebody is working on."""
    c = outbox.c
    waiting = (c.channel == channel, c.state == PENDING, c.entity.in_(sorted(entities)))
    return bool(connection.scalar(select(exists().where(*waiting))))


def is_held(connection: Connection, outbox: Table, token: str, channel: str, before: int) -> bool:
    """Tell whether other claims hold entries of a channel that are older than one."""
    c = outbox.c
    held = (c.channel == channel, c.state == PENDING, c.claimed_by != token, c.available_at > database_now())
    return bool(connection.scalar(select(exists().where(*held, c.id < before))))


def acknowledge(connection: Connection, outbox: Table, token: str, ids: Sequence[int]) -> None:
    """Delete entries that are done, as far as the claim still holds them."""
    if ids:
        done = support_of(connection.dialect).members(outbox.c.id, ids)
        connection.execute(delete(outbox).where(done, outbox.c.claimed_by == token))


def forget(connection: Connection, outbox: Table, entries: Sequence[tuple[int, float]]) -> None:
    """Delete dead entries whose rows are as they should be, unless they were tried again meanwhile, and died again.

    Args:
        connection: in a transaction.
        outbox: the table.
        entries: each with the time of its death.
    """
    if entries:
        c, last = outbox.c, max(died_at for _, died_at in entries)
        named = support_of(connection.dialect).members(c.id, [number for number, _ in entries])
        connection.execute(delete(outbox).where(named, c.state == DEAD, c.available_at <= last))


def postpone(connection: Connection, outbox: Table, token: str, ids: Sequence[int], seconds: float = 0.0) -> None:
    """Give entries back, to be claimed again after a time; nothing is counted."""
    if ids:
        connection.execute(
            update(outbox)
            .where(support_of(connection.dialect).members(outbox.c.id, ids), outbox.c.claimed_by == token)
            .values(claimed_by=None, available_at=database_now() + seconds)
        )


def _storable(reason: str) -> str:
    """Return a reason that every database takes: half characters and NUL are in what embedders say, too."""
    return reason[:_LONGEST_REASON].encode(errors="backslashreplace").decode().replace("\0", "\\0")


def bury(
    connection: Connection,
    outbox: Table,
    token: str,
    entry: Entry,
    reason: str,
    seconds: float | None,
    channel: str = CHANNEL,
) -> None:
    """Count a failure of an entry, which is tried again after some seconds, or is dead if they are None.

    An entry that the claim does not hold any more is left to whoever took it.
    """
    c = outbox.c
    same = and_(c.channel == channel, c.entity == entry.entity, c.row_key == entry.row_key)
    if seconds is None:
        # Two workers may fail at two entries of one row: one after the other, or neither would see the other's.
        connection.execute(select(c.id).where(same).order_by(c.id).with_for_update())
    counted = connection.execute(
        update(outbox)
        .where(c.id == entry.id, c.claimed_by == token)
        .values(
            attempts=entry.attempts + 1,
            reason=_storable(reason),
            claimed_by=None,
            state=DEAD if seconds is None else PENDING,
            available_at=database_now() + (seconds or 0.0),
        )
    )
    if seconds is None and counted.rowcount:
        # One of them says why.
        connection.execute(delete(outbox).where(same, c.state == DEAD, c.id != entry.id))
