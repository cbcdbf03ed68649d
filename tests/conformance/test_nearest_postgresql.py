"""What nearest() promises on PostgreSQL: k rows, an index that serves, settings that end with the transaction."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sqlalchemy import (
    Column,
    Connection,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    delete,
    event,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from sqla_vector import BitVector, HalfVector, SparseVector, Vector, nearest, nearest_each, vector_index
from sqla_vector.search import best_per_group, hybrid, rerank
from tests.support.brute_force import assert_equal, make_vectors
from tests.support.brute_force import nearest as brute_force

DIM = 16
ROWS = 20_000
SETTINGS = ("hnsw.ef_search", "hnsw.iterative_scan", "hnsw.max_scan_tuples", "ivfflat.probes", "ivfflat.iterative_scan")

# The driver changes how parameters travel, not what is searched: the large tables are built on these only.
LARGE = pytest.mark.backends("psycopg", "asyncpg_noplugin")


def plan_of(connection: Connection, stmt) -> str:
    """Return the server's plan of a statement with its values written out."""
    script = str(stmt.compile(connection, compile_kwargs={"literal_binds": True})).replace("%%", "%")
    return "\n".join(connection.execute(text("EXPLAIN " + script.replace(":", "\\:"))).scalars())


def make_large(name: str = "item", metric: str = "l2", **options: object) -> Table:
    return Table(
        name,
        MetaData(),
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("share", Integer),
        Column("embedding", Vector(DIM)),
        vector_index(f"ix_{name}", "embedding", metric=metric, m=8, ef_construction=32, **options),
    )


def fill(connection: Connection, table: Table, vectors: dict[int, np.ndarray], share_of) -> None:
    """Make the table with its index: the rows first, which builds the graph faster."""
    (index,) = table.indexes
    table.indexes.remove(index)
    table.create(connection)
    table.indexes.add(index)
    connection.execute(insert(table), [{"id": k, "share": share_of(k), "embedding": v} for k, v in vectors.items()])
    index.create(connection)
    connection.execute(text(f"ANALYZE {table.name}"))


@LARGE
def test_nearest_returns_k_rows_under_a_selective_filter(backend, engine):
    """At 0.5 % and 0.01 % of 20,000 rows, at LIMIT 100, after deletes, and with the user's scan limit of 100."""
    table = make_large()
    rng = np.random.default_rng(1)
    vectors = dict(enumerate(rng.normal(size=(ROWS, DIM)).astype(np.float32), start=1))
    query = rng.normal(size=DIM).astype(np.float32)

    def share_of(key: int) -> int:
        # 0.01 % of the rows are 2, 0.5 % are 1, and these are the farthest of all.
        return 2 if key in rarest else 1 if key in rare else 0

    ranked = [key for key, _ in brute_force(vectors, query, ROWS, "l2")]
    rare, rarest = set(ranked[-102:-2]), set(ranked[-2:])

    def check(connection: Connection) -> None:
        fill(connection, table, vectors, share_of)

        def found(stmt=None, **options):
            base = select(table.c.id) if stmt is None else stmt
            return connection.execute(nearest(base, table.c.embedding, query, **options)).all()

        is_rare, is_rarest = select(table.c.id).where(table.c.share == 1), select(table.c.id).where(table.c.share == 2)
        # The planner would rather scan the filter's few rows: the promise is about the index scan.
        for setting in ("on", "off"):
            connection.execute(text(f"SET LOCAL enable_seqscan = {setting}"))
            assert len(found(is_rare, k=10)) == 10
            assert_equal(found(is_rare, k=100), brute_force(vectors, query, 100, "l2", keep=rare.__contains__))
            assert_equal(found(is_rarest, k=10), brute_force(vectors, query, 10, "l2", keep=rarest.__contains__))
        connection.execute(text("SET LOCAL hnsw.max_scan_tuples = 100"))
        for stmt, count in ((is_rare, 100), (is_rare, 10), (is_rarest, 2)):
            assert len(found(stmt, k=count)) == count
            each = nearest_each(stmt, table.c.embedding, [query, vectors[7]], k=count)
            assert [row.query for row in connection.execute(each)] == [0] * count + [1] * count
        assert len(found(k=100)) == 100
        connection.execute(text("RESET hnsw.max_scan_tuples"))

        # LIMIT 100 at the default ef_search of 40, which by itself returns 40.
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        plain = f"SELECT id FROM item ORDER BY embedding <-> '{query.tolist()}' LIMIT 100"
        connection.execute(text("SET LOCAL hnsw.iterative_scan = off"))
        connection.execute(text("SET LOCAL hnsw.ef_search = 40"))
        assert len(connection.execute(text(plain)).all()) == 40
        hundred = found(k=100)
        assert len(hundred) == 100
        assert [row.distance for row in hundred] == sorted(row.distance for row in hundred)
        assert len({row.id for row in hundred} & set(ranked[:100])) >= 85
        for k in (1, 40, 41, 1_500):
            assert len(found(k=k)) == k

        # The dead stay in the graph: most of what the scan meets first is gone.
        connection.execute(delete(table).where(table.c.id.in_(ranked[:3_000])))
        after = found(k=50)
        assert len(after) == 50
        assert len({row.id for row in after} & set(ranked[3_000:3_050])) >= 40
        assert len(found(is_rare, k=100)) == 100

    backend.run_connection(engine, check)


