"""Scores of texts for a query by a server: the protocol of Cohere, Jina and those that are compatible."""

from __future__ import annotations

from typing import Final

from sqla_vector.embedding.adapters.http import HttpClient, HttpModel
from sqla_vector.exc import EmbedderError, EmbedderUnavailable, InvalidOption, RerankerError, RerankerUnavailable
from sqla_vector.schema import check_whole_number

__all__ = ["HttpReranker"]

_OVERHEAD: Final = 1_000_000
_BYTES_PER_RESULT: Final = 400
"""What one result may take in an answer beside its text, which some servers send back."""


class HttpReranker(HttpModel):
    """A reranker over ``POST <base_url>/<path>``, for :func:`sqla_vector.search`.

    Args:
        model: the model's name.
        base_url: where the server listens, such as ``https://api.cohere.com/v2`` or ``https://api.jina.ai/v1``.
        api_key: sent as a bearer token; it is shown nowhere.
        path: what follows ``base_url``.
        max_texts: texts in one request at most; scores of one query are comparable between requests.
        timeout: seconds for one request.
        attempts: how often a request is made at most.
        max_wait: seconds to wait at most between two attempts.

    Raises:
        ExtensionMissing: httpx is not installed.
        InvalidOption: an option out of its range, a URL that cannot be one, a key that cannot be sent.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str,
        api_key: str | None = None,
        path: str = "rerank",
        max_texts: int = 100,
        timeout: float = 30.0,
        attempts: int = 3,
        max_wait: float = 10.0,
    ) -> None:
        if not isinstance(model, str) or not model:
            raise InvalidOption(f"model= is the name of the server's model, got {model!r}")
        if not isinstance(path, str) or not path.strip("/") or "?" in path or "#" in path or ".." in path:
            raise InvalidOption(f"path= is what follows base_url, such as rerank, got {path!r}")
        self.name = model
        self._path = path.strip("/")
        self._max_texts = check_whole_number(max_texts, "max_texts", 1, 10_000)
        self._client = HttpClient(base_url, api_key=api_key, timeout=timeout, attempts=attempts, max_wait=max_wait)

    def score(self, query: str, texts: list[str]) -> list[float]:
        """Return a score for each text, larger is better.

        Raises:
            RerankerUnavailable: the server does not answer, or asks to try later, or refuses the key or the model.
            RerankerError: the server refuses the texts, or its answer is not what the protocol says.
        """
        scores: list[float] = []
        for start in range(0, len(texts), self._max_texts):
            scores += self._scores(query, texts[start : start + self._max_texts])
        return scores

    def _scores(self, query: str, texts: list[str]) -> list[float]:
        body = {"model": self.name, "query": query, "documents": texts}
        # A character takes up to 12 bytes where JSON has it as two escapes.
        most = _OVERHEAD + len(texts) * _BYTES_PER_RESULT + 12 * sum(map(len, texts))
        try:
            answer = self._client.post(self._path, body, most)
        except EmbedderUnavailable as error:
            raise RerankerUnavailable(f"{error}", error.retry_after) from None
        except EmbedderError as error:
            raise RerankerError(f"{error}") from None
        found = answer.get("results") if isinstance(answer, dict) else None
        if not isinstance(found, list) or len(found) != len(texts):
            raise RerankerError(f"{self.name} answered what is no list of {len(texts):,} results")
        scores: dict[int, float] = {}
        for one in found:
            index, score = (one.get("index"), one.get("relevance_score")) if isinstance(one, dict) else (None, None)
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(texts) or index in scores:
                raise RerankerError(f"{self.name} answered with a result that is of no text, or of one twice")
            if isinstance(score, bool) or not isinstance(score, (int, float)):
                raise RerankerError(f"{self.name} answered with a result that has no relevance_score")
            scores[index] = float(score)
        return [scores[index] for index in range(len(texts))]
