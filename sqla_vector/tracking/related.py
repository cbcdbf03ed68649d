"""Texts made of related rows: what has to be watched there, and whose texts a change there changes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Protocol

from sqlalchemy import Column, Connection, Select, select, tuple_
from sqlalchemy.orm import InstanceState, Mapper, RelationshipProperty, aliased
from sqlalchemy.orm.base import PASSIVE_NO_INITIALIZE
from sqlalchemy.orm.interfaces import RelationshipDirection
from sqlalchemy.sql import visitors

from sqla_vector.embedding import EmbeddedColumn, Fingerprint
from sqla_vector.embedding.declaration import Dependency
from sqla_vector.tracking.targets import Key, Target
from sqla_vector.types import VectorType, support_of

__all__ = ["Dependant", "Made", "dependants_of", "has_relations", "is_made", "keys_in", "lock_related", "own_names"]


class Made(Protocol):
    """What is made of attributes of a row and of related ones: the text of an embedded column, or a copy."""

    @property
    def mapper(self) -> Mapper[Any]:
        """The row's class."""

    @property
    def dependencies(self) -> tuple[Dependency, ...]:
        """What it is made of."""


_OPPOSITE: Final = {
    RelationshipDirection.ONETOMANY: RelationshipDirection.MANYTOONE,
    RelationshipDirection.MANYTOONE: RelationshipDirection.ONETOMANY,
    RelationshipDirection.MANYTOMANY: RelationshipDirection.MANYTOMANY,
}


@dataclass(frozen=True)
class Dependant:
    """Rows whose text is made of rows of another class, or of the same one."""

    target: Target
    made: Made
    """What is made of them: an embedded column's text, or a copy."""
    relations: tuple[str, ...]
    """The relationships that lead from the dependant to the other class."""
    mapper: Mapper[Any]
    """The other class."""
    names: frozenset[str]
    """Its attributes whose change changes the text."""
    links: frozenset[str]
    """Those of them that also decide to which row it belongs: their change concerns two dependants."""
    parent: Mapper[Any]
    """The class that has the last of the relationships."""
    gains: tuple[str, ...]
    """Its collections that take rows of the other class without its knowledge."""

    def keys_of(self, connection: Connection, others: Sequence[Key]) -> set[Key]:
        """Return the keys of the dependants of rows of the other class, as the database has them now."""
        found: set[Key] = set()
        for start in range(0, len(others), 500):
            stmt, alias = self.path()
            names = [self.mapper.get_property_by_column(column).key for column in self.mapper.primary_key]
            columns = [getattr(alias, name) for name in names]
            part = keys_in(connection, columns, others[start : start + 500])
            found |= {tuple(row) for row in connection.execute(stmt.where(part))}
        return found

    @cached_property
    def _reference(self) -> tuple[tuple[str, Any], ...]:
        """The attributes by which a row of a collection refers to the row that has it, with the columns referred to."""
        prop = self.parent.relationships[self.relations[-1]]
        if prop.direction is not RelationshipDirection.ONETOMANY:
            return ()
        of = self.mapper.get_property_by_column
        return tuple((of(remote).key, local) for local, remote in prop.synchronize_pairs)

    def reference_before(self, state: InstanceState[Any]) -> Key | None:
        """Return what a row of a collection referred to before its statement, None if that is the same or unknown."""
        before = [state.get_history(name, PASSIVE_NO_INITIALIZE) for name, _ in self._reference]
        if not before or state.key is None:
            return None
        known = [(*history.deleted, *history.unchanged) for history in before]
        return (
            tuple(values[0] for values in known) if all(values and values[0] is not None for values in known) else None
        )

    def keys_referred_to(self, connection: Connection, references: Sequence[Key]) -> set[Key]:
        """Return the keys of the dependants of rows that have a collection, by what refers to these."""
        found: set[Key] = set()
        for start in range(0, len(references), 500):
            stmt, at = _joined(select(*self.target.key_attributes), self.target.mapper, self.relations[:-1])
            columns = [getattr(at, self.parent.get_property_by_column(local).key) for _, local in self._reference]
            part = keys_in(connection, columns, references[start : start + 500])
            found |= {tuple(row) for row in connection.execute(stmt.where(part))}
        return found

    def path(self) -> tuple[Select[Any], Any]:
        """Return the query of the dependants' keys joined to the other class, and the alias of that."""
        stmt: Any = select(*self.target.key_attributes)
        return _joined(stmt, self.target.mapper, self.relations)


def _joined(stmt: Any, mapper: Mapper[Any], relations: Sequence[str]) -> tuple[Any, Any]:
    at: Any = mapper.class_
    stmt = stmt.select_from(at)
    for name in relations:
        relation = getattr(at, name)
        at = aliased(relation.property.entity.class_)
        stmt = stmt.join(relation.of_type(at))
    return stmt, at


def keys_in(connection: Connection, columns: Sequence[Any], keys: Sequence[Key]) -> Any:
    """Return the criterion that columns are one of some keys."""
    if len(columns) == 1:
        return support_of(connection.dialect).members(columns[0], [key[0] for key in keys])
    return tuple_(*columns).in_(keys)


def _chains(made: Made) -> Iterator[tuple[tuple[str, ...], str | None]]:
    """Yield the relationships and the column's attribute of each dependency, None for a related row as such."""
    for dependency in made.dependencies:
        if isinstance(dependency.mapper._props.get(dependency.key), RelationshipProperty):
            yield (*dependency.path, dependency.key), None
        else:
            yield dependency.path, dependency.key


