"""VectorQuery: fluent, as JSON, and what it refuses."""

from __future__ import annotations

import json
import sys
import tracemalloc
from typing import Any

import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqla_vector.exc import InvalidFilter, InvalidOption, InvalidQuery, InvalidText, InvalidVector, VectorError
from sqla_vector.fusion import rrf, weighted
from sqla_vector.query import AnyOf, Compare, VectorQuery
from sqla_vector.query.vector_query import LONGEST_JSON, LONGEST_TEXT, MAX_K, MAX_PARTS
from tests.query.test_filters import Item, filters

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)
weights = st.floats(0.01, 100)
fields = st.sampled_from(["embedding", "title_embedding"])


@st.composite
def queries(draw: Any) -> VectorQuery:
    query = VectorQuery(k=draw(st.integers(1, 50)), exact=draw(st.booleans()), source=draw(st.booleans()))
    for _ in range(draw(st.integers(0, 2))):
        bound = draw(st.sampled_from([{}, {"max_distance": 0.5}, {"min_similarity": 0.25}, {"metric": "l2"}]))
        vector = draw(st.lists(numbers, min_size=1, max_size=4))
        query = query.similar_to(draw(fields), vector, weight=draw(weights), **bound)
    for _ in range(draw(st.integers(0, 2))):
        query = query.near_text(draw(fields), draw(texts), name=draw(st.sampled_from([None, "part"])))
    if draw(st.booleans()):
        fusion = draw(st.sampled_from([None, rrf(3), weighted(0.25), weighted(1.0, normalize="max")]))
        query = query.hybrid(draw(texts), fusion=fusion, candidates=draw(st.sampled_from([None, 70])))
    if draw(st.booleans()):
        query = query.where(draw(filters))
    if draw(st.booleans()):
        query = query.rerank("mine")
    return query


@given(queries())
def test_json_carries_every_query(query: VectorQuery) -> None:
    try:
        again = VectorQuery.from_json(query.to_json())
    except InvalidFilter as error:
        assert "levels deep" in str(error)  # noqa: PT017
    else:
        assert again == query
        assert again.to_json() == query.to_json()
        assert VectorQuery.from_dict(query.to_dict()) == query


def test_methods_return_other_queries() -> None:
    first = VectorQuery()
    query = (
        first.similar_to(Item.price, np.array([1, 2], np.float32), name="near")
        .threshold(min_similarity=0.5)
        .hybrid("tea", fusion=weighted(0.7), candidates=40)
        .where(Item.lang == "en", Item.views > 3)
        .where(Compare("active", "eq", True))
        .rerank("mine", candidates=30)
        .include_source()
        .top(20)
    )
    assert first == VectorQuery()
    assert query.to_dict() == {
        "version": 1,
        "k": 20,
        "near": [{"field": "price", "vector": [1.0, 2.0], "name": "near", "min_similarity": 0.5}],
        "match": [{"text": "tea"}],
        "where": {
            "all": [
                {"field": "lang", "op": "eq", "value": "en"},
                {"field": "views", "op": "gt", "value": 3},
                {"field": "active", "op": "eq", "value": True},
            ]
        },
        "candidates": 30,
        "fusion": {"type": "weighted", "alpha": 0.7, "normalize": "minmax"},
        "rerank": "mine",
        "include_source": True,
    }


def test_the_elements_of_a_vector_are_the_same_numbers_afterwards() -> None:
    given_ = np.random.default_rng(3).normal(size=50).astype(np.float32)
    (near,) = VectorQuery.from_json(VectorQuery().similar_to("e", given_).to_json()).near
    assert np.array_equal(np.array(near.vector, np.float32), given_)


def test_bits_stay_bits() -> None:
    (near,) = VectorQuery.from_json(VectorQuery().similar_to("e", [True, False]).to_json()).near
    assert near.vector == (True, False)


def test_a_query_is_a_field_of_a_pydantic_model() -> None:
    class Request(pydantic.BaseModel):
        query: VectorQuery

    query = VectorQuery().near_text("embedding", "tea").where(Item.lang == "en")
    request = Request(query=query)
    assert Request.model_validate_json(request.model_dump_json()).query == query
    assert Request.model_validate({"query": query.to_dict()}).query == query
    assert Request.model_json_schema()["properties"]
    with pytest.raises(pydantic.ValidationError, match="k is a whole number"):
        Request.model_validate({"query": {"version": 1, "k": 0}})


