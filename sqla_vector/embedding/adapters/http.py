"""What the adapters over HTTP share: budgets, time limits, retries; no secret ever leaves but in its header."""

from __future__ import annotations

import datetime
import email.utils
import json
import logging
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from sqla_vector.embedding.embedder import checked, model_of
from sqla_vector.exc import EmbedderError, EmbedderUnavailable, ExtensionMissing, InvalidOption
from sqla_vector.schema import check_whole_number

__all__ = ["HttpClient", "HttpEmbedder", "HttpModel", "batches", "estimate_tokens"]

logger = logging.getLogger("sqla_vector.embedding")

_RETRIED: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Status codes that say nothing about the texts (RFC 9110; 529 is common for an overloaded model server)."""

_CONFIGURATION: Final = frozenset({401, 402, 403, 404})
"""Status codes of a wrong key, address or model, or of a bill: no text is wrong, and asking again does not help."""

_SHOWN: Final = 300
"""Characters of an error's body that a message shows."""

_BYTES_PER_NUMBER: Final = 40
"""What one number of a vector may take in an answer; a double written in full takes 24 and its comma and indent."""

_OVERHEAD: Final = 1_000_000
"""Bytes that an answer may have beside its numbers."""


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
        api_key: sent as a bearer token; it appears in no message and no log.
        timeout: seconds for one request, from connecting to the last byte read.
        attempts: how often a request is made at most.
        max_wait: seconds to wait at most between two attempts.  A server that asks for more is not asked again.

    Raises:
        ExtensionMissing: httpx is not installed.
        InvalidOption: an option out of its range, a URL that cannot be one, a key that cannot be sent.
    """

    def __init__(self, base_url: str, *, api_key: str | None, timeout: float, attempts: int, max_wait: float) -> None:
        self.base_url = _checked_url(base_url)
        self._secret = _checked_key(api_key)
        self._timeout = _positive(timeout, "timeout")
        self._attempts = check_whole_number(attempts, "attempts", 1, 100)
        self._max_wait = _positive(max_wait, "max_wait")
        try:
            import httpx
        except ImportError as error:
            raise ExtensionMissing("embedders over HTTP need httpx: pip install 'sqla-vector[http]'") from error
        self._httpx = httpx
        headers = {} if self._secret is None else {"Authorization": f"Bearer {self._secret}"}
        self._client = httpx.Client(headers=headers, timeout=self._timeout)
        # Whoever forgets close() leaves no open socket behind.
        weakref.finalize(self, self._client.close)

    def __repr__(self) -> str:
        return f"HttpClient({self.base_url!r})"

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def post(self, path: str, body: Mapping[str, Any], max_bytes: int) -> Any:
        """Return the JSON of the answer.

        Args:
            path: what follows ``base_url``.
            body: sent as JSON.
            max_bytes: a longer answer is given up.

        Raises:
            EmbedderUnavailable: no answer, or one that asks to try later, in every attempt; or the key, the address
                or the model is refused.
            EmbedderError: the server refused the request, or answered what is no JSON.
        """
        import tenacity

        def wait(state: Any) -> float:
            asked = _asked(state)
            return float(backoff(state)) if asked is None else asked

        backoff = tenacity.wait_random_exponential(multiplier=0.5, max=self._max_wait)
        retrying = tenacity.Retrying(
            stop=lambda state: state.attempt_number >= self._attempts or (_asked(state) or 0.0) > self._max_wait,
            wait=wait,
            retry=tenacity.retry_if_exception_type(EmbedderUnavailable),
            before_sleep=tenacity.before_sleep_log(logger, logging.INFO),
            reraise=True,
        )
        url = f"{self.base_url}/{path}"
        status, content = retrying(self._exchange, url, body, max_bytes)
        if status in _CONFIGURATION:
            raise EmbedderUnavailable(f"{url} refused the request, {status}: {_shown(content)}")
        if status != 200:
            raise EmbedderError(f"{url} refused the request, {status}: {_shown(content)}")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise EmbedderError(f"{url} answered what is no JSON: {_shown(content)}") from None

    def _exchange(self, url: str, body: Mapping[str, Any], max_bytes: int) -> tuple[int, bytes]:
        """Make a request; return the status and the answer unless asking again may help."""
        # What is wrong comes back and is raised here: a traceback through httpx would have the key among its variables.
        read = self._read(url, body, max_bytes)
        if not read.problem and len(read.content) > max_bytes:
            raise EmbedderError(f"{url} gave a longer answer than {max_bytes:,} bytes, which is no list of vectors")
        if not read.problem and read.status in _RETRIED:
            raise EmbedderUnavailable(f"{url} answered {read.status}: {_shown(read.content)}", read.retry_after)
        if read.problem:
            raise EmbedderUnavailable(f"{url} {read.problem}", read.retry_after)
        return read.status, read.content

    def _read(self, url: str, body: Mapping[str, Any], max_bytes: int) -> _Read:
        content = bytearray()
        deadline = time.monotonic() + self._timeout
        try:
            with self._client.stream("POST", url, json=body) as response:
                retry_after = _retry_after(response.headers.get("retry-after"))
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > max_bytes:
                        break
                    if time.monotonic() > deadline:  # httpx limits the time between two chunks only
                        return _Read("did not answer in time")
        except self._httpx.TimeoutException:
            return _Read("did not answer in time")
        except self._httpx.HTTPError as error:
            return _Read(f"cannot be reached: {type(error).__name__}: {error}")
        if self._secret is not None:
            content = content.replace(self._secret.encode(), b"***")  # some servers repeat what they were sent
        return _Read("", response.status_code, retry_after, bytes(content))


@dataclass(frozen=True)
class _Read:
    """What became of a request: a problem, or an answer."""

    problem: str
    status: int = 0
    retry_after: float | None = None
    content: bytes = b""


def _shown(content: bytes) -> str:
    return repr(content.decode(errors="replace")[:_SHOWN])


class HttpModel:
    """Base of what a server computes: a context manager that closes the connections at its end."""

    name: str
    _client: HttpClient

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


class HttpEmbedder(HttpModel):
    """Base of the embedders over HTTP: the model and the budgets.

    Args:
        model: the model's name.
        dimensions: the dimension of its vectors.
        version: the model's version.
        client: posts the requests.
        max_texts: texts in one request at most.
        max_tokens: tokens in one request at most, None for no limit.
        count_tokens: counts the tokens of a text.
        query_prefix: what the model wants before a query.
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
        query_prefix: str = "",
    ) -> None:
        self.name = model
        self.version = version
        self.query_prefix = query_prefix
        self.dimensions = dimensions
        model_of(self)
        self._client = client
        self._max_texts = check_whole_number(max_texts, "max_texts", 1, 10_000)
        self._max_tokens = None if max_tokens is None else check_whole_number(max_tokens, "max_tokens", 1, 10**9)
        self._count_tokens = count_tokens

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """Return the vectors of texts, float32 of shape (len(texts), dimensions).

        Raises:
            EmbedderUnavailable: the server does not answer, or asks to try later, or refuses the key or the model.
            EmbedderError: the server refuses the texts, or its answer is not what the protocol says.
        """
        parts = [
            checked(self, self._vectors(batch), len(batch))
            for batch in batches(texts, self._max_texts, self._max_tokens, self._count_tokens)
        ]
        return np.concatenate(parts) if parts else np.empty((0, self.dimensions), np.float32)

    def _vectors(self, texts: list[str]) -> Sequence[Any]:
        """Return what the server answers, one for each text, in order; it is checked then."""
        raise NotImplementedError

    def _post(self, path: str, body: Mapping[str, Any], count: int) -> Any:
        return self._client.post(path, body, _OVERHEAD + count * self.dimensions * _BYTES_PER_NUMBER)


