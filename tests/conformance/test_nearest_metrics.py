"""nearest() under every metric, on every kind of column, with and without an index."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, insert, select

from sqla_vector import BitVector, HalfVector, SparseVector, Vector, nearest, vector_index
from tests.support.brute_force import (
    BIT_METRICS,
    FLOAT_METRICS,
    assert_equal,
    engine_that_indexes,
    make_bits,
    make_vectors,
)
from tests.support.brute_force import nearest as brute_force

DIM = 8
KINDS = {"vector": Vector, "halfvec": HalfVector, "sparsevec": SparseVector, "bit": BitVector}
LANGUAGES = ("de", "en", "fr")


def rows_of(kind: str, count: int = 200) -> dict[int, np.ndarray | None]:
    if kind == "bit":
        return make_bits(count, DIM)
    vectors = make_vectors(count, DIM)
    if kind == "halfvec":
        return {key: None if v is None else v.astype(np.float16).astype(np.float32) for key, v in vectors.items()}
    return vectors


def make_table(name: str, kind: str, metric: str, method: str | None) -> Table:
    indexes = [] if method is None else [vector_index(f"ix_{name}", "embedding", metric=metric, method=method)]
    return Table(
        name,
        MetaData(),
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("language", String(2)),
        Column("embedding", KINDS[kind](DIM)),
        *indexes,
    )


def check_table(connection: Connection, table: Table, kind: str, metric: str, method: str | None) -> None:
    """Compare the searches of one table with brute force."""
    vectors = rows_of(kind)
    language = {key: LANGUAGES[key % 3] for key in vectors}
    rng = np.random.default_rng(3)
    query = rng.normal(size=DIM).astype(np.float16).astype(np.float32)
    if kind == "bit":
        query = query > 0
    relative = 1e-3 if kind == "halfvec" else 1e-5

    # As many probes as lists makes ivfflat exact; hnsw finds all that is asked for among so few rows.
    probes = 100 if method == "ivfflat" else None

    def search(stmt, **options):
        return connection.execute(
            nearest(stmt, table.c.embedding, query, metric=metric, probes=probes, **options)
        ).all()

    everything, english = select(table.c.id), select(table.c.id).where(table.c.language == "en")
    for exact in (False, True):
        assert_equal(search(everything, k=7, exact=exact), brute_force(vectors, query, 7, metric), relative=relative)
        is_english = {"keep": lambda key: language[key] == "en"}
        found = search(english, k=7, exact=exact)
        assert_equal(found, brute_force(vectors, query, 7, metric, **is_english), relative=relative)
        # More rows than there are: NULL never appears, and zero vectors only where their distance is defined.
        found = search(english, k=500, exact=exact)
        assert_equal(found, brute_force(vectors, query, 500, metric, **is_english), relative=relative)
        found = search(everything, k=500, exact=exact)
        assert_equal(found, brute_force(vectors, query, 500, metric), relative=relative)


FLOAT_CASES = [
    (kind, metric, method)
    for kind in ("vector", "halfvec", "sparsevec")
    for metric in FLOAT_METRICS
    for method in (None, "hnsw", "ivfflat")
    if method != "ivfflat" or (kind != "sparsevec" and metric != "l1")
]
BIT_CASES = [
    ("bit", metric, method)
    for metric in BIT_METRICS
    for method in (None, "hnsw", "ivfflat")
    if method != "ivfflat" or metric == "hamming"
]


@pytest.mark.parametrize("kind", KINDS)
def test_nearest_equals_brute_force_under_every_metric_and_index(backend, kind):
    engine = engine_that_indexes(backend)
    for case in FLOAT_CASES + BIT_CASES:
        if case[0] != kind:
            continue
        _, metric, method = case
        table = make_table(f"item_{metric}_{method or 'none'}", kind, metric, method)
        rows = [{"id": k, "language": LANGUAGES[k % 3], "embedding": v} for k, v in rows_of(kind).items()]

        def check(connection: Connection, table=table, metric=metric, method=method, rows=rows) -> None:
            table.create(connection)
            connection.execute(insert(table), rows)
            check_table(connection, table, kind, metric, method)

        backend.run_connection(engine, check)
