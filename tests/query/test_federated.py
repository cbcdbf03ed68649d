"""Several sources asked the same: what they do wrong stays theirs."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from sqla_vector.exc import InvalidOption, SearchUnavailable
from sqla_vector.query import VectorQuery, federated
from sqla_vector.query.federated import afederated
from sqla_vector.search import Hit


def hit(number: int, similarity: float | None) -> Hit[Any]:
    return Hit(entity=number, distance=None, similarity=similarity, text=None, row=None)


async def test_when_a_source_fails_the_others_are_over() -> None:
    over = asyncio.Event()

    async def down(_: VectorQuery) -> Any:
        await asyncio.sleep(0)
        raise SearchUnavailable("down")

    async def slow(_: VectorQuery) -> Any:
        try:
            await asyncio.sleep(60)
        finally:
            over.set()

    with pytest.raises(SearchUnavailable):
        await afederated({"slow": slow, "down": down}, VectorQuery().similar_to("e", [1.0]))
    assert over.is_set()


async def test_a_source_is_of_its_kind() -> None:
    query = VectorQuery().similar_to("e", [1.0])

    async def source(_: VectorQuery) -> list[Hit[Any]]:
        return []

    with pytest.raises(InvalidOption, match="'a' is asynchronous"):
        federated({"a": source}, query)
    with pytest.raises(InvalidOption, match="'a' is not asynchronous"):
        await afederated({"a": lambda query: []}, query)  # type: ignore[arg-type,return-value]
    for wrong in (None, 3, [3]):
        with pytest.raises(InvalidOption, match="no list of hits"):
            federated({"a": lambda query, wrong=wrong: wrong}, query)


def test_a_similarity_that_is_none_comes_last() -> None:
    hits = [hit(n, similarity) for n, similarity in enumerate((0.9, math.nan, 0.95, 0.6), start=1)]
    found = federated({"a": lambda query: hits}, VectorQuery().similar_to("e", [1.0]))
    assert [one.hit.entity for one in found] == [3, 1, 4, 2]
