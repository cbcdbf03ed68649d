"""What ``sqla-vector doctor`` looks at: each question asked of the database, and what to do about the answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import sqlalchemy
from sqlalchemy import Connection, Table, inspect, literal, select

from sqla_vector.cli.failure import failure_of
from sqla_vector.dialects.capture import ReflectedCapture, captures_of
from sqla_vector.dialects.clock import database_now
from sqla_vector.embedding import EmbeddedColumn, Embedder, Model
from sqla_vector.engine import capabilities
from sqla_vector.exc import PluginMissing, VectorError
from sqla_vector.tracking.steps import Driver, Embedding, Steps
from sqla_vector.tracking.targets import Embedders, Target
from sqla_vector.types import VectorType, support_of

__all__ = ["Finding", "look_at_database", "look_at_embedder"]

_SKEW: Final = 5.0
"""Seconds that the clocks may differ without anybody being confused by the log."""


@dataclass(frozen=True)
class Finding:
    """An answer."""

    state: Literal["ok", "warn", "fail"]
    subject: str
    message: str
    """What is so, and what to do about it."""


def look_at_database(
    connection: Connection, targets: tuple[Target, ...], outbox: Table | None, upgrades: Iterable[Table], metadata: Any
) -> list[Finding]:
    """Return what is found in a database.

    Args:
        connection: in a transaction, in which nothing is written.
        targets: the classes with embedded columns.
        outbox: the table, if there is one.
        upgrades: the tables of changes of model, if there are any.
        metadata: those of the tables, for the triggers that were declared in them.
    """
    found = [_clock(connection)]
    found += _extension(connection)
    for target in targets[:1]:
        found += _plugin(connection, target)
    for table, target in {target.table: target for target in targets}.items():
        found += _table(connection, table)
        for column in target.columns:
            found += _dimension(connection, column)
    found += _outbox(connection, outbox, targets)
    for table in upgrades:
        found += _table(connection, table)
    found += _triggers(connection, metadata)
    return found


def _clock(connection: Connection) -> Finding:
    before = time.time()
    now: float = connection.scalars(select(database_now())).one()
    skew = now - (before + time.time()) / 2
    if abs(skew) <= _SKEW:
        return Finding("ok", "clock", "the clocks of the database and of this machine agree")
    return Finding(
        "warn",
        "clock",
        f"the database's clock differs from this machine's by {skew:+.0f} s; leases and retries go by the database's "
        "alone, but times in logs cannot be compared: let NTP set both",
    )


def _extension(connection: Connection) -> Iterator[Finding]:
    found = capabilities(connection)
    server = ".".join(map(str, connection.dialect.server_version_info or ()))
    yield Finding("ok", "database", f"{found.database} {server}, {found.driver}, SQLAlchemy {sqlalchemy.__version__}")
    if found.extension is None and found.index_methods == () and not found.half:
        yield Finding("fail", "extension", "pgvector is missing; ask an administrator to run CREATE EXTENSION vector")
    elif found.extension is None:
        yield Finding(
            "warn",
            "extension",
            "sqlite-vec cannot be loaded, so searches use no index; pip install 'sqla-vector[sqlite]'",
        )
    elif not found.iterative_scan:
        yield Finding(
            "warn",
            "extension",
            f"version {found.extension} is older than 0.8: filtered searches may return "
            "too few rows; ask an administrator to run ALTER EXTENSION vector UPDATE",
        )
    else:
        yield Finding("ok", "extension", f"version {found.extension}")


def _plugin(connection: Connection, target: Target) -> Iterator[Finding]:
    # A NULL of the column's type goes the way of every vector that is written.
    try:
        connection.execute(select(literal(None, target.columns[0].column.type)))
    except PluginMissing as error:
        yield Finding("fail", "plugin", str(error))
    else:
        yield Finding("ok", "plugin", "vectors can be sent")


def _table(connection: Connection, table: Table, subject: str | None = None) -> Iterator[Finding]:
    """Look for a table and its columns."""
    subject = subject or f"table {table.fullname}"
    inspector = inspect(connection)
    if not inspector.has_table(table.name, table.schema):
        yield Finding("fail", subject, "is not there; run the migrations, or create_all()")
        return
    there = {column["name"] for column in inspector.get_columns(table.name, table.schema)}
    missing = [column.name for column in table.columns if column.name not in there]
    if missing:
        yield Finding("fail", subject, f"lacks {', '.join(missing)}; run the migrations")
    else:
        yield Finding("ok", subject, "has its columns")


def _dimension(connection: Connection, column: EmbeddedColumn) -> Iterator[Finding]:
    declared = column.column.type
    table = column.column.table
    inspector = inspect(connection)
    if not isinstance(declared, VectorType) or not inspector.has_table(table.name, table.schema):
        return
    for found in inspector.get_columns(table.name, table.schema):
        real = found["type"]
        if found["name"] != column.column.name or not isinstance(real, VectorType):
            continue
        if (real.kind, real.dim) != (declared.kind, declared.dim):
            yield Finding(
                "fail", str(column), f"is {declared!r} in the model and {real!r} in the database; run the migrations"
            )
        else:
            yield Finding("ok", str(column), f"is {declared!r} in the database too")


def _outbox(connection: Connection, outbox: Table | None, targets: tuple[Target, ...]) -> Iterator[Finding]:
    if outbox is not None:
        yield from _table(connection, outbox, f"outbox {outbox.fullname}")
        return
    waiting = [str(column) for target in targets for column in target.columns if column.spec.when == "worker"]
    if waiting:
        yield Finding("fail", "outbox", f"there is none, and {waiting[0]} is left to workers; give track() outbox=")
    else:
        yield Finding(
            "warn", "outbox", "there is none, so nothing notes what a flush does not see; give track() outbox="
        )


def _triggers(connection: Connection, metadata: Any) -> Iterator[Finding]:
    declared = {(capture.schema, capture.name): capture for one in metadata for capture in captures_of(one)}
    support = support_of(connection.dialect).captures()
    schemas = {None, *(schema for schema, _ in declared), *(t.schema for one in metadata for t in one.tables.values())}
    reflected: list[ReflectedCapture] = [one for schema in schemas for one in support.reflect(connection, schema)]
    there = {(one.schema, one.name): one for one in reflected}
    if not declared and not there:
        yield Finding(
            "ok", "triggers", "none are declared; statements that no session flushes are noticed by check alone"
        )
    for key, capture in declared.items():
        subject = f"triggers of {capture.fullname}"
        one = there.pop(key, None)
        if one is None:
            yield Finding("fail", subject, "are not there; run the migrations, or create_all()")
        elif not one.is_complete:
            yield Finding("fail", subject, "are not all there, or disabled; run a migration, or drop and create them")
        elif not one.is_of(capture):
            yield Finding("fail", subject, "are of another definition than the models'; make a migration and run it")
        else:
            yield Finding("ok", subject, "are as declared")
    for one in there.values():
        yield Finding("warn", f"triggers of {one.table_name}", "are not declared any more; let a migration drop them")


def look_at_embedder(
    columns: list[EmbeddedColumn], embedder: Any, embedders: Embedders, timeout: float, *, is_tried: bool
) -> Finding:
    """Return whether an embedder answers, and with vectors of the right dimension.

    Args:
        columns: those that it is for.
        embedder: the embedder, or only the name of a model.
        embedders: by name, as they were given to ``track()``.
        timeout: seconds that it has for one word.
        is_tried: whether it is asked at all.
    """
    if isinstance(embedder, Model):
        return Finding("ok", f"embedder {embedder}", "is only named here; other programs embed")
    subject = f"embedder {embedder.name}@{embedder.version}"
    try:
        for column in columns:
            embedders.check(column)
        if not is_tried:
            return Finding("ok", subject, f"was not asked; it says that it makes {embedder.dimensions:,} dimensions")
        seconds = _ask(embedder, timeout)
    except VectorError as error:
        return Finding("fail", subject, str(error))
    except Exception as error:
        return Finding("fail", subject, str(failure_of(error)))
    return Finding("ok", subject, f"answered in {seconds:.2f} s with a vector of {embedder.dimensions:,} dimensions")


def _ask(embedder: Embedder, timeout: float) -> float:
    def steps() -> Steps[float]:
        begun = time.monotonic()
        yield Embedding(embedder, ["word"], timeout)
        return time.monotonic() - begun

    # In a thread that the end of this process does not wait for, in asynchronous programs too.
    sessions: Callable[[], Any] = lambda: None  # noqa: E731 - an embedding needs none
    return Driver(sessions, None).run(steps())  # type: ignore[arg-type]
