"""Queries run on every database: the hits are those of the statements that one would write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

from sqla_vector import (
    Vector,
    explain_nearest,
    match_text,
    nearest,
    search,
    text_index,
    vector_index,
)
from sqla_vector.embedding import Fingerprint, embedding_column
from sqla_vector.exc import InvalidFilter, InvalidOption, InvalidQuery, InvalidVector, VectorError
from sqla_vector.fusion import weighted
from sqla_vector.query import Compare, Queryable, VectorQuery, federated
from sqla_vector.query.federated import afederated
from sqla_vector.search import hybrid, text_part, vector_part
from sqla_vector.tracking import outbox_table
from tests.support.backends import AnyEngine, Backend
from tests.tracking.conftest import Tracked
from tests.tracking.models import CountingEmbedder

pytestmark = pytest.mark.backends("psycopg", "asyncpg", "pysqlite3", "aiosqlite")

DIM = 4
WORDS = ("tea", "coffee", "milk", "sugar")


def models() -> Any:
    class Base(DeclarativeBase): ...

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        lang: Mapped[str]
        views: Mapped[int]
        secret: Mapped[str]
        embedding: Mapped[Any | None] = embedding_column(Vector(DIM), source="title", embedder="counting")
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())
        other: Mapped[Any | None] = mapped_column(Vector(DIM))
        __table_args__ = (
            vector_index("ix_article_embedding", "embedding", metric="cosine"),
            text_index("ix_article_title", "title"),
            text_index("ix_article_secret", "secret"),
        )

    Base.Article = Article  # type: ignore[attr-defined]
    Base.outbox = outbox_table(Base.metadata)  # type: ignore[attr-defined]
    return Base


class ByLength:
    """A reranker: the longer, the better."""

    def score(self, query: str, texts: list[str]) -> list[float]:
        return [float(len(text)) for text in texts]


@pytest.fixture
def t(backend: Backend, engine: AnyEngine) -> Iterator[Tracked]:
    base = models()
    t = Tracked(backend, engine, base, CountingEmbedder())
    vectors = np.random.default_rng(1).normal(size=(40, DIM)).astype(np.float32)
    rows = [
        {
            "id": number,
            "title": f"{WORDS[number % 4]} {WORDS[number % 3]} {'x' * number}",
            "lang": ("en", "de")[number % 2],
            "views": number % 5,
            "secret": f"tea {number}",
            "other": vectors[number],
        }
        for number in range(1, 40)
    ]
    t.run(lambda session: session.add_all(base.Article(**row) for row in rows))
    yield t
    base.registry.dispose()


def hits_of(t: Tracked, queryable: Queryable, query: VectorQuery) -> list[Any]:
    if t.backend.is_async:

        async def run() -> Any:
            async with t.sessions() as session:
                return await queryable.asearch(session, query)

        return list(t.backend.wait(run()))
    with t.sessions() as session:
        return queryable.search(session, query)


def ids_of(hits: list[Any]) -> list[int]:
    return [hit.entity.id for hit in hits]


def expected(t: Tracked, stmt: Any) -> list[tuple[int, float | None]]:
    return t.run(lambda session: [(hit.entity.id, hit.score) for hit in search(session, stmt)])


def scores(hits: list[Any]) -> list[tuple[int, float | None]]:
    return [(hit.entity.id, hit.score) for hit in hits]


def through_json(query: VectorQuery) -> VectorQuery:
    return VectorQuery.from_json(query.to_json())


def test_the_hits_are_those_of_the_statement(t: Tracked) -> None:
    article = t.base.Article
    articles = Queryable(article, filters=["lang", "views"], allow_exact=True)
    vector = np.arange(DIM, dtype=np.float32)
    where = (article.lang == "en") & (article.views.between(1, 3))
    rows = select(article).where(where)
    near = VectorQuery().where(article.lang == "en", article.views.between(1, 3)).top(7)
    pairs = [
        (near.similar_to("other", vector), nearest(rows, article.other, vector, 7)),
        (
            near.similar_to("other", vector, metric="l2", max_distance=15.0),
            nearest(rows, article.other, vector, 7, metric="l2", max_distance=15.0),
        ),
        (near.similar_to(article.embedding, vector), nearest(rows, article.embedding, vector, 7)),
        (
            near.matching("tea milk", index="ix_article_title"),
            match_text(rows, article, "tea milk", 7, index="ix_article_title"),
        ),
        (
            near.similar_to("other", vector, weight=2).hybrid(
                "tea", index="ix_article_title", fusion=weighted(0.25), candidates=20
            ),
            hybrid(
                rows,
                parts=[
                    vector_part(article.other, vector, weight=2),
                    text_part(article, "tea", index="ix_article_title"),
                ],
                k=7,
                fusion=weighted(0.25),
                candidates=20,
            ),
        ),
    ]
    for query, stmt in pairs:
        found = hits_of(t, articles, through_json(query))
        assert scores(found) == expected(t, stmt)
        assert found
        assert all(hit.text is None for hit in found)


def test_a_text_is_embedded_as_the_rows_were(t: Tracked) -> None:
    article = t.base.Article
    articles = Queryable(article)
    query = through_json(VectorQuery().near_text("embedding", "tea").include_source())
    found = hits_of(t, articles, query)
    vector = t.embedder.vector("tea")
    assert scores(found) == expected(t, nearest(select(article), article.embedding, vector, 10))
    assert all(hit.text == hit.entity.title for hit in found)


def test_rows_by_another_model_are_in_no_part_for_a_text_that_is_near(t: Tracked) -> None:
    article = t.base.Article

    def outdate(session: Any) -> None:
        for row in session.scalars(select(article).where(article.id <= 20)):
            row.embedding = np.ones(DIM, np.float32)
            row.embedding_fingerprint = "older@1:0"

    t.untracked(outdate)
    articles = Queryable(article)
    query = VectorQuery().near_text("embedding", "tea").top(30)
    assert min(ids_of(hits_of(t, articles, query))) == 21
    both = query.hybrid("tea", index="ix_article_title", candidates=100)
    by_id = {hit.entity.id: hit for hit in hits_of(t, articles, both)}
    assert min(by_id) <= 20, "texts are found whatever the vectors are of"
    assert all(hit.parts["embedding"] is None for id_, hit in by_id.items() if id_ <= 20)
    assert all(hit.parts["embedding"] is not None for id_, hit in by_id.items() if id_ > 20)


def test_hits_are_ranked_again_by_what_the_program_calls_by_a_name(t: Tracked) -> None:
    article = t.base.Article
    articles = Queryable(article, rerankers={"longest": ByLength()})
    query = VectorQuery().near_text("embedding", "tea").rerank("longest", candidates=25).top(4)
    first = [hit.entity for hit in hits_of(t, articles, VectorQuery().near_text("embedding", "tea").top(25))]
    longest = sorted(first, key=lambda entity: -len(entity.title))[:4]
    assert ids_of(hits_of(t, articles, through_json(query))) == [entity.id for entity in longest]
    with pytest.raises(InvalidQuery, match="no reranker 'other'; there are longest"):
        articles.check(query.rerank("other"))


@pytest.mark.backends("pysqlite3")
@pytest.mark.parametrize(
    ("query", "message"),
    [
        (VectorQuery(), "asks for nothing"),
        (VectorQuery().similar_to("secret", [1.0] * DIM), "'secret' may not be searched; embedding may"),
        (VectorQuery().similar_to("other", [1.0] * DIM), "'other' may not be searched"),
        (
            VectorQuery().matching("tea", index="ix_article_secret"),
            "ix_article_secret may not be searched; ix_article_title may",
        ),
        (VectorQuery().matching("tea", index="article"), "article may not be searched"),
        (VectorQuery().near_text("embedding", "a").top(51), "k is 50 at most here, got 51"),
        (VectorQuery(candidates=201).near_text("embedding", "a"), "candidates is 200 at most here"),
        (VectorQuery(exact=True).near_text("embedding", "a"), "exact is not allowed"),
        (VectorQuery().near_text("embedding", "a", metric="l2"), "is searched by cosine here, not by l2"),
        ("tea", "expected a VectorQuery"),
    ],
)
def test_what_is_not_allowed_is_refused(t: Tracked, query: Any, message: str) -> None:
    articles = Queryable(
        t.base.Article, vectors=["embedding"], texts=["ix_article_title"], max_k=50, max_candidates=200
    )
    with pytest.raises(InvalidQuery, match=message):
        articles.select(query)
    assert t.embedder.calls[1:] == [], "nothing is embedded for it"


@pytest.mark.backends("pysqlite3")
def test_the_one_text_that_is_allowed_needs_no_name(t: Tracked) -> None:
    article = t.base.Article
    articles = Queryable(article, texts=["ix_article_title"])
    found = hits_of(t, articles, VectorQuery().matching("coffee"))
    assert scores(found) == expected(t, match_text(select(article), article, "coffee", index="ix_article_title"))
    with pytest.raises(InvalidQuery, match="none may"):
        Queryable(article, texts=[]).select(VectorQuery().matching("coffee"))


@pytest.mark.backends("pysqlite3")
@pytest.mark.parametrize(
    ("query", "error"),
    [
        (VectorQuery().where(Compare("secret", "eq", "tea 1")), InvalidFilter),
        (VectorQuery().where(Compare("embedding", "is_null")), InvalidFilter),
        (VectorQuery().where(Compare("lang", "eq", 3)), InvalidFilter),
        (VectorQuery().similar_to("other", [1.0]), InvalidVector),
        (VectorQuery().similar_to("other", [0.0] * DIM, metric="hamming"), VectorError),
        (VectorQuery().near_text("other", "tea"), InvalidOption),
    ],
)
def test_what_is_wrong_with_a_query_is_a_typed_error(t: Tracked, query: VectorQuery, error: type[Exception]) -> None:
    articles = Queryable(t.base.Article, filters=["lang"], allow_exact=True)
    with pytest.raises(error):
        articles.select(query.near_text("embedding", "tea"))
    assert t.embedder.calls[1:] == []


@pytest.mark.backends("psycopg", "pysqlite3")
def test_the_index_serves_a_query(t: Tracked) -> None:
    def plan(session: Any) -> Any:
        stmt = Queryable(t.base.Article).select(VectorQuery().near_text("embedding", "tea"), session=session)
        return explain_nearest(session, stmt)

    assert t.run(plan).reason
    if t.backend.name == "pysqlite3":
        assert t.run(plan).index == "ix_article_embedding"


@pytest.mark.backends("pysqlite3")
@pytest.mark.parametrize(
    "options",
    [
        {"filters": ["nothing"]},
        {"filters": "lang"},
        {"filters": [3]},
        {"vectors": ["title"]},
        {"vectors": ["nothing"]},
        {"texts": ["nothing"]},
        {"max_k": 0},
        {"max_k": 100, "max_candidates": 99},
        {"allow_exact": 1},
    ],
    ids=str,
)
def test_a_queryable_that_cannot_be_is_refused(t: Tracked, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption):
        Queryable(t.base.Article, **options)


@pytest.mark.backends("pysqlite3", "aiosqlite")
def test_a_queryable_is_of_a_class_and_sessions_are_of_their_kind(t: Tracked) -> None:
    with pytest.raises(InvalidOption, match="mapped class"):
        Queryable(aliased(t.base.Article))
    articles, query = Queryable(t.base.Article), VectorQuery().near_text("embedding", "tea")
    if t.backend.is_async:

        async def wrong() -> None:
            async with t.sessions() as session:
                articles.search(session, query)

        with pytest.raises(InvalidOption, match=r"await asearch\(\)"):
            t.backend.wait(wrong())
    else:
        import asyncio

        with t.sessions() as session, pytest.raises(InvalidOption, match=r"call select\(\)"):
            asyncio.run(articles.aselect(query, session=session))


def test_sources_are_merged_by_similarity(t: Tracked) -> None:
    article = t.base.Article
    vector = np.arange(DIM, dtype=np.float32)
    english, all_ = VectorQuery().where(article.lang == "en"), VectorQuery()
    articles = Queryable(article, filters=["lang"])
    query = VectorQuery().similar_to("other", vector).top(6)

    def of(filtered: VectorQuery) -> Any:
        return lambda asked: articles.search(session, asked.where(filtered.filter) if filtered.filter else asked)

    if t.backend.is_async:

        async def run() -> Any:
            async with t.sessions() as one, t.sessions() as two:
                sources = {
                    "english": lambda asked: articles.asearch(one, asked.where(english.filter)),
                    "all": lambda asked: articles.asearch(two, asked),
                }
                return await afederated(sources, query)

        found = t.backend.wait(run())
    else:
        with t.sessions() as session:
            found = federated({"english": of(english), "all": of(all_)}, query)
    wanted = expected(t, nearest(select(article), article.other, vector, 6))
    assert [(one.hit.entity.id, one.hit.score) for one in found] == wanted
    assert {one.source for one in found} == {"english", "all"}


def test_candidates_by_default_are_no_more_than_allowed(t: Tracked) -> None:
    queryable = Queryable(t.base.Article, max_k=20, max_candidates=20)
    query = VectorQuery().similar_to("other", np.ones(DIM)).hybrid("tea", index="ix_article_title").top(20)
    stmt = str(queryable.select(query))
    assert "LIMIT 20" in stmt
    assert "LIMIT 40" not in stmt


@pytest.mark.backends("pysqlite3")
def test_what_cannot_be_merged_is_refused(t: Tracked) -> None:
    articles = Queryable(t.base.Article)
    with t.sessions() as session:
        sources = {"a": lambda query: articles.search(session, query)}
        two = VectorQuery().near_text("embedding", "tea").matching("tea")
        for query in (
            two,
            VectorQuery(),
            VectorQuery().matching("tea"),
            VectorQuery().near_text("embedding", "a").rerank("x"),
        ):
            with pytest.raises(InvalidQuery, match="merged by similarity"):
                federated(sources, query)
        with pytest.raises(InvalidQuery, match="expected a VectorQuery"):
            federated(sources, "tea")  # type: ignore[arg-type]
        for wrong in ({}, None, {"a": 3}):
            with pytest.raises(InvalidOption, match="functions by name"):
                federated(wrong, two)  # type: ignore[arg-type]
