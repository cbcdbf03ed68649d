"""Which rows nearest() returns: k, paging, ties, thresholds, filters, the forms of the query."""

from __future__ import annotations

import operator

import numpy as np
import pytest
from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Date,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    and_,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    text,
)

from sqla_vector import BitVector, Vector, nearest, nearest_each, similarity, vector_index
from sqla_vector.metrics import METRICS
from tests.support.brute_force import assert_equal, distance, engine_that_indexes, make_bits, make_vectors
from tests.support.brute_force import nearest as brute_force

DIM = 8
QUERY = np.random.default_rng(3).normal(size=DIM).astype(np.float32)
INDEXED = pytest.mark.parametrize("indexed", [False, True], ids=["exact", "indexed"])


def make_items(*, indexed: bool, metric: str = "l2", key: object = Integer, **options: object) -> Table:
    index = [vector_index("ix_item_embedding", "embedding", metric=metric, **options)] if indexed else []
    return Table(
        "item",
        MetaData(),
        Column("id", key, primary_key=True, autoincrement=False),
        Column("language", String(8)),
        Column("year", Integer),
        Column("price", Float),
        Column("is_public", Boolean),
        Column("published", Date),
        Column("embedding", Vector(DIM)),
        *index,
    )


def fill(connection: Connection, table: Table, vectors: dict[object, object]) -> dict[object, dict[str, object]]:
    from datetime import date

    rows = {
        key: {
            "id": key,
            "language": ("de", "en", None, "fr")[number % 4],
            "year": None if number % 7 == 3 else 1990 + number % 20,
            "price": None if number % 5 == 4 else number / 4,
            "is_public": (True, False, None)[number % 3],
            "published": None if number % 6 == 1 else date(2020, 1 + number % 12, 1),
            "embedding": vector,
        }
        for number, (key, vector) in enumerate(vectors.items())
    }
    table.create(connection)
    connection.execute(insert(table), list(rows.values()))
    return rows


@INDEXED
def test_pages_joined_together_are_one_long_result(backend, indexed):
    table = make_items(indexed=indexed)
    vectors = make_vectors(130, DIM)

    def check(connection: Connection) -> None:
        fill(connection, table, vectors)
        for stmt, keep in (
            (select(table.c.id), lambda key: True),
            (select(table.c.id).where(table.c.id > 40), lambda key: key > 40),
        ):
            pages = []
            for number in range(6):
                page = nearest(stmt, table.c.embedding, QUERY, k=25, metric="l2").offset(25 * number)
                pages.extend(connection.execute(page).all())
            assert_equal(pages, brute_force(vectors, QUERY, 150, "l2", keep=keep))
            beyond = nearest(stmt, table.c.embedding, QUERY, k=25, metric="l2").offset(10_000)
            assert connection.execute(beyond).all() == []

    backend.run_connection(engine_that_indexes(backend), check)


@INDEXED
@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_ties_are_in_primary_key_order(backend, indexed, metric):
    """Sixty rows have the same vector, more than any page; those of the lowest keys come first."""
    table = make_items(indexed=indexed, metric=metric)
    vectors = make_vectors(90, DIM)
    same = np.arange(1, DIM + 1, dtype=np.float32)
    vectors |= dict.fromkeys(range(500, 560), same)
    shuffled = dict(sorted(vectors.items(), key=lambda item: hash(f"x{item[0]}") % 97))

    def check(connection: Connection) -> None:
        fill(connection, table, shuffled)
        for k, offset in ((1, 0), (10, 0), (10, 20), (59, 0), (60, 0), (61, 0), (70, 0)):
            stmt = nearest(select(table.c.id), table.c.embedding, same, k=k, metric=metric, ef_search=200)
            found = connection.execute(stmt.offset(offset) if offset else stmt).all()
            assert_equal(found, brute_force(vectors, same, k, metric, offset=offset))
        odd = nearest(select(table.c.id).where(table.c.id % 2 == 1), table.c.embedding, same, k=12, metric=metric)
        assert_equal(connection.execute(odd), brute_force(vectors, same, 12, metric, keep=lambda key: key % 2 == 1))

    backend.run_connection(engine_that_indexes(backend), check)


