"""What the adapter builds on, observed on the real server; vectors are in test_node_vectors.py."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from elasticsearch import (
    ApiError,
    AsyncElasticsearch,
    BadRequestError,
    ConflictError,
    Elasticsearch,
    NotFoundError,
)

from tests.support.elasticsearch import own_node

NO_REPLICA = {"number_of_replicas": 0}


@pytest.fixture
def index(client: Elasticsearch, index_name: str) -> str:
    client.indices.create(index=index_name, settings=NO_REPLICA)
    return index_name


def put(client: Elasticsearch, index: str, version: int, id_: str = "1") -> str:
    """Write a document with an external version, and return what became of it."""
    try:
        answer = client.index(index=index, id=id_, document={}, version=version, version_type="external")
    except ConflictError:
        return "conflict"
    return str(answer["result"])


def delete(client: Elasticsearch, index: str, version: int, id_: str = "1") -> None:
    client.options(ignore_status=404).delete(index=index, id=id_, version=version, version_type="external")


def deletion(index: str, version: int = 1) -> dict[str, Any]:
    return {"delete": {"_index": index, "_id": "1", "version": version, "version_type": "external"}}


def bulk(client: Elasticsearch, *operations: Any, **options: Any) -> list[tuple[int, str | None]]:
    """Return status and type of error of each item."""
    items = client.bulk(operations=operations, **options)["items"]
    results = [next(iter(item.values())) for item in items]
    return [(result["status"], result.get("error", {}).get("type")) for result in results]


class TestVersions:
    def test_a_write_with_an_older_or_an_equal_version_is_a_conflict(self, client: Elasticsearch, index: str) -> None:
        assert [put(client, index, version) for version in (5, 5, 4, 6)] == [
            "created",
            "conflict",
            "conflict",
            "updated",
        ]
        assert client.get(index=index, id="1")["_version"] == 6

    def test_a_deletion_leaves_a_version_also_where_no_document_was(self, client: Elasticsearch, index: str) -> None:
        put(client, index, 5)
        delete(client, index, 9)
        assert [put(client, index, version) for version in (8, 9)] == ["conflict", "conflict"]
        delete(client, index, 12)
        assert put(client, index, 11) == "conflict"
        delete(client, index, 3, id_="never")
        assert put(client, index, 2, id_="never") == "conflict"
        assert put(client, index, 13) == "created"

    def test_tombstones_live_as_long_as_gc_deletes_says(self, client: Elasticsearch, index: str) -> None:
        client.indices.put_settings(index=index, settings={"index.gc_deletes": "1d"})
        delete(client, index, 9)
        client.indices.refresh(index=index)
        assert put(client, index, 8) == "conflict"
        client.indices.put_settings(index=index, settings={"index.gc_deletes": "0s"})
        delete(client, index, 10)
        deadline = time.monotonic() + 30
        # Refreshes take them away, by a clock that advances five times a second.
        while (result := put(client, index, 8)) == "conflict" and time.monotonic() < deadline:
            client.indices.refresh(index=index)
        assert result == "created"

    def test_tombstones_are_lost_when_a_flushed_index_is_opened_again(self, client: Elasticsearch, index: str) -> None:
        # So too when a node starts again or a shard moves, whatever gc_deletes says.
        client.indices.put_settings(index=index, settings={"index.gc_deletes": "1d"})
        delete(client, index, 9)
        client.indices.flush(index=index)
        assert put(client, index, 8) == "conflict"
        client.indices.close(index=index)
        client.indices.open(index=index, wait_for_active_shards=1)
        assert put(client, index, 8) == "created"

    def test_versions_are_from_0_to_the_largest_of_64_bits(self, client: Elasticsearch, index: str) -> None:
        assert put(client, index, 0) == "created"
        assert put(client, index, 2**63 - 1) == "updated"
        for version in (-1, 2**63):
            with pytest.raises(BadRequestError):
                put(client, index, version)


class TestBulk:
    def test_each_item_has_a_status(self, client: Elasticsearch, index: str) -> None:
        def action(id_: str, version: int) -> dict[str, Any]:
            return {"index": {"_index": index, "_id": id_, "version": version, "version_type": "external"}}

        operations = [action("1", 3), {"n": 1}, action("1", 2), {"n": 2}, action("2", 1), {"n": "no number"}]
        assert bulk(client, *operations, deletion(index, 4), deletion(index, 5)) == [
            (201, None),
            (409, "version_conflict_engine_exception"),
            (400, "document_parsing_exception"),
            (200, None),
            (404, None),
        ]

    @pytest.mark.parametrize(
        ("action", "reason"),
        [
            ({"_id": "x" * 513}, "must be no longer than 512 bytes"),
            ({"_id": "ä" * 257}, "must be no longer than 512 bytes"),
            ({"_id": "1", "version": -1, "version_type": "external"}, "illegal version value"),
            ({"_id": "1", "version": 2**63, "version_type": "external"}, "out of range of long"),
            ({"_id": "1", "version": 1}, "internal versioning can not be used"),
            ({"_id": "1", "unknown": 1}, "unknown parameter"),
        ],
    )
    def test_some_items_spoil_the_whole_request(
        self, client: Elasticsearch, index: str, action: dict[str, Any], reason: str
    ) -> None:
        with pytest.raises(BadRequestError, match=reason):
            bulk(client, {"index": {"_index": index, "_id": "good"}}, {}, {"index": {"_index": index, **action}}, {})
        assert not client.exists(index=index, id="good")

    def test_others_do_not(self, client: Elasticsearch, index: str) -> None:
        good = {"index": {"_index": index, "_id": "good"}}
        assert bulk(client, good, {}, {"index": {"_index": index, "_id": ""}}, {}) == [
            (201, None),
            (400, "illegal_argument_exception"),
        ]
        assert bulk(client, good, {}, {"index": {"_index": "NO*", "_id": "1"}}, {}) == [
            (200, None),
            (400, "invalid_index_name_exception"),
        ]

    def test_a_full_disk_is_429_and_a_forbidden_write_403(self, client: Elasticsearch, index: str) -> None:
        operations = [{"index": {"_index": index, "_id": "1"}}, {}, deletion(index)]
        for block, status in (("read_only_allow_delete", 429), ("write", 403)):
            client.indices.put_settings(index=index, settings={f"index.blocks.{block}": True})
            # Deletions are refused too: the name of the block speaks of whole indexes.
            assert bulk(client, *operations) == [(status, "cluster_block_exception")] * 2
            client.indices.put_settings(index=index, settings={f"index.blocks.{block}": None})
        assert bulk(client, *operations[:2]) == [(201, None)]


class TestMissingIndex:
    def test_a_write_makes_an_index_and_so_does_a_deletion_with_a_version(
        self, client: Elasticsearch, index_name: str
    ) -> None:
        assert bulk(client, {"delete": {"_index": index_name, "_id": "1"}}) == [(404, "index_not_found_exception")]
        assert not client.indices.exists(index=index_name)
        # 404 with no error is what a deletion of a missing document is answered as well.
        assert bulk(client, deletion(index_name)) == [(404, None)]
        assert client.indices.exists(index=index_name)

    def test_require_alias_keeps_a_write_from_making_an_index(self, client: Elasticsearch, index_name: str) -> None:
        write = [{"index": {"_index": index_name, "_id": "1", "require_alias": True}}, {}]
        assert bulk(client, *write) == [(404, "index_not_found_exception")]
        assert not client.indices.exists(index=index_name)
        client.indices.create(index=index_name)
        # An index of that name is none either: only an alias will do.
        assert bulk(client, *write) == [(404, "index_not_found_exception")]

    @pytest.mark.parametrize("whole_request", [False, True])
    def test_require_alias_says_nothing_to_a_deletion(
        self, client: Elasticsearch, index_name: str, whole_request: bool
    ) -> None:
        action = deletion(index_name)
        action["delete"]["require_alias"] = True
        assert bulk(client, action, require_alias=whole_request or None) == [(404, None)]
        assert client.indices.exists(index=index_name)

    def test_an_update_of_nothing_that_requires_an_alias_guards_the_deletions_beside_it(
        self, client: Elasticsearch, index_name: str
    ) -> None:
        guard = [{"update": {"_index": index_name, "_id": "no-such-id", "require_alias": True}}, {"doc": {}}]
        assert bulk(client, *guard, deletion(index_name)) == [(404, "index_not_found_exception")] * 2
        assert not client.indices.exists(index=index_name)
        client.indices.create(index=f"{index_name}-1", aliases={index_name: {}}, settings=NO_REPLICA)
        assert bulk(client, *guard, deletion(index_name)) == [(404, "document_missing_exception"), (404, None)]
        client.indices.refresh(index=index_name)
        assert client.count(index=index_name)["count"] == 0

    def test_a_template_that_forbids_it_keeps_all_writes_from_making_an_index(
        self, client: Elasticsearch, index_name: str
    ) -> None:
        client.indices.put_index_template(
            name=index_name, index_patterns=[f"{index_name}*"], priority=500, allow_auto_create=False
        )
        try:
            operations = [{"index": {"_index": index_name, "_id": "1"}}, {}, deletion(index_name)]
            assert bulk(client, *operations) == [(404, "index_not_found_exception")] * 2
            client.indices.create(index=index_name)
        finally:
            client.indices.delete_index_template(name=index_name)


class TestAliases:
    def test_an_alias_of_two_indexes_takes_no_writes(self, client: Elasticsearch, index_name: str) -> None:
        for number in (1, 2):
            client.indices.create(index=f"{index_name}-{number}", aliases={index_name: {}}, settings=NO_REPLICA)
        assert bulk(client, {"index": {"_index": index_name, "_id": "1"}}, {}) == [(400, "illegal_argument_exception")]

    def test_an_alias_is_moved_at_once(self, node: Any, client: Elasticsearch, index_name: str) -> None:
        names = [f"{index_name}-{number}" for number in (1, 2)]
        for name in names:
            client.indices.create(index=name, settings=NO_REPLICA)
            client.index(index=name, id="1", document={}, refresh=True)
        client.indices.put_alias(index=names[0], name=index_name)
        seen: list[set[str]] = []
        done = threading.Event()

        def read() -> None:
            with Elasticsearch(node.url, request_timeout=60) as reader:
                while not done.is_set():
                    hits = reader.search(index=index_name)["hits"]["hits"]
                    seen.append({hit["_index"] for hit in hits} if len(hits) == 1 else set())

        thread = threading.Thread(target=read)
        thread.start()
        try:
            for number in range(40):
                old, new = names[number % 2], names[1 - number % 2]
                client.indices.update_aliases(
                    actions=[
                        {"remove": {"index": old, "alias": index_name, "must_exist": True}},
                        {"add": {"index": new, "alias": index_name}},
                    ]
                )
        finally:
            done.set()
            thread.join()
        assert len(seen) > 1
        assert all(len(indexes) == 1 for indexes in seen)
        assert set.union(*seen) == set(names)

    def test_an_index_gives_way_to_an_alias_of_its_name(self, client: Elasticsearch, index_name: str) -> None:
        client.indices.create(index=index_name, settings=NO_REPLICA)
        client.indices.create(index=f"{index_name}-1", settings=NO_REPLICA)
        client.indices.update_aliases(
            actions=[
                {"remove_index": {"index": index_name}},
                {"add": {"index": f"{index_name}-1", "alias": index_name}},
            ]
        )
        assert list(client.indices.get(index=index_name)) == [f"{index_name}-1"]


class TestReadingAll:
    def test_a_point_in_time_is_paged_by_shard_doc_and_shows_versions(self, client: Elasticsearch, index: str) -> None:
        for number in range(7):
            put(client, index, 100 + number, id_=str(number))
        client.indices.refresh(index=index)
        pit = client.open_point_in_time(index=index, keep_alive="1m")["id"]
        put(client, index, 200, id_="0")
        put(client, index, 200, id_="new")
        client.indices.refresh(index=index)
        found: dict[str, int] = {}
        after = None
        while True:
            answer = client.search(
                pit={"id": pit, "keep_alive": "1m"},
                sort=[{"_shard_doc": "asc"}],
                search_after=after,
                size=3,
                version=True,
                source=False,
                track_total_hits=False,
            )
            pit, hits = answer["pit_id"], answer["hits"]["hits"]
            if not hits:
                break
            after = hits[-1]["sort"]
            found |= {hit["_id"]: hit["_version"] for hit in hits}
        assert found == {str(number): 100 + number for number in range(7)}
        client.close_point_in_time(id=pit)
        with pytest.raises(NotFoundError):
            client.search(pit={"id": pit})

    def test_ids_cannot_be_sorted_by_nor_asked_for_by_range(self, client: Elasticsearch, index: str) -> None:
        put(client, index, 1)
        client.indices.refresh(index=index)
        with pytest.raises(BadRequestError, match="Fielddata access on the _id field is disallowed"):
            client.search(index=index, sort=["_id"])
        with pytest.raises(BadRequestError, match="does not support range queries"):
            client.search(index=index, query={"range": {"_id": {"gte": "0"}}})

    def test_versions_of_single_documents_are_seen_without_a_refresh(self, client: Elasticsearch, index: str) -> None:
        put(client, index, 7)
        docs = client.mget(index=index, ids=["1", "2"], source=False)["docs"]
        assert [(doc["found"], doc.get("_version")) for doc in docs] == [(True, 7), (False, None)]


@pytest.mark.usefixtures("needs_own_node")
def test_a_kill_loses_nothing_acknowledged_but_tombstones_that_were_flushed() -> None:
    with own_node(heap="700m") as node:
        with Elasticsearch(node.url, request_timeout=60) as client:
            client.indices.create(index="kept", settings={**NO_REPLICA, "index.gc_deletes": "1d"})
            delete(client, "kept", 9, id_="flushed")
            client.indices.flush(index="kept")
            delete(client, "kept", 9, id_="recent")
            for number in range(50):
                put(client, "kept", 1, id_=str(number))
        node.kill()
        node.start()
        with Elasticsearch(node.url, request_timeout=60) as client:
            client.indices.refresh(index="kept")
            assert client.count(index="kept")["count"] == 50
            # What the transaction log has is replayed with its versions.
            assert put(client, "kept", 8, id_="recent") == "conflict"
            assert put(client, "kept", 8, id_="flushed") == "created"


async def test_an_asynchronous_client_sees_the_same_server(
    client: Elasticsearch, async_client: AsyncElasticsearch, index: str
) -> None:
    put(client, index, 3)
    assert (await async_client.get(index=index, id="1"))["_version"] == 3
    with pytest.raises(ApiError):
        await async_client.get(index=index, id="2")
