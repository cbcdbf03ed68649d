"""What makes vectors from texts: the protocol, and the check of every answer."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from sqla_vector.embedding.fingerprint import Model
from sqla_vector.exc import EmbedderError, InvalidOption, VectorError
from sqla_vector.values import as_matrix

__all__ = ["CallableEmbedder", "Embedder", "aembed", "checked", "embed", "model_of"]


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
    """

    function: Callable[[list[str]], Any]
    name: str
    version: str
    dimensions: int

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


def embed(embedder: Embedder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Return the vectors of texts, float32 of shape (len(texts), dimensions), checked.

    An asynchronous embedder is awaited: in the event loop of the AsyncSession that is flushing, or in one of its own.

    Raises:
        EmbedderError: the embedder failed, or answered with the wrong number of vectors, the wrong dimension, NaN
            or infinity.  Nothing of such an answer is used.
    """
    if not texts:
        return np.empty((0, embedder.dimensions), np.float32)
    try:
        answer = embedder.embed(list(texts))
        if inspect.isawaitable(answer):
            answer = _wait(answer)
    except VectorError:
        raise
    except Exception as error:
        raise EmbedderError(f"the embedder {embedder.name} failed: {type(error).__name__}: {error}") from error
    return checked(embedder, answer, len(texts))


async def aembed(embedder: Embedder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Return the same as :func:`embed`; an embedder that is not asynchronous runs in a thread."""
    if not texts:
        return np.empty((0, embedder.dimensions), np.float32)
    try:
        if inspect.iscoroutinefunction(embedder.embed):
            answer = await embedder.embed(list(texts))
        else:
            answer = await asyncio.to_thread(embedder.embed, list(texts))
            if inspect.isawaitable(answer):
                answer = await answer
    except VectorError:
        raise
    except Exception as error:
        raise EmbedderError(f"the embedder {embedder.name} failed: {type(error).__name__}: {error}") from error
    return checked(embedder, answer, len(texts))


def checked(embedder: Embedder, answer: Any, count: int) -> NDArray[np.float32]:
    """Return an embedder's answer as a matrix, or refuse all of it."""
    where = f"the embedder {embedder.name}"
    try:
        matrix = as_matrix(answer, embedder.dimensions, where)
    except VectorError as error:
        raise EmbedderError(f"{where} gave what are no vectors: {error}") from error
    if len(matrix) != count:
        raise EmbedderError(f"{where} was given {count:,} texts and gave {len(matrix):,} vectors")
    return matrix


def _wait(answer: Awaitable[Any]) -> Any:
    if in_greenlet():
        return await_only(answer)

    async def run() -> Any:
        return await answer

    return asyncio.run(run())
