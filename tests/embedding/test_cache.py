"""Caches: the same text is paid for once, and a cache is never a reason for work to fail or to wait."""

from __future__ import annotations

import logging
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sqlalchemy import MetaData, Table, create_engine, event, func, insert, select, update
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import StaticPool

from sqla_vector.embedding import CallableEmbedder, embed, fingerprint
from sqla_vector.embedding.cache import CachedEmbedder, MemoryCache, TableCache, VectorCache, cache_table
from sqla_vector.embedding.fingerprint import Model
from sqla_vector.exc import InvalidIdentifier, InvalidOption
from tests.support.backends import AnyEngine, Backend
from tests.support.embedding_server import DIMENSIONS, vector_of

METADATA = MetaData()
TABLE = cache_table(METADATA)


class Counting:
    """An embedder that remembers what it was asked."""

    name = "counting"
    dimensions = DIMENSIONS

    def __init__(self, version: str = "1") -> None:
        self.version = version
        self.asked: list[list[str]] = []

    def embed(self, texts: list[str]) -> Any:
        self.asked.append(texts)
        return [vector_of(text) * int(self.version) for text in texts]


def keyed(*texts: str) -> dict[str, NDArray[np.float32]]:
    return {str(fingerprint(Model("counting", "1"), text)): vector_of(text) for text in texts}


def file_engine(path: Path) -> Engine:
    engine = create_engine(f"sqlite:///{path}", plugins=["sqla_vector"])
    METADATA.create_all(engine)
    return engine


def lists(found: Any) -> dict[str, list[float]]:
    return {key: vector.tolist() for key, vector in found.items()}


def test_the_same_text_is_embedded_once():
    inner = Counting()
    cached = CachedEmbedder(inner)
    assert cached.embed(["a", "b", "a"]).tolist() == [vector_of(t).tolist() for t in ("a", "b", "a")]
    assert cached.embed(["b", "c"]).tolist() == [vector_of(t).tolist() for t in ("b", "c")]
    assert cached.embed(["a"]).dtype == np.float32
    assert inner.asked == [["a", "b"], ["c"]]
    assert cached.embed([]).shape == (0, DIMENSIONS)
    assert (cached.name, cached.version, cached.dimensions) == ("counting", "1", DIMENSIONS)


@given(st.lists(st.lists(st.sampled_from(["a", "b", "c", "", "\0", "é", "é"]), max_size=8), max_size=6))
def test_a_cached_embedder_gives_what_the_embedder_gives(calls: list[list[str]]):
    inner, plain = Counting(), Counting()
    cached = CachedEmbedder(inner, MemoryCache(3))
    for texts in calls:
        assert cached.embed(texts).tolist() == embed(plain, texts).tolist()
    assert all(len(set(texts)) == len(texts) for texts in inner.asked)


def test_another_version_is_not_served_from_the_cache():
    cache = MemoryCache()
    old, new = Counting("1"), Counting("2")
    CachedEmbedder(old, cache).embed(["a"])
    assert CachedEmbedder(new, cache).embed(["a"]).tolist() == [(vector_of("a") * 2).tolist()]
    assert new.asked == [["a"]]
    assert len(cache) == 2


def test_vectors_of_another_dimension_are_not_served():
    cache = MemoryCache()
    CachedEmbedder(Counting(), cache).embed(["a"])
    short = CallableEmbedder(lambda texts: [[1.0, 2.0]] * len(texts), name="counting", version="1", dimensions=2)
    assert CachedEmbedder(short, cache).embed(["a"]).tolist() == [[1, 2]]


def test_memory_forgets_what_was_not_used_for_longest():
    cache = MemoryCache(2)
    for text in ("a", "b"):
        cache.put(keyed(text))
    assert cache.get(list(keyed("a")))
    cache.put(keyed("c"))
    assert lists(cache.get(list(keyed("a", "b", "c")))) == lists(keyed("a", "c"))
    assert len(cache) == 2
    cache.put(keyed("d", "e", "f"))
    assert lists(cache.get(list(keyed("d", "e", "f")))) == lists(keyed("e", "f"))


@pytest.mark.parametrize("number", [0, -1, 2.5, True, "3"])
def test_a_size_that_cannot_be_is_refused(number: Any):
    with pytest.raises(InvalidOption, match="max_vectors"):
        MemoryCache(number)


def test_what_memory_keeps_cannot_be_edited():
    cache = MemoryCache()
    vectors = {key: vector.copy() for key, vector in keyed("a").items()}
    cache.put(vectors)
    for vector in vectors.values():
        vector[:] = 0
    (found,) = cache.get(list(vectors)).values()
    assert found.tolist() == vector_of("a").tolist()
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1
    CachedEmbedder(Counting(), cache).embed(["a"])[0][0] = 9  # a copy
    assert lists(cache.get(list(vectors))) == lists(keyed("a"))


