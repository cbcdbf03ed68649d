"""A search finds what the database has, in the order and at the distances that the database gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from elasticsearch import AsyncElasticsearch, Elasticsearch
from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from sqla_vector import nearest
from sqla_vector.elasticsearch.aggregations import Terms
from sqla_vector.elasticsearch.query import Knn, Match
from sqla_vector.elasticsearch.search import Searcher
from sqla_vector.fusion import rrf, weighted
from sqla_vector.metrics import METRICS
from tests.elasticsearch.searched import DIM, make_world, put, vectors

WORDS = ["tea", "coffee", "cake", "bread", "jam", "milk", "honey", "sugar", "salt", "pepper"]
COUNT = 300
QUERIES = vectors(12, seed=3)


def fill(world: Any) -> Any:
    def run(session: Any) -> None:
        embeddings, others = vectors(COUNT), vectors(COUNT, seed=2)
        embeddings[100:160] = embeddings[100]  # sixty rows that are equally near to everything
        authors = [world.Author(id=n, name=f"author {n}") for n in range(1, 6)]
        session.add_all(authors)
        for n in range(COUNT):
            session.add(
                world.Article(
                    id=n + 1,
                    title=f"{WORDS[n % 10]} & {WORDS[n % 7]}",
                    body=" ".join(WORDS[(n * step) % 10] for step in range(1, 1 + n % 9)),
                    lang=("en", "de", "fr", None)[n % 4],
                    number=n if n % 5 else None,
                    active=bool(n % 3),
                    author=authors[n % 5],
                    embedding=embeddings[n] if n % 11 else None,
                    other=others[n],
                )
            )

    return run


@pytest.fixture
def world(index_name: str, client: Elasticsearch, backend: Any, engine: Any) -> Any:
    world = make_world(index_name)
    backend.create_all(engine, world.Base.metadata)
    world.index.create(client)
    backend.run(engine, fill(world))
    backend.run(engine, lambda session: put(session, client, world.index))
    world.run = lambda function: backend.run(engine, function)
    world.searcher = Searcher(client, world.index)
    world.search = lambda **given: backend.run(engine, lambda session: world.searcher.search(session, **given))
    return world


def nearest_in_sql(world: Any, query: Any, metric: str, *criteria: Any, **options: Any) -> list[tuple[int, float]]:
    stmt = select(world.Article).where(*criteria)
    stmt = nearest(stmt, world.Article.embedding, query, metric=metric, exact=True, **options)
    found: list[tuple[int, float]] = world.run(lambda session: [(row[0].id, row[1]) for row in session.execute(stmt)])
    return found


def seen(page: Any) -> list[tuple[int, float]]:
    return [(hit.entity.id, hit.distance) for hit in page]


FLAT = {"cosine": "embedding_flat", "l2": "embedding_l2", "inner_product": "embedding_ip"}


@pytest.mark.backends("pysqlite3", "psycopg", "asyncpg", "sqlite_numpy")
def test_an_exact_search_is_that_of_the_database(world: Any):
    english = world.Article.lang == "en"
    for metric, field in FLAT.items():
        for query in QUERIES:
            everything = nearest_in_sql(world, query, metric, k=COUNT)
            for k in (1, 10, 40, 200):
                # 40 ends among the sixty that are equally near, of some queries.
                assert seen(world.search(knn=Knn(field, query), k=k)) == everything[:k]
            page = world.search(knn=Knn(field, query), where=english)
            assert seen(page) == nearest_in_sql(world, query, metric, english, k=10)
            similarity = [METRICS[metric].similarity(hit.distance, DIM) for hit in page]
            assert [hit.similarity for hit in page] == similarity
            assert [hit.rank for hit in page] == list(range(1, 11))
            for limit in (everything[6][1], everything[-1][1], everything[6][1] * 0.999):
                expected = nearest_in_sql(world, query, metric, k=30, max_distance=limit)
                assert seen(world.search(knn=Knn(field, query, max_distance=limit), k=30)) == expected
            least = METRICS[metric].similarity(everything[8][1] + 1e-9, DIM)
            expected = nearest_in_sql(world, query, metric, k=30, min_similarity=least)
            assert seen(world.search(knn=Knn(field, query, min_similarity=least), k=30)) == expected


@pytest.mark.backends("pysqlite3")
def test_equally_near_rows_are_in_the_order_of_their_keys(world: Any):
    query = vectors(COUNT)[100]
    page = world.search(knn=Knn("embedding_flat", query), k=25)
    twins = [n + 1 for n in range(100, 160) if n % 11]
    assert [hit.key for hit in page] == [(key,) for key in twins[:25]]
    ids = world.searcher.search_ids(knn=Knn("embedding", query, exact=True), k=25)
    assert [hit.key for hit in ids] == [(key,) for key in twins[:25]]
    page = world.search(knn=Knn("embedding_flat", query), k=25, aggs={"ids": {"value_count": {"field": "id"}}})
    assert [hit.key for hit in page] == [(key,) for key in twins[:25]]
    assert page.aggregations["ids"]["value"] == 25
    exact = Knn("embedding", query, exact=True)
    for bucket in world.run(lambda session: world.searcher.nearest_by(session, exact, "lang", k=2)):
        of_lang = [key for key in twins if ("en", "de", "fr", None)[(key - 1) % 4] == bucket.value]
        assert [hit.key for hit in bucket.hits] == [(key,) for key in of_lang[:2]]


@pytest.mark.backends("pysqlite3")
def test_keys_come_without_a_database_and_with_distances_of_float32(world: Any):
    for metric, field in FLAT.items():
        page = world.searcher.search_ids(knn=Knn(field, QUERIES[0]))
        expected = nearest_in_sql(world, QUERIES[0], metric, k=10)
        assert [hit.key[0] for hit in page] == [key for key, _ in expected]
        assert [hit.distance for hit in page] == pytest.approx([distance for _, distance in expected], rel=1e-4)
        assert all(hit.entity is None for hit in page)
        limit = (expected[4][1] + expected[5][1]) / 2
        assert len(world.searcher.search_ids(knn=Knn(field, QUERIES[0], max_distance=limit))) == 5


@pytest.mark.backends("pysqlite3")
def test_a_filtered_search_of_a_graph_finds_k_rows(world: Any):
    for wanted in (range(1, 13), range(7, 300, 24), range(290, 301)):
        some = world.Article.id.in_(list(wanted))
        expected = nearest_in_sql(world, QUERIES[0], "cosine", some, k=10)
        assert seen(world.search(knn=Knn("embedding", QUERIES[0]), where=some)) == expected


@pytest.mark.backends("pysqlite3")
def test_vectors_without_a_direction_find_nothing_as_in_the_database(world: Any):
    nothing = [0.0] * DIM
    assert nearest_in_sql(world, nothing, "cosine", k=5) == seen(world.search(knn=Knn("embedding", nothing))) == []
    assert len(world.search(knn=Knn("embedding_l2", nothing))) == 10
    assert len(world.search(knn=Knn("embedding", nothing), text="tea")) == 10
    assert (
        world.run(lambda session: world.searcher.nearest_by(session, Knn("embedding", nothing), "lang"))[0].hits == ()
    )


def reference_of(world: Any, client: Any, fuse: Any, query: Any, second: Any, text: str) -> list[tuple[int, float]]:
    """Search by hand and fuse by hand."""
    name = world.index.name
    lists = []
    for kind, body in (
        ("text", {"query": {"multi_match": {"query": text, "fields": ["title", "body"]}}, "size": COUNT}),
        (
            "vector",
            {"knn": {"field": "embedding", "query_vector": query, "k": COUNT, "num_candidates": 1000}, "size": COUNT},
        ),
        (
            "vector",
            {"knn": {"field": "other", "query_vector": second, "k": COUNT, "num_candidates": 1000}, "size": COUNT},
        ),
    ):
        hits = client.search(index=name, **body)["hits"]["hits"]
        lists.append((kind, sorted(((int(hit["_id"]), hit["_score"]) for hit in hits), key=lambda h: (-h[1], h[0]))))
    total: dict[int, float] = {}
    for kind, found in lists:
        low, high = min(s for _, s in found), max(s for _, s in found)
        for rank, (key, score) in enumerate(found, start=1):
            if fuse == "rrf":
                part = 1 / (60 + rank)
            else:
                part = (0.3 / 2 if kind == "vector" else 0.7) * (score - low) / (high - low)
            total[key] = total.get(key, 0) + part
    return sorted(total.items(), key=lambda item: (-item[1], item[0]))


@pytest.mark.backends("pysqlite3", "psycopg")
def test_a_hybrid_search_is_the_fusion_of_its_lists(world: Any, client: Any):
    # Of all rows, or which of those that are equally good come into the lists would be chance.
    for fuse, fusion in (("rrf", rrf()), ("weighted", weighted(0.3))):
        for query, second in zip(QUERIES[:4], QUERIES[4:8], strict=True):
            text = "honey tea cake"
            expected = reference_of(world, client, fuse, query.tolist(), second.tolist(), text)
            knn = [Knn("embedding", query), Knn("other", second)]
            page = world.search(knn=knn, text=Match(text, ["title", "body"]), fusion=fusion, window=COUNT)
            assert [hit.score for hit in page] == pytest.approx([score for _, score in expected[:10]])
            ids = world.searcher.search_ids(knn=knn, text=Match(text, ["title", "body"]), fusion=fusion, window=COUNT)
            assert [hit.key for hit in ids] == [hit.key for hit in page]
            for hit in page:
                assert len(hit.parts) == 3
                distances = dict(nearest_in_sql(world, query, "cosine", world.Article.id == hit.entity.id, k=1))
                if hit.parts[1] is not None:
                    assert hit.parts[1].distance == hit.distance == distances[hit.entity.id]
                else:
                    assert hit.distance is None


@pytest.mark.backends("pysqlite3", "psycopg")
def test_the_bound_of_a_fused_list_is_decided_by_the_database(world: Any):
    for metric, field in FLAT.items():
        for query in QUERIES[:4]:
            everything = nearest_in_sql(world, query, metric, k=COUNT)
            for place in (3, 20):
                limit = everything[place][1]  # the row is just within
                expected = nearest_in_sql(world, query, metric, k=COUNT, max_distance=limit)
                bounded = Knn(field, query, max_distance=limit)
                page = world.search(knn=[bounded, bounded], k=COUNT)
                assert sorted(seen(page)) == sorted(expected)
                # By words a row is found all the same, and then it has no place among the near ones.
                page = world.search(knn=bounded, text="tea", k=COUNT)
                assert {hit.entity.id for hit in page if hit.parts[1]} == {key for key, _ in expected}


@pytest.mark.backends("pysqlite3")
def test_the_bound_of_a_fused_list_is_kept_by_a_quantized_index(world: Any):
    for field in ("embedding_int8", "embedding_int4"):
        for query in QUERIES:
            limit = nearest_in_sql(world, query, "l2", k=COUNT)[20][1] * 0.999
            bounded = Knn(field, query, max_distance=limit, oversample=0)
            expected = nearest_in_sql(world, query, "l2", k=COUNT, max_distance=limit)
            assert sorted(seen(world.search(knn=[bounded, bounded], k=COUNT))) == sorted(expected)


@pytest.mark.backends("pysqlite3")
def test_alpha_decides_between_words_and_vectors(world: Any):
    knn = Knn("embedding_flat", QUERIES[0])
    both = {"knn": knn, "text": Match("tea", ["title"]), "window": 20}
    words = world.search(**both, fusion=weighted(0))
    assert words.entities
    assert all("tea" in article.title for article in words.entities)
    near = world.search(**both, fusion=weighted(1))
    assert {hit.key for hit in near} == {hit.key for hit in world.search(knn=knn)}


@pytest.mark.backends("pysqlite3")
def test_the_weight_of_a_vector_counts(world: Any):
    first, second = Knn("embedding_flat", QUERIES[0], weight=1000.0), Knn("other", QUERIES[1])
    page = world.search(knn=[first, second])
    assert [hit.key for hit in page] == [hit.key for hit in world.search(knn=first)]


@pytest.mark.backends("pysqlite3")
def test_words_are_searched_and_nothing_that_is_typed_is_an_error(world: Any):
    page = world.search(text="honey", k=300)
    containing = {
        article.id
        for article in world.run(lambda session: session.scalars(select(world.Article)).all())
        if "honey" in article.title or "honey" in article.body
    }
    assert {article.id for article in page.entities} == containing
    assert page.total == len(containing)
    assert [hit.score for hit in page] == sorted((hit.score for hit in page), reverse=True)
    for typed in (
        '"',
        "tea AND (",
        "title:tea",
        "*:*",
        "/[/",
        "\\",
        "tea~2^",
        "\0",
        "",
        "  ",
        "𓀀",
        "a" * 10_000,
        "- " * 5000,
    ):
        for match in (typed, Match(typed, ["title^2.5", "lang"]), Match(typed, type="cross_fields")):
            world.search(text=match)
    both = world.search(text=Match("tea honey", ["body"], operator="and"), k=300)
    assert all({"tea", "honey"} <= {*article.body.split()} for article in both.entities)
    assert len(world.search(text=Match("hone", fuzziness="AUTO"))) == 10
    assert world.search(text=Match("tea honey milk", ["body"], minimum_should_match="100%")).total is not None
    english = world.search(text="tea", where=[world.Article.lang == "en", world.Article.number > 10], k=300)
    assert english.entities
    assert all(article.lang == "en" and article.number > 10 for article in english.entities)


@pytest.mark.backends("pysqlite3")
def test_highlights_are_safe_to_show(world: Any):
    page = world.search(text=Match("tea", ["title"]), highlight=True, k=3)
    for hit in page:
        assert "<em>tea</em>" in hit.highlights["title"][0]
        assert "&amp;" in hit.highlights["title"][0]
    hybrid = world.search(text=Match("tea", ["title"]), knn=Knn("embedding", QUERIES[0]), highlight=True, k=50)
    for hit in hybrid:
        assert bool(hit.highlights) == (hit.parts[0] is not None)


@pytest.mark.backends("pysqlite3", "psycopg")
def test_figures_beside_the_hits_are_those_of_the_database(world: Any):
    article = world.Article
    aggs = {
        "by lang": Terms("lang"),
        "by title": Terms("title", size=100),
        "numbers": {"stats": {"field": "number"}},
        "by activity": {"terms": {"field": "active"}, "aggs": {"largest": {"max": {"field": "number"}}}},
        "by author": {"cardinality": {"field": "author"}},
    }
    found = world.search(where=article.id <= 200, aggs=aggs, k=5)
    assert [hit.key for hit in found] == [(1,), (2,), (3,), (4,), (5,)]

    def counts(session: Any, column: Any) -> dict[Any, int]:
        stmt = select(column, func.count()).where(article.id <= 200, column.is_not(None)).group_by(column)
        return dict(session.execute(stmt).all())

    for name, column in (("by lang", article.lang), ("by title", article.title)):
        buckets = {bucket["key"]: bucket["doc_count"] for bucket in found.aggregations[name]["buckets"]}
        assert buckets == world.run(lambda session, column=column: counts(session, column))
    assert found.aggregations["numbers"]["count"] == world.run(
        lambda session: session.scalar(select(func.count(article.number)).where(article.id <= 200))
    )
    assert found.aggregations["by author"]["value"] == 5
    active = {bucket["key_as_string"]: bucket for bucket in found.aggregations["by activity"]["buckets"]}
    assert active["true"]["largest"]["value"] == 199
    near = world.search(knn=Knn("embedding_flat", QUERIES[0]), aggs={"by lang": Terms("lang")}, k=20)
    langs = [hit.entity.lang for hit in near]
    assert {b["key"]: b["doc_count"] for b in near.aggregations["by lang"]["buckets"]} == {
        lang: langs.count(lang) for lang in {*langs} - {None}
    }


@pytest.mark.backends("pysqlite3", "psycopg")
def test_each_value_of_a_field_has_its_nearest_rows(world: Any):
    query = QUERIES[0]
    buckets = world.run(lambda session: world.searcher.nearest_by(session, Knn("embedding", query), "lang", k=4))
    assert {bucket.value for bucket in buckets} == {"en", "de", "fr"}
    for bucket in buckets:
        in_lang = world.Article.lang == bucket.value
        assert seen(bucket.hits) == nearest_in_sql(world, query, "cosine", in_lang, k=4)
        has_vector = world.Article.embedding.is_not(None)
        count = select(func.count()).select_from(world.Article).where(in_lang, has_vector)
        assert bucket.count == world.run(lambda session, count=count: session.scalar(count))
    old = world.Article.id < 50
    buckets = world.run(
        lambda session: world.searcher.nearest_by(
            session, Knn("embedding", query), "active", values=[False, True], where=old
        )
    )
    assert [bucket.value for bucket in buckets] == [False, True]
    for bucket in buckets:
        expected = nearest_in_sql(world, query, "cosine", world.Article.active.is_(bucket.value), old, k=3)
        assert seen(bucket.hits) == expected
    counted = world.run(
        lambda session: world.searcher.nearest_by(session, Knn("embedding", query), "active", where=old)
    )
    assert {bucket.value: seen(bucket.hits) for bucket in counted} == {b.value: seen(b.hits) for b in buckets}


def open_views(client: Any, world: Any) -> int:
    found: int = client.indices.stats(index=world.index.name, metric="search")["_all"]["total"]["search"][
        "open_contexts"
    ]
    return found


@pytest.mark.backends("pysqlite3")
def test_pages_have_every_row_once_whatever_is_written_meanwhile(world: Any, client: Any):
    def read(session: Any) -> list[Any]:
        pages = []
        for page in world.searcher.pages(session, text="tea honey", k=17):
            pages.append(page)
            assert open_views(client, world) > 0 or page.next is None
            put_again = [(n,) for n in range(len(pages), 300, 40)]
            put(session, client, world.index, put_again)
        return pages

    whole = world.search(text="tea honey", k=300)
    pages = world.run(read)
    hits = [hit for page in pages for hit in page]
    assert [hit.key for hit in hits] == [hit.key for hit in whole]
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    assert [len(page) for page in pages[:-1]] == [17] * (len(pages) - 1)
    assert open_views(client, world) == 0


@pytest.mark.backends("pysqlite3")
def test_a_search_by_pages_can_be_left_and_resumed_by_hand(world: Any, client: Any):
    def leave(session: Any) -> None:
        for _ in world.searcher.pages(session, k=10):
            break

    world.run(leave)
    assert open_views(client, world) == 0
    first = world.search(where=world.Article.lang == "en", k=60, paged=True)
    second = world.run(lambda session: world.searcher.next_page(session, first.next))
    assert second.next is None
    assert {hit.key[0] for hit in (*first, *second)} == {n + 1 for n in range(0, COUNT, 4)}
    assert open_views(client, world) == 0
    again = world.search(k=10, paged=True)
    assert again.next.pit not in repr(again)
    world.searcher.close(again.next)
    assert open_views(client, world) == 0
    from sqla_vector.exc import SearchError

    with pytest.raises(SearchError, match="no next page"):
        world.run(lambda session: world.searcher.next_page(session, again.next))


@pytest.mark.backends("pysqlite3", "psycopg")
def test_rows_that_the_database_has_no_more_are_dropped_and_named(world: Any):
    knn = Knn("embedding_flat", QUERIES[0])
    before = world.search(knn=knn, k=10)
    gone = [hit.entity.id for hit in before.hits[2:5]]
    world.run(lambda session: session.execute(delete(world.Article).where(world.Article.id.in_(gone))))
    after = world.search(knn=knn, k=10)
    assert {*after.dropped} >= {str(key) for key in gone}
    assert not {*gone} & {article.id for article in after.entities}
    assert [hit.rank for hit in after] == list(range(1, len(after) + 1))
    hybrid = world.search(knn=knn, text="tea", k=50)
    assert {*hybrid.dropped} >= {str(key) for key in gone}


@pytest.mark.backends("pysqlite3")
def test_the_distance_is_that_of_the_row_as_it_is_now(world: Any):
    knn = Knn("embedding_flat", QUERIES[0])
    first = world.search(knn=knn).hits[0].entity.id
    far, none = -QUERIES[0], world.search(knn=knn).hits[1].entity.id
    world.run(
        lambda session: session.execute(update(world.Article).where(world.Article.id == first).values(embedding=far))
    )
    world.run(
        lambda session: session.execute(update(world.Article).where(world.Article.id == none).values(embedding=None))
    )
    page = world.search(knn=knn, k=10)
    assert seen(page) == nearest_in_sql(world, QUERIES[0], "cosine", k=10)
    assert page.dropped == (str(none),)
    assert first not in {hit.entity.id for hit in page}


@pytest.mark.backends("pysqlite3", "psycopg")
def test_rows_are_loaded_by_one_query(world: Any, backend: Any, engine: Any):
    from sqlalchemy import event

    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: statements.append(args[2]))
    options = [selectinload(world.Article.author)]
    page = world.search(knn=Knn("embedding", QUERIES[0]), text="tea", k=50, options=options)
    assert len(page) == 50
    assert sum("FROM article" in statement for statement in statements) == 1
    assert len({article.author.name for article in page.entities}) == 5


@pytest.mark.backends("pysqlite3")
def test_what_was_just_written_is_found_on_request(world: Any, client: Any):
    client.indices.put_settings(index=world.index.name, settings={"refresh_interval": "-1"})

    def write(session: Any) -> None:
        session.add(world.Article(id=999, title="zebra"))
        session.flush()
        document = world.index.documents(session.connection(), [(999,)])[(999,)]
        client.bulk(index=world.index.name, operations=[{"index": {"_id": document.id}}, document.to_bytes()])

    world.run(write)
    assert not world.search(text="zebra").hits
    assert [hit.key for hit in world.search(text="zebra", refresh=True)] == [(999,)]


@pytest.mark.backends("aiosqlite", "asyncpg", "psycopg_async")
def test_asynchronous_clients_and_sessions_find_the_same(world: Any, backend: Any, engine: Any, node: Any):
    knn = Knn("embedding_flat", QUERIES[0])
    bunch = {"knn": knn, "text": "tea", "where": world.Article.lang == "en", "aggs": {"l": Terms("lang")}}

    async def run() -> Any:
        async with AsyncElasticsearch(node.url) as client, AsyncSession(engine) as session:
            searcher = Searcher(client, world.index)
            found = [
                await searcher.asearch(session, **bunch),
                await searcher.asearch(session, knn=knn),
                await searcher.asearch_ids(knn=knn),
            ]
            pages = [page async for page in searcher.apages(session, text="tea", k=30)]
            first = await searcher.asearch(session, text="tea", k=5, paged=True)
            second = await searcher.anext_page(session, first.next)
            await searcher.aclose(second.next)
            buckets = await searcher.anearest_by(session, knn, "lang", k=2)
            return found, pages, [first, second], buckets

    found, pages, two, buckets = backend.wait(run())
    expected = [world.search(**bunch), world.search(knn=knn), world.searcher.search_ids(knn=knn)]
    for one, other in zip(found, expected, strict=True):
        assert [(hit.key, hit.distance, hit.score) for hit in one] == [
            (hit.key, hit.distance, hit.score) for hit in other
        ]
        assert one.aggregations == other.aggregations
    words = [hit.key for hit in world.search(text="tea", k=300)]
    assert [hit.key for page in pages for hit in page] == words
    assert [hit.key for page in two for hit in page] == words[:10]
    same = world.run(lambda session: world.searcher.nearest_by(session, knn, "lang", k=2))
    assert [[hit.key for hit in bucket.hits] for bucket in buckets] == [[hit.key for hit in b.hits] for b in same]


def test_the_queries_are_not_all_alike():
    assert np.linalg.matrix_rank(QUERIES) == DIM
