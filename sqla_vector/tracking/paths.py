"""Paths from a table to what its texts are made of, as joins of columns, without the models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, ForeignKeyConstraint, Table
from sqlalchemy.orm import ColumnProperty, Mapper, RelationshipProperty
from sqlalchemy.sql import operators, visitors
from sqlalchemy.sql.elements import BinaryExpression, BooleanClauseList, ColumnElement

from sqla_vector.embedding.declaration import Dependency
from sqla_vector.embedding.fingerprint import Fingerprint
from sqla_vector.exc import InvalidDeclaration
from sqla_vector.tracking.related import Made
from sqla_vector.types import VectorType

__all__ = ["Link", "TextPath", "text_paths"]

Pair = tuple[Column[Any], Column[Any]]


@dataclass(frozen=True)
class Link:
    """A step from one table to another."""

    left: Table
    right: Table
    pairs: tuple[Pair, ...]
    """Which column of the left table equals which of the right one."""
    watched: frozenset[Column[Any]]
    """All columns of both tables that decide which rows belong together, and in which order."""

    def reversed(self) -> Link:
        """Return the step back."""
        return Link(self.right, self.left, tuple((b, a) for a, b in self.pairs), self.watched)

    @property
    def is_enforced(self) -> bool:
        """Whether no row of the left table can refer to one of the right table before that is there."""
        wanted = {(a.name, b.name) for a, b in self.pairs}
        return any(
            constraint.referred_table is self.right
            and not constraint.deferrable
            and {(element.parent.name, element.column.name) for element in constraint.elements} <= wanted
            for constraint in self.left.constraints
            if isinstance(constraint, ForeignKeyConstraint)
        )


@dataclass(frozen=True)
class TextPath:
    """How an entity's table leads to columns of which its text is made."""

    links: tuple[Link, ...]
    """Empty if the columns are in the entity's table."""
    sources: tuple[Column[Any], ...]
    """The column, or all of a related row that is a source as such."""


def text_paths(made: Made, table: Table) -> Iterator[TextPath]:
    """Yield the paths from a table to all that something is made of.

    Raises:
        InvalidDeclaration: a relationship's condition is more than columns that equal each other.
    """
    for dependency in made.dependencies:
        yield _Walk(made, dependency, table).path()


class _Walk:
    """One dependency, followed from table to table."""

    def __init__(self, made: Made, dependency: Dependency, table: Table) -> None:
        self._where = f"{made}: {'.'.join((*dependency.path, dependency.key))}"
        self._mapper: Mapper[Any] = made.mapper
        self._dependency = dependency
        self._table = table
        self._links: list[Link] = []

    def path(self) -> TextPath:
        for name in self._dependency.path:
            self._follow(self._mapper._props[name])
        prop = self._mapper._props[self._dependency.key]
        if isinstance(prop, RelationshipProperty):
            self._follow(prop)
            contents = [c for c in self._table.c if not isinstance(c.type, (VectorType, Fingerprint))]
            return TextPath(tuple(self._links), tuple(contents))
        assert isinstance(prop, ColumnProperty)
        columns = [column for column in prop.columns if isinstance(column, Column)]
        here = [column for column in columns if column.table is self._table]
        source = (here or columns)[0]
        self._go_to(source)
        return TextPath(tuple(self._links), (source,))

    def _follow(self, prop: Any) -> None:
        assert isinstance(prop, RelationshipProperty)
        conditions = [(prop.primaryjoin, prop.secondaryjoin is not None)]
        if prop.secondaryjoin is not None:
            conditions.append((prop.secondaryjoin, False))
        for condition, to_secondary in conditions:
            pairs = list(self._pairs(prop, condition, to_secondary))
            if not pairs:
                raise self._refused(f"its condition {condition} is not made of columns that equal each other")
            self._go_to(pairs[0][0])
            right = pairs[0][1].table
            if not isinstance(right, Table) or any(a.table is not self._table for a, _ in pairs):
                raise self._refused("it joins columns of several tables")
            used = {column for column in visitors.iterate(condition) if isinstance(column, Column)}
            known = {self._plain(column) for column in used}
            watched = {c for c in known if c.table in (self._table, right)}
            self._links.append(Link(self._table, right, tuple(pairs), frozenset(watched)))
            self._table = right
        order = {self._plain(c) for by in prop.order_by or () for c in visitors.iterate(by) if isinstance(c, Column)}
        last = self._links[-1]
        more = {column for column in order if column.table is self._table}
        self._links[-1] = Link(last.left, last.right, last.pairs, last.watched | more)
        self._mapper = prop.mapper

    def _pairs(self, prop: Any, condition: Any, to_secondary: bool) -> Iterator[Pair]:
        """Yield the equal columns of a condition, nearer one first."""
        for term in _terms(condition):
            if not isinstance(term, BinaryExpression) or term.operator is not operators.eq:
                continue
            sides = (self._plain(term.left), self._plain(term.right))
            if not all(isinstance(side, Column) and isinstance(side.table, Table) for side in sides):
                continue
            for near, far in (sides, sides[::-1]):
                if prop.secondary is not None:
                    # Of each pair one is the secondary table's.
                    if (far if to_secondary else near).table is prop.secondary:
                        yield near, far
                        break
                elif any(near is local and far is remote for local, remote in prop.local_remote_pairs):
                    yield near, far
                    break

    def _go_to(self, column: Column[Any]) -> None:
        """Step to the table of the same row that has a column: with inheritance a row has several."""
        if column.table is self._table:
            return
        steps: dict[Any, list[Link]] = {self._table: []}
        reachable = [self._table]
        for table in reachable:
            for link in _inheritance(self._mapper):
                if link.left is table and link.right not in steps:
                    steps[link.right] = [*steps[table], link]
                    reachable.append(link.right)
        if column.table not in steps:
            raise self._refused(f"nothing leads from the table {self._table.name} to {column}")
        self._links.extend(steps[column.table])
        self._table = column.table

    def _plain(self, element: Any) -> Any:
        """Return a column as its table has it."""
        element = element._deannotate()
        if isinstance(element, Column) and isinstance(element.table, Table):
            return element.table.c.get(element.key, element)
        return element

    def _refused(self, why: str) -> InvalidDeclaration:
        return InvalidDeclaration(
            f"{self._where} cannot be watched by triggers: {why}; leave the class out of outbox_triggers()"
        )


def _terms(condition: ColumnElement[Any]) -> Iterator[Any]:
    if isinstance(condition, BooleanClauseList) and condition.operator is operators.and_:
        for clause in condition.clauses:
            yield from _terms(clause)
    else:
        yield condition


def _inheritance(mapper: Mapper[Any]) -> Iterator[Link]:
    """Yield the steps between the tables of a class, both ways."""
    for one in mapper.iterate_to_root():
        if one.inherit_condition is None or one.inherits is None:
            continue
        pairs = [
            (term.left, term.right)
            for term in _terms(one.inherit_condition)
            if isinstance(term, BinaryExpression) and isinstance(term.left, Column) and isinstance(term.right, Column)
        ]
        own = [(a, b) if a.table is one.local_table else (b, a) for a, b in pairs]
        if own and isinstance(one.local_table, Table) and isinstance(own[0][1].table, Table):
            watched = frozenset(column for pair in own for column in pair)
            link = Link(one.local_table, own[0][1].table, tuple(own), watched)
            yield link
            yield link.reversed()
