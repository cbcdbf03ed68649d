"""What the adapter builds on, observed on the real server."""

from __future__ import annotations

from elasticsearch import AsyncElasticsearch, Elasticsearch


def test_index(client: Elasticsearch, index_name: str) -> None:
    client.indices.create(index=index_name)
    client.index(index=index_name, id="1", document={"a": 1}, refresh=True)
    assert client.count(index=index_name)["count"] == 1


async def test_index_async(async_client: AsyncElasticsearch, index_name: str) -> None:
    await async_client.indices.create(index=index_name)
    assert (await async_client.count(index=index_name))["count"] == 0
