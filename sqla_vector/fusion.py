"""Fusion: several ranked lists of the same rows become one.

Pure functions over keys and scores.  They know neither a database nor a search engine, so that a hybrid search is
fused in the same way wherever its parts come from.

Sources: Cormack, Clarke and Büttcher, *Reciprocal rank fusion outperforms Condorcet and individual rank learning
methods*, SIGIR 2009; min-max normalisation: Lee, *Analyses of multiple evidence combination*, SIGIR 1997.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from sqla_vector.coercion import as_float
from sqla_vector.exc import InvalidOption, shown

__all__ = ["RRF", "Fused", "Fusion", "Kind", "Normalize", "Part", "Weighted", "check_weight", "rrf", "weighted"]

Key = tuple[Any, ...]
Kind = Literal["text", "vector"]
Normalize = Literal["minmax", "max", "none"]
NORMALIZE: Final = ("minmax", "max", "none")
MAX_RRF_K: Final = 1_000_000
LEAST_WEIGHT: Final = 1e-6
MOST_WEIGHT: Final = 1e6


@dataclass(frozen=True, slots=True)
class Part:
    """One ranked list.

    Args:
        kind: what found it.
        scores: key and score of each row, larger is better, in any order.  A row whose score is None has no value
            there: it is treated as if the list did not have it.
        weight: how much the list counts; beside a text, how vector lists share what counts as vector.
    """

    kind: Kind
    scores: Sequence[tuple[Key, float | None]]
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Fused:
    """A row of the fused list."""

    key: Key
    score: float
    """Larger is better; comparable within one list only."""
    ranks: tuple[int | None, ...]
    """Its rank in each part, from 1; None where the part has it not."""


@dataclass(frozen=True, slots=True)
class RRF:
    """Reciprocal rank fusion: a row's score is the sum of ``weight / (k + rank)`` over the lists that have it."""

    k: int = 60

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or not 1 <= self.k <= MAX_RRF_K:
            raise InvalidOption(f"rrf(k): k must be a whole number from 1 to 1,000,000, got {shown(self.k)}")

    def fuse(self, parts: Sequence[Part]) -> list[Fused]:
        """Return the rows of all parts, best first; equal scores are in the order of their keys."""
        return _fuse(parts, lambda part: [part.weight / (self.k + rank) for rank in range(1, len(part.scores) + 1)])


@dataclass(frozen=True, slots=True)
class Weighted:
    """Weighted sum of scores that were made comparable within their list.  A row that a list has not gets 0 there."""

    alpha: float = 0.5
    normalize: Normalize = "minmax"

    def __post_init__(self) -> None:
        number = isinstance(self.alpha, (int, float)) and not isinstance(self.alpha, bool)
        if not number or not 0.0 <= self.alpha <= 1.0:
            raise InvalidOption(
                f"weighted(alpha): alpha is a number from 0 (text) to 1 (vector), got {shown(self.alpha)}"
            )
        if not isinstance(self.normalize, str) or self.normalize not in NORMALIZE:
            raise InvalidOption(f"weighted(normalize): use one of {', '.join(NORMALIZE)}, got {shown(self.normalize)}")

    def shares(self, parts: Sequence[tuple[Kind, float]]) -> list[float]:
        """Return how much each part counts, of their kinds and weights; 0 of one that adds no rows."""
        for _, weight in parts:
            check_weight(weight)
        totals = {kind: math.fsum(weight for other, weight in parts if other == kind) for kind, _ in parts}
        by_kind = {"text": 1.0 - self.alpha, "vector": self.alpha}
        return [by_kind[kind] * weight / totals[kind] for kind, weight in parts]

    def fuse(self, parts: Sequence[Part]) -> list[Fused]:
        """Return the rows of all parts, best first; equal scores are in the order of their keys.

        A part that counts nothing adds no rows: with ``alpha=0`` there are those of the text only.
        """
        shares = iter(self.shares([(part.kind, part.weight) for part in parts]))

        def contributions(part: Part) -> list[float] | None:
            share = next(shares)
            if share == 0.0:
                return None
            scores = [float(score) for _, score in part.scores if score is not None]
            low, high = min(scores, default=0.0), max(scores, default=0.0)
            match self.normalize:
                case "minmax":
                    return [share * ((score - low) / (high - low) if high > low else 1.0) for score in scores]
                case "max":
                    largest = max(abs(low), abs(high))
                    return [share * (score / largest if largest > 0.0 else 0.0) for score in scores]
                case _:
                    return [share * score for score in scores]

        return _fuse(parts, contributions)


