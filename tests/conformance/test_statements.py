"""Distances and vectors in every part of a statement."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sqlalchemy import (
    Column,
    Connection,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    and_,
    bindparam,
    case,
    cast,
    delete,
    desc,
    except_,
    exists,
    func,
    insert,
    intersect,
    lateral,
    literal,
    select,
    text,
    true,
    tuple_,
    type_coerce,
    union,
    union_all,
    update,
    values,
)
from sqlalchemy.dialects import postgresql, sqlite

import sqla_vector as sv
from sqla_vector import BitVector, HalfVector, SparseArray, SparseVector, Vector
from tests.support.backends import AnyEngine, Backend
from tests.support.statements import statements_of, sync_engine

metadata = MetaData()
author = Table(
    "author",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(20), unique=True),
    Column("centre", Vector(2)),
)
item = Table(
    "item",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("author_id", ForeignKey("author.id")),
    Column("e", Vector(2)),
    Column("h", HalfVector(2)),
    Column("s", SparseVector(2)),
    Column("b", BitVector(2)),
)

# Item n stands at (n, 0), of author 1 (odd) or 2 (even); item 7 has no vector.
AUTHORS = [{"id": 1, "name": "Ada", "centre": [1, 0]}, {"id": 2, "name": "Bob", "centre": [4, 0]}]
ITEMS: list[dict[str, Any]] = [
    {"id": n, "author_id": 2 - n % 2, "e": [n, 0], "h": [n, 0], "s": [n, 0], "b": [n % 2, 1]} for n in range(1, 7)
]
ITEMS.append({"id": 7, "author_id": 1, "e": None, "h": None, "s": None, "b": None})

ORIGIN = [0.0, 0.0]
distance = sv.l2_distance(item.c.e, ORIGIN)


@pytest.fixture
def filled(backend: Backend, engine: AnyEngine) -> AnyEngine:
    def fill(connection: Connection) -> None:
        connection.execute(insert(author), AUTHORS)
        connection.execute(insert(item), ITEMS)

    backend.create_all(engine, metadata)
    backend.run_connection(engine, fill)
    return engine


def rows(connection: Connection, statement: Any, parameters: Any = None) -> list[tuple[Any, ...]]:
    """Return the rows with vectors as lists."""
    return [
        tuple(value.tolist() if isinstance(value, np.ndarray) else value for value in row)
        for row in connection.execute(statement, parameters)
    ]


def test_joins_and_aliases(backend: Backend, filled: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        joined = (
            select(author.c.name, item.c.id, sv.l2_distance(item.c.e, author.c.centre))
            .join_from(author, item)
            .where(item.c.id.in_([2, 5]))
            .order_by(item.c.id)
        )
        assert rows(connection, joined) == [("Bob", 2, 2.0), ("Ada", 5, 4.0)]
        outer = (
            select(author.c.id, item.c.e)
            .outerjoin_from(author, item, and_(item.c.author_id == author.c.id, distance > 5.5))
            .order_by(author.c.id)
        )
        assert rows(connection, outer) == [(1, None), (2, [6, 0])]
        on_distance = select(item.c.id).join(author, sv.l2_distance(item.c.e, author.c.centre) < 0.5)
        assert rows(connection, on_distance.order_by(item.c.id)) == [(1,), (4,)]
        near, far = item.alias("near"), item.alias("far")
        pairs = (
            select(near.c.id, far.c.id, sv.l2_distance(near.c.e, far.c.e).label("d"))
            .join(far, near.c.id < far.c.id)
            .where(near.c.e.l2_distance(far.c.e) > 3.5)
            .order_by("d", near.c.id)
        )
        assert rows(connection, pairs) == [(1, 5, 4.0), (2, 6, 4.0), (1, 6, 5.0)]

    backend.run_connection(filled, body)


def test_subqueries_ctes_and_laterals(backend: Backend, filled: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        inner = select(item.c.id, item.c.e, item.c.s, item.c.b, distance.label("d")).where(distance < 3.5)
        for source in (inner.subquery(), inner.cte("near"), inner.cte("near", nesting=True)):
            outer = select(source).where(source.c.d > 1.5).order_by(source.c.d.desc())
            assert rows(connection, outer) == [
                (3, [3, 0], SparseArray(2, {0: 3.0}), [True, True], 3.0),
                (2, [2, 0], SparseArray(2, {0: 2.0}), [False, True], 2.0),
            ]
            again = select(source.c.id, sv.l2_distance(source.c.e, [3, 1])).order_by(source.c.id.desc()).limit(1)
            assert rows(connection, again) == [(3, 1.0)]
            mean = select(sv.avg(source.c.e))
            assert rows(connection, mean) == [([2, 0],)]
        scalar = select(item.c.e).where(item.c.id == 3).scalar_subquery()
        assert rows(
            connection, select(item.c.id).where(sv.l2_distance(item.c.e, scalar) < 1.5).order_by(item.c.id)
        ) == [
            (2,),
            (3,),
            (4,),
        ]
        assert rows(connection, select(scalar)) == [([3, 0],)]
        nowhere = select(item.c.e).where(item.c.id == 99).scalar_subquery()
        assert rows(connection, select(sv.l2_distance(item.c.e, nowhere)).limit(1)) == [(None,)]
        correlated = select(func.min(sv.l2_distance(item.c.e, author.c.centre))).where(item.c.author_id == author.c.id)
        assert rows(connection, select(author.c.id, correlated.scalar_subquery()).order_by(author.c.id)) == [
            (1, 0.0),
            (2, 0.0),
        ]
        where = exists().where(item.c.author_id == author.c.id, distance > 5.5)
        assert rows(connection, select(author.c.name).where(where)) == [("Bob",)]
        recursive = select(item.c.id, item.c.e).where(item.c.id == 1).cte("path", recursive=True)
        recursive = recursive.union_all(select(item.c.id, item.c.e).join(recursive, item.c.id == recursive.c.id + 2))
        assert rows(connection, select(recursive.c.e).order_by(recursive.c.id)) == [
            ([1, 0],),
            ([3, 0],),
            ([5, 0],),
            (None,),
        ]

    backend.run_connection(filled, body)


@pytest.mark.backends(family="postgresql")
def test_laterals(backend: Backend, filled: AnyEngine) -> None:
    d = sv.l2_distance(item.c.e, author.c.centre)
    nearest = lateral(select(item.c.id, item.c.e, d.label("d")).order_by(d, item.c.id).limit(2))
    statement = select(author.c.id, nearest).join(nearest, true()).order_by(author.c.id, nearest.c.d, nearest.c.id)
    found = backend.run_connection(filled, lambda connection: rows(connection, statement))
    assert found == [(1, 1, [1, 0], 0.0), (1, 2, [2, 0], 1.0), (2, 4, [4, 0], 0.0), (2, 3, [3, 0], 1.0)]


def test_unions_and_distinct(backend: Backend, filled: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        low = select(item.c.id, item.c.e, item.c.h, item.c.s, item.c.b, distance.label("d")).where(item.c.id <= 2)
        mid = low.with_only_columns(*low.selected_columns).where(item.c.id >= 2)
        high = select(item.c.id, item.c.e, item.c.h, item.c.s, item.c.b, distance.label("d")).where(item.c.id == 3)
        every = (1, 2, 3)

        def expected(*ids: int) -> list[tuple[Any, ...]]:
            return [(n, [n, 0], [n, 0], SparseArray(2, {0: float(n)}), [bool(n % 2), True], float(n)) for n in ids]

        assert rows(connection, union_all(low, high).order_by("d")) == expected(*every)
        assert rows(connection, union(low, mid, high).order_by("id")) == expected(*every)
        assert rows(connection, intersect(low, mid)) == expected(2)
        assert rows(connection, except_(low, mid)) == expected(1)
        together = union_all(low, high).subquery()
        nearest = select(together.c.id).order_by(sv.l2_distance(together.c.e, [3, 0])).limit(2)
        assert rows(connection, nearest) == [(3,), (2,)]

        connection.execute(insert(item), [{**ITEMS[0], "id": 11}, {**ITEMS[0], "id": 12}])
        assert sorted(rows(connection, select(item.c.e).distinct().where(distance < 2.5))) == [([1, 0],), ([2, 0],)]
        distances = select(distance.label("d")).where(item.c.e.is_not(None)).distinct().order_by("d")
        assert rows(connection, distances) == [(float(n),) for n in range(1, 7)]
        counted = select(item.c.e, func.count()).group_by(item.c.e).having(func.count() > 1)
        assert rows(connection, counted) == [([1, 0], 3)]

    backend.run_connection(filled, body)


@pytest.mark.backends(family="postgresql")
def test_distinct_on_a_vector(backend: Backend, filled: AnyEngine) -> None:
    statement = (
        select(item.c.author_id, item.c.e).ext(postgresql.distinct_on(item.c.author_id))
        if hasattr(postgresql, "distinct_on")
        else select(item.c.author_id, item.c.e).distinct(item.c.author_id)
    )
    statement = statement.order_by(item.c.author_id, distance.desc().nulls_last())
    found = backend.run_connection(filled, lambda connection: rows(connection, statement))
    assert found == [(1, [5, 0]), (2, [6, 0])]


def test_labels_order_and_window_functions(backend: Backend, filled: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        labelled = distance.label("d")
        expected = [(n, float(n)) for n in (1, 2, 3)]
        base = select(item.c.id, labelled)
        for statement in (
            base.order_by("d"),
            base.order_by(labelled),
            base.order_by(distance),
            base.order_by(text("2")),
        ):
            assert rows(connection, statement.where(item.c.e.is_not(None)).limit(3)) == expected
        assert rows(connection, base.order_by(labelled.desc().nulls_last()).limit(1)) == [(6, 6.0)]
        assert rows(connection, base.order_by("d").offset(4).limit(2)) == [(5, 5.0), (6, 6.0)]
        assert rows(connection, base.where(labelled.element < 1.5)) == [(1, 1.0)]
        assert rows(connection, select(item.c.id, (distance * 2 + 1).label("x")).order_by("x").limit(1)) == [(1, 3.0)]
        assert rows(connection, select(func.round(cast(distance, Integer) + 0.0)).where(item.c.id == 3)) == [(3,)]

        ranked = select(
            item.c.id,
            func.rank().over(partition_by=item.c.author_id, order_by=distance).label("r"),
            func.sum(distance).over(order_by=item.c.id, rows=(None, 0)),
            func.lag(distance).over(order_by=item.c.id),
        ).where(item.c.id <= 4)
        assert rows(connection, ranked.order_by(item.c.id)) == [
            (1, 1, 1.0, None),
            (2, 1, 3.0, 1.0),
            (3, 2, 6.0, 2.0),
            (4, 2, 10.0, 3.0),
        ]
        best = ranked.subquery()
        assert rows(connection, select(best.c.id).where(best.c.r == 1).order_by(best.c.id)) == [(1,), (2,)]

        # NULL distances are last also where the distance is part of an expression or comes from a subquery.
        source = base.subquery()
        for key in (
            distance * 2,
            0 - distance,
            source.c.d,
            sv.similarity(item.c.e, ORIGIN, "l2"),
            sv.l2_norm(item.c.e),
        ):
            column = source.c.id if key is source.c.d else item.c.id
            ids = [row[0] for row in rows(connection, select(column, key.label("x")).order_by(key))]
            assert (ids[-1], len(ids)) == (7, 7), str(key)
            for order in ("x", key.label("x")):
                assert rows(connection, select(column, key.label("x")).order_by(order))[-1][0] == 7, str(key)
            assert rows(connection, select(column, key.label("x")).order_by(key.desc()))[0][0] == 7, str(key)
        both = union_all(base.where(item.c.id > 5), base.where(item.c.id < 2))
        assert [row[0] for row in rows(connection, both.order_by("d"))] == [1, 6, 7]
        assert [row[0] for row in rows(connection, both.order_by(desc("d")))] == [7, 6, 1]
        by_author = select(item.c.author_id, func.min(distance).label("m")).where(item.c.id.in_([2, 7]))
        assert rows(connection, by_author.group_by(item.c.author_id).order_by("m")) == [(2, 2.0), (1, None)]

        # In CASE, in an aggregate, in GROUP BY, with BETWEEN.
        near = case((distance <= 2, "near"), (distance.is_(None), "none"), else_="far").label("place")
        grouped = select(near, func.count(), func.min(distance)).group_by(near).order_by(near)
        assert rows(connection, grouped) == [("far", 4, 3.0), ("near", 2, 1.0), ("none", 1, None)]
        assert rows(connection, select(func.avg(distance), func.max(distance))) == [(3.5, 6.0)]
        assert rows(connection, select(item.c.id).where(distance.between(1.5, 2.5))) == [(2,)]
        assert rows(connection, select(item.c.id).where(~(distance < 5.5))) == [(6,)]

    backend.run_connection(filled, body)


def test_writes_of_every_form(backend: Backend, filled: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        connection.execute(insert(item).values([{"id": 20, "e": [2, 0]}, {"id": 21, "e": [2, 1]}]))
        connection.execute(insert(item).from_select(["id", "e"], select(item.c.id + 100, item.c.e + item.c.e)))
        assert rows(connection, select(item.c.e).where(item.c.id == 106)) == [([12, 0],)]
        connection.execute(
            update(item).where(item.c.id == bindparam("key")).values(e=bindparam("new")),
            [{"key": 20, "new": [20, 0]}, {"key": 21, "new": [21, 0]}],
        )
        assert rows(connection, select(item.c.e).where(item.c.id.in_([20, 21])).order_by(item.c.id)) == [
            ([20, 0],),
            ([21, 0],),
        ]
        centre = select(author.c.centre).where(author.c.id == item.c.author_id).scalar_subquery()
        connection.execute(update(item).where(item.c.id == 5).values(e=centre))
        assert rows(connection, select(item.c.e).where(item.c.id == 5)) == [([1, 0],)]
        connection.execute(
            update(item).where(item.c.author_id == author.c.id, author.c.id == 2).values(e=author.c.centre)
        )
        assert rows(connection, select(item.c.e).where(item.c.author_id == 2).distinct()) == [([4, 0],)]
        connection.execute(
            update(item).where(item.c.id == 5).values(e=case((item.c.id > 3, literal([8, 8], Vector(2)))))
        )
        assert rows(connection, select(item.c.e).where(item.c.id == 5)) == [([8, 8],)]
        assert connection.execute(delete(item).where(item.c.e == [8, 8])).rowcount == 1
        parameters = [{"id": 300 + n, "e": [n, n]} for n in range(30)]
        returned = connection.execute(insert(item).returning(item.c.id, item.c.e, distance), parameters)
        assert sorted((row[0], row[1].tolist(), round(row[2], 4)) for row in returned) == [
            (300 + n, [n, n], round(n * 2**0.5, 4)) for n in range(30)
        ]

    backend.run_connection(filled, body)


def test_upserts(backend: Backend, filled: AnyEngine) -> None:
    dialect_insert: Any = postgresql.insert if backend.family == "postgresql" else sqlite.insert

    def body(connection: Connection) -> None:
        given = dialect_insert(item)
        upsert = given.on_conflict_do_update(
            index_elements=[item.c.id],
            set_={"e": given.excluded.e, "h": item.c.h + given.excluded.h, "s": [0, 9]},
            where=sv.l2_distance(item.c.e, given.excluded.e) > 0.5,
        )
        new = [
            {"id": 1, "e": [1, 0], "h": [1, 1]},  # equal to what is there, so the condition leaves it alone
            {"id": 2, "e": [5, 5], "h": [1, 1]},
            {"id": 9, "e": [9, 9], "h": [9, 9]},
        ]
        connection.execute(upsert, new)
        assert rows(
            connection,
            select(item.c.id, item.c.e, item.c.h, item.c.s).where(item.c.id.in_([1, 2, 9])).order_by(item.c.id),
        ) == [
            (1, [1, 0], [1, 0], SparseArray(2, {0: 1.0})),
            (2, [5, 5], [3, 1], SparseArray(2, {1: 9.0})),
            (9, [9, 9], [9, 9], None),
        ]
        single = dialect_insert(author).values(name="Ada", centre=[7, 7])
        single = single.on_conflict_do_update(
            index_elements=["name"], set_={"centre": single.excluded.centre * author.c.centre}
        ).returning(author.c.id, author.c.centre)
        assert rows(connection, single) == [(1, [7, 0])]
        ignored = dialect_insert(author).on_conflict_do_nothing()
        connection.execute(ignored, [{"id": 1, "name": "Eve", "centre": [0, 0]}])
        assert rows(connection, select(author.c.name, author.c.centre).where(author.c.id == 1)) == [("Ada", [7, 0])]

    backend.run_connection(filled, body)


def test_literals_casts_and_coercions(backend: Backend, filled: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        statement = select(
            item.c.id,
            sv.cosine_distance(item.c.e, [1, 1]).label("c"),
            sv.l1_distance(item.c.h, [1, 1]),
            sv.l2_distance(item.c.s, [0, 1]),
            sv.hamming_distance(item.c.b, [1, 0]),
            sv.jaccard_distance(item.c.b, [1, 0]),
        ).where(item.c.e != [9, 9])
        statement = statement.order_by("c", item.c.id)
        written = str(
            statement.compile(dialect=sync_engine(filled).dialect, compile_kwargs={"literal_binds": True})
        ).replace("%%", "%")
        # As the statement runs with parameters, so does the text, in which they are written out.
        result = connection.execute(text(written.replace(":", r"\:")))
        assert [tuple(row) for row in result] == [tuple(row) for row in connection.execute(statement)]

        assert rows(connection, select(literal([1, 2], Vector(2)))) == [([1, 2],)]
        assert rows(connection, select(literal([1, 0, 1], BitVector(3)))) == [([True, False, True],)]
        assert rows(connection, select(sv.l2_distance(literal([1, 2], Vector(2)), [1, 4]))) == [(2.0,)]
        assert rows(connection, select(type_coerce(item.c.e, Vector(2))).where(item.c.id == 1)) == [([1, 0],)]
        assert rows(
            connection, select(func.coalesce(item.c.e, author.c.centre)).join_from(item, author).where(item.c.id == 7)
        ) == [([1, 0],)]
        assert rows(connection, select(func.max(item.c.id)).where(tuple_(item.c.id, item.c.e).in_([(2, [2, 0])]))) == [
            (2,)
        ]

    backend.run_connection(filled, body)


@pytest.mark.backends(family="postgresql")
def test_casts_between_the_types_of_pgvector(backend: Backend, filled: AnyEngine) -> None:
    table = values(Column("n", Integer), Column("v", Vector(2)), name="given").data([(1, [1, 1]), (2, [2, 2])])

    def body(connection: Connection) -> None:
        one = select(item).where(item.c.id == 3).subquery()
        assert rows(connection, select(cast(one.c.e, HalfVector(2)), cast(one.c.h, Vector(2)))) == [([3, 0], [3, 0])]
        assert rows(connection, select(cast(one.c.e, SparseVector(2)))) == [(SparseArray(2, {0: 3.0}),)]
        assert rows(connection, select(cast(one.c.e, HalfVector(2)).l2_distance([3, 1]))) == [(1.0,)]
        assert rows(connection, select(table.c.n, sv.l2_distance(table.c.v, [1, 2])).order_by(table.c.n)) == [
            (1, 1.0),
            (2, 1.0),
        ]

    backend.run_connection(filled, body)


def test_text_with_typed_columns_reads_vectors(backend: Backend, filled: AnyEngine) -> None:
    if backend.family == "postgresql":
        statement = text("SELECT id, vector_send(e) AS e FROM item WHERE id = 2").columns(id=Integer, e=Vector(2))
    else:
        statement = text("SELECT id, e FROM item WHERE id = 2").columns(id=Integer, e=Vector(2))
    assert backend.run_connection(filled, lambda connection: rows(connection, statement)) == [(2, [2, 0])]


def test_a_batch_of_rows_is_one_statement(backend: Backend, filled: AnyEngine) -> None:
    statement = insert(item).returning(item.c.id, item.c.e)
    given = [{"id": 1000 + n, "e": [n, 1], "h": [n, 1], "s": [n, 1], "b": [1, 1]} for n in range(100)]

    def body(connection: Connection) -> list[tuple[Any, ...]]:
        return rows(connection, statement, given)

    with statements_of(filled) as sent:
        found = backend.run_connection(filled, body)
    assert len(sent) == 1
    assert sorted(found) == [(1000 + n, [n, 1]) for n in range(100)]


def test_streamed_results_of_core(backend: Backend, filled: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        statement = select(item.c.id, item.c.e, distance).order_by(distance)
        for options in ({"stream_results": True}, {"yield_per": 2}, {"stream_results": True, "max_row_buffer": 1}):
            result = connection.execution_options(**options).execute(statement)
            assert [row.id for row in result] == [1, 2, 3, 4, 5, 6, 7]
            with connection.execute(statement, execution_options=options) as result:
                assert result.fetchone().e.tolist() == [1, 0]
                assert [row.id for row in result.fetchmany(2)] == [2, 3]

    backend.run_connection(filled, body)
