"""The table of metrics, checked for itself and against what numpy computes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqla_vector import InvalidOption, UnsupportedMetric
from sqla_vector.metrics import METRICS, Metric, default_metric, resolve_metric
from tests.support import reference

DIMENSION = 8
BITS = st.lists(st.booleans(), min_size=DIMENSION, max_size=DIMENSION)
FLOATS = st.lists(st.integers(-50, 50).map(float), min_size=DIMENSION, max_size=DIMENSION)

every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)


@every_metric
@given(data=st.data())
def test_similarity_and_distance_are_inverse(metric: Metric, data: st.DataObject) -> None:
    largest = {"hamming": DIMENSION, "jaccard": 1.0, "cosine": 2.0}.get(metric.name, 1e4)
    lowest = -1e4 if metric.name == "inner_product" else 0.0
    d = data.draw(st.floats(lowest, largest))
    assert metric.distance(metric.similarity(d, DIMENSION), DIMENSION) == pytest.approx(d, rel=1e-9, abs=1e-9)


@every_metric
@given(data=st.data())
def test_a_smaller_distance_is_a_larger_similarity(metric: Metric, data: st.DataObject) -> None:
    near, far = sorted(data.draw(st.lists(st.integers(0, 100), min_size=2, max_size=2, unique=True)))
    assert metric.similarity(float(near), DIMENSION) > metric.similarity(float(far), DIMENSION)


@every_metric
@given(data=st.data())
def test_the_similarity_formula_is_the_documented_one(metric: Metric, data: st.DataObject) -> None:
    vectors = BITS if "bit" in metric.kinds else FLOATS
    left, right = data.draw(vectors), data.draw(vectors)
    d = reference.distance(metric.name, left, right)
    if d is None:
        assert metric.zero_is_undefined
        assert not np.any(left) or not np.any(right)
        return
    expected = reference.similarity(metric.name, left, right)
    assert metric.similarity(d, DIMENSION) == expected
    assert eval(metric.similarity_formula, {"d": d, "n": DIMENSION}) == expected  # noqa: S307


@pytest.mark.parametrize("name", ["l2", "l1"])
@pytest.mark.parametrize("similarity", [0.0, -0.5])
def test_no_distance_is_as_dissimilar_as_zero(name: str, similarity: float) -> None:
    assert METRICS[name].distance(similarity, DIMENSION) == math.inf


def test_every_kind_of_column_has_its_metrics() -> None:
    by_kind = {
        kind: {metric.name for metric in METRICS.values() if kind in metric.kinds}
        for kind in ("vector", "halfvec", "sparsevec", "bit")
    }
    floats = {"cosine", "l2", "l1", "inner_product"}
    assert by_kind == {"vector": floats, "halfvec": floats, "sparsevec": floats, "bit": {"hamming", "jaccard"}}


def test_the_default_metric_is_one_that_the_kind_has() -> None:
    assert default_metric("bit").name == "hamming"
    for kind in ("vector", "halfvec", "sparsevec"):
        assert default_metric(kind).name == "cosine"


def test_operator_classes_are_named_as_pgvector_names_them() -> None:
    assert METRICS["cosine"].opclass("vector") == "vector_cosine_ops"
    assert METRICS["inner_product"].opclass("sparsevec") == "sparsevec_ip_ops"
    assert METRICS["jaccard"].opclass("bit") == "bit_jaccard_ops"


@pytest.mark.parametrize("name", ["euclidean", "", "COSINE", "cosine; DROP TABLE x", None, 3, ["cosine"]])
def test_an_unknown_metric_is_refused_with_the_known_ones(name: object) -> None:
    with pytest.raises(InvalidOption, match=r"unknown metric .*; use one of cosine, l2, l1, inner_product, hamming"):
        resolve_metric(name)  # type: ignore[arg-type]


def test_a_metric_of_another_kind_is_refused_with_those_it_has() -> None:
    with pytest.raises(UnsupportedMetric, match=r"item\.e is a vector column and has no hamming metric; it has cosine"):
        resolve_metric("hamming", "vector", "item.e")
    with pytest.raises(UnsupportedMetric, match=r"item\.b is a bit column .*; it has hamming, jaccard"):
        resolve_metric("l2", "bit", "item.b")
