"""How much of what a search should find it finds, and how long it takes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import ColumnElement
from sqlalchemy.engine import Connection

from sqla_vector.dialects import settings_of
from sqla_vector.dialects.tuned import KNOBS, tuned_for
from sqla_vector.dialects.tuning import TuningSupport
from sqla_vector.exc import InvalidOption
from sqla_vector.schema import check_share, check_whole_number
from sqla_vector.tuning.explain import SearchPlan, explain_nearest
from sqla_vector.tuning.queries import MAX_SAMPLE, Question, Questions, ask, draw, given, statement, with_truth
from sqla_vector.tuning.target import Searched, searched, support_for

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session


__all__ = ["Recall", "ameasure_recall", "measure_recall"]

MAX_K = 10_000

logger = logging.getLogger("sqla_vector.tuning")


@dataclass(frozen=True)
class Recall:
    """What :func:`measure_recall` measured."""

    k: int
    settings: Mapping[str, float]
    """What the searches were told; what is missing was left to the defaults."""
    queries: int
    """How many searches were measured."""
    recall: float
    """The mean over the queries: 1 is everything."""
    recall_p5: float
    """Five of 100 queries have no more than this."""
    recall_p50: float
    median_ms: float
    """Half of the searches took no longer, in milliseconds, as the client sees it."""
    p95_ms: float
    """95 of 100 took no longer."""
    exact_median_ms: float
    """The same for the exact search."""
    plan: SearchPlan
    """The database's own plan: which index served, or why none did."""

    @property
    def reason(self) -> str:
        """One sentence of the plan: what serves, or why no index does."""
        return self.plan.reason

    @property
    def index(self) -> str | None:
        """The index that served, None if the searches were exact."""
        return self.plan.index

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        found = asdict(self)
        found.pop("plan")
        return {**found, "index": self.index, "reason": self.reason}

    def __str__(self) -> str:
        told = ", ".join(f"{name}={value:g}" for name, value in self.settings.items()) or "default settings"
        return (
            f"recall@{self.k} {self.recall:.3f} with {told}: median {self.median_ms:.2f} ms, 95 of 100 within "
            f"{self.p95_ms:.2f} ms, exact {self.exact_median_ms:.2f} ms; {self.plan.reason}"
        )


def measure_recall(
    session: Session | Connection,
    column: Any,
    k: int = 10,
    *,
    sample: int = 100,
    queries: Any = None,
    settings: Mapping[str, float] | None = None,
    where: ColumnElement[bool] | None = None,
    metric: str | None = None,
    seed: int = 0,
) -> Recall:
    """Return how much of the true k nearest a search finds, on your own rows, and how long it takes.

    Every query is asked twice, with the index and exactly, as :func:`sqla_vector.nearest` asks.  A row that is
    as far as the last of the true ones counts as found.  Nothing is changed; on PostgreSQL the settings of a
    measurement end with it.

    Args:
        session: a Session or Connection.
        column: the vector column, ``Article.embedding``.
        k: how many rows a search wants.
        sample: how many rows are drawn by chance, whose vectors are the queries; a row is not to find itself.
        queries: vectors of shape (n, dim) in place of rows: questions that users asked are the best ones, since a
            row is easier to find things for than a question.
        settings: what the searches are told: ``{"ef_search": 100}``, ``probes``, ``oversample``, or ``recall``:
            what :func:`tune` found for it; if that is nothing the defaults, with a warning in the log.
        where: a criterion of the searches, such as ``Article.lang == "en"``: filters change recall.
        metric: as for :func:`sqla_vector.nearest`.
        seed: of the chance, so that two measurements can ask the same.

    Raises:
        InvalidOption: an option out of its range, an unknown setting, no row to measure by.
        InvalidVector: a query that is no vector of the column.
    """
    target = searched(column, metric)
    told = checked_settings(settings)
    check_whole_number(k, "k", 1, MAX_K)
    connection, support = support_for(session, "ameasure_recall()")
    asked = questions_of(connection, target, check_whole_number(sample, "sample", 1, MAX_SAMPLE), queries, where, seed)
    return measured(
        connection, support, target, with_truth(connection, support, target, asked, k, where), k, told, where
    )


