"""Every step of a worker's batch and of a flush, and what may go wrong at it: nothing is lost."""

from __future__ import annotations

import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqla_vector.exc import EmbedderError
from sqla_vector.tracking.outbox import CHANNEL, bury, claim
from tests.support.backends import Backend
from tests.support.invariant import find
from tests.support.nursery import Nursery, begin, change, nursery
from tests.support.points import Boom, PointedEmbedder, Points, boom, cut_all
from tests.tracking.conftest import Tracked
from tests.tracking.models import article_models

pytestmark = pytest.mark.long

Make = Callable[..., Tracked]

WORKER_STEPS = {
    "before UPDATE vector_outbox",  # the claim
    "after UPDATE vector_outbox",
    "before SELECT article",  # the texts
    "before embed",
    "after embed",
    "before UPDATE article",
    "after UPDATE article",
    "before DELETE vector_outbox",  # the acknowledgement
    "after DELETE vector_outbox",
    "before commit",
    "after commit",
}

FLUSH_STEPS = {
    "before embed",
    "after embed",
    "before INSERT article",
    "before UPDATE article",
    "after UPDATE article",
    "before DELETE article",
    "before INSERT vector_outbox",
    "after INSERT vector_outbox",
    "before commit",
    "after commit",
}


def pointed(tracked: Make, when: str) -> tuple[Tracked, Points]:
    """Return a tracked database with related texts and some rows, and its points."""
    t = tracked(article_models(when, related=True), PointedEmbedder())
    t.run(lambda s: begin(t.base, s))
    t.work()
    points = Points(t.engine)
    t.embedder.points = points
    return t, points


def edit(t: Tracked, number: int) -> Callable[[Session], None]:
    """Return a transaction of two flushes that changes everything that can change."""
    return lambda session: change(t.base, session, number)


def has_edit(t: Tracked, number: int) -> bool:
    """Tell whether an edit was committed."""
    other = t.backend.make_engine()  # whose connections are whole
    return t.backend.run(other, lambda s: s.get(t.base.Article, 200 + number)) is not None


def check(t: Tracked) -> None:
    """Look for what was lost."""
    assert not find(t.backend.url, related=True, must_be_current=True).check().dead


def fault_of(t: Tracked, fault: str) -> Callable[[], None]:
    """Return what goes wrong."""
    return boom if fault == "exception" else cut_all(t.backend.url)


def go_through_a_batch(tracked: Make, fault: str) -> None:
    t, points = pointed(tracked, "worker")

    def work() -> Any:
        return t.work(lease=0.2, timeout=None, max_backoff=0.0)

    t.run(edit(t, 0))
    with points.watched():
        work()
    names = list(points.names)
    assert set(names) >= WORKER_STEPS
    for number, name in enumerate(names, start=1):
        t.run(edit(t, number))
        with points.watched(number, fault_of(t, fault)):
            try:
                work()
            except Boom:
                assert fault == "exception", name
        assert points.has_fired, name
        work()
        check(t)


def go_through_a_flush(tracked: Make, when: str, fault: str) -> None:
    t, points = pointed(tracked, when)
    with points.watched():
        t.run(edit(t, 0))
    names = list(points.names)
    assert set(names) >= (FLUSH_STEPS if when == "flush" else {n for n in FLUSH_STEPS if "embed" not in n})
    for number, name in enumerate(names, start=1):
        with points.watched(number, fault_of(t, fault)):
            try:
                t.run(edit(t, number))
            except (Boom, EmbedderError, DBAPIError):
                assert name != "after commit" or fault == "exception"
        assert points.has_fired, name
        assert has_edit(t, number) == (name == "after commit"), name
        t.work()
        check(t)


@pytest.mark.backends("psycopg", "asyncpg", "pysqlite3", "aiosqlite")
def test_an_exception_at_any_point_of_a_batch_loses_nothing(tracked: Make) -> None:
    go_through_a_batch(tracked, "exception")


@pytest.mark.backends("psycopg", "psycopg_async", "psycopg2", "asyncpg")
def test_a_cut_connection_at_any_point_of_a_batch_stops_no_worker(tracked: Make) -> None:
    go_through_a_batch(tracked, "cut")


@pytest.mark.parametrize("when", ["flush", "worker"])
@pytest.mark.backends("psycopg", "asyncpg", "pysqlite3", "aiosqlite")
def test_an_exception_at_any_point_of_a_flush_loses_nothing(tracked: Make, when: str) -> None:
    go_through_a_flush(tracked, when, "exception")


@pytest.mark.parametrize("when", ["flush", "worker"])
@pytest.mark.backends("psycopg", "asyncpg")
def test_a_cut_connection_at_any_point_of_a_flush_loses_nothing(tracked: Make, when: str) -> None:
    go_through_a_flush(tracked, when, "cut")


KILLED = pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")


def die_at_every_point(born: Nursery, url: URL, role: str) -> int:
    """Have a process killed at its first point, the next one at its second, until one gets through; return how many."""
    for number in count(1):
        if role == "die_working":
            assert born.wait(born.fork("change", number=number)) == 0
        ended = born.wait(born.fork(role, at=number, number=number))
        assert born.wait(born.fork("work", until_empty=True)) == 0
        assert not find(url, related=True, must_be_current=True).check().dead
        if ended == 0:
            return number - 1
        assert ended == -signal.SIGKILL
    raise AssertionError


@KILLED
def test_a_worker_that_is_killed_at_any_point_loses_nothing(backend: Backend, tmp_path: Path) -> None:
    with nursery(backend.url, tmp_path / "embedded.jsonl", related=True, has_rows=True) as born:
        assert die_at_every_point(born, backend.url, "die_working") >= len(WORKER_STEPS)


@KILLED
@pytest.mark.parametrize("when", ["flush", "worker"])
def test_a_program_that_is_killed_at_any_point_of_a_flush_loses_nothing(
    backend: Backend, tmp_path: Path, when: str
) -> None:
    with nursery(backend.url, tmp_path / "embedded.jsonl", related=True, has_rows=True, when=when) as born:
        points = die_at_every_point(born, backend.url, "die_editing")
        assert points >= (len(FLUSH_STEPS) if when == "flush" else len(FLUSH_STEPS) - 2)


@pytest.mark.backends("psycopg", "psycopg2")
def test_two_workers_that_fail_at_one_row_leave_one_reason(tracked: Make) -> None:
    t = tracked(article_models("worker"), PointedEmbedder())
    outbox, engine = t.base.outbox, t.engine
    t.run(lambda s: s.add(t.base.Article(id=1, title="a")))
    t.run(lambda s: setattr(s.get_one(t.base.Article, 1), "title", "b"))
    taken = []
    for token in ("one", "other"):
        with engine.begin() as connection:
            taken += claim(connection, outbox, token, 1, 60.0, CHANNEL, ["article"])
    is_done = Event()

    def fail() -> None:
        with engine.begin() as connection:
            bury(connection, outbox, "other", taken[1], "because", None)
        is_done.set()

    with engine.begin() as connection:
        bury(connection, outbox, "one", taken[0], "because", None)
        thread = Thread(target=fail)
        thread.start()
        while not is_done.is_set() and not is_waited_for(connection):
            is_done.wait(0.01)
    thread.join()
    (entry,) = t.entries()
    assert (entry.state, entry.reason) == ("dead", "because")


def is_waited_for(connection: Connection) -> bool:
    """Tell whether a transaction waits for this one."""
    # Not pg_stat_activity, which stays in a transaction as it was at the first look.
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND pg_backend_pid() = ANY(pg_blocking_pids(pid))"
    return bool(connection.scalar(text(waiting)))
