"""Rows of which something outside of the database has copies, and how it learns of their changes.

Each mirror has a channel of the outbox of its own.  Whatever writes a mirrored row notes it there, in the same
transaction: a session's flush, a worker that writes a vector, and triggers for the rest.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final
from weakref import WeakSet

from sqlalchemy import Column, Connection, Table, inspect
from sqlalchemy.orm import ColumnProperty, Mapper, registry

from sqla_vector.embedding.declaration import Dependency, follow, no_column
from sqla_vector.exc import InvalidDeclaration, InvalidOption
from sqla_vector.schema import check_identifier
from sqla_vector.tracking.outbox import check_outbox, put
from sqla_vector.tracking.related import Dependant, dependants_of, own_names
from sqla_vector.tracking.targets import Key, Models, Target, complete_mapper

__all__ = ["Mirror", "declare_mirror", "is_among", "mirrors", "note_written"]

_DECLARED: Final = "sqla_vector_mirrors"


@dataclass(frozen=True, eq=False)
class Mirror:
    """What copies are made of.

    Args:
        channel: of the outbox, by which its entries are known.
        outbox: the table made by :func:`~sqla_vector.tracking.outbox_table`.
        class_: the mapped class; it may still be incomplete.
        paths: the attributes that a copy is made of, also of related rows and of vectors: ``author.name``.
    """

    channel: str
    outbox: Table
    class_: type[Any]
    paths: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.channel} of {self.class_.__name__}"

    @cached_property
    def mapper(self) -> Mapper[Any]:
        """The class, complete."""
        return complete_mapper(self.class_)

    @cached_property
    def target(self) -> Target:
        """The rows, as the outbox names them.

        Raises:
            InvalidDeclaration: their keys cannot be written into an outbox.
        """
        table = self.mapper.local_table
        if not isinstance(table, Table):
            raise InvalidDeclaration(f"{self}: the class is not mapped to a table, so that no changes are noticed")
        target = Target(self.mapper, table, (), self.channel, self.outbox)
        _ = target.decoders
        return target

    @cached_property
    def dependencies(self) -> tuple[Dependency, ...]:
        """What copies are made of.

        Raises:
            InvalidDeclaration: a path leads to no column.
        """
        found = []
        for path in self.paths:
            where = f"{self}: {path!r}"
            dependency, _ = follow(self.mapper, path, where)
            prop = dependency.mapper._props.get(dependency.key)
            if not isinstance(prop, ColumnProperty) or not isinstance(prop.columns[0], Column):
                raise no_column(dependency.mapper, dependency.key, where)
            found.append(dependency)
        return tuple(found)

    @cached_property
    def watched(self) -> frozenset[str]:
        """The attributes of a row itself whose change changes its copy, or its name."""
        return own_names(self) | set(self.target.key_names)

    @cached_property
    def dependants(self) -> tuple[Dependant, ...]:
        """What has to be watched elsewhere."""
        return tuple(dependants_of(self.target, [self]))


_MIRRORED: WeakSet[Mapper[Any]] = WeakSet()
_lock = threading.Lock()


def declare_mirror(mirror: Mirror) -> Mirror:
    """Have changes of a mirror's rows noted from now on.

    Raises:
        InvalidOption: it is of no mapped class, or its channel has another mirror in the same outbox.
        InvalidIdentifier: the channel cannot be one.
    """
    check_identifier(mirror.channel, "channel")
    check_outbox(mirror.outbox)
    mapper = inspect(mirror.class_, raiseerr=False)
    if not isinstance(mapper, Mapper):
        raise InvalidOption(f"a mapped class is needed, got {mirror.class_!r}")
    with _lock:
        for other in mirrors():
            if other.channel == mirror.channel and other.outbox is mirror.outbox:
                raise InvalidOption(f"{mirror.channel} is declared already, of {other.class_.__name__}")
        kept = mapper.class_manager.info
        kept[_DECLARED] = (*kept.get(_DECLARED, ()), mirror)
        _MIRRORED.add(mapper)
    return mirror


def mirrors() -> tuple[Mirror, ...]:
    """Return all mirrors of classes that are alive."""
    if not _MIRRORED:
        return ()
    found = (mirror for mapper in list(_MIRRORED) for mirror in mapper.class_manager.info.get(_DECLARED, ()))
    return tuple(sorted(found, key=lambda mirror: mirror.channel))


def is_among(mapper: Mapper[Any], models: Models | None) -> bool:
    """Tell whether a class is one of some models; None are all."""
    if models is None:
        return True
    if isinstance(models, registry):
        return mapper.registry is models
    if isinstance(models, type):
        return issubclass(mapper.class_, models) or (
            inspect(models, raiseerr=False) is not None and issubclass(models, mapper.class_)
        )
    return any(is_among(mapper, model) for model in models)


def note_written(connection: Connection, mapper: Mapper[Any], names: Iterable[str], keys: Sequence[Key]) -> None:
    """Note rows of which attributes were written without a session.

    Args:
        connection: the transaction's.
        mapper: their class.
        names: the attributes.
        keys: of the rows.
    """
    written = set(names)
    for mirror, found in _concerned(connection, mapper, written, keys):
        rows = [(mirror.target.entity, mirror.target.encode(key)) for key in sorted(found, key=repr)]
        put(connection, mirror.outbox, rows, mirror.channel)


def _concerned(
    connection: Connection, mapper: Mapper[Any], names: set[str], keys: Sequence[Key]
) -> Iterator[tuple[Mirror, set[Key]]]:
    for mirror in mirrors():
        found: set[Key] = set()
        if inspect(mirror.class_).registry is not mapper.registry:
            continue  # another program's, so to speak, whatever may be wrong with it
        if _is_kin(mapper, mirror.mapper) and mirror.watched & names:
            found |= set(map(tuple, keys))
        for dependant in mirror.dependants:
            if _is_kin(mapper, dependant.mapper) and dependant.names & names:
                found |= dependant.keys_of(connection, keys)
        if found:
            yield mirror, found


def _is_kin(one: Mapper[Any], other: Mapper[Any]) -> bool:
    return one.isa(other) or other.isa(one)
