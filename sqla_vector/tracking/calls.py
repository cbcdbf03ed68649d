"""Calls of embedders as workers make them: within limits, and halving a batch that fails."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from sqla_vector.embedding import Embedder
from sqla_vector.embedding.embedder import model_of
from sqla_vector.exc import EmbedderError, EmbedderUnavailable
from sqla_vector.tracking.events import TextsEmbedded
from sqla_vector.tracking.limits import Limits
from sqla_vector.tracking.observe import Watch
from sqla_vector.tracking.steps import Embedding, Steps

__all__ = ["Calls", "Made"]

Made = dict[str, NDArray[Any] | str]
"""What became of texts: their vectors, or why they have none."""


@dataclass(frozen=True)
class Calls:
    """Calls embedders.

    Args:
        limits: how much may be used.
        timeout: seconds after which a call counts as failed; None waits.
        watch: is told of calls.
        origin: who makes them.
    """

    limits: Limits
    timeout: float | None
    watch: Watch
    origin: Literal["worker", "backfill"]

    def embed(
        self, name: str, embedder: Embedder, texts: list[str], made: Made, until: float | None = None
    ) -> Steps[None]:
        """Embed texts, in parts that the limits allow; those that fail are halved until the one is found that does.

        Args:
            name: by which models call the embedder.
            embedder: makes the vectors.
            texts: each once.
            made: gets what was made, also of the parts before one at which this ends with an error.
            until: when to give up waiting for a share, by :func:`time.monotonic`.

        Raises:
            EmbedderUnavailable: the embedder cannot be reached, or there is no share of it in time.
        """
        while texts:
            number = yield from self.limits.share(name, texts, until)
            part, texts = texts[:number], texts[number:]
            model, started = str(model_of(embedder)), time.perf_counter()
            try:
                with self.watch.span(f"sqla_vector.{self.origin}.embed", texts=len(part), model=model):
                    vectors = yield Embedding(embedder, part, self.timeout)
            except EmbedderUnavailable:
                raise
            except EmbedderError as error:
                if len(part) == 1:
                    made[part[0]] = str(error)
                    continue
                middle = len(part) // 2
                yield from self.embed(name, embedder, part[:middle], made, until)
                yield from self.embed(name, embedder, part[middle:], made, until)
            else:
                seconds = time.perf_counter() - started
                yield from self.watch.tell(TextsEmbedded(self.origin, model, len(part), seconds))
                made.update(zip(part, vectors, strict=True))