GOOD = VectorQuery().similar_to("embedding", [1.0]).to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 1 here, got 2"),
        ({"version": None}, "version 1 here"),
        ({"version": "1"}, "version 1 here"),
        ({"version": True}, "version 1 here"),
        ({"version": 1.0}, "version 1 here"),
        ({"K": 3}, "has no 'K'"),
        ({"__class__": "x"}, "has no '__class__'"),
        ({"k": 0}, "k is a whole number"),
        ({"k": -1}, "k is a whole number"),
        ({"k": MAX_K + 1}, "k is a whole number"),
        ({"k": True}, "k is a whole number"),
        ({"k": "10"}, "k is a whole number"),
        ({"k": 1e9}, "k is a whole number"),
        ({"candidates": 3}, "candidates is a whole number"),
        ({"candidates": 10**9}, "candidates is a whole number"),
        ({"exact": 1}, "exact must be"),
        ({"include_source": "yes"}, "source must be"),
        ({"rerank": "a;b"}, "rerank is a name"),
        ({"rerank": {}}, "rerank is a name"),
        ({"near": {}}, "near is a list"),
        ({"near": [3]}, "an item of near is an object"),
        ({"near": [{}]}, "has no field"),
        ({"near": [{"field": "e"}]}, "give a vector or a text"),
        ({"near": [{"field": "e", "vector": [1], "text": "a"}]}, "give a vector or a text"),
        ({"near": [{"field": 'a"b', "text": "a"}]}, "near: field is a name"),
        ({"near": [{"field": "e", "text": 3}]}, "is a text, got int"),
        ({"near": [{"field": "e", "text": "a" * (LONGEST_TEXT + 1)}]}, "characters at most"),
        ({"near": [{"field": "e", "text": "a", "exact": True}]}, "has no 'exact'"),
        ({"near": [{"field": "e", "text": "a", "weight": 0}]}, "weight is larger than 0"),
        ({"near": [{"field": "e", "text": "a", "weight": 1e308}]}, "weight is larger than 0"),
        ({"near": [{"field": "e", "text": "a", "weight": 10**400}]}, "weight is a finite number"),
        ({"near": [{"field": "e", "text": "a", "max_distance": 10**400}]}, "max_distance is a finite number"),
        ({"near": [{"field": "e", "text": "a", "weight": "1"}]}, "weight is a finite number"),
        ({"near": [{"field": "e", "text": "a", "max_distance": "x"}]}, "max_distance is a finite number"),
        ({"near": [{"field": "e", "text": "a", "max_distance": 1, "min_similarity": 1}]}, "not both"),
        ({"near": [{"field": "e", "text": "a", "name": "x y"}]}, "the name of a part is a name"),
        ({"near": [{"field": "e", "text": "a"}] * (MAX_PARTS + 1)}, "parts at most"),
        ({"match": [{}]}, "has no text"),
        ({"match": [{"text": "a", "index": "%s"}]}, "match: index is a name"),
        ({"match": [{"text": "a"}] * MAX_PARTS}, "parts at most"),
        ({"fusion": "rrf"}, "fusion is an object"),
        ({"fusion": {}}, "fusion has type"),
        ({"fusion": {"type": ["rrf"]}}, "fusion has type"),
        ({"fusion": {"type": "rrf", "alpha": 1}}, "has no 'alpha'"),
    ],
)
def test_data_that_is_no_query_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidQuery, match=message) as refused:
        VectorQuery.from_dict({**GOOD, **change})
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(
    "vector",
    [
        [],
        [[1.0]],
        [[[1], [1, 2]]],
        [["a", ""]],
        ["1"],
        "1",
        [None],
        {"a": 1},
        3,
        [float("nan")],
        [10**400],
        [1.0] * 16_001,
    ],
)
def test_a_vector_that_is_none_is_refused(vector: Any) -> None:
    with pytest.raises(InvalidVector):
        VectorQuery.from_dict({**GOOD, "near": [{"field": "e", "vector": vector}]})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "3",
        '{"version": 1, "version": 1}',
        '{"version": 1, "k": NaN}',
        '{"version": 1, "near": [{"field": "e", "vector": [Infinity]}]}',
        '{"version": 1, "k": ' + "9" * 5000 + "}",
        '{"version": 1, "where": ' + '{"not": ' * 5000 + "1" + "}" * 5001,
        "[" * 100_000,
        b"\xff\xfe",
        b"\x80\x04\x95",
        " " * (LONGEST_JSON + 1),
    ],
    ids=lambda text: str(text)[:30],
)
def test_text_that_is_no_query_is_refused(text: str | bytes) -> None:
    with pytest.raises((InvalidQuery, InvalidFilter)):
        VectorQuery.from_json(text)


