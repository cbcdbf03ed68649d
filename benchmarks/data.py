"""The vectors that the programs store and look for."""

from __future__ import annotations

import functools
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import DIM, QUERIES

LATENT = 48


@functools.lru_cache(maxsize=2)
def clustered(rows: int, dim: int = DIM, seed: int = 0) -> NDArray[np.float32]:
    """Return unit vectors with the structure that embeddings have: topics, and few directions that matter.

    Each is the centre of one of ``rows / 100`` topics plus as much deviation of its own, both normally distributed
    in a space of 48 dimensions whose axes weigh less and less (as the singular values of real embeddings do), turned
    into ``dim`` dimensions by one random map, with a little noise.
    """
    random = np.random.default_rng(seed)
    latent = min(LATENT, dim)
    weights = (1 / np.sqrt(np.arange(1, latent + 1))).astype(np.float32)
    turn = np.random.default_rng(12345).standard_normal((latent, dim), np.float32)
    centres = np.random.default_rng(54321).standard_normal((max(10, rows // 100), latent), np.float32)
    result = np.empty((rows, dim), np.float32)
    for start in range(0, rows, 10_000):
        count = min(10_000, rows - start)
        own = random.standard_normal((count, latent), np.float32)
        topic = centres[random.integers(len(centres), size=count)]
        block = ((topic + own) * weights) @ turn
        block += 0.1 * random.standard_normal((count, dim), np.float32)
        result[start : start + count] = block / np.linalg.norm(block, axis=1, keepdims=True)
    result.setflags(write=False)
    return result


@functools.lru_cache(maxsize=1)
def gaussian(rows: int, dim: int = DIM, count: int = QUERIES) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return unit vectors without any structure, the hardest to index, and as many to look for as asked."""
    found = np.random.default_rng(7).standard_normal((rows + count, dim), np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found[:rows], found[rows:]


def queries(rows: int, dim: int = DIM, count: int = QUERIES) -> NDArray[np.float32]:
    """Return vectors of the same distribution as ``clustered(rows)`` that are not among them."""
    random = np.random.default_rng(99)
    like = clustered(rows, dim)[random.integers(rows, size=count)]
    moved = like + (0.5 / np.sqrt(dim)) * random.standard_normal((count, dim), np.float32)
    return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)


def nearest_by_hand(matrix: NDArray[np.float32], query: NDArray[np.float32], k: int = 10) -> set[int]:
    """Return the row numbers of the k nearest unit vectors by cosine distance, and of those as near as the last."""
    similarity = matrix @ query
    return set(np.flatnonzero(similarity >= np.partition(similarity, -k)[-k] - 1e-6).tolist())


def recall_of(truth: list[set[int]], found: list[list[Any]], k: int = 10) -> float:
    """Return which part of the k rows found for each query are of the true nearest, on average."""
    return float(np.mean([len(t & {row[0] for row in f}) / k for t, f in zip(truth, found, strict=True)]))


@functools.lru_cache(maxsize=1)
def docstrings(rows: int | None = None) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the unit vectors of the standard library's docstrings, as the demo makes them, and of others to look for.

    The latter are every n-th docstring, 200 of them, which are left out of the former.
    """
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
    try:
        demo = importlib.import_module("search_python_docs")
    finally:
        sys.path.pop(0)
    entries = demo.read_docstrings(() if rows is None else ("json", "csv", "email", "logging"))
    # The texts that the demo embeds: the name, and the docstring's first paragraph.
    texts = [" ".join((name, name.split(".")[-1], text.split("\n\n")[0])) for name, _, text in entries]
    model = demo.TextModel.fit(texts)
    matrix = np.stack([model.embed(text) for text in texts])
    matrix = matrix[matrix.any(axis=1)]
    asked = np.zeros(len(matrix), bool)
    asked[:: max(2, len(matrix) // QUERIES)] = True
    return matrix[~asked], matrix[asked][:QUERIES]
