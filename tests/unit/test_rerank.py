"""Reranking hits in Python, and what rerank() and its boosts refuse before any I/O."""

from __future__ import annotations

import asyncio
import threading
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest
from sqlalchemy import DateTime, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_vector import InvalidOption, InvalidStatement, Vector, nearest, nearest_each
from sqla_vector.exc import EmbedderUnavailable, RerankerError
from sqla_vector.search import (
    Hit,
    arerank_hits,
    hybrid,
    recency,
    rerank,
    rerank_hits,
    saturation,
    score_of,
    vector_part,
)

HITS = [Hit(number, 0.1, 0.9, f"text {number}", None) for number in range(5)]


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    votes: Mapped[int]
    published: Mapped[datetime | None] = mapped_column(DateTime)
    embedding: Mapped[np.ndarray] = mapped_column(Vector(3))


FOUND = nearest(select(Item), Item.embedding, [1, 0, 0], k=5)


class ByNumber:
    """A reranker: the text's number decides, the larger the better."""

    def __repr__(self) -> str:
        return "ByNumber()"

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []
        self.threads: set[str] = set()

    def score(self, query: str, texts: list[str]) -> Any:
        self.asked.append((query, texts))
        self.threads.add(threading.current_thread().name)
        return [float(text.split()[-1]) for text in texts]


class ByNumberAsync(ByNumber):
    async def score(self, query: str, texts: list[str]) -> Any:
        await asyncio.sleep(0)
        return super().score(query, texts)


@pytest.mark.parametrize("kind", [ByNumber, ByNumberAsync])
def test_hits_are_in_the_order_of_their_new_scores(kind: type[ByNumber]):
    reranker = kind()
    found = rerank_hits(HITS, reranker, query="numbers", k=3)
    assert [(hit.entity, hit.score) for hit in found] == [(4, 4.0), (3, 3.0), (2, 2.0)]
    assert reranker.asked == [("numbers", [f"text {number}" for number in range(5)])]
    assert asyncio.run(arerank_hits(HITS, kind(), query="numbers", k=3)) == found
    assert [hit.score for hit in HITS] == [None] * 5


def test_a_synchronous_reranker_does_not_block_the_event_loop():
    reranker = ByNumber()
    asyncio.run(arerank_hits(HITS, reranker, query="numbers"))
    assert threading.current_thread().name not in reranker.threads


def test_a_function_of_hits_is_a_reranker():
    assert [hit.entity for hit in rerank_hits(HITS, lambda hits: [-hit.entity % 3 for hit in hits])] == [1, 4, 2, 0, 3]

    async def later(hits: Any) -> Any:
        return np.array([hit.entity for hit in hits])

    assert [hit.entity for hit in rerank_hits(HITS, later)] == [4, 3, 2, 1, 0]
    assert [hit.entity for hit in asyncio.run(arerank_hits(HITS, later, k=1))] == [4]
    assert [hit.entity for hit in asyncio.run(arerank_hits(HITS, lambda hits: later(hits), k=1))] == [4]


def test_hits_without_a_text_come_last_in_their_order():
    hits = [Hit(number, 0.1, 0.9, None if number % 2 else f"t {number}", None) for number in range(5)]
    found = rerank_hits(hits, ByNumber(), query="q")
    assert [(hit.entity, hit.score) for hit in found] == [(4, 4.0), (2, 2.0), (0, 0.0), (1, None), (3, None)]
    found = rerank_hits(hits, ByNumber(), query="q", text=lambda hit: f"own {-hit.entity}")
    assert [hit.entity for hit in found] == [0, 1, 2, 3, 4]
    reranker = ByNumber()
    nothing = [Hit(1, 0.1, 0.9, None, None)]
    assert rerank_hits(nothing, reranker, query="q") == asyncio.run(arerank_hits(nothing, reranker, query="q"))
    assert rerank_hits([], reranker, query="q") == []
    assert reranker.asked == []


ANSWERS = [
    [1.0, 2.0],
    [1.0] * 6,
    [],
    [1.0, 2.0, float("nan"), 3.0, 4.0],
    [1.0, 2.0, float("inf"), 3.0, 4.0],
    ["1", "2", "3", "4", "5"],
    [True, False, True, False, True],
    [None] * 5,
    [[1.0]] * 5,
    [1j] * 5,
    [[1.0], [1.0, 2.0], [], [], []],
    1.0,
    None,
    "12345",
    {"scores": [1, 2, 3, 4, 5]},
]


@pytest.mark.parametrize("answer", ANSWERS, ids=repr)
def test_an_answer_that_is_no_score_for_each_hit_is_refused_whole(answer: Any):
    before = list(HITS)
    with pytest.raises(RerankerError, match=r"the reranker <lambda> gave|was given 5 hits"):
        rerank_hits(HITS, lambda hits: answer)
    with pytest.raises(RerankerError):
        asyncio.run(arerank_hits(HITS, lambda hits: answer))
    assert before == HITS


