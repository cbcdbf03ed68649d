"""PostgreSQL's binary COPY: encoding batches, and sending them through each driver.

Format (PostgreSQL manual, COPY, "Binary Format"): a header, then for each row a count of fields and for each field
its length and its bytes, all big-endian; a length of -1 is NULL.

A batch whose columns all have a fixed width and no NULL is one numpy array of records; any other batch is joined
from the fields of its rows.
"""

from __future__ import annotations

import datetime as dt
import struct
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, repeat
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Table, text
from sqlalchemy.engine import Connection
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import Column

from sqla_vector.exc import BulkLoadError
from sqla_vector.types import VectorType
from sqla_vector.values import as_matrix

__all__ = ["CopyEncoder", "copy_encoder", "send"]

_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
_TRAILER: Final = struct.pack(">h", -1)
_NULL: Final = struct.pack(">i", -1)
_VECTOR_TYPES: Final = frozenset({"vector", "halfvec", "sparsevec", "bit"})
_EPOCH_DATE: Final = dt.date(2000, 1, 1)
_EPOCH: Final = dt.datetime(2000, 1, 1)  # noqa: DTZ001 - PostgreSQL's timestamp without time zone
_EPOCH_UTC: Final = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_MICROSECOND: Final = dt.timedelta(microseconds=1)

_FIXED: Final[dict[str, str]] = {
    "int2": ">i2",
    "int4": ">i4",
    "int8": ">i8",
    "float4": ">f4",
    "float8": ">f8",
    "bool": "u1",
}
"""Types of a fixed width: their numpy dtype."""


def _utf8(value: str) -> bytes:
    return value.encode()


