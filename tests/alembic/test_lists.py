"""Migrations on SQLite of an index in lists: its method and its lists are seen, and outlive changes of the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, insert, inspect, select

from sqla_vector import Vector, nearest, vector_index
from sqla_vector.dialects.sqlite.ivf import Lists, lists_of
from tests.support.backends import Backend
from tests.support.brute_force import assert_equal, make_vectors
from tests.support.brute_force import nearest as brute_force
from tests.support.migrations import Project

pytestmark = pytest.mark.backends("sqlite_stdlib", "pysqlite3", "aiosqlite")
BOTH_KEYS = pytest.mark.parametrize("key", [Integer, String(10)], ids=["int", "text"])
DIM = 4
VECTORS = make_vectors(60, DIM)
WITH_PLACE = sum(vector is not None and vector.any() for vector in VECTORS.values())


def model(
    key: Any = Integer, *, table: str = "item", vector: str = "embedding", more: Any = (), **options: Any
) -> Table:
    lang = options.pop("lang", "lang")
    index = vector_index("ix_item", vector, metric="cosine", include=(lang,), **options)
    return Table(
        table,
        MetaData(),
        Column("id", key, primary_key=True),
        Column(lang, String(5)),
        Column(vector, Vector(DIM)),
        *more,
        index,
    )


def to_key(table: Table, number: int) -> Any:
    return number if isinstance(table.c.id.type, Integer) else f"k{number:03}"


def fill(connection: Connection, table: Table) -> None:
    rows = [{"id": to_key(table, n), "lang": f"l{n % 3}", "embedding": v} for n, v in VECTORS.items()]
    connection.execute(insert(table), rows)


def prepared(tmp_path: Path, backend: Backend, table: Table) -> Project:
    project = Project(tmp_path, backend)
    backend.create_all(project.engine, table.metadata)
    backend.run_connection(project.engine, lambda connection: fill(connection, table))
    return project


def lists(project: Project, table: Table) -> Lists:
    (index,) = table.indexes
    return project.backend.run_connection(project.engine, lambda connection: lists_of(connection, index))


def assert_serves(project: Project, table: Table) -> None:
    """Search, write, and search again."""
    _, lang, vector = list(table.c)[:3]
    query = np.array([0.3, -0.2, 0.9, 0.1], np.float32)

    def check(connection: Connection) -> None:
        for number in (501, 502):
            stored = {row[0]: row for row in connection.execute(select(table.c.id, lang, vector))}
            vectors = {key: row[2] for key, row in stored.items()}
            stmt = nearest(select(table.c.id), vector, query, k=5, probes=50)
            assert "vector_ivf_probe" in str(stmt.compile(connection))
            assert_equal(connection.execute(stmt), brute_force(vectors, query, 5, "cosine"))
            inside = nearest(select(table.c.id).where(lang == "l1"), vector, query, k=5, probes=50)
            assert "include_1 =" in str(inside.compile(connection))
            keep = brute_force(vectors, query, 5, "cosine", keep=lambda key, rows=stored: rows[key][1] == "l1")
            assert_equal(connection.execute(inside), keep)
            connection.execute(insert(table).values({"id": to_key(table, number), lang: "l1", vector: query}))
            connection.execute(table.delete().where(table.c.id == next(iter(stored))))

    project.backend.run_connection(project.engine, check)


@BOTH_KEYS
def test_lists_are_made_and_taken_back_by_a_revision(tmp_path, backend: Backend, key):
    before, after = model(key), model(key, method="ivfflat", lists=7)
    project = prepared(tmp_path, backend, before)
    written = project.revision(after.metadata).read_text()
    assert "method='ivfflat'" in written
    assert "lists=7" in written
    project.upgrade()
    assert project.drift(after.metadata) == []
    found = lists(project, after)
    assert (found.count, found.rows, found.trained_rows) == (7, WITH_PLACE, WITH_PLACE)
    assert_serves(project, after)
    project.downgrade()
    assert project.drift(before.metadata) == []
    # What was not in lists is as it was, and not in lists of a default number.
    fewer = model(key, method="ivfflat")
    project.upgrade()
    assert [name for name, *_ in project.drift(fewer.metadata)] == ["rebuild_vector_index"]


@BOTH_KEYS
def test_an_index_in_lists_is_dropped_and_given_back_with_its_lists(tmp_path, backend: Backend, key):
    table = model(key, method="ivfflat", lists=5)
    project = prepared(tmp_path, backend, table)
    plain = Table("item", MetaData(), *(Column(c.name, c.type, primary_key=c.primary_key) for c in table.columns))
    project.revision(plain.metadata)
    project.upgrade()

    def left(connection: Connection) -> list[str]:
        return [name for name in inspect(connection).get_table_names() if name.startswith("ix_item")]

    assert backend.run_connection(project.engine, left) == []
    assert project.drift(plain.metadata) == []
    project.downgrade()
    assert project.drift(table.metadata) == []
    assert lists(project, table).count == 5
    assert_serves(project, table)


@BOTH_KEYS
def test_a_batch_keeps_an_index_in_lists(tmp_path, backend: Backend, key):
    project = prepared(tmp_path, backend, model(key, method="ivfflat", lists=6))
    project.write(
        'with op.batch_alter_table("item", recreate="always") as batch:\n'
        '    batch.add_column(sa.Column("more", sa.String(5)))'
    )
    project.upgrade()
    after = model(key, method="ivfflat", lists=6, more=[Column("more", String(5))])
    assert project.drift(after.metadata) == []
    assert (lists(project, after).count, lists(project, after).rows) == (6, WITH_PLACE)
    assert_serves(project, after)


@BOTH_KEYS
@pytest.mark.parametrize(
    ("statement", "changed"),
    [
        ('op.alter_column("item", "embedding", new_column_name="vec")', {"vector": "vec"}),
        ('op.alter_column("item", "lang", new_column_name="order")', {"lang": "order"}),
        ('op.rename_table("item", "the thing")', {"table": "the thing"}),
    ],
    ids=["vector", "included", "table"],
)
def test_an_index_in_lists_serves_under_new_names(tmp_path, backend: Backend, key, statement, changed):
    project = prepared(tmp_path, backend, model(key, method="ivfflat", lists=6))
    project.write(statement)
    project.upgrade()
    after = model(key, method="ivfflat", lists=6, **changed)
    assert project.drift(after.metadata) == []
    assert_serves(project, after)