@INDEXED
def test_text_keys_tie_in_their_own_order(backend, indexed):
    table = make_items(indexed=indexed, key=String(20))
    vectors = {f"k{key:03d}-é'": vector for key, vector in make_vectors(80, DIM).items()}

    def check(connection: Connection) -> None:
        fill(connection, table, vectors)
        for k in (3, 15, 200):
            stmt = nearest(select(table.c.id), table.c.embedding, QUERY, k=k, metric="l2")
            assert_equal(connection.execute(stmt), brute_force(vectors, QUERY, k, "l2"))
        stmt = nearest(select(table.c.id).where(table.c.language == "en"), table.c.embedding, QUERY, metric="l2")
        english = {key for number, key in enumerate(vectors) if number % 4 == 1}
        assert_equal(connection.execute(stmt), brute_force(vectors, QUERY, 10, "l2", keep=english.__contains__))

    backend.run_connection(engine_that_indexes(backend), check)


@INDEXED
@pytest.mark.parametrize("metric", METRICS)
def test_thresholds_bound_distance_and_similarity(backend, indexed, metric):
    bits = metric in ("hamming", "jaccard")
    index = [vector_index("ix", "embedding", metric=metric)] if indexed else []
    kind = BitVector(DIM) if bits else Vector(DIM)
    table = Table("t", MetaData(), Column("id", Integer, primary_key=True), Column("embedding", kind), *index)
    vectors = make_bits(60, DIM) if bits else make_vectors(60, DIM)
    query = QUERY > 0 if bits else QUERY
    ranked = brute_force(vectors, query, 100, metric)
    # Between two distances, so that the last bit of a computation decides nothing.
    different = sorted({d for _, d in ranked})
    bound = (different[1] + different[2]) / 2

    def check(connection: Connection) -> None:
        table.create(connection)
        connection.execute(insert(table), [{"id": key, "embedding": v} for key, v in vectors.items()])

        def found(**options):
            return connection.execute(
                nearest(select(table.c.id), table.c.embedding, query, metric=metric, **options)
            ).all()

        least = METRICS[metric].similarity(bound, DIM)
        for k in (1, 100):
            expected = brute_force(vectors, query, k, metric, max_distance=bound)
            assert expected
            assert_equal(found(k=k, max_distance=bound), expected)
            assert_equal(found(k=k, min_similarity=least), expected)
        assert found(max_distance=different[0] - 1) == []
        assert_equal(found(max_distance=float("inf")), ranked[:10])
        # The similarity that the threshold speaks of is the one of similarity().
        similar = select(table.c.id, similarity(table.c.embedding, query, metric).label("s"))
        rows = connection.execute(nearest(similar, table.c.embedding, query, k=100, metric=metric)).all()
        expected_similarities = [METRICS[metric].similarity(d, DIM) for _, d in ranked]
        assert [row.s for row in rows] == pytest.approx(expected_similarities, rel=1e-5, abs=1e-6)

    backend.run_connection(engine_that_indexes(backend), check)


