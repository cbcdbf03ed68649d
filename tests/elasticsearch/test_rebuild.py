"""An index is filled anew while it is searched and its rows change, and takes the place of the old one."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from elasticsearch import AsyncElasticsearch, Elasticsearch, NotFoundError
from sqlalchemy import create_engine, insert
from sqlalchemy.pool import StaticPool

from sqla_vector.elasticsearch import DenseVector, Rebuild, SearchIndex, Sync
from sqla_vector.elasticsearch.rebuild import RebuildReport, _Load, _Page
from sqla_vector.elasticsearch.steps import Ask
from sqla_vector.elasticsearch.writing import Written
from sqla_vector.exc import DatabaseRestored, IndexDrift, IndexExists, IndexMissing, InvalidDocument, InvalidOption
from sqla_vector.tracking.progress import Meter
from sqla_vector.tracking.steps import Call
from tests.elasticsearch import rebuilding
from tests.elasticsearch.filled import CROSSED, FAST, Editor, Filled
from tests.elasticsearch.synced import mirrored_models
from tests.support.backends import AnyEngine, Backend
from tests.tracking.models import article_models

pytestmark = pytest.mark.backends("psycopg", "asyncpg", "pysqlite3", "aiosqlite")

ONE_OF_EACH = pytest.mark.backends("psycopg", "pysqlite3")

ROOT = Path(__file__).parents[2]

Make = Callable[..., Filled]


@pytest.fixture
def filled(backend: Backend, engine: AnyEngine, node: Any, index_name: str) -> Iterator[Make]:
    """Make a database with rows, and no index yet."""
    made: list[Filled] = []

    def make(count: int) -> Filled:
        one = Filled(backend, engine, node.url, mirrored_models(index_name))
        made.append(one)
        one.insert(count)
        return one

    yield make
    for one in made:
        one.close()


def test_the_first_index_and_the_one_that_takes_its_place(filled: Make) -> None:
    f = filled(250)
    first = f.rebuild(page=30)
    assert (first.rows, first.written, first.is_complete, first.replaced) == (250, 250, True, [])
    assert first.check is not None
    assert first.check.is_equal
    assert f.behind() == [first.physical]
    assert f.differences() == []
    f.execute(insert(f.base.Article.__table__).values(id=1000, title="unnoticed", views=1))
    second = f.rebuild(page=30, verify="full")
    assert (second.rows, second.written, second.replaced, second.kept) == (251, 251, [first.physical], [])
    assert f.behind() == [second.physical]
    assert f.behind(f"{f.index.name}*") == [second.physical]
    assert f.differences() == []
    assert f.index.settings_drift(f.client) == f.index.mapping_drift(f.client) == []
    assert str(second) == f"{f.index.name}: 251 rows, 251 written; now {second.physical}"


@ONE_OF_EACH
def test_the_old_index_is_kept_on_request(filled: Make) -> None:
    f = filled(5)
    first = f.rebuild()
    second = f.rebuild(keep=True)
    assert second.kept == [first.physical]
    assert f.behind(f"{f.index.name}*") == sorted([first.physical, second.physical])
    assert f.behind() == [second.physical]


def test_no_change_is_lost_and_no_search_fails_while_it_is_rebuilt(filled: Make) -> None:
    f = filled(600)
    first = f.rebuild()
    editor = Editor(f.base, seed=1, most=600)
    report, searches = _while_used_async(f, editor) if f.backend.is_async else _while_used(f, editor)
    assert report.is_complete
    assert report.replaced == [first.physical]
    assert editor.edits > 0
    assert searches > 0
    assert f.behind() == [report.physical]
    f.sync()
    assert f.differences() == []
    assert f.check().is_equal


def _while_used(f: Filled, editor: Editor) -> tuple[Any, int]:
    stopped, failures, searches = threading.Event(), [], 0

    def edit() -> None:
        while not stopped.is_set():
            with suppress(*CROSSED):
                f.run(editor.edit)

    def search() -> None:
        nonlocal searches
        with Elasticsearch(f.url, max_retries=0) as client:
            while not stopped.is_set():
                try:
                    found = client.search(index=f.index.name, query={"match_all": {}}, size=1, track_total_hits=True)
                    assert found["hits"]["total"]["value"] > 0
                    searches += 1
                except Exception as error:
                    failures.append(error)

    with Elasticsearch(f.url) as client:
        sync = Sync(f.sessions, client, f.index, poll=0.01, batch_size=20, **FAST)
        threads = [threading.Thread(target=target) for target in (edit, search, sync.run)]
        for thread in threads:
            thread.start()
        try:
            report = f.rebuild(page=20, workers=3, linger=0.5)
        finally:
            stopped.set()
            sync.stop()
            for thread in threads:
                thread.join()
    assert failures == []
    return report, searches


def _while_used_async(f: Filled, editor: Editor) -> tuple[Any, int]:
    async def run() -> tuple[Any, int]:
        is_stopped, searches = False, 0
        async with AsyncElasticsearch(f.url, max_retries=0) as client:
            sync = Sync(f.sessions, client, f.index, poll=0.01, batch_size=20, **FAST)

            async def edit() -> None:
                while not is_stopped:
                    with suppress(*CROSSED):
                        async with f.sessions() as session, session.begin():
                            await session.run_sync(editor.edit)

            async def search() -> None:
                nonlocal searches
                while not is_stopped:
                    found = await client.search(index=f.index.name, size=1, track_total_hits=True)
                    assert found["hits"]["total"]["value"] > 0
                    searches += 1

            tasks = [asyncio.create_task(one) for one in (edit(), search(), sync.arun())]
            try:
                options: dict[str, Any] = {"page": 20, "workers": 3, "linger": 0.5, **FAST}
                report = await Rebuild(f.sessions, client, f.index, **options).arun()
            finally:
                is_stopped = True
                sync.stop()
                await asyncio.gather(*tasks)
        return report, searches

    found: tuple[Any, int] = f.backend.wait(run())
    return found


@ONE_OF_EACH
def test_a_rebuild_that_is_killed_is_gone_on_with(filled: Make) -> None:
    f = filled(400)
    first = f.rebuild()
    # From here on there are edits that only a sync carries over.
    url = f.backend.url.render_as_string(hide_password=False)
    ended = subprocess.run(
        [sys.executable, "-m", "tests.elasticsearch.rebuilding", url, f.url, f.index.name, "200"], cwd=ROOT, timeout=120
    )
    assert ended.returncode == -signal.SIGKILL
    assert f.behind() == [first.physical]
    (begun,) = f.behind(f"{f.index.name}-rebuild")

    def change(session: Any) -> None:
        for number in (1, 50, 390):
            session.delete(session.get(f.base.Article, number))
        for number in (2, 51, 391):
            session.get(f.base.Article, number).title = "edited"
        session.add(f.base.Article(id=-1, title="before all others"))

    f.run(change)
    f.sync()
    report = f.rebuild(page=rebuilding.PAGE)
    assert report.physical == begun
    assert report.is_complete
    # What was in hand is done again, and the rest is not.
    assert 100 <= report.resumed_at <= 200
    assert report.written <= 400 - report.resumed_at
    assert report.repaired == 0
    assert f.behind(f"{f.index.name}*") == [begun]
    assert f.differences() == []


@ONE_OF_EACH
def test_a_rebuild_that_is_stopped_is_gone_on_with(filled: Make) -> None:
    f = filled(100)

    def stop(progress: Any) -> None:
        seen.append(progress.done)
        task.stop()

    seen: list[int] = []
    with Elasticsearch(f.url) as client:
        task = Rebuild(f.sessions, client, f.index, page=10, workers=1, on_progress=stop)
        report = task.run()
    assert (report.rows, report.written, report.is_complete, report.check) == (10, 10, False, None)
    assert f.behind() == []
    assert "run it again" in str(report)
    report = f.rebuild(page=10, on_progress=lambda progress: seen.append(progress.done))
    assert (report.resumed_at, report.rows, report.written) == (10, 100, 90)
    assert sorted(seen) == list(range(10, 101, 10))
    assert f.differences() == []


@pytest.mark.backends("pysqlite3")
def test_only_what_is_done_without_gaps_is_written_down(filled: Make) -> None:
    f = filled(1)
    task = Rebuild(f.sessions, f.client, f.index)
    standby = task._driver.run(task._standby.create())
    load = _Load(task, standby, RebuildReport(f.index.name), Meter("", 0, None), None)
    pages = [_Page(number, [(3 * number,), (3 * number + 1,)]) for number in range(4)]
    load._waiting = {page.number: page for page in pages}

    def finish(number: int, *, is_done: bool = True) -> tuple[Any, int]:
        pages[number].result = Written(2, is_done=is_done)
        task._driver.run(load._done(pages[number]))
        return standby.after, standby.rows

    assert finish(1) == (None, 0)
    assert finish(0) == ((4,), 4)
    assert finish(2, is_done=False) == ((4,), 4)
    assert finish(3) == ((4,), 4)


@ONE_OF_EACH
def test_what_was_read_before_a_delete_does_not_bring_the_row_back(filled: Make) -> None:
    f = filled(10)
    f.rebuild()
    with Elasticsearch(f.url) as client:
        task = Rebuild(f.sessions, client, f.index, linger=0.0)
        standby = task._driver.run(task._standby.create())
        steps = task._writer.write([(n,) for n in range(1, 11)])
        step = next(steps)
        while not (isinstance(step, Call) and _is_bulk(step)):
            step = steps.send(task._driver._do(step))
        # The rows are read, and not sent yet.
        f.run(lambda session: session.delete(session.get(f.base.Article, 3)))
        f.run(lambda session: setattr(session.get(f.base.Article, 4), "title", "later"))
        f.sync()
        written = _finished(task, steps, step)
        # The third is read again, and is not there.
        assert (written.is_done, written.refused) == (True, {})
        client.indices.refresh(index=standby.physical)
        found = {hit["_id"]: hit["_source"] for hit in client.search(index=standby.physical, size=20)["hits"]["hits"]}
        assert "3" not in found
        assert found["4"]["title"] == "later"
        assert len(found) == 9
        assert task.run().is_complete
    assert f.differences() == []


@ONE_OF_EACH
def test_a_change_wins_at_whatever_moment_of_a_load_it_comes(filled: Make) -> None:
    f = filled(10)
    f.rebuild()
    with Elasticsearch(f.url) as client:
        task = Rebuild(f.sessions, client, f.index, linger=0.0)
        task._driver.run(task._standby.create())
        for moment in range(10):
            steps = task._writer.write([(1 + moment,)])
            step: Any = next(steps)
            for _ in range(moment):
                answer = task._driver._do(step)
                try:
                    step = steps.send(answer)
                except StopIteration:
                    step = None
                    break
            f.run(lambda session, id_=1 + moment: setattr(session.get(f.base.Article, id_), "title", "later"))
            f.sync()
            if step is not None:
                _finished(task, steps, step)
            found = client.get(index=f"{f.index.name}-rebuild", id=str(1 + moment))
            assert found["_source"]["title"] == "later", moment
            if step is None:
                break
    # It drew, read and sent: the change came before and after each of them.
    assert moment >= 3


def _finished(task: Any, steps: Any, step: Any) -> Any:
    while True:
        answer = task._driver._do(step)
        try:
            step = steps.send(answer)
        except StopIteration as ended:
            return ended.value


def _is_bulk(step: Call) -> bool:
    ask = getattr(step.function, "__self__", None)
    return isinstance(ask, Ask) and ask.method == "bulk"


def test_what_was_begun_can_be_abandoned(filled: Make) -> None:
    f = filled(100)
    first = f.rebuild()

    def stop(progress: Any) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        f.rebuild(page=10, on_progress=stop)
    (begun,) = f.behind(f"{f.index.name}-rebuild")
    abandoned = f.with_client(lambda client: Rebuild(f.sessions, client, f.index), "abandon")
    assert abandoned == [begun]
    assert f.behind(f"{f.index.name}*") == [first.physical]
    assert f.with_client(lambda client: Rebuild(f.sessions, client, f.index), "abandon") == []
    assert f.rebuild().resumed_at == 0


@ONE_OF_EACH
def test_what_is_abandoned_by_somebody_else_is_not_made_again_by_a_write(filled: Make) -> None:
    f = filled(100)

    def abandon(progress: Any) -> None:
        Rebuild(f.sessions, f.client, f.index).abandon()

    with pytest.raises(IndexMissing):
        f.rebuild(page=10, workers=1, on_progress=abandon)
    assert f.behind(f"{f.index.name}*") == []


@ONE_OF_EACH
def test_another_declaration_needs_another_index(filled: Make) -> None:
    f = filled(30)
    first = f.rebuild()
    with pytest.raises(RuntimeError):
        f.rebuild(page=10, on_progress=_fail)
    base = article_models("worker")
    fields: dict[str, Any] = {"headline": "title", "embedding": DenseVector("embedding", index="flat")}
    other = SearchIndex(f.index.name, base.Article, fields=fields, outbox=base.outbox)
    with Elasticsearch(f.url) as client:
        with pytest.raises(IndexDrift, match="begun for another declaration"):
            Rebuild(f.sessions, client, other).run()
        Rebuild(f.sessions, client, other).abandon()
        report = Rebuild(f.sessions, client, other, linger=0.0).run()
    assert report.replaced == [first.physical]
    assert other.mapping_drift(f.client) == []
    assert f.documents()["7"].keys() == {"headline", "embedding", "_sqla_vector"}


def _fail(progress: Any) -> None:
    raise RuntimeError("enough")


@ONE_OF_EACH
def test_rows_that_cannot_be_documents_keep_the_old_index_in_its_place(filled: Make) -> None:
    f = filled(30)
    first = f.rebuild()
    author = f.base.Author.__table__
    f.execute(insert(author).values(id=9, name="x" * 40_000))
    f.execute(insert(f.base.Article.__table__).values(id=100, title="refused", views=1, author_id=9))
    with pytest.raises(InvalidDocument, match=r"1 rows cannot be documents of .*skip_refused=True.*\[100\]: Elastic"):
        f.rebuild()
    assert f.behind() == [first.physical]
    # Whoever works off the outbox says there why.
    assert f.sync().dead == 1
    with pytest.raises(InvalidDocument, match="1 rows with a dead entry"):
        f.rebuild()
    report = f.rebuild(skip_refused=True)
    assert (report.is_complete, report.resumed_at) == (True, 30 + 1)
    f.execute(author.update().values(name="short").where(author.c.id == 9))
    # Dead entries are tried again in the new index.
    assert [entry.state for entry in f.entries()] == ["pending"]
    f.sync()
    assert f.differences() == []


@pytest.mark.backends("pysqlite3")
def test_what_was_begun_before_a_database_was_put_back_is_refused(filled: Make, tmp_path: Path) -> None:
    f = filled(60)
    database, backup = Path(str(f.backend.url.database)), tmp_path / "backup.db"
    f.engine.dispose()  # type: ignore[unused-coroutine]
    shutil.copy(database, backup)
    with pytest.raises(RuntimeError):
        f.rebuild(page=10, workers=1, save_every=0.0, on_progress=_fail_at_thirty)
    f.engine.dispose()  # type: ignore[unused-coroutine]
    shutil.copy(backup, database)
    with pytest.raises(DatabaseRestored, match=r"begun when the database had come to .*abandon\(\)"):
        f.rebuild()
    Rebuild(f.sessions, f.client, f.index).abandon()
    assert f.rebuild().written == 60
    assert f.differences() == []


def _fail_at_thirty(progress: Any) -> None:
    if progress.done == 30:
        raise RuntimeError("enough")


@pytest.mark.backends("psycopg")
def test_the_new_index_is_repaired_before_it_takes_the_place_of_the_old_one(filled: Make) -> None:
    f = filled(50)

    def tamper(progress: Any) -> None:
        if progress.done == 50:
            for _ in range(5):
                f.draw()
            alias = f"{f.index.name}-rebuild"
            f.client.index(index=alias, id="7", document={"title": "tampered"})
            f.client.delete(index=alias, id="8")
            f.client.index(index=alias, id="no-key", document={"title": "tampered"})
            f.client.index(index=alias, id="9999", document={"title": "tampered"})

    report = f.rebuild(on_progress=tamper)
    assert (report.is_complete, report.repaired) == (True, 4)
    assert f.differences() == []


@pytest.mark.backends("psycopg")
def test_an_index_with_versions_of_another_database_does_not_take_the_place_of_the_old_one(filled: Make) -> None:
    f = filled(20)
    first = f.rebuild()

    def tamper(progress: Any) -> None:
        options: dict[str, Any] = {"version": 10**9, "version_type": "external", "document": {"title": "later"}}
        f.client.index(index=f"{f.index.name}-rebuild", id="7", **options)

    with pytest.raises(DatabaseRestored, match=r"after that index was begun; abandon\(\)"):
        f.rebuild(on_progress=tamper)
    assert f.behind() == [first.physical]


@ONE_OF_EACH
def test_names_that_are_taken_are_left_alone(filled: Make) -> None:
    f = filled(3)
    f.client.indices.create(index=f.index.name)
    with pytest.raises(IndexExists, match="the name is needed for an alias"):
        f.rebuild()
    f.client.indices.delete(index=f.index.name)
    for number in range(2):
        f.client.indices.create(index=f"{f.index.name}-{number}", aliases={f"{f.index.name}-rebuild": {}})
    with pytest.raises(IndexExists, match="stands for several indexes"):
        f.rebuild()
    assert len(Rebuild(f.sessions, f.client, f.index).abandon()) == 2
    with pytest.raises(NotFoundError):
        f.client.indices.get(index=f"{f.index.name}-0")


@pytest.mark.backends("pysqlite3")
def test_one_connection_for_everybody_is_used_by_one_worker(backend: Backend, node: Any, index_name: str) -> None:
    options: dict[str, Any] = {"poolclass": StaticPool, "plugins": ["sqla_vector"], **backend.kind.engine_options()}
    engine = create_engine("sqlite://", connect_args={"check_same_thread": False}, **options)
    f = Filled(backend, engine, node.url, mirrored_models(index_name))
    try:
        f.insert(30)
        assert f.rebuild(page=7).written == 30
        with pytest.raises(InvalidOption, match="workers= over 1"):
            f.rebuild(workers=2)
        assert f.differences() == []
    finally:
        f.close()
        engine.dispose()


@pytest.mark.backends("pysqlite3")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"page": 0}, "page"),
        ({"workers": 65}, "workers"),
        ({"max_bytes": 0}, "max_bytes"),
        ({"timeout": 1800.0}, "less than half of index.gc_deletes"),
        ({"linger": -1}, "linger"),
        ({"save_every": "x"}, "save_every"),
        ({"verify": "no"}, "verify="),
        ({"backoff": -1}, "backoff"),
    ],
)
def test_options_that_are_none_are_refused(filled: Make, options: dict[str, Any], said: str) -> None:
    f = filled(1)
    with pytest.raises(InvalidOption, match=said):
        Rebuild(f.sessions, f.client, f.index, **options)
    with pytest.raises(InvalidOption, match="the client is Elasticsearch"):
        Rebuild(f.sessions, object(), f.index)
    with pytest.raises(InvalidOption, match="are not asynchronous"):
        asyncio.run(Rebuild(f.sessions, f.client, f.index).arun())


@pytest.mark.backends("aiosqlite")
def test_asynchronous_sessions_are_awaited(filled: Make) -> None:
    f = filled(1)

    async def run() -> None:
        async with AsyncElasticsearch(f.url) as client:
            with pytest.raises(InvalidOption, match="await arun"):
                Rebuild(f.sessions, client, f.index).run()
            with pytest.raises(InvalidOption, match="await aabandon"):
                Rebuild(f.sessions, client, f.index).abandon()

    f.backend.wait(run())
    with pytest.raises(InvalidOption, match="the client is AsyncElasticsearch"):
        Rebuild(f.sessions, f.client, f.index)
