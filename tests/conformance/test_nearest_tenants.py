"""Row-level security: a tenant neither sees, counts nor is ranked against the rows of another."""

from __future__ import annotations

import numpy as np
import pytest
from sqlalchemy import Connection, Engine, MetaData, String, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_vector import Vector, nearest, nearest_each, nearest_to, search, vector_index
from tests.support.brute_force import assert_equal
from tests.support.brute_force import nearest as brute_force

DIM = 16
ROWS = 20_000
OWN = 20
ROLE = "sqla_vector_tenant"


class Base(DeclarativeBase):
    metadata = MetaData()


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    tenant: Mapped[str] = mapped_column(String(10))
    language: Mapped[str] = mapped_column(String(2))
    embedding: Mapped[np.ndarray] = mapped_column(Vector(DIM))
    __table_args__ = (vector_index("ix_note", "embedding", metric="l2", m=8, ef_construction=32),)


RNG = np.random.default_rng(5)
VECTORS = dict(enumerate(RNG.normal(size=(ROWS, DIM)).astype(np.float32), start=1))
QUERY = np.full(DIM, 0.5, np.float32)
# The small tenant's rows are the farthest from the query: all others are met before them.
FARTHEST = {key for key, _ in brute_force(VECTORS, QUERY, ROWS, "l2")[-OWN:]}


def tenant_of(key: int) -> str:
    return "small" if key in FARTHEST else ("a", "b")[key % 2]


def stock(connection: Connection) -> None:
    index = next(iter(Note.__table__.indexes))
    Note.__table__.indexes.remove(index)
    try:
        Base.metadata.create_all(connection)
    finally:
        Note.__table__.indexes.add(index)
    rows = [
        {"id": k, "tenant": tenant_of(k), "language": ("de", "en")[k % 2], "embedding": v} for k, v in VECTORS.items()
    ]
    connection.execute(Note.__table__.insert(), rows)
    index.create(connection)
    for statement in (
        "ALTER TABLE note ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY own ON note USING (tenant = current_setting('app.tenant'))",
        # Roles belong to the server, not to the database, and several tests run on one server.
        f"DO $$ BEGIN CREATE ROLE {ROLE} NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        f"GRANT SELECT ON note TO {ROLE}",
    ):
        connection.execute(text(statement))


def act_as(session: Session, tenant: str) -> None:
    session.execute(text(f"SET LOCAL ROLE {ROLE}"))
    session.execute(text("SELECT set_config('app.tenant', :tenant, true)"), {"tenant": tenant})


@pytest.mark.backends("psycopg", "asyncpg")
def test_a_tenant_gets_its_own_rows_and_as_many_as_it_asks_for(backend, engine):
    backend.run_connection(engine, stock)
    own = {key: vector for key, vector in VECTORS.items() if key in FARTHEST}
    first = min(own)

    def check(session: Session) -> None:
        act_as(session, "small")
        assert session.scalar(select(func.count()).select_from(Note)) == OWN
        for setting in ("on", "off"):
            session.execute(text(f"SET LOCAL enable_seqscan = {setting}"))
            for k in (1, 10, OWN, OWN + 5):
                for exact in (False, True):
                    hits = search(session, nearest(select(Note), Note.embedding, QUERY, k=k, exact=exact))
                    assert len(hits) == min(k, OWN)
                    assert {hit.entity.tenant for hit in hits} == {"small"}
                    if exact or k >= OWN:
                        assert_equal([(h.entity.id, h.distance) for h in hits], brute_force(own, QUERY, k, "l2"))
            english = nearest(select(Note.id).where(Note.language == "en"), Note.embedding, QUERY, k=50)
            expected = brute_force(own, QUERY, 50, "l2", keep=lambda key: key % 2 == 1)
            assert_equal(session.execute(english), expected)
            of_others = nearest(select(Note.id).where(Note.tenant == "a"), Note.embedding, QUERY, k=5)
            assert session.execute(of_others).all() == []
            each = session.execute(nearest_each(select(Note.id), Note.embedding, [QUERY, -QUERY], k=OWN)).all()
            for number, query in enumerate((QUERY, -QUERY)):
                rows = [row for row in each if row.query == number]
                assert_equal(rows, brute_force(own, query, OWN, "l2"))
            like = session.execute(nearest_to(Note.embedding, first, k=OWN)).all()
            others = brute_force(own, own[first], OWN, "l2", keep=lambda key: key != first)
            assert_equal([(row[0].id, row.distance) for row in like], others)
            # Not even the vector of another's row can be searched by.
            foreign = next(key for key in VECTORS if key not in own)
            assert session.execute(nearest_to(Note.embedding, foreign, k=5)).all() == []
            counted = nearest(select(Note.id), Note.embedding, QUERY, k=1_000).subquery()
            assert session.scalar(select(func.count()).select_from(counted)) == OWN
            page = nearest(select(Note.id), Note.embedding, QUERY, k=7, exact=True)
            pages = [row for offset in range(0, 30, 7) for row in session.execute(page.offset(offset))]
            assert_equal(pages, brute_force(own, QUERY, OWN, "l2"))

    backend.run(engine, check)

    def as_another(session: Session) -> None:
        act_as(session, "a")
        hits = search(session, nearest(select(Note), Note.embedding, QUERY, k=100))
        assert len(hits) == 100
        assert {hit.entity.tenant for hit in hits} == {"a"}

    backend.run(engine, as_another)

    def as_nobody(session: Session) -> None:
        act_as(session, "nobody' OR '1'='1")
        assert session.execute(nearest(select(Note.id), Note.embedding, QUERY, k=5)).all() == []
        assert session.execute(nearest_each(select(Note.id), Note.embedding, [QUERY], k=5)).all() == []

    backend.run(engine, as_nobody)
    assert not isinstance(engine, Engine) or engine.pool.checkedout() == 0
