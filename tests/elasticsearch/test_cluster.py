"""Three nodes as one cluster, of which one is killed: nothing is lost, and searches go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from elasticsearch import Elasticsearch

from sqla_vector.elasticsearch import Knn, Searcher
from tests.elasticsearch.synced import Synced, mirrored_models
from tests.elasticsearch.test_faults import edit, syncs
from tests.elasticsearch.watcher import Watcher
from tests.support.backends import AnyEngine, Backend
from tests.support.elasticsearch import Cluster, Node, cluster
from tests.support.nursery import Editor

pytestmark = [pytest.mark.soak, pytest.mark.backends("psycopg")]

ROWS = 1200


@pytest.fixture
def three(needs_own_node: None) -> Iterator[Cluster]:
    """Three nodes."""
    with cluster(3, heap="512m") as made:
        yield made


def master_of(nodes: Cluster) -> Node:
    """Return the node that directs the others: without it there is the most to be done."""
    with Elasticsearch(nodes.urls) as client:
        state = client.cluster.state(metric="master_node,nodes")
        name = state["nodes"][state["master_node"]]["name"]
    return next(node for node in nodes.nodes if node.name == name)


class Searches:
    """Searches, one after the other, until it is told to stop."""

    def __init__(self, s: Synced, hosts: list[str]) -> None:
        self.count = 0
        self._s, self._hosts = s, hosts
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Stop after the search."""
        self._stopped.set()

    def run(self) -> None:
        """Search, by vector and by words; each search has to find something."""
        with Elasticsearch(self._hosts, request_timeout=60) as client:
            searcher = Searcher(client, self._s.index)
            while not self._stopped.is_set():
                with self._s.sessions() as session:
                    near = searcher.search(session, knn=Knn("embedding", np.ones(4, np.float32)), k=5)
                    said = searcher.search(session, text="body", k=5)
                assert len(list(near)) + len(near.dropped) == 5
                assert len(list(said)) + len(said.dropped) == 5
                self.count += 1


def test_nothing_is_lost_and_searches_go_on_when_a_node_is_killed(
    backend: Backend, engine: AnyEngine, three: Cluster
) -> None:
    settings = {"index.number_of_shards": 3, "index.number_of_replicas": 1}
    s = Synced(backend, engine, three.urls, mirrored_models("articles", settings=settings))  # type: ignore[arg-type]
    try:
        s.index.create(s.client)
        three.wait_for()
        survive(s, three)
    finally:
        s.close()


def survive(s: Synced, three: Cluster) -> None:
    """Kill a node while rows are loaded, edited and searched."""
    s.add(100)
    s.embed()
    s.sync(three.urls)  # type: ignore[arg-type]
    s.client.indices.refresh(index=s.index.name)
    editor = Editor(s.base, s.sessions, "editor")
    watcher = Watcher(s.engine, s.client, s.base)  # type: ignore[arg-type]
    searches = Searches(s, three.urls)
    mortal = master_of(three)

    with ThreadPoolExecutor(1) as thread:
        searching = thread.submit(searches.run)
        try:
            options: Any = {"batch_size": 20, "timeout": 20.0, "lease": 60.0}
            with syncs(s, three.urls, 2, **options) as crew:  # type: ignore[arg-type]
                s.add(ROWS, start=10_000)
                crew.wait_until(lambda: watcher.pending() < ROWS * 3 / 4, "a part is loaded")
                mortal.kill()
                assert watcher.pending() > 0  # it was in the middle of it
                before = searches.count
                for _ in range(20):
                    edit(editor)
                    watcher.look()
                crew.wait_until(lambda: not watcher.pending(), "all is written")
                crew.wait_until(lambda: searches.count > before + 2 or searching.done(), "searches go on")
            three.wait_for(status="yellow", nodes=2)
            watcher.look()
        finally:
            searches.stop()
        searching.result()
    assert s.entries() == []
    assert s.differences() == []
    watcher.check_versions()
