"""Column types: ``Vector``, ``HalfVector``, ``SparseVector``, ``BitVector``, and their comparator.

A type here is the same on every database.  What is stored and sent is decided by the implementation that a
dialect module registers in :data:`DIALECTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import LargeBinary, Select, event, type_coerce
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.schema import Column, Table
from sqlalchemy.sql import FromClause
from sqlalchemy.sql.elements import BinaryExpression, ColumnElement
from sqlalchemy.sql.operators import OperatorType
from sqlalchemy.types import TypeDecorator, TypeEngine, UserDefinedType
from sqlalchemy.util import generic_repr

from sqla_vector import functions
from sqla_vector.coercion import ColumnNames, SparseArray, check_dimension
from sqla_vector.exc import InvalidOption
from sqla_vector.expression import VectorComparison, VectorTypeEngine
from sqla_vector.metrics import Kind
from sqla_vector.values import Codec, codec_for
from sqla_vector.web_query import WebQuery

__all__ = ["BitVector", "HalfVector", "SparseVector", "Vector", "VectorType"]

V = TypeVar("V")


class DialectSupport(Protocol):
    """What a dialect module provides for the types."""

    def implementation(self, type_: VectorType[Any], dialect: Dialect) -> TypeEngine[Any]:
        """Return the type that writes and reads values on this dialect."""

    def before_table_create(self, table: Table, connection: Connection) -> None:
        """Prepare the database for a table with a vector column, for example create the extension."""

    def choose_driver(self, driver: str, dialect_args: dict[str, Any]) -> dict[str, Any]:
        """Replace the DBAPI module if another serves vectors better; return connect arguments to add."""

    def attach(self, dialect: Dialect) -> None:
        """Adapt a dialect object whose engine is attached."""

    def detach(self, dialect: Dialect) -> None:
        """Undo :meth:`attach`."""

    def prepare_connection(self, dialect: Dialect, dbapi_connection: Any, *, in_transaction: bool = False) -> bool:
        """Prepare a connection; return False if it has to be tried again later."""

    def begin(self, connection: Connection, *, to_write: bool = False) -> None:
        """Make sure that a transaction is open in the database, so that a savepoint is inside it."""

    def state(self, connection: Connection) -> object | None:
        """Return what is equal as long as nobody changes the database, this connection neither; None if unknown.

        Both times in a transaction that keeps others from writing.
        """

    def sees_commits(self) -> ColumnElement[bool]:
        """Return what tells whether a statement sees all that was committed before it, in the transaction it is in."""

    def members(self, column: ColumnElement[Any], values: Sequence[Any]) -> ColumnElement[bool]:
        """Return the criterion that a column is one of many values, which travel as one parameter if that can be."""

    def texts(self, values: Sequence[str]) -> FromClause:
        """Return texts as rows of one column ``value``, in their order, which travel as one parameter."""

    def brief_lock_wait(self, connection: Connection) -> AbstractContextManager[None]:
        """Have the statements of a connection wait a tenth of a second for a lock at most, up to its next commit."""

    def insert_batches(
        self, connection: Connection, table: Table, names: Sequence[str], batches: Iterable[tuple[int, list[Any]]]
    ) -> None:
        """Insert batches, each a number of rows and the values of every named column, the fastest way there is."""

    def read_binary(self, connection: Connection, stmt: Select[Any]) -> AbstractContextManager[None]:
        """Have a statement that is executed meanwhile return its results in binary, where that is a choice."""

    def raw_kinds(self, dialect: Dialect, types: Sequence[TypeEngine[Any]]) -> Collection[str]:
        """Return the vector kinds that come as bytes by themselves in the result of a statement of these types."""

    def matrix_decoder(self, codec: Codec[Any]) -> Callable[[Sequence[Any]], NDArray[Any]]:
        """Return what makes a matrix of the values of a column of :class:`EncodedVector`."""

    def explain(self, connection: Connection, stmt: Select[Any]) -> tuple[set[str], str]:
        """Plan a statement; return the names of the vector indexes in the plan, and the plan as text."""

    def served_by(self, key: Any) -> tuple[str, str]:
        """Return the method and the precision of a declared index as built on this database."""

    def why_unused(self, connection: Connection, name: str, key: Any, criterion: Any) -> str:
        """Return why an index that could serve a statement is not in its plan."""

    def text_query(self, query: WebQuery, language: str) -> str:
        """Return a search query as the database takes it."""

    def capabilities(self, connection: Connection) -> dict[str, Any]:
        """Return the fields of :class:`sqla_vector.engine.Capabilities`."""

    def migration(self) -> Any:
        """Return the :class:`sqla_vector.dialects.migration.MigrationSupport`."""

    def tuning(self) -> Any:
        """Return the :class:`sqla_vector.dialects.tuning.TuningSupport`."""

    def captures(self) -> Any:
        """Return the :class:`sqla_vector.dialects.capture.CaptureSupport`."""


DIALECTS: dict[str, DialectSupport] = {}
"""Dialect name to its support; filled by the modules of :mod:`sqla_vector.dialects`."""


def support_of(dialect: Dialect) -> DialectSupport:
    """Return the support for a dialect.

    Raises:
        InvalidOption: there is none.
    """
    found = DIALECTS.get(dialect.name)
    if found is None:
        raise InvalidOption(f"sqla_vector serves {' and '.join(DIALECTS)}, not {dialect.name}")
    return found


class VectorComparator(UserDefinedType.Comparator[Any]):
    """Distances and operators of a vector column; each calls the free function of the same name."""

    def operate(self, op: OperatorType, *other: Any, **kwargs: Any) -> ColumnElement[Any]:
        found = super().operate(op, *other, **kwargs)
        return VectorComparison.of(found) if isinstance(found, BinaryExpression) else found

    def l2_distance(self, other: object) -> ColumnElement[float]:
        """See :func:`sqla_vector.l2_distance`."""
        return functions.l2_distance(self.expr, other)

    def cosine_distance(self, other: object) -> ColumnElement[float]:
        """See :func:`sqla_vector.cosine_distance`."""
        return functions.cosine_distance(self.expr, other)

    def max_inner_product(self, other: object) -> ColumnElement[float]:
        """See :func:`sqla_vector.max_inner_product`."""
        return functions.max_inner_product(self.expr, other)

    def l1_distance(self, other: object) -> ColumnElement[float]:
        """See :func:`sqla_vector.l1_distance`."""
        return functions.l1_distance(self.expr, other)

    def hamming_distance(self, other: object) -> ColumnElement[float]:
        """See :func:`sqla_vector.hamming_distance`."""
        return functions.hamming_distance(self.expr, other)

    def jaccard_distance(self, other: object) -> ColumnElement[float]:
        """See :func:`sqla_vector.jaccard_distance`."""
        return functions.jaccard_distance(self.expr, other)

    def similarity(self, other: object, metric: str) -> ColumnElement[float]:
        """See :func:`sqla_vector.similarity`."""
        return functions.similarity(self.expr, other, metric)

    def __add__(self, other: object) -> ColumnElement[Any]:
        return functions.add(self.expr, other)

    def __sub__(self, other: object) -> ColumnElement[Any]:
        return functions.subtract(self.expr, other)

    def __mul__(self, other: object) -> ColumnElement[Any]:
        return functions.multiply(self.expr, other)

    def concat(self, other: object) -> ColumnElement[Any]:
        """Return the concatenation of two vectors (``||`` in pgvector)."""
        return functions.concat(self.expr, other)


class UnadaptedVector(UserDefinedType[Any]):
    """The type on a dialect that has no vectors: it can be printed, not stored."""

    cache_ok = True
    comparator_factory = VectorComparator

    def __init__(self, kind: str = "vector", dim: int | None = None) -> None:
        super().__init__()
        self.kind = kind
        self.dim = dim

    def get_col_spec(self, **kw: Any) -> str:
        return column_spec(self.kind, self.dim)

    def literal_processor(self, dialect: Dialect) -> Any:
        codec = codec_for(self.kind, self.dim)

        def process(value: Any) -> str:
            return f"'{codec.to_text(codec.coerce(value, 'literal'))}'"

        return process


def column_spec(kind: str, dim: int | None) -> str:
    """Return the name of a type as written in DDL, for example ``VECTOR(384)``."""
    return kind.upper() if dim is None else f"{kind.upper()}({dim})"


class VectorType(TypeDecorator[V], VectorTypeEngine):
    """Base of the four column types."""

    impl = UnadaptedVector
    cache_ok = True
    kind: ClassVar[Kind]

    def __init__(self, dim: int | None = None) -> None:
        self.dim = check_dimension(dim, self.kind, type(self).__name__)
        super().__init__(self.kind, self.dim)
        self._codec: Codec[Any] = codec_for(self.kind, self.dim)
        self._column_names = ColumnNames()

    @property
    def codec(self) -> Codec[Any]:
        """Checks and converts values of this kind and dimension."""
        return self._codec

    @property
    def column_name(self) -> str:
        """The column's name for messages, for example ``article.embedding``."""
        return str(self._column_names)

    @property
    def column_names(self) -> ColumnNames:
        """The names of the columns that have this very type object, filled as tables are built."""
        return self._column_names

    def resized(self, dim: int | None) -> VectorType[V]:
        """Return the same type with another dimension."""
        return type(self)(dim)

    def quantized(self) -> TypeEngine[Any]:
        """Return the type of this vector's :func:`sqla_vector.binary_quantize`."""
        return BitVector(self.dim)

    def __repr__(self) -> str:
        # TypeDecorator's shows the arguments of the implementation. This is what Alembic writes into a migration.
        return generic_repr(self)

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        support = DIALECTS.get(dialect.name)
        return support.implementation(self, dialect) if support else self.impl_instance

    def compare_values(self, x: Any, y: Any) -> bool:
        # Contents, not identity: assigning an equal vector is no change and emits no UPDATE.
        return self._codec.equal(x, y)

    def copy(self, **kw: Any) -> VectorType[V]:
        copied: VectorType[V] = super().copy(**kw)
        copied._column_names = ColumnNames()
        return copied

    def _set_parent(self, parent: Any, outer: bool = False, **kw: Any) -> None:
        # As SQLAlchemy's Enum and Boolean do: a type learns of its column here, and by it of the table, also
        # when a table is copied by Table.to_metadata() or a mixin's column into a class.
        super()._set_parent(parent, outer=outer, **kw)
        if isinstance(parent, Column):
            parent._on_table_attach(self._on_table)

    def _on_table(self, column: Column[Any], table: Any) -> None:
        if not isinstance(table, Table):
            return
        name = f"{table.name}.{column.name}"
        if name not in self._column_names:
            self._column_names.append(name)
        if not event.contains(table, "before_create", _before_table_create):
            event.listen(table, "before_create", _before_table_create)


