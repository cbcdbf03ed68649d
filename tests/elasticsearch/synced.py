"""A model whose rows are mirrored, and a program that compares database and index by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from elasticsearch import AsyncElasticsearch, Elasticsearch
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import sessionmaker

from sqla_vector.elasticsearch import DenseVector, Keyword, SearchIndex, Sync
from sqla_vector.tracking import Worker, outbox_triggers, track, untrack
from tests.support.backends import AnyEngine, Backend
from tests.tracking.models import CountingEmbedder, article_models


def mirrored_models(name: str, *, triggers: bool = False, when: str = "worker", settings: Any = None) -> Any:
    """Return the models of ``article_models()`` with an index of articles as ``Base.index``."""
    base = article_models(when)
    base.index = SearchIndex(
        name,
        base.Article,
        fields={
            "title": "title",
            "body": "body",
            "views": "views",
            "author": Keyword("author.name", ignore_above=100_000),
            "embedding": DenseVector("embedding", index="flat"),
        },
        outbox=base.outbox,
        settings=settings,
    )
    if triggers:
        outbox_triggers(base, base.outbox)
    return base


class Synced:
    """A database, an index, and everything that keeps one as the other."""

    def __init__(self, backend: Backend, engine: AnyEngine, url: str, base: Any) -> None:
        self.backend, self.engine, self.url, self.base, self.index = backend, engine, url, base, base.index
        backend.create_all(engine, base.metadata)
        maker: Any = async_sessionmaker if backend.is_async else sessionmaker
        self.sessions = maker(engine, expire_on_commit=False)
        self.embedder = CountingEmbedder()
        track(self.sessions, embedders={"counting": self.embedder}, models=base, outbox=base.outbox)
        self.client = Elasticsearch(url, request_timeout=60)

    def close(self) -> None:
        """Leave sessions and client."""
        untrack(self.sessions)
        self.client.close()

    def run(self, function: Callable[[Any], Any]) -> Any:
        """Call a function with a session in a transaction, and commit."""
        if not self.backend.is_async:
            with self.sessions() as session, session.begin():
                return function(session)

        async def run() -> Any:
            async with self.sessions() as session, session.begin():
                return await session.run_sync(function)

        return self.backend.wait(run())

    def sync(self, url: str | None = None, **options: Any) -> Any:
        """Work off the index's entries until there are none."""
        options = {"poll": 0.01, "backoff": 0.01, "max_backoff": 0.1, **options}
        if not self.backend.is_async:
            with Elasticsearch(url or self.url) as client:
                return Sync(self.sessions, client, self.index, **options).run(until_empty=True)

        async def run() -> Any:
            async with AsyncElasticsearch(url or self.url) as client:
                return await Sync(self.sessions, client, self.index, **options).arun(until_empty=True)

        return self.backend.wait(run())

    def embed(self) -> None:
        """Work off the entries of vectors."""
        worker = Worker(self.sessions, models=self.base, poll=0.01)
        self.backend.wait(worker.arun(until_empty=True)) if worker.is_async else worker.run(until_empty=True)

    def add(self, count: int, start: int = 1) -> None:
        """Add articles."""
        articles = [{"id": n, "title": f"title {n}", "body": f"body {n}"} for n in range(start, start + count)]
        self.run(lambda session: session.add_all([self.base.Article(**values) for values in articles]))

    def entries(self) -> list[Any]:
        """Return what the outbox has for the index."""
        outbox = self.base.outbox
        stmt = select(outbox).where(outbox.c.channel == self.index.channel).order_by(outbox.c.id)
        return list(self.backend.run_connection(self.engine, lambda c: c.execute(stmt).all()))

    def documents(self) -> dict[str, dict[str, Any]]:
        """Return all documents by their ids."""
        self.client.indices.refresh(index=self.index.name)
        found = self.client.search(index=self.index.name, size=10_000, version=True)
        assert found["hits"]["total"]["value"] <= 10_000
        return {hit["_id"]: hit["_source"] for hit in found["hits"]["hits"]}

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return what the documents should have, by SQL of its own."""
        article = self.base.Article.__table__
        vectors = select(article.c.id, article.c.embedding)
        columns = text(
            "SELECT article.id, title, body, views, author.name AS author FROM article "
            "LEFT JOIN author ON author.id = article.author_id"
        )

        def read(connection: Any) -> dict[str, dict[str, Any]]:
            embeddings = {row[0]: row[1] for row in connection.execute(vectors)}
            found = {}
            for row in connection.execute(columns):
                values = dict(row._mapping)
                vector = embeddings[row.id]
                values["embedding"] = None if vector is None else np.asarray(vector, np.float32)
                id_ = str(values.pop("id"))
                found[id_] = {name: value for name, value in values.items() if value is not None}
            return found

        found: dict[str, dict[str, Any]] = self.backend.run_connection(self.engine, read)
        return found

    def differences(self) -> list[str]:
        """Say what is not the same in database and index."""
        return differences(self.rows(), self.documents())


def differences(rows: dict[str, dict[str, Any]], documents: dict[str, dict[str, Any]]) -> list[str]:
    """Say what is missing, extra or another."""
    found = [f"{id_} is missing" for id_ in rows.keys() - documents.keys()]
    found += [f"{id_} is extra" for id_ in documents.keys() - rows.keys()]
    for id_ in rows.keys() & documents.keys():
        row, document = rows[id_], {k: v for k, v in documents[id_].items() if not k.startswith("_")}
        if row.keys() != document.keys():
            found.append(f"{id_} has the fields {sorted(document)} and not {sorted(row)}")
            continue
        for name, value in row.items():
            same = np.allclose(value, document[name], rtol=1e-6) if name == "embedding" else value == document[name]
            if not same:
                found.append(f"{id_}.{name} is {document[name]!r} and not {value!r}")
    return sorted(found)
