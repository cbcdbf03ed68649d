"""measure_recall(): equal to what numpy says of the same searches, and refused where it makes no sense."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sqlalchemy import event, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_vector import IndexNotUsable, InvalidOption, InvalidVector, Vector, bulk, nearest
from sqla_vector.tuning import Recall, advise, ameasure_recall, index_stats, measure_recall, tune
from tests.support.backends import AnyEngine, Backend
from tests.tuning.measured import DIM, filled, model, recall_of, true_ids, vectors

EACH = pytest.mark.backends("psycopg", "asyncpg", "pysqlite3", "sqlite_stdlib", "aiosqlite")
BOTH = pytest.mark.backends("psycopg", "pysqlite3")

QUERIES = vectors(40, seed=5)


@EACH
def test_given_queries_have_the_recall_that_numpy_finds(backend: Backend, engine: AnyEngine):
    item, matrix = model(precision="binary"), vectors(1500)
    filled(backend, engine, item, matrix)
    found = backend.run(engine, lambda s: measure_recall(s, item.e, queries=QUERIES, settings={"oversample": 4}))
    by_numpy = backend.run(engine, lambda s: recall_of(s, item, matrix, QUERIES, oversample=4))
    assert found.recall == pytest.approx(by_numpy)
    assert 0.3 < found.recall < 0.95
    assert 0 <= found.recall_p5 <= found.recall_p50 <= 1
    assert (found.k, found.queries, found.settings, found.index) == (10, 40, {"oversample": 4}, "ix_item_e")
    assert "ix_item_e serves the search" in found.reason
    assert 0 < found.median_ms <= found.p95_ms


@BOTH
def test_a_row_does_not_find_itself(backend: Backend, engine: AnyEngine):
    """Were rows counted as their own neighbours, k=1 would always be right."""
    item, matrix = model(precision="binary"), vectors(1500)
    filled(backend, engine, item, matrix)
    found = backend.run(engine, lambda s: measure_recall(s, item.e, 1, sample=60, settings={"oversample": 1}))

    def shares(session: Any) -> float:
        right = []
        for number in range(150):
            nearby = session.execute(nearest(select(item.id), item.e, matrix[number], k=2, oversample=1)).all()
            others = [row.id for row in nearby if row.id != number + 1][:1]
            (truth,) = true_ids(matrix, matrix[number], 2) - {number + 1}
            right.append(others == [truth])
        return float(np.mean(right))

    by_numpy = backend.run(engine, shares)
    assert found.recall < 0.7
    assert found.recall == pytest.approx(by_numpy, abs=0.25)  # other rows, by chance


@BOTH
def test_without_an_index_recall_is_one_and_the_plan_says_why(backend: Backend, engine: AnyEngine):
    item, matrix = model(), vectors(200)
    filled(backend, engine, item, matrix)
    (index,) = item.__table__.indexes
    backend.run_connection(engine, index.drop)
    found = backend.run(engine, lambda s: measure_recall(s, item.e, sample=20))
    assert (found.recall, found.recall_p5, found.index) == (1, 1, None)
    assert "does not exist" in found.reason
    assert "does not exist" in str(found)


@BOTH
def test_rows_that_are_as_far_as_the_last_are_as_right(backend: Backend, engine: AnyEngine):
    item = model(method="ivfflat", lists=4)
    filled(backend, engine, item, np.repeat(np.eye(DIM, dtype=np.float32), 40, axis=0))
    found = backend.run(engine, lambda s: measure_recall(s, item.e, sample=20, settings={"probes": 4}))
    assert (found.recall, found.index) == (1, "ix_item_e")


@BOTH
def test_a_criterion_is_one_of_the_searches_that_are_measured(backend: Backend, engine: AnyEngine):
    item, matrix = model(include=["part"]), vectors(1500)
    filled(backend, engine, item, matrix)
    statements: list[str] = []
    listened = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
    event.listen(listened, "before_cursor_execute", lambda c, cursor, statement, *rest: statements.append(statement))
    found = backend.run(engine, lambda s: measure_recall(s, item.e, sample=20, where=item.part == 3))
    assert found.recall > 0.9
    searches = [statement for statement in statements if "distance" in statement]
    assert searches
    assert all("part" in statement for statement in searches)


@BOTH
def test_fewer_rows_than_k_are_all_there_is_to_find(backend: Backend, engine: AnyEngine):
    item = model()
    filled(backend, engine, item, vectors(5))
    found = backend.run(engine, lambda s: measure_recall(s, item.e, 10, sample=50))
    assert (found.recall, found.queries) == (1, 5)


@BOTH
def test_the_same_seed_draws_the_same_rows(backend: Backend, engine: AnyEngine):
    item = model(precision="binary")
    filled(backend, engine, item, vectors(600))
    one, same, other = (
        backend.run(engine, lambda s, n=n: measure_recall(s, item.e, sample=30, settings={"oversample": 2}, seed=n))
        for n in (1, 1, 2)
    )
    assert one.recall == same.recall != other.recall


@pytest.mark.backends("psycopg", "psycopg2", "asyncpg")
def test_settings_of_a_measurement_end_with_it(backend: Backend, engine: AnyEngine):
    item = model()
    filled(backend, engine, item, vectors(300))

    def run(session: Any) -> tuple[str, str]:
        before = session.connection().exec_driver_sql("SELECT current_setting('hnsw.ef_search', true)").scalar()
        measure_recall(session, item.e, sample=5, settings={"ef_search": 333})
        return before, session.connection().exec_driver_sql("SELECT current_setting('hnsw.ef_search', true)").scalar()

    before, after = backend.run(engine, run)
    assert after != "333"
    assert (before or "40") == (after or "40")


@pytest.mark.backends("asyncpg", "aiosqlite")
def test_the_asynchronous_twin_measures_the_same(backend: Backend, engine: AsyncEngine):
    item = model(precision="binary")
    filled(backend, engine, item, vectors(600))

    async def run() -> Recall:
        async with AsyncSession(engine) as session:
            return await ameasure_recall(session, item.e, 5, sample=20)

    found = backend.wait(run())
    assert found.recall == backend.run(engine, lambda s: measure_recall(s, item.e, 5, sample=20)).recall
    assert (found.k, found.queries) == (5, 20)


@pytest.mark.backends("pysqlite3", "psycopg")
def test_what_makes_no_sense_is_refused_before_anything_is_asked(backend: Backend, engine: AnyEngine):
    item = model()
    filled(backend, engine, item, vectors(20))
    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"k": 0}, InvalidOption, "k must be a whole number"),
        ({"k": True}, InvalidOption, "k must be a whole number"),
        ({"sample": 0}, InvalidOption, "sample must be a whole number"),
        ({"sample": 10**9}, InvalidOption, "sample must be a whole number"),
        ({"sample": "all"}, InvalidOption, "sample must be a whole number"),
        ({"seed": -1}, InvalidOption, "seed must be a whole number"),
        ({"queries": []}, InvalidOption, "the number of queries"),
        ({"queries": 7}, InvalidOption, "queries must be a sequence of vectors"),
        ({"queries": [[1.0, float("nan")]]}, InvalidVector, "item.e"),
        ({"queries": [[1.0] * DIM, [1.0]]}, InvalidVector, "item.e"),
        ({"settings": {"ef_search": 0}}, InvalidOption, "ef_search must be a whole number"),
        ({"settings": {"probes": 1e9}}, InvalidOption, "probes must be a whole number"),
        ({"settings": {"recall": 1.0}}, InvalidOption, "recall must be a number over 0 and under 1"),
        ({"settings": {"ef": 10}}, InvalidOption, "unknown setting 'ef'"),
        ({"settings": [("ef_search", 10)]}, InvalidOption, "settings must be a mapping"),
        ({"metric": "cosin"}, Exception, "cosin"),
    ]

    def run(session: Any) -> None:
        for options, error, said in refused:
            with pytest.raises(error, match=said):
                measure_recall(session, item.e, **options)
        with pytest.raises(InvalidOption, match="is no column of a table"):
            measure_recall(session, select(item.e).subquery().c.e)
        with pytest.raises(InvalidOption, match="expected a vector column"):
            measure_recall(session, "e")

    backend.run(engine, run)
    with pytest.raises(InvalidOption, match="for async: ameasure_recall"):
        measure_recall(engine, item.e)  # type: ignore[arg-type]


@BOTH
def test_a_table_without_vectors_has_nothing_to_measure(backend: Backend, engine: AnyEngine):
    item = model()
    backend.create_all(engine, item.metadata)
    with pytest.raises(InvalidOption, match="no row has a vector"):
        backend.run(engine, lambda s: measure_recall(s, item.e))
    with pytest.raises(InvalidOption, match="no search finds a row"):
        backend.run(engine, lambda s: measure_recall(s, item.e, queries=QUERIES[:1]))


@pytest.mark.backends("psycopg")
def test_outside_of_a_transaction_it_measures_as_well(backend: Backend, engine: AnyEngine):
    item = model()
    filled(backend, engine, item, vectors(3_000))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:  # type: ignore[union-attr]
        found = measure_recall(connection, item.e, sample=5, settings={"ef_search": 50})
    assert (found.index, found.queries) == ("ix_item_e", 5)


@pytest.mark.backends("sqlite_numpy", "psycopg_noplugin", "pysqlite3")
def test_without_extension_plugin_or_index_it_measures_exact_searches(backend: Backend, engine: AnyEngine):
    class Base(DeclarativeBase): ...

    class Plain(Base):
        __tablename__ = "plain"
        id: Mapped[int] = mapped_column(primary_key=True)
        e: Mapped[Any] = mapped_column(Vector(DIM))

    backend.create_all(engine, Base.metadata)
    matrix = vectors(60)
    rows = {"id": np.arange(1, 61), "e": matrix}
    backend.run_connection(engine, lambda c: bulk.load(c, Plain, rows))
    found = backend.run(engine, lambda s: measure_recall(s, Plain.e, metric="l2", sample=10))
    assert (found.recall, found.index) == (1, None)
    assert "has no vector index" in found.reason
    assert backend.run(engine, lambda s: advise(s, Plain.e)).method == "none"
    assert backend.run(engine, lambda s: index_stats(s, Plain.e)) == []
    with pytest.raises(IndexNotUsable, match="so its searches are exact; declare one"):
        backend.run(engine, lambda s: tune(s, Plain.e))
