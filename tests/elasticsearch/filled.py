"""A database with many rows and an index with all of them, and everything that can be wrong about an index."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from elasticsearch import AsyncElasticsearch, Elasticsearch, helpers
from sqlalchemy import delete, insert, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm.exc import StaleDataError

from sqla_vector.elasticsearch import Rebuild, RebuildReport, Reconcile
from sqla_vector.tracking.outbox import draw
from tests.elasticsearch.synced import Synced, differences
from tests.tracking.models import DIM

FAST: dict[str, Any] = {"backoff": 0.01, "max_backoff": 0.1}


class Filled(Synced):
    """Rows that are written without the outbox, and documents that are read without this package."""

    def insert(self, count: int, start: int = 1) -> None:
        """Add articles of three authors, two thirds of them with vectors, by SQL that nobody notices."""
        article, author = self.base.Article.__table__, self.base.Author.__table__
        vectors = np.random.default_rng(start).standard_normal((count, DIM)).astype(np.float32)
        rows = [
            {
                "id": n,
                "title": f"title {n}",
                "body": f"body {n}",
                "views": n % 7,
                "author_id": 1 + n % 3,
                "embedding": vectors[n - start] if n % 3 else None,
            }
            for n in range(start, start + count)
        ]

        def run(connection: Any) -> None:
            if start == 1:
                connection.execute(insert(author), [{"id": n, "name": f"author {n}"} for n in (1, 2, 3)])
            for at in range(0, count, 2000):
                connection.execute(insert(article), rows[at : at + 2000])

        self.backend.run_connection(self.engine, run)

    def execute(self, statement: Any) -> None:
        """Execute SQL that nobody notices."""
        self.backend.run_connection(self.engine, lambda connection: connection.execute(statement) and None)

    def draw(self) -> int:
        """Draw a number."""
        number: int = self.backend.run_connection(self.engine, lambda c: draw(c, self.base.outbox))
        return number

    def documents(self) -> dict[str, dict[str, Any]]:
        self.client.indices.refresh(index=self.index.name)
        hits = helpers.scan(self.client, index=self.index.name, size=2000)
        return {hit["_id"]: hit["_source"] for hit in hits}

    def differences(self) -> list[str]:
        return differences(self.rows(), self.documents())

    def behind(self, alias: str | None = None) -> list[str]:
        """Return the physical indexes of an alias, by default the index's."""
        alias = alias or self.index.name
        return sorted(self.client.indices.get_mapping(index=alias, ignore_unavailable=True))

    def with_client(self, make: Callable[[Any], Any], method: str, **arguments: Any) -> Any:
        """Make something with a client, and call its method, or that with an ``a`` in front."""
        if not self.backend.is_async:
            with Elasticsearch(self.url) as client:
                return getattr(make(client), method)(**arguments)

        async def run() -> Any:
            async with AsyncElasticsearch(self.url) as client:
                return await getattr(make(client), f"a{method}")(**arguments)

        return self.backend.wait(run())

    def rebuild(self, **options: Any) -> RebuildReport:
        """Rebuild the index."""
        options = {"linger": 0.0, **FAST, **options}
        report: RebuildReport = self.with_client(lambda c: Rebuild(self.sessions, c, self.index, **options), "run")
        return report

    def check(self, *, fix: bool = False, **options: Any) -> Any:
        """Compare index and database."""
        options = {**FAST, **options}
        return self.with_client(lambda c: Reconcile(self.sessions, c, self.index, **options), "run", fix=fix)


class Editor:
    """Adds, edits and deletes articles at random; ``edit()`` makes some changes in one session."""

    def __init__(self, base: Any, seed: int, most: int) -> None:
        self._base, self._random, self._most = base, random.Random(seed), most
        self._new = itertools.count(1_000_000 * (seed + 1))
        self.edits = 0

    def edit(self, session: Any) -> None:
        """Make some changes."""
        article, author = self._base.Article, self._base.Author
        for _ in range(self._random.randint(1, 4)):
            found = session.get(article, self._random.randint(1, self._most))
            kind = self._random.random()
            self.edits += 1
            if kind < 0.3 or found is None:
                session.add(article(id=next(self._new), title="new", body="new", author_id=self._random.randint(1, 3)))
            elif kind < 0.5:
                session.delete(found)
            elif kind < 0.55:
                # Of a third of all documents.
                session.get(author, self._random.randint(1, 2)).name = f"renamed {self.edits}"
            else:
                found.title, found.views = f"edited {self.edits}", found.views + 1


CROSSED = (DBAPIError, StaleDataError)
"""What an editor meets if another has been there first: it tries again."""


