"""The index that is being filled: made, found again after a kill, put in the place of the old one, or given up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqla_vector.elasticsearch.creation import new_suffix
from sqla_vector.elasticsearch.index import SearchIndex
from sqla_vector.elasticsearch.names import REBUILD
from sqla_vector.elasticsearch.sending import Patience, Sender
from sqla_vector.elasticsearch.settings import EXCLUDE_VECTORS
from sqla_vector.exc import IndexDrift, IndexExists, IndexMissing, SearchError
from sqla_vector.tracking.steps import Steps
from sqla_vector.tracking.targets import Key

__all__ = ["Filled", "Standby"]

_META: Final = "sqla_vector"
_AUTO: Final = "index.auto_expand_replicas"

WHILE_LOADING: Final[Mapping[str, Any]] = {"index.refresh_interval": "-1", "index.number_of_replicas": 0}


@dataclass
class Filled:
    """How far an index has been filled; kept in its mapping's ``_meta``."""

    physical: str
    """The index."""
    after: Key | None = None
    """The key up to which all rows are in it."""
    rows: int = 0
    """How many these are."""
    drawn: int = 0
    """The largest number that was drawn for it."""
    is_loaded: bool = False
    """Whether all rows are in it."""


@dataclass(frozen=True)
class Standby:
    """The index that is being filled, behind an alias of its own.

    Args:
        sender: of requests.
        index: what is declared.
        patience: for the server.
        wait: seconds for which one request waits for replicas.
    """

    sender: Sender
    index: SearchIndex
    patience: Patience
    wait: float

    @property
    def alias(self) -> str:
        """The alias; while it is there, every sync writes to the index behind it too."""
        return self.index.name + REBUILD

    def _insist(self, method: str, **arguments: Any) -> Steps[Any]:
        return (yield from self.patience.insist(lambda: self.sender.ask(method, **arguments)))

    def current(self) -> Steps[list[str]]:
        """Return the indexes that searches use, none if there are none yet.

        Raises:
            IndexExists: an index has the name that the alias needs.
        """
        return sorted((yield from self._behind(self.index.name)))

    def _behind(self, alias: str) -> Steps[dict[str, Any]]:
        found = yield from self.sender.physical(alias)
        if alias in found:
            raise IndexExists(f"{alias} is an index, and the name is needed for an alias; delete it, or choose another")
        return found

    def find(self) -> Steps[Filled | None]:
        """Return the index that somebody has begun to fill, None if there is none.

        Raises:
            IndexDrift: it is not of what is declared now.
            IndexExists: there are several, or the name of the alias is taken.
        """
        found = yield from self._behind(self.alias)
        if not found:
            return None
        if len(found) > 1:
            raise IndexExists(f"{self.alias} stands for several indexes: {', '.join(sorted(found))}; abandon() them")
        ((physical, mapping),) = found.items()
        about = (mapping.get("_meta") or {}).get(_META) or {}
        if about.get("definition") != self.index.definition:
            raise IndexDrift(
                f"{physical} was begun for another declaration of {self.index.name}; abandon() it and begin again"
            )
        kept = about.get("rebuild") or {}
        after = kept.get("after")
        key = None if after is None else self.index.target.decode(after)
        return Filled(physical, key, kept.get("rows", 0), kept.get("drawn", 0), bool(kept.get("loaded")))

    def create(self) -> Steps[Filled]:
        """Create an empty one, without replicas and refreshes."""
        filled = Filled(f"{self.index.name}-{new_suffix()}")
        settings = {**self.index.settings(), **WHILE_LOADING}
        settings.pop(_AUTO, None)
        mapping = {**self.index.mapping(), "_meta": self._meta(filled)}
        for _ in range(2):
            try:
                yield from self.sender.ask(
                    "indices.create",
                    index=filled.physical,
                    mappings=mapping,
                    settings=settings,
                    aliases={self.alias: {"is_write_index": True}},
                )
            except SearchError as error:
                reason = str(error)
                if EXCLUDE_VECTORS in reason and settings.get(EXCLUDE_VECTORS) is False:
                    # A server before 9.2: it does not know the setting, and leaves no vectors out.
                    del settings[EXCLUDE_VECTORS]
                    continue
                if "more than one write index" in reason:
                    raise IndexExists(
                        f"{self.alias} was created by somebody else just now; run() goes on with it"
                    ) from None
                raise
            return filled
        raise AssertionError("unreachable")

    def _meta(self, filled: Filled) -> dict[str, Any]:
        about = self.index.mapping()["_meta"]
        after = None if filled.after is None else self.index.target.encode(filled.after)
        kept = {"after": after, "rows": filled.rows, "drawn": filled.drawn, "loaded": filled.is_loaded}
        return {**about, _META: {**about[_META], "rebuild": kept}}

    def save(self, filled: Filled) -> Steps[None]:
        """Write down how far it is filled."""
        yield from self._insist("indices.put_mapping", index=filled.physical, meta=self._meta(filled))

    def prepare(self, filled: Filled) -> Steps[None]:
        """Make it ready for searches: settings as declared, replicas made as far as there are nodes for them."""
        declared = self.index.settings()
        wanted = {"index.refresh_interval": declared["index.refresh_interval"]}
        if _AUTO in declared:
            wanted[_AUTO] = declared[_AUTO]
        else:
            wanted["index.number_of_replicas"] = declared["index.number_of_replicas"]
        yield from self._insist("indices.put_settings", index=filled.physical, settings=wanted)
        yield from self._insist("indices.refresh", index=filled.physical)

    def wait_for_replicas(self, filled: Filled) -> Steps[bool]:
        """Wait some seconds for copies that are being made; False if they are not finished."""
        try:
            health = yield from self.sender.ask(
                "cluster.health",
                index=filled.physical,
                wait_for_no_initializing_shards=True,
                timeout=f"{math.ceil(self.wait * 1000)}ms",
            )
        except SearchError as error:
            # With a right to the index alone one may not ask, or the answer is a time limit: 408.
            return "timed_out" not in str(error) and "status 408" not in str(error)
        return not health["timed_out"]

    def swap(self, filled: Filled, old: list[str]) -> Steps[None]:
        """Put it in the place of the old ones, in one step: every search finds the old or the new one.

        Raises:
            IndexMissing: somebody has abandoned it.
        """
        name = self.index.name
        actions: list[dict[str, Any]] = [{"remove": {"index": one, "alias": name}} for one in old]
        actions.append({"add": {"index": filled.physical, "alias": name, "is_write_index": True}})
        actions.append({"remove": {"index": filled.physical, "alias": self.alias}})

        def attempt() -> Steps[None]:
            # The answer of an earlier attempt may have been lost.
            if list((yield from self._behind(name))) == [filled.physical]:
                return
            try:
                yield from self.sender.ask("indices.update_aliases", actions=actions)
            except IndexMissing:
                raise IndexMissing(f"there is no index {filled.physical} any more: somebody abandoned it") from None

        yield from self.patience.insist(attempt)

    def drop(self, names: list[str]) -> Steps[None]:
        """Delete indexes of the declared name."""
        for name in names:
            if not name.startswith(f"{self.index.name}-"):
                continue
            yield from self._insist("indices.delete", index=name, ignore_unavailable=True)

    def abandon(self) -> Steps[list[str]]:
        """Delete what was begun, and return the names."""
        found = sorted((yield from self._behind(self.alias)))
        serving = set((yield from self.current()))
        gone = [name for name in found if name not in serving]
        yield from self.drop(gone)
        return gone