Fusion = RRF | Weighted
"""What :func:`rrf` and :func:`weighted` return."""


def rrf(k: int = 60) -> RRF:
    """Fuse by ranks: no scores need to be comparable.

    Args:
        k: the larger, the less the first ranks stand out; 60 is the paper's.

    Raises:
        InvalidOption: ``k`` is no whole number from 1.

    >>> text = Part("text", [((1,), 9.5), ((2,), 3.0)])
    >>> vector = Part("vector", [((2,), 0.9), ((3,), 0.8)])
    >>> [fused.key for fused in rrf().fuse([text, vector])]
    [(2,), (1,), (3,)]
    """
    return RRF(k)


def weighted(alpha: float = 0.5, normalize: Normalize = "minmax") -> Weighted:
    """Fuse by scores, which are made comparable within each list.

    Args:
        alpha: how much vectors count, from 0 (text only) to 1 (vectors only).
        normalize: ``"minmax"``: the best score of a list becomes 1 and the worst 0, or all 1 if they are equal;
            ``"max"``: scores are divided by the largest one (by its absolute value), so that the last row of a list
            still counts more than one that the list has not; ``"none"``: scores are taken as they are.

    Raises:
        InvalidOption: ``alpha`` is outside 0..1, or there is no such ``normalize``.
    """
    return Weighted(alpha, normalize)


def _fuse(parts: Sequence[Part], contributions_of: Callable[[Part], list[float] | None]) -> list[Fused]:
    sums: dict[Key, list[float]] = {}
    ranks: dict[Key, list[int | None]] = {}
    for number, part in enumerate(parts):
        ranked = _ranked(part)
        contributions = contributions_of(ranked)
        if contributions is None:
            continue
        for rank, ((key, _), contribution) in enumerate(zip(ranked.scores, contributions, strict=True), start=1):
            sums.setdefault(key, []).append(contribution)
            ranks.setdefault(key, [None] * len(parts))[number] = rank
    scored = [(key, _total(terms)) for key, terms in sums.items()]
    return [Fused(key, score, tuple(ranks[key])) for key, score in by_score(scored)]


def _total(terms: list[float]) -> float:
    """Add up the largest first, as SQL does: neither the order of the parts nor the database can tell equal rows apart.

    One by one, because sum() compensates for what is lost, on some versions of Python.
    """
    total = 0.0
    for term in sorted(terms, reverse=True):
        total += term
    return total


def check_weight(weight: object) -> float:
    """Return what a list counts, if it can be that."""
    found = as_float(weight)
    if found is None or not LEAST_WEIGHT <= found <= MOST_WEIGHT:
        raise InvalidOption(
            f"the weight of a list must be a positive number, 0.000001 to 1,000,000, got {shown(weight)}"
        )
    return found


def _ranked(part: Part) -> Part:
    """Return a part best first, ties by key, without rows that have no score."""
    weight = check_weight(part.weight)
    scores = [(key, float(score)) for key, score in part.scores if score is not None]
    if any(not math.isfinite(score) for _, score in scores):
        raise InvalidOption("the scores of a list must be finite numbers, or None where there is no value")
    if len({key for key, _ in scores}) != len(scores):
        raise InvalidOption("a list that is fused must have each key once")
    return Part(part.kind, by_score(scores), weight)


def by_score(scores: Iterable[tuple[Key, float]]) -> list[tuple[Key, float]]:
    """Return keys with their scores best first; equal scores are in the order of their keys."""
    return sorted(scores, key=lambda one: (-one[1], one[0]))