async def ameasure_recall(session: AsyncSession | AsyncConnection, column: Any, k: int = 10, **options: Any) -> Recall:
    """Return the same as :func:`measure_recall`, on an AsyncSession or AsyncConnection."""

    def run(sync: Session | Connection) -> Recall:
        return measure_recall(sync, column, k, **options)

    return await session.run_sync(run)


def questions_of(
    connection: Connection,
    target: Searched,
    number: int,
    queries: Any,
    where: ColumnElement[bool] | None,
    seed: int,
) -> list[Question]:
    """Return the questions of a measurement: those given, or those of rows."""
    if queries is not None:
        return given(queries, target)
    return draw(connection, target, number, where, check_whole_number(seed, "seed", 0, 2**63 - 1))


def measured(
    connection: Connection,
    support: TuningSupport,
    target: Searched,
    questions: Questions,
    k: int,
    settings: Mapping[str, float],
    where: ColumnElement[bool] | None = None,
) -> Recall:
    """Ask with settings, and compare with the truth."""
    told, found = resolved(connection, support, target, k, settings)
    plan = planned(connection, support, target, questions, k, told, where)
    if "recall" in settings and not found and plan.index is not None and support.knobs(connection, *target.index(), k):
        # As the search itself does; and what is measured is not called what it is not.
        logger.warning(
            "%s has no settings for recall %g, so the usual ones are measured; find some: sqla_vector.tuning.tune()",
            plan.index,
            settings["recall"],
        )
        settings = told
    answered = ask(connection, support, target, questions.asked, k, told, where)
    pairs = zip(answered.answers, questions.truth.answers, strict=True)
    shares = [answer.share(truth) for answer, truth in pairs]
    return Recall(
        k=k,
        settings={**settings, **told},
        queries=len(shares),
        recall=float(np.mean(shares)),
        recall_p5=_percentile(shares, 5),
        recall_p50=_percentile(shares, 50),
        median_ms=_percentile(answered.milliseconds, 50),
        p95_ms=_percentile(answered.milliseconds, 95),
        exact_median_ms=_percentile(questions.truth.milliseconds, 50),
        plan=plan,
    )


def planned(
    connection: Connection,
    support: TuningSupport,
    target: Searched,
    questions: Questions,
    k: int,
    settings: Mapping[str, float],
    where: ColumnElement[bool] | None = None,
) -> SearchPlan:
    """Return the plan of the searches that are measured."""
    with support.isolated(connection):
        return explain_nearest(connection, statement(target, questions.asked[0].vector, k, settings, where))


def resolved(
    connection: Connection, support: TuningSupport, target: Searched, k: int, settings: Mapping[str, float]
) -> tuple[dict[str, float], bool]:
    """Return settings with what a recall stands for, as the engine knows it, in its place, and whether it knows."""
    told = dict(settings)
    recall = told.pop("recall", None)
    if recall is None or not target.indexes:
        return told, False
    index, key = target.indexes[0]
    assert index.table is not None
    place = (connection.schema_for_object(index.table), str(index.name))
    found = tuned_for(place, support.built(index, key), k, recall, settings_of(connection.dialect))
    return {**(found.settings if found else {}), **told}, found is not None


def _percentile(values: Iterable[float], percent: int) -> float:
    # One of the values itself: between two of them there is none that was measured.
    return float(np.percentile(list(values), percent, method="inverted_cdf"))


def checked_settings(settings: Mapping[str, float] | None) -> dict[str, float]:
    """Return settings of a search that are in their ranges.

    Raises:
        InvalidOption: one is not, or is unknown.
    """
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        raise InvalidOption(f'settings must be a mapping such as {{"ef_search": 100}}, got {type(settings).__name__}')
    for name, value in settings.items():
        if name == "recall":
            check_share(value, name)
        elif name in KNOBS:
            check_whole_number(value, str(name), 1, KNOBS[name])
        else:
            raise InvalidOption(f"unknown setting {name!r}; use one of {', '.join([*KNOBS, 'recall'])}")
    return dict(settings)
