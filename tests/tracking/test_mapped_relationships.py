"""Tracking of texts that are made of related rows, over every kind of relationship."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Column, ForeignKey, Table, select
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.orm import (
    Mapped,
    Session,
    WriteOnlyCollection,
    attribute_keyed_dict,
    mapped_column,
    object_session,
    relationship,
)

from tests.tracking.mapped import SYNC, SYNC_AND_ASYNC, WHEN, Make, base, edit, mark, settle, vector
from tests.tracking.models import CountingEmbedder, article_models
from tests.tracking.stale import joined


def of(collection: Any, owner: Any) -> list[Any]:
    """Return what is in a collection, whatever it is."""
    if isinstance(collection, WriteOnlyCollection):
        session = object_session(owner)
        assert session is not None
        return list(session.scalars(collection.select()))
    return list(collection)


def put(collection: Any, *rows: Any) -> None:
    for row in rows:
        (collection.add if isinstance(collection, WriteOnlyCollection) else collection.append)(row)


@SYNC_AND_ASYNC
@WHEN
def test_a_related_row_marks_its_dependants_and_no_others(tracked: Make, when: str):
    t = tracked(article_models(when, related=True), CountingEmbedder())
    Article, Author = t.base.Article, t.base.Author

    def text_of(row: Any) -> str | None:
        return joined(row.title, row.body, row.author and row.author.name)

    def add(session: Session) -> None:
        ada, bob = Author(id=1, name="Ada"), Author(id=2, name="Bob")
        session.add_all(Article(id=n, title=f"t{n}", author=author) for n, author in enumerate((ada, ada, bob, None)))

    t.run(add)
    assert settle(t, Article, text_of) == 4
    edit(t, Author, 1, name="Eve")
    assert [(entry.entity, entry.row_key) for entry in t.entries()] == [("article", "[0]"), ("article", "[1]")]
    assert settle(t, Article, text_of) == 4
    assert sorted(t.embedder.texts[-2:]) == ["t0\n\nEve", "t1\n\nEve"]
    t.run(lambda s: s.delete(s.get_one(Author, 2)))  # and its articles
    assert settle(t, Article, text_of) == 3


@SYNC_AND_ASYNC
@WHEN
def test_a_table_of_its_own_for_vectors(tracked: Make, when: str):
    Base = base()

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]

    class Meaning(Base):
        __tablename__ = "meaning"
        article_id: Mapped[int] = mapped_column(ForeignKey("article.id"), primary_key=True)
        article: Mapped[Article] = relationship()
        embedding: Mapped[Any | None] = vector("article.title", when)
        embedding_fingerprint: Mapped[str | None] = mark()

    t = tracked(Base, CountingEmbedder())
    t.run(lambda s: s.add(Meaning(article=Article(id=5, title="a"))))
    assert settle(t, Meaning, lambda row: joined(row.article.title)) == 1
    edit(t, Article, 5, title="b")
    assert settle(t, Meaning, lambda row: joined(row.article.title)) == 1
    assert t.embedder.texts == ["a", "b"]


@SYNC
@WHEN
def test_rows_that_refer_to_their_own_table(tracked: Make, when: str):
    Base = base()

    class Node(Base):
        __tablename__ = "node"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]
        parent_id: Mapped[int | None] = mapped_column(ForeignKey("node.id"))
        parent: Mapped[Any] = relationship("Node", remote_side="Node.id")
        embedding: Mapped[Any | None] = vector(("title", "parent.title", "parent.parent.title"), when)
        embedding_fingerprint: Mapped[str | None] = mark()

    t = tracked(Base, CountingEmbedder())

    def text_of(node: Any) -> str | None:
        parent = node.parent
        above = parent.parent if parent else None
        return joined(node.title, parent and parent.title, above and above.title)

    root = Node(id=1, title="r")
    t.run(
        lambda s: s.add_all([root, (child := Node(id=2, title="c", parent=root)), Node(id=3, title="g", parent=child)])
    )
    assert settle(t, Node, text_of) == 3
    edit(t, Node, 1, title="root")
    assert settle(t, Node, text_of) == 3
    edit(t, Node, 2, parent=None)
    assert settle(t, Node, text_of) == 3


LAZY = pytest.mark.parametrize("lazy", ["select", "dynamic", "write_only"])


@SYNC
@WHEN
@LAZY
def test_many_to_many(tracked: Make, when: str, lazy: Any):
    Base = base()
    tagged = Table(
        "tagged",
        Base.metadata,
        Column("article_id", ForeignKey("article.id"), primary_key=True),
        Column("tag_id", ForeignKey("tag.id"), primary_key=True),
    )

    class Tag(Base):
        __tablename__ = "tag"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    def said(article: Any) -> str:
        return f"{article.id} " + " ".join(sorted(tag.name for tag in of(article.tags, article)))

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        tags = relationship(Tag, secondary=tagged, lazy=lazy, backref="articles", passive_deletes=True)
        embedding: Mapped[Any | None] = vector(said, when, depends_on=("id", "tags.name"))
        embedding_fingerprint: Mapped[str | None] = mark()

    t = tracked(Base, CountingEmbedder())

    def add(session: Session) -> None:
        tags = [Tag(id=n, name=name) for n, name in enumerate("xyz")]
        article = Article(id=1)
        session.add_all([*tags, article, Article(id=2)])
        session.flush()
        put(article.tags, *tags[:2])

    t.run(add)
    assert settle(t, Article, said) == 2
    edit(t, Tag, 0, name="w")
    assert settle(t, Article, said) == 2

    def move(session: Session) -> None:
        first, second = session.get_one(Article, 1), session.get_one(Article, 2)
        one, two = session.get_one(Tag, 1), session.get_one(Tag, 2)
        two.articles.append(second)
        first.tags.remove(one)

    t.run(move)
    assert settle(t, Article, said) == 2
    t.run(lambda s: s.delete(s.get_one(Tag, 0)))
    assert settle(t, Article, said) == 2
    assert {"1 x y", "1 w y", "1 w", "1 ", "2 ", "2 z"} <= {*t.embedder.texts}


@SYNC
@WHEN
@LAZY
@pytest.mark.parametrize("knows_back", [True, False])
def test_one_to_many(tracked: Make, when: str, lazy: Any, knows_back: bool):
    Base = base()

    class Writer(Base):
        __tablename__ = "writer"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    class Comment(Base):
        __tablename__ = "comment"
        id: Mapped[int] = mapped_column(primary_key=True)
        word: Mapped[str]
        writer_id: Mapped[int] = mapped_column(ForeignKey("writer.id"))
        writer: Mapped[Writer] = relationship()
        article_id: Mapped[int | None] = mapped_column(ForeignKey("article.id"))
        if knows_back:
            article: Mapped[Any | None] = relationship("Article", back_populates="comments")

    def said(article: Any) -> str:
        comments = sorted(of(article.comments, article), key=lambda comment: comment.id)
        return " ".join(f"{comment.word}({comment.writer.name})" for comment in comments)

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        comments = relationship(Comment, lazy=lazy, back_populates="article" if knows_back else None)
        embedding: Mapped[Any | None] = vector(said, when, depends_on=("comments.word", "comments.writer.name"))
        embedding_fingerprint: Mapped[str | None] = mark()

    t = tracked(Base, CountingEmbedder())

    def add(session: Session) -> None:
        ada, one, two = Writer(id=1, name="A"), Article(id=1), Article(id=2)
        comments = [Comment(id=n, word=word, writer=ada) for n, word in enumerate("xyz")]
        session.add_all([one, two, *comments])
        put(one.comments, *comments[:2])
        put(two.comments, comments[2])

    t.run(add)
    assert settle(t, Article, said) == 2
    assert {*t.embedder.texts} >= {"x(A) y(A)", "z(A)"}
    edit(t, Comment, 0, word="w")
    assert settle(t, Article, said) == 2
    edit(t, Writer, 1, name="B")
    assert settle(t, Article, said) == 2

    def move(session: Session) -> None:
        # Nobody takes it out of the first article's collection.
        two, comment = session.get_one(Article, 2), session.get_one(Comment, 0)
        put(two.comments, comment)

    t.run(move)
    assert settle(t, Article, said) == 2
    assert {*t.embedder.texts[-2:]} == {"y(B)", "w(B) z(B)"}
    edit(t, Comment, 1, article_id=2)
    assert settle(t, Article, said) == 2
    t.run(lambda s: s.delete(s.get_one(Comment, 2)))
    assert settle(t, Article, said) == 2
    assert t.embedder.texts[-1] == "w(B) y(B)"


@SYNC
@WHEN
def test_collections_of_other_kinds_and_proxies(tracked: Make, when: str):
    Base = base()

    class Note(Base):
        __tablename__ = "note"
        article_id: Mapped[int] = mapped_column(ForeignKey("article.id"), primary_key=True)
        name: Mapped[str] = mapped_column(primary_key=True)
        value: Mapped[str]

    def said(article: Any) -> str:
        return " ".join(f"{name}={note.value}" for name, note in sorted(article.notes.items()))

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        notes: Mapped[dict[str, Note]] = relationship(
            collection_class=attribute_keyed_dict("name"), cascade="all, delete-orphan"
        )
        facts: AssociationProxy[dict[str, str]] = association_proxy(
            "notes", "value", creator=lambda name, value: Note(name=name, value=value)
        )
        embedding: Mapped[Any | None] = vector(said, when, depends_on=("notes.name", "notes.value"))
        embedding_fingerprint: Mapped[str | None] = mark()

    t = tracked(Base, CountingEmbedder())
    t.run(lambda s: s.add(Article(id=1, facts={"a": "1", "b": "2"})))
    assert settle(t, Article, said) == 1

    def change(session: Session) -> None:
        article = session.get_one(Article, 1)
        article.facts["b"] = "3"
        article.facts["c"] = "4"
        del article.facts["a"]

    t.run(change)
    assert settle(t, Article, said) == 1
    assert t.embedder.texts == ["a=1 b=2", "b=3 c=4"]


@SYNC
@WHEN
def test_viewonly_relationships_and_autoflush(tracked: Make, when: str):
    Base = base()

    class Author(Base):
        __tablename__ = "author"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None]

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        author_id: Mapped[int | None] = mapped_column(ForeignKey("author.id"))
        author: Mapped[Author | None] = relationship(viewonly=True)
        embedding: Mapped[Any | None] = vector("author.name", when)
        embedding_fingerprint: Mapped[str | None] = mark()

    t = tracked(Base, CountingEmbedder())

    def text_of(row: Any) -> str | None:
        return row.author and row.author.name

    def add(session: Session) -> None:
        session.add(Author(id=1, name="Ada"))
        session.flush()  # a relationship that is only looked at puts no rows in order
        session.add(Article(id=1, author_id=1))
        assert len(session.scalars(select(Article)).all()) == 1  # flushed by the query
        session.get_one(Author, 1).name = "Bob"
        with session.begin_nested():
            session.add(Article(id=2, author_id=1))

    t.run(add)
    assert settle(t, Article, text_of) == 2
    edit(t, Author, 1, name="Eve")
    assert settle(t, Article, text_of) == 2
    edit(t, Article, 2, author_id=None)
    assert settle(t, Article, text_of) == 2


@SYNC
@WHEN
def test_a_related_class_with_inheritance(tracked: Make, when: str):
    Base = base()

    class Person(Base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        name: Mapped[str | None]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}

    class Author(Person):
        __tablename__ = "author"
        id: Mapped[int] = mapped_column("person_id", ForeignKey("person.id"), primary_key=True)
        pen_name: Mapped[str | None]
        __mapper_args__ = {"polymorphic_identity": "author"}

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        author_id: Mapped[int | None] = mapped_column(ForeignKey("author.person_id"))
        author: Mapped[Author | None] = relationship(foreign_keys=author_id)
        reader_id: Mapped[int | None] = mapped_column(ForeignKey("person.id"))
        reader: Mapped[Person | None] = relationship(foreign_keys=reader_id)
        embedding: Mapped[Any | None] = vector(("author.name", "author.pen_name", "reader.name"), when)
        embedding_fingerprint: Mapped[str | None] = mark()

    t = tracked(Base, CountingEmbedder())

    def text_of(row: Any) -> str | None:
        author, reader = row.author, row.reader
        return joined(author and author.name, author and author.pen_name, reader and reader.name)

    def add(session: Session) -> None:
        eve = Author(id=1, name="Mary Ann Evans")
        session.add_all([Article(id=1, author=eve), Article(id=2, author=eve, reader=Person(id=2, name="Ada"))])
        session.add(Article(id=3, reader=eve))

    t.run(add)
    assert settle(t, Article, text_of) == 3
    edit(t, Author, 1, pen_name="George Eliot")
    assert settle(t, Article, text_of) == 3
    edit(t, Person, 1, name="M. A. Evans")
    edit(t, Person, 2, name="Ida")
    assert settle(t, Article, text_of) == 3
    assert "M. A. Evans\n\nGeorge Eliot\n\nIda" in t.embedder.texts
