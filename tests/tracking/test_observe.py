"""What can be seen of flushes and workers, and what must not be seen."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sqlalchemy import CheckConstraint

from sqla_vector.embedding.adapters import OpenAIEmbedder
from sqla_vector.exc import EmbedderError, EmbedderUnavailable, InvalidOption
from sqla_vector.tracking import (
    BatchFinished,
    Outage,
    QueueSeen,
    RowFailed,
    TextsEmbedded,
    WorkerStarted,
    WorkerStopped,
)
from tests.support.backends import AnyEngine, Backend
from tests.support.embedding_server import DIMENSIONS, Answer, running
from tests.tracking.conftest import Tracked
from tests.tracking.models import CountingEmbedder, article_models
from tests.tracking.test_flush import assert_current

Make = Callable[..., Tracked]
SECRET = "The patient Jane Doe was admitted on Monday with a fracture"


class Seen:
    """Keeps the events that it is called with, in the way that a backend's programs do."""

    def __init__(self, is_async: bool) -> None:
        self.events: list[Any] = []
        self.function: Any = self._later if is_async else self.events.append

    async def _later(self, event: Any) -> None:
        self.events.append(event)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def test_a_worker_tells_what_it_does(tracked: Make, backend: Backend) -> None:
    seen = Seen(backend.is_async)
    t = tracked(article_models("worker"), CountingEmbedder())
    t.run(lambda s: s.add_all(t.base.Article(id=n, title=f"t{n}") for n in range(1, 6)))
    outcome = t.work(t.worker(batch_size=3, name="one", on_event=seen.function))
    assert seen.events[0] == WorkerStarted("one")
    assert seen.events[-1] == WorkerStopped("one", outcome)
    assert [event.outcome.written for event in seen.of(BatchFinished)] == [3, 2]
    assert all(
        min(event.claim_seconds, event.embed_seconds, event.write_seconds) >= 0 for event in seen.of(BatchFinished)
    )
    assert [(event.origin, event.model, event.texts) for event in seen.of(TextsEmbedded)] == [
        ("worker", "counting@1", 3),
        ("worker", "counting@1", 2),
    ]
    (queue,) = seen.of(QueueSeen)
    assert (queue.pending, queue.dead) == (5, 0)
    assert 0 <= queue.age < 3600


def test_a_row_that_fails_is_told_with_its_reason(tracked: Make, backend: Backend) -> None:
    def refuse(texts: list[str]) -> None:
        if "bad" in texts:
            raise EmbedderError("refused")

    seen = Seen(backend.is_async)
    t = tracked(article_models("worker"), CountingEmbedder(fail=refuse))
    t.run(lambda s: s.add_all(t.base.Article(id=n, title="bad" if n == 2 else f"t{n}") for n in range(1, 5)))
    t.work(attempts=2, on_event=seen.function)
    assert [(e.entity, e.row_key, e.kind, e.attempts, e.is_dead) for e in seen.of(RowFailed)] == [
        ("article", "[2]", "embedder", 1, False),
        ("article", "[2]", "embedder", 2, True),
    ]
    assert seen.of(RowFailed)[0].reason == t.entries()[0].reason == "Article.embedding: refused"


def test_an_outage_is_told(tracked: Make, backend: Backend) -> None:
    def down(texts: list[str]) -> None:
        raise EmbedderUnavailable("no capacity", retry_after=30.0)

    seen = Seen(backend.is_async)
    t = tracked(article_models("worker"), CountingEmbedder(fail=down))
    t.run(lambda s: s.add(t.base.Article(id=1, title="a")))
    t.once(t.worker(on_event=seen.function))
    (outage,) = seen.of(Outage)
    assert (outage.of, outage.name, outage.reason) == ("embedder", "counting", "no capacity")
    assert outage.pause is not None
    assert 30.0 <= outage.pause <= 33.0


