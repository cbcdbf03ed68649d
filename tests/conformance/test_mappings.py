"""Vector columns in every way of mapping a class."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import ForeignKey, MetaData, String, func, select
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.ext.declarative import AbstractConcreteBase
from sqlalchemy.ext.hybrid import hybrid_method, hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    aliased,
    column_property,
    composite,
    declared_attr,
    mapped_column,
    query_expression,
    registry,
    relationship,
    selectin_polymorphic,
    selectinload,
    with_expression,
    with_polymorphic,
)
from sqlalchemy.sql.elements import ColumnElement

import sqla_vector as sv
from sqla_vector import HalfVector, SparseArray, SparseVector, Vector
from tests.support.backends import AnyEngine, Backend

ORIGIN = [0, 0]


class Line:
    def __init__(self, start: Any, end: Any) -> None:
        self.start, self.end = start, end

    def __composite_values__(self) -> tuple[Any, Any]:
        return self.start, self.end


def test_joined_inheritance(backend: Backend, engine: AnyEngine) -> None:
    class Base(DeclarativeBase):
        pass

    class Animal(Base):
        __tablename__ = "animal"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(String(10))
        position: Mapped[Any] = mapped_column(Vector(2))
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}

    class Dog(Animal):
        __tablename__ = "dog"
        id: Mapped[int] = mapped_column(ForeignKey("animal.id"), primary_key=True)
        smell: Mapped[Any] = mapped_column(HalfVector(3), nullable=True)
        __mapper_args__ = {"polymorphic_identity": "dog"}

    class Cat(Animal):
        __tablename__ = "cat"
        id: Mapped[int] = mapped_column(ForeignKey("animal.id"), primary_key=True)
        voice: Mapped[Any] = mapped_column(SparseVector(5), nullable=True)
        __mapper_args__ = {"polymorphic_identity": "cat"}

    def body(session: Session) -> None:
        session.add_all(
            [
                Animal(id=1, position=[1, 0]),
                Dog(id=2, position=[2, 0], smell=[1, 2, 3]),
                Cat(id=3, position=[3, 0], voice=SparseArray(5, {4: 1.0})),
                Dog(id=4, position=[4, 0], smell=[3, 2, 1]),
            ]
        )
        session.flush()
        session.expunge_all()
        by_distance = select(Animal).order_by(Animal.position.l2_distance([3, 0]), Animal.id)
        assert [type(a).__name__ for a in session.scalars(by_distance)] == ["Cat", "Dog", "Dog", "Animal"]
        # A column of the parent through the child, and the child's own.
        dogs = select(Dog, Dog.position.l2_distance([4, 0])).order_by(Dog.smell.l1_distance([1, 2, 3]))
        assert [(dog.id, d, dog.smell.tolist()) for dog, d in session.execute(dogs)] == [
            (2, 2.0, [1, 2, 3]),
            (4, 0.0, [3, 2, 1]),
        ]
        session.expunge_all()
        every = with_polymorphic(Animal, "*")
        statement = select(every).order_by(every.Dog.smell.l2_distance([3, 2, 1]), every.id)
        assert [a.id for a in session.scalars(statement)] == [4, 2, 1, 3]
        session.expunge_all()
        statement = select(Animal).options(selectin_polymorphic(Animal, [Dog, Cat])).order_by(Animal.id)
        found = session.scalars(statement).all()
        assert found[1].smell.tolist() == [1, 2, 3]
        assert found[2].voice == SparseArray(5, {4: 1.0})
        found[1].position, found[1].smell = [2.0, 0.0], [9, 9, 9]
        session.flush()
        session.expire_all()
        assert session.get_one(Animal, 2).smell.tolist() == [9, 9, 9]
        nearest = sv.nearest(select(Dog), Dog.position, ORIGIN, k=1, metric="l2")
        assert [row[0].id for row in session.execute(nearest)] == [2]

    backend.create_all(engine, Base.metadata)
    backend.run(engine, body)


def test_single_table_inheritance(backend: Backend, engine: AnyEngine) -> None:
    class Base(DeclarativeBase):
        pass

    class Document(Base):
        __tablename__ = "document"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(String(10))
        embedding: Mapped[Any] = mapped_column(Vector(2), nullable=True)
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "document"}

    class Picture(Document):
        pixels: Mapped[Any] = mapped_column(Vector(3), nullable=True)
        __mapper_args__ = {"polymorphic_identity": "picture"}

    def body(session: Session) -> None:
        session.add_all([Document(id=1, embedding=[1, 0]), Picture(id=2, embedding=[2, 0], pixels=[1, 1, 1])])
        session.add(Picture(id=3, embedding=[3, 0], pixels=[0, 0, 0]))
        session.flush()
        session.expunge_all()
        d = Picture.embedding.l2_distance(ORIGIN)
        assert session.scalars(select(Picture.id).order_by(d)).all() == [2, 3]
        assert session.scalars(select(Picture.id).order_by(Picture.pixels.l2_distance([0, 0, 0]))).all() == [3, 2]
        assert session.scalars(select(Document.id).order_by(Document.embedding.l2_distance([3, 0]))).all() == [3, 2, 1]
        nearest = sv.nearest(select(Picture), Picture.embedding, ORIGIN, k=1, metric="l2")
        assert [row[0].id for row in session.execute(nearest)] == [2]

    backend.create_all(engine, Base.metadata)
    backend.run(engine, body)


def test_concrete_inheritance(backend: Backend, engine: AnyEngine) -> None:
    class Base(DeclarativeBase):
        pass

    class Shape(AbstractConcreteBase, Base):
        strict_attrs = True
        id: Mapped[int] = mapped_column(primary_key=True)
        centre: Mapped[Any] = mapped_column(Vector(2))

    class Circle(Shape):
        __tablename__ = "circle"
        id: Mapped[int] = mapped_column(primary_key=True)
        centre: Mapped[Any] = mapped_column(Vector(2))
        radius: Mapped[int]
        __mapper_args__ = {"polymorphic_identity": "circle", "concrete": True}

    class Square(Shape):
        __tablename__ = "square"
        id: Mapped[int] = mapped_column(primary_key=True)
        centre: Mapped[Any] = mapped_column(Vector(2))
        __mapper_args__ = {"polymorphic_identity": "square", "concrete": True}

    Base.registry.configure()

    def body(session: Session) -> None:
        session.add_all(
            [Circle(id=1, centre=[1, 0], radius=1), Square(id=2, centre=[2, 0]), Square(id=3, centre=[0, 0])]
        )
        session.flush()
        session.expunge_all()
        found = session.scalars(select(Shape).order_by(Shape.centre.l2_distance([2, 0]))).all()
        assert [(type(s).__name__, s.id, s.centre.tolist()) for s in found] == [
            ("Square", 2, [2, 0]),
            ("Circle", 1, [1, 0]),
            ("Square", 3, [0, 0]),
        ]
        assert session.scalars(select(Square.id).order_by(Square.centre.l2_distance(ORIGIN))).all() == [3, 2]

    backend.create_all(engine, Base.metadata)
    backend.run(engine, body)


def test_hybrids_column_properties_and_query_expressions(backend: Backend, engine: AnyEngine) -> None:
    class Base(DeclarativeBase):
        pass

    class Place(Base):
        __tablename__ = "place"
        id: Mapped[int] = mapped_column(primary_key=True)
        position: Mapped[Any] = mapped_column(Vector(2))
        distance: Mapped[float | None] = query_expression()

        @hybrid_property
        def from_origin(self) -> float:
            return float(np.linalg.norm(self.position))

        @from_origin.inplace.expression
        @classmethod
        def _from_origin(cls) -> ColumnElement[float]:
            return sv.l2_norm(cls.position)

        @hybrid_method
        def to(self, other: Any) -> float:
            return float(np.linalg.norm(np.asarray(self.position) - other))

        @to.inplace.expression
        @classmethod
        def _to(cls, other: Any) -> ColumnElement[float]:
            return sv.l2_distance(cls.position, other)

    Place.unit = column_property(sv.l2_normalize(Place.position))  # type: ignore[attr-defined]
    Place.taxi = column_property(sv.l1_distance(Place.position, [1, 1]))  # type: ignore[attr-defined]

    def body(session: Session) -> None:
        session.add_all([Place(id=1, position=[3, 4]), Place(id=2, position=[0, 2])])
        session.flush()
        session.expunge_all()
        found = session.scalars(select(Place).order_by(Place.from_origin)).all()
        assert [place.id for place in found] == [2, 1]
        assert [place.from_origin for place in found] == [2.0, 5.0]
        assert session.scalars(select(Place.id).where(Place.from_origin > 3)).all() == [1]
        assert session.scalars(select(Place.to([3, 0])).order_by(Place.to([3, 0]))).all() == pytest.approx(
            [13**0.5, 4.0]
        )
        assert found[1].to([3, 0]) == 4.0
        assert found[1].unit.tolist() == pytest.approx([0.6, 0.8])
        assert [place.taxi for place in found] == [2.0, 5.0]
        session.expunge_all()
        option = with_expression(Place.distance, Place.position.l2_distance([0, 0]))
        assert [p.distance for p in session.scalars(select(Place).options(option).order_by(Place.id))] == [5.0, 2.0]

    backend.create_all(engine, Base.metadata)
    backend.run(engine, body)


def test_association_objects_and_proxies(backend: Backend, engine: AnyEngine) -> None:
    class Base(DeclarativeBase):
        pass

    class Tagging(Base):
        __tablename__ = "tagging"
        article_id: Mapped[int] = mapped_column(ForeignKey("article.id"), primary_key=True)
        tag_id: Mapped[int] = mapped_column(ForeignKey("tag.id"), primary_key=True)
        context: Mapped[Any] = mapped_column(Vector(2))
        tag: Mapped[Tag] = relationship()

    class Tag(Base):
        __tablename__ = "tag"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(String(10))

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        taggings: Mapped[list[Tagging]] = relationship(order_by="Tagging.tag_id", cascade="all, delete-orphan")
        tags: AssociationProxy[list[Tag]] = association_proxy("taggings", "tag")
        contexts: AssociationProxy[list[Any]] = association_proxy("taggings", "context")

    # The annotations name classes of this function.
    Tagging.__mapper__.registry._class_registry.update({"Tag": Tag})

    def body(session: Session) -> None:
        tags = [Tag(id=1, name="a"), Tag(id=2, name="b")]
        article = Article(id=1, taggings=[Tagging(tag=tag, context=[n, 0]) for n, tag in enumerate(tags)])
        session.add_all([article, Article(id=2, taggings=[Tagging(tag=tags[0], context=[9, 0])])])
        session.flush()
        session.expunge_all()
        found = session.scalars(select(Article).options(selectinload(Article.taggings)).order_by(Article.id)).first()
        assert found is not None
        assert [context.tolist() for context in found.contexts] == [[0, 0], [1, 0]]
        d = Tagging.context.l2_distance([8, 0])
        nearest = select(Article.id, func.min(d).label("d")).join(Article.taggings).group_by(Article.id).order_by("d")
        assert [tuple(row) for row in session.execute(nearest)] == [(2, 1.0), (1, 7.0)]
        close = select(Article.id).where(Article.taggings.any(sv.l2_distance(Tagging.context, [9, 0]) < 0.5))
        assert session.scalars(close).all() == [2]
        del found.taggings[0]
        session.flush()
        assert session.scalar(select(func.count()).select_from(Tagging)) == 2

    backend.create_all(engine, Base.metadata)
    backend.run(engine, body)


Embedding = Annotated[NDArray[np.float32], mapped_column(Vector(2))]
Unit = Annotated[NDArray[np.float32], "unit"]


def test_annotated_types_and_the_type_annotation_map(backend: Backend, engine: AnyEngine) -> None:
    class Base(DeclarativeBase):
        type_annotation_map = {Unit: Vector(3), SparseArray: SparseVector(4)}

    class Thing(Base):
        __tablename__ = "thing"
        id: Mapped[int] = mapped_column(primary_key=True)
        embedding: Mapped[Embedding]
        maybe: Mapped[Embedding | None]
        unit: Mapped[Unit]
        sparse: Mapped[SparseArray | None]

    class Other(Base):
        __tablename__ = "other"
        id: Mapped[int] = mapped_column(primary_key=True)
        embedding: Mapped[Embedding]

    table = Thing.__table__
    assert [table.c[name].nullable for name in ("embedding", "maybe", "unit", "sparse")] == [False, True, False, True]

    def body(session: Session) -> None:
        session.add(Thing(id=1, embedding=[1, 2], unit=[1, 0, 0], sparse=[0, 0, 0, 2]))
        session.add(Other(id=1, embedding=[1, 2]))
        session.flush()
        session.expire_all()
        found = session.get_one(Thing, 1)
        assert found.embedding.tolist() == [1, 2]
        assert found.maybe is None
        assert found.unit.tolist() == [1, 0, 0]
        assert found.sparse == SparseArray(4, {3: 2.0})
        for cls in (Thing, Other):
            with pytest.raises(sv.InvalidVector, match=rf"{cls.__tablename__}\.embedding"):
                cls.embedding.l2_distance("x")  # type: ignore[attr-defined]

    backend.create_all(engine, Base.metadata)
    backend.run(engine, body)


def test_dataclasses(backend: Backend, engine: AnyEngine) -> None:
    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(init=False, primary_key=True)
        title: Mapped[str] = mapped_column(String(10))
        embedding: Mapped[Any] = mapped_column(Vector(2), default=None, nullable=True, compare=False, repr=False)

    def body(session: Session) -> None:
        session.add_all([Article("one", [1, 2]), Article(title="none")])
        session.flush()
        session.expire_all()
        found = session.scalars(select(Article).order_by(Article.embedding.l2_distance(ORIGIN))).all()
        assert [(a.title, None if a.embedding is None else a.embedding.tolist()) for a in found] == [
            ("one", [1, 2]),
            ("none", None),
        ]
        assert "embedding" not in repr(found[0])

    backend.create_all(engine, Base.metadata)
    backend.run(engine, body)


def test_mixins_abstract_bases_and_imperative_mapping(backend: Backend, engine: AnyEngine) -> None:
    class Base(DeclarativeBase):
        metadata = MetaData(naming_convention={"ix": "ix_%(table_name)s_%(column_0_name)s"})

    class Embedded:
        embedding: Mapped[Any] = mapped_column(Vector(2))

        @declared_attr
        def half(cls) -> Mapped[Any]:  # noqa: N805
            return mapped_column(HalfVector(2), nullable=True)

    class Numbered(Base):
        __abstract__ = True
        id: Mapped[int] = mapped_column(primary_key=True)

    class Dog(Embedded, Numbered):
        __tablename__ = "dog"

    class Cat(Embedded, Numbered):
        __tablename__ = "cat"

    class Plain:
        pass

    copied = Dog.__table__.to_metadata(Base.metadata, name="plain")
    mapper_registry = registry(metadata=Base.metadata)
    mapper_registry.map_imperatively(Plain, copied)

    def body(session: Session) -> None:
        for cls in (Dog, Cat, Plain):
            one = cls()
            one.id, one.embedding, one.half = 1, [1, 2], [3, 4]
            session.add(one)
            session.flush()
            session.expire_all()
            found = session.scalars(select(cls).order_by(cls.embedding.l2_distance(ORIGIN))).one()
            assert (found.embedding.tolist(), found.half.tolist()) == ([1, 2], [3, 4])
        with pytest.raises(sv.InvalidVector, match=r"^cat\.half: "):
            session.execute(Cat.__table__.insert().values(id=2, embedding=[1, 2], half="x"))
        with pytest.raises(sv.InvalidVector, match=r"^plain\.half: "):
            session.execute(copied.insert().values(id=2, embedding=[1, 2], half="x"))

    backend.create_all(engine, Base.metadata)
    backend.run(engine, body)


def test_composites_of_vectors(backend: Backend, engine: AnyEngine) -> None:
    class Base(DeclarativeBase):
        pass

    class Segment(Base):
        __tablename__ = "segment"
        id: Mapped[int] = mapped_column(primary_key=True)
        line: Mapped[Line] = composite(mapped_column("start", Vector(2)), mapped_column("end", Vector(2)))

    def body(session: Session) -> None:
        session.add_all([Segment(id=1, line=Line([0, 0], [1, 0])), Segment(id=2, line=Line([1, 0], [9, 0]))])
        session.flush()
        session.expunge_all()
        table = Segment.__table__
        assert session.get_one(Segment, 2).line.end.tolist() == [9, 0]
        lengths = select(sv.l2_distance(table.c.start, table.c.end)).order_by(table.c.id)
        assert session.scalars(lengths).all() == [1.0, 8.0]
        one, other = table.alias(), table.alias()
        follows = select(one.c.id, other.c.id).join(other, sv.l2_distance(one.c.end, other.c.start) < 0.1)
        assert [tuple(row) for row in session.execute(follows)] == [(1, 2)]
        entity = aliased(Segment)
        assert [segment.id for segment in session.scalars(select(entity).order_by(entity.id.desc()))] == [2, 1]

    backend.create_all(engine, Base.metadata)
    backend.run(engine, body)
