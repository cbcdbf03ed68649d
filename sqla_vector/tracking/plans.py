"""What a flush has to look at in the objects of each class, worked out once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final
from weakref import ref

from sqlalchemy import BigInteger, Column, Integer, SmallInteger, String, Text, Unicode, UnicodeText
from sqlalchemy.orm import ColumnProperty, InstanceState, Mapper, configure_mappers
from sqlalchemy.sql import ClauseElement
from sqlalchemy.types import BIGINT, INTEGER, SMALLINT, TEXT, VARCHAR

from sqla_vector.embedding import EmbeddedColumn
from sqla_vector.embedding.declaration import embedded_mappers
from sqla_vector.tracking.derived import Derived, derived_of
from sqla_vector.tracking.mirrors import Mirror, is_among, mirrors
from sqla_vector.tracking.related import Dependant, dependants_of, has_relations, is_made, own_names
from sqla_vector.tracking.targets import Models, Target, has_row_of, targets_of

__all__ = ["ColumnPlan", "Plan", "Plans", "is_expression"]

_PLAIN: Final[dict[type[Any], type[Any]]] = {
    **dict.fromkeys((String, Text, Unicode, UnicodeText, VARCHAR, TEXT), str),
    **dict.fromkeys((Integer, BigInteger, SmallInteger, INTEGER, BIGINT, SMALLINT), int),
}
"""Types of columns whose values come back as they were given, if these are of the type beside."""


def is_expression(value: object) -> bool:
    """Tell whether the database makes a value of what an attribute was set to."""
    return isinstance(value, ClauseElement) or hasattr(value, "__clause_element__")


@dataclass(frozen=True, eq=False)
class ColumnPlan:
    """What there is to know of one embedded column when objects are flushed."""

    target: Target
    column: EmbeddedColumn

    @cached_property
    def key(self) -> str:
        """The vector's attribute."""
        return self.column.key

    @cached_property
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
    def _columns(self) -> dict[str, Column[Any]]:
        found = {}
        for name in self.sources:
            prop = self.target.mapper.attrs.get(name)
            if isinstance(prop, ColumnProperty) and isinstance(prop.columns[0], Column):
                found[name] = prop.columns[0]
        return found

    @cached_property
    def references(self) -> frozenset[str]:
        """Those of them that follow a relationship, during the flush."""
        return frozenset(name for name, column in self._columns.items() if column.foreign_keys)

    @cached_property
    def _types(self) -> dict[str, type[Any]] | None:
        """The type of each value that the database returns as it was given, None if some may come back changed."""
        types: dict[str, type[Any]] = {}
        for name, column in self._columns.items():
            plain = _PLAIN.get(type(column.type))
            if plain is None or column.foreign_keys or is_made(column):
                return None
            types[name] = plain
        return None if self.is_related else types

    @cached_property
    def _generated(self) -> frozenset[str]:
        """The attributes whose value the database or SQLAlchemy makes if the program gives none."""
        return frozenset(
            name
            for name, column in self._columns.items()
            if column.primary_key or column.default is not None or column.server_default is not None
        )

    @cached_property
    def _of_values(self) -> Callable[[Sequence[Any]], str | None] | None:
        source = self.column.spec.source
        return source.of_values if source.function is None and self._types is not None else None

    def parts_of(self, values: dict[str, Any]) -> list[Any]:
        """Return what a text is made of that is known."""
        return [values.get(name) for name in self.sources]

    def text_of(self, state: InstanceState[Any], parts: list[Any]) -> str | None:
        """Return the text of an object of which that is known."""
        return self.column.text_of(state.obj()) if self._of_values is None else self._of_values(parts)

    def knows(self, values: dict[str, Any], *, is_new: bool) -> bool:
        """Tell whether attributes have before the statement all that the text will be made of.

        Args:
            values: the attributes of an object.
            is_new: whether its row is to be inserted.
        """
        if self._types is None:
            return False
        for name, plain in self._types.items():
            value = values.get(name)
            if type(value) is plain:
                continue
            if value is not None or (name in self._generated if is_new else name not in values):
                return False
        return True