@pytest.mark.backends(family="postgresql")
def test_an_outage_of_the_database_is_told(tracked: Make, backend: Backend) -> None:
    seen = Seen(backend.is_async)
    t = tracked(article_models("worker"), CountingEmbedder())
    t.run(lambda s: s.add(t.base.Article(id=1, title="a")))
    worker = t.worker(on_event=seen.function)

    # All other connections, as at a restart.
    other = backend.make_engine()
    stmt = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> "
    backend.run_connection(other, lambda c: c.exec_driver_sql(stmt + "pg_backend_pid()"))
    t.work(worker)
    assert_current(t, 1)
    (outage,) = seen.of(Outage)
    assert outage.of == "database"
    assert "\n" not in outage.reason


def test_a_flush_tells_what_it_embeds(tracked: Make, backend: Backend) -> None:
    seen = Seen(backend.is_async)
    t = tracked(article_models(), CountingEmbedder(), on_event=seen.function)
    t.run(lambda s: s.add_all(t.base.Article(title=title) for title in ("a", "b", "a")))
    t.run(lambda s: s.add(t.base.Article(title=None)))
    (event,) = seen.events
    assert (event.origin, event.model, event.texts) == ("flush", "counting@1", 2)
    assert event.seconds >= 0


def test_a_flush_that_leaves_rows_to_a_worker_tells_it(tracked: Make, backend: Backend) -> None:
    def down(texts: list[str]) -> None:
        raise EmbedderUnavailable("no capacity")

    seen = Seen(backend.is_async)
    t = tracked(article_models(), CountingEmbedder(fail=down), on_outage="defer", on_event=seen.function)
    t.run(lambda s: s.add(t.base.Article(title="a")))
    assert seen.events == [Outage("embedder", "counting", "no capacity", None)]


