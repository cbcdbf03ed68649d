"""What database triggers write into an outbox: definitions that a migration can freeze.

A :class:`Capture` says for one table which changes of its rows concern which entries.  It knows names only, no
models, and is the same for every database.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any, Final, Literal, Protocol, get_args

from sqlalchemy import MetaData
from sqlalchemy.engine import Connection, Dialect

from sqla_vector.exc import InvalidOption
from sqla_vector.schema import check_existing_name

__all__ = [
    "Capture",
    "CaptureSupport",
    "Group",
    "Join",
    "KeyKind",
    "Mark",
    "ReflectedCapture",
    "capture_name",
    "captures_of",
    "declare_capture",
    "described",
    "parse_description",
]

KeyKind = Literal["integer", "text", "uuid", "date", "datetime"]
"""How a column of a key is written into a row key, which is JSON."""

LABEL: Final = "sqla_vector outbox trigger"
"""By what a trigger of this package is known in the database."""

_DECLARED: Final = "sqla_vector_captures"
_VERSION: Final = 1
"""Is part of the hash, so that triggers of other SQL are made anew."""
_MAX_ENTITY: Final = 255


@dataclass(frozen=True)
class Join:
    """A step from a row to rows of another table."""

    table: str
    schema: str | None
    on: tuple[tuple[str, str], ...]
    """Which column of the row before equals which of this table."""

    def __post_init__(self) -> None:
        _check_names("table name", self.table)
        _check_names("schema", *_given(self.schema))
        if not self.on:
            raise InvalidOption(f"a path to {self.table} joins by at least one pair of columns")
        _check_names("column name", *(name for pair in self.on for name in pair))

    def relocated(self, now: Callable[[str | None, str], tuple[str | None, str]]) -> Join:
        """Return it with the table where it is now."""
        schema, table = now(self.schema, self.table)
        return replace(self, schema=schema, table=table)


@dataclass(frozen=True)
class Mark:
    """Which rows are marked when a row changes: it itself, or those that a path leads to."""

    entity: str
    """The table of the rows that are marked, as the outbox names it."""
    key: tuple[tuple[str, KeyKind], ...]
    """Its primary key."""
    watched: tuple[str, ...]
    """The columns whose change matters, of the captured table."""
    path: tuple[Join, ...] = ()
    """From the captured table to the entity's; empty if they are the same row."""
    fingerprint: str | None = None
    """A statement that writes a new value here has made the vector too, so that there is nothing to be done."""
    inserts: bool = True
    """Whether there may be rows to mark when a row is new; not if their references to it are enforced at once."""

    def __post_init__(self) -> None:
        if not isinstance(self.entity, str) or not self.entity or len(self.entity) > _MAX_ENTITY:
            raise InvalidOption(f"an entity is the name of a table, of {_MAX_ENTITY} characters at most")
        for name in self.entity.split("."):
            _check_names("entity", name)
        if not self.key or not self.watched:
            raise InvalidOption(f"a mark of {self.entity} needs its key, and columns that are watched")
        _check_names("column name", *(name for name, _ in self.key), *self.watched, *_given(self.fingerprint))
        for name, kind in self.key:
            if kind not in get_args(KeyKind):
                kinds = ", ".join(get_args(KeyKind))
                raise InvalidOption(f"{self.entity}.{name}: a column of a key is one of {kinds}; got {kind!r}")
        if self.path and self.fingerprint:
            raise InvalidOption(f"a mark of {self.entity} has a path, so that no fingerprint is in the changed row")

    @property
    def moving(self) -> tuple[str, ...]:
        """The columns that say which rows are marked: after a change of them, those of before are marked too."""
        return tuple(dict.fromkeys(left for left, _ in self.path[0].on)) if self.path else ()


@dataclass(frozen=True)
class Group:
    """The marks of a capture that mean the same rows; they write one entry."""

    marks: tuple[Mark, ...]

    @property
    def first(self) -> Mark:
        """Any of them, for what they have in common."""
        return self.marks[0]