def test_an_error_of_the_reranker_tells_no_text():
    class Failing:
        name = "mine"

        def score(self, query: str, texts: list[str]) -> Any:
            raise ValueError(f"cannot score {texts}")

    with pytest.raises(RerankerError) as found:
        rerank_hits(HITS, Failing(), query="q")
    assert str(found.value) == "the reranker mine failed: ValueError"
    assert isinstance(found.value.__cause__, ValueError)
    with pytest.raises(RerankerError, match="mine failed"):
        asyncio.run(arerank_hits(HITS, Failing(), query="q"))


def test_an_error_of_the_package_stays_what_it_is():
    def unavailable(hits: Any) -> Any:
        raise EmbedderUnavailable("later", 3.0)

    with pytest.raises(EmbedderUnavailable, match="later"):
        rerank_hits(HITS, unavailable)


def test_an_asynchronous_reranker_cannot_wait_in_a_coroutine():
    async def program() -> None:
        rerank_hits(HITS, ByNumberAsync(), query="q")

    with pytest.raises(RerankerError, match=r"asearch\(\)"):
        asyncio.run(program())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"reranker": ByNumber()}, "give query="),
        ({"reranker": ByNumber(), "query": 3}, "give query="),
        ({"reranker": "mine", "query": "q"}, "is neither"),
        ({"reranker": None}, "is neither"),
        ({"reranker": ByNumber(), "query": "q", "k": 0}, "k must be"),
        ({"reranker": ByNumber(), "query": "q", "k": True}, "k must be"),
    ],
    ids=str,
)
def test_what_is_no_reranker_is_refused(options: dict[str, Any], match: str):
    with pytest.raises(InvalidOption, match=match):
        rerank_hits(HITS, **options)


@pytest.mark.parametrize("k", [0, -1, 6, 2.5, True, None, "3"])
def test_rerank_takes_at_most_the_candidates(k: Any):
    with pytest.raises(InvalidOption, match="k must be a whole number from 1 to 5"):
        rerank(FOUND, Item.votes, k=k)


@pytest.mark.parametrize("by", [None, 1, "votes", [1], Item, select(Item.votes)], ids=str)
def test_rerank_sorts_by_an_expression(by: Any):
    with pytest.raises(InvalidOption, match="by= takes an SQL expression"):
        rerank(FOUND, by, k=3)


def test_rerank_takes_a_search():
    for stmt in (select(Item), select(Item).order_by(Item.id).limit(3), "select 1", None):
        with pytest.raises(InvalidStatement, match="made by nearest"):
            rerank(stmt, Item.votes)  # type: ignore[arg-type]
    with pytest.raises(InvalidStatement, match="OFFSET already"):
        rerank(FOUND.offset(3), Item.votes, k=3)
    with pytest.raises(InvalidStatement, match="one vector"):
        rerank(nearest_each(select(Item), Item.embedding, [[1, 0, 0]]), Item.votes)
    with pytest.raises(InvalidStatement, match="reranked already"):
        rerank(rerank(FOUND, Item.votes, k=4), Item.votes, k=3)
    with pytest.raises(InvalidStatement):
        score_of(select(Item))
    assert score_of(hybrid(select(Item), parts=[vector_part(Item.embedding, [1, 0, 0])])).name == "score"


@pytest.mark.parametrize(
    "make",
    [
        lambda: recency(Item.votes, timedelta(days=1)),
        lambda: recency("published", timedelta(days=1)),
        lambda: recency(select(Item.published), timedelta(days=1)),
        lambda: recency(Item.published, timedelta(0)),
        lambda: recency(Item.published, timedelta(days=-1)),
        lambda: recency(Item.published, 30),
        lambda: recency(Item.published, timedelta(days=1), now="today"),
        lambda: recency(Item.published, timedelta(days=1), missing=2),
        lambda: recency(Item.published, timedelta(days=1), missing=float("nan")),
        lambda: recency(Item.published, timedelta(days=1), missing=True),
        lambda: saturation(Item.votes, 0),
        lambda: saturation(Item.votes, float("inf")),
        lambda: saturation(Item.votes, float("nan")),
        lambda: saturation(Item.votes, True),
        lambda: saturation("votes", 3),
    ],
)
def test_a_boost_that_cannot_be_is_refused(make: Any):
    with pytest.raises(InvalidOption):
        make()


def test_boosts_read_as_what_they_are():
    assert "half_life(item.published" in str(recency(Item.published, timedelta(days=1)))
    assert "half_life(now()" in str(recency(func.now(), timedelta(days=1)))
