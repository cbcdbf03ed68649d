"""Texts, embedders and configurations as they should not be: nothing is lost, and what is wrong is said."""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sqlalchemy import MetaData, Table, select
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.orm import sessionmaker

from sqla_vector.embedding import Model, fingerprint
from sqla_vector.embedding.adapters import OpenAIEmbedder
from sqla_vector.embedding.embedder import model_of
from sqla_vector.exc import EmbedderError, InvalidDeclaration, InvalidOption, InvalidText
from sqla_vector.tracking import Outage, Worker, outbox_table, track, untrack
from tests.support.backends import Backend
from tests.support.embedding_server import DIMENSIONS, Answer, running, vector_of
from tests.tracking.conftest import Tracked
from tests.tracking.models import CountingEmbedder, article_models

Make = Callable[..., Tracked]


def stored(t: Tracked, id_: int = 1) -> tuple[Any, Any, Any]:
    a = t.base.Article
    stmt = select(a.title, a.embedding, a.embedding_fingerprint).where(a.id == id_)
    return tuple(t.untracked(lambda s: s.execute(stmt).one()))  # type: ignore[return-value]


# Texts.

TEXTS = {
    "10 MB": "ten megabytes of text " * 480_000,
    "right-to-left": "שלום עולם \u202eabc\u202c مرحبا",
    "combining marks": "a" + "\u0301" * 200,
    "composed": unicodedata.normalize("NFC", "é à ü"),
    "decomposed": unicodedata.normalize("NFD", "é à ü"),
    "beyond the basic plane": "🦜 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 🇫🇷",
    "control characters": "a\x01\x02\x1b[31m\x7f\u2028\ufeffb",
    "SQL": "'; DROP TABLE article; -- %s :p \\ \"",
}


@pytest.mark.parametrize("when", ["flush", "worker"])
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_a_text_is_embedded_as_it_is(tracked: Make, when: str, text: str) -> None:
    t = tracked(article_models(when), CountingEmbedder())
    t.run(lambda s: s.add(t.base.Article(id=1, title=text)))
    if when == "worker":
        t.work()
    title, vector, mark = stored(t)
    assert title == text
    assert mark == fingerprint(model_of(t.embedder), text)
    assert np.array_equal(vector, t.embedder.vector(text))
    assert t.embedder.texts == [text]


@pytest.mark.parametrize("when", ["flush", "worker"])
@pytest.mark.parametrize("text", [None, "", " ", "\n\t \u00a0\u2003"])
def test_a_text_without_a_character_has_no_vector(tracked: Make, when: str, text: str | None) -> None:
    t = tracked(article_models(when), CountingEmbedder())
    t.run(lambda s: s.add_all([t.base.Article(id=1, title=text), t.base.Article(id=2, title="a")]))
    t.work()
    assert stored(t) == (text, None, None)
    assert t.embedder.texts == ["a"]
    assert t.entries() == []


def test_composed_and_decomposed_are_two_texts(tracked: Make) -> None:
    t = tracked(article_models(), CountingEmbedder())
    t.run(lambda s: s.add(t.base.Article(id=1, title=TEXTS["composed"])))
    t.run(lambda s: setattr(s.get(t.base.Article, 1), "title", TEXTS["decomposed"]))
    assert t.embedder.texts == [TEXTS["composed"], TEXTS["decomposed"]]


@pytest.mark.parametrize("when", ["flush", "worker"])
def test_a_lone_surrogate_is_refused_and_nothing_is_written(tracked: Make, when: str) -> None:
    t = tracked(article_models(when), CountingEmbedder())
    with pytest.raises((InvalidText, StatementError, UnicodeEncodeError)):
        t.run(lambda s: s.add_all([t.base.Article(id=1, title="a"), t.base.Article(id=2, title="b\ud800")]))
    assert t.untracked(lambda s: s.scalars(select(t.base.Article)).all()) == []
    assert t.entries() == []


@pytest.mark.backends(family="sqlite")
@pytest.mark.parametrize("when", ["flush", "worker"])
def test_nul_is_a_character_on_sqlite(tracked: Make, when: str) -> None:
    t = tracked(article_models(when), CountingEmbedder())
    t.run(lambda s: s.add(t.base.Article(id=1, title="a\0b")))
    t.work()
    title, _, mark = stored(t)
    assert (title, mark) == ("a\0b", fingerprint(model_of(t.embedder), "a\0b"))


