"""Elasticsearch: a full load, searches, and how late a single change can be found."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from statistics import median
from typing import Any

from elasticsearch import Elasticsearch, helpers
from sqlalchemy import Engine, String, Text, create_engine, insert, update
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from benchmarks.data import clustered, queries
from benchmarks.harness import DIM, Figure, Run, Variant
from sqla_vector import Vector
from sqla_vector.elasticsearch import DenseVector, Keyword, Knn, Rebuild, Searcher, SearchIndex, Sync
from sqla_vector.tracking import outbox_table, outbox_triggers, track, untrack

GROUP = "Elasticsearch"
K = 10
LOADED = 20_000
CHANGES = 20
WORDS = ["the", "query", "reads", "files", "of", "rows", "and", "writes", "an", "index", "for", "each", "table"]


class Base(DeclarativeBase):
    """Of the mirrored table."""


class Mirrored(Base):
    """A row that is a document."""

    __tablename__ = "bench_mirrored"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    title: Mapped[str] = mapped_column(String(100))
    body: Mapped[str] = mapped_column(Text)
    lang: Mapped[str] = mapped_column(String(2))
    embedding: Mapped[Any | None] = mapped_column(Vector(DIM))


outbox = outbox_table(Base.metadata, "bench_mirrored_outbox")
index = SearchIndex(
    "bench-mirrored",
    Mirrored,
    fields={
        "title": "title",
        "body": "body",
        "lang": Keyword("lang"),
        "embedding": DenseVector("embedding", metric="cosine", index="int8_hnsw"),
    },
    outbox=outbox,
)
outbox_triggers(Base, outbox)


def rows(count: int) -> list[dict[str, Any]]:
    """Return rows with texts of the length of a paragraph."""
    vectors = clustered(count)
    return [
        {
            "id": n,
            "title": f"title {n}",
            "body": " ".join(WORDS[(n * step) % len(WORDS)] for step in range(1, 60)),
            "lang": ("en", "de", "fr")[n % 3],
            "embedding": vectors[n],
        }
        for n in range(count)
    ]


def clear(client: Elasticsearch) -> None:
    """Delete the indexes."""
    for name in client.indices.get(index=f"{index.name}*", expand_wildcards="all", features="aliases"):
        client.indices.delete(index=name)


def loads(run: Run, engine: Engine, client: Elasticsearch) -> Iterator[Figure]:
    count = run.size(LOADED)
    given = rows(count)
    with engine.begin() as connection:
        connection.execute(insert(Mirrored), given)
        connection.execute(outbox.delete())
    sessions = sessionmaker(engine)
    names = ("title", "body", "lang")
    ready = [
        {"_id": str(row["id"]), **{name: row[name] for name in names}, "embedding": row["embedding"].tolist()}
        for row in given
    ]

    def ours(_: Any) -> None:
        report = Rebuild(sessions, client, index, linger=0.0).run()
        if report.written != count:
            raise RuntimeError(f"{report.written} of {count} documents were written")

    def by_hand(_: Any) -> None:
        settings = {**index.settings(), "index.refresh_interval": "-1", "index.number_of_replicas": 0}
        mapping = index.mapping()
        mapping["dynamic"] = False
        client.indices.create(index=index.name, mappings=mapping, settings=settings)
        actions = ({"_index": index.name, **document} for document in ready)
        for is_written, _ in helpers.parallel_bulk(client, actions, thread_count=4, chunk_size=500):
            if not is_written:
                raise RuntimeError("a document was refused")
        client.indices.refresh(index=index.name)

    prepare = lambda: clear(client)  # noqa: E731
    found = run.compare(Variant(ours, prepare), Variant(by_hand, prepare))
    note = "ours reads the database, and compares each document with its row afterwards"
    yield found.speed(GROUP, "Rebuild", "helpers.parallel_bulk of ready dicts", count, 0.85, note)
    clear(client)
    Rebuild(sessions, client, index, linger=0.0).run()
    client.indices.forcemerge(index=index.name, max_num_segments=1)


def searches(run: Run, client: Elasticsearch) -> Iterator[Figure]:
    count = run.size(LOADED)
    vectors = cycle(queries(run.queries))
    searcher = Searcher(client, index)
    words = "query files"

    def ids(vector: Any) -> Any:
        return searcher.search_ids(knn=Knn("embedding", vector, num_candidates=100, oversample=0), k=K)

    def raw(vector: Any) -> Any:
        knn = {"field": "embedding", "query_vector": vector.tolist(), "k": K, "num_candidates": 100}
        return client.search(index=index.name, knn=knn, size=K, source=False)["hits"]["hits"]

    def both(vector: Any) -> Any:
        knn = Knn("embedding", vector, num_candidates=100, oversample=0)
        return searcher.search_ids(knn=knn, text=words, k=K, window=50)

    prepare = lambda: next(vectors)  # noqa: E731
    what = f"search for ids, k = {K}"
    found = run.compare_latency(Variant(ids, prepare), Variant(raw, prepare))
    yield found.duration(GROUP, what, "the client's search()", 1.1, rows=count)
    found = run.compare_latency(Variant(both, prepare), Variant(ids, prepare))
    yield found.duration(GROUP, f"hybrid search for ids, k = {K}", "the search for vectors alone", 2.2, rows=count)


def lag(run: Run, engine: Engine, client: Elasticsearch) -> Iterator[Figure]:
    sessions = sessionmaker(engine)
    sync = Sync(sessions, client, index, poll=0.05)
    thread = threading.Thread(target=sync.run)
    thread.start()
    delays = []
    try:
        for number in range(min(CHANGES, run.size(CHANGES))):
            title = f"changed{number}"
            with engine.begin() as connection:
                connection.execute(update(Mirrored).where(Mirrored.id == number).values(title=title))
            started = time.perf_counter()
            wait_for(lambda title=title: client.search(index=index.name, query={"match": {"title": title}}))
            delays.append(time.perf_counter() - started)
    finally:
        sync.stop()
        thread.join()
    milliseconds = median(delays) * 1000
    note = f"{max(delays) * 1000:.0f} ms at most of {len(delays)}; the index is refreshed every second"
    what = "from the commit of a change to a search that finds it"
    yield Figure(GROUP, what, "", f"{milliseconds:.0f} ms", "", milliseconds, "ms", None, note, run.size(LOADED))


def wait_for(search: Callable[[], Any]) -> None:
    """Search until something is found."""
    until = time.monotonic() + 60
    while not search()["hits"]["hits"]:
        if time.monotonic() > until:
            raise RuntimeError("a change was not found within a minute")
        time.sleep(0.01)


def measure(run: Run) -> Iterator[Figure]:
    """Measure with a node of its own, and PostgreSQL."""
    from tests.support.elasticsearch import own_node

    url = run.postgresql().set(drivername="postgresql+psycopg")
    engine = create_engine(url, plugins=["sqla_vector"])
    with own_node() as node, Elasticsearch(node.url, request_timeout=120) as client:
        Base.metadata.create_all(engine)
        sessions = sessionmaker(engine)
        track(sessions, embedders={}, outbox=outbox, models=Base)
        try:
            yield from loads(run, engine, client)
            yield from searches(run, client)
            yield from lag(run, engine, client)
        finally:
            untrack(sessions)
            Base.metadata.drop_all(engine)
            engine.dispose()
