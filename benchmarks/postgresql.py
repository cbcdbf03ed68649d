"""Engines on the run's PostgreSQL database, and what its tables hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from numpy.typing import NDArray
from pgvector.psycopg import register_vector
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase

from benchmarks.harness import Run
from benchmarks.models import Base
from sqla_vector import bulk

T = TypeVar("T")


@contextmanager
def engine(run: Run, *, plugin: bool = True, base: type[DeclarativeBase] = Base) -> Iterator[Engine]:
    """Make an engine through psycopg, with the plugin or plain, and the tables."""
    plugins = {"plugins": ["sqla_vector"]} if plugin else {}
    found = create_engine(run.postgresql().set(drivername="postgresql+psycopg"), **plugins)
    try:
        base.metadata.create_all(found)
        yield found
    finally:
        found.dispose()


@contextmanager
def asyncpg_engine(run: Run) -> Iterator[tuple[AsyncEngine, Callable[[Coroutine[Any, Any, T]], T]]]:
    """Make an engine with the plugin through asyncpg, and what runs a coroutine in its event loop."""
    with asyncio.Runner() as runner:
        found = create_async_engine(run.postgresql().set(drivername="postgresql+asyncpg"), plugins=["sqla_vector"])
        try:
            yield found, runner.run
        finally:
            runner.run(found.dispose())


@contextmanager
def raw_connection(run: Run) -> Iterator[psycopg.Connection]:
    """Connect as pgvector's manual says: psycopg and register_vector."""
    url = run.postgresql().render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        register_vector(connection)
        connection.commit()
        yield connection


def truncate(connected: Engine, *models: type[Base]) -> None:
    """Empty tables, and let the next rows be written to new files."""
    with connected.begin() as connection:
        for model in models:
            connection.execute(text(f"TRUNCATE {model.__tablename__} RESTART IDENTITY"))


def fill(connected: Engine, matrix: NDArray[Any], *models: type[Base]) -> None:
    """Put the same vectors into several tables."""
    truncate(connected, *models)
    ids = list(range(1, len(matrix) + 1))
    with connected.begin() as connection:
        for model in models:
            # One table's loader serves all: they differ by the type in the model, not in the database.
            bulk.load(connection, _as_ours(model), {"id": ids, "embedding": matrix})
    with connected.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        for model in models:
            connection.execute(text(f"VACUUM (ANALYZE) {model.__tablename__}"))


def _as_ours(model: type[Base]) -> Any:
    from sqlalchemy import Column, Integer, MetaData, Table

    from benchmarks.harness import DIM
    from sqla_vector import Vector

    return Table(
        model.__tablename__, MetaData(), Column("id", Integer, primary_key=True), Column("embedding", Vector(DIM))
    )
