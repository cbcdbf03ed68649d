"""What rows have, and what they should have: their texts, fingerprints and vectors, read and written by key."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol

from numpy.typing import NDArray
from sqlalchemy import Column, Connection, bindparam, false, null, select, tuple_, update
from sqlalchemy.exc import DBAPIError, PendingRollbackError, ResourceClosedError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, defer, selectinload, undefer

from sqla_vector.embedding import EmbeddedColumn, Model, SourceText, fingerprint
from sqla_vector.exc import InvalidText
from sqla_vector.tracking.mirrors import note_written
from sqla_vector.tracking.patience import is_of_values, why_of
from sqla_vector.tracking.related import Made, has_relations, keys_in
from sqla_vector.tracking.targets import Key, Target

__all__ = ["HasText", "RowState", "keys_after", "mark", "read", "read_after", "write"]


_OF_THE_DATABASE: Final = (DBAPIError, PendingRollbackError, ResourceClosedError, PoolTimeoutError)
"""What a source function raises if the database fails: of other rows it would raise the same."""

_NOTHING: Final[Mapping[Any, Any]] = MappingProxyType({})


class HasText(Made, Protocol):
    """What is made of the text of a row."""

    @property
    def source(self) -> SourceText:
        """What makes the text."""

    def text_of(self, entity: object) -> str | None:
        """Return what may be known of an entity's text, None if it has none."""


@dataclass(slots=True)
class RowState:
    """What a row has for one embedded column, or of anything else that is made of its text."""

    key: Key
    text: str | None
    """What may be known of its text, None if it has none."""
    error: str | None
    """Why it has no text that can be embedded."""
    stored: str | None
    """Its fingerprint."""
    has_vector: bool
    parts: tuple[Any, ...] | None = None
    """What the text was made of, where that is the row's own columns."""

    def wanted(self, model: Model) -> str | None:
        """Return the fingerprint that it should have."""
        return fingerprint(model, self.text)

    def is_current(self, model: Model) -> bool:
        """Tell whether its vector is the one of its text and a model."""
        return self.has(self.wanted(model))

    def has(self, wanted: str | None) -> bool:
        """Tell whether its vector is the one of the fingerprint that it should have."""
        return self.error is None and self.stored == wanted and self.has_vector == (wanted is not None)


def read(
    connection: Connection,
    target: Target,
    column: HasText,
    keys: Sequence[Key],
    *,
    lock: bool = False,
    wait: bool = False,
    before: Mapping[Key, RowState] = _NOTHING,
    is_careful: bool = False,
) -> dict[Key, RowState]:
    """Return the states of rows that exist.

    Args:
        connection: in a transaction.
        target: the class.
        column: one of its columns; of anything else only the text is read.
        keys: of the rows.
        lock: keep others from changing the rows until the transaction ends, and leave out those that somebody is
            just changing.
        wait: for those that somebody is changing, instead of leaving them out.
        before: how rows were found before; a text that is made of the same is not made again.
        is_careful: a row whose text cannot be read has that for an error; else it is raised, whichever row it was.
    """
    if not keys:
        return {}
    if is_careful:
        return {state.key: state for state in _read_carefully(connection, target, column, keys, lock, wait=wait)}
    criterion = keys_in(connection, target.key_attributes, keys)
    found = _read(connection, target, column, criterion, len(keys), lock, before, wait=wait)
    return {state.key: state for state in found}


def keys_after(target: Target, after: Key) -> Any:
    """Return the criterion that keys follow one."""
    attributes = target.key_attributes
    return attributes[0] > after[0] if len(after) == 1 else tuple_(*attributes) > tuple_(*after)


def read_after(
    connection: Connection, target: Target, column: HasText, after: Key | None, limit: int
) -> list[RowState]:
    """Return the states of the next rows in the order of their keys, from the first one on if ``after`` is None.

    A row whose text cannot be read has that for an error.
    """
    criterion = None if after is None else keys_after(target, after)
    try:
        with connection.begin_nested():
            return _read(connection, target, column, criterion, limit, False)
    except Exception as error:
        if not is_of_values(error):
            raise
    stmt = select(*target.key_attributes).order_by(*target.key_attributes).limit(limit)
    keys = [tuple(row) for row in connection.execute(stmt if criterion is None else stmt.where(criterion))]
    found = read(connection, target, column, keys, is_careful=True)
    # One that was deleted meanwhile has nothing: whoever gets fewer than asked for takes them for the last.
    return [found.get(key) or RowState(key, None, None, None, False) for key in keys]


def _read_carefully(
    connection: Connection, target: Target, column: HasText, keys: Sequence[Key], lock: bool, *, wait: bool
) -> list[RowState]:
    """Read rows, halving them until the one is found whose text cannot be read."""
    criterion = keys_in(connection, target.key_attributes, keys)
    try:
        with connection.begin_nested():
            return _read(connection, target, column, criterion, len(keys), lock, wait=wait)
    except Exception as error:
        if not is_of_values(error):
            raise
        why = why_of(error)
    if len(keys) == 1:
        return _read_without_text(connection, target, column, criterion, lock, f"the row cannot be read: {why}", wait)
    middle = len(keys) // 2
    first = _read_carefully(connection, target, column, keys[:middle], lock, wait=wait)
    return first + _read_carefully(connection, target, column, keys[middle:], lock, wait=wait)


def _read_without_text(
    connection: Connection, target: Target, column: HasText, criterion: Any, lock: bool, error: str, wait: bool
) -> list[RowState]:
    stmt: Any = select(*target.key_attributes, *_beside(target, column)).where(criterion)
    if lock:
        stmt = stmt.with_for_update(skip_locked=not wait, key_share=True, of=target.mapper.class_)
    return [RowState(tuple(row[:-2]), None, error, row[-2], bool(row[-1])) for row in connection.execute(stmt)]


