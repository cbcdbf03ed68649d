"""All documents of an index, one page after the other, and those among them that no row has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final

from sqlalchemy import Connection

from sqla_vector.elasticsearch.index import SearchIndex
from sqla_vector.exc import IndexMissing, SearchError
from sqla_vector.tracking.entries import existing
from sqla_vector.tracking.outbox import put
from sqla_vector.tracking.steps import Steps, Transaction
from sqla_vector.tracking.targets import Key

__all__ = ["Ask", "read_all", "sweep"]

Ask = Callable[..., Steps[Any]]
"""Asks the server, with a method of the client and its arguments, and returns the answer."""

_PAGE: Final = 1000
_KEEP_ALIVE: Final = "5m"


def read_all(
    ask: Ask,
    alias: str,
    handle: Callable[[Sequence[Any]], Steps[None]],
    *,
    page: int = _PAGE,
    source: Any = False,
    options: dict[str, Any] | None = None,
) -> Steps[int]:
    """Read all documents as they are at one moment, and return their number.

    Args:
        ask: the server.
        alias: of the index.
        handle: is given the hits of each page, with ``_id`` and ``_version``.
        page: documents at a time.
        source: what of ``_source`` they have.
        options: further ones of each search.

    Raises:
        IndexMissing: there is no index.
    """
    # A point in time has what searches see.
    yield from ask("indices.refresh", index=alias)
    opened = yield from ask("open_point_in_time", index=alias, keep_alive=_KEEP_ALIVE)
    pit, after, number = opened["id"], None, 0
    try:
        while True:
            more: dict[str, Any] = {} if after is None else {"search_after": after}
            answer = yield from ask(
                "search",
                pit={"id": pit, "keep_alive": _KEEP_ALIVE},
                size=page,
                sort=[{"_shard_doc": "asc"}],
                version=True,
                source=source,
                track_total_hits=False,
                **(options or {}),
                **more,
            )
            check_whole(answer, alias)
            pit, hits = answer.get("pit_id", pit), answer["hits"]["hits"]
            if not hits:
                break
            number, after = number + len(hits), hits[-1]["sort"]
            yield from handle(hits)
    except Exception:
        yield from _close(ask, pit)
        raise
    yield from _close(ask, pit)
    return number


def check_whole(answer: Any, alias: str) -> None:
    """See to it that an answer is of all shards: what is not there would be taken for gone.

    Raises:
        SearchError: a shard did not answer, or not in time.
    """
    if answer.get("timed_out") or answer["_shards"]["failed"]:
        raise SearchError(f"{alias}: not all shards answered, so nothing can be said of what is missing; try again")


def _close(ask: Ask, pit: str) -> Steps[None]:
    with suppress(SearchError, IndexMissing):  # it ends by itself
        yield from ask("close_point_in_time", id=pit)


def sweep(ask: Ask, index: SearchIndex, alias: str) -> Steps[int]:
    """Note the documents that no row has, so that they are deleted, and return their number.

    Args:
        ask: the server.
        index: what is declared.
        alias: of the index that is swept.
    """
    number = 0

    def note(hits: Sequence[Any]) -> Steps[None]:
        nonlocal number
        keys = [key for key in (key_or_none(index, hit["_id"]) for hit in hits) if key is not None]
        number += yield Transaction(lambda connection: _note_gone(connection, index, keys))

    yield from read_all(ask, alias, note)
    return number


def key_or_none(index: SearchIndex, document_id: str) -> Key | None:
    """Return the key of the row that a document is of, None if it is of none."""
    try:
        return index.key_of(document_id)
    except ValueError:
        return None


def _note_gone(connection: Connection, index: SearchIndex, keys: Sequence[Key]) -> int:
    there = existing(connection, index.target, keys)
    gone = [(index.entity, index.target.encode(key)) for key in keys if key not in there]
    put(connection, index.outbox, gone, index.channel, "delete")
    return len(gone)
