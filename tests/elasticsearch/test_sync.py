"""Documents follow their rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from elasticsearch import Elasticsearch
from sqlalchemy import delete, insert, text, update

from sqla_vector.elasticsearch import Sync
from sqla_vector.exc import DatabaseRestored, IndexDrift, IndexMissing, InvalidOption
from tests.elasticsearch.synced import Synced, mirrored_models
from tests.support.backends import AnyEngine, Backend

pytestmark = pytest.mark.backends("psycopg", "asyncpg", "pysqlite3", "aiosqlite")

ONE_OF_EACH = pytest.mark.backends("psycopg", "pysqlite3")

Make = Callable[..., Synced]


@pytest.fixture
def synced(backend: Backend, engine: AnyEngine, node: Any, index_name: str) -> Iterator[Make]:
    """Make a database and its index."""
    made: list[Synced] = []

    def make(**options: Any) -> Synced:
        one = Synced(backend, engine, node.url, mirrored_models(index_name, **options))
        made.append(one)
        one.index.create(one.client)
        return one

    yield make
    for one in made:
        one.close()


def test_documents_are_added_edited_and_deleted(synced: Make) -> None:
    s = synced()
    s.add(5)
    assert s.sync().written == 5
    assert s.differences() == []
    assert "embedding" not in s.documents()["1"]

    def change(session: Any) -> None:
        session.get(s.base.Article, 1).title = "another"
        session.get(s.base.Article, 2).author = s.base.Author(id=1, name="Ann")
        session.delete(session.get(s.base.Article, 3))

    s.run(change)
    s.sync()
    assert s.differences() == []
    assert "3" not in s.documents()
    s.run(lambda session: setattr(session.get(s.base.Author, 1), "name", "Bea"))
    s.sync()
    assert s.documents()["2"]["author"] == "Bea"
    assert s.entries() == []


def test_a_document_gets_its_vector_when_there_is_one(synced: Make) -> None:
    s = synced()
    s.add(3)
    s.sync()
    s.embed()
    s.sync()
    assert s.differences() == []
    assert all("embedding" in document for document in s.documents().values())


@ONE_OF_EACH
def test_what_no_session_sees_is_noted_by_triggers(synced: Make) -> None:
    s = synced(triggers=True)
    s.add(4)
    article = s.base.Article.__table__
    for statement in (
        insert(article).values(id=9, title="by hand", views=0),
        update(article).where(article.c.id == 1).values(title="z"),
        delete(article).where(article.c.id == 2),
    ):
        s.backend.run_connection(s.engine, lambda c, statement=statement: c.execute(statement) and None)
        s.sync()
        assert s.differences() == []


@pytest.mark.backends("psycopg", "asyncpg")
def test_truncate_empties_the_index(synced: Make) -> None:
    s = synced(triggers=True)
    s.add(30)
    s.sync()
    s.backend.run_connection(s.engine, lambda c: c.execute(text("TRUNCATE article")) and None)
    s.add(1, start=5)
    s.sync(batch_size=7)
    assert list(s.documents()) == ["5"]
    assert s.differences() == []


@pytest.mark.backends("psycopg")
def test_truncate_waits_for_those_who_still_send_rows_of_before(synced: Make) -> None:
    s = synced(triggers=True)
    s.add(3)
    with Elasticsearch(s.url) as client:
        slow = Sync(s.sessions, client, s.index, name="slow")
        in_hand = slow._driver.run(slow._take())
        s.backend.run_connection(s.engine, lambda c: c.execute(text("TRUNCATE article")) and None)
        assert Sync(s.sessions, client, s.index).run_once().late == 1
        slow._driver.run(slow._work_off(in_hand, go_on=False))
    assert len(s.documents()) == 3
    s.sync()
    assert s.documents() == {}
    assert s.entries() == []


@ONE_OF_EACH
def test_an_older_write_loses_whenever_it_arrives(synced: Make) -> None:
    s = synced()
    s.add(1)
    with Elasticsearch(s.url) as client:
        slow = Sync(s.sessions, client, s.index)
        first = slow._driver.run(slow._take())
        # Its lease is not over, so that only a second change lets another take the row.
        s.run(lambda session: setattr(session.get(s.base.Article, 1), "title", "later"))
        fast = Sync(s.sessions, client, s.index)
        assert fast.run_once().written == 1
        outcome, _ = slow._driver.run(slow._work_off(first, go_on=False))
    # The server has a newer one, so that nothing is to be done.
    assert outcome.written == 1
    assert s.documents()["1"]["title"] == "later"
    assert s.entries() == []


@pytest.mark.backends("psycopg")
@pytest.mark.parametrize("triggers", [False, True])
def test_a_row_waits_while_somebody_changes_what_its_document_is_made_of(synced: Make, triggers: bool) -> None:
    s = synced(triggers=triggers)
    s.run(lambda session: session.add(s.base.Author(id=1, name="old")))
    s.run(lambda session: session.add(s.base.Article(id=1, title="a", author_id=1)))
    s.sync()
    with Elasticsearch(s.url) as client:
        sync = Sync(s.sessions, client, s.index)
        with s.sessions() as renaming:
            renaming.get(s.base.Author, 1).name = "new"
            renaming.flush()  # it notes the article that it sees
            s.run(lambda session: session.add(s.base.Article(id=2, title="b", author_id=1)))
            s.run(lambda session: session.add(s.base.Article(id=3, title="of nobody")))
            outcome = sync.run_once()
            assert outcome.written == 1
            assert {entry.row_key for entry in s.entries()} == {"[2]"}
            renaming.commit()
    s.sync()
    assert s.differences() == []
    assert s.documents()["2"]["author"] == "new"
    assert s.entries() == []


@ONE_OF_EACH
def test_a_document_that_is_refused_is_dead_alone(synced: Make) -> None:
    s = synced()
    s.add(3)
    author = s.base.Author(id=1, name="x" * 40_000)  # longer than what an index can have for a term
    s.run(lambda session: setattr(session.get(s.base.Article, 2), "author", author))
    outcome = s.sync()
    assert (outcome.written, outcome.dead) == (2, 1)
    (dead,) = s.entries()
    assert (dead.state, dead.row_key) == ("dead", "[2]")
    assert "failed to parse field [author]" in dead.reason
    assert "xxx" not in dead.reason
    s.run(lambda session: setattr(session.get(s.base.Author, 1), "name", "Ann"))
    assert s.sync().written == 1
    assert s.entries() == []
    assert s.differences() == []


@ONE_OF_EACH
def test_a_missing_index_is_not_made_by_a_write(synced: Make) -> None:
    s = synced()
    s.add(2)
    for physical in s.client.indices.get_alias(name=s.index.name):
        s.client.indices.delete(index=physical)
    with pytest.raises(IndexMissing, match="there is no index"):
        s.sync()
    assert not s.client.indices.exists(index=s.index.name)
    assert {entry.state for entry in s.entries()} == {"pending"}
    assert all(entry.attempts == 0 for entry in s.entries())
    s.index.create(s.client)
    assert s.sync().written == 2
    assert s.differences() == []


@ONE_OF_EACH
def test_a_missing_index_is_not_made_by_a_delete(synced: Make) -> None:
    s = synced()
    s.add(2)
    s.sync()
    with Elasticsearch(s.url) as client:
        sync = Sync(s.sessions, client, s.index)
        s.add(1, start=3)
        assert sync.run_once().written == 1  # it has looked at the index by now
        for physical in s.client.indices.get_alias(name=s.index.name):
            s.client.indices.delete(index=physical)
        s.run(lambda session: session.delete(session.get(s.base.Article, 1)))
        with pytest.raises(IndexMissing):
            sync.run_once()
    assert not s.client.indices.exists(index=s.index.name)
    assert [entry.operation for entry in s.entries()] == ["delete"]


@ONE_OF_EACH
def test_an_index_of_another_mapping_is_refused(synced: Make) -> None:
    s = synced()
    s.add(1)
    (physical,) = s.client.indices.get_alias(name=s.index.name)
    s.client.indices.delete(index=physical)
    mapping = s.index.mapping()
    del mapping["properties"]["views"]
    s.client.indices.create(index=physical, mappings=mapping, aliases={s.index.name: {}})
    with pytest.raises(IndexDrift, match="views"):
        s.sync()
    assert [entry.state for entry in s.entries()] == ["pending"]


@ONE_OF_EACH
def test_a_database_that_was_put_back_is_noticed(synced: Make) -> None:
    s = synced()
    s.add(2)
    s.sync()
    s.client.index(index=s.index.name, id="1", document=s.documents()["1"], version=10**9, version_type="external")
    s.run(lambda session: setattr(session.get(s.base.Article, 1), "title", "z"))
    with pytest.raises(DatabaseRestored, match="rebuild"):
        s.sync()
    assert len(s.entries()) == 1


@ONE_OF_EACH
def test_documents_go_to_an_index_that_is_rebuilt_too(synced: Make) -> None:
    s = synced()
    s.client.indices.create(
        index=f"{s.index.name}-new", mappings=s.index.mapping(), aliases={f"{s.index.name}-rebuild": {}}
    )
    s.add(3)
    s.sync()
    s.run(lambda session: session.delete(session.get(s.base.Article, 2)))
    s.sync()
    s.client.indices.refresh(index=f"{s.index.name}-new")
    found = s.client.search(index=f"{s.index.name}-new")["hits"]["hits"]
    assert {hit["_id"] for hit in found} == {"1", "3"}
    assert s.differences() == []


@pytest.mark.backends("psycopg")
def test_a_document_that_only_the_new_index_refuses_is_written_to_the_old_one_and_dead(synced: Make) -> None:
    s = synced()
    mapping = s.index.mapping()
    mapping["properties"]["author"]["ignore_above"] = 8
    mapping["properties"]["title"] = {"type": "integer"}
    s.client.indices.create(index=f"{s.index.name}-new", mappings=mapping, aliases={f"{s.index.name}-rebuild": {}})
    s.add(2)
    outcome = s.sync()
    assert (outcome.written, outcome.dead) == (0, 2)
    assert s.differences() == []
    assert all("[title]" in entry.reason for entry in s.entries())


@ONE_OF_EACH
def test_large_requests_are_cut(synced: Make) -> None:
    s = synced()
    s.add(50)
    assert s.sync(max_bytes=2000, max_actions=7).written == 50
    assert s.differences() == []


@pytest.mark.backends("pysqlite3")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"max_actions": 0}, "max_actions"),
        ({"max_bytes": -1}, "max_bytes"),
        ({"lease": 5.0, "timeout": 5.0}, "must be longer than timeout"),
        ({"refresh": "true"}, "refresh="),
        ({"poll": 0}, "poll"),
        ({"name": ""}, "name"),
        ({"backoff": -1}, "backoff"),
    ],
)
def test_options_that_are_none_are_refused(synced: Make, options: dict[str, Any], said: str) -> None:
    s = synced()
    with pytest.raises(InvalidOption, match=said):
        Sync(s.sessions, s.client, s.index, **options)
    with pytest.raises(InvalidOption, match="the client is Elasticsearch"):
        Sync(s.sessions, object(), s.index)
    with pytest.raises(InvalidOption, match="SearchIndex"):
        Sync(s.sessions, s.client, "articles")  # type: ignore[arg-type]


@pytest.mark.backends("psycopg", "asyncpg")
@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_transactions_that_see_only_what_they_saw_first_are_none_to_count_in(
    backend: Backend, node: Any, index_name: str, level: str
) -> None:
    s = Synced(backend, backend.make_engine(isolation_level=level), node.url, mirrored_models(index_name))
    try:
        s.index.create(s.client)
        s.add(1)
        with pytest.raises(InvalidOption, match="READ COMMITTED"):
            s.sync()
        assert [entry.state for entry in s.entries()] == ["pending"]
        assert s.documents() == {}
    finally:
        s.close()