FILTERS = {
    "equal": (lambda c: c.language == "en", lambda r: r["language"] == "en"),
    "not equal": (lambda c: c.language != "en", lambda r: r["language"] not in ("en", None)),
    "is null": (lambda c: c.language.is_(None), lambda r: r["language"] is None),
    "equal to None": (lambda c: c.language == None, lambda r: r["language"] is None),  # noqa: E711
    "not null": (lambda c: c.language.is_not(None), lambda r: r["language"] is not None),
    "in": (lambda c: c.language.in_(["en", "fr"]), lambda r: r["language"] in ("en", "fr")),
    "in nothing": (lambda c: c.language.in_([]), lambda r: False),
    "like": (lambda c: c.language.like("%e%"), lambda r: "e" in (r["language"] or "")),
    "less": (lambda c: c.year < 2000, lambda r: r["year"] is not None and r["year"] < 2000),
    "less or equal, reversed": (lambda c: c.year <= 2000, lambda r: r["year"] is not None and r["year"] <= 2000),
    "between": (lambda c: c.year.between(1995, 2005), lambda r: 1995 <= (r["year"] or 0) <= 2005),
    "float": (lambda c: c.price >= 10, lambda r: r["price"] is not None and r["price"] >= 10),
    "float equal": (lambda c: c.price == 5.25, lambda r: r["price"] == 5.25),
    "true": (lambda c: c.is_public, lambda r: r["is_public"] is True),
    "is false": (lambda c: c.is_public.is_(False), lambda r: r["is_public"] is False),
    "equal to false": (lambda c: c.is_public == False, lambda r: r["is_public"] is False),  # noqa: E712
    "not": (lambda c: ~c.is_public, lambda r: r["is_public"] is False),
    "date": (
        lambda c: c.published == bindparam("day", func.current_date().type.python_type(2020, 5, 1)),
        lambda r: str(r["published"]) == "2020-05-01",
    ),
    "key": (lambda c: c.id == 17, lambda r: r["id"] == 17),
    "two columns": (lambda c: c.id > c.year - 1950, lambda r: r["year"] is not None and r["id"] > r["year"] - 1950),
    "and": (
        lambda c: and_(c.language == "en", c.year > 1995),
        lambda r: r["language"] == "en" and (r["year"] or 0) > 1995,
    ),
    "or": (
        lambda c: or_(c.language == "en", c.year == 1995),
        lambda r: r["language"] == "en" or r["year"] == 1995,
    ),
    "function": (lambda c: func.upper(c.language) == "FR", lambda r: r["language"] == "fr"),
    "text": (lambda c: text("item.year > 2000"), lambda r: (r["year"] or 0) > 2000),
    "literal": (lambda c: c.language == literal_column("'de'"), lambda r: r["language"] == "de"),
    "nobody": (lambda c: c.year == 1, lambda r: False),
    "no number of a year": (lambda c: c.year == -9223372036854775807, lambda r: False),
    "injection": (lambda c: c.language == "' OR 1=1 --", lambda r: False),
    "injection by percent": (lambda c: c.language == "%(x)s ? :p", lambda r: False),
}
METADATA = ("language", "year", "price", "is_public", "published")


@pytest.mark.parametrize("include", [None, (), METADATA], ids=["exact", "indexed", "included"])
def test_every_filter_keeps_what_it_keeps_without_nearest(backend, include):
    """With ``include`` SQLite filters inside vec0: the same rows must qualify, NULL and value types included."""
    table = make_items(indexed=include is not None, include=include or ())
    vectors = make_vectors(120, DIM)

    def check(connection: Connection) -> None:
        rows = fill(connection, table, vectors)
        for name, (make, keep) in FILTERS.items():
            # PostgreSQL's integers end at 2**31, and the comparison is about SQLite's stand-in for NULL.
            if name == "no number of a year" and backend.family == "postgresql":
                continue
            criterion = make(table.c)
            expected = brute_force(vectors, QUERY, 6, "l2", keep=lambda key, keep=keep: keep(rows[key]))
            before = nearest(select(table.c.id).where(criterion), table.c.embedding, QUERY, k=6, metric="l2")
            after = nearest(select(table.c.id), table.c.embedding, QUERY, k=6, metric="l2").where(criterion)
            assert_equal(connection.execute(before), expected)
            assert_equal(connection.execute(after), expected)
        chained = select(table.c.id).where(table.c.language == "en")
        stmt = nearest(chained, table.c.embedding, QUERY, k=6, metric="l2").where(table.c.year > 1995)
        keep = FILTERS["and"][1]
        assert_equal(connection.execute(stmt), brute_force(vectors, QUERY, 6, "l2", keep=lambda key: keep(rows[key])))

    backend.run_connection(engine_that_indexes(backend), check)


