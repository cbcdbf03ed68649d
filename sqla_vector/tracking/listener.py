"""What a session's flush does for embedded columns.

Before the statements of a flush: the texts that are known are embedded, in one call, and travel with the rows.
After them, in the same transaction: entries for the outbox are written, and texts that only the database knows
(defaults, expressions, attributes that were not loaded, related rows) are read and embedded.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from numpy.typing import NDArray
from sqlalchemy import Connection, Table
from sqlalchemy.orm import Mapper, Session, attributes
from sqlalchemy.orm.base import PASSIVE_NO_INITIALIZE, instance_state

from sqla_vector.embedding import Embedder, Model, embed, fingerprint
from sqla_vector.embedding.embedder import model_of
from sqla_vector.exc import EmbedderUnavailable, InvalidOption, InvalidText
from sqla_vector.tracking.derived import Derived, expire_again
from sqla_vector.tracking.entries import dead_entries
from sqla_vector.tracking.events import Outage, TextsEmbedded
from sqla_vector.tracking.mirrors import Mirror
from sqla_vector.tracking.observe import Watch
from sqla_vector.tracking.outbox import Operation, put
from sqla_vector.tracking.plans import ColumnPlan, Plan, Plans, is_expression
from sqla_vector.tracking.related import Dependant
from sqla_vector.tracking.states import State, has_changed, identity, is_in_identity_map, key_before, key_of, set_value
from sqla_vector.tracking.targets import Embedders, Key, Target
from sqla_vector.tracking.texts import Write, mark, read, write

__all__ = ["Listener"]

_FLUSH: Final = "sqla_vector.flush"


@dataclass
class _Flush:
    """What one flush has found out before its statements, for after them."""

    embedders: Embedders
    """As they are in the flush's transaction."""
    late: defaultdict[ColumnPlan, dict[State, None]] = field(default_factory=lambda: defaultdict(dict))
    """Rows whose vectors are made, or looked at again, when the database has them."""
    deferred: dict[Target, list[State]] = field(default_factory=dict)
    """Rows that are left to a worker because the embedder cannot be reached."""
    moved: set[tuple[Target, Key]] = field(default_factory=set)
    """Rows that the changed rows belonged to before."""
    linked: set[tuple[State, Dependant]] = field(default_factory=set)
    """The rows that were asked so before the statements."""
    by_hand: defaultdict[ColumnPlan, dict[State, None]] = field(default_factory=lambda: defaultdict(dict))
    """Rows whose vectors the program set, and that get the fingerprint of the text that the database has."""
    current: dict[tuple[State, str], bool] = field(default_factory=dict)
    """Rows of which no entry is written, since the program set the vector of a text that is known; whether it left
    the fingerprint open."""
    expressions: dict[State, set[str]] = field(default_factory=dict)
    """Attributes set to SQL expressions, which SQLAlchemy forgets about with the statement."""
    expired: dict[State, frozenset[str]] = field(default_factory=dict)
    """Attributes that had no value before the statements."""
    parts: defaultdict[ColumnPlan, dict[State, list[Any]]] = field(default_factory=lambda: defaultdict(dict))
    """What the texts of rows are made of that were looked at before the statements."""

    _models: dict[ColumnPlan, Model] = field(default_factory=dict)

    def mark_of(self, column: ColumnPlan, text: str | None) -> str | None:
        """Return the fingerprint that the vector of a text must have."""
        model = self._models.get(column)
        if model is None:
            model = self._models[column] = self.embedders.model(column.column)
        return fingerprint(model, text)

    def text_of(self, column: ColumnPlan, state: State) -> str | None:
        """Return the text of an object of which that is known, and keep what it was made of."""
        parts = self.parts[column][state] = column.parts_of(state.dict)
        return column.text_of(state, parts)

    def note_expressions(self, state: State) -> None:
        """Note which attributes were set to expressions since: they have no value after the statement."""
        news = state.expired_attributes - self.expired.get(state, frozenset())
        if news:
            self.expressions[state] = self.expressions.get(state, set()) | news

    def is_as_it_was(self, column: ColumnPlan, state: State) -> bool:
        """Tell whether the text of a row is the one that was looked at, or that there was no need to look at."""
        parts = self.parts[column].get(state)
        if parts is None:
            return state.key is not None and not self.touches(state, column.watched)
        lost = state.expired_attributes
        return parts == column.parts_of(state.dict) and not (
            lost and lost.intersection(column.sources) - state.dict.keys()
        )

    def touches(self, state: State, names: Iterable[str]) -> bool:
        """Tell whether one of some attributes of a row was changed."""
        committed, expressions = state.committed_state, self.expressions.get(state, ())
        return any((name in committed and has_changed(state, name)) or name in expressions for name in names)


