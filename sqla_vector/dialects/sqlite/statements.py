"""The SQL that makes a vec0 table with its triggers, and drops it.

Nothing here runs SQL; the statements are executed by :mod:`sqla_vector.dialects.sqlite.dialect`.

Traps avoided (sqlite-vec 0.1.9): vec0 refuses NULL vectors and NULL metadata (rows without a vector are left out,
NULL metadata becomes a stand-in value); it has no conflict clauses (triggers delete, then insert); a zero
vector has no place under cosine.  ``INSERT OR REPLACE`` fires no delete trigger for the rows it replaces: the
row of the same key is deleted by the insert trigger itself, and rows replaced because of another UNIQUE
constraint are noted by a BEFORE trigger and cleared after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from sqlalchemy import Column
from sqlalchemy.sql.compiler import IdentifierPreparer

from sqla_vector.dialects.sqlite.beside import unique_constraints
from sqla_vector.dialects.sqlite.index import LIST, VECTOR, Vec0Index
from sqla_vector.dialects.sqlite.ivf_statements import ListStatements
from sqla_vector.dialects.sqlite.side_tables import CENTROIDS, KEYS, REPLACED, TUNED, drop_side_table

__all__ = ["SIDE_TABLES", "TRIGGERS", "Vec0Statements", "drop_statements"]

_NULL_STAND_INS: Final = {
    "integer": "-9223372036854775807",
    "float": "-1.7976931348623157e308",
    "text": "char(1) || 'null'",
    "boolean": "0",
}
"""What stands for NULL in vec0 metadata; only compared with ``=`` and only where the column may be NULL."""

SIDE_TABLES: Final = (KEYS, REPLACED, CENTROIDS)
"""What stands after an index's name in those of the tables beside its vec0 table."""
TRIGGERS: Final = (
    "insert",
    "insert_without",
    "update",
    "update_without",
    "delete",
    "replace",
    "replace_update",
)
"""What stands after it, and an underscore, in those of its triggers."""