@LARGE
def test_equal_vectors_and_unreachable_rows_count_too(backend, engine):
    """Many equal and zero vectors make islands in the graph, which an index scan alone never enters."""
    table = make_large(metric="inner_product")
    vectors = make_vectors(600, DIM)
    query = np.random.default_rng(2).normal(size=DIM).astype(np.float32)

    def check(connection: Connection) -> None:
        table.create(connection)
        connection.execute(insert(table), [{"id": key, "embedding": vector} for key, vector in vectors.items()])
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        found = connection.execute(nearest(select(table.c.id), table.c.embedding, query, k=1_000)).all()
        assert_equal(found, brute_force(vectors, query, 1_000, "inner_product"))

    backend.run_connection(engine, check)


INDEXES = {
    "hnsw l2": (Vector, {"metric": "l2"}),
    "hnsw cosine": (Vector, {"metric": "cosine"}),
    "hnsw l1": (Vector, {"metric": "l1"}),
    "hnsw inner product": (Vector, {"metric": "inner_product"}),
    "hnsw half": (Vector, {"metric": "cosine", "precision": "half"}),
    "hnsw int8 is half": (Vector, {"metric": "l2", "precision": "int8"}),
    "hnsw binary": (Vector, {"metric": "cosine", "precision": "binary"}),
    "ivfflat": (Vector, {"metric": "l2", "method": "ivfflat", "lists": 4}),
    "ivfflat half": (Vector, {"metric": "cosine", "method": "ivfflat", "lists": 4, "precision": "half"}),
    "ivfflat binary": (Vector, {"metric": "cosine", "method": "ivfflat", "lists": 4, "precision": "binary"}),
    "halfvec": (HalfVector, {"metric": "l2"}),
    "halfvec binary": (HalfVector, {"metric": "l2", "precision": "binary"}),
    "sparsevec": (SparseVector, {"metric": "cosine"}),
    "bit hamming": (BitVector, {"metric": "hamming"}),
    "bit jaccard": (BitVector, {"metric": "jaccard"}),
    "bit ivfflat": (BitVector, {"metric": "hamming", "method": "ivfflat", "lists": 4}),
}


@pytest.mark.backends(family="postgresql")
def test_the_declared_index_serves_every_form_of_the_search(backend, engine):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(400, DIM)).astype(np.float32)

    def check(connection: Connection) -> None:
        for number, (name, (kind, options)) in enumerate(INDEXES.items()):
            table = Table(
                f"item{number}",
                MetaData(),
                Column("id", Integer, primary_key=True),
                Column("language", String),
                Column("embedding", kind(DIM)),
                vector_index(f"ix_served_{number}", "embedding", **options),
            )
            table.create(connection)
            is_bits = kind is BitVector
            rows = [
                {"id": key, "language": "en" if key % 2 else "fr", "embedding": v > 0 if is_bits else v}
                for key, v in enumerate(matrix)
            ]
            connection.execute(insert(table), rows)
            connection.execute(text("SET LOCAL enable_seqscan = off"))
            query = matrix[3] > 0 if is_bits else matrix[3]
            column, everything = table.c.embedding, select(table.c.id)
            english = everything.where(table.c.language == "en")
            forms = {
                "plain": nearest(everything, column, query, k=5, metric=options["metric"]),
                "filtered": nearest(english, column, query, k=5),
                "bounded": nearest(everything, column, query, k=5, max_distance=1e6),
                "paged": nearest(everything, column, query, k=5).offset(10),
                "alias": nearest(select((a := table.alias("a")).c.id), a.c.embedding, query, k=5),
                "each": nearest_each(english, column, [query, query], k=5),
            }
            for form, stmt in forms.items():
                plan = plan_of(connection, stmt)
                assert f"Index Scan using ix_served_{number} on" in plan, f"{name}, {form}:\n{plan}"
            exact = plan_of(connection, nearest(everything, column, query, k=5, exact=True))
            assert "ix_served" not in exact, f"{name}:\n{exact}"

    backend.run_connection(engine, check)


