"""What the adapters over HTTP share: budgets, time limits, retries; no secret ever leaves but in its header."""

from __future__ import annotations

import email.utils
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from sqla_vector.embedding.embedder import model_of
from sqla_vector.exc import EmbedderError, EmbedderUnavailable, ExtensionMissing, InvalidOption
from sqla_vector.schema import check_whole_number

__all__ = ["HttpClient", "HttpEmbedder", "batches", "estimate_tokens"]

logger = logging.getLogger("sqla_vector.embedding")

_RETRIED: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Status codes that say nothing about the texts (RFC 9110; 529 is common for an overloaded model server)."""

_SHOWN: Final = 300
"""Characters of an error's body that a message shows."""


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a text has: one for four bytes, which English text has more than."""
    return len(text.encode()) // 4 + 1


def batches(
    texts: list[str], max_texts: int, max_tokens: int | None, count: Callable[[str], int]
) -> Iterator[list[str]]:
    """Yield texts in order, in requests that keep both budgets; one text over the budget goes alone."""
    batch: list[str] = []
    tokens = 0
    for text in texts:
        wanted = count(text) if max_tokens is not None else 0
        if batch and (len(batch) == max_texts or (max_tokens is not None and tokens + wanted > max_tokens)):
            yield batch
            batch, tokens = [], 0
        batch.append(text)
        tokens += wanted
    if batch:
        yield batch


class HttpClient:
    """Posts JSON, and tries again where that may help.

    Args:
        base_url: an ``http`` or ``https`` URL without user name and password.
        headers: sent with every request; their values appear in no message and no log.
        timeout: seconds for one request, from connecting to the last byte read.
        attempts: how often a request is made at most.
        max_wait: seconds to wait at most between two attempts, also if the server asks for more.
    """

    def __init__(
        self, base_url: str, *, headers: Mapping[str, str], timeout: float, attempts: int, max_wait: float
    ) -> None:
        self.base_url = _checked_url(base_url)
        self._attempts = check_whole_number(attempts, "attempts", 1, 100)
        self._max_wait = _positive(max_wait, "max_wait")
        try:
            import httpx
        except ImportError as error:
            raise ExtensionMissing("embedders over HTTP need httpx: pip install 'sqla-vector[http]'") from error
        self._httpx = httpx
        self._client = httpx.Client(headers=dict(headers), timeout=_positive(timeout, "timeout"))

    def __repr__(self) -> str:
        return f"HttpClient({self.base_url!r})"

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON of the answer.

        Raises:
            EmbedderUnavailable: no answer, or one that asks to try later, in every attempt.
            EmbedderError: the server refused the request.
        """
        import tenacity

        def wait(state: Any) -> float:
            error = state.outcome.exception()
            asked = getattr(error, "retry_after", None)
            return min(self._max_wait, asked if asked is not None else backoff(state))

        backoff = tenacity.wait_random_exponential(multiplier=0.5, max=self._max_wait)
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self._attempts),
            wait=wait,
            retry=tenacity.retry_if_exception_type(EmbedderUnavailable),
            before_sleep=tenacity.before_sleep_log(logger, logging.INFO),
            reraise=True,
        )
        return retrying(self._post, path, body)

    def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        url = f"{self.base_url}/{path}"
        try:
            response = self._client.post(url, json=body)
        except self._httpx.TimeoutException as error:
            raise EmbedderUnavailable(f"{url} did not answer in time") from error
        except self._httpx.HTTPError as error:
            raise EmbedderUnavailable(f"{url} cannot be reached: {type(error).__name__}: {error}") from error
        if response.status_code in _RETRIED:
            raise EmbedderUnavailable(
                f"{url} answered {response.status_code}", _retry_after(response.headers.get("retry-after"))
            )
        if response.status_code != 200:
            raise EmbedderError(f"{url} refused the request, {response.status_code}: {response.text[:_SHOWN]}")
        try:
            return response.json()
        except ValueError as error:
            raise EmbedderError(f"{url} answered what is no JSON: {response.text[:_SHOWN]!r}") from error


class HttpEmbedder:
    """Base of the embedders over HTTP: the model, the budgets, and the connections, which are closed at the end.

    Args:
        model: the model's name.
        dimensions: the dimension of its vectors.
        version: the model's version.
        client: posts the requests.
        max_texts: texts in one request at most.
        max_tokens: tokens in one request at most, None for no limit.
        count_tokens: counts the tokens of a text.
    """

    def __init__(
        self,
        model: str,
        *,
        dimensions: int,
        version: str,
        client: HttpClient,
        max_texts: int,
        max_tokens: int | None = None,
        count_tokens: Callable[[str], int] = estimate_tokens,
    ) -> None:
        self.name = model
        self.version = version
        self.dimensions = dimensions
        model_of(self)
        self._client = client
        self._max_texts = check_whole_number(max_texts, "max_texts", 1, 10_000)
        self._max_tokens = None if max_tokens is None else check_whole_number(max_tokens, "max_tokens", 1, 10**9)
        self._count_tokens = count_tokens

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, base_url={self._client.base_url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, type_: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """Return the vectors of texts, float32 of shape (len(texts), dimensions).

        Raises:
            EmbedderUnavailable: the server does not answer, or asks to try later.
            EmbedderError: the server refuses the texts, or its answer is not what the protocol says.
        """
        requests = batches(texts, self._max_texts, self._max_tokens, self._count_tokens)
        parts = [self._request(batch) for batch in requests]
        return np.concatenate(parts) if parts else np.empty((0, self.dimensions), np.float32)

    def _request(self, texts: list[str]) -> NDArray[np.float32]:
        raise NotImplementedError


def _checked_url(url: object) -> str:
    parts = urlsplit(url) if isinstance(url, str) else None
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidOption("base_url must be an http or https URL, such as https://api.example.com/v1")
    if parts.username or parts.password:
        raise InvalidOption(f"base_url of {parts.hostname} must not hold a user name or password; give api_key=")
    return parts._replace(query="", fragment="").geturl().rstrip("/")


def _positive(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
        raise InvalidOption(f"{name} must be a positive number of seconds, got {value!r}")
    return float(value)


def _retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which may be a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        then = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, then.timestamp() - time.time())
