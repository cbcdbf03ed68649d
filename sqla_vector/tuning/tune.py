"""The cheapest settings of a search that hold a recall: found on some queries, confirmed on others, remembered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Index
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError

from sqla_vector.dialects.tuned import Tuned, TunedIndex
from sqla_vector.dialects.tuning import Knob, TuningSupport
from sqla_vector.exc import IndexNotUsable, InvalidOption
from sqla_vector.schema import VectorIndexKey, check_share, check_whole_number
from sqla_vector.tuning.explain import SearchPlan
from sqla_vector.tuning.queries import MAX_SAMPLE, Questions, with_truth
from sqla_vector.tuning.recall import MAX_K, Recall, measured, planned, questions_of
from sqla_vector.tuning.target import Searched, count_vectors, searched, support_for

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

__all__ = ["Tuning", "aforget", "aload_tuned", "atune", "forget", "load_tuned", "tune"]

_SAMPLED_LISTS = 50
"""Rows by which the lists of an ivfflat index are looked at."""


@dataclass(frozen=True)
class Tuning:
    """What :func:`tune` found."""

    index: str
    k: int
    target_recall: float
    is_reached: bool
    settings: Mapping[str, int]
    """The cheapest settings that hold it; where none does, the highest."""
    recall: float
    """The recall with these settings, over the queries of both samples."""
    median_ms: float
    measured: tuple[Recall, ...]
    """Everything that was measured, in the order of measuring."""
    is_remembered: bool
    """Whether ``nearest(..., recall=...)`` takes these settings from now on."""
    reason: str
    """One sentence: what was found, or why the recall cannot be reached and what to do."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "measured"}
        return {**found, "settings": dict(self.settings), "measured": [one.as_dict() for one in self.measured]}

    def __str__(self) -> str:
        return self.reason