class Vec0Statements:
    """The SQL that creates and drops a :class:`Vec0Index`."""

    def __init__(self, index: Vec0Index, preparer: IdentifierPreparer) -> None:
        self._index = index
        self._quote = preparer.quote
        schema = preparer.schema_for_object(index.table)
        self._schema = f"{preparer.quote_schema(schema)}." if schema else ""
        self._table = preparer.quote(index.table.name)
        self._key = preparer.quote(index.primary_key.name)
        self._vector = preparer.quote(index.key.column.name)
        self._vec0 = preparer.quote(index.name)
        self._keys = preparer.quote(index.keys_name)
        self._replaced = preparer.quote(index.replaced_name)
        self._lists = ListStatements(index, self._schema, preparer.quote) if index.in_lists else None
        # In a trigger names resolve within its own database, and may not say which.
        self._lists_in_trigger = ListStatements(index, "", preparer.quote) if index.in_lists else None

    def create(self) -> list[str]:
        """Return the statements that create the vec0 table and its triggers and fill it."""
        return [*self._create(), *self._train(), *self._fill()]

    def retrain(self) -> list[str]:
        """Return the statements that train the lists anew and store all rows in them; the triggers stay."""
        return [f"DROP TABLE {self._schema}{self._vec0}", *self._create_vec0(), *self._train(), *self._store()]

    def write(self) -> list[str]:
        """Return the statements for a script, which may be run by a program that lacks this package's functions.

        A trigger may call what is not there until it fires; a statement may not, even on an empty table.
        """
        fill = [*self._train(), *self._fill()]
        if not any("(vector_" in sql for sql in fill):
            return [*self._create(), *fill]
        one_list = [] if self._lists is None else [self._lists.untrained()]
        return [*self._create(), *one_list, *self._refuse_vectors()]

    def _create(self) -> list[str]:
        statements = self._create_vec0()
        if self._lists is not None:
            statements.append(self._lists.create_centroids())
        if self._index.has_text_key:
            statements.append(
                f"CREATE TABLE {self._schema}{self._keys} (number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE)"
            )
        if self._unique_constraints():
            statements.append(f"CREATE TABLE {self._schema}{self._replaced} (key)")
        statements.extend(self._create_triggers())
        return statements

    def drop(self) -> list[str]:
        """Return the statements that drop them; each bears that something is gone already."""
        return _drop_statements(self._index.name, self._schema, self._quote)

    def _create_vec0(self) -> list[str]:
        columns = [f"{VECTOR} {self._index.column_spec}"]
        if self._lists is not None:
            columns.append(f"{LIST} integer partition key")
        for item in self._index.metadata:
            columns.append(f"{item.name} {item.vec0_type}{' partition key' if item.partition else ''}")
        declared = f"{', '.join(columns)}{self._index.table_options}"
        created = f"CREATE VIRTUAL TABLE {self._schema}{self._vec0} USING vec0({declared})"
        return [created, *(self._lists.create_lookups() if self._lists is not None else [])]

    def _number(self, key: str) -> str:
        """Return the vec0 rowid of a key in SQL."""
        if not self._index.has_text_key:
            return key
        return f"(SELECT number FROM {self._keys} WHERE key = {key})"

    def _values(self, source: str, list_: str | None = None) -> tuple[str, str]:
        """Return the columns of vec0, and their values for the row ``source`` (NEW, or a table)."""
        names = ["rowid", VECTOR]
        values = [self._number(f"{source}.{self._key}"), self._index.quantized(f"{source}.{self._vector}")]
        for item in self._index.metadata:
            value = f"{source}.{self._quote(item.column.name)}"
            names.append(item.name)
            values.append(f"coalesce({value}, {_NULL_STAND_INS[item.vec0_type]})" if item.nullable else value)
        if list_ is not None:
            names.append(LIST)
            values.append(list_)
        return ", ".join(names), ", ".join(values)

    def _has_place(self, source: str) -> str:
        """Return the criterion that a row's vector can be indexed."""
        vector = f"{source}.{self._vector}"
        if not self._index.spec.metric.zero_is_undefined:
            return f"{vector} IS NOT NULL"
        # A CASE, because AND may be evaluated in any order and the function refuses NULL.
        return f"CASE WHEN {vector} IS NOT NULL THEN vec_distance_cosine({vector}, {vector}) IS NOT NULL ELSE 0 END"

    def _forget(self, key: str) -> str:
        return f"DELETE FROM {self._vec0} WHERE rowid = {self._number(key)}"

    def _remember(self, key: str) -> list[str]:
        if not self._index.has_text_key:
            return []
        return [
            (
                f"INSERT INTO {self._keys} (key) SELECT {key} "
                f"WHERE NOT EXISTS (SELECT 1 FROM {self._keys} WHERE key = {key})"
            )
        ]

    def _release(self, key: str) -> list[str]:
        """Return the statement that gives up the number of a key which no row has any more."""
        if not self._index.has_text_key:
            return []
        return [
            (
                f"DELETE FROM {self._keys} WHERE key = {key} "
                f"AND NOT EXISTS (SELECT 1 FROM {self._table} WHERE {self._key} = {key})"
            )
        ]

    def _unique_constraints(self) -> list[list[Column[Any]]]:
        return unique_constraints(self._index.table)

    def _create_triggers(self) -> Iterator[str]:
        new, old = f"NEW.{self._key}", f"OLD.{self._key}"
        unique = self._unique_constraints()
        identifying = [column for columns in unique for column in columns]
        watched = [self._index.primary_key, self._index.key.column, *(m.column for m in self._index.metadata)]
        of = self._listed(watched + identifying)
        cleared = self._clear_replaced()
        forgetting = {
            "insert": ("AFTER INSERT", [*cleared, self._forget(new)]),
            "update": (
                f"AFTER UPDATE OF {of}",
                [*cleared, self._forget(old), self._forget(new), *self._release(old)],
            ),
        }
        lists = self._lists_in_trigger
        names, values = self._values("NEW", None if lists is None else lists.list_of(f"NEW.{self._vector}"))
        insert = f"INSERT INTO {self._vec0} ({names}) VALUES ({values})"
        place = self._has_place("NEW")
        for event, (when, body) in forgetting.items():
            # Two triggers of which exactly one fires: triggers of one event have no defined order.  VALUES, not
            # SELECT ... WHERE, because a SELECT may lose the type that sqlite-vec attaches to quantized vectors.
            yield self._trigger(event, when, [*body, *self._remember(new), insert], place)
            yield self._trigger(f"{event}_without", when, body, f"NOT ({place})")
        yield self._trigger("delete", "AFTER DELETE", [self._forget(old), *self._release(old)])
        if unique:
            noted = [self._note_replaced(columns) for columns in unique]
            yield self._trigger("replace", "BEFORE INSERT", noted)
            yield self._trigger("replace_update", f"BEFORE UPDATE OF {self._listed(identifying)}", noted)

    def _listed(self, columns: list[Column[Any]]) -> str:
        return ", ".join(dict.fromkeys(self._quote(column.name) for column in columns))

    def _note_replaced(self, columns: list[Column[Any]]) -> str:
        same = " AND ".join(f"{self._quote(c.name)} = NEW.{self._quote(c.name)}" for c in columns)
        # The row itself may be among them: what is still there afterwards stays.  (Its key is no help to leave it
        # out, because a key that SQLite generates is -1 before the INSERT.)
        return f"INSERT INTO {self._replaced} (key) SELECT {self._key} FROM {self._table} WHERE {same}"

    def _clear_replaced(self) -> list[str]:
        if not self._unique_constraints():
            return []
        gone = (
            f"SELECT r.key FROM {self._replaced} AS r "
            f"WHERE NOT EXISTS (SELECT 1 FROM {self._table} AS t WHERE t.{self._key} = r.key)"
        )
        cleared = [f"DELETE FROM {self._vec0} WHERE rowid IN ({gone})", f"DELETE FROM {self._replaced}"]
        if self._index.has_text_key:
            numbers = f"SELECT number FROM {self._keys} WHERE key IN ({gone})"
            cleared[:1] = [
                f"DELETE FROM {self._vec0} WHERE rowid IN ({numbers})",
                f"DELETE FROM {self._keys} WHERE key IN ({gone})",
            ]
        return cleared

    def _trigger(self, event: str, when: str, body: list[str], condition: str | None = None) -> str:
        name = self._quote(f"{self._index.name}_{event}")
        statements = " ".join(f"{statement};" for statement in body)
        only = f" WHEN {condition}" if condition else ""
        return f"CREATE TRIGGER {self._schema}{name} {when} ON {self._table} FOR EACH ROW{only} BEGIN {statements} END"

    def _train(self) -> Iterator[str]:
        if self._lists is not None:
            source = f"{self._schema}{self._table} AS source"
            yield self._lists.train(source, f"source.{self._vector}", self._has_place("source"))

    def _fill(self) -> Iterator[str]:
        if self._index.has_text_key:
            source = f"{self._schema}{self._table}"
            yield f"INSERT INTO {self._schema}{self._keys} (key) SELECT {self._key} FROM {source}"
        yield from self._store()

    def _store(self) -> Iterator[str]:
        """Yield the statement that stores the table's rows in the vec0 table."""
        source = f"{self._schema}{self._table}"
        if self._lists is not None:
            yield self._store_in_lists(self._lists, source)
            return
        names, values = self._values("source")
        if self._schema:
            # In a trigger names resolve within its own database; here they must say which.
            values = values.replace(f"FROM {self._keys}", f"FROM {self._schema}{self._keys}")
        yield (
            f"INSERT INTO {self._schema}{self._vec0} ({names}) SELECT {values} FROM {source} AS source "
            f"WHERE {self._has_place('source')}"
        )

    def _store_in_lists(self, lists: ListStatements, source: str) -> str:
        # List by list, so that the chunks of each are written one after the other.
        names, values = self._values("source", "CAST(list.key AS INTEGER)")
        number, joined = f"source.{self._key}", f"{source} AS source"
        found = f"CROSS JOIN {joined} ON {number} = member.value"
        if self._index.has_text_key:
            values = values.replace(self._number(number), "member.value", 1)
            keys, of_key = f"{self._schema}{self._keys} AS named", f"CROSS JOIN {joined} ON {number} = named.key"
            number, joined = "named.number", f"{keys} {of_key}"
            found = f"CROSS JOIN {keys} ON named.number = member.value {of_key}"
        assigned = lists.assigned(number, f"source.{self._vector}", joined, self._has_place("source"))
        return (
            f"INSERT INTO {self._schema}{self._vec0} ({names}) SELECT {values} "
            f"FROM json_each({assigned}) AS list CROSS JOIN json_each(list.value) AS member {found}"
        )

    def _refuse_vectors(self) -> Iterator[str]:
        """Yield statements that fail if there are vectors to index; the constraint's name is the message."""
        check = self._quote(f"{self._index.name}_fill")
        message = (
            f"{self._index.table.name} holds vectors, and {self._index.name} is filled by functions of sqla_vector: "
            "run this migration online"
        )
        yield f"CREATE TEMPORARY TABLE {check} (vectors INTEGER, CONSTRAINT {self._quote(message)} CHECK (vectors = 0))"
        yield f"INSERT INTO {check} SELECT count(*) FROM {self._schema}{self._table} WHERE {self._vector} IS NOT NULL"
        yield f"DROP TABLE {check}"


def drop_statements(name: str, schema: str | None, preparer: IdentifierPreparer) -> list[str]:
    """Return the statements that drop a vec0 table by its name, and all that belongs to it."""
    return _drop_statements(name, f"{preparer.quote_schema(schema)}." if schema else "", preparer.quote)


def _drop_statements(name: str, prefix: str, quote: Callable[[str], str]) -> list[str]:
    statements = [f"DROP TRIGGER IF EXISTS {prefix}{quote(f'{name}_{event}')}" for event in TRIGGERS]
    sides = (drop_side_table(f"{prefix}{quote(f'{name}{side}')}") for side in (REPLACED, KEYS, CENTROIDS, TUNED))
    return [*statements, *sides, f"DROP TABLE IF EXISTS {prefix}{quote(name)}"]