def _asked(state: Any) -> float | None:
    """Return how long the server asked to wait, if it did."""
    return getattr(state.outcome.exception(), "retry_after", None)


def _checked_url(url: object) -> str:
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        usable = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets that do not close
        parts, usable = None, False
    if parts is None or not usable:
        raise InvalidOption("base_url must be an http or https URL, such as https://api.example.com/v1")
    if "@" in parts.netloc:
        raise InvalidOption(f"base_url of {parts.hostname} must not hold a user name or password; give api_key=")
    if parts.query or parts.fragment:
        raise InvalidOption(f"base_url of {parts.hostname} must end before ? and #; nothing after them is sent")
    return parts.geturl().rstrip("/")


def _checked_key(key: object) -> str | None:
    # Here and not in httpx, whose message for a key with a newline at its end shows the key.
    if key is None:
        return None
    if not isinstance(key, str) or not key or not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidOption(
            "api_key must be a text of ASCII characters without white space; a key that was read from a file may end "
            "with a newline"
        )
    return key


def _positive(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
        raise InvalidOption(f"{name} must be a positive number of seconds, got {value!r}")
    return float(value)


def _retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which may be a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.strip().isdecimal() and value.isascii():
        return float(value)
    try:
        then = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    # A date of the zone -0000 comes without a zone.
    return max(0.0, then.replace(tzinfo=then.tzinfo or datetime.UTC).timestamp() - time.time())
