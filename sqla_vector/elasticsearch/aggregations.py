"""Aggregations beside the hits: counts and figures of declared fields, and nothing that leads elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqla_vector.exc import InvalidOption
from sqla_vector.schema import check_whole_number

if TYPE_CHECKING:
    from sqla_vector.elasticsearch.index import SearchIndex

__all__ = ["ALLOWED", "Terms", "aggregated_name", "aggregations"]

# Missing on purpose: "global" counts documents that the filter excludes, "filter" and "significant_terms" have queries
# in them, which could look up terms in other indexes, and "top_hits" has documents.
ALLOWED: Final = (
    "avg",
    "cardinality",
    "date_histogram",
    "date_range",
    "extended_stats",
    "histogram",
    "max",
    "min",
    "missing",
    "percentiles",
    "range",
    "stats",
    "sum",
    "terms",
    "value_count",
)
"""What can be aggregated."""

_MAX_DEPTH: Final = 5


@dataclass(frozen=True, slots=True)
class Terms:
    """How many documents have each of the most frequent values of a field.

    Args:
        field: of the index; it must be one whose values are compared as a whole.
        size: how many values.
    """

    field: str
    size: int = 10


def aggregations(index: SearchIndex, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return checked aggregations as JSON.

    Args:
        index: the declared index.
        given: by names of one's own, each a :class:`Terms` or a dict of Elasticsearch's form with one of the types of
            :data:`ALLOWED`, and further ones in ``aggs``.

    Raises:
        InvalidOption: another type, a script, or a field that is not declared or cannot be counted.
    """
    found = _checked(index, {} if given is None else given, 0)
    if found:
        from elasticsearch import SerializationError
        from elasticsearch.serializer import JsonSerializer

        try:
            JsonSerializer().dumps(found)
        except (SerializationError, TypeError, ValueError, RecursionError):
            raise InvalidOption(
                "aggs= has a value that is no JSON, such as a set; give numbers, texts and lists"
            ) from None
    return found


def aggregated_name(index: SearchIndex, name: object) -> str:
    """Return by which name the values of a field are counted.

    Raises:
        InvalidOption: there is no such field, or its values are not compared as a whole.
    """
    for spec in index.fields.values():
        if name == spec.name or (name is not None and name == spec.exact):
            if spec.exact is None or spec.kind == "dense_vector":
                raise InvalidOption(
                    f"the values of the field {spec.name!r} ({spec.kind}) cannot be counted; declare a Keyword field "
                    "of the attribute"
                )
            return spec.exact
    raise InvalidOption(f"the index has no field {name!r} to aggregate; it has {', '.join(index.fields)}")


def _checked(index: SearchIndex, given: object, depth: int) -> dict[str, Any]:
    if not isinstance(given, Mapping) or depth > _MAX_DEPTH:
        raise InvalidOption(f"aggs= is a dict of aggregations by name, at most {_MAX_DEPTH} levels deep")
    return {_name(name): _one(index, name, one, depth) for name, one in given.items()}


def _name(name: object) -> str:
    if not isinstance(name, str) or not name or any(letter in name for letter in "[]>"):
        raise InvalidOption(f"an aggregation has a name without [, ] and >, got {name!r}")
    return name


def _one(index: SearchIndex, name: str, given: object, depth: int) -> dict[str, Any]:
    if isinstance(given, Terms):
        size = check_whole_number(given.size, "size", 1, 10_000)
        return {"terms": {"field": aggregated_name(index, given.field), "size": size}}
    if not isinstance(given, Mapping):
        raise InvalidOption(f"the aggregation {name!r} is Terms(field) or a dict, got {type(given).__name__}")
    inner = given.get("aggs", {})
    types = [key for key in given if key != "aggs"]
    if len(types) != 1 or types[0] not in ALLOWED:
        found = ", ".join(map(str, types)) or "none"
        raise InvalidOption(f"the aggregation {name!r} has one type of {', '.join(ALLOWED)}; got {found}")
    parameters = given[types[0]]
    if not isinstance(parameters, Mapping) or "field" not in parameters or "script" in parameters:
        raise InvalidOption(f"the aggregation {name!r} is of a field, and has no script")
    body: dict[str, Any] = {types[0]: {**parameters, "field": aggregated_name(index, parameters["field"])}}
    if inner:
        body["aggs"] = _checked(index, inner, depth + 1)
    return body
