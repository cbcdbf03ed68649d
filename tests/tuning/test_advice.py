"""advise(): which index, and why; the sizes that it tells are those that pgvector and vec0 build."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Column, Integer, MetaData, Table, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from sqla_vector import (
    BitVector,
    HalfVector,
    InvalidOption,
    SparseVector,
    UnsupportedMetric,
    Vector,
    bulk,
    vector_index,
)
from sqla_vector.tuning import Advice, aadvise, advise, index_stats
from sqla_vector.tuning.advice import Situation, advised
from sqla_vector.tuning.sizes import hnsw_bytes, ivfflat_build_bytes, ivfflat_bytes, vec0_bytes
from tests.support.backends import AnyEngine, Backend
from tests.tuning.measured import filled, model, vectors

BOTH = pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")
GB = 2**30

SERVER = Situation(
    column="article.embedding",
    kind="vector",
    dim=384,
    rows=100_000,
    metric="cosine",
    target_recall=0.95,
    memory=GB,
    maintenance=64 * 2**20,
    workers=2,
    is_sqlite=False,
    has_ivfflat=True,
    has_vec0=True,
)
FILE = replace(SERVER, memory=None, maintenance=None, workers=0, is_sqlite=True)


def table(dim: int, **options: Any) -> Table:
    columns = Column("id", Integer, primary_key=True), Column("e", Vector(dim))
    return Table("item", MetaData(), *columns, vector_index("ix_item_e", "e", **options))


def stored(backend: Backend, engine: AnyEngine, item: Table, rows: int) -> None:
    matrix = np.random.default_rng(3).normal(size=(rows, item.c.e.type.dim)).astype(np.float32)  # type: ignore[attr-defined]

    def run(connection: Any) -> None:
        (index,) = item.indexes
        item.metadata.create_all(connection)
        index.drop(connection)
        bulk.load(connection, item, {"id": np.arange(rows), "e": matrix})
        if backend.family == "postgresql":  # one process leaves no pages half full for another
            connection.execute(text("SET LOCAL max_parallel_maintenance_workers = 0"))
        index.create(connection)

    backend.run_connection(engine, run)


@pytest.mark.backends("psycopg")
@pytest.mark.parametrize(
    ("dim", "rows", "options"),
    [
        (16, 3_000, {}),
        (128, 2_000, {"m": 32, "ef_construction": 64}),
        (384, 800, {}),
        (384, 800, {"precision": "half"}),
        (1024, 400, {"precision": "binary"}),
        (1990, 60, {}),
        (16, 3_000, {"method": "ivfflat", "lists": 3}),
        (768, 500, {"method": "ivfflat", "lists": 10}),
        (768, 500, {"method": "ivfflat", "lists": 10, "precision": "half"}),
    ],
    ids=str,
)
def test_the_size_of_an_index_is_as_told(backend: Backend, engine: AnyEngine, dim: int, rows: int, options: Any):
    item = table(dim, metric="l2", **options)
    stored(backend, engine, item, rows)
    (stats,) = backend.run_connection(engine, lambda c: index_stats(c, item.c.e))
    precision = options.get("precision", "full")
    if stats.method == "ivfflat":
        told = ivfflat_bytes(rows, dim, precision, options["lists"])
    else:
        told = hnsw_bytes(rows, dim, precision, options.get("m", 16))
    assert told == pytest.approx(stats.bytes, rel=0.08)


@pytest.mark.backends("psycopg")
def test_lists_that_want_more_memory_than_there_is_are_refused_as_told(backend: Backend, engine: AnyEngine):
    item = table(400, metric="l2", method="ivfflat", lists=20)
    stored(backend, engine, item, 600)
    # pgvector makes room for 10,000 rows at least, or as many as the pages of the table could hold.
    needed = ivfflat_build_bytes(10_000, 400, "full", 20)

    def build(part: float) -> None:
        def run(connection: Any) -> None:
            connection.execute(text(f"SET LOCAL maintenance_work_mem = {int(part * needed / 1024)}"))
            connection.execute(text("REINDEX INDEX ix_item_e"))

        backend.run_connection(engine, run)

    with pytest.raises(DBAPIError, match="memory required is"):
        build(0.9)
    build(1.1)


@pytest.mark.backends("pysqlite3", "sqlite_stdlib")
@pytest.mark.parametrize("precision", ["full", "int8", "binary"])
def test_the_size_of_a_vec0_table_is_as_told(backend: Backend, engine: AnyEngine, precision: Any):
    # vec0 takes place for 1,024 rows at a time.
    item = table(256, metric="l2", precision=precision)
    stored(backend, engine, item, 2_048)
    (stats,) = backend.run_connection(engine, lambda c: index_stats(c, item.c.e))
    assert vec0_bytes(2_048, 256, precision) == pytest.approx(stats.bytes, rel=0.05)


@BOTH
def test_few_rows_want_no_index(backend: Backend, engine: AnyEngine):
    item = model()
    filled(backend, engine, item, vectors(50))
    found: Advice = backend.run(engine, lambda s: advise(s, item.e))
    assert (found.method, found.declaration, found.rows, found.declared) == ("none", None, 50, ("ix_item_e",))
    assert str(found) == found.reason
    assert found.reason.startswith("50 rows: a scan of so few rows is as fast as an index")


@BOTH
def test_the_rows_to_come_can_be_told(backend: Backend, engine: AnyEngine):
    item = model()
    filled(backend, engine, item, vectors(50))
    found = backend.run(engine, lambda s: advise(s, item.e, rows=3_000_000, memory=4 * GB))
    assert found.method == ("hnsw" if backend.family == "postgresql" else "ivfflat")
    assert found.rows == 3_000_000
    assert found.declaration is not None
    declared = eval(found.declaration, {"vector_index": vector_index})  # noqa: S307 - what is advised can be declared
    assert declared.name == "ix_item_e"
    assert found.as_dict()["options"] == found.options


@pytest.mark.backends("asyncpg", "aiosqlite")
def test_the_asynchronous_twin_advises_the_same(backend: Backend, engine: AsyncEngine):
    item = model()
    backend.create_all(engine, item.metadata)

    async def run() -> Advice:
        async with AsyncSession(engine) as session:
            return await aadvise(session, item.e, rows=50_000)

    assert backend.wait(run()) == backend.run(engine, lambda s: advise(s, item.e, rows=50_000))


@pytest.mark.parametrize(
    ("situation", "method", "precision", "options"),
    [
        (SERVER, "hnsw", "full", {"m": 16, "ef_construction": 64}),
        (replace(SERVER, rows=9_999), "none", "full", {}),
        (replace(SERVER, target_recall=0.97), "hnsw", "full", {"m": 24, "ef_construction": 128}),
        (replace(SERVER, target_recall=0.99), "hnsw", "full", {"m": 32, "ef_construction": 200}),
        (replace(SERVER, dim=3_000), "hnsw", "half", {"m": 24, "ef_construction": 128}),
        (replace(SERVER, dim=5_000), "hnsw", "binary", {"m": 24, "ef_construction": 128}),
        (replace(SERVER, dim=1_536, rows=150_000), "hnsw", "half", {"m": 24, "ef_construction": 128}),
        (replace(SERVER, dim=1_536, rows=1_000_000), "hnsw", "binary", {"m": 24, "ef_construction": 128}),
        (replace(SERVER, rows=1_000_000, memory=64 * 2**20), "ivfflat", "half", {"lists": 1_000}),
        (replace(SERVER, rows=10_000_000), "ivfflat", "half", {"lists": 3_163}),
        (replace(SERVER, rows=10_000_000, has_ivfflat=False), "hnsw", "half", {"m": 16, "ef_construction": 64}),
        (replace(SERVER, kind="halfvec", dim=4_500), "hnsw", "binary", {"m": 24, "ef_construction": 128}),
        (replace(SERVER, kind="bit", metric="hamming"), "hnsw", "full", {"m": 16, "ef_construction": 64}),
        (replace(SERVER, kind="bit", dim=70_000), "none", "full", {}),
        (replace(SERVER, kind="sparsevec", dim=30_000), "hnsw", "full", {"m": 24, "ef_construction": 128}),
        (replace(SERVER, memory=None), "hnsw", "full", {"m": 16, "ef_construction": 64}),
        (replace(FILE, rows=20_000), "vec0", "full", {}),
        (FILE, "ivfflat", "full", {"lists": 632}),
        (replace(FILE, metric="l1", has_ivfflat=False), "vec0", "full", {}),
        (replace(FILE, rows=10**9), "ivfflat", "full", {"lists": 32_768}),
        (replace(SERVER, rows=10**10), "ivfflat", "half", {"lists": 32_768}),
        (replace(FILE, rows=9_999), "none", "full", {}),
        (replace(FILE, dim=8_193), "none", "full", {}),
        (replace(FILE, kind="sparsevec", has_vec0=False), "none", "full", {}),
    ],
)
def test_an_index_is_chosen_by_what_is_known(situation: Situation, method: str, precision: str, options: Any):
    found = advised(situation, "embedding")
    assert (found.method, found.precision, found.options) == (method, precision, options)
    assert (found.declaration is None) == (method == "none")
    assert f"{situation.rows:,} rows" in found.reason
    if found.declaration is not None:
        declared = eval(found.declaration, {"vector_index": vector_index})  # noqa: S307
        assert declared.name == "ix_article_embedding"
        types = {"vector": Vector, "halfvec": HalfVector, "bit": BitVector, "sparsevec": SparseVector}
        column = Column("embedding", types[situation.kind](situation.dim))
        Table("article", MetaData(), Column("id", Integer, primary_key=True), column, declared)  # is not refused


def test_a_reason_says_what_a_build_wants():
    assert "Set maintenance_work_mem to 212 MB" in advised(SERVER, "embedding").reason
    assert "maintenance_work_mem" not in advised(replace(SERVER, maintenance=GB), "embedding").reason
    lists = advised(replace(SERVER, rows=10_000_000), "embedding").reason
    assert "or it is refused" in lists
    assert "does not stay in memory (1.0 GB)" in lists


@pytest.mark.parametrize("rows", [20_000, 100_000])
def test_a_reason_says_what_does_not_fit_into_the_memory(rows: int):
    fits, found = (advised(replace(FILE, rows=rows, memory=memory), "e") for memory in (GB, 1_000))
    assert "memory" not in fits.reason
    assert "more than the memory for it (1.0 kB)" in found.reason
    assert 'precision="int8"' in found.reason


def test_more_rows_are_never_less_work():
    for situation in (SERVER, FILE):
        found = [advised(replace(situation, rows=rows), "e") for rows in (10_000, 100_000, 900_000)]
        assert [one.index_bytes for one in found] == sorted(one.index_bytes for one in found)
        assert [one.exact_seconds for one in found] == sorted(one.exact_seconds for one in found)


@BOTH
def test_what_makes_no_sense_is_refused(backend: Backend, engine: AnyEngine):
    item = model()
    backend.create_all(engine, item.metadata)
    plain = Table("plain", MetaData(), Column("id", Integer, primary_key=True), Column("e", Vector()))
    refused: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (item.e, {"target_recall": 1}, InvalidOption, "target_recall must be"),
        (item.e, {"rows": -1}, InvalidOption, "rows must be a whole number"),
        (item.e, {"rows": 2.5}, InvalidOption, "rows must be a whole number"),
        (item.e, {"memory": 0}, InvalidOption, "memory must be a whole number"),
        (item.e, {"metric": "hamming"}, UnsupportedMetric, "hamming"),
        (item.id, {}, InvalidOption, "is no vector column"),
        (plain.c.e, {}, InvalidOption, "has no dimension"),
    ]

    def run(session: Any) -> None:
        for column, options, error, said in refused:
            with pytest.raises(error, match=said):
                advise(session, column, **options)

    backend.run(engine, run)
