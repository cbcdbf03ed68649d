"""Processes that edit, embed and keep an index, forked quickly, so that many of them can be killed."""

from __future__ import annotations

import gc
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from elasticsearch import Elasticsearch
from sqlalchemy import URL, make_url
from sqlalchemy.orm import sessionmaker

from sqla_vector.elasticsearch import Sync
from sqla_vector.tracking import Worker, track
from tests.elasticsearch.synced import mirrored_models
from tests.support.nursery import Editor, Nursery, engine_of, main
from tests.tracking.models import CountingEmbedder

LEASE = 2.0


class _Scene:
    """What all children of a nursery share."""

    def __init__(self, url: str, node: str, name: str) -> None:
        self.node = node
        self.base = mirrored_models(name)
        self.engine = engine_of(make_url(url))
        self.sessions = sessionmaker(self.engine)
        self.base.metadata.create_all(self.engine)
        models = {"models": self.base, "outbox": self.base.outbox}
        track(self.sessions, embedders={"counting": CountingEmbedder()}, **models)
        with Elasticsearch(node, request_timeout=60) as client:
            self.base.index.create(client)
        # Compile what the children need.
        warm = Editor(self.base, self.sessions, "first")
        for _ in range(60):
            warm.edit()
        self.embed(until_empty=True)
        self.sync(until_empty=True)
        self.engine.dispose()
        gc.freeze()

    def sync(self, until_empty: bool = False, timeout: float = 1.0) -> None:
        options = {"batch_size": 8, "poll": 0.02, "backoff": 0.01, "max_backoff": 0.1}
        with Elasticsearch(self.node) as client:
            one = Sync(self.sessions, client, self.base.index, lease=LEASE, timeout=timeout, **options)
            one.run(until_empty=until_empty, signals=True)

    def embed(self, until_empty: bool = False) -> None:
        worker = Worker(self.sessions, models=self.base, lease=LEASE, timeout=None, poll=0.02)
        worker.run(until_empty=until_empty, signals=True)

    def edit(self, name: str) -> None:
        editor = Editor(self.base, self.sessions, name)
        signal.signal(signal.SIGTERM, editor.stop)
        editor.run()


class SyncNursery(Nursery):
    """The process that forks: ``edit``, ``embed`` and ``sync``.

    Args:
        url: of an empty database.
        node: where Elasticsearch answers.
        name: of the index, which is created.
    """

    def __init__(self, url: URL, node: str, name: str) -> None:
        address = url.render_as_string(hide_password=False)
        self._begin("tests.elasticsearch.sync_nursery", url=address, node=node, name=name)


@contextmanager
def sync_nursery(url: URL, node: str, name: str) -> Iterator[SyncNursery]:
    """Start a process that forks others, and end them all."""
    found = SyncNursery(url, node, name)
    try:
        yield found
    finally:
        found.close()


if __name__ == "__main__":
    main(_Scene)
