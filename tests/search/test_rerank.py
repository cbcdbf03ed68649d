"""rerank(): another order for the candidates of a search, in SQL; boosts; and searches with a reranker."""

from __future__ import annotations

import asyncio
from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Date, DateTime, ForeignKey, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, joinedload, mapped_column, relationship, selectinload

from sqla_vector import Vector, asearch, l2_distance, nearest, search, similarity, vector_index
from sqla_vector.exc import RerankerError
from sqla_vector.fusion import rrf
from sqla_vector.metrics import METRICS
from sqla_vector.search import hybrid, mmr, recency, rerank, saturation, score_of, vector_part
from tests.support.brute_force import distance, engine_that_indexes, make_vectors
from tests.support.brute_force import nearest as brute_force
from tests.support.fused import Part, fuse

DIM = 6
SYNCHRONOUS = pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")
"""For what is a matter of SQL and not of how values travel."""
NOW = datetime(2026, 3, 1, 12, 0)
RNG = np.random.default_rng(11)
QUERY = RNG.normal(size=DIM).astype(np.float32)
OTHER = RNG.normal(size=DIM).astype(np.float32)
SMALL = make_vectors(80, DIM, seed=1)
FULL = {(key + 2) % 80 + 1: vector for key, vector in make_vectors(80, DIM, seed=2).items()}
COSINE = METRICS["cosine"].similarity


class Base(DeclarativeBase):
    pass


class Article(Base):
    __tablename__ = "article"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    title: Mapped[str]
    votes: Mapped[int | None]
    published: Mapped[datetime | None] = mapped_column(DateTime)
    seen: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    day: Mapped[date | None] = mapped_column(Date)
    small: Mapped[np.ndarray | None] = mapped_column(Vector(DIM), info={"source": "title"})
    full: Mapped[np.ndarray | None] = mapped_column(Vector(DIM))
    tags: Mapped[list[Tag]] = relationship()
    __table_args__ = (vector_index("ix_article_small", "small", metric="cosine"),)


class Tag(Base):
    __tablename__ = "tag"
    id: Mapped[int] = mapped_column(primary_key=True)
    article_id: Mapped[int] = mapped_column(ForeignKey(Article.id))
    name: Mapped[str]


def days(key: int) -> float | None:
    """Return the age of a row in days; negative for one that is still to come."""
    return None if key % 7 == 0 else key * 3 - 10


def votes(key: int) -> int | None:
    return None if key % 11 == 0 else key * 13 % 50


def fill(session: Session) -> None:
    for key in SMALL:
        age = days(key)
        moment = None if age is None else NOW - timedelta(days=age)
        session.add(
            Article(
                id=key,
                title=f"title {key}",
                votes=votes(key),
                published=moment,
                seen=None if moment is None else moment.replace(tzinfo=UTC),
                day=None if moment is None else moment.date(),
                small=SMALL[key],
                full=FULL[key],
                tags=[Tag(name=name) for name in ("a", "b")[: key % 3]],
            )
        )
    session.flush()


@pytest.fixture
def engine(backend: Any) -> Any:
    engine = engine_that_indexes(backend)
    backend.create_all(engine, Base.metadata)
    return engine


def reranked(candidates: list[tuple[int, float]], score: Any, k: int) -> list[tuple[int, float | None]]:
    """Return candidates by another score, undefined ones last, ties as they were."""
    scored = [(key, score(key, d)) for key, d in candidates]
    defined = [(key, value) for key, value in scored if value is not None and value == value]
    rest = [(key, None) for key, value in scored if value is None or value != value]
    return [*sorted(defined, key=lambda one: -round(one[1], 9)), *rest][:k]


def assert_reranked(rows: Any, expected: list[tuple[int, float | None]]) -> None:
    found = [(row[0].id, row.rerank_score) for row in rows]
    assert [key for key, _ in found] == [key for key, _ in expected]
    for (_, one), (_, two) in zip(found, expected, strict=True):
        assert one is None if two is None else one == pytest.approx(two, rel=1e-5, abs=2e-6)


def candidates(k: int, keep: Any = lambda key: True) -> list[tuple[int, float]]:
    return brute_force(SMALL, QUERY, k, "cosine", keep=keep)


def test_the_exact_distance_of_another_column_decides(backend, engine):
    def check(session: Session) -> None:
        fill(session)
        for k, wanted in ((20, 5), (20, 20), (100, 70), (3, 1)):
            stmt = nearest(select(Article), Article.small, QUERY, ef_search=200, k=k)
            for metric, by in (
                ("l2", l2_distance(Article.full, OTHER)),
                ("cosine", Article.full.cosine_distance(OTHER)),
                ("inner_product", similarity(Article.full, OTHER, "inner_product")),
            ):

                def score(key: int, _: float, metric: str = metric) -> float | None:
                    return (
                        None
                        if FULL[key] is None
                        else METRICS[metric].similarity(distance(metric, FULL[key], OTHER), DIM)
                    )

                rows = session.execute(rerank(stmt, by, k=wanted)).all()
                assert_reranked(rows, reranked(candidates(k), score, wanted))

    backend.run(engine, check)


