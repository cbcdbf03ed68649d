"""The vec0 tables of a database, and the declarations they were made from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from sqlalchemy.engine import Connection

from sqla_vector.metrics import METRICS
from sqla_vector.schema import IndexSpec

__all__ = ["ReflectedVec0", "find_vec0_tables", "reflect_vec0"]

_ARGUMENTS: Final = re.compile(r"USING vec0\((.*)\)\s*\Z", re.IGNORECASE | re.DOTALL)
_VECTOR: Final = re.compile(r"(\w+) (float|int8|bit)\[\d+\](?: distance_metric=(\w+))?\Z")
_VALUE_RANGE: Final = re.compile(r"vector_int8_quantize\([^)]*?, ([0-9.e+-]+)\)")
_BY_VEC0_METRIC: Final = {metric.vec0_metric: metric.name for metric in METRICS.values() if metric.vec0_metric}


@dataclass(frozen=True)
class ReflectedVec0:
    """A vec0 table that triggers keep equal to a table.

    What SQLite has no use for is not written there: the method and its options, ``half`` precision (full), and
    for ``binary`` whether the metric was l2 or l1 (l2).
    """

    name: str
    table_name: str
    column_name: str
    element: str
    """``float``, ``int8`` or ``bit``."""
    spec: IndexSpec
    statements: dict[str, str]
    """The SQL of the vec0 table, its side tables and its triggers, by their names."""


def _master(connection: Connection, schema: str | None) -> str:
    if not schema:
        return "sqlite_master"
    return f"{connection.dialect.identifier_preparer.quote_schema(schema)}.sqlite_master"


def find_vec0_tables(connection: Connection, schema: str | None = None) -> dict[str, str]:
    """Return name and SQL of the vec0 tables."""
    rows = connection.exec_driver_sql(
        f"SELECT name, sql FROM {_master(connection, schema)} "
        "WHERE type = 'table' AND sql LIKE 'CREATE VIRTUAL TABLE%USING vec0(%'"
    )
    return {row.name: row.sql for row in rows}


def reflect_vec0(connection: Connection, schema: str | None = None) -> list[ReflectedVec0]:
    """Return the vec0 tables that are kept by triggers, by two queries."""
    vec0 = find_vec0_tables(connection, schema)
    if not vec0:
        return []
    rows = connection.exec_driver_sql(
        f"SELECT type, name, tbl_name, sql FROM {_master(connection, schema)} "
        "WHERE type = 'trigger' OR (type = 'table' AND (name LIKE '%\\_keys' ESCAPE '\\' "
        "OR name LIKE '%\\_replaced' ESCAPE '\\'))"
    ).all()
    known = {(row.type, row.name): row for row in rows}
    found = []
    for name, sql in vec0.items():
        insert = known.get(("trigger", f"{name}_insert"))
        if insert is None:
            continue
        statements = {name: sql}
        for row in rows:
            if row.name.startswith(f"{name}_") and (row.type == "table" or row.tbl_name == insert.tbl_name):
                statements[row.name] = row.sql
        reflected = _parse(name, insert.tbl_name, sql, insert.sql, statements)
        if reflected is not None:
            found.append(reflected)
    return found


def _parse(name: str, table: str, sql: str, trigger: str, statements: dict[str, str]) -> ReflectedVec0 | None:
    arguments = _ARGUMENTS.search(sql)
    if arguments is None:
        return None
    vector, *others = (argument.strip() for argument in arguments.group(1).split(","))
    declared = _VECTOR.match(vector)
    if declared is None:  # made by another program
        return None
    column, element, vec0_metric = declared.groups()
    include: list[str] = []
    partition_by: list[str] = []
    for other in others:
        inner = other.split()[0]
        (partition_by if other.endswith("partition key") else include).append(_column_of(inner, trigger))
    value_range = _VALUE_RANGE.search(trigger)
    is_quantized = "binary_quantize(" in trigger
    if vec0_metric is not None:
        metric_name = str(_BY_VEC0_METRIC.get(vec0_metric, vec0_metric))
    elif is_quantized:
        metric_name = "cosine" if "vec_distance_cosine(" in trigger else "l2"
    else:
        metric_name = "hamming"
    spec = IndexSpec(
        metric_name=metric_name,
        precision="int8" if element == "int8" else "binary" if is_quantized else "full",
        include=tuple(include),
        partition_by=tuple(partition_by),
        value_range=float(value_range.group(1)) or 1.0 if value_range else 1.0,
    )
    return ReflectedVec0(name, table, column, element, spec, statements)


def _column_of(inner: str, trigger: str) -> str:
    """Return the table's column that a metadata column of vec0 copies: reserved names have an underscore more."""
    while inner.endswith("_") and not re.search(rf"NEW\.[\"`\[]?{inner}\b", trigger):
        inner = inner[:-1]
    return inner
