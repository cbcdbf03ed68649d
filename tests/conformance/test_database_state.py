"""What tells a worker on SQLite that nobody has changed the database since it read."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.engine import Engine

from sqla_vector.types import support_of
from tests.support.backends import Backend

pytestmark = pytest.mark.backends("pysqlite3", "sqlite_stdlib")


def state(connection: Connection) -> object | None:
    return support_of(connection.dialect).state(connection)


@pytest.fixture
def items(engine: Engine) -> Engine:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE item (id INTEGER PRIMARY KEY, name TEXT)"))
        connection.execute(text("INSERT INTO item VALUES (1, 'a')"))
    return engine


def test_it_stays_while_nobody_writes(items: Engine) -> None:
    with items.connect() as connection:
        connection.execute(text("BEGIN IMMEDIATE"))
        before = state(connection)
        connection.commit()
        connection.execute(text("SELECT * FROM item")).all()
        connection.rollback()
        connection.execute(text("BEGIN IMMEDIATE"))
        assert before is not None
        assert state(connection) == before
        connection.rollback()


@pytest.mark.parametrize(
    "statement", ["UPDATE item SET name = 'b'", "DELETE FROM item", "INSERT INTO item VALUES (2, 'b')"]
)
@pytest.mark.parametrize("whose", ["own", "other"])
def test_it_changes_with_what_is_committed(items: Engine, statement: str, whose: str) -> None:
    with items.connect() as connection, items.connect() as other:
        connection.execute(text("BEGIN IMMEDIATE"))
        before = state(connection)
        connection.commit()
        writer = connection if whose == "own" else other
        writer.execute(text(statement))
        writer.commit()
        connection.execute(text("BEGIN IMMEDIATE"))
        assert state(connection) != before
        connection.rollback()


def test_it_changes_with_a_change_in_the_same_transaction(items: Engine) -> None:
    with items.connect() as connection:
        connection.execute(text("BEGIN IMMEDIATE"))
        before = state(connection)
        connection.execute(text("UPDATE item SET name = 'b'"))
        assert state(connection) != before
        connection.rollback()


def test_it_changes_with_an_attached_database(backend: Backend, items: Engine, tmp_path: Path) -> None:
    with items.connect() as connection, items.connect() as other:
        for one in (connection, other):
            one.exec_driver_sql(f"ATTACH DATABASE '{tmp_path / 'side.db'}' AS side")
        other.execute(text("CREATE TABLE side.item (id INTEGER PRIMARY KEY)"))
        other.commit()
        connection.execute(text("BEGIN IMMEDIATE"))
        before = state(connection)
        connection.commit()
        other.execute(text("INSERT INTO side.item VALUES (1)"))
        other.commit()
        connection.execute(text("BEGIN IMMEDIATE"))
        assert state(connection) != before
        connection.rollback()
        for one in (connection, other):
            one.exec_driver_sql("DETACH DATABASE side")


def test_another_connection_says_nothing_of_it(items: Engine) -> None:
    with items.connect() as connection, items.connect() as other:
        connection.execute(text("BEGIN IMMEDIATE"))
        before = state(connection)
        connection.rollback()
        other.execute(text("BEGIN IMMEDIATE"))
        assert state(other) != before
        other.rollback()


def test_outside_of_a_transaction_nothing_is_known(items: Engine) -> None:
    with items.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        assert state(connection) is None
