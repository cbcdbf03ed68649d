"""Statements by chance: whichever text they change, its row is marked."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from tests.support.backends import AnyEngine, Backend
from tests.tracking.captured import Captured, entries, library
from tests.tracking.test_captures import enforce_references

pytestmark = pytest.mark.long

IDS = st.sampled_from(["1", "2", "3"])
REFERENCES = st.sampled_from(["NULL", "1", "2", "3"])
WORDS = st.sampled_from(["NULL", "'u'", "'v'", "'U'", "''"])
COLUMNS: dict[str, dict[str, Any]] = {
    "publisher": {"id": IDS, "name": WORDS},
    "author": {"id": IDS, "name": WORDS, "email": WORDS, "publisher_id": REFERENCES},
    "article": {"id": IDS, "headline": WORDS, "slug": WORDS, "author_id": REFERENCES},
    "tag": {"id": IDS, "word": WORDS, "article_id": REFERENCES},
    "label": {"id": IDS, "word": WORDS},
    "labelled": {"article_id": IDS, "label_id": IDS},
}
SEED = (
    "INSERT INTO publisher VALUES (1, 'u'), (2, 'v')",
    "INSERT INTO author (id, name, email, publisher_id) VALUES (1, 'u', 'u', 1), (2, 'v', 'v', 2)",
    "INSERT INTO article (id, headline, slug, author_id) VALUES (1, 'u', 'u', 1), (2, 'v', 'v', 2)",
    "INSERT INTO label VALUES (1, 'u'), (2, 'v')",
    "INSERT INTO labelled VALUES (1, 1), (2, 2), (1, 2)",
    "INSERT INTO tag (id, word, article_id) VALUES (1, 'u', 1), (2, 'v', 2)",
)
TEXTS = (
    "SELECT article.id, headline, author.name, publisher.name FROM article "  # noqa: ISC004
    "LEFT JOIN author ON author.id = author_id LEFT JOIN publisher ON publisher.id = publisher_id",
    "SELECT article_id, word FROM tag WHERE article_id IS NOT NULL",
    "SELECT article_id, word FROM labelled JOIN label ON label.id = label_id",
)


@st.composite
def statements(draw: Any, family: str) -> str:
    table = draw(st.sampled_from([*COLUMNS, "article", "tag"]))
    columns = COLUMNS[table]
    key = [name for name in columns if name == "id" or table == "labelled"]
    kind = draw(st.sampled_from(["insert", "insert", "update", "update", "update", "delete"]))
    if kind == "insert":
        rows = draw(st.lists(st.tuples(*columns.values()), min_size=1, max_size=3))
        values = ", ".join(f"({', '.join(row)})" for row in rows)
        change = draw(st.sampled_from(list(columns)))
        conflict = f" ON CONFLICT ({', '.join(key)}) DO "
        verb, end = draw(
            st.sampled_from(
                [
                    ("INSERT", ""),
                    ("INSERT", f"{conflict}NOTHING"),
                    ("INSERT", f"{conflict}UPDATE SET {change} = excluded.{change}"),
                    *([("INSERT OR REPLACE", ""), ("INSERT OR IGNORE", "")] if family == "sqlite" else []),
                ]
            )
        )
        return f"{verb} INTO {table} ({', '.join(columns)}) VALUES {values}{end}"
    where = draw(st.sampled_from(["", *(f" WHERE {name} = {draw(columns[name])}" for name in columns)]))
    if kind == "delete":
        return f"DELETE FROM {table}{where}"
    changed = draw(st.lists(st.sampled_from(list(columns)), min_size=1, max_size=3, unique=True))
    verb = draw(st.sampled_from(["UPDATE", *(["UPDATE OR REPLACE"] if family == "sqlite" else [])]))
    return f"{verb} {table} SET {', '.join(f'{name} = {draw(columns[name])}' for name in changed)}{where}"


def texts(connection: Connection) -> dict[int, Any]:
    """Return what the text of each article is made of."""
    own, *others = (connection.exec_driver_sql(query).all() for query in TEXTS)
    return {
        row[0]: (tuple(row[1:]), *(sorted(str(word) for id_, word in other if id_ == row[0]) for other in others))
        for row in own
    }


def check(connection: Connection, outbox: Any, script: list[str]) -> None:
    for statement in script:
        before = texts(connection)
        entries(connection, outbox)
        try:
            with connection.begin_nested():
                connection.exec_driver_sql(statement)
        except DBAPIError:
            continue
        marked = {key for _, key, _ in entries(connection, outbox)}
        after = texts(connection)
        changed = {f"[{id_}]" for id_, text in after.items() if before.get(id_) != text}
        assert changed <= marked, statement


def run(made: Captured) -> None:
    made.sql(*SEED)

    @settings(max_examples=80, suppress_health_check=list(HealthCheck))
    @given(st.lists(statements(made.backend.family), min_size=1, max_size=8))
    def check_script(script: list[str]) -> None:
        def work(connection: Connection) -> None:
            with connection.begin_nested() as savepoint:
                check(connection, made.base.outbox, script)
                savepoint.rollback()

        made.run(work)

    check_script()


CASCADES = pytest.mark.parametrize("cascade", [None, "SET NULL", "CASCADE"])


@CASCADES
@pytest.mark.backends("psycopg", "sqlite_stdlib", "pysqlite3")
def test_no_change_of_a_text_is_missed(backend: Backend, engine: AnyEngine, cascade):
    if backend.family == "sqlite":
        enforce_references(engine)
    run(Captured(backend, engine, library(cascade=cascade)))


@pytest.mark.backends("sqlite_stdlib", "pysqlite3")
def test_no_change_of_a_text_is_missed_where_references_lead_nowhere(backend: Backend, engine: AnyEngine):
    run(Captured(backend, engine, library()))