def test_boosts_multiply_the_score_of_the_search(backend, engine):
    def check(session: Session) -> None:
        fill(session)
        stmt = nearest(select(Article), Article.small, QUERY, ef_search=200, k=30)
        half = timedelta(days=14)
        for column in (Article.published, Article.seen, Article.day):

            def score(key: int, d: float, column: Any = column) -> float:
                age = days(key)
                if age is not None and column is Article.day:
                    age += 0.5  # NOW is noon
                recent = 0.25 if age is None else 0.5 ** (max(age, 0) / 14)
                return COSINE(d, DIM) * recent + 0.1 * (votes(key) or 0) / ((votes(key) or 0) + 20)

            by = score_of(stmt) * recency(column, half, now=NOW, missing=0.25) + 0.1 * saturation(Article.votes, 20)
            assert_reranked(session.execute(rerank(stmt, by, k=12)), reranked(candidates(30), score, 12))

    backend.run(engine, check)


@SYNCHRONOUS
def test_a_row_of_long_ago_still_has_a_score(backend, engine):
    def check(session: Session) -> None:
        fill(session)
        aged = select(Article.id, recency(Article.published, timedelta(seconds=1), now=NOW).label("recent"))
        by_key = dict(session.execute(aged).all())
        assert by_key[60] == pytest.approx(0.5**1000, rel=1e-6)
        assert by_key[1] == 1.0
        assert by_key[7] == 0.0
        zone = datetime(2026, 3, 1, 14, 0).astimezone(None)
        now = session.scalar(select(recency(Article.seen, timedelta(days=1), now=NOW)).where(Article.id == 4))
        later = session.scalar(
            select(recency(Article.seen, timedelta(days=1), now=NOW.replace(tzinfo=UTC).astimezone(zone.tzinfo))).where(
                Article.id == 4
            )
        )
        assert now == later == pytest.approx(0.25)
        assert session.scalar(select(recency(Article.seen, timedelta(days=10_000))).where(Article.id == 4)) > 0.9

    backend.run(engine, check)


def test_what_is_undefined_comes_last_in_the_order_of_the_search(backend, engine):
    def check(session: Session) -> None:
        fill(session)
        stmt = nearest(select(Article), Article.small, QUERY, ef_search=200, k=25)
        expected = reranked(candidates(25), lambda key, d: votes(key), 25)
        assert any(score is None for _, score in expected)
        assert_reranked(session.execute(rerank(stmt, Article.votes, k=25)), expected)
        # The zero vector has no cosine: NaN on PostgreSQL, which sorts before all numbers there.
        rows = session.execute(rerank(stmt, similarity(Article.full, OTHER, "cosine"), k=25)).all()
        undefined = [row[0].id for row in rows if row.rerank_score is None]
        zero = [row[0].id for row in rows if row[0].full is not None and not row[0].full.any()]
        missing = [row[0].id for row in rows if row[0].full is None]
        assert zero
        assert missing
        assert sorted(undefined) == sorted(zero + missing)
        assert undefined == [row[0].id for row in rows[-len(undefined) :]]

    backend.run(engine, check)


@SYNCHRONOUS
def test_a_reranked_statement_is_extended_like_any(backend, engine):
    def check(session: Session) -> None:
        fill(session)
        stmt = rerank(nearest(select(Article), Article.small, QUERY, ef_search=200, k=20), Article.votes, k=6)

        def score(key: int, _: float) -> float | None:
            return votes(key)

        # What is added takes part in the first stage: there are 20 candidates still.
        later = stmt.where(Article.id > 30).options(selectinload(Article.tags))
        rows = session.execute(later).all()
        assert_reranked(rows, reranked(candidates(20, lambda key: key > 30), score, 6))
        assert [len(row[0].tags) for row in rows] == [row[0].id % 3 for row in rows]
        everything = reranked(candidates(20), score, 20)
        assert_reranked(session.execute(stmt.offset(6)), everything[6:12])
        assert_reranked(session.execute(stmt.offset(18)), everything[18:])
        joined = stmt.join(Article.tags).where(Tag.name == "b")
        assert_reranked(session.execute(joined), reranked(candidates(20, lambda key: key % 3 == 2), score, 6))
        ids = select(stmt.with_only_columns(Article.id, maintain_column_froms=True).subquery().c.id)
        assert sorted(session.scalars(ids)) == sorted(key for key, _ in everything[:6])

    backend.run(engine, check)