@pytest.mark.parametrize("partition_by", [(), ("year",)], ids=["included", "partition"])
def test_a_whole_number_is_compared_with_a_fraction_as_it_is(backend, partition_by):
    table = Table(
        "item",
        MetaData(),
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("year", Integer, nullable=False),
        Column("embedding", Vector(DIM)),
        vector_index(
            "ix_item", "embedding", metric="l2", partition_by=partition_by, include=() if partition_by else ("year",)
        ),
    )
    vectors = {key: np.full(DIM, key, np.float32) for key in range(1, 12)}
    years = {key: key - 6 for key in vectors}
    comparisons = (operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne)

    def check(connection: Connection) -> None:
        table.create(connection)
        rows = [{"id": key, "year": years[key], "embedding": vector} for key, vector in vectors.items()]
        connection.execute(insert(table), rows)
        given = bindparam("given", type_=table.c.year.type)
        for number in (2.5, -2.5, 2.0, -2.0, 2, -2, 0, 0.5, 1e300, -1e300):
            for compare in comparisons:
                expected = [key for key, year in years.items() if compare(year, number)]
                stmt = nearest(select(table.c.id), table.c.embedding, np.zeros(DIM), k=11)
                found = connection.scalars(stmt.where(compare(table.c.year, number))).all()
                assert found == expected, (compare, number)
                if backend.family == "sqlite":  # PostgreSQL's drivers refuse it, or round it
                    found = connection.scalars(stmt.where(compare(table.c.year, given)), {"given": number}).all()
                    assert found == expected, (compare, number)

    backend.run_connection(engine_that_indexes(backend), check)


@pytest.mark.parametrize("column", ["language", "year", "price", "is_public"])
def test_a_filter_bound_to_null_at_execution_finds_nothing(backend, column):
    """``column = NULL`` is true for no row, also where the index keeps a stand-in for NULL."""
    table = make_items(indexed=True, include=METADATA)
    vectors = make_vectors(60, DIM)

    def check(connection: Connection) -> None:
        fill(connection, table, vectors)
        given = bindparam("given", type_=table.c[column].type)
        stmt = nearest(select(table.c.id).where(table.c[column] == given), table.c.embedding, QUERY, metric="l2")
        assert connection.execute(stmt, {"given": None}).all() == []

    backend.run_connection(engine_that_indexes(backend), check)


def test_statements_share_one_cache_entry_and_keep_their_values(backend):
    """The same statement with other values, k and thresholds: nothing sticks from the first execution."""
    table = make_items(indexed=True, include=("language",))
    vectors = make_vectors(80, DIM)
    rng = np.random.default_rng(11)

    def check(connection: Connection) -> None:
        rows = fill(connection, table, vectors)
        for k in (3, 5, 3):
            for language in ("en", "fr"):
                query = rng.normal(size=DIM).astype(np.float32)
                stmt = select(table.c.id).where(table.c.language == language)
                expected = brute_force(
                    vectors,
                    query,
                    k,
                    "l2",
                    keep=lambda key, language=language: rows[key]["language"] == language,
                    max_distance=4.0,
                )
                assert_equal(
                    connection.execute(nearest(stmt, table.c.embedding, query, k=k, metric="l2", max_distance=4.0)),
                    expected,
                )
        for metric in ("l2", "cosine", "l1", "inner_product"):
            stmt = nearest(select(table.c.id), table.c.embedding, QUERY, k=4, metric=metric)
            assert_equal(connection.execute(stmt), brute_force(vectors, QUERY, 4, metric))

    backend.run_connection(engine_that_indexes(backend), check)


