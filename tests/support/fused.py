"""What a hybrid search must equal, written down from the definitions and nothing of the package's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest


class Part(NamedTuple):
    """A list of keys with scores, best first."""

    kind: str
    weight: float
    rows: Sequence[tuple[Any, float]]


class Row(NamedTuple):
    key: Any
    score: float
    ranks: tuple[int | None, ...]
    scores: tuple[float | None, ...]


def fuse(parts: Sequence[Part], *, rrf: int | None = None, alpha: float = 0.5, normalize: str = "minmax") -> list[Row]:
    """Return all rows of all parts, best first, ties by key."""
    gained: dict[Any, list[float]] = defaultdict(list)
    ranks: dict[Any, list[int | None]] = defaultdict(lambda: [None] * len(parts))
    scores: dict[Any, list[float | None]] = defaultdict(lambda: [None] * len(parts))
    for number, part in enumerate(parts):
        alike = sum(other.weight for other in parts if other.kind == part.kind)
        share = (alpha if part.kind == "vector" else 1 - alpha) * part.weight / alike
        if rrf is None and share == 0:
            continue
        values = [score for _, score in part.rows]
        for rank, (key, score) in enumerate(part.rows, start=1):
            if rrf is not None:
                gain = part.weight / (rrf + rank)
            elif normalize == "minmax":
                spread = max(values) - min(values)
                gain = share * ((score - min(values)) / spread if spread else 1.0)
            elif normalize == "max":
                gain = share * (score / max(abs(value) for value in values) if any(values) else 0.0)
            else:
                gain = share * score
            gained[key].append(gain)
            ranks[key][number], scores[key][number] = rank, score
    rows = [Row(key, sum(sorted(terms)), tuple(ranks[key]), tuple(scores[key])) for key, terms in gained.items()]
    return sorted(rows, key=lambda row: (-round(row.score, 12), row.key))


def assert_fused(found: Sequence[Any], expected: Sequence[Row], start: int = 0, k: int | None = None) -> None:
    """Compare rows ``(key, score, rank, score, rank, score, ...)`` with those of the reference.

    Two rows may change places only where the reference can hardly tell them apart: a database computes in float32.
    """
    page = expected[start:] if k is None else expected[start : start + k]
    assert len(found) == len(page)
    by_key = {row.key: row for row in expected}
    for row, wanted in zip(found, page, strict=True):
        assert row[1] == pytest.approx(wanted.score, rel=1e-5, abs=2e-6)
        if row[0] != wanted.key:
            assert by_key[row[0]].score == pytest.approx(wanted.score, rel=1e-6, abs=1e-6)
        own = by_key[row[0]]
        assert tuple(row[2::2]) == own.ranks
        assert [one is None for one in row[3::2]] == [one is None for one in own.scores]
        known = [(one, two) for one, two in zip(row[3::2], own.scores, strict=True) if two is not None]
        assert [one for one, _ in known] == pytest.approx([two for _, two in known], rel=1e-5, abs=2e-6)
    assert len({row[0] for row in found}) == len(found)
