"""Every distance and similarity of every type, against numpy in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sqlalchemy import Column, Connection, Integer, MetaData, Table, and_, desc, func, insert, select, union_all
from sqlalchemy.orm import aliased

import sqla_vector as sv
from sqla_vector import BitVector, HalfVector, SparseArray, SparseVector, Vector
from sqla_vector.metrics import METRICS
from tests.support import reference
from tests.support.backends import AnyEngine, Backend

DIM, BITS = 7, 11

metadata = MetaData()
item = Table(
    "item",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("vector", Vector(DIM)),
    Column("halfvec", HalfVector(DIM)),
    Column("sparsevec", SparseVector(DIM)),
    Column("bit", BitVector(BITS)),
)
KINDS = ("vector", "halfvec", "sparsevec", "bit")
COMBINATIONS = [(kind, metric) for metric in METRICS.values() for kind in KINDS if kind in metric.kinds]


def random_rows(count: int) -> list[dict[str, Any]]:
    """Make rows with vectors, with zero vectors (id 1 and 2) and with NULL (id 3)."""
    rng = np.random.default_rng(7)
    rows: list[dict[str, Any]] = [
        {
            "id": number,
            "vector": rng.normal(size=DIM).astype(np.float32),
            "halfvec": rng.normal(size=DIM).astype(np.float16),
            "sparsevec": SparseArray.from_dense(rng.normal(size=DIM) * (rng.random(DIM) < 0.5)),
            "bit": rng.random(BITS) < 0.5,
        }
        for number in range(4, count + 4)
    ]
    zero = {
        "vector": np.zeros(DIM, np.float32),
        "halfvec": np.zeros(DIM, np.float16),
        "sparsevec": SparseArray(DIM, {}),
        "bit": np.zeros(BITS, bool),
    }
    return [{"id": 1, **zero}, {"id": 2, **zero}, {"id": 3, **dict.fromkeys(KINDS)}, *rows]


ROWS = random_rows(12)
QUERIES = random_rows(16)[-1]


def fill(connection: Connection) -> None:
    connection.execute(insert(item), ROWS)


def approx(value: float | None, kind: str) -> Any:
    """Equal within what the kind's precision allows; the zero distance within what single precision leaves of it."""
    if value is None:
        return None
    return pytest.approx(value, rel=reference.TOLERANCE[kind], abs=1e-6)


