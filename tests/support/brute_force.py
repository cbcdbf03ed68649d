"""What every search must equal: distances and ranks computed by numpy, and rows to compute them on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from tests.support.backends import AnyEngine, Backend

FLOAT_METRICS = ("cosine", "l2", "l1", "inner_product")
BIT_METRICS = ("hamming", "jaccard")

Ranked = list[tuple[Any, float]]


def distance(metric: str, left: Any, right: Any) -> float:
    """Return the distance of two vectors in double precision; NaN where it is undefined."""
    a, b = np.asarray(left, np.float64), np.asarray(right, np.float64)
    match metric:
        case "cosine":
            lengths = np.linalg.norm(a) * np.linalg.norm(b)
            return float("nan") if lengths == 0 else 1.0 - float(a @ b) / lengths
        case "l2":
            return float(np.linalg.norm(a - b))
        case "l1":
            return float(np.abs(a - b).sum())
        case "inner_product":
            return -float(a @ b)
        case "hamming":
            return float((a != b).sum())
        case "jaccard":
            common, either = float(np.minimum(a, b).sum()), float(np.maximum(a, b).sum())
            return 1.0 if common == 0 else 1.0 - common / either
    raise AssertionError(metric)


def nearest(
    vectors: Mapping[Any, Any],
    query: Any,
    k: int,
    metric: str,
    *,
    keep: Callable[[Any], bool] = lambda key: True,
    offset: int = 0,
    max_distance: float = float("inf"),
) -> Ranked:
    """Return keys and distances of the k nearest, ties by key, as ``nearest()`` must.

    Args:
        vectors: key to vector; None where a row has none.
        query: the vector searched for.
        k: how many.
        metric: its name.
        keep: the statement's filter, on keys.
        offset: rows skipped.
        max_distance: the largest distance wanted.
    """
    # Rounded, so that equal vectors tie although a summation may end in another last bit.
    ranked = sorted(
        (round(d, 12), key)
        for key, vector in vectors.items()
        if vector is not None and keep(key) and (d := distance(metric, vector, query)) == d and d <= max_distance
    )
    return [(key, d) for d, key in ranked[offset : offset + k]]


def assert_equal(found: Iterable[Sequence[Any]], expected: Ranked, *, relative: float = 1e-5) -> None:
    """Compare rows that start with the key and end with the distance: same keys, same order, same distances."""
    rows = [(row[0], row[-1]) for row in found]
    assert [key for key, _ in rows] == [key for key, _ in expected]
    # Cosine subtracts nearly equal numbers, which leaves float32's own error however small the distance is.
    assert [d for _, d in rows] == pytest.approx([d for _, d in expected], rel=relative, abs=2e-6)


def make_vectors(count: int, dim: int, *, seed: int = 7) -> dict[int, Any]:
    """Return vectors by key from 1; among them a NULL, a zero vector and equal vectors.

    Every 10th row has no vector, every 10th a zero vector, and every 10th repeats row 1.
    """
    rng = np.random.default_rng(seed)
    vectors: dict[int, Any] = {}
    for key, vector in enumerate(rng.normal(size=(count, dim)).astype(np.float32), start=1):
        match key % 10:
            case 4:
                vectors[key] = None
            case 5:
                vectors[key] = np.zeros(dim, np.float32)
            case 6:
                vectors[key] = vectors[1]
            case _:
                vectors[key] = vector
    return vectors


def make_bits(count: int, dim: int, *, seed: int = 7) -> dict[int, Any]:
    """Return bit vectors by key from 1, with the same special rows as :func:`make_vectors`."""
    return {key: None if v is None else v > 0 for key, v in make_vectors(count, dim, seed=seed).items()}


def engine_that_indexes(backend: Backend, **options: Any) -> AnyEngine:
    """Return an engine on which declared indexes may be created: left out where sqlite-vec is missing."""
    if backend.name == "sqlite_numpy":
        options["vector_skip_missing_index"] = True
    return backend.make_engine(**options)
