"""A query run by Elasticsearch has the hits that it has in the database."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from elasticsearch import AsyncElasticsearch, Elasticsearch

from sqla_vector.elasticsearch import Searcher, asearch_query, search_query
from sqla_vector.exc import InvalidFilter, InvalidOption, InvalidQuery
from sqla_vector.fusion import rrf
from sqla_vector.query import Queryable, VectorQuery, federated
from tests.elasticsearch.searched import make_world, put
from tests.elasticsearch.test_search import QUERIES, fill

pytestmark = pytest.mark.backends("pysqlite3")


@pytest.fixture
def declared(index_name: str, client: Elasticsearch, backend: Any, engine: Any) -> Any:
    world = make_world(index_name)
    world.run = lambda function: backend.run(engine, function)
    world.searcher = Searcher(client, world.index)
    world.articles = Queryable(
        world.Article,
        filters=["lang", "number", "active", "secret"],
        rerankers={"reversed": reverse},
        max_k=300,
        allow_exact=True,
    )
    return world


@pytest.fixture
def world(declared: Any, client: Elasticsearch, backend: Any, engine: Any) -> Any:
    backend.create_all(engine, declared.Base.metadata)
    declared.index.create(client)
    backend.run(engine, fill(declared))
    backend.run(engine, lambda session: put(session, client, declared.index))
    return declared


def reverse(hits: Any) -> Any:
    return [float(rank) for rank, _ in enumerate(hits)]


def both(world: Any, query: VectorQuery) -> tuple[Any, Any]:
    """Return the hits of Elasticsearch and of the database."""
    query = VectorQuery.from_json(query.to_json())
    there = world.run(lambda session: search_query(world.searcher, session, world.articles, query))
    here = world.run(lambda session: world.articles.search(session, query))
    return there, here


def seen(hits: Any) -> list[tuple[int, float]]:
    return [(hit.entity.id, hit.distance) for hit in hits]


def test_the_hits_are_those_of_the_database(world: Any):
    article = world.Article
    queries = [
        VectorQuery().similar_to("embedding", QUERIES[0], metric="cosine"),
        VectorQuery().similar_to("embedding", QUERIES[1], metric="l2").where(article.lang == "en").top(20),
        VectorQuery().similar_to("embedding", QUERIES[2], metric="l2", max_distance=9.0),
        VectorQuery().similar_to("embedding", QUERIES[3], metric="cosine", min_similarity=0.5),
        VectorQuery()
        .similar_to("embedding", QUERIES[4], metric="inner_product")
        .where(article.active, article.number.between(50, 200)),
    ]
    for query in queries:
        there, here = both(world, replace(query, exact=True))
        assert seen(there) == seen(here)
        assert [hit.similarity for hit in there] == pytest.approx([hit.similarity for hit in here])
        assert [hit.score for hit in there] == pytest.approx([hit.score for hit in here])
        assert there


def test_parts_have_their_names(world: Any):
    query = VectorQuery().similar_to("embedding", QUERIES[0], name="mine").hybrid("tea", fusion=rrf(), candidates=300)
    there, here = both(world, replace(query, k=300, exact=True))
    assert {hit.entity.id for hit in there} == {hit.entity.id for hit in here}
    vectors = {hit.entity.id: hit.parts["mine"] for hit in here}
    words = {hit.entity.id: hit.parts["text"] is None for hit in here}
    for hit in there:
        mine = hit.parts["mine"]
        assert (None if mine is None else mine.rank) == (None if (own := vectors[hit.entity.id]) is None else own.rank)
        assert (hit.parts["text"] is None) == words[hit.entity.id]
    assert {hit.parts["mine"] is None for hit in there} == {True, False}
    assert {hit.parts["text"] is None for hit in there} == {True, False}


def test_words_must_all_be_there(world: Any):
    for text in ("tea cake", "Milk", "nothing", ""):
        there, here = both(world, VectorQuery().matching(text).top(300))
        assert {hit.entity.id for hit in there} == {hit.entity.id for hit in here}
        assert bool(there) == (text not in ("nothing", ""))


@pytest.mark.parametrize("text", ['"tea cake"', "tea or cake", "tea -cake"])
def test_operators_are_for_the_database(declared: Any, text: str):
    query = VectorQuery().matching(text)
    with pytest.raises(InvalidQuery, match="takes words that must all be there"):
        declared.run(lambda session: search_query(declared.searcher, session, declared.articles, query))


def test_hits_are_ranked_again(world: Any):
    query = VectorQuery().similar_to("embedding", QUERIES[0], metric="cosine").rerank("reversed", candidates=20).top(5)
    plain = VectorQuery().similar_to("embedding", QUERIES[0], metric="cosine").top(20)
    there, here = both(world, replace(query, exact=True))
    first, _ = both(world, replace(plain, exact=True))
    assert [hit.entity.id for hit in there] == [hit.entity.id for hit in reversed(first)][:5]
    assert seen(there) == seen(here)


def test_an_asynchronous_client_finds_the_same(world: Any, client: Elasticsearch, backend: Any, engine: Any):
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    query = VectorQuery().similar_to("embedding", QUERIES[0])
    url = backend.url.set(drivername="sqlite+aiosqlite")
    (node,) = client.transport.node_pool.all()

    async def run() -> Any:
        other = create_async_engine(url, plugins=["sqla_vector"])
        async with AsyncElasticsearch(node.base_url) as asynchronous, AsyncSession(other) as session:
            found = await asearch_query(Searcher(asynchronous, world.index), session, world.articles, query)
            with pytest.raises(InvalidOption, match=r"call search_query\(\)"):
                await asearch_query(Searcher(asynchronous, world.index), None, world.articles, query)  # type: ignore[arg-type]
        await other.dispose()
        return found

    there, _ = both(world, query)
    assert [hit.entity.id for hit in asyncio.run(run())] == [hit.entity.id for hit in there]


def test_the_database_and_the_index_are_two_sources(world: Any):
    query = VectorQuery().similar_to("embedding", QUERIES[0], metric="cosine").top(8)
    query = replace(query, exact=True)

    def run(session: Any) -> Any:
        sources = {
            "index": lambda asked: search_query(world.searcher, session, world.articles, asked),
            "database": lambda asked: world.articles.search(session, asked),
        }
        return federated(sources, query)

    found = world.run(run)
    _, here = both(world, query)
    assert [one.hit.entity.id for one in found] == [hit.entity.id for hit in here]


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        (VectorQuery().similar_to("embedding", QUERIES[0], metric="l1"), InvalidQuery, "no field for embedding by l1"),
        (VectorQuery().similar_to("nothing", QUERIES[0]), InvalidQuery, "'nothing' may not be searched"),
        (VectorQuery(), InvalidQuery, "asks for nothing"),
        (VectorQuery().matching("tea", index="other"), InvalidQuery, "may not be searched"),
        (VectorQuery().matching("tea").matching("milk", name="second"), InvalidQuery, "has one text"),
    ],
)
def test_what_the_index_does_not_have_is_refused(declared: Any, query: Any, error: Any, message: str):
    with pytest.raises(error, match=message):
        declared.run(lambda session: search_query(declared.searcher, session, declared.articles, query))


def test_a_filter_is_about_fields_of_the_index(declared: Any):
    query = VectorQuery().similar_to("embedding", QUERIES[0]).where(declared.Article.secret == "x")
    with pytest.raises(InvalidFilter, match="no field of"):
        declared.run(lambda session: search_query(declared.searcher, session, declared.articles, query))


def test_the_index_and_the_queryable_are_of_one_class(declared: Any):
    authors = make_world("other-index-of-others")
    query = VectorQuery().similar_to("embedding", QUERIES[0])
    with pytest.raises(InvalidOption, match="the index is of Article"):
        declared.run(lambda session: search_query(declared.searcher, session, Queryable(authors.Article), query))
