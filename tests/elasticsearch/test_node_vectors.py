"""What the server does with vectors: kinds of index, similarities, exactness, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from elasticsearch import BadRequestError, Elasticsearch

DIMENSIONS = 16

# The formulas of the reference of dense_vector.
SCORES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cosine": lambda x, q: (1 + x @ q / np.linalg.norm(x, axis=1) / np.linalg.norm(q)) / 2,
    "dot_product": lambda x, q: (1 + x @ q) / 2,
    "l2_norm": lambda x, q: 1 / (1 + ((x - q) ** 2).sum(axis=1)),
    "max_inner_product": lambda x, q: np.where(x @ q < 0, 1 / (1 - x @ q), x @ q + 1),
}


def vector_field(similarity: str = "cosine", dims: int = DIMENSIONS, **options: Any) -> dict[str, Any]:
    options = {"type": "flat", **options}
    return {"type": "dense_vector", "dims": dims, "index": True, "similarity": similarity, "index_options": options}


def create(client: Elasticsearch, index: str, field: dict[str, Any], shards: int = 1) -> None:
    settings = {"number_of_shards": shards, "number_of_replicas": 0}
    client.indices.create(index=index, settings=settings, mappings={"properties": {"v": field}})


def load(client: Elasticsearch, index: str, vectors: np.ndarray) -> None:
    operations: list[dict[str, Any]] = []
    for number, vector in enumerate(vectors):
        operations += [{"index": {"_id": str(number)}}, {"v": vector.tolist()}]
    assert not client.bulk(index=index, operations=operations, refresh=True)["errors"]


@pytest.mark.parametrize("similarity", SCORES)
def test_a_search_of_a_flat_field_is_exact_and_scored_by_the_formula(
    client: Elasticsearch, index_name: str, similarity: str
) -> None:
    random = np.random.default_rng(7)
    vectors = random.normal(size=(300, DIMENSIONS)).astype(np.float32)
    query = random.normal(size=DIMENSIONS).astype(np.float32)
    if similarity == "dot_product":
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        query /= np.linalg.norm(query)
    create(client, index_name, vector_field(similarity), shards=2)
    load(client, index_name, vectors)
    expected = SCORES[similarity](vectors.astype(float), query.astype(float))

    for k in (10, 300):
        knn = {"field": "v", "query_vector": query.tolist(), "k": k, "num_candidates": k}
        hits = client.search(index=index_name, knn=knn, size=k, source=False)["hits"]["hits"]
        assert [int(hit["_id"]) for hit in hits] == np.argsort(-expected)[:k].tolist()
        np.testing.assert_allclose([hit["_score"] for hit in hits], np.sort(expected)[::-1][:k], rtol=1e-6)


def test_there_are_four_similarities(client: Elasticsearch, index_name: str) -> None:
    accepted = r"accepted values are \[l2_norm, cosine, dot_product, max_inner_product\]"
    with pytest.raises(BadRequestError, match=accepted):
        create(client, index_name, vector_field("l1_norm"))


@pytest.mark.parametrize(
    ("kind", "dims"),
    [("hnsw", 1), ("int8_hnsw", 1), ("flat", 1), ("int8_flat", 1), ("bbq_hnsw", 64), ("bbq_flat", 64), ("hnsw", 4096)],
)
def test_kinds_of_index(client: Elasticsearch, index_name: str, kind: str, dims: int) -> None:
    create(client, index_name, vector_field(dims=dims, type=kind))
    mapping = client.indices.get_mapping(index=index_name)[index_name]["mappings"]["properties"]["v"]
    assert mapping["index_options"]["type"] == kind
    # What is not told is shown with its default.
    assert ("ef_construction" in mapping["index_options"]) == kind.endswith("hnsw")
    assert ("rescore_vector" in mapping["index_options"]) == kind.startswith("bbq")


@pytest.mark.parametrize(
    ("kind", "dims", "reason"),
    [
        ("bbq_hnsw", 63, "does not support dimensions fewer than 64"),
        ("bbq_flat", 63, "does not support dimensions fewer than 64"),
        ("int4_hnsw", 63, "only supports even dimensions"),
        ("hnsw", 4097, r"in the range \[1, 4096\]"),
        ("hnsw", 0, r"in the range \[1, 4096\]"),
        ("ivfflat", 64, "Unknown vector index options type"),
    ],
)
def test_dimensions_that_a_kind_refuses(
    client: Elasticsearch, index_name: str, kind: str, dims: int, reason: str
) -> None:
    with pytest.raises(BadRequestError, match=reason):
        create(client, index_name, vector_field(dims=dims, type=kind))


@pytest.mark.parametrize(
    ("similarity", "vector", "reason"),
    [
        ("cosine", [0.0] * DIMENSIONS, "does not support vectors with zero magnitude"),
        ("dot_product", [2.0] * DIMENSIONS, "can only be used with unit-length vectors"),
        ("l2_norm", [1.0] * (DIMENSIONS - 1), "different number of dimensions"),
        ("cosine", [1e30] * DIMENSIONS, "NaN or Infinite magnitude"),
    ],
)
def test_vectors_that_are_refused_as_documents_and_as_queries(
    client: Elasticsearch, index_name: str, similarity: str, vector: list[float], reason: str
) -> None:
    create(client, index_name, vector_field(similarity))
    ((_, item),) = client.bulk(index=index_name, operations=[{"index": {"_id": "1"}}, {"v": vector}])["items"][
        0
    ].items()
    assert item["status"] == 400
    assert reason in item["error"]["reason"]
    knn = {"field": "v", "query_vector": vector, "k": 1, "num_candidates": 1}
    with pytest.raises(BadRequestError) as caught:
        client.search(index=index_name, knn=knn)
    assert reason in str(caught.value.body)


def test_a_document_without_a_vector_is_found_by_no_vector(client: Elasticsearch, index_name: str) -> None:
    create(client, index_name, vector_field())
    operations = [{"index": {"_id": "null"}}, {"v": None}, {"index": {"_id": "absent"}}, {}]
    assert not client.bulk(index=index_name, operations=operations, refresh=True)["errors"]
    load(client, index_name, np.ones((1, DIMENSIONS)))
    knn = {"field": "v", "query_vector": [1.0] * DIMENSIONS, "k": 10, "num_candidates": 10}
    hits = client.search(index=index_name, knn=knn)["hits"]["hits"]
    assert [hit["_id"] for hit in hits] == ["0"]


def read_vector(client: Elasticsearch, index: str) -> np.ndarray:
    # Version 9.2 leaves vectors out of the source unless they are asked for by name.
    (hit,) = client.search(index=index, source_includes=["v"])["hits"]["hits"]
    return np.array(hit["_source"]["v"], dtype=np.float32)


@pytest.mark.parametrize("similarity", ["cosine", "l2_norm", "max_inner_product"])
def test_the_vector_in_the_source_may_have_been_normalized_and_scaled_again(
    client: Elasticsearch, index_name: str, similarity: str
) -> None:
    create(client, index_name, vector_field(similarity))
    vectors = np.random.default_rng(3).normal(size=(1, DIMENSIONS)).astype(np.float32)
    load(client, index_name, vectors)
    if similarity == "cosine" and server_version(client) >= (9, 2):
        # Rebuilt from what the index has, which is of length 1; so it is no proof of equality.
        np.testing.assert_allclose(read_vector(client, index_name), vectors[0], rtol=1e-6)
    else:
        assert np.array_equal(read_vector(client, index_name), vectors[0])


def test_a_setting_keeps_the_vector_in_the_source_as_it_was(client: Elasticsearch, index_name: str) -> None:
    settings = {"number_of_replicas": 0, "index.mapping.exclude_source_vectors": False}
    mappings = {"properties": {"v": vector_field()}}
    if server_version(client) < (9, 2):
        with pytest.raises(BadRequestError, match="unknown setting"):
            client.indices.create(index=index_name, settings=settings, mappings=mappings)
        del settings["index.mapping.exclude_source_vectors"]
    client.indices.create(index=index_name, settings=settings, mappings=mappings)
    vectors = np.random.default_rng(3).normal(size=(1, DIMENSIONS)).astype(np.float32)
    load(client, index_name, vectors)
    assert np.array_equal(read_vector(client, index_name), vectors[0])


def server_version(client: Elasticsearch) -> tuple[int, ...]:
    nodes = client.nodes.info(filter_path="nodes.*.version")["nodes"]
    return min(tuple(map(int, node["version"].split(".")[:2])) for node in nodes.values())


def test_candidates_are_at_least_k_and_at_most_10000(client: Elasticsearch, index_name: str) -> None:
    create(client, index_name, vector_field())
    load(client, index_name, np.ones((1, DIMENSIONS)))
    knn = {"field": "v", "query_vector": [1.0] * DIMENSIONS}
    with pytest.raises(BadRequestError, match="cannot be less than"):
        client.search(index=index_name, knn={**knn, "k": 20, "num_candidates": 10})
    with pytest.raises(BadRequestError, match="cannot exceed"):
        client.search(index=index_name, knn={**knn, "k": 10, "num_candidates": 10_001})
    answer = client.search(index=index_name, knn={**knn, "k": 10_000, "num_candidates": 10_000})
    assert len(answer["hits"]["hits"]) == 1
