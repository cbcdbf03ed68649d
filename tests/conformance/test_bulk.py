"""bulk.load and bulk.read on every backend."""

from __future__ import annotations

import datetime as dt
import enum
import tracemalloc
import uuid
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pgvector import Vector as PgVector
from pgvector.psycopg.vector import register_vector_info
from psycopg.types import TypeInfo
from sqlalchemy import JSON, BigInteger, Numeric, func, select, text
from sqlalchemy.dialects.postgresql import OID
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_vector import (
    BitVector,
    BulkLoadError,
    DimensionMismatch,
    HalfVector,
    InvalidOption,
    InvalidStatement,
    NonFiniteVector,
    SparseArray,
    SparseVector,
    Vector,
    bulk,
    vector_index,
)
from tests.support.backends import AnyEngine, Backend

N, DIM = 2_300, 8
X = np.random.default_rng(1).standard_normal((N, DIM)).astype(np.float32)


class Colour(enum.Enum):
    red = 1
    blue = 2


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    title: Mapped[str | None]
    size: Mapped[int] = mapped_column(BigInteger, default=7)
    token: Mapped[str] = mapped_column("token_", default=lambda: "made")
    colour: Mapped[Colour | None]
    extra: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    weight: Mapped[float | None]
    live: Mapped[bool | None]
    day: Mapped[dt.date | None]
    moment: Mapped[dt.datetime | None]
    key: Mapped[uuid.UUID | None]
    data: Mapped[bytes | None]
    e: Mapped[np.ndarray | None] = mapped_column(Vector(DIM))
    h: Mapped[np.ndarray | None] = mapped_column(HalfVector(DIM))
    s: Mapped[SparseArray | None] = mapped_column(SparseVector(DIM))
    b: Mapped[np.ndarray | None] = mapped_column(BitVector(DIM))


class Point(Base):
    __tablename__ = "point"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    e: Mapped[np.ndarray | None] = mapped_column(Vector(DIM))


class Priced(Base):
    """A table with a column type that has no binary encoder: it is loaded by INSERT."""

    __tablename__ = "priced"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    price: Mapped[Any] = mapped_column(Numeric(10, 2, asdecimal=False))
    e: Mapped[np.ndarray | None] = mapped_column(Vector(DIM))


def item(number: int) -> dict[str, Any]:
    x = X[number]
    return {
        "id": number,
        "title": f"títle {number}" if number % 3 else None,
        "colour": Colour.red if number % 2 else None,
        "extra": {"n": number},
        "weight": number / 4,
        "live": number % 2 == 0,
        "day": dt.date(1999, 12, 30) + dt.timedelta(days=number),
        "moment": dt.datetime(1999, 12, 31, 23, 59, 59, 250_000) + dt.timedelta(seconds=number),
        "key": uuid.UUID(int=number),
        "data": bytes([number % 256]),
        "e": None if number == 5 else x,
        "h": x,
        "s": np.maximum(x, 0),
        "b": x > 0,
    }


def test_a_generator_of_dicts_is_loaded_with_every_type_and_default(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, Base.metadata)
    loaded = backend.run(engine, lambda s: bulk.load(s, Item, (item(n) for n in range(N))))
    assert loaded == N

    def check(session: Session) -> None:
        rows = session.scalars(select(Item).order_by(Item.id)).all()
        assert len(rows) == N
        for n in (0, 5, 6, N - 1):
            row, wanted = rows[n], item(n)
            for name in ("title", "colour", "extra", "weight", "live", "day", "moment", "key", "data"):
                assert getattr(row, name) == wanted[name], name
            assert (row.size, row.token) == (7, "made")
            assert row.h.tolist() == X[n].astype(np.float16).tolist()
            assert row.s == SparseArray.from_dense(np.maximum(X[n], 0))
            assert row.b.tolist() == (X[n] > 0).tolist()
        assert rows[5].e is None
        assert np.array_equal(rows[6].e, X[6])

    backend.run(engine, check)


def test_arrays_by_column_and_tuples_are_loaded_as_they_are(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, Base.metadata)

    def load(session: Session) -> None:
        assert bulk.load(session, Point, {"id": np.arange(N), "e": X}) == N
        assert bulk.load(session.connection(), Point.__table__, [(N, X[0].tolist()), (N + 1, None)]) == 2
        assert bulk.load(session, Point, []) == 0
        assert bulk.load(session, Point, {"id": [], "e": np.empty((0, DIM))}) == 0

    backend.run(engine, load)
    (batch,) = backend.run(engine, lambda s: list(bulk.read(s, select(Point.id, Point.e).order_by(Point.id))))
    assert batch["id"].tolist() == list(range(N + 2))
    assert np.array_equal(batch["e"][:N], X)
    assert np.array_equal(batch["e"][N], X[0])
    assert np.isnan(batch["e"][N + 1]).all()


