"""A vector column becomes another type in place, and every vector is converted or nothing is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, insert, inspect, select

from sqla_vector import HalfVector, InvalidOption, MigrationError, Vector, vector_index
from sqla_vector.alembic import ConvertVectorColumnOp
from tests.support.backends import Backend
from tests.support.change import assert_search
from tests.support.migrations import Project

DRIVERS = pytest.mark.backends("psycopg", "psycopg_async", "psycopg2", "asyncpg", "pysqlite3", "aiosqlite")
BOTH = pytest.mark.backends("psycopg", "pysqlite3")

# Ties between two halves, the smallest half and half of it, both zeros, what rounds to the largest half.
HARD = [
    [1.0, 1.00048828125, 1.00146484375],
    [5.960464477539063e-08, 2.98023223876953125e-08, 2.9802325e-08],
    [0.0, -0.0, -1e-9],
    [65504.0, 65519.99, -65519.99],
    [0.1, 1 / 3, -2.7182817],
]


def model(type_: Any, *, index: bool = False, keys: list[Any] | None = None, nullable: bool = True) -> MetaData:
    metadata = MetaData()
    Table(
        "article",
        metadata,
        *([Column("id", Integer, primary_key=True)] if keys is None else keys),
        Column("embedding", type_, nullable=nullable),
        *([vector_index("ix_article_embedding", "embedding", metric="l2")] if index else []),
    )
    return metadata


def prepared(
    tmp_path: Path, backend: Backend, metadata: MetaData, vectors: list[Any], keys: list[dict[str, Any]] | None = None
) -> Project:
    """Return a project whose table has these vectors."""
    project = Project(tmp_path, backend)
    backend.create_all(project.engine, metadata)
    named = keys or [{"id": n} for n in range(len(vectors))]
    rows = [{**key, "embedding": v} for key, v in zip(named, vectors, strict=True)]
    (table,) = metadata.tables.values()
    backend.run(project.engine, lambda session: session.execute(insert(table), rows) and None)
    return project


def stored(project: Project, metadata: MetaData) -> list[Any]:
    """Return the vectors in the order of their ids."""
    (table,) = metadata.tables.values()
    stmt = select(table.c.embedding).order_by(table.c.id)
    found = project.backend.run(project.engine, lambda session: session.scalars(stmt).all())
    return [None if v is None else np.asarray(v).tolist() for v in found]


def conversion(old: str, new: str) -> str:
    return f'op.convert_vector_column("article", "embedding", type_=sqla_vector.{new}, existing_type=sqla_vector.{old})'


def type_in(project: Project) -> Any:
    """Return the column's type as it is in the database."""

    def read(connection: Any) -> Any:
        return next(c["type"] for c in inspect(connection).get_columns("article") if c["name"] == "embedding")

    return project.backend.run_connection(project.engine, read)


@DRIVERS
def test_half_vectors_are_rounded_alike_on_every_database(tmp_path, backend):
    project = prepared(tmp_path, backend, model(Vector(3)), [*HARD, None])
    project.write(conversion("Vector(3)", "HalfVector(3)"), conversion("HalfVector(3)", "Vector(3)"))
    project.upgrade()
    rounded = [np.asarray(v, np.float32).astype(np.float16).tolist() for v in HARD]
    assert rounded[3] == [65504.0, 65504.0, -65504.0]
    assert stored(project, model(HalfVector(3))) == [*rounded, None]
    assert project.drift(model(HalfVector(3))) == []
    project.downgrade()
    assert stored(project, model(Vector(3))) == [*rounded, None]
    assert project.drift(model(Vector(3))) == []


@DRIVERS
@pytest.mark.parametrize("value", [65520.0, -1e30])
def test_a_vector_that_half_precision_cannot_hold_stops_the_conversion(tmp_path, backend, value):
    vectors = [[1.0, 2.0, 0.1], [0.0, value, 0.0], [4.0, 5.0, 6.0]]
    project = prepared(tmp_path, backend, model(Vector(3)), vectors)
    before = stored(project, model(Vector(3)))
    project.write(conversion("Vector(3)", "HalfVector(3)"))
    with pytest.raises(MigrationError, match=r"article\.embedding"):
        project.upgrade()
    assert stored(project, model(Vector(3))) == before
    assert project.drift(model(Vector(3))) == []


@DRIVERS
def test_a_dimension_is_given_and_taken_away(tmp_path, backend):
    vectors = [[1.0, 2.0, 3.0], None, [4.0, 5.0, 6.0]]
    project = prepared(tmp_path, backend, model(Vector()), vectors)
    project.write(conversion("Vector()", "Vector(3)"), conversion("Vector(3)", "Vector()"))
    project.upgrade()
    assert stored(project, model(Vector(3))) == vectors
    assert project.drift(model(Vector(3))) == []
    project.downgrade()
    assert stored(project, model(Vector())) == vectors
    assert project.drift(model(Vector())) == []


