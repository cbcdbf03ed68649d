"""What goes into vector columns and what comes out, and that what is no vector never gets there."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
import pytest
from sqlalchemy import (
    Column,
    Connection,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    func,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_vector import (
    BitVector,
    DimensionMismatch,
    HalfVector,
    InvalidVector,
    NonFiniteVector,
    SparseArray,
    SparseVector,
    Vector,
    VectorError,
)
from tests.support.backends import AnyEngine, Backend
from tests.support.statements import statements_of

metadata = MetaData()
item = Table(
    "item",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("e", Vector(3)),
    Column("h", HalfVector(3)),
    Column("s", SparseVector(3)),
    Column("b", BitVector(3)),
    Column("free", Vector()),
)


def forms_of_a_vector() -> dict[str, Any]:
    """Return [1, 2.5, -3] in every form that is accepted."""
    wide = np.zeros((3, 4))
    wide[:, 2] = [1, 2.5, -3]
    forms: dict[str, Any] = {
        "list": [1, 2.5, -3],
        "tuple": (1.0, 2.5, -3.0),
        "list of numpy scalars": list(np.array([1, 2.5, -3], np.float32)),
        "float32": np.array([1, 2.5, -3], np.float32),
        "float64": np.array([1, 2.5, -3]),
        "float16": np.array([1, 2.5, -3], np.float16),
        "big-endian float32": np.array([1, 2.5, -3], ">f4"),
        "big-endian float64": np.array([1, 2.5, -3], ">f8"),
        "non-contiguous": wide[:, 2],
        "reversed": np.array([-3, 2.5, 1], np.float32)[::-1],
        "read-only": np.frombuffer(np.array([1, 2.5, -3], np.float32).tobytes(), np.float32),
        "array('f')": array("f", [1, 2.5, -3]),
        "array('d')": array("d", [1, 2.5, -3]),
    }
    try:
        import pgvector
    except ImportError:
        return forms
    return forms | {
        "pgvector.Vector": pgvector.Vector([1, 2.5, -3]),
        "pgvector.HalfVector": pgvector.HalfVector([1, 2.5, -3]),
    }


def forms_of_a_sparse_vector() -> dict[str, Any]:
    """Return [0, 2.5, -3] in every form that is accepted."""
    forms: dict[str, Any] = {
        "SparseArray": SparseArray(3, {1: 2.5, 2: -3.0}),
        "list": [0, 2.5, -3],
        "float64": np.array([0, 2.5, -3]),
    }
    try:
        import pgvector

        forms["pgvector.SparseVector"] = pgvector.SparseVector([0, 2.5, -3])
    except ImportError:
        pass
    try:
        from scipy import sparse
    except ImportError:
        return forms
    return forms | {
        "csr_array": sparse.csr_array(np.array([[0, 2.5, -3]])),
        "coo_matrix": sparse.coo_matrix(np.array([[0, 2.5, -3]])),
    }


def forms_of_bits() -> dict[str, Any]:
    """Return 101 in every form that is accepted."""
    forms: dict[str, Any] = {
        "list": [True, False, True],
        "numbers": (1, 0, 1),
        "bool array": np.array([True, False, True]),
        "int8": np.array([1, 0, 1], np.int8),
    }
    try:
        import pgvector
    except ImportError:
        return forms
    return forms | {"pgvector.Bit": pgvector.Bit("101")}


def test_every_form_of_a_vector_goes_in_and_one_comes_out(backend: Backend, engine: AnyEngine) -> None:
    dense, sparse, bits = forms_of_a_vector(), forms_of_a_sparse_vector(), forms_of_bits()

    def body(connection: Connection) -> None:
        # One statement each: an executemany converts nothing that a single one does not, but drivers differ.
        for number, value in enumerate(dense.values()):
            connection.execute(insert(item).values(id=number, e=value, h=value, free=value))
        connection.execute(insert(item), [{"id": 100 + n, "e": v, "h": v} for n, v in enumerate(dense.values())])
        for number, value in enumerate(sparse.values()):
            connection.execute(insert(item).values(id=200 + number, s=value))
        for number, value in enumerate(bits.values()):
            connection.execute(insert(item).values(id=300 + number, b=value))

        rows = {row.id: row for row in connection.execute(select(item))}
        for number, name in [*enumerate(dense), *enumerate(dense, 100)]:
            row = rows[number]
            assert (row.e.dtype, row.h.dtype) == (np.float32, np.float16), name
            assert row.e.tolist() == row.h.tolist() == [1, 2.5, -3], name
            assert not row.e.flags.writeable, name
            assert not row.h.flags.writeable, name
            assert row.s is row.b is None
            assert number >= 100 or row.free.tolist() == [1, 2.5, -3]
        for number, name in enumerate(sparse, 200):
            assert rows[number].s == SparseArray(3, {1: 2.5, 2: -3.0}), name
            assert not rows[number].s.values.flags.writeable
        for number, name in enumerate(bits, 300):
            assert rows[number].b.dtype == np.bool_, name
            assert rows[number].b.tolist() == [True, False, True], name
            assert not rows[number].b.flags.writeable, name

        # The same forms as operands.
        for name, value in dense.items():
            found = connection.scalars(select(item.c.e.l2_distance(value)).where(item.c.id == 0)).one()
            assert found == 0.0, name

    backend.create_all(engine, metadata)
    backend.run_connection(engine, body)


def test_values_survive_to_the_last_bit(backend: Backend, engine: AnyEngine) -> None:
    rng = np.random.default_rng(3)
    tiny = np.finfo(np.float32).smallest_subnormal
    vectors = [
        *rng.normal(scale=1e-3, size=(20, 3)).astype(np.float32),
        *(rng.normal(size=(20, 3)) * 10.0 ** rng.integers(-30, 30, (20, 3))).astype(np.float32),
        np.array([np.finfo(np.float32).max, -np.finfo(np.float32).max, np.finfo(np.float32).tiny], np.float32),
        np.array([tiny, -tiny, -0.0], np.float32),
    ]
    halves = [
        *rng.normal(size=(40, 3)).astype(np.float16),
        np.array([65504, -65504, 6.1e-5], np.float16),
        np.array([6e-8, -6e-8, -0.0], np.float16),
    ]
    rows = [{"id": n, "e": e, "h": h} for n, (e, h) in enumerate(zip(vectors, halves, strict=True))]

    def body(connection: Connection) -> None:
        connection.execute(insert(item), rows)
        found = connection.execute(select(item.c.e, item.c.h).order_by(item.c.id)).all()
        for row, given in zip(found, rows, strict=True):
            assert row.e.tobytes() == given["e"].tobytes()
            assert row.h.tobytes() == given["h"].tobytes()

    backend.create_all(engine, metadata)
    backend.run_connection(engine, body)


def test_large_vectors_go_in_and_out(backend: Backend, engine: AnyEngine) -> None:
    table = Table(
        "large",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("e", Vector(16_000)),
        Column("h", HalfVector(16_000)),
        Column("s", SparseVector(1_000_000_000)),
        Column("b", BitVector(64_000)),
    )
    rng = np.random.default_rng(5)
    # PostgreSQL keeps such rows out of line, in at most 8 KB: constant ones compress, random ones do not.
    row = {
        "id": 1,
        "e": rng.normal(size=16_000).astype(np.float32),
        "h": rng.normal(size=16_000).astype(np.float16),
        "s": SparseArray(1_000_000_000, {0: 1.0, 999_999_999: -1.0}),
        "b": rng.random(64_000) < 0.5,
    }

    def body(connection: Connection) -> None:
        connection.execute(insert(table).values(row))
        found = connection.execute(select(table)).one()
        for name in ("e", "h", "b"):
            assert np.array_equal(getattr(found, name), row[name]), name
        assert found.s == row["s"]

    backend.create_all(engine, table.metadata)
    backend.run_connection(engine, body)


class Base(DeclarativeBase):
    pass


class Article(Base):
    __tablename__ = "article"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(20))
    embedding: Mapped[Any | None] = mapped_column(Vector(3))
    half: Mapped[Any | None] = mapped_column(HalfVector(3))
    sparse: Mapped[Any | None] = mapped_column(SparseVector(3))
    bits: Mapped[Any | None] = mapped_column(BitVector(3))


REFUSED: list[tuple[str, Any, type[VectorError]]] = [
    ("embedding", [1.0, float("nan"), 2.0], NonFiniteVector),
    ("embedding", [1.0, float("inf"), 2.0], NonFiniteVector),
    ("embedding", np.array([1.0, -np.inf, 2.0], np.float32), NonFiniteVector),
    ("embedding", [1.0, 1e39, 2.0], NonFiniteVector),
    ("embedding", [], DimensionMismatch),
    ("embedding", [1.0, 2.0], DimensionMismatch),
    ("embedding", 1.0, InvalidVector),
    ("embedding", [[1.0, 2.0, 3.0]], InvalidVector),
    ("embedding", [1.0, [2.0], 3.0], InvalidVector),
    ("embedding", ["1", "2", "3"], InvalidVector),
    ("embedding", [True, False, True], InvalidVector),
    ("embedding", [1j, 2, 3], InvalidVector),
    ("embedding", b"\0\0\0\0\0", InvalidVector),
    ("embedding", "[1,2] x", InvalidVector),
    ("embedding", "[1,2,3]", InvalidVector),
    ("half", [1.0, 70000.0, 2.0], NonFiniteVector),
    ("half", [1.0, 2.0], DimensionMismatch),
    ("sparse", SparseArray(4, {}), DimensionMismatch),
    ("sparse", [1.0, float("nan"), 2.0], NonFiniteVector),
    ("bits", [1, 2, 0], InvalidVector),
    ("bits", [True], DimensionMismatch),
    ("bits", "101", InvalidVector),
]


def test_what_is_no_vector_is_refused_before_any_io(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, Base.metadata)
    backend.run(engine, lambda session: session.add(Article(id=1, title="one", embedding=[1, 2, 3])))

    def add(session: Session, name: str, value: Any) -> None:
        session.add(Article(id=2, title="two", **{name: value}))

    def change(session: Session, name: str, value: Any) -> None:
        setattr(session.get_one(Article, 1), name, value)

    def insert_many(session: Session, name: str, value: Any) -> None:
        session.execute(
            insert(Article), [{"id": 3, "title": "x", name: [1, 0, 1]}, {"id": 4, "title": "y", name: value}]
        )

    def core_insert(session: Session, name: str, value: Any) -> None:
        session.connection().execute(insert(Article.__table__).values({"id": 3, "title": "x", name: value}))

    def core_update(session: Session, name: str, value: Any) -> None:
        session.connection().execute(update(Article.__table__).values({name: value}))

    for name, value, error in REFUSED:
        for write in (add, change, insert_many, core_insert, core_update):
            with statements_of(engine) as sent, pytest.raises(error, match=rf"^article\.{name}: ") as caught:
                backend.run(engine, lambda session: write(session, name, value))  # noqa: B023
            assert type(caught.value) is error
            assert not [statement for statement in sent if not statement.startswith("SELECT")], (write, value)

    def remaining(session: Session) -> list[Any]:
        return [(a.id, a.title, a.embedding.tolist(), a.half) for a in session.scalars(select(Article))]

    assert backend.run(engine, remaining) == [(1, "one", [1, 2, 3], None)]


def test_a_bad_parameter_at_execution_is_refused_before_any_io(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, metadata)
    statement = select(item.c.id).where(item.c.e.l2_distance(bindparam("q", type_=item.c.e.type)) < 1)

    def body(connection: Connection) -> None:
        connection.execute(insert(item).values(id=1, e=[1, 2, 3]))
        assert connection.scalars(statement, {"q": [1, 2, 3]}).all() == [1]
        with statements_of(engine) as sent:
            for bad in ([1, 2], "x", [1, 2, float("nan")]):
                with pytest.raises(InvalidVector, match=r"^item\.e: "):
                    connection.execute(statement, {"q": bad})
        assert sent == []
        assert connection.scalars(statement, {"q": None}).all() == []

    backend.run_connection(engine, body)


def test_null_and_the_zero_vector_are_stored(backend: Backend, engine: AnyEngine) -> None:
    def body(connection: Connection) -> None:
        connection.execute(insert(item).values(id=1))
        connection.execute(insert(item).values(id=2, e=None, h=None, s=None, b=None))
        connection.execute(insert(item).values(id=3, e=[0, 0, 0], h=[0, 0, 0], s=[0, 0, 0], b=[0, 0, 0]))
        connection.execute(insert(item), [{"id": 4, "e": None}, {"id": 5, "e": [0.0, 0.0, 0.0]}])
        rows = connection.execute(select(item).order_by(item.c.id)).all()
        assert tuple(rows[0]) == (1, *[None] * 5)
        assert tuple(rows[1]) == (2, *[None] * 5)
        assert [rows[2].e.tolist(), rows[2].h.tolist(), rows[2].b.tolist()] == [[0, 0, 0], [0, 0, 0], [False] * 3]
        assert rows[2].s == SparseArray(3, {})
        assert rows[3].e is None
        assert rows[4].e.tolist() == [0, 0, 0]
        assert connection.scalar(select(func.count()).where(item.c.e.is_(None))) == 3

    backend.create_all(engine, metadata)
    backend.run_connection(engine, body)


@pytest.mark.backends(family="sqlite")
def test_a_strict_table_of_sqlite_takes_vectors(backend: Backend, engine: AnyEngine) -> None:
    strict = MetaData()
    table = item.to_metadata(strict, name="strict_item")
    table.dialect_options["sqlite"]["strict"] = True

    def body(connection: Connection) -> None:
        strict.create_all(connection)
        assert (
            "STRICT"
            in connection.exec_driver_sql("SELECT sql FROM sqlite_master WHERE name='strict_item'").scalar_one()
        )
        connection.execute(insert(table).values(id=1, e=[1, 2, 3], h=[1, 2, 3], s=[0, 2, 0], b=[1, 0, 1], free=[1]))
        row = connection.execute(select(table, table.c.e.l2_distance([1, 2, 4]).label("d"))).one()
        assert row.e.tolist() == row.h.tolist() == [1, 2, 3]
        assert row.s == SparseArray(3, {1: 2.0})
        assert row.b.tolist() == [True, False, True]
        assert row.d == 1.0
        assert {column["name"] for column in inspect(connection).get_columns("strict_item")} == {
            c.name for c in table.c
        }

    backend.run_connection(engine, body)


@pytest.mark.backends(family="sqlite")
def test_a_pluginless_engine_on_sqlite_names_the_line_to_add(backend: Backend) -> None:
    from sqla_vector import PluginMissing

    engine = backend.make_engine(plugins=[])
    backend.create_all(engine, metadata)
    for statement in (insert(item).values(id=1, e=[1, 2, 3]), select(item.c.e.l2_distance([1, 2, 3]))):
        with (
            statements_of(engine) as sent,
            pytest.raises(PluginMissing, match=r'create_engine\(url, plugins=\["sqla_vector"\]\)'),
        ):
            backend.run_connection(engine, lambda connection: connection.execute(statement))  # noqa: B023
        assert sent == []
