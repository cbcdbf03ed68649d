"""Lists of near vectors: mini-batch k-means with lists of like size, in numpy alone.

Everything is deterministic: the same vectors in the same order and the same seed give the same centroids.  Memory is
bounded by the sample and by blocks of it, whatever the number of lists.

Sources: Sculley, *Web-scale k-means clustering*, WWW 2010 (mini-batches); Dhillon and Modha, *Concept decompositions
for large sparse text data using clustering*, Machine Learning 42, 2001 (spherical k-means); Vitter, *Random sampling
with a reservoir*, ACM TOMS 11, 1985.
"""

from __future__ import annotations

from math import ceil, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Centroids", "Reservoir", "lists_for", "train"]

Matrix = NDArray[np.float32]

ROWS_PER_LIST: Final = 50
"""How many vectors of a sample make a centroid (pgvector's number)."""

_PASSES: Final = 8
_TOO_LARGE: Final = 1.8
_TOO_SMALL: Final = 0.5
_BLOCK_BYTES: Final = 16 * 2**20


def lists_for(rows: int) -> int:
    """Return how many lists suit a number of rows: twice its square root.

    A search reads the centroids and some lists, so it reads least when there are about as many lists as rows in
    those; twice, because reading centroids is the cheaper of the two.
    """
    return max(1, round(2 * sqrt(rows)))


