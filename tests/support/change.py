"""A table of articles whose vectors get another dimension, and the functions that compute the new ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from sqlalchemy import Column, Connection, Index, Integer, MetaData, String, Table, insert, inspect, select, text

from sqla_vector import Vector, nearest, vector_index
from tests.support.backends import AnyEngine, Backend
from tests.support.brute_force import assert_equal
from tests.support.brute_force import nearest as brute_force

OLD, NEW = 3, 4

CHANGE = """\
op.change_vector_column(
    "article",
    "embedding",
    type_=sqla_vector.Vector(4),
    existing_type=sqla_vector.Vector(3),
    indexes=[{"index_name": "ix_article_embedding", "metric": "l2"}],
    existing_indexes=[{"index_name": "ix_article_embedding", "metric": "l2"}],
    backfill=op.get_context().config.attributes["backfill"],
    batch_size=2,
)
"""
RESTORE = """\
op.restore_vector_column(
    "article",
    "embedding",
    type_=sqla_vector.Vector(3),
    existing_type=sqla_vector.Vector(4),
    indexes=[{"index_name": "ix_article_embedding", "metric": "l2"}],
    existing_indexes=[{"index_name": "ix_article_embedding", "metric": "l2"}],
)
"""


def articles(
    dim: int | None,
    *,
    keys: Iterable[Column[Any]] = (),
    nullable: bool = True,
    index: bool = True,
    schema: str | None = None,
    name: str = "article",
) -> MetaData:
    """Return the model of a table with vectors of a dimension, and with two indexes of which one is of vectors."""
    metadata = MetaData()
    Table(
        name,
        metadata,
        *(list(keys) or [Column("id", Integer, primary_key=True)]),
        Column("title", String(40)),
        Column("embedding", Vector(dim), nullable=nullable),
        Index(f"ix_{name}_title", "title"),
        *([vector_index(f"ix_{name}_embedding", "embedding", metric="l2")] if index else []),
        schema=schema,
    )
    return metadata


def rows(count: int, dim: int = OLD, *, with_null: bool = True) -> list[dict[str, Any]]:
    """Return rows with ids from 1; every fourth has no vector unless that is forbidden."""
    rng = np.random.default_rng(count)
    vectors = rng.normal(size=(count, dim)).astype(np.float32)
    return [
        {"id": n, "title": f"title {n}", "embedding": None if with_null and n % 4 == 0 else vectors[n - 1]}
        for n in range(1, count + 1)
    ]


def fill(backend: Backend, engine: AnyEngine, metadata: MetaData, given: list[dict[str, Any]]) -> None:
    """Insert rows into the table of a model."""
    (table,) = metadata.tables.values()
    backend.run(engine, lambda session: session.execute(insert(table), given) and None)


def widened(row: Mapping[str, Any]) -> Any:
    """Return a row's new vector, which is a function of its old one."""
    old = np.asarray(row["embedding"], np.float32)
    return np.append(old * 2, old.sum()).astype(np.float32)


def widen(given: list[Mapping[str, Any]]) -> Any:
    """Return the new vectors of rows."""
    return np.stack([widened(row) for row in given])


class Recorder:
    """A backfill that notes the ids that it was given, and may fail at one of its calls."""

    def __init__(self, backfill: Callable[[list[Any]], Any] = widen, fail_at: int | None = None) -> None:
        self._backfill = backfill
        self.fail_at = fail_at
        self.batches: list[list[Any]] = []

    def __call__(self, given: list[Any]) -> Any:
        """Compute vectors, as backfill does."""
        self.batches.append([row["id"] for row in given])
        if len(self.batches) == self.fail_at:
            raise RuntimeError("the embedder is down")
        return self._backfill(given)

    @property
    def ids(self) -> list[Any]:
        """Every id given, in order."""
        return [id_ for batch in self.batches for id_ in batch]


def vectors_of(
    backend: Backend, engine: AnyEngine, dim: int | None, column: str = "embedding", schema: str | None = None
) -> dict[Any, Any]:
    """Return the vectors of the table by id."""
    table = Table("article", MetaData(), Column("id"), Column(column, Vector(dim)), schema=schema)
    found = backend.run(engine, lambda session: session.execute(select(table).order_by(table.c.id)).all())
    return {row[0]: row[1] for row in found}


def assert_vectors(found: Mapping[Any, Any], expected: Mapping[Any, Any]) -> None:
    """Compare vectors by id, bit for bit."""
    assert found.keys() == expected.keys()
    for id_, vector in expected.items():
        if vector is None:
            assert found[id_] is None, id_
        else:
            assert found[id_] is not None, id_
            assert np.asarray(found[id_]).tobytes() == np.asarray(vector, np.float32).tobytes(), id_


def assert_search(backend: Backend, engine: AnyEngine, metadata: MetaData, vectors: Mapping[Any, Any]) -> None:
    """Compare what nearest() finds with brute force."""
    (table,) = metadata.tables.values()
    query = np.arange(1, 1 + table.c.embedding.type.dim, dtype=np.float32)
    stmt = nearest(select(table.c.id), table.c.embedding, query, k=5, metric="l2")
    found = backend.run(engine, lambda session: session.execute(stmt).all())
    assert_equal(found, brute_force(vectors, query, 5, "l2"))


def columns_of(backend: Backend, engine: AnyEngine, schema: str | None = None) -> dict[str, Any]:
    """Return the columns of the table by name."""
    read: Callable[[Connection], Any] = lambda c: inspect(c).get_columns("article", schema=schema)  # noqa: E731
    return {column["name"]: column for column in backend.run_connection(engine, read)}


def leftovers_of(backend: Backend, engine: AnyEngine) -> list[str]:
    """Return the triggers and functions that fill a new column; none when nothing is being changed."""
    if backend.family == "sqlite":
        sql = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND name LIKE '%embedding\\_\\_%' ESCAPE '\\'"
    else:
        sql = (
            "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal UNION ALL SELECT proname FROM pg_proc p"
            " JOIN pg_namespace n ON n.oid = p.pronamespace WHERE proname LIKE '%embedding%'"
        )
    return list(backend.run_connection(engine, lambda c: c.scalars(text(sql)).all()))
