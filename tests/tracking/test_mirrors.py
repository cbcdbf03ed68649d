"""Copies outside of the database: whatever changes one is noted in its channel, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Connection, delete, insert, select, text, update

from sqla_vector.exc import InvalidDeclaration, InvalidIdentifier, InvalidOption
from sqla_vector.tracking import outbox_triggers
from sqla_vector.tracking.mirrors import Mirror, declare_mirror
from sqla_vector.tracking.outbox import claim, draw, put
from tests.support.backends import Backend
from tests.tracking.conftest import Tracked
from tests.tracking.models import CountingEmbedder, article_models

pytestmark = pytest.mark.backends("psycopg", "asyncpg", "pysqlite3", "aiosqlite", "sqlite_stdlib")

Make = Callable[..., Tracked]
PATHS = ("title", "author.name", "embedding")


def mirrored(when: str = "flush", *, triggers: bool = False, paths: tuple[str, ...] = PATHS) -> Any:
    """Return models of which articles are mirrored."""
    base = article_models(when)
    declare_mirror(Mirror("articles", base.outbox, base.Article, paths))
    if triggers:
        outbox_triggers(base, base.outbox)
    return base


def drain(t: Tracked) -> list[tuple[str, str]]:
    """Return operation and row key of what the channel has, in order, and empty the outbox."""
    outbox = t.base.outbox

    def run(connection: Connection) -> list[tuple[str, str]]:
        found = connection.execute(
            select(outbox.c.operation, outbox.c.row_key).where(outbox.c.channel == "articles").order_by(outbox.c.id)
        ).all()
        connection.execute(delete(outbox))
        return [tuple(row) for row in found]

    return t.backend.run_connection(t.engine, run)


def fill(t: Tracked) -> None:
    """Add an author with two articles, and one without."""
    base = t.base

    def add(session: Any) -> None:
        author = base.Author(id=1, name="Ann", articles=[base.Article(id=1, title="a"), base.Article(id=2, title="b")])
        session.add_all([author, base.Article(id=3, title="c")])

    t.run(add)
    assert sorted(drain(t)) == [("upsert", "[1]"), ("upsert", "[2]"), ("upsert", "[3]")]


def get(session: Any, class_: Any, id_: int) -> Any:
    return session.get(class_, id_)


def edit(name: str, value: Any) -> Callable[[Any, Any], None]:
    return lambda session, base: setattr(session.get(base.Article, 1), name, value)


SESSION_CHANGES: dict[str, tuple[Callable[[Any, Any], Any], list[tuple[str, str]]]] = {
    "a field": (edit("title", "z"), [("upsert", "[1]")]),
    "the same value": (edit("title", "a"), []),
    "another column": (edit("views", 7), []),
    "a source of the vector": (edit("body", "z"), [("upsert", "[1]")]),
    "a related row": (lambda s, b: setattr(s.get(b.Author, 1), "name", "z"), [("upsert", "[1]"), ("upsert", "[2]")]),
    "the reference": (edit("author_id", None), [("upsert", "[1]")]),
    "a deleted row": (lambda s, b: s.delete(s.get(b.Article, 3)), [("delete", "[3]")]),
    "a cascade": (lambda s, b: s.delete(s.get(b.Author, 1)), [("delete", "[1]"), ("delete", "[2]")]),
    "a new key": (edit("id", 9), [("upsert", "[9]"), ("delete", "[1]")]),
    "a row by merge": (lambda s, b: s.merge(b.Article(id=3, title="z")), [("upsert", "[3]")]),
}


@pytest.mark.parametrize("name", SESSION_CHANGES)
def test_a_session_notes_what_it_changes(tracked: Make, name: str) -> None:
    change, expected = SESSION_CHANGES[name]
    t = tracked(mirrored(), CountingEmbedder())
    fill(t)
    t.run(lambda session: change(session, t.base) and None)
    assert sorted(drain(t)) == sorted(expected)


def test_what_is_rolled_back_is_not_noted(tracked: Make) -> None:
    t = tracked(mirrored(), CountingEmbedder())
    fill(t)

    def change(session: Any) -> None:
        session.get(t.base.Article, 1).title = "z"
        session.flush()
        session.rollback()

    t.run(change)
    assert drain(t) == []


def test_a_vector_that_a_worker_writes_is_noted(tracked: Make) -> None:
    t = tracked(mirrored("worker"), CountingEmbedder())
    t.run(lambda session: session.add(t.base.Article(id=1, title="a")))
    assert [(e.channel, e.operation, e.row_key) for e in t.entries()] == [
        ("embedding", "upsert", "[1]"),
        ("articles", "upsert", "[1]"),
    ]
    t.work()
    assert [(e.channel, e.operation, e.row_key) for e in t.entries()] == [("articles", "upsert", "[1]")] * 2


def test_a_vector_that_is_no_field_is_not_noted(tracked: Make) -> None:
    t = tracked(mirrored("worker", paths=("title",)), CountingEmbedder())
    t.run(lambda session: session.add(t.base.Article(id=1, title="a")))
    t.work()
    assert drain(t) == [("upsert", "[1]")]


def test_workers_leave_the_entries_of_other_channels(tracked: Make) -> None:
    t = tracked(mirrored(), CountingEmbedder())
    t.run(lambda session: session.add(t.base.Article(id=1, title="a")))
    assert t.once(t.worker()).entries == 0
    assert drain(t) == [("upsert", "[1]")]


STATEMENTS: dict[str, tuple[Callable[[Any], Any], list[tuple[str, str]]]] = {
    "insert": (lambda b: insert(b.Article).values(id=4, title="d"), [("upsert", "[4]")]),
    "update": (
        lambda b: update(b.Article).where(b.Article.id < 3).values(title="z"),
        [("upsert", "[1]"), ("upsert", "[2]")],
    ),
    "another column": (lambda b: update(b.Article).values(views=3), []),
    "a related row": (lambda b: update(b.Author).values(name="z"), [("upsert", "[1]"), ("upsert", "[2]")]),
    "delete": (lambda b: delete(b.Article).where(b.Article.id == 3), [("delete", "[3]")]),
    "a new key": (
        lambda b: update(b.Article).where(b.Article.id == 3).values(id=9),
        [("delete", "[3]"), ("upsert", "[9]")],
    ),
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_triggers_note_what_no_session_sees(tracked: Make, name: str) -> None:
    statement, expected = STATEMENTS[name]
    t = tracked(mirrored(triggers=True), CountingEmbedder())
    fill_with_triggers(t)
    t.backend.run_connection(t.engine, lambda c: c.execute(statement(t.base)) and None)
    assert sorted(set(drain(t))) == expected


@pytest.mark.backends("psycopg", "asyncpg")
def test_triggers_note_a_cascade_of_the_database(tracked: Make) -> None:
    t = tracked(mirrored(triggers=True), CountingEmbedder())
    fill_with_triggers(t)
    t.backend.run_connection(t.engine, lambda c: c.execute(delete(t.base.Author)) and None)
    assert {("delete", "[1]"), ("delete", "[2]")} <= set(drain(t))


def fill_with_triggers(t: Tracked) -> None:
    base = t.base

    def add(session: Any) -> None:
        author = base.Author(id=1, name="Ann", articles=[base.Article(id=1, title="a"), base.Article(id=2, title="b")])
        session.add_all([author, base.Article(id=3, title="c")])

    t.run(add)
    assert set(drain(t)) == {("upsert", "[1]"), ("upsert", "[2]"), ("upsert", "[3]")}


@pytest.mark.backends("psycopg", "asyncpg")
def test_truncate_is_one_entry_of_all_rows(tracked: Make) -> None:
    t = tracked(mirrored(triggers=True), CountingEmbedder())
    fill_with_triggers(t)
    t.backend.run_connection(t.engine, lambda c: c.execute(text("TRUNCATE article")) and None)
    assert drain(t) == [("truncate", "[]")]


@pytest.mark.backends("psycopg", "pysqlite3")
def test_numbers_that_are_drawn_are_larger_than_all_before(tracked: Make, backend: Backend) -> None:
    t = tracked(mirrored(), CountingEmbedder())
    seen = []
    for _ in range(3):
        seen.append(backend.run_connection(t.engine, lambda c: draw(c, t.base.outbox)))
        backend.run_connection(t.engine, lambda c: put(c, t.base.outbox, [("article", "[1]")], "articles"))
        claimed = backend.run_connection(
            t.engine, lambda c: claim(c, t.base.outbox, "me", 9, 60.0, "articles", ["article"])
        )
        seen.append(claimed[0].id)
        backend.run_connection(t.engine, lambda c: c.execute(delete(t.base.outbox)) and None)
    assert seen == sorted(set(seen))
    assert t.entries() == []


@pytest.mark.parametrize(
    ("channel", "paths", "error", "said"),
    [
        ('a"b', ("title",), InvalidIdentifier, "channel"),
        ("articles", ("titel",), InvalidDeclaration, "no mapped column"),
        ("articles", ("author",), InvalidDeclaration, "no mapped column"),
        ("articles", ("writer.name",), InvalidDeclaration, "no relationship"),
    ],
)
def test_a_mirror_that_is_none_is_refused(channel: str, paths: tuple[str, ...], error: type[Exception], said: str):
    base = article_models()
    with pytest.raises(error, match=said):
        _ = declare_mirror(Mirror(channel, base.outbox, base.Article, paths)).watched


def test_a_channel_has_one_mirror():
    base = mirrored()
    with pytest.raises(InvalidOption, match="declared already"):
        declare_mirror(Mirror("articles", base.outbox, base.Author, ("name",)))
    with pytest.raises(InvalidOption, match="mapped class"):
        declare_mirror(Mirror("others", base.outbox, dict, ("name",)))