def _beside(target: Target, column: HasText) -> tuple[Any, Any]:
    """Return the fingerprint of a row, and whether it has a vector."""
    if not isinstance(column, EmbeddedColumn):
        return null(), false()
    class_ = target.mapper.class_
    return getattr(class_, column.fingerprint_key), getattr(class_, column.key).is_not(None)


def _read(
    connection: Connection,
    target: Target,
    column: HasText,
    criterion: Any,
    limit: int,
    lock: bool,
    before: Mapping[Key, RowState] = _NOTHING,
    *,
    wait: bool = False,
) -> list[RowState]:
    class_ = target.mapper.class_
    keys = target.key_attributes
    source = column.source
    by_columns = source.function is None and not has_relations(column)
    texts = [getattr(class_, path) for path in source.paths] if by_columns else [class_]
    stmt: Any = select(*keys, *_beside(target, column), *texts).order_by(*keys).limit(limit)
    if criterion is not None:
        stmt = stmt.where(criterion)
    if lock:
        stmt = stmt.with_for_update(skip_locked=not wait, key_share=True, of=class_)
    if by_columns:
        count, found = len(keys), []
        for row in connection.execute(stmt).all():
            key, parts = row[:count], row[count + 2 :]
            known = before.get(key)
            if known is not None and known.parts == parts:
                text, error = known.text, known.error
            else:
                text, error = _made(source.of_values, parts)
            found.append(RowState(key, text, error, row[count], bool(row[count + 1]), parts))
        return found
    stmt = stmt.options(*_loading(target, column))
    # A session of its own sees the rows as they are, whatever the user's session holds of them.
    with Session(connection, join_transaction_mode="rollback_only", autoflush=False) as session:
        entities = session.execute(stmt).all()
        return [
            RowState(tuple(row[: len(keys)]), *_made(column.text_of, row[-1]), row[-3], bool(row[-2]))
            for row in entities
        ]


def _loading(target: Target, column: HasText) -> list[Any]:
    """Return the options that load what a text is made of in as many queries as there are relationships."""
    options: list[Any] = [defer(getattr(target.mapper.class_, other.key)) for other in target.columns]
    for dependency in column.dependencies:
        at, option = target.mapper, None
        relations = list(dependency.path)
        if dependency.key in dependency.mapper.relationships:
            relations.append(dependency.key)
        for name in relations:
            relation = getattr(at.class_, name)
            if not relation.impl.supports_population:
                break  # lazy="dynamic" and "write_only": a query of the function's own reads it
            option = selectinload(relation) if option is None else option.selectinload(relation)
            at = at.relationships[name].mapper
        else:
            known = dependency.mapper.column_attrs.get(dependency.key)
            if known is not None and known.deferred:
                attribute = getattr(dependency.mapper.class_, dependency.key)
                option = undefer(attribute) if option is None else option.undefer(attribute)
        if option is not None:
            options.append(option)
    return options


def _made(make: Callable[[Any], str | None], of: Any) -> tuple[str | None, str | None]:
    """Return the text of a row, and why there is none that can be embedded."""
    try:
        return make(of), None
    except _OF_THE_DATABASE:
        raise
    except InvalidText as fault:
        return None, str(fault)
    except Exception as fault:
        # A function of the user may fail in any way at a row, which must not keep the others from being embedded.
        return None, f"the source failed: {_where(fault)}"


def _where(fault: Exception) -> str:
    """Return an error's type and place; what it says may quote the row."""
    *_, last = traceback.extract_tb(fault.__traceback__)
    return f"{type(fault).__name__} in {Path(last.filename).name}, line {last.lineno}"


@dataclass(slots=True)
class Write:
    """A vector and its fingerprint for a row, both None for a row without text."""

    key: Key
    vector: NDArray[Any] | None
    fingerprint: str | None


def write(connection: Connection, target: Target, column: EmbeddedColumn, rows: Sequence[Write]) -> None:
    """Write vectors with their fingerprints, and nothing else: defaults of an UPDATE do not take part."""
    columns = (column.column, column.fingerprint_column)
    _write(connection, target, columns, [(row.key, (row.vector, row.fingerprint)) for row in rows])
    note_written(connection, target.mapper, (column.key, column.fingerprint_key), [row.key for row in rows])


def mark(
    connection: Connection, target: Target, column: EmbeddedColumn, rows: Sequence[tuple[Key, str | None]]
) -> None:
    """Write the fingerprints of vectors that are there."""
    _write(connection, target, (column.fingerprint_column,), [(key, (wanted,)) for key, wanted in rows])
    note_written(connection, target.mapper, (column.fingerprint_key,), [key for key, _ in rows])


def _write(
    connection: Connection,
    target: Target,
    columns: Sequence[Column[Any]],
    rows: Sequence[tuple[Key, tuple[Any, ...]]],
) -> None:
    if not rows:
        return
    lean = target.lean
    names = [f"new_{number}" for number in range(len(columns))] + [f"key_{n}" for n in range(len(target.key_columns))]
    news = {lean.c[c.name]: bindparam(name, type_=c.type) for name, c in zip(names, columns, strict=False)}
    stmt = update(lean).values(news)
    for name, key in zip(names[len(columns) :], target.key_columns, strict=True):
        stmt = stmt.where(lean.c[key.name] == bindparam(name, type_=key.type))
    connection.execute(stmt, [dict(zip(names, (*values, *key), strict=True)) for key, values in rows])
