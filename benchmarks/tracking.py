"""What tracking costs a flush, and how fast a worker and a check are, beside the same by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sqlalchemy import (
    Engine,
    MetaData,
    String,
    Text,
    bindparam,
    create_engine,
    delete,
    event,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from benchmarks.harness import DIM, Figure, Floor, Run, Variant
from sqla_vector import Vector
from sqla_vector.embedding import Fingerprint, Model, embedding_column, fingerprint
from sqla_vector.tracking import Worker, check, is_current, outbox_table, track

GROUP = "Tracking"
FLUSHED = 1_000
DRAINED = 4_000
CHECKED = 20_000
BATCH = 500


class Base(DeclarativeBase):
    """Of the tables below."""

    metadata = MetaData()


class Flushed(Base):
    """Embedded as the session flushes."""

    __tablename__ = "bench_flushed"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    title: Mapped[str] = mapped_column(String(100))
    body: Mapped[str] = mapped_column(Text)
    embedding: Mapped[Any | None] = embedding_column(Vector(DIM), source=("title", "body"), embedder="zero")
    embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())


class Queued(Base):
    """Embedded by a worker."""

    __tablename__ = "bench_queued"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    title: Mapped[str] = mapped_column(String(100))
    body: Mapped[str] = mapped_column(Text)
    embedding: Mapped[Any | None] = embedding_column(
        Vector(DIM), source=("title", "body"), embedder="zero", when="worker"
    )
    embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())


class Other(Base):
    """Has no vectors."""

    __tablename__ = "bench_other"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    title: Mapped[str] = mapped_column(String(100))
    body: Mapped[str] = mapped_column(Text)


outbox = outbox_table(Base.metadata, "bench_outbox")


class ZeroCost:
    """Gives vectors that were made before."""

    name, version, dimensions = "zero", "1", DIM

    def __init__(self, vectors: Any) -> None:
        self.vectors = vectors

    def embed(self, texts: list[str]) -> Any:
        return self.vectors[: len(texts)]


def rows(count: int) -> list[dict[str, Any]]:
    """Return rows with texts of the length of a paragraph."""
    return [{"id": n, "title": f"title {n}", "body": f"The body of row {n}. " * 20} for n in range(count)]


def texts(row: dict[str, Any]) -> str:
    return f"{row['title']}\n\n{row['body']}"


def clearing(engine: Engine, make: Callable[[], Any]) -> Callable[[], Any]:
    """Return what empties the tables and makes the argument of a round."""

    def prepare() -> Any:
        with engine.begin() as connection:
            for table in reversed(Base.metadata.sorted_tables):
                connection.execute(delete(table))
        return make()

    return prepare


def adding(sessions: Any) -> Callable[[list[Any]], None]:
    def add(objects: list[Any]) -> None:
        with sessions() as session:
            session.add_all(objects)
            session.flush()
            session.rollback()

    return add


def flushes(run: Run, name: str, engine: Engine, vectors: Any) -> Iterator[Figure]:
    plain, tracked = sessionmaker(engine), sessionmaker(engine)
    track(tracked, embedders={"zero": ZeroCost(vectors)}, outbox=outbox, models=Base)
    count = run.size(FLUSHED)
    given = rows(count)
    model = Model("zero", "1")

    def with_vectors() -> list[Any]:
        return [
            Flushed(**row, embedding=vectors[n], embedding_fingerprint=fingerprint(model, texts(row)))
            for n, row in enumerate(given)
        ]

    def compare(what: str, against: str, ours: Variant, other: Variant, floor: float) -> Figure:
        found = run.compare(ours, other, rounds=8 * run.repeat, warm_up=3)
        return found.duration(GROUP, f"{what}, {name}", against, floor, rows=count)

    yield compare(
        "flush with when=flush",
        "vectors given",
        Variant(adding(tracked), lambda: [Flushed(**row) for row in given]),
        Variant(adding(plain), with_vectors),
        1.25,
    )
    yield compare(
        "flush with when=worker",
        "no tracking",
        Variant(adding(tracked), lambda: [Queued(**row) for row in given]),
        Variant(adding(plain), lambda: [Queued(**row) for row in given]),
        1.25,
    )
    yield compare(
        "flush of another model",
        "no tracking",
        Variant(adding(tracked), lambda: [Other(**row) for row in given]),
        Variant(adding(plain), lambda: [Other(**row) for row in given]),
        1.03,
    )


def by_hand(engine: Engine, vectors: Any) -> Callable[[Any], None]:
    """Return a loop as somebody writes it: a query, a call, an UPDATE of many, until nothing is left."""
    is_sqlite = engine.dialect.name == "sqlite"
    mark = "?" if is_sqlite else "%s"
    update = f"UPDATE bench_queued SET embedding = {mark}, embedding_fingerprint = {mark} WHERE id = {mark}"
    query = "SELECT id, title, body FROM bench_queued WHERE embedding_fingerprint IS NULL ORDER BY id LIMIT"
    model = Model("zero", "1")

    def loop(_: Any) -> None:
        connection = engine.raw_connection()
        if not is_sqlite:
            from pgvector.psycopg import register_vector

            register_vector(connection.driver_connection)
        cursor = connection.cursor()
        while True:
            cursor.execute(f"{query} {BATCH}")
            found = cursor.fetchall()
            if not found:
                break
            made = vectors[: len(found)]
            sent = [vector.tobytes() for vector in made] if is_sqlite else list(made)
            marks = [fingerprint(model, f"{title}\n\n{body}") for _, title, body in found]
            keys = [row[0] for row in found]
            cursor.executemany(update, list(zip(sent, marks, keys, strict=True)))
            connection.commit()
        connection.commit()
        connection.close()

    return loop


def by_hand_in_core(engine: Engine, vectors: Any) -> Callable[[Any], None]:
    """Return the same loop through SQLAlchemy."""
    table = Queued.__table__
    query = select(table.c.id, table.c.title, table.c.body).where(table.c.embedding_fingerprint.is_(None))
    query = query.order_by(table.c.id).limit(BATCH)
    stmt = update(table).where(table.c.id == bindparam("key"))
    stmt = stmt.values(embedding=bindparam("vector"), embedding_fingerprint=bindparam("mark"))
    model = Model("zero", "1")

    def loop(_: Any) -> None:
        while True:
            with engine.begin() as connection:
                found = connection.execute(query).all()
                if not found:
                    break
                made = vectors[: len(found)]
                marks = [fingerprint(model, f"{title}\n\n{body}") for _, title, body in found]
                changed = zip(found, made, marks, strict=True)
                connection.execute(stmt, [{"key": row[0], "vector": v, "mark": mark} for row, v, mark in changed])

    return loop


def by_hand_with_objects(engine: Engine, vectors: Any) -> Callable[[Any], None]:
    """Return the same loop over objects, as most programs have it."""
    query = select(Queued).where(Queued.embedding_fingerprint.is_(None)).order_by(Queued.id).limit(BATCH)
    sessions, model = sessionmaker(engine), Model("zero", "1")

    def loop(_: Any) -> None:
        while True:
            with sessions.begin() as session:
                found = session.scalars(query).all()
                if not found:
                    break
                for entity, vector in zip(found, vectors, strict=False):
                    entity.embedding = vector
                    entity.embedding_fingerprint = fingerprint(model, f"{entity.title}\n\n{entity.body}")

    return loop


def workers(run: Run, name: str, engine: Engine, vectors: Any, least: float) -> Iterator[Figure]:
    sessions = sessionmaker(engine)
    track(sessions, embedders={"zero": ZeroCost(vectors)}, outbox=outbox, models=Base)
    count = run.size(DRAINED)
    given = rows(count)

    def fill() -> None:
        with sessions() as session, session.begin():
            session.add_all([Queued(**row) for row in given])

    def drain(_: Any) -> None:
        outcome = Worker(sessions, batch_size=BATCH).run(until_empty=True)
        if outcome.written != count:
            raise RuntimeError(f"the worker wrote {outcome.written} of {count} rows")

    ours = Variant(drain, clearing(engine, fill))
    core = Variant(by_hand_in_core(engine, vectors), clearing(engine, fill))
    found = run.compare(ours, core)
    yield found.speed(GROUP, f"worker, {name}", "a loop through SQLAlchemy, without a queue", count, 0.5)
    objects = Variant(by_hand_with_objects(engine, vectors), clearing(engine, fill))
    against = "a loop over objects, without a queue"
    yield run.compare(ours, objects).speed(GROUP, f"worker, {name}", against, count, 0.5)
    driver = Variant(by_hand(engine, vectors), clearing(engine, fill))
    against = "a loop through the driver, without a queue"
    yield run.compare(ours, driver).speed(GROUP, f"worker, {name}", against, count, None)
    rate = count / found.ours
    what = f"worker, {name}: rows a second"
    yield Figure(GROUP, what, "", f"{rate:,.0f} rows/s", "", rate, "rows/s", Floor(least), rows=count)


def checks(run: Run, name: str, engine: Engine, vectors: Any) -> Iterator[Figure]:
    sessions = sessionmaker(engine)
    track(sessions, embedders={"zero": ZeroCost(vectors)}, outbox=outbox, models=Base)
    count = run.size(CHECKED)
    model = Model("zero", "1")
    with engine.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(delete(table))
        made = [
            {**row, "embedding": vectors[n % len(vectors)], "embedding_fingerprint": fingerprint(model, texts(row))}
            for n, row in enumerate(rows(count))
        ]
        connection.execute(insert(Queued.__table__), made)

    def scan(_: Any) -> None:
        if not check(sessions, columns=[Queued.embedding]).is_clean:
            raise RuntimeError("the rows are current, and the check says otherwise")

    def read(_: Any) -> None:
        connection = engine.raw_connection()
        cursor = connection.cursor()
        cursor.execute("SELECT id, title, body, embedding_fingerprint FROM bench_queued ORDER BY id")
        for _id, title, body, mark in cursor:
            if fingerprint(model, f"{title}\n\n{body}") != mark:
                raise RuntimeError("not current")
        connection.close()

    found = run.compare(Variant(scan), Variant(read))
    yield found.speed(GROUP, f"check, {name}", "one query and a loop by hand", count, None)
    rate = count / found.ours
    what = f"check, {name}: rows a second"
    yield Figure(GROUP, what, "", f"{rate:,.0f} rows/s", "", rate, "rows/s", Floor(50_000), rows=count)
    with sessions() as session:
        entity = session.get_one(Queued, count // 2)

        def one(_: Any) -> None:
            if not is_current(session, entity, Queued.embedding):
                raise RuntimeError("the row is current, and the check says otherwise")

        def get(_: Any) -> None:
            session.execute(text("SELECT title, body FROM bench_queued WHERE id = 1")).one()

        single = run.compare_latency(Variant(one), Variant(get))
    milliseconds = single.ours * 1000
    what = f"check of one row, {name}"
    yield Figure(GROUP, what, "", f"{milliseconds:.3g} ms", "", milliseconds, "ms", Floor(5, at_most=True), rows=count)


def measure(run: Run) -> Iterator[Figure]:
    """Measure on both databases."""
    vectors = np.random.default_rng(0).normal(size=(FLUSHED, DIM)).astype(np.float32)
    with run.directory() as directory:
        urls = {
            "PostgreSQL": (run.postgresql().set(drivername="postgresql+psycopg"), 4_000),
            "SQLite": (f"sqlite:///{directory / 'tracking.db'}", 2_500),
        }
        for name, (url, least) in urls.items():
            engine = create_engine(url, plugins=["sqla_vector"])
            if engine.dialect.name == "sqlite":
                event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA journal_mode = WAL"))
            try:
                Base.metadata.create_all(engine)
                yield from flushes(run, name, engine, vectors)
                yield from workers(run, name, engine, vectors, least)
                yield from checks(run, name, engine, vectors)
                Base.metadata.drop_all(engine)
            finally:
                engine.dispose()
