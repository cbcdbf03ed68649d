"""What chunked() declares, refuses, and what becomes of it in migrations."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from sqlalchemy import Column, ForeignKey, Integer, LargeBinary, MetaData, String, Table, Text, Uuid, inspect, select
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    configure_mappers,
    declarative_base,
    mapped_column,
    registry,
    relationship,
)

from sqla_vector import HalfVector, Vector
from sqla_vector.chunking import by_sentences, check_chunks, chunked
from sqla_vector.embedding import embedded_columns
from sqla_vector.exc import InvalidDeclaration, InvalidIdentifier, InvalidOption
from sqla_vector.tracking import check, outbox_table, outbox_triggers
from tests.chunking.models import document_models, paragraphs
from tests.support.backends import AnyEngine, Backend
from tests.support.migrations import Project
from tests.tracking.conftest import Tracked
from tests.tracking.models import DIM, CountingEmbedder

Make = Callable[..., Tracked]
OPTIONS: dict[str, Any] = {"vector": Vector(DIM), "embedder": "counting", "splitter": by_sentences(2, 0)}
ONE_OF_EACH = pytest.mark.backends("psycopg", "pysqlite3")


def test_the_table_is_one_of_the_metadata() -> None:
    base = document_models(index={"metric": "cosine", "method": "hnsw"})
    table = base.metadata.tables["document_chunk"]
    assert [column.name for column in table.columns] == [
        "id",
        "document_id",
        "position",
        "start_offset",
        "end_offset",
        "text",
        "embedding",
        "embedding_fingerprint",
    ]
    (key,) = table.foreign_keys
    assert (key.target_fullname, key.ondelete, key.onupdate) == ("document.id", "CASCADE", "CASCADE")
    assert {index.name for index in table.indexes} == {"ix_document_chunk_parent", "ix_document_chunk_embedding"}
    assert base.Chunk.__name__ == "DocumentChunk"
    assert base.Chunk.__module__ == base.Document.__module__
    assert [str(column) for column in embedded_columns(base.Chunk)] == ["DocumentChunk.embedding"]


def test_names_are_chosen() -> None:
    class Base(DeclarativeBase): ...

    class Page(Base):
        __tablename__ = "page"
        __table_args__ = {"schema": "web"}
        id: Mapped[int] = mapped_column(primary_key=True)
        chunks: Mapped[str]
        page: Mapped[str]

    part = chunked(Page, "chunks", name="Part", tablename="part", collection="parts", parent="of_page", **OPTIONS)
    assert part.__table__.fullname == "web.part"
    assert (part.__name__, list(inspect(part).relationships.keys())) == ("Part", ["of_page"])
    assert list(inspect(Page).relationships.keys()) == ["parts"]
    other = chunked(Page, "page", name="Other", tablename="other", collection="others", **OPTIONS)
    assert other.page.property.mapper.class_ is Page


def test_classes_may_be_declared_after_the_chunks() -> None:
    class Base(DeclarativeBase): ...

    class Page(Base):
        __tablename__ = "page"
        id: Mapped[int] = mapped_column(primary_key=True)
        site_id: Mapped[int] = mapped_column(ForeignKey("site.id"))
        site: Mapped[Any] = relationship("Site", back_populates="pages")

    part = chunked(Page, "site.name", **OPTIONS)

    class Site(Base):
        __tablename__ = "site"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        pages: Mapped[list[Page]] = relationship(back_populates="site")

    configure_mappers()
    assert list(inspect(part).relationships.keys()) == ["page"]


class Bases(DeclarativeBase): ...


class Plain(Bases):
    __tablename__ = "plain"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    taken: Mapped[str | None]
    secret: Mapped[str | None] = mapped_column(info={"private": True})


class Taken(Bases):
    __tablename__ = "plain_taken"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"collection": "taken"}, InvalidDeclaration, r"Plain has taken already; give chunked\(\) collection="),
        ({"collection": "metadata"}, InvalidDeclaration, "Plain has metadata already"),
        ({"collection": "a b"}, InvalidOption, r"collection of chunked\(\) is the name of an attribute, got 'a b'"),
        ({"collection": None}, InvalidOption, "collection of"),
        ({"parent": "class"}, InvalidOption, r"parent of chunked\(\) is the name of an attribute"),
        ({"tablename": "plain_taken"}, InvalidDeclaration, r"a table plain_taken already; give chunked\(\) tablename="),
        ({"tablename": "a;b"}, InvalidIdentifier, "table name"),
        ({"name": "a b"}, InvalidIdentifier, "name"),
        ({"parent": "text"}, InvalidDeclaration, r"chunks have text of their own; give chunked\(\) another parent="),
        ({"parent": "plain_id"}, InvalidDeclaration, "chunks have plain_id of their own"),
        ({"splitter": "words"}, InvalidOption, "splitter= is a function"),
        ({"prefix": 7}, InvalidOption, "prefix= is a text, got 7"),
        ({"index": "hnsw"}, InvalidOption, "index= is the options"),
        ({"index": {"metric": "manhattan"}}, Exception, "manhattan"),
        ({"vector": Vector()}, InvalidOption, "a vector type with a dimension"),
        ({"vector": "vector"}, InvalidOption, "a vector type with a dimension"),
        ({"embedder": ""}, InvalidOption, "embedder= is the name"),
        ({"when": "later"}, InvalidOption, "when= is"),
        ({"source": ()}, InvalidOption, "names no attribute"),
        ({"source": str.upper}, InvalidOption, "add depends_on="),
        ({"redact": "no"}, InvalidOption, "redact= is a function"),
    ],
)
def test_what_cannot_be_declared_is_refused_and_leaves_nothing(
    changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    options = {"source": "text", **OPTIONS, **changed}
    with pytest.raises(error, match=message):
        chunked(Plain, options.pop("source"), **options)
    assert set(Bases.metadata.tables) == {"plain", "plain_taken"}
    assert not inspect(Plain).relationships


@pytest.mark.parametrize("thing", [None, 7, "Plain", Bases, Plain.__table__, object])
def test_only_a_mapped_class_has_chunks(thing: Any) -> None:
    with pytest.raises(InvalidOption, match=r"chunked\(\) takes a mapped class"):
        chunked(thing, "text", **OPTIONS)


def test_what_a_text_cannot_be_made_of_is_refused_when_mappers_are_configured() -> None:
    class Base(DeclarativeBase): ...

    class Diary(Base):
        __tablename__ = "diary"
        id: Mapped[int] = mapped_column(primary_key=True)
        secret: Mapped[str | None] = mapped_column(info={"private": True})

    chunked(Diary, "secret", **OPTIONS)
    with pytest.raises(InvalidDeclaration, match=r"Diary\.chunks: secret is marked private.* give chunked\(\) redact="):
        configure_mappers()
    with pytest.raises(InvalidDeclaration, match=r"Diary\.nothing is no mapped column"):
        chunked(Diary, "nothing", tablename="other", collection="others", name="Other", **OPTIONS)
    assert "other" not in Base.metadata.tables
    Base.registry.dispose()


def use(t: Tracked, make: Callable[[int], Any], made: Any) -> list[Any]:
    """Add two rows, and return their chunks."""
    t.run(lambda s: s.add_all([make(1), make(2)]))
    if not t.backend.is_async:
        assert check_chunks(t.sessions).is_clean
        assert check(t.sessions).is_clean
    return list(t.untracked(lambda s: s.scalars(select(made).order_by(made.id)).all()))


@ONE_OF_EACH
def test_keys_of_several_columns_and_types(tracked: Make) -> None:
    class Base(DeclarativeBase):
        outbox: Table

    class Page(Base):
        __tablename__ = "page"
        site: Mapped[uuid.UUID] = mapped_column(Uuid, primary_key=True)
        at: Mapped[datetime] = mapped_column(primary_key=True)
        number: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str]

    part = chunked(Page, "text", vector=HalfVector(DIM), embedder="counting", splitter=by_sentences(2, 0))
    Base.outbox = outbox_table(Base.metadata)
    t = tracked(Base, CountingEmbedder())
    site, at = uuid.UUID(int=7), datetime(2024, 5, 1, 12)
    found = use(t, lambda n: Page(site=site, at=at, number=n, text=paragraphs(n, 3)), part)
    assert [(c.page_site, c.page_at, c.page_number, c.position) for c in found] == [
        (site, at, 1, 0),
        (site, at, 1, 1),
        (site, at, 2, 0),
        (site, at, 2, 1),
    ]

    def change(session: Any) -> None:
        page = session.get(Page, (site, at, 1))
        page.text = paragraphs(3)
        session.flush()
        assert [chunk.text for chunk in page.chunks] == [paragraphs(3)]
        session.delete(session.get(Page, (site, at, 2)))

    t.run(change)
    assert t.untracked(lambda s: s.scalars(select(part.page_number)).all()) == [1]


@ONE_OF_EACH
@pytest.mark.parametrize("kind", ["dataclass", "declarative_base", "imperative", "abstract"])
def test_every_way_to_map_a_class(tracked: Make, kind: str) -> None:
    if kind == "dataclass":

        class Dataclasses(MappedAsDataclass, DeclarativeBase):
            outbox: ClassVar[Any] = None

        class Note(Dataclasses):
            __tablename__ = "note"
            id: Mapped[int] = mapped_column(primary_key=True)
            body: Mapped[str]

        base, note = Dataclasses, Note  # type: ignore[assignment]
    elif kind == "declarative_base":
        base = declarative_base()
        note = type(
            "Note",
            (base,),
            {"__tablename__": "note", "id": Column(Integer, primary_key=True), "body": Column(Text)},
        )
    elif kind == "abstract":

        class Base(DeclarativeBase): ...

        class Owned(Base):
            __abstract__ = True
            owner: Mapped[str] = mapped_column(String(10))

        class OwnedNote(Owned):
            __tablename__ = "note"
            id: Mapped[int] = mapped_column(primary_key=True)
            body: Mapped[str]

        base, note = Base, OwnedNote
    else:

        class Noted:
            def __init__(self, **values: Any) -> None:
                for name, value in values.items():
                    setattr(self, name, value)

        base = registry()
        table = Table("note", base.metadata, Column("id", Integer, primary_key=True), Column("body", Text))
        base.map_imperatively(Noted, table)
        note = Noted
    part = chunked(note, "body", parent="origin", **OPTIONS)
    assert "owner" not in part.__table__.c
    base.outbox = outbox_table(base.metadata)
    t = tracked(base, embedder := CountingEmbedder())
    more = {"owner": "me"} if kind == "abstract" else {}
    found = use(t, lambda n: note(id=n, body=paragraphs(n), **more), part)
    assert [(chunk.position, chunk.text) for chunk in found] == [(0, paragraphs(1)), (0, paragraphs(2))]
    assert np.array_equal(found[0].embedding, embedder.vector(paragraphs(1)))


@ONE_OF_EACH
def test_classes_that_inherit(tracked: Make) -> None:
    class Base(DeclarativeBase):
        outbox: Table

    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        text: Mapped[str | None]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "item"}

    class Story(Item):
        __tablename__ = "story"
        id: Mapped[int] = mapped_column(ForeignKey("item.id"), primary_key=True)
        plot: Mapped[str | None]
        __mapper_args__ = {"polymorphic_identity": "story"}

    chunk = chunked(Item, "text", **OPTIONS)
    scene = chunked(Story, "plot", collection="scenes", **OPTIONS)
    Base.outbox = outbox_table(Base.metadata)
    t = tracked(Base, CountingEmbedder())
    t.run(lambda s: s.add_all([Item(id=1, text="An item."), Story(id=2, text="A story.", plot="A plot.")]))
    assert t.untracked(lambda s: s.scalars(select(chunk.text).order_by(chunk.id)).all()) == ["An item.", "A story."]
    assert t.untracked(lambda s: s.execute(select(scene.story_id, scene.text)).all()) == [(2, "A plot.")]

    def change(session: Any) -> None:
        story = session.get(Item, 2)
        assert [c.text for c in (*story.chunks, *story.scenes)] == ["A story.", "A plot."]
        story.text, story.plot = "Another.", None

    t.run(change)
    assert t.untracked(lambda s: s.scalars(select(chunk.text).order_by(chunk.id)).all()) == ["An item.", "Another."]
    assert t.untracked(lambda s: s.scalars(select(scene.text)).all()) == []
    t.run(lambda s: s.delete(s.get(Item, 2)))
    assert t.untracked(lambda s: s.scalars(select(chunk.text)).all()) == ["An item."]


def test_a_key_that_no_entry_can_name_is_refused() -> None:
    class Base(DeclarativeBase): ...

    class Blob(Base):
        __tablename__ = "blob"
        id: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
        text: Mapped[str]

    with pytest.raises(InvalidDeclaration, match="keys of type LargeBinary"):
        chunked(Blob, "text", **OPTIONS)


@pytest.mark.parametrize("triggers", [False, True])
@pytest.mark.backends("psycopg", "asyncpg", "pysqlite3", "aiosqlite")
def test_alembic_makes_the_table_and_finds_no_difference_after_it(
    backend: Backend, engine: AnyEngine, tmp_path: Path, triggers: bool
) -> None:
    base = document_models(index={"metric": "cosine", "method": "hnsw"})
    if triggers:
        outbox_triggers(base, base.outbox)
    metadata: MetaData = base.metadata
    project = Project(tmp_path, backend, engine)
    project.revision(metadata)
    (script,) = project.versions.glob("*.py")
    written = script.read_text(encoding="utf-8")
    assert re.search(r"create_table\(\s*'document_chunk'", written)
    project.upgrade()
    assert project.drift(metadata) == []
    t = Tracked(backend, engine, base, embedder := CountingEmbedder())
    t.run(lambda s: s.add(base.Document(id=1, body=paragraphs(1, 2))))
    t.work()
    assert sorted(embedder.texts) == [paragraphs(1), paragraphs(2)]
    project.downgrade()
    assert "document_chunk" not in backend.run_connection(engine, lambda c: inspect(c).get_table_names())
