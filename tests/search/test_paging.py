"""Pages by key and streams: joined together they are one long result, and memory does not grow with it."""

from __future__ import annotations

import base64
import gc
import json
import sys
import tracemalloc
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import (
    Column,
    Connection,
    Date,
    DateTime,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    String,
    Table,
    Uuid,
    delete,
    insert,
    select,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column

from sqla_vector import (
    InvalidOption,
    InvalidStatement,
    SparseVector,
    Vector,
    match_text,
    nearest,
    nearest_each,
    text_index,
)
from sqla_vector.search import (
    astream,
    best_per_group,
    cursor_of,
    hybrid,
    page_after,
    rerank,
    search,
    stream,
    text_part,
    vector_part,
)
from tests.support.brute_force import engine_that_indexes, make_vectors
from tests.support.brute_force import nearest as brute_force

DIM = 4
SYNCHRONOUS = pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")
VECTORS = make_vectors(97, DIM)
QUERY = [1.0, 0.5, -0.25, 0.1]


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    words: Mapped[str] = mapped_column(String(40))
    embedding: Mapped[np.ndarray | None] = mapped_column(Vector(DIM), info={"source": "words"})
    __table_args__ = (text_index("ix_item_words", "words"),)


class Place(Base):
    __tablename__ = "place"
    tenant: Mapped[str] = mapped_column(String(8), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    embedding: Mapped[np.ndarray | None] = mapped_column(Vector(DIM))


def fill(session: Session) -> None:
    for key, vector in VECTORS.items():
        session.add(Item(id=key, words="cat " * (key % 4) + "dog", embedding=vector))
        session.add(Place(tenant="ab"[key % 2], number=key, embedding=vector))
    session.flush()


@pytest.fixture
def engine(backend: Any) -> Any:
    engine = engine_that_indexes(backend)
    backend.create_all(engine, Base.metadata)
    backend.run(engine, fill)
    return engine


def pages(session: Session, stmt: Any) -> list[Any]:
    found: list[Any] = []
    page = session.execute(stmt).all()
    while page:
        found += page
        assert len(found) < 1000
        page = session.execute(page_after(stmt, cursor_of(stmt, page[-1]))).all()
    return found


@pytest.mark.parametrize("metric", ["cosine", "l2", "l1", "inner_product"])
def test_pages_by_key_are_one_long_result(backend, engine, metric):
    def check(session: Session) -> None:
        expected = [key for key, _ in brute_force(VECTORS, QUERY, 200, metric)]
        for k in (7, 30):
            stmt = nearest(select(Item), Item.embedding, QUERY, k=k, metric=metric)
            assert [row[0].id for row in pages(session, stmt)] == expected
            ids = nearest(select(Item.id), Item.embedding, QUERY, k=k, metric=metric).where(Item.id > 30)
            assert [row[0] for row in pages(session, ids)] == [key for key in expected if key > 30]

    backend.run(engine, check)


@SYNCHRONOUS
def test_pages_of_other_searches(backend, engine):
    def check(session: Session) -> None:
        words = match_text(select(Item), Item, "cat", k=100)
        expected = [item.id for item in session.scalars(words)]
        assert len(expected) > 60
        assert [row[0].id for row in pages(session, match_text(select(Item), Item, "cat", k=9))] == expected
        parts = [vector_part(Item.embedding, QUERY), text_part(Item, "cat", weight=2)]
        both = [item.id for item in session.scalars(hybrid(select(Item), parts=parts, k=100, candidates=100))]
        paged = hybrid(select(Item), parts=parts, k=10, candidates=100)
        assert [row[0].id for row in pages(session, paged)] == both
        alone = hybrid(select(Item), parts=parts[:1], k=10, candidates=100)
        assert [row[0].id for row in pages(session, alone)] == [
            k for k, _ in brute_force(VECTORS, QUERY, 100, "cosine")
        ]

    backend.run(engine, check)


@SYNCHRONOUS
def test_keys_of_two_columns_and_of_an_alias(backend, engine):
    def check(session: Session) -> None:
        by_key = {("ab"[key % 2], key): vector for key, vector in VECTORS.items()}
        expected = [key for key, _ in brute_force(by_key, QUERY, 200, "l2")]
        stmt = nearest(select(Place), Place.embedding, QUERY, k=8, metric="l2")
        assert [(row[0].tenant, row[0].number) for row in pages(session, stmt)] == expected
        other = aliased(Place)
        stmt = nearest(
            select(Place.number, other).join(other, other.number == Place.number),
            other.embedding,
            QUERY,
            k=8,
            metric="l2",
        )
        assert [(row[1].tenant, row[1].number) for row in pages(session, stmt)] == expected

    backend.run(engine, check)


@SYNCHRONOUS
def test_a_page_is_right_although_rows_came_and_went(backend, engine):
    def check(session: Session) -> None:
        stmt = nearest(select(Item), Item.embedding, QUERY, k=10, metric="l2")
        expected = [key for key, _ in brute_force(VECTORS, QUERY, 200, "l2")]
        hits = search(session, stmt)
        place = cursor_of(stmt, hits[-1])
        assert place == cursor_of(stmt, hits[-1].row)
        session.delete(hits[-1].entity)
        session.delete(hits[3].entity)
        session.add(Item(id=1000, words="new", embedding=QUERY))
        session.flush()
        assert [item.id for item in session.scalars(page_after(stmt, place))] == expected[10:20]
        number, key = hits[-1].distance, hits[-1].entity.id
        assert [item.id for item in session.scalars(page_after(stmt, (number, key)))] == expected[10:20]

    backend.run(engine, check)


KEYS = {
    "uuid": (Uuid(), lambda n: UUID(int=n)),
    "text": (String(20), lambda n: f"k'{n:03d}-é"),
    "datetime": (DateTime(), lambda n: datetime(2026, 1, 1, 0, n)),
    "date": (Date(), lambda n: date(2026, 1, n)),
    "decimal": (Numeric(10, 2), lambda n: Decimal(n) / 4),
    "bytes": (LargeBinary(), lambda n: b"\x00\xff" + bytes([n])),
}


@SYNCHRONOUS
@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.filterwarnings("ignore:Dialect sqlite.* does \\*not\\* support Decimal")
def test_keys_of_every_type(backend, kind):
    type_, make = KEYS[kind]
    table = Table(
        "t", MetaData(), Column("id", type_, primary_key=True, autoincrement=False), Column("embedding", Vector(DIM))
    )

    def check(connection: Connection) -> None:
        table.create(connection)
        rows = {make(n): np.ones(DIM) * (n % 3 + 1) for n in range(1, 12)}
        connection.execute(insert(table), [{"id": key, "embedding": vector} for key, vector in rows.items()])
        stmt = nearest(select(table.c.id), table.c.embedding, QUERY, k=3, metric="l2")
        found = [row[0] for row in pages(connection, stmt)]  # type: ignore[arg-type]
        assert found == [key for key, _ in brute_force(rows, QUERY, 20, "l2")]

    backend.run_connection(backend.make_engine(), check)


def test_a_stream_is_the_search(backend, engine):
    stmt = nearest(select(Item), Item.embedding, QUERY, k=60, metric="l2")
    expected = [key for key, _ in brute_force(VECTORS, QUERY, 60, "l2")]

    def check(session: Session) -> None:
        hits = list(stream(session, stmt, size=7, vectors=True))
        assert [hit.entity.id for hit in hits] == expected
        assert [hit.text for hit in hits] == [hit.entity.words for hit in hits]
        assert all(np.array_equal(hit.vector, VECTORS[hit.entity.id]) for hit in hits)
        some = stream(session, stmt, size=7)
        assert next(some).entity.id == expected[0]
        some.close()  # type: ignore[attr-defined]
        assert session.scalar(select(Item.id).where(Item.id == 1)) == 1

    async def program() -> None:
        async with AsyncSession(engine) as session:
            assert [hit.entity.id async for hit in astream(session, stmt, size=7)] == expected
            async for hit in astream(session, stmt, size=7):
                assert hit.entity.id == expected[0]
                break

    # A stream needs the driver's own fetching, which run_sync() of an AsyncSession does not do.
    if backend.is_async:
        backend.wait(program())
    else:
        backend.run(engine, check)


@SYNCHRONOUS
def test_memory_does_not_grow_with_the_rows_of_a_stream(backend, engine):
    def add(session: Session) -> None:
        vector = np.ones(DIM, np.float32)
        session.execute(insert(Item), [{"id": 1000 + n, "words": "x", "embedding": vector} for n in range(12_000)])

    backend.run(engine, add)

    def peak(k: int) -> int:
        def read(session: Session) -> int:
            stmt = nearest(select(Item), Item.embedding, QUERY, k=k, metric="l2")
            gc.collect()
            gc.freeze()
            tracemalloc.start()
            try:
                count = 0
                for number, _ in enumerate(stream(session, stmt, size=100)):
                    count += 1
                    if number % 500 == 0:
                        gc.collect()  # what waits for the collector is not kept
                assert count == k
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
                gc.unfreeze()

        return backend.run(engine, read)

    peak(1_000)  # caches are filled
    few, many = peak(1_000), peak(11_000)
    assert many - few < 10_000 * sys.getsizeof(object()), "something is kept for each row"


def test_a_cursor_that_was_made_up_is_refused():
    stmt = nearest(select(Item), Item.embedding, QUERY, k=7)
    good = base64.urlsafe_b64encode(b"x").decode()

    def made(*parts: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()

    from sqla_vector.search.paging import _Place

    of = _Place(stmt, "page_after").search
    one = (1.5).hex()
    assert page_after(stmt, made(1, of, one, [3])) is not None
    refused = [
        *("", "abc", "%%%", good, "é", "a" * 5000, "AAAA", made(), made(1), made(1, of, one), made(1, of, one, 3)),
        *(made(2, of, one, [3]), made(1, of, "nan", [3]), made(1, of, 1.5, [3])),
        *(made(1, of, "x", [3]), made(1, of, one, []), made(1, of, one, [3, 4]), made(1, of, one, ["3"])),
        *(made(1, of, one, [None]), made(1, of, one, [True]), made(1, of, one, [[3]]), made(1, of, one, [{"a": 1}])),
        *(
            made(1, of, one, [["pickle", "x"]]),
            made(1, of, one, [["uuid", "x"]]),
            made(1, of, one, [["uuid", 5]]),
            made(1, of, one, [2**63]),
        ),
        *(made(1, of, one, [["decimal", "x"]]), made(1, of, one, [["datetime", "x"]]), made(1, "other", one, [3])),
        *(made(1, None, one, [3]), base64.urlsafe_b64encode(b"[" * 2000).decode(), made(1, of, "0x1p99999", [3])),
        *(
            (),
            (1.0,),
            (1.0, "3"),
            (1.0, 3, 4),
            (10**400, 3),
            (1.0, 2**40),
            ("1", 3),
            (True, 3),
            (float("nan"), 3),
            (None, 3),
            None,
            3,
            [1.0, 3],
        ),
    ]
    for cursor in refused:
        with pytest.raises(InvalidOption, match="cursor"):
            page_after(stmt, cursor)
    far = made(1, of, "inf", [3])
    assert page_after(stmt, far) is not None, "vectors of the largest numbers are as far"
    places = nearest(select(Place), Place.embedding, QUERY)
    for key in (("a\0b", 3), ("\ud800", 3), ("a", None), (3, "a"), ("a",)):
        with pytest.raises(InvalidOption, match="cursor"):
            page_after(places, (1.0, *key))


@pytest.mark.parametrize("text", ["1e200000", "sNaN", "Infinity"])
def test_a_decimal_that_no_column_has_is_no_key(text):
    table = Table("t", MetaData(), Column("id", Numeric(10, 2), primary_key=True), Column("v", Vector(DIM)))
    with pytest.raises(InvalidOption, match="outside of what a database can compare"):
        page_after(nearest(select(table.c.id), table.c.v, QUERY), (1.0, Decimal(text)))


def vector_of(number: int) -> Any:
    """Return the vector of a row as a part of a statement."""
    return select(Item.embedding).where(Item.id == number).scalar_subquery()


def test_a_cursor_is_of_one_search():
    def first(stmt: Any) -> str:
        from sqla_vector.search.cursors import encode
        from sqla_vector.search.paging import _Place

        return encode(_Place(stmt, "page_after").search, 0.5, [3])

    stmt = nearest(select(Item), Item.embedding, QUERY, k=7)
    parts = [vector_part(Item.embedding, QUERY), text_part(Item, "cat")]
    others = [
        nearest(select(Item), Item.embedding, QUERY, k=7, metric="l2"),
        nearest(select(Item), Item.embedding, [0, 1, 0, 0], k=7),
        match_text(select(Item), Item, "cat"),
        match_text(select(Item), Item, "dog"),
        hybrid(select(Item), parts=parts),
        hybrid(select(Item), parts=parts, candidates=77),
        hybrid(select(Item), parts=[vector_part(Item.embedding, QUERY, weight=2), parts[1]]),
    ]
    everything = [stmt, *others]
    for one in everything:
        for other in everything:
            if one is other:
                assert page_after(one, first(other)) is not None
            else:
                with pytest.raises(InvalidOption, match="another search"):
                    page_after(one, first(other))
    # What is inside of a query counts, too.
    sparse = Column("s", SparseVector(5))
    Table("sparse", MetaData(), Column("id", Integer, primary_key=True), sparse)
    for one, other in (
        [nearest(select(Item), Item.embedding, nearest_to) for nearest_to in map(vector_of, (1, 2))],
        [nearest(select(sparse), sparse, query, metric="l2") for query in ([1, 0, 0, 0, 0], [0, 0, 0, 0, 1])],
    ):
        assert page_after(one, first(one)) is not None
        with pytest.raises(InvalidOption, match="another search"):
            page_after(one, first(other))
    # Filters and the size of a page may change.
    assert page_after(nearest(select(Item).where(Item.id > 3), Item.embedding, QUERY, k=3), first(stmt)) is not None


def test_what_has_no_place_by_key_is_refused():
    stmt = nearest(select(Item), Item.embedding, QUERY, k=7)
    for other in (
        rerank(stmt, Item.id, k=3),
        best_per_group(stmt, Item.words),
        nearest_each(select(Item), Item.embedding, [QUERY]),
        stmt.offset(3),
        select(Item),
        None,
    ):
        with pytest.raises(InvalidStatement):
            page_after(other, (1.0, 3))  # type: ignore[arg-type]
    for size in (0, -1, True, "3", 100_001):
        with pytest.raises(InvalidOption):
            stream(None, stmt, size=size)  # type: ignore[arg-type]
        with pytest.raises(InvalidOption):
            astream(None, stmt, size=size)  # type: ignore[arg-type]
    with pytest.raises(InvalidStatement):
        stream(None, select(Item))  # type: ignore[arg-type]


@SYNCHRONOUS
def test_a_cursor_needs_the_key_of_a_row(backend, engine):
    def check(session: Session) -> None:
        stmt = nearest(select(Item.words), Item.embedding, QUERY, k=1)
        with pytest.raises(InvalidStatement, match="primary key of the row"):
            cursor_of(stmt, session.execute(stmt).one())

    backend.run(engine, check)


@SYNCHRONOUS
def test_a_cursor_of_a_row_that_is_gone_meanwhile(backend, engine):
    stmt = nearest(select(Item), Item.embedding, QUERY, k=3)

    def check(session: Session) -> None:
        expected = [hit.entity.id for hit in search(session, nearest(select(Item), Item.embedding, QUERY, k=6))]
        hits = search(session, stmt)
        session.execute(delete(Item).where(Item.id == expected[2]))
        session.expire_all()
        following = search(session, page_after(stmt, cursor_of(stmt, hits[-1])))
        assert [hit.entity.id for hit in following] == expected[3:]

    backend.run(engine, check)