def test_the_query_may_be_any_vector_expression(backend):
    table = make_items(indexed=True)
    vectors = make_vectors(60, DIM)

    def check(connection: Connection) -> None:
        fill(connection, table, vectors)
        for form in (
            list(map(float, QUERY)),
            tuple(map(float, QUERY)),
            QUERY.astype(">f8"),
            np.stack([QUERY] * 2, 1)[:, 0],
        ):
            stmt = nearest(select(table.c.id), table.c.embedding, form, k=5, metric="l2")
            assert_equal(connection.execute(stmt), brute_force(vectors, QUERY, 5, "l2"))
        given = table.alias("given")
        of_row = select(given.c.embedding).where(given.c.id == 7).scalar_subquery()
        stmt = nearest(select(table.c.id), table.c.embedding, of_row, k=5, metric="l2")
        assert_equal(connection.execute(stmt), brute_force(vectors, vectors[7], 5, "l2"))
        without = select(given.c.embedding).where(given.c.id == 4).scalar_subquery()
        stmt = nearest(select(table.c.id), table.c.embedding, without, k=5, metric="l2")
        assert connection.execute(stmt).all() == []
        named = bindparam("query", type_=Vector(DIM))
        stmt = nearest(select(table.c.id), table.c.embedding, named, k=5, metric="l2")
        assert_equal(connection.execute(stmt, {"query": QUERY}), brute_force(vectors, QUERY, 5, "l2"))

    backend.run_connection(engine_that_indexes(backend), check)


def test_distinct_and_group_by_rank_their_own_rows(backend):
    """A result row of DISTINCT or GROUP BY is no row of the table, so the whole of it is ranked."""
    table = make_items(indexed=True)
    vectors = make_vectors(60, DIM)

    def check(connection: Connection) -> None:
        rows = fill(connection, table, vectors)
        ranked = brute_force(vectors, QUERY, 100, "l2")
        column = table.c.embedding
        distinct = nearest(select(table.c.id, table.c.language).distinct(), column, QUERY, k=8, metric="l2")
        assert_equal(connection.execute(distinct), ranked[:8])
        best: dict[object, tuple[int, float]] = {}
        for key, d in ranked:
            best.setdefault(rows[key]["language"], (key, d))
        by_group = nearest(
            select(table.c.id, func.count()).group_by(table.c.id, table.c.embedding), column, QUERY, k=8, metric="l2"
        )
        found = connection.execute(by_group).all()
        assert_equal(found, ranked[:8])
        assert {row[1] for row in found} == {1}
        top = nearest(select(table.c.id, table.c.language), column, QUERY, k=50, metric="l2").subquery()
        grouped = select(top.c.language, func.min(top.c.distance)).group_by(top.c.language)
        assert dict(connection.execute(grouped).all()) == {
            language: pytest.approx(d, rel=1e-5) for language, (_, d) in best.items()
        }

    backend.run_connection(engine_that_indexes(backend), check)


def test_an_empty_table_and_a_table_without_vectors_give_no_rows(backend):
    table = make_items(indexed=True)

    def check(connection: Connection) -> None:
        table.create(connection)
        stmt = nearest(select(table.c.id), table.c.embedding, QUERY, metric="l2")
        assert connection.execute(stmt).all() == []
        connection.execute(insert(table), [{"id": number} for number in range(5)])
        assert connection.execute(stmt).all() == []
        assert connection.execute(stmt.where(table.c.id > 2)).all() == []
        connection.execute(delete(table))
        assert connection.execute(stmt.offset(3)).all() == []

    backend.run_connection(engine_that_indexes(backend), check)


