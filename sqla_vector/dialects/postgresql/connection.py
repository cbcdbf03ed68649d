"""Preparing a PostgreSQL connection: vectors travel in binary where the driver can."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Boolean, Date, DateTime, Enum, Float, Integer, LargeBinary, Select, String, event
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.types import TypeEngine

from sqla_vector.dialects.postgresql.tuned import FIND, parse
from sqla_vector.dialects.postgresql.types import BinaryParameter
from sqla_vector.dialects.settings import Settings
from sqla_vector.dialects.tuned import note_tuned
from sqla_vector.types import EncodedVector, VectorType
from sqla_vector.values import Codec, codec_for

__all__ = ["binary_results", "prepare", "raw_kinds"]

_LOCATE: Final = (
    f"SELECT n.nspname, pg_catalog.pg_type_is_visible(t.oid), {FIND} FROM pg_catalog.pg_type t"
    " JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace"
    " JOIN pg_catalog.pg_extension e ON e.extname = 'vector' AND e.extnamespace = n.oid"
    " WHERE t.typname = 'vector'"
)
"""Where the extension is, and what is remembered of indexes: one query for each new connection."""


def prepare(dbapi_connection: Any, driver: str, settings: Settings, *, in_transaction: bool = False) -> bool:
    """Give a connection what binary vectors need.

    Args:
        dbapi_connection: the connection, as SQLAlchemy adapts it.
        driver: the driver's name.
        settings: of the connection's dialect; an extension outside the search path is noted there.
        in_transaction: whether a transaction is open that must be left as it is.

    Returns:
        Whether the connection is complete; if not, because the extension does not exist yet, it should be
        prepared again later.
    """
    if driver == "psycopg":
        raw = getattr(dbapi_connection, "driver_connection", dbapi_connection)
        raw.adapters.register_dumper(BinaryParameter, _psycopg_dumper())
    schema = _locate(dbapi_connection)
    if not in_transaction:
        dbapi_connection.rollback()
    if schema is None:
        return False
    name, visible, tuned = schema
    if not visible:
        settings.schema = name
    note_tuned(settings, parse(tuned))
    if driver == "asyncpg":
        _set_codecs(dbapi_connection, name)
    return True


_READ_ALIKE: Final = frozenset(
    {Integer, Float, Boolean, LargeBinary, Date, DateTime, String, EncodedVector, VectorType}
)
"""Types whose values psycopg reads alike from text and from binary."""


_RAW_KINDS: Final = ("vector", "halfvec", "sparsevec")


@contextmanager
def binary_results(connection: Connection, stmt: Select[Any]) -> Iterator[None]:
    """Have psycopg ask for binary results: as text, bytes come as hexadecimal digits, twice as long.

    Only for a statement of types that are read alike; psycopg returns a type that it does not know, such as an
    enum, as bytes in one format and as text in the other.
    """
    if not raw_kinds(connection.dialect, [column.type for column in stmt.selected_columns]):
        yield
        return
    from psycopg.pq import Format

    def ask(conn: Any, cursor: Any, *args: Any) -> None:
        raw = getattr(cursor, "_cursor", cursor)
        raw.format = Format.BINARY
        for kind in _RAW_KINDS:
            # pgvector's register_vector() was called: on this one cursor its objects are not wanted.
            known = raw.adapters.types.get(kind)
            if known is not None:
                raw.adapters.register_loader(known.oid, _bytes_loader())

    event.listen(connection, "before_cursor_execute", ask)
    try:
        yield
    finally:
        event.remove(connection, "before_cursor_execute", ask)


def raw_kinds(dialect: Dialect, types: Sequence[TypeEngine[Any]]) -> Collection[str]:
    """Return the vector kinds that psycopg gives as bytes, in a statement whose results can all be binary."""
    return _RAW_KINDS if dialect.driver == "psycopg" and all(map(_is_read_alike, types)) else ()


@functools.cache
def _bytes_loader() -> Any:
    from psycopg.adapt import Loader
    from psycopg.pq import Format

    class BytesLoader(Loader):
        """Gives a value as the server sent it."""

        format = Format.BINARY

        def load(self, data: Any) -> bytes:
            return bytes(data)

    return BytesLoader


def _is_read_alike(type_: TypeEngine[Any]) -> bool:
    return isinstance(type_, tuple(_READ_ALIKE)) and not isinstance(type_, Enum)


def _locate(dbapi_connection: Any) -> tuple[str, bool, str | None] | None:
    """Return the extension's schema, whether it is on the search path, and what :data:`FIND` found."""
    cursor = dbapi_connection.cursor()
    try:
        cursor.execute(_LOCATE)
        row = cursor.fetchone()
    finally:
        cursor.close()
    return None if row is None else (row[0], row[1], row[2])


@functools.cache
def _psycopg_dumper() -> Any:
    from psycopg.adapt import Dumper
    from psycopg.pq import Format

    class BinaryParameterDumper(Dumper):
        """Sends the bytes as they are; the statement's cast gives them their type."""

        format = Format.BINARY

        def dump(self, obj: BinaryParameter) -> BinaryParameter:
            return obj

    return BinaryParameterDumper


def _set_codecs(dbapi_connection: Any, schema: str) -> None:
    async def set_codecs(connection: Any) -> None:
        for kind in ("vector", "halfvec"):
            codec = codec_for(kind, None)
            await connection.set_type_codec(
                kind, schema=schema, encoder=_encoder(codec), decoder=codec.from_binary, format="binary"
            )

    dbapi_connection.run_async(set_codecs)


def _encoder(codec: Codec[Any]) -> Any:
    def encode(value: Any) -> bytes:
        if isinstance(value, str):  # hand-written SQL that passes pgvector's text
            value = [float(element) for element in value.strip("[] ").split(",")]
        return codec.to_binary(codec.coerce(value, "vector"))

    return encode
