"""The vector indexes of a database, and how they differ from their declarations."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Index, text
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.exc import DBAPIError

from sqla_vector.dialects.migration import ReflectedIndex, quoted, verbatim
from sqla_vector.dialects.postgresql.index import effective_precision
from sqla_vector.metrics import METRICS
from sqla_vector.schema import IndexSpec, VectorIndexKey
from sqla_vector.types import BitVector

__all__ = ["difference", "reflect"]

_FIND: Final = text(
    "SELECT c.relname AS name, t.relname AS table_name, am.amname AS method, opc.opcname AS opclass,"
    " coalesce(c.reloptions, '{}') AS options, i.indisvalid AS is_valid,"
    " pg_catalog.pg_get_expr(i.indpred, i.indrelid) AS predicate,"
    " pg_catalog.pg_get_indexdef(i.indexrelid, 1, false) AS expression,"
    " v.column_name, v.typname, v.atttypmod FROM pg_catalog.pg_index i"
    " JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid"
    " JOIN pg_catalog.pg_am am ON am.oid = c.relam AND am.amname IN ('hnsw', 'ivfflat')"
    " JOIN pg_catalog.pg_class t ON t.oid = i.indrelid"
    " JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace"
    " JOIN pg_catalog.pg_opclass opc ON opc.oid = i.indclass[0]"
    " JOIN LATERAL (SELECT a.attname AS column_name, a.atttypmod, y.typname FROM pg_catalog.pg_depend d"
    "  JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid"
    "  JOIN pg_catalog.pg_type y ON y.oid = a.atttypid"
    "  WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = i.indexrelid"
    "  AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = i.indrelid AND d.refobjsubid > 0"
    "  AND y.typname IN ('vector', 'halfvec', 'sparsevec', 'bit') ORDER BY a.attnum LIMIT 1) v ON true"
    " WHERE n.nspname = coalesce(CAST(:schema AS TEXT), pg_catalog.current_schema())"
    " ORDER BY c.relname"
)

_DEFAULTS: Final = {"hnsw": {"m": "16", "ef_construction": "64"}, "ivfflat": {"lists": "100"}}
_UNKNOWN: Final = frozenset({"include", "partition_by", "value_range"})
_EXPRESSION: Final = re.compile(
    r"\(+(?P<quantized>(?:[^\s()]+\.)?binary_quantize\()?(?P<column>\"[^()]+\"|[^\s()]+?)\)+"
    r"::(?(quantized)bit|(?:[^\s()]+\.)?halfvec)\(\d+\)\)*"
)
"""What pg_get_indexdef() shows for the expressions of half and binary precision."""
_DIMENSION: Final = re.compile(r"\((\d+)\)\)*\Z")


@dataclass(frozen=True)
class Definition:
    """What makes an index what it is, apart from its predicate."""

    method: str
    opclass: str
    column: str
    precision: str
    dim: int | None
    """The dimension of an expression's value; None where the column itself is indexed."""
    options: tuple[tuple[str, str], ...]


def _options(method: str, given: dict[str, str]) -> tuple[tuple[str, str], ...]:
    # With pgvector's defaults filled in: to spell them out makes no other index.
    return tuple(sorted({**_DEFAULTS[method], **given}.items()))


def reflect(connection: Connection, schema: str | None) -> list[ReflectedIndex]:
    """Return the vector indexes of a schema that could have been declared, by one query."""
    rows = connection.execute(_FIND, {"schema": schema})
    return [found for row in rows if (found := _reflected(row, connection.dialect)) is not None]


def _reflected(row: Any, dialect: Dialect) -> ReflectedIndex | None:
    given = dict(option.split("=", 1) for option in row.options)
    precision = _precision(row.expression, quoted(dialect, row.column_name))
    if precision is None or not given.keys() <= _DEFAULTS[row.method].keys():
        return None  # over another expression, or with options that are not known here
    dim = _DIMENSION.search(row.expression) if precision != "full" else None
    definition = Definition(
        method=row.method,
        opclass=row.opclass,
        column=row.column_name,
        precision=precision,
        dim=int(dim.group(1)) if dim else None,
        options=_options(row.method, given),
    )
    spec = IndexSpec(
        metric_name=_metric_name(row.opclass, precision),
        method=row.method,
        precision=precision,  # type: ignore[arg-type]
        options=tuple((name, int(value)) for name, value in given.items()),
    )
    return ReflectedIndex(
        name=row.name,
        table_name=row.table_name,
        column_name=row.column_name,
        spec=spec,
        where=row.predicate,
        is_valid=row.is_valid,
        definition=definition,
        unknown=_UNKNOWN | {"metric_name"} if precision == "binary" else _UNKNOWN,
        is_shared=True,
        type_=BitVector(row.atttypmod) if row.typname == "bit" and row.atttypmod > 0 else None,
    )


