"""Reading from PostgreSQL: selecting the column, selecting entities, bulk.read()."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
from sqlalchemy import Engine, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from benchmarks.data import clustered
from benchmarks.harness import Figure, Run, Variant
from benchmarks.models import Ours, Theirs
from benchmarks.postgresql import asyncpg_engine, engine, fill, raw_connection
from sqla_vector import bulk

GROUP = "PostgreSQL, reading"


def scalars(connected: Engine, selected: Any) -> list[Any]:
    with Session(connected) as session:
        return list(session.scalars(select(selected)))


async def scalars_async(connected: AsyncEngine, selected: Any) -> list[Any]:
    async with AsyncSession(connected) as session:
        return list(await session.scalars(select(selected)))


def read(connected: Engine) -> list[Any]:
    with connected.connect() as connection:
        return list(bulk.read(connection, select(Ours.id, Ours.embedding)))


async def read_async(connected: AsyncEngine) -> list[Any]:
    async with connected.connect() as connection:
        return [batch async for batch in bulk.aread(connection, select(Ours.id, Ours.embedding))]


def read_by_hand(connection: psycopg.Connection) -> list[Any]:
    with connection.cursor(binary=True) as cursor:
        found = cursor.execute("SELECT id, embedding FROM bench_ours").fetchall()
    connection.rollback()
    return found


def measure(run: Run) -> Iterator[Figure]:
    """Compare with pgvector.sqlalchemy and with psycopg's binary cursor; then asyncpg with psycopg."""
    rows = run.size(20_000)
    with (
        engine(run) as ours,
        engine(run, plugin=False) as plain,
        raw_connection(run) as raw,
        asyncpg_engine(run) as (asyncpg, wait),
    ):
        fill(ours, clustered(rows), Ours, Theirs)
        for what, own, other, floor in (
            ("select() of the column", Ours.embedding, Theirs.embedding, 5.5),
            ("select() of entities", Ours, Theirs, 5),
        ):
            yield run.compare(
                Variant(lambda _, own=own: scalars(ours, own)), Variant(lambda _, other=other: scalars(plain, other))
            ).speed(GROUP, what, "pgvector.sqlalchemy", rows, floor)
        yield run.compare(Variant(lambda _: read(ours)), Variant(lambda _: read_by_hand(raw))).speed(
            GROUP, "bulk.read()", "psycopg's binary cursor, pgvector.Vector", rows, 1.2
        )
        for what, own in (("select() of the column", Ours.embedding), ("select() of entities", Ours)):
            yield run.compare(
                Variant(lambda _, own=own: wait(scalars_async(asyncpg, own))),
                Variant(lambda _, own=own: scalars(ours, own)),
            ).speed(GROUP, f"{what}, asyncpg", "psycopg", rows, 0.8)
        yield run.compare(Variant(lambda _: wait(read_async(asyncpg))), Variant(lambda _: read(ours))).speed(
            GROUP, "bulk.read(), asyncpg", "psycopg", rows, 0.8
        )
