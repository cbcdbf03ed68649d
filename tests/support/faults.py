"""The faults that may happen between a client of Elasticsearch and a node, as data for the proxy that makes them."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Passed:
    """No fault."""


@dataclass(frozen=True)
class Items:
    """Answers 200, but some items of a bulk request were refused: these are not forwarded.

    Attributes:
        status: of these items.
        positions: which, counted from 0; those beyond the request's items are left out.
    """

    status: int
    positions: Collection[int]


@dataclass(frozen=True)
class Answer:
    """Answers with an error, as a server or a proxy in front of it does.

    Attributes:
        status: such as 429, 502 or 503.
        forwarded: whether the request was carried out all the same.
    """

    status: int
    forwarded: bool = False


@dataclass(frozen=True)
class Reset:
    """Resets the connection, before or after the request was carried out."""

    forwarded: bool = False


@dataclass(frozen=True)
class Truncated:
    """The request is carried out, and its answer ends in the middle."""


@dataclass(frozen=True)
class Late:
    """Answers nothing until the client hangs up; the request is carried out afterwards.

    Attributes:
        after: how many further requests are answered before; None for not before :meth:`FaultProxy.deliver_late`.
    """

    after: int | None = None


@dataclass(frozen=True)
class Twice:
    """The request is carried out twice.

    Attributes:
        answer: which of the two answers the client gets: 0 or 1.
    """

    answer: int = 1


Fault = Passed | Items | Answer | Reset | Truncated | Late | Twice


def random_faults(seed: int, count: int, *, items: int = 500) -> list[Fault]:
    """Return ``count`` faults of all kinds, the same for the same seed.

    Args:
        seed: of the random numbers.
        count: how many.
        items: the number of items of the largest bulk request; each is refused with probability 1/4.
    """
    chance = random.Random(seed)

    def refused() -> frozenset[int]:
        return frozenset(position for position in range(items) if chance.random() < 0.25) | {0}

    kinds = (
        lambda: Items(403, refused()),
        lambda: Items(429, refused()),
        lambda: Items(400, refused()),
        lambda: Items(409, refused()),
        lambda: Answer(429),
        lambda: Answer(502, forwarded=chance.random() < 0.5),
        lambda: Reset(forwarded=chance.random() < 0.5),
        Truncated,
        lambda: Late(after=chance.randrange(4)),
        lambda: Twice(answer=chance.randrange(2)),
    )
    return [chance.choice(kinds)() for _ in range(count)]