_SCALARS: Final[dict[str, Callable[[Any], bytes]]] = {
    "int2": struct.Struct(">h").pack,
    "int4": struct.Struct(">i").pack,
    "int8": struct.Struct(">q").pack,
    "float4": struct.Struct(">f").pack,
    "float8": struct.Struct(">d").pack,
    "bool": lambda value: b"\x01" if value else b"\x00",
    "text": _utf8,
    "varchar": _utf8,
    "bpchar": _utf8,
    "json": _utf8,
    "jsonb": lambda value: b"\x01" + value.encode(),
    "bytea": bytes,
    "uuid": lambda value: (value if isinstance(value, uuid.UUID) else uuid.UUID(str(value))).bytes,
    "date": lambda value: struct.pack(">i", (value - _EPOCH_DATE).days),
    "timestamp": lambda value: struct.pack(">q", (value - _EPOCH) // _MICROSECOND),
    "timestamptz": lambda value: struct.pack(">q", (value - _EPOCH_UTC) // _MICROSECOND),
}
"""Type name to the encoder of one value."""


class _ColumnEncoder:
    """Encodes the values of one column."""

    def __init__(self, column: Column[Any], type_name: str) -> None:
        self._name = f"{column.table.name}.{column.name}"
        self._type_name = type_name
        self._fixed = np.dtype(_FIXED[type_name]) if type_name in _FIXED else None
        self._scalar = _SCALARS.get(type_name)
        self._codec = column.type.codec if isinstance(column.type, VectorType) else None
        dialect = DefaultDialect()
        # What an Enum, a JSON or a TypeDecorator makes of a value; the drivers' own wrappers are not wanted here.
        self._processor = None if self._codec is not None else column.type.dialect_impl(dialect).bind_processor(dialect)

    def record(self, values: Any, count: int) -> NDArray[Any] | None:
        """Return the values as an array of fixed width, or None if they are not of one."""
        if self._type_name == "vector":
            if not isinstance(values, np.ndarray) and any(value is None for value in values):
                return None
            assert self._codec is not None
            matrix = as_matrix(values, self._codec.dim, self._name)
            fields: list[Any] = [("dim", ">u2"), ("unused", ">u2"), ("data", ">f4", (matrix.shape[1],))]
            record = np.zeros(count, fields)
            record["dim"] = matrix.shape[1]
            record["data"] = matrix
            return record
        if self._fixed is None or self._processor is not None:
            return None
        return self._fixed_array(values)

    def _fixed_array(self, values: Any) -> NDArray[Any] | None:
        assert self._fixed is not None
        given = values if isinstance(values, np.ndarray) else np.asarray(values)
        wanted = {"i": "iu", "f": "fiu", "u": "b"}[self._fixed.kind]
        if given.ndim != 1 or given.dtype.kind not in wanted:
            return None  # NULL, or values that the scalar encoder refuses by name
        if self._fixed.kind == "i" and given.size:
            limits = np.iinfo(self._fixed)
            if int(given.min()) < limits.min or int(given.max()) > limits.max:
                raise BulkLoadError(f"{self._name}: a value does not fit into {self._type_name}")
        return given

    @property
    def fixed_dtype(self) -> np.dtype[Any] | None:
        return self._fixed

    def fields(self, values: Any) -> Iterable[bytes]:
        """Return each value with its length before it."""
        record = self.record(values, len(values)) if self._type_name == "vector" else None
        if record is not None:
            size = record.dtype.itemsize
            prefix, data = struct.pack(">i", size), record.tobytes()
            return [prefix + data[start : start + size] for start in range(0, len(data), size)]
        return [_NULL if value is None else self._field(value) for value in _as_python(values)]

    def _field(self, value: Any) -> bytes:
        try:
            if self._codec is not None:
                data = self._codec.to_binary(self._codec.coerce(value, self._name))
            else:
                assert self._scalar is not None
                data = self._scalar(self._processor(value) if self._processor else value)
        except (struct.error, TypeError, AttributeError, OverflowError, UnicodeEncodeError) as error:
            raise BulkLoadError(f"{self._name} ({self._type_name}) cannot take {value!r:.80}: {error}") from None
        return struct.pack(">i", len(data)) + data


def _as_python(values: Any) -> Any:
    if isinstance(values, np.ndarray) and values.ndim == 1 and values.dtype != object:
        return values.tolist()
    return values


class CopyEncoder:
    """Encodes batches of the columns of one table."""

    def __init__(self, table: Table, names: Sequence[str], type_names: dict[str, str]) -> None:
        self._encoders = [_ColumnEncoder(table.c[name], type_names[table.c[name].name]) for name in names]

    def blocks(self, batches: Iterable[tuple[int, Sequence[Any]]]) -> Iterator[bytes]:
        """Yield the COPY stream of batches, each a number of rows and the values of every column."""
        yield _HEADER
        for count, columns in batches:
            yield self._as_records(count, columns) or self._as_fields(count, columns)
        yield _TRAILER

    def _as_records(self, count: int, columns: Sequence[Any]) -> bytes | None:
        records = []
        for encoder, values in zip(self._encoders, columns, strict=True):
            record = encoder.record(values, count)
            if record is None:
                return None
            records.append((record, encoder.fixed_dtype or record.dtype))
        layout: list[Any] = [("fields", ">i2")]
        for number, (_, dtype) in enumerate(records):
            layout += [(f"l{number}", ">i4"), (f"v{number}", dtype)]
        rows = np.empty(count, layout)
        rows["fields"] = len(records)
        for number, (record, dtype) in enumerate(records):
            rows[f"l{number}"] = dtype.itemsize
            rows[f"v{number}"] = record
        return rows.tobytes()

    def _as_fields(self, count: int, columns: Sequence[Any]) -> bytes:
        counts = repeat(struct.pack(">h", len(columns)), count)
        encoded = [encoder.fields(values) for encoder, values in zip(self._encoders, columns, strict=True)]
        return b"".join(chain.from_iterable(zip(counts, *encoded, strict=True)))


def copy_encoder(connection: Connection, table: Table, names: Sequence[str]) -> CopyEncoder | None:
    """Return an encoder for some columns of a table, or None if the type of one is not known here.

    The types are read from the database: binary COPY takes a value only in its column's very type, and a model
    may say Integer where the table has bigint.
    """
    preparer = connection.dialect.identifier_preparer
    found = connection.execute(
        text(
            "SELECT a.attname, t.typname FROM pg_catalog.pg_attribute a"
            " JOIN pg_catalog.pg_type t ON t.oid = a.atttypid"
            " WHERE a.attrelid = CAST(:name AS text)::regclass AND a.attnum > 0 AND NOT a.attisdropped"
        ),
        {"name": preparer.format_table(table)},
    )
    type_names: dict[str, str] = {row.attname: row.typname for row in found}
    for name in names:
        column = table.c[name]
        known = _VECTOR_TYPES if isinstance(column.type, VectorType) else _SCALARS.keys()
        if type_names.get(column.name) not in known:
            return None
    return CopyEncoder(table, names, type_names)


def send(connection: Connection, table: Table, names: Sequence[str], blocks: Iterator[bytes]) -> None:
    """Send a COPY stream through the connection's driver, within its transaction."""
    source = _Source(blocks)
    try:
        _send(connection, table, names, source)
    except Exception as error:
        if source.error is not None:  # the rows are at fault, not the database, whatever the driver made of it
            raise source.error from None
        raise _as_sqlalchemy(connection, table, error) from error


class _Source:
    """The blocks, remembering the error that making one raised."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._blocks)
        except StopIteration:
            raise
        except Exception as error:
            self.error = error
            raise


def _as_sqlalchemy(connection: Connection, table: Table, error: Exception) -> Exception:
    """Return a driver's error as SQLAlchemy raises it: COPY runs outside its own execution."""
    dialect = connection.dialect
    handle = getattr(connection.connection.dbapi_connection, "_handle_exception", None)
    if handle is not None:
        try:
            handle(error)
        except Exception as adapted:
            error = adapted
    assert dialect.dbapi is not None
    found = DBAPIError.instance(f"COPY {table.name}", None, error, dialect.dbapi.Error, dialect=dialect)
    return found if isinstance(found, Exception) else error


def _send(connection: Connection, table: Table, names: Sequence[str], blocks: Iterator[bytes]) -> None:
    preparer = connection.dialect.identifier_preparer
    columns = ", ".join(preparer.quote(table.c[name].name) for name in names)
    statement = f"COPY {preparer.format_table(table)} ({columns}) FROM STDIN (FORMAT BINARY)"
    fairy = connection.connection
    driver = connection.dialect.driver
    if driver == "asyncpg":
        _send_asyncpg(fairy.dbapi_connection, table, [table.c[name].name for name in names], blocks)
    elif driver == "psycopg2":
        raw: Any = fairy.driver_connection
        with raw.cursor() as cursor:
            cursor.copy_expert(statement, _Reader(blocks), size=1 << 16)
    elif connection.dialect.is_async:
        _send_psycopg_async(fairy.dbapi_connection, statement, blocks)
    else:
        raw = fairy.driver_connection
        with raw.cursor() as cursor, cursor.copy(statement) as copy:
            for block in blocks:
                copy.write(block)


def _send_asyncpg(adapted: Any, table: Table, columns: list[str], blocks: Iterator[bytes]) -> None:
    async def source() -> Any:
        for block in blocks:
            yield block

    async def run(connection: Any) -> None:
        await connection.copy_to_table(
            table.name, schema_name=table.schema, columns=columns, source=source(), format="binary"
        )

    adapted.run_async(run)


def _send_psycopg_async(adapted: Any, statement: str, blocks: Iterator[bytes]) -> None:
    async def run(connection: Any) -> None:
        async with connection.cursor() as cursor, cursor.copy(statement) as copy:
            for block in blocks:
                await copy.write(block)

    adapted.run_async(run)


class _Reader:
    """The blocks as a file, for psycopg2."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = b""

    def read(self, size: int) -> bytes:
        while len(self._rest) < size:
            block = next(self._blocks, None)
            if block is None:
                break
            self._rest += block
        data, self._rest = self._rest[:size], self._rest[size:]
        return data
