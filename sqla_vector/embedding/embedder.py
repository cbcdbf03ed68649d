"""What makes vectors from texts: the protocol, and the check of every answer."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from sqla_vector.embedding.fingerprint import Model
from sqla_vector.embedding.quoting import without_texts
from sqla_vector.exc import EmbedderError, EmbedderUnavailable, InvalidOption
from sqla_vector.values import as_matrix

__all__ = ["CallableEmbedder", "Embedder", "aembed", "checked", "embed", "model_of", "runs_in_greenlet"]


@runtime_checkable
class Embedder(Protocol):
    """What the package asks of an embedder; anything with these four will do."""

    @property
    def name(self) -> str:
        """The model's name, as fingerprints have it."""

    @property
    def version(self) -> str:
        """The model's version: another one makes other vectors, so that rows are embedded anew."""

    @property
    def dimensions(self) -> int:
        """The dimension of the vectors."""

    def embed(self, texts: list[str]) -> Any:
        """Return the vectors of texts, shape (len(texts), dimensions), or an awaitable of them."""


@dataclass(frozen=True)
class CallableEmbedder:
    """Makes an embedder of any function.

    Args:
        function: is given a list of texts and returns their vectors, shape (len(texts), dimensions); it may be
            asynchronous.
        name: the model's name.
        version: the model's version.
        dimensions: the dimension of the vectors.
        query_prefix: what the model wants before a query, such as ``"query: "``.
    """

    function: Callable[[list[str]], Any]
    name: str
    version: str
    dimensions: int
    query_prefix: str = ""

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InvalidOption(f"an embedder needs a function from texts to vectors, got {self.function!r}")
        model_of(self)

    def embed(self, texts: list[str]) -> Any:
        """Call the function."""
        return self.function(texts)


def model_of(embedder: Embedder) -> Model:
    """Return an embedder's model.

    Raises:
        InvalidOption: it is no embedder, or its name, version or dimension cannot be one.
    """
    missing = [name for name in ("name", "version", "dimensions", "embed") if not hasattr(embedder, name)]
    if missing:
        raise InvalidOption(
            f"{type(embedder).__name__} is no embedder: it has no {' and no '.join(missing)}; "
            "wrap a function in CallableEmbedder(function, name=..., version=..., dimensions=...)"
        )
    dimensions = embedder.dimensions
    if isinstance(dimensions, bool) or not isinstance(dimensions, int) or dimensions < 1:
        raise InvalidOption(f"the embedder {embedder.name} must say its dimensions, got {dimensions!r}")
    return Model(embedder.name, embedder.version)


_LOOP: ContextVar[asyncio.AbstractEventLoop | None] = ContextVar("sqla_vector_loop", default=None)
"""The event loop that waits for the thread in which an embedder runs."""


def embed(embedder: Embedder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Return the vectors of texts, float32 of shape (len(texts), dimensions), checked.

    In the greenlet of an AsyncSession the event loop goes on meanwhile, as with :func:`aembed`.  Elsewhere an
    asynchronous embedder is awaited in an event loop of its own.

    Args:
        embedder: makes the vectors.
        texts: any number of texts.

    Raises:
        EmbedderUnavailable: the embedder cannot be reached or has no capacity now.
        EmbedderError: it failed, or answered with the wrong number of vectors, the wrong dimension, NaN or
            infinity.  Nothing of such an answer is used.  Also: it is asynchronous, and this is called from a
            coroutine, which has :func:`aembed`.
    """
    if runs_in_greenlet():
        return await_only(aembed(embedder, texts))
    wanted = _listed(texts)
    if not wanted:
        return np.empty((0, embedder.dimensions), np.float32)
    try:
        answer = embedder.embed(wanted)
        if inspect.isawaitable(answer):
            answer = _wait(answer, embedder.name)
    except Exception as error:
        raise _failure(embedder, error, wanted) from error
    return _answered(embedder, answer, wanted)


async def aembed(embedder: Embedder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Return the same as :func:`embed`; an embedder that is not asynchronous runs in a thread."""
    wanted = _listed(texts)
    if not wanted:
        return np.empty((0, embedder.dimensions), np.float32)
    token = _LOOP.set(asyncio.get_running_loop())
    try:
        if inspect.iscoroutinefunction(embedder.embed):
            answer = await embedder.embed(wanted)
        else:
            answer = await asyncio.to_thread(embedder.embed, wanted)
            if inspect.isawaitable(answer):
                answer = await answer
    except Exception as error:
        raise _failure(embedder, error, wanted) from error
    finally:
        _LOOP.reset(token)
    return _answered(embedder, answer, wanted)


def checked(embedder: Embedder, answer: Any, count: int) -> NDArray[np.float32]:
    """Return an embedder's answer as a matrix, or refuse all of it."""
    where = f"the embedder {embedder.name}"
    try:
        matrix = as_matrix(answer, embedder.dimensions, where)
    except Exception as error:  # the answer may be anything, and fail in any way when it is looked at
        raise EmbedderError(f"{where} gave what are no vectors: {error}") from error
    if len(matrix) != count:
        raise EmbedderError(f"{where} was given {count:,} texts and gave {len(matrix):,} vectors")
    return matrix


def _listed(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):
        raise InvalidOption("texts are embedded in a list; for one text give [text]")
    return list(texts)


def _answered(embedder: Embedder, answer: Any, texts: Sequence[str]) -> NDArray[np.float32]:
    try:
        return checked(embedder, answer, len(texts))
    except EmbedderError as error:
        raise _failure(embedder, error, texts) from error.__cause__


def _failure(embedder: Embedder, error: Exception, texts: Sequence[str]) -> EmbedderError:
    """Return what is raised: an error that says nothing of the texts."""
    if isinstance(error, EmbedderError):
        error.args = (without_texts(str(error), texts),)
        return error
    # Python's own errors of a lost connection and of a time limit say nothing about the texts.
    kind = EmbedderUnavailable if isinstance(error, (ConnectionError, TimeoutError)) else EmbedderError
    said = without_texts(str(error), texts)
    return kind(f"the embedder {embedder.name} failed: {type(error).__name__}: {said}")


def _wait(answer: Awaitable[Any], name: str) -> Any:
    async def run() -> Any:
        return await answer

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        loop = _LOOP.get()
        if loop is None:
            return asyncio.run(run())
        # In the thread of aembed(), below a wrapper such as a cache: clients belong to the loop that they began in.
        return asyncio.run_coroutine_threadsafe(run(), loop).result()
    if inspect.iscoroutine(answer):
        answer.close()
    raise EmbedderError(
        f"the embedder {name} is asynchronous and embed() was called from a coroutine, where it cannot wait; "
        "use await aembed(), or an AsyncSession"
    )


def runs_in_greenlet() -> bool:
    """Tell whether this is called in the greenlet of an AsyncSession, where :func:`await_only` waits."""
    try:
        return in_greenlet()
    except (ImportError, ValueError):  # the latter from SQLAlchemy 2.0; without greenlet there is no AsyncSession
        return False
