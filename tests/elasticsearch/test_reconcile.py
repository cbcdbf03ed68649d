"""An index that does not equal its database is found out, document by document, and repaired."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import elasticsearch
import numpy as np
import pytest
from elasticsearch import AsyncElasticsearch, Elasticsearch
from sqlalchemy import text, update

from sqla_vector.elasticsearch import Reconcile, Searcher, Sync, acheck, afix, check, fix
from sqla_vector.exc import DatabaseRestored, IndexMissing, InvalidOption, SearchError
from tests.elasticsearch.filled import CROSSED, FAST, Editor, Filled, Planter
from tests.elasticsearch.synced import mirrored_models
from tests.support.backends import AnyEngine, Backend

pytestmark = pytest.mark.backends("psycopg", "asyncpg", "pysqlite3", "aiosqlite")

ONE_OF_EACH = pytest.mark.backends("psycopg", "pysqlite3")

Make = Callable[..., Filled]


@pytest.fixture
def filled(backend: Backend, engine: AnyEngine, node: Any, index_name: str) -> Iterator[Make]:
    """Make a database with rows, and an index that equals it."""
    made: list[Filled] = []

    def make(count: int = 0, settings: dict[str, Any] | None = None) -> Filled:
        base = mirrored_models(index_name)
        if settings:
            base.index._given_settings = settings
        one = Filled(backend, engine, node.url, base)
        made.append(one)
        if count:
            one.insert(count)
        one.rebuild()
        return one

    yield make
    for one in made:
        one.close()


@pytest.mark.backends("pysqlite3")
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("fast", [False, True])
def test_documents_that_somebody_wrote_with_a_routing_are_extra(filled: Make, shards: int, fast: bool) -> None:
    f = filled(20, settings={"number_of_shards": shards, "number_of_replicas": 0})
    for _ in range(20):
        f.draw()
    document = f.documents()["5"]
    for id_ in ("5", "no row's"):
        for routing in "abcd":
            f.client.index(index=f.index.name, id=id_, routing=routing, document=document)
    f.client.indices.refresh(index=f.index.name)
    extra = f.client.search(index=f.index.name, size=100)["hits"]["hits"]
    extra = [(hit["_id"], hit["_routing"]) for hit in extra if "_routing" in hit]
    assert len(extra) >= 2
    with f.sessions() as session:
        page = Searcher(f.client, f.index).search(session, text="5", k=20)
        assert [hit.key for hit in page] == [(5,)]
    report = f.check(fast=fast)
    assert sorted((one.id, one.routing) for one in report.examples) == sorted(extra)
    assert (report.extra, report.missing, report.stale) == (len(extra), 0, 0)
    repaired = f.check(fix=True, fast=fast)
    assert repaired.repaired == repaired.noted == len(extra)
    after = f.check()
    assert (after.is_equal, after.documents) == (True, 20)
    assert f.differences() == []


def test_all_of_two_hundred_differences_are_found_and_repaired_and_no_others(filled: Make, backend: Backend) -> None:
    count = int(os.environ.get("SQLA_VECTOR_TEST_ELASTICSEARCH_ROWS", 2_000))
    f = filled(count)
    planter = Planter(f, each=10)
    planter.plant()
    assert len(planter.planted) == 200
    report = f.check(examples=1000)
    assert {one.id for one in report.examples} == planter.planted.keys()
    assert (report.missing, report.extra, report.stale) == (20, 30, 150)
    assert (report.differences, report.pending, report.dead, report.noted) == (200, 0, 0, 0)
    assert not report.is_equal
    by_kind = {planter.planted[one.id]: (one.kind, one.what) for one in report.examples}
    assert by_kind["the least change of a vector"] == ("stale", ("embedding",))
    assert by_kind["a changed hash"] == ("stale", ("_sqla_vector.hash",))
    assert by_kind["another key"] == ("stale", ("_sqla_vector.key",))
    assert by_kind["nothing about itself"] == ("stale", ("_sqla_vector.hash", "_sqla_vector.key"))
    assert by_kind["older contents"] == ("stale", ("title", "_sqla_vector.hash"))
    assert by_kind["a number as text"] == by_kind["a field less"] == ("stale", ("views",))
    assert by_kind["an id that is no key"] == ("extra", ())
    repaired = f.check(fix=True)
    assert (repaired.differences, repaired.noted, repaired.repaired) == (200, 200, 200)
    assert len(repaired.examples) == 20
    after = f.check()
    assert (after.differences, after.is_equal) == (0, True)
    assert after.rows == after.documents == count
    assert f.differences() == []
    assert f.entries() == []


@ONE_OF_EACH
def test_the_functions_do_the_same(filled: Make) -> None:
    f = filled(20)
    f.client.delete(index=f.index.name, id="7")
    assert check(f.sessions, f.client, f.index).missing == 1
    assert fix(f.sessions, f.client, f.index).repaired == 1
    assert check(f.sessions, f.client, f.index, fast=True).is_equal


@pytest.mark.backends("asyncpg", "aiosqlite")
def test_the_asynchronous_functions_do_the_same(filled: Make) -> None:
    f = filled(20)
    f.client.delete(index=f.index.name, id="7")

    async def run() -> tuple[Any, Any]:
        async with AsyncElasticsearch(f.url) as client:
            return await acheck(f.sessions, client, f.index), await afix(f.sessions, client, f.index)

    checked, fixed = f.backend.wait(run())
    assert (checked.missing, fixed.repaired) == (1, 1)
    assert f.differences() == []


@ONE_OF_EACH
def test_hashes_alone_do_not_show_what_somebody_changed_in_the_index(filled: Make) -> None:
    f = filled(20)
    (physical,) = f.behind()
    document = f.documents()["5"]
    f.client.index(index=physical, id="5", document={**document, "title": "tampered"})
    f.draw()
    assert f.check(fast=True).is_equal
    assert f.check().stale == 1


def test_edits_during_a_check_are_no_differences(filled: Make) -> None:
    f = filled(300)
    editor = Editor(f.base, seed=1, most=300)
    reports = _while_edited_async(f, editor) if f.backend.is_async else _while_edited(f, editor)
    assert editor.edits > 0
    assert [(str(report), report.examples) for report in reports if report.differences or report.dead] == []
    f.sync()
    assert f.check().is_equal
    assert f.differences() == []


def _while_edited(f: Filled, editor: Editor) -> list[Any]:
    stopped = threading.Event()

    def edit() -> None:
        while not stopped.is_set():
            with suppress(*CROSSED):
                f.run(editor.edit)

    with Elasticsearch(f.url) as client:
        sync = Sync(f.sessions, client, f.index, poll=0.01, batch_size=20, **FAST)
        threads = [threading.Thread(target=edit), threading.Thread(target=sync.run)]
        for thread in threads:
            thread.start()
        try:
            return [f.check(page=50) for _ in range(5)]
        finally:
            stopped.set()
            sync.stop()
            for thread in threads:
                thread.join()


def _while_edited_async(f: Filled, editor: Editor) -> list[Any]:
    async def run() -> list[Any]:
        async with AsyncElasticsearch(f.url) as client:
            sync = Sync(f.sessions, client, f.index, poll=0.01, batch_size=20, **FAST)
            is_stopped = False

            async def edit() -> None:
                while not is_stopped:
                    with suppress(*CROSSED):
                        async with f.sessions() as session, session.begin():
                            await session.run_sync(editor.edit)

            tasks = [asyncio.create_task(edit()), asyncio.create_task(sync.arun())]
            try:
                return [await Reconcile(f.sessions, client, f.index, page=50, **FAST).arun() for _ in range(5)]
            finally:
                is_stopped = True
                sync.stop()
                await asyncio.gather(*tasks)

    found: list[Any] = f.backend.wait(run())
    return found


@ONE_OF_EACH
@pytest.mark.parametrize("fast", [False, True])
def test_rows_that_change_at_every_step_of_a_check_are_no_differences(filled: Make, fast: bool) -> None:
    f, numbers = filled(3), itertools.count()

    def change(session: Any) -> None:
        session.get(f.base.Article, 1).title = f"edit {next(numbers)}"
        found = session.get(f.base.Article, 2)
        session.add(f.base.Article(id=2, title="again")) if found is None else session.delete(found)

    with Elasticsearch(f.url) as client:
        task = Reconcile(f.sessions, client, f.index, workers=1, fast=fast)
        steps = task._steps(False)
        step, report = next(steps), None
        while report is None:
            answer = task._driver._do(step)
            f.run(change)
            f.sync()
            try:
                step = steps.send(answer)
            except StopIteration as ended:
                report = ended.value
    assert (report.differences, report.dead, report.examples) == (0, 0, [])
    # They were looked at, again and again.
    assert report.pending > 0
    assert f.check().is_equal


@ONE_OF_EACH
def test_what_waits_in_the_outbox_is_no_difference(filled: Make) -> None:
    f = filled(30)

    def change(session: Any) -> None:
        session.get(f.base.Article, 1).title = "later"
        session.delete(session.get(f.base.Article, 2))
        session.add(f.base.Article(id=1000, title="new"))

    f.run(change)
    report = f.check()
    assert (report.differences, report.pending, report.is_equal) == (0, 3, True)
    fixed = f.check(fix=True)
    assert fixed.noted == 0
    f.sync()
    assert f.check().pending == 0


@ONE_OF_EACH
def test_what_is_dead_is_no_difference_and_no_equality_either(filled: Make) -> None:
    f = filled(30)
    f.run(lambda session: setattr(session.get(f.base.Author, 1), "name", "x" * 40_000))
    assert f.sync().dead == 10
    report = f.check()
    assert (report.differences, report.dead, report.is_equal) == (0, 10, False)


@pytest.mark.backends("psycopg")
def test_a_row_that_cannot_be_a_document_is_missing_and_says_why(filled: Make) -> None:
    f = filled(5)
    f.execute(text("ALTER TABLE article ALTER COLUMN views TYPE numeric"))
    f.execute(text(f"INSERT INTO article (id, title, views) VALUES (70, 'too large', {2**70})"))
    report = f.check()
    assert (report.missing, report.differences) == (1, 1)
    assert "out of the range" in report.examples[0].what[0]
    fixed = f.check(fix=True)
    assert (fixed.noted, fixed.repaired) == (1, 0)
    assert f.check().dead == 1


@ONE_OF_EACH
def test_fields_that_are_not_declared_are_found(filled: Make) -> None:
    f = filled(5)
    (physical,) = f.behind()
    f.client.indices.put_mapping(index=physical, properties={"unknown": {"type": "long"}})
    f.client.index(index=physical, id="3", document={**f.documents()["3"], "unknown": 1})
    f.draw()
    (example,) = f.check().examples
    assert (example.id, example.kind, example.what) == ("3", "stale", ("unknown",))


@pytest.mark.backends("pysqlite3", "aiosqlite")
def test_a_database_that_was_put_back_is_noticed_and_a_rebuild_heals_it(filled: Make, tmp_path: Path) -> None:
    f = filled(50)
    database, backup = Path(str(f.backend.url.database)), tmp_path / "backup.db"
    _close(f)
    shutil.copy(database, backup)
    for number in range(5):
        f.run(lambda session, number=number: setattr(session.get(f.base.Article, 1), "title", f"lost {number}"))
        f.run(lambda session, number=number: session.delete(session.get(f.base.Article, 10 + number)))
        f.sync()
    assert f.check().is_equal
    _close(f)
    shutil.copy(backup, database)
    with pytest.raises(DatabaseRestored, match=r"has a document of version .* rebuild it"):
        f.check()
    with pytest.raises(DatabaseRestored):
        f.check(fast=True, fix=True)
    f.run(lambda session: setattr(session.get(f.base.Article, 1), "title", "after"))
    with pytest.raises(DatabaseRestored):
        f.sync(lease=2.0, timeout=1.0)
    (before,) = f.behind()
    assert f.rebuild().replaced == [before]
    f.sync()
    assert f.documents()["1"]["title"] == "after"
    assert f.check().is_equal
    assert f.differences() == []


def _close(f: Filled) -> None:
    """Let go of the database's file, which is whole then."""
    f.backend.wait(f.engine.dispose()) if f.backend.is_async else f.engine.dispose()


