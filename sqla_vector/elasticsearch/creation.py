"""Physical indexes: made with what is declared, found by their alias, and compared with it."""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from sqla_vector.elasticsearch.errors import index_missing, translated
from sqla_vector.elasticsearch.mapping import mapping_differences, setting_differences
from sqla_vector.elasticsearch.names import check_suffix
from sqla_vector.elasticsearch.settings import EXCLUDE_VECTORS
from sqla_vector.exc import IndexDrift, IndexExists

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

__all__ = ["check_current", "create", "mapping_drift", "new_suffix", "physical_indexes", "settings_drift"]


class Declared(Protocol):
    """What is declared of an index."""

    name: str
    """Its alias."""

    def mapping(self) -> dict[str, Any]:
        """Return its mapping."""

    def settings(self) -> dict[str, Any]:
        """Return its settings by their full names."""


def new_suffix() -> str:
    """Return a suffix that no other index has: the time in UTC, and some letters."""
    return f"{datetime.datetime.now(datetime.UTC):%Y%m%d%H%M%S}-{secrets.token_hex(2)}".replace("-", "_")


def physical_indexes(client: Elasticsearch, alias: str) -> list[str]:
    """Return the indexes that an alias stands for, none if there is no alias.

    Raises:
        SearchError: the server refuses to say.
    """
    from elasticsearch import NotFoundError

    with translated(alias):
        try:
            return sorted(client.indices.get_alias(name=alias))
        except NotFoundError:
            return []


def create(
    client: Elasticsearch,
    index: Declared,
    suffix: str | None = None,
    *,
    alias: str | None = None,
    settings: Mapping[str, Any] | None = None,
    meta: Mapping[str, Any] | None = None,
) -> str:
    """Create a physical index together with its alias, in one step, and return its name.

    Args:
        client: with the right to create it.
        index: what is declared.
        suffix: ends the name; by default the time.
        alias: in place of the index's name, for one that is filled before it gets that.
        settings: in place of declared ones, by their full names, while it is filled.
        meta: further entries of the mapping's ``_meta``.

    Raises:
        IndexExists: there is an index behind the alias, or one of that very name.
        SearchError: the server refuses to create it.
    """
    alias = alias or index.name
    physical = f"{index.name}-{check_suffix(suffix or new_suffix())}"
    if there := physical_indexes(client, alias):
        raise IndexExists(f"{alias} is there already: {', '.join(there)}; rebuild it to have another one in its place")
    with translated(alias):
        is_index = client.indices.exists(index=alias)
    if is_index:
        raise IndexExists(f"{alias} is an index, and the name is needed for an alias; delete it, or choose another")
    mapping = index.mapping()
    mapping["_meta"] = {**mapping["_meta"], **(meta or {})}
    wanted = {**index.settings(), **(settings or {})}
    with translated(alias):
        if not _created(client, physical, alias, mapping, wanted):
            # A server before 9.2: it does not know the setting, and leaves no vectors out.
            del wanted[EXCLUDE_VECTORS]
            _created(client, physical, alias, mapping, wanted)
    return physical


def _created(client: Elasticsearch, physical: str, alias: str, mapping: Any, settings: Mapping[str, Any]) -> bool:
    """Create an index, or return False if the server does not know the setting about vectors in ``_source``."""
    from elasticsearch import ApiError

    aliases = {alias: {"is_write_index": True}}
    try:
        client.indices.create(index=physical, mappings=mapping, settings=settings, aliases=aliases)
    except ApiError as error:
        reason = str(error)
        if f"unknown setting [{EXCLUDE_VECTORS}]" in reason and settings.get(EXCLUDE_VECTORS) is False:
            return False
        if "resource_already_exists" in reason or "more than one write index" in reason:
            raise IndexExists(f"{alias} was created by somebody else just now; nothing is to be done") from None
        raise
    return True


def mapping_drift(client: Elasticsearch, index: Declared) -> list[str]:
    """Say how the mappings of the indexes behind a name differ from the declared one, nothing if they do not.

    Raises:
        IndexMissing: there is none.
    """
    found = []
    for physical in _there(client, index):
        with translated(index.name):
            existing = client.indices.get_mapping(index=physical)[physical]["mappings"]
        found += [f"{physical}: {words}" for words in mapping_differences(index.mapping(), existing)]
    return found


def settings_drift(client: Elasticsearch, index: Declared) -> list[str]:
    """Say how the settings of the indexes behind a name differ from the declared ones, nothing if they do not.

    Raises:
        IndexMissing: there is none.
    """
    found = []
    for physical in _there(client, index):
        with translated(index.name):
            existing = client.indices.get_settings(index=physical, flat_settings=True)[physical]["settings"]
        found += [f"{physical}: {words}" for words in setting_differences(index.settings(), existing)]
    return found


def check_current(client: Elasticsearch, index: Declared) -> None:
    """See to it that the index is there and has the declared mapping.

    Raises:
        IndexMissing: it is not there.
        IndexDrift: its mapping is another.
    """
    if differences := mapping_drift(client, index):
        raise IndexDrift(f"{index.name} is not what is declared: {'; '.join(differences)}; rebuild it")


def _there(client: Elasticsearch, index: Declared) -> list[str]:
    found = physical_indexes(client, index.name)
    if not found:
        raise index_missing(index.name)
    return found
