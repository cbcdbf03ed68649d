"""A vector index on SQLite: a vec0 table beside the table, kept by triggers.

One ``CREATE INDEX`` becomes, in one savepoint: the vec0 table (of the index's name), for text keys a table that
numbers them, the triggers, and the fill.  Nothing here runs SQL; the statements are executed by
:mod:`sqla_vector.dialects.sqlite.dialect`.

Traps avoided (sqlite-vec 0.1.9): vec0 refuses NULL vectors and NULL metadata (rows without a vector are left out,
NULL metadata becomes a stand-in value); it has no conflict clauses (triggers delete, then insert); a zero
vector has no place under cosine.  ``INSERT OR REPLACE`` fires no delete trigger for the rows it replaces: the
row of the same key is deleted by the insert trigger itself, and rows replaced because of another UNIQUE
constraint are noted by a BEFORE trigger and cleared after.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    Boolean,
    Column,
    Date,
    DateTime,
    Float,
    Index,
    Integer,
    String,
    Table,
    Time,
    UniqueConstraint,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import IdentifierPreparer, SQLCompiler

from sqla_vector.dialects.settings import Settings
from sqla_vector.dialects.sqlite.types import PLUGIN_HINT
from sqla_vector.exc import IndexNotUsable, PluginMissing
from sqla_vector.schema import IndexSpec, VectorIndexKey, index_key, vector_indexes

__all__ = ["SIDE_TABLES", "TRIGGERS", "Vec0Index", "Vec0Statements", "drop_statements", "vec0_index"]

logger = logging.getLogger("sqla_vector.sqlite")

MAX_DIMENSIONS: Final = 8_192
MAX_METADATA: Final = 16
MAX_PARTITIONS: Final = 4

VECTOR: Final = "vector"
"""What vec0 calls the vector; the columns it copies are ``include_1``, ``partition_1`` and so on.

