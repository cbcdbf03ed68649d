"""best_per_group(): k groups, each by its nearest row, against a reference in Python."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Connection, ForeignKey, Integer, MetaData, String, Table, func, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqla_vector import Vector, nearest, search, vector_index
from sqla_vector.fusion import rrf, weighted
from sqla_vector.search import best_per_group, grouping, hybrid, rerank, vector_part
from tests.support.brute_force import assert_equal, engine_that_indexes
from tests.support.brute_force import nearest as brute_force

DIM = 4
SYNCHRONOUS = pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")


def make_rows(count: int) -> dict[int, tuple[int | None, Any]]:
    """Return rows of which those near the first axis are mostly of one group."""
    rng = np.random.default_rng(4)
    rows: dict[int, tuple[int | None, Any]] = {}
    for key in range(1, count + 1):
        if key <= count // 2:
            rows[key] = (1, (rng.normal(size=DIM) * 0.05 + np.eye(DIM)[0]).astype(np.float32))
        else:
            rows[key] = (2 + key % 12, rng.normal(size=DIM).astype(np.float32))
        match key % 20:
            case 3:
                rows[key] = (rows[key][0], None)
            case 7:
                rows[key] = (rows[key][0], np.zeros(DIM, np.float32))
            case 11:
                rows[key] = (None, rows[key][1])
    return rows


ROWS = make_rows(700)
QUERY = [1.0, 0.1, 0.0, 0.0]


def expected(query: Any, k: int, *, offset: int = 0, keep: Any = lambda key: True, **options: Any) -> Any:
    vectors = {key: vector for key, (_, vector) in ROWS.items()}
    best: dict[int | None, tuple[int, float]] = {}
    for key, d in brute_force(vectors, query, len(ROWS), "cosine", keep=keep, **options):
        best.setdefault(ROWS[key][0], (key, d))
    return list(best.values())[offset : offset + k]


def make_table(*, indexed: bool) -> Table:
    index = [vector_index("ix_chunk", "embedding", metric="cosine", include=["lang"])] if indexed else []
    return Table(
        "chunk",
        MetaData(),
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("document_id", Integer),
        Column("lang", String(4)),
        Column("embedding", Vector(DIM)),
        *index,
    )


def fill(connection: Connection, table: Table) -> None:
    table.create(connection)
    rows = [
        {"id": key, "document_id": group, "lang": "en" if key % 2 else "de", "embedding": vector}
        for key, (group, vector) in ROWS.items()
    ]
    connection.execute(insert(table), rows)


@pytest.mark.parametrize("indexed", [False, True], ids=["exact", "indexed"])
def test_there_are_k_groups_whenever_k_groups_match(backend, indexed):
    table = make_table(indexed=indexed)

    def check(connection: Connection) -> None:
        fill(connection, table)
        for k in (1, 2, 5, 14, 20):
            stmt = nearest(select(table.c.id), table.c.embedding, QUERY, k=k, metric="cosine")
            found = connection.execute(best_per_group(stmt, table.c.document_id)).all()
            assert len(found) == min(k, 14)
            assert len({ROWS[row.id][0] for row in found}) == len(found)
            assert_equal(connection.execute(best_per_group(stmt, table.c.document_id, exact=True)), expected(QUERY, k))
            if not (indexed and backend.family == "postgresql"):  # hnsw is approximate, and another one each time
                assert_equal(found, expected(QUERY, k))

    backend.run_connection(engine_that_indexes(backend), check)


@SYNCHRONOUS
def test_it_widens_as_far_as_it_must(backend, monkeypatch):
    """Half of the rows are of one group; the first candidates are all of it, or some, or enough."""
    table = make_table(indexed=backend.family == "sqlite")  # hnsw is approximate, and another one each time

    def check(connection: Connection) -> None:
        fill(connection, table)

        @settings(max_examples=40, suppress_health_check=list(HealthCheck))
        @given(
            st.sampled_from([QUERY, [0.0, 1.0, 0.0, 0.0], [-1.0, 0.2, 0.3, 0.0]]),
            st.integers(1, 8),
            st.sampled_from([(1, 2, 1), (1, 3, 5), (4, 64, 40), (60, 80, 1)]),
            st.sampled_from([None, 1, 6]),
            st.sampled_from([None, "de"]),
            st.sampled_from([None, 0.9]),
        )
        def check_one(query: Any, k: int, sizes: Any, offset: Any, lang: Any, bound: Any) -> None:
            for name, size in zip(("NARROW", "WIDE", "LEAST_NARROW"), sizes, strict=True):
                monkeypatch.setattr(grouping, name, size)
            stmt = nearest(select(table.c.id), table.c.embedding, query, k=k, max_distance=bound, ef_search=1000)
            stmt = best_per_group(stmt, table.c.document_id)
            stmt = stmt if lang is None else stmt.where(table.c.lang == lang)
            stmt = stmt if offset is None else stmt.offset(offset)

            def keep(key: int) -> bool:
                return lang is None or key % 2 == 0

            options = {} if bound is None else {"max_distance": bound}
            assert_equal(connection.execute(stmt), expected(query, k, offset=offset or 0, keep=keep, **options))

        check_one()

    backend.run_connection(engine_that_indexes(backend), check)


class Base(DeclarativeBase):
    pass


class Document(Base):
    __tablename__ = "document"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    title: Mapped[str]


class Chunk(Base):
    __tablename__ = "part"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    document_id: Mapped[int | None] = mapped_column(ForeignKey(Document.id))
    embedding: Mapped[np.ndarray | None] = mapped_column(Vector(DIM))
    document: Mapped[Document | None] = relationship()
    __table_args__ = (vector_index("ix_part", "embedding", metric="cosine"),)


@SYNCHRONOUS
def test_documents_by_their_nearest_chunk(backend):
    engine = engine_that_indexes(backend)
    backend.create_all(engine, Base.metadata)

    def check(session: Session) -> None:
        session.add_all(Document(id=group, title=f"t{group}") for group in {g for g, _ in ROWS.values()} if group)
        session.flush()
        session.add_all(Chunk(id=key, document_id=group, embedding=vector) for key, (group, vector) in ROWS.items())
        session.flush()
        stmt = nearest(select(Document, Chunk.id).join(Chunk.document), Chunk.embedding, QUERY, k=4)
        rows = session.execute(best_per_group(stmt, Chunk.document_id)).all()

        def keep(key: int) -> bool:
            return ROWS[key][0] is not None

        wanted = expected(QUERY, 4, keep=keep)
        assert_equal([row[1:] for row in rows], wanted)
        assert [row[0].id for row in rows] == [ROWS[key][0] for key, _ in wanted]
        hits = search(session, best_per_group(stmt, Chunk.document_id))
        assert [hit.distance for hit in hits] == pytest.approx([d for _, d in wanted], abs=2e-6)
        assert [hit.score for hit in hits] == [hit.similarity for hit in hits]
        by_title = best_per_group(stmt, Chunk.document_id).where(Document.title != "t1")
        assert_equal(
            [row[1:] for row in session.execute(by_title)],
            expected(QUERY, 4, keep=lambda key: ROWS[key][0] not in (None, 1)),
        )
        # A second stage over the groups.
        again = rerank(best_per_group(stmt, Chunk.document_id), Document.id, k=2)
        assert [row[0].id for row in session.execute(again)] == sorted(
            (ROWS[key][0] for key, _ in wanted), reverse=True
        )[:2]
        assert session.scalar(select(func.count()).select_from(best_per_group(stmt, Chunk.document_id).subquery())) == 4

    backend.run(engine, check)


@SYNCHRONOUS
def test_groups_of_a_hybrid_search_are_those_of_its_candidates(backend):
    table = make_table(indexed=backend.family == "sqlite")

    def check(connection: Connection) -> None:
        fill(connection, table)
        parts = [vector_part(table.c.embedding, QUERY), vector_part(table.c.embedding, [0, 1, 0, 0], name="other")]
        for k, candidates, fusion in ((3, 60, rrf()), (5, 200, weighted(1)), (20, 300, rrf(5))):
            base = select(table.c.id, table.c.document_id)
            stmt = hybrid(base, parts=parts, k=k, candidates=candidates, fusion=fusion)
            rows = connection.execute(stmt.where(stmt.selected_columns.score > -1).limit(None)).all()
            assert len(rows) >= candidates
            best: dict[Any, Any] = {}
            for row in rows:
                best.setdefault(row.document_id, row)
            grouped = best_per_group(stmt, table.c.document_id)
            found = connection.execute(grouped).all()
            assert found == list(best.values())[:k]
            assert len(found) >= 2
            assert connection.execute(grouped.offset(2)).all() == list(best.values())[2 : k + 2]
            assert connection.execute(best_per_group(stmt, table.c.document_id, 2)).all() == found[:2]
            second = rerank(grouped, table.c.id, k=2)
            assert [row.id for row in connection.execute(second)] == sorted((row.id for row in found), reverse=True)[:2]
            of_one = connection.execute(grouped.where(table.c.document_id == 2)).all()
            assert [row.document_id for row in of_one] == [2]

    backend.run_connection(engine_that_indexes(backend), check)
