"""Tracking with every kind of attribute: keys, defaults, values of several columns, values changed in place."""

from __future__ import annotations

import datetime
import uuid
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import JSON, Column, ForeignKeyConstraint, Integer, Table, Text, select, update
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.ext.mutable import MutableDict
from sqlalchemy.orm import Mapped, Session, column_property, composite, deferred, mapped_column

from sqla_vector.embedding import Fingerprint
from sqla_vector.tracking import is_current
from tests.tracking.mapped import SYNC, WHEN, Make, base, edit, mark, settle, title, vector
from tests.tracking.models import CountingEmbedder
from tests.tracking.stale import joined


@SYNC
@WHEN
@pytest.mark.parametrize(
    "key",
    [
        7,
        'a "key", with\\ signs \u00e9',
        uuid.UUID(int=5),
        datetime.date(2024, 2, 29),
        datetime.datetime(2024, 2, 29, 1, 2, 3, 456),
    ],
    ids=lambda key: type(key).__name__,
)
def test_keys(tracked: Make, when: str, key: Any):
    Base = base()

    class Article(Base):
        __tablename__ = "article"
        b: Mapped[Any] = mapped_column("part b", Base.registry._resolve_type(type(key)), primary_key=True)
        a: Mapped[int] = mapped_column("part a", primary_key=True)
        title: Mapped[str | None]
        embedding: Mapped[Any | None] = vector("title", when)
        embedding_fingerprint: Mapped[str | None] = mark()

    t = tracked(Base, CountingEmbedder())
    t.run(lambda s: s.add_all([Article(a=1, b=key, title="a"), Article(a=2, b=key, title="b")]))
    assert settle(t, Article, title) == 2
    edit(t, Article, (key, 2), title="c", a=3)
    assert settle(t, Article, title) == 2


@SYNC
@WHEN
def test_a_key_whose_columns_have_another_order_in_the_parents_table(tracked: Make, when: str):
    Base = base()

    class Item(Base):
        __tablename__ = "item"
        a: Mapped[int] = mapped_column(primary_key=True)
        b: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]

    class Book(Item):
        __tablename__ = "book"
        b: Mapped[int] = mapped_column(primary_key=True)
        a: Mapped[int] = mapped_column(primary_key=True)
        embedding: Mapped[Any | None] = vector("title", when)
        embedding_fingerprint: Mapped[str | None] = mark()
        __table_args__ = (ForeignKeyConstraint(["a", "b"], ["item.a", "item.b"]),)

    t = tracked(Base, CountingEmbedder())
    t.run(lambda s: s.add_all([Book(a=1, b=2, title="x"), Book(a=2, b=1, title="y")]))
    edit(t, Book, (1, 2), title="z")
    assert settle(t, Book, title) == 2
    item = Item.__table__
    t.untracked(lambda s: s.execute(update(item).where(item.c.a == 1).values(title="by nobody")))
    assert not t.run(lambda s: is_current(s, s.get_one(Book, (1, 2)), "embedding"))
    assert t.run(lambda s: is_current(s, s.get_one(Book, (2, 1)), "embedding"))


@SYNC
@WHEN
def test_a_table_without_a_key_has_that_of_its_mapping(tracked: Make, when: str):
    Base = base()
    embedded = vector("title", when)
    table = Table(
        "article",
        Base.metadata,
        Column("id", Integer),
        Column("title", Text),
        Column("embedding", embedded.column.type, info=embedded.column.info),
        Column("embedding_fingerprint", Fingerprint()),
    )

    class Article(Base):
        __table__ = table
        __mapper_args__ = {"primary_key": [table.c.id]}

    t = tracked(Base, CountingEmbedder())
    t.run(lambda s: s.add_all([Article(id=1, title="a"), Article(id=2, title="b")]))
    edit(t, Article, 1, title="c")
    assert settle(t, Article, title) == 2


@dataclass(frozen=True)
class Place:
    """A value made of two columns."""

    town: str | None
    street: str | None


@SYNC
@WHEN
def test_attributes_that_are_more_than_columns(tracked: Make, when: str):
    Base = base()

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        version: Mapped[int] = mapped_column()
        title: Mapped[str | None] = mapped_column(server_default="untitled")
        body: Mapped[str | None] = deferred(mapped_column(Text))
        size = column_property(select(1).scalar_subquery())
        embedding: Mapped[Any | None] = vector(("title", "body"), when, deferred=True)
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint(), deferred=True)
        __mapper_args__ = {"version_id_col": version}

        @hybrid_property
        def shout(self) -> str:
            return str(self.title).upper()

        @shout.inplace.setter
        def _set_shout(self, value: str) -> None:
            self.title = value.lower()

    t = tracked(Base, CountingEmbedder())

    def text_of(row: Any) -> str | None:
        return joined(row.title, row.body)

    t.run(lambda s: s.add_all([Article(id=1), Article(id=2, title="a", body="b")]))
    assert settle(t, Article, text_of) == 2
    edit(t, Article, 1, shout="LOUD")
    edit(t, Article, 2, body="c")
    assert settle(t, Article, text_of) == 2
    assert sorted(t.embedder.texts) == ["a\n\nb", "a\n\nc", "loud", "untitled"]


def facts_of(row: Any) -> str | None:
    return joined(row.town, row.street, *sorted(f"{name}: {value}" for name, value in row.facts.items()))


@SYNC
@WHEN
def test_values_that_are_changed_in_place_and_values_of_several_columns(tracked: Make, when: str):
    Base = base()

    class Shop(Base):
        __tablename__ = "shop"
        id: Mapped[int] = mapped_column(primary_key=True)
        facts: Mapped[dict[str, Any]] = mapped_column(MutableDict.as_mutable(JSON()))
        town: Mapped[str | None]
        street: Mapped[str | None]
        place: Mapped[Place] = composite("town", "street")
        embedding: Mapped[Any | None] = vector(facts_of, when, depends_on=("facts", "town", "street"))
        embedding_fingerprint: Mapped[str | None] = mark()

    t = tracked(Base, CountingEmbedder())
    t.run(lambda s: s.add(Shop(id=1, facts={"open": 9}, place=Place("Bath", "Quiet Street"))))
    assert settle(t, Shop, facts_of) == 1

    def change(session: Session) -> None:
        shop = session.get_one(Shop, 1)
        shop.facts["open"] = 8

    t.run(change)
    assert settle(t, Shop, facts_of) == 1
    edit(t, Shop, 1, place=Place("Wells", None))
    assert settle(t, Shop, facts_of) == 1
    assert t.embedder.texts == [
        "Bath\n\nQuiet Street\n\nopen: 9",
        "Bath\n\nQuiet Street\n\nopen: 8",
        "Wells\n\nopen: 8",
    ]