@dataclass(frozen=True)
class Capture:
    """Which changes of one table are written into an outbox.

    Attributes:
        table: the table.
        outbox: the outbox's name.
        marks: which rows are marked, and when.
        schema: the table's schema.
        outbox_schema: the outbox's.
        channel: whose entries they are.
        unique: the columns of the primary key and of each unique constraint.  SQLite's REPLACE deletes the rows
            that collide without telling triggers.
        deletes: whether a deleted row is an entry too, of the operation ``delete``, and ``TRUNCATE`` one of all
            rows, of the operation ``truncate`` and the key ``[]``.
    """

    table: str
    outbox: str
    marks: tuple[Mark, ...]
    schema: str | None = None
    outbox_schema: str | None = None
    channel: str = "embedding"
    unique: tuple[tuple[str, ...], ...] = ()
    deletes: bool = False

    def __post_init__(self) -> None:
        _check_names("table name", self.table, self.outbox)
        _check_names("schema", *_given(self.schema), *_given(self.outbox_schema))
        _check_names("channel", self.channel)
        _check_names("column name", *(name for names in self.unique for name in names))
        if not self.marks:
            raise InvalidOption(f"{self.table}: a trigger that marks no rows is good for nothing; give marks=")

    @property
    def name(self) -> str:
        """The name of its function, with which those of its triggers begin."""
        return capture_name(self.table, self.channel)

    @property
    def fullname(self) -> str:
        """The table, with its schema if it has one."""
        return ".".join((*_given(self.schema), self.table))

    @property
    def groups(self) -> list[Group]:
        """The marks by the rows that they mean, in order."""
        order = {what: number for number, what in reversed(list(enumerate(map(_rows, self.marks))))}
        ordered = sorted(self.marks, key=lambda mark: order[_rows(mark)])
        return [Group(tuple(marks)) for _, marks in groupby(ordered, _rows)]

    @property
    def tables(self) -> list[tuple[str | None, str]]:
        """Schema and name of the outbox and of the tables on its paths, each once."""
        joins = [(join.schema, join.table) for mark in self.marks for join in mark.path]
        return list(dict.fromkeys([(self.outbox_schema, self.outbox), *joins]))

    @property
    def columns(self) -> set[str]:
        """The columns of the table that its triggers name."""
        named = {name for names in self.unique for name in names}
        for mark in self.marks:
            named.update(mark.watched, mark.moving, _given(mark.fingerprint))
            named.update(() if mark.path else (name for name, _ in mark.key))
        return named

    def relocated(self, now: Callable[[str | None, str], tuple[str | None, str]]) -> Capture:
        """Return it with its tables where they are now; ``now`` takes and returns schema and name of each."""
        schema, table = now(self.schema, self.table)
        outbox_schema, outbox = now(self.outbox_schema, self.outbox)
        marks = tuple(replace(mark, path=tuple(join.relocated(now) for join in mark.path)) for mark in self.marks)
        return replace(self, schema=schema, table=table, outbox_schema=outbox_schema, outbox=outbox, marks=marks)

    def to_json(self) -> str:
        """Return it as one line, the same in every process."""
        # Without slashes, which could end the comment that this stands in.
        return json.dumps(asdict(self), separators=(",", ":"), sort_keys=True).replace("/", "\\/")

    @property
    def hash(self) -> str:
        """Tells this definition from others."""
        return hashlib.sha256(f"{_VERSION}:{self.to_json()}".encode()).hexdigest()[:16]

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> Capture:
        """Return the definition of plain data: what :meth:`to_json` gives, or a migration has.

        Raises:
            InvalidOption: it is none.
        """
        try:
            marks = [
                {
                    **mark,
                    "key": tuple((name, kind) for name, kind in _pairs(mark["key"])),
                    "watched": tuple(mark["watched"]),
                    "path": tuple(
                        Join(join["table"], join.get("schema"), tuple((a, b) for a, b in _pairs(join["on"])))
                        for join in mark.get("path", ())
                    ),
                }
                for mark in given["marks"]
            ]
            return cls(
                **{
                    **given,
                    "marks": tuple(Mark(**mark) for mark in marks),
                    "unique": tuple(tuple(names) for names in given.get("unique", ())),
                }
            )
        except (TypeError, KeyError, AttributeError) as error:
            raise InvalidOption(f"this is no definition of an outbox trigger: {error}") from error


@dataclass(frozen=True)
class ReflectedCapture:
    """A capture as found in the database."""

    name: str
    table_name: str
    """The table that it is on, which may have been renamed."""
    schema: str | None
    hash: str
    definition: Capture | None
    """None if it was written by another version, and cannot be read."""
    is_complete: bool
    """Whether all of its triggers are there and enabled."""

    def is_of(self, capture: Capture) -> bool:
        """Tell whether it is what a definition asks for."""
        return self.is_complete and self.hash == capture.hash and self.table_name == capture.table


class CaptureSupport(Protocol):
    """What a dialect module provides for captures."""

    def create(self, capture: Capture, dialect: Dialect) -> list[str]:
        """Return the statements that create the triggers."""

    def drop(self, name: str, schema: str | None, dialect: Dialect) -> list[str]:
        """Return the statements that drop them, by the capture's name; each bears that something is gone."""

    def reflect(self, connection: Connection, schema: str | None) -> list[ReflectedCapture]:
        """Return the captures of the tables of a schema."""


def capture_name(table: str, channel: str) -> str:
    """Return the name of the function for a table, with which those of its triggers begin."""
    name = f"{table}_{channel}_capture"
    # The names of triggers go on, and PostgreSQL cuts them at 63 bytes.
    if len(name.encode()) <= 48:
        return name
    short = table.encode()[:22].decode(errors="ignore")
    return f"{short}_{hashlib.sha256(name.encode()).hexdigest()[:16]}_capture"


def declare_capture(metadata: MetaData, capture: Capture) -> None:
    """Note a capture among a project's tables, in place of an older one of its table and channel."""
    metadata.info.setdefault(_DECLARED, {})[capture.fullname, capture.channel] = capture


def captures_of(metadata: MetaData) -> tuple[Capture, ...]:
    """Return the captures that were declared for a project's tables."""
    return tuple(metadata.info.get(_DECLARED, {}).values())


def described(capture: Capture) -> str:
    """Return what the database keeps of a definition beside its triggers."""
    return f"{LABEL} {capture.name} {capture.hash} {capture.to_json()}"


def parse_description(written: str) -> tuple[str, str, Capture | None]:
    """Return name, hash and definition of what :func:`described` wrote."""
    # A table's name may have spaces.
    head, brace, rest = written.removeprefix(LABEL).strip().partition("{")
    name, _, hash_ = head.strip().rpartition(" ")
    try:
        return name, hash_, Capture.from_mapping(json.loads(brace + rest))
    except ValueError:
        return name, hash_, None


def _rows(mark: Mark) -> tuple[Any, ...]:
    return (mark.entity, mark.key, mark.path)


def _pairs(given: Mapping[str, Any] | Sequence[tuple[str, Any]]) -> Iterable[tuple[str, Any]]:
    return given.items() if isinstance(given, Mapping) else given


def _given(name: str | None) -> tuple[str, ...]:
    return () if name is None else (name,)


def _check_names(what: str, *names: str) -> None:
    for name in names:
        check_existing_name(name, what)
