"""Outbox triggers on SQLite: one trigger of each event for a table, which writes the entries of all its marks.

SQLite keeps their text and changes the names in it when a table or column is renamed.  The definition stands in a
comment within.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Final

from sqlalchemy.engine import Connection, Dialect

from sqla_vector.dialects.capture import (
    LABEL,
    Capture,
    Group,
    KeyKind,
    Mark,
    ReflectedCapture,
    described,
    parse_description,
)
from sqla_vector.dialects.clock import NOW
from sqla_vector.dialects.migration import quoted
from sqla_vector.exc import InvalidOption

__all__ = ["SQLiteCapture", "capture_description"]

_EVENTS: Final = ("insert", "update", "delete", "replace", "replace_update")
_COMMENT: Final = re.compile(rf"/\* ({LABEL} .*?) \*/", re.DOTALL)


class SQLiteCapture:
    """Implements :class:`sqla_vector.dialects.capture.CaptureSupport`."""

    def create(self, capture: Capture, dialect: Dialect) -> list[str]:
        for schema, table in capture.tables:
            if (schema or "main") != (capture.schema or "main"):
                raise InvalidOption(
                    f"{capture.fullname}: on SQLite a trigger knows the tables of its own database only, and "
                    f"{table} is in {schema or 'main'}"
                )
        return list(_Statements(capture, dialect).create().values())

    def drop(self, name: str, schema: str | None, dialect: Dialect) -> list[str]:
        return [f"DROP TRIGGER IF EXISTS {quoted(dialect, schema, f'{name}_{event}')}" for event in _EVENTS]

    def reflect(self, connection: Connection, schema: str | None) -> list[ReflectedCapture]:
        master = f"{quoted(connection.dialect, schema)}.sqlite_master" if schema else "sqlite_master"
        rows = connection.exec_driver_sql(
            f"SELECT name, tbl_name, sql FROM {master} "
            f"WHERE type = 'trigger' AND sql LIKE '%/* {LABEL} %' ORDER BY name"
        )
        found: dict[tuple[str, str], dict[str, str]] = {}
        for trigger, table, sql in rows:
            description = capture_description(sql)
            if description is not None:
                name, _, _ = parse_description(description)
                found.setdefault((name, table), {})[trigger] = description
        reflected = []
        for (name, table), triggers in found.items():
            descriptions = set(triggers.values())
            _, hash_, definition = parse_description(descriptions.pop())
            expected = set() if definition is None else set(_Statements(definition, connection.dialect).create())
            # Of two definitions at once one was not finished.
            is_complete = not descriptions and expected == set(triggers)
            reflected.append(ReflectedCapture(name, table, schema, hash_, definition, is_complete))
        return reflected


def capture_description(sql: str) -> str | None:
    """Return what a trigger of a capture says of itself, None if it is another one."""
    found = _COMMENT.search(sql)
    return None if found is None else found.group(1)


class _Statements:
    """The statements for one capture."""

    def __init__(self, capture: Capture, dialect: Dialect) -> None:
        self._capture = capture
        self._dialect = dialect
        # Within a trigger names are those of its own database.
        self._table = self._quote(capture.table)

    def create(self) -> dict[str, str]:
        """Return the statements by the triggers' names."""
        capture, quote = self._capture, self._quote
        comment = f"/* {described(capture)} */"
        prefix = f"{quote(capture.schema)}." if capture.schema else ""
        return {
            (name := f"{capture.name}_{event}"): (
                f"CREATE TRIGGER {prefix}{quote(name)} {when} ON {self._table} FOR EACH ROW "
                f"BEGIN {comment} {' '.join(f'{statement};' for statement in body)} END"
            )
            for event, when in zip(
                _EVENTS,
                ("AFTER INSERT", "AFTER UPDATE", "AFTER DELETE", "BEFORE INSERT", "BEFORE UPDATE"),
                strict=True,
            )
            if (body := list(self._body(event)))
        }

    def _body(self, event: str) -> Iterator[str]:
        for group in self._capture.groups:
            mark, deletes = group.first, self._capture.deletes
            # SQLite enforces references only where it is told to, so that rows may refer to one that comes later.
            match event:
                case "insert":
                    yield self._entry(mark, "NEW", self._is_unmade(group))
                case "update":
                    yield self._entry(mark, "NEW", self._is_changed(group))
                    if mark.path:
                        yield self._entry(mark, "OLD", self._differs(mark.moving))
                    elif deletes:
                        yield self._entry(mark, "OLD", self._differs([name for name, _ in mark.key]), "delete")
                case "delete" if mark.path or deletes:
                    yield self._entry(mark, "OLD", "", "upsert" if mark.path else "delete")
                case "replace" if self._capture.unique and (mark.path or deletes):
                    yield self._replaced(mark, is_update=False)
                case "replace_update" if self._capture.unique and (mark.path or deletes):
                    yield self._replaced(mark, is_update=True)

    def _is_unmade(self, group: Group) -> str:
        """Return the criterion that a new row lacks a vector; nothing if that is unknown."""
        if any(mark.fingerprint is None for mark in group.marks):
            return ""
        return " OR ".join(f"NEW.{self._quote(str(mark.fingerprint))} IS NULL" for mark in group.marks)

    def _is_changed(self, group: Group) -> str:
        return " OR ".join(f"({self._needs_look(mark)})" for mark in group.marks)

    def _needs_look(self, mark: Mark) -> str:
        changed = self._differs(mark.watched)
        if mark.fingerprint is None:
            return changed
        new = f"NEW.{self._quote(mark.fingerprint)} IS NULL OR NOT ({self._differs([mark.fingerprint])})"
        return f"({new}) AND ({changed})"

    def _differs(self, names: Iterable[str]) -> str:
        # Byte by byte: for a column of NOCASE a and A are the same.
        quoted_names = [self._quote(name) for name in names]
        return " OR ".join(f"OLD.{name} IS NOT NEW.{name} COLLATE BINARY" for name in quoted_names)

    def _entry(self, mark: Mark, source: str, condition: str, operation: str = "upsert") -> str:
        if mark.path:
            return self._insert(mark, self._rows(mark, source, [], []), operation, condition)
        return self._insert(mark, f"SELECT {self._key(mark, source)} AS row_key", operation, condition)

    def _replaced(self, mark: Mark, *, is_update: bool) -> str:
        """Return an entry of the rows that an INSERT or UPDATE deletes if it is one OR REPLACE, or of what they mark.

        Whether it is one a trigger cannot know; an entry too many costs a look.
        """
        collisions = []
        for names in self._capture.unique:
            same = [f"t0.{self._quote(name)} = NEW.{self._quote(name)}" for name in names]
            if is_update:
                # Else the row collides with itself.
                same.append(f"({self._differs(names)})")
            collisions.append(f"({' AND '.join(same)})")
        rows = self._rows(mark, "t0", [f"{self._table} AS t0"], [f"({' OR '.join(collisions)})"])
        condition = ""
        if is_update:
            condition = self._differs(dict.fromkeys(name for names in self._capture.unique for name in names))
        return self._insert(mark, rows, "upsert", condition)

    def _insert(self, mark: Mark, rows: str, operation: str, condition: str) -> str:
        now, channel = NOW["sqlite"], _literal(self._capture.channel)
        return (
            f"INSERT INTO {self._quote(self._capture.outbox)} "
            "(channel, entity, row_key, operation, created_at, available_at) "
            f"SELECT {channel}, {_literal(mark.entity)}, k.row_key, '{operation}', {now}, {now} "
            f"FROM ({rows}) AS k{f' WHERE {condition}' if condition else ''}"
        )

    def _rows(self, mark: Mark, source: str, froms: list[str], where: list[str]) -> str:
        """Return a query for the keys that a path leads to."""
        for number, join in zip(count(1), mark.path, strict=False):
            alias = f"t{number}"
            froms.append(f"{self._quote(join.table)} AS {alias}")
            where += [f"{alias}.{self._quote(right)} = {source}.{self._quote(left)}" for left, right in join.on]
            source = alias
        key = self._key(mark, source)
        return f"SELECT DISTINCT {key} AS row_key FROM {', '.join(froms)} WHERE {' AND '.join(where)}"

    def _key(self, mark: Mark, source: str) -> str:
        return f"json_array({', '.join(_plain(f'{source}.{self._quote(name)}', kind) for name, kind in mark.key)})"

    def _quote(self, name: str) -> str:
        return quoted(self._dialect, name)


def _plain(value: str, kind: KeyKind) -> str:
    """Return a value that json_array() writes as Python's json.dumps() does."""
    match kind:
        case "uuid":
            parts = " || '-' || ".join(
                f"substr({value}, {a}, {n})" for a, n in ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12))
            )
            value = f"CASE WHEN length({value}) = 32 THEN lower({parts}) ELSE {value} END"
        case "datetime":
            value = f"replace(replace({value}, ' ', 'T'), '.000000', '')"
    # A column takes values of any type, and JSON has no place for bytes.
    return f"CASE typeof({value}) WHEN 'blob' THEN hex({value}) ELSE {value} END"


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
