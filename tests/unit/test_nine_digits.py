"""How a query for Elasticsearch is written: short, and exact."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sqla_vector.elasticsearch.query import nine_digits

NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(vector=arrays(np.float32, st.integers(1, 8), elements=NUMBERS))
@example(np.array([0.0, -0.0, 1e-45, 3.4028235e38], np.float32))
def test_the_server_reads_the_number_that_was_given(vector: np.ndarray) -> None:
    read = np.array(json.loads(json.dumps(nine_digits(vector))), np.float32)
    assert read.tobytes() == vector.tobytes()


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_nine_digits_are_enough(scale: float) -> None:
    vector = (np.random.default_rng(5).standard_normal(1000) * scale).astype(np.float32)
    written = [repr(number) for number in nine_digits(vector)]
    digits = [text.lstrip("-").partition("e")[0].replace(".", "").strip("0") for text in written]
    assert max(map(len, digits)) == 9