def test_a_function_that_fails_stops_neither_worker_nor_flush(
    tracked: Make, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail_later(event: Any) -> None:
        raise KeyError(type(event).__name__)

    def fail(event: Any) -> None:
        raise KeyError(type(event).__name__)

    function = fail_later if backend.is_async else fail
    t = tracked(article_models(), CountingEmbedder(), on_event=function)
    t.run(lambda s: s.add(t.base.Article(id=1, title="a")))
    assert_current(t, 1)
    assert "on_event failed at TextsEmbedded: KeyError" in caplog.text
    w = tracked(article_models("worker"), CountingEmbedder())
    w.run(lambda s: s.add(w.base.Article(id=2, title="b")))
    w.work(on_event=function)
    assert_current(w, 2)
    assert "on_event failed at BatchFinished: KeyError" in caplog.text


def test_what_cannot_be_called_is_refused(tracked: Make, backend: Backend) -> None:
    async def later(event: Any) -> None:
        """Is never called."""

    t = tracked(article_models("worker"), CountingEmbedder())
    with pytest.raises(InvalidOption, match="on_event="):
        t.worker(on_event="print")
    if not backend.is_async:
        with pytest.raises(InvalidOption, match="asynchronous"):
            t.worker(on_event=later)
        with pytest.raises(InvalidOption, match="asynchronous"):
            tracked(t.base, t.embedder, on_event=later)


@pytest.mark.backends(is_async=False)
def test_a_coroutine_that_nobody_awaits_is_closed_and_logged(tracked: Make, caplog: pytest.LogCaptureFixture) -> None:
    async def later(event: Any) -> None:
        raise AssertionError("never runs")

    base = article_models("worker")
    t = tracked(base, CountingEmbedder())
    t.run(lambda s: s.add(base.Article(id=1, title="a")))
    t.work(on_event=lambda event: later(event))
    f = tracked(article_models(), CountingEmbedder(), on_event=lambda event: later(event))
    f.run(lambda s: s.add(f.base.Article(id=2, title="b")))
    assert_current(f, 2)
    for kind in ("WorkerStarted", "BatchFinished", "TextsEmbedded"):
        assert f"on_event failed at {kind}: TypeError" in caplog.text


def test_the_log_has_levels(tracked: Make, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(texts: list[str]) -> None:
        if "bad" in texts:
            raise EmbedderError("refused")

    caplog.set_level(logging.DEBUG, "sqla_vector")
    t = tracked(article_models("worker"), CountingEmbedder(fail=refuse))
    t.run(lambda s: s.add_all([t.base.Article(id=1, title="bad"), t.base.Article(id=2, title="good")]))
    t.work(t.worker(attempts=1, name="one"))
    by_level: dict[str, list[str]] = {}
    for record in caplog.records:
        if record.name.startswith("sqla_vector"):
            by_level.setdefault(record.levelname, []).append(record.getMessage())
    assert by_level["INFO"][0] == "one starts"
    assert by_level["INFO"][1] == "article [1] failed by embedder, attempt 1, and is dead"
    assert by_level["INFO"][2].startswith("one stops: Outcome(entries=2, written=1")
    assert any("embedded 1 texts in" in line for line in by_level["DEBUG"])
    assert any(re.match("one: Outcome.* claim .* embed .* write", line) for line in by_level["DEBUG"])
    assert "WARNING" not in by_level


def private_rows(t: Tracked) -> None:
    t.run(lambda s: s.add_all([t.base.Article(id=1, title=SECRET), t.base.Article(id=2, body="HIV positive")]))


def assert_nothing_private(said: str) -> None:
    for word in ("Jane", "fracture", "HIV", "sk-secret", "0.123"):
        assert word not in said


@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_no_text_and_no_key_is_in_log_reason_or_event(
    tracked: Make, backend: Backend, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """A server that repeats all that it is sent."""
    caplog.set_level(logging.DEBUG, "sqla_vector")
    caplog.set_level(logging.DEBUG, "httpx")
    seen = Seen(backend.is_async)
    with running() as server:
        for texts in (f"{SECRET}, HIV positive", SECRET, "HIV positive"):
            body = f'{{"error": "cannot embed: {texts}", "key": "sk-secret-key"}}'.encode()
            server.answers.append(Answer(status=status, body=body, headers={"Retry-After": "3600"}))
        remote = OpenAIEmbedder(
            "remote", dimensions=DIMENSIONS, base_url=server.url, api_key="sk-secret-key", attempts=1
        )
        with remote:
            t = tracked(article_models("worker"), remote)
            private_rows(t)
            t.once(t.worker(attempts=1, on_event=seen.function))
    reasons = [str(entry.reason) for entry in t.entries()]
    assert len(seen.of(RowFailed)) == (2 if status == 400 else 0)
    assert len(seen.of(Outage)) == (0 if status == 400 else 1)
    for said in (caplog.text, repr(seen.events), *reasons):
        assert_nothing_private(said)


def test_no_text_and_no_vector_is_in_what_a_database_refuses(
    tracked: Make, backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "sqla_vector")
    seen = Seen(backend.is_async)
    base = article_models("worker")
    base.Article.__table__.append_constraint(CheckConstraint("embedding IS NULL", name="never"))
    t = tracked(base, CountingEmbedder())
    t.embedder.vector = lambda text: np.full(4, 0.123, np.float32)
    private_rows(t)
    t.once(t.worker(attempts=1, on_event=seen.function))
    assert [event.kind for event in seen.of(RowFailed)] == ["database", "database"]
    for said in (caplog.text, repr(seen.events), *(str(entry.reason) for entry in t.entries("dead"))):
        assert_nothing_private(said)
    assert "never" in t.entries("dead")[0].reason


def test_no_text_is_in_what_a_source_fails_with(
    tracked: Make, backend: Backend, engine: AnyEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "sqla_vector")
    seen = Seen(backend.is_async)
    base = article_models("worker", source=lambda row: str(int(row.title)))
    t = tracked(base, CountingEmbedder())
    t.run(lambda s: s.add(base.Article(id=1, title=SECRET)))
    t.once(t.worker(on_event=seen.function))
    (entry,) = t.entries("dead")
    assert re.search(r"the source failed: ValueError in test_observe.py, line \d+", entry.reason)
    for said in (caplog.text, repr(seen.events), entry.reason):
        assert_nothing_private(said)
