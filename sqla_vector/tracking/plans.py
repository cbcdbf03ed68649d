"""What a flush has to look at in the objects of each class, worked out once."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy.orm import Mapper

from sqla_vector.embedding import EmbeddedColumn
from sqla_vector.embedding.declaration import embedded_mappers
from sqla_vector.tracking.related import Dependant, dependants_of, has_relations, own_names
from sqla_vector.tracking.targets import Models, Target, targets_of

__all__ = ["ColumnPlan", "Plan", "Plans"]


@dataclass(frozen=True, eq=False)
class ColumnPlan:
    """What there is to know of one embedded column when objects are flushed."""

    target: Target
    column: EmbeddedColumn

    @property
    def key(self) -> str:
        """The vector's attribute."""
        return self.column.key

    @property
    def fingerprint_key(self) -> str:
        """The fingerprint's attribute."""
        return self.column.fingerprint_key

    @cached_property
    def at_flush(self) -> bool:
        """Whether vectors are made as the session flushes."""
        return self.column.spec.when == "flush"

    @cached_property
    def is_related(self) -> bool:
        """Whether texts are made of related rows."""
        return has_relations(self.column)

    @cached_property
    def watched(self) -> frozenset[str]:
        """The attributes whose change may change the text, or the name of the row."""
        return own_names(self.column) | set(self.target.key_names)

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """The attributes that the text is made of, where it is made of the row alone."""
        return tuple(self.column.spec.source.paths)

    @cached_property
    def generated(self) -> frozenset[str]:
        """Those of them whose value the database or SQLAlchemy makes if the program gives none."""
        columns = self.target.mapper.columns
        return frozenset(
            name
            for name in self.sources
            if name in columns and (columns[name].default is not None or columns[name].server_default is not None)
        )


@dataclass(frozen=True)
class Plan:
    """What a flush has to look at in the objects of one class."""

    columns: tuple[ColumnPlan, ...] = ()
    """Their own embedded columns."""
    dependants: tuple[Dependant, ...] = ()
    """Whose texts are made of them."""

    @cached_property
    def at_flush(self) -> tuple[ColumnPlan, ...]:
        """The columns that are embedded as the session flushes."""
        return tuple(column for column in self.columns if column.at_flush)

    @cached_property
    def deferred(self) -> tuple[ColumnPlan, ...]:
        """The columns of which an entry is written."""
        return tuple(column for column in self.columns if not column.at_flush or column.is_related)

    @cached_property
    def links(self) -> tuple[Dependant, ...]:
        """The dependants that the objects may leave for others."""
        return tuple(dependant for dependant in self.dependants if dependant.links)


_NOTHING = Plan()


@dataclass
class Plans:
    """The plans of a program's models.

    Args:
        models: which; all that are mapped if None.
    """

    models: Models | None = None
    _known: frozenset[Mapper[Any]] = frozenset()
    _targets: tuple[Target, ...] = ()
    _plans: WeakKeyDictionary[Mapper[Any], Plan] = field(default_factory=WeakKeyDictionary)

    @property
    def targets(self) -> tuple[Target, ...]:
        """All targets."""
        self._refresh()
        return self._targets

    def of(self, mapper: Mapper[Any]) -> Plan | None:
        """Return the plan of a class, None if there is nothing to look at."""
        found = self._plans.get(mapper)
        if found is None:
            found = self._plans[mapper] = self._make(mapper)
        return None if found is _NOTHING else found

    def begin(self) -> None:
        """Learn of classes that were mapped since."""
        self._refresh()

    def _refresh(self) -> None:
        known = embedded_mappers()
        if known != self._known:
            self._targets = targets_of(self.models)
            self._known = embedded_mappers()
            self._plans.clear()

    def _make(self, mapper: Mapper[Any]) -> Plan:
        columns = tuple(
            ColumnPlan(target, column)
            for target in self._targets
            if mapper.isa(target.mapper)
            for column in target.columns
        )
        dependants = tuple(
            dependant for target in self._targets for dependant in dependants_of(target) if mapper.isa(dependant.mapper)
        )
        return Plan(columns, dependants) if columns or dependants else _NOTHING
