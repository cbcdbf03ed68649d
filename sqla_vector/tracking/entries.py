"""Which rows the outbox knows, and entries for those that it does not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from sqlalchemy import Connection, Table, delete, exists, func, select

from sqla_vector.tracking.outbox import DEAD, put
from sqla_vector.tracking.related import keys_in
from sqla_vector.tracking.targets import Key, Target

__all__ = ["count_by_state", "dead_entries", "existing", "forget_dead", "note", "read_entries", "rows_without"]

_PART = 500


def rows_without(connection: Connection, outbox: Table, target: Target, keys: Iterable[Key]) -> list[Key]:
    """Return those of a target's rows that no entry names, neither a pending nor a dead one."""
    by_name = {target.encode(key): key for key in keys}
    names = list(by_name)
    c = outbox.c
    for start in range(0, len(names), _PART):
        named = (c.channel == target.channel, c.entity == target.entity, c.row_key.in_(names[start : start + _PART]))
        for row_key in connection.scalars(select(c.row_key).where(*named)):
            by_name.pop(row_key, None)
    return list(by_name.values())


def note(connection: Connection, outbox: Table, target: Target, keys: Iterable[Key]) -> int:
    """Write an entry for each row that has none, and return how many that were."""
    rows = [(target.entity, target.encode(key)) for key in rows_without(connection, outbox, target, keys)]
    put(connection, outbox, rows, target.channel)
    return len(rows)


def forget_dead(connection: Connection, outbox: Table, target: Target, keys: Iterable[Key]) -> None:
    """Delete the dead entries of rows that are current now."""
    c = outbox.c
    dead = (c.channel == target.channel, c.state == DEAD, c.entity == target.entity)
    if keys and connection.scalar(select(exists().where(*dead))):
        names = [target.encode(key) for key in keys]
        for start in range(0, len(names), _PART):
            connection.execute(delete(outbox).where(*dead, c.row_key.in_(names[start : start + _PART])))


def dead_entries(
    connection: Connection, outbox: Table, target: Target, keys: Collection[Key]
) -> dict[str, list[tuple[int, float]]]:
    """Return the dead entries of rows, and when they died, by what the outbox calls the rows."""
    c = outbox.c
    dead = (c.channel == target.channel, c.state == DEAD, c.entity == target.entity)
    found: dict[str, list[tuple[int, float]]] = {}
    names = [target.encode(key) for key in keys]
    if names and connection.scalar(select(exists().where(*dead))):
        for start in range(0, len(names), _PART):
            part = select(c.row_key, c.id, c.available_at).where(*dead, c.row_key.in_(names[start : start + _PART]))
            for row_key, number, died_at in connection.execute(part):
                found.setdefault(row_key, []).append((number, died_at))
    return found


def count_by_state(connection: Connection, outbox: Table, target: Target) -> dict[str, int]:
    """Return how many entries of a target's rows there are in each state."""
    c = outbox.c
    own = (c.channel == target.channel, c.entity == target.entity)
    stmt = select(c.state, func.count()).where(*own).group_by(c.state)
    return {row[0]: row[1] for row in connection.execute(stmt)}


def read_entries(
    connection: Connection, outbox: Table, target: Target, after: int, limit: int
) -> tuple[int, list[tuple[str, bool]]]:
    """Return the next entries of a table: the last one's number, and the row of each and whether that is there."""
    c = outbox.c
    stmt = select(c.id, c.row_key).where(c.channel == target.channel, c.entity == target.entity, c.id > after)
    found = connection.execute(stmt.order_by(c.id).limit(limit)).all()
    if not found:
        return after, []
    by_name: dict[str, Key | None] = {}
    for _, row_key in found:
        try:
            by_name[row_key] = target.decode(row_key)
        except (ValueError, TypeError, RecursionError):
            by_name[row_key] = None
    there = existing(connection, target, [key for key in by_name.values() if key is not None])
    return found[-1][0], [(row_key, by_name[row_key] in there) for _, row_key in found]


def existing(connection: Connection, target: Target, keys: Sequence[Key]) -> set[Key | None]:
    """Return those of some keys of which there is a row."""
    found: set[Key | None] = set()
    for start in range(0, len(keys), _PART):
        part = keys_in(connection, target.key_attributes, keys[start : start + _PART])
        found |= {tuple(row) for row in connection.execute(select(*target.key_attributes).where(part))}
    return found
