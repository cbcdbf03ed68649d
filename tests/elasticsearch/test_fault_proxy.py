"""The proxy that makes faults: what the client sees, and what the node got."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

import pytest
from elastic_transport import ConnectionError as NoConnection
from elastic_transport import ConnectionTimeout, SerializationError, TransportError
from elasticsearch import ApiError, AsyncElasticsearch, Elasticsearch

from tests.support.elasticsearch_server import Server
from tests.support.fault_proxy import FaultProxy
from tests.support.faults import Answer, Fault, Items, Late, Passed, Reset, Truncated, Twice, random_faults

Opened = Callable[..., tuple[FaultProxy, Elasticsearch]]


@pytest.fixture
def proxied(node: Server) -> Iterator[Opened]:
    with ExitStack() as stack:

        def opened(*faults: Fault, **options: Any) -> tuple[FaultProxy, Elasticsearch]:
            proxy = stack.enter_context(FaultProxy(node.url, faults))
            options = {"max_retries": 0, "request_timeout": 60, **options}
            return proxy, stack.enter_context(Elasticsearch(proxy.url, **options))

        yield opened


@pytest.fixture
def index(client: Elasticsearch, index_name: str) -> str:
    client.indices.create(index=index_name, settings={"number_of_replicas": 0})
    return index_name


def operations(index: str, count: int, version: int = 1) -> list[dict[str, Any]]:
    actions = []
    for number in range(count):
        actions += [
            {"index": {"_index": index, "_id": str(number), "version": version, "version_type": "external"}},
            {"n": number},
        ]
    return actions


def stored(client: Elasticsearch, index: str) -> set[str]:
    client.indices.refresh(index=index)
    return {hit["_id"] for hit in client.search(index=index, size=100)["hits"]["hits"]}


def statuses(answer: Any) -> list[int]:
    return [next(iter(item.values()))["status"] for item in answer["items"]]


@pytest.mark.parametrize("status", [400, 403, 409, 429])
@pytest.mark.parametrize("compressed", [False, True])
def test_items_are_refused_and_not_forwarded(
    proxied: Opened, client: Elasticsearch, index: str, status: int, compressed: bool
) -> None:
    proxy, through = proxied(Items(status, {0, 2, 9}), http_compress=compressed)
    answer = through.bulk(operations=[*operations(index, 3), {"delete": {"_index": index, "_id": "gone"}}])
    assert answer["errors"]
    assert statuses(answer) == [status, 201, status, 404]
    assert [next(iter(item.values()))["_id"] for item in answer["items"]] == ["0", "1", "2", "gone"]
    assert stored(client, index) == {"1"}
    (delivery,) = proxy.deliveries
    assert delivery.refused == [("index", "0"), ("index", "2")]
    assert delivery.items[3] == ("delete", "gone")


def test_all_items_may_be_refused(proxied: Opened, client: Elasticsearch, index: str) -> None:
    proxy, through = proxied(Items(429, range(3)))
    assert statuses(through.bulk(operations=operations(index, 3))) == [429] * 3
    assert stored(client, index) == set()
    assert proxy.deliveries[0].times == 0


@pytest.mark.parametrize("forwarded", [False, True])
@pytest.mark.parametrize("status", [429, 502, 503])
def test_an_error_is_answered(proxied: Opened, client: Elasticsearch, index: str, status: int, forwarded: bool) -> None:
    proxy, through = proxied(Answer(status, forwarded=forwarded))
    with pytest.raises(ApiError) as caught:
        through.bulk(operations=operations(index, 2))
    assert caught.value.status_code == status
    assert stored(client, index) == ({"0", "1"} if forwarded else set())
    assert proxy.deliveries[0].times == forwarded


@pytest.mark.parametrize("forwarded", [False, True])
def test_a_connection_is_reset(proxied: Opened, client: Elasticsearch, index: str, forwarded: bool) -> None:
    _, through = proxied(Reset(forwarded=forwarded))
    with pytest.raises(NoConnection):
        through.bulk(operations=operations(index, 2))
    assert stored(client, index) == ({"0", "1"} if forwarded else set())
    assert statuses(through.bulk(operations=operations(index, 2, version=2))) == [200 if forwarded else 201] * 2


def test_an_answer_is_truncated(proxied: Opened, client: Elasticsearch, index: str) -> None:
    _, through = proxied(Truncated())
    with pytest.raises((TransportError, SerializationError)):
        through.bulk(operations=operations(index, 2))
    assert stored(client, index) == {"0", "1"}


def test_a_request_is_delivered_twice(proxied: Opened, client: Elasticsearch, index: str) -> None:
    proxy, through = proxied(Twice(answer=1), Twice(answer=0))
    assert statuses(through.bulk(operations=operations(index, 2))) == [409, 409]
    assert statuses(through.bulk(operations=operations(index, 2, version=2))) == [200, 200]
    assert [delivery.times for delivery in proxy.deliveries] == [2, 2]
    assert stored(client, index) == {"0", "1"}


def test_a_late_request_is_carried_out_when_it_is_told(proxied: Opened, client: Elasticsearch, index: str) -> None:
    proxy, through = proxied(Late(), request_timeout=0.5)
    with pytest.raises(ConnectionTimeout):
        through.bulk(operations=operations(index, 1))
    patient = through.options(request_timeout=60)
    assert statuses(patient.bulk(operations=operations(index, 1, version=2))) == [201]
    while not proxy.deliver_late():  # the proxy may not have noticed yet that the client hung up
        pass
    assert client.get(index=index, id="0")["_version"] == 2
    assert [delivery.times for delivery in proxy.deliveries] == [1, 1]


def test_a_late_request_is_carried_out_after_others(proxied: Opened, client: Elasticsearch, index: str) -> None:
    proxy, through = proxied(Late(after=1), request_timeout=0.5)
    with pytest.raises(ConnectionTimeout):
        through.bulk(operations=operations(index, 1))
    # Answers are counted from the moment at which the proxy notices that the client hung up.
    while not proxy.deliveries[0].times:
        through.options(request_timeout=60).bulk(operations=[{"delete": {"_index": index, "_id": "other"}}])
    assert stored(client, index) == {"0"}


def test_what_is_late_is_carried_out_when_the_proxy_is_closed(
    proxied: Opened, client: Elasticsearch, index: str
) -> None:
    proxy, through = proxied(Late(), request_timeout=0.5)
    with pytest.raises(ConnectionTimeout):
        through.bulk(operations=operations(index, 1))
    proxy.close()
    assert stored(client, index) == {"0"}


def test_other_requests_meet_no_fault(proxied: Opened, index: str) -> None:
    proxy, through = proxied(Reset())
    assert through.count(index=index)["count"] == 0
    assert through.indices.exists(index=index)
    assert not through.indices.exists(index=f"{index}-not")
    assert proxy.deliveries == []
    assert proxy.remaining == 1


async def test_an_asynchronous_client_meets_the_same(node: Server, client: Elasticsearch, index: str) -> None:
    with FaultProxy(node.url, [Reset(), Reset(), Items(429, {0}), Late(), Passed()]) as proxy:
        async with AsyncElasticsearch(proxy.url, max_retries=0, request_timeout=60) as through:
            with pytest.raises(NoConnection):
                await through.bulk(operations=operations(index, 2))
            assert statuses(await through.bulk(operations=operations(index, 2))) == [429, 201]
            with pytest.raises(ConnectionTimeout):
                await through.options(request_timeout=0.5).bulk(operations=operations(index, 1, version=5))
            assert statuses(await through.bulk(operations=operations(index, 2, version=3))) == [201, 200]
    assert client.get(index=index, id="0")["_version"] == 5


async def test_aiohttp_sends_a_bulk_request_again_by_itself(node: Server, index: str) -> None:
    # A bulk request is a PUT, which aiohttp repeats once when the connection is reset. So the adapter may learn of a
    # conflict with what it wrote itself, and of no error before.
    with FaultProxy(node.url, [Reset(forwarded=True)]) as proxy:
        async with AsyncElasticsearch(proxy.url, max_retries=0, request_timeout=60) as through:
            assert statuses(await through.bulk(operations=operations(index, 1))) == [409]
    assert [type(delivery.fault) for delivery in proxy.deliveries] == [Reset, Passed]


def test_a_node_that_is_gone_is_a_bad_gateway(proxied: Opened) -> None:
    proxy, through = proxied()
    proxy.upstream = urlsplit("http://127.0.0.1:1")
    with pytest.raises(ApiError) as caught:
        through.count(index="any")
    assert caught.value.status_code == 502


def test_random_faults_are_of_all_kinds_and_the_same_for_the_same_seed() -> None:
    faults = random_faults(1, 200)
    assert faults == random_faults(1, 200)
    assert faults != random_faults(2, 200)
    assert {type(fault) for fault in faults} == {Items, Answer, Reset, Truncated, Late, Twice}
    assert {fault.status for fault in faults if isinstance(fault, Items)} == {400, 403, 409, 429}
