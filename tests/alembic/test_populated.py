"""Ten thousand rows go through everything a migration can do to them, and none is lost or wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Column, Index, Integer, MetaData, String, Table, insert, select

from sqla_vector import HalfVector, Vector, nearest, vector_index
from sqla_vector.schema import index_key
from sqla_vector.tuning import explain_nearest
from tests.support.backends import Backend
from tests.support.migrations import Project

COUNT, DIM, K = 10_000, 16, 10
BOTH = pytest.mark.backends("psycopg", "pysqlite3")

Vectors = dict[int, Any]


def model(
    type_: Any, index: Mapping[str, Any] | None, *, table: str = "item", column: str = "embedding", more: bool = False
) -> MetaData:
    """Return the table, with an index if its options are given."""
    metadata = MetaData()
    Table(
        table,
        metadata,
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("lang", String(2), nullable=False),
        Column(column, type_),
        *([Column("pages", Integer, server_default="1", nullable=False)] if more else []),
        Index("ix_item_lang", "lang"),
        *([] if index is None else [vector_index("ix_item_embedding", column, **index)]),
    )
    return metadata


def ranked(vectors: Vectors, query: Any, metric: str) -> list[int]:
    """Return the ids of the nearest, by numpy."""
    ids = np.array([id_ for id_, vector in vectors.items() if vector is not None])
    found = np.stack([vectors[id_] for id_ in ids]).astype(np.float64)
    if metric == "cosine":
        distances = 1 - found @ query / np.linalg.norm(found, axis=1) / np.linalg.norm(query)
    else:
        distances = np.linalg.norm(found - query, axis=1)
    return [int(id_) for id_ in ids[np.lexsort((ids, distances))][:K]]


class Populated:
    """A project with a table of ten thousand rows, and what must be in it."""

    def __init__(self, tmp_path: Path, backend: Backend) -> None:
        self.project = Project(tmp_path, backend)
        rng = np.random.default_rng(11)
        values = rng.normal(size=(COUNT, DIM)).astype(np.float32)
        # Ids with gaps, so that a new numbering would show.
        self.vectors: Vectors = {7 * n + 3: None if n % 100 == 0 else values[n] for n in range(COUNT)}
        self.queries = rng.normal(size=(3, DIM)).astype(np.float32)
        self.metadata = model(Vector(DIM), None)
        self.project.revision(self.metadata)
        self.project.upgrade()
        table = self.metadata.tables["item"]
        rows = [{"id": id_, "lang": "en" if id_ % 2 else "de", "embedding": v} for id_, v in self.vectors.items()]
        backend.run(self.project.engine, lambda session: session.execute(insert(table), rows) and None)

    def become(self, metadata: MetaData, vectors: Vectors | None = None, metric: str = "l2") -> None:
        """Migrate to a model by autogenerate, and check."""
        self.project.revision(metadata)
        self.project.upgrade()
        self.check(metadata, vectors, metric)

    def by_hand(self, body: str, metadata: MetaData, vectors: Vectors | None = None) -> None:
        """Migrate by a revision that is written by hand, and check."""
        self.project.write(body)
        self.project.upgrade()
        self.check(metadata, vectors)

    def check(self, metadata: MetaData, vectors: Vectors | None = None, metric: str = "l2") -> None:
        """Every row, every vector, the search and the model are as they should be."""
        self.metadata = metadata
        self.vectors = self.vectors if vectors is None else vectors
        (table,) = metadata.tables.values()
        vector = next(column for column in table.c if isinstance(column.type, (Vector, HalfVector)))
        self._check_rows(table, vector)
        assert self.project.drift(metadata) == []
        for query in self.queries:
            asked = query[: vector.type.dim]
            expected = ranked(self.vectors, asked.astype(np.float64), metric)
            assert self._search(table, vector, asked, metric, exact=True) == expected
            found = self._search(table, vector, asked, metric, exact=False)
            if self.project.backend.family == "sqlite":
                assert found == expected
            else:  # an approximate index may miss one
                assert len(found) == K
                assert len({*found} & {*expected}) >= K - 1

    def _check_rows(self, table: Table, vector: Any) -> None:
        stmt = select(table.c.id, table.c.lang, vector).order_by(table.c.id)
        found = self._run(lambda session: session.execute(stmt).all())
        assert [row[0] for row in found] == list(self.vectors)
        assert all(row[1] == ("en" if row[0] % 2 else "de") for row in found)
        assert [row[0] for row in found if row[2] is None] == [i for i, v in self.vectors.items() if v is None]
        are = np.stack([np.asarray(row[2], np.float32) for row in found if row[2] is not None])
        should_be = np.stack([v for v in self.vectors.values() if v is not None]).astype(np.float32)
        assert are.tobytes() == should_be.tobytes()

    def _search(self, table: Table, vector: Any, query: Any, metric: str, *, exact: bool) -> list[int]:
        wide: dict[str, Any] = {} if exact else {"ef_search": 400, "probes": 4}
        stmt = nearest(select(table.c.id), vector, query, k=K, metric=metric, exact=exact, **wide)
        if any(index_key(index) is not None for index in table.indexes) and not exact:
            assert self._run(lambda session: explain_nearest(session, stmt)).index == "ix_item_embedding"
        return [row[0] for row in self._run(lambda session: session.execute(stmt).all())]

    def _run(self, function: Callable[[Any], Any]) -> Any:
        return self.project.backend.run(self.project.engine, function)


@pytest.fixture
def populated(tmp_path: Path, backend: Backend) -> Populated:
    """Ten thousand rows."""
    return Populated(tmp_path, backend)


HNSW = {"metric": "l2", "m": 12}


@BOTH
def test_every_row_survives_every_change_of_its_index(populated):
    populated.become(model(Vector(DIM), HNSW))
    populated.become(model(Vector(DIM), {"metric": "l2", "method": "ivfflat", "lists": 4}))
    populated.become(model(Vector(DIM), {"metric": "l2", "precision": "half"}))
    populated.become(model(Vector(DIM), {"metric": "l2", "precision": "int8", "value_range": 16.0}))
    populated.become(model(Vector(DIM), {"metric": "cosine", "include": ["lang"]}), metric="cosine")
    populated.become(model(Vector(DIM), None))
    for _ in range(6):
        populated.project.downgrade()
    populated.check(model(Vector(DIM), None))


@BOTH
def test_every_row_survives_half_precision_and_the_way_back(populated):
    vectors = populated.vectors
    rounded = {id_: None if v is None else v.astype(np.float16).astype(np.float32) for id_, v in vectors.items()}
    assert any(v is not None and v.tobytes() != rounded[id_].tobytes() for id_, v in vectors.items())
    populated.become(model(Vector(DIM), HNSW))
    populated.become(model(HalfVector(DIM), HNSW), rounded)
    populated.become(model(Vector(DIM), HNSW))
    populated.project.downgrade("-2")
    populated.check(model(Vector(DIM), HNSW))


SHORTEN = """\
def shorten(rows):
    return [row["embedding"][:8] for row in rows]

