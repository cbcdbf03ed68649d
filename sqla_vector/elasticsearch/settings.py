"""Settings of an index: what is advised, what a declaration may say, and what they mean."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from sqla_vector.exc import InvalidOption

__all__ = ["EXCLUDE_VECTORS", "GC_DELETES", "LARGEST_SHARD", "advised_shards", "checked_settings", "seconds_of"]

GC_DELETES: Final = "index.gc_deletes"

EXCLUDE_VECTORS: Final = "index.mapping.exclude_source_vectors"

LARGEST_SHARD: Final = 30 * 10**9
"""Bytes; the advice of the Elasticsearch documentation (*Size your shards*) is 10 to 50 GB."""
_MOST_DOCUMENTS: Final = 200_000_000
"""Of a shard, by the same advice."""
_MOST_SHARDS: Final = 1024

_DEFAULTS: Final[Mapping[str, Any]] = {
    "index.number_of_shards": 1,
    "index.number_of_replicas": 1,
    # Without it the server stops to refresh an index that nobody has searched for 30 seconds, and the first search
    # waits for all of it.
    "index.refresh_interval": "1s",
    # A late write of a deleted document is refused for as long as its tombstone is there; the server's default is 60 s.
    GC_DELETES: "1h",
    # From 9.2 on vectors are left out of _source, and put together again from what is indexed: of a vector that was
    # normalised for cosine that is not the same number, and the hash of a document would not be what it was.
    EXCLUDE_VECTORS: False,
}

_KNOWN: Final = (
    "analysis",
    "auto_expand_replicas",
    "codec",
    "gc_deletes",
    "highlight",
    "indexing",
    "lifecycle",
    "mapping",
    "max_inner_result_window",
    "max_ngram_diff",
    "max_refresh_listeners",
    "max_regex_length",
    "max_rescore_window",
    "max_result_window",
    "max_shingle_diff",
    "max_slices_per_scroll",
    "max_terms_count",
    "merge",
    "number_of_replicas",
    "number_of_routing_shards",
    "number_of_shards",
    "query",
    "refresh_interval",
    "routing",
    "search",
    "similarity",
    "sort",
    "store",
    "translog",
    "unassigned",
)
_REFUSED: Final[Mapping[str, str]] = {
    "index.mapping.source": "documents are compared with the database by what _source has",
    "index.routing_partition_size": "documents are routed by their ids",
    "index.routing_path": "documents are routed by their ids",
    "index.search.idle": "index.refresh_interval is set, so that the index is never idle",
}

_DURATION: Final = re.compile(r"(\d{1,12})(nanos|micros|ms|s|m|h|d)\Z")
_UNITS: Final = {"nanos": 1e-9, "micros": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LEAST_TOMBSTONE: Final = 60.0


def seconds_of(duration: object) -> float | None:
    """Return what a duration such as ``"30s"`` means in seconds, infinity for -1, None if it is none."""
    if duration in (-1, "-1"):
        return math.inf
    found = _DURATION.match(duration) if isinstance(duration, str) else None
    return int(found[1]) * _UNITS[found[2]] if found else None


def advised_shards(size: float, documents: int = 0) -> int:
    """Return how many primary shards an index of a size has: about 30 GB and up to 200 million documents in each.

    Args:
        size: bytes that it has on disk, without replicas.
        documents: how many they are.
    """
    wanted = max(math.ceil(size / LARGEST_SHARD), math.ceil(documents / _MOST_DOCUMENTS), 1)
    return min(wanted, _MOST_SHARDS)


def checked_settings(given: Mapping[str, Any] | None, shards: int | None = None) -> dict[str, Any]:
    """Return the settings of an index by their full names.

    Args:
        given: those of a declaration, nested or with dots, with or without ``index`` in front.
        shards: how many are advised.

    Raises:
        InvalidOption: a setting is unknown, out of its range, or takes from the index what this package relies on.
    """
    if given is not None and not isinstance(given, Mapping):
        raise InvalidOption(f'settings= is a dict, such as {{"index.number_of_replicas": 2}}; got {given!r}')
    found = dict(_DEFAULTS)
    if shards is not None:
        found["index.number_of_shards"] = shards
    named = {}
    for name, value in _flat(given or {}):
        full = name if name.startswith("index.") else f"index.{name}"
        if full in named:
            raise InvalidOption(f"the setting {full} is given twice")
        named[full] = _checked(full, value)
    if "index.auto_expand_replicas" in named:
        found.pop("index.number_of_replicas")
    return found | named


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in settings.items():
        if not isinstance(key, str) or not key:
            raise InvalidOption(f"the name of a setting is a text, got {key!r}")
        name = f"{prefix}{key}"
        found += _flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return found


def _checked(name: str, value: Any) -> Any:
    for refused, reason in _REFUSED.items():
        if name == refused or name.startswith(f"{refused}."):
            raise InvalidOption(f"the setting {name} cannot be given: {reason}")
    if name.split(".")[1] not in _KNOWN:
        raise InvalidOption(f"unknown setting {name}; an index declares {', '.join(_KNOWN)}")
    if name == "index.number_of_shards":
        _check_number(name, value, 1, _MOST_SHARDS)
    elif name == "index.number_of_replicas":
        _check_number(name, value, 0, 100)
    elif name in ("index.refresh_interval", GC_DELETES):
        seconds = seconds_of(value)
        if seconds is None or (name == GC_DELETES and seconds == math.inf):
            raise InvalidOption(f"the setting {name} is a time such as '30s' or '1h', got {value!r}")
        if name == GC_DELETES and seconds < _LEAST_TOMBSTONE:
            raise InvalidOption(
                f"the setting {name} is {value}, and a write that is later than that brings deleted documents back; "
                "give more than the lease of a sync and the time limit of its requests together"
            )
    elif not isinstance(value, (str, int, float, bool, list)):
        raise InvalidOption(f"the setting {name} is a text, a number, a boolean or a list; got {value!r}")
    return value


def _check_number(name: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidOption(f"the setting {name} is a whole number from {least} to {most:,}, got {value!r}")