@SYNCHRONOUS
def test_a_hybrid_search_is_a_first_stage_too(backend, engine):
    def check(session: Session) -> None:
        fill(session)
        parts = [
            vector_part(Article.small, QUERY, ef_search=200),
            vector_part(Article.full, OTHER, metric="l2", name="other"),
        ]
        stmt = hybrid(select(Article), parts=parts, k=15, candidates=20, fusion=rrf(10))
        lists = [
            Part("vector", 1.0, brute_force(SMALL, QUERY, 20, "cosine")),
            Part("vector", 1.0, brute_force(FULL, OTHER, 20, "l2")),
        ]
        fused = [(row.key, row.score) for row in fuse(lists, rrf=10)][:15]

        def score(key: int, first: float) -> float | None:
            return None if votes(key) is None else first * votes(key)

        found = rerank(stmt, score_of(stmt) * Article.votes, k=8)
        assert_reranked(session.execute(found), reranked(fused, score, 8))
        assert_reranked(session.execute(found.offset(8)), reranked(fused, score, 15)[8:])

    backend.run(engine, check)


@SYNCHRONOUS
def test_hits_of_a_second_stage_have_its_score(backend, engine):
    def check(session: Session) -> None:
        fill(session)
        stmt = nearest(select(Article), Article.small, QUERY, ef_search=200, k=10)
        hits = search(session, rerank(stmt, Article.votes, k=4))
        assert [hit.score for hit in hits] == [float(votes(hit.entity.id) or 0) for hit in hits]
        near = dict(candidates(10))
        assert [hit.distance for hit in hits] == pytest.approx([near[hit.entity.id] for hit in hits], abs=2e-6)
        assert [hit.score for hit in search(session, stmt)] == [hit.similarity for hit in search(session, stmt)]

    backend.run(engine, check)


@SYNCHRONOUS
def test_hits_with_vectors_are_diverse_and_none_is_lost(backend, engine):
    def check(session: Session) -> None:
        fill(session)
        stmt = nearest(select(Article), Article.small, QUERY, ef_search=200, k=20)
        hits = search(session, stmt, vectors=True)
        assert all(np.array_equal(hit.vector, SMALL[hit.entity.id]) for hit in hits)
        plain = [hit.entity.id for hit in search(session, stmt)]
        assert [hit.entity.id for hit in hits] == plain
        # Every tenth row has the vector of row 1: of these only one is among the first.
        first = [hit.entity.id for hit in mmr(hits, k=8, lambda_=0.3)]
        same = [key for key in plain if SMALL[key] is SMALL[1]]
        assert len(same) > 3
        assert len({*first} & {*same}) == 1
        assert sorted(hit.entity.id for hit in mmr(hits, k=20)) == sorted(plain)
        own = nearest(
            select(Article, Article.full).options(joinedload(Article.tags)), Article.small, QUERY, ef_search=200, k=20
        )
        session.expunge_all()
        assert [hit.entity.id for hit in search(session, own)] == plain

    backend.run(engine, check)


class Titles:
    """Scores texts by their number."""

    def score(self, query: str, texts: list[str]) -> Any:
        return [float(text.removeprefix(query)) for text in texts]


def test_a_search_with_a_reranker(backend, engine):
    def check(session: Session) -> None:
        fill(session)
        stmt = nearest(select(Article), Article.small, QUERY, ef_search=200, k=10)
        hits = search(session, stmt, rerank=Titles(), query="title ", k=4)
        assert [hit.entity.id for hit in hits] == sorted((key for key, _ in candidates(10)), reverse=True)[:4]
        assert [hit.score for hit in hits] == [hit.entity.id for hit in hits]
        with pytest.raises(RerankerError):
            search(session, stmt, rerank=lambda hits: [1.0])
        assert len(search(session, stmt, k=3)) == 3

    backend.run(engine, check)


@pytest.mark.backends(is_async=True)
def test_an_asynchronous_search_with_a_reranker(backend, engine):
    class Later(Titles):
        async def score(self, query: str, texts: list[str]) -> Any:
            await asyncio.sleep(0)
            return super().score(query, texts)

    async def program() -> None:
        async with AsyncSession(engine) as session:
            stmt = nearest(select(Article), Article.small, QUERY, ef_search=200, k=10)
            expected = sorted((key for key, _ in candidates(10)), reverse=True)[:4]
            for reranker in (Titles(), Later()):
                hits = await asearch(session, stmt, rerank=reranker, query="title ", k=4)
                assert [hit.entity.id for hit in hits] == expected
                hits = await session.run_sync(search, stmt, rerank=reranker, query="title ", k=4)
                assert [hit.entity.id for hit in hits] == expected
            assert len(await asearch(session, stmt, k=3)) == 3

    backend.run(engine, fill)
    backend.wait(program())
