"""Loading many rows fast, and reading many rows as arrays.

Both work in constant memory and within the caller's transaction.  On PostgreSQL rows go in by binary COPY; on
SQLite, and for a table with a column type that has no binary encoder here, by ``executemany``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Select, String, Table, inspect, type_coerce
from sqlalchemy.engine import Connection, Dialect

from sqla_vector.engine import connection_of
from sqla_vector.exc import BulkLoadError, ExtensionMissing, InvalidOption, InvalidStatement
from sqla_vector.types import EncodedVector, VectorType, support_of

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

__all__ = ["aload", "aread", "load", "read"]

Rows = Iterable[Mapping[str, Any]] | Iterable[Sequence[Any]] | Mapping[str, Any]
Progress = bool | Callable[[int], object] | None
Batch = tuple[int, list[Any]]

_ROWS_PER_BATCH: Final = 1_000
_ROWS_PER_FETCH: Final = 500
_MAX_PLACED: Final = 100_000
"""Up to this batch size the matrix of a batch is made before its rows are known."""


def load(connection: Connection | Session, target: Any, rows: Rows, *, progress: Progress = None) -> int:
    """Insert many rows, all or none of them, and return how many.

    The rows are inserted within the caller's transaction; after an error none of them is there and the
    transaction can go on.  Database triggers and constraints apply; ORM events do not fire.

    Args:
        connection: a Connection or Session.
        target: a mapped class or a Table.
        rows: an iterable of dicts (all with the same keys) or of tuples (in the order of the table's columns),
            which may be a generator of any length; or one mapping of column name to an array or list,
            ``{"id": ids, "embedding": matrix}`` with a matrix of shape (n, dim).  Columns that are not given get
            their default.
        progress: True shows a bar (needs ``rich``); a function is called with the number of rows so far.

    Returns:
        The number of rows inserted.

    Raises:
        BulkLoadError: a column that the table does not have, a row with other keys than the first, arrays of
            different lengths, a value that its column cannot take.
        InvalidVector: a value that is no vector; the message names the column and the row of the batch.
    """
    bind = connection_of(connection, "aload()")
    table, names_by_key = _table_of(target)
    names, batches = _batches(rows, table, names_by_key)
    if not names:
        return 0
    loaded = 0

    def counted() -> Iterator[Batch]:
        nonlocal loaded
        with _reporter(progress) as report:
            for batch in batches:
                yield batch
                loaded += batch[0]
                report(loaded)

    support = support_of(bind.dialect)
    support.begin(bind)
    with bind.begin_nested():
        support.insert_batches(bind, table, names, counted())
    return loaded


async def aload(
    connection: AsyncConnection | AsyncSession, target: Any, rows: Rows, *, progress: Progress = None
) -> int:
    """Do the same as :func:`load`, on an AsyncConnection or AsyncSession."""

    def run(sync: Connection | Session) -> int:
        return load(sync, target, rows, progress=progress)

    return await connection.run_sync(run)


def read(
    connection: Connection | Session, stmt: Select[Any], *, batch_size: int = 10_000
) -> Iterator[dict[str, NDArray[Any]]]:
    """Run a select of columns and yield its rows in batches, as arrays.

    A server-side cursor is used where the driver has one, so memory does not grow with the number of rows.

    Args:
        connection: a Connection or Session.
        stmt: ``select(Article.id, Article.embedding)``: columns, no entities.
        batch_size: the number of rows in a batch; the last may be shorter.

    Yields:
        A mapping of column name to array.  A vector column is one contiguous (n, dim) matrix of float32 (half
        vectors float16, bits bool), a NULL vector being a row of NaN (refused for bits); sparse vectors come as
        an object array of :class:`sqla_vector.SparseArray`; other columns as an array of their numbers, or of
        objects.

    Raises:
        InvalidStatement: the statement selects entities.
        InvalidOption: ``batch_size`` is no whole number from 1, or a vector column has no dimension.
    """
    bind = connection_of(connection, "aread()")
    wrapped, decoders = _for_reading(stmt, batch_size, bind.dialect)
    fetched = min(batch_size, _ROWS_PER_FETCH)
    with support_of(bind.dialect).read_binary(bind, wrapped):
        result = connection.execute(wrapped, execution_options={"stream_results": True, "max_row_buffer": fetched})
    with result:
        collected = _Collector(list(result.keys()), decoders, batch_size)
        for rows in result.partitions(fetched):
            yield from collected.add(rows)
        yield from collected.rest()


async def aread(
    connection: AsyncConnection | AsyncSession, stmt: Select[Any], *, batch_size: int = 10_000
) -> AsyncIterator[dict[str, NDArray[Any]]]:
    """Do the same as :func:`read`, on an AsyncConnection or AsyncSession."""
    bind = await connection.run_sync(lambda sync: connection_of(sync, "aread()"))
    wrapped, decoders = _for_reading(stmt, batch_size, bind.dialect)
    fetched = min(batch_size, _ROWS_PER_FETCH)
    with support_of(bind.dialect).read_binary(bind, wrapped):
        result = await connection.stream(wrapped, execution_options={"max_row_buffer": fetched})
    try:
        collected = _Collector(list(result.keys()), decoders, batch_size)
        async for rows in result.partitions(fetched):
            for batch in collected.add(rows):
                yield batch
        for batch in collected.rest():
            yield batch
    finally:
        await result.close()


def _table_of(target: Any) -> tuple[Table, dict[str, str]]:
    """Return the table, and the key of its column for every name that rows may use."""
    if isinstance(target, Table):
        return target, {column.key: column.key for column in target.columns}
    mapper = inspect(target, raiseerr=False)
    table = getattr(mapper, "local_table", None)
    if mapper is None or not isinstance(table, Table):
        raise BulkLoadError(f"expected a mapped class or a Table, got {target!r:.80}")
    names = {column.key: column.key for column in table.columns}
    for attribute in mapper.column_attrs:
        for column in attribute.columns:
            if column.table is table:
                names[attribute.key] = column.key
    return table, names


def _batches(rows: Rows, table: Table, names_by_key: dict[str, str]) -> tuple[list[str], Iterator[Batch]]:
    """Return the keys of the columns that are loaded, and their values in batches."""
    if isinstance(rows, Mapping):
        keys = list(rows)
        names, batches = _resolve(keys, table, names_by_key), _of_arrays(dict(rows), table)
    else:
        iterator = iter(rows)
        first = next(iterator, None)
        if first is None:
            return [], iter(())
        is_mapping = isinstance(first, Mapping)
        keys = list(first) if is_mapping else [column.key for column in table.columns]
        names = _resolve(keys, table, names_by_key if is_mapping else {key: key for key in keys})
        batches = _of_rows(first, iterator, keys if is_mapping else None, len(keys))
    return _with_defaults(names, batches, table)


def _resolve(keys: list[Any], table: Table, names_by_key: dict[str, str]) -> list[str]:
    unknown = [repr(key) for key in keys if key not in names_by_key]
    if unknown:
        raise BulkLoadError(f"{table.name} has no column {', '.join(unknown)}")
    names = [names_by_key[key] for key in keys]
    if len(set(names)) != len(names):
        raise BulkLoadError(f"{table.name}: a column is given twice")
    return names


def _of_arrays(arrays: dict[str, Any], table: Table) -> Iterator[Batch]:
    lengths = {name: len(values) for name, values in arrays.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise BulkLoadError(f"{table.name}: the arrays have different lengths: {found}")
    (total,) = set(lengths.values()) or {0}
    return (
        (min(_ROWS_PER_BATCH, total - start), [v[start : start + _ROWS_PER_BATCH] for v in arrays.values()])
        for start in range(0, total, _ROWS_PER_BATCH)
    )


def _of_rows(first: Any, rest: Iterator[Any], keys: list[Any] | None, width: int) -> Iterator[Batch]:
    done = 0
    batch = [first, *islice(rest, _ROWS_PER_BATCH - 1)]
    while batch:
        for number, row in enumerate(batch):
            if len(row) != width or isinstance(row, Mapping) != (keys is not None):
                raise BulkLoadError(f"row {done + number} does not have the {width} columns of the first row")
        if keys is None:
            columns = [list(column) for column in zip(*batch, strict=True)]
        else:
            try:
                columns = [[row[key] for row in batch] for key in keys]
            except KeyError as error:
                raise BulkLoadError(f"a row after row {done} lacks the column {error.args[0]!r}") from None
        yield len(batch), columns
        done += len(batch)
        batch = list(islice(rest, _ROWS_PER_BATCH))


def _with_defaults(names: list[str], batches: Iterator[Batch], table: Table) -> tuple[list[str], Iterator[Batch]]:
    """Add the columns that are not given and have a default on the client."""
    makers: list[tuple[str, Callable[[], Any]]] = []
    for column in table.columns:
        default: Any = column.default
        if column.key in names or default is None or default.is_sequence:
            continue
        if default.is_scalar:
            makers.append((column.key, partial(getattr, default, "arg")))
        elif default.is_callable:
            makers.append((column.key, partial(default.arg, None)))
        else:
            raise BulkLoadError(f"{table.name}.{column.name} has an SQL expression as default; give its values")
    if not makers:
        return names, batches
    filled = (
        (count, [*columns, *([make() for _ in range(count)] for _, make in makers)]) for count, columns in batches
    )
    return [*names, *(name for name, _ in makers)], filled


@contextmanager
def _reporter(progress: Progress) -> Iterator[Callable[[int], object]]:
    if not progress:
        yield lambda loaded: None
    elif callable(progress):
        yield progress
    else:
        try:
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar
        except ImportError as error:
            raise ExtensionMissing("progress=True needs rich: pip install 'sqla-vector[progress]'") from error
        columns = (TextColumn("{task.completed:,.0f} rows"), BarColumn(), TimeElapsedColumn())
        with Bar(*columns) as bar:
            task = bar.add_task("load", total=None)
            yield lambda loaded: bar.update(task, completed=loaded)


Decoder = Callable[[list[Any]], NDArray[Any]]


def _for_reading(stmt: Select[Any], batch_size: int, dialect: Dialect) -> tuple[Select[Any], list[Decoder]]:
    """Return the statement with its vectors as the driver gives them, and a decoder for each column."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InvalidOption(f"batch_size must be a whole number from 1, got {batch_size!r}")
    if not isinstance(stmt, Select):
        raise InvalidStatement(f"bulk.read() takes a select() of columns, got {type(stmt).__name__}")
    if any(isinstance(description["expr"], type) for description in stmt.column_descriptions):
        raise InvalidStatement("bulk.read() takes columns, not entities: select(Article.id, Article.embedding)")
    support = support_of(dialect)
    raw = support.raw_kinds(dialect, [column.type for column in stmt.selected_columns])
    columns: list[Any] = []
    decoders: list[Decoder] = []
    for column in stmt.selected_columns:
        if not isinstance(column.type, VectorType):
            columns.append(column)
            decoders.append(_as_texts if isinstance(column.type, String) else _as_array)
            continue
        if column.type.dim is None:
            raise InvalidOption(f"bulk.read() needs the dimension of {column.type.column_name}")
        encoded = EncodedVector(column.type, is_raw=column.type.kind in raw)
        columns.append(type_coerce(column, encoded).label(column.key))
        decoders.append(support.matrix_decoder(column.type.codec))
    return stmt.with_only_columns(*columns, maintain_column_froms=True), decoders


class _Collector:
    """Makes batches of the rows that come in smaller portions.

    Fetching and decoding a few hundred rows at a time stays within the processor's cache, which is half again
    as fast as doing it with a whole batch.
    """

    def __init__(self, keys: list[str], decoders: list[Decoder], batch_size: int) -> None:
        self._keys = keys
        self._decoders = decoders
        self._batch_size = batch_size
        self._parts: list[list[NDArray[Any]]] = []
        self._matrices: dict[int, NDArray[Any]] = {}
        self._count = 0

    def add(self, rows: Sequence[Any]) -> Iterator[dict[str, NDArray[Any]]]:
        """Take some rows, and yield a batch if they complete one."""
        start = 0
        while start < len(rows):
            taken = rows[start : start + self._batch_size - self._count]
            columns = zip(*taken, strict=True)
            self._parts.append(
                [self._placed(n, d(list(c))) for n, (d, c) in enumerate(zip(self._decoders, columns, strict=True))]
            )
            self._count += len(taken)
            start += len(taken)
            if self._count == self._batch_size:
                yield from self.rest()

    def _placed(self, number: int, part: NDArray[Any]) -> NDArray[Any]:
        """Copy a part of a matrix to its place in the batch's matrix, so that nothing is joined in the end."""
        if part.ndim != 2 or self._batch_size > _MAX_PLACED:
            return part
        if self._count == 0:
            self._matrices[number] = np.empty((self._batch_size, part.shape[1]), part.dtype)
        matrix = self._matrices[number]
        matrix[self._count : self._count + len(part)] = part
        return matrix

    def rest(self) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield what is left, if anything."""
        if self._parts:
            columns = zip(*self._parts, strict=True)
            yield {key: _joined(parts, self._count) for key, parts in zip(self._keys, columns, strict=True)}
        self._parts, self._matrices, self._count = [], {}, 0


def _joined(parts: Sequence[NDArray[Any]], count: int) -> NDArray[Any]:
    if len(parts[0]) > count or all(part is parts[0] for part in parts):
        # All are the batch's one matrix; a short last batch does not keep the rest of it alive.
        return parts[0] if len(parts[0]) == count else parts[0][:count].copy()
    if len(parts) == 1:
        return parts[0]
    if any(part.dtype == object for part in parts):
        parts = [part.astype(object) for part in parts]
    return np.concatenate(parts)


def _as_texts(values: list[Any]) -> NDArray[Any]:
    # Read in binary, the text of a type that the driver does not know (citext) comes as bytes.
    return _as_array([value.decode() if type(value) is bytes else value for value in values])


def _as_array(values: list[Any]) -> NDArray[Any]:
    if all(type(value) in (int, float, bool) for value in values) and len({type(value) for value in values}) == 1:
        array = np.asarray(values)
        if array.dtype != object:
            return array
    result = np.empty(len(values), dtype=object)
    result[:] = values
    return result
