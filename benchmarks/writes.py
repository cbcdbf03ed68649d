"""Writing to PostgreSQL: the ORM's add_all(), Core's insert() of dicts, bulk.load()."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from sqlalchemy import Engine, insert
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from benchmarks.data import clustered
from benchmarks.harness import Figure, Run, Variant
from benchmarks.models import Ours, Plain, Theirs
from benchmarks.postgresql import asyncpg_engine, engine, raw_connection, truncate
from sqla_vector import bulk

GROUP = "PostgreSQL, writing"


def add_all(connected: Engine, objects: list[Any]) -> None:
    with Session(connected) as session, session.begin():
        session.add_all(objects)


async def add_all_async(connected: AsyncEngine, objects: list[Any]) -> None:
    async with AsyncSession(connected) as session, session.begin():
        session.add_all(objects)


def insert_dicts(connected: Engine, model: Any, dicts: list[dict[str, Any]]) -> None:
    with connected.begin() as connection:
        connection.execute(insert(model.__table__), dicts)


async def insert_dicts_async(connected: AsyncEngine, model: Any, dicts: list[dict[str, Any]]) -> None:
    async with connected.begin() as connection:
        await connection.execute(insert(model.__table__), dicts)


def load(connected: Engine, arrays: dict[str, Any]) -> None:
    with connected.begin() as connection:
        bulk.load(connection, Ours, arrays)


async def load_async(connected: AsyncEngine, arrays: dict[str, Any]) -> None:
    async with connected.begin() as connection:
        await bulk.aload(connection, Ours, arrays)


def copy_by_hand(connection: psycopg.Connection, ids: NDArray[Any], matrix: NDArray[Any]) -> None:
    """Binary COPY as somebody writes it who knows the format: records of numpy, a block at a time."""
    dim = matrix.shape[1]
    layout = [("fields", ">i2"), ("id_size", ">i4"), ("id", ">i4"), ("size", ">i4"), ("dim", ">i2"), ("zero", ">i2")]
    rows = np.empty(1000, np.dtype([*layout, ("values", ">f4", (dim,))]))
    rows["fields"], rows["id_size"], rows["size"], rows["dim"], rows["zero"] = 2, 4, 4 + 4 * dim, dim, 0
    with (
        connection.cursor() as cursor,
        cursor.copy("COPY bench_ours (id, embedding) FROM STDIN (FORMAT BINARY)") as copy,
    ):
        copy.write(b"PGCOPY\n\xff\r\n\0" + bytes(8))
        for start in range(0, len(matrix), len(rows)):
            count = min(len(rows), len(matrix) - start)
            rows["id"][:count] = ids[start : start + count]
            rows["values"][:count] = matrix[start : start + count]
            copy.write(rows[:count].tobytes())
        copy.write(b"\xff\xff")
    connection.commit()


def measure(run: Run) -> Iterator[Figure]:
    """Compare with pgvector.sqlalchemy, a text column, and a COPY by hand; then asyncpg with psycopg."""
    rows = run.size(20_000)
    matrix = clustered(rows)
    vectors = list(matrix)
    ids = np.arange(1, rows + 1)

    def objects(connected: Engine, model: Any) -> Callable[[], list[Any]]:
        def prepare() -> list[Any]:
            truncate(connected, model)
            if model is Plain:
                return [Plain(title=f"a short title, number {number}") for number in range(rows)]
            return [model(embedding=vector) for vector in vectors]

        return prepare

    def dicts(connected: Engine, model: Any) -> Callable[[], list[dict[str, Any]]]:
        def prepare() -> list[dict[str, Any]]:
            truncate(connected, model)
            return [{"embedding": vector} for vector in vectors]

        return prepare

    def arrays(connected: Engine) -> Callable[[], dict[str, Any]]:
        def prepare() -> dict[str, Any]:
            truncate(connected, Ours)
            return {"id": ids, "embedding": matrix}

        return prepare

    with (
        engine(run) as ours,
        engine(run, plugin=False) as plain,
        raw_connection(run) as raw,
        asyncpg_engine(run) as (asyncpg, wait),
    ):
        add_ours = Variant(lambda found: add_all(ours, found), objects(ours, Ours))
        yield run.compare(add_ours, Variant(lambda found: add_all(plain, found), objects(plain, Theirs))).speed(
            GROUP, "ORM add_all()", "pgvector.sqlalchemy", rows, 3.5
        )
        yield run.compare(add_ours, Variant(lambda found: add_all(plain, found), objects(plain, Plain))).speed(
            GROUP, "ORM add_all()", "a short text column instead", rows, 0.65
        )
        insert_ours = Variant(lambda found: insert_dicts(ours, Ours, found), dicts(ours, Ours))
        yield run.compare(
            insert_ours, Variant(lambda found: insert_dicts(plain, Theirs, found), dicts(plain, Theirs))
        ).speed(GROUP, "Core insert() of dicts", "pgvector.sqlalchemy", rows, 13)
        load_ours = Variant(lambda found: load(ours, found), arrays(ours))
        yield run.compare(
            load_ours, Variant(lambda found: copy_by_hand(raw, found["id"], found["embedding"]), arrays(ours))
        ).speed(GROUP, "bulk.load()", "numpy and binary COPY by hand", rows, 0.85)

        add_async = Variant(lambda found: wait(add_all_async(asyncpg, found)), objects(ours, Ours))
        yield run.compare(add_async, add_ours).speed(GROUP, "ORM add_all(), asyncpg", "psycopg", rows, 0.8)
        insert_async = Variant(lambda found: wait(insert_dicts_async(asyncpg, Ours, found)), dicts(ours, Ours))
        yield run.compare(insert_async, insert_ours).speed(
            GROUP, "Core insert() of dicts, asyncpg", "psycopg", rows, 0.8
        )
        load_async_variant = Variant(lambda found: wait(load_async(asyncpg, found)), arrays(ours))
        yield run.compare(load_async_variant, load_ours).speed(GROUP, "bulk.load(), asyncpg", "psycopg", rows, 0.8)
