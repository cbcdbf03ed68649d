"""The mapping of an index, and how an existing one differs from what is declared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from sqla_vector.elasticsearch.names import META_FIELD
from sqla_vector.elasticsearch.settings import EXCLUDE_VECTORS
from sqla_vector.elasticsearch.specs import FieldSpec

__all__ = ["FORMAT", "definition_of", "mapping_differences", "mapping_of_index", "setting_differences"]

FORMAT: Final = 1
"""Of documents; another number means that they have to be made anew."""

_META: Final = "sqla_vector"


def mapping_of_index(specs: Mapping[str, FieldSpec], entity: str, definition: str) -> dict[str, Any]:
    """Return the mapping with which an index is created; documents with other fields are refused."""
    return {
        "dynamic": "strict",
        "_meta": {_META: {"format": FORMAT, "entity": entity, "definition": definition}},
        "properties": properties_of(specs),
    }


def properties_of(specs: Mapping[str, FieldSpec]) -> dict[str, Any]:
    """Return the fields of an index, and what each document says of itself."""
    about = {"hash": {"type": "keyword"}, "key": {"type": "keyword", "ignore_above": 8191}}
    return {
        **{name: spec.mapping() for name, spec in specs.items()},
        META_FIELD: {"type": "object", "dynamic": "strict", "properties": about},
    }


def definition_of(specs: Mapping[str, FieldSpec], settings: Mapping[str, Any]) -> str:
    """Return a hash of what is declared: 16 hexadecimal digits."""
    declared = {"format": FORMAT, "properties": properties_of(specs), "settings": dict(settings)}
    return hashlib.sha256(json.dumps(declared, sort_keys=True).encode()).hexdigest()[:16]


def mapping_differences(declared: Mapping[str, Any], existing: Mapping[str, Any]) -> list[str]:
    """Say in words how the mapping of an index differs from the declared one.

    Args:
        declared: as :func:`mapping_of_index` returns it.
        existing: as the server returns it.
    """
    found = []
    if _plain(existing.get("dynamic", "true")) != "strict":
        found.append(f"dynamic is {_plain(existing.get('dynamic', 'true'))}, and strict is declared")
    meta = (existing.get("_meta") or {}).get(_META) or {}
    ours = declared["_meta"][_META]
    for key in ("format", "entity"):
        if meta.get(key) != ours[key]:
            found.append(f"its documents are of {key} {meta.get(key, 'none')}, and {ours[key]} is declared")
    return [*found, *_fields(declared["properties"], existing.get("properties") or {}, "")]


def _fields(declared: Mapping[str, Any], existing: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name in declared.keys() - existing.keys():
        yield f"field {prefix}{name} is declared, and the index does not have it"
    for name in existing.keys() - declared.keys():
        yield f"field {prefix}{name} is in the index, and not declared"
    for name in sorted(declared.keys() & existing.keys()):
        yield from _parameters(declared[name], existing[name], f"{prefix}{name}")


def _parameters(declared: Mapping[str, Any], existing: Mapping[str, Any], name: str) -> Iterator[str]:
    # The server leaves out the type of an object.
    there = {"type": "object", **existing}
    rescore = _undeclared_rescoring(declared.get("index_options") or {}, there.get("index_options") or {})
    if rescore is not None:
        yield f"field {name}: rescore_vector is {_plain(rescore)}, and not declared"
    for key in sorted(declared.keys() | there.keys()):
        if key == "properties":
            yield from _fields(declared.get(key) or {}, there.get(key) or {}, f"{name}.")
        elif key not in declared:
            # What the server adds by itself to a field of vectors is no difference.
            if declared.get("type") != "dense_vector":
                yield f"field {name}: {key} is {_plain(there[key])}, and not declared"
        elif not _has(declared[key], there.get(key, _default(declared, key))):
            yield f"field {name}: {key} is {_plain(there.get(key))}, and {_plain(declared[key])} is declared"


def _undeclared_rescoring(declared: Mapping[str, Any], existing: Mapping[str, Any]) -> Any:
    # The server has a default of its own for vectors of one bit only.
    is_default = str(existing.get("type")).startswith("bbq")
    return None if is_default or "rescore_vector" in declared else existing.get("rescore_vector")


def _default(declared: Mapping[str, Any], key: str) -> Any:
    """Return what the server leaves out of a mapping since it is the default."""
    defaults = {"index": True, "doc_values": True, "enabled": True, "store": False, "norms": declared["type"] == "text"}
    return defaults.get(key)


def _has(declared: Any, existing: Any) -> bool:
    """Tell whether what is declared is there, whatever the server adds to it."""
    if isinstance(declared, Mapping):
        return isinstance(existing, Mapping) and all(_has(v, existing.get(k)) for k, v in declared.items())
    return bool(_plain(declared) == _plain(existing))


def setting_differences(declared: Mapping[str, Any], existing: Mapping[str, Any]) -> list[str]:
    """Say in words how the settings of an index differ from the declared ones.

    Args:
        declared: by full names.
        existing: the server's, with ``flat_settings``; a server that does not know a setting does not return it.
    """
    found = []
    for name, value in declared.items():
        if name == EXCLUDE_VECTORS and value is False and name not in existing:
            continue  # servers before 9.2 leave no vectors out, and do not know the setting
        there = existing.get(name)
        if _plain(value) != _plain(there):
            found.append(f"setting {name} is {_plain(there)}, and {_plain(value)} is declared")
    return found


def _plain(value: Any) -> Any:
    """Return a value as the server writes it: ``true``, ``"2"``."""
    if value is None:
        return "not there"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
