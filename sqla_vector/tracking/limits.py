"""Limits of an embedder's use that all workers of all processes keep to together, through the database."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Final

from sqlalchemy import Column, Connection, Double, MetaData, String, Table, insert, select, update
from sqlalchemy.exc import IntegrityError

from sqla_vector.dialects.clock import database_now
from sqla_vector.exc import EmbedderUnavailable, InvalidOption
from sqla_vector.schema import check_identifier
from sqla_vector.tracking.steps import Pause, Steps, Transaction

__all__ = ["Limits", "RateLimit", "estimate_tokens", "limits_table", "tokens_of"]

_MARK: Final = "sqla_vector_limits"
_KINDS: Final = ("requests", "texts", "tokens")

Levels = dict[str, float]
"""What is left in the bucket of each kind; below zero after a text that is larger than the bucket."""


def estimate_tokens(text: str) -> int:
    """Return about how many tokens a text has: one for four characters, which fits English prose."""
    return math.ceil(len(text) / 4)


def tokens_of(text: str, count: Callable[[str], int]) -> int:
    """Return how many tokens a function counts, or about how many there are where it fails.

    Tokenizers refuse some texts, such as those with a mark of their own, and none must keep a worker from going on.
    """
    try:
        return max(0, int(count(text)))
    except Exception:
        return estimate_tokens(text)


@dataclass(frozen=True)
class RateLimit:
    """How much of an embedder may be used, as token buckets that fill up evenly.

    A bucket holds ``burst`` times the limit and begins full.  So in any time of ``t`` seconds no more is used than
    what the bucket holds and ``limit * t / per``.  With the default, ``requests=60`` lets 60 requests go at once,
    and one a second from then on; who must not exceed a limit in any single minute halves it, or lowers ``burst``.

    Args:
        requests: calls of the embedder's ``embed()``.  One that sends a call's texts in several requests is better
            limited by texts or tokens.
        texts: texts.
        tokens: tokens, as ``count_tokens`` counts them.  A single text of more tokens than the bucket holds waits for
            a full one, and what it takes beyond that is waited for afterwards.
        per: the seconds for which the limits are given: 60 for a limit per minute.
        burst: how much may be used at once, as a part of the limit, over 0 up to 1; one of each is always possible.
        count_tokens: returns the number of a text's tokens; by default, and where it fails, one for four
            characters.

    Raises:
        InvalidOption: a number is out of its range, or no limit is given.
    """

    requests: float | None = None
    texts: float | None = None
    tokens: float | None = None
    per: float = 60.0
    burst: float = 1.0
    count_tokens: Callable[[str], int] = estimate_tokens

    def __post_init__(self) -> None:
        for kind in _KINDS:
            if getattr(self, kind) is not None:
                _check_positive(getattr(self, kind), kind)
        if not self.limits:
            raise InvalidOption("RateLimit() limits nothing; give requests=, texts= or tokens=")
        _check_positive(self.per, "per")
        _check_positive(self.burst, "burst", 1.0)
        if not callable(self.count_tokens):
            raise InvalidOption(f"count_tokens= is a function from a text to its tokens, got {self.count_tokens!r}")

    @property
    def limits(self) -> Levels:
        """The limits that are given, by kind."""
        return {kind: getattr(self, kind) for kind in _KINDS if getattr(self, kind) is not None}

    @property
    def capacities(self) -> Levels:
        """What the full buckets hold."""
        return {kind: max(1.0, limit * self.burst) for kind, limit in self.limits.items()}

    def need_of(self, texts: Sequence[str]) -> Levels:
        """Return what one call with some texts takes."""
        return {
            "requests": 1.0,
            "texts": float(len(texts)),
            "tokens": float(sum(map(self._tokens, texts))) if self.tokens is not None else 0.0,
        }

    def _tokens(self, text: str) -> int:
        return tokens_of(text, self.count_tokens)

    def fitting(self, texts: Sequence[str]) -> int:
        """Return how many of some texts, from the first on, full buckets are enough for; at least one."""
        most = len(texts)
        full = self.capacities
        if "texts" in full:
            most = min(most, int(full["texts"]))
        if "tokens" in full:
            sums = accumulate(map(self._tokens, texts[:most]))
            most = sum(1 for tokens in sums if tokens <= full["tokens"])
        return max(1, most)

    def take(self, before: Mapping[str, float | None], seconds: float, need: Mapping[str, float]) -> Levels | float:
        """Return what is left after a call, or how many seconds to wait first.

        Args:
            before: what was left at some time; None for a bucket that was not used yet.
            seconds: how long ago that was.
            need: what the call takes.
        """
        now: Levels = {}
        waits = [0.0]
        for kind, full in self.capacities.items():
            rate = self.limits[kind] / self.per
            level = before.get(kind)
            now[kind] = full if level is None else min(full, level + max(seconds, 0.0) * rate)
            lacks = min(need[kind], full) - now[kind]
            if lacks > 1e-9 * full:  # what is lost when numbers are rounded is no reason to wait
                waits.append(lacks / rate)
        if max(waits) > 0.0:
            return max(waits)
        return {kind: level - need[kind] for kind, level in now.items()}


def _check_positive(value: object, name: str, most: float = float("inf")) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most or value == math.inf:
        up_to = "" if most == math.inf else f" up to {most:g}"
        raise InvalidOption(f"RateLimit: {name} must be a number over 0{up_to}, got {value!r}")


def limits_table(metadata: MetaData, name: str = "vector_limits", schema: str | None = None) -> Table:
    """Declare the table of what is left of each limit, to be created and migrated with a project's own.

    It has one row for each limited embedder.  A row that is deleted is a full bucket.

    Args:
        metadata: the project's.
        name: the table's name.
        schema: its schema.

    Raises:
        InvalidIdentifier: a name cannot be one.
    """
    check_identifier(name, "table name")
    if schema is not None:
        check_identifier(schema, "schema")
    return Table(
        name,
        metadata,
        Column("name", String(255), primary_key=True),
        Column("requests", Double),
        Column("texts", Double),
        Column("tokens", Double),
        Column("refilled_at", Double, nullable=False),
        schema=schema,
        info={_MARK: True},
    )


class Limits:
    """The limits of a program's embedders, by the names that models call them.

    Args:
        limits: by name.
        table: made by :func:`limits_table`, in the database of the rows.
        names: the embedders that there are.

    Raises:
        InvalidOption: one of them is none.
    """

    def __init__(self, limits: Mapping[str, RateLimit] | None, table: Table | None, names: Sequence[str]) -> None:
        limits = {} if limits is None else limits
        if not isinstance(limits, Mapping) or not all(isinstance(one, RateLimit) for one in limits.values()):
            raise InvalidOption(f'limits= is a dict such as {{"minilm": RateLimit(requests=60)}}, got {limits!r}')
        for name in limits:
            if name not in names:
                raise InvalidOption(f"limits= names {name!r}, which is no embedder; there are {', '.join(names)}")
        if limits and (not isinstance(table, Table) or not table.info.get(_MARK)):
            raise InvalidOption(
                f"limits= needs limits_table=, what limits_table(Base.metadata) returned, got {table!r}"
            )
        self._limits = dict(limits)
        self._table = table

    def share(self, name: str, texts: Sequence[str], until: float | None = None) -> Steps[int]:
        """Wait for a share of an embedder, and return for how many of some texts it is, from the first on.

        Args:
            name: the embedder's.
            texts: that are to be embedded.
            until: when to give up, by :func:`time.monotonic`.

        Raises:
            EmbedderUnavailable: there will be no share until then, or the program is to stop.
        """
        limit = self._limits.get(name)
        if limit is None:
            return len(texts)
        number, waited = limit.fitting(texts), False
        while True:
            need = limit.need_of(texts[:number])
            try:
                wait: float = yield Transaction(partial(self._take, name=name, limit=limit, need=need))
            except IntegrityError:
                continue  # another worker has just written the first row
            if wait == 0.0:
                return number
            if until is not None and time.monotonic() + wait > until:
                raise EmbedderUnavailable(f"the limits of {name} are used up for {wait:.1f} seconds", retry_after=wait)
            # Not all that wait at the same moment.
            if (yield Pause(wait * random.uniform(1.0, 1.05) + random.uniform(0.0, 0.01))):
                raise EmbedderUnavailable(f"stopped while waiting for a share of {name}", retry_after=0.0)
            if waited and limit.limits.keys() != {"requests"}:
                # Others, who take less each time, were served before; in the end a single text will do.
                number = max(1, number // 2)
            waited = True

    def _take(self, connection: Connection, name: str, limit: RateLimit, need: Levels) -> float:
        """Take a share, and return 0; or the seconds until there may be one."""
        table: Any = self._table
        c = table.c
        mine = c.name == name
        stmt = select(c.requests, c.texts, c.tokens, c.refilled_at).where(mine).with_for_update()
        row = connection.execute(stmt).one_or_none()
        # After the lock: whoever held it took its share before.
        now = float(connection.scalar(select(database_now())) or 0.0)
        before = dict(zip(_KINDS, row, strict=False)) if row is not None else {}
        left = limit.take(before, now - row.refilled_at if row is not None else 0.0, need)
        if isinstance(left, float):
            return left
        values: dict[str, Any] = {**left, "refilled_at": now}
        connection.execute(update(table).where(mine) if row is not None else insert(table).values(name=name), values)
        return 0.0
