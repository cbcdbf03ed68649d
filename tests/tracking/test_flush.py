"""Vectors that are made as a session flushes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import Session

from sqla_vector.embedding import fingerprint
from sqla_vector.embedding.embedder import model_of
from sqla_vector.exc import EmbedderUnavailable, InvalidOption, InvalidText
from tests.tracking.conftest import Tracked
from tests.tracking.models import CountingEmbedder, article_models

Make = Callable[..., Tracked]


def assert_current(tracked: Tracked, expected: int | None = None) -> None:
    """Compare every article's vector and fingerprint with those of its text."""
    article, embedder = tracked.base.Article, tracked.embedder
    rows = tracked.untracked(lambda s: s.scalars(select(article).order_by(article.id)).all())
    for row in rows:
        parts = [part for part in (row.title, row.body) if part and part.strip()]
        if not parts:
            assert (row.embedding, row.embedding_fingerprint) == (None, None)
            continue
        whole = "\n\n".join(parts)
        assert row.embedding_fingerprint == fingerprint(model_of(embedder), whole)
        assert np.array_equal(row.embedding, embedder.vector(whole))
    assert expected is None or len(rows) == expected


def test_new_rows_are_embedded_in_one_call(tracked: Make) -> None:
    t = tracked(article_models(), CountingEmbedder())
    t.run(lambda s: s.add_all(t.base.Article(title=f"title {n}", body="body") for n in range(20)))
    assert len(t.embedder.calls) == 1
    assert len(t.embedder.texts) == 20
    assert_current(t, 20)
    assert t.entries() == []


def test_an_edit_is_embedded_and_other_changes_are_not(tracked: Make) -> None:
    t = tracked(article_models(), CountingEmbedder())
    t.run(lambda s: s.add(t.base.Article(id=1, title="a", body="b")))
    t.run(lambda s: setattr(s.get(t.base.Article, 1), "views", 7))
    t.run(lambda s: setattr(s.get(t.base.Article, 1), "title", "a"))
    assert t.embedder.texts == ["a\n\nb"]
    t.run(lambda s: setattr(s.get(t.base.Article, 1), "title", "c"))
    assert t.embedder.texts == ["a\n\nb", "c\n\nb"]
    assert_current(t, 1)


def test_a_text_that_is_gone_takes_its_vector_along(tracked: Make) -> None:
    t = tracked(article_models(), CountingEmbedder())
    t.run(lambda s: s.add_all([t.base.Article(id=1, title="a"), t.base.Article(id=2, title=" ")]))

    def clear(session: Session) -> None:
        session.get_one(t.base.Article, 1).title = None

    t.run(clear)
    assert_current(t, 2)


def test_a_rollback_leaves_nothing(tracked: Make) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())

    def fail(session: Session) -> None:
        session.add(t.base.Article(title="a"))
        session.flush()
        raise KeyError

    with pytest.raises(KeyError):
        t.run(fail)
    assert t.entries() == []


def test_a_savepoint_that_is_rolled_back_leaves_nothing(tracked: Make) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())

    def fail(session: Session) -> None:
        session.add(t.base.Article(id=1, title="a"))
        session.flush()
        savepoint = session.begin_nested()
        session.add(t.base.Article(id=2, title="b"))
        session.flush()
        savepoint.rollback()

    t.run(fail)
    assert [(entry.entity, entry.row_key, entry.state) for entry in t.entries()] == [("article", "[1]", "pending")]


def test_a_vector_set_by_hand_is_kept(tracked: Make) -> None:
    t = tracked(article_models(), CountingEmbedder())
    mine = np.array([1, 2, 3, 4], np.float32)
    t.run(lambda s: s.add(t.base.Article(id=1, title="a", embedding=mine)))
    assert t.embedder.calls == []

    def look(session: Session) -> Any:
        found = session.get_one(t.base.Article, 1)
        return found.embedding, found.embedding_fingerprint

    assert np.array_equal(t.run(look)[0], mine)
    assert t.run(look)[1] == fingerprint(model_of(t.embedder), "a")

    def forget(session: Session) -> None:
        session.get_one(t.base.Article, 1).embedding = None

    t.run(forget)
    assert_current(t, 1)


def test_an_edit_of_one_part_does_not_undo_anothers(tracked: Make) -> None:
    t = tracked(article_models(), CountingEmbedder())
    t.run(lambda s: s.add(t.base.Article(id=1, title="a", body="b")))

    def edit(session: Session) -> None:
        article = session.get_one(t.base.Article, 1)
        # Read before, written after somebody else's change.
        session.execute(update(t.base.Article).values(body="other"), execution_options={"synchronize_session": False})
        article.title = "c"
        session.flush()
        assert np.array_equal(article.embedding, t.embedder.vector("c\n\nother"))

    t.run(edit)
    assert_current(t, 1)


def test_what_was_not_loaded_is_read_in_one_query(tracked: Make) -> None:
    t = tracked(article_models(), CountingEmbedder())
    t.run(lambda s: s.add_all(t.base.Article(id=n, title=f"a{n}", body="b") for n in range(1, 6)))

    def edit(session: Session) -> None:
        articles = session.scalars(select(t.base.Article)).all()
        session.expire_all()
        for number, article in enumerate(articles):
            article.title = f"c{number}"

    t.embedder.calls.clear()
    t.run(edit)
    assert len(t.embedder.calls) == 1
    assert_current(t, 5)


def test_expressions_and_defaults_are_read_after_the_statement(tracked: Make) -> None:
    t = tracked(article_models(), CountingEmbedder())
    t.run(lambda s: s.add(t.base.Article(id=1, title=text("'from ' || 'SQL'"), body="b")))
    assert t.embedder.texts == ["from SQL\n\nb"]
    assert_current(t, 1)


def test_an_outage_fails_the_flush_or_defers(tracked: Make) -> None:
    def down(texts: list[str]) -> None:
        raise EmbedderUnavailable("down")

    base = article_models()
    t = tracked(base, CountingEmbedder(fail=down))
    with pytest.raises(EmbedderUnavailable):
        t.run(lambda s: s.add(base.Article(title="a")))
    t2 = tracked(base, t.embedder, on_outage="defer")
    t2.run(lambda s: s.add(base.Article(id=1, title="a")))
    assert [entry.row_key for entry in t2.entries()] == ["[1]"]
    t.embedder.fail = None
    t2.work()
    assert_current(t2, 1)
    assert t2.entries() == []


def test_a_text_that_cannot_be_embedded_is_refused(tracked: Make) -> None:
    t = tracked(article_models(), CountingEmbedder())
    with pytest.raises(InvalidText):
        t.run(lambda s: s.add(t.base.Article(title="\ud800")))


def test_a_worker_column_needs_an_outbox(tracked: Make) -> None:
    t = tracked(article_models("worker"), CountingEmbedder(), outbox=None)
    with pytest.raises(InvalidOption, match="outbox_table"):
        t.run(lambda s: s.add(t.base.Article(title="a")))
