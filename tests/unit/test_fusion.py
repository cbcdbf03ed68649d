"""Lists are fused as the papers say."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqla_vector.exc import InvalidOption
from sqla_vector.fusion import Part, rrf, weighted

SCORES = st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0]), st.floats(-100, 100))
PARTS = st.lists(
    st.builds(
        Part,
        st.sampled_from(["text", "vector"]),
        st.dictionaries(st.tuples(st.integers(1, 8)), SCORES, max_size=8).map(lambda d: list(d.items())),
        st.sampled_from([1.0, 0.5, 3.0]),
    ),
    max_size=4,
)


def reference(parts: list[Part], k: int | None, alpha: float | None, normalize: str = "minmax") -> dict[Any, float]:
    """Return the score of each key, computed from the definitions and from nothing else."""
    scores: dict[Any, float] = {}
    for part in parts:
        values = {key: value for key, value in part.scores if value is not None}
        same_kind = sum(other.weight for other in parts if other.kind == part.kind)
        for key, value in values.items():
            if k is not None:
                better = sum(v > value or (v == value and other < key) for other, v in values.items())
                scores[key] = scores.get(key, 0.0) + part.weight / (k + 1 + better)
            else:
                assert alpha is not None
                share = (alpha if part.kind == "vector" else 1 - alpha) * part.weight / same_kind
                spread = max(values.values()) - min(values.values())
                normal = (value - min(values.values())) / spread if spread else 1.0
                if normalize == "max":
                    normal = value / max(map(abs, values.values())) if any(values.values()) else 0.0
                elif normalize == "none":
                    normal = value
                if share:
                    scores[key] = scores.get(key, 0.0) + share * normal
    return scores


@given(PARTS, st.sampled_from([1, 60, 1000]))
def test_rrf_is_the_papers(parts: list[Part], k: int):
    fused = rrf(k).fuse(parts)
    assert {one.key: one.score for one in fused} == pytest.approx(reference(parts, k, None))
    assert [(-one.score, one.key) for one in fused] == sorted((-one.score, one.key) for one in fused)


@given(PARTS, st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.sampled_from(["minmax", "max", "none"]))
def test_weighted_is_the_sum_of_normalised_scores(parts: list[Part], alpha: float, normalize: Any):
    fused = weighted(alpha, normalize).fuse(parts)
    assert {one.key: one.score for one in fused} == pytest.approx(reference(parts, None, alpha, normalize))
    assert [(-one.score, one.key) for one in fused] == sorted((-one.score, one.key) for one in fused)


@given(PARTS, st.randoms(use_true_random=False))
def test_neither_the_order_of_lists_nor_that_of_rows_matters(parts: list[Part], random: Any):
    shuffled = [Part(part.kind, random.sample(part.scores, len(part.scores)), part.weight) for part in parts]
    random.shuffle(shuffled)
    for fusion in (rrf(), weighted(0.3)):
        assert [(one.key, one.score) for one in fusion.fuse(shuffled)] == [
            (one.key, one.score) for one in fusion.fuse(parts)
        ]


def test_ranks_begin_at_one_and_a_row_without_a_value_has_none():
    text = Part("text", [((1,), 2.0), ((2,), None), ((3,), 2.0), ((4,), 9.0)])
    vector = Part("vector", [((2,), 0.1)])
    fused = {one.key: one for one in rrf().fuse([text, vector])}
    assert {key: one.ranks for key, one in fused.items()} == {
        (4,): (1, None),
        (1,): (2, None),
        (3,): (3, None),
        (2,): (None, 1),
    }
    assert fused[(4,)].score == fused[(2,)].score == 1 / 61


def test_alpha_of_zero_is_the_text_alone_and_of_one_the_vectors():
    parts = [Part("text", [((1,), 5.0), ((2,), 1.0)]), Part("vector", [((2,), 0.9), ((3,), 0.1)])]
    assert [one.key for one in weighted(0).fuse(parts)] == [(1,), (2,)]
    assert [one.key for one in weighted(1).fuse(parts)] == [(2,), (3,)]
    # Halves of the best of either list, then the worst ones.
    assert [(one.key, one.score) for one in weighted().fuse(parts)] == [((1,), 0.5), ((2,), 0.5), ((3,), 0.0)]


def test_equal_rows_are_in_the_order_of_their_keys():
    part = Part("text", [((3,), 1.0), ((1,), 1.0), ((2,), 1.0)])
    assert [one.key for one in rrf().fuse([part])] == [(1,), (2,), (3,)]
    assert [one.key for one in weighted().fuse([part])] == [(1,), (2,), (3,)]


def test_nothing_is_fused_to_nothing():
    assert rrf().fuse([]) == weighted().fuse([]) == rrf().fuse([Part("text", [])]) == []


@pytest.mark.parametrize("k", [0, -1, 2.5, "60", True, None, 1_000_001])
def test_a_k_that_is_none_is_refused(k: Any):
    with pytest.raises(InvalidOption, match="k must be a whole number"):
        rrf(k)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan, "0.5", True, None])
def test_an_alpha_that_is_none_is_refused(alpha: Any):
    with pytest.raises(InvalidOption, match="alpha is a number"):
        weighted(alpha)


@pytest.mark.parametrize("normalize", ["l2", "", None, 1, ["minmax"]])
def test_a_normalisation_that_is_none_is_refused(normalize: Any):
    with pytest.raises(InvalidOption, match="use one of minmax, max, none"):
        weighted(0.5, normalize)


@pytest.mark.parametrize("weight", [0, -1, math.inf, math.nan, "1", True])
def test_a_weight_that_is_none_is_refused(weight: Any):
    with pytest.raises(InvalidOption, match="positive number"):
        rrf().fuse([Part("text", [], weight)])
    with pytest.raises(InvalidOption, match="positive number"):
        weighted().fuse([Part("text", [], weight)])


def test_scores_that_cannot_be_compared_are_refused():
    with pytest.raises(InvalidOption, match="finite"):
        rrf().fuse([Part("text", [((1,), math.nan)])])
    with pytest.raises(InvalidOption, match="each key once"):
        rrf().fuse([Part("text", [((1,), 1.0), ((1,), 2.0)])])
