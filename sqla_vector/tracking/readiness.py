"""How far a change of model is: what there is of the new model, row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from sqlalchemy import Connection

from sqla_vector.embedding import Model
from sqla_vector.tracking.aside import Shelf
from sqla_vector.tracking.limits import tokens_of
from sqla_vector.tracking.making import Kind, kind_of
from sqla_vector.tracking.progress import Meter
from sqla_vector.tracking.steps import Steps, Transaction
from sqla_vector.tracking.targets import Key
from sqla_vector.tracking.texts import RowState, read_after
from sqla_vector.tracking.versions import FILLING

__all__ = ["Tally", "UpgradeEstimate", "UpgradeStatus"]

_READ: Final = 1000
"""Rows in one query."""
_EXAMPLES: Final = 5


@dataclass(frozen=True)
class UpgradeStatus:
    """How far a change of model is."""

    column: str
    """The column, such as ``Article.embedding``."""
    state: str | None
    """``filling``, ``cut over``, ``rolled back``, ``finished``; None if the model was never changed."""
    old: str | None
    new: str | None
    active: str
    """The model of the vectors in the column, ``name@version``."""
    wanted: str
    """The last one of ``Versions()``: the model that the column is to have."""
    rows: int = 0
    ready: int = 0
    """While filling: rows that have the new vector of their text, or no text."""
    missing: int = 0
    """Rows that have none yet."""
    stale: int = 0
    """Rows that were edited since."""
    failed: int = 0
    """Rows that cannot be embedded by the new model."""
    kept: int = 0
    """Vectors beside the column: the new model's while filling, the old one's after the cutover."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Why rows cannot be embedded, of the first ones, by row key."""
    is_stopped: bool = False
    """Whether ``fill()`` was stopped before the end; which rows are ready is not counted then."""

    @property
    def left(self) -> int:
        """Rows that still have to be embedded."""
        return self.missing + self.stale

    @property
    def is_ready(self) -> bool:
        """Whether the cutover has nothing more to embed."""
        is_filled = self.state == FILLING and self.new == self.wanted and not self.is_stopped
        return is_filled and not self.left and not self.failed

    @property
    def is_in_force(self) -> bool:
        """Whether the column has the model that it is to have."""
        return self.active == self.wanted


@dataclass(frozen=True)
class UpgradeEstimate:
    """What there is to do before a cutover."""

    column: str
    """The column, such as ``Article.embedding``."""
    model: str
    """The new model, ``name@version``."""
    rows: int
    left: int
    """Rows to embed, with those that the model refused before."""
    tokens: int
    """Of their texts."""


@dataclass
class Tally:
    """Counts what there is of a new model.

    Args:
        shelf: where the vectors of the new model are.
        model: the new one.
        count_tokens: returns the number of a text's tokens; None if they are not counted.
    """

    shelf: Shelf
    model: Model
    count_tokens: Callable[[str], int] | None = None
    kinds: dict[Kind, int] = field(default_factory=lambda: {"ready": 0, "missing": 0, "stale": 0, "failed": 0})
    reasons: dict[str, str] = field(default_factory=dict)
    to_embed: int = 0
    tokens: int = 0

    @property
    def rows(self) -> int:
        """All rows."""
        return sum(self.kinds.values())

    def count(self, meter: Meter | None = None) -> Steps[None]:
        """Look at all rows in the order of their keys."""
        after: Key | None = None
        while found := (yield Transaction(partial(self._look, after=after), to_write=False)):
            after = found[-1][0].key
            texts: dict[str, None] = {}
            for state, kind, reason in found:
                self.kinds[kind] += 1
                if kind == "failed" and len(self.reasons) < _EXAMPLES:
                    self.reasons[self.shelf.target.encode(state.key)] = reason
                if kind != "ready" and state.error is None and state.text is not None:
                    self.to_embed += 1
                    texts[state.text] = None
            if self.count_tokens is not None:
                self.tokens += sum(tokens_of(text, self.count_tokens) for text in texts)
            if meter is not None:
                yield from meter.advance(len(found))

    def _look(self, connection: Connection, *, after: Key | None) -> list[tuple[RowState, Kind, str]]:
        states = read_after(connection, self.shelf.target, self.shelf.column, after, _READ)
        beside = self.shelf.read(connection, [state.key for state in states]) if states else {}
        found = []
        for state in states:
            have = beside.get(state.key)
            reason = state.error or (have.reason if have is not None else None) or ""
            found.append((state, kind_of(state, have, self.model), reason))
        return found
