"""With the defaults, each kind of index finds what an exact search finds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from elasticsearch import Elasticsearch
from sqlalchemy import create_engine, insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_vector import Vector
from sqla_vector.elasticsearch import DenseVector, Knn, Searcher, SearchIndex
from sqla_vector.tracking import outbox_table
from tests.elasticsearch.searched import put, vectors
from tests.support import sqlite

COUNT, QUERIES, DIM = 5_000, 25, 64
KINDS = ("hnsw", "int8_hnsw", "int4_hnsw", "bbq_hnsw", "flat")


def test_recall_is_at_least_95_percent_with_the_defaults(index_name: str, client: Elasticsearch):
    if reason := sqlite.why_vec_unavailable():
        pytest.skip(reason)

    class Base(DeclarativeBase): ...

    outbox = outbox_table(Base.metadata)

    class Point(Base):
        __tablename__ = "point"
        id: Mapped[int] = mapped_column(primary_key=True)
        vector: Mapped[Any] = mapped_column(Vector(DIM))

    fields = {kind: DenseVector("vector", index=kind) for kind in KINDS}
    index = SearchIndex(index_name, Point, fields=fields, outbox=outbox, settings={"number_of_replicas": 0})
    given = vectors(COUNT + QUERIES, DIM)
    points, queries = given[:COUNT], given[COUNT:]
    engine = create_engine("sqlite://", plugins=["sqla_vector"])
    Base.metadata.create_all(engine)
    index.create(client)
    with Session(engine) as session:
        session.execute(insert(Point), [{"id": n, "vector": point} for n, point in enumerate(points)])
        for start in range(0, COUNT, 1000):
            put(session, client, index, [(n,) for n in range(start, start + 1000)])
    engine.dispose()
    searcher = Searcher(client, index)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    recall: dict[tuple[str, int], float] = {}
    for kind in KINDS:
        for k in (10, 100):
            found = 0
            for query in queries:
                true = {*np.argsort(-(unit @ query), kind="stable")[:k].tolist()}
                found += len(true & {hit.key[0] for hit in searcher.search_ids(knn=Knn(kind, query), k=k)})
            recall[kind, k] = found / (k * len(queries))
    assert all(value >= 0.95 for value in recall.values()), recall
    assert recall["flat", 10] == recall["flat", 100] == 1.0
    # Without the second look at full vectors the compact ones find less, or there would be no need of one.
    hasty = sum(
        len(
            {*np.argsort(-(unit @ query), kind="stable")[:10].tolist()}
            & {hit.key[0] for hit in searcher.search_ids(knn=Knn("int4_hnsw", query, oversample=0))}
        )
        for query in queries
    )
    assert hasty / (10 * len(queries)) < recall["int4_hnsw", 10]
    assert len(searcher.search_ids(knn=Knn("bbq_hnsw", queries[0]), k=COUNT)) == COUNT
    assert len(searcher.search_ids(knn=Knn("int8_hnsw", queries[0]), k=10_000)) == COUNT
