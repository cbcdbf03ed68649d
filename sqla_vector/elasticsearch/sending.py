"""Requests as steps, and bulk requests with what became of each document."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy.exc import DBAPIError

from sqla_vector.elasticsearch.actions import Action, Verdict, request, verdicts
from sqla_vector.elasticsearch.errors import failure_of, typed_error
from sqla_vector.elasticsearch.index import SearchIndex
from sqla_vector.elasticsearch.steps import Ask
from sqla_vector.exc import DatabaseRestored, IndexMissing, InvalidOption, SearchError, SearchUnavailable
from sqla_vector.tracking.outbox import draw
from sqla_vector.tracking.patience import Backoff, is_passing, said
from sqla_vector.tracking.steps import Call, Pause, Steps, Transaction

__all__ = ["Patience", "Sender", "check_client", "check_not_restored"]

logger = logging.getLogger("sqla_vector.elasticsearch")

T = TypeVar("T")

_OF_DOCUMENTS: Final = (400, 413)
"""Refusals of a bulk request as a whole for what is in it.  Others are of servers that cannot, or of programs between
here and there."""


def check_client(client: object, *, is_async: bool) -> Any:
    """Return a client that goes with the sessions.

    Raises:
        InvalidOption: of client and sessions only one is asynchronous.
    """
    from elasticsearch import AsyncElasticsearch, Elasticsearch

    if not isinstance(client, AsyncElasticsearch if is_async else Elasticsearch):
        wanted = "AsyncElasticsearch" if is_async else "Elasticsearch"
        raise InvalidOption(f"with these sessions the client is {wanted}, got {type(client).__name__}")
    return client


@dataclass(frozen=True)
class Patience:
    """How long database and server are waited for.

    Args:
        name: who waits, for the log.
        backoff: between two attempts.
        max_outage: seconds without any success after which it is given up.
    """

    name: str
    backoff: Backoff
    max_outage: float

    def insist(self, attempt: Callable[[], Steps[T]]) -> Steps[T]:
        """Make an attempt again while database or server cannot be reached, unless told to stop."""
        failures, begun = 0, time.monotonic()
        while True:
            try:
                return (yield from attempt())
            except (SearchUnavailable, DBAPIError) as error:
                is_over = time.monotonic() - begun > self.max_outage
                if is_over or (isinstance(error, DBAPIError) and not is_passing(error)):
                    raise
                failures += 1
                if (yield from self.wait(failures, said(error))):
                    raise

    def wait(self, failures: int, reason: str) -> Steps[bool]:
        """Pause after a number of failures; True if told to stop meanwhile."""
        pause = self.backoff.after(failures)
        logger.warning("%s goes on in %.1f seconds: %s", self.name, pause, reason)
        was_stopped: bool = yield Pause(pause)
        return was_stopped


class Sender:
    """Asks the server of an index.

    Args:
        client: ``Elasticsearch``, or ``AsyncElasticsearch`` in asynchronous programs.
        index: what is declared.
        timeout: seconds after which a request counts as failed.
        refresh: of bulk requests: ``"wait_for"``, or None to leave it to the index.
    """

    def __init__(self, client: Any, index: SearchIndex, timeout: float, refresh: str | None = None) -> None:
        self._client = client.options(request_timeout=timeout, max_retries=0)
        self._index = index
        self._bulk = {"require_alias": True} | ({} if refresh is None else {"refresh": refresh})

    def ask(self, method: str, **arguments: Any) -> Steps[Any]:
        """Call a method of the client, such as ``indices.refresh``, and return the answer.

        Raises:
            IndexMissing: the index is not there.
            SearchUnavailable: there is no answer, or no capacity.
            SearchError: any other refusal.
        """
        try:
            answer = yield Call(Ask(method, arguments).call, (self._client,))
        except Exception as error:
            found = typed_error(error, self._index.name)
            if found is None:
                raise
            if method == "bulk" and type(found) is SearchError and _status(error) not in _OF_DOCUMENTS:
                found = SearchUnavailable(str(found))
            # The cause would show its headers to whoever prints a traceback with local variables.
            raise found from None
        return answer.body

    def physical(self, name: str) -> Steps[dict[str, Any]]:
        """Return the mappings of the indexes behind an alias; of an index that has the very name, that one's."""
        found: dict[str, Any] = yield from self.ask("indices.get_mapping", index=name, ignore_unavailable=True)
        return {physical: one["mappings"] for physical, one in found.items()}

    def send(self, actions: Sequence[Action], alias: str) -> Steps[list[tuple[Action, Verdict, str]]]:
        """Send actions, and return what became of each; a conflict with a version that is newer counts as done.

        Raises:
            DatabaseRestored: the server has a version that the database has not come to.
        """
        if not actions:
            return []
        try:
            answer = yield from self.ask("bulk", index=alias, operations=request(actions), **self._bulk)
        except (SearchUnavailable, IndexMissing):
            raise
        except SearchError as error:
            # Of the request as a whole: one of its documents is too large, or is none.
            if len(actions) == 1:
                return [(actions[0], Verdict.REFUSED, str(error))]
            half = len(actions) // 2
            first = yield from self.send(actions[:half], alias)
            return first + (yield from self.send(actions[half:], alias))
        found = verdicts(actions, answer)
        in_doubt = [action for action, verdict, _ in found if verdict is Verdict.CONFLICT]
        if in_doubt:
            newer = yield from self._newer(in_doubt, alias)
            found = [
                (action, Verdict.DONE if verdict is Verdict.CONFLICT and action.id in newer else verdict, reason)
                for action, verdict, reason in found
            ]
        return found

    def _newer(self, actions: Sequence[Action], alias: str) -> Steps[set[str]]:
        """Return those of some documents that the server has in versions that are not older."""
        there = yield from self.documents([action.id for action in actions], alias, source=False)
        newest = max((hit["_version"] for hit in there.values()), default=0)
        if newest > max(action.version for action in actions):
            outbox = self._index.outbox
            check_not_restored(newest, (yield Transaction(lambda connection: draw(connection, outbox))), self._index)
        return {
            action.id for action in actions if action.id in there and there[action.id]["_version"] >= action.version
        }

    def documents(self, ids: Sequence[str], alias: str, source: Any = True) -> Steps[dict[str, Any]]:
        """Return documents as they are at this moment, also what searches do not see yet.

        Args:
            ids: of the documents; those that are not there are missing in the result.
            alias: of the index.
            source: what of ``_source`` they have.

        Raises:
            SearchError: a shard did not answer, so that its documents only seem to be missing.
        """
        if not ids:
            return {}
        wanted = [{"_id": id_, "_source": source} for id_ in ids]
        answer = yield from self.ask("mget", index=alias, docs=wanted)
        found = {}
        for asked, hit in zip(ids, answer["docs"], strict=True):
            if "error" in hit or hit.get("_id") != asked or not isinstance(hit.get("found"), bool):
                raise failure_of(503, hit, self._index.name)
            if hit["found"]:
                found[asked] = hit
        return found


def _status(error: Exception) -> int | None:
    """Return the status of an answer that is a failure, None if there was no answer."""
    return getattr(error, "status_code", None)


def check_not_restored(version: int, drawn: int, index: SearchIndex) -> None:
    """See to it that no document has a version that the database has not come to.

    Raises:
        DatabaseRestored: it has, so that the database must have been put back to an earlier state.
    """
    if version > drawn:
        raise DatabaseRestored(
            f"{index.name} has a document of version {version:,}, and the database has come to {drawn:,} only: it was "
            "restored from a backup, or is another one, and its changes would lose against the index's; rebuild it"
        )