def test_threads_share_a_memory():
    inner, cache = Counting(), MemoryCache(5)
    cached = CachedEmbedder(inner, cache)
    texts = [f"text {number}" for number in range(20)]
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(cached.embed, [texts] * 20):
            assert found.tolist() == [vector_of(text).tolist() for text in texts]
    assert len(cache) == 5


plugin_sync = pytest.mark.backends(is_async=False, plugin=True)


@plugin_sync
def test_a_table_keeps_vectors_for_good(backend: Backend, engine: AnyEngine):
    backend.create_all(engine, METADATA)
    texts = [f"text {number}" for number in range(1_100)]  # more than one query asks for
    first, second = Counting(), Counting()
    assert isinstance(engine, Engine)
    made = CachedEmbedder(first, TableCache(engine, TABLE)).embed(texts)
    again = backend.make_engine()
    assert isinstance(again, Engine)
    kept = CachedEmbedder(second, TableCache(again, TABLE)).embed(texts)
    assert kept.tobytes() == made.tobytes()
    assert (len(first.asked), second.asked) == (1, [])


@plugin_sync
def test_a_table_takes_what_another_has_put(backend: Backend, engine: AnyEngine):
    backend.create_all(engine, METADATA)
    assert isinstance(engine, Engine)
    cache = TableCache(engine, TABLE)
    cache.put({})
    cache.put(keyed("b"))
    cache.put(keyed("c", "b", "a"))
    assert lists(cache.get(list(keyed("a", "b", "c", "d")))) == lists(keyed("a", "b", "c"))


@plugin_sync
def test_threads_that_put_the_same_keys(backend: Backend, engine: AnyEngine):
    backend.create_all(engine, METADATA)
    texts = [f"text {number}" for number in range(50)]
    start = threading.Barrier(4)
    assert isinstance(engine, Engine)
    cache = TableCache(engine, TABLE)

    def work(number: int) -> list[list[float]]:
        start.wait()
        cached = CachedEmbedder(Counting(), cache)
        return [cached.embed([text])[0].tolist() for text in texts[number:] + texts[:number]]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(4)))
    assert found == [[vector_of(t).tolist() for t in texts[n:] + texts[:n]] for n in range(4)]
    known = lists(cache.get(list(keyed(*texts))))
    assert known.items() <= lists(keyed(*texts)).items()


@plugin_sync
def test_keys_are_put_in_one_order(backend: Backend, engine: AnyEngine):
    # In their callers' orders two transactions could wait for each other in PostgreSQL.
    backend.create_all(engine, METADATA)
    assert isinstance(engine, Engine)
    put: list[str] = []

    @event.listens_for(engine, "before_execute")
    def remember(conn: Any, clause: Any, many: list[Any], one: Any, options: Any) -> None:
        put.extend(row["fingerprint"] for row in many)

    keys = sorted(keyed(*"abcdefgh"))
    TableCache(engine, TABLE).put({key: vector_of("a") for key in reversed(keys)})
    assert put == keys


def _fill(path: str, texts: list[str]) -> None:
    engine = create_engine(f"sqlite:///{path}", plugins=["sqla_vector"])
    CachedEmbedder(Counting(), TableCache(engine, TABLE)).embed(texts)
    engine.dispose()


def test_processes_that_put_the_same_keys(tmp_path: Path):
    engine = file_engine(tmp_path / "cache.db")
    texts = [f"text {number}" for number in range(50)]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_fill, args=(str(tmp_path / "cache.db"), texts)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert lists(TableCache(engine, TABLE).get(list(keyed(*texts)))) == lists(keyed(*texts))
    engine.dispose()


@plugin_sync
def test_a_damaged_row_is_embedded_again(backend: Backend, engine: AnyEngine):
    backend.create_all(engine, METADATA)
    assert isinstance(engine, Engine)
    cache = TableCache(engine, TABLE)
    texts = ["odd", "short", "not a number", "whole"]
    cache.put(keyed(*texts))
    bad = [b"abc", b"abcd", np.full(DIMENSIONS, np.nan, "<f4").tobytes()]
    with engine.begin() as connection:
        for key, data in zip(keyed(*texts[:3]), bad, strict=True):
            connection.execute(update(TABLE).where(TABLE.c.fingerprint == key).values(vector=data))
    inner = Counting()
    assert CachedEmbedder(inner, cache).embed(texts).tolist() == [vector_of(text).tolist() for text in texts]
    assert inner.asked == [texts[:3]]


@plugin_sync
def test_what_was_paid_for_stays_when_the_transaction_is_undone(backend: Backend, engine: AnyEngine):
    backend.create_all(engine, METADATA)
    cache_engine = backend.make_engine()
    assert isinstance(engine, Engine)
    assert isinstance(cache_engine, Engine)
    inner = Counting()
    cached = CachedEmbedder(inner, TableCache(cache_engine, TABLE))
    with engine.connect() as connection:
        connection.begin()
        cached.embed(["a"])
        connection.rollback()
    cached.embed(["a"])
    assert inner.asked == [["a"]]


def busy_timeout(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one())


