"""Triggers together with tracked sessions and workers: each change is worked on once."""

from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update

from sqla_vector.tracking import outbox_triggers
from tests.tracking.models import CountingEmbedder, article_models

pytestmark = pytest.mark.backends("psycopg", "asyncpg", "sqlite_stdlib", "pysqlite3", "aiosqlite")


def models(when: str, **options: Any) -> Any:
    base = article_models(when, **options)
    outbox_triggers(base, base.outbox)
    return base


def test_a_flush_that_embeds_leaves_no_entry(tracked: Any):
    base, embedder = models("flush"), CountingEmbedder()
    made = tracked(base, embedder)
    made.run(lambda session: session.add(base.Article(id=1, title="x")))
    made.run(lambda session: setattr(session.get(base.Article, 1), "title", "y"))
    assert embedder.texts == ["x", "y"]
    assert made.entries() == []


def test_what_a_flush_embedded_of_related_rows_is_not_embedded_again(tracked: Any):
    base, embedder = models("flush", related=True), CountingEmbedder()
    made = tracked(base, embedder)
    article = base.Article(id=1, title="x", author=base.Author(id=1, name="a"))
    made.run(lambda session: session.add(article))
    made.work()
    assert embedder.texts == ["x\n\na"]
    # Which articles an author has, listener and trigger leave to a worker.
    made.run(lambda session: setattr(session.get(base.Author, 1), "name", "b"))
    made.work()
    assert embedder.texts == ["x\n\na", "x\n\nb"]
    assert made.entries() == []


def test_a_worker_embeds_what_triggers_noticed_and_is_not_noticed_itself(tracked: Any):
    base, embedder = models("worker", related=True), CountingEmbedder()
    made = tracked(base, embedder)

    def write(session: Any) -> None:
        session.connection().execute(insert(base.Author.__table__), [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}])
        rows = [{"id": n, "title": f"t{n}", "views": 0, "author_id": 1 + n % 2} for n in range(20)]
        session.connection().execute(insert(base.Article.__table__), rows)

    made.untracked(write)
    made.work()
    assert len(embedder.texts) == 20
    assert made.entries() == []
    made.untracked(
        lambda s: s.connection().execute(update(base.Author.__table__).where(base.Author.id == 2).values(name="c"))
    )
    made.work()
    assert sorted(embedder.texts[20:]) == sorted(f"t{n}\n\nc" for n in range(20) if n % 2)
    made.untracked(lambda s: s.connection().execute(delete(base.Article.__table__).where(base.Article.id == 3)))
    assert made.entries() == []


def test_a_change_that_listener_and_trigger_both_notice_is_embedded_once(tracked: Any):
    base, embedder = models("worker"), CountingEmbedder()
    made = tracked(base, embedder)
    made.run(lambda session: session.add_all(base.Article(id=n, title=f"t{n}") for n in range(5)))
    made.work()
    assert sorted(embedder.texts) == [f"t{n}" for n in range(5)]
    assert made.entries() == []
    fingerprints = made.untracked(lambda s: s.scalars(select(base.Article.embedding_fingerprint)).all())
    assert None not in fingerprints


def refuse_bad_texts(texts: list[str]) -> None:
    if any("bad" in text for text in texts):
        raise ValueError("refused")


def test_a_dead_entry_goes_when_a_session_gives_its_row_a_good_text(tracked: Any):
    base = models("flush")
    made = tracked(base, CountingEmbedder(fail=refuse_bad_texts))
    made.run(lambda session: session.add_all(base.Article(id=n, title="x") for n in (1, 2)))
    made.untracked(lambda s: s.connection().execute(update(base.Article.__table__).values(title="bad")))
    made.work(attempts=1)
    assert [entry.state for entry in made.entries()] == ["dead", "dead"]
    made.run(lambda session: setattr(session.get(base.Article, 1), "title", "good"))
    made.work(attempts=1)
    assert [(entry.row_key, entry.state) for entry in made.entries()] == [("[2]", "dead")]


def test_a_dead_entry_goes_when_a_text_and_its_vector_are_set_by_hand(tracked: Any):
    base = models("worker")
    made = tracked(base, embedder := CountingEmbedder(fail=refuse_bad_texts))
    made.run(lambda session: session.add(base.Article(id=1, title="bad")))
    made.work(attempts=1)
    assert [entry.state for entry in made.entries()] == ["dead"]

    def edit(session: Any) -> None:
        article = session.get(base.Article, 1)
        article.title, article.body, article.embedding = "good", "b", embedder.vector("good\n\nb")

    made.run(edit)
    made.work(attempts=1)
    assert made.entries() == []