@dataclass(frozen=True)
class Plan:
    """What a flush has to look at in the objects of one class."""

    columns: tuple[ColumnPlan, ...] = ()
    """Their own embedded columns."""
    dependants: tuple[Dependant, ...] = ()
    """Whose texts are made of them."""
    gains: tuple[tuple[str, Dependant], ...] = ()
    """Collections without a way back, and whose texts are made of the rows that are put into them."""
    mirrors: tuple[Mirror, ...] = ()
    """What has copies of them."""
    derived: tuple[Derived, ...] = ()
    """What is made of their texts."""

    @cached_property
    def at_flush(self) -> tuple[ColumnPlan, ...]:
        """The columns that are embedded as the session flushes."""
        return tuple(column for column in self.columns if column.at_flush)

    @cached_property
    def own(self) -> tuple[ColumnPlan, ...]:
        """The columns whose texts are made of the row alone."""
        return tuple(column for column in self.columns if not column.is_related)

    @cached_property
    def deferred(self) -> tuple[ColumnPlan, ...]:
        """The columns of which an entry is written."""
        return tuple(column for column in self.columns if not column.at_flush or column.is_related)

    @cached_property
    def is_looked_at_again(self) -> bool:
        """Whether there is more to be done after the statements than for single columns and rows."""
        beside = self.deferred or self.dependants or self.mirrors or self.derived
        return bool(beside or any(column.references for column in self.at_flush))


_NOTHING = Plan()


@dataclass
class Plans:
    """The plans of a program's models.

    Args:
        models: which; all that are mapped if None.
    """

    models: Models | None = None
    _known: frozenset[Mapper[Any]] | None = None
    _declared: tuple[Mirror, ...] = ()
    _targets: tuple[Target, ...] = ()
    _mirrors: tuple[Mirror, ...] = ()
    _derived: tuple[Derived, ...] = ()
    _plans: dict[int, tuple[ref[Mapper[Any]], Plan]] = field(default_factory=dict)
    """By the mapper's identity: a WeakKeyDictionary makes a reference for each question."""

    @property
    def targets(self) -> tuple[Target, ...]:
        """All targets, also of classes that nobody has used yet."""
        configure_mappers()
        self._refresh()
        return self._targets

    @property
    def derived(self) -> tuple[Derived, ...]:
        """All that is made of texts."""
        configure_mappers()
        self._refresh()
        return self._derived

    def of(self, mapper: Mapper[Any]) -> Plan | None:
        """Return the plan of a class, None if there is nothing to look at."""
        found = self._plans.get(id(mapper))
        if found is None:
            number, plans = id(mapper), self._plans

            def forget(_: object) -> None:
                plans.pop(number, None)

            found = plans[number] = (ref(mapper, forget), self._make(mapper))
        return None if found[1] is _NOTHING else found[1]

    def begin(self) -> bool:
        """Learn of classes that were mapped since, and tell whether there is anything to look at."""
        self._refresh()
        return bool(self._targets or self._mirrors)

    def _refresh(self) -> None:
        # With what is made of texts come embedded columns, so that those are known to be others, too.
        known, declared = embedded_mappers(), mirrors()
        if known != self._known or declared != self._declared:
            self._targets = targets_of(self.models)
            self._derived = derived_of(self.models)
            self._mirrors = tuple(mirror for mirror in declared if is_among(mirror.mapper, self.models))
            self._known, self._declared = embedded_mappers(), declared
            self._plans.clear()

    def _make(self, mapper: Mapper[Any]) -> Plan:
        columns = tuple(
            ColumnPlan(target, column)
            for target in self._targets
            if has_row_of(mapper, target.mapper)
            for column in target.columns
        )
        copies = [mirror for mirror in self._mirrors if mirror.mapper.registry is mapper.registry]
        made = [derived for derived in self._derived if derived.mapper.registry is mapper.registry]
        known = [
            *(dependant for target in self._targets for dependant in dependants_of(target)),
            *(dependant for mirror in copies for dependant in mirror.dependants),
            *(dependant for derived in made for dependant in derived.dependants),
        ]
        dependants = tuple(dependant for dependant in known if mapper.isa(dependant.mapper))
        gains = tuple(
            (name, dependant) for dependant in known if mapper.isa(dependant.parent) for name in dependant.gains
        )
        own = tuple(mirror for mirror in copies if has_row_of(mapper, mirror.mapper))
        here = tuple(derived for derived in made if has_row_of(mapper, derived.mapper))
        found = Plan(columns, dependants, gains, own, here)
        return found if columns or dependants or gains or own or here else _NOTHING
