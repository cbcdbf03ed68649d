"""Vectors that are made by a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Table, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_vector import Vector
from sqla_vector.embedding import Fingerprint, embedding_column
from sqla_vector.exc import EmbedderError, EmbedderUnavailable, InvalidOption
from sqla_vector.tracking import outbox_table
from tests.tracking.conftest import Tracked
from tests.tracking.models import DIM, CountingEmbedder, article_models
from tests.tracking.test_flush import assert_current

Make = Callable[..., Tracked]


def two_columns(body_by: str = "counting") -> Any:
    """Return a base with a class that has a vector of its title and one of its body."""

    class Base(DeclarativeBase):
        outbox: Table

    class Page(Base):
        __tablename__ = "page"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]
        body: Mapped[str | None]
        of_title: Mapped[Any | None] = embedding_column(Vector(DIM), source="title", embedder="counting", when="worker")
        of_title_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())
        of_body: Mapped[Any | None] = embedding_column(Vector(DIM), source="body", embedder=body_by, when="worker")
        of_body_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

    Base.Page = Page  # type: ignore[attr-defined]
    Base.outbox = outbox_table(Base.metadata)
    return Base


def test_a_worker_makes_the_vectors_of_all_changes(tracked: Make) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    t.run(lambda s: s.add_all(t.base.Article(id=n, title=f"title {n}") for n in range(1, 31)))
    assert t.embedder.calls == []
    outcome = t.work(batch_size=8)
    assert (outcome.entries, outcome.written) == (30, 30)
    assert_current(t, 30)
    t.run(lambda s: s.delete(s.get(t.base.Article, 3)))
    t.run(lambda s: setattr(s.get(t.base.Article, 4), "title", "edited"))
    t.work()
    assert_current(t, 29)
    assert t.entries() == []


def test_entries_of_one_row_are_one_job(tracked: Make) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    t.run(lambda s: s.add(t.base.Article(id=1, title="a")))
    for title in "bcd":
        t.run(lambda s, title=title: setattr(s.get(t.base.Article, 1), "title", title))
    assert len(t.entries()) == 4
    t.work()
    assert t.embedder.texts == ["d"]
    assert t.entries() == []


def test_a_change_of_a_related_row_marks_its_dependants(tracked: Make) -> None:
    base = article_models("worker", related=True)
    t = tracked(base, CountingEmbedder())

    def add(session: Any) -> None:
        ada, bob = base.Author(id=1, name="Ada"), base.Author(id=2, name="Bob")
        session.add_all([base.Article(id=1, title="a", author=ada), base.Article(id=2, title="b", author=bob)])

    t.run(add)
    t.work()
    assert sorted(t.embedder.texts) == ["a\n\nAda", "b\n\nBob"]
    t.run(lambda s: setattr(s.get(base.Author, 1), "name", "Ada L."))
    t.work()
    assert t.embedder.texts[2:] == ["a\n\nAda L."]
    t.run(lambda s: setattr(s.get(base.Article, 2), "author_id", 1))
    t.work()
    assert t.embedder.texts[3:] == ["b\n\nAda L."]
    assert t.entries() == []


def test_a_poison_text_fails_alone(tracked: Make) -> None:
    def refuse(texts: list[str]) -> None:
        if "bad" in texts:
            raise EmbedderError("refused")

    t = tracked(article_models("worker"), CountingEmbedder(fail=refuse))
    t.run(lambda s: s.add_all(t.base.Article(id=n, title="bad" if n == 7 else f"t{n}") for n in range(1, 17)))
    outcome = t.work(attempts=3)
    assert (outcome.written, outcome.retried, outcome.dead) == (15, 2, 1)
    (entry,) = t.entries()
    assert (entry.state, entry.row_key, entry.attempts) == ("dead", "[7]", 3)
    assert "refused" in entry.reason
    # A text that is repaired needs no replay.
    t.run(lambda s: setattr(s.get(t.base.Article, 7), "title", "good"))
    t.work()
    assert t.entries() == []
    assert_current(t, 16)


def test_a_refused_column_keeps_no_other_one_on_the_vector_of_an_old_text(tracked: Make) -> None:
    def refuse(texts: list[str]) -> None:
        if "bad" in texts:
            raise EmbedderError("refused")

    base = two_columns()
    t = tracked(base, CountingEmbedder(fail=refuse))
    t.run(lambda s: s.add(base.Page(id=1, title="title", body="body")))
    t.work()
    t.run(lambda s: setattr(s.get(base.Page, 1), "title", "bad"))
    assert t.work(attempts=1).dead == 1
    t.run(lambda s: setattr(s.get(base.Page, 1), "body", "other"))
    assert t.work(attempts=2).dead == 1
    page = t.untracked(lambda s: s.get(base.Page, 1))
    assert np.array_equal(page.of_body, t.embedder.vector("other"))
    assert np.array_equal(page.of_title, t.embedder.vector("title"))
    (entry,) = t.entries()
    assert (entry.state, entry.reason) == ("dead", "Page.of_title: refused")
    # What was paid for is not made again at the next attempt.
    assert t.embedder.texts.count("other") == 2
    t.run(lambda s: setattr(s.get(base.Page, 1), "title", "good"))
    t.work()
    assert t.entries() == []


def test_a_row_of_which_two_columns_fail_has_both_reasons(tracked: Make) -> None:
    def refuse(texts: list[str]) -> None:
        if set(texts) & {"bad", "worse"}:
            raise EmbedderError("refused")

    base = two_columns()
    t = tracked(base, CountingEmbedder(fail=refuse))
    t.run(lambda s: s.add(base.Page(id=1, title="bad", body="worse")))
    outcome = t.work(attempts=1)
    assert (outcome.entries, outcome.dead, outcome.written) == (1, 1, 0)
    (entry,) = t.entries()
    assert entry.reason == "Page.of_title: refused; Page.of_body: refused"


def test_a_row_is_not_dead_before_its_other_column_is_seen_to(tracked: Make) -> None:
    def refuse(texts: list[str]) -> None:
        if "bad" in texts:
            raise EmbedderError("refused")

    def down(texts: list[str]) -> None:
        raise EmbedderUnavailable("down", retry_after=0.0)

    base = two_columns(body_by="other")
    other = CountingEmbedder(fail=down)
    t = tracked(base, CountingEmbedder(fail=refuse), more={"other": other})
    t.run(lambda s: s.add(base.Page(id=1, title="bad", body="body")))
    worker = t.worker(attempts=1)
    outcome = t.once(worker)
    assert (outcome.dead, outcome.late) == (0, 1)
    other.fail = None
    assert t.work(worker).dead == 1
    assert np.array_equal(t.untracked(lambda s: s.get(base.Page, 1)).of_body, other.vector("body"))


def test_an_outage_counts_no_attempts(tracked: Make) -> None:
    def down(texts: list[str]) -> None:
        raise EmbedderUnavailable("down", retry_after=0.0)

    t = tracked(article_models("worker"), CountingEmbedder(fail=down))
    t.run(lambda s: s.add_all(t.base.Article(id=n, title=f"t{n}") for n in range(1, 4)))
    worker = t.worker(attempts=1)
    outcome = t.once(worker)
    assert (outcome.postponed, outcome.dead) == (3, 0)
    assert [entry.attempts for entry in t.entries()] == [0, 0, 0]
    t.embedder.fail = None
    t.work(worker)
    assert_current(t, 3)


@pytest.mark.backends(is_async=False)
def test_a_row_that_changes_while_it_is_embedded_is_embedded_again(tracked: Make) -> None:
    base = article_models("worker")
    engine: Any = None

    def change(texts: list[str]) -> None:
        if texts == ["a"]:
            # Another connection, while the worker waits for the embedder.
            with engine.begin() as connection:
                connection.execute(update(base.Article).values(title="b"))

    t = tracked(base, CountingEmbedder(fail=change))
    engine = t.engine
    t.run(lambda s: s.add(base.Article(id=1, title="a")))
    outcome = t.work()
    assert outcome.late == 1
    assert t.embedder.texts == ["a", "b"]
    assert_current(t, 1)


def test_a_worker_of_the_other_kind_is_refused(tracked: Make) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    worker = t.worker()
    call = worker.run_once if worker.is_async else lambda: t.backend.wait(worker.arun_once())
    with pytest.raises(InvalidOption, match="asynchronous"):
        call()
