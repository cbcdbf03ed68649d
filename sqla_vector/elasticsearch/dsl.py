"""The few shapes of query DSL that filters are made of, simplified where a part matches everything or nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

__all__ = ["MATCH_ALL", "MATCH_NONE", "Query", "all_of", "any_of", "none_of"]

Query = dict[str, Any]

MATCH_ALL: Final[Query] = {"match_all": {}}
MATCH_NONE: Final[Query] = {"match_none": {}}


def all_of(queries: Iterable[Query]) -> Query:
    """Return the query for documents that match every one."""
    given = [query for query in queries if query != MATCH_ALL]
    if any(query == MATCH_NONE for query in given):
        return MATCH_NONE
    if len(given) < 2:
        return given[0] if given else MATCH_ALL
    required: list[Query] = []
    excluded: list[Query] = []
    for query in given:
        # Conjunctions of conjunctions are one: a node refuses more than 30 levels.
        inner = query.get("bool", {})
        if inner.keys() <= {"filter", "must_not"} and inner:
            required += inner.get("filter", [])
            excluded += inner.get("must_not", [])
        else:
            required.append(query)
    parts = {"filter": required, "must_not": excluded}
    return {"bool": {name: part for name, part in parts.items() if part}}


def any_of(queries: Iterable[Query]) -> Query:
    """Return the query for documents that match at least one."""
    given = [query for query in queries if query != MATCH_NONE]
    if any(query == MATCH_ALL for query in given):
        return MATCH_ALL
    if len(given) < 2:
        return given[0] if given else MATCH_NONE
    return {"bool": {"should": given, "minimum_should_match": 1}}


def none_of(query: Query) -> Query:
    """Return the query for documents that do not match."""
    if query == MATCH_ALL:
        return MATCH_NONE
    if query == MATCH_NONE:
        return MATCH_ALL
    if query.keys() == {"bool"} and query["bool"].keys() == {"must_not"} and len(query["bool"]["must_not"]) == 1:
        only: Query = query["bool"]["must_not"][0]
        return only
    return {"bool": {"must_not": [query]}}
