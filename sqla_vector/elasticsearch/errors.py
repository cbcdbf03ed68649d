"""What the client raises, as errors of this package: without addresses, headers and credentials."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from sqla_vector.exc import IndexMissing, SearchError, SearchUnavailable, VectorError

__all__ = ["failure_of", "index_missing", "translated", "typed_error"]

_LATER: Final = frozenset({408, 429, 502, 503, 504})
"""Answers after which the same request may succeed."""
_LONGEST: Final = 500


@contextmanager
def translated(index: str) -> Iterator[None]:
    """Raise what the client raises inside as a typed error.

    Args:
        index: the declared name, for messages.

    Raises:
        IndexMissing: the index, or its alias, is not there.
        SearchUnavailable: no answer, or one that says that there is no capacity now.
        SearchError: any other refusal.
    """
    try:
        yield
    except Exception as error:
        found = typed_error(error, index)
        if found is None:
            raise
        # The cause would show its headers to whoever prints a traceback with local variables.
        raise found from None


def typed_error(error: Exception, index: str) -> VectorError | None:
    """Return what to raise in place of an error of the client, None if it is none of those."""
    from elasticsearch import ApiError, TransportError

    if isinstance(error, ApiError):
        return failure_of(error.status_code, error.body, index)
    if isinstance(error, TransportError):
        # The message may have the node's address, with a user's name in it.
        return SearchUnavailable(
            f"Elasticsearch did not answer for the index {index!r}: {type(error).__name__}; "
            "look whether the node runs and the client's address, certificate and time limit are right"
        )
    return None


def index_missing(index: str) -> IndexMissing:
    """Return the error of a declared index that is not there."""
    return IndexMissing(f"there is no index {index}; create it by SearchIndex.create(client), and fill it")


def failure_of(status: int, body: Any, index: str) -> VectorError:
    """Return the error for an answer, or a part of one, that is a failure.

    Args:
        status: HTTP's.
        body: the answer; its ``error`` has ``type`` and ``reason``.
        index: the declared name.
    """
    kind, reason = _cause(body)
    if kind == "index_not_found_exception":
        return index_missing(index)
    if status in (401, 403):
        # The reason names the user or the key.
        return SearchError(f"Elasticsearch refused the client's credentials for the index {index!r}: status {status}")
    if kind == "search_context_missing_exception":
        return SearchError(
            "the search has been closed, or was left alone for too long, so it has no next page; search again"
        )
    said = f"status {status}, {kind or 'no type'}: {reason or 'no reason'}"
    if status in _LATER:
        return SearchUnavailable(f"Elasticsearch has no capacity for the index {index!r} now: {said}")
    return SearchError(f"Elasticsearch refused a request for the index {index!r}: {said}")


def _cause(body: Any) -> tuple[str, str]:
    """Return the type and the reason that are nearest to what went wrong."""
    error = body.get("error") if isinstance(body, Mapping) else None
    if not isinstance(error, Mapping):
        return "", ""
    roots = error.get("root_cause")
    root = roots[0] if isinstance(roots, list) and roots and isinstance(roots[0], Mapping) else error
    kind, reason = (
        str(root.get("type") or error.get("type") or ""),
        str(root.get("reason") or error.get("reason") or ""),
    )
    return kind, reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST]}…"
