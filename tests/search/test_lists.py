"""``method="ivfflat"`` on SQLite: rows in lists of near vectors."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from sqlalchemy import (
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    delete,
    insert,
    inspect,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError

from sqla_vector import BitVector, HalfVector, IndexNotUsable, Vector, nearest, nearest_each, vector_index
from sqla_vector.dialects.sqlite import ivf, ivf_functions
from sqla_vector.dialects.sqlite.index import vec0_index
from sqla_vector.dialects.sqlite.ivf import Lists, lists_of, train
from sqla_vector.dialects.sqlite.statements import Vec0Statements
from sqla_vector.tuning import explain_nearest, optimize
from tests.support.brute_force import assert_equal
from tests.support.brute_force import nearest as brute_force

pytestmark = pytest.mark.backends("sqlite_stdlib", "pysqlite3", "aiosqlite")
DIM = 16
ROWS = 400
LISTS = 12

CONFIGURATIONS = {
    "cosine": {"metric": "cosine", "include": ("language",)},
    "l2": {"metric": "l2", "partition_by": "tenant"},
    "int8": {"metric": "cosine", "precision": "int8", "include": ("language", "year")},
    "binary": {"metric": "l2", "precision": "binary", "partition_by": "tenant", "include": ("language",)},
}


def make_table(metadata: MetaData | None = None, *, key: Any = Integer, type_: Any = None, **options: Any) -> Table:
    return Table(
        "item",
        MetaData() if metadata is None else metadata,
        Column("id", key, primary_key=True),
        Column("language", String(5)),
        Column("year", Integer, nullable=False),
        Column("tenant", String(5), nullable=False),
        Column("weight", Float),
        Column("embedding", type_ or Vector(DIM)),
        *([vector_index("ix_item", "embedding", **{"method": "ivfflat", **options})] if options else []),
    )


def index_of(table: Table) -> Index:
    (index,) = table.indexes
    return index


def clustered(count: int = ROWS, seed: int = 0) -> np.ndarray:
    """Return vectors of ten topics, some of them equal or of another length."""
    random = np.random.default_rng(seed)
    found = random.normal(size=(10, DIM))[random.integers(10, size=count)] + 0.3 * random.normal(size=(count, DIM))
    found[5::40] = found[5]
    found[6::40] = 2 * found[5]
    return found.astype(np.float32)


def rows_of(table: Table, vectors: Any) -> list[dict[str, Any]]:
    is_text = isinstance(table.c.id.type, String)
    return [
        {
            "id": f"k{number:05}" if is_text else number,
            "language": (None, "de", "en", "fr")[number % 4],
            "year": 2000 + number % 7,
            "tenant": ("t1", "t2")[number % 2],
            "weight": number / 10,
            "embedding": vector,
        }
        for number, vector in enumerate(vectors, start=1)
    ]


def fill(connection: Connection, table: Table, vectors: Any) -> list[dict[str, Any]]:
    rows = rows_of(table, vectors)
    connection.execute(insert(table), rows)
    return rows


@pytest.mark.parametrize("key", [Integer, String(9)], ids=["int", "text"])
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_with_as_many_probes_as_lists_a_search_equals_brute_force(backend, engine, configuration, key):
    options = CONFIGURATIONS[configuration]
    metric = options["metric"]
    oversample = None if "precision" not in options else 100
    metadata = MetaData()
    table = make_table(metadata, key=key, lists=LISTS, **options)
    note = Table("note", metadata, Column("id", Integer, primary_key=True), Column("item", ForeignKey(table.c.id)))

    def check(connection: Connection) -> None:
        metadata.create_all(connection)
        rows = fill(connection, table, [None, np.zeros(DIM), *clustered()])
        connection.execute(insert(note), [{"id": n, "item": row["id"]} for n, row in enumerate(rows) if n % 5 == 0])
        assert lists_of(connection, index_of(table)).count == 1
        trained = train(connection, index_of(table))
        assert trained.count == LISTS
        assert trained.rows == ROWS + (metric != "cosine")
        vectors = {row["id"]: row["embedding"] for row in rows}
        fields = {row["id"]: row for row in rows}
        item = table.alias("renamed")

        def is_noted(key: Any) -> bool:
            return fields[key]["id"] in {row["id"] for row in rows[::5]}

        everything = select(table.c.id)
        cases = [
            (everything, table, lambda key: True),
            (everything.where(table.c.language == "de"), table, lambda key: fields[key]["language"] == "de"),
            (everything.where(table.c.language.is_(None)), table, lambda key: fields[key]["language"] is None),
            (everything.where(table.c.tenant == "t1"), table, lambda key: fields[key]["tenant"] == "t1"),
            (everything.where(table.c.year.in_([2001, 2003])), table, lambda key: fields[key]["year"] in (2001, 2003)),
            (everything.where(table.c.weight < 0.5), table, lambda key: fields[key]["weight"] < 0.5),
            (everything.join(note), table, is_noted),
            (select(item.c.id).where(item.c.year > 2004), item, lambda key: fields[key]["year"] > 2004),
        ]
        queries = [clustered()[5], np.random.default_rng(4).normal(size=DIM).astype(np.float32)]
        for query in queries:
            for stmt, source, keep in cases:
                for k in (1, 7, 60):
                    found = nearest(
                        stmt, source.c.embedding, query, k=k, metric=metric, probes=LISTS, oversample=oversample
                    )
                    assert_equal(connection.execute(found).all(), brute_force(vectors, query, k, metric, keep=keep))
                paged = nearest(stmt, source.c.embedding, query, k=5, metric=metric, probes=99, oversample=oversample)
                expected = brute_force(vectors, query, 5, metric, keep=keep, offset=7)
                assert_equal(connection.execute(paged.offset(7)).all(), expected)
            bound = brute_force(vectors, query, 15, metric)[-1][1] * 1.0001
            near = nearest(everything, table.c.embedding, query, k=50, probes=LISTS, max_distance=bound)
            assert_equal(connection.execute(near).all(), brute_force(vectors, query, 50, metric, max_distance=bound))
        for stmt, source, keep in cases:
            each = nearest_each(stmt, source.c.embedding, queries, k=9, probes=LISTS, oversample=oversample)
            found = connection.execute(each).all()
            for number, query in enumerate(queries):
                mine = [(row[0], row.distance) for row in found if row.query == number]
                assert_equal(mine, brute_force(vectors, query, 9, metric, keep=keep))

    backend.run_connection(engine, check)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_there_are_k_rows_with_one_probe(backend, engine, configuration):
    table = make_table(lists=LISTS, **CONFIGURATIONS[configuration])

    def check(connection: Connection) -> None:
        table.create(connection)
        fill(connection, table, clustered())
        train(connection, index_of(table))
        stmt = select(table.c.id)
        cases = {
            "all": (stmt, ROWS),
            "metadata": (stmt.where(table.c.language == "de"), ROWS // 4),
            "partition": (stmt.where(table.c.tenant == "t2"), ROWS // 2),
            "any": (stmt.where(table.c.year == 2003, table.c.weight > 1), 55),
            "few": (stmt.where(table.c.id.in_([3, 77, 200])), 3),
            "none": (stmt.where(table.c.language == "it"), 0),
        }
        queries = clustered(ROWS, seed=9)[:3]
        for name, (case, count) in cases.items():
            for k in (1, 3, 55, 500):
                wanted = min(k, count)
                found = connection.execute(nearest(case, table.c.embedding, queries[0], k=k, probes=1)).all()
                assert len(found) == wanted, name
                assert len({row[0] for row in found}) == wanted
                assert [row.distance for row in found] == sorted(row.distance for row in found)
                each = connection.execute(nearest_each(case, table.c.embedding, queries, k=k, probes=1)).all()
                assert [row.query for row in each] == [n for n in range(3) for _ in range(wanted)], name

    backend.run_connection(engine, check)


@pytest.mark.parametrize("precision", ["int8", "binary"])
def test_a_list_of_many_gives_more_together_than_vec0_returns_at_once(backend, engine, precision):
    table = make_table(metric="l2", lists=LISTS, precision=precision)

    def check(connection: Connection) -> None:
        table.create(connection)
        rows = fill(connection, table, clustered())
        train(connection, index_of(table))
        vectors = {row["id"]: row["embedding"] for row in rows}
        query = clustered()[9]
        stmt = nearest(select(table.c.id), table.c.embedding, query, k=300, oversample=100, probes=LISTS)
        assert explain_nearest(connection, stmt).index == "ix_item"
        assert_equal(connection.execute(stmt).all(), brute_force(vectors, query, 300, "l2"))
        deep = nearest(select(table.c.id), table.c.embedding, query, k=50, oversample=100, probes=LISTS).offset(320)
        assert_equal(connection.execute(deep).all(), brute_force(vectors, query, 50, "l2", offset=320))
        each = nearest_each(select(table.c.id), table.c.embedding, [query], k=300, oversample=100, probes=LISTS)
        found = [(row.id, row.distance) for row in connection.execute(each)]
        assert_equal(found, brute_force(vectors, query, 300, "l2"))
        # With one candidate a row the nearest by fewer bits are found, and as many as are wanted.
        rough = nearest(select(table.c.id), table.c.embedding, query, k=9, oversample=1, probes=LISTS)
        assert len(connection.execute(rough).all()) == 9

    backend.run_connection(engine, check)


def test_vectors_of_one_direction_tie_under_cosine_in_the_order_of_their_keys(backend, engine):
    table = make_table(metric="cosine", lists=4)

    def check(connection: Connection) -> None:
        table.create(connection)
        random = np.random.default_rng(2)
        one = random.normal(size=DIM)
        lengths = random.uniform(0.01, 100, size=90)
        fill(connection, table, np.concatenate([random.normal(size=(200, DIM)), lengths[:, None] * one]))
        train(connection, index_of(table))
        stmt = nearest(select(table.c.id), table.c.embedding, one, k=30, probes=2)
        exact = nearest(select(table.c.id), table.c.embedding, one, k=30, exact=True)
        assert connection.execute(stmt).all() == connection.execute(exact).all()

    backend.run_connection(engine, check)


def test_more_ties_than_vec0_returns_are_scanned_exactly(backend, engine):
    table = make_table(metric="l2", lists=2)

    def check(connection: Connection) -> None:
        table.create(connection)
        equal = np.ones(DIM, np.float32)
        fill(connection, table, [equal] * 4_200)
        train(connection, index_of(table))
        # The last by their place in the index, the first by key.
        connection.execute(update(table).where(table.c.id <= 3).values(year=1))
        stmt = nearest(select(table.c.id), table.c.embedding, equal, k=5)
        assert [row.id for row in connection.execute(stmt)] == [1, 2, 3, 4, 5]
        far = connection.execute(nearest(select(table.c.id), table.c.embedding, equal, k=3).offset(4_190)).all()
        assert [row.id for row in far] == [4_191, 4_192, 4_193]

    backend.run_connection(engine, check)


@pytest.mark.parametrize(
    ("type_", "metric"),
    [(BitVector(20), "hamming"), (BitVector(16), "hamming"), (HalfVector(DIM), "cosine"), (HalfVector(DIM), "l2")],
    ids=["bits", "whole bytes", "half", "half l2"],
)
def test_other_types_are_in_lists_too(backend, engine, type_, metric):
    table = make_table(type_=type_, metric=metric, lists=5)

    def check(connection: Connection) -> None:
        table.create(connection)
        random = np.random.default_rng(5)
        vectors = random.normal(size=(150, type_.dim)).astype(np.float16).astype(np.float32)
        given = vectors > 0 if metric == "hamming" else vectors
        rows = fill(connection, table, given)
        assert 1 < train(connection, index_of(table)).count <= 5
        known = {row["id"]: row["embedding"] for row in rows}
        for query in given[:3]:
            found = connection.execute(nearest(select(table.c.id), table.c.embedding, query, k=12, probes=5)).all()
            assert_equal(found, brute_force(known, query, 12, metric), relative=1e-3)

    backend.run_connection(engine, check)


@pytest.mark.parametrize("key", [Integer, String(9)], ids=["int", "text"])
def test_an_index_that_is_created_on_rows_is_trained(backend, engine, key, caplog):
    plain, indexed = make_table(key=key), make_table(key=key, metric="cosine", lists=LISTS)

    def check(connection: Connection) -> None:
        plain.create(connection)
        vectors = clustered()
        fill(connection, plain, vectors)
        index_of(indexed).create(connection)
        lists = lists_of(connection, index_of(indexed))
        assert (lists.count, lists.trained_rows, lists.rows) == (LISTS, ROWS, ROWS)
        assert 1 <= lists.imbalance < 3
        found = connection.execute(nearest(select(indexed.c.id), indexed.c.embedding, vectors[3], k=3, probes=1)).all()
        assert found[0].distance == pytest.approx(0, abs=1e-6)
        indexed.drop(connection)
        indexed.create(connection)

    with caplog.at_level(logging.INFO, "sqla_vector.sqlite"):
        backend.run_connection(engine, check)
    assert [record.getMessage() for record in caplog.records if record.name == "sqla_vector.sqlite"] == [
        f"ix_item has {LISTS} lists, trained from {ROWS} rows",
        (
            "ix_item begins as one list, since there are no rows: train it when there are some thousand, by "
            "sqla_vector.tuning.optimize()"
        ),
    ]


def test_as_many_lists_as_suit_the_rows_unless_their_number_is_said(backend, engine):
    table = make_table(metric="l2")

    def check(connection: Connection) -> None:
        table.create(connection)
        fill(connection, table, clustered(100))
        assert train(connection, index_of(table)).count == 20
        fill_more = rows_of(table, clustered(400, seed=2))[100:]
        connection.execute(insert(table), fill_more)
        assert train(connection, index_of(table)).count == 40

    backend.run_connection(engine, check)


def test_each_row_is_in_the_list_of_its_vector_however_it_came_there(backend, engine):
    table = make_table(metric="l2", lists=LISTS)

    def check(connection: Connection) -> None:
        table.create(connection)
        fill(connection, table, clustered(200))
        train(connection, index_of(table))
        connection.execute(insert(table), rows_of(table, clustered(400, seed=1))[200:])
        connection.execute(update(table).where(table.c.id < 20).values(embedding=clustered()[300]))
        kept = dict(connection.exec_driver_sql("SELECT rowid, list FROM ix_item").all())
        blob = connection.exec_driver_sql("SELECT centroids FROM ix_item_centroids").scalar_one()
        centroids = np.frombuffer(blob, "<f4").reshape(LISTS, DIM)
        for number, vector in connection.execute(select(table.c.id, table.c.embedding)):
            assert kept.pop(number) == ((centroids - vector) ** 2).sum(axis=1).argmin()
        assert kept == {}

    backend.run_connection(engine, check)


@pytest.mark.parametrize(
    ("data", "least"), [("clustered", 0.9), ("uniform", 0.6)], ids=["clustered vectors", "uniform vectors"]
)
def test_a_search_of_some_lists_finds_most(backend, engine, data, least):
    table = make_table(metric="cosine", lists=40)
    random = np.random.default_rng(8)
    vectors = clustered(3_000) if data == "clustered" else random.uniform(-1, 1, size=(3_000, DIM))

    def recall(connection: Connection, probes: int | None) -> float:
        shares = []
        for query in vectors[::150] + 0.05 * random.normal(size=(20, DIM)):
            exact, found = (
                {row.id for row in connection.execute(nearest(select(table.c.id), table.c.embedding, query, **options))}
                for options in ({"k": 10, "exact": True}, {"k": 10, "probes": probes})
            )
            shares.append(len(exact & found) / 10)
        return float(np.mean(shares))

    def check(connection: Connection) -> None:
        table.create(connection)
        fill(connection, table, vectors)
        train(connection, index_of(table))
        recalls = [recall(connection, probes) for probes in (1, None, 20, 40)]
        assert recalls[0] <= recalls[1] <= recalls[2]
        assert recalls[0] < recalls[2] or data == "clustered"
        assert recalls[1] >= least
        assert recalls[3] == 1.0

    backend.run_connection(engine, check)


def test_a_query_without_a_distance_finds_nothing(backend, engine):
    table = make_table(metric="cosine", lists=4)

    def check(connection: Connection) -> None:
        table.create(connection)
        fill(connection, table, clustered(50))
        train(connection, index_of(table))
        stmt = select(table.c.id)
        assert connection.execute(nearest(stmt, table.c.embedding, np.zeros(DIM), k=3)).all() == []
        of_no_row = select(table.c.embedding).where(table.c.id == literal(-1)).scalar_subquery()
        assert connection.execute(nearest(stmt, table.c.embedding, of_no_row, k=3)).all() == []

    backend.run_connection(engine, check)


@pytest.mark.backends("sqlite_stdlib", "pysqlite3")
def test_other_connections_use_the_lists_of_what_they_read(backend, engine):
    table = make_table(metric="l2", lists=LISTS)
    vectors = clustered()
    with engine.begin() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode = wal")
    with engine.begin() as connection:
        table.create(connection)
        fill(connection, table, vectors)

    def search(connection: Connection) -> list[Any]:
        stmt = nearest(select(table.c.id), table.c.embedding, vectors[17], k=8, probes=LISTS)
        return connection.execute(stmt).all()

    other = backend.make_engine()
    with other.connect() as reader, engine.connect() as writer:
        before = search(reader)
        reader.rollback()
        reader.exec_driver_sql("BEGIN")
        assert search(reader) == before
        train(writer, index_of(table))
        assert (lists_of(reader, index_of(table)).count, lists_of(writer, index_of(table)).count) == (1, LISTS)
        assert search(reader) == before
        assert search(writer) == before
        writer.commit()
        # The reader's transaction began before.
        assert lists_of(reader, index_of(table)).count == 1
        assert search(reader) == before
        reader.rollback()
        assert lists_of(reader, index_of(table)).count == LISTS
        assert search(reader) == before
        # And it writes into the new lists.
        reader.execute(insert(table), [{**rows_of(table, vectors)[17], "id": 10_000}])
        assert [row.id for row in search(reader)][:2] == [18, 10_000]
        reader.commit()
        assert [row.id for row in search(writer)][:2] == [18, 10_000]


def test_a_training_that_is_rolled_back_leaves_the_old_lists(backend, engine):
    table = make_table(metric="cosine", lists=LISTS)
    vectors = clustered()

    def prepare(connection: Connection) -> None:
        table.create(connection)
        fill(connection, table, vectors[:200])
        train(connection, index_of(table))

    def state(connection: Connection) -> list[Any]:
        found = connection.exec_driver_sql("SELECT rowid, list, vector FROM ix_item ORDER BY 1").all()
        return [found, connection.exec_driver_sql("SELECT * FROM ix_item_centroids").all()]

    def undo(connection: Connection) -> None:
        before = state(connection)
        outer = connection.begin_nested()
        connection.execute(insert(table), rows_of(table, vectors)[200:])
        train(connection, index_of(table))
        assert state(connection) != before
        outer.rollback()
        assert state(connection) == before
        stmt = nearest(select(table.c.id), table.c.embedding, vectors[0], k=5, probes=LISTS)
        exact = nearest(select(table.c.id), table.c.embedding, vectors[0], k=5, exact=True)
        assert connection.execute(stmt).all() == connection.execute(exact).all()

    backend.run_connection(engine, prepare)
    backend.run_connection(engine, undo)


def test_explain_names_the_lists_and_says_when_to_train(backend, engine, monkeypatch):
    monkeypatch.setattr(ivf, "UNTRAINED_ROWS", 100)
    table = make_table(metric="cosine", lists=LISTS)

    def check(connection: Connection) -> None:
        table.create(connection)
        fill(connection, table, clustered(99))
        for stmt in (select(table.c.id), select(table.c.id).where(table.c.weight > 3)):
            plan = explain_nearest(connection, nearest(stmt, table.c.embedding, clustered()[0]))
            assert (plan.index, plan.method, plan.precision) == ("ix_item", "ivfflat", "full")
            assert "train" not in str(plan)
        connection.execute(insert(table), rows_of(table, clustered(100))[99:])
        plan = explain_nearest(connection, nearest(select(table.c.id), table.c.embedding, clustered()[0]))
        assert "ix_item has one list, so that each search reads all 100 rows: train it" in str(plan)
        train(connection, index_of(table))
        connection.execute(insert(table), rows_of(table, clustered(201))[100:])
        plan = explain_nearest(connection, nearest(select(table.c.id), table.c.embedding, clustered()[0]))
        assert "ix_item was trained from 100 rows and has 201: train it anew" in str(plan)
        train(connection, index_of(table))
        assert lists_of(connection, index_of(table)).advice is None

    backend.run_connection(engine, check)


def test_a_connection_that_adds_many_rows_to_one_list_says_so_once(backend, engine, monkeypatch, caplog):
    monkeypatch.setattr(ivf_functions, "UNTRAINED_ROWS", 30)
    table = make_table(metric="cosine", lists=LISTS)

    def check(connection: Connection) -> None:
        table.create(connection)
        fill(connection, table, clustered(100))

    with caplog.at_level(logging.WARNING, "sqla_vector.sqlite"):
        backend.run_connection(engine, check)
    (record,) = [record for record in caplog.records if record.name == "sqla_vector.sqlite"]
    assert record.getMessage() == (
        "ix_item has one list, so that each search reads all rows, and this program alone has added 30: "
        "train it, by sqla_vector.tuning.optimize()"
    )


@pytest.mark.parametrize(("existing", "declared"), [("ivfflat", "hnsw"), ("hnsw", "ivfflat")])
def test_a_search_goes_by_what_is_in_the_database_not_by_the_declaration(backend, engine, existing, declared):
    tables = [
        Table(
            "item",
            MetaData(),
            Column("id", Integer, primary_key=True),
            Column("embedding", Vector(DIM)),
            vector_index("ix_item", "embedding", metric="cosine", method=method),
        )
        for method in (existing, declared)
    ]

    def check(connection: Connection) -> None:
        tables[0].create(connection)
        vectors = clustered()
        rows = [{"id": number, "embedding": vector} for number, vector in enumerate(vectors)]
        connection.execute(insert(tables[1]), rows)
        if existing == "ivfflat":
            train(connection, index_of(tables[0]))
        column = tables[1].c.embedding
        stmt = nearest(select(tables[1].c.id), column, vectors[4], k=6, probes=99)
        exact = nearest(select(tables[1].c.id), column, vectors[4], k=6, exact=True)
        assert explain_nearest(connection, stmt).index == "ix_item"
        assert connection.execute(stmt).all() == connection.execute(exact).all()

    backend.run_connection(engine, check)


def test_what_is_no_index_in_lists_is_not_trained(backend, engine):
    table = Table(
        "item",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("embedding", Vector(DIM)),
        vector_index("ix_item", "embedding", metric="cosine"),
    )

    def check(connection: Connection) -> None:
        with pytest.raises(IndexNotUsable, match="ix_item is no index in lists in this database"):
            train(connection, index_of(table))
        table.create(connection)
        with pytest.raises(IndexNotUsable, match="ix_item is no index in lists in this database"):
            lists_of(connection, index_of(table))

    backend.run_connection(engine, check)


@pytest.mark.parametrize(
    "declared",
    [
        {"metric": "cosine", "lists": LISTS},
        {"metric": "l2", "lists": LISTS, "include": ("language",)},
        {"metric": "l2", "lists": LISTS, "precision": "binary"},
        {"metric": "l2", "method": "hnsw"},
    ],
    ids=["metric", "include", "precision", "method"],
)
def test_an_index_that_differs_from_its_declaration_is_not_trained_and_stays_as_it_is(backend, engine, declared):
    before = make_table(metric="l2", lists=LISTS)
    after = make_table(**declared)

    def check(connection: Connection) -> None:
        before.create(connection)
        rows = fill(connection, before, clustered())
        kept = "SELECT name, sql FROM sqlite_master ORDER BY name"
        was = connection.exec_driver_sql(kept).all()
        with pytest.raises(IndexNotUsable, match="ix_item in the database differs from its declaration"):
            optimize(connection, after.c.embedding)
        assert connection.exec_driver_sql(kept).all() == was
        connection.execute(insert(before), {**rows[0], "id": ROWS + 1})
        assert lists_of(connection, index_of(before)).rows == ROWS + 1
        assert train(connection, index_of(before)).count == LISTS

    backend.run_connection(engine, check)


def test_three_columns_may_divide_an_index_in_lists(backend, engine):
    names = [f"c{number}" for number in range(4)]

    def table(count: int) -> Table:
        return Table(
            "item",
            MetaData(),
            Column("id", Integer, primary_key=True),
            Column("embedding", Vector(4)),
            *(Column(name, Integer, nullable=False) for name in names),
            vector_index("ix_item", "embedding", method="ivfflat", partition_by=names[:count]),
        )

    def create(connection: Connection) -> None:
        table(3).create(connection)
        table(3).drop(connection)
        with pytest.raises(IndexNotUsable, match="at most 3 partition_by columns, got 4"):
            table(4).create(connection)

    backend.run_connection(engine, create)


def test_everything_of_it_is_hidden_reflected_and_dropped(backend, engine):
    table = make_table(lists=7, **CONFIGURATIONS["binary"])

    def check(connection: Connection) -> None:
        table.create(connection)
        fill(connection, table, clustered(60))
        train(connection, index_of(table))
        assert inspect(connection).get_table_names() == ["item"]
        (found,) = inspect(connection).get_indexes("item")
        assert found["vector"]["method"] == "ivfflat"
        reflected = Table("item", MetaData(), autoload_with=connection)
        copied = reflected.to_metadata(MetaData())
        spec = index_of(table).expressions[0].spec
        for other in (reflected, copied):
            (index,) = other.indexes
            found = index.dialect_kwargs["sqlite_vector"]
            assert (found.method, found.options, found.precision) == (spec.method, spec.options, spec.precision)
            assert (found.include, found.partition_by) == (spec.include, spec.partition_by)
            assert train(connection, index).count == 7
        stmt = nearest(select(reflected.c.id), reflected.c.embedding, clustered()[0], k=3, metric="l2")
        assert explain_nearest(connection, stmt).method == "ivfflat"
        connection.exec_driver_sql("ALTER TABLE item RENAME TO thing")
        connection.execute(
            text("INSERT INTO thing SELECT id + 1000, language, year, tenant, weight, embedding FROM thing")
        )
        assert connection.exec_driver_sql("SELECT count(*) FROM ix_item").scalar() == 120
        connection.exec_driver_sql("ALTER TABLE thing RENAME TO item")
        table.drop(connection)
        left = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE name <> 'sqlite_sequence'").all()
        assert left == []

    backend.run_connection(engine, check)


@pytest.mark.parametrize("name", ["other", "the other", "a.b-c"])
def test_it_works_in_an_attached_database(backend, tmp_path, engine, name):
    metadata = MetaData(schema=name)
    table = make_table(metadata, key=String(9), metric="cosine", lists=LISTS)

    def check(connection: Connection) -> None:
        connection.exec_driver_sql(f'ATTACH ? AS "{name}"', (str(tmp_path / "other.db"),))
        table.create(connection)
        fill(connection, table, clustered())
        assert train(connection, index_of(table)).rows == ROWS
        for stmt in (select(table.c.id), select(table.c.id).where(table.c.weight < 20)):
            found = nearest(stmt, table.c.embedding, clustered()[0], k=9, probes=LISTS)
            exact = nearest(stmt, table.c.embedding, clustered()[0], k=9, exact=True)
            assert explain_nearest(connection, found).method == "ivfflat"
            assert connection.execute(found).all() == connection.execute(exact).all()
        index_of(table).drop(connection)
        index_of(table).create(connection)
        assert lists_of(connection, index_of(table)).count == LISTS

    backend.run_connection(engine, check)


@pytest.mark.parametrize("key", [Integer, String(9)], ids=["int", "text"])
def test_it_is_made_and_trained_in_a_schema_that_a_map_names(backend, tmp_path, engine, key):
    plain, table = make_table(key=key), make_table(key=key, metric="l2", lists=LISTS)

    def check(connection: Connection) -> None:
        connection.exec_driver_sql("ATTACH ? AS other", (str(tmp_path / "other.db"),))
        connection = connection.execution_options(schema_translate_map={None: "other"})
        plain.create(connection)
        fill(connection, table, clustered(200))
        index_of(table).create(connection)
        assert lists_of(connection, index_of(table)).trained_rows == 200
        connection.execute(insert(table), rows_of(table, clustered())[200:])
        assert train(connection, index_of(table)).trained_rows == ROWS
        table.drop(connection)
        left = "SELECT name FROM other.sqlite_master WHERE name <> 'sqlite_sequence'"
        assert connection.exec_driver_sql(left).all() == []

    backend.run_connection(engine, check)


def test_a_connection_keeps_the_centroids_of_several_indexes(backend, engine):
    metadata = MetaData()
    tables = [
        Table(
            f"item{number}",
            metadata,
            Column("id", Integer, primary_key=True),
            Column("embedding", Vector(DIM)),
            vector_index(f"ix_item{number}", "embedding", metric="l2", method="ivfflat", lists=3),
        )
        for number in range(10)
    ]

    def check(connection: Connection) -> None:
        metadata.create_all(connection)
        rows = [{"id": number, "embedding": vector} for number, vector in enumerate(clustered(30))]
        for _ in range(2):
            for table in tables:
                connection.execute(table.delete())
                connection.execute(insert(table), rows)
                train(connection, index_of(table))
        for table in tables:
            stmt = nearest(select(table.c.id), table.c.embedding, clustered()[0], k=4, probes=3)
            exact = nearest(select(table.c.id), table.c.embedding, clustered()[0], k=4, exact=True)
            assert connection.execute(stmt).all() == connection.execute(exact).all()

    backend.run_connection(engine, check)


def test_a_script_for_programs_without_this_package_makes_one_list(backend, engine):
    empty, filled = make_table(metric="cosine"), make_table(metric="cosine")
    index = vec0_index(index_of(empty))

    def write(connection: Connection) -> None:
        script = Vec0Statements(index, connection.dialect.identifier_preparer).write()
        assert not any("vector_" in statement for statement in script if not statement.startswith("CREATE TRIGGER"))
        for statement in script:
            connection.exec_driver_sql(statement)

    def on_rows(connection: Connection) -> None:
        make_table().create(connection)
        fill(connection, filled, clustered(10))
        write(connection)

    def on_none(connection: Connection) -> None:
        make_table().create(connection, checkfirst=True)
        connection.execute(delete(filled))
        write(connection)
        fill(connection, filled, clustered(50))
        assert connection.exec_driver_sql("SELECT DISTINCT list FROM ix_item").all() == [(0,)]
        assert connection.exec_driver_sql("SELECT rows, lists FROM ix_item_centroids").all() == [(0, 1)]

    with pytest.raises(IntegrityError, match="item holds vectors, and ix_item is filled by functions"):
        backend.run_connection(engine, on_rows)
    backend.run_connection(engine, on_none)


def test_lists_are_even_if_all_have_as_many_rows():
    assert Lists("ix", 0, 0, (0,)).imbalance == 1.0
    assert Lists("ix", 40, 40, (10, 10, 10, 10)).imbalance == 1.0
    assert Lists("ix", 40, 40, (40, 0, 0, 0)).imbalance == 4.0


def test_the_functions_take_null_and_refuse_what_they_do_not_know(backend, engine, monkeypatch):
    monkeypatch.setattr(ivf_functions, "_BATCH_BYTES", 1)
    centroids = np.eye(4, dtype="<f4").tobytes()

    # What one connection is told of a generation others of the program know.
    g, h = f"'{backend.name}-g'", f"'{backend.name}-h'"

    def value(connection: Connection, sql: str, *parameters: Any) -> Any:
        return connection.exec_driver_sql(f"SELECT {sql.replace(chr(39) + 'g' + chr(39), g)}", parameters).scalar_one()

    def check(connection: Connection) -> None:
        one = np.array([0, 0, 3, 1], "<f4").tobytes()
        assert value(connection, "vector_ivf_known('g')") == 0
        assert value(connection, "vector_ivf_list(NULL, 'l2', 'g', ?)", centroids) is None
        assert value(connection, "vector_ivf_list(?, 'l2', 'g', ?)", one, centroids) == 2
        assert value(connection, "vector_ivf_known('g')") == 1
        assert value(connection, "vector_ivf_list(?, 'l2', 'g', NULL)", one) == 2
        assert value(connection, "vector_ivf_probe(NULL, 2, 'l2', 'g', NULL)") == "[]"
        assert value(connection, "vector_ivf_probe(?, 2, 'l2', 'g', NULL)", one) == "[2,3]"
        assert value(connection, "vector_ivf_probe(?, NULL, 'l2', 'g', NULL)", one) == "[2,3]"
        assert value(connection, "vector_ivf_probe(?, 9, 'l2', 'g', NULL)", one) == "[2,3,0,1]"
        rows = "(SELECT 1 AS n, ?1 AS v UNION ALL SELECT n + 1, v FROM rows WHERE n < 200) SELECT "
        with_rows = f"WITH RECURSIVE rows AS {rows}"
        # Handed over once: after the first row they are known.
        unless_known = f"CASE WHEN vector_ivf_known({h}) THEN NULL ELSE ?2 END"
        assigned = f"vector_ivf_assign(n, v, 'l2', {h}, {unless_known}) FROM rows"
        found = connection.exec_driver_sql(with_rows + assigned, (one, centroids)).scalar_one()
        assert found == f'{{"2":[{",".join(map(str, range(1, 201)))}]}}'
        none = connection.exec_driver_sql(f"{with_rows}{assigned} WHERE n < 0", (one, centroids)).scalar_one()
        assert none is None
        trained = "vector_ivf_train(v, 'l2', 5) FROM rows WHERE ?2 AND n < 0"
        assert connection.exec_driver_sql(with_rows + trained, (one, 1)).scalar_one() is None

    backend.run_connection(engine, check)


def test_centroids_that_nobody_knows_are_an_error():
    functions = ivf_functions.ListFunctions()
    with pytest.raises(ValueError, match="no centroids of generation unknown"):
        functions.probe(bytes(16), 1, "l2", "unknown", None)