@pytest.mark.backends("psycopg")
@pytest.mark.soak  # each write waits a minute for the shard
def test_shards_that_do_not_answer_are_not_missing_documents(filled: Make) -> None:
    f = filled(0)
    (physical,) = f.behind()
    given = f.client.indices.get_settings(index=physical, flat_settings=True)[physical]["settings"]
    # Those that this version of the server knows.
    settings = {name: value for name, value in f.index.settings().items() if name in given}
    f.client.indices.delete(index=physical)
    # On one node that leaves one of the two shards without a place.
    limits = {"index.number_of_shards": 2, "index.routing.allocation.total_shards_per_node": 1}
    f.client.indices.create(
        index=physical,
        mappings=f.index.mapping(),
        settings={**settings, **limits},
        aliases={f.index.name: {}},
        wait_for_active_shards="0",
    )
    with pytest.raises(SearchError):
        f.check(fix=True, max_outage=0.0)
    f.insert(40)
    with pytest.raises(SearchError):
        f.check(fix=True, max_outage=0.0)
    assert f.entries() == []
    more = {"index.routing.allocation.total_shards_per_node": 2}
    f.client.indices.put_settings(index=physical, settings=more)
    f.client.cluster.health(index=physical, wait_for_no_initializing_shards=True, wait_for_active_shards=2)
    assert f.check(fix=True).repaired == 40
    assert f.check().is_equal


