"""A second stage in Python: hits in, the same hits out in another order.

The answer of a reranker is used as a whole or not at all: a score for each hit, each a finite number.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from sqla_vector.exc import InvalidOption, RerankerError, VectorError
from sqla_vector.schema import check_whole_number

if TYPE_CHECKING:
    from sqla_vector.search.hits import Hit

__all__ = ["HitScorer", "Reranker", "arerank_hits", "rerank_hits"]

T = TypeVar("T")


@runtime_checkable
class Reranker(Protocol):
    """What scores texts for a query: a cross-encoder, or anything with this method."""

    def score(self, query: str, texts: list[str]) -> Any:
        """Return a number for each text, larger is better, or an awaitable of them."""


HitScorer = Callable[[Sequence[Any]], Any]
"""A function that is given hits and returns a number for each, larger is better, or an awaitable of them."""


def rerank_hits(
    hits: Sequence[Hit[T]],
    reranker: Reranker | HitScorer,
    *,
    query: str | None = None,
    k: int | None = None,
    text: Callable[[Hit[T]], str | None] | None = None,
) -> list[Hit[T]]:
    """Return the best hits by a reranker's score, best first; equal ones stay in their order.

    Args:
        hits: what a search found.
        reranker: a :class:`Reranker`, which is given ``query`` and the texts of the hits in one call, or a function of
            the hits.  It may be asynchronous.
        query: what was asked for, as a text.
        k: how many hits to return; all by default.
        text: returns the text of a hit; by default ``hit.text``.  Hits without a text come last, with no score.

    Raises:
        InvalidOption: no query for a reranker, ``k`` out of its range.
        RerankerError: it failed, or answered with the wrong number of scores, NaN or infinity.  Nothing of such an
            answer is used.
    """
    asked = _Asked(hits, reranker, query, k, text)
    if not asked.hits:
        return asked.ordered([])
    return asked.ordered(asked.guarded(lambda: _waited(asked.call(), asked.name)))


async def arerank_hits(
    hits: Sequence[Hit[T]],
    reranker: Reranker | HitScorer,
    *,
    query: str | None = None,
    k: int | None = None,
    text: Callable[[Hit[T]], str | None] | None = None,
) -> list[Hit[T]]:
    """Return the same as :func:`rerank_hits`; a reranker that is not asynchronous runs in a thread."""
    asked = _Asked(hits, reranker, query, k, text)
    if not asked.hits:
        return asked.ordered([])
    try:
        if inspect.iscoroutinefunction(asked.function):
            answer = await asked.call()
        else:
            answer = await asyncio.to_thread(asked.call)
            if inspect.isawaitable(answer):
                answer = await answer
    except Exception as error:
        raise asked.failure(error) from error
    return asked.ordered(answer)


class _Asked:
    """What a reranker is asked, and what becomes of its answer."""

    def __init__(
        self,
        hits: Sequence[Hit[Any]],
        reranker: Reranker | HitScorer,
        query: str | None,
        k: int | None,
        text: Callable[[Hit[Any]], str | None] | None,
    ) -> None:
        self._k = None if k is None else check_whole_number(k, "k", 1, 1_000_000)
        self._without: list[Hit[Any]] = []
        self.function: Callable[..., Any]
        self._arguments: tuple[Any, ...]
        if isinstance(reranker, Reranker):
            if not isinstance(query, str):
                raise InvalidOption("a reranker compares texts with what was asked for; give query=, a text")
            texts = [(hit, hit.text if text is None else text(hit)) for hit in hits]
            self.hits = [hit for hit, found in texts if found is not None]
            self._without = [hit for hit, found in texts if found is None]
            self.function = reranker.score
            self._arguments = (query, [found for _, found in texts if found is not None])
        elif callable(reranker):
            self.hits = list(hits)
            self.function = reranker
            self._arguments = (self.hits,)
        else:
            raise InvalidOption(
                f"rerank= takes an object with score(query, texts), or a function of hits; {reranker!r} is neither"
            )
        self.name = str(getattr(reranker, "name", None) or getattr(reranker, "__name__", type(reranker).__name__))

    def call(self) -> Any:
        return self.function(*self._arguments)

    def guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            raise self.failure(error) from error

    def failure(self, error: Exception) -> VectorError:
        """Return what is raised: an error that says nothing of the texts."""
        if isinstance(error, VectorError):
            return error
        return RerankerError(f"the reranker {self.name} failed: {type(error).__name__}")

    def ordered(self, answer: Any) -> list[Hit[Any]]:
        scores = _checked(answer, len(self.hits), self.name)
        scored = [replace(hit, score=score) for hit, score in zip(self.hits, scores, strict=True)]
        scored.sort(key=lambda hit: -(hit.score or 0.0))
        return [*scored, *(replace(hit, score=None) for hit in self._without)][: self._k]


def _checked(answer: Any, count: int, name: str) -> list[float]:
    try:
        found = np.asarray(answer)
    except Exception as error:  # the answer may be anything, and fail in any way when it is looked at
        raise RerankerError(f"the reranker {name} gave what are no scores: {type(error).__name__}") from error
    if found.shape != (count,):
        raise RerankerError(f"the reranker {name} was given {count:,} hits and gave scores of shape {found.shape}")
    if count and found.dtype.kind not in "fiu":
        raise RerankerError(f"the reranker {name} gave what are no numbers, but {found.dtype}")
    numbers = found.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise RerankerError(f"the reranker {name} gave NaN or infinity as a score")
    return [float(number) for number in numbers]


def _waited(answer: Any, name: str) -> Any:
    if not inspect.isawaitable(answer):
        return answer
    if _in_greenlet():
        return await_only(answer)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_awaited(answer))
    if inspect.iscoroutine(answer):
        answer.close()
    raise RerankerError(
        f"the reranker {name} is asynchronous and was called from a coroutine, where it cannot wait; use asearch()"
    )


async def _awaited(answer: Awaitable[Any]) -> Any:
    return await answer


def _in_greenlet() -> bool:
    try:
        return in_greenlet()
    except (ImportError, ValueError):  # the latter from SQLAlchemy 2.0; without greenlet there is no AsyncSession
        return False