@pytest.mark.backends(family="postgresql")
def test_the_index_of_another_metric_is_not_used(backend, engine):
    table = make_large(metric="cosine")

    def check(connection: Connection) -> None:
        table.create(connection)
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        plan = plan_of(connection, nearest(select(table.c.id), table.c.embedding, np.ones(DIM), metric="l2"))
        assert "ix_item" not in plan

    backend.run_connection(engine, check)


@pytest.mark.backends(family="postgresql")
def test_settings_of_a_search_end_with_its_transaction(backend):
    engine = backend.make_engine(pool_size=1, max_overflow=0)
    hnsw, ivfflat = (
        make_large("graph"),
        Table(
            "lists",
            MetaData(),
            Column("id", Integer, primary_key=True),
            Column("embedding", Vector(DIM)),
            vector_index("ix_lists", "embedding", metric="l2", method="ivfflat", lists=9),
        ),
    )
    vectors = np.random.default_rng(0).normal(size=(50, DIM)).astype(np.float32)

    def settings(connection: Connection) -> dict[str, str | None]:
        # Null or empty before the extension's library is loaded, hence the query that loads it.
        connection.execute(text("SELECT '[1]'::vector"))
        return {name: connection.scalar(text(f"SELECT current_setting('{name}', true)")) for name in SETTINGS}

    def prepare(connection: Connection) -> None:
        for table in (hnsw, ivfflat):
            table.create(connection)
            connection.execute(insert(table), [{"id": n, "embedding": v} for n, v in enumerate(vectors)])

    backend.run_connection(engine, prepare)
    before = backend.run_connection(engine, settings)
    assert before["hnsw.ef_search"] == "40"
    assert before["ivfflat.probes"] == "1"

    def search(connection: Connection) -> dict[str, str | None]:
        connection.execute(nearest(select(hnsw.c.id), hnsw.c.embedding, vectors[0], k=100)).all()
        connection.execute(nearest(select(ivfflat.c.id), ivfflat.c.embedding, vectors[0], k=5)).all()
        return settings(connection)

    during = backend.run_connection(engine, search)
    assert (during["hnsw.ef_search"], during["ivfflat.probes"]) == ("100", "3")
    assert during["hnsw.iterative_scan"] == "strict_order"
    assert backend.run_connection(engine, settings) == before

    def chosen(connection: Connection) -> dict[str, str | None]:
        connection.execute(nearest(select(hnsw.c.id), hnsw.c.embedding, vectors[0], k=5, ef_search=77)).all()
        connection.execute(nearest(select(ivfflat.c.id), ivfflat.c.embedding, vectors[0], k=5, probes=2)).all()
        return settings(connection)

    during = backend.run_connection(engine, chosen)
    assert (during["hnsw.ef_search"], during["ivfflat.probes"]) == ("77", "2")
    assert backend.run_connection(engine, settings) == before

    class Undone(Exception):
        pass

    def fail(connection: Connection) -> None:
        search(connection)
        raise Undone

    with pytest.raises(Undone):
        backend.run_connection(engine, fail)
    assert backend.run_connection(engine, settings) == before

    # What the user has set for the session stands when it is more, and is back afterwards.
    def ask_for_more(connection: Connection) -> None:
        connection.execute(text("SET hnsw.ef_search = 500"))
        connection.execute(text("SET ivfflat.probes = 7"))

    backend.run_connection(engine, ask_for_more)
    during = backend.run_connection(engine, search)
    assert (during["hnsw.ef_search"], during["ivfflat.probes"]) == ("500", "7")
    assert backend.run_connection(engine, settings)["hnsw.ef_search"] == "500"


