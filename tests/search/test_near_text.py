"""near_text(): the vectors of queries and rows are by one model, on every driver."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

from sqla_vector import Vector, search, vector_index
from sqla_vector.embedding import Fingerprint, embedding_column
from sqla_vector.exc import ModelMismatch
from sqla_vector.tracking import Upgrade, Versions, anear_text, near_text, outbox_table, upgrade_table
from tests.support.backends import AnyEngine, Backend
from tests.tracking.conftest import Tracked
from tests.tracking.models import CountingEmbedder

TITLES = [f"title {number}" for number in range(40)]
DIM = 8


class Awaited(CountingEmbedder):
    """An embedder that has to be awaited."""

    async def embed(self, texts: list[str]) -> Any:  # type: ignore[override]
        return super().embed(texts)


def models() -> Any:
    class Base(DeclarativeBase): ...

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        lang: Mapped[str] = mapped_column(default="en")
        embedding: Mapped[Any | None] = embedding_column(Vector(DIM), source="title", embedder="counting")
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())
        __table_args__ = (vector_index("ix_article_embedding", "embedding", metric="cosine", method="hnsw"),)

    Base.Article = Article  # type: ignore[attr-defined]
    Base.outbox = outbox_table(Base.metadata)  # type: ignore[attr-defined]
    Base.upgrades = upgrade_table(Base.metadata)  # type: ignore[attr-defined]
    return Base


@pytest.fixture
def base(backend: Backend) -> Iterator[Any]:
    base: Any = models()
    if backend.name == "sqlite_numpy":  # has no vec0, and searches all the same
        base.metadata.tables["article"].indexes.clear()
    yield base
    base.registry.dispose()


def ranked(embedder: CountingEmbedder, query: str, titles: list[str]) -> list[str]:
    """Return titles by the cosine distance of their vectors to a query's."""
    v = embedder.vector(query)
    score = {t: np.dot(w := embedder.vector(t), v) / np.linalg.norm(w) / np.linalg.norm(v) for t in titles}
    return sorted(titles, key=lambda title: -score[title])


def filled(backend: Backend, engine: AnyEngine, base: Any, embedder: Any) -> Tracked:
    t = Tracked(backend, engine, base, embedder)
    t.run(lambda s: s.add_all(base.Article(id=n, title=title) for n, title in enumerate(TITLES, 1)))
    return t


def test_the_rows_nearest_to_a_text_are_found_by_the_embedder_of_the_column(
    backend: Backend, engine: AnyEngine, base: Any
) -> None:
    embedder, article = CountingEmbedder(dim=DIM), base.Article
    t = filled(backend, engine, base, embedder)

    def titles(run_by: Any, **options: Any) -> list[str]:
        stmt = near_text(select(article), article.embedding, "title 7", k=5, **options)
        return [hit.entity.title for hit in search(run_by, stmt)]

    expected = ranked(embedder, "title 7", TITLES)[:5]
    assert t.run(lambda s: titles(s, session=s)) == expected
    assert t.run(titles) == expected  # by what track() was given, without a session
    assert t.untracked(lambda s: titles(s, embedders={"counting": embedder})) == expected
    some = [title for title in TITLES if title < "title 3"]
    stmt = near_text(select(article.title).where(article.title < "title 3"), article.embedding, "title 7", 4)
    assert [row.title for row in t.run(lambda s: s.execute(stmt).all())] == ranked(embedder, "title 7", some)[:4]
    other = aliased(article)
    stmt = near_text(select(other.title), other.embedding, "title 7", k=5)
    assert [row.title for row in t.run(lambda s: s.execute(stmt).all())] == expected


def test_asynchronous_embedders_are_awaited_everywhere(backend: Backend, engine: AnyEngine, base: Any) -> None:
    embedder, article = Awaited(dim=DIM), base.Article
    t = filled(backend, engine, base, embedder)
    expected = ranked(embedder, "title 9", TITLES)[:3]

    async def found() -> list[str]:
        async with t.sessions() as session:
            stmt = await anear_text(select(article.title), article.embedding, "title 9", k=3, session=session)
            return [row.title for row in await session.execute(stmt)]

    if backend.is_async:
        assert backend.wait(found()) == expected
    stmt = backend.wait(anear_text(select(article.title), article.embedding, "title 9", k=3))
    assert [row.title for row in t.run(lambda s: s.execute(stmt).all())] == expected
    stmt = t.run(lambda s: near_text(select(article.title), article.embedding, "title 9", k=3, session=s))
    assert [row.title for row in t.run(lambda s: s.execute(stmt).all())] == expected


