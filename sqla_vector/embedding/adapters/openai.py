"""Text vectors by any server that speaks OpenAI's embeddings protocol."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from sqla_vector.embedding.adapters.http import HttpClient, HttpEmbedder, estimate_tokens
from sqla_vector.exc import EmbedderError, InvalidOption

__all__ = ["OpenAIEmbedder"]


class OpenAIEmbedder(HttpEmbedder):
    """An embedder over ``POST <base_url>/embeddings``, as OpenAI and many model servers have it.

    Args:
        model: the model's name, as the server knows it and as fingerprints have it.
        dimensions: the dimension of the vectors.
        version: the model's version; another one makes rows be embedded anew.
        base_url: up to and without ``/embeddings``.
        api_key: sent as a bearer token, and shown nowhere.
        send_dimensions: whether to ask the server for this dimension, which only some models can shorten to.
        encoding_format: how the server is asked to write numbers; ``base64`` is a quarter of the length of ``float``,
            which servers that refuse it know.
        max_texts: texts in one request at most.
        max_tokens: tokens in one request at most, by ``count_tokens``; None for no limit.
        count_tokens: counts the tokens of a text; by default an estimate.
        timeout: seconds for one request.
        attempts: how often a request is made at most; after 429 and 5xx, and without an answer, it is repeated,
            after the time that the server asks for (Retry-After) or growing random ones.
        max_wait: seconds to wait at most between two attempts.  A server that asks for more is not asked again, and
            :class:`sqla_vector.exc.EmbedderUnavailable` says how long it asked for.
        query_prefix: what the model wants before a query, such as ``"search_query: "``.
    """

    def __init__(
        self,
        model: str,
        *,
        dimensions: int,
        version: str = "1",
        base_url: str = "https://api.openai.com/v1",
        api_key: str | None = None,
        send_dimensions: bool = False,
        encoding_format: Literal["base64", "float"] = "base64",
        max_texts: int = 256,
        max_tokens: int | None = 100_000,
        count_tokens: Callable[[str], int] = estimate_tokens,
        timeout: float = 30.0,
        attempts: int = 5,
        max_wait: float = 60.0,
        query_prefix: str = "",
    ) -> None:
        if encoding_format not in ("base64", "float"):
            raise InvalidOption(f'encoding_format is "base64" or "float", got {encoding_format!r}')
        super().__init__(
            model,
            dimensions=dimensions,
            version=version,
            client=HttpClient(base_url, api_key=api_key, timeout=timeout, attempts=attempts, max_wait=max_wait),
            max_texts=max_texts,
            query_prefix=query_prefix,
            max_tokens=max_tokens,
            count_tokens=count_tokens,
        )
        self._send_dimensions = send_dimensions
        self._encoding_format = encoding_format

    def _vectors(self, texts: list[str]) -> Sequence[Any]:
        body: dict[str, Any] = {"model": self.name, "input": texts, "encoding_format": self._encoding_format}
        if self._send_dimensions:
            body["dimensions"] = self.dimensions
        answer = self._post("embeddings", body, len(texts))
        try:
            items = sorted(answer["data"], key=lambda item: item["index"])
            numbers = [item["index"] for item in items]
            vectors = [_decoded(item["embedding"]) for item in items]
        except (KeyError, TypeError, ValueError) as error:
            raise EmbedderError(f"{self.name} answered what is no list of embeddings: {error!r}") from error
        if numbers != list(range(len(numbers))):
            raise EmbedderError(f"{self.name} numbered its vectors so that their texts are not known: {numbers[:9]}")
        return vectors


def _decoded(embedding: Any) -> Any:
    """Return a vector sent as base64 of little-endian float32, or by a server that does not know it, as numbers."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4")
    return embedding