@pytest.mark.backends(family="postgresql")
def test_repeated_statements_stay_right_under_generic_plans(backend, engine):
    """Drivers prepare a statement after a few executions, and the server then plans it without its values."""
    table = make_large()
    vectors = make_vectors(300, DIM)
    rng = np.random.default_rng(4)

    def check(connection: Connection) -> None:
        table.create(connection)
        rows = [{"id": key, "share": key % 3, "embedding": vector} for key, vector in vectors.items()]
        connection.execute(insert(table), rows)
        for mode in ("auto", "force_generic_plan"):
            connection.execute(text(f"SET LOCAL plan_cache_mode = {mode}"))
            for number in range(15):
                query = rng.normal(size=DIM).astype(np.float32)
                stmt = nearest(select(table.c.id), table.c.embedding, query, k=6, ef_search=400).offset(number)
                expected = brute_force(vectors, query, 6, "l2", offset=number)
                assert_equal(connection.execute(stmt), expected)
                some = select(table.c.id).where(table.c.share == number % 3)
                stmt = nearest(some, table.c.embedding, query, k=6, max_distance=5.5, ef_search=400)
                keep = {"keep": lambda key, number=number: key % 3 == number % 3}
                assert_equal(connection.execute(stmt), brute_force(vectors, query, 6, "l2", max_distance=5.5, **keep))

    backend.run_connection(engine, check)


@pytest.mark.backends(family="postgresql")
def test_ivfflat_finds_k_rows_with_few_probes(backend, engine):
    table = Table(
        "item",
        MetaData(),
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("share", Integer),
        Column("embedding", Vector(DIM)),
        vector_index("ix_item", "embedding", metric="l2", method="ivfflat", lists=25),
    )
    vectors = dict(enumerate(np.random.default_rng(1).normal(size=(1_000, DIM)).astype(np.float32), start=1))

    def check(connection: Connection) -> None:
        fill(connection, table, vectors, lambda key: key % 50)
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        some = select(table.c.id).where(table.c.share == 3)
        for options in ({}, {"probes": 1}):
            assert len(connection.execute(nearest(some, table.c.embedding, vectors[1], k=20, **options)).all()) == 20
            stmt = nearest(select(table.c.id), table.c.embedding, vectors[1], k=1_000, **options)
            assert len(connection.execute(stmt).all()) == 1_000
        every = nearest(select(table.c.id), table.c.embedding, vectors[1], k=30, probes=25)
        assert_equal(connection.execute(every), brute_force(vectors, vectors[1], 30, "l2"))

    backend.run_connection(engine, check)


@pytest.mark.backends("psycopg", "psycopg2", "asyncpg_noplugin")
def test_every_form_finds_k_rows_where_the_ivfflat_index_is_cheapest(backend, engine):
    """The statement's own rows must not be read from the index: that would be before the settings are made."""
    table = Table(
        "item",
        MetaData(),
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("share", Integer),
        Column("embedding", Vector(DIM)),
        vector_index("ix_item", "embedding", metric="l2", method="ivfflat", lists=10),
    )
    vectors = dict(enumerate(np.random.default_rng(1).normal(size=(300, DIM)).astype(np.float32), start=1))
    queries = np.random.default_rng(2).normal(size=(5, DIM)).astype(np.float32)
    keys = select(table.c.id)

    def forms(query: np.ndarray) -> dict[str, Select]:
        found = nearest(keys, table.c.embedding, query, k=3)
        return {
            "nearest": found,
            "probes": nearest(keys, table.c.embedding, query, k=3, probes=10),
            "distinct": nearest(keys.distinct(), table.c.embedding, query, k=3),
            "grouped": nearest(keys.group_by(table.c.id), table.c.embedding, query, k=3),
            "each": nearest_each(keys, table.c.embedding, [query], k=3),
            "hybrid": hybrid(keys, table.c.embedding, vector=query, k=3, candidates=3),
            "groups": best_per_group(found, table.c.share),
            "rerank": rerank(found, table.c.id, k=3),
        }

    def check(connection: Connection) -> None:
        fill(connection, table, vectors, lambda key: key % 50)
        for setting in ("random_page_cost = 1.1", "enable_seqscan = off", "enable_tidscan = off"):
            connection.execute(text(f"SET LOCAL {setting}"))
            for query in queries:
                for name, stmt in forms(query).items():
                    # As in a new transaction, where no search has made its settings yet.
                    connection.execute(text("SET LOCAL ivfflat.probes = 1"))
                    connection.execute(text("SET LOCAL ivfflat.iterative_scan = off"))
                    assert len(connection.execute(stmt).all()) == 3, (setting, name)

    backend.run_connection(engine, check)


