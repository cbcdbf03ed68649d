"""Bugs that are planted in what keeps an index, one by one: what looks for lost documents finds each of them.

A situation is a short story that ends well; with the bug planted it must not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from elasticsearch import Elasticsearch

from sqla_vector.elasticsearch import Sync, actions, sending, sync
from sqla_vector.elasticsearch.actions import Verdict
from sqla_vector.exc import IndexMissing, SearchUnavailable
from sqla_vector.tracking.entries import dead_entries
from sqla_vector.tracking.steps import Transaction
from tests.elasticsearch.synced import Synced, mirrored_models
from tests.elasticsearch.watcher import Watcher
from tests.support.backends import AnyEngine, Backend
from tests.support.fault_proxy import FaultProxy
from tests.support.faults import Answer, Fault, Items, Late

pytestmark = pytest.mark.long

Patch = pytest.MonkeyPatch
Situation = Callable[[Synced], None]
Bug = Callable[[Patch], None]


@pytest.fixture
def s(backend: Backend, engine: AnyEngine, node: Any, index_name: str) -> Iterator[Synced]:
    """A database with three articles that are in the index."""
    made = Synced(backend, engine, node.url, mirrored_models(index_name))
    try:
        made.index.create(made.client)
        made.add(3)
        made.sync()
        yield made
    finally:
        made.close()


def title(s: Synced, id_: int, value: str) -> None:
    """Change an article."""
    s.run(lambda session: setattr(session.get(s.base.Article, id_), "title", value))


def remove(s: Synced, id_: int) -> None:
    """Delete an article."""
    s.run(lambda session: session.delete(session.get(s.base.Article, id_)))


def settle(s: Synced) -> None:
    """Work until nothing is pending, and look for what was lost."""
    s.sync()
    look(s)
    assert s.differences() == []


def look(s: Synced) -> None:
    """Look for what was acknowledged and is not there."""
    Watcher(s.engine, s.client, s.base).look()  # type: ignore[arg-type]


def met(s: Synced, *faults: Fault) -> None:
    """Work off one batch while faults happen, and look."""
    with FaultProxy(s.url, faults) as proxy:
        with Elasticsearch(proxy.url) as client:
            Sync(s.sessions, client, s.index, timeout=0.5, lease=3.0, backoff=0.0).run_once()
        look(s)
    settle(s)


# Situations.


def some_items_have_no_room(s: Synced) -> None:
    title(s, 1, "a")
    title(s, 2, "b")
    met(s, Items(429, {0}))


def an_item_is_in_conflict_with_nothing(s: Synced) -> None:
    title(s, 1, "a")
    title(s, 2, "b")
    met(s, Items(409, {1}))


def an_answer_is_none(s: Synced) -> None:
    title(s, 1, "a")
    met(s, Answer(502))


def an_item_is_refused(s: Synced) -> None:
    title(s, 1, "a")
    title(s, 2, "b")
    with FaultProxy(s.url, [Items(400, {0})]) as proxy:
        s.sync(proxy.url)
    look(s)
    (dead,) = s.entries()
    assert (dead.state, "failed to parse" in dead.reason) == ("dead", True)


def a_write_arrives_after_a_delete(s: Synced) -> None:
    s.add(1, start=9)
    with FaultProxy(s.url, [Late()]) as proxy:
        with Elasticsearch(proxy.url) as client:
            Sync(s.sessions, client, s.index, timeout=0.5, lease=3.0).run_once()
        remove(s, 9)
        settle(s)
        proxy.deliver_late()
    settle(s)


def another_overtakes(s: Synced) -> None:
    title(s, 1, "first")
    with Elasticsearch(s.url) as client:
        slow = Sync(s.sessions, client, s.index)
        in_hand = slow._driver.run(slow._take())
        title(s, 1, "second")
        s_two = Sync(s.sessions, client, s.index)
        assert s_two.run_once().written == 1
        slow._driver.run(slow._work_off(in_hand, go_on=False))
    settle(s)


def an_index_is_deleted(s: Synced, change: Callable[[Synced], None] = lambda s: title(s, 1, "b")) -> None:
    with Elasticsearch(s.url) as client:
        one = Sync(s.sessions, client, s.index)
        title(s, 1, "a")
        one.run_once()
        for physical in s.client.indices.get_alias(name=s.index.name):
            s.client.indices.delete(index=physical)
        change(s)
        with suppress(IndexMissing):
            one.run_once()
    assert not s.client.indices.exists(index=s.index.name)
    assert [entry.state for entry in s.entries()] == ["pending"]


def an_index_is_deleted_and_then_a_row(s: Synced) -> None:
    an_index_is_deleted(s, lambda s: remove(s, 1))


def a_lease_is_over_long_ago(s: Synced) -> None:
    """A document is deleted meanwhile, and so long ago that the server has forgotten that there was one."""
    s.client.indices.put_settings(index=s.index.name, settings={"index.gc_deletes": "1ms"})
    title(s, 1, "edited")
    with Elasticsearch(s.url) as client:
        slow = Sync(s.sessions, client, s.index, lease=0.4, timeout=0.2)
        in_hand = slow._driver.run(slow._take())
        remove(s, 1)
        s.sync()  # it waits for the lease
        s.client.index(index=s.index.name, id="probe", document={}, version=10**6, version_type="external")
        s.client.delete(index=s.index.name, id="probe", version=10**6 + 1, version_type="external")
        until = time.monotonic() + 60
        while not forgotten(s):
            assert time.monotonic() < until
        slow._driver.run(slow._work_off(in_hand, go_on=False))
    settle(s)


def forgotten(s: Synced) -> bool:
    """Tell whether the server has forgotten the versions of what was deleted."""
    s.client.indices.refresh(index=s.index.name)
    found = s.client.options(ignore_status=409).index(
        index=s.index.name, id="probe", document={}, version=1, version_type="external"
    )
    if found.meta.status == 409:
        return False
    s.client.delete(index=s.index.name, id="probe", version=2, version_type="external")
    return True


def an_author_is_renamed_while_an_article_is_edited(s: Synced) -> None:
    """The entry of the edit is the older one, and comes to be seen later."""
    s.run(lambda session: setattr(session.get(s.base.Article, 1), "author", s.base.Author(id=1, name="Ann")))
    settle(s)
    with s.sessions() as session:
        session.get(s.base.Article, 1).views = 7
        session.flush()
        s.run(lambda other: setattr(other.get(s.base.Author, 1), "name", "Bea"))
        s.sync()
        session.commit()
    settle(s)
    assert s.documents()["1"]["views"] == 7


def a_row_dies_while_another_writes_what_it_was(s: Synced) -> None:
    title(s, 1, "good")
    with Elasticsearch(s.url) as client:
        slow = Sync(s.sessions, client, s.index)
        in_hand = slow._driver.run(slow._take())
        author = s.base.Author(id=1, name="x" * 40_000)  # longer than what an index can have for a term
        s.run(lambda session: setattr(session.get(s.base.Article, 1), "author", author))
        assert Sync(s.sessions, client, s.index).run_once().dead == 1
        slow._driver.run(slow._work_off(in_hand, go_on=False))
    look(s)
    assert [(entry.state, entry.row_key) for entry in s.entries()] == [("dead", "[1]")]
    s.run(lambda session: setattr(session.get(s.base.Author, 1), "name", "Ann"))
    settle(s)
    assert s.entries() == []


# Bugs.


def items_not_looked_at(patch: Patch) -> None:
    patch.setattr(sending, "verdicts", lambda sent, answer: [(action, Verdict.DONE, "") for action in sent])


def said_instead(patch: Patch, before: Verdict, after: Verdict) -> None:
    """Have a verdict taken for another."""
    verdicts = sending.verdicts

    def planted(sent: Any, answer: Any) -> Any:
        return [(action, after if v is before else v, why) for action, v, why in verdicts(sent, answer)]

    patch.setattr(sending, "verdicts", planted)


def conflicts_taken_for_done(patch: Patch) -> None:
    said_instead(patch, Verdict.CONFLICT, Verdict.DONE)


def busy_taken_for_done(patch: Patch) -> None:
    said_instead(patch, Verdict.LATER, Verdict.DONE)


def refusals_taken_for_done(patch: Patch) -> None:
    said_instead(patch, Verdict.REFUSED, Verdict.DONE)


def outages_taken_for_done(patch: Patch) -> None:
    send = Sync._send

    def planted(self: Sync, sent: Any, alias: str) -> Any:
        try:
            return (yield from send(self, sent, alias))
        except SearchUnavailable:
            return [(action, Verdict.DONE, "") for action in sent]

    patch.setattr(Sync, "_send", planted)


def acknowledged_before_it_is_sent(patch: Patch) -> None:
    claim = Sync._claim

    def planted(self: Sync, connection: Any, **options: Any) -> Any:
        batch = claim(self, connection, **options)
        if batch is not None:
            sync.acknowledge(connection, self._outbox, batch.token, batch.ids)
        return batch

    patch.setattr(Sync, "_claim", planted)


def with_version(action: actions.Action, version: int) -> actions.Action:
    """Return an action as it is with another version."""
    header = json.loads(action.header)
    ((_, meta),) = header.items()
    meta["version"] = version
    return replace(action, version=version, header=json.dumps(header).encode())


def entries_as_versions(patch: Patch) -> None:
    claim = Sync._claim

    def planted(self: Sync, connection: Any, **options: Any) -> Any:
        batch = claim(self, connection, **options)
        if batch is not None:
            last = {key: max(entry.id for entry in row.entries) for key, row in batch.rows.items()}
            batch.actions = [with_version(action, last[action.key]) for action in batch.actions]  # type: ignore[index]
        return batch

    patch.setattr(Sync, "_claim", planted)


def numbers_drawn_after_reading(patch: Patch) -> None:
    send_all = Sync._send_all

    def planted(self: Sync, batch: Any) -> Any:
        drawn = yield Transaction(lambda connection: sync.draw(connection, self._outbox))
        batch.actions = [with_version(action, drawn) for action in batch.actions]
        yield from send_all(self, batch)

    patch.setattr(Sync, "_send_all", planted)


def planted_header(patch: Patch, operations: set[str]) -> None:
    """Have operations sent without a version."""
    header = actions._header

    def planted(operation: str, document_id: str, version: int, routing: str | None = None) -> bytes:
        if operation in operations:
            return json.dumps({operation: {"_id": document_id}}).encode()
        return header(operation, document_id, version, routing)

    patch.setattr(actions, "_header", planted)
    # Nor is one looked for in the answer.
    decide = actions._verdict

    def planted_verdict(action: actions.Action, item: Any) -> Any:
        return decide(action, {name: {**said, "_version": action.version} for name, said in item.items()})

    patch.setattr(actions, "_verdict", planted_verdict)


def deletes_without_a_version(patch: Patch) -> None:
    planted_header(patch, {"delete"})


def writes_without_a_version(patch: Patch) -> None:
    planted_header(patch, {"index", "delete"})


def indexes_made_by_writes(patch: Patch) -> None:
    ask = sending.Sender.ask

    def planted(self: sending.Sender, method: str, **arguments: Any) -> Any:
        arguments.pop("require_alias", None)
        return (yield from ask(self, method, **arguments))

    patch.setattr(sending.Sender, "ask", planted)


def indexes_made_by_deletes(patch: Patch) -> None:
    patch.setattr(actions, "_is_guarded", lambda sent: False)


def leases_not_looked_at(patch: Patch) -> None:
    send_all = Sync._send_all

    def planted(self: Sync, batch: Any) -> Any:
        batch.until = float("inf")
        yield from send_all(self, batch)

    patch.setattr(Sync, "_send_all", planted)


def all_that_is_dead_forgotten(patch: Patch) -> None:
    finish = Sync._finish

    def planted(self: Sync, connection: Any, batch: Any, later: float) -> Any:
        for key, row in batch.rows.items():
            row.dead = dead_entries(connection, self._outbox, self._index.target, [key]).get(json.dumps(key), [])
        return finish(self, connection, batch, later)

    patch.setattr(Sync, "_finish", planted)


ANYWHERE: tuple[tuple[Bug, Situation], ...] = (
    (items_not_looked_at, some_items_have_no_room),
    (items_not_looked_at, an_item_is_refused),
    (busy_taken_for_done, some_items_have_no_room),
    (refusals_taken_for_done, an_item_is_refused),
    (conflicts_taken_for_done, an_item_is_in_conflict_with_nothing),
    (outages_taken_for_done, an_answer_is_none),
    (acknowledged_before_it_is_sent, an_answer_is_none),
    (numbers_drawn_after_reading, another_overtakes),
    (writes_without_a_version, another_overtakes),
    (deletes_without_a_version, a_write_arrives_after_a_delete),
    (indexes_made_by_writes, an_index_is_deleted),
    (indexes_made_by_deletes, an_index_is_deleted_and_then_a_row),
    (leases_not_looked_at, a_lease_is_over_long_ago),
    (all_that_is_dead_forgotten, a_row_dies_while_another_writes_what_it_was),
)

# Two transactions that write at a time, which SQLite has not.
TWO_WRITERS: tuple[tuple[Bug, Situation], ...] = (
    (entries_as_versions, an_author_is_renamed_while_an_article_is_edited),
)


def _situations(pairs: tuple[tuple[Bug, Situation], ...]) -> list[Any]:
    found = dict.fromkeys(situation for _, situation in pairs)
    return [pytest.param(situation, id=situation.__name__) for situation in found]


def _bugs(pairs: tuple[tuple[Bug, Situation], ...]) -> list[Any]:
    return [pytest.param(bug, found, id=f"{bug.__name__}-{found.__name__}") for bug, found in pairs]


@pytest.mark.parametrize("situation", _situations(ANYWHERE))
@pytest.mark.backends("psycopg", "pysqlite3")
def test_every_situation_ends_well(s: Synced, situation: Situation) -> None:
    situation(s)


@pytest.mark.parametrize("situation", _situations(TWO_WRITERS))
@pytest.mark.backends("psycopg")
def test_every_situation_of_two_writers_ends_well(s: Synced, situation: Situation) -> None:
    situation(s)


@pytest.mark.parametrize(("bug", "situation"), _bugs(ANYWHERE))
@pytest.mark.backends("pysqlite3")
def test_a_planted_bug_is_found(s: Synced, monkeypatch: Patch, bug: Bug, situation: Situation) -> None:
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        situation(s)


@pytest.mark.parametrize(("bug", "situation"), _bugs(TWO_WRITERS))
@pytest.mark.backends("psycopg")
def test_a_planted_bug_of_two_writers_is_found(s: Synced, monkeypatch: Patch, bug: Bug, situation: Situation) -> None:
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        situation(s)