def has_relations(made: Made) -> bool:
    """Tell whether it is made of related rows."""
    return any(relations for relations, _ in _chains(made))


def own_names(made: Made) -> frozenset[str]:
    """Return the attributes of the row itself whose change may change what is made of it."""
    names: set[str] = set()
    for relations, name in _chains(made):
        names |= _step_names(made.mapper, relations[0]) if relations else {str(name)}
    return frozenset(_with_made(made, made.mapper, names))


def is_made(column: Any) -> bool:
    """Tell whether an UPDATE may change a column that it does not name."""
    return getattr(column, "onupdate", None) is not None or getattr(column, "server_onupdate", None) is not None


def _with_made(made: Made, mapper: Mapper[Any], names: set[str]) -> set[str]:
    """Return the names of attributes, of all columns if one of those named changes with any other."""
    columns = {prop.key: prop.columns[0] for prop in mapper.column_attrs}
    if not any(is_made(columns.get(name)) for name in names):
        return names
    # Whoever writes the vector of a text writes nothing else.
    ignored = (VectorType, Fingerprint) if isinstance(made, EmbeddedColumn) else ()
    return names | {key for key, c in columns.items() if not isinstance(c.type, ignored)}


def _step_names(mapper: Mapper[Any], relation: str) -> set[str]:
    """Return a relationship, those that are written in its place, and the attributes of their foreign key."""
    prop = mapper.relationships[relation]
    local = {mapper.get_property_by_column(c).key for c in prop.local_columns if c in mapper.columns.values()}
    keys = {mapper.get_property_by_column(c).key for c in mapper.primary_key}
    return {relation} | {one.key for one in _writing(prop, mapper, prop.direction)} | (local - keys)


def _writing(
    prop: RelationshipProperty[Any], mapper: Mapper[Any], direction: RelationshipDirection
) -> Iterator[RelationshipProperty[Any]]:
    """Yield the relationships of a class by which programs change what a relationship reads.

    That one may be for reading alone, or one of several over a foreign key or an association table.
    """
    columns = _written(prop)
    for one in dict.fromkeys(one for below in mapper.self_and_descendants for one in below.relationships):
        if one.direction is direction and not one.viewonly and columns & _written(one):
            yield one


def _written(prop: RelationshipProperty[Any]) -> set[Any]:
    """Return the columns by which a relationship links rows."""
    return {column for _, column in (*prop.synchronize_pairs, *(prop.secondary_synchronize_pairs or ()))}


def dependants_of(target: Target, all_made: Iterable[Made] | None = None) -> Iterator[Dependant]:
    """Yield what has to be watched elsewhere for a target's rows.

    Args:
        target: the rows.
        all_made: what is made of them; by default the texts of the target's columns.
    """
    for made in target.columns if all_made is None else all_made:
        for prefix in dict.fromkeys(
            relations[:depth] for relations, _ in _chains(made) for depth in range(1, len(relations) + 1)
        ):
            yield _dependant(target, made, prefix)


def _dependant(target: Target, made: Made, prefix: tuple[str, ...]) -> Dependant:
    owner, names = target.mapper, set[str]()
    for relation in prefix:
        parent, prop = owner, owner.relationships[relation]
        owner = prop.mapper
    for relations, name in _chains(made):
        if relations == prefix:
            names |= {name} if name is not None else {p.key for p in owner.column_attrs}
        elif relations[: len(prefix)] == prefix:
            names |= _step_names(owner, relations[len(prefix)])
    order = {c for by in prop.order_by or () for c in visitors.iterate(by)}
    names |= {p.key for p in owner.column_attrs if order & set(p.columns)}
    # The foreign key of a collection's rows, what a foreign key refers to, and what else is in the condition.
    joined = {*prop.remote_side, *owner.primary_key}
    if prop.secondaryjoin is not None:
        joined |= {c for c in visitors.iterate(prop.secondaryjoin) if isinstance(c, Column)}
    links = {p.key for p in owner.column_attrs if joined & set(p.columns)}
    # From the other side: whoever assigns there moves the row too.
    links |= {one.key for one in _writing(prop, owner, _OPPOSITE[prop.direction])}
    collections = _writing(prop, parent, RelationshipDirection.ONETOMANY)
    gains = tuple(one.key for one in collections if prop.direction is one.direction and not one._reverse_property)
    names = _with_made(made, owner, names | links)
    return Dependant(target, made, prefix, owner, frozenset(names), frozenset(links), parent, gains)


def lock_related(connection: Connection, target: Target, made: Made, keys: Sequence[Key]) -> set[Key]:
    """Keep the rows that texts are made of from being changed, and return the keys for which that succeeds.

    A transaction that changes an author looks for the author's articles, and does not see one that another
    transaction is just adding.  Whoever embeds that article waits here for neither: with the author's row locked by
    somebody else, the article is left for later.
    """
    free = set(keys)
    for dependant in dependants_of(target, [made]):
        stmt, alias = dependant.path()
        stmt = stmt.where(keys_in(connection, target.key_attributes, keys))
        names = [dependant.mapper.get_property_by_column(c).key for c in dependant.mapper.primary_key]
        pairs = stmt.add_columns(*(getattr(alias, name) for name in names))
        wanted = {tuple(row) for row in connection.execute(pairs)}
        locked = {
            tuple(row) for row in connection.execute(pairs.with_for_update(read=True, skip_locked=True, of=alias))
        }
        free -= {row[: len(target.key_columns)] for row in wanted - locked}
    return free