@pytest.mark.backends(family="postgresql")
@pytest.mark.parametrize("when", ["flush", "worker"])
def test_nul_is_refused_by_postgresql_and_nothing_is_written(tracked: Make, when: str) -> None:
    t = tracked(article_models(when), CountingEmbedder())
    t.run(lambda s: s.add(t.base.Article(id=1, title="before")))
    with pytest.raises((DBAPIError, ValueError), match=r"NUL|0x00"):
        t.run(lambda s: setattr(s.get(t.base.Article, 1), "title", "a\0b"))
    t.work()
    title, _, mark = stored(t)
    assert (title, mark) == ("before", fingerprint(model_of(t.embedder), "before"))
    assert t.entries() == []


# Embedders.


class Odd(CountingEmbedder):
    """Answers for texts with "bad" in them by a function of the proper vectors."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        super().__init__()
        self.change = change

    def embed(self, texts: list[str]) -> Any:
        vectors = super().embed(texts)
        return self.change(vectors) if any("bad" in text for text in texts) else vectors


def raise_(error: BaseException) -> Any:
    raise error


ANSWERS: dict[str, Callable[[Any], Any]] = {
    "too many": lambda vectors: [*vectors, vectors[0]],
    "too few": lambda vectors: vectors[1:],
    "none": lambda vectors: None,
    "wrong dimension": lambda vectors: vectors[:, :3],
    "NaN": lambda vectors: vectors * np.nan,
    "infinity": lambda vectors: vectors / 0.0,
    "overflow": lambda vectors: vectors.astype(np.float64) + 1e39,
    "text": lambda vectors: ["bad"] * len(vectors),
    "ragged": lambda vectors: [[1.0], [1.0, 2.0]],
    "generator": lambda vectors: (vector[:1] for vector in vectors),
    "raises": lambda vectors: raise_(KeyError("vocabulary")),
    "raises what no database stores": lambda vectors: raise_(ValueError("half \ud800 and \0")),
    "raises without words": lambda vectors: raise_(AssertionError()),
    "raises at length": lambda vectors: raise_(ValueError("x" * 100_000)),
    "recursion": lambda vectors: raise_(RecursionError("deep")),
}


@pytest.mark.filterwarnings("ignore:divide by zero|invalid value:RuntimeWarning")
@pytest.mark.parametrize("change", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_cannot_be_is_refused_as_a_whole(tracked: Make, change: Callable[[Any], Any]) -> None:
    t = tracked(article_models(), Odd(change))
    with pytest.raises(EmbedderError, match="the embedder counting"):
        t.run(lambda s: s.add_all(t.base.Article(id=n, title="bad" if n == 2 else f"t{n}") for n in (1, 2, 3)))
    assert t.untracked(lambda s: s.scalars(select(t.base.Article)).all()) == []


@pytest.mark.filterwarnings("ignore:divide by zero|invalid value:RuntimeWarning")
@pytest.mark.parametrize("change", ANSWERS.values(), ids=ANSWERS)
def test_a_row_with_such_an_answer_is_dead_with_a_reason(tracked: Make, change: Callable[[Any], Any]) -> None:
    t = tracked(article_models("worker"), Odd(change))
    t.run(lambda s: s.add_all(t.base.Article(id=n, title="bad" if n == 2 else f"t{n}") for n in (1, 2, 3)))
    outcome = t.work(attempts=2)
    assert (outcome.written, outcome.dead) == (2, 1)
    (entry,) = t.entries()
    assert (entry.state, entry.row_key, entry.attempts) == ("dead", "[2]", 2)
    assert entry.reason.startswith("Article.embedding: the embedder counting")
    assert len(entry.reason) < 2000
    assert stored(t, 2)[1:] == (None, None)
    # Repaired, and edited.
    t.embedder.change = lambda vectors: vectors
    t.run(lambda s: setattr(s.get(t.base.Article, 2), "title", "bad no more"))
    t.work()
    assert t.entries() == []
    assert stored(t, 2)[2] == fingerprint(model_of(t.embedder), "bad no more")


def test_an_embedder_that_hangs_is_an_outage_and_its_late_answer_is_not_used(tracked: Make, backend: Backend) -> None:
    release, entered = threading.Event(), threading.Event()

    def hang(texts: list[str]) -> None:
        if not release.is_set():
            entered.set()
            release.wait(60)

    seen: list[Any] = []
    t = tracked(article_models("worker"), CountingEmbedder(fail=hang))
    t.run(lambda s: s.add(t.base.Article(id=1, title="a")))
    worker = t.worker(timeout=0.05, lease=1.0, attempts=1, on_event=seen.append)
    try:
        outcome = t.once(worker)
        assert entered.is_set()
        assert (outcome.postponed, outcome.dead, outcome.written) == (1, 0, 0)
        (outage,) = (event for event in seen if isinstance(event, Outage))
        assert outage.reason == "the embedder counting gave no answer within 0.05 seconds"
        assert [(entry.state, entry.attempts) for entry in t.entries()] == [("pending", 0)]
        assert stored(t) == ("a", None, None)
    finally:
        release.set()
    t.work(t.worker(timeout=60.0))
    assert stored(t)[2] == fingerprint(model_of(t.embedder), "a")
    assert t.entries() == []


@pytest.fixture
def remote() -> Any:
    """A server, and an embedder that asks it once."""
    with running() as server:
        embedder = OpenAIEmbedder("remote", dimensions=DIMENSIONS, base_url=server.url, attempts=1, timeout=5)
        yield server, embedder
        embedder.close()


@pytest.mark.parametrize("status", [401, 404, 408, 429, 500, 503])
def test_a_server_out_of_order_costs_no_attempt(tracked: Make, remote: Any, status: int) -> None:
    server, embedder = remote
    server.answers.append(Answer(status=status, headers={"Retry-After": "0"}))
    t = tracked(article_models("worker"), embedder)
    t.run(lambda s: s.add_all(t.base.Article(id=n, title=f"t{n}") for n in (1, 2)))
    outcome = t.work(attempts=1)
    assert (outcome.postponed, outcome.written, outcome.dead) == (2, 2, 0)
    assert server.batches == [["t1", "t2"], ["t1", "t2"]]
    assert np.array_equal(stored(t)[1], vector_of("t1"))
    assert t.entries() == []


def test_a_server_is_not_asked_before_the_time_it_asks_for(tracked: Make, remote: Any) -> None:
    server, embedder = remote
    server.answers.append(Answer(status=429, headers={"Retry-After": "3600"}))
    t = tracked(article_models("worker"), embedder)
    t.run(lambda s: s.add(t.base.Article(id=1, title="a")))
    worker = t.worker()
    outcomes = [t.once(worker) for _ in range(4)]
    assert [outcome.postponed for outcome in outcomes] == [1, 0, 0, 0]
    assert len(server.requests) == 1
    assert [(entry.state, entry.attempts) for entry in t.entries()] == [("pending", 0)]


def test_a_text_that_a_server_refuses_is_dead_alone(tracked: Make, remote: Any) -> None:
    server, embedder = remote
    server.answers.extend(Answer(status=400, body=b'{"error": "too long"}') for _ in range(2))
    t = tracked(article_models("worker"), embedder)
    t.run(lambda s: s.add_all(t.base.Article(id=n, title=f"t{n}") for n in (1, 2)))
    outcome = t.work(attempts=1)
    assert (outcome.written, outcome.dead) == (1, 1)
    (entry,) = t.entries("dead")
    assert '400: \'{"error": "too long"}\'' in entry.reason


# Configuration.

NUMBERS: list[Any] = [-1, True, float("nan"), float("inf"), "5", None, [1]]


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
@pytest.mark.parametrize("name", ["lease", "timeout", "backoff", "max_backoff", "poll", "batch_size", "attempts"])
@pytest.mark.backends("pysqlite3", "sqlite_stdlib")
def test_a_number_that_cannot_be_is_refused(tracked: Make, name: str, value: Any) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    if (name, value) == ("timeout", None):
        assert t.worker(timeout=None) is not None
        return
    with pytest.raises(InvalidOption, match=name):
        t.worker(**{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": 10**9}, "batch_size"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"attempts": 0}, "attempts"),
        ({"lease": 0}, "lease"),
        ({"poll": 0}, "poll"),
        ({"lease": 10.0, "timeout": 10.0}, r"lease \(10 s\) must be longer than timeout \(10 s\)"),
        ({"lease": 5.0}, r"lease \(5 s\) must be longer than timeout \(120 s\)"),
        ({"name": ""}, "a worker's name"),
        ({"name": "x" * 41}, "a worker's name"),
        ({"name": "a\nb"}, "a worker's name"),
        ({"name": 7}, "a worker's name"),
        ({"embedders": {}}, "needs an embedder named 'counting', got none"),
        ({"embedders": {"other": CountingEmbedder()}}, "needs an embedder named 'counting', got other"),
        ({"embedders": {"counting": Model("counting", "1")}}, "only the name of a model"),
        ({"embedders": {"counting": CountingEmbedder(dim=3)}}, "4 dimensions, and the embedder counting makes 3"),
        ({"embedders": {"counting": "text-embedding-3-small"}}, "is no embedder"),
        ({"embedders": [CountingEmbedder()]}, "is a dict from names to embedders"),
        ({"embedders": {"": CountingEmbedder()}}, "is a dict from names to embedders"),
        ({"outbox": "vector_outbox"}, "outbox_table"),
        ({"models": "article"}, "models="),
        ({"models": []}, "models="),
    ],
    ids=lambda value: re.sub(r"\W+", " ", value) if isinstance(value, str) else "-".join(value),
)
@pytest.mark.backends("pysqlite3", "sqlite_stdlib")
def test_options_that_cannot_be_are_refused(tracked: Make, options: dict[str, Any], message: str) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    with pytest.raises(InvalidOption, match=message):
        t.worker(**options)


@pytest.mark.backends("pysqlite3", "sqlite_stdlib")
def test_an_option_that_is_none_is_refused(tracked: Make) -> None:
    t = tracked(article_models("worker"), CountingEmbedder())
    with pytest.raises(TypeError, match="bach_size"):
        t.worker(bach_size=3)
    with pytest.raises(TypeError, match="on_failure"):
        track(t.sessions, embedders={}, on_failure=print)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedders": {"counting": object()}}, "object is no embedder"),
        ({"embedders": {"counting": CountingEmbedder(version="")}}, "a model's version"),
        ({"embedders": {"counting": CountingEmbedder(name="a b")}}, "a model's name"),
        ({"embedders": {"counting": CountingEmbedder(dim=0)}}, "must say its dimensions"),
        ({"embedders": None}, "is a dict from names to embedders"),
        ({"outbox": Table("article", MetaData())}, "outbox_table"),
        ({"on_outage": "ignore"}, "on_outage="),
        ({"on_outage": "defer", "outbox": None}, "outbox"),
    ],
    ids=lambda value: re.sub(r"\W+", " ", value) if isinstance(value, str) else "-".join(value),
)
def test_tracking_refuses_what_cannot_be(options: dict[str, Any], message: str) -> None:
    base = article_models()
    wanted = {"embedders": {"counting": CountingEmbedder()}, "outbox": base.outbox, "models": base, **options}
    with pytest.raises(InvalidOption, match=message):
        track(sessionmaker(), **wanted)


@pytest.mark.backends("pysqlite3", "sqlite_stdlib", "psycopg", "asyncpg")
def test_a_flush_without_its_embedder_says_which(tracked: Make) -> None:
    base = article_models()
    t = tracked(base, CountingEmbedder())
    untrack(t.sessions)
    track(t.sessions, embedders={"other": CountingEmbedder()}, outbox=base.outbox, models=base)
    with pytest.raises(InvalidOption, match=r"Article\.embedding needs an embedder named 'counting', got other"):
        t.run(lambda s: s.add(base.Article(id=1, title="a")))
    assert t.untracked(lambda s: s.scalars(select(base.Article)).all()) == []


def test_a_worker_needs_embedders_and_an_outbox() -> None:
    base = article_models("worker")
    with pytest.raises(InvalidOption, match="has no embedders"):
        Worker(sessionmaker(), outbox=base.outbox, models=base)
    with pytest.raises(InvalidOption, match="has no outbox"):
        Worker(sessionmaker(), embedders={"counting": CountingEmbedder()}, models=base)
    with pytest.raises(InvalidOption, match="expected a sessionmaker"):
        Worker("sqlite://", embedders={"counting": CountingEmbedder()}, outbox=base.outbox)


@pytest.mark.parametrize("name", ["", "a;b\0", 'a"b' + "x" * 70, "a\nb"])
def test_an_outbox_has_a_name_that_can_be(name: str) -> None:
    with pytest.raises(InvalidOption):
        outbox_table(MetaData(), name)


def test_two_models_of_one_table_are_told_apart_by_name() -> None:
    one, two = article_models("worker"), article_models("worker")
    with pytest.raises(InvalidDeclaration, match="two models have a table article"):
        Worker(
            sessionmaker(),
            embedders={"counting": CountingEmbedder()},
            outbox=one.outbox,
            models=[one.Article, two.Article],
        )
