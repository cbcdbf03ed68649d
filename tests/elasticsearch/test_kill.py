"""Processes and nodes that are killed, indexes that are blocked, deleted and exchanged: all is as the database is.

The numbers are small here; ``make soak-elasticsearch`` sets larger ones.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from elasticsearch import Elasticsearch
from sqlalchemy import select

from sqla_vector.elasticsearch import Sync
from sqla_vector.exc import IndexDrift, IndexMissing
from sqla_vector.tracking.entries import note
from tests.elasticsearch.sync_nursery import SyncNursery, sync_nursery
from tests.elasticsearch.synced import Synced, mirrored_models
from tests.elasticsearch.test_faults import edit, syncs
from tests.elasticsearch.watcher import Watcher
from tests.support.backends import AnyEngine, Backend
from tests.support.elasticsearch import own_node
from tests.support.nursery import Editor

pytestmark = pytest.mark.long

Disturb = Callable[[SyncNursery, list[int]], None]


def times(what: str, ordinary: int) -> int:
    """Return how often something is done, which the environment may say."""
    return int(os.environ.get(f"SQLA_VECTOR_TEST_ELASTICSEARCH_{what}", ordinary))


@contextmanager
def opened(backend: Backend, engine: AnyEngine, url: str, name: str) -> Iterator[Synced]:
    """Open the database and the index that others work on."""
    made = Synced(backend, engine, url, mirrored_models(name))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def s(backend: Backend, engine: AnyEngine, node: Any, index_name: str) -> Iterator[Synced]:
    """A database and its index."""
    with opened(backend, engine, node.url, index_name) as made:
        made.index.create(made.client)
        yield made


def indexes(s: Synced) -> set[str]:
    """Return all indexes whose names begin as the declared one does."""
    return set(s.client.indices.get(index=f"{s.index.name}*", expand_wildcards="all", features="aliases"))


def live_through(s: Synced, number: int, disturb: Disturb) -> None:
    """Let editors, a worker and syncs go on while something happens a number of times; then check what is there."""
    watcher = Watcher(s.engine, s.client, s.base)  # type: ignore[arg-type]
    with sync_nursery(s.backend.url, s.url, s.index.name) as born:
        editors = [born.fork("edit", name=f"editor {n}") for n in range(2)]
        worker = born.fork("embed")
        keepers = [born.fork("sync") for _ in range(2)]
        for _ in range(number):
            disturb(born, keepers)
            watcher.look()
        for pid in (*editors, worker, *keepers):
            assert born.stop(pid) == 0
        watcher.look()
        assert born.wait(born.fork("embed", until_empty=True)) == 0
        assert born.wait(born.fork("sync", until_empty=True)) == 0
    assert s.entries() == []
    assert s.differences() == []
    watcher.look()
    watcher.check_versions()
    assert len(indexes(s)) == 1
    assert len(s.documents()) > 0


@pytest.mark.backends("psycopg", "pysqlite3")
def test_nothing_is_lost_when_syncs_are_killed(backend: Backend, engine: AnyEngine, node: Any, index_name: str) -> None:
    def kill_one(born: SyncNursery, keepers: list[int]) -> None:
        time.sleep(random.random() * 0.1)
        which = random.randrange(len(keepers))
        assert born.kill(keepers[which]) == -signal.SIGKILL  # it lived until then
        keepers[which] = born.fork("sync")

    with opened(backend, engine, node.url, index_name) as s:
        live_through(s, times("KILLS", 15), kill_one)


@pytest.mark.backends("psycopg")
def test_nothing_is_lost_when_the_node_is_killed(
    backend: Backend, engine: AnyEngine, index_name: str, needs_own_node: None
) -> None:
    with own_node(heap="512m") as mortal, opened(backend, engine, mortal.url, index_name) as s:

        def restart(born: SyncNursery, keepers: list[int]) -> None:
            time.sleep(random.random())
            mortal.kill()
            time.sleep(random.random() * 0.3)  # nobody answers
            mortal.start()

        live_through(s, times("NODE_KILLS", 1), restart)


@pytest.mark.backends("psycopg", "pysqlite3")
def test_a_full_disk_is_waited_for(s: Synced) -> None:
    s.add(6)
    s.sync()
    block = "index.blocks.read_only_allow_delete"
    s.client.indices.put_settings(index=s.index.name, settings={block: True})
    s.add(3, start=7)

    def change(session: Any) -> None:
        session.get(s.base.Article, 1).title = "while the disk is full"
        session.delete(session.get(s.base.Article, 2))

    s.run(change)
    with Elasticsearch(s.url) as client:
        outcome = Sync(s.sessions, client, s.index).run_once()
    assert (outcome.written, outcome.dead) == (0, 0)
    assert {(entry.state, entry.attempts) for entry in s.entries()} == {("pending", 0)}
    assert {entry.row_key for entry in s.entries()} == {f"[{number}]" for number in (1, 2, 7, 8, 9)}
    s.client.indices.put_settings(index=s.index.name, settings={block: None})
    s.sync()
    assert s.entries() == []
    assert s.differences() == []


def note_all(s: Synced) -> None:
    """Note every row, as whoever makes an index anew has to."""
    article = s.base.Article.__table__

    def put(connection: Any) -> None:
        keys = [tuple(row) for row in connection.execute(select(article.c.id))]
        note(connection, s.base.outbox, s.index.target, keys)

    s.backend.run_connection(s.engine, put)


@pytest.mark.backends("pysqlite3")
def test_an_index_that_is_deleted_under_it_is_not_made_by_it(s: Synced) -> None:
    editor = Editor(s.base, s.sessions, "editor")
    outages: list[Any] = []

    def on_event(event: Any) -> None:
        if type(event).__name__ == "Outage":
            outages.append(event)

    (physical,) = indexes(s)
    with syncs(s, s.url, 2, batch_size=4, on_event=on_event) as crew:
        for number in range(60):
            edit(editor)
            if number == 30:
                crew.wait_until(lambda: bool(s.documents()), "there are documents")
                s.client.indices.delete(index=physical)
        crew.wait_until(lambda: bool(outages), "the index is missed")
        assert indexes(s) == set()
        assert {(entry.state, entry.attempts) for entry in s.entries()} == {("pending", 0)}
        made = s.index.create(s.client)
        note_all(s)
        crew.wait_until(lambda: not s.entries(), "all is written")
    assert {event.of for event in outages} == {"index"}
    assert s.differences() == []
    assert indexes(s) == {made}


@pytest.mark.backends("psycopg", "pysqlite3")
def test_a_delete_makes_no_index_either(s: Synced) -> None:
    s.add(1)
    with Elasticsearch(s.url) as client:
        one = Sync(s.sessions, client, s.index)
        assert one.run_once().written == 1
        for physical in indexes(s):
            s.client.indices.delete(index=physical)
        s.run(lambda session: session.delete(session.get(s.base.Article, 1)))
        with pytest.raises(IndexMissing):
            one.run_once()
    assert indexes(s) == set()
    assert [entry.state for entry in s.entries()] == ["pending"]


@pytest.mark.backends("psycopg")
def test_an_alias_may_get_another_index_under_it(s: Synced) -> None:
    editor = Editor(s.base, s.sessions, "editor")
    watcher = Watcher(s.engine, s.client, s.base)  # type: ignore[arg-type]
    (before,) = indexes(s)
    after = s.index.name + "-other"
    s.client.indices.create(index=after, mappings=s.index.mapping(), settings=s.index.settings())
    with syncs(s, s.url, 2, batch_size=4) as crew:
        for _ in range(30):
            edit(editor)
            watcher.look()
        swap = [
            {"remove": {"index": before, "alias": s.index.name}},
            {"add": {"index": after, "alias": s.index.name, "is_write_index": True}},
        ]
        s.client.indices.update_aliases(actions=swap)
        # All that was acknowledged before is in the other one only.
        note_all(s)
        for _ in range(30):
            edit(editor)
        crew.wait_until(lambda: not s.entries(), "all is written")
        for _ in range(10):
            edit(editor)
            watcher.look()
        crew.wait_until(lambda: not s.entries(), "all is written")
    assert s.differences() == []
    assert indexes(s) == {before, after}


@pytest.mark.backends("psycopg", "pysqlite3")
def test_documents_do_not_die_of_another_index_behind_the_alias(s: Synced) -> None:
    s.add(3)
    (before,) = indexes(s)
    after = s.index.name + "-other"
    s.client.indices.create(index=after, mappings={"dynamic": "strict", "properties": {"title": {"type": "long"}}})
    with Elasticsearch(s.url) as client:
        one = Sync(s.sessions, client, s.index)
        assert one.run_once().written == 3
        s.run(lambda session: setattr(session.get(s.base.Article, 1), "title", "z"))
        swap = [
            {"remove": {"index": before, "alias": s.index.name}},
            {"add": {"index": after, "alias": s.index.name}},
        ]
        s.client.indices.update_aliases(actions=swap)
        with pytest.raises(IndexDrift, match="rebuild"):
            one.run_once()
    assert [(entry.state, entry.attempts) for entry in s.entries()] == [("pending", 0)]
