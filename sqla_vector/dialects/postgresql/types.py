"""How vector types are stored, sent and read on PostgreSQL.

Read: ``vector_send(column)``, so that any driver returns pgvector's binary format without a codec.
Sent, each with a cast (``$1::VECTOR``) that gives the parameter its type:

========= ======================================== ================================
driver    with the plugin                          without
========= ======================================== ================================
psycopg   binary, by a dumper for a private class  text
asyncpg   binary, by a codec of the connection     text (``$1::TEXT::VECTOR``)
others    text                                     text
========= ======================================== ================================

The private class and the casts keep clear of whatever ``pgvector``'s own ``register_vector`` set up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import BindParameter, ColumnElement
from sqlalchemy.sql.functions import FunctionElement

from sqla_vector.dialects.settings import settings_of
from sqla_vector.dialects.vector_type import DialectVector
from sqla_vector.types import column_spec

__all__ = ["BinaryParameter", "PostgreSQLVector", "qualified"]


class BinaryParameter(bytes):
    """A value in PostgreSQL's binary format; only the plugin's psycopg dumper knows this class."""

    __slots__ = ()


class PostgreSQLVector(DialectVector):
    """A vector type on PostgreSQL."""

    def bind_expression(self, bindvalue: BindParameter[Any]) -> ColumnElement[Any]:
        return ParameterCast(bindvalue, self)

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        return BinaryFormat(column, self)

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        convert = self._converter(dialect.driver)
        coerce, names = self._codec.coerce, self._names

        def process(value: Any) -> Any:
            return None if value is None else convert(coerce(value, names))

        return process

    def _converter(self, driver: str) -> Callable[[Any], Any]:
        """Return what turns a canonical value into the driver's parameter."""
        codec, settings = self._codec, self._settings
        to_text, to_binary = codec.to_text, codec.to_binary
        if driver == "psycopg":
            return lambda value: BinaryParameter(to_binary(value)) if settings.attached else to_text(value)
        if driver == "asyncpg" and self.kind in ("vector", "halfvec"):
            # An array, not bytes: it suits our codec and pgvector's own alike.
            return lambda value: value if settings.attached else to_text(value)
        return to_text

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        from_binary = self._codec.from_binary

        def process(value: Any) -> Any:
            return None if value is None else from_binary(value)

        return process

    def literal_processor(self, dialect: Dialect) -> Callable[[Any], str]:
        codec, names = self._codec, self._names

        def process(value: Any) -> str:
            return f"'{codec.to_text(codec.coerce(value, names))}'"

        return process


class ParameterCast(FunctionElement[Any]):
    """A parameter with the type it has."""

    inherit_cache = False

    def __init__(self, parameter: ColumnElement[Any], type_: PostgreSQLVector) -> None:
        super().__init__(parameter)
        self.type = type_


class BinaryFormat(FunctionElement[Any]):
    """A vector in PostgreSQL's binary format, as bytes."""

    inherit_cache = False

    def __init__(self, column: ColumnElement[Any], type_: PostgreSQLVector) -> None:
        super().__init__(column)
        self.kind = type_.kind
        self.type = type_


def qualified(compiler: Any, name: str) -> str:
    """Return the name of one of pgvector's objects, with the extension's schema where that is needed."""
    schema = settings_of(compiler.dialect).schema
    preparer = getattr(compiler, "preparer", None) or compiler.dialect.identifier_preparer
    return name if schema is None else f"{preparer.quote_schema(schema)}.{name}"


@compiles(PostgreSQLVector)
def _render_type(type_: PostgreSQLVector, compiler: Any, **kw: Any) -> str:
    spec = type_.get_col_spec()
    return spec if type_.kind == "bit" else qualified(compiler, spec)


def type_sql(compiler: Any, kind: str, dim: int | None) -> str:
    """Return a type's name for a cast."""
    spec = column_spec(kind, dim)
    return spec if kind == "bit" else qualified(compiler, spec)


@compiles(ParameterCast)
def _render_cast(element: ParameterCast, compiler: SQLCompiler, **kw: Any) -> str:
    (parameter,) = element.clauses
    type_ = element.type
    assert isinstance(type_, PostgreSQLVector)
    rendered = compiler.process(parameter, **kw)
    if compiler.dialect.driver == "asyncpg" and _travels_as_text(type_):
        rendered = f"{rendered}::TEXT"
    # Without the dimension, which was checked before: a cast that checks it again is a function call for every
    # row compared, and makes a generic plan look dearer than planning anew at each execution.
    dim = type_.dim if type_.kind == "bit" else None
    return f"{rendered}::{type_sql(compiler, type_.kind, dim)}"


def _travels_as_text(type_: PostgreSQLVector) -> bool:
    # asyncpg encodes a parameter by its type; TEXT is the one that takes a string whatever codec is set.
    return not type_._settings.attached or type_.kind not in ("vector", "halfvec")


@compiles(BinaryFormat)
def _render_binary_format(element: BinaryFormat, compiler: SQLCompiler, **kw: Any) -> str:
    (column,) = element.clauses
    send = "bit_send" if element.kind == "bit" else qualified(compiler, f"{element.kind}_send")
    return f"{send}({compiler.process(column, **kw)})"
