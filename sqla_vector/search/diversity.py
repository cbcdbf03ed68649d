"""Diversity: hits that are good and do not repeat each other.

Source: Carbonell and Goldstein, *The use of MMR, diversity-based reranking for reordering documents and producing
summaries*, SIGIR 1998.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sqla_vector.coercion import SparseArray
from sqla_vector.exc import InvalidOption
from sqla_vector.metrics import METRICS, resolve_metric
from sqla_vector.schema import check_whole_number

if TYPE_CHECKING:
    from sqla_vector.search.hits import Hit

__all__ = ["mmr"]

T = TypeVar("T")


def mmr(
    hits: Sequence[Hit[T]],
    k: int = 10,
    *,
    lambda_: float = 0.5,
    metric: str = "cosine",
    relevance: Callable[[Hit[T]], float] | None = None,
) -> list[Hit[T]]:
    """Return ``k`` hits by maximal marginal relevance: each the best of what is left, less what it repeats.

    The next hit is the one with the largest ``lambda_ * relevance - (1 - lambda_) * similarity``, where the similarity
    is that to the most similar hit taken before.  Equal ones are in the order of the hits.

    Args:
        hits: what ``search(session, stmt, vectors=True)`` returns, several times as many as are wanted.
        k: how many to return.
        lambda_: from 0 (as different as can be) to 1 (in the order of relevance).
        metric: by which two hits are compared; its similarity is that of :func:`sqla_vector.similarity`.
        relevance: how good a hit is; by default its similarity, or where its score is another (of a fusion, of a second
            stage), the score brought to 0..1 among the hits.

    Returns:
        The hits in the order in which they were taken.  A hit without a vector repeats no other one.

    Raises:
        InvalidOption: an option out of its range, hits that were loaded without vectors, a relevance that is no number.
        UnsupportedMetric: the vectors have no such metric.
    """
    check_whole_number(k, "k", 1, 1_000_000)
    if isinstance(lambda_, bool) or not isinstance(lambda_, (int, float)) or not 0.0 <= lambda_ <= 1.0:
        raise InvalidOption(f"lambda_ is a number from 0 (different) to 1 (relevant), got {lambda_!r}")
    resolve_metric(metric)
    if not hits:
        return []
    if all(hit.vector is None for hit in hits):
        raise InvalidOption("mmr() compares vectors, and the hits have none: search(session, stmt, vectors=True)")
    good = _relevances(hits, relevance)
    matrix, present = _matrix([hit.vector for hit in hits])
    most = np.full(len(hits), -np.inf)
    left = np.ones(len(hits), bool)
    taken: list[int] = []
    while len(taken) < min(k, len(hits)):
        # Before the first is taken, and for a hit without a vector, there is nothing to repeat.
        repeated = np.where(np.isneginf(most), 0.0, most)
        marginal = np.where(left, lambda_ * good - (1.0 - lambda_) * repeated, -np.inf)
        chosen = int(np.argmax(marginal))
        taken.append(chosen)
        left[chosen] = False
        if present[chosen]:
            similar = np.where(present, _similarities(metric, matrix, matrix[chosen]), -np.inf)
            most = np.maximum(most, similar)
    return [hits[number] for number in taken]


def _relevances(hits: Sequence[Hit[Any]], relevance: Callable[[Hit[Any]], float] | None) -> NDArray[np.float64]:
    if relevance is not None:
        found = np.array([relevance(hit) for hit in hits], np.float64)
        if not np.isfinite(found).all():
            raise InvalidOption("relevance= must return a finite number for each hit")
        return found
    if all(hit.similarity is not None and hit.score in (None, hit.similarity) for hit in hits):
        return np.array([hit.similarity for hit in hits], np.float64)
    known = [hit.score for hit in hits if hit.score is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    spread = high - low
    return np.array(
        [0.0 if hit.score is None else (hit.score - low) / spread if spread else 1.0 for hit in hits], np.float64
    )


def _matrix(vectors: Sequence[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return vectors as rows, and which of them there are."""
    dense = [_dense(vector) for vector in vectors]
    dims = {len(vector) for vector in dense if vector is not None}
    if len(dims) != 1:
        raise InvalidOption(f"the vectors of the hits have different dimensions: {sorted(dims)}")
    nothing = np.zeros(dims.pop())
    present = np.array([vector is not None for vector in dense])
    return np.array([nothing if vector is None else vector for vector in dense]), present


def _dense(vector: Any) -> NDArray[np.float64] | None:
    if vector is None:
        return None
    if isinstance(vector, SparseArray):
        dense = np.zeros(vector.dim)
        dense[np.asarray(vector.indices)] = vector.values
        return dense
    return np.asarray(vector, np.float64)


def _similarities(metric: str, matrix: NDArray[np.float64], vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the similarity of each row to a vector; 0 where it is undefined."""
    match metric:
        case "cosine":
            lengths = np.linalg.norm(matrix, axis=1) * np.linalg.norm(vector)
            products = np.asarray(matrix @ vector)
            return np.asarray(np.divide(products, lengths, out=np.zeros(len(matrix)), where=lengths > 0))
        case "inner_product":
            return np.asarray(matrix @ vector)
        case "l2":
            distances = np.linalg.norm(matrix - vector, axis=1)
        case "l1":
            distances = np.abs(matrix - vector).sum(axis=1)
        case "hamming":
            distances = (matrix != vector).sum(axis=1).astype(np.float64)
        case _:
            common, either = np.minimum(matrix, vector).sum(axis=1), np.maximum(matrix, vector).sum(axis=1)
            share = np.divide(common, either, out=np.zeros(len(matrix)), where=common > 0)
            distances = 1.0 - share
    similarity = METRICS[metric].similarity
    return np.array([similarity(float(distance), len(vector)) for distance in distances])
