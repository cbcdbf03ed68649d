"""Vectors for rows that are there already."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import sessionmaker

from sqla_vector.embedding import Model
from sqla_vector.exc import EmbedderError, EmbedderUnavailable, InvalidOption
from sqla_vector.tracking import Backfill, BackfillReport, abackfill, backfill, untrack
from tests.docs.pages import ROOT
from tests.tracking import limited
from tests.tracking.conftest import Tracked
from tests.tracking.models import POISON, CountingEmbedder, article_models, picky_models
from tests.tracking.test_check import ROWS, put_rows, run_check
from tests.tracking.test_flush import assert_current

Make = Callable[..., Tracked]


def run_backfill(t: Tracked, **options: Any) -> BackfillReport:
    """Fill the articles."""
    dry_run = options.pop("dry_run", False)
    filling = make(t, **options)
    return go(t, filling, dry_run=dry_run)


def make(t: Tracked, **options: Any) -> Backfill:
    """Return a backfill that loses no time."""
    options = {"models": t.base, "backoff": 0.0, **options}
    return Backfill(t.sessions, t.base.Article.embedding, **options)


def go(t: Tracked, filling: Backfill, **options: Any) -> BackfillReport:
    """Run a backfill."""
    return t.backend.wait(filling.arun(**options)) if t.backend.is_async else filling.run(**options)


def fill_table(t: Tracked, count: int) -> None:
    """Write rows that nobody listens to."""
    put_rows(t, [{"title": f"title {n}"} for n in range(1, count + 1)])


@pytest.mark.parametrize("workers", [1, 3])
def test_every_row_gets_the_vector_of_its_text(tracked: Make, workers: int) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    put_rows(t, ROWS)
    report = run_backfill(t, workers=workers, batch_size=2)
    assert (report.rows, report.stale, report.written, report.current) == (11, 9, 9, 2)
    assert (report.failed, report.left, report.is_complete, report.after) == (0, 0, True, (11,))
    assert sorted(t.embedder.texts) == [
        "edited",
        "foreign",
        "no fingerprint",
        "no vector",
        "no vector but",
        "old",
        "other",
    ]
    assert all(len(call) <= 2 for call in t.embedder.calls)
    assert t.entries() == []
    assert run_check(t).is_clean


def test_what_is_current_is_not_embedded_again(tracked: Make) -> None:
    t = tracked(article_models("flush"), CountingEmbedder())
    fill_table(t, 30)
    assert run_backfill(t, batch_size=7).written == 30
    calls = len(t.embedder.calls)
    report = run_backfill(t, batch_size=7)
    assert (report.rows, report.current, report.written, len(t.embedder.calls)) == (30, 30, 0, calls)
    newer = CountingEmbedder("2")
    assert run_backfill(t, embedders={"counting": newer}).written == 30
    assert len(newer.texts) == 30


def test_a_dry_run_counts_and_does_nothing(tracked: Make) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    put_rows(t, ROWS)
    report = run_backfill(t, dry_run=True, price_per_million_tokens=1_000_000)
    texts = ["no vector", "no fingerprint", "no vector but", "edited", "old", "other", "foreign"]
    tokens = sum(-(-len(text) // 4) for text in texts)
    assert (report.rows, report.stale, report.current, report.written) == (11, 9, 2, 0)
    assert (report.tokens, report.cost, report.is_dry_run, report.is_complete) == (tokens, tokens, True, True)
    assert str(report).startswith(f"Article.embedding: 9 of 11 rows to embed, about {tokens} tokens, cost about ")
    assert t.embedder.calls == []
    assert t.entries() == []
    assert run_check(t).columns[0].current == 2
    # Who only counts needs no embedder.
    models = {"counting": Model("counting", "1")}
    assert run_backfill(t, dry_run=True, embedders=models, count_tokens=len).tokens == sum(map(len, texts))
    with pytest.raises(InvalidOption, match="only the name of a model"):
        run_backfill(t, embedders=models)


def test_tokens_that_cannot_be_counted_are_estimated(tracked: Make) -> None:
    def count(text: str) -> int:
        raise ValueError(text)

    t = tracked(article_models("worker"), CountingEmbedder())
    put_rows(t, [{"title": "12345"}])
    report = run_backfill(t, count_tokens=count, price_per_million_tokens=0.5)
    assert (report.tokens, report.cost, report.written) == (2, 0.000001, 1)


@pytest.mark.parametrize("workers", [1, 3])
def test_it_goes_on_after_a_key(tracked: Make, workers: int) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    fill_table(t, 30)
    report = run_backfill(t, after=20, batch_size=3, workers=workers)
    assert (report.rows, report.written, report.after) == (10, 10, (30,))
    report = run_backfill(t, after=(10,), batch_size=3, workers=workers)
    assert (report.rows, report.written, report.current) == (20, 10, 10)
    assert run_backfill(t, after=30).after == (30,)
    assert_missing(t, range(1, 11))


def assert_missing(t: Tracked, expected: Any) -> None:
    article = t.base.Article
    stmt = select(article.id).where(article.embedding.is_(None)).order_by(article.id)
    assert t.untracked(lambda s: s.scalars(stmt).all()) == list(expected)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_that_is_stopped_finishes_what_it_has_and_another_goes_on(tracked: Make, workers: int) -> None:
    made: list[Backfill] = []

    def stop(texts: list[str]) -> None:
        if "title 11" in texts:
            made[0].stop()

    t = tracked(article_models("worker"), CountingEmbedder(fail=stop))
    fill_table(t, 60)
    made.append(make(t, batch_size=5, workers=workers))
    report = go(t, made[0])
    assert not report.is_complete
    assert 15 <= report.rows < 60
    assert report.after is not None
    assert_missing(t, range(report.written + 1, 61))
    rest = run_backfill(t, after=report.after)
    assert (rest.written, rest.is_complete) == (60 - report.written, True)
    assert len(t.embedder.texts) == len(set(t.embedder.texts)) == 60
    assert run_check(t).is_clean


@pytest.mark.parametrize("workers", [1, 3])
def test_an_interrupt_loses_at_most_what_is_in_hand(tracked: Make, workers: int) -> None:
    def interrupt(texts: list[str]) -> None:
        if "title 11" in texts and t.embedder.fail is not None:
            t.embedder.fail = None
            os.kill(os.getpid(), signal.SIGINT)

    t = tracked(article_models("worker"), CountingEmbedder(fail=interrupt))
    fill_table(t, 60)
    with pytest.raises(KeyboardInterrupt):
        run_backfill(t, batch_size=5, workers=workers)
    report = run_backfill(t, batch_size=5, workers=workers)
    assert (report.rows, report.is_complete) == (60, True)
    assert len(t.embedder.texts) <= 60 + 5 * workers
    assert run_check(t).is_clean


@pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")
def test_a_process_that_is_killed_loses_at_most_what_it_had_in_hand(tracked: Make) -> None:
    t = tracked(limited.models(), CountingEmbedder())
    fill_table(t, 60)
    url = t.backend.url.render_as_string(hide_password=False)
    command = [sys.executable, "-m", "tests.tracking.limited", url, "killed"]
    killed = subprocess.run(command, cwd=ROOT, input="go\n", text=True, stdout=subprocess.PIPE, check=False)
    assert killed.returncode == -signal.SIGKILL
    report = run_backfill(t, batch_size=5)
    # Of the four batches it had begun with, the two that its workers had in hand may be lost.
    assert 10 <= report.current <= 15
    assert (report.rows, report.written) == (60, 60 - report.current)
    assert run_check(t).is_clean


@pytest.mark.parametrize("workers", [1, 2])
def test_a_text_that_is_refused_fails_alone(tracked: Make, workers: int) -> None:
    def refuse(texts: list[str]) -> None:
        if "title 7" in texts:
            raise EmbedderError("no sevens")

    t = tracked(article_models("worker"), CountingEmbedder(fail=refuse))
    fill_table(t, 20)
    report = run_backfill(t, batch_size=8, workers=workers)
    assert (report.written, report.failed, report.is_complete) == (19, 1, True)
    assert report.failures == {"[7]": "no sevens"}
    # Somebody has to see to it, once.
    assert [entry.row_key for entry in t.entries()] == ["[7]"]
    run_backfill(t)
    assert len(t.entries()) == 1
    t.work(attempts=1)
    assert run_check(t).backlogs[0].dead == 1
    # And the reason is gone when it is repaired.
    t.embedder.fail = None
    assert run_backfill(t).written == 1
    assert t.entries() == []
    assert_current(t, 20)


def test_without_an_outbox_what_failed_is_only_reported(tracked: Make) -> None:
    def refuse(texts: list[str]) -> None:
        raise EmbedderError("no")

    t = tracked(article_models("flush"), CountingEmbedder(fail=refuse), outbox=None)
    fill_table(t, 3)
    report = run_backfill(t)
    assert (report.failed, set(report.failures)) == (3, {"[1]", "[2]", "[3]"})
    assert "3 failed" in str(report)
    assert t.entries() == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_embedder_out_of_reach_is_waited_for(tracked: Make, workers: int) -> None:
    def down(texts: list[str]) -> None:
        if len(t.embedder.calls) <= 10:
            raise EmbedderUnavailable("down", retry_after=0.0)

    t = tracked(article_models("worker"), CountingEmbedder(fail=down))
    fill_table(t, 12)
    report = run_backfill(t, batch_size=4, workers=workers)
    assert (report.written, report.failed, report.is_complete) == (12, 0, True)
    assert t.entries() == []


def test_an_outage_is_waited_for_no_longer_than_allowed(tracked: Make) -> None:
    def down(texts: list[str]) -> None:
        raise EmbedderUnavailable("down", retry_after=0.0)

    t = tracked(article_models("worker"), CountingEmbedder(fail=down))
    fill_table(t, 12)
    for workers in (1, 2):
        with pytest.raises(EmbedderUnavailable, match="down"):
            run_backfill(t, batch_size=4, max_outage=0.0, workers=workers)
    assert t.entries() == []


def test_what_was_made_before_an_outage_is_not_made_again(tracked: Make) -> None:
    def refuse(texts: list[str]) -> None:
        if len(t.embedder.calls) == 1:
            raise EmbedderError("halve it")
        if len(t.embedder.calls) == 3:
            raise EmbedderUnavailable("down", retry_after=0.0)

    t = tracked(article_models("worker"), CountingEmbedder(fail=refuse))
    fill_table(t, 8)
    assert run_backfill(t).written == 8
    assert [len(call) for call in t.embedder.calls] == [8, 4, 4, 4]


def test_a_worker_does_not_make_again_what_it_made_before_an_outage(tracked: Make) -> None:
    def refuse(texts: list[str]) -> None:
        if len(t.embedder.calls) == 1:
            raise EmbedderError("halve it")
        if len(t.embedder.calls) == 3:
            raise EmbedderUnavailable("down", retry_after=0.0)

    t = tracked(article_models("worker"), CountingEmbedder(fail=refuse))
    t.run(lambda s: s.add_all(t.base.Article(id=n, title=f"t{n}") for n in range(1, 9)))
    outcome = t.once(t.worker())
    assert (outcome.written, outcome.postponed) == (4, 4)
    t.work()
    assert [len(call) for call in t.embedder.calls] == [8, 4, 4, 4]
    assert_current(t, 8)


@pytest.mark.backends(is_async=False)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_row_that_is_edited_meanwhile_gets_the_vector_of_its_new_text(tracked: Make, workers: int) -> None:
    base = article_models("worker")

    def edit(texts: list[str]) -> None:
        if "title 3" in texts:
            with t.engine.begin() as connection:  # type: ignore[union-attr]
                connection.execute(update(base.Article).where(base.Article.id == 3).values(title="edited"))
                connection.execute(delete(base.Article).where(base.Article.id == 4))

    t = tracked(base, CountingEmbedder(fail=edit))
    fill_table(t, 6)
    report = run_backfill(t, workers=workers)
    assert (report.written, report.left, report.current) == (5, 0, 1)
    assert_current(t, 5)


@pytest.mark.backends("psycopg")
def test_a_row_that_somebody_keeps_locked_is_left_with_an_entry(tracked: Make) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    fill_table(t, 4)
    with t.engine.begin() as connection:  # type: ignore[union-attr]
        connection.execute(update(t.base.Article).where(t.base.Article.id == 2).values(views=1))
        report = run_backfill(t)
    assert (report.written, report.left, report.is_complete) == (3, 1, True)
    assert [entry.row_key for entry in t.entries()] == ["[2]"]
    t.work()
    assert run_check(t).is_clean


def test_a_row_that_the_database_refuses_fails_alone(tracked: Make) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    fill_table(t, 6)
    forbid = {
        "postgresql": "ALTER TABLE article ADD CHECK (id <> 5 OR embedding IS NULL)",
        "sqlite": "CREATE TRIGGER no_five BEFORE UPDATE ON article WHEN new.id = 5 BEGIN "
        "SELECT RAISE(ABORT, 'no fives'); END",
    }[t.backend.family]
    t.untracked(lambda s: s.connection().exec_driver_sql(forbid) and None)
    report = run_backfill(t)
    assert (report.written, report.failed) == (5, 1)
    assert "cannot be written: " in report.failures["[5]"]
    assert_missing(t, [5])


def test_texts_of_related_rows_are_filled(tracked: Make) -> None:
    base = article_models("worker", related=True)
    t = tracked(base, CountingEmbedder())

    def add(session: Any) -> None:
        session.add_all(base.Article(title=f"t{n}", author=base.Author(name=f"a{n % 3}")) for n in range(9))

    t.untracked(add)
    assert run_backfill(t, batch_size=4, workers=2).written == 9
    assert run_check(t).is_clean


def test_progress_is_told(tracked: Make) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    fill_table(t, 1500)
    seen: list[Any] = []
    run_backfill(t, batch_size=400, on_progress=seen.append)
    assert [(one.done, one.total) for one in seen] == [(done, 1500) for done in (400, 800, 1200, 1500)]
    seen.clear()
    run_backfill(t, batch_size=400, on_progress=seen.append, after=100)
    assert [(one.done, one.total) for one in seen] == [(1000, 1400), (1400, 1400)]
    assert seen[-1].seconds_left == 0


BAD: list[tuple[dict[str, Any], str]] = [
    *(({"batch_size": bad}, "batch_size must be a whole number") for bad in (0, -1, True, 1.5, "3", 10**9)),
    *(({"workers": bad}, "workers must be a whole number") for bad in (0, -1, True, 65)),
    *(({"timeout": bad}, "timeout is a number of seconds") for bad in (0, -1, float("nan"), float("inf"), True, "1")),
    *(({"backoff": bad}, "backoff is a number of seconds") for bad in (-1, float("nan"))),
    *(({"max_outage": bad}, "max_outage is a number of seconds") for bad in (-1, float("nan"))),
    *(({"price_per_million_tokens": bad}, "price_per_million_tokens must be") for bad in (-1, float("nan"), True, "1")),
    *(({"after": bad}, r"after= is a key of article \(id\)") for bad in ((), (1, 2))),
    ({"count_tokens": 4}, "count_tokens= is a function"),
    ({"limits": {"nobody": None}}, "limits= is a dict"),
    ({"embedders": {"other": CountingEmbedder()}}, "needs an embedder named 'counting'"),
    ({"embedders": {"counting": CountingEmbedder(dim=3)}}, "has 4 dimensions"),
    ({"dry_run": 1}, "dry_run must be True or False"),
]


@pytest.mark.backends("pysqlite3", "aiosqlite")
@pytest.mark.parametrize(("options", "message"), BAD, ids=lambda value: repr(value)[:40])
def test_bad_arguments_are_refused(tracked: Make, options: dict[str, Any], message: str) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    fill_table(t, 1)
    with pytest.raises(InvalidOption, match=message):
        run_backfill(t, **options)
    assert t.embedder.calls == []


def test_other_columns_and_sessions_are_refused(tracked: Make) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    for column in (t.base.Article.title, "embedding", None, t.base.Article):
        with pytest.raises(InvalidOption, match=r"such as Article\.embedding"):
            Backfill(t.sessions, column, models=t.base)
    with pytest.raises(InvalidOption, match="not a session"):
        Backfill(t.sessions(), t.base.Article.embedding)
    if t.backend.is_async:
        with pytest.raises(InvalidOption, match=r"await abackfill\(\)"):
            backfill(t.sessions, t.base.Article.embedding, models=t.base)
        assert t.backend.wait(abackfill(t.sessions, t.base.Article.embedding, models=t.base)).rows == 0
    else:
        with pytest.raises(InvalidOption, match=r"call backfill\(\)"):
            t.backend.wait(abackfill(t.sessions, t.base.Article.embedding, models=t.base))
        assert backfill(t.sessions, t.base.Article.embedding, models=t.base).rows == 0
    untrack(t.sessions)
    with pytest.raises(InvalidOption, match="has no embedders"):
        make(t)


@pytest.mark.backends("pysqlite3", "aiosqlite")
def test_workers_need_connections_of_their_own(tracked: Make) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    shared = t.backend.make_engine(url=t.backend.url.set(database=":memory:"))
    maker: Any = async_sessionmaker if t.backend.is_async else sessionmaker
    options = {"models": t.base, "embedders": {"counting": t.embedder}}
    with pytest.raises(InvalidOption, match="one for everybody"):
        Backfill(maker(shared), t.base.Article.embedding, workers=2, **options)
    t.backend.create_all(shared, t.base.metadata)
    t.backend.run(shared, lambda s: s.execute(insert(t.base.Article), {"title": "a", "views": 0}))
    filling = Backfill(maker(shared), t.base.Article.embedding, **options)
    assert go(t, filling).written == 1


@pytest.mark.backends("psycopg", "pysqlite3", "asyncpg")
def test_no_transaction_is_open_while_texts_are_embedded(tracked: Make) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    fill_table(t, 10)
    engine: Any = t.engine.sync_engine if t.backend.is_async else t.engine
    seen: list[int] = []
    t.embedder.fail = lambda texts: seen.append(engine.pool.checkedout())
    assert run_backfill(t, batch_size=5).written == 10
    assert seen == [0, 0]


@pytest.mark.backends("psycopg", "pysqlite3")
def test_memory_does_not_grow_with_the_rows(tracked: Make) -> None:
    t = tracked(limited.models(), CountingEmbedder())
    fill_table(t, 20_000)
    url = t.backend.url.render_as_string(hide_password=False)
    command = [sys.executable, "-m", "tests.tracking.measured", url]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    early, late = map(int, done.stdout.split())
    smallest = sys.getsizeof(object())
    assert late - early < 10_000 * smallest, "something is kept for each row"
    assert_current(t, 20_000)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_row_that_cannot_be_read_fails_alone(tracked: Make, workers: int) -> None:
    t = tracked(picky_models(), CountingEmbedder())
    t.untracked(lambda s: s.add_all(t.base.Article(id=n, title=f"title {n}") for n in range(1, 8)))
    t.backend.run_connection(t.engine, lambda c: c.execute(POISON))
    assert run_backfill(t, dry_run=True).stale == 7
    report = run_backfill(t, workers=workers, batch_size=2)
    assert (report.rows, report.written, report.failed, report.is_complete) == (7, 6, 1, True)
    assert report.failures == {"[2]": "the row cannot be read: KeyError"}
    assert [entry.row_key for entry in t.entries()] == ["[2]"]


@pytest.mark.backends(is_async=False)
def test_a_row_that_cannot_be_read_any_more_fails_alone(tracked: Make) -> None:
    base, engine = picky_models(), None

    def poison(texts: list[str]) -> None:
        assert engine is not None
        with engine.begin() as connection:
            connection.execute(POISON)

    t = tracked(base, CountingEmbedder(fail=poison))
    engine = t.engine
    t.untracked(lambda s: s.add_all(base.Article(id=n, title=f"title {n}") for n in range(1, 5)))
    report = run_backfill(t)
    assert (report.written, report.failed) == (3, 1)
    assert report.failures == {"[2]": "cannot be written: KeyError"}
