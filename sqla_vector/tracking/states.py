"""What a flush asks of the objects it writes."""

from __future__ import annotations

from typing import Any, TypeAlias

from sqlalchemy.orm import InstanceState, Mapper, Session, attributes
from sqlalchemy.orm.base import PASSIVE_NO_INITIALIZE

from sqla_vector.tracking.targets import Key, Target

__all__ = ["State", "has_changed", "identity", "is_in_identity_map", "key_before", "key_of", "set_value"]

State: TypeAlias = InstanceState[Any]


def is_in_identity_map(session: Session, state: State) -> bool:
    """Tell whether the session has an object with the primary key of a new one."""
    values, names = state.dict, _names_of_key(state.mapper)
    if any(values.get(name) is None for name in names):
        return False
    return state.mapper.identity_key_from_primary_key(tuple(values[name] for name in names)) in session.identity_map


def key_of(target: Target, state: State) -> Key:
    """Return the key of an object's row, as it is after the statement."""
    values = state.dict
    if state.key is None or all(name in values for name in target.key_names):
        return tuple(values[name] for name in target.key_names)
    # Expired, and written without being read.
    before = key_before(target, state)
    assert before is not None
    return before


def key_before(target: Target, state: State) -> Key | None:
    """Return the key that an object's row had before the statement, None if it is new."""
    return None if state.key is None else target.key_of(state.mapper, state.key[1])


def identity(state: State) -> Key:
    """Return the primary key of an object, as it is after the statement."""
    values, names = state.dict, _names_of_key(state.mapper)
    if state.key is None or all(name in values for name in names):
        return tuple(values[name] for name in names)
    return tuple(state.key[1])


def _names_of_key(mapper: Mapper[Any]) -> list[str]:
    return [mapper.get_property_by_column(column).key for column in mapper.primary_key]


def has_changed(state: State, name: str) -> bool:
    """Tell whether an attribute has another value than the database, as far as that is loaded."""
    return bool(state.get_history(name, PASSIVE_NO_INITIALIZE).has_changes())


def set_value(state: State, name: str, value: Any) -> None:
    """Set an attribute as the program would."""
    attributes.set_attribute(state.obj(), name, value)
