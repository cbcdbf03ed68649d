"""A search finds what the database has, in the order and at the distances that the database gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from sqla_vector import nearest
from sqla_vector.elasticsearch.query import Knn, Match
from sqla_vector.elasticsearch.search import Searcher
from tests.elasticsearch.searched import make_world, put, vectors

TWO = ("pysqlite3", "psycopg")
WORDS = "tea coffee cake bread jam milk honey sugar salt pepper".split()


def filled(world: Any, count: int = 300) -> Any:
    def fill(session: Any) -> None:
        embeddings, others = vectors(count), vectors(count, seed=2)
        authors = [world.Author(id=n, name=f"author {n}") for n in range(1, 6)]
        session.add_all(authors)
        for n in range(count):
            session.add(
                world.Article(
                    id=n + 1,
                    title=f"{WORDS[n % 10]} and {WORDS[n % 7]}",
                    body=" ".join(WORDS[(n * step) % 10] for step in range(1, 1 + n % 9)),
                    lang=("en", "de", "fr", None)[n % 4],
                    number=n if n % 5 else None,
                    author=authors[n % 5],
                    embedding=embeddings[n] if n % 11 else None,
                    other=others[n],
                )
            )

    return fill


@pytest.fixture
def world(index_name: str) -> Any:
    return make_world(index_name)


@pytest.fixture
def ready(world: Any, backend: Any, engine: Any, client: Any) -> Any:
    backend.create_all(engine, world.Base.metadata)
    world.index.create(client)
    backend.run(engine, filled(world))
    backend.run(engine, lambda session: put(session, client, world.index))
    world.searcher = Searcher(client, world.index)
    world.run = lambda function: backend.run(engine, function)
    return world


@pytest.mark.parametrize(("field", "metric"), [("embedding_flat", "cosine"), ("embedding_l2", "l2"), ("embedding_ip", "inner_product")])
def test_an_exact_search_is_sqls(ready: Any, field: str, metric: str):
    for query in vectors(10, seed=3):
        stmt = nearest(select(ready.Article), ready.Article.embedding, query, k=10, metric=metric, exact=True)
        expected = ready.run(lambda session: [(row[0].id, row[1]) for row in session.execute(stmt)])
        page = ready.run(lambda session: ready.searcher.search(session, knn=Knn(field, query)))
        assert [(hit.entity.id, hit.distance) for hit in page] == expected
        assert [hit.rank for hit in page] == list(range(1, 11))


def test_text(ready: Any):
    page = ready.run(lambda session: ready.searcher.search(session, text=Match("tea", fields=["title"]), highlight=True))
    assert all("tea" in hit.entity.title for hit in page)
    print(page.hits[0], page.total)
