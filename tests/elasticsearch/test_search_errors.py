"""What cannot be searched is refused before anything is sent; what the server says comes as a typed error."""

from __future__ import annotations

import math
import socket
import traceback
from typing import Any

import pytest
from elasticsearch import AsyncElasticsearch, Elasticsearch
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from sqla_vector.elasticsearch import Knn, Match, Searcher, Terms
from sqla_vector.exc import (
    DimensionMismatch,
    IndexMissing,
    InvalidFilter,
    InvalidOption,
    InvalidText,
    InvalidVector,
    NonFiniteVector,
    SearchError,
    SearchUnavailable,
    VectorError,
)
from tests.elasticsearch.searched import DIM, make_world, vectors

SECRET = "hush-hush"
VECTOR = vectors(1)[0].tolist()


@pytest.fixture
def nowhere(index_name: str) -> Any:
    """A searcher whose client has secrets and no server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        # Bound and not listening: nobody else can answer there.
        world = make_world(index_name)
        url = f"http://127.0.0.1:{port}"
        with Elasticsearch(url, basic_auth=("somebody", SECRET), max_retries=0, request_timeout=5) as client:
            world.searcher = Searcher(client, world.index)
            yield world


REFUSED: list[tuple[dict[str, Any], type[VectorError]]] = [
    *(({"k": k}, InvalidOption) for k in (0, -1, 10_001, 2.5, "3", True, None)),
    *(({"knn": knn}, InvalidOption) for knn in ([], "embedding", [1, 2], {"field": "embedding"}, VECTOR)),
    ({"knn": Knn("nothing", VECTOR)}, InvalidOption),
    ({"knn": Knn("title", VECTOR)}, InvalidOption),
    ({"knn": Knn({"a": 1}, VECTOR)}, InvalidOption),  # type: ignore[arg-type]
    ({"knn": Knn("embedding", None)}, InvalidOption),
    ({"knn": Knn("embedding", VECTOR[:-1])}, DimensionMismatch),
    ({"knn": Knn("embedding", [math.nan] * DIM)}, NonFiniteVector),
    ({"knn": Knn("embedding", [1e39] * DIM)}, NonFiniteVector),
    ({"knn": Knn("embedding", "[1,2]")}, InvalidVector),
    ({"knn": Knn("embedding", [True] * DIM)}, InvalidVector),
    ({"knn": Knn("embedding", [VECTOR])}, InvalidVector),
    *(({"knn": Knn("embedding", VECTOR, num_candidates=n)}, InvalidOption) for n in (0, -1, 10_001, "9", True)),  # type: ignore[arg-type]
    *(({"knn": Knn("embedding", VECTOR, weight=w)}, InvalidOption) for w in (0, -1, math.inf, math.nan, "1")),  # type: ignore[arg-type]
    ({"knn": Knn("embedding", VECTOR, max_distance=1, min_similarity=1)}, InvalidOption),
    ({"knn": Knn("embedding", VECTOR, max_distance=math.nan)}, InvalidOption),
    ({"knn": Knn("embedding", VECTOR, min_similarity="1")}, InvalidOption),  # type: ignore[arg-type]
    ({"knn": Knn("embedding", VECTOR, max_distance=10**400)}, InvalidOption),
    ({"knn": Knn("embedding", VECTOR, min_similarity=-(10**5000))}, InvalidOption),
    ({"knn": Knn("embedding", VECTOR, weight=10**400)}, InvalidOption),
    ({"knn": Knn("embedding", VECTOR, oversample=2)}, InvalidOption),
    ({"knn": Knn("embedding", VECTOR, exact=1)}, InvalidOption),  # type: ignore[arg-type]
    ({"knn": Knn("other", VECTOR, exact=True)}, InvalidOption),
    ({"text": 5}, InvalidOption),
    ({"text": Match(5)}, InvalidText),  # type: ignore[arg-type]
    ({"text": Match("tea", fields=5)}, InvalidOption),  # type: ignore[arg-type]
    ({"text": Match("tea", fields=["unindexed"])}, InvalidOption),
    *(({"options": options}, InvalidOption) for options in (5, "author", [5])),
    ({"text": "\ud800"}, InvalidText),
    ({"text": "a" * 10_001}, InvalidText),
    *(
        ({"text": Match("tea", fields=[field])}, InvalidOption)
        for field in (
            "nothing",
            "number",
            "*",
            "title^",
            "title^-1",
            "title^1e9",
            "title^2^3",
            5,
            "_id",
            "_all",
            "embedding",
        )
    ),
    ({"text": Match("tea", operator="xor")}, InvalidOption),  # type: ignore[arg-type]
    ({"text": Match("tea", type="phrase_prefix")}, InvalidOption),  # type: ignore[arg-type]
    *(({"text": Match("tea", fuzziness=f)}, InvalidOption) for f in (3, -1, "auto:1,2", True)),  # type: ignore[arg-type]
    ({"text": Match("tea", type="cross_fields", fuzziness=1)}, InvalidOption),
    *(({"text": Match("tea", minimum_should_match=m)}, InvalidOption) for m in ("x", "3<90%", True, 2.5)),  # type: ignore[arg-type]
    ({"fusion": "rrf"}, InvalidOption),
    ({"window": 0}, InvalidOption),
    *(({flag: 1}, InvalidOption) for flag in ("highlight", "refresh")),
    ({"where": "lang = 'en'"}, InvalidFilter),
    *(
        ({"aggs": aggs}, InvalidOption)
        for aggs in (
            [],
            {"a": "lang"},
            {"a[b]": Terms("lang")},
            {"": Terms("lang")},
            {5: Terms("lang")},
            {"a": Terms("nothing")},
            {"a": Terms("embedding")},
            {"a": Terms("body")},
            {"a": Terms("lang", size=0)},
            {"a": {}},
            {"a": {"terms": {"field": "lang"}, "stats": {"field": "number"}}},
            {"a": {"terms": {"script": "1"}}},
            {"a": {"sum": {"field": "number", "script": "1"}}},
            {"a": {"global": {}}},
            {"a": {"filter": {"terms": {"lang": {"index": "other", "id": "1", "path": "x"}}}}},
            {"a": {"top_hits": {}}},
            {"a": {"scripted_metric": {}}},
            {"a": {"terms": {"field": "lang"}, "aggs": {"b": {"top_hits": {}}}}},
            {"a": {"terms": {"field": "_id"}}},
            {"a": {"terms": {"field": "number", "missing": {1}}}},
            {"a": {"terms": {"field": "number", "missing": object()}}},
        )
    ),
]


@pytest.mark.parametrize(("given", "error"), REFUSED, ids=[f"{n}-{next(iter(g))}" for n, (g, _) in enumerate(REFUSED)])
def test_it_is_refused_before_anything_is_sent(nowhere: Any, given: dict[str, Any], error: type[VectorError]):
    with pytest.raises(error) as caught:
        nowhere.searcher.search_ids(**given)
    assert not isinstance(caught.value, SearchError)
    assert len(str(caught.value)) < 1000


def test_pages_of_vectors_and_foreign_cursors_are_refused(nowhere: Any):
    with pytest.raises(InvalidOption, match="no pages"):
        nowhere.searcher.search(None, knn=Knn("embedding", VECTOR), paged=True)
    with pytest.raises(InvalidOption, match="same Searcher"):
        nowhere.searcher.next_page(None, "a cursor")
    for options in ({"buckets": 0}, {"values": []}, {"values": "en"}, {"values": 5}, {"values": [{"x": 1}]}, {"k": 0}):
        with pytest.raises((InvalidOption, InvalidFilter)):
            nowhere.searcher.nearest_by(None, Knn("embedding", VECTOR), "lang", **options)
    for by in ("nothing", "body", "embedding", None):
        with pytest.raises(InvalidOption):
            nowhere.searcher.nearest_by(None, Knn("embedding", VECTOR), by)
    with pytest.raises(InvalidOption, match="one Knn"):
        nowhere.searcher.nearest_by(None, [Knn("embedding", VECTOR)], "lang")


def test_a_server_that_does_not_answer_is_a_typed_error_without_secrets(nowhere: Any):
    with pytest.raises(SearchUnavailable, match="did not answer") as caught:
        nowhere.searcher.search_ids(text="tea")
    told = "".join(traceback.format_exception(caught.value))
    for secret in (SECRET, "somebody", "127.0.0.1"):
        assert secret not in str(caught.value)
    assert SECRET not in told


def test_an_index_that_is_not_there_is_a_typed_error(index_name: str, client: Elasticsearch):
    world = make_world(index_name)
    searcher = Searcher(client, world.index)
    engine = create_engine("sqlite://", plugins=["sqla_vector"])
    with Session(engine) as session:
        for search in (
            lambda: searcher.search_ids(text="tea"),
            lambda: searcher.search_ids(text="tea", refresh=True),
            lambda: searcher.search_ids(text="tea", knn=Knn("embedding", VECTOR)),
            lambda: searcher.search(session, text="tea", paged=True),
            lambda: searcher.nearest_by(session, Knn("embedding", VECTOR), "lang"),
        ):
            with pytest.raises(IndexMissing, match="there is no index"):
                search()
    engine.dispose()
    assert not client.indices.exists(index=index_name)


def test_what_the_server_refuses_is_told(index_name: str, client: Elasticsearch):
    world = make_world(index_name)
    world.index.create(client)
    searcher = Searcher(client, world.index)
    aggs = {"a": {"histogram": {"field": "number"}}}
    with pytest.raises(SearchError, match="interval") as caught:
        searcher.search_ids(aggs=aggs)
    assert not isinstance(caught.value, SearchUnavailable)
    with pytest.raises(SearchError, match="interval"):
        searcher.search_ids(aggs=aggs, text="tea", knn=Knn("embedding", VECTOR))
    closed = client.indices.get_alias(name=index_name)
    client.indices.close(index=next(iter(closed)))
    with pytest.raises(SearchError, match="closed"):
        searcher.search_ids(text="tea")


def test_documents_of_no_row_are_named_and_left_out(index_name: str, client: Elasticsearch):
    world = make_world(index_name)
    world.index.create(client)
    client.index(index=index_name, id="no number", document={"title": "tea"}, refresh=True)
    engine = create_engine("sqlite://", plugins=["sqla_vector"])
    world.Base.metadata.create_all(engine)
    with Session(engine) as session:
        page = Searcher(client, world.index).search(session, text="tea")
    engine.dispose()
    assert (page.hits, page.dropped) == ((), ("no number",))


async def test_a_client_is_for_one_kind_of_method(
    index_name: str, client: Elasticsearch, async_client: AsyncElasticsearch
):
    world = make_world(index_name)
    with pytest.raises(InvalidOption, match="the client is asynchronous"):
        Searcher(async_client, world.index).search_ids(text="tea")
    with pytest.raises(InvalidOption, match="the client is not asynchronous"):
        await Searcher(client, world.index).asearch_ids(text="tea")
    with pytest.raises(InvalidOption, match="this session is asynchronous"):
        Searcher(client, world.index).search(AsyncSession(), text="tea")  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="this session is not asynchronous"), Session() as session:
        await Searcher(async_client, world.index).asearch(session, text="tea")  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="client is Elasticsearch or AsyncElasticsearch"):
        Searcher("http://localhost:9200", world.index)  # type: ignore[arg-type]
    with pytest.raises(IndexMissing):
        await Searcher(async_client, world.index).asearch_ids(text="tea")