class Centroids:
    """The middle of each list, and which of them are nearest to a vector.

    Args:
        matrix: the centroids, shape (lists, dim), float32.
        spherical: compare by angle (cosine), not by Euclidean distance.
    """

    def __init__(self, matrix: Matrix, *, spherical: bool) -> None:
        self.matrix = np.ascontiguousarray(matrix, np.float32)
        self.spherical = spherical
        # Of a - b and a - c the shorter is told by the products with a: |a|² is the same in both.
        squares = np.einsum("ij,ij->i", self.matrix, self.matrix)
        self._bias = np.zeros_like(squares) if spherical else squares / 2

    def __len__(self) -> int:
        return len(self.matrix)

    def assign(self, vectors: Matrix) -> NDArray[np.int64]:
        """Return the number of the nearest centroid of each vector, shape (n,); of equally near ones the first."""
        found = np.empty(len(vectors), np.int64)
        block = max(1, _BLOCK_BYTES // (4 * len(self)))
        for start in range(0, len(vectors), block):
            part = vectors[start : start + block]
            found[start : start + block] = (part @ self.matrix.T - self._bias).argmax(axis=1)
        return found

    def nearest(self, vector: Matrix, count: int = 1) -> NDArray[np.int64]:
        """Return the numbers of the centroids nearest to one vector, nearest first."""
        scores = _products(self.matrix, vector) - self._bias
        if count == 1:
            return np.array([scores.argmax()])
        count = min(count, len(scores))
        found = np.argpartition(-scores, count - 1)[:count]
        return found[np.lexsort((found, -scores[found]))]


def _products(matrix: Matrix, vector: Matrix) -> Matrix:
    """Return the product of each row with a vector, in this thread.

    ``matrix @ vector`` is shared out among threads, and waits for the slowest of them: on a busy machine for
    milliseconds.
    """
    if hasattr(np, "vecdot"):  # numpy 2
        return np.asarray(np.vecdot(matrix, vector), np.float32)
    return np.asarray(np.einsum("ij,j->i", matrix, vector), np.float32)


class Reservoir:
    """A random sample of the vectors that pass by, of bounded size.

    Args:
        capacity: how many vectors to keep.
        dim: their dimension.
        seed: of the choice.
    """

    def __init__(self, capacity: int, dim: int, seed: int = 0) -> None:
        self.seen = 0
        self._capacity = capacity
        self._random = np.random.default_rng(seed)
        self._kept = np.empty((min(capacity, 1024), dim), np.float32)
        self._places: list[int] = []

    def add(self, vector: Matrix) -> None:
        """Take notice of a vector."""
        place = self.seen
        self.seen += 1
        if place >= self._capacity:
            place = self._draw()
            if place >= self._capacity:
                return
        elif place == len(self._kept):
            larger = np.empty((min(self._capacity, 2 * place), self._kept.shape[1]), np.float32)
            larger[:place] = self._kept
            self._kept = larger
        self._kept[place] = vector

    def _draw(self) -> int:
        """Return a whole number under ``seen``; drawn by the thousand, which is faster."""
        if not self._places:
            first = self.seen
            self._places = self._random.integers(0, np.arange(first, first + 1024))[::-1].tolist()
        return self._places.pop()

    def sample(self) -> Matrix:
        """Return the vectors that were kept, shape (n, dim)."""
        return self._kept[: min(self.seen, self._capacity)]


def train(sample: Matrix, lists: int, *, spherical: bool = False, seed: int = 0) -> Matrix:
    """Return the centroids of a sample, shape (n, dim) with ``1 <= n <= lists``.

    There are fewer than asked for when the sample has fewer different vectors.

    Args:
        sample: shape (n, dim), float32, n >= 1; under ``spherical`` without zero vectors.
        lists: how many lists.
        spherical: by angle; the centroids have length 1.
        seed: of the random choices.
    """
    sample = np.ascontiguousarray(sample, np.float32)
    if spherical:
        sample = sample / np.linalg.norm(sample, axis=1, keepdims=True)
    random = np.random.default_rng(seed)
    first = _different(sample, lists, random)
    centroids = sample[first]
    batch = max(1024, 4 * lists)
    for number in range(_PASSES):
        is_last = number == _PASSES - 1
        weights = np.zeros(len(centroids), np.float32)
        order = random.permutation(len(sample))
        for start in range(0, len(order), batch):
            part = sample[order[start : start + batch]]
            centroids = _moved(centroids, weights, part, spherical)
        if not is_last:
            centroids = _balanced(centroids, sample, spherical, random)
    return centroids


def _different(sample: Matrix, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return the places of up to ``count`` random rows of which no two are equal."""
    order = random.permutation(len(sample))
    # 0.0 and -0.0 are one value and two patterns of bits.
    rows = np.ascontiguousarray(sample[order[: 4 * count]] + np.float32(0))
    whole = rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize))).ravel()
    _, first = np.unique(whole, return_index=True)
    if len(first) < count and 4 * count < len(order):
        rows = np.ascontiguousarray(sample[order] + np.float32(0))
        whole = rows.view(np.dtype((np.void, rows.shape[1] * rows.itemsize))).ravel()
        _, first = np.unique(whole, return_index=True)
    return order[np.sort(first)[:count]]


def _moved(centroids: Matrix, weights: NDArray[np.float32], part: Matrix, spherical: bool) -> Matrix:
    """Return the centroids moved towards the vectors of a batch that are theirs; ``weights`` counts them in place."""
    assigned = Centroids(centroids, spherical=spherical).assign(part)
    order = np.argsort(assigned, kind="stable")
    changed, starts, counts = np.unique(assigned[order], return_index=True, return_counts=True)
    sums = np.add.reduceat(part[order], starts, axis=0)
    before = weights[changed]
    weights[changed] = before + counts
    moved = centroids.copy()
    moved[changed] = (centroids[changed] * before[:, None] + sums) / weights[changed][:, None]
    if spherical:
        lengths = np.linalg.norm(moved, axis=1, keepdims=True)
        # Vectors that cancel out have no direction: the centroid stays where it was.
        moved = np.where(lengths > 1e-12, moved / np.maximum(lengths, 1e-12), centroids)
    return moved


def _balanced(centroids: Matrix, sample: Matrix, spherical: bool, random: np.random.Generator) -> Matrix:
    """Return the centroids, those of small lists replaced by vectors of large lists, which the next pass divides."""
    assigned = Centroids(centroids, spherical=spherical).assign(sample)
    counts = np.bincount(assigned, minlength=len(centroids))
    mean = len(sample) / len(centroids)
    large = np.flatnonzero(counts > _TOO_LARGE * mean)
    small = np.flatnonzero(counts < _TOO_SMALL * mean)
    large = large[np.argsort(-counts[large], kind="stable")]
    small = small[np.argsort(counts[small], kind="stable")]
    # A very large list takes several centroids: so that each part is of mean size.
    wanted = [number for number in large for _ in range(ceil(counts[number] / mean) - 1)]
    moved = centroids.copy()
    for place, number in zip(small, wanted, strict=False):
        members = np.flatnonzero(assigned == number)
        moved[place] = sample[random.choice(members)]
    return moved
