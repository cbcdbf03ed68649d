"""Text vectors by Ollama, a server for models on one's own machine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sqla_vector.embedding.adapters.http import HttpClient, HttpEmbedder
from sqla_vector.exc import EmbedderError

__all__ = ["OllamaEmbedder"]


class OllamaEmbedder(HttpEmbedder):
    """An embedder over ``POST <base_url>/api/embed`` (Ollama 0.3 and newer).

    Args:
        model: the model's name, as ``ollama list`` shows it.
        dimensions: the dimension of its vectors.
        version: the model's version; another one makes rows be embedded anew.
        base_url: where the server listens.
        max_texts: texts in one request at most.
        timeout: seconds for one request; the first one may have to load the model.
        attempts: how often a request is made at most.
        max_wait: seconds to wait at most between two attempts.
    """

    def __init__(
        self,
        model: str,
        *,
        dimensions: int,
        version: str = "1",
        base_url: str = "http://127.0.0.1:11434",
        max_texts: int = 64,
        timeout: float = 120.0,
        attempts: int = 3,
        max_wait: float = 10.0,
    ) -> None:
        super().__init__(
            model,
            dimensions=dimensions,
            version=version,
            client=HttpClient(base_url, headers={}, timeout=timeout, attempts=attempts, max_wait=max_wait),
            max_texts=max_texts,
        )

    def _request(self, texts: list[str]) -> NDArray[np.float32]:
        # truncate=False: a text that is too long is refused, not cut in silence.
        answer = self._client.post("api/embed", {"model": self.name, "input": texts, "truncate": False})
        try:
            found = np.asarray(answer["embeddings"], dtype=np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise EmbedderError(f"{self.name} answered what is no list of embeddings: {error!r}") from error
        if found.shape != (len(texts), self.dimensions):
            wanted = (len(texts), self.dimensions)
            raise EmbedderError(f"{self.name} gave vectors of shape {found.shape}, not of {wanted}")
        return found