def test_distances_and_similarities_are_numpys(backend: Backend, engine: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        fill(connection)
        for kind, metric in COMBINATIONS:
            query = QUERIES[kind]
            zero = ROWS[0][kind]
            column = item.c[kind]
            found = connection.execute(
                select(
                    item.c.id,
                    sv.distance(column, query, metric.name),
                    sv.similarity(column, query, metric.name),
                    sv.distance(column, zero, metric.name),
                ).order_by(item.c.id)
            ).all()
            expected = [
                (
                    row["id"],
                    approx(reference.distance(metric.name, row[kind], query), kind),
                    approx(reference.similarity(metric.name, row[kind], query), kind),
                    approx(reference.distance(metric.name, row[kind], zero), kind),
                )
                for row in ROWS
            ]
            assert [tuple(row) for row in found] == expected, (kind, metric.name)
            # None for every undefined one, and a float for every other.
            assert {type(value) for row in found for value in row[1:]} <= {float, type(None)}

    backend.create_all(engine, metadata)
    backend.run_connection(engine, body)


def test_distances_between_columns_are_numpys(backend: Backend, engine: AnyEngine) -> None:
    left, right = aliased(item), aliased(item)
    vectors = {row["id"]: row for row in ROWS}

    def body(connection: Connection) -> None:
        fill(connection)
        for kind, metric in COMBINATIONS:
            statement = select(
                left.c.id, right.c.id, sv.distance(left.c[kind], right.c[kind], metric.name), left.c[kind]
            ).select_from(left.join(right, and_(left.c.id <= 6, right.c.id.in_([1, 3, 9]))))
            found = connection.execute(statement).all()
            assert len(found) == 18
            for one, other, distance, vector in found:
                expected = reference.distance(metric.name, vectors[one][kind], vectors[other][kind])
                assert distance == approx(expected, kind), (kind, metric.name, one, other)
                assert item.c[kind].type.compare_values(vector, vectors[one][kind])

    backend.create_all(engine, metadata)
    backend.run_connection(engine, body)


def test_the_order_by_each_distance_is_numpys(backend: Backend, engine: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        fill(connection)
        for kind, metric in COMBINATIONS:
            query = QUERIES[kind]
            distance = sv.distance(item.c[kind], query, metric.name)
            expected = {row["id"]: reference.distance(metric.name, row[kind], query) for row in ROWS}
            defined = sorted((d, id_) for id_, d in expected.items() if d is not None)
            undefined = sorted(id_ for id_, d in expected.items() if d is None)
            ascending = connection.scalars(select(item.c.id).order_by(distance, item.c.id)).all()
            assert ascending[: len(defined)] == [id_ for _, id_ in defined], (kind, metric.name)
            assert sorted(ascending[len(defined) :]) == undefined
            bound = defined[3][0] + 1e-3
            among = connection.scalars(select(item.c.id).where(distance <= bound))
            assert set(among) == {id_ for d, id_ in defined if d <= bound}

    backend.create_all(engine, metadata)
    backend.run_connection(engine, body)


def test_undefined_distances_sort_last_ascending_and_first_descending(backend: Backend, engine: AnyEngine) -> None:
    d = sv.cosine_distance(item.c.vector, QUERIES["vector"])

    def body(connection: Connection) -> None:
        fill(connection)
        connection.execute(item.delete().where(item.c.id.in_([1, 2])))
        labelled = select(item.c.id, d.label("d"))
        for ascending in (
            labelled.order_by(d),
            labelled.order_by("d"),
            labelled.order_by(d.label("d")),
            labelled.order_by(d.asc()),
            labelled.order_by(labelled.selected_columns.d),
            select(labelled.order_by("d").limit(100).subquery().c.id),
            union_all(labelled.order_by(d).limit(100).subquery().select()),
        ):
            assert connection.execute(ascending).all()[-1].id == 3, str(ascending)
        for descending in (
            labelled.order_by(d.desc()),
            labelled.order_by(d.label("d").desc()),
            labelled.order_by(desc("d")),
            labelled.order_by(labelled.selected_columns.d.desc()),
        ):
            assert connection.execute(descending).all()[0].id == 3, str(descending)
        # What the user says of NULL stands.
        for chosen, position in (
            (d.nulls_first(), 0),
            (d.asc().nulls_first(), 0),
            (d.nulls_last(), -1),
            (d.desc().nulls_last(), -1),
            (d.label("d").desc().nulls_last(), -1),
            (desc("d").nulls_last(), -1),
        ):
            assert connection.execute(labelled.order_by(chosen)).all()[position].id == 3, str(chosen)
        rank = func.row_number().over(order_by=d)
        assert dict(map(tuple, connection.execute(select(item.c.id, rank))))[3] == len(ROWS) - 2
        rank = func.row_number().over(order_by=[d.desc(), item.c.id])
        assert dict(map(tuple, connection.execute(select(item.c.id, rank))))[3] == 1

    backend.create_all(engine, metadata)
    backend.run_connection(engine, body)


def test_the_nearest_of_real_digits_are_numpys(backend: Backend, engine: AnyEngine) -> None:
    from sklearn.datasets import load_digits

    images = load_digits().data[:200].astype(np.float32)
    table = Table("digit", MetaData(), Column("id", Integer, primary_key=True), Column("image", Vector(64)))

    def body(connection: Connection) -> None:
        connection.execute(insert(table), [{"id": number, "image": image} for number, image in enumerate(images)])
        for metric in ("cosine", "l2", "l1", "inner_product"):
            for query in images[[3, 77, 150]]:
                distances = [reference.distance(metric, image, query) or 0.0 for image in images]
                d = sv.distance(table.c.image, query, metric)
                found = connection.execute(select(table.c.id, d.label("d")).order_by("d", table.c.id).limit(15)).all()
                assert [row.d for row in found] == pytest.approx(sorted(distances)[:15], rel=1e-5, abs=1e-6)
                assert [distances[row.id] for row in found] == pytest.approx(sorted(distances)[:15], rel=1e-5, abs=1e-6)

    backend.create_all(engine, table.metadata)
    backend.run_connection(engine, body)


def test_the_cosine_distance_of_a_vector_to_itself_is_never_below_zero(backend: Backend, engine: AnyEngine) -> None:
    vectors = np.random.default_rng(11).standard_normal((200, DIM)).astype(np.float32)

    def check(connection: Connection) -> list[float]:
        metadata.create_all(connection)
        connection.execute(insert(item), [{"id": n, "vector": v} for n, v in enumerate(vectors, 1)])
        return list(connection.scalars(select(sv.cosine_distance(item.c.vector, item.c.vector))))

    distances = backend.run_connection(engine, check)
    assert len(distances) == len(vectors)
    assert all(0.0 <= distance < 1e-6 for distance in distances)
