"""The FTS5 table stays equal to its table, whatever is written and however it is undone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import invariant, run_state_machine_as_test
from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, select

from sqla_vector import Vector, match_text, text_index
from tests.conformance.test_index_triggers import DIM, Writer


def make_table(key: Any, **options: Any) -> Table:
    return Table(
        "item",
        MetaData(),
        Column("id", key, primary_key=True),
        Column("slug", String(5), unique=True),
        Column("language", String(5)),
        Column("year", Integer),
        Column("tenant", String(5), nullable=False),
        Column("embedding", Vector(DIM)),
        text_index("ix_item", "language", "slug"),
        **options,
    )


def assert_in_step(connection: Connection, table: Table) -> None:
    """Have FTS5 compare itself with its content, which the totals for ranking are part of, and search."""
    connection.exec_driver_sql("INSERT INTO ix_item (ix_item, rank) VALUES ('integrity-check', 1)")
    for word in ("a", "b", "c"):
        found = connection.scalars(match_text(select(table.c.id), table, word, k=100)).all()
        texts = connection.execute(select(table.c.id, table.c.language, table.c.slug)).all()
        expected = {key for key, *parts in texts if any(word == (part or "").rstrip("'") for part in parts)}
        assert set(found) == expected
    if isinstance(table.c.id.type, String):
        keys = connection.exec_driver_sql("SELECT key FROM ix_item_keys").scalars().all()
        assert sorted(keys) == sorted(connection.scalars(select(table.c.id)))


class TextWriter(Writer):
    """Writes of every kind; after each of them the FTS5 table is compared with the table."""

    def teardown(self) -> None:
        if self.in_transaction:
            self.connection.exec_driver_sql("COMMIT")
        self.table.drop(self.connection)
        left = self.connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE name <> 'sqlite_sequence'").all()
        assert left == []
        self.connection.close()

    @invariant()
    def in_step(self) -> None:
        assert_in_step(self.connection, self.table)


@pytest.mark.backends("sqlite_stdlib", "pysqlite3", "sqlite_numpy")
@pytest.mark.parametrize("key", [Integer, String(9)], ids=["int", "text"])
@pytest.mark.parametrize("recursive", [False, True], ids=["", "recursive_triggers"])
def test_the_text_index_follows_every_write(backend, key, recursive):
    class Configured(TextWriter):
        engine = backend.make_engine(url="sqlite://")
        table = make_table(key)
        recursive_triggers = recursive

    examples = 10 if recursive else 25
    run_state_machine_as_test(
        Configured, settings=settings(max_examples=examples, stateful_step_count=25, deadline=None)
    )


@pytest.mark.backends("pysqlite3")
def test_the_text_index_follows_a_table_without_rowids(backend):
    class Configured(TextWriter):
        engine = backend.make_engine(url="sqlite://")
        table = make_table(String(9), sqlite_with_rowid=False)

    run_state_machine_as_test(Configured, settings=settings(max_examples=10, stateful_step_count=25, deadline=None))
