"""Declared indexes on the server: created, filled, read back, and compared."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from elasticsearch import BadRequestError, Elasticsearch
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_vector import BitVector, Vector
from sqla_vector.elasticsearch import DenseVector, Document, Field, Keyword, Nested, SearchIndex, Text
from sqla_vector.elasticsearch.creation import create, physical_indexes
from sqla_vector.elasticsearch.documents import to_bytes
from sqla_vector.elasticsearch.fields import INDEX_OPTIONS
from sqla_vector.exc import IndexDrift, IndexExists, IndexMissing, InvalidIdentifier, SearchError, SearchUnavailable
from sqla_vector.tracking import outbox_table
from tests.elasticsearch.library import library
from tests.elasticsearch.test_documents import ALL, full_article

JSON_TYPE = {"content-type": "application/json", "accept": "application/json"}
NO_REPLICAS = {"number_of_replicas": 0}


def send(client: Elasticsearch, index: str, document: Document) -> None:
    """Send a document as it is."""
    path = f"/{index}/_doc/{document.id}?refresh=true"
    client.perform_request("PUT", path, headers=JSON_TYPE, body=document.to_bytes())


def declare(name: str, fields: Any, **options: Any) -> SearchIndex:
    base = library()
    return SearchIndex(name, base.Article, fields=fields, outbox=base.outbox, **options)


@pytest.fixture
def filled(index_name: str) -> tuple[SearchIndex, Document]:
    """An index with every kind of field, and a document of it."""
    base = library()
    index = SearchIndex(index_name, base.Article, fields=ALL, outbox=base.outbox, settings=NO_REPLICAS)
    engine = create_engine("sqlite://", plugins=["sqla_vector"])
    base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(full_article(base))
        session.flush()
        document = index.documents(session.connection(), [(7,)])[7,]
    engine.dispose()
    return index, document


def test_a_document_comes_back_with_the_same_hash(client: Elasticsearch, filled: tuple[SearchIndex, Document]):
    index, document = filled
    physical = index.create(client)
    assert physical.startswith(f"{index.name}-")
    send(client, index.name, document)
    # The client's own serializer takes a body just as well.
    client.index(index=index.name, id="again", document=document.body, refresh=True)
    found = client.search(index=index.name, query={"match_all": {}})["hits"]["hits"]
    assert len(found) == 2
    for hit in found:
        source = hit["_source"]
        assert index.hash_of(source) == document.hash == source["_sqla_vector"]["hash"]
        assert np.float32(source["embedding"]).tobytes() == document.body["embedding"].tobytes()


def test_what_was_indexed_is_found_by_every_field(client: Elasticsearch, filled: tuple[SearchIndex, Document]):
    index, document = filled
    index.create(client)
    send(client, index.name, document)
    names = {name: spec.exact for name, spec in index.fields.items() if spec.exact is not None}
    assert set(index.fields) - set(names) == {"body", "extra", "comments"}
    for field, exact in names.items():
        if index.fields[field].kind == "dense_vector":
            query: Any = {"knn": {"field": field, "query_vector": _queried(document.body[field]), "k": 1}}
        else:
            value = document.body[field]
            query = {"term": {exact: value[0] if isinstance(value, list) else value}}
        assert client.search(index=index.name, query=query)["hits"]["total"]["value"] == 1, field
    for term, count in (({"comments.author.keyword": "Ann"}, 1), ({"comments.author.keyword": "Bea"}, 0)):
        nested = {"nested": {"path": "comments", "query": {"term": term}}}
        assert client.search(index=index.name, query=nested)["hits"]["total"]["value"] == count
    near = {"nested": {"path": "comments", "query": {"knn": {"field": "comments.v", "query_vector": [1, 2, 3]}}}}
    assert client.search(index=index.name, query=near)["hits"]["total"]["value"] == 1
    assert client.search(index=index.name, query={"match": {"body": "TEXT"}})["hits"]["total"]["value"] == 1


def _queried(vector: Any) -> Any:
    return vector if isinstance(vector, str) else vector.tolist()


@pytest.mark.parametrize("option", INDEX_OPTIONS)
@pytest.mark.parametrize("metric", ["cosine", "l2", "inner_product"])
def test_every_index_option_is_accepted(client: Elasticsearch, index_name: str, option: str, metric: str):
    class Base(DeclarativeBase):
        pass

    class Thing(Base):
        __tablename__ = "thing"
        id: Mapped[int] = mapped_column(primary_key=True)
        v: Mapped[Any] = mapped_column(Vector(64))
        largest: Mapped[Any] = mapped_column(Vector(4096))
        bits: Mapped[Any] = mapped_column(BitVector(64))

    graph = {"m": 8, "ef_construction": 50} if option.endswith("hnsw") else {}
    quantized = {"oversample": 2.5} if "_" in option else {}
    fields = {
        "v": DenseVector("v", metric=metric, index=option, **graph, **quantized),
        "largest": DenseVector("largest", metric=metric, index=option),
        "bits": DenseVector("bits", index=option if option in ("hnsw", "flat") else "flat"),
    }
    index = SearchIndex(index_name, Thing, fields=fields, outbox=outbox_table(Base.metadata), settings=NO_REPLICAS)
    index.create(client)
    assert index.mapping_drift(client) == index.settings_drift(client) == []
    rng = np.random.default_rng(0)
    documents = [
        {
            "v": rng.standard_normal(64, np.float32),
            "largest": rng.standard_normal(4096, np.float32),
            "bits": rng.bytes(8).hex(),
        }
        for _ in range(10)
    ]
    for number, body in enumerate(documents):
        send(client, index_name, Document(str(number), (number,), body, ""))
    for name in fields:
        query = {"knn": {"field": name, "query_vector": _queried(documents[3][name]), "k": 3, "num_candidates": 10}}
        hits = client.search(index=index_name, query=query)["hits"]["hits"]
        if (name, metric) != ("largest", "inner_product") or option in ("hnsw", "flat"):
            assert hits[0]["_id"] == "3"


def test_what_is_not_declared_is_refused_by_the_server(client: Elasticsearch, index_name: str):
    index = declare(index_name, {"title": "title", "c": Nested("comments", ["text"])}, settings=NO_REPLICAS)
    index.create(client)
    for body in ({"other": 1}, {"c": [{"other": 1}]}, {"_sqla_vector": {"other": 1}}):
        with pytest.raises(BadRequestError, match="strict_dynamic_mapping_exception"):
            client.index(index=index_name, id="1", document=body)


def test_the_limits_are_those_of_the_server(client: Elasticsearch, index_name: str):
    for parameters, message in (
        ({"dims": 4097}, "4096"),
        ({"dims": 32, "index_options": {"type": "bbq_hnsw"}}, "64"),
        ({"dims": 65, "index_options": {"type": "int4_hnsw"}}, "even"),
        ({"dims": 12, "element_type": "bit"}, "multiple of 8"),
        ({"dims": 16, "element_type": "bit", "index_options": {"type": "int8_hnsw"}}, "bit"),
    ):
        properties = {"v": {"type": "dense_vector", **parameters}}
        with pytest.raises(BadRequestError, match=message):
            client.indices.create(index=index_name, mappings={"properties": properties})
    client.indices.create(index=index_name, mappings={"properties": {"v": {"type": "dense_vector", "dims": 3}}})
    for vector, message in (
        ([0, 0, 0], "zero magnitude"),
        ([1e-30, 0, 0], "zero magnitude"),
        ([1e30, 0, 0], "NaN or Inf"),
    ):
        with pytest.raises(BadRequestError, match=message):
            client.index(index=index_name, document={"v": vector})


def test_an_index_is_created_once(client: Elasticsearch, index_name: str):
    index = declare(index_name, ["title"], settings=NO_REPLICAS)
    first = index.create(client, "one")
    assert first == f"{index_name}-one"
    assert physical_indexes(client, index_name) == [first]
    for suffix in (None, "two", "one"):
        with pytest.raises(IndexExists, match="is there already"):
            index.create(client, suffix)
    assert physical_indexes(client, index_name) == [first]
    with pytest.raises(InvalidIdentifier, match="suffix="):
        index.create(client, "../x")


def test_an_index_may_not_have_the_name_of_the_alias(client: Elasticsearch, index_name: str):
    client.indices.create(index=index_name)
    index = declare(index_name, ["title"])
    with pytest.raises(IndexExists, match="is an index, and the name is needed for an alias"):
        index.create(client)


def test_of_many_that_create_an_index_one_succeeds(client: Elasticsearch, index_name: str):
    index = declare(index_name, ["title"], settings=NO_REPLICAS)
    together = threading.Barrier(4)
    created: list[str] = []
    refused: list[Exception] = []

    def race(number: int) -> None:
        together.wait()
        try:
            created.append(index.create(client, f"s{number}"))
        except IndexExists as error:
            refused.append(error)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(created), len(refused)) == (1, 3)
    assert physical_indexes(client, index_name) == created
    assert list(client.indices.get(index=f"{index_name}*", features="aliases")) == created


def test_an_index_can_be_filled_under_another_alias(client: Elasticsearch, index_name: str):
    index = declare(index_name, ["title"], settings=NO_REPLICAS)
    filling = {"index.refresh_interval": -1}
    rebuilt = create(client, index, "new", alias=f"{index_name}-rebuild", settings=filling, meta={"cursor": 7})
    assert rebuilt == f"{index_name}-new"
    assert physical_indexes(client, f"{index_name}-rebuild") == [rebuilt]
    assert physical_indexes(client, index_name) == []
    settings = client.indices.get_settings(index=rebuilt, flat_settings=True)[rebuilt]["settings"]
    assert settings["index.refresh_interval"] == "-1"
    assert client.indices.get_mapping(index=rebuilt)[rebuilt]["mappings"]["_meta"]["cursor"] == 7
    # The alias is free, and the name of the index behind it is not.
    with pytest.raises(IndexExists, match="created by somebody else"):
        index.create(client, "new")


def test_an_index_that_is_missing_is_an_error(client: Elasticsearch, index_name: str):
    index = declare(index_name, ["title"])
    for look in (index.mapping_drift, index.settings_drift, index.check_current):
        with pytest.raises(IndexMissing, match=f"there is no index {index_name}"):
            look(client)


def test_what_the_server_refuses_is_a_typed_error(client: Elasticsearch, index_name: str):
    index = declare(index_name, {"title": Text("title", analyzer="nothing")})
    with pytest.raises(SearchError, match="analyzer \\[nothing\\] has not been configured"):
        index.create(client)
    assert physical_indexes(client, index_name) == []


def test_a_node_that_does_not_answer_is_an_error_without_its_address(index_name: str):
    index = declare(index_name, ["title"])
    with Elasticsearch("http://somebody:secret@127.0.0.1:9", max_retries=0) as client:
        for call in (index.create, index.mapping_drift, index.settings_drift, index.check_current):
            with pytest.raises(SearchUnavailable, match="did not answer") as caught:
                call(client)
            assert "secret" not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_what_was_just_created_does_not_differ(client: Elasticsearch, index_name: str):
    settings = {
        "analysis": {"analyzer": {"mine": {"type": "custom", "tokenizer": "standard", "filter": ["lowercase"]}}},
        "number_of_replicas": 0,
        "number_of_shards": 2,
        "refresh_interval": "30s",
        "max_result_window": 20000,
        "codec": "best_compression",
    }
    more = {
        "title": Text("title", analyzer="mine", norms=True, store=False),
        "day": Field("day", index=False, doc_values=True),
        "lang": Keyword("lang", normalizer="lowercase"),
    }
    index = declare(index_name, {**ALL, **more}, settings=settings)
    index.create(client)
    assert index.mapping_drift(client) == []
    assert index.settings_drift(client) == []
    index.check_current(client)


def test_a_changed_mapping_is_reported(client: Elasticsearch, index_name: str):
    before = {
        "title": "title",
        "lang": Keyword("lang"),
        "gone": "views",
        "embedding": DenseVector("embedding", metric="cosine", index="hnsw"),
        "again": DenseVector("embedding", index="int8_hnsw", m=32, oversample=2),
        "comments": Nested("comments", {"text": "text"}),
        "body": "body",
    }
    after = {
        "title": Text("title", analyzer="whitespace"),
        "lang": Text("lang", keyword=False),
        "new": "views",
        "embedding": DenseVector("embedding", metric="l2", index="hnsw", m=32),
        "again": DenseVector("embedding", index="int8_hnsw", m=32),
        "comments": Nested("comments", {"text": Keyword("text")}),
        "body": "body",
    }
    physical = declare(index_name, before, settings=NO_REPLICAS).create(client, "one")
    index = declare(index_name, after, settings=NO_REPLICAS)
    had = {"type": "hnsw", "m": "16", "ef_construction": "100"}
    assert sorted(index.mapping_drift(client)) == sorted(
        f"{physical}: {words}"
        for words in (
            "field title: analyzer is not there, and whitespace is declared",
            "field lang: type is keyword, and text is declared",
            "field lang: ignore_above is 8191, and not declared",
            "field new is declared, and the index does not have it",
            "field gone is in the index, and not declared",
            "field embedding: similarity is cosine, and l2_norm is declared",
            f"field embedding: index_options is {had}, and {had | {'m': '32'}} is declared",
            "field again: rescore_vector is {'oversample': '2'}, and not declared",
            "field comments.text: type is text, and keyword is declared",
            "field comments.text: ignore_above is not there, and 8191 is declared",
        )
    )
    assert index.settings_drift(client) == []
    with pytest.raises(IndexDrift, match=r"field new is declared, and the index does not have it.*rebuild it"):
        index.check_current(client)


def test_an_index_of_somebody_else_is_reported(client: Elasticsearch, index_name: str):
    client.indices.create(index=f"{index_name}-1", aliases={index_name: {}}, settings=NO_REPLICAS)
    drift = declare(index_name, ["title"]).mapping_drift(client)
    assert f"{index_name}-1: dynamic is true, and strict is declared" in drift
    assert f"{index_name}-1: its documents are of entity none, and article is declared" in drift
    assert f"{index_name}-1: field title is declared, and the index does not have it" in drift


def test_changed_settings_are_reported(client: Elasticsearch, index_name: str):
    index = declare(index_name, ["title"], settings={"number_of_replicas": 0, "codec": "best_compression"})
    physical = index.create(client, "one")
    changed = {"refresh_interval": "5s", "gc_deletes": "60s", "number_of_replicas": 2}
    client.indices.put_settings(index=physical, settings=changed)
    assert index.mapping_drift(client) == []
    assert sorted(index.settings_drift(client)) == [
        f"{physical}: setting index.gc_deletes is 60s, and 1h is declared",
        f"{physical}: setting index.number_of_replicas is 2, and 0 is declared",
        f"{physical}: setting index.refresh_interval is 5s, and 1s is declared",
    ]


def test_vectors_may_be_left_out_of_source(client: Elasticsearch, index_name: str):
    settings = {"mapping.exclude_source_vectors": True, **NO_REPLICAS}
    index = declare(index_name, {"v": DenseVector("embedding", index="flat")}, settings=settings)
    nodes = client.nodes.info(filter_path="nodes.*.version")["nodes"]
    if min(tuple(map(int, node["version"].split(".")[:2])) for node in nodes.values()) < (9, 2):
        with pytest.raises(SearchError, match="unknown setting"):
            index.create(client)
        return
    index.create(client)
    assert index.settings_drift(client) == []
    client.index(index=index_name, id="1", document={"v": [3, 4, 0]}, refresh=True)
    assert client.get(index=index_name, id="1")["_source"] == {}


def test_bodies_are_what_the_server_reads(client: Elasticsearch, index_name: str):
    index = declare(index_name, {"extra": "extra", "title": "title"}, settings=NO_REPLICAS)
    index.create(client)
    body = {"title": '\0 \u2028 𝄞 "\\', "extra": {"": [2**70, -0.0, 1e-320, {"a.b": None, "a": {"b": []}}]}}
    path = f"/{index_name}/_doc/1"
    client.perform_request("PUT", path, headers=JSON_TYPE, body=to_bytes(body))
    source = client.get(index=index_name, id="1")["_source"]
    assert source == body
    assert index.hash_of(source) == index.hash_of(body)
