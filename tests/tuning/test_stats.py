"""index_stats() and optimize(): how an index is, and what makes it as it was when it was new."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Index, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_vector import IndexNotUsable, InvalidOption, Vector, bulk
from sqla_vector.tuning import IndexStats, aindex_stats, aoptimize, index_stats, measure_recall, optimize, tune
from tests.support.backends import AnyEngine, Backend
from tests.tuning.measured import DIM, filled, model, vectors

BOTH = pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")
EACH = pytest.mark.backends("psycopg", "asyncpg", "pysqlite3", "sqlite_stdlib", "aiosqlite")
POSTGRESQL = pytest.mark.backends("psycopg")
SQLITE = pytest.mark.backends("pysqlite3", "sqlite_stdlib")


INVALIDATE = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = '{}'::regclass"


def stats_of(backend: Backend, engine: AnyEngine, item: Any) -> IndexStats:
    (found,) = backend.run(engine, lambda s: index_stats(s, item.e))
    return found


def optimized(backend: Backend, engine: AnyEngine, item: Any, **options: Any) -> list[str]:
    if isinstance(engine, AsyncEngine):
        return backend.wait(aoptimize(engine, item.e, **options))
    return optimize(engine, item.e, **options)


def add(backend: Backend, engine: AnyEngine, item: Any, matrix: Any, first: int) -> None:
    ids = np.arange(first, first + len(matrix))
    backend.run_connection(engine, lambda c: bulk.load(c, item, {"id": ids, "part": ids % 10, "e": matrix}))


@EACH
def test_statistics_tell_how_an_index_is(backend: Backend, engine: AnyEngine):
    item = model(precision="int8", m=12, ef_construction=50)
    filled(backend, engine, item, vectors(500))
    found = stats_of(backend, engine, item)
    assert (found.name, found.column, found.metric, found.state) == ("ix_item_e", "item.e", "l2", "ready")
    assert found.rows == 500
    assert found.bytes is not None
    assert found.bytes > 500 * DIM
    assert (found.tuned, found.imbalance, found.advice) == ((), None, None)
    if backend.family == "postgresql":
        assert (found.method, found.precision) == ("hnsw", "half")
        assert found.options == {"m": 12, "ef_construction": 50}
        assert found.table_bytes is not None
        assert found.table_bytes > 500 * 4 * DIM
        assert found.analyzed is not None
    else:
        assert (found.method, found.precision, found.options) == ("vec0", "int8", {})
        assert found.dead == 1024 - 500


@pytest.mark.backends("asyncpg", "aiosqlite")
def test_the_asynchronous_twin_tells_the_same(backend: Backend, engine: AsyncEngine):
    item = model()
    filled(backend, engine, item, vectors(50))

    async def run() -> list[IndexStats]:
        async with AsyncSession(engine) as session:
            return await aindex_stats(session, item.e)

    (found,) = backend.wait(run())
    assert (found.name, found.rows, found.state) == ("ix_item_e", 50, "ready")


@BOTH
def test_an_index_that_is_not_there_is_told_of(backend: Backend, engine: AnyEngine):
    item = model()
    filled(backend, engine, item, vectors(20))
    (index,) = item.__table__.indexes
    backend.run_connection(engine, index.drop)
    found = stats_of(backend, engine, item)
    assert (found.state, found.bytes) == ("missing", None)
    assert "create it" in str(found.advice)
    with pytest.raises(IndexNotUsable, match="ix_item_e is not in the database"):
        optimized(backend, engine, item)


@POSTGRESQL
def test_an_interrupted_build_is_told_of_and_mended(backend: Backend, engine: AnyEngine):
    item = model()
    filled(backend, engine, item, vectors(50))
    # As a CREATE INDEX CONCURRENTLY that was killed leaves it.
    backend.run_connection(engine, lambda c: c.execute(text(INVALIDATE.format("ix_item_e"))) and None)
    found = stats_of(backend, engine, item)
    assert found.state == "invalid"
    assert "optimize() builds it anew" in str(found.advice)
    optimized(backend, engine, item)
    assert stats_of(backend, engine, item).state == "ready"


@POSTGRESQL
def test_a_build_that_goes_on_is_told_of(backend: Backend, engine: Any):
    item = model()
    filled(backend, engine, item, vectors(50))
    (index,) = item.__table__.indexes
    backend.run_connection(engine, index.drop)

    def build() -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("CREATE INDEX CONCURRENTLY ix_item_e ON item USING hnsw (e vector_l2_ops)"))

    waits = text("SELECT phase FROM pg_stat_progress_create_index WHERE phase LIKE 'waiting for writers%'")
    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as writer:
            writer.execute(text("UPDATE item SET part = part"))  # a build waits for those who write
            building = pool.submit(build)
            while backend.run_connection(engine, lambda c: c.execute(waits).first()) is None:
                assert not building.done()
            found = stats_of(backend, engine, item)
        building.result(60)
    assert found.state.startswith("building (waiting for writers before build")
    assert found.advice is None
    assert stats_of(backend, engine, item).state == "ready"


@POSTGRESQL
def test_what_an_interrupted_reindex_left_is_dropped(backend: Backend, engine: AnyEngine):
    item = model()
    filled(backend, engine, item, vectors(50))

    def leave(connection: Any) -> None:
        connection.execute(text("CREATE INDEX ix_item_e_ccnew ON item USING hnsw (e vector_l2_ops)"))
        connection.execute(
            text("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'ix_item_e_ccnew'::regclass")
        )
        connection.execute(text("CREATE INDEX ix_item_e_ccnew1 ON item USING hnsw (e vector_cosine_ops)"))

    backend.run_connection(engine, leave)
    done = optimized(backend, engine, item)
    assert done == [
        "DROP INDEX CONCURRENTLY public.ix_item_e_ccnew",
        "REINDEX INDEX CONCURRENTLY ix_item_e",
        "ANALYZE item",
    ]
    names = backend.run_connection(engine, lambda c: c.scalars(text("SELECT indexname FROM pg_indexes")).all())
    assert "ix_item_e_ccnew1" in names  # valid, so somebody's


@POSTGRESQL
def test_a_reindex_needs_the_engine_or_no_concurrency(backend: Backend, engine: AnyEngine):
    item = model()
    filled(backend, engine, item, vectors(50))
    for options, what in (({}, "REINDEX CONCURRENTLY"), ({"vacuum": True, "concurrently": False}, "VACUUM")):
        with pytest.raises(InvalidOption, match=f"{what} cannot be part of a transaction"):
            backend.run(engine, lambda s, options=options: optimize(s, item.e, **options))
    done = backend.run(engine, lambda s: optimize(s, item.e, concurrently=False))
    assert done == ["REINDEX INDEX ix_item_e", "ANALYZE item"]
    assert optimized(backend, engine, item, vacuum=True)[-1] == "VACUUM item"


@pytest.mark.backends("asyncpg", "aiosqlite")
def test_the_asynchronous_twin_optimizes_by_engine_and_by_session(backend: Backend, engine: AsyncEngine):
    item = model(precision="binary")
    filled(backend, engine, item, vectors(50))
    by_engine = optimized(backend, engine, item, vacuum=True)

    async def run() -> list[str]:
        async with AsyncSession(engine) as session, session.begin():
            return await aoptimize(session, item.e, concurrently=False)

    by_session = backend.wait(run())
    assert len(by_engine) == len(by_session) + 1
    assert by_engine[-1].startswith("VACUUM")


@SQLITE
def test_places_of_rows_that_are_gone_are_given_back(backend: Backend, engine: AnyEngine):
    item = model(precision="binary")
    filled(backend, engine, item, vectors(3_000))
    found = backend.run(engine, lambda s: tune(s, item.e, target_recall=0.5, sample=4))
    backend.run_connection(engine, lambda c: c.execute(text("DELETE FROM item WHERE id % 6 > 0")) and None)
    before = stats_of(backend, engine, item)
    done = optimized(backend, engine, item, vacuum=True)
    after = stats_of(backend, engine, item)
    assert before.dead is not None
    assert before.dead >= 2_500
    assert after.dead == 1024 - 500
    assert after.bytes is not None
    assert before.bytes is not None
    assert after.bytes < before.bytes
    assert done == ["ix_item_e made anew from the rows of its table", "ANALYZE item", "VACUUM"]
    assert [entry.settings for entry in after.tuned] == [found.settings]
    assert backend.run(engine, lambda s: measure_recall(s, item.e, sample=5)).index == "ix_item_e"


@SQLITE
def test_an_index_that_is_declared_for_postgresql_alone_is_none_here(backend: Backend, engine: AnyEngine):
    class Base(DeclarativeBase): ...

    class Plain(Base):
        __tablename__ = "plain"
        id: Mapped[int] = mapped_column(primary_key=True)
        e: Mapped[Any] = mapped_column(Vector(4))
        __table_args__ = (Index("ix_plain", "e", postgresql_using="hnsw", postgresql_ops={"e": "vector_l2_ops"}),)

    backend.create_all(engine, Base.metadata)
    (found,) = backend.run(engine, lambda s: index_stats(s, Plain.e))
    assert found.state == "missing"
    with pytest.raises(IndexNotUsable, match="ix_plain has nothing to tune"):
        backend.run(engine, lambda s: tune(s, Plain.e))
    with pytest.raises(IndexNotUsable, match="ix_plain is not in the database"):
        backend.run(engine, lambda s: optimize(s, Plain.e))


@SQLITE
def test_an_optimization_that_is_rolled_back_leaves_the_index_as_it_was(backend: Backend, engine: AnyEngine):
    item = model()
    filled(backend, engine, item, vectors(100))

    class Undone(Exception): ...

    def run(session: Any) -> None:
        optimize(session, item.e)
        raise Undone

    with pytest.raises(Undone):
        backend.run(engine, run)
    found = backend.run(engine, lambda s: measure_recall(s, item.e, sample=5))
    assert (found.recall, found.index) == (1, "ix_item_e")


@BOTH
def test_lists_that_fit_the_rows_no_longer_are_told_of_and_learned_anew(backend: Backend, engine: AnyEngine):
    item = model(method="ivfflat", lists=20)
    filled(backend, engine, item, vectors(2_000))
    backend.run(engine, lambda s: tune(s, item.e, target_recall=0.8, sample=20))
    fresh = stats_of(backend, engine, item)
    assert fresh.method == "ivfflat"
    assert fresh.options == {"lists": 20}
    assert fresh.imbalance is not None
    assert 1 <= fresh.imbalance < 3
    assert fresh.imbalance_before is not None
    assert fresh.imbalance == pytest.approx(fresh.imbalance_before, rel=0.5)
    assert (fresh.rows_before, fresh.advice) == (2_000, None)
    # All new rows are of one place, and so of one list.
    crowd = vectors(1)[0] + np.random.default_rng(2).normal(scale=0.01, size=(1_900, DIM)).astype(np.float32)
    add(backend, engine, item, crowd, 10_001)
    crowded = stats_of(backend, engine, item)
    assert crowded.imbalance is not None
    assert crowded.imbalance > 1.5 * fresh.imbalance
    assert "times as many rows as when it was last tuned or optimized" in str(crowded.advice)
    add(backend, engine, item, vectors(200, seed=8), 20_001)
    assert "4,100 rows" in str(stats_of(backend, engine, item).advice)
    optimized(backend, engine, item)
    found = stats_of(backend, engine, item)
    assert (found.advice, found.rows_before) == (None, 4_100)
    assert found.imbalance is not None
    assert found.imbalance < crowded.imbalance
    assert len(found.tuned) == 1


@POSTGRESQL
def test_an_imbalance_is_that_of_the_lists(backend: Backend, engine: AnyEngine):
    """Two far heaps of which one has nine in ten rows: 2 * (0.9² + 0.1²)."""
    item = model(method="ivfflat", lists=2)
    heap = np.random.default_rng(4).normal(scale=0.1, size=(1_000, DIM)).astype(np.float32)
    heap[:900] += 10
    filled(backend, engine, item, heap)
    found = stats_of(backend, engine, item)
    assert found.imbalance == pytest.approx(2 * (0.9**2 + 0.1**2), rel=0.15)


@SQLITE
def test_lists_that_were_never_trained_are_told_of(backend: Backend, engine: AnyEngine):
    item = model(method="ivfflat")
    backend.create_all(engine, item.metadata)
    add(backend, engine, item, vectors(10_000), 1)
    found = stats_of(backend, engine, item)
    assert found.options == {"lists": 1}
    assert "has one list" in str(found.advice)
    assert "trained anew" in optimized(backend, engine, item)[0]
    assert stats_of(backend, engine, item).advice is None


@EACH
def test_an_index_that_is_built_otherwise_wants_to_be_tuned_again(backend: Backend, engine: AnyEngine):
    item = model(method="ivfflat", lists=10)
    filled(backend, engine, item, vectors(1_500))
    backend.run(engine, lambda s: tune(s, item.e, target_recall=0.5, sample=4))
    other = model(method="ivfflat", lists=20)
    assert "was tuned as ivfflat full l2 lists=10 and is ivfflat full l2 lists=20 now" in str(
        stats_of(backend, engine, other).advice
    )


@BOTH
def test_to_optimize_what_has_no_index_is_refused_with_what_to_do(backend: Backend, engine: AnyEngine):
    item = model()
    said = "item.e has no vector index for cosine, so its searches are exact; declare one: vector_index"
    with pytest.raises(IndexNotUsable, match=said):
        backend.run(engine, lambda s: optimize(s, item.e, metric="cosine"))