def test_composite_keys_are_searched_exactly_everywhere(backend):
    table = Table(
        "part",
        MetaData(),
        Column("tenant", String(5), primary_key=True),
        Column("number", Integer, primary_key=True),
        Column("embedding", Vector(DIM)),
    )
    vectors = {("ab"[key % 2], key): vector for key, vector in make_vectors(60, DIM).items()}

    def check(connection: Connection) -> None:
        table.create(connection)
        rows = [{"tenant": t, "number": n, "embedding": v} for (t, n), v in vectors.items()]
        connection.execute(insert(table), rows)
        column = table.c.embedding
        for stmt, keep in (
            (select(table.c.tenant, table.c.number), lambda key: True),
            (select(table.c.tenant, table.c.number).where(table.c.tenant == "a"), lambda key: key[0] == "a"),
        ):
            found = connection.execute(nearest(stmt, column, QUERY, k=9, metric="l2").offset(2)).all()
            expected = brute_force(vectors, QUERY, 9, "l2", keep=keep, offset=2)
            assert_equal([((row.tenant, row.number), row.distance) for row in found], expected)

    backend.run_connection(engine_that_indexes(backend), check)


@pytest.mark.backends(family="sqlite")
def test_more_rows_than_vec0_returns_are_found_exactly(backend):
    table = make_items(indexed=True)
    rng = np.random.default_rng(0)
    vectors = dict(enumerate(rng.normal(size=(4_400, DIM)).astype(np.float32), start=1))
    vectors |= dict.fromkeys(range(5_000, 5_100), vectors[1])

    def check(connection: Connection) -> None:
        fill(connection, table, vectors)
        for k, offset in ((4_095, 0), (4_096, 0), (4_097, 0), (4_500, 0), (50, 4_090), (5, 4_200), (4_000, 400)):
            stmt = nearest(select(table.c.id), table.c.embedding, QUERY, k=k, metric="l2")
            found = connection.execute(stmt.offset(offset) if offset else stmt).all()
            assert [row.id for row in found] == [key for key, _ in brute_force(vectors, QUERY, k, "l2", offset=offset)]
        # More equal vectors than fit beside k: vec0 may break the tie as it likes, the result may not.
        stmt = nearest(select(table.c.id), table.c.embedding, vectors[1], k=40, metric="l2")
        assert [row.id for row in connection.execute(stmt)] == [1, *range(5_000, 5_039)]
        each = nearest_each(select(table.c.id), table.c.embedding, [vectors[1], QUERY], k=40, metric="l2")
        first = [row.id for row in connection.execute(each) if row.query == 0]
        assert first == [1, *range(5_000, 5_039)]

    backend.run_connection(engine_that_indexes(backend), check)


@pytest.mark.backends(family="sqlite")
def test_more_equal_vectors_than_vec0_returns_still_tie_by_key(backend):
    table = make_items(indexed=True)
    vectors = {key: np.ones(DIM, np.float32) for key in reversed(range(1, 4_301))}

    def check(connection: Connection) -> None:
        fill(connection, table, vectors)
        stmt = nearest(select(table.c.id), table.c.embedding, QUERY, k=30, metric="l2")
        assert [row.id for row in connection.execute(stmt)] == list(range(1, 31))
        assert [row.id for row in connection.execute(stmt.offset(30))] == list(range(31, 61))

    backend.run_connection(engine_that_indexes(backend), check)


def test_literal_binds_give_a_statement_that_runs_as_it_stands(backend):
    table = make_items(indexed=True, include=("language",))
    vectors = make_vectors(60, DIM)

    def check(connection: Connection) -> None:
        rows = fill(connection, table, vectors)
        stmt = nearest(
            select(table.c.id).where(table.c.language == "en"),
            table.c.embedding,
            QUERY,
            k=5,
            metric="l2",
            max_distance=9,
        ).offset(1)
        script = str(stmt.compile(connection, compile_kwargs={"literal_binds": True}))
        found = connection.exec_driver_sql(script.replace("%", "%%") if backend.family == "postgresql" else script)
        expected = brute_force(
            vectors, QUERY, 5, "l2", keep=lambda key: rows[key]["language"] == "en", offset=1, max_distance=9
        )
        assert_equal(found, expected)
        assert distance("l2", vectors[expected[0][0]], QUERY) == pytest.approx(expected[0][1])

    backend.run_connection(engine_that_indexes(backend), check)
