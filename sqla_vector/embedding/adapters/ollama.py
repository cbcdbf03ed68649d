"""Text vectors by Ollama, a server for models on one's own machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
        api_key: sent as a bearer token, for a server behind a gateway that asks for one; it is shown nowhere.
        max_texts: texts in one request at most.
        timeout: seconds for one request; the first one may have to load the model.
        attempts: how often a request is made at most.
        max_wait: seconds to wait at most between two attempts.
        query_prefix: what the model wants before a query, such as ``"search_query: "``.
    """

    def __init__(
        self,
        model: str,
        *,
        dimensions: int,
        version: str = "1",
        base_url: str = "http://127.0.0.1:11434",
        api_key: str | None = None,
        max_texts: int = 64,
        timeout: float = 120.0,
        attempts: int = 3,
        max_wait: float = 10.0,
        query_prefix: str = "",
    ) -> None:
        super().__init__(
            model,
            dimensions=dimensions,
            version=version,
            client=HttpClient(base_url, api_key=api_key, timeout=timeout, attempts=attempts, max_wait=max_wait),
            max_texts=max_texts,
            query_prefix=query_prefix,
        )

    def _vectors(self, texts: list[str]) -> Sequence[Any]:
        # truncate=False: a text that is too long is refused, not cut in silence.
        answer = self._post("api/embed", {"model": self.name, "input": texts, "truncate": False}, len(texts))
        found = answer.get("embeddings") if isinstance(answer, dict) else None
        if not isinstance(found, list):
            raise EmbedderError(f"{self.name} answered what is no list of embeddings")
        return found