def test_a_column_type_without_binary_encoder_is_inserted(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, Base.metadata)
    rows = [{"id": n, "price": n / 4, "e": X[n]} for n in range(50)]
    assert backend.run(engine, lambda s: bulk.load(s, Priced, rows)) == 50
    found = backend.run(engine, lambda s: s.execute(select(Priced.price, Priced.e).where(Priced.id == 9)).one())
    assert float(found[0]) == 2.25
    assert np.array_equal(found[1], X[9])


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (
            [{"id": 1, "e": X[0]}, {"id": 2, "e": X[0][:3]}],
            DimensionMismatch,
            r"point\.e.*expected 8 dimensions, got 3",
        ),
        ([{"id": 1, "e": X[0]}, {"id": 2, "e": np.full(DIM, np.nan)}], NonFiniteVector, r"point\.e.*nan"),
        ({"id": [1, 2], "e": np.full((2, DIM), np.inf)}, NonFiniteVector, r"point\.e, row 0"),
        ([{"id": 1, "f": 2}], BulkLoadError, "point has no column 'f'"),
        ([{"id": 1, "e": X[0]}, {"id": 2}], BulkLoadError, "row 1 does not have the 2 columns"),
        ([{"id": 1, "e": X[0]}, {"id": 2, "g": X[0]}], BulkLoadError, "lacks the column 'e'"),
        ([{"id": 1, "e": X[0]}, (2, X[0])], BulkLoadError, "row 1"),
        ([(1, X[0], 3)], BulkLoadError, "."),
        ({"id": [1, 2, 3], "e": X[:2]}, BulkLoadError, "different lengths: id 3, e 2"),
        ([{"id": 1, "e": X[0]}, {"id": 1, "e": X[1]}], IntegrityError, "."),
    ],
)
def test_a_bad_row_loads_none_and_the_transaction_goes_on(
    backend: Backend, engine: AnyEngine, rows: Any, error: type[Exception], message: str
) -> None:
    backend.create_all(engine, Base.metadata)

    def attempt(session: Session) -> list[int]:
        session.add(Point(id=1_000, e=X[0]))
        session.flush()
        with pytest.raises(error, match=message):
            bulk.load(session, Point, rows)
        session.add(Point(id=1_001, e=X[0]))
        session.flush()
        return list(session.scalars(select(Point.id).order_by(Point.id)))

    assert backend.run(engine, attempt) == [1_000, 1_001]


def test_a_load_ends_with_the_callers_transaction(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, Base.metadata)

    def load_and_fail(session: Session) -> None:
        bulk.load(session, Point, {"id": np.arange(10), "e": X[:10]})
        raise LookupError

    with pytest.raises(LookupError):
        backend.run(engine, load_and_fail)
    assert backend.run(engine, lambda s: s.scalar(select(func.count()).select_from(Point))) == 0


def test_wrong_integers_and_texts_are_refused_by_name(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, Base.metadata)
    if backend.family == "postgresql":
        for rows in ([{"id": 2**40, "e": None}], {"id": [2**40], "e": X[:1]}, [{"id": "x", "e": X[0]}]):
            with pytest.raises(BulkLoadError, match=r"point\.id"):
                backend.run(engine, lambda s, rows=rows: bulk.load(s, Point, rows))
    with pytest.raises(BulkLoadError, match="expected a mapped class or a Table"):
        backend.run(engine, lambda s: bulk.load(s, "point", []))
    with pytest.raises(InvalidOption, match="Connection or Session"):
        bulk.load("nothing", Point, [])  # type: ignore[arg-type]


def test_progress_counts_the_rows(backend: Backend, engine: AnyEngine, capsys: pytest.CaptureFixture[str]) -> None:
    backend.create_all(engine, Base.metadata)
    seen: list[int] = []
    backend.run(engine, lambda s: bulk.load(s, Point, {"id": np.arange(N), "e": X}, progress=seen.append))
    assert seen[-1] == N
    assert seen == sorted(seen)
    rows = ((n + N, X[n]) for n in range(10))
    backend.run(engine, lambda s: bulk.load(s, Point, rows, progress=True))
    assert "10 rows" in capsys.readouterr().out