@pytest.mark.backends("psycopg")
@pytest.mark.skipif(elasticsearch.__version__[0] < 9, reason="vectors are always in _source before 9.2")
def test_vectors_that_are_not_in_source_are_compared_too(filled: Make) -> None:
    f = filled(60, settings={"index.mapping.exclude_source_vectors": True})
    assert f.check().is_equal
    (physical,) = f.behind()
    article = f.base.Article.__table__
    changed = np.arange(4, dtype=np.float32)
    f.execute(update(article).where(article.c.id == 1).values(embedding=changed))
    f.client.index(index=physical, id="2", document={**f.documents()["2"], "embedding": changed.tolist()})
    f.draw()
    report = f.check()
    assert {(one.id, one.what) for one in report.examples} == {
        ("1", ("embedding", "_sqla_vector.hash")),
        ("2", ("embedding",)),
    }
    assert f.check(fix=True).repaired == 2
    assert f.check().is_equal


@ONE_OF_EACH
def test_a_check_that_is_stopped_says_so(filled: Make) -> None:
    f = filled(40)
    seen: list[Any] = []

    def stop(progress: Any) -> None:
        seen.append(progress)
        task.stop()

    with Elasticsearch(f.url) as client:
        task = Reconcile(f.sessions, client, f.index, page=10, workers=1, on_progress=stop)
        report = task.run()
    assert (report.rows, report.is_complete, report.is_equal) == (10, False, False)
    assert (seen[0].column, seen[0].done, seen[0].total) == (f.index.name, 10, 80)
    assert "stopped before the end" in str(report)
    assert report.as_dict()["is_equal"] is False


@pytest.mark.backends("pysqlite3")
def test_options_that_are_none_are_refused(filled: Make) -> None:
    f = filled(1)
    for options, said in (
        ({"page": 0}, "page"),
        ({"workers": 0}, "workers"),
        ({"examples": -1}, "examples"),
        ({"timeout": 1800.0}, "less than half of index.gc_deletes"),
        ({"max_outage": -1}, "max_outage"),
    ):
        with pytest.raises(InvalidOption, match=said):
            Reconcile(f.sessions, f.client, f.index, **options)
    with pytest.raises(InvalidOption, match="the client is Elasticsearch"):
        Reconcile(f.sessions, object(), f.index)
    with pytest.raises(InvalidOption, match="SearchIndex"):
        Reconcile(f.sessions, f.client, "articles")  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="are not asynchronous"):
        asyncio.run(Reconcile(f.sessions, f.client, f.index).arun())
    for physical in f.behind():
        f.client.indices.delete(index=physical)
    with pytest.raises(IndexMissing, match="there is no index"):
        f.check()