@pytest.mark.backends("pysqlite3", "sqlite_numpy")
def test_in_the_file_that_a_session_writes_to_nothing_is_kept_and_nothing_waits(
    backend: Backend, caplog: pytest.LogCaptureFixture
):
    # With its usual limit of an hour SQLite would wait for the transaction that waits for it.
    engine = backend.make_engine(connect_args={"timeout": 3600})
    assert isinstance(engine, Engine)
    backend.create_all(engine, METADATA)
    other = Table("other", MetaData(), *(column._copy() for column in TABLE.columns))
    other.create(engine)
    cached = CachedEmbedder(Counting(), TableCache(engine, TABLE))
    with caplog.at_level(logging.WARNING), engine.begin() as writing:
        writing.execute(insert(other), {"fingerprint": "x", "vector": b""})
        assert cached.embed(["secret text"]).tolist() == [vector_of("secret text").tolist()]
    assert "the cache of counting@1 cannot keep 1 vectors: OperationalError: database is locked" in caplog.text
    assert "secret" not in caplog.text
    with engine.connect() as connection:
        assert connection.scalar(select(func.count()).select_from(other)) == 1
    assert lists(TableCache(engine, TABLE).get(list(keyed("secret text")))) == {}
    cached.embed(["secret text"])
    assert lists(TableCache(engine, TABLE).get(list(keyed("secret text")))) == lists(keyed("secret text"))
    assert busy_timeout(engine) == 3_600_000


@pytest.mark.backends("psycopg", "psycopg2")
def test_a_key_that_another_transaction_holds_is_not_waited_for(
    backend: Backend, engine: AnyEngine, caplog: pytest.LogCaptureFixture
):
    backend.create_all(engine, METADATA)
    assert isinstance(engine, Engine)
    cached = CachedEmbedder(Counting(), TableCache(engine, TABLE))
    (key,) = keyed("a")
    with caplog.at_level(logging.WARNING), engine.begin() as holding:
        holding.execute(insert(TABLE), {"fingerprint": key, "vector": b""})
        assert cached.embed(["a"]).tolist() == [vector_of("a").tolist()]
    assert "cannot keep 1 vectors: LockNotAvailable" in caplog.text
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "0"


@plugin_sync
def test_a_table_that_is_not_there_costs_the_cache_and_nothing_else(
    backend: Backend, engine: AnyEngine, caplog: pytest.LogCaptureFixture
):
    assert isinstance(engine, Engine)
    cached = CachedEmbedder(Counting(), TableCache(engine, TABLE))
    assert cached.embed(["a"]).tolist() == [vector_of("a").tolist()]
    assert "the cache of counting@1 cannot be read" in caplog.text
    assert "cannot keep 1 vectors" in caplog.text
    assert "parameters" not in caplog.text


def test_any_failure_of_a_cache_is_passed_over(caplog: pytest.LogCaptureFixture):
    class Broken:
        def get(self, keys: Any) -> Any:
            raise RuntimeError("down")

        def put(self, vectors: Any) -> None:
            raise RuntimeError("down")

    broken: VectorCache = Broken()
    assert CachedEmbedder(Counting(), broken).embed(["a"]).tolist() == [vector_of("a").tolist()]
    assert [record.getMessage() for record in caplog.records] == [
        "the cache of counting@1 cannot be read: RuntimeError: down",
        "the cache of counting@1 cannot keep 1 vectors: RuntimeError: down",
    ]


@pytest.mark.parametrize("options", [{}, {"poolclass": StaticPool}], ids=["memory", "static"])
def test_an_engine_with_one_connection_for_everybody_is_refused(options: dict[str, Any]):
    # The cache's commit would be the session's.
    engine = create_engine("sqlite://", plugins=["sqla_vector"], **options)
    with pytest.raises(InvalidOption, match=r"connections of its own.*use MemoryCache"):
        TableCache(engine, TABLE)
    engine.dispose()


def test_what_is_no_engine_is_refused():
    engine: Any = create_async_engine("sqlite+aiosqlite:///cache.db")
    with pytest.raises(InvalidOption, match=r"TableCache needs an Engine, got AsyncEngine.*create_engine"):
        TableCache(engine, TABLE)


def test_the_table_is_one_of_the_projects():
    metadata = MetaData()
    table = cache_table(metadata, "kept", schema="app")
    assert metadata.tables["app.kept"] is table
    assert table.c.vector.nullable is False
    for name, schema in (("a b", None), ("kept", "a;b")):
        with pytest.raises(InvalidIdentifier):
            cache_table(MetaData(), name, schema)


def test_a_cache_asks_for_each_key_once(tmp_path: Path):
    engine = file_engine(tmp_path / "cache.db")
    asked: list[int] = []

    @event.listens_for(engine, "before_cursor_execute")
    def count(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if statement.startswith("SELECT"):
            asked.append(len(parameters))

    CachedEmbedder(Counting(), TableCache(engine, TABLE)).embed(["a", "b"] * 400)
    assert asked == [2]
    engine.dispose()