def test_rows_are_read_in_batches_as_arrays(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, Base.metadata)
    backend.run(engine, lambda s: bulk.load(s, Item, (item(n) for n in range(N))))
    columns = (Item.id, Item.title, Item.weight, Item.live, Item.e, Item.h, Item.s, Item.b)
    stmt = select(*columns).where(Item.id < 2_250).order_by(Item.id)
    batches = backend.run(engine, lambda s: list(bulk.read(s, stmt, batch_size=1_000)))
    assert [len(batch["id"]) for batch in batches] == [1_000, 1_000, 250]
    (whole,) = backend.run(engine, lambda s: list(bulk.read(s, stmt, batch_size=10**9)))
    assert np.array_equal(whole["e"], np.concatenate([batch["e"] for batch in batches]), equal_nan=True)
    (small,) = backend.run(engine, lambda s: list(bulk.read(s, stmt.limit(3), batch_size=2_000)))
    assert (small["e"].shape, small["e"].base) == ((3, DIM), None)
    first, last = batches[0], batches[-1]
    assert list(first) == ["id", "title", "weight", "live", "e", "h", "s", "b"]
    assert (first["e"].dtype, first["e"].shape, first["e"].flags.c_contiguous) == (np.float32, (1_000, DIM), True)
    assert np.isnan(first["e"][5]).all()
    assert np.array_equal(last["e"], X[2_000:2_250])
    assert np.array_equal(last["h"], X[2_000:2_250].astype(np.float16))
    assert np.array_equal(last["b"], X[2_000:2_250] > 0)
    assert last["s"][0] == SparseArray.from_dense(np.maximum(X[2_000], 0))
    assert (first["id"].dtype.kind, first["weight"].dtype.kind, first["live"].dtype.kind) == ("i", "f", "b")
    assert (first["title"].dtype, first["title"][0], first["title"][1]) == (object, None, "títle 1")


def test_what_cannot_be_read_as_arrays_is_refused(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, Base.metadata)
    backend.run(engine, lambda s: bulk.load(s, Item, [{"id": 1, "b": None}]))
    for size in (0, -1, 1.5, True):
        with pytest.raises(InvalidOption, match="batch_size"):
            backend.run(engine, lambda s, size=size: list(bulk.read(s, select(Point.e), batch_size=size)))
    with pytest.raises(InvalidStatement, match="columns, not entities"):
        backend.run(engine, lambda s: list(bulk.read(s, select(Point))))
    with pytest.raises(InvalidStatement, match="select"):
        backend.run(engine, lambda s: list(bulk.read(s, text("SELECT 1"))))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="NULL"):
        backend.run(engine, lambda s: list(bulk.read(s, select(Item.b))))


@pytest.mark.backends(is_async=True)
def test_async_sessions_load_and_read(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, Base.metadata)

    async def run() -> list[dict[str, Any]]:
        async with AsyncSession(engine) as session, session.begin():  # type: ignore[arg-type]
            assert await bulk.aload(session, Point, {"id": np.arange(N), "e": X}) == N
            connection = await session.connection()
            read = [batch async for batch in bulk.aread(session, select(Point.e).order_by(Point.id), batch_size=2_000)]
            again = [batch async for batch in bulk.aread(connection, select(Point.e).order_by(Point.id))]
            assert len(again) == 1
            return read

    batches = backend.wait(run())
    assert [len(batch["e"]) for batch in batches] == [2_000, 300]
    assert np.array_equal(np.concatenate([batch["e"] for batch in batches]), X)


@pytest.mark.backends("psycopg", "asyncpg", "pysqlite3", "sqlite_numpy", "sqlite_stdlib")
def test_memory_does_not_grow_with_the_number_of_rows(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, Base.metadata)

    def rows(start: int, count: int) -> Iterator[tuple[int, np.ndarray]]:
        return ((n, X[n % N]) for n in range(start, start + count))

    def peak(start: int, count: int) -> int:
        tracemalloc.start()
        try:
            backend.run(engine, lambda s: bulk.load(s, Point, rows(start, count)))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few = peak(0, 4_000)
    many = peak(4_000, 40_000)
    assert many < 2 * few


class Indexed(DeclarativeBase):
    pass


class Searched(Indexed):
    __tablename__ = "searched"
    id: Mapped[int] = mapped_column(primary_key=True)
    e: Mapped[np.ndarray | None] = mapped_column(Vector(DIM))
    __table_args__ = (vector_index("ix_searched_e", "e"),)


@pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")
def test_a_loaded_table_keeps_its_index_and_server_made_keys(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, Indexed.metadata)
    assert backend.run(engine, lambda s: bulk.load(s, Searched, {"e": X[:100]})) == 100
    found = backend.run(engine, lambda s: s.execute(select(Searched.id, Searched.e).order_by(Searched.id)).all())
    assert len({row.id for row in found}) == 100


@pytest.mark.backends("psycopg", "psycopg_async")
def test_arrays_are_read_where_pgvectors_own_loaders_are_registered(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, Base.metadata)
    backend.run(engine, lambda s: bulk.load(s, Item, (item(n) for n in range(20))))

    def read(session: Session) -> dict[str, np.ndarray]:
        raw: Any = session.connection().connection.driver_connection
        register_vector_info(raw, TypeInfo("vector", session.scalar(select(func.to_regtype("vector").cast(OID))), 0))
        (batch,) = bulk.read(session, select(Item.id, Item.e, Item.h).order_by(Item.id).where(Item.id != 5))
        assert isinstance(session.connection().exec_driver_sql("SELECT '[1]'::vector").scalar_one(), PgVector)
        return batch

    batch = backend.run(engine, read)
    assert np.array_equal(batch["e"], np.delete(X[:20], 5, axis=0))
    assert batch["h"].dtype == np.float16
