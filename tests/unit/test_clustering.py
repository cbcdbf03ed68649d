"""Mini-batch k-means: what holds for the centroids of any vectors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqla_vector import clustering
from sqla_vector.clustering import Centroids, Reservoir, lists_for, train

ELEMENTS = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 3.0])
SAMPLES = st.lists(st.lists(ELEMENTS, min_size=3, max_size=3), min_size=1, max_size=40).map(
    lambda rows: np.array(rows, np.float32)
)


def topics(count: int, rows: int, dim: int = 16, spread: float = 0.1, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(count, dim))
    return (centres[random.integers(count, size=rows)] + spread * random.normal(size=(rows, dim))).astype(np.float32)


@given(sample=SAMPLES, lists=st.integers(1, 12), seed=st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_every_sample_has_centroids(sample, lists, seed):
    different = len(np.unique(sample + np.float32(0), axis=0))
    found = train(sample, lists, seed=seed)
    assert found.shape == (min(lists, different), 3)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    # A mean lies among what it is the mean of.
    assert (found >= sample.min(axis=0) - 1e-5).all()
    assert (found <= sample.max(axis=0) + 1e-5).all()
    assert (train(sample, lists, seed=seed) == found).all()


@given(sample=SAMPLES, lists=st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_spherical_centroids_have_length_one(sample, lists):
    sample = sample[sample.any(axis=1)]
    if not len(sample):
        return
    found = train(sample, lists, spherical=True)
    assert 1 <= len(found) <= lists
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)


@given(sample=SAMPLES, centroids=SAMPLES, spherical=st.booleans(), count=st.integers(1, 50))
@settings(max_examples=150, deadline=None)
def test_a_vector_belongs_to_the_nearest_centroid(sample, centroids, spherical, count):
    if spherical:
        centroids = centroids[centroids.any(axis=1)]
        if not len(centroids):
            return
        centroids = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    known = Centroids(centroids, spherical=spherical)
    assert len(known) == len(centroids)
    for vector, number in zip(sample, known.assign(sample), strict=True):
        distances = -(centroids @ vector) if spherical else ((centroids - vector) ** 2).sum(axis=1)
        assert distances[number] == pytest.approx(distances.min(), abs=1e-4)
        nearest = known.nearest(vector, count)
        assert len(set(nearest.tolist())) == min(count, len(centroids))
        assert distances[nearest] == pytest.approx(np.sort(distances)[: len(nearest)], abs=1e-4)
        assert distances[known.nearest(vector)[0]] == pytest.approx(distances.min(), abs=1e-4)


def test_blocks_change_nothing(monkeypatch):
    vectors = topics(20, 500)
    known = Centroids(train(vectors, 20), spherical=False)
    whole = known.assign(vectors)
    monkeypatch.setattr(clustering, "_BLOCK_BYTES", 4 * 20 * 7)
    assert (known.assign(vectors) == whole).all()


def test_an_older_numpy_finds_the_same(monkeypatch):
    vectors = topics(20, 300)
    known = Centroids(train(vectors, 20), spherical=False)
    found = [known.nearest(vector, 5).tolist() for vector in vectors]
    monkeypatch.delattr(np, "vecdot", raising=False)
    assert [known.nearest(vector, 5).tolist() for vector in vectors] == found


@pytest.mark.parametrize("spherical", [False, True], ids=["l2", "cosine"])
def test_separate_topics_are_found(spherical):
    vectors = topics(12, 1_200, spread=0.02)
    known = Centroids(train(vectors, 36, spherical=spherical), spherical=spherical)
    middles = known.matrix[known.assign(vectors)]
    given = vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if spherical else vectors
    # No list has vectors of two topics: all are near the middle of theirs.
    assert np.linalg.norm(given - middles, axis=1).max() < 0.25


def test_a_skewed_sample_has_no_list_that_is_much_too_large():
    random = np.random.default_rng(1)
    # Nine tenths in one narrow topic: lists that start at random rows of the rest would leave it to a few.
    dense = topics(1, 9_000, spread=0.05)
    sparse = random.normal(size=(1_000, 16)).astype(np.float32)
    vectors = np.concatenate([sparse, dense])
    counts = np.bincount(Centroids(train(vectors, 50), spherical=False).assign(vectors), minlength=50)
    assert counts.max() < 4 * counts.mean()


def test_equal_vectors_make_one_list_of_many_that_were_asked_for():
    sample = np.ones((500, 8), np.float32)
    assert train(sample, 10) == pytest.approx(np.ones((1, 8)))
    mixed = np.concatenate([sample, np.eye(8, dtype=np.float32)])
    found = train(mixed, 10)
    assert len(found) == 9


def test_vectors_that_cancel_out_leave_a_direction():
    sample = np.array([[1, 0], [-1, 0]] * 10, np.float32)
    found = train(sample, 1, spherical=True)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1)


@given(seen=st.integers(0, 3_000), capacity=st.integers(1, 1_500))
@settings(max_examples=30, deadline=None)
def test_a_reservoir_keeps_different_ones_of_what_passed(seen, capacity):
    reservoir = Reservoir(capacity, 2)
    for number in range(seen):
        reservoir.add(np.array([number, -number], np.float32))
    kept = reservoir.sample()
    assert reservoir.seen == seen
    assert kept.shape == (min(seen, capacity), 2)
    assert (kept[:, 0] == -kept[:, 1]).all()
    numbers = kept[:, 0].tolist()
    assert len(set(numbers)) == len(numbers)
    assert set(numbers) <= set(range(seen))


def test_a_reservoir_prefers_no_part_of_what_passed():
    kept = []
    for seed in range(40):
        reservoir = Reservoir(50, 1, seed)
        for number in range(2_000):
            reservoir.add(np.array([number], np.float32))
        kept.extend(reservoir.sample()[:, 0].tolist())
    tenths = np.bincount(np.array(kept, int) // 200, minlength=10)
    # 2,000 draws over ten tenths: 200 each, with a standard deviation of 13.
    assert tenths.min() > 140
    assert tenths.max() < 260


@pytest.mark.parametrize(("rows", "lists"), [(0, 1), (1, 2), (10_000, 200), (1_000_000, 2_000)])
def test_as_many_lists_as_suit_the_rows(rows, lists):
    assert lists_for(rows) == lists
