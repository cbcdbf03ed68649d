"""The questions that a measurement asks, and what the true answers are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import ColumnElement, Select, bindparam, select, tuple_
from sqlalchemy.engine import Connection

from sqla_vector.dialects.tuning import TuningSupport
from sqla_vector.exc import InvalidOption
from sqla_vector.schema import check_whole_number
from sqla_vector.search.nearest import nearest
from sqla_vector.types import VectorType

if TYPE_CHECKING:
    from sqla_vector.tuning.target import Searched

__all__ = ["Answer", "Question", "Questions", "Timed", "ask", "draw", "given", "statement", "with_truth"]

MAX_SAMPLE = 10_000
_WARM_UP = 3
_KEYS_AT_ONCE = 500

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Question:
    """A vector that is searched for; one of a row is not to find that row."""

    vector: Any
    own: Key | None = None


@dataclass(frozen=True)
class Answer:
    """The keys and distances that a search found, nearest first."""

    keys: tuple[Key, ...]
    distances: tuple[float, ...]

    def share(self, truth: Answer) -> float:
        """Return how much of the true answer is here.

        Rows at the distance of the last one are as right as it: which of them is found is chance.  Both searches
        have the distance from the same function over the same vectors, so that equal ones are equal to the bit.
        """
        wanted, furthest = set(truth.keys), truth.distances[-1]
        found = sum(
            key in wanted or distance <= furthest for key, distance in zip(self.keys, self.distances, strict=True)
        )
        return min(found, len(wanted)) / len(wanted)


@dataclass(frozen=True)
class Timed:
    """Answers, and how long each took in milliseconds."""

    answers: list[Answer]
    milliseconds: list[float]


@dataclass(frozen=True)
class Questions:
    """Questions with their true answers."""

    asked: list[Question]
    truth: Timed

    def halves(self) -> tuple[Questions, Questions]:
        """Return two samples of which neither has a question of the other."""
        return self._part(slice(0, None, 2)), self._part(slice(1, None, 2))

    def _part(self, part: slice) -> Questions:
        truth = Timed(self.truth.answers[part], self.truth.milliseconds[part])
        return Questions(self.asked[part], truth)


def given(queries: Any, target: Searched) -> list[Question]:
    """Return questions of vectors that somebody gave.

    Raises:
        InvalidOption: there is none.
        InvalidVector: one is no vector of the column.
    """
    type_ = target.column.type
    assert isinstance(type_, VectorType)
    try:
        vectors = list(queries)
    except TypeError:
        raise InvalidOption(f"queries must be a sequence of vectors, got {type(queries).__name__}") from None
    check_whole_number(len(vectors), "the number of queries", 1, MAX_SAMPLE)
    return [Question(type_.codec.coerce(vector, target.name)) for vector in vectors]


def draw(
    connection: Connection, target: Searched, number: int, where: ColumnElement[bool] | None, seed: int
) -> list[Question]:
    """Return questions of rows that are drawn by chance, in an order that is chance too.

    Raises:
        InvalidOption: no row has a vector.
    """
    column = target.column
    keys = list(column.table.primary_key.columns)
    criteria = [column.is_not(None), *(() if where is None else (where,))]
    random = np.random.default_rng(seed)
    lots, drawn = np.empty(0), np.empty(0, dtype=object)
    # All keys pass, and those with the smallest lots stay: constant memory, and no sort in the database.
    # A cursor of the server ends with the transaction, and so wants one.
    options = {"stream_results": not connection._is_autocommit_isolation()}
    result = connection.execute(select(*keys).where(*criteria), execution_options=options)
    for rows in result.partitions(10_000):
        passing = np.empty(len(rows), dtype=object)
        passing[:] = [tuple(row) for row in rows]
        lots, drawn = np.append(lots, random.random(len(rows))), np.append(drawn, passing)
        best = np.argsort(lots, kind="stable")[:number]
        lots, drawn = lots[best], drawn[best]
    if not len(drawn):
        raise InvalidOption(f"{target.name}: no row has a vector, so there is nothing to measure")
    vectors: dict[Key, Any] = {}
    for start in range(0, len(drawn), _KEYS_AT_ONCE):
        some = list(drawn[start : start + _KEYS_AT_ONCE])
        is_among = keys[0].in_([key[0] for key in some]) if len(keys) == 1 else tuple_(*keys).in_(some)
        for row in connection.execute(select(*keys, column).where(is_among)):
            vectors[tuple(row[:-1])] = row[-1]
    return [Question(vectors[key], key) for key in drawn if key in vectors]


def ask(
    connection: Connection,
    support: TuningSupport,
    target: Searched,
    questions: Sequence[Question],
    k: int,
    options: Mapping[str, Any],
    where: ColumnElement[bool] | None = None,
) -> Timed:
    """Search for each question as an application does, and return the k nearest but for the row itself."""
    answers, times = [], []
    for number, question in enumerate([*questions[:_WARM_UP], *questions]):
        stmt = statement(target, bindparam("query"), *_beside_itself(question, k, options), where)
        with support.isolated(connection):
            begun = perf_counter()
            rows = connection.execute(stmt, {"query": question.vector}).all()
            taken = 1000 * (perf_counter() - begun)
        if number < min(_WARM_UP, len(questions)):
            continue  # compiled, planned and read from the disk
        others = [row for row in rows if tuple(row[:-1]) != question.own][:k]
        answers.append(Answer(tuple(tuple(row[:-1]) for row in others), tuple(row[-1] for row in others)))
        times.append(taken)
    return Timed(answers, times)


def _beside_itself(question: Question, k: int, options: Mapping[str, Any]) -> tuple[int, Mapping[str, Any]]:
    """Return k and the options of a search that may find the row itself, which is left out then.

    A criterion that leaves it out would make it another search: a filtered one.
    """
    if question.own is None:
        return k, options
    oversample = options.get("oversample")
    if oversample is not None:
        # Per wanted row, and one more is wanted: the candidates are to be as many as without it.
        oversample = max(1, round(oversample * k / (k + 1)))
    return k + 1, {**options, "oversample": oversample}


def statement(
    target: Searched,
    query: Any,
    k: int,
    options: Mapping[str, Any],
    where: ColumnElement[bool] | None = None,
) -> Select[Any]:
    """Return the search for a vector."""
    stmt: Select[Any] = select(*target.column.table.primary_key.columns)
    if where is not None:
        stmt = stmt.where(where)
    return nearest(stmt, target.column, query, k, metric=target.metric, **options)


def with_truth(
    connection: Connection,
    support: TuningSupport,
    target: Searched,
    questions: Sequence[Question],
    k: int,
    where: ColumnElement[bool] | None = None,
) -> Questions:
    """Return questions with their true answers; those that have none (a zero vector under cosine) are left out.

    Raises:
        InvalidOption: none has an answer.
    """
    truth = ask(connection, support, target, questions, k, {"exact": True}, where)
    kept = [number for number, answer in enumerate(truth.answers) if answer.keys]
    if not kept:
        raise InvalidOption(f"{target.name}: no search finds a row, so there is nothing to measure")
    answers, times = [truth.answers[number] for number in kept], [truth.milliseconds[number] for number in kept]
    return Questions([questions[number] for number in kept], Timed(answers, times))