Not by the names of the table's columns: when one is renamed SQLite corrects the triggers, but a vec0 table stays as
it is.  vec0 also parses no quoted names, and has hidden columns of its own.
"""

_NULL_STAND_INS: Final = {
    "integer": "-9223372036854775807",
    "float": "-1.7976931348623157e308",
    "text": "char(1) || 'null'",
    "boolean": "0",
}
"""What stands for NULL in vec0 metadata; only compared with ``=`` and only where the column may be NULL."""


@compiles(VectorIndexKey, "sqlite")
def _render_key(element: VectorIndexKey, compiler: SQLCompiler, **kw: Any) -> str:
    # The plugin never renders the key: without it an ordinary, useless index would be made.
    raise PluginMissing(PLUGIN_HINT)


@dataclass(frozen=True)
class Metadata:
    """A column kept inside the vec0 table, to be filtered there."""

    column: Column[Any]
    name: str
    """Its name in the vec0 table."""
    vec0_type: str
    nullable: bool
    partition: bool


class Vec0Index:
    """The vec0 table that serves one declared index."""

    def __init__(self, index: Index, key: VectorIndexKey) -> None:
        assert index.table is not None
        self.name = str(index.name)
        self.table: Table = index.table
        self.key = key
        self.spec: IndexSpec = key.spec
        self.primary_key = _single_key(self)
        self.has_text_key = isinstance(self.primary_key.type, String)
        self.metadata = list(_metadata(self))

    @property
    def precision(self) -> str:
        """``full``, ``int8`` or ``binary``; half is PostgreSQL's, full stands in for it."""
        return "full" if self.spec.precision == "half" else self.spec.precision

    @property
    def keys_name(self) -> str:
        """Name of the table that numbers text keys."""
        return f"{self.name}{_KEYS}"

    @property
    def replaced_name(self) -> str:
        """Name of the table that notes rows which an INSERT may replace."""
        return f"{self.name}{_REPLACED}"

    @property
    def stored_bytes(self) -> int:
        """The size of a vector as the table stores it."""
        return -(-self.key.dim // 8) if self.key.vector_type.kind == "bit" else 4 * self.key.dim

    def unusable(self) -> str | None:
        """Return why vec0 cannot serve this index though the declaration is right, or None."""
        kind = self.key.vector_type.kind
        if kind == "sparsevec":
            return "vec0 has no sparse vectors"
        if self.spec.metric.vec0_metric is None:
            return f"vec0 has no {self.spec.metric.name} metric"
        return None

    def quantized(self, vector: str) -> str:
        """Return the value that vec0 stores for a vector in SQL."""
        if self.key.vector_type.kind == "bit":
            return f"vec_bit({vector})"
        match self.precision:
            case "binary":
                if self.key.dim % 8 == 0:
                    return f"vec_quantize_binary({vector})"
                return f"vec_bit(vector_binary_quantize({vector}))"
            case "int8":
                value_range = 0.0 if self.spec.metric_name == "cosine" else self.spec.value_range
                return f"vec_int8(vector_int8_quantize({vector}, {value_range!r}))"
        return vector

    @property
    def column_spec(self) -> str:
        """The vec0 declaration of the vector column."""
        dim = self.key.dim
        if self.key.vector_type.kind == "bit" or self.precision == "binary":
            return f"bit[{-(-dim // 8) * 8}]"  # distance_metric is hamming
        element = "int8" if self.precision == "int8" else "float"
        return f"{element}[{dim}] distance_metric={self.spec.metric.vec0_metric}"


def vec0_index(index: Index) -> Vec0Index | None:
    """Return the vec0 table for a declared vector index, None for any other index.

    Raises:
        IndexNotUsable: the table's key, the dimension or an included column does not allow it.
    """
    key = index_key(index)
    if key is None:
        return None
    if key.dim > MAX_DIMENSIONS:
        raise IndexNotUsable(
            f"{index.name}: {key.vector_type.column_name} has {key.dim:,} dimensions and "
            f"vec0 takes at most {MAX_DIMENSIONS:,}"
        )
    return Vec0Index(index, key)


def _single_key(index: Vec0Index) -> Column[Any]:
    columns = list(index.table.primary_key.columns)
    if len(columns) == 1 and isinstance(columns[0].type, (Integer, String)):
        return columns[0]
    found = ", ".join(f"{column.name} {column.type!r}" for column in columns) or "none"
    raise IndexNotUsable(
        f"{index.name}: a vector index on SQLite needs a primary key of one integer or text column; "
        f"{index.table.name} has {found}"
    )


_VEC0_TYPES: Final = (
    # (column type, vec0 type); Date, Time and DateTime are text in SQLite and sort as such
    (Boolean, "boolean"),
    (Integer, "integer"),
    (Float, "float"),
    (String, "text"),
    (Date, "text"),
    (DateTime, "text"),
    (Time, "text"),
)


def _metadata(index: Vec0Index) -> Iterator[Metadata]:
    limits = ((index.spec.partition_by, True, MAX_PARTITIONS), (index.spec.include, False, MAX_METADATA))
    for names, partition, limit in limits:
        if len(names) > limit:
            what = "partition_by" if partition else "include"
            raise IndexNotUsable(f"{index.name}: vec0 takes at most {limit} {what} columns, got {len(names)}")
        for number, name in enumerate(names, start=1):
            if name not in index.table.c:  # a batch, which copies the table, leaves it out
                raise IndexNotUsable(
                    f"{index.name}: {index.table.name} has no column {name} any more, which the index copies; "
                    "drop the index first, and create it without the column"
                )
            column = index.table.c[name]
            vec0_type = next((v for type_, v in _VEC0_TYPES if isinstance(column.type, type_)), None)
            if vec0_type is None or (partition and vec0_type not in ("integer", "text")):
                raise IndexNotUsable(
                    f"{index.name}: vec0 cannot keep {index.table.name}.{name}, its type is {column.type!r}"
                )
            inner = f"{'partition' if partition else 'include'}_{number}"
            yield Metadata(column, inner, vec0_type, bool(column.nullable), partition)


_KEYS: Final = "_keys"
_REPLACED: Final = "_replaced"

SIDE_TABLES: Final = (_KEYS, _REPLACED)
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

    def create(self) -> list[str]:
        """Return the statements that create the vec0 table and its triggers and fill it."""
        statements = [self._create_vec0()]
        if self._index.has_text_key:
            statements.append(
                f"CREATE TABLE {self._schema}{self._keys} (number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE)"
            )
        if self._unique_constraints():
            statements.append(f"CREATE TABLE {self._schema}{self._replaced} (key)")
        statements.extend(self._create_triggers())
        statements.extend(self._fill())
        return statements

    def drop(self) -> list[str]:
        """Return the statements that drop them; each bears that something is gone already."""
        return _drop_statements(self._index.name, self._schema, self._quote)

    def _create_vec0(self) -> str:
        columns = [f"{VECTOR} {self._index.column_spec}"]
        for item in self._index.metadata:
            columns.append(f"{item.name} {item.vec0_type}{' partition key' if item.partition else ''}")
        return f"CREATE VIRTUAL TABLE {self._schema}{self._vec0} USING vec0({', '.join(columns)})"

    def _number(self, key: str) -> str:
        """Return the vec0 rowid of a key in SQL."""
        if not self._index.has_text_key:
            return key
        return f"(SELECT number FROM {self._keys} WHERE key = {key})"

    def _values(self, source: str) -> tuple[str, str]:
        """Return the columns of vec0, and their values for the row ``source`` (NEW, or a table)."""
        names = ["rowid", VECTOR]
        values = [self._number(f"{source}.{self._key}"), self._index.quantized(f"{source}.{self._vector}")]
        for item in self._index.metadata:
            value = f"{source}.{self._quote(item.column.name)}"
            names.append(item.name)
            values.append(f"coalesce({value}, {_NULL_STAND_INS[item.vec0_type]})" if item.nullable else value)
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
        """Return the columns of each UNIQUE constraint beside the primary key."""
        table = self._index.table
        found = [list(c.columns) for c in table.constraints if isinstance(c, UniqueConstraint)]
        found += [list(i.columns) for i in table.indexes if i.unique and i.columns]
        # In one order, whatever the sets gave: the same declaration is the same SQL.
        by_names = {tuple(sorted(column.name for column in columns)): columns for columns in found}
        return [sorted(by_names[names], key=lambda column: str(column.name)) for names in sorted(by_names)]

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
        names, values = self._values("NEW")
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

    def _fill(self) -> Iterator[str]:
        source = f"{self._schema}{self._table}"
        if self._index.has_text_key:
            yield f"INSERT INTO {self._schema}{self._keys} (key) SELECT {self._key} FROM {source}"
        names, values = self._values("source")
        if self._schema:
            # In a trigger names resolve within its own database; here they must say which.
            values = values.replace(f"FROM {self._keys}", f"FROM {self._schema}{self._keys}")
        yield (
            f"INSERT INTO {self._schema}{self._vec0} ({names}) SELECT {values} FROM {source} AS source "
            f"WHERE {self._has_place('source')}"
        )


def drop_statements(name: str, schema: str | None, preparer: IdentifierPreparer) -> list[str]:
    """Return the statements that drop a vec0 table by its name, and all that belongs to it."""
    return _drop_statements(name, f"{preparer.quote_schema(schema)}." if schema else "", preparer.quote)


def _drop_statements(name: str, prefix: str, quote: Callable[[str], str]) -> list[str]:
    statements = [f"DROP TRIGGER IF EXISTS {prefix}{quote(f'{name}_{event}')}" for event in TRIGGERS]
    for table in (f"{name}{_REPLACED}", f"{name}{_KEYS}", name):
        statements.append(f"DROP TABLE IF EXISTS {prefix}{quote(table)}")
    return statements


def exists(index: Vec0Index, preparer: IdentifierPreparer, settings: Settings) -> bool:
    """Tell whether the vec0 table is there, as far as this engine knows.

    False under ``schema_translate_map``: one compiled statement serves all the schemas that the map may name,
    and only some of them may have the index.
    """
    schema = preparer.schema_for_object(index.table)
    return (None if schema == "main" else schema, index.name) in settings.vec0_tables


def creatable(index: Vec0Index, settings: Settings) -> bool:
    """Tell whether the vec0 table can be made on this connection.

    Raises:
        IndexNotUsable: sqlite-vec is missing, and the engine was not told to go on without.
    """
    reason = index.unusable()
    if reason is not None:
        logger.warning("%s is not built on SQLite: %s; searches scan exactly", index.name, reason)
        return False
    if settings.sqlite_vec is None:
        if not settings.skip_missing_index:
            raise IndexNotUsable(
                f"{index.name}: this Python's SQLite cannot load sqlite-vec, which a vector index needs. "
                "Install it: pip install 'sqla-vector[sqlite]' (on Linux that brings pysqlite3-binary, whose "
                "SQLite loads extensions), or go without indexes: create_engine(..., vector_skip_missing_index=True)"
            )
        logger.warning("%s is not built: sqlite-vec is missing; searches scan exactly", index.name)
        return False
    return True


def vec0_indexes(table: Table) -> list[Vec0Index]:
    """Return the vec0 tables that the declared indexes of a table ask for."""
    return [found for index, _ in vector_indexes(table) if (found := vec0_index(index)) is not None]
