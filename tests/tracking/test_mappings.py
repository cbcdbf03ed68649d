"""Tracking with every way to map a class: a text is edited, and the row's vector follows."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from sqlalchemy import Column, ForeignKey, Integer, String, Table, select
from sqlalchemy.ext.declarative import AbstractConcreteBase
from sqlalchemy.orm import (
    Mapped,
    MappedAsDataclass,
    Session,
    declared_attr,
    mapped_column,
    registry,
)

from sqla_vector.embedding import Fingerprint
from sqla_vector.tracking import acheck, backfill, check, is_current, outbox_table
from tests.tracking.conftest import Tracked
from tests.tracking.mapped import SYNC, SYNC_AND_ASYNC, WHEN, Make, base, edit, mark, settle, title, vector
from tests.tracking.models import CountingEmbedder
from tests.tracking.stale import joined

ShortText = Annotated[str | None, mapped_column(String(50))]
Meaning = Annotated[Any | None, vector("title")]
LaterMeaning = Annotated[Any | None, vector("title", "worker")]
Mark = Annotated[str | None, mapped_column(Fingerprint())]


def is_clean(t: Tracked) -> bool:
    """Tell whether check() has nothing to say, which reads the rows in its own way."""
    report = t.backend.wait(acheck(t.sessions)) if t.backend.is_async else check(t.sessions)
    return bool(report.is_clean)


@SYNC
@WHEN
def test_a_mixin_for_several_classes(tracked: Make, when: str):
    Base = base()

    class Embedded:
        title: Mapped[str | None]
        embedding: Mapped[Any | None] = vector("title", when)
        embedding_fingerprint: Mapped[str | None] = mark()

    class Chosen:
        @declared_attr
        def whole(cls) -> Mapped[Any | None]:  # noqa: N805 - called with the class
            return vector(("title", cls.more), when)  # type: ignore[attr-defined,no-any-return]

        whole_fingerprint: Mapped[str | None] = mark()

    class Article(Embedded, Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Note(Embedded, Chosen, Base):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True)
        more = "remark"
        remark: Mapped[str | None]

    t = tracked(Base, CountingEmbedder())
    t.run(lambda s: s.add_all([Article(id=1, title="a"), Note(id=1, title="n")]))
    edit(t, Article, 1, title="b")
    edit(t, Note, 1, title="m")
    edit(t, Note, 1, remark="r")
    assert settle(t, Article, title) == settle(t, Note, title) == 1
    assert settle(t, Note, lambda row: joined(row.title, row.remark), "whole") == 1


@SYNC_AND_ASYNC
@WHEN
@pytest.mark.parametrize("place", ["base", "subclass", "both"])
def test_joined_inheritance(tracked: Make, when: str, place: str):
    Base = base()

    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        title: Mapped[str | None]
        if place != "subclass":
            embedding: Mapped[Any | None] = vector("title", when)
            embedding_fingerprint: Mapped[str | None] = mark()
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "item"}

    class Book(Item):
        __tablename__ = "book"
        id: Mapped[int] = mapped_column(ForeignKey("item.id"), primary_key=True)
        blurb: Mapped[str | None]
        if place != "base":
            whole: Mapped[Any | None] = vector(("title", "blurb"), when)
            whole_fingerprint: Mapped[str | None] = mark()
        __mapper_args__ = {"polymorphic_identity": "book"}

    t = tracked(Base, CountingEmbedder())
    # The table that has the vector is the one that entries name.
    wanted = {"base": ["item"], "subclass": ["book"], "both": ["book", "item"]}
    assert sorted(target.entity for target in t.tracking.targets) == wanted[place]

    def all_are_current() -> None:
        if place != "subclass":
            assert settle(t, Item, title) == 3
        if place != "base":
            assert settle(t, Book, lambda row: joined(row.title, row.blurb), "whole") == 2

    t.run(lambda s: s.add_all([Item(id=1, title="i"), Book(id=2, title="b", blurb="x"), Book(id=3, title="c")]))
    all_are_current()
    edit(t, Book, 2, title="in the other table")
    edit(t, Book, 3, blurb="in its own")
    edit(t, Item, 1, title="of the base")
    all_are_current()
    edit(t, Item, 2, title="by the base")
    all_are_current()
    assert is_clean(t)


@SYNC
@WHEN
def test_single_table_inheritance(tracked: Make, when: str):
    Base = base()

    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        title: Mapped[str | None]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "item"}

    class Book(Item):
        blurb: Mapped[str | None]
        embedding: Mapped[Any | None] = vector(("title", "blurb"), when)
        embedding_fingerprint: Mapped[str | None] = mark()
        __mapper_args__ = {"polymorphic_identity": "book"}

    class Novel(Book):
        __mapper_args__ = {"polymorphic_identity": "novel"}

    class Film(Item):
        length: Mapped[int | None]
        film_embedding: Mapped[Any | None] = vector("length", when)
        film_embedding_fingerprint: Mapped[str | None] = mark()
        __mapper_args__ = {"polymorphic_identity": "film"}

    t = tracked(Base, CountingEmbedder())
    t.run(
        lambda s: s.add_all(
            [Item(id=1, title="i"), Book(id=2, title="b"), Novel(id=3, title="n"), Film(id=4, title="f", length=90)]
        )
    )
    edit(t, Item, 1, title="j")
    edit(t, Book, 2, title="c")
    edit(t, Novel, 3, blurb="x")
    edit(t, Film, 4, length=91)
    assert settle(t, Book, lambda row: joined(row.title, row.blurb)) == 2
    assert settle(t, Film, lambda row: joined(row.length), "film_embedding") == 1
    assert "j" not in "".join(t.embedder.texts)


@SYNC
@WHEN
def test_concrete_inheritance(tracked: Make, when: str):
    Base = base()

    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]
        embedding: Mapped[Any | None] = vector("title", when)
        embedding_fingerprint: Mapped[str | None] = mark()

    class Book(Item):
        __tablename__ = "book"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]
        blurb: Mapped[str | None]
        embedding: Mapped[Any | None] = vector(("title", "blurb"), when)
        embedding_fingerprint: Mapped[str | None] = mark()
        __mapper_args__ = {"concrete": True}

    t = tracked(Base, CountingEmbedder())
    books = [Book(id=1, title="b"), Book(id=9, title="q", blurb="y")]
    t.run(lambda s: s.add_all([Item(id=1, title="i"), *books]))
    edit(t, Item, 1, title="j")
    edit(t, Book, 1, blurb="x")
    # A book is an item in Python alone: its row is in a table of its own.
    assert {(entry.entity, entry.row_key) for entry in t.entries()} <= {
        ("item", "[1]"),
        ("book", "[1]"),
        ("book", "[9]"),
    }
    assert settle(t, Item, title) == 1
    assert settle(t, Book, lambda row: joined(row.title, row.blurb)) == 2
    wanted = ["b\n\nx", "j", "q\n\ny"]
    assert sorted(t.embedder.texts) == (sorted([*wanted, "b", "i"]) if when == "flush" else wanted)
    assert t.run(lambda s: is_current(s, s.get_one(Book, 9), Book.embedding))
    assert (backfill(t.sessions, Book.embedding).rows, backfill(t.sessions, Item.embedding).rows) == (2, 1)


@SYNC
@WHEN
def test_concrete_inheritance_under_an_abstract_base(tracked: Make, when: str):
    Base = base()

    class Item(AbstractConcreteBase, Base):
        strict_attrs = True

    class Book(Item):
        __tablename__ = "book"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]
        embedding: Mapped[Any | None] = vector("title", when)
        embedding_fingerprint: Mapped[str | None] = mark()
        __mapper_args__ = {"polymorphic_identity": "book", "concrete": True}

    class Film(Item):
        __tablename__ = "film"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]
        embedding: Mapped[Any | None] = vector("title", when)
        embedding_fingerprint: Mapped[str | None] = mark()
        __mapper_args__ = {"polymorphic_identity": "film", "concrete": True}

    t = tracked(Base, CountingEmbedder())
    assert [target.entity for target in t.tracking.targets] == ["book", "film"]
    t.run(lambda s: s.add_all([Book(id=1, title="b"), Film(id=1, title="f")]))

    def change(session: Session) -> None:
        for item in session.scalars(select(Item)):
            item.title += "!"

    t.run(change)
    assert settle(t, Book, title) == settle(t, Film, title) == 1
    assert {"b!", "f!"} <= {*t.embedder.texts}


@SYNC
def test_annotated_columns(tracked: Make):
    Base = base()

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[ShortText]
        embedding: Mapped[Meaning]
        embedding_fingerprint: Mapped[Mark]
        later: Mapped[LaterMeaning]
        later_fingerprint: Mapped[Mark]

    class Note(Base):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[ShortText]
        embedding: Mapped[LaterMeaning]
        embedding_fingerprint: Mapped[Mark]

    t = tracked(Base, CountingEmbedder())
    t.run(lambda s: s.add_all([Article(id=1, title="a"), Article(id=2), Note(id=1, title="n")]))
    assert t.embedder.texts == ["a"]
    edit(t, Article, 1, title="b")
    edit(t, Note, 1, title="m")
    assert t.embedder.texts == ["a", "b"]
    assert settle(t, Article, title) == settle(t, Article, title, "later") == 2
    assert settle(t, Note, title) == 1


@SYNC
@WHEN
def test_dataclasses(tracked: Make, when: str):
    Base = base(MappedAsDataclass)

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True, init=False)
        title: Mapped[ShortText] = mapped_column(default=None)
        body: Mapped[str | None] = mapped_column(default="nobody")
        embedding: Mapped[Any | None] = vector(("title", "body"), when, default=None)
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint(), init=False)

    t = tracked(Base, CountingEmbedder())

    def text_of(row: Any) -> str | None:
        return joined(row.title, row.body)

    t.run(lambda s: s.add_all([Article("a"), Article(), Article(body=None), Article(title="d", body="e")]))
    assert settle(t, Article, text_of) == 4
    assert sorted(set(t.embedder.texts)) == ["a\n\nnobody", "d\n\ne", "nobody"]
    before = len(t.embedder.texts)
    edit(t, Article, 1, title="b")
    edit(t, Article, 4, body=None)
    assert settle(t, Article, text_of) == 4
    assert sorted(t.embedder.texts[before:]) == ["b\n\nnobody", "d"]


@SYNC
@WHEN
def test_imperative_mapping(tracked: Make, when: str):
    mapped = registry()
    embedded = vector("title", when)
    table = Table(
        "article",
        mapped.metadata,
        Column("id", Integer, primary_key=True),
        Column("headline", String(50), key="head"),
        Column("vec", embedded.column.type, info=embedded.column.info),
        Column("of", Fingerprint()),
    )

    class Article:
        def __init__(self, **values: Any) -> None:
            for name, value in values.items():
                setattr(self, name, value)

    mapped.map_imperatively(
        Article,
        table,
        properties={"title": table.c.head, "embedding": table.c.vec, "embedding_fingerprint": table.c.of},
    )
    mapped.outbox = outbox_table(mapped.metadata)  # type: ignore[attr-defined]
    t = tracked(mapped, CountingEmbedder())
    t.run(lambda s: s.add(Article(id=1, title="a")))
    edit(t, Article, 1, title="b")
    assert settle(t, Article, title) == 1


@SYNC_AND_ASYNC
def test_several_vectors_of_one_row(tracked: Make):
    Base = base()

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column("number", primary_key=True)
        title: Mapped[str | None] = mapped_column("headline")
        body: Mapped[str | None]
        embedding: Mapped[Any | None] = vector("title")
        embedding_fingerprint: Mapped[str | None] = mark()
        whole: Mapped[Any | None] = vector(("title", "body"), "worker")
        whole_fingerprint: Mapped[str | None] = mapped_column("whole_of", Fingerprint())

    t = tracked(Base, CountingEmbedder())
    t.run(lambda s: s.add(Article(id=1, title="a", body="b")))
    assert t.embedder.texts == ["a"]
    edit(t, Article, 1, body="c")
    assert t.embedder.texts == ["a"]
    assert settle(t, Article, title) == 1
    assert settle(t, Article, lambda row: joined(row.title, row.body), "whole") == 1
    assert t.embedder.texts == ["a", "a\n\nc"]
    assert is_clean(t)
