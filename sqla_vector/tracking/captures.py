"""From models to outbox triggers: ``outbox_triggers()``."""

from __future__ import annotations

import datetime
import logging
import uuid
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Final

from sqlalchemy import DDL, MetaData, Table, UniqueConstraint, event, inspect
from sqlalchemy.engine import Connection

from sqla_vector.dialects.capture import Capture, CaptureSupport, Join, KeyKind, Mark, captures_of, declare_capture
from sqla_vector.tracking.derived import Derived, derived_of
from sqla_vector.tracking.mirrors import Mirror, is_among, mirrors
from sqla_vector.tracking.outbox import CHANNEL, check_outbox
from sqla_vector.tracking.paths import Link, text_paths
from sqla_vector.tracking.related import Made
from sqla_vector.tracking.targets import Models, Target, targets_of
from sqla_vector.types import DIALECTS, support_of

__all__ = ["outbox_triggers"]

logger = logging.getLogger("sqla_vector.tracking")

_KINDS: Final[dict[type, KeyKind]] = {
    int: "integer",
    str: "text",
    uuid.UUID: "uuid",
    datetime.date: "date",
    datetime.datetime: "datetime",
}


def outbox_triggers(models: Models, outbox: Table) -> tuple[Capture, ...]:
    """Declare the triggers that write into an outbox what the unit of work does not see.

    That is Core, bulk statements, raw SQL, cascades of the database, COPY, TRUNCATE and other programs.
    ``create_all()`` creates them, and ``drop_all()`` drops them, on PostgreSQL and SQLite; Alembic's autogenerate
    compares them.  Called once, when the models and what has copies of them are complete::

        outbox = outbox_table(Base.metadata)
        outbox_triggers(Base, outbox)

    Args:
        models: the declarative base, a registry, or the mapped classes.
        outbox: what :func:`outbox_table` returned.

    Returns:
        The definitions: for each table that has sources of vectors, or of copies, one for each channel.

    Raises:
        InvalidDeclaration: a key or a relationship cannot be captured.
        InvalidIdentifier: a table or column has a name that no trigger can have in it.
        InvalidOption: models are none, or outbox is another table.
    """
    table = check_outbox(outbox)
    copies = [one for one in mirrors() if one.outbox is table and is_among(one.mapper, models)]
    marked = [*_text_marks(targets_of(models)), *_derived_marks(derived_of(models)), *_copy_marks(copies)]
    found = _captures(marked, table)
    tables = {captured for captured, _ in found}
    for metadata in {id(m): m for m in (table.metadata, *(t.metadata for t in tables))}.values():
        if not captures_of(metadata):
            event.listen(metadata, "after_create", _create_captures)
            event.listen(metadata, "before_drop", _drop_captures)
        for (captured, _), capture in found.items():
            if captured.metadata is metadata or table.metadata is metadata:
                declare_capture(metadata, capture)
    return tuple(found.values())


def _captures(marked: Iterable[tuple[str, Table, Mark]], outbox: Table) -> dict[tuple[Table, str], Capture]:
    """Return the captures of tables, by the table and the channel."""
    marks: dict[tuple[Table, str], dict[Mark, None]] = {}
    for channel, table, mark in marked:
        marks.setdefault((table, channel), {})[mark] = None
    return {
        (table, channel): Capture(
            table=table.name,
            schema=table.schema,
            outbox=outbox.name,
            outbox_schema=outbox.schema,
            channel=channel,
            unique=_unique(table),
            marks=tuple(sorted(found, key=lambda mark: (mark.entity, len(mark.path), repr(mark)))),
            # A vector goes with its row; a copy stays.
            deletes=channel != CHANNEL,
        )
        for (table, channel), found in sorted(marks.items(), key=lambda item: (item[0][0].fullname, item[0][1]))
    }


def _text_marks(targets: Iterable[Target]) -> Iterator[tuple[str, Table, Mark]]:
    for target in targets:
        for column in target.columns:
            marks = _marks(target, column, column.fingerprint_column.name)
            yield from ((CHANNEL, table, mark) for table, mark in _merged(marks))


def _copy_marks(copies: Iterable[Mirror]) -> Iterator[tuple[str, Table, Mark]]:
    for mirror in copies:
        marks = _marks(mirror.target, mirror, None)
        yield from ((mirror.channel, table, mark) for table, mark in _merged(marks))


def _derived_marks(all_derived: Iterable[Derived]) -> Iterator[tuple[str, Table, Mark]]:
    for derived in all_derived:
        yield from ((CHANNEL, table, mark) for table, mark in _merged(_marks(derived.target, derived, None)))


def _merged(marks: Iterable[tuple[Table, Mark]]) -> Iterator[tuple[Table, Mark]]:
    """Yield one mark for all that differ in the watched columns only."""
    watched: dict[tuple[Any, ...], set[str]] = {}
    for table, mark in marks:
        alike = (table, mark.entity, mark.key, mark.path, mark.fingerprint, mark.inserts)
        watched.setdefault(alike, set()).update(mark.watched)
    for (table, entity, key, path, fingerprint, inserts), names in watched.items():
        yield table, Mark(entity, key, tuple(sorted(names)), path, fingerprint, inserts)


