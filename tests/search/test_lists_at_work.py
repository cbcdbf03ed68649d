"""An index in lists stays equal to its table, whatever is written, trained, undone or killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import invariant, rule, run_state_machine_as_test
from sqlalchemy import URL, Connection, Integer, String, create_engine, insert, select

from sqla_vector import nearest
from sqla_vector.dialects.sqlite.ivf import lists_of, train
from tests.conformance.test_index_triggers import Writer, indexed_columns, make_table
from tests.support.brute_force import assert_equal, make_vectors
from tests.support.brute_force import nearest as brute_force

SYNCHRONOUS = pytest.mark.backends("sqlite_stdlib", "pysqlite3")
RUNS = int(os.environ.get("SQLA_VECTOR_RUNS", "12"))
STEPS = int(os.environ.get("SQLA_VECTOR_STEPS", "25"))
KILLS = int(os.environ.get("SQLA_VECTOR_TEST_TRAININGS", "3"))

CONFIGURATIONS = {
    "cosine": {"metric": "cosine", "include": ("language", "year"), "partition_by": "tenant"},
    "l2": {"metric": "l2", "lists": 3},
    "binary": {"metric": "cosine", "precision": "binary", "include": ("language",), "lists": 2},
}


class ListWriter(Writer):
    """Also trains; the lists are compared with the table."""

    @rule()
    def train(self) -> None:
        (index,) = (index for index in self.table.indexes if index.name == "ix_item")
        # No statement of it may be refused: whatever the rows are.
        train(self.connection, index)

    def teardown(self) -> None:
        try:
            if self.in_transaction:
                self.connection.exec_driver_sql("COMMIT")
                self.in_transaction = False
            vectors = dict(self.connection.execute(select(self.table.c.id, self.table.c.embedding)).all())
            query = np.array([0.3, -0.7, 1.1, 0.2], np.float32)
            for k in (1, 3, 9):
                stmt = nearest(
                    select(self.table.c.id), self.table.c.embedding, query, k=k, oversample=100, probes=1_000
                )
                found = self.connection.execute(stmt).all()
                assert_equal(found, brute_force(vectors, query, k, self.options["metric"]))
        finally:
            self.table.drop(self.connection)
            left = "SELECT name FROM sqlite_master WHERE name <> 'sqlite_sequence'"
            assert self.connection.exec_driver_sql(left).all() == []
            self.connection.close()

    @invariant()
    def in_step(self) -> None:
        assert_in_step(self.connection, self.table, self.options)


def assert_in_step(connection: Connection, table: Any, options: dict[str, Any]) -> None:
    """Compare the index with the table: keys, lists, metadata."""
    blob, lists = connection.exec_driver_sql("SELECT centroids, lists FROM ix_item_centroids").one()
    centroids = np.frombuffer(blob, "<f4").reshape(lists, -1)
    columns = indexed_columns(options)
    stand_ins = {"language": "\x01null", "year": -9223372036854775807}
    expected, distances = {}, {}
    for row in connection.execute(select(table)):
        if row.embedding is None or (options["metric"] == "cosine" and not row.embedding.any()):
            continue
        values = [getattr(row, name) for name in columns]
        expected[row.id] = tuple(stand_ins[name] if v is None else v for name, v in zip(columns, values, strict=True))
        if options["metric"] == "cosine":
            distances[row.id] = -(centroids @ row.embedding)
        else:
            distances[row.id] = ((centroids - row.embedding) ** 2).sum(axis=1)
    kept = [row[1] for row in connection.exec_driver_sql("PRAGMA table_info(ix_item)")]
    kept = [name for name in kept if name.startswith(("include_", "partition_"))]
    rows = connection.exec_driver_sql(f"SELECT {', '.join(['rowid', 'list', *kept])} FROM ix_item").all()
    keys = {row[0]: row[0] for row in rows}
    if isinstance(table.c.id.type, String):
        keys = dict(connection.exec_driver_sql("SELECT number, key FROM ix_item_keys").all())
        assert set(keys.values()) <= set(connection.execute(select(table.c.id)).scalars())
    assert {keys[row[0]]: tuple(row[2:]) for row in rows} == expected
    for row in rows:
        # Of equally near lists either will do, and the product of one vector may end in another last bit.
        assert distances[keys[row[0]]][row[1]] == pytest.approx(distances[keys[row[0]]].min(), abs=1e-4)


@SYNCHRONOUS
@pytest.mark.parametrize("key", [Integer, String(9)], ids=["int", "text"])
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_the_lists_follow_every_write(backend, key, configuration):
    chosen = CONFIGURATIONS[configuration]

    class Configured(ListWriter):
        engine = backend.make_engine(url="sqlite://")
        table = make_table(key, method="ivfflat", **chosen)
        options = chosen

    run_state_machine_as_test(
        Configured, settings=settings(max_examples=RUNS, stateful_step_count=STEPS, deadline=None)
    )


TRAINING = """
import sys
from sqlalchemy import create_engine
from tests.search.test_lists_at_work import big_table
from sqla_vector.dialects.sqlite.ivf import train

