"""Indexes of reduced precision on real data: rerank keeps the recall, the distances stay exact."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, insert, select, text, true

from sqla_vector import Vector, cursor_of, nearest, nearest_each, page_after, vector_index
from tests.support.brute_force import assert_equal, engine_that_indexes
from tests.support.brute_force import nearest as brute_force

K = 10
DIGITS = load_digits()
# Centred, so that the sign of an element says something, by whole numbers, so that equal distances stay equal.
MATRIX = (DIGITS.data - DIGITS.data.mean(axis=0).round()).astype(np.float32)
VECTORS = dict(enumerate(MATRIX, start=1))
LABELS = dict(enumerate(map(int, DIGITS.target), start=1))
QUERIES = {key: VECTORS[key] for key in range(1, len(VECTORS), 60)}
# Drivers change how parameters travel, not what an index holds, and building these indexes takes a while.
BACKENDS = pytest.mark.backends("psycopg", "asyncpg", "sqlite_stdlib", "pysqlite3", "sqlite_numpy", "aiosqlite")
PRECISIONS = pytest.mark.parametrize("precision", ["full", "half", "int8", "binary"])


@functools.cache
def ranking(key: int, metric: str) -> list[tuple[int, float]]:
    """Return all rows, nearest first, to the row that is the query."""
    return brute_force(VECTORS, VECTORS[key], len(VECTORS), metric)


def make_table(precision: str, metric: str, method: str = "hnsw", key_type: Any = Integer) -> Table:
    return Table(
        "digit",
        MetaData(),
        Column("id", key_type, primary_key=True),
        Column("label", Integer),
        Column("embedding", Vector(64)),
        vector_index(
            "ix_digit",
            "embedding",
            metric=metric,
            precision=precision,
            method=method,
            include=("label",),
            value_range=16,
        ),
    )


def fill(connection: Connection, table: Table) -> None:
    table.create(connection)
    rows = [{"id": k, "label": int(DIGITS.target[k - 1]), "embedding": v} for k, v in VECTORS.items()]
    connection.execute(insert(table), rows)


@BACKENDS
@PRECISIONS
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_recall_of_reduced_precision_on_real_digits(backend, precision, metric):
    table = make_table(precision, metric)

    def check(connection: Connection) -> None:
        fill(connection, table)
        if backend.family == "postgresql":
            connection.execute(text("SET LOCAL enable_seqscan = off"))
        column, everything = table.c.embedding, select(table.c.id)
        is_exact = backend.name == "sqlite_numpy" or (backend.family == "sqlite" and precision == "full")
        hits = filtered = 0
        for key, query in QUERIES.items():
            expected = ranking(key, metric)[:K]
            rows = connection.execute(nearest(everything, column, query, k=K)).all()
            if is_exact:
                assert_equal(rows, expected)
            # However approximate the choice of rows is, their order and distances are exact.
            assert len(rows) == K
            found = {row.id for row in rows}
            assert_equal(rows, [pair for pair in ranking(key, metric) if pair[0] in found])
            hits += len(found & {key for key, _ in expected})

            # Filtered rows are not simply the nearest ones.
            stmt = nearest(everything.where(table.c.label == 3), column, query, k=K)
            threes = [pair for pair in ranking(key, metric) if LABELS[pair[0]] == 3][:K]
            rows = connection.execute(stmt).all()
            assert len(rows) == K
            filtered += len({row.id for row in rows} & {key for key, _ in threes})
        exact = connection.execute(nearest(everything, column, QUERIES[1], k=K, exact=True)).all()
        assert_equal(exact, ranking(1, metric)[:K])
        wanted = 0.95 * K * len(QUERIES)
        assert hits >= wanted, f"recall {hits / (K * len(QUERIES)):.3f}"
        assert filtered >= wanted, f"filtered recall {filtered / (K * len(QUERIES)):.3f}"

        keys = list(QUERIES)[:5]
        each = connection.execute(nearest_each(everything, column, [VECTORS[key] for key in keys], k=K)).all()
        assert [row.query for row in each] == [number for number in range(5) for _ in range(K)]
        wanted_rows = {(number, other) for number, key in enumerate(keys) for other, _ in ranking(key, metric)[:K]}
        assert len({(row.query, row.id) for row in each} & wanted_rows) >= 0.9 * len(wanted_rows)

    backend.run_connection(engine_that_indexes(backend), check)


@BACKENDS
@pytest.mark.parametrize("precision", ["half", "int8", "binary"])
def test_oversampling_everything_is_exact(backend, precision):
    """As many candidates as there are rows: nothing can be missed but by the graph."""
    table = make_table(precision, "cosine")

    def check(connection: Connection) -> None:
        fill(connection, table)
        for key in list(QUERIES)[:6]:
            query = VECTORS[key]
            stmt = nearest(select(table.c.id), table.c.embedding, query, k=K, oversample=100, ef_search=1_000)
            found = {row.id for row in connection.execute(stmt)}
            assert len(found & {other for other, _ in ranking(key, "cosine")[:K]}) >= K - 1
        rows = connection.execute(nearest(select(table.c.id), table.c.embedding, query, k=len(VECTORS) + 5)).all()
        assert {row.id for row in rows} == set(VECTORS)
        assert [row.distance for row in rows] == sorted(row.distance for row in rows)

    backend.run_connection(engine_that_indexes(backend), check)


@pytest.mark.backends("sqlite_stdlib", "pysqlite3", "aiosqlite")
@PRECISIONS
def test_vec0_serves_the_search_in_every_form(backend, precision):
    table = make_table(precision, "cosine")

    def check(connection: Connection) -> None:
        fill(connection, table)
        column, query = table.c.embedding, MATRIX[0]
        labelled = select(table.c.id).where(table.c.label == 3)
        other = table.alias("other")
        for stmt in (
            nearest(select(table.c.id), column, query),
            nearest(labelled, column, query),
            nearest(select(table.c.id).where(table.c.id > 20), column, query),
            nearest(select(table.c.id), column, query).offset(20),
            nearest(select(table.c.id), column, query, max_distance=1),
            nearest(select(other.c.id), other.c.embedding, query),
            nearest_each(labelled, column, [query, query]),
        ):
            script = str(stmt.compile(connection, compile_kwargs={"literal_binds": True}))
            plan = "\n".join(row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {script}"))
            assert "SCAN ix_digit VIRTUAL TABLE INDEX" in plan, plan
            # The few rows found are looked up by key; the table is scanned in the branch that is not taken at most.
            assert "USING INTEGER PRIMARY KEY (rowid=?)" in plan, plan
        exact = str(nearest(select(table.c.id), column, query, exact=True).compile(connection))
        assert "ix_digit" not in exact
        assert "ix_digit" not in str(nearest(select(table.c.id), column, query, metric="l2").compile(connection))
        assert "ix_digit" not in str(nearest(select(table.c.id), column, query, k=4_097).compile(connection))

    backend.run_connection(engine_that_indexes(backend), check)


EQUAL = {key: VECTORS[1] if key % 3 == 0 else VECTORS[2] if key % 5 == 0 else VECTORS[key] for key in range(1, 701)}
"""233 rows of one vector, 94 of another, and others."""


@pytest.mark.backends("sqlite_stdlib", "pysqlite3", "aiosqlite")
@PRECISIONS
@pytest.mark.parametrize("method", ["hnsw", "ivfflat"])
@pytest.mark.parametrize("key_type", [Integer, String])
def test_equal_vectors_come_in_key_order_and_no_page_loses_one(backend, precision, method, key_type):
    table = make_table(precision, "cosine", method=method, key_type=key_type)
    named = (lambda key: key) if key_type is Integer else (lambda key: f"{key:04}")
    groups = [sorted(named(k) for k in EQUAL if EQUAL[k] is VECTORS[of]) for of in (1, 2)]

    def check_first(found: list[Any]) -> None:
        for group in groups:
            of_group = [key for key in found if key in set(group)]
            assert of_group == group[: len(of_group)]

    def check(connection: Connection) -> None:
        table.create(connection)
        rows = [{"id": named(k), "label": int(DIGITS.target[k - 1]), "embedding": v} for k, v in EQUAL.items()]
        connection.execute(insert(table), rows)
        column = table.c.embedding
        # Among the queries are those to which the equal vectors are neither the nearest nor far away.
        queries = [VECTORS[1], *(VECTORS[key] for key, label in LABELS.items() if label == LABELS[1])][:12]
        for query in queries:
            for k in (1, 7, 30):
                check_first([row.id for row in connection.execute(nearest(select(table.c.id), column, query, k=k))])
        stmt = nearest(select(table.c.id), column, queries[0], k=10)
        assert connection.scalars(stmt).all() == groups[0][:10]
        assert connection.scalars(stmt.offset(50)).all() == groups[0][50:60]
        each = connection.execute(nearest_each(select(table.c.id), column, queries, k=7)).all()
        assert [row.id for row in each if row.query == 0] == groups[0][:7]
        for number in range(len(queries)):
            check_first([row.id for row in each if row.query == number])
        for where in (true(), table.c.label == table.c.label, table.c.label < 100):
            stmt = nearest(select(table.c.id).where(where), column, queries[0], k=20)
            paged: list[Any] = []
            page = connection.execute(stmt).all()
            while page and len(paged) < len(groups[0]):
                paged += [row.id for row in page]
                page = connection.execute(page_after(stmt, cursor_of(stmt, page[-1]))).all()
            assert paged[: len(groups[0])] == groups[0]

    backend.run_connection(engine_that_indexes(backend), check)


@pytest.mark.backends("pysqlite3", "aiosqlite")
@pytest.mark.parametrize("precision", ["int8", "binary"])
@pytest.mark.parametrize("method", ["hnsw", "ivfflat"])
def test_more_equal_vectors_than_vec0_returns(backend, precision, method):
    table = make_table(precision, "l2", method=method)

    def check(connection: Connection) -> None:
        table.create(connection)
        connection.execute(insert(table), [{"id": key, "embedding": VECTORS[1]} for key in range(4_200, 0, -1)])
        stmt = nearest(select(table.c.id), table.c.embedding, VECTORS[2], k=5)
        assert connection.scalars(stmt).all() == [1, 2, 3, 4, 5]
        assert connection.scalars(stmt.offset(300)).all() == [301, 302, 303, 304, 305]

    backend.run_connection(engine_that_indexes(backend), check)
