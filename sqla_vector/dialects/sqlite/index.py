"""A vector index on SQLite: a vec0 table beside the table, kept by triggers.

One ``CREATE INDEX`` becomes, in one savepoint: the vec0 table (of the index's name), for text keys a table that
numbers them, the triggers, and the fill: see :mod:`sqla_vector.dialects.sqlite.statements`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
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
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import IdentifierPreparer, SQLCompiler

from sqla_vector.dialects.settings import Settings
from sqla_vector.dialects.sqlite.beside import single_key
from sqla_vector.dialects.sqlite.side_tables import CENTROIDS, KEYS, REPLACED
from sqla_vector.dialects.sqlite.types import PLUGIN_HINT
from sqla_vector.exc import IndexNotUsable, PluginMissing
from sqla_vector.schema import IndexSpec, VectorIndexKey, index_key, vector_indexes

__all__ = ["LIST", "Vec0Index", "vec0_index"]

logger = logging.getLogger("sqla_vector.sqlite")

MAX_DIMENSIONS: Final = 8_192
MAX_METADATA: Final = 16
MAX_PARTITIONS: Final = 4

VECTOR: Final = "vector"
"""What vec0 calls the vector; the columns it copies are ``include_1``, ``partition_1`` and so on.

Not by the names of the table's columns: when one is renamed SQLite corrects the triggers, but a vec0 table stays as
it is.  vec0 also parses no quoted names, and has hidden columns of its own.
"""

LIST: Final = "list"
"""What an index in lists calls the partition key that holds the list's number."""

_LISTS_CHUNK: Final = {"full": 64, "int8": 128, "binary": 256}
"""Rows a chunk in an index of lists, by precision.

vec0's 1,024 would leave most of a list's last chunk empty; that matters less the smaller the vectors are, and each
chunk costs a search some microseconds.
"""


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
        self.index = index
        self.name = str(index.name)
        self.table: Table = index.table
        self.key = key
        self.spec: IndexSpec = key.spec
        self.in_lists = key.spec.method == "ivfflat"
        """Whether rows are stored in lists of near vectors (IVF), of which a search reads some."""
        self.primary_key = single_key(self.table, f"{self.name}: a vector index")
        self.has_text_key = isinstance(self.primary_key.type, String)
        self.metadata = list(_metadata(self))

    @property
    def precision(self) -> str:
        """``full``, ``int8`` or ``binary``; half is PostgreSQL's, full stands in for it."""
        return "full" if self.spec.precision == "half" else self.spec.precision

    @property
    def is_exact(self) -> bool:
        """Whether it finds the true k nearest, whatever it is told."""
        return self.precision == "full" and not self.in_lists

    @property
    def built(self) -> str:
        """What it is, as far as that decides how well it finds."""
        built = f"{'ivfflat' if self.in_lists else 'vec0'} {self.precision} {self.spec.metric_name}"
        return built if not self.in_lists or self.lists is None else f"{built} lists={self.lists}"

    @property
    def lists(self) -> int | None:
        """How many lists were asked for, None for as many as suit the number of rows."""
        return dict(self.spec.options).get("lists")

    @property
    def space(self) -> str:
        """In what space the lists are near: see :data:`sqla_vector.dialects.sqlite.ivf_functions.SPACES`."""
        if self.key.vector_type.kind == "bit":
            return "bits"
        return "cosine" if self.spec.metric_name == "cosine" else "l2"

    @property
    def centroids_name(self) -> str:
        """Name of the table of one row that holds the centroids of the lists."""
        return f"{self.name}{CENTROIDS}"

    @property
    def keys_name(self) -> str:
        """Name of the table that numbers text keys."""
        return f"{self.name}{KEYS}"

    @property
    def replaced_name(self) -> str:
        """Name of the table that notes rows which an INSERT may replace."""
        return f"{self.name}{REPLACED}"

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
        # Of vectors of length 1 Euclidean distance orders as cosine does, and sqlite-vec computes it faster.
        return f"vec_normalize({vector})" if self.is_normalized else vector

    @property
    def is_normalized(self) -> bool:
        """Whether vectors are stored with length 1, to be compared by Euclidean distance in place of cosine."""
        return self.in_lists and self.precision == "full" and self.spec.metric_name == "cosine"

    @property
    def table_options(self) -> str:
        """What stands after the columns in the declaration of the vec0 table."""
        return f", chunk_size={_LISTS_CHUNK[self.precision]}" if self.in_lists else ""

    @property
    def column_spec(self) -> str:
        """The vec0 declaration of the vector column."""
        dim = self.key.dim
        if self.key.vector_type.kind == "bit" or self.precision == "binary":
            return f"bit[{-(-dim // 8) * 8}]"  # distance_metric is hamming
        element = "int8" if self.precision == "int8" else "float"
        metric = "l2" if self.is_normalized else self.spec.metric.vec0_metric
        return f"{element}[{dim}] distance_metric={metric}"


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
    partitions = MAX_PARTITIONS - index.in_lists
    limits = ((index.spec.partition_by, True, partitions), (index.spec.include, False, MAX_METADATA))
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


def exists(index: Vec0Index, preparer: IdentifierPreparer, settings: Settings) -> bool:
    """Tell whether the vec0 table is there, as far as this engine knows.

    False under ``schema_translate_map``: one compiled statement serves all the schemas that the map may name,
    and only some of them may have the index.
    """
    schema = preparer.schema_for_object(index.table)
    return (None if schema == "main" else schema, index.name) in settings.vec0_tables


def is_in_lists(index: Vec0Index, preparer: IdentifierPreparer, settings: Settings) -> bool:
    """Tell whether the vec0 table that is there holds its rows in lists."""
    schema = preparer.schema_for_object(index.table)
    return (None if schema == "main" else schema, index.name) in settings.list_tables


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
