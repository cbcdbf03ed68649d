"""Vectors that are made by a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import update

from sqla_vector.exc import EmbedderError, EmbedderUnavailable, InvalidOption
from tests.tracking.conftest import Tracked
from tests.tracking.models import CountingEmbedder, article_models
from tests.tracking.test_flush import assert_current

Make = Callable[..., Tracked]


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
