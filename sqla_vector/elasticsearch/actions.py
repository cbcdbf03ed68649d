"""From documents to the lines of a bulk request, and from its answer to what became of each: nothing here does I/O."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from sqla_vector.elasticsearch.documents import Document
from sqla_vector.tracking.targets import Key

__all__ = ["Action", "Verdict", "delete_action", "index_action", "parts", "request", "verdicts"]

_GUARD: Final = (b'{"update":{"_id":"_sqla_vector_guard","require_alias":true}}', b'{"doc":{}}')
"""A delete makes an index that is missing, whatever ``require_alias`` says.  Not with this in the same request: an
update of a document that is not there, which does nothing but to ask for the alias."""

_LONGEST_REASON: Final = 500


@dataclass(frozen=True, slots=True)
class Action:
    """One operation of a bulk request."""

    id: str
    key: Key | None
    """The row's; None for a document that no row has."""
    version: int
    header: bytes
    source: bytes | None
    """The document as JSON; None to delete it."""

    @property
    def size(self) -> int:
        """Its bytes in a request."""
        return len(self.header) + (0 if self.source is None else len(self.source) + 1) + 1

    @property
    def lines(self) -> list[bytes]:
        """Its lines in a request."""
        return [self.header] if self.source is None else [self.header, self.source]


class Verdict(Enum):
    """What became of an action."""

    DONE = "done"
    CONFLICT = "conflict"
    """The server says that it has a version that is not older; to be looked at."""
    LATER = "later"
    """No capacity, no answer, or none that can be believed: it is to be done again."""
    REFUSED = "refused"
    """The document is one that the server will never take."""
    MISSING = "missing"
    """There is no index behind the alias."""


def index_action(document: Document, version: int) -> Action:
    """Return the action that writes a document."""
    return Action(document.id, document.key, version, _header("index", document.id, version), document.to_bytes())


def delete_action(document_id: str, key: Key | None, version: int, routing: str | None = None) -> Action:
    """Return the action that deletes a document, and not another one of the same id that has another routing."""
    return Action(document_id, key, version, _header("delete", document_id, version, routing), None)


def _header(operation: str, document_id: str, version: int, routing: str | None = None) -> bytes:
    # The version is the database's; of two the larger one wins, in whatever order they arrive.
    meta = {"_id": document_id, "version": version, "version_type": "external"}
    if routing is not None:
        meta["routing"] = routing
    return json.dumps({operation: meta}, separators=(",", ":"), ensure_ascii=False).encode()


def parts(actions: Iterable[Action], most: int, most_bytes: int) -> Iterator[list[Action]]:
    """Yield actions in parts of at most so many and so many bytes; one that is larger is a part of its own."""
    part: list[Action] = []
    size = 0
    for action in actions:
        if part and (len(part) >= most or size + action.size > most_bytes):
            yield part
            part, size = [], 0
        part.append(action)
        size += action.size
    if part:
        yield part


def request(actions: Sequence[Action]) -> list[bytes]:
    """Return the lines of a bulk request, which must have ``require_alias``."""
    lines = [line for action in actions for line in action.lines]
    return [*_GUARD, *lines] if _is_guarded(actions) else lines


def _is_guarded(actions: Sequence[Action]) -> bool:
    return any(action.source is None for action in actions)


def verdicts(actions: Sequence[Action], answer: object) -> list[tuple[Action, Verdict, str]]:
    """Return what an answer says of each action, and why.

    Only what is said of the very action counts: an answer that has other items than were asked for says nothing.
    """
    items = answer.get("items") if isinstance(answer, Mapping) else None
    if isinstance(items, list) and _is_guarded(actions):
        items = items[1:]
    if not isinstance(items, list) or len(items) != len(actions):
        return [(action, Verdict.LATER, "the answer does not have an item for each action") for action in actions]
    return [(action, *_verdict(action, item)) for action, item in zip(actions, items, strict=True)]


def _verdict(action: Action, item: Any) -> tuple[Verdict, str]:
    operation = "delete" if action.source is None else "index"
    said = item.get(operation) if isinstance(item, Mapping) else None
    if not isinstance(said, Mapping) or said.get("_id") != action.id or not isinstance(said.get("status"), int):
        return Verdict.LATER, "the answer has another item in the place of the action's"
    status, kind, reason = said["status"], *_cause(said.get("error"))
    match status:
        case 200 | 201 if not kind and said.get("_version", action.version) == action.version:
            return Verdict.DONE, ""
        case 404 if kind == "index_not_found_exception":
            return Verdict.MISSING, reason
        case 404 if operation == "delete" and not kind:
            return Verdict.DONE, ""
        case 409:
            return Verdict.CONFLICT, reason
        case 400:
            # With require_alias the server says so of a name that is an index, or nothing.
            is_missing = kind in ("illegal_argument_exception", "index_not_found_exception") and "alias" in reason
            return Verdict.MISSING if is_missing else Verdict.REFUSED, f"{kind}: {reason}"
        case _:
            return Verdict.LATER, f"status {status}, {kind}: {reason}"


def _cause(error: Any) -> tuple[str, str]:
    """Return type and reason of an error, and the reason behind it, which says which field it was."""
    if not isinstance(error, Mapping):
        return ("", "") if error is None else ("", str(error)[:_LONGEST_REASON])
    reason = str(error.get("reason") or "")
    # A document that cannot be parsed is shown in part after this.
    reason = reason.partition(" Preview of field's value")[0]
    return str(error.get("type") or "unknown"), reason[:_LONGEST_REASON]
