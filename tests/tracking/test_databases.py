"""Tracking over schemas, over several databases in one session, and with objects that change their session."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
from sqlalchemy import MetaData, StaticPool, Table, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqla_vector.exc import InvalidOption
from sqla_vector.tracking import Worker, backfill, check, outbox_table, track, untrack
from tests.support.backends import AnyEngine, Backend
from tests.tracking.mapped import SYNC, Make, mark, settle, title, vector
from tests.tracking.models import DIM, CountingEmbedder
from tests.tracking.stale import is_current, joined


def article(schema: str | None = None, table: str = "article") -> Any:
    class Base(DeclarativeBase):
        metadata = MetaData(schema=schema)
        outbox: ClassVar[Table]

    class Article(Base):
        __tablename__ = table
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]
        body: Mapped[str | None]
        embedding: Mapped[Any | None] = vector(("title", "body"))
        embedding_fingerprint: Mapped[str | None] = mark()
        later: Mapped[Any | None] = vector("title", "worker")
        later_fingerprint: Mapped[str | None] = mark()

    Base.Article = Article  # type: ignore[attr-defined]
    Base.outbox = outbox_table(Base.metadata, schema=schema)
    return Base


def follow(engine: Any, base: Any, **options: Any) -> None:
    """Add and edit an article, and look at what it has."""
    embedder = CountingEmbedder()
    maker = sessionmaker(engine, **options)
    track(maker, embedders={"counting": embedder}, models=base, outbox=base.outbox)
    try:
        with maker.begin() as session:
            session.add(base.Article(id=1, title="a", body="b"))
        with maker.begin() as session:
            session.get_one(base.Article, 1).title = "c"  # not all of the text: it is read back
        Worker(maker, poll=0.001).run(until_empty=True)
        with maker() as session:
            row = session.get_one(base.Article, 1)
            assert is_current(row, "embedding", "c\n\nb", embedder)
            assert is_current(row, "later", "c", embedder)
        assert check(maker).is_clean
    finally:
        untrack(maker)


@pytest.mark.backends("psycopg")
@pytest.mark.parametrize("schema", ["shop", None])
def test_schemas_and_their_translation(backend: Backend, engine: AnyEngine, schema: str | None):
    backend.run_connection(engine, lambda c: [c.exec_driver_sql(f"CREATE SCHEMA {s}") for s in ("shop", "tenant")])
    if schema is not None:
        plain: Any = engine
        base = article(schema)
        base.metadata.create_all(plain)
        follow(plain, base)
    translated: Any = backend.make_engine(execution_options={"schema_translate_map": {schema: "tenant"}})
    base = article(schema)
    base.metadata.create_all(translated)
    follow(translated, base)


@pytest.mark.backends("psycopg")
def test_two_phase_commits(backend: Backend, engine: AnyEngine):
    base = article()
    backend.create_all(engine, base.metadata)
    if not backend.run_connection(engine, lambda c: int(c.exec_driver_sql("SHOW max_prepared_transactions").scalar())):
        pytest.skip("the server allows no prepared transactions: max_prepared_transactions = 0")
    follow(engine, base, twophase=True)


@pytest.mark.backends("psycopg", "sqlite_stdlib", "pysqlite3")
@pytest.mark.parametrize("by", ["base", "class", "table"])
def test_sessions_with_several_databases(backend: Backend, engine: AnyEngine, tmp_path: Any, by: str):
    first, second = article(), article()
    other: Any = backend.make_engine(url=f"sqlite:///{tmp_path / 'other.db'}")
    backend.create_all(engine, first.metadata)
    backend.create_all(other, second.metadata)
    binds: dict[Any, Any] = {}
    for base, where in ((first, engine), (second, other)):
        if by == "table":
            binds |= {base.Article.__table__: where, base.outbox: where}
        else:
            binds[base if by == "base" else base.Article] = where
    # Two tables of one name: the models are named.
    follow(None, first, binds=binds)
    follow(None, second, binds=binds)


@pytest.mark.backends("psycopg", "sqlite_stdlib", "pysqlite3")
def test_a_run_is_about_one_database(backend: Backend, engine: AnyEngine, tmp_path: Any):
    first, second, embedder = article(), article(table="note"), CountingEmbedder()
    other: Any = backend.make_engine(url=f"sqlite:///{tmp_path / 'other.db'}")
    for base, where in ((first, engine), (second, other)):
        backend.create_all(where, base.metadata)
    maker: Any = sessionmaker(binds={first: engine, second: other}, expire_on_commit=False)
    both = [first.Article, second.Article]
    track(maker, embedders={"counting": embedder}, models=both, outbox=first.outbox)
    try:
        with maker.begin() as session:
            session.add_all([Article(id=1, title="a") for Article in both])
        for run in (lambda: Worker(maker).run(until_empty=True), lambda: check(maker)):
            with pytest.raises(InvalidOption, match="these models are in several databases; name those of one"):
                run()
        for Article in both:
            Worker(maker, models=[Article], poll=0.001).run(until_empty=True)
            assert check(maker, models=[Article]).is_clean
            with maker.begin() as session:
                row = session.get_one(Article, 1)
                assert is_current(row, "embedding", "a", embedder)
                assert is_current(row, "later", "a", embedder)
                row.title = row.embedding = row.embedding_fingerprint = None
            assert backfill(maker, Article.later).written == 1
    finally:
        untrack(maker)


def test_a_backfill_asks_the_database_of_its_models_for_connections():
    base = article()
    memory = create_engine("sqlite://", poolclass=StaticPool)
    maker = sessionmaker(binds={base: memory})
    with pytest.raises(InvalidOption, match="workers= over 1 needs a connection for each"):
        backfill(maker, base.Article.later, embedders={"counting": CountingEmbedder()}, models=base, workers=2)


@SYNC
def test_objects_that_change_their_session(tracked: Make):
    base = article()
    t = tracked(base, CountingEmbedder())
    t.run(lambda s: s.add_all([base.Article(id=1, title="a"), base.Article(id=2, title="b", embedding=np.ones(DIM))]))

    def take(session: Session) -> Any:
        row = session.get_one(base.Article, 1)
        row.title = "moved"
        session.expunge(row)
        return row

    row = t.run(take)
    t.run(lambda s: s.add(row))
    t.run(lambda s: s.delete(s.get_one(base.Article, 2)))
    assert settle(t, base.Article, lambda r: joined(r.title, r.body)) == 1
    assert settle(t, base.Article, title, "later") == 1
    assert t.embedder.texts.count("moved") == 2  # one for each of the columns