def tune(
    session: Session | Connection,
    column: Any,
    *,
    target_recall: float = 0.95,
    k: int = 10,
    sample: int = 100,
    queries: Any = None,
    where: ColumnElement[bool] | None = None,
    metric: str | None = None,
    remember: bool = True,
    seed: int = 0,
) -> Tuning:
    """Find the cheapest settings with which a search holds a recall, and remember them for the index.

    The recall grows with each setting, so its least value is found by halving, on one sample; then it is
    confirmed on a second sample, and raised if it does not hold there.  Remembered settings are what
    ``nearest(..., recall=0.95)`` searches with: written in the caller's transaction, on PostgreSQL into the
    comment of the index, which only its owner may, and on SQLite into a table beside it.

    Args:
        session: a Session or Connection.
        column: the vector column, ``Article.embedding``.
        target_recall: the share of the true k nearest that is to be found, over 0 and under 1.
        k: how many rows a search wants.  Settings for one k serve for others too, but may be more or less than
            those need; tune for each k that you use.
        sample: how many queries each of the two samples has.
        queries: vectors of shape (n, dim) in place of rows, half of them for each sample: questions that users asked
            are the best ones, since a graph finds the neighbours of its own rows more easily.
        where: a criterion of the searches.
        metric: as for :func:`sqla_vector.nearest`.
        remember: False only measures.
        seed: of the chance by which rows are drawn.

    Raises:
        IndexNotUsable: no index serves the search, or it finds everything by itself.
        InvalidOption: an option out of its range, or no row to measure by.
    """
    target = searched(column, metric)
    check_share(target_recall, "target_recall")
    check_whole_number(k, "k", 1, MAX_K)
    check_whole_number(sample, "sample", 2, MAX_SAMPLE // 2)
    connection, support = support_for(session, "atune()")
    index, key = target.index()
    knobs = support.knobs(connection, index, key, k)
    if not knobs:
        raise IndexNotUsable(f"{index.name} has nothing to tune: its searches are exact, or cannot be told anything")
    asked = questions_of(connection, target, 2 * sample, queries, where, seed)
    if len(asked) < 2:
        raise InvalidOption(
            "tune() confirms by one half of the questions what it found by the other, and there is one question; "
            "give two queries or more"
        )
    questions = with_truth(connection, support, target, asked, k, where)
    trial = _Trial(connection, support, target, k, where, target_recall)
    best = trial.run(knobs, questions)
    settings = {name: int(value) for name, value in best.settings.items()}
    is_reached = best.recall >= target_recall
    is_remembered, trouble = False, ""
    if is_reached and remember:
        entry = Tuned(k, float(target_recall), round(best.recall, 4), **settings)
        vectors = [question.vector for question in questions.asked[:_SAMPLED_LISTS]]
        is_remembered, trouble = _remember(connection, support, target, index, key, entry, vectors)
    return Tuning(
        index=str(index.name),
        k=k,
        target_recall=float(target_recall),
        is_reached=is_reached,
        settings=settings,
        recall=best.recall,
        median_ms=best.median_ms,
        measured=tuple(trial.measured),
        is_remembered=is_remembered,
        reason=_reason(str(index.name), best, target_recall, knobs, is_reached) + trouble,
    )


async def atune(session: AsyncSession | AsyncConnection, column: Any, **options: Any) -> Tuning:
    """Do the same as :func:`tune`, on an AsyncSession or AsyncConnection."""

    def run(sync: Session | Connection) -> Tuning:
        return tune(sync, column, **options)

    return await session.run_sync(run)


def load_tuned(session: Session | Connection) -> None:
    """Learn what :func:`tune` found in other processes.

    An engine with the plugin learns it by itself from each new connection.  Without the plugin (PostgreSQL) this
    is how it learns.
    """
    connection, support = support_for(session, "aload_tuned()")
    support.load(connection)


async def aload_tuned(session: AsyncSession | AsyncConnection) -> None:
    """Do the same as :func:`load_tuned`, on an AsyncSession or AsyncConnection."""
    await session.run_sync(load_tuned)


def forget(session: Session | Connection, column: Any, *, metric: str | None = None) -> None:
    """Remove what :func:`tune` found for the index of a column.

    Raises:
        IndexNotUsable: there is no index.
    """
    target = searched(column, metric)
    connection, support = support_for(session, "aforget()")
    support.remember(connection, target.index()[0], None)
    support.load(connection)


async def aforget(session: AsyncSession | AsyncConnection, column: Any, *, metric: str | None = None) -> None:
    """Do the same as :func:`forget`, on an AsyncSession or AsyncConnection."""

    def run(sync: Session | Connection) -> None:
        forget(sync, column, metric=metric)

    await session.run_sync(run)


@dataclass
class _Trial:
    """The search for the cheapest settings."""

    connection: Connection
    support: TuningSupport
    target: Searched
    k: int
    where: ColumnElement[bool] | None
    target_recall: float

    def __post_init__(self) -> None:
        self.measured: list[Recall] = []
        self._known: dict[tuple[frozenset[tuple[str, int]], int], Recall] = {}

    def run(self, knobs: tuple[Knob, ...], questions: Questions) -> Recall:
        """Return what the cheapest settings find that hold the recall on both samples, or else the highest ones.

        Raises:
            IndexNotUsable: the index never served.
        """
        first, second = questions.halves()
        settings = {knob.name: self._highest(knob, knobs, first) for knob in knobs}
        highest = self._measure(settings, first)
        if highest.recall < self.target_recall:
            return self._measure(settings, questions)
        bounds = dict(settings)
        for number, knob in enumerate(knobs):
            # The first of two settings leaves room for the other: each misses its part of what may be missed.
            misses = (1 - self.target_recall) * (number + 1) / len(knobs)
            ladder = [value for value in _ladder(knob) if value <= bounds[knob.name]]
            settings[knob.name] = self._least(knob.name, ladder, settings, first, 1 - misses)
        for knob in knobs[:-1]:
            # The others may have left more room than they were given.
            ladder = [value for value in _ladder(knob) if value <= settings[knob.name]]
            settings[knob.name] = self._least(knob.name, ladder, settings, first, self.target_recall)
        while True:
            confirmed, found = self._measure(settings, second), self._measure(settings, questions)
            if min(confirmed.recall, found.recall) >= self.target_recall:
                return found
            raised = [{**settings, k.name: min(bounds[k.name], _next(k, settings[k.name]))} for k in knobs]
            raised = [one for one in raised if one != settings]
            if not raised:
                return found
            # One of them, that which gives more.
            settings = max(raised, key=lambda one: self._measure(one, questions).recall) if raised[1:] else raised[0]

    def _highest(self, knob: Knob, knobs: tuple[Knob, ...], questions: Questions) -> int:
        """Return the highest value with which the index serves: beyond it the database may find a scan cheaper."""
        others = {other.name: other.usual for other in knobs}
        ladder = _ladder(knob)
        low, high = -1, len(ladder) - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self._plan({**others, knob.name: ladder[middle]}, questions).index == self._index:
                low = middle
            else:
                high = middle - 1
        if low < 0:
            plan = self._plan({**others, knob.name: ladder[0]}, questions)
            raise IndexNotUsable(f"{self._index} does not serve the search, so nothing can be tuned: {plan.reason}")
        return ladder[low]

    def _least(
        self, name: str, ladder: list[int], settings: Mapping[str, int], questions: Questions, recall: float
    ) -> int:
        """Return the least value of a ladder that holds a recall, by halving."""
        low, high = 0, len(ladder) - 1
        while low < high:
            middle = (low + high) // 2
            if self._measure({**settings, name: ladder[middle]}, questions).recall >= recall:
                high = middle
            else:
                low = middle + 1
        return ladder[low]

    @property
    def _index(self) -> str:
        return str(self.target.index()[0].name)

    def _plan(self, settings: Mapping[str, int], questions: Questions) -> SearchPlan:
        return planned(self.connection, self.support, self.target, questions, self.k, settings, self.where)

    def _measure(self, settings: Mapping[str, int], questions: Questions) -> Recall:
        asked = frozenset(settings.items()), id(questions)
        if asked in self._known:
            return self._known[asked]
        found = measured(self.connection, self.support, self.target, questions, self.k, settings, self.where)
        if found.index != self._index:
            # It would be the recall of something else.
            raise IndexNotUsable(f"{self._index} does not serve the search, so nothing can be tuned: {found.reason}")
        self.measured.append(found)
        self._known[asked] = found
        return found


def _ladder(knob: Knob) -> list[int]:
    """Return the values that are tried: one by one at first, then in steps of a tenth."""
    found = [knob.lowest]
    while found[-1] < knob.highest:
        found.append(_next(knob, found[-1]))
    return found


def _next(knob: Knob, value: int) -> int:
    return min(knob.highest, max(value + 1, ceil(value * 1.1)))


def _remember(
    connection: Connection,
    support: TuningSupport,
    target: Searched,
    index: Index,
    key: VectorIndexKey,
    entry: Tuned,
    vectors: list[Any],
) -> tuple[bool, str]:
    """Write an entry beside the index; return whether it is there, and what to add to the reason if not."""
    built = support.built(index, key)
    rows = count_vectors(connection, target.column)
    imbalance = support.imbalance(connection, index, key, rows, vectors)
    known = support.remembered(connection, index)
    entries = known.entries if known is not None and known.built == built else ()
    tuned = TunedIndex(built, rows, imbalance, entries).with_entry(entry)
    try:
        with connection.begin_nested():
            support.remember(connection, index, tuned)
    except DBAPIError as error:
        return False, f"; it could not be remembered: {' '.join(str(error.orig).split())}"
    support.load(connection)
    return True, ""


def _reason(name: str, best: Recall, target: float, knobs: tuple[Knob, ...], is_reached: bool) -> str:
    told = ", ".join(f"{setting}={value}" for setting, value in best.settings.items())
    if is_reached:
        is_slow = best.median_ms >= best.exact_median_ms
        return (
            f"{name} holds recall {target:g} at k={best.k} with {told}: {best.recall:.3f} in {best.median_ms:.2f} ms"
            + (f"; an exact search takes no longer, {best.exact_median_ms:.2f} ms" if is_slow else "")
        )
    advice = ", ".join(knob.beyond for knob in knobs)
    return (
        f"{name} cannot reach recall {target:g} at k={best.k}: with {told}, the highest with which it serves, it finds "
        f"{best.recall:.3f}; {advice}, or search with exact=True"
    )