@pytest.mark.parametrize("name", ["counting", "100%_a\\b"])
def test_rows_by_another_model_are_never_mixed_in(backend: Backend, engine: AnyEngine, base: Any, name: str) -> None:
    embedder, article = CountingEmbedder(dim=DIM, name=name), base.Article
    t = filled(backend, engine, base, embedder)
    # Nearly the same names, for who compares without regard to case, or by a pattern.
    for id_, model in enumerate((f"{name}@10", f"{name.upper()}@1", f"x{name}@1", f"{name.replace('_', 'x')}y@1"), 1):
        mark = update(article).where(article.id == id_).values(embedding_fingerprint=f"{model}:0")
        t.untracked(lambda s, mark=mark: s.execute(mark))
    t.untracked(lambda s: s.execute(update(article).where(article.id == 5).values(embedding_fingerprint=None)))

    def ids(**options: Any) -> set[int]:
        stmt = near_text(select(article.id), article.embedding, "title 1", k=100, **options)
        return set(t.run(lambda s: s.scalars(stmt).all()))

    assert ids() == set(range(6, 41))
    assert ids(any_model=True) == set(range(1, 41))


def test_a_search_stays_on_the_old_model_until_the_cutover(backend: Backend, engine: AnyEngine, base: Any) -> None:
    old, new = CountingEmbedder("1", dim=DIM), CountingEmbedder("2", dim=DIM)
    article = base.Article
    t = filled(backend, engine, base, Versions(old, new, upgrades=base.upgrades))
    upgrade = Upgrade(t.sessions, article.embedding, models=base)

    def do(name: str) -> None:
        backend.wait(getattr(upgrade, f"a{name}")()) if backend.is_async else getattr(upgrade, name)()

    def titles() -> list[str]:
        def find(session: Any) -> list[str]:
            stmt = near_text(select(article.title), article.embedding, "title 3", k=5, session=session)
            return list(session.scalars(stmt).all())

        return list(t.run(find))

    by_old, by_new = (ranked(one, "title 3", TITLES)[:5] for one in (old, new))
    assert by_old != by_new
    assert titles() == by_old
    before = near_text(select(article.title), article.embedding, "title 3", k=5, embedders={"counting": old})
    do("fill")
    assert titles() == by_old
    do("cutover")
    assert titles() == by_new
    # The rows are no longer by the model that this one's vector is of.
    assert t.run(lambda s: s.scalars(before).all()) == []
    do("rollback")
    assert titles() == by_old


def test_a_column_by_another_model_altogether_is_refused(backend: Backend, engine: AnyEngine, base: Any) -> None:
    article = base.Article
    t = filled(backend, engine, base, CountingEmbedder("1", dim=DIM))
    newer = CountingEmbedder("2", dim=DIM)

    def found(session: Any, **options: Any) -> list[int]:
        given = {"counting": newer}
        stmt = near_text(
            select(article.id), article.embedding, "title 1", k=50, session=session, embedders=given, **options
        )
        return list(session.scalars(stmt).all())

    with pytest.raises(ModelMismatch, match=r"has vectors of counting@1, and none of counting@2"):
        t.run(found)
    assert newer.calls == []
    assert len(t.run(lambda s: found(s, any_model=True))) == 40
    t.untracked(lambda s: s.execute(update(article).values(embedding_fingerprint=None)))
    assert t.run(found) == []  # of these rows nothing says what they are by
    t.untracked(lambda s: s.execute(update(article).where(article.id == 3).values(embedding_fingerprint="nothing")))
    with pytest.raises(ModelMismatch, match="of an unknown model, and none of counting@2"):
        t.run(found)