def _precision(expression: str, column: str) -> str | None:
    """Return the precision of an index over a column, None if it is over another expression."""
    if expression.strip('"') == column.strip('"'):
        return "full"
    matched = _EXPRESSION.fullmatch(expression)
    if matched is None or matched["column"].strip('"') != column.strip('"'):
        return None
    return "binary" if matched["quantized"] else "half"


def _metric_name(opclass: str, precision: str) -> str:
    # bit_hamming_ops over binary_quantize() serves every metric of the vectors; cosine is the usual one.
    if precision == "binary":
        return "cosine"
    suffix = opclass.partition("_")[2]
    return next((metric.name for metric in METRICS.values() if metric.postgresql_opclass == suffix), suffix)


def _declared(index: Index, key: VectorIndexKey) -> Definition:
    options = index.dialect_options["postgresql"]
    method = options["using"]
    kind: str = key.vector_type.kind
    precision = effective_precision(key.spec, kind, key.dim)
    indexed_kind = {"half": "halfvec", "binary": "bit"}.get(precision, kind)
    return Definition(
        method=method,
        opclass="bit_hamming_ops" if precision == "binary" else key.spec.metric.opclass(indexed_kind),
        column=key.column.name,
        precision=precision,
        dim=None if precision == "full" else key.dim,
        options=_options(method, {str(name): str(value) for name, value in (options["with"] or {}).items()}),
    )


def difference(connection: Connection, index: Index, key: VectorIndexKey, found: ReflectedIndex) -> str | None:
    """Return in what an index differs from its declaration, None if in nothing."""
    if not found.is_valid:
        return "its build was interrupted"
    declared, is_there = _declared(index, key), found.definition
    for name, what in (
        ("column", "column"),
        ("method", "method"),
        ("opclass", "operator class"),
        ("precision", "precision"),
        ("dim", "dimension"),
        ("options", "options"),
    ):
        old, new = getattr(is_there, name), getattr(declared, name)
        if old != new:
            return f"{what} {_shown(old)} to {_shown(new)}"
    where = index.dialect_options["postgresql"]["where"]
    if where is None and found.where is None:
        return None
    canonical = None if where is None else _canonical(connection, index, predicate_sql(connection.dialect, where))
    return None if canonical == found.where else f"predicate {found.where} to {canonical}"


def _shown(value: object) -> str:
    return ", ".join(f"{n}={v}" for n, v in value) if isinstance(value, tuple) else str(value)


def predicate_sql(dialect: Any, where: Any) -> str:
    """Return a declared predicate as SQL."""
    compiled = where.compile(dialect=dialect, compile_kwargs={"literal_binds": True, "include_table": False})
    return str(compiled).replace("%%", "%")


def _canonical(connection: Connection, index: Index, predicate: str) -> str:
    """Return a predicate as the server would store it, by making an index on a temporary table like the real one.

    Where that cannot be done, as on a standby, or with a column that is still to be added, the text stands.
    """
    assert index.table is not None
    like = quoted(connection.dialect, index.table.schema, index.table.name)
    savepoint = connection.begin_nested()
    try:
        connection.execute(verbatim(f"CREATE TEMPORARY TABLE sqla_vector_like (LIKE {like})"))
        connection.execute(verbatim(f"CREATE INDEX sqla_vector_like_index ON sqla_vector_like ((1)) WHERE {predicate}"))
        found = connection.exec_driver_sql(
            "SELECT pg_catalog.pg_get_expr(indpred, indrelid) FROM pg_catalog.pg_index "
            "WHERE indexrelid = 'pg_temp.sqla_vector_like_index'::regclass"
        ).scalar_one()
        return str(found)
    except DBAPIError:
        return predicate
    finally:
        savepoint.rollback()
