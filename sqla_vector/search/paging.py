"""Pages by key, and results as streams: what is far down in a result without counting up to it.

``offset(10_000)`` finds and throws away 10,000 rows.  A page by key begins after the last row of the page before, by
its distance and its primary key, and is right even if rows were added or deleted in between.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import Float, Select, and_, literal, or_, tuple_
from sqlalchemy.inspection import inspect
from sqlalchemy.sql.elements import BindParameter, ColumnElement
from sqlalchemy.sql.visitors import iterate

from sqla_vector.coercion import SparseArray
from sqla_vector.exc import InvalidOption, InvalidStatement
from sqla_vector.expression import Distance
from sqla_vector.ranked import ranked_rows_of
from sqla_vector.schema import check_whole_number
from sqla_vector.search.cursors import check_place, decode, digest, encode
from sqla_vector.search.hits import Hit, HitReader
from sqla_vector.search.parts import TextPart, VectorPart
from sqla_vector.search.stages import (
    distance_column_of,
    distance_of,
    is_reranked,
    text_score_column_of,
    text_score_of,
)
from sqla_vector.search.statement import criterion_of, text_match_of

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

__all__ = ["astream", "cursor_of", "page_after", "stream"]

_DOUBLE = Float(53)


def page_after(stmt: Select[Any], cursor: str | tuple[Any, ...]) -> Select[Any]:
    """Return a search for the rows that follow a place in its result: the next ``k``.

    Args:
        stmt: made by :func:`nearest`, :func:`match_text` or :func:`hybrid`.  Those of a hybrid search come out of its
            candidates.
        cursor: what :func:`cursor_of` returned for the last row of the page before, or a tuple of that row's distance
            (of a text or hybrid search, its score) and primary key.

    Raises:
        InvalidOption: it is no cursor, one of another search, or its key cannot be one of the table.
        InvalidStatement: the statement is no search whose rows have a place by key, or it has OFFSET.
    """
    place = _Place(stmt, "page_after")
    if isinstance(cursor, str):
        number, keys = decode(cursor, place.search)
    elif isinstance(cursor, tuple) and cursor:
        number, *keys = cursor
    else:
        raise InvalidOption(f"a cursor is what cursor_of() returns, or a tuple of a distance and a key, got {cursor!r}")
    number, keys = check_place(number, keys, place.keys)
    bound = literal(number, _DOUBLE)
    beyond = place.number < bound if place.descending else place.number > bound
    if len(keys) == 1:
        next_key: ColumnElement[bool] = place.keys[0] > literal(keys[0], place.keys[0].type)
    else:
        values = (literal(key, column.type) for key, column in zip(keys, place.keys, strict=True))
        next_key = tuple_(*place.keys) > tuple_(*values)
    return stmt.where(or_(beyond, and_(place.number == bound, next_key)))


def cursor_of(stmt: Select[Any], row: Any) -> str:
    """Return the place of a row in the result of a search, for :func:`page_after`.

    Args:
        stmt: the search.
        row: one of its rows, or a :class:`Hit`.

    Raises:
        InvalidStatement: the statement is no search whose rows have a place by key, or its rows have no primary key.
    """
    place = _Place(stmt, "cursor_of")
    row = row.row if isinstance(row, Hit) else row
    return encode(place.search, place.number_in(row), place.keys_in(row))


def stream(session: Session, stmt: Select[Any], *, size: int = 500, vectors: bool = False) -> Iterator[Hit[Any]]:
    """Yield the rows of a search as hits, fetched as they are needed, in memory that does not grow with ``k``.

    The transaction stays open meanwhile.  Eager loading by a join of a collection is not possible, ``selectinload`` is.

    Args:
        session: runs the statement.
        stmt: as for :func:`search`.
        size: how many rows to fetch at once.
        vectors: load the vectors too.

    Raises:
        InvalidOption: ``size`` is no number from 1 to 100,000.
        InvalidStatement: the statement is no search.
    """
    return _hits(session, *_streamed(stmt, size, vectors))


def _hits(session: Session, reader: HitReader, stmt: Select[Any]) -> Iterator[Hit[Any]]:
    result = session.execute(stmt)
    try:
        for rows in result.partitions():
            yield from map(reader.hit, rows)
    finally:
        result.close()


def astream(
    session: AsyncSession, stmt: Select[Any], *, size: int = 500, vectors: bool = False
) -> AsyncIterator[Hit[Any]]:
    """Return the same as :func:`stream` for ``async for``, on an AsyncSession."""
    return _ahits(session, *_streamed(stmt, size, vectors))


async def _ahits(session: AsyncSession, reader: HitReader, stmt: Select[Any]) -> AsyncIterator[Hit[Any]]:
    result = await session.stream(stmt)
    try:
        async for rows in result.partitions():
            # In a greenlet: the source text may be that of a related row, which is loaded then.
            for hit in await session.run_sync(lambda _, rows=rows: [reader.hit(row) for row in rows]):  # type: ignore[misc]
                yield hit
    finally:
        await result.close()


def _streamed(stmt: Select[Any], size: int, vectors: bool) -> tuple[HitReader, Select[Any]]:
    check_whole_number(size, "size", 1, 100_000)
    reader = HitReader(stmt, vectors=vectors)
    return reader, reader.stmt.execution_options(yield_per=size)


class _Place:
    """What the rows of a search are sorted by."""

    def __init__(self, stmt: Select[Any], name: str) -> None:
        self._stmt = stmt
        self.number: ColumnElement[Any]
        rows = ranked_rows_of(stmt) if isinstance(stmt, Select) else None
        parts = getattr(rows.composer, "parts", ()) if rows is not None else ()
        if (rows is not None and not parts) or (isinstance(stmt, Select) and is_reranked(stmt)):
            raise InvalidStatement(f"{name}() needs a search whose rows have a place by key; here take offset()")
        if rows is not None:
            order = rows.composer.order[0].removeprefix("-")
            self.name, self.number, self.descending = order, rows.c[order], rows.composer.order[0].startswith("-")
            self._column: ColumnElement[Any] | None = self.number
            self.keys: Sequence[ColumnElement[Any]] = rows.keys
            limit = rows.searches[0]._limit_clause
            identity = [f"{getattr(rows.composer, 'fusion', '')!r} {limit}".encode()]
            for part in parts:
                if isinstance(part, VectorPart):
                    identity += _of_vector(criterion_of(part.stmt).distance)
                elif isinstance(part, TextPart):
                    found = text_match_of(part.stmt)
                    identity += _of_text(str(found.index.name), found.query)
                identity.append(repr(part.weight).encode())
        elif (text := text_score_of(stmt)) is not None:
            self.name, self.number, self.descending = "score", text, True
            self._column = text_score_column_of(stmt)
            self.keys, identity = text.keys, _of_text(str(text.index.name), text.query)
        else:
            distance = distance_of(stmt)
            if criterion_of(stmt).many:
                raise InvalidStatement(f"{name}() needs a search whose rows have a place by key; here take offset()")
            self.name, self.number, self.descending = "distance", distance, False
            self._column = distance_column_of(stmt)
            self.keys, identity = criterion_of(stmt).keys, _of_vector(distance)
        if stmt._offset_clause is not None:
            raise InvalidStatement(f"the statement has OFFSET already; {name}() takes its place")
        self.search = digest(identity)

    def number_in(self, row: Any) -> float:
        """Return the distance or score of a row of the result."""
        # By the column: the statement may have another one of the name.  By the name where the row is of an equal
        # statement, whose column is another object.
        mapping = row._mapping
        return float(mapping[self._column if self._column is not None and self._column in mapping else self.name])

    def keys_in(self, row: Any) -> list[Any]:
        """Return the primary key of a row of the result."""
        mapping = row._mapping
        if all(key in mapping for key in self.keys):
            return [mapping[key] for key in self.keys]
        for described, value in zip(self._stmt.column_descriptions, row, strict=False):
            entity = inspect(described.get("entity"), raiseerr=False)
            mapper = getattr(entity, "mapper", None)
            if mapper is None or inspect(value, raiseerr=False) is None:
                continue
            table = self.keys[0].table
            if getattr(entity, "selectable", None) == table or (entity is mapper and table in mapper.tables):
                names = [mapper.get_property_by_column(next(iter(key.base_columns))).key for key in self.keys]
                # Not read from the object: its row may be gone meanwhile.
                own = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
                known = dict(zip(own, inspect(value).identity or (), strict=False))
                return [known[name] if name in known else getattr(value, name) for name in names]
        raise InvalidStatement("a cursor needs the primary key of the row; select the entity, or its key columns")


def _of_vector(distance: Distance) -> list[bytes]:
    column, query = distance.operands
    # The values of an expression, such as the vector of a row with a key, are inside.
    values = [part.value for part in iterate(query) if isinstance(part, BindParameter)]
    return [f"{column} {distance.metric_name}".encode(), *map(_contents, values)]


def _contents(value: Any) -> bytes:
    if isinstance(value, SparseArray):
        return b"%d:" % value.dim + value.indices.tobytes() + value.values.tobytes()
    return value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()


def _of_text(index: str, query: ColumnElement[Any]) -> list[bytes]:
    value = query.value if isinstance(query, BindParameter) else None
    return [index.encode(), str(value or "").encode()]
