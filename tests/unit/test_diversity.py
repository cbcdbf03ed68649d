"""mmr() is the paper's, by an independent reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqla_vector import SparseArray
from sqla_vector.exc import InvalidOption
from sqla_vector.search import Hit, mmr

VALUES = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0])
VECTORS = st.one_of(st.none(), st.lists(VALUES, min_size=3, max_size=3))
BITS = st.one_of(st.none(), st.lists(st.booleans(), min_size=8, max_size=8))


def similarity(metric: str, a: list[Any], b: list[Any]) -> float:
    match metric:
        case "cosine":
            product = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
            return sum(x * y for x, y in zip(a, b, strict=True)) / product if product else 0.0
        case "inner_product":
            return sum(x * y for x, y in zip(a, b, strict=True))
        case "l2":
            return 1 / (1 + math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True))))
        case "l1":
            return 1 / (1 + sum(abs(x - y) for x, y in zip(a, b, strict=True)))
        case "hamming":
            return 1 - sum(x != y for x, y in zip(a, b, strict=True)) / len(a)
        case "jaccard":
            common, either = (
                sum(x and y for x, y in zip(a, b, strict=True)),
                sum(x or y for x, y in zip(a, b, strict=True)),
            )
            return common / either if common else 0.0
    raise AssertionError(metric)


def reference(hits: list[Hit[int]], k: int, lambda_: float, metric: str) -> list[list[int]]:
    """Return for each step the hits that may be taken, given those that were: equal ones within rounding."""
    chosen: list[Hit[int]] = []
    steps = []
    rest = list(hits)
    while rest and len(chosen) < k:
        marginal = []
        for hit in rest:
            known = [
                similarity(metric, hit.vector, other.vector)
                for other in chosen
                if hit.vector is not None and other.vector is not None
            ]
            marginal.append(lambda_ * hit.similarity - (1 - lambda_) * (max(known) if known else 0.0))
        best = [hit for hit, value in zip(rest, marginal, strict=True) if value > max(marginal) - 1e-9]
        steps.append([hit.entity for hit in best])
        yielded = mmr(hits, k=len(chosen) + 1, lambda_=lambda_, metric=metric)[-1]
        chosen.append(yielded)
        rest = [hit for hit in rest if hit is not yielded]
    return steps


@given(
    st.lists(st.tuples(VECTORS, st.floats(-1, 1)), min_size=1, max_size=9),
    st.integers(1, 12),
    st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]),
    st.sampled_from(["cosine", "l2", "l1", "inner_product"]),
)
def test_mmr_takes_the_best_of_what_is_left(rows: Any, k: int, lambda_: float, metric: str):
    hits = [Hit(number, None, relevant, None, None, vector=v) for number, (v, relevant) in enumerate(rows)]
    if all(hit.vector is None for hit in hits):
        with pytest.raises(InvalidOption, match="vectors=True"):
            mmr(hits, k=k)
        return
    found = mmr(hits, k=k, lambda_=lambda_, metric=metric)
    steps = reference(hits, k, lambda_, metric)
    assert len(found) == len(steps) == min(k, len(hits))
    for hit, allowed in zip(found, steps, strict=True):
        assert hit.entity in allowed
    assert len({hit.entity for hit in found}) == len(found)


@given(st.lists(BITS.filter(bool), min_size=1, max_size=8), st.sampled_from(["hamming", "jaccard"]))
def test_mmr_of_bits(rows: Any, metric: str):
    hits = [Hit(number, None, 0.5, None, None, vector=np.array(v)) for number, v in enumerate(rows)]
    found = mmr(hits, k=9, lambda_=0.4, metric=metric)
    for hit, allowed in zip(found, reference(hits, 9, 0.4, metric), strict=True):
        assert hit.entity in allowed


def make(*rows: tuple[float | None, float | None, Any]) -> list[Hit[int]]:
    return [Hit(n, None, near, None, None, score, vector=v) for n, (near, score, v) in enumerate(rows)]


def test_a_copy_of_a_better_hit_waits():
    hits = make((0.9, None, [1, 0]), (0.89, None, [1, 0]), (0.5, None, [0, 1]))
    assert [hit.entity for hit in mmr(hits, k=3)] == [0, 2, 1]
    assert [hit.entity for hit in mmr(hits, k=3, lambda_=1)] == [0, 1, 2]
    assert [hit.entity for hit in mmr(hits, k=2, lambda_=0)] == [0, 2]
    assert mmr([], k=3) == []


def test_equal_hits_are_in_their_order():
    hits = make(*[(0.5, None, [1, 0])] * 4)
    assert [hit.entity for hit in mmr(hits, k=4)] == [0, 1, 2, 3]


def test_a_score_of_another_kind_is_brought_to_the_range_of_a_similarity():
    # Logits of a reranker; without scaling, the repetition would count for nothing.
    hits = make((0.9, 9.0, [1, 0]), (0.8, 8.9, [1, 0]), (0.1, 5.0, [0, 1]), (None, None, [0, 1]), (None, 1.0, None))
    assert [hit.entity for hit in mmr(hits, k=2)] == [0, 2]
    assert [hit.entity for hit in mmr(hits, k=5, lambda_=1)] == [0, 1, 2, 3, 4]
    assert [hit.entity for hit in mmr(hits, k=2, relevance=lambda hit: hit.score or 0.0)] == [0, 1]
    same = make((None, 2.0, [1, 0]), (None, 2.0, [1, 0]), (None, 2.0, [0, 1]))
    assert [hit.entity for hit in mmr(same, k=3)] == [0, 2, 1]


def test_sparse_and_half_vectors():
    sparse = [SparseArray(5, {0: 1.0}), SparseArray(5, {0: 2.0}), SparseArray(5, {4: 1.0})]
    hits = make(*[(0.5, None, v) for v in sparse])
    assert [hit.entity for hit in mmr(hits, k=3)] == [0, 2, 1]
    halves = make(*[(0.5, None, np.array(v, np.float16)) for v in ([1, 0], [1, 0], [0, 1])])
    assert [hit.entity for hit in mmr(halves, k=3)] == [0, 2, 1]


@pytest.mark.parametrize(
    "options",
    [
        *({"k": k} for k in (0, -1, 2.5, True, None, "3")),
        *({"lambda_": value} for value in (-0.1, 1.1, float("nan"), "0.5", True, None)),
        {"metric": "euclidean"},
        {"metric": None},
        {"relevance": lambda hit: float("nan")},
        {"relevance": lambda hit: float("inf")},
    ],
    ids=lambda options: "-".join(options),
)
def test_an_option_that_is_none_is_refused(options: dict[str, Any]):
    with pytest.raises(InvalidOption):
        mmr(make((0.9, None, [1, 0])), **options)


def test_vectors_of_different_dimensions_are_refused():
    with pytest.raises(InvalidOption, match="different dimensions"):
        mmr(make((0.9, None, [1, 0]), (0.9, None, [1, 0, 0])))