engine = create_engine(sys.argv[1], plugins=["sqla_vector"])
table = big_table()
(index,) = (index for index in table.indexes if index.name == "ix_item")
with engine.connect() as connection:
    raw = connection.connection.driver_connection
    left = int(sys.argv[2])

    def progress():
        global left
        left -= 1
        if left == 0:
            import os, signal
            os.kill(os.getpid(), signal.SIGKILL)

    raw.set_progress_handler(progress, 1_000)
    train(connection, index)
    connection.commit()
    print(int(sys.argv[2]) - left)  # how many thousand steps of SQLite it took
"""


def big_table() -> Any:
    return make_table(Integer, method="ivfflat", metric="l2", lists=20)


@pytest.mark.long
@pytest.mark.backends("pysqlite3")
def test_a_training_that_is_killed_leaves_the_old_lists(backend, tmp_path):
    engine = backend.make_engine()
    table = big_table()
    (index,) = (index for index in table.indexes if index.name == "ix_item")
    vectors = {key: vector for key, vector in make_vectors(1_500, 4).items() if vector is not None}
    with engine.begin() as connection:
        table.create(connection)
        rows = [{"id": key, "tenant": "t", "embedding": vector} for key, vector in vectors.items()]
        connection.execute(insert(table), rows[:500])
        train(connection, index)
        connection.execute(insert(table), rows[500:])

    def state() -> list[Any]:
        with create_engine(backend.url, plugins=["sqla_vector"]).connect() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
            assert_in_step(connection, table, {"metric": "l2"})
            stmt = nearest(select(table.c.id), table.c.embedding, vectors[rows[3]["id"]], k=9, probes=20)
            assert_equal(connection.execute(stmt), brute_force(vectors, vectors[rows[3]["id"]], 9, "l2"))
            found = connection.exec_driver_sql("SELECT rowid, list FROM ix_item ORDER BY 1").all()
            return [found, connection.exec_driver_sql("SELECT * FROM ix_item_centroids").all()]

    def run(url: URL, kill_at: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", TRAINING, url.render_as_string(hide_password=False), str(kill_at)]
        root = Path(__file__).parents[2]
        return subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)

    before = state()
    assert backend.url.database is not None
    shutil.copy(backend.url.database, tmp_path / "copy.db")
    undisturbed = run(backend.url.set(database=str(tmp_path / "copy.db")))
    assert undisturbed.returncode == 0, undisturbed.stderr
    steps = int(undisturbed.stdout)
    # The database of each run is that of the one before: nothing may be left of those that were killed.
    for number in range(1, KILLS + 1):
        done = run(backend.url, max(1, steps * number // (KILLS + 1)))
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert state() == before
    assert run(backend.url).returncode == 0
    assert state() != before
    with engine.connect() as connection:
        assert lists_of(connection, index).trained_rows == len(vectors)
