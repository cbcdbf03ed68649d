"""Outbox triggers on PostgreSQL: one function for a table, and row triggers that say when it is called.

What matters is decided in the triggers' WHEN: these are kept as expressions, which follow a column that is renamed,
and nothing is called for rows that do not matter.  There is no ``UPDATE OF``, which would miss what triggers BEFORE
UPDATE set.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Final

from sqlalchemy import text
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

__all__ = ["PostgreSQLCapture"]

_COLUMNS: Final = "channel, entity, row_key, operation, created_at, available_at"

_REFLECT: Final = text(
    "SELECT p.proname, c.relname, pg_catalog.obj_description(p.oid, 'pg_proc') AS description, "
    "pg_catalog.array_agg(t.tgname::pg_catalog.text) FILTER (WHERE t.tgenabled IN ('O', 'A')) AS triggers "
    "FROM pg_catalog.pg_trigger AS t "
    "JOIN pg_catalog.pg_class AS c ON c.oid = t.tgrelid "
    "JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace "
    "JOIN pg_catalog.pg_proc AS p ON p.oid = t.tgfoid "
    "WHERE NOT t.tgisinternal AND t.tgparentid = 0 "
    "AND n.nspname = coalesce(CAST(:schema AS pg_catalog.text), pg_catalog.current_schema()) "
    "AND pg_catalog.obj_description(p.oid, 'pg_proc') LIKE :label "
    "GROUP BY p.oid, p.proname, c.relname ORDER BY p.proname, c.relname"
)


class PostgreSQLCapture:
    """Implements :class:`sqla_vector.dialects.capture.CaptureSupport`."""

    def create(self, capture: Capture, dialect: Dialect) -> list[str]:
        return _Statements(capture, dialect).create()

    def drop(self, name: str, schema: str | None, dialect: Dialect) -> list[str]:
        # With its triggers, whatever table they are on now.
        return [f"DROP FUNCTION IF EXISTS {quoted(dialect, schema, name)}() CASCADE"]

    def reflect(self, connection: Connection, schema: str | None) -> list[ReflectedCapture]:
        rows = connection.execute(_REFLECT, {"schema": schema, "label": f"{LABEL} %"})
        found = []
        for row in rows:
            _, hash_, definition = parse_description(row.description)
            expected = set() if definition is None else set(_Statements(definition, connection.dialect).trigger_names())
            is_complete = expected <= set(row.triggers or ())
            found.append(ReflectedCapture(row.proname, row.relname, schema, hash_, definition, is_complete))
        return found


class _Statements:
    """The statements for one capture."""

    def __init__(self, capture: Capture, dialect: Dialect) -> None:
        self._capture = capture
        self._dialect = dialect
        self._function = quoted(dialect, capture.schema, capture.name)
        self._table = quoted(dialect, capture.schema, capture.table)
        # Tables are named in the function by their number among these, see _create_function().
        self._tables = [*capture.tables, (capture.schema, capture.table)]

    def create(self) -> list[str]:
        return [
            self._create_function(),
            # Who may call it could have it write entries for a table of his own.
            f"REVOKE ALL ON FUNCTION {self._function}() FROM PUBLIC",
            f"COMMENT ON FUNCTION {self._function}() IS {_literal(described(self._capture))}",
            *(
                f"CREATE TRIGGER {quoted(self._dialect, name)} {when} EXECUTE FUNCTION {self._function}({what})"
                for name, when, what in self._triggers()
            ),
        ]

    def trigger_names(self) -> Iterator[str]:
        return (name for name, _, _ in self._triggers())

    def _triggers(self) -> Iterator[tuple[str, str, str]]:
        """Yield name, event with condition, and argument of each trigger."""
        for number, group in enumerate(self._capture.groups):
            for event, when, what in self._events(group):
                yield f"{self._capture.name}_{number}_{event}", when, f"'{number}', '{what}'"

    def _events(self, group: Group) -> Iterator[tuple[str, str, str]]:
        mark = group.first
        if any(mark.inserts for mark in group.marks):
            yield "insert", self._row("INSERT", self._is_unmade(group)), "new"
        yield "update", self._row("UPDATE", self._is_changed(group)), "new"
        if mark.path:
            yield "moved", self._row("UPDATE", self._differs(mark.moving)), "old"
            yield "delete", self._row("DELETE", ""), "old"
            # Before: afterwards there is nothing to be found by it.
            yield "truncate", f"BEFORE TRUNCATE ON {self._table} FOR EACH STATEMENT", "all"
        elif self._capture.deletes:
            yield "moved", self._row("UPDATE", self._differs([name for name, _ in mark.key])), "gone"
            yield "delete", self._row("DELETE", ""), "gone"
            yield "truncate", f"BEFORE TRUNCATE ON {self._table} FOR EACH STATEMENT", "truncated"

    def _row(self, event: str, condition: str) -> str:
        when = f" WHEN ({condition})" if condition else ""
        return f"AFTER {event} ON {self._table} FOR EACH ROW{when}"

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
        # First, so that the texts of a row whose vector is written are not compared.
        new = f"NEW.{self._quote(mark.fingerprint)} IS NULL OR NOT ({self._differs([mark.fingerprint])})"
        return f"({new}) AND ({changed})"

    def _differs(self, names: Iterable[str]) -> str:
        # As text and byte by byte: JSON and others have no equality, and a collation may have A equal a.
        as_text = '::pg_catalog.text COLLATE pg_catalog."C"'
        quoted_names = [self._quote(name) for name in names]
        return " OR ".join(f"OLD.{name}{as_text} IS DISTINCT FROM NEW.{name}{as_text}" for name in quoted_names)

    def _create_function(self) -> str:
        """Return a block that creates the function with the schemas that names without one have now.

        When it runs the search path is another one, which nobody can put tables of his own into.
        """
        # Names have no percent signs, which format() would take for arguments.
        body = f"BEGIN\n{self._body()}\n  RETURN NULL;\nEND"
        create = (
            f"CREATE OR REPLACE FUNCTION {self._function}() RETURNS trigger LANGUAGE plpgsql "
            "SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS "
            f"{_dollars(body, 'body')}"
        )
        relations = ",\n  ".join(
            "(SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class AS c "
            "JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace "
            f"WHERE c.oid = {_literal(quoted(self._dialect, *table))}::pg_catalog.regclass)"
            for table in self._tables
        )
        block = f"BEGIN EXECUTE pg_catalog.format({_dollars(create, 'create')},\n  {relations}); END"
        return f"DO {_dollars(block, 'do')}"

    def _body(self) -> str:
        parts = []
        for number, group in enumerate(self._capture.groups):
            whats = dict.fromkeys(what for _, _, what in self._events(group))
            for what in whats:
                parts.append(
                    f"IF TG_ARGV[0] = '{number}' AND TG_ARGV[1] = '{what}' THEN\n    {self._entry(group.first, what)};"
                )
        return "  " + "\n  ELS".join(parts) + "\n  END IF;"

    def _entry(self, mark: Mark, what: str) -> str:
        channel, now = _literal(self._capture.channel), NOW["postgresql"]
        entity = _literal(mark.entity)
        outbox = f"INSERT INTO {self._relation(0)} ({_COLUMNS})"
        if what == "truncated":
            return f"{outbox} VALUES ({channel}, {entity}, '[]', 'truncate', {now}, {now})"
        if not mark.path:
            source, operation = ("OLD", "delete") if what == "gone" else ("NEW", "upsert")
            return f"{outbox} VALUES ({channel}, {entity}, {self._key(mark, source)}, '{operation}', {now}, {now})"
        rows = self._rows(mark, {"new": "NEW", "old": "OLD"}.get(what))
        return f"{outbox} SELECT {channel}, {entity}, k.row_key, 'upsert', {now}, {now} FROM ({rows}) AS k"

    def _rows(self, mark: Mark, source: str | None) -> str:
        """Return a query for the keys that a path leads to, from one row or from all."""
        froms, where, before = [], [], source or "t0"
        if source is None:
            froms.append(f"{self._relation(len(self._tables) - 1)} AS t0")
        for number, join in zip(count(1), mark.path, strict=False):
            alias = f"t{number}"
            froms.append(f"{self._relation(self._tables.index((join.schema, join.table)))} AS {alias}")
            where += [f"{alias}.{self._quote(right)} = {before}.{self._quote(left)}" for left, right in join.on]
            before = alias
        key = self._key(mark, before)
        return f"SELECT DISTINCT {key} AS row_key FROM {', '.join(froms)} WHERE {' AND '.join(where)}"

    def _relation(self, number: int) -> str:
        return f"%{number + 1}$s"

    def _key(self, mark: Mark, source: str) -> str:
        values = " || ',' || ".join(_json(f"{source}.{self._quote(name)}", kind) for name, kind in mark.key)
        return f"'[' || {values} || ']'"

    def _quote(self, name: str) -> str:
        return quoted(self._dialect, name)


def _json(value: str, kind: KeyKind) -> str:
    """Return a value as Python's json.dumps() writes it."""
    as_text = f"{value}::pg_catalog.text"
    match kind:
        case "integer":
            return as_text
        case "text":
            return f"pg_catalog.to_json({as_text})::pg_catalog.text"
        case "uuid":
            # A column of 32 digits is one too, and whatever else is in it is no reason to fail.
            digits = f"{as_text} ~ '^[0-9a-fA-F]{{32}}$'"
            plain = f"CASE WHEN {digits} THEN {as_text}::pg_catalog.uuid::pg_catalog.text ELSE {as_text} END"
            return f"pg_catalog.to_json({plain})::pg_catalog.text"
        case "date":
            # Not as text, which is as DateStyle says.
            return f"pg_catalog.to_json({value})::pg_catalog.text"
        case "datetime":
            iso = f"pg_catalog.to_json({value})::pg_catalog.text"
            # Python writes all digits of the microseconds, or none.
            digits = f"pg_catalog.rpad(pg_catalog.substring({iso}, '[.]([0-9]+)'), 6, '0')"
            return f"coalesce(pg_catalog.regexp_replace({iso}, '[.][0-9]+', '.' || {digits}), {iso})"


def _literal(value: str) -> str:
    doubled = value.replace("'", "''")
    # Whatever standard_conforming_strings is.
    return "E'" + doubled.replace("\\", "\\\\") + "'" if "\\" in value else f"'{doubled}'"


def _dollars(body: str, tag: str) -> str:
    """Return a string constant between dollar quotes that it does not contain."""
    number = next(n for n in count() if f"${tag}{n or ''}$" not in body)
    mark = f"${tag}{number or ''}$"
    return f"{mark}{body}{mark}"
