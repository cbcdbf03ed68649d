"""The column types as objects: how they compare, copy, print, pickle and learn of their columns."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Column, Integer, MetaData, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqla_vector import BitVector, HalfVector, InvalidVector, SparseArray, SparseVector, Vector

TYPES = {"Vector": Vector, "HalfVector": HalfVector, "SparseVector": SparseVector, "BitVector": BitVector}
SPECS = {"Vector": "VECTOR", "HalfVector": "HALFVEC", "SparseVector": "SPARSEVEC", "BitVector": "BIT"}

every_type = pytest.mark.parametrize("name", TYPES)


@every_type
def test_ddl_names_the_type_and_its_dimension(name: str) -> None:
    for dialect in (postgresql.dialect(), sqlite.dialect(), None):
        assert TYPES[name](3).compile(dialect=dialect) == f"{SPECS[name]}(3)"
        assert TYPES[name]().compile(dialect=dialect) == SPECS[name]


@every_type
def test_repr_makes_the_type_again(name: str) -> None:
    assert repr(TYPES[name](3)) == f"{name}(dim=3)"
    assert repr(TYPES[name]()) == f"{name}()"


@every_type
def test_copies_and_pickles_are_the_same_type(name: str) -> None:
    type_ = TYPES[name](3)
    for other in (type_.copy(), copy.copy(type_), pickle.loads(pickle.dumps(type_))):
        assert type(other) is type(type_)
        assert other.dim == 3
        assert other._static_cache_key == type_._static_cache_key
        assert other.compare_values([1, 0, 1], (1, 0, 1))


@pytest.mark.parametrize(
    ("type_", "one", "equal", "unequal"),
    [
        (Vector(3), [1, 2, 3], np.array([1, 2, 3], ">f8"), [1, 2, 4]),
        (Vector(3), np.array([0.1, 0, 0], np.float32), [0.1, 0, 0], [0.2, 0, 0]),
        (HalfVector(3), [0.1, 2, 3], np.array([0.1, 2, 3], np.float16), [0.2, 2, 3]),
        (SparseVector(3), SparseArray(3, {1: 2.0}), [0, 2, 0], SparseArray(3, {1: 2.5})),
        (BitVector(3), [True, False, True], np.array([1, 0, 1]), [True, True, True]),
    ],
)
def test_values_are_compared_by_their_contents(type_: Any, one: Any, equal: Any, unequal: Any) -> None:
    assert type_.compare_values(one, equal)
    assert type_.compare_values(equal, one)
    assert not type_.compare_values(one, unequal)
    assert not type_.compare_values(one, None)
    assert not type_.compare_values(None, one)
    assert type_.compare_values(None, None)
    assert not type_.compare_values(one, "no vector")
    assert not type_.compare_values(one, [1, 2])


def test_the_names_in_messages_follow_the_column() -> None:
    metadata = MetaData()
    shared = Vector(3)
    assert shared.column_name == "vector"
    one = Table("one", metadata, Column("id", Integer), Column("e", shared))
    assert one.c.e.type.column_name == "one.e"
    Table("two", metadata, Column("f", shared))
    assert shared.column_name == "one.e or two.f"
    copied = one.to_metadata(MetaData(), name="three")
    assert copied.c.e.type.column_name == "three.e"
    with pytest.raises(InvalidVector, match=r"^three\.e: "):
        copied.c.e.l2_distance("x")


def test_a_mixins_column_knows_the_table_of_each_class() -> None:
    class Base(DeclarativeBase):
        pass

    class Embedded:
        embedding: Mapped[np.ndarray] = mapped_column(Vector(3))

    class Dog(Embedded, Base):
        __tablename__ = "dog"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Cat(Embedded, Base):
        __tablename__ = "cat"
        id: Mapped[int] = mapped_column(primary_key=True)

    for cls in (Dog, Cat):
        with pytest.raises(InvalidVector, match=rf"^{cls.__tablename__}\.embedding: "):
            cls.embedding.cosine_distance("x")


def test_two_engines_processors_do_not_share_values() -> None:
    column = Table("t", MetaData(), Column("e", Vector(2))).c.e
    dialect = postgresql.dialect()
    process = column.type.dialect_impl(dialect).bind_processor(dialect)
    assert process is not None
    assert process(None) is None
    assert process([1, 2]) == "[1,2]"
    with pytest.raises(InvalidVector, match=r"^t\.e: expected 2 dimensions, got 3"):
        process([1, 2, 3])
