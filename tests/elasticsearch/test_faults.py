"""Faults between the adapter and a node: nothing is acknowledged that is not there, nothing is lost or comes back.

The numbers are small here; ``make soak-elasticsearch`` sets larger ones.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from elasticsearch import Elasticsearch
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm.exc import ObjectDeletedError, StaleDataError

from sqla_vector.elasticsearch import Sync
from sqla_vector.tracking.dead import Selection, replay
from tests.elasticsearch.synced import Synced, mirrored_models
from tests.elasticsearch.watcher import Watcher
from tests.support.backends import AnyEngine, Backend
from tests.support.fault_proxy import FaultProxy
from tests.support.faults import Answer, Fault, Items, Late, Reset, Truncated, Twice, random_faults
from tests.support.nursery import Editor

pytestmark = pytest.mark.long

QUICK = {"poll": 0.01, "backoff": 0.01, "max_backoff": 0.05, "timeout": 0.5, "lease": 3.0}
"""What a sync has to be told so that it loses no time over faults."""

PATIENCE = 120.0
"""Seconds after which what has not been written is not going to be."""


@pytest.fixture
def s(backend: Backend, engine: AnyEngine, node: Any, index_name: str) -> Iterator[Synced]:
    """A database and its index."""
    made = Synced(backend, engine, node.url, mirrored_models(index_name))
    try:
        made.index.create(made.client)
        yield made
    finally:
        made.close()


class Crew:
    """Some who work, in threads of their own, and must not end by themselves."""

    def __init__(self, workers: list[Sync], threads: ThreadPoolExecutor) -> None:
        self.workers = workers
        self._until = time.monotonic() + PATIENCE
        self._runs: list[Future[Any]] = [threads.submit(worker.run) for worker in workers]

    def check(self, what: str = "all is over") -> None:
        """Fail if one has ended, or if it takes too long."""
        for run in self._runs:
            if run.done():
                pytest.fail(f"a sync has ended: {run.result()}")
        assert time.monotonic() < self._until, f"waited in vain until {what}"

    def wait_until(self, is_so: Callable[[], bool], what: str) -> None:
        """Return when something is so."""
        self._until = time.monotonic() + PATIENCE
        while not is_so():
            self.check(what)
            time.sleep(0.005)


@contextmanager
def syncs(s: Synced, url: str, count: int, **options: Any) -> Iterator[Crew]:
    """Have some work on what waits."""
    with ExitStack() as stack:
        clients = [stack.enter_context(Elasticsearch(url)) for _ in range(count)]
        made = [
            Sync(s.sessions, client, s.index, name=f"sync {number}", **{**QUICK, **options})
            for number, client in enumerate(clients)
        ]
        crew = Crew(made, stack.enter_context(ThreadPoolExecutor(count)))
        try:
            yield crew
            crew.check()
        finally:
            for one in made:
                one.stop()


def edit(editor: Editor) -> None:
    """Make a transaction, and give it up if others are in the way."""
    with suppress(DBAPIError, StaleDataError, ObjectDeletedError):
        editor.edit()


def replay_dead(s: Synced) -> int:
    """Have dead entries tried again, and return how many."""
    selection = Selection(channel=s.index.channel)
    number: int = s.backend.run_connection(s.engine, lambda c: replay(c, s.base.outbox, selection))
    return number


def other_than_dead(s: Synced) -> list[str]:
    """Return the differences of rows that have no dead entry."""
    dead = {entry.row_key[1:-1] for entry in s.entries()}
    return [what for what in s.differences() if what.replace(".", " ").split()[0] not in dead]


@pytest.mark.backends("psycopg", "pysqlite3")
def test_nothing_is_lost_false_or_back_after_many_faults(s: Synced) -> None:
    number = int(os.environ.get("SQLA_VECTOR_TEST_ELASTICSEARCH_FAULTS", 100))
    seed = random.randrange(10**6)
    editor = Editor(s.base, s.sessions, f"editor {seed}")
    watcher = Watcher(s.engine, s.client, s.base)  # type: ignore[arg-type]
    rounds = replayed = 0
    with FaultProxy(s.url, random_faults(seed, number, items=16)) as proxy:
        with syncs(s, proxy.url, 2, batch_size=16, max_actions=8) as crew:
            while proxy.remaining:
                crew.check()
                rounds += 1
                for _ in range(12):
                    edit(editor)
                    watcher.look()
                if rounds % 3 == 0:
                    s.embed()
                crew.wait_until(lambda: not watcher.pending(), f"all is written, with seed {seed}")
                # What is late may still arrive; what the outbox does not have must be there all the same.
                watcher.look()
                assert other_than_dead(s) == []
                replayed += replay_dead(s)
        proxy.deliver_late()
        met = Counter(type(delivery.fault).__name__ for delivery in proxy.deliveries)
    watcher.look()
    s.sync()
    while replay_dead(s):
        s.sync()
    print(f"seed {seed}: {met}, {rounds} rounds, {watcher.looks} looks, {replayed} replayed")
    assert s.entries() == []
    assert s.differences() == []
    watcher.check_versions()
    kinds = {"Items", "Answer", "Reset", "Truncated", "Late", "Twice"}
    assert kinds <= met.keys()
    assert sum(met[kind] for kind in kinds) == number


@pytest.mark.backends("psycopg")
def test_faults_of_all_requests_are_lived_through(s: Synced) -> None:
    kinds: list[Fault] = [Answer(429), Answer(502), Answer(503), Answer(500), Reset(), Truncated(), Late(), Answer(404)]
    faults = [*kinds, *kinds, *kinds]
    random.shuffle(faults)
    editor = Editor(s.base, s.sessions, "editor")
    watcher = Watcher(s.engine, s.client, s.base)  # type: ignore[arg-type]
    with FaultProxy(s.url, faults, matching="/") as proxy, syncs(s, proxy.url, 2, batch_size=4) as crew:
        while proxy.remaining:
            crew.check("all faults have happened")
            edit(editor)
            watcher.look()
        crew.wait_until(lambda: not watcher.pending(), "all is written")
    assert s.entries() == []
    assert s.differences() == []


EACH: list[Fault] = [
    *(Items(status, {0, 2}) for status in (403, 409, 429, 503)),
    *(Answer(status, forwarded=True) for status in (429, 500, 502, 503)),
    *(Answer(status) for status in (401, 403, 404, 405, 429, 500, 502)),
    Reset(),
    Reset(forwarded=True),
    Truncated(),
    Late(after=0),
    Late(after=1),
    Late(),
    Twice(0),
    Twice(1),
]


@pytest.mark.backends("psycopg", "aiosqlite")
def test_each_fault_leaves_the_index_as_the_database(s: Synced) -> None:
    s.add(4)
    for number, fault in enumerate(EACH):

        def change(session: Any, number: int = number) -> None:
            for id_ in (1, 2, 3):
                session.get(s.base.Article, id_).title = f"after {number}"
            if number % 2:
                session.delete(session.get(s.base.Article, 4))
            elif number:
                session.add(s.base.Article(id=4, title=f"again {number}"))

        with FaultProxy(s.url, [fault]) as proxy:
            s.run(change)
            s.sync(proxy.url, timeout=0.5, lease=3.0)
            assert s.entries() == [], fault
            assert s.differences() == [], fault
            # Of an edit that comes before what is late.
            s.run(lambda session, number=number: setattr(session.get(s.base.Article, 1), "title", f"last {number}"))
            s.sync()
            proxy.deliver_late()
            assert not proxy.remaining
        assert s.differences() == [], fault


@pytest.mark.backends("psycopg", "pysqlite3")
def test_a_document_that_was_refused_once_is_written_when_it_is_replayed(s: Synced) -> None:
    s.add(3)
    with FaultProxy(s.url, [Items(400, {1})]) as proxy:
        outcome = s.sync(proxy.url)
    assert (outcome.written, outcome.dead) == (2, 1)
    (dead,) = s.entries()
    assert dead.state == "dead"
    assert "document_parsing_exception" in dead.reason
    assert s.differences() == [f"{dead.row_key[1:-1]} is missing"]
    assert replay_dead(s) == 1
    s.sync()
    assert s.entries() == []
    assert s.differences() == []