@pytest.mark.backends("psycopg", "asyncpg")
def test_one_search_is_one_statement(backend, engine):
    """Settings travel inside the statement: no round trip more, and poolers that share connections are safe."""
    table = make_large()
    sent: list[str] = []
    sync_engine = engine.sync_engine if isinstance(engine, AsyncEngine) else engine

    def check(connection: Connection) -> None:
        table.create(connection)
        event.listen(sync_engine, "before_cursor_execute", lambda c, cursor, sql, *rest: sent.append(sql))
        connection.execute(nearest(select(table.c.id), table.c.embedding, np.ones(DIM), k=100)).all()

    backend.run_connection(engine, check)
    assert len(sent) == 1
    assert re.match(r"SELECT\b", sent[0])


@pytest.mark.backends("psycopg", "asyncpg")
def test_a_partitioned_table_is_searched_as_one(backend, engine):
    """Rows of two partitions may be at the same place within their files."""
    table = Table(
        "item",
        MetaData(),
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("embedding", Vector(DIM)),
        vector_index("ix_item", "embedding", metric="l2"),
        postgresql_partition_by="HASH (id)",
    )
    vectors = make_vectors(120, DIM)
    queries = np.random.default_rng(2).normal(size=(3, DIM)).astype(np.float32)

    def check(connection: Connection) -> None:
        table.create(connection)
        for number in range(3):
            part = f"CREATE TABLE item_{number} PARTITION OF item FOR VALUES WITH (MODULUS 3, REMAINDER {number})"
            connection.execute(text(part))
        connection.execute(insert(table), [{"id": key, "embedding": vector} for key, vector in vectors.items()])
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        found = connection.execute(nearest(select(table.c.id), table.c.embedding, queries[0], k=9)).all()
        assert_equal(found, brute_force(vectors, queries[0], 9, "l2"))
        rows = connection.execute(nearest_each(select(table.c.id), table.c.embedding, queries, k=9)).all()
        for number, query in enumerate(queries):
            assert_equal([r for r in rows if r.query == number], brute_force(vectors, query, 9, "l2"))

    backend.run_connection(engine, check)


@pytest.mark.backends("psycopg", "psycopg2")
def test_a_row_changed_while_its_lock_is_awaited_stays_among_the_k(backend):
    """``with_for_update()``: the row that another transaction updates is found again after the wait, by its key."""
    table = make_large()
    engine = backend.make_engine()
    vectors = {key: np.full(DIM, key, np.float32) for key in range(100)}
    found: list[list[tuple[int, int]]] = []

    def lock() -> None:
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL enable_seqscan = off"))
            stmt = nearest(select(table.c.id, table.c.share), table.c.embedding, np.zeros(DIM), k=4)
            rows = connection.execute(stmt.with_for_update())
            found.append([(row.id, row.share) for row in rows])

    with engine.begin() as connection:
        table.create(connection)
        rows = [{"id": key, "share": 0, "embedding": vector} for key, vector in vectors.items()]
        connection.execute(insert(table), rows)
    with engine.connect() as connection, ThreadPoolExecutor() as executor:
        connection.execute(update(table).where(table.c.id == 2).values(share=1))
        waiting = executor.submit(lock)
        is_waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
        while not connection.scalar(is_waiting):
            assert not waiting.done()
            connection.execute(text("SELECT pg_stat_clear_snapshot()"))
        connection.commit()
        waiting.result()
    assert found == [[(0, 0), (1, 0), (2, 1), (3, 0)]]