@dataclass(slots=True)
class _Wish:
    """A vector to be made before the statements."""

    plan: ColumnPlan
    state: State
    text: str
    fingerprint: str | None
    is_new: bool


class Listener:
    """Listens to the flushes of sessions.

    Args:
        plans: of the models.
        embedders: by name.
        outbox: the table, None if there is none.
        defer: leave rows to a worker while an embedder cannot be reached.
        watch: is told what is embedded.
    """

    def __init__(self, plans: Plans, embedders: Embedders, outbox: Table | None, defer: bool, watch: Watch) -> None:
        self._plans = plans
        self._embedders = embedders
        self._outbox = outbox
        self._defer = defer
        self._watch = watch

    # Before the statements.

    def before_flush(self, session: Session, context: Any, instances: Any) -> None:
        """Embed the texts that are known."""
        if not self._plans.begin():
            return
        flush = _Flush(self._embedders.at(lambda column: _connection_to(session, column.mapper), hold=True))
        wishes: list[_Wish] = []
        plan_of = self._plans.of
        has_rows = len(session.identity_map) > 0
        for entity in session.new:
            state = instance_state(entity)
            plan = plan_of(state.mapper)
            if plan is not None:
                # A row that is deleted and added in one flush is updated, and keeps what the new object does not have.
                is_switched = has_rows and is_in_identity_map(session, state)
                self._look_at_new(flush, wishes, plan, state, is_switched)
                if plan.gains:
                    self._look_at_gains(session, flush, plan, state)
        for entity in session.dirty:
            state = instance_state(entity)
            plan = plan_of(state.mapper)
            if plan is not None:
                self._look_at_changed(flush, wishes, plan, state)
                self._look_at_links(session, flush, plan, state, deleted=False)
                self._look_at_gains(session, flush, plan, state)
        for entity in session.deleted:
            state = instance_state(entity)
            plan = plan_of(state.mapper)
            if plan is not None:
                self._look_at_links(session, flush, plan, state, deleted=True)
        self._embed(flush, wishes)
        context.attributes[_FLUSH, id(self)] = flush

    def _look_at_new(self, flush: _Flush, wishes: list[_Wish], plan: Plan, state: State, is_switched: bool) -> None:
        values = state.dict
        for column in plan.columns:
            is_known = not is_switched and column.knows(values, is_new=True)
            if values.get(column.key) is not None:
                self._look_at_hand(flush, wishes, column, state, values.get(column.fingerprint_key), is_known, True)
            elif not column.at_flush:
                continue
            elif not is_known:
                flush.late[column][state] = None
            else:
                self._wish(flush, wishes, column, state, is_new=True)

    def _look_at_changed(self, flush: _Flush, wishes: list[_Wish], plan: Plan, state: State) -> None:
        values, committed = state.dict, state.committed_state
        expressions = {name for name in committed if is_expression(values.get(name))}
        if expressions:
            flush.expressions[state] = expressions
        if state.expired_attributes:
            flush.expired[state] = frozenset(state.expired_attributes)
        for column in plan.columns:
            vector_set = column.key in committed and has_changed(state, column.key)
            fingerprint_set = column.fingerprint_key in committed and has_changed(state, column.fingerprint_key)
            changed = {name for name in column.watched if name in committed and has_changed(state, name)}
            is_known = column.knows(values, is_new=False)
            # Somebody else may have changed the rest of the text since it was read.  A version counter does not tell:
            # only those who use it count.
            is_whole = changed.issuperset(column.sources)
            if vector_set and values.get(column.key) is not None:
                given = values.get(column.fingerprint_key) if fingerprint_set else None
                self._look_at_hand(flush, wishes, column, state, given, is_known and is_whole, False)
            elif column.at_flush and (changed or vector_set or fingerprint_set):
                is_written = is_known and self._wish(flush, wishes, column, state, is_new=False, again=vector_set)
                if not (is_written and is_whole):
                    flush.late[column][state] = None

    def _look_at_hand(
        self,
        flush: _Flush,
        wishes: list[_Wish],
        column: ColumnPlan,
        state: State,
        given: Any,
        is_known: bool,
        is_new: bool,
    ) -> None:
        """Respect a vector that the program sets: it is that of the fingerprint beside it, or of the present text.

        A fingerprint of another text is as stale as it would be in the database: an object has one that was copied,
        or that failed to be written and was edited since.
        """
        wanted = flush.mark_of(column, flush.text_of(column, state)) if is_known else None
        if given is None and not is_known:
            flush.by_hand[column][state] = None
        elif wanted is not None and given in (None, wanted):
            set_value(state, column.fingerprint_key, wanted)
            flush.current[state, column.key] = given is None
        elif column.at_flush and not (is_known and self._wish(flush, wishes, column, state, is_new=is_new, again=True)):
            flush.late[column][state] = None

    def _wish(
        self,
        flush: _Flush,
        wishes: list[_Wish],
        column: ColumnPlan,
        state: State,
        *,
        is_new: bool,
        again: bool = False,
    ) -> bool:
        """Wish for the vector of a text that is known, and tell whether the statement writes its fingerprint."""
        values = state.dict
        text = flush.text_of(column, state)
        stored = values.get(column.fingerprint_key)
        if text is None:
            for name in (column.key, column.fingerprint_key):
                if not is_new or values.get(name) is not None:
                    set_value(state, name, None)
            return is_new or stored is not None
        wanted = flush.mark_of(column, text)
        if is_new or again or (column.fingerprint_key in values and stored != wanted):
            wishes.append(_Wish(column, state, text, wanted, is_new))
        return is_new or stored not in (None, wanted)

    def _look_at_links(self, session: Session, flush: _Flush, plan: Plan, state: State, *, deleted: bool) -> None:
        """Note whose rows a row is part of, before it is moved or deleted."""
        for dependant in plan.dependants:
            leaves = deleted or flush.touches(state, dependant.links)
            if leaves and state.key is not None:
                flush.linked.add((state, dependant))
                connection = _connection(session, dependant.target)
                found = dependant.keys_of(connection, [state.key[1]])
                flush.moved |= {(dependant.target, key) for key in found}

    def _look_at_gains(self, session: Session, flush: _Flush, plan: Plan, state: State) -> None:
        """Note whose rows the rows that are put into a collection were part of before."""
        for name, dependant in plan.gains:
            added = state.get_history(name, PASSIVE_NO_INITIALIZE).added if name in state.committed_state else ()
            keys = [tuple(other.key[1]) for other in map(instance_state, filter(None, added or ())) if other.key]
            if keys:
                found = dependant.keys_of(_connection(session, dependant.target), keys)
                flush.moved |= {(dependant.target, key) for key in found}

    def _embed(self, flush: _Flush, wishes: list[_Wish]) -> None:
        by_column: dict[ColumnPlan, list[_Wish]] = {}
        for wish in wishes:
            by_column.setdefault(wish.plan, []).append(wish)
        by_embedder: dict[int, list[_Wish]] = {}
        for plan, group in by_column.items():
            by_embedder.setdefault(id(flush.embedders.embedder(plan.column)), []).extend(group)
        for group in by_embedder.values():
            embedder = flush.embedders.embedder(group[0].plan.column)
            texts = list(dict.fromkeys(wish.text for wish in group))
            try:
                vectors = self._embedded(embedder, texts)
            except EmbedderUnavailable as error:
                self._note_outage(embedder, error)
                for wish in group:
                    flush.deferred.setdefault(wish.plan.target, []).append(wish.state)
                continue
            vectors.setflags(write=False)
            made = dict(zip(texts, vectors, strict=True))
            for wish in group:
                vector, mark = made[wish.text], wish.fingerprint
                if wish.is_new:
                    # What an INSERT takes; a new object has no history to be kept.
                    values = wish.state.dict
                    values[wish.plan.key], values[wish.plan.fingerprint_key] = vector, mark
                else:
                    set_value(wish.state, wish.plan.key, vector)
                    set_value(wish.state, wish.plan.fingerprint_key, mark)

    def _embedded(self, embedder: Embedder, texts: list[str]) -> NDArray[Any]:
        if not texts:
            return embed(embedder, texts)
        model, started = str(model_of(embedder)), time.perf_counter()
        with self._watch.span("sqla_vector.flush", texts=len(texts), model=model):
            vectors = embed(embedder, texts)
        self._watch.tell_now(TextsEmbedded("flush", model, len(texts), time.perf_counter() - started))
        return vectors

    def _note_outage(self, embedder: Embedder, error: EmbedderUnavailable) -> None:
        if not self._defer:
            raise error
        self._watch.tell_now(Outage("embedder", embedder.name, str(error), None))

    # After the statements.

    def after_flush(self, session: Session, context: Any) -> None:
        """Write entries, and embed what only the database knows."""
        flush: _Flush | None = context.attributes.pop((_FLUSH, id(self)), None)
        if flush is None:
            return
        entries: dict[tuple[Target, Key], Operation] = dict.fromkeys(flush.moved, "upsert")
        others: dict[Dependant, set[Key]] = {}
        former: dict[Dependant, set[Key]] = {}
        made: dict[Derived, dict[State, bool]] = {}
        plan_of = self._plans.of
        # Ours is one of them.
        is_followed = len(session.dispatch.before_flush) > 1
        for state, (is_deleted, list_only) in context.states.items():
            if list_only:
                continue
            mapper = state.mapper
            plan = plan_of(mapper)
            if plan is None:
                continue
            if not is_deleted and (is_followed or mapper.dispatch.before_insert or mapper.dispatch.before_update):
                self._look_for_hooks(flush, plan, state)
            if not plan.is_looked_at_again:
                continue
            if not is_deleted:
                for target in _to_be_noted(flush, plan, state):
                    entries[target, key_of(target, state)] = "upsert"
                for column in plan.at_flush:
                    if column.references and flush.touches(state, column.references):
                        flush.late[column][state] = None
            for derived in plan.derived:
                if is_deleted or state.key is None or flush.touches(state, derived.watched):
                    made.setdefault(derived, {})[state] = is_deleted
                    if derived.is_related and not is_deleted:
                        entries[derived.target, key_of(derived.target, state)] = "upsert"
            for mirror in plan.mirrors:
                entries.update(_copies(flush, mirror, state, is_deleted))
            for dependant in plan.dependants:
                if is_deleted or state.key is None or flush.touches(state, dependant.names):
                    others.setdefault(dependant, set()).add(identity(state))
                    before = dependant.reference_before(state)
                    if before is not None and (state, dependant) not in flush.linked:
                        former.setdefault(dependant, set()).add(before)
        for target, states in flush.deferred.items():
            entries.update(dict.fromkeys(((target, key_of(target, state)) for state in states), "upsert"))
        for dependant, keys in others.items():
            found = dependant.keys_of(_connection(session, dependant.target), sorted(keys, key=repr))
            for key in sorted(found, key=repr):
                entries.setdefault((dependant.target, key), "upsert")
        for dependant, keys in former.items():
            for key in dependant.keys_referred_to(_connection(session, dependant.target), sorted(keys, key=repr)):
                entries.setdefault((dependant.target, key), "upsert")
        self._write_entries(session, entries)
        self._look_for_dead(session, flush, entries, made)
        for derived, of in made.items():
            self._bring_into_step(session, flush, derived, of)
        for late, by_hand in ((flush.by_hand, True), (flush.late, False)):
            for column, rows in late.items():
                written = [s for s in rows if not context.states.get(s, (True, True))[0]]
                if written:
                    self._look_again(session, flush.embedders, column, written, by_hand=by_hand)

    def _look_for_hooks(self, flush: _Flush, plan: Plan, state: State) -> None:
        """Have a row looked at again of which hooks of SQLAlchemy changed the text, or that they added.

        Those of mappers, and what listens to the session after us, come after before_flush().
        """
        if state.key is not None and state.expired_attributes:
            flush.note_expressions(state)
        for column in plan.own:
            if flush.is_as_it_was(column, state) or state in flush.late[column] or state in flush.by_hand[column]:
                continue
            is_by_hand = flush.current.pop((state, column.key), None)
            if is_by_hand is None and (state.key is None or flush.touches(state, (column.key,))):
                values = state.dict
                is_by_hand = values.get(column.key) is not None and values.get(column.fingerprint_key) is None
            if is_by_hand:
                flush.by_hand[column][state] = None
            elif column.at_flush:
                flush.late[column][state] = None

    def _look_for_dead(
        self,
        session: Session,
        flush: _Flush,
        entries: Mapping[tuple[Target, Key], Operation],
        made: Mapping[Derived, Iterable[State]],
    ) -> None:
        """Have a worker look at changed rows that are dead: their texts may be good now, and nothing else says so."""
        by_column = (flush.parts, flush.late, flush.by_hand)
        changed = [(column.target, states) for rows in by_column for column, states in rows.items()]
        keys: dict[Target, set[Key]] = {}
        for target, states in (*changed, *((derived.target, states) for derived, states in made.items())):
            named = (key_of(target, state) for state in states if state.key is not None)
            keys.setdefault(target, set()).update(key for key in named if (target, key) not in entries)
        for target, found in keys.items():
            outbox = target.outbox if target.outbox is not None else self._outbox
            if found and outbox is not None:
                connection = _connection(session, target)
                dead = dead_entries(connection, outbox, target, found)
                put(connection, outbox, [(target.entity, row_key) for row_key in dead], target.channel)

    def after_soft_rollback(self, session: Session, transaction: Any) -> None:
        """Have objects read again of which something was written beside the session's own changes."""
        expire_again(session)

    def _bring_into_step(self, session: Session, flush: _Flush, derived: Derived, states: Mapping[State, bool]) -> None:
        """Write the rows that are made of the texts of rows, with their vectors unless a worker makes them.

        Args:
            session: the session.
            flush: what is known of the flush.
            derived: the rows that are made.
            states: the objects that have the texts, and whether they were deleted.
        """
        connection = _connection(session, derived.target)
        now = {key_of(derived.target, state) for state in states}
        before = {key for state in states if (key := key_before(derived.target, state)) is not None}
        gone = before - {key_of(derived.target, state) for state, is_deleted in states.items() if not is_deleted}
        keys = sorted(now | before, key=repr)
        if derived.target.has_parents:
            # A row of one table is locked, since it was written just now.
            difference = derived.compare(connection, keys, lock=True, wait=True)
        else:
            difference = derived.compare(connection, keys)
        for error in difference.errors.values():
            raise InvalidText(f"{derived}: {error}")
        vectors: dict[str, tuple[NDArray[Any], str | None]] = {}
        texts = list(difference.texts)
        if derived.column.spec.when == "flush" and texts:
            embedder = flush.embedders.embedder(derived.column)
            try:
                found = self._embedded(embedder, texts)
            except EmbedderUnavailable as error:
                self._note_outage(embedder, error)
            else:
                model = flush.embedders.model(derived.column)
                vectors = {t: (vector, fingerprint(model, t)) for t, vector in zip(texts, found, strict=True)}
        without = derived.write(connection, difference, vectors)
        self._write_entries(session, {(derived.rows, key): "upsert" for key in without})
        derived.expire(session, difference, [state.obj() for state in states], gone)

    def _write_entries(self, session: Session, entries: Mapping[tuple[Target, Key], Operation]) -> None:
        by_target: dict[tuple[Target, Operation], list[tuple[str, str]]] = {}
        for (target, key), operation in entries.items():
            by_target.setdefault((target, operation), []).append((target.entity, target.encode(key)))
        for (target, operation), rows in by_target.items():
            outbox = target.outbox if target.outbox is not None else self._outbox
            if outbox is None:
                column: Any = next((c for c in target.columns if c.spec.when == "worker"), target.entity)
                raise InvalidOption(
                    f"{column} is left to a worker, by an outbox that track() was not given; declare "
                    "outbox = outbox_table(Base.metadata) and give track(..., outbox=outbox)"
                )
            put(_connection(session, target), outbox, rows, target.channel, operation)

    def _look_again(
        self, session: Session, embedders: Embedders, plan: ColumnPlan, late: Sequence[State], *, by_hand: bool
    ) -> None:
        """Embed the rows whose text is not the one that their vector is of, now that the database has them."""
        target, column = plan.target, plan.column
        model = embedders.model(column)
        by_key = {key_of(target, state): state for state in late}
        connection = _connection(session, target)
        keys = list(by_key)
        for start in range(0, len(keys), 1000):
            # A row of one table is locked, since it was written just now.
            lock = target.has_parents
            found = read(connection, target, column, keys[start : start + 1000], lock=lock, wait=lock)
            invalid = next((row.error for row in found.values() if row.error), None)
            if invalid is not None and plan.at_flush:
                raise InvalidText(f"{column}: {invalid}")
            stale = [row for row in found.values() if not row.is_current(model)]
            if by_hand:
                marks = [row for row in stale if row.has_vector and row.text is not None and row.error is None]
                mark(connection, target, column, [(row.key, row.wanted(model)) for row in marks])
                for row in marks:
                    entity = by_key[row.key].obj()
                    attributes.set_committed_value(entity, column.fingerprint_key, row.wanted(model))
                stale = [row for row in stale if row.text is None] if plan.at_flush else []
            if not stale:
                continue
            texts = list(dict.fromkeys(row.text for row in stale if row.text is not None))
            embedder = embedders.embedder(column)
            try:
                made = dict(zip(texts, self._embedded(embedder, texts), strict=True))
            except EmbedderUnavailable as error:
                self._note_outage(embedder, error)
                self._write_entries(session, {(target, row.key): "upsert" for row in stale})
                continue
            rows = [Write(row.key, None if row.text is None else made[row.text], row.wanted(model)) for row in stale]
            write(connection, target, column, rows)
            for written in rows:
                entity = by_key[written.key].obj()
                attributes.set_committed_value(entity, column.key, written.vector)
                attributes.set_committed_value(entity, column.fingerprint_key, written.fingerprint)


def _to_be_noted(flush: _Flush, plan: Plan, state: State) -> list[Target]:
    """Return the targets of an object, written just now, for which an entry is to be left."""
    found = []
    for column in plan.deferred:
        if (state, column.key) in flush.current or column.target in found:
            continue
        unset = (column.key, column.fingerprint_key)
        if state.key is None or flush.touches(state, column.watched) or flush.touches(state, unset):
            found.append(column.target)
    return found


def _copies(
    flush: _Flush, mirror: Mirror, state: State, is_deleted: bool
) -> Iterator[tuple[tuple[Target, Key], Operation]]:
    """Yield what becomes of the copies of an object, written just now."""
    target = mirror.target
    if is_deleted or state.key is None or flush.touches(state, mirror.watched):
        key = key_of(target, state)
        yield (target, key), "delete" if is_deleted else "upsert"
        before = key_before(target, state)
        if before not in (None, key):
            yield (target, before), "delete"


def _connection(session: Session, target: Target) -> Connection:
    return _connection_to(session, target.mapper)


def _connection_to(session: Session, mapper: Mapper[Any]) -> Connection:
    return session.connection(bind_arguments={"mapper": mapper})