def test_a_message_is_short_whatever_was_given() -> None:
    deep: Any = []
    for _ in range(sys.getrecursionlimit()):
        deep = [deep]
    for change in (
        {"k": deep},
        {"k": 10**5000},
        {"fusion": {"type": "weighted", "normalize": "x" * 1_000_000}},
        {"fusion": {"type": "weighted", "alpha": "x" * 1_000_000}},
        {"fusion": {"type": "rrf", "k": "x" * 1_000_000}},
    ):
        with pytest.raises((InvalidQuery, InvalidOption)) as refused:
            VectorQuery.from_dict({**GOOD, **change})
        assert len(str(refused.value)) < 300


def test_what_is_nested_in_a_vector_is_not_read() -> None:
    # NumPy would make an array of it that has a hundred thousand times the size of the JSON.
    nested = ["x" * 500_000, *[""] * 1_000]
    tracemalloc.start()
    try:
        with pytest.raises(InvalidVector, match="element 0 is nested"):
            VectorQuery.from_dict({**GOOD, "near": [{"field": "e", "vector": [nested]}]})
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_method_keeps_what_it_is_not_told() -> None:
    query = VectorQuery(fusion=rrf(7)).similar_to("e", [1.0]).rerank("r", candidates=200).hybrid("tea")
    assert (query.candidates, query.fusion) == (200, rrf(7))


def test_a_filter_that_was_put_together_is_no_longer_than_one_of_json() -> None:
    query = VectorQuery().similar_to("e", [1.0])
    for number in range(25):
        query = query.where(AnyOf(tuple(Compare("n", "eq", 4 * number + n) for n in range(4))))
    assert VectorQuery.from_json(query.to_json()) == query
    with pytest.raises(InvalidFilter, match="100 comparisons at most"):
        query.where(Compare("n", "eq", 1))


@pytest.mark.parametrize("number", ["1e400", "-1e999"])
def test_a_number_that_overflows_is_refused(number: str) -> None:
    with pytest.raises(InvalidVector):
        VectorQuery.from_json('{"version": 1, "near": [{"field": "e", "vector": [' + number + "]}]}")


def test_what_is_no_text_is_said() -> None:
    with pytest.raises(InvalidQuery, match=r"from_dict\(\) takes data"):
        VectorQuery.from_json({"version": 1})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        lambda: VectorQuery(near=(3,)),  # type: ignore[arg-type]
        lambda: VectorQuery(filter="lang = 'en'"),  # type: ignore[arg-type]
        lambda: VectorQuery(fusion="rrf"),  # type: ignore[arg-type]
        lambda: VectorQuery().threshold(max_distance=1.0),
        lambda: VectorQuery().similar_to(3, [1.0]),
        lambda: VectorQuery().rerank("a b"),
        lambda: VectorQuery().top(0),
    ],
)
def test_an_argument_that_is_none_is_refused(make: Any) -> None:
    with pytest.raises(InvalidQuery):
        make()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5), part, max_size=3),
    max_leaves=10,
)
KEYS = ["k", "near", "match", "where", "candidates", "fusion", "rerank", "exact", "include_source"]


@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4))
def test_whatever_comes_is_a_query_or_a_typed_error(data: dict[str, Any]) -> None:
    try:
        query = VectorQuery.from_dict({"version": 1, **data})
    except VectorError:
        return
    except TypeError as error:  # pragma: no cover
        raise AssertionError(f"{data} raised {error}") from error
    assert VectorQuery.from_json(json.dumps(query.to_dict())) == query


def test_a_text_with_half_a_character_is_refused_when_it_is_used() -> None:
    from sqla_vector.embedding.source import clean

    with pytest.raises(InvalidText):
        clean(VectorQuery().near_text("e", "a\ud800").near[0].text)
