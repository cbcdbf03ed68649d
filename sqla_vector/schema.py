"""Schema items: ``vector_index()``, one declaration for both databases.

The result is a plain :class:`sqlalchemy.Index` whose only expression is a :class:`VectorIndexKey`.  The key holds
the declaration and is copied with the index by ``Table.to_metadata()``, which would drop an ``Index`` subclass.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from sqlalchemy import BigInteger, Column, Index, SmallInteger, Table, event, func, inspect, select
from sqlalchemy.engine import Connection
from sqlalchemy.schema import DropIndex
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.sql.selectable import Alias, FromClause
from sqlalchemy.sql.visitors import InternalTraversal

from sqla_vector.exc import IndexNotUsable, InvalidIdentifier, InvalidOption
from sqla_vector.metrics import METRICS, Metric, default_metric, resolve_metric
from sqla_vector.types import VectorType

__all__ = [
    "AUTO_INDEX_ROWS",
    "IndexSpec",
    "VectorIndexKey",
    "check_existing_name",
    "check_identifier",
    "declared_index",
    "index_key",
    "keep_automatic",
    "vector_index",
    "vector_indexes",
]

Method = Literal["hnsw", "ivfflat", "auto"]
Precision = Literal["full", "half", "int8", "binary"]

MAX_OVERSAMPLE: Final = 1_000
MAX_EF_SEARCH: Final = 1_000
MAX_PROBES: Final = 32_768
MAX_LISTS: Final = 32_768

AUTO_INDEX_ROWS: Final = 10_000
"""``method="auto"`` builds no index on a table with fewer rows: an exact scan is as fast there."""

REFLECTED_SPEC: Final = "sqlite_vector"
"""The option of a reflected Index that holds its :class:`IndexSpec`."""

_METHODS: Final = ("hnsw", "ivfflat", "auto")
_PRECISIONS: Final = ("full", "half", "int8", "binary")
_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*\Z")
_NO_NAME: Final = re.compile(r"[\x00-\x1f\x7f\"';%:.\\]|--")
_MAX_IDENTIFIER_BYTES: Final = 63


def check_identifier(name: object, what: str) -> str:
    """Return ``name`` if it is a plain SQL identifier, else raise.

    Letters, digits, underscore and dollar, not starting with a digit, at most 63 bytes (PostgreSQL's limit),
    and no reserved word of either database.

    Raises:
        InvalidIdentifier: it is something else.
    """
    if not isinstance(name, str) or not _IDENTIFIER.match(name):
        raise InvalidIdentifier(
            f"{what} {name!r} is no plain identifier: use letters, digits and underscores, not starting with a digit"
        )
    if len(name) > _MAX_IDENTIFIER_BYTES:
        raise InvalidIdentifier(f"{what} {name!r} is longer than {_MAX_IDENTIFIER_BYTES} bytes")
    if name.lower() in _reserved_words():
        raise InvalidIdentifier(f"{what} {name!r} is a reserved word of SQL; choose another name")
    return str(name)


def check_existing_name(name: object, what: str) -> str:
    """Return the name of a table, column or schema that exists, if it can be one, else raise.

    What exists may have any name, and it is quoted.  Refused is what shows that something else was meant.

    Raises:
        InvalidIdentifier: it is empty, too long, no string, or has quotes, dots or control characters.
    """
    if not isinstance(name, str) or not name or _NO_NAME.search(name) or len(name.encode()) > _MAX_IDENTIFIER_BYTES:
        raise InvalidIdentifier(
            f"{what} {name!r} is no name: quotes, dots, colons and control characters do not belong there, nor more "
            f"than {_MAX_IDENTIFIER_BYTES} bytes; a schema has an argument of its own"
        )
    return str.__str__(name)


@functools.cache
def _reserved_words() -> frozenset[str]:
    # Imported here: together the two dialects take longer to import than this package.
    from sqlalchemy.dialects.postgresql.base import PGIdentifierPreparer
    from sqlalchemy.dialects.sqlite.base import SQLiteIdentifierPreparer

    return frozenset(PGIdentifierPreparer.reserved_words) | frozenset(SQLiteIdentifierPreparer.reserved_words)


def check_whole_number(value: object, name: str, low: int, high: int) -> int:
    """Return ``value`` if it is a whole number in ``low..high``, else raise :class:`InvalidOption`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidOption(f"{name} must be a whole number from {low:,} to {high:,}, got {value!r}")
    return value


def bits_of(type_: Any) -> int:
    """Return how many bits the whole numbers of a column have: a driver refuses more, or takes another number."""
    return 16 if isinstance(type_, SmallInteger) else 64 if isinstance(type_, BigInteger) else 32


def check_share(value: object, name: str) -> float:
    """Return ``value`` if it is a number over 0 and under 1, else raise :class:`InvalidOption`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise InvalidOption(f"{name} must be a number over 0 and under 1, got {value!r}; for all of them: exact=True")
    return float(value)


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """A vector index as declared; what a database makes of it is decided by its dialect module."""

    metric_name: str
    method: Method = "hnsw"
    precision: Precision = "full"
    include: tuple[str, ...] = ()
    partition_by: tuple[str, ...] = ()
    value_range: float = 1.0
    options: tuple[tuple[str, int], ...] = field(default=())

    @property
    def metric(self) -> Metric:
        return resolve_metric(self.metric_name)

    def option(self, name: str, default: int) -> int:
        """Return a build option (``m``, ``ef_construction``, ``lists``), or pgvector's default."""
        return dict(self.options).get(name, default)


class VectorIndexKey(ColumnElement[Any]):
    """What a vector index is on: the column, and how it is indexed."""

    __visit_name__ = "sqla_vector_index_key"
    _traverse_internals = [
        ("column", InternalTraversal.dp_clauseelement),
        ("spec", InternalTraversal.dp_plain_obj),
    ]

    def __init__(self, column: Column[Any], spec: IndexSpec) -> None:
        self.column = column
        self.spec = spec
        self.type = column.type

    @property
    def vector_type(self) -> VectorType[Any]:
        assert isinstance(self.column.type, VectorType)
        return self.column.type

    @property
    def dim(self) -> int:
        dim = self.vector_type.dim
        assert dim is not None  # checked when the index was attached to its table
        return dim


def vector_index(
    name: str,
    column: str | Any,
    *,
    metric: str | None = None,
    method: Method = "hnsw",
    precision: Precision = "full",
    include: Sequence[str] = (),
    partition_by: str | Sequence[str] = (),
    m: int | None = None,
    ef_construction: int | None = None,
    lists: int | None = None,
    value_range: float = 1.0,
    where: Any = None,
) -> Index:
    """Declare a vector index, in ``__table_args__`` or among a ``Table``'s arguments.

    PostgreSQL builds pgvector's hnsw or ivfflat.  SQLite builds a sqlite-vec ``vec0`` table of the same name
    beside the table, filled at once and kept by triggers.

    Args:
        name: the index's name, a plain identifier.
        column: the vector column, by name or as an attribute.
        metric: ``cosine`` (the default; ``hamming`` for bits), ``l2``, ``l1``, ``inner_product``, ``jaccard``.
        method: ``hnsw``, ``ivfflat``, or ``auto``: no index while the table has fewer than 10,000 rows at the
            time of CREATE INDEX, else hnsw.  SQLite's vec0 scans exactly, but in lists of near vectors with
            ``ivfflat``.
        precision: ``full``; ``half`` (float16, PostgreSQL; SQLite uses full), ``int8`` (SQLite; PostgreSQL uses
            half), ``binary`` (one bit an element).  With less than full precision ``nearest()`` fetches more
            candidates and sorts them by the exact distance.
        include: columns that queries filter by.  SQLite keeps them in the index and filters inside it;
            PostgreSQL needs nothing for that.
        partition_by: columns that queries always compare with ``==``, for example a tenant (SQLite).
        m: hnsw, connections per node, 2 to 100 (16).
        ef_construction: hnsw, candidates while building, 4 to 1,000 and at least ``2 * m`` (64).
        lists: ivfflat, number of lists, 1 to 32,768 (100; on SQLite twice the square root of the number of rows
            when they are trained).
        value_range: for ``int8`` under l2 and l1: elements are expected in ``-value_range..value_range``.
        where: predicate of a partial index (PostgreSQL).

    Returns:
        An :class:`sqlalchemy.Index`.

    Raises:
        InvalidIdentifier: the name is no plain identifier.
        InvalidOption: an option is unknown, out of range, or does not belong to the method.
        UnsupportedMetric: the column's type has no such metric (when the index meets its table).
        IndexNotUsable: the column has no dimension, or too many (likewise).
    """
    check_identifier(name, "index name")
    if method not in _METHODS:
        raise InvalidOption(f"{name}: unknown method {method!r}; use one of {', '.join(_METHODS)}")
    if precision not in _PRECISIONS:
        raise InvalidOption(f"{name}: unknown precision {precision!r}; use one of {', '.join(_PRECISIONS)}")
    if metric is not None:
        resolve_metric(metric)
    if isinstance(value_range, bool) or not isinstance(value_range, (int, float)) or not 0 < value_range < 1e38:
        raise InvalidOption(f"{name}: value_range must be a positive number, got {value_range!r}")
    options = _build_options(name, method, m, ef_construction, lists)
    column_name = column if isinstance(column, str) else getattr(column, "key", None) or column.name
    spec = IndexSpec(
        metric_name=metric or "",
        method=method,
        precision=precision,
        include=_names(include, f"{name}: include"),
        partition_by=_names(partition_by, f"{name}: partition_by"),
        value_range=float(value_range),
        options=tuple(options.items()),
    )
    index = Index(
        name,
        column_name,
        postgresql_using="ivfflat" if method == "ivfflat" else "hnsw",
        postgresql_with=options,
        postgresql_where=where,
    )

    @event.listens_for(index, "after_parent_attach")
    def attached(_: Index, table: Any) -> None:
        key = VectorIndexKey(table.c[column_name], _checked(index, table, column_name, spec))
        index.expressions = index._table_bound_expressions = [key]

    return index.ddl_if(callable_=_decide_by_rows) if method == "auto" else index


def _build_options(
    name: str, method: str, m: int | None, ef_construction: int | None, lists: int | None
) -> dict[str, int]:
    given = {"m": m, "ef_construction": ef_construction, "lists": lists}
    ranges = {"m": (2, 100), "ef_construction": (4, 1000), "lists": (1, MAX_LISTS)}
    allowed = {"lists"} if method == "ivfflat" else {"m", "ef_construction"}
    options = {}
    for option, value in given.items():
        if value is None:
            continue
        if option not in allowed:
            raise InvalidOption(f"{name}: {option} is no option of {method}")
        options[option] = check_whole_number(value, f"{name}: {option}", *ranges[option])
    if options and method != "ivfflat" and options.get("ef_construction", 64) < 2 * options.get("m", 16):
        raise InvalidOption(f"{name}: ef_construction must be at least twice m")
    return options


def _names(names: str | Iterable[str], what: str) -> tuple[str, ...]:
    found = (names,) if isinstance(names, str) else tuple(names)
    for name in found:
        if not isinstance(name, str):
            raise InvalidOption(f"{what} takes column names, got {name!r}")
    if len(set(found)) != len(found):
        raise InvalidOption(f"{what} names a column twice")
    return found


def _checked(index: Index, table: Table, column_name: str, spec: IndexSpec) -> IndexSpec:
    """Return the spec with its metric filled in, checked against the table."""
    type_ = table.c[column_name].type
    where = f"{table.name}.{column_name}"
    if not isinstance(type_, VectorType):
        raise InvalidOption(f"{index.name}: {where} is no vector column, its type is {type_!r}")
    if type_.dim is None:
        raise IndexNotUsable(f"{index.name}: {where} has no dimension; declare it, for example Vector(384)")
    for name in (*spec.include, *spec.partition_by):
        if name not in table.c:
            raise InvalidOption(f"{index.name}: {table.name} has no column {name!r}")
    metric = resolve_metric(spec.metric_name, type_.kind, where) if spec.metric_name else default_metric(type_.kind)
    if spec.precision != "full" and type_.kind not in ("vector", "halfvec"):
        raise InvalidOption(f"{index.name}: precision {spec.precision!r} is for float vectors, {where} is {type_.kind}")
    if spec.method == "ivfflat" and type_.kind not in metric.ivfflat_kinds and spec.precision != "binary":
        raise IndexNotUsable(f"{index.name}: pgvector's ivfflat has no {metric.name} for {type_.kind} columns")
    return IndexSpec(
        metric_name=metric.name,
        method=spec.method,
        precision=spec.precision,
        include=spec.include,
        partition_by=spec.partition_by,
        value_range=spec.value_range,
        options=spec.options,
    )


def _decide_by_rows(ddl: Any, target: Any, bind: Any, *args: Any, **kw: Any) -> bool:
    """Tell whether an index with ``method="auto"`` is to be created, or dropped, now."""
    # Without a connection (an SQL script, a mock engine) the index is written out.
    if bind is None or not hasattr(bind, "scalar"):
        return True
    if isinstance(ddl, DropIndex):
        # Not by the number of rows, which may be another than when it was built.
        table = target.table
        schema = bind.schema_for_object(table)
        return bool(inspect(bind).has_index(table.name, target.name, schema=schema))
    return not is_small(bind, target.table)


def is_small(connection: Connection, table: FromClause) -> bool:
    """Tell whether a table has so few rows that an exact scan is as fast as an index."""
    counted = select(1).select_from(table).limit(AUTO_INDEX_ROWS).subquery()
    return bool((connection.scalar(select(func.count()).select_from(counted)) or 0) < AUTO_INDEX_ROWS)


def keep_automatic(table: Table) -> None:
    """Let the indexes with ``method="auto"`` of a copied table decide again: ``to_metadata()`` drops ``ddl_if``."""
    for index in table.indexes:
        key = index_key(index)
        if key is not None and key.spec.method == "auto" and index._ddl_if is None:
            index.ddl_if(callable_=_decide_by_rows)


def index_key(index: Index) -> VectorIndexKey | None:
    """Return the key of a vector index, declared or reflected, or None for any other index."""
    expressions = list(index.expressions)
    if len(expressions) != 1:
        return None
    (indexed,) = expressions
    if isinstance(indexed, VectorIndexKey):
        return indexed
    # A reflected index has a column and options, among them the declaration if the dialect could tell it.
    spec = index.dialect_kwargs.get(REFLECTED_SPEC)
    if isinstance(spec, IndexSpec) and isinstance(indexed, Column) and isinstance(indexed.type, VectorType):
        return VectorIndexKey(indexed, spec)
    return None


def _pgvector_key(index: Index) -> VectorIndexKey | None:
    """Return the key of an index declared as for pgvector-python, so that searches use it on PostgreSQL.

    ``Index("ix", Item.embedding, postgresql_using="hnsw", postgresql_ops={"embedding": "vector_l2_ops"})``
    """
    options = index.dialect_options["postgresql"]
    columns = list(index.expressions)
    column = columns[0] if len(columns) == 1 else None
    if options["using"] not in ("hnsw", "ivfflat") or not isinstance(column, Column):
        return None
    opclass = (options["ops"] or {}).get(column.key)
    if not isinstance(column.type, VectorType) or column.type.dim is None:
        return None
    for metric in METRICS.values():
        if column.type.kind in metric.kinds and metric.opclass(column.type.kind) == opclass:
            lists = dict(options["with"] or {}).get("lists")
            build = () if lists is None else (("lists", int(lists)),)
            return VectorIndexKey(column, IndexSpec(metric.name, method=options["using"], options=build))
    return None


def vector_indexes(table: Table) -> list[tuple[Index, VectorIndexKey]]:
    """Return the vector indexes of a table, the most precise first."""
    # A key is an SQL expression and has no truth value, so this is no place for "or".
    keys = ((index, own if (own := index_key(index)) is not None else _pgvector_key(index)) for index in table.indexes)
    found = [(index, key) for index, key in keys if key is not None]
    return sorted(found, key=lambda pair: (_PRECISIONS.index(pair[1].spec.precision), str(pair[0].name)))


def indexed_column(element: ColumnElement[Any]) -> Column[Any] | None:
    """Return the table column behind an expression: the column itself or that of an alias, else None.

    A column of a subquery is none: its rows are not the table's.
    """
    selectable = getattr(element, "table", None)
    while isinstance(selectable, Alias):
        selectable = selectable.element
    if not isinstance(selectable, Table):
        return None
    found: Column[Any] | None = selectable.c.get(element.key)
    return found


def declared_index(element: ColumnElement[Any], metric: Metric) -> tuple[Index, VectorIndexKey] | None:
    """Return the index declared on a column for a metric, the most precise one, or None."""
    column = indexed_column(element)
    if column is None or not isinstance(column.table, Table):
        return None
    for index, key in vector_indexes(column.table):
        if key.column is column and key.spec.metric_name == metric.name:
            return index, key
    return None


def declared_metrics(element: ColumnElement[Any]) -> list[str]:
    """Return the metrics for which a column has declared indexes, that of a subquery too, whose values are the same."""
    bases = [base for base in element.base_columns if isinstance(getattr(base, "table", None), Table)]
    columns = [base.table.c.get(base.key) for base in bases]
    return sorted(
        {
            key.spec.metric_name
            for column in columns
            if column is not None
            for _, key in vector_indexes(column.table)
            if key.column is column
        }
    )