def _before_table_create(table: Table, connection: Connection, **kw: Any) -> None:
    support = DIALECTS.get(connection.dialect.name)
    if support is not None:
        support.before_table_create(table, connection)


class EncodedVector(TypeDecorator[bytes]):
    """A vector column whose values are read as the bytes that the driver returns, to be decoded many at once.

    Args:
        vector_type: the column's type.
        is_raw: whether the driver returns the column itself as bytes, without a function around it.
    """

    impl = LargeBinary
    cache_ok = True

    def __init__(self, vector_type: VectorType[Any], is_raw: bool = False) -> None:
        super().__init__()
        self.vector_type = vector_type
        self.is_raw = is_raw

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return DIALECTS[dialect.name].implementation(self.vector_type, dialect)

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        # The type of what is selected decides how it is processed: plain bytes.
        expression = None if self.is_raw else super().column_expression(column)
        return type_coerce(column if expression is None else expression, LargeBinary())


class Vector(VectorType[NDArray[np.float32]]):
    """A column of float32 vectors: ``mapped_column(Vector(384))``.

    In: list, tuple, numpy array of any number type and byte order, ``array('f')``, pgvector's ``Vector``.
    Out: a read-only numpy float32 array of shape (dim,).

    Args:
        dim: number of dimensions, 1 to 16,000 (an index on PostgreSQL takes at most 2,000; above it
            ``vector_index`` builds a half-precision one); None for vectors of any dimension, without an index.

    Raises:
        InvalidOption: the dimension is out of range.
    """

    kind = "vector"
    cache_ok = True


class HalfVector(VectorType[NDArray[np.float16]]):
    """A column of float16 vectors, half the space of :class:`Vector` on PostgreSQL.

    In: as for :class:`Vector`; out: a read-only numpy float16 array of shape (dim,).  SQLite keeps the
    rounded values as float32, so that the distances are the same.

    Args:
        dim: number of dimensions, 1 to 16,000.
    """

    kind = "halfvec"
    cache_ok = True


class SparseVector(VectorType[SparseArray]):
    """A column of sparse float32 vectors.

    In: :class:`sqla_vector.SparseArray`, a dense vector, a scipy sparse array, pgvector's ``SparseVector``;
    out: :class:`sqla_vector.SparseArray`.

    Args:
        dim: number of dimensions, 1 to 1,000,000,000.
    """

    kind = "sparsevec"
    cache_ok = True


class BitVector(VectorType[NDArray[np.bool_]]):
    """A column of bits, ``BIT(n)`` on PostgreSQL.

    In: booleans, the numbers 0 and 1, pgvector's ``Bit``; out: a read-only numpy bool array of shape (dim,).

    Args:
        dim: number of bits, 1 to 64,000.
    """

    kind = "bit"
    cache_ok = True
