"""tune(): the cheapest settings that hold a recall, on rows that it did not see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from sqla_vector import IndexNotUsable, InvalidOption
from sqla_vector.tuning import Tuning, atune, tune
from tests.support.backends import AnyEngine, Backend
from tests.tuning.measured import DIM, filled, model, recall_by_rows, recall_of, vectors

TARGET = 0.95
MATRIX = vectors(2_000)
HELD_OUT = np.random.default_rng(3).choice(np.arange(1, 2_001), 300, replace=False)
"""Rows of which some two hundred are drawn by tune() too, by another chance."""
QUESTIONS, OTHERS = vectors(200, seed=5), vectors(300, seed=6)
"""Of the same kind as the rows, and none of them."""

SPARSE: dict[str, Any] = {"m": 8, "ef_construction": 20}
POSTGRESQL: dict[str, dict[str, Any]] = {
    "hnsw": SPARSE,
    "half": {"precision": "half", **SPARSE},
    "binary": {"precision": "binary"},
    "ivfflat": {"method": "ivfflat", "lists": 50},
    "ivfflat binary": {"method": "ivfflat", "lists": 20, "precision": "binary"},
}
SQLITE: dict[str, dict[str, Any]] = {
    "binary": {"precision": "binary"},
    "int8": {"precision": "int8"},
    "ivfflat": {"method": "ivfflat", "lists": 50},
    "ivfflat int8": {"method": "ivfflat", "lists": 50, "precision": "int8", "value_range": 8.0},
}


def check(backend: Backend, engine: AnyEngine, options: dict[str, Any]) -> None:
    item = model(**options)
    found, held = tuned(backend, engine, item)
    if held < TARGET - 0.02:
        # A graph is built at random, and one in many is found by other rows less easily than by those that were asked.
        backend.run_connection(engine, item.metadata.drop_all)
        found, again = tuned(backend, engine, item)
        held = (held + again) / 2
    assert held >= TARGET - 0.02, found.reason
    if len(found.settings) == 1:
        # The cheapest: whatever was less did not hold it on some sample.
        ((name, value),) = found.settings.items()
        less = {one.settings[name] for one in found.measured if one.settings[name] < value}
        missed = {one.settings[name] for one in found.measured if one.recall < TARGET}
        assert less <= missed, found.measured


def tuned(backend: Backend, engine: AnyEngine, item: Any) -> tuple[Tuning, float]:
    """Tune a new index, and return the recall for rows that were not asked."""
    filled(backend, engine, item, MATRIX)
    found: Tuning = backend.run(engine, lambda s: tune(s, item.e, target_recall=TARGET))
    assert found.is_reached, found.reason
    assert found.is_remembered
    return found, backend.run(engine, lambda s: recall_by_rows(s, item, MATRIX, HELD_OUT, **found.settings))


@pytest.mark.backends("psycopg")
@pytest.mark.parametrize("options", POSTGRESQL.values(), ids=POSTGRESQL)
def test_the_recall_is_held_by_rows_not_seen_on_postgresql(backend: Backend, engine: AnyEngine, options: Any):
    check(backend, engine, options)


@pytest.mark.backends("pysqlite3", "sqlite_stdlib")
@pytest.mark.parametrize("options", SQLITE.values(), ids=SQLITE)
def test_the_recall_is_held_by_rows_not_seen_on_sqlite(backend: Backend, engine: AnyEngine, options: Any):
    check(backend, engine, options)


@pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")
def test_tuned_by_questions_the_recall_is_held_for_other_questions(backend: Backend, engine: AnyEngine):
    """A graph finds the neighbours of its own rows more easily than those of a question."""
    item = model(**SPARSE) if backend.family == "postgresql" else model(precision="int8")
    held: list[float] = []
    while not held or (held[0] < TARGET - 0.02 and len(held) < 2):  # as above, of graphs that are built at random
        if held:
            backend.run_connection(engine, item.metadata.drop_all)
        filled(backend, engine, item, MATRIX)
        found: Tuning = backend.run(engine, lambda s: tune(s, item.e, target_recall=TARGET, queries=QUESTIONS))
        assert found.is_reached, found.reason
        held.append(backend.run(engine, lambda s: recall_of(s, item, MATRIX, OTHERS, recall=TARGET)))
    assert np.mean(held) >= TARGET - 0.02, found.reason


@pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")
def test_a_recall_that_cannot_be_reached_is_said_and_not_remembered(backend: Backend, engine: AnyEngine):
    if backend.family == "postgresql":
        item, matrix = model(m=2, ef_construction=4), vectors(2_000)
    else:
        # Bits of elements that hardly count say nothing of what is near, and vec0 returns not all of so many rows.
        item, matrix = model(precision="binary"), vectors(6_000)
        matrix[:, : DIM // 2] = np.abs(matrix[:, : DIM // 2])
        matrix[:, DIM // 2 :] *= 1e-6
    filled(backend, engine, item, matrix)
    found = backend.run(engine, lambda s: tune(s, item.e, target_recall=0.99, sample=4))
    assert (found.is_reached, found.is_remembered) == (False, False)
    assert found.recall < 0.99
    assert "cannot reach recall 0.99 at k=10" in found.reason
    assert "exact=True" in str(found)
    assert settings_known(engine) == {}


def settings_known(engine: Any) -> Any:
    from sqla_vector.dialects import settings_of

    return settings_of((engine.sync_engine if isinstance(engine, AsyncEngine) else engine).dialect).tuned


@pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")
def test_without_remembering_nothing_is_written(backend: Backend, engine: AnyEngine):
    item = model(precision="binary")
    filled(backend, engine, item, vectors(1_500))
    found = backend.run(engine, lambda s: tune(s, item.e, target_recall=0.5, sample=10, remember=False))
    assert (found.is_reached, found.is_remembered) == (True, False)
    assert settings_known(engine) == {}


@pytest.mark.backends("asyncpg", "aiosqlite")
def test_the_asynchronous_twin_finds_and_remembers(backend: Backend, engine: AsyncEngine):
    item = model(precision="binary")
    filled(backend, engine, item, vectors(1_500))

    async def run() -> Tuning:
        async with AsyncSession(engine) as session, session.begin():
            return await atune(session, item.e, target_recall=0.8, sample=20)

    found = backend.wait(run())
    assert found.is_remembered
    ((entry,),) = {known.entries for known in settings_known(engine).values()}
    assert entry.settings == found.settings


@pytest.mark.backends("psycopg")
def test_an_index_that_does_not_serve_is_not_tuned(backend: Backend, engine: AnyEngine):
    item = model()
    filled(backend, engine, item, vectors(30))
    (index,) = item.__table__.indexes
    backend.run_connection(engine, index.drop)
    with pytest.raises(IndexNotUsable, match=r"ix_item_e does not serve the search.*does not exist"):
        backend.run(engine, lambda s: tune(s, item.e))


@pytest.mark.backends("pysqlite3", "sqlite_stdlib")
def test_an_exact_index_has_nothing_to_tune(backend: Backend, engine: AnyEngine):
    item = model()
    filled(backend, engine, item, vectors(30))
    with pytest.raises(IndexNotUsable, match="ix_item_e has nothing to tune"):
        backend.run(engine, lambda s: tune(s, item.e))


@pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")
def test_what_makes_no_sense_is_refused(backend: Backend, engine: AnyEngine):
    item = model(precision="binary")
    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"target_recall": 1}, InvalidOption, "target_recall must be a number over 0 and under 1"),
        ({"target_recall": 0}, InvalidOption, "target_recall must be"),
        ({"target_recall": "0.9"}, InvalidOption, "target_recall must be"),
        ({"target_recall": float("nan")}, InvalidOption, "target_recall must be"),
        ({"k": 0}, InvalidOption, "k must be"),
        ({"sample": 1}, InvalidOption, "sample must be"),
        ({"metric": "cosine"}, IndexNotUsable, "has no vector index for cosine"),
        ({"queries": np.ones((2, DIM + 1))}, Exception, "item.e"),
        ({"queries": np.ones((1, DIM))}, InvalidOption, "there is one question; give two queries or more"),
    ]

    def run(session: Any) -> None:
        for options, error, said in refused:
            with pytest.raises(error, match=said):
                tune(session, item.e, **options)

    backend.run(engine, run)
