"""Every way of writing, and the entries that triggers make of it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, select, text, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from tests.support.backends import AnyEngine, Backend
from tests.tracking.captured import Captured, entries, library, notes, numbers

BACKENDS = pytest.mark.backends("psycopg", "asyncpg", "sqlite_stdlib", "pysqlite3", "sqlite_numpy", "aiosqlite")
POSTGRESQL = pytest.mark.backends("psycopg", "asyncpg")
SQLITE = pytest.mark.backends("sqlite_stdlib", "pysqlite3", "sqlite_numpy", "aiosqlite")
VEC0 = pytest.mark.backends("psycopg", "asyncpg", "sqlite_stdlib", "pysqlite3", "aiosqlite")

ARTICLE = "INSERT INTO article (id, headline, slug, author_id, embedding_fingerprint, words_fingerprint) VALUES "
SETUP = (
    "INSERT INTO publisher (id, name) VALUES (1, 'p'), (2, 'q')",
    "INSERT INTO author (id, name, email, publisher_id) VALUES (1, 'a', 'a@', 1), (2, 'b', 'b@', 2), (3, 'c', 'c@', 2)",
    ARTICLE
    + "(1, 'x', 'x', 1, 'm@1:x', 'm@1:w'), (2, 'y', 'y', 1, 'm@1:y', 'm@1:w'), (3, 'z', 'z', 2, 'm@1:z', 'm@1:w')",
    "INSERT INTO label (id, word) VALUES (1, 'l'), (2, 'm')",
    "INSERT INTO labelled (article_id, label_id) VALUES (1, 1), (2, 2)",
    "INSERT INTO tag (id, word, article_id) VALUES (1, 'u', 1), (2, 'v', 2)",
)
SET = "UPDATE article SET "

# What is written, and the articles that are marked.
WAYS: list[tuple[str, list[int]]] = [
    (ARTICLE + "(4, 'n', 'n', 1, NULL, NULL)", [4]),
    (ARTICLE + "(4, 'n', 'n', NULL, NULL, NULL), (5, NULL, NULL, NULL, NULL, NULL)", [4, 5]),
    (ARTICLE + "(4, 'n', 'n', 1, 'm@1:n', 'm@1:w')", []),
    (ARTICLE + "(4, 'n', 'n', 1, 'm@1:n', NULL)", [4]),
    ("INSERT INTO article (id, headline) SELECT id + 10, headline FROM article", [11, 12, 13]),
    (ARTICLE + "(1, 'n', 'n', 1, NULL, NULL) ON CONFLICT (id) DO UPDATE SET headline = 'n'", [1]),
    (ARTICLE + "(1, 'n', 'n', 1, NULL, NULL) ON CONFLICT (id) DO UPDATE SET views = 5", []),
    (ARTICLE + "(1, 'n', 'n', 1, NULL, NULL) ON CONFLICT (id) DO NOTHING", []),
    (SET + "headline = 'n' WHERE id = 1", [1]),
    (SET + "headline = 'n'", [1, 2, 3]),
    (SET + "headline = NULL WHERE id = 1", [1]),
    (SET + "headline = 'X' WHERE id = 1", [1]),
    (SET + "headline = headline", []),
    (SET + "views = views + 1", []),
    (SET + "slug = 'other' WHERE id = 1", []),
    (SET + "author_id = 2 WHERE id = 1", [1]),
    (SET + "author_id = NULL WHERE id = 1", [1]),
    (SET + "id = 9 WHERE id = 3", [9]),
    (SET + "embedding_fingerprint = 'm@1:n', embedding = NULL WHERE id = 1", []),
    (SET + "embedding_fingerprint = 'm@1:n', headline = 'n' WHERE id = 1", []),
    (SET + "embedding_fingerprint = NULL, headline = 'n' WHERE id = 1", [1]),
    (SET + "embedding_fingerprint = 'm@1:x', headline = 'n' WHERE id = 1", [1]),
    (SET + "words_fingerprint = 'm@1:n', headline = 'n' WHERE id = 1", [1]),
    ("DELETE FROM labelled WHERE article_id = 1", [1]),
    ("DELETE FROM tag WHERE article_id = 1", [1]),
    ("UPDATE author SET name = 'n' WHERE id = 1", [1, 2]),
    ("UPDATE author SET name = name", []),
    ("UPDATE author SET born = 1900", []),
    ("UPDATE author SET name = 'n' WHERE id = 3", []),
    ("UPDATE author SET publisher_id = 2 WHERE id = 1", [1, 2]),
    ("UPDATE publisher SET name = 'n' WHERE id = 2", [3]),
    ("UPDATE publisher SET name = 'n'", [1, 2, 3]),
    ("UPDATE tag SET word = 'n' WHERE id = 1", [1]),
    ("UPDATE tag SET color = 'red'", []),
    ("UPDATE tag SET article_id = 3 WHERE id = 1", [1, 3]),
    ("UPDATE tag SET article_id = NULL WHERE id = 1", [1]),
    ("INSERT INTO tag (id, word, article_id) VALUES (3, 'w', 3)", [3]),
    ("INSERT INTO tag (id, word, article_id) VALUES (3, 'w', NULL)", []),
    ("UPDATE label SET word = 'n' WHERE id = 1", [1]),
    ("INSERT INTO label (id, word) VALUES (3, 'n')", []),
    ("INSERT INTO labelled (article_id, label_id) VALUES (3, 1)", [3]),
    ("UPDATE labelled SET article_id = 3 WHERE article_id = 1", [1, 3]),
    ("UPDATE labelled SET label_id = 1 WHERE article_id = 2", [2]),
    ("DELETE FROM label WHERE id = 1", [1]),
    ("DELETE FROM article WHERE id = 3", []),
    ("INSERT INTO author (id, name) VALUES (4, 'd')", []),
]


def marked(*keys: int) -> set[tuple[str, str, str]]:
    return {("article", f"[{key}]", "upsert") for key in keys}


@pytest.fixture
def captured(backend: Backend, engine: AnyEngine) -> Captured:
    """A library with rows, whose outbox is empty."""
    if backend.family == "sqlite":
        enforce_references(engine)
    made = Captured(backend, engine, library())
    made.sql(*SETUP)
    return made


def enforce_references(engine: Any) -> None:
    """Have SQLite enforce foreign keys, as it does nowhere unless it is told to."""

    @event.listens_for(getattr(engine, "sync_engine", engine), "connect")
    def connect(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()


@BACKENDS
def test_a_statement_marks_the_rows_whose_text_it_changes_and_no_others(captured: Captured):
    wrong = {}
    for statement, keys in WAYS:

        def run(connection: Connection, statement: str = statement) -> Any:
            with connection.begin_nested() as savepoint:
                connection.exec_driver_sql(statement)
                found = set(entries(connection, captured.base.outbox))
                savepoint.rollback()
            return found

        found = captured.run(run)
        if found != marked(*keys):
            wrong[statement] = found
    assert wrong == {}


@BACKENDS
def test_an_entry_is_one_that_claims_find(captured: Captured):
    from sqla_vector.tracking.outbox import claim

    def run(connection: Connection) -> Any:
        connection.exec_driver_sql("UPDATE article SET headline = 'n' WHERE id = 1")
        return claim(connection, captured.base.outbox, "t", 10, 60.0, "embedding", ["article"])

    (entry,) = captured.run(run)
    assert (entry.entity, entry.row_key, entry.operation, entry.attempts) == ("article", "[1]", "upsert", 0)


@BACKENDS
def test_a_change_of_an_author_marks_an_article_once(captured: Captured):
    assert captured.written("UPDATE author SET name = 'n', email = 'n' WHERE id = 2") == [*marked(3)]
    assert captured.written("UPDATE tag SET word = 'n', article_id = 1 WHERE id = 1") == [*marked(1)]


@BACKENDS
def test_core_bulk_and_orm_statements_are_captured(captured: Captured):
    article = captured.tables["article"]
    (mapper,) = [m for m in captured.base.registry.mappers if m.local_table is article]
    assert captured.sql((insert(article), [{"id": i, "headline": "n"} for i in range(20, 70)])) == marked(
        *range(20, 70)
    )
    assert captured.sql(update(article).where(article.c.id == 1).values(headline="core")) == marked(1)

    def bulk(session: Session) -> Any:
        session.bulk_update_mappings(mapper, [{"id": 2, "title": "bulk"}])
        session.execute(update(mapper.class_).where(mapper.class_.id == 3).values(title="orm"))
        session.bulk_insert_mappings(mapper, [{"id": 90, "title": "new"}])
        return set(entries(session.connection(), captured.base.outbox))

    assert captured.backend.run(captured.engine, bulk) == marked(2, 3, 90)


@BACKENDS
def test_what_is_rolled_back_leaves_no_entry(captured: Captured):
    outbox = captured.base.outbox

    def run(connection: Connection) -> Any:
        with connection.begin_nested():
            connection.exec_driver_sql("UPDATE article SET headline = 'n' WHERE id = 1")
        with connection.begin_nested() as savepoint:
            connection.exec_driver_sql("UPDATE article SET headline = 'n' WHERE id = 2")
            savepoint.rollback()
        return connection.execute(select(outbox.c.row_key)).scalars().all()

    assert captured.run(run) == ["[1]"]

    def fail(connection: Connection) -> None:
        connection.exec_driver_sql("UPDATE article SET headline = 'm' WHERE id = 2")
        raise LookupError

    with pytest.raises(LookupError):
        captured.run(fail)
    assert [key for _, key, _ in captured.run(lambda c: entries(c, outbox))] == ["[1]"]


@BACKENDS
def test_an_upsert_marks_what_it_changes(captured: Captured):
    article = captured.tables["article"]
    stmt: Any = (postgresql if captured.backend.family == "postgresql" else sqlite).insert(article)
    stmt = stmt.on_conflict_do_update(index_elements=["slug"], set_={"headline": stmt.excluded.headline})
    rows = [{"slug": "x", "headline": "n"}, {"slug": "y", "headline": "y"}, {"slug": "new", "headline": "n"}]
    with_key = [{"id": number, **row} for number, row in enumerate(rows, start=50)]
    assert captured.sql((stmt, with_key)) == marked(1, 52)


@BACKENDS
@pytest.mark.parametrize("cascade", ["CASCADE", "SET NULL", None])
def test_a_deleted_author_marks_the_articles_that_stay(backend: Backend, engine: AnyEngine, cascade):
    if backend.family == "sqlite":
        enforce_references(engine)
    made = Captured(backend, engine, library(cascade=cascade))
    made.sql(*SETUP)
    if cascade is None:
        made.sql("UPDATE article SET author_id = NULL WHERE author_id = 1")
    found = made.sql("DELETE FROM author WHERE id = 1")
    assert found == (marked(1, 2) if cascade == "SET NULL" else set())


@BACKENDS
def test_a_key_that_cascades_marks_the_rows_under_their_new_key(captured: Captured):
    assert captured.sql("UPDATE article SET id = 7 WHERE id = 1") == marked(7)
    assert marked(7, 2) == captured.sql("UPDATE author SET id = 7 WHERE id = 1")


@SQLITE
def test_references_that_are_not_enforced_may_come_first(backend: Backend, engine: AnyEngine):
    made = Captured(backend, engine, library())
    made.sql("INSERT INTO article (id, author_id) VALUES (1, 1)", "INSERT INTO tag (id, article_id) VALUES (1, 2)")
    assert made.sql("INSERT INTO author (id, name, publisher_id) VALUES (1, 'n', 1)") == marked(1)
    assert made.sql("INSERT INTO publisher (id, name) VALUES (1, 'n')") == marked(1)
    assert made.sql("DELETE FROM publisher") == marked(1)
    assert made.sql("DELETE FROM author") == marked(1)


@SQLITE
def test_rows_that_are_replaced_mark_those_that_they_belonged_to(captured: Captured):
    replace = "INSERT OR REPLACE INTO "
    assert captured.sql(replace + "article (id, headline, slug) VALUES (1, 'n', 'x')") == marked(1)
    assert captured.sql(replace + "article (id, headline, slug) VALUES (9, 'n', 'y')") == marked(9)
    captured.sql("DELETE FROM tag", "DELETE FROM article", SETUP[2], SETUP[5])
    assert captured.sql(replace + "tag (id, word, article_id) VALUES (1, 'n', 3)") == marked(1, 3)
    assert captured.sql(replace + "tag (id, word, article_id) VALUES (9, 'v', 3)") == marked(2, 3)
    assert captured.sql("UPDATE OR REPLACE tag SET word = 'n', article_id = 2 WHERE id = 9") == marked(2, 3)
    captured.sql("PRAGMA recursive_triggers = ON")
    assert captured.sql(replace + "tag (id, word, article_id) VALUES (10, 'n', 1)") == marked(1, 2)


@SQLITE
def test_an_author_who_is_replaced_marks_his_articles(backend: Backend, engine: AnyEngine):
    made = Captured(backend, engine, library())
    made.sql(*SETUP)
    assert made.sql("INSERT OR REPLACE INTO author (id, name, email) VALUES (1, 'n', 'a@')") == marked(1, 2)
    # Nobody is author 2 any more.
    assert made.sql("INSERT OR REPLACE INTO author (id, name, email) VALUES (8, 'n', 'b@')") == marked(3)


@SQLITE
def test_tables_without_rowid_have_triggers_too(backend: Backend, engine: AnyEngine):
    base = notes()
    base.metadata.tables["note"].dialect_options["sqlite"]["with_rowid"] = False
    made = Captured(backend, engine, base)
    assert made.sql("INSERT INTO note (id, body) VALUES ('a', 'x')") == {("note", '["a"]', "upsert")}
    assert made.sql("INSERT OR REPLACE INTO note (id, body) VALUES ('a', 'y')") == {("note", '["a"]', "upsert")}


@SQLITE
def test_values_that_no_key_should_have_fail_no_statement(backend: Backend, engine: AnyEngine):
    made = Captured(backend, engine, notes())
    odd = "(x'00ff', 'x'), (NULL, 'y'), (1.5, 'z'), (9e999, 'i'), ('a' || char(0) || 'b', 'n'), (x'', x'80')"
    found = made.sql(f"INSERT INTO note (id, body) VALUES {odd.replace('(NULL, ', '(7, ')}")
    assert len(found) == 6
    other = Captured(backend, backend.make_engine(), numbers())
    assert other.sql("INSERT INTO num (a, b) VALUES (x'01', 'x'), (NULL, 'y'), ('t', 'z')") == {
        ("num", '["01","x"]', "upsert"),
        ("num", '[null,"y"]', "upsert"),
        ("num", '["t","z"]', "upsert"),
    }


@SQLITE
def test_case_matters_whatever_the_column_thinks(backend: Backend, engine: AnyEngine):
    base = notes()
    body = base.metadata.tables["note"].c.body
    body.type = type(body.type)(collation="NOCASE")
    made = Captured(backend, engine, base)
    made.sql("INSERT INTO note (id, body) VALUES ('a', 'x')")
    assert made.sql("UPDATE note SET body = 'X'") == {("note", '["a"]', "upsert")}


@VEC0
def test_triggers_stand_beside_those_of_an_index(backend: Backend, engine: AnyEngine):
    made = Captured(backend, engine, notes(indexed=True))
    note = made.tables["note"]
    assert made.sql(insert(note).values(id="a", body="x", embedding=[1, 2])) == {("note", '["a"]', "upsert")}
    assert made.sql(update(note).values(embedding=[3, 4], embedding_fingerprint="m@1:x")) == set()
    assert made.sql(update(note).values(body="y")) == {("note", '["a"]', "upsert")}
    assert made.sql("DELETE FROM note") == set()


@BACKENDS
def test_create_all_can_be_repeated_and_adds_what_is_missing(backend: Backend, engine: AnyEngine):
    base = library()
    made = Captured(backend, engine, base)
    backend.create_all(engine, base.metadata)
    # A table of an earlier version, which had no triggers yet.
    for capture in base.captures:
        made.sql(*drop(backend, engine, capture))
    assert made.sql(*SETUP) == set()
    backend.create_all(engine, base.metadata)
    assert made.sql("UPDATE author SET name = 'n' WHERE id = 1") == marked(1, 2)


def drop(backend: Backend, engine: Any, capture: Any) -> list[str]:
    from sqla_vector.types import support_of

    dialect = getattr(engine, "sync_engine", engine).dialect
    return list(support_of(dialect).captures().drop(capture.name, capture.schema, dialect))


@BACKENDS
def test_drop_all_leaves_nothing_behind(captured: Captured):
    captured.backend.drop_all(captured.engine, captured.base.metadata)
    left = {
        "postgresql": "SELECT proname FROM pg_proc WHERE proname LIKE '%%capture%%'",
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger'",
    }[captured.backend.family]
    assert captured.run(lambda c: c.execute(text(left.replace("%%", "%"))).all()) == []


@BACKENDS
def test_a_table_that_goes_alone_takes_along_the_triggers_that_name_it(captured: Captured):
    tables = [captured.tables[name] for name in ("labelled", "tag", "article")]
    captured.run(lambda c: captured.base.metadata.drop_all(c, tables=tables))
    assert captured.sql("UPDATE author SET name = 'n'", "UPDATE label SET word = 'n'", "DELETE FROM author") == set()