def _marks(target: Target, made: Made, fingerprint: str | None) -> Iterator[tuple[Table, Mark]]:
    """Yield which changes of which tables mark a target's row for the sake of what is made of it."""
    key = tuple((c.name, _kind(c)) for c in target.key_columns)
    own = {c.name for c in target.key_columns}
    discriminator = target.mapper.polymorphic_on
    if discriminator is not None and getattr(discriminator, "table", None) is target.table:
        own.add(str(discriminator.name))  # another class, another text
    for path in text_paths(made, target.table):
        sources = {c.name for c in path.sources}
        first = path.links[0].watched if path.links else ()
        here = {c.name for c in first if c.table is target.table} | (sources if not path.links else set())
        yield target.table, Mark(target.entity, key, tuple(sorted(own | here)), fingerprint=fingerprint)
        for number, link in enumerate(path.links, start=1):
            last = number == len(path.links)
            beyond: Collection[Any] = () if last else path.links[number].watched
            names = {c.name for c in (*link.watched, *beyond) if c.table is link.right}
            back = tuple(_join(step.reversed()) for step in reversed(path.links[:number]))
            yield (
                link.right,
                Mark(
                    target.entity,
                    key,
                    tuple(sorted(names | (sources if last else set()))),
                    back,
                    inserts=not link.is_enforced,
                ),
            )


def _join(link: Link) -> Join:
    return Join(link.right.name, link.right.schema, tuple((a.name, b.name) for a, b in link.pairs))


def _kind(column: Any) -> KeyKind:
    inner = getattr(column.type, "impl_instance", column.type)
    if inner.__visit_name__ in ("uuid", "UUID"):
        return "uuid"
    return _KINDS[inner.python_type]  # others were refused by targets_of()


def _unique(table: Table) -> tuple[tuple[str, ...], ...]:
    groups = {tuple(c.name for c in table.primary_key.columns)}
    groups |= {tuple(c.name for c in con.columns) for con in table.constraints if isinstance(con, UniqueConstraint)}
    groups |= {tuple(c.name for c in index.columns) for index in table.indexes if index.unique}
    return tuple(sorted(group for group in groups if group))


def _create_captures(metadata: MetaData, connection: Any, tables: Collection[Table], **kw: Any) -> None:
    """Create what is missing, where all tables that it names are there."""
    if connection.dialect.name not in DIALECTS:
        return
    support: CaptureSupport = support_of(connection.dialect).captures()
    created = {_place(connection, table.schema, table.name) for table in tables}
    for capture in _located(metadata, connection):
        needed = {(capture.schema, capture.table), *capture.tables}
        if isinstance(connection, Connection):
            wanted = _is_missing(capture, support, connection) and _are_there(needed - created, connection)
        else:  # statements are only written down
            wanted = not needed.isdisjoint(created)
        if wanted:
            _run(connection, support.drop(capture.name, capture.schema, connection.dialect))
            _run(connection, support.create(capture, connection.dialect))


def _is_missing(capture: Capture, support: CaptureSupport, connection: Connection) -> bool:
    there = support.reflect(connection, capture.schema)
    same = next((one for one in there if (one.name, one.table_name) == (capture.name, capture.table)), None)
    if same is not None and not same.is_of(capture):
        logger.warning(
            "the outbox triggers of %s are not as declared; create_all() changes nothing that is there, so let Alembic "
            "do it, or drop %s",
            capture.fullname,
            capture.name,
        )
    return same is None


def _are_there(tables: Iterable[tuple[str | None, str]], connection: Connection) -> bool:
    inspector = inspect(connection)
    return all(inspector.has_table(name, schema) for schema, name in tables)


def _drop_captures(metadata: MetaData, connection: Connection, tables: Collection[Table], **kw: Any) -> None:
    """Drop what belongs to a table that is dropped, or names one."""
    if connection.dialect.name not in DIALECTS:
        return
    support: CaptureSupport = support_of(connection.dialect).captures()
    dropped = {_place(connection, table.schema, table.name) for table in tables}
    for capture in _located(metadata, connection):
        if not dropped.isdisjoint([(capture.schema, capture.table), *capture.tables]):
            _run(connection, support.drop(capture.name, capture.schema, connection.dialect))


def _located(metadata: MetaData, connection: Connection) -> list[Capture]:
    """Return the captures of a project with the schemas that its tables have on a connection."""
    return [
        capture.relocated(lambda schema, table: _place(connection, schema, table)) for capture in captures_of(metadata)
    ]


def _place(connection: Any, schema: str | None, table: str) -> tuple[str | None, str]:
    """Return schema and name of a table, under ``schema_translate_map``."""
    if not isinstance(connection, Connection):  # of create_mock_engine()
        return schema, table
    translated = connection.get_execution_options().get("schema_translate_map") or {}
    return translated.get(schema, schema), table


def _run(connection: Connection, statements: Iterable[str]) -> None:
    for statement in statements:
        # As DDL, for which a transaction is begun on SQLite.
        connection.execute(DDL(statement.replace("%", "%%")))  # type: ignore[no-untyped-call]
