"""What tune() found for an index: how it is written beside the index, and what of it a search takes."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import ceil, log
from typing import Any, Final

from sqlalchemy import Index
from sqlalchemy.sql.compiler import IdentifierPreparer

from sqla_vector.dialects.settings import Settings
from sqla_vector.expression import NearestCriterion
from sqla_vector.schema import MAX_EF_SEARCH, MAX_OVERSAMPLE, MAX_PROBES

__all__ = ["KNOBS", "NO_KNOBS", "Knobs", "Tuned", "TunedIndex", "knobs_of", "note_tuned", "tuned_for"]

logger = logging.getLogger("sqla_vector.tuning")

KNOBS: Final[Mapping[str, int]] = {"ef_search": MAX_EF_SEARCH, "probes": MAX_PROBES, "oversample": MAX_OVERSAMPLE}
"""What a search can be told, and how far it goes."""
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Tuned:
    """The cheapest settings that held a recall."""

    k: int
    recall: float
    """The recall that was wanted, and held."""
    measured: float
    """The recall that was measured."""
    ef_search: int | None = None
    probes: int | None = None
    oversample: int | None = None

    @property
    def settings(self) -> dict[str, int]:
        """The settings that have a value, as ``nearest()`` takes them."""
        return {name: value for name in KNOBS if (value := getattr(self, name)) is not None}

    def scaled(self, k: int) -> Tuned:
        """Return the settings for another k: a larger one takes more candidates, a smaller one no fewer."""
        if k == self.k:
            return self
        ef_search, oversample = self.ef_search, self.oversample
        if ef_search is not None and k > self.k:
            ef_search = min(MAX_EF_SEARCH, ceil(ef_search * k / self.k))
        if oversample is not None and k < self.k:
            oversample = min(MAX_OVERSAMPLE, ceil(oversample * self.k / k))
        return replace(self, k=k, ef_search=ef_search, oversample=oversample)


@dataclass(frozen=True, slots=True)
class TunedIndex:
    """All that was found for one index."""

    built: str
    """What it was found for, such as ``ivfflat full cosine lists=100``: another index wants other settings."""
    rows: int
    """How many vectors there were."""
    imbalance: float | None = None
    """How uneven the lists were, see :func:`sqla_vector.tuning.index_stats`."""
    entries: tuple[Tuned, ...] = ()

    def with_entry(self, entry: Tuned) -> TunedIndex:
        """Return the same with an entry, in place of one for the same k and recall."""
        others = [e for e in self.entries if (e.k, e.recall) != (entry.k, entry.recall)]
        return replace(self, entries=tuple(sorted([*others, entry], key=lambda e: (e.k, e.recall))))

    def chosen(self, k: int, recall: float) -> Tuned | None:
        """Return the settings for a recall: of those found for at least so much, those for the k that is nearest."""
        enough = [entry for entry in self.entries if entry.recall >= recall - 1e-9]
        if not enough:
            return None
        best = min(enough, key=lambda entry: (abs(log(entry.k / k)), -entry.k, entry.recall))
        return best.scaled(k)

    def to_json(self) -> str:
        """Return it as it is written beside the index."""
        tuned = [{name: value for name, value in asdict(e).items() if value is not None} for e in self.entries]
        found = {"version": _VERSION, "built": self.built, "rows": self.rows, "imbalance": self.imbalance}
        return json.dumps({**found, "tuned": tuned}, separators=(",", ":"))

    @classmethod
    def from_json(cls, written: str) -> TunedIndex | None:
        """Return what was written, None if this is nothing that this package wrote."""
        try:
            found = json.loads(written)
            if found["version"] != _VERSION:
                return None
            imbalance = found["imbalance"]
            return cls(
                str(found["built"]),
                int(found["rows"]),
                None if imbalance is None else float(imbalance),
                tuple(_entry(entry) for entry in found["tuned"]),
            )
        # Whoever owns the index may write what he likes there.
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None


def _entry(found: Mapping[str, Any]) -> Tuned:
    settings = {name: _whole(found[name], high) for name, high in KNOBS.items() if name in found}
    recall, measured = float(found["recall"]), float(found["measured"])
    if not 0 < recall < 1:
        raise ValueError(recall)
    return Tuned(_whole(found["k"], 1_000_000), recall, measured, **settings)


def _whole(value: object, high: int) -> int:
    if type(value) is not int or not 1 <= value <= high:
        raise ValueError(value)
    return value


@dataclass(frozen=True, slots=True)
class Knobs:
    """The settings of one search: those that it was given, else what was found for its recall, else none."""

    ef_search: int | None
    probes: int | None
    oversample: int | None


NO_KNOBS: Final = Knobs(None, None, None)
"""Those of a search that nobody told anything."""


def knobs_of(
    criterion: NearestCriterion, index: Index, built: str, preparer: IdentifierPreparer, settings: Settings
) -> Knobs:
    """Return the settings of a search by an index.

    Args:
        criterion: the search.
        index: which serves it.
        built: what the index is, in the words of :attr:`TunedIndex.built`.
        preparer: of the statement, which knows the schema.
        settings: of the dialect.
    """
    found = None
    if criterion.recall is not None:
        assert index.table is not None
        place = (preparer.schema_for_object(index.table), str(index.name))
        found = tuned_for(place, built, criterion.k, criterion.recall, settings)
        if found is None:
            logger.warning(
                "%s has no settings for recall %g, so the usual ones serve; find some: sqla_vector.tuning.tune()",
                index.name,
                criterion.recall,
            )
    return Knobs(
        criterion.ef_search or (found.ef_search if found else None),
        criterion.probes or (found.probes if found else None),
        criterion.oversample or (found.oversample if found else None),
    )


def tuned_for(place: tuple[str | None, str], built: str, k: int, recall: float, settings: Settings) -> Tuned | None:
    """Return what this engine knows for a search with a recall by an index, None if that is nothing."""
    schema, name = place
    known = settings.tuned.get((None if schema == "main" else schema, name))
    return known.chosen(k, recall) if known is not None and known.built == built else None


def note_tuned(settings: Settings, found: Mapping[tuple[str | None, str], TunedIndex]) -> None:
    """Note all that is written beside the indexes of a database; statements are compiled anew if it changed."""
    if found != settings.tuned:
        settings.tuned = dict(found)
        settings.forget_compiled()
