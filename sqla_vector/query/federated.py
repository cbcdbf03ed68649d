"""One query to several databases and indexes, with one answer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import isawaitable, iscoroutine
from typing import Any, Generic, TypeVar

from sqlalchemy.inspection import inspect

from sqla_vector.exc import InvalidOption, InvalidQuery
from sqla_vector.query.vector_query import VectorQuery
from sqla_vector.search import Hit

__all__ = ["FederatedHit", "Source", "afederated", "federated"]

T = TypeVar("T")

Source = Callable[[VectorQuery], Any]
"""Runs a query and returns its hits: ``partial(articles.search, session)``; for :func:`afederated` awaitable."""


@dataclass(frozen=True, slots=True)
class FederatedHit(Generic[T]):
    """A hit, and where it was found."""

    hit: Hit[T]
    source: str
    """The name of the source; of several that found the same row, the one where it is most similar."""


def federated(sources: Mapping[str, Source], query: VectorQuery) -> list[FederatedHit[Any]]:
    """Ask several sources the same, one after the other, and return the most similar hits of all.

    Similarities of one metric are the same numbers on every database, so hits can be compared by them; scores of
    texts and of fusions cannot.  A row that several sources have (the same class and primary key) comes once.

    Args:
        sources: by name: what runs a query, for example ``partial(articles.search, session)``.
        query: for one vector, or one text to be near.

    Raises:
        InvalidQuery: the query has no similarity to merge by.
        InvalidOption: ``sources`` is none.
    """
    _check(sources, query)
    return _merged({name: _hits(name, source(query)) for name, source in sources.items()}, query)


async def afederated(
    sources: Mapping[str, Callable[[VectorQuery], Awaitable[Sequence[Hit[Any]]]]], query: VectorQuery
) -> list[FederatedHit[Any]]:
    """Return the same as :func:`federated`; all sources are asked at once, each needs a session of its own."""
    _check(sources, query)

    async def ask(name: str, source: Source) -> Sequence[Hit[Any]]:
        answer = source(query)
        if not isawaitable(answer):
            raise InvalidOption(f"the source {name!r} is not asynchronous: use federated()")
        return _hits(name, await answer)

    tasks = [asyncio.ensure_future(ask(name, source)) for name, source in sources.items()]
    try:
        answers = await asyncio.gather(*tasks)
    except BaseException:
        # The others would go on with sessions that the caller closes.
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    return _merged(dict(zip(sources, answers, strict=True)), query)


def _hits(name: str, answer: Any) -> Sequence[Hit[Any]]:
    if isawaitable(answer):
        if iscoroutine(answer):
            answer.close()
        raise InvalidOption(f"the source {name!r} is asynchronous: await afederated()")
    if not isinstance(answer, Sequence) or not all(isinstance(hit, Hit) for hit in answer):
        raise InvalidOption(f"the source {name!r} returns no list of hits, as search() does")
    return answer


def _check(sources: object, query: VectorQuery) -> None:
    if not isinstance(sources, Mapping) or not sources or not all(callable(source) for source in sources.values()):
        raise InvalidOption("sources= has functions by name: {'articles': partial(articles.search, session)}")
    if not isinstance(query, VectorQuery):
        raise InvalidQuery(f"expected a VectorQuery, got {type(query).__name__}")
    if len(query.near) != 1 or query.match or query.reranker is not None:
        raise InvalidQuery(
            "several sources are merged by similarity, which a search for one vector has, without a reranker"
        )


def _merged(answers: Mapping[str, Sequence[Hit[Any]]], query: VectorQuery) -> list[FederatedHit[Any]]:
    found = [FederatedHit(hit, name) for name, hits in answers.items() for hit in hits if hit.similarity is not None]
    # A stable sort: equal ones in the order of the sources, and in each as it has them.
    found.sort(key=_similarity)
    seen: set[Any] = set()
    merged = []
    for one in found:
        identity = _identity(one.hit.entity)
        if identity not in seen:
            seen.add(identity)
            merged.append(one)
    return merged[: query.k]


def _similarity(found: FederatedHit[Any]) -> float:
    similarity = found.hit.similarity
    assert similarity is not None
    return math.inf if math.isnan(similarity) else -similarity


def _identity(entity: Any) -> Any:
    state = inspect(entity, raiseerr=False)
    return id(entity) if state is None or state.key is None else state.key[:2]
