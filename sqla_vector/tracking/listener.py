"""What a session's flush does for embedded columns.

Before the statements of a flush: the texts that are known are embedded, in one call, and travel with the rows.
After them, in the same transaction: entries for the outbox are written, and texts that only the database knows
(defaults, expressions, attributes that were not loaded, related rows) are read and embedded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, Table
from sqlalchemy.orm import InstanceState, Session, attributes
from sqlalchemy.orm.base import PASSIVE_NO_INITIALIZE, instance_state
from sqlalchemy.sql import ClauseElement

from sqla_vector.embedding import embed, fingerprint
from sqla_vector.exc import EmbedderUnavailable, InvalidOption, InvalidText
from sqla_vector.tracking.outbox import put
from sqla_vector.tracking.plans import ColumnPlan, Plan, Plans
from sqla_vector.tracking.related import Dependant
from sqla_vector.tracking.targets import Embedders, Key, Target
from sqla_vector.tracking.texts import Write, read, write

__all__ = ["Listener"]

logger = logging.getLogger("sqla_vector.tracking")

_FLUSH: Final = "sqla_vector.flush"

State = InstanceState[Any]


@dataclass
class _Flush:
    """What one flush has found out before its statements, for after them."""

    late: dict[ColumnPlan, list[State]] = field(default_factory=dict)
    """Rows whose vectors are made, or looked at again, when the database has them."""
    deferred: dict[Target, list[State]] = field(default_factory=dict)
    """Rows that are left to a worker because the embedder cannot be reached."""
    moved: set[tuple[Target, Key]] = field(default_factory=set)
    """Rows that the changed rows belonged to before."""
    by_hand: set[tuple[int, str]] = field(default_factory=set)
    """Vectors that the program set, by object and attribute."""


@dataclass(slots=True)
class _Wish:
    """A vector to be made before the statements."""

    plan: ColumnPlan
    state: State
    text: str
    is_new: bool


class Listener:
    """Listens to the flushes of sessions.

    Args:
        plans: of the models.
        embedders: by name.
        outbox: the table, None if there is none.
        defer: leave rows to a worker while an embedder cannot be reached.
    """

    def __init__(self, plans: Plans, embedders: Embedders, outbox: Table | None, defer: bool) -> None:
        self._plans = plans
        self._embedders = embedders
        self._outbox = outbox
        self._defer = defer

    # Before the statements.

    def before_flush(self, session: Session, context: Any, instances: Any) -> None:
        """Embed the texts that are known."""
        self._plans.begin()
        if not self._plans.targets:
            return
        flush = _Flush()
        wishes: list[_Wish] = []
        plan_of = self._plans.of
        for entity in session.new:
            state = instance_state(entity)
            plan = plan_of(state.mapper)
            if plan is not None and plan.columns:
                self._look_at_new(flush, wishes, plan, state)
        for entity in session.dirty:
            state = instance_state(entity)
            plan = plan_of(state.mapper)
            if plan is not None:
                self._look_at_changed(flush, wishes, plan, state)
                self._look_at_links(session, flush, plan, state, deleted=False)
        for entity in session.deleted:
            state = instance_state(entity)
            plan = plan_of(state.mapper)
            if plan is not None:
                self._look_at_links(session, flush, plan, state, deleted=True)
        self._embed(flush, wishes)
        session.info[_FLUSH, id(self)] = flush

    def _look_at_new(self, flush: _Flush, wishes: list[_Wish], plan: Plan, state: State) -> None:
        values = state.dict
        for column in plan.columns:
            if values.get(column.key) is not None:
                self._keep_by_hand(flush, column, state, values.get(column.fingerprint_key) is not None)
            elif not column.at_flush:
                continue
            elif column.is_related or _is_unknown(column, values):
                flush.late.setdefault(column, []).append(state)
            else:
                text = column.column.text_of(state.obj())
                if text is not None:
                    wishes.append(_Wish(column, state, text, True))
                elif values.get(column.fingerprint_key) is not None:
                    values[column.fingerprint_key] = None

    def _look_at_changed(self, flush: _Flush, wishes: list[_Wish], plan: Plan, state: State) -> None:
        values, committed = state.dict, state.committed_state
        for column in plan.columns:
            vector_set = column.key in committed and _has_changed(state, column.key)
            fingerprint_set = column.fingerprint_key in committed and _has_changed(state, column.fingerprint_key)
            if vector_set and values.get(column.key) is not None:
                self._keep_by_hand(flush, column, state, fingerprint_set)
                continue
            if not column.at_flush:
                continue
            changed = [name for name in column.watched if name in committed and _has_changed(state, name)]
            if not (changed or vector_set or fingerprint_set):
                continue
            if column.is_related or not all(_is_known(values, name) for name in column.sources):
                flush.late.setdefault(column, []).append(state)
                continue
            text = column.column.text_of(state.obj())
            # Somebody else may have changed the rest of the text since it was read, unless versions are counted.
            is_whole = set(column.sources) <= set(changed) or state.mapper.version_id_col is not None
            if column.fingerprint_key not in values or not is_whole:
                flush.late.setdefault(column, []).append(state)
            self._change(wishes, column, state, text, vector_set=vector_set)

    def _change(
        self, wishes: list[_Wish], column: ColumnPlan, state: State, text: str | None, *, vector_set: bool
    ) -> None:
        values = state.dict
        if text is None:
            _set(state, column.key, None)
            _set(state, column.fingerprint_key, None)
            return
        wanted = fingerprint(self._embedders.model(column.column), text)
        if column.fingerprint_key not in values:
            return  # looked at after the statements
        if vector_set or values[column.fingerprint_key] != wanted:
            wishes.append(_Wish(column, state, text, False))

    def _keep_by_hand(self, flush: _Flush, column: ColumnPlan, state: State, has_fingerprint: bool) -> None:
        """Respect a vector that the program sets: it is taken for that of the present text."""
        flush.by_hand.add((id(state), column.key))
        if has_fingerprint:
            return
        model = self._embedders.model(column.column)
        entity = state.obj()
        _set(state, column.fingerprint_key, fingerprint(model, column.column.text_of(entity)))

    def _look_at_links(self, session: Session, flush: _Flush, plan: Plan, state: State, *, deleted: bool) -> None:
        """Note whose rows a row is part of, before it is moved or deleted."""
        for dependant in plan.dependants:
            leaves = deleted or any(n in state.committed_state and _has_changed(state, n) for n in dependant.links)
            if leaves and state.key is not None:
                connection = _connection(session, dependant.target)
                found = dependant.keys_of(connection, [state.key[1]])
                flush.moved |= {(dependant.target, key) for key in found}

    def _embed(self, flush: _Flush, wishes: list[_Wish]) -> None:
        by_embedder: dict[int, list[_Wish]] = {}
        for wish in wishes:
            embedder = self._embedders.embedder(wish.plan.column)
            by_embedder.setdefault(id(embedder), []).append(wish)
        for group in by_embedder.values():
            embedder = self._embedders.embedder(group[0].plan.column)
            model = self._embedders.model(group[0].plan.column)
            texts = list(dict.fromkeys(wish.text for wish in group))
            try:
                vectors = embed(embedder, texts)
            except EmbedderUnavailable as error:
                if not self._defer:
                    raise
                logger.warning("%d texts are left to a worker: %s", len(texts), error)
                for wish in group:
                    flush.deferred.setdefault(wish.plan.target, []).append(wish.state)
                continue
            vectors.setflags(write=False)
            made = {text: (vector, fingerprint(model, text)) for text, vector in zip(texts, vectors, strict=True)}
            for wish in group:
                vector, mark = made[wish.text]
                if wish.is_new:
                    # What an INSERT takes; a new object has no history to be kept.
                    values = wish.state.dict
                    values[wish.plan.key], values[wish.plan.fingerprint_key] = vector, mark
                else:
                    _set(wish.state, wish.plan.key, vector)
                    _set(wish.state, wish.plan.fingerprint_key, mark)

    # After the statements.

    def after_flush(self, session: Session, context: Any) -> None:
        """Write entries, and embed what only the database knows."""
        flush: _Flush | None = session.info.pop((_FLUSH, id(self)), None)
        if flush is None:
            return
        entries: dict[tuple[Target, Key], None] = dict.fromkeys(flush.moved)
        others: dict[Dependant, set[Key]] = {}
        for state, (is_deleted, list_only) in context.states.items():
            if list_only:
                continue
            plan = self._plans.of(state.mapper)
            if plan is None:
                continue
            if not is_deleted:
                for target in _to_be_noted(flush, plan, state):
                    entries[target, _key_of(target, state)] = None
            for dependant in plan.dependants:
                if is_deleted or state.key is None or _touches(state, dependant.names):
                    others.setdefault(dependant, set()).add(_identity(state))
        for target, states in flush.deferred.items():
            entries.update(dict.fromkeys((target, _key_of(target, state)) for state in states))
        for dependant, keys in others.items():
            found = dependant.keys_of(_connection(session, dependant.target), sorted(keys, key=repr))
            entries.update(dict.fromkeys((dependant.target, key) for key in sorted(found, key=repr)))
        self._write_entries(session, entries)
        for column, late in flush.late.items():
            self._look_again(session, column, late)

    def _write_entries(self, session: Session, entries: Iterable[tuple[Target, Key]]) -> None:
        by_target: dict[Target, list[tuple[str, str]]] = {}
        for target, key in entries:
            by_target.setdefault(target, []).append((target.entity, target.encode(key)))
        for target, rows in by_target.items():
            if self._outbox is None:
                column = next((c for c in target.columns if c.spec.when == "worker"), target.columns[0])
                raise InvalidOption(
                    f"{column} is left to a worker, by an outbox that track() was not given; declare "
                    "outbox = outbox_table(Base.metadata) and give track(..., outbox=outbox)"
                )
            put(_connection(session, target), self._outbox, rows)

    def _look_again(self, session: Session, plan: ColumnPlan, late: Sequence[State]) -> None:
        """Embed the rows whose text is not the one that their vector is of, now that the database has them."""
        target, column = plan.target, plan.column
        model = self._embedders.model(column)
        by_key = {_key_of(target, state): state for state in late if not state._deleted}
        connection = _connection(session, target)
        keys = list(by_key)
        for start in range(0, len(keys), 1000):
            found = read(connection, target, column, keys[start : start + 1000])
            invalid = next((row.error for row in found.values() if row.error), None)
            if invalid is not None:
                raise InvalidText(f"{column}: {invalid}")
            stale = [row for row in found.values() if not row.is_current(model)]
            if not stale:
                continue
            texts = list(dict.fromkeys(row.text for row in stale if row.text is not None))
            try:
                made = dict(zip(texts, embed(self._embedders.embedder(column), texts), strict=True))
            except EmbedderUnavailable as error:
                if not self._defer:
                    raise
                logger.warning("%d texts are left to a worker: %s", len(texts), error)
                self._write_entries(session, [(target, row.key) for row in stale])
                continue
            rows = [Write(row.key, None if row.text is None else made[row.text], row.wanted(model)) for row in stale]
            write(connection, target, column, rows)
            for row in rows:
                entity = by_key[row.key].obj()
                attributes.set_committed_value(entity, column.key, row.vector)
                attributes.set_committed_value(entity, column.fingerprint_key, row.fingerprint)


def _to_be_noted(flush: _Flush, plan: Plan, state: State) -> list[Target]:
    """Return the targets of an object, written just now, for which an entry is to be left."""
    found = []
    for column in plan.deferred:
        if (id(state), column.key) in flush.by_hand or column.target in found:
            continue
        unset = (column.key, column.fingerprint_key)
        if state.key is None or _touches(state, column.watched) or _touches(state, unset):
            found.append(column.target)
    return found


def _connection(session: Session, target: Target) -> Connection:
    return session.connection(bind_arguments={"mapper": target.mapper})


def _key_of(target: Target, state: State) -> Key:
    values = state.dict
    return tuple(values[name] for name in target.key_names)


def _identity(state: State) -> Key:
    return tuple(state.mapper.primary_key_from_instance(state.obj())) if state.key is None else tuple(state.key[1])


def _touches(state: State, names: Iterable[str]) -> bool:
    committed = state.committed_state
    return any(name in committed and _has_changed(state, name) for name in names)


def _has_changed(state: State, name: str) -> bool:
    return bool(state.get_history(name, PASSIVE_NO_INITIALIZE).has_changes())


def _is_known(values: dict[str, Any], name: str) -> bool:
    return (
        name in values
        and not isinstance(values[name], ClauseElement)
        and not hasattr(values[name], "__clause_element__")
    )


def _is_unknown(column: ColumnPlan, values: dict[str, Any]) -> bool:
    """Tell whether a part of a new row's text is not known before it is inserted."""
    return any(not _is_known(values, name) if name in values else name in column.generated for name in column.sources)


def _set(state: State, name: str, value: Any) -> None:
    attributes.set_attribute(state.obj(), name, value)