op.change_vector_column(
    "item", "embedding", type_=sqla_vector.Vector(8), existing_type=sqla_vector.Vector(16), backfill=shorten,
    indexes=[{"index_name": "ix_item_embedding", "metric": "l2"}],
    existing_indexes=[{"index_name": "ix_item_embedding", "metric": "l2", "m": 12}],
)
"""
LENGTHEN = """\
op.restore_vector_column(
    "item", "embedding", type_=sqla_vector.Vector(16), existing_type=sqla_vector.Vector(8),
    indexes=[{"index_name": "ix_item_embedding", "metric": "l2", "m": 12}],
    existing_indexes=[{"index_name": "ix_item_embedding", "metric": "l2"}],
)
"""


@BOTH
def test_every_row_survives_another_dimension_and_the_way_back(populated):
    populated.become(model(Vector(DIM), HNSW))
    long = populated.vectors
    populated.project.write(SHORTEN, LENGTHEN)
    populated.project.upgrade()
    short = {id_: None if v is None else v[:8] for id_, v in long.items()}
    populated.check(model(Vector(8), {"metric": "l2"}), short)
    populated.project.downgrade()
    populated.check(model(Vector(DIM), HNSW), long)


@BOTH
def test_every_row_survives_new_names_and_a_copied_table(populated):
    populated.become(model(Vector(DIM), HNSW))
    populated.by_hand('op.rename_table("item", "thing")', model(Vector(DIM), HNSW, table="thing"))
    populated.by_hand(
        'op.alter_column("thing", "embedding", new_column_name="place")',
        model(Vector(DIM), HNSW, table="thing", column="place"),
    )
    populated.by_hand(
        'with op.batch_alter_table("thing") as batch:\n    batch.alter_column("place", new_column_name="embedding")',
        model(Vector(DIM), HNSW, table="thing"),
    )
    populated.by_hand(
        'with op.batch_alter_table("thing", recreate="auto") as batch:\n'
        '    batch.alter_column("lang", existing_type=sa.String(2), type_=sa.String(3))\n'
        '    batch.alter_column("lang", existing_type=sa.String(3), type_=sa.String(2))\n'
        '    batch.add_column(sa.Column("pages", sa.Integer, server_default="1", nullable=False))',
        model(Vector(DIM), HNSW, table="thing", more=True),
    )
    new = {**populated.vectors, 1: np.arange(DIM, dtype=np.float32)}
    (table,) = populated.metadata.tables.values()
    row = {"id": 1, "lang": "en", "embedding": new[1], "pages": 3}
    populated.project.backend.run(
        populated.project.engine, lambda session: session.execute(insert(table), [row]) and None
    )
    populated.check(populated.metadata, dict(sorted(new.items())))