@DRIVERS
@pytest.mark.parametrize("kind", ["Vector", "HalfVector"])
def test_vectors_of_another_dimension_stop_the_conversion(tmp_path, backend, kind):
    type_ = {"Vector": Vector, "HalfVector": HalfVector}[kind]
    vectors = [[1.0, 2.0, 3.0], [1.0, 2.0], None]
    project = prepared(tmp_path, backend, model(type_()), vectors)
    project.write(conversion(f"{kind}()", f"{kind}(3)"))
    with pytest.raises(MigrationError, match=r"article\.embedding"):
        project.upgrade()
    assert stored(project, model(type_())) == vectors
    assert project.drift(model(type_())) == []


@BOTH
def test_a_required_column_stays_required(tmp_path, backend):
    project = prepared(tmp_path, backend, model(Vector(3), nullable=False), [[1, 2, 3]])
    project.revision(model(HalfVector(3), nullable=False))
    project.upgrade()
    assert project.drift(model(HalfVector(3), nullable=False)) == []
    project.downgrade()
    assert project.drift(model(Vector(3), nullable=False)) == []


@BOTH
@pytest.mark.parametrize(
    ("keys", "given"),
    [
        ([Column("id", Integer)], [{"id": n} for n in range(4)]),
        ([Column("id", Integer), Column("part", Integer)], [{"id": n, "part": 0} for n in range(4)]),
        ([Column("id", String(9), primary_key=True)], [{"id": key} for key in ("a", "b'", "c:x", "ö")]),
        (
            [Column("part", Integer, primary_key=True), Column("id", Integer, primary_key=True)],
            [{"part": 1, "id": n} for n in range(4)],
        ),
    ],
    ids=["none", "none of two", "text", "composite"],
)
def test_every_row_keeps_its_own_vector_whatever_its_key(tmp_path, backend, keys, given):
    keys = [column._copy() for column in keys]
    vectors = [[0.1, n, 0.3] for n in range(4)]
    project = prepared(tmp_path, backend, model(Vector(3), keys=keys), vectors, given)
    project.write(conversion("Vector(3)", "HalfVector(3)"))
    project.upgrade()
    found = stored(project, model(HalfVector(3), keys=[column._copy() for column in keys]))
    assert found == [np.asarray(v, np.float16).tolist() for v in vectors]


@DRIVERS
def test_autogenerate_converts_a_column_with_its_index(tmp_path, backend):
    vectors = {n: np.asarray(v, np.float32) for n, v in enumerate(HARD)}
    project = prepared(tmp_path, backend, model(Vector(3), index=True), HARD)
    written = project.revision(model(HalfVector(3), index=True)).read_text()
    assert written.index("op.drop_vector_index") < written.index("op.convert_vector_column")
    project.upgrade()
    rounded = {n: v.astype(np.float16) for n, v in vectors.items()}
    assert_search(backend, project.engine, model(HalfVector(3), index=True), rounded)
    assert project.drift(model(HalfVector(3), index=True)) == []
    project.downgrade()
    assert_search(backend, project.engine, model(Vector(3), index=True), rounded)
    assert project.drift(model(Vector(3), index=True)) == []


@BOTH
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Vector(3)", "Vector(4)"),
        ("Vector(3)", "HalfVector(4)"),
        ("Vector(3)", "Vector(3)"),
        ("Vector(3)", "BitVector(3)"),
        ("Vector(3)", "SparseVector(3)"),
        ("Vector(3)", "HalfVector()"),
    ],
)
def test_types_that_do_not_convert_are_refused_and_the_right_operation_named(tmp_path, backend, old, new):
    project = prepared(tmp_path, backend, model(Vector(3)), [[1.0, 2.0, 3.0]])
    project.write(conversion(old, new))
    with pytest.raises(InvalidOption, match=r"use op\.change_vector_column\(\)"):
        project.upgrade()
    assert stored(project, model(Vector(3))) == [[1.0, 2.0, 3.0]]
    assert project.drift(model(Vector(3))) == []


@BOTH
def test_a_missing_table_or_column_is_refused(tmp_path, backend):
    project = prepared(tmp_path, backend, model(Vector(3)), [[1.0, 2.0, 3.0]])
    path = project.write(conversion("Vector(3)", "HalfVector(3)").replace('"embedding"', '"nothing"'))
    with pytest.raises(MigrationError, match=r"no column article\.nothing"):
        project.upgrade()
    path.write_text(path.read_text().replace('"article"', '"nothing"'))
    with pytest.raises(MigrationError, match="no table nothing"):
        project.upgrade()


def test_the_reverse_of_a_conversion_is_the_other_conversion():
    op = ConvertVectorColumnOp("article", "embedding", type_=HalfVector(3), existing_type=Vector(3))
    other = op.reverse()
    assert isinstance(other, ConvertVectorColumnOp)
    assert (other.type_, other.existing_type) == (op.existing_type, op.type_)
    assert other.reverse().to_diff_tuple() == op.to_diff_tuple()
