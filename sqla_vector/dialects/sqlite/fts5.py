"""A text index on SQLite: an FTS5 table beside the table, kept by triggers.

One ``CREATE INDEX`` becomes, in one savepoint: a view that gives key and texts of each row, the FTS5 table (of the
index's name) whose content the view is, a table that notes what is replaced, for text keys a table that numbers them,
the triggers, and the fill.

Traps avoided:

* A number for each row is its integer key, or one kept here for its text key: VACUUM may renumber implicit rowids.
* FTS5 asks for its content by the names of its own columns, and ``ALTER TABLE`` corrects views and triggers but no
  virtual table: hence the view, under names of its own.
* To forget a text FTS5 has to be told it.  ``INSERT OR REPLACE`` fires no delete trigger for the rows it replaces, so
  a BEFORE trigger notes their texts, and after the fact those of rows that are gone are forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import Column, Index, String, Table
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import IdentifierPreparer, SQLCompiler

from sqla_vector.dialects.settings import Settings
from sqla_vector.dialects.sqlite.beside import single_key, unique_constraints
from sqla_vector.dialects.sqlite.side_tables import KEYS, REPLACED, drop_side_table
from sqla_vector.dialects.sqlite.types import PLUGIN_HINT
from sqla_vector.exc import IndexNotUsable, PluginMissing
from sqla_vector.text_index import TextIndexKey, text_index_key, text_indexes

__all__ = [
    "Fts5Index",
    "Fts5Statements",
    "check_fts5",
    "drop_fts5_statements",
    "fts5_index",
    "fts5_indexes",
    "is_there",
]

SOURCE: Final = "_source"
TRIGGERS: Final = ("insert", "update", "delete", "replace", "replace_update")
LABEL: Final = "sqla_vector text index"
"""What begins the comment in the view, which says what the FTS5 table does not."""

_WORDS: Final = "unicode61 remove_diacritics 0 categories 'L* N* M*'"


@compiles(TextIndexKey, "sqlite")
def _render_key(element: TextIndexKey, compiler: SQLCompiler, **kw: Any) -> str:
    # The plugin never renders the key.
    raise PluginMissing(PLUGIN_HINT)


class Fts5Index:
    """The FTS5 table that serves one declared index."""

    def __init__(self, index: Index, key: TextIndexKey) -> None:
        assert index.table is not None
        self.name = str(index.name)
        self.table: Table = index.table
        self.key = key
        self.spec = key.spec
        self.primary_key: Column[Any] = single_key(self.table, f"{self.name}: a text index")
        self.has_text_key = isinstance(self.primary_key.type, String)

    @property
    def keys_name(self) -> str:
        """Name of the table that numbers text keys."""
        return f"{self.name}{KEYS}"

    @property
    def tokenizer(self) -> str:
        """What makes words of texts."""
        return f"porter {_WORDS}" if self.spec.language == "english" else _WORDS

    @property
    def comment(self) -> str:
        """What of the declaration is not in the FTS5 table."""
        return f"/* {LABEL}: {self.spec.language} {''.join(self.spec.labels)} */"


def fts5_index(index: Index) -> Fts5Index | None:
    """Return the FTS5 table for a declared text index, None for any other index.

    Raises:
        IndexNotUsable: the table's key does not allow it.
    """
    key = text_index_key(index)
    return None if key is None else Fts5Index(index, key)


def check_fts5(index: Fts5Index, settings: Settings) -> None:
    """Raise :class:`IndexNotUsable` if this SQLite has no FTS5, which is a choice at its compilation."""
    if not settings.has_fts5:
        raise IndexNotUsable(
            f"{index.name}: this Python's SQLite has no FTS5, which a text index needs; "
            "install one that has it: pip install pysqlite3-binary"
        )


def is_there(index: Fts5Index, preparer: IdentifierPreparer, settings: Settings) -> bool:
    """Tell whether the FTS5 table is there, as far as this engine knows."""
    schema = preparer.schema_for_object(index.table)
    return (None if schema == "main" else schema, index.name) in settings.fts5_tables


def fts5_indexes(table: Table) -> list[Fts5Index]:
    """Return the FTS5 tables that the declared indexes of a table ask for."""
    return [found for index, _ in text_indexes(table) if (found := fts5_index(index)) is not None]


class Fts5Statements:
    """The SQL that creates and drops an :class:`Fts5Index`."""

    def __init__(self, index: Fts5Index, preparer: IdentifierPreparer) -> None:
        self._index = index
        self._quote = preparer.quote
        self._preparer = preparer
        schema = preparer.schema_for_object(index.table)
        self._schema_name = schema
        self._schema = f"{preparer.quote_schema(schema)}." if schema else ""
        self._table = preparer.quote(index.table.name)
        self._key = preparer.quote(index.primary_key.name)
        self._fts5 = preparer.quote(index.name)
        self._keys = preparer.quote(index.keys_name)
        self._replaced = preparer.quote(f"{index.name}{REPLACED}")
        self._source = preparer.quote(f"{index.name}{SOURCE}")
        self._columns = [preparer.quote(column.name) for column in index.key.columns]
        self._texts = [f"text_{number}" for number in range(1, len(self._columns) + 1)]

    def create(self) -> list[str]:
        """Return the statements that create the FTS5 table and what belongs to it, and fill it."""
        texts, listed = ", ".join(self._texts), ", ".join(f"{text} TEXT" for text in self._texts)
        statements = [
            f"CREATE TABLE {self._schema}{self._replaced} (key, number INTEGER, {listed})",
        ]
        if self._index.has_text_key:
            statements.append(
                f"CREATE TABLE {self._schema}{self._keys} (number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE)"
            )
            statements.append(
                f"INSERT INTO {self._schema}{self._keys} (key) SELECT {self._key} FROM {self._schema}{self._table}"
            )
        statements += [
            f"CREATE VIEW {self._schema}{self._source} AS {self._index.comment} {self._select()}",
            f"CREATE VIRTUAL TABLE {self._schema}{self._fts5} USING fts5({texts}, {self._options})",
            *self._create_triggers(),
            f"INSERT INTO {self._schema}{self._fts5} ({self._fts5}) VALUES ('rebuild')",
        ]
        return statements

    @property
    def _options(self) -> str:
        content = f"content='{self._index.name}{SOURCE}', content_rowid='number'"
        return f'{content}, tokenize="{self._index.tokenizer}"'

    write = create
    """The statements for a script, which needs none of this package's functions."""

    def drop(self) -> list[str]:
        """Return the statements that drop them; each bears that something is gone already."""
        return drop_fts5_statements(self._index.name, self._schema_name, self._preparer)

    def _select(self) -> str:
        texts = ", ".join(f"t.{c} AS {text}" for c, text in zip(self._columns, self._texts, strict=True))
        if not self._index.has_text_key:
            return f"SELECT t.{self._key} AS number, {texts} FROM {self._table} AS t"
        return (
            f"SELECT k.number AS number, {texts} FROM {self._keys} AS k "
            f"JOIN {self._table} AS t ON t.{self._key} = k.key"
        )

    def _numbered(self, key: str) -> str:
        """Return a SELECT's end that gives ``number`` for a key."""
        if not self._index.has_text_key:
            return f"FROM (SELECT {key} AS number)"
        return f"FROM {self._keys} WHERE key = {key}"

    def _values(self, source: str) -> str:
        return ", ".join(f"{source}.{column}" for column in self._columns)

    def _forget(self, source: str) -> str:
        texts = ", ".join(self._texts)
        return (
            f"INSERT INTO {self._fts5} ({self._fts5}, rowid, {texts}) "
            f"SELECT 'delete', number, {self._values(source)} {self._numbered(f'{source}.{self._key}')}"
        )

    def _forget_replaced(self) -> list[str]:
        texts = ", ".join(self._texts)
        there = f"SELECT 1 FROM {self._table} AS t WHERE t.{self._key} ="
        noted = ", ".join(f"c.{text}" for text in self._texts)
        statements = [
            (
                f"INSERT INTO {self._fts5} ({self._fts5}, rowid, {texts}) SELECT 'delete', c.number, {noted} "
                f"FROM {self._replaced} AS c WHERE c.key = NEW.{self._key} OR NOT EXISTS ({there} c.key)"
            )
        ]
        if self._index.has_text_key:
            statements.append(
                f"DELETE FROM {self._keys} WHERE key IN (SELECT key FROM {self._replaced}) "
                f"AND NOT EXISTS ({there} {self._keys}.key)"
            )
        return [*statements, f"DELETE FROM {self._replaced}"]

    def _release(self) -> list[str]:
        """Return the statement that gives up the number of a key which no row has any more."""
        if not self._index.has_text_key:
            return []
        old = f"OLD.{self._key}"
        there = f"SELECT 1 FROM {self._table} WHERE {self._key} = {old}"
        return [f"DELETE FROM {self._keys} WHERE key = {old} AND NOT EXISTS ({there})"]

    def _remember(self) -> list[str]:
        new = f"NEW.{self._key}"
        names = f"rowid, {', '.join(self._texts)}"
        index = f"INSERT INTO {self._fts5} ({names}) SELECT number, {self._values('NEW')} {self._numbered(new)}"
        if not self._index.has_text_key:
            return [index]
        known = f"SELECT 1 FROM {self._keys} WHERE key = {new}"
        return [f"INSERT INTO {self._keys} (key) SELECT {new} WHERE NOT EXISTS ({known})", index]

    def _create_triggers(self) -> Iterator[str]:
        index, table = self._index, self._table
        unique = [[index.primary_key], *unique_constraints(index.table)]
        identifying = self._listed([column for columns in unique for column in columns])
        watched = self._listed([*(c for columns in unique for c in columns), *index.key.columns])
        yield self._trigger("insert", f"AFTER INSERT ON {table}", [*self._forget_replaced(), *self._remember()])
        yield self._trigger(
            "update",
            f"AFTER UPDATE OF {watched} ON {table}",
            [
                f"DELETE FROM {self._replaced} WHERE key = OLD.{self._key}",
                self._forget("OLD"),
                *self._forget_replaced(),
                *self._release(),
                *self._remember(),
            ],
        )
        forgotten = f"DELETE FROM {self._replaced} WHERE key = OLD.{self._key}"
        yield self._trigger("delete", f"AFTER DELETE ON {table}", [forgotten, self._forget("OLD"), *self._release()])
        # What an earlier statement noted and then did not do, as under OR IGNORE, goes first.
        clear = f"DELETE FROM {self._replaced}"
        yield self._trigger("replace", f"BEFORE INSERT ON {table}", [clear, self._note(unique)])
        others = f" AND t.{self._key} IS NOT OLD.{self._key}"
        yield self._trigger(
            "replace_update",
            f"BEFORE UPDATE OF {identifying} ON {table}",
            [clear, self._note(unique, others)],
        )

    def _note(self, unique: list[list[Column[Any]]], more: str = "") -> str:
        """Return the statement that notes the rows whose place a new one may take."""
        same = " OR ".join(
            " AND ".join(f"t.{self._quote(c.name)} = NEW.{self._quote(c.name)}" for c in columns) for columns in unique
        )
        number, joined = f"t.{self._key}", ""
        if self._index.has_text_key:
            number, joined = "k.number", f" JOIN {self._keys} AS k ON k.key = t.{self._key}"
        return (
            f"INSERT INTO {self._replaced} (key, number, {', '.join(self._texts)}) "
            f"SELECT t.{self._key}, {number}, {self._values('t')} FROM {self._table} AS t{joined} WHERE ({same}){more}"
        )

    def _listed(self, columns: list[Column[Any]]) -> str:
        return ", ".join(dict.fromkeys(self._quote(column.name) for column in columns))

    def _trigger(self, event: str, when: str, body: list[str]) -> str:
        name = self._quote(f"{self._index.name}_{event}")
        statements = " ".join(f"{statement};" for statement in body)
        return f"CREATE TRIGGER {self._schema}{name} {when} FOR EACH ROW BEGIN {statements} END"


def drop_fts5_statements(name: str, schema: str | None, preparer: IdentifierPreparer) -> list[str]:
    """Return the statements that drop an FTS5 table by its name, and all that belongs to it."""
    prefix = f"{preparer.quote_schema(schema)}." if schema else ""
    quote = preparer.quote
    statements = [f"DROP TRIGGER IF EXISTS {prefix}{quote(f'{name}_{event}')}" for event in TRIGGERS]
    statements += [f"DROP TABLE IF EXISTS {prefix}{quote(name)}", f"DROP VIEW IF EXISTS {prefix}{quote(name + SOURCE)}"]
    return [*statements, *(drop_side_table(f"{prefix}{quote(f'{name}{part}')}") for part in (REPLACED, KEYS))]
