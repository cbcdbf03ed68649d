"""The node, clients on it, and names of indexes that nobody else uses."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator

import pytest
from elasticsearch import AsyncElasticsearch, Elasticsearch

from tests.support.elasticsearch_server import Server


@pytest.fixture(scope="session")
def node(elasticsearch_node: Server) -> Server:
    """The server that all tests share; nobody may stop it."""
    return elasticsearch_node


@pytest.fixture
def client(node: Server) -> Iterator[Elasticsearch]:
    """A synchronous client."""
    with Elasticsearch(node.url, request_timeout=60) as opened:
        yield opened


@pytest.fixture
async def async_client(node: Server) -> AsyncIterator[AsyncElasticsearch]:
    """An asynchronous client."""
    async with AsyncElasticsearch(node.url, request_timeout=60) as opened:
        yield opened


@pytest.fixture
def index_name(node: Server) -> Iterator[str]:
    """A name that no index has; every index whose name begins with it is deleted after the test."""
    name = f"sqla-vector-test-{uuid.uuid4().hex[:12]}"
    yield name
    with Elasticsearch(node.url, request_timeout=60) as client:
        # One by one: a server may forbid to delete by a pattern.
        for index in client.indices.get(index=f"{name}*", expand_wildcards="all", features="aliases"):
            client.indices.delete(index=index)