class Planter:
    """Makes every kind of difference, and knows which there are: ``planted`` has the ids."""

    def __init__(self, filled: Filled, each: int) -> None:
        self._filled, self._each = filled, each
        self._ids = iter(range(1, 10**9))
        self.planted: dict[str, str] = {}
        """Which kind a document is of, by its id."""
        # Somebody who writes with the server's own versions must not come beyond what the database has drawn.
        for _ in range(5):
            filled.draw()
        hits = list(helpers.scan(filled.client, index=filled.index.name, version=True, size=2000))
        self._versions = {hit["_id"]: hit["_version"] for hit in hits}
        self._documents = {hit["_id"]: hit["_source"] for hit in hits}

    def _take(self, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield documents that have a vector and are as they should be yet."""
        for _ in range(self._each):
            while True:
                id_ = str(next(self._ids))
                if id_ in self._documents and "embedding" in self._documents[id_]:
                    break
            self.planted[id_] = kind
            yield id_, self._documents[id_]

    def _extra(self, kind: str, ids: list[str]) -> list[str]:
        self.planted |= dict.fromkeys(ids, kind)
        return ids

    def plant(self) -> None:
        """Make all of them."""
        self._tamper()
        self._misplace()
        self._change_rows()

    def _tamper(self) -> None:
        """Write documents that are not those of their rows."""

        def changed(document: dict[str, Any], **fields: Any) -> dict[str, Any]:
            return {**document, **fields}

        def about(document: dict[str, Any], **fields: Any) -> dict[str, Any]:
            return {**document, "_sqla_vector": {**document["_sqla_vector"], **fields}}

        def without(document: dict[str, Any], name: str) -> dict[str, Any]:
            return {key: value for key, value in document.items() if key != name}

        def next_vector(document: dict[str, Any]) -> list[float]:
            first, *rest = document["embedding"]
            return [float(np.nextafter(np.float32(first), np.float32(9))), *rest]

        def older(document: dict[str, Any]) -> dict[str, Any]:
            before = changed(document, title="before")
            return about(before, hash=self._filled.index.hash_of(before))

        another = self._documents[str(max(int(id_) for id_ in self._documents))]
        ways: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "older contents": older,
            "a changed text": lambda d: changed(d, title="tampered"),
            "a changed number": lambda d: changed(d, views=d["views"] + 1),
            "a number as text": lambda d: changed(d, views=str(d["views"])),
            "a value of a related row": lambda d: changed(d, author="nobody"),
            "the least change of a vector": lambda d: changed(d, embedding=next_vector(d)),
            "no vector": lambda d: without(d, "embedding"),
            "a field less": lambda d: without(d, "views"),
            "a field that is null": lambda d: changed(d, body=None),
            "a changed hash": lambda d: about(d, hash="0" * 32),
            "another key": lambda d: about(d, key="[0]"),
            "nothing about itself": lambda d: without(d, "_sqla_vector"),
            "another row's document": lambda d: another,
        }
        name, lines = self._filled.index.name, []
        for kind, change in ways.items():
            for id_, document in self._take(kind):
                # As a late or a foreign write would be: with the version that is there.
                versions = {"version": self._versions[id_], "version_type": "external_gte"}
                lines += [{"index": {"_id": id_, **versions}}, change(document)]
        # The server's own versions.
        for id_, document in self._take("written by hand"):
            lines += [{"index": {"_id": id_}}, changed(document, title="by hand")]
        self._bulk(name, lines)

    def _misplace(self) -> None:
        """Delete documents, and write those that no row has."""
        name = self._filled.index.name
        self._bulk(name, [{"delete": {"_id": id_}} for id_, _ in self._take("deleted by hand")])
        document = next(iter(self._documents.values()))
        numbers = range(self._each)
        foreign = self._extra("the id of no row", [f"{500_000_000 + n}" for n in numbers])
        foreign += self._extra(
            "an id that is no key", [("no-{}", "00{}", "[{}]", "{} ")[n % 4].format(n) for n in numbers]
        )
        self._bulk(name, [line for id_ in foreign for line in ({"index": {"_id": id_}}, document)])

    def _change_rows(self) -> None:
        """Change rows by SQL that nobody notices."""
        article = self._filled.base.Article.__table__
        for kind, statement in (
            ("a row that was changed", update(article).values(title="by SQL")),
            ("a row that was deleted", delete(article)),
        ):
            ids = [int(id_) for id_, _ in self._take(kind)]
            self._filled.execute(statement.where(article.c.id.in_(ids)))
        ids = [700_000_000 + n for n in range(self._each)]
        self._extra("a row that was added", [str(id_) for id_ in ids])
        self._filled.execute(insert(article).values([{"id": id_, "title": "by SQL", "views": 0} for id_ in ids]))

    def _bulk(self, name: str, lines: list[dict[str, Any]]) -> None:
        answer = self._filled.client.bulk(index=name, operations=lines, refresh=True)
        assert not answer["errors"], [item for item in answer["items"] if "error" in next(iter(item.values()))][:3]
