"""What this package adds to the time of ``alembic revision --autogenerate`` and ``alembic check``."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from alembic.autogenerate import produce_migrations
from alembic.migration import MigrationContext
from sqlalchemy import Column, Engine, ForeignKey, Index, Integer, MetaData, String, Table, Text, create_engine

import sqla_vector.alembic
from benchmarks.harness import Figure, Run, Variant
from sqla_vector import Vector, vector_index

GROUP = "Costs"
TABLES = 200
EVERY = 5
"""Every fifth table has a vector column and an index on it."""


def models(count: int) -> MetaData:
    """Return tables as applications have them: a key, texts, a reference, indexes, and vectors in some."""
    metadata = MetaData()
    for number in range(count):
        before = [Column("parent_id", ForeignKey(f"bench_{number - 1}.id"))] if number else []
        vectors: list[Any] = []
        if number % EVERY == 0:
            indexed = vector_index(f"ix_bench_{number}_embedding", "embedding", metric="cosine", include=("name",))
            vectors = [Column("embedding", Vector(8)), indexed]
        Table(
            f"bench_{number}",
            metadata,
            Column("id", Integer, primary_key=True),
            Column("name", String(50), nullable=False),
            Column("slug", String(50), unique=True),
            Column("body", Text),
            Column("count", Integer, server_default="0"),
            *before,
            *vectors,
            Index(f"ix_bench_{number}_name", "name"),
        )
    return metadata


def comparing(engine: Engine, metadata: MetaData, ours: bool) -> Callable[[Any], None]:
    """Return what compares models with the database, with this package's options or as Alembic does it alone."""

    def compare(_: Any) -> None:
        with engine.connect() as connection, warnings.catch_warnings():
            # Alembic alone warns of every vector index that it cannot compare its expression.
            warnings.simplefilter("ignore")
            options = {"target_metadata": metadata}
            opts = sqla_vector.alembic.options(**options) if ours else options
            found = produce_migrations(MigrationContext.configure(connection, opts=opts), metadata).upgrade_ops
            if ours and found is not None and not found.is_empty():
                raise RuntimeError(f"the models differ from what was made of them: {found.as_diffs()}")

    return compare


def measure(run: Run) -> Iterator[Figure]:
    """Compare models with a database that is like them, on both databases."""
    metadata = models(run.size(TABLES))
    logging.getLogger("alembic").setLevel(logging.ERROR)
    with run.directory() as directory:
        urls = {
            "PostgreSQL": run.postgresql().set(drivername="postgresql+psycopg"),
            "SQLite": f"sqlite:///{directory / 'migrations.db'}",
        }
        for name, url in urls.items():
            engine = create_engine(url, plugins=["sqla_vector"])
            try:
                metadata.create_all(engine)
                ours, alone = (Variant(comparing(engine, metadata, ours), gc.collect) for ours in (True, False))
                count = len(metadata.tables)
                yield run.compare(ours, alone, rounds=4 * run.repeat, warm_up=2).duration(
                    GROUP,
                    f"autogenerate, {count} tables, {-(-count // EVERY)} with vectors, {name}",
                    "Alembic alone",
                    1.10,
                    rows=count,
                    dim=None,
                )
                metadata.drop_all(engine)
            finally:
                engine.dispose()
