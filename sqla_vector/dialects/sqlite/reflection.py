"""The vec0 tables of a database, and the declarations they were made from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy.engine import Connection
from sqlalchemy.types import TypeEngine

from sqla_vector.dialects.sqlite.index import LIST
from sqla_vector.dialects.sqlite.side_tables import CENTROIDS, index_of_side_table
from sqla_vector.dialects.sqlite.statements import SIDE_TABLES, TRIGGERS
from sqla_vector.metrics import METRICS
from sqla_vector.schema import IndexSpec
from sqla_vector.types import BitVector, Vector

__all__ = ["VEC0_TABLE", "ReflectedVec0", "find_vec0_tables", "reflect_vec0"]

VEC0_TABLE: Final = "CREATE VIRTUAL TABLE%USING vec0(%"
"""What the SQL of a vec0 table is LIKE."""

_ARGUMENTS: Final = re.compile(r"USING vec0\((.*)\)\s*\Z", re.IGNORECASE | re.DOTALL)
_VECTOR: Final = re.compile(r"\w+ (float|int8|bit)\[(\d+)\](?: distance_metric=(\w+))?\Z")
_NEW: Final = re.compile(r'\bNEW\.("(?:[^"]|"")*"|\w+)')
_LISTS: Final = re.compile(r"\bwanted INTEGER DEFAULT (\d+)")
_VALUE_RANGE: Final = re.compile(r"vector_int8_quantize\([^)]*?, ([0-9.e+-]+)\)")
_BY_VEC0_METRIC: Final = {metric.vec0_metric: metric.name for metric in METRICS.values() if metric.vec0_metric}


@dataclass(frozen=True)
class ReflectedVec0:
    """A vec0 table that triggers keep equal to a table.

    What SQLite has no use for is not written there: any other method than ivfflat and its options, ``half``
    precision (full), and for ``binary`` whether the metric was l2 or l1 (l2).
    """

    name: str
    table_name: str
    column_name: str
    element: str
    """``float``, ``int8`` or ``bit``."""
    spec: IndexSpec
    type_: TypeEngine[Any] | None
    """The column's type as far as vec0 tells it, which a STRICT table does not."""
    statements: dict[str, str]
    """The SQL of the vec0 table, its side tables and its triggers, by their names."""


def master(connection: Connection, schema: str | None) -> str:
    """Return the table of a database that has the SQL of all others."""
    if not schema:
        return "sqlite_master"
    return f"{connection.dialect.identifier_preparer.quote_schema(schema)}.sqlite_master"


def find_vec0_tables(connection: Connection, schema: str | None = None) -> dict[str, str]:
    """Return name and SQL of the vec0 tables."""
    rows = connection.exec_driver_sql(
        f"SELECT name, sql FROM {master(connection, schema)} WHERE type = 'table' AND sql LIKE '{VEC0_TABLE}'"
    )
    return {row.name: row.sql for row in rows}


def reflect_vec0(connection: Connection, schema: str | None = None) -> list[ReflectedVec0]:
    """Return the vec0 tables that are kept by triggers, by two queries."""
    vec0 = find_vec0_tables(connection, schema)
    if not vec0:
        return []
    rows = connection.exec_driver_sql(
        f"SELECT type, name, tbl_name, sql FROM {master(connection, schema)} "
        "WHERE type = 'trigger' OR (type = 'table' AND (name LIKE '%\\_keys' ESCAPE '\\' "
        "OR name LIKE '%\\_replaced' ESCAPE '\\' OR name LIKE '%\\_centroids' ESCAPE '\\'))"
    ).all()
    known = {row.name: row for row in rows if row.type == "trigger" or index_of_side_table(row.name, row.sql)}
    found = []
    for name, sql in vec0.items():
        insert = known.get(f"{name}_insert")
        if insert is None or insert.type != "trigger":
            continue
        # By their whole names: that of another index may begin with this one's.
        parts = (known.get(f"{name}{part}") for part in (*SIDE_TABLES, *(f"_{event}" for event in TRIGGERS)))
        statements = {name: sql} | {part.name: part.sql for part in parts if part is not None}
        centroids = known.get(f"{name}{CENTROIDS}")
        reflected = _parse(
            name, insert.tbl_name, sql, insert.sql, statements, None if centroids is None else centroids.sql
        )
        if reflected is not None:
            found.append(reflected)
    return found


def _parse(
    name: str, table: str, sql: str, trigger: str, statements: dict[str, str], centroids: str | None
) -> ReflectedVec0 | None:
    arguments = _ARGUMENTS.search(sql)
    if arguments is None:
        return None
    vector, *others = (argument.strip() for argument in arguments.group(1).split(","))
    declared = _VECTOR.match(vector)
    if declared is None:  # made by another program
        return None
    element, size, vec0_metric = declared.groups()
    columns = _copied_columns(trigger)
    in_lists = f"{LIST} integer partition key" in others
    if in_lists:
        others = [other for other in others if other.split()[0] != LIST and not other.startswith("chunk_size=")]
        columns = columns[:-1]  # the vector once more, to find its list
    if len(columns) != len(others) + 2:
        return None
    _, column, *copied = columns
    include: list[str] = []
    partition_by: list[str] = []
    for other, of in zip(others, copied, strict=True):
        (partition_by if other.endswith("partition key") else include).append(of)
    value_range = _VALUE_RANGE.search(trigger)
    is_quantized = "vec_quantize_binary(" in trigger or "vector_binary_quantize(" in trigger
    if in_lists and "vec_normalize(" in trigger:
        metric_name = "cosine"
    elif vec0_metric is not None:
        metric_name = str(_BY_VEC0_METRIC.get(vec0_metric, vec0_metric))
    elif is_quantized:
        metric_name = "cosine" if "vec_distance_cosine(" in trigger else "l2"
    else:
        metric_name = "hamming"
    spec = IndexSpec(
        metric_name=metric_name,
        method="ivfflat" if in_lists else "hnsw",
        options=_declared_lists(centroids or "") if in_lists else (),
        precision="int8" if element == "int8" else "binary" if is_quantized else "full",
        include=tuple(include),
        partition_by=tuple(partition_by),
        value_range=float(value_range.group(1)) or 1.0 if value_range else 1.0,
    )
    return ReflectedVec0(name, table, column, element, spec, _type_of(element, int(size), trigger), statements)


def _declared_lists(centroids: str) -> tuple[tuple[str, int], ...]:
    """Return the option ``lists`` as the table of centroids tells it."""
    found = _LISTS.search(centroids)
    return (("lists", int(found.group(1))),) if found else ()


def _type_of(element: str, size: int, trigger: str) -> TypeEngine[Any] | None:
    if element != "bit":
        return Vector(size)
    if "vec_quantize_binary(" in trigger:
        return Vector(size)
    # A size that was rounded up to whole bytes.
    return None if "vector_binary_quantize(" in trigger else BitVector(size)


def _copied_columns(trigger: str) -> list[str]:
    """Return the table's columns that a trigger copies into vec0: key, vector, and those of metadata, in order.

    The trigger knows them by the names that they have now; vec0 itself has names of its own.
    """
    values = trigger.rpartition(" VALUES ")[2]
    return [_unquoted(name) for name in _NEW.findall(values)]


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name
