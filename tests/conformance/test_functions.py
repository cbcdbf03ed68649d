"""Operators, functions and aggregates over vectors, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sqlalchemy import Column, Connection, Integer, MetaData, Table, and_, func, insert, literal, select, update
from sqlalchemy.exc import DBAPIError

import sqla_vector as sv
from sqla_vector import HalfVector, SparseArray, SparseVector, Vector, VectorError
from tests.support.backends import AnyEngine, Backend

metadata = MetaData()
item = Table(
    "item",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("grp", Integer),
    Column("e", Vector(3)),
    Column("h", HalfVector(3)),
    Column("s", SparseVector(5)),
    Column("free", Vector()),
)
NULL_ID, ZERO_ID = 5, 6
E = np.array([[1, -2, 3], [0.5, 0.25, -0.125], [3, 4, 0], [-1, 1, 2]], np.float32)
ROWS: list[dict[str, Any]] = [
    {
        "id": number,
        "grp": number % 2,
        "e": vector,
        "h": vector,
        "s": SparseArray(5, {0: vector[0], 4: vector[2]}),
        "free": list(range(1, number + 1)),
    }
    for number, vector in enumerate(E, 1)
]
ROWS.append({"id": NULL_ID, "grp": 1, "e": None, "h": None, "s": None, "free": None})
ROWS.append({"id": ZERO_ID, "grp": 2, "e": [0, 0, 0], "h": [0, 0, 0], "s": SparseArray(5, {}), "free": [0]})

OTHER = np.array([2, 3, -4], np.float32)


@pytest.fixture
def filled(backend: Backend, engine: AnyEngine) -> AnyEngine:
    backend.create_all(engine, metadata)
    backend.run_connection(engine, lambda connection: connection.execute(insert(item), ROWS))
    return engine


def column_of(connection: Connection, expression: Any) -> dict[int, Any]:
    return dict(map(tuple, connection.execute(select(item.c.id, expression))))


def same(found: Any, expected: Any, dtype: Any = np.float32) -> bool:
    assert found.dtype == dtype
    assert not found.flags.writeable
    return bool(np.allclose(found, expected, rtol=1e-3 if dtype == np.float16 else 1e-6))


def test_elementwise_operators_are_numpys(backend: Backend, filled: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        for name, dtype in (("e", np.float32), ("h", np.float16)):
            column = item.c[name]
            for expression, expected in (
                (column + OTHER, lambda v: v + OTHER),
                (column - OTHER, lambda v: v - OTHER),
                (column * OTHER, lambda v: v * OTHER),
                (column + column, lambda v: v + v),
                ((column - OTHER) * column + OTHER, lambda v: (v - OTHER) * v + OTHER),
            ):
                found = column_of(connection, expression)
                assert found.pop(NULL_ID) is None
                assert same(found.pop(ZERO_ID), expected(np.zeros(3)), dtype)
                assert all(same(found[n], expected(v), dtype) for n, v in enumerate(E, 1)), str(expression)

    backend.run_connection(filled, body)


def test_concat_appends(backend: Backend, filled: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        for name, dtype in (("e", np.float32), ("h", np.float16)):
            found = column_of(connection, item.c[name].concat([7, 8]))
            assert found[NULL_ID] is None
            assert same(found[1], [1, -2, 3, 7, 8], dtype)
            found = column_of(connection, item.c[name].concat(item.c[name]))
            assert same(found[3], [3, 4, 0, 3, 4, 0], dtype)
        # The result is a vector like any other.
        longer = item.c.e.concat([7, 8])
        d = column_of(connection, sv.l2_distance(longer, [1, -2, 3, 7, 9]))
        assert d[1] == pytest.approx(1.0)
        assert column_of(connection, sv.vector_dims(longer))[1] == 5

    backend.run_connection(filled, body)


def test_norm_normalize_and_dims(backend: Backend, filled: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        for name, dtype in (("e", np.float32), ("h", np.float16)):
            norms = column_of(connection, sv.l2_norm(item.c[name]))
            assert norms.pop(NULL_ID) is None
            assert norms.pop(ZERO_ID) == 0.0
            assert list(norms.values()) == pytest.approx(np.linalg.norm(E, axis=1).tolist(), rel=1e-5)
            unit = column_of(connection, sv.l2_normalize(item.c[name]))
            assert unit[NULL_ID] is None
            assert same(unit[ZERO_ID], [0, 0, 0], dtype)
            assert same(unit[3], [0.6, 0.8, 0.0], dtype)
            dims = column_of(connection, sv.vector_dims(item.c[name]))
            assert dims.pop(NULL_ID) is None
            assert set(dims.values()) == {3}
        assert column_of(connection, sv.vector_dims(item.c.free)) == {1: 1, 2: 2, 3: 3, 4: 4, 5: None, 6: 1}

    backend.run_connection(filled, body)


def test_norm_and_normalize_of_sparse_vectors(backend: Backend, filled: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        norms = column_of(connection, sv.l2_norm(item.c.s))
        assert norms[NULL_ID] is None
        assert norms[ZERO_ID] == 0.0
        assert norms[1] == pytest.approx(10**0.5, rel=1e-5)
        unit = column_of(connection, sv.l2_normalize(item.c.s))
        assert unit[NULL_ID] is None
        assert unit[ZERO_ID] == SparseArray(5, {})
        assert unit[3] == SparseArray(5, {0: 1.0})

    backend.run_connection(filled, body)


def test_subvector_counts_from_one(backend: Backend, filled: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        for name, dtype in (("e", np.float32), ("h", np.float16)):
            for start, count in ((1, 3), (1, 1), (2, 2), (3, 1)):
                found = column_of(connection, sv.subvector(item.c[name], start, count))
                assert found[NULL_ID] is None
                for number, vector in enumerate(E, 1):
                    assert same(found[number], vector[start - 1 : start - 1 + count], dtype)
        d = column_of(connection, sv.l1_distance(sv.subvector(item.c.e, 2, 2), [0, 0]))
        assert d[1] == pytest.approx(5.0)

    backend.run_connection(filled, body)


def test_binary_quantize_sets_a_bit_for_what_is_positive(backend: Backend, filled: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        for name in ("e", "h"):
            found = column_of(connection, sv.binary_quantize(item.c[name]))
            assert found[NULL_ID] is None
            assert found[1].tolist() == [True, False, True]
            assert found[3].tolist() == [True, True, False]
            assert found[ZERO_ID].tolist() == [False, False, False]
            bits = sv.binary_quantize(item.c[name])
            assert column_of(connection, sv.hamming_distance(bits, [True, True, True]))[1] == 1.0
            assert column_of(connection, sv.jaccard_distance(bits, [True, True, True]))[1] == pytest.approx(1 / 3)

    backend.run_connection(filled, body)


def test_avg_and_sum_are_elementwise_and_ignore_null(backend: Backend, filled: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        for name, dtype in (("e", np.float32), ("h", np.float16)):
            column = item.c[name]
            mean, total = connection.execute(select(sv.avg(column), sv.sum(column)).where(item.c.id != ZERO_ID)).one()
            assert same(mean, E.mean(axis=0), dtype)
            assert same(total, E.sum(axis=0), dtype)
            groups = connection.execute(
                select(item.c.grp, sv.avg(column), sv.sum(column)).group_by(item.c.grp).order_by(item.c.grp)
            ).all()
            assert [group for group, _, _ in groups] == [0, 1, 2]
            assert same(groups[1][1], E[[0, 2]].mean(axis=0), dtype)
            assert same(groups[0][2], E[[1, 3]].sum(axis=0), dtype)
            none = connection.execute(select(sv.avg(column), sv.sum(column)).where(item.c.id == NULL_ID)).one()
            assert tuple(none) == (None, None)
        centroid = select(sv.avg(item.c.e)).where(item.c.id != ZERO_ID).scalar_subquery()
        found = column_of(connection, sv.l2_distance(item.c.e, centroid))
        assert found[1] == pytest.approx(float(np.linalg.norm(E[0] - E.mean(axis=0))), rel=1e-5)
        having = select(item.c.grp).group_by(item.c.grp).having(sv.l2_norm(sv.sum(item.c.e)) > 3.6)
        norms = {group: np.linalg.norm(E[rows].sum(axis=0)) for group, rows in ((0, [1, 3]), (1, [0, 2]))}
        assert set(connection.scalars(having)) == {group for group, norm in norms.items() if norm > 3.6}

    backend.run_connection(filled, body)


def test_functions_can_write(backend: Backend, filled: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        connection.execute(update(item).values(e=sv.l2_normalize(item.c.e), h=item.c.h + OTHER))
        found = column_of(connection, item.c.e)
        assert found[NULL_ID] is None
        assert same(found[3], [0.6, 0.8, 0.0])
        assert same(column_of(connection, item.c.h)[3], E[2] + OTHER, np.float16)
        copied = select(item.c.id + 100, item.c.grp, item.c.e * OTHER).where(item.c.id == 3)
        connection.execute(insert(item).from_select(["id", "grp", "e"], copied))
        assert same(column_of(connection, item.c.e)[103], [1.2, 2.4, 0.0])

    backend.run_connection(filled, body)


def test_vectors_can_be_compared_for_equality_and_null(backend: Backend, filled: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        def ids(*criteria: Any) -> list[int]:
            return list(connection.scalars(select(item.c.id).where(and_(*criteria)).order_by(item.c.id)))

        for name in ("e", "h"):
            column = item.c[name]
            assert ids(column == E[2]) == [3]
            assert ids(column != E[2]) == [1, 2, 4, 6]
            assert ids(column.in_([E[0], E[2].tolist()])) == [1, 3]
            assert ids(column.not_in([E[0], E[2]])) == [2, 4, 6]
            assert ids(column.is_(None)) == [NULL_ID]
            assert ids(column.is_not(None), item.c.id > 4) == [6]
            assert ids(column == None) == [NULL_ID]  # noqa: E711
        assert ids(item.c.s == SparseArray(5, {0: 3.0})) == [3]
        assert connection.scalar(select(func.count(item.c.e.distinct()))) == 5
        assert len(connection.execute(select(func.coalesce(item.c.e, literal(OTHER, Vector(3)))).distinct()).all()) == 6

    backend.run_connection(filled, body)


def test_a_result_too_large_to_hold_is_an_error_and_is_not_stored(backend: Backend, filled: AnyEngine) -> None:
    e, h = item.c.e, item.c.h
    huge = np.array([3e38, 1, 1], np.float32)
    backend.run_connection(
        filled, lambda connection: connection.execute(update(item).where(item.c.id == 1).values(e=huge))
    )
    for statement in (
        update(item).where(item.c.id == 1).values(e=e + huge),
        update(item).where(item.c.id == 1).values(e=e - huge * -1),
        update(item).where(item.c.id == 1).values(e=e * huge),
        select(h * [60000, 1, 1]).where(item.c.id == 3),
    ):
        with pytest.raises((DBAPIError, VectorError)):
            backend.run_connection(filled, lambda connection: connection.execute(statement).all())  # noqa: B023
    stored = backend.run_connection(filled, lambda connection: column_of(connection, e))
    assert stored[1].tobytes() == huge.tobytes()


def test_vectors_of_different_lengths_do_not_add_up(backend: Backend, filled: AnyEngine) -> None:
    for ids in ([1, 2], [2, 1], [3, 1]):
        given = select(item.c.free).where(item.c.id.in_(ids)).order_by(item.c.id.desc()).limit(5).subquery()
        for aggregate in (sv.sum, sv.avg):
            with pytest.raises(DBAPIError):
                backend.run_connection(
                    filled,
                    lambda connection: connection.execute(select(aggregate(given.c.free))).all(),  # noqa: B023
                )
    for expression in (item.c.free + item.c.e, sv.l2_distance(item.c.free, item.c.e), item.c.e * item.c.free):
        with pytest.raises(DBAPIError):
            backend.run_connection(
                filled,
                lambda connection: connection.execute(select(expression).where(item.c.id == 1)).all(),  # noqa: B023
            )
