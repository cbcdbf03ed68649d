"""The rows of chunks: compared with what the texts give, and written, by key."""

from __future__ import annotations

import traceback
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray
from sqlalchemy import Connection, Table, delete, insert, inspect, select, update
from sqlalchemy.orm import InstanceState, Mapper, Session
from sqlalchemy.orm.base import instance_state

from sqla_vector.chunking.splitting import Chunk, Splitter, chunks_of
from sqla_vector.embedding import EmbeddedColumn, SourceText
from sqla_vector.embedding.declaration import Dependency, dependencies_of
from sqla_vector.exc import InvalidText
from sqla_vector.tracking.derived import Difference, expire_written
from sqla_vector.tracking.mirrors import note_written
from sqla_vector.tracking.related import Dependant, dependants_of, has_relations, keys_in, lock_related, own_names
from sqla_vector.tracking.targets import Key, Target, complete_mapper, targets_of
from sqla_vector.tracking.texts import RowState, read
from sqla_vector.types import support_of

__all__ = ["ChunkDifference", "Chunking", "StoredChunk", "changes"]

_PART: Final = 500
_PLACE: Final = ("position", "start", "end")


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk that has a row."""

    id: int
    position: int
    start: int
    end: int
    text: str


@dataclass
class Changes:
    """What has to be done to the rows of some chunks."""

    added: list[tuple[Key, int, Chunk]] = field(default_factory=list)
    """Chunks without a row: whose they are, and their position."""
    moved: list[tuple[StoredChunk, StoredChunk]] = field(default_factory=list)
    """Rows whose text stays, as they are and as they shall be."""
    removed: list[int] = field(default_factory=list)
    """Rows of chunks that are no more."""

    def __bool__(self) -> bool:
        return bool(self.added or self.moved or self.removed)


def changes(key: Key, stored: Sequence[StoredChunk], chunks: Sequence[Chunk]) -> Changes:
    """Return what makes stored chunks those of a text; a chunk is known by its text, and not by its position.

    Args:
        key: of the row that has the text.
        stored: its chunks, in the order of their positions.
        chunks: what the text gives now.
    """
    found = Changes()
    by_text: defaultdict[str, deque[StoredChunk]] = defaultdict(deque)
    for row in stored:
        by_text[row.text].append(row)
    for position, chunk in enumerate(chunks):
        if not by_text.get(chunk.text):
            found.added.append((key, position, chunk))
            continue
        row = by_text[chunk.text].popleft()
        wanted = StoredChunk(row.id, position, chunk.start, chunk.end, row.text)
        if row != wanted:
            found.moved.append((row, wanted))
    found.removed = [row.id for rows in by_text.values() for row in rows]
    return found


@dataclass
class ChunkDifference(Difference):
    """What separates the chunks of some rows from what they should be."""

    changes: Changes = field(default_factory=Changes)
    missing: set[Key] = field(default_factory=set)
    """Rows of which there are no chunks, and should be."""
    ids: list[int] = field(default_factory=list)
    """Those that were added have, once they are written."""


class Chunking:
    """What :func:`~sqla_vector.chunking.chunked` declares.

    Args:
        class_: the class that has the texts.
        made: the class of the chunks.
        source: what makes the text of a row.
        splitter: makes its chunks.
        key_names: the columns of a chunk that name its parent, in the order of the parent's key.
        collection: the relationship of ``class_`` to its chunks.
    """

    def __init__(
        self,
        class_: type[Any],
        made: Any,
        source: SourceText,
        splitter: Splitter,
        key_names: tuple[str, ...],
        collection: str,
    ) -> None:
        self.class_, self.made = class_, made
        self.source, self.splitter = source, splitter
        self.key_names, self.collection = key_names, collection

    def __str__(self) -> str:
        return f"{self.class_.__name__}.{self.collection}"

    def text_of(self, entity: object) -> str | None:
        """Return what may be known of an entity's text, None if it has none."""
        return self.source(entity)

    @cached_property
    def mapper(self) -> Mapper[Any]:
        """The class that has the texts, complete."""
        return complete_mapper(self.class_)

    @cached_property
    def target(self) -> Target:
        """The rows that have the texts, as entries name them."""
        table = self.mapper.local_table
        assert isinstance(table, Table)
        target = Target(self.mapper, table, ())
        _ = target.decoders
        return target

    @cached_property
    def rows(self) -> Target:
        """The chunks."""
        (target,) = targets_of(self.made)
        return target

    @cached_property
    def column(self) -> EmbeddedColumn:
        """Their vectors."""
        (column,) = self.rows.columns
        return column

    @cached_property
    def dependencies(self) -> tuple[Dependency, ...]:
        """What the texts are made of.

        Raises:
            InvalidDeclaration: an attribute is none that a text can be made of, or its text may not leave.
        """
        return dependencies_of(self.mapper, self.source, str(self), "chunked()")

    @cached_property
    def watched(self) -> frozenset[str]:
        """The attributes of a row itself whose change may change its text, or its name."""
        return own_names(self) | set(self.target.key_names)

    @cached_property
    def dependants(self) -> tuple[Dependant, ...]:
        """What has to be watched elsewhere."""
        return tuple(dependants_of(self.target, [self]))

    @cached_property
    def is_related(self) -> bool:
        """Whether the texts are made of related rows."""
        return has_relations(self)

    @cached_property
    def _table(self) -> Table:
        table: Table = self.made.__table__
        return table

    def compare(
        self, connection: Connection, keys: Sequence[Key], *, lock: bool = False, wait: bool = False
    ) -> ChunkDifference:
        """Find out which chunks are to be added, moved and removed, for rows that are there or are gone."""
        difference = ChunkDifference()
        for start in range(0, len(keys), _PART):
            self._compare(connection, keys[start : start + _PART], lock, wait, difference)
        return difference

    def _compare(
        self, connection: Connection, keys: Sequence[Key], lock: bool, wait: bool, difference: ChunkDifference
    ) -> None:
        states = read(connection, self.target, self, keys, lock=lock, wait=wait)
        if lock and not wait:
            late = set(read(connection, self.target, self, keys)) - set(states)
            if self.is_related:
                late |= set(keys) - lock_related(connection, self.target, self, keys)
            difference.late |= late
            keys = [key for key in keys if key not in late]
        stored = self.stored(connection, keys)
        for key in keys:
            chunks, error = self.chunks(states.get(key))
            if error is not None:
                difference.errors[key] = error
                continue
            found = changes(key, stored.get(key, []), chunks)
            if found:
                difference.changed.add(key)
                if key not in stored:
                    difference.missing.add(key)
                difference.changes.added += found.added
                difference.changes.moved += found.moved
                difference.changes.removed += found.removed
                texts = (self._embedded_text(chunk.text) for _, _, chunk in found.added)
                difference.texts |= dict.fromkeys(text for text in texts if text is not None)

    def chunks(self, state: RowState | None) -> tuple[list[Chunk], str | None]:
        """Return the chunks that a row should have, and why there are none that can be made."""
        if state is None or state.text is None:
            return [], None if state is None else state.error
        try:
            return chunks_of(state.text, self.splitter), None
        except InvalidText as fault:
            return [], str(fault)
        except Exception as fault:
            # A function of the user may fail in any way; what it says may quote the text.
            *_, last = traceback.extract_tb(fault.__traceback__)
            where = f"{type(fault).__name__} in {Path(last.filename).name}, line {last.lineno}"
            return [], f"the splitter failed: {where}"

    def stored(self, connection: Connection, keys: Sequence[Key]) -> dict[Key, list[StoredChunk]]:
        """Return the chunks that rows have, in the order of their positions."""
        found: dict[Key, list[StoredChunk]] = {}
        if not keys:
            return found
        c = self._table.c
        parents = [c[name] for name in self.key_names]
        stmt: Any = select(*parents, c.id, c.position, c.start_offset, c.end_offset, c.text)
        stmt = stmt.where(keys_in(connection, parents, keys)).order_by(*parents, c.position, c.id)
        for row in connection.execute(stmt):
            found.setdefault(tuple(row[: len(parents)]), []).append(StoredChunk(*row[len(parents) :]))
        return found

    def _embedded_text(self, text: str) -> str | None:
        return self.column.source.of_values([text])

    def write(
        self, connection: Connection, difference: Difference, vectors: Mapping[str, tuple[NDArray[Any], str | None]]
    ) -> list[Key]:
        """Write what was found out, and return the keys of the chunks that have a vector still to be made."""
        assert isinstance(difference, ChunkDifference)
        found, table = difference.changes, self._table
        members = support_of(connection.dialect).members
        self._note(connection, [(id_,) for id_ in found.removed])
        for start in range(0, len(found.removed), _PART):
            connection.execute(delete(table).where(members(table.c.id, found.removed[start : start + _PART])))
        self._move(connection, found.moved)
        return self._add(connection, difference, vectors)

    def _move(self, connection: Connection, moved: Sequence[tuple[StoredChunk, StoredChunk]]) -> None:
        """Write where chunks are: those that an edit shifts together in one statement."""
        c = self._table.c
        shifts: defaultdict[tuple[int, int, int], list[int]] = defaultdict(list)
        for before, after in moved:
            shift = (after.position - before.position, after.start - before.start, after.end - before.end)
            shifts[shift].append(after.id)
        members = support_of(connection.dialect).members
        for (position, start, end), ids in shifts.items():
            # By how much, since nobody else writes them: whoever does has changed the row that has the text.
            news: Any = {c.position: c.position + position, c.start_offset: c.start_offset + start}
            news[c.end_offset] = c.end_offset + end
            for first in range(0, len(ids), _PART):
                part = members(c.id, ids[first : first + _PART])
                connection.execute(update(self._table).where(part).values(news))
        if moved:
            note_written(connection, self.rows.mapper, _PLACE, [(after.id,) for _, after in moved])

    def _add(
        self,
        connection: Connection,
        difference: ChunkDifference,
        vectors: Mapping[str, tuple[NDArray[Any], str | None]],
    ) -> list[Key]:
        added = difference.changes.added
        if not added:
            return []
        texts = [self._embedded_text(chunk.text) for _, _, chunk in added]
        rows = list(self._values(added, texts, vectors))
        key = self._table.c.id
        ids = connection.scalars(insert(self._table).returning(key, sort_by_parameter_order=True), rows).all()
        self._note(connection, [(id_,) for id_ in ids])
        difference.ids += ids
        return [(id_,) for id_, text in zip(ids, texts, strict=True) if text is not None and text not in vectors]

    def _values(
        self,
        added: Sequence[tuple[Key, int, Chunk]],
        texts: Sequence[str | None],
        vectors: Mapping[str, tuple[NDArray[Any], str | None]],
    ) -> Iterator[dict[str, Any]]:
        for (key, position, chunk), text in zip(added, texts, strict=True):
            vector, mark = vectors.get(text or "", (None, None))
            yield {
                **dict(zip(self.key_names, key, strict=True)),
                "position": position,
                "start_offset": chunk.start,
                "end_offset": chunk.end,
                "text": chunk.text,
                "embedding": vector,
                "embedding_fingerprint": mark,
            }

    def _note(self, connection: Connection, keys: Sequence[Key]) -> None:
        """Have whatever has copies of chunks learn of those that come and go."""
        if keys:
            note_written(connection, self.rows.mapper, self.rows.mapper.column_attrs.keys(), keys)

    def expire(
        self, session: Session, difference: Difference, entities: Iterable[object], gone: Collection[Key]
    ) -> None:
        """Have a session's objects read again what was written."""
        assert isinstance(difference, ChunkDifference)
        for entity in entities:
            state: InstanceState[Any] = inspect(entity)
            if self.collection not in state.dict:
                continue
            if state.key is None:
                del state.dict[self.collection]  # a session expires what has a row, as it will have
            else:
                session.expire(entity, [self.collection])
        mapper, found = self.rows.mapper, difference.changes
        # What was added, too: SQLite gives the ids of rows again that went with a savepoint.
        for id_ in (*(row.id for _, row in found.moved), *found.removed, *difference.ids):
            chunk = session.identity_map.get(mapper.identity_key_from_primary_key((id_,)))
            if chunk is not None:
                expire_written(session, instance_state(chunk))
        if gone:
            for one in session.identity_map.all_states():
                if one.mapper is mapper and tuple(one.dict.get(name) for name in self.key_names) in gone:
                    expire_written(session, one)
