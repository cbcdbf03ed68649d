"""What a session's flush does to rows, in every way in which an attribute gets its value."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from sqlalchemy import CHAR, Computed, ForeignKey, Numeric, Table, event, func, literal, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, make_transient, mapped_column, relationship

from sqla_vector import Vector
from sqla_vector.embedding import Fingerprint, embedding_column
from sqla_vector.exc import EmbedderError, VectorError
from sqla_vector.tracking import outbox_table, outbox_triggers
from tests.tracking.conftest import Tracked
from tests.tracking.models import DIM, CountingEmbedder, article_models
from tests.tracking.stale import digest_of, joined, stale_rows

Make = Callable[..., Tracked]

pytestmark = pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")


def base() -> Any:
    class Base(DeclarativeBase):
        outbox: Table

    Base.outbox = outbox_table(Base.metadata)
    return Base


def vector(source: Any, when: Any = "flush", **options: Any) -> Any:
    return embedding_column(Vector(DIM), source=source, embedder="counting", when=when, **options)


def mark() -> Any:
    return mapped_column(Fingerprint())


def stale(t: Tracked, class_: Any, text_of: Callable[[Any], str | None]) -> list[Any]:
    return t.untracked(lambda s: [(row.id, text_of(row)) for row in stale_rows(s, class_, text_of, t.embedder)])


def article_text(article: Any) -> str | None:
    return joined(article.title, article.body)


def related_text(article: Any) -> str | None:
    return joined(article.title, article.body, article.author and article.author.name)


def settle(t: Tracked) -> None:
    """Let a worker do what is left, and see that nothing is."""
    t.work()
    assert t.entries() == []


@pytest.mark.parametrize("when", ["flush", "worker"])
def test_a_row_that_is_deleted_and_added_in_one_flush_is_embedded_again(tracked: Make, when: str):
    t = tracked(article_models(when), CountingEmbedder())
    t.run(lambda s: s.add(t.base.Article(id=1, title="a", body="b")))
    settle(t)

    def replace(session: Session) -> None:
        session.delete(session.get_one(t.base.Article, 1))
        session.add(t.base.Article(id=1, title="c"))

    t.run(replace)
    settle(t)
    assert stale(t, t.base.Article, article_text) == []


@pytest.mark.parametrize("when", ["flush", "worker"])
def test_an_expression_is_a_change(tracked: Make, when: str):
    t = tracked(article_models(when), CountingEmbedder())
    t.run(lambda s: s.add(t.base.Article(id=1, title="a", body="b")))
    settle(t)
    t.run(lambda s: setattr(s.get_one(t.base.Article, 1), "title", t.base.Article.title + "x"))
    settle(t)
    assert stale(t, t.base.Article, article_text) == []
    t.run(lambda s: setattr(s.get_one(t.base.Article, 1), "title", func.upper(literal("y"))))
    settle(t)
    assert stale(t, t.base.Article, article_text) == []
    assert t.embedder.texts[-1] == "Y\n\nb"


@pytest.mark.parametrize("when", ["flush", "worker"])
def test_an_expression_of_a_related_row_is_a_change(tracked: Make, when: str):
    t = tracked(article_models(when, related=True), CountingEmbedder())
    t.run(lambda s: s.add(t.base.Article(id=1, title="a", author=t.base.Author(id=1, name="Ada"))))
    settle(t)
    t.run(lambda s: setattr(s.get_one(t.base.Author, 1), "name", t.base.Author.name + " L."))
    settle(t)
    assert stale(t, t.base.Article, related_text) == []


@pytest.mark.parametrize("when", ["flush", "worker"])
@pytest.mark.parametrize("related", [False, True])
def test_expired_objects_that_are_written_are_named(tracked: Make, when: str, related: bool):
    t = tracked(article_models(when, related=related), CountingEmbedder())
    ada = t.base.Author(id=1, name="Ada")
    t.run(lambda s: s.add_all(t.base.Article(id=n, title="a", author=ada) for n in (1, 2)))
    settle(t)

    def edit(session: Session) -> None:
        article, author = session.get_one(t.base.Article, 1), session.get_one(t.base.Author, 1)
        session.expire_all()
        article.title = "c"
        author.name = "Bob"

    t.run(edit)
    settle(t)
    assert stale(t, t.base.Article, related_text if related else article_text) == []


def test_a_flush_that_failed_leaves_no_vector_that_counts_as_set_by_hand(tracked: Make):
    t = tracked(article_models(), CountingEmbedder())
    t.run(lambda s: s.add(t.base.Article(id=1, title="a")))
    again = t.base.Article(id=1, title="old")
    with pytest.raises(IntegrityError):
        t.run(lambda s: s.add(again))
    again.id, again.title = 2, "new"
    t.run(lambda s: s.add(again))
    assert stale(t, t.base.Article, article_text) == []


def test_an_embedder_that_fails_leaves_the_session_as_it_was(tracked: Make):
    Base = base()

    class Both(Base):
        __tablename__ = "both"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]
        embedding: Mapped[Any | None] = vector("title")
        embedding_fingerprint: Mapped[str | None] = mark()
        other: Mapped[Any | None] = embedding_column(Vector(DIM), source="title", embedder="failing")
        other_fingerprint: Mapped[str | None] = mark()

    failing = CountingEmbedder(name="failing")
    t = tracked(Base, CountingEmbedder(), more={"failing": failing})
    t.run(lambda s: s.add(Both(id=1, title="a")))

    def refuse(texts: list[str]) -> None:
        raise EmbedderError("refused")

    def edit(session: Session) -> None:
        session.add(two := Both(id=2, title="old"))
        (one := session.get_one(Both, 1)).title = "old"
        failing.fail = refuse
        with pytest.raises(EmbedderError):
            session.flush()
        failing.fail = None
        one.title, two.title = "new", "newer"

    t.run(edit)
    for embedder, key in ((t.embedder, "embedding"), (failing, "other")):
        assert t.untracked(lambda s, e=embedder, k=key: stale_rows(s, Both, lambda row: row.title, e, k)) == []


@pytest.mark.parametrize("when", ["flush", "worker"])
def test_a_copy_that_is_edited_is_embedded(tracked: Make, when: str):
    t = tracked(article_models(when), CountingEmbedder())
    t.run(lambda s: s.add(t.base.Article(id=1, title="a")))
    settle(t)

    def copy(session: Session) -> None:
        article = session.get_one(t.base.Article, 1)
        session.expunge(article)
        make_transient(article)
        article.id, article.title = 2, "b"
        session.add(article)

    t.run(copy)
    settle(t)
    assert stale(t, t.base.Article, article_text) == []
    assert t.embedder.texts == ["a", "b"]


def test_a_copy_that_is_not_edited_keeps_its_vector(tracked: Make):
    t = tracked(article_models(), CountingEmbedder())
    t.run(lambda s: s.add(t.base.Article(id=1, title="a")))

    def copy(session: Session) -> None:
        old = session.get_one(t.base.Article, 1)
        new = t.base.Article(id=2, title="a", embedding=old.embedding)
        new.embedding_fingerprint = old.embedding_fingerprint
        session.add(new)

    t.run(copy)
    assert t.embedder.texts == ["a"]
    assert stale(t, t.base.Article, article_text) == []


@pytest.mark.parametrize("when", ["flush", "worker"])
@pytest.mark.parametrize("related", [False, True])
def test_a_vector_set_by_hand_is_that_of_the_text_that_the_database_has(tracked: Make, when: str, related: bool):
    t = tracked(article_models(when, related=related), CountingEmbedder())
    mine = np.array([1, 2, 3, 4], np.float32)
    t.run(lambda s: s.add(t.base.Author(id=1, name="Ada")))
    t.run(lambda s: s.add(t.base.Article(id=1, title="a", author_id=1, embedding=mine)))
    t.run(lambda s: s.add(t.base.Article(id=2, title=func.lower(literal("B")), body="b", embedding=mine)))

    def edit(session: Session) -> None:
        article = session.get_one(t.base.Article, 1)
        session.execute(
            update(t.base.Article).where(t.base.Article.id == 1).values(body="other"),
            execution_options={"synchronize_session": False},
        )
        article.title, article.embedding = "c", 2 * mine

    t.run(edit)
    settle(t)

    def look(session: Session) -> Any:
        rows = session.scalars(select(t.base.Article).order_by(t.base.Article.id)).all()
        text_of = related_text if related else article_text
        return [
            (row.embedding.tolist(), row.embedding_fingerprint == digest_of(t.embedder, text_of(row))) for row in rows
        ]

    assert t.untracked(look) == [((2 * mine).tolist(), True), (mine.tolist(), True)]
    assert t.embedder.calls == []


@pytest.mark.parametrize("when", ["flush", "worker"])
def test_a_row_without_text_has_no_vector_though_one_was_set(tracked: Make, when: str):
    t = tracked(article_models(when), CountingEmbedder())
    t.run(lambda s: s.add(t.base.Article(id=1, title=" ", embedding=[1, 2, 3, 4])))
    settle(t)
    assert stale(t, t.base.Article, article_text) == []


@pytest.mark.parametrize("when", ["flush", "worker"])
def test_a_foreign_key_that_is_a_source_follows_its_relationship(tracked: Make, when: str):
    Base = base()

    class Category(Base):
        __tablename__ = "category"
        code: Mapped[str] = mapped_column(primary_key=True)
        items = relationship(lambda: Item)

    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]
        code: Mapped[str | None] = mapped_column(ForeignKey("category.code"))
        category: Mapped[Category | None] = relationship(viewonly=True)
        embedding: Mapped[Any | None] = vector(("title", "code"), when)
        embedding_fingerprint: Mapped[str | None] = mark()

    t = tracked(Base, CountingEmbedder())

    def text_of(item: Any) -> str | None:
        return joined(item.title, item.code)

    def add(session: Session) -> None:
        a, b = Category(code="a"), Category(code="b")
        session.add_all([a, b])
        a.items += [Item(id=1, title="x"), Item(id=2, title="y")]

    t.run(add)
    settle(t)
    assert stale(t, Item, text_of) == []

    def move(session: Session) -> None:
        a, b = session.get_one(Category, "a"), session.get_one(Category, "b")
        b.items.append(session.get_one(Item, 1))
        a.items.remove(session.get_one(Item, 2))

    t.run(move)
    settle(t)
    assert stale(t, Item, text_of) == []


@pytest.mark.parametrize("when", ["flush", "worker"])
def test_what_the_database_makes_of_a_row_is_read_back(tracked: Make, when: str):
    Base = base()

    class Person(Base):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        first: Mapped[str | None]
        last: Mapped[str | None]
        state: Mapped[str | None] = mapped_column(default="new", onupdate="edited")
        full: Mapped[str | None] = mapped_column(Computed("coalesce(first, '') || ' ' || coalesce(last, '')"))
        embedding: Mapped[Any | None] = vector(("full", "state"), when)
        embedding_fingerprint: Mapped[str | None] = mark()

    t = tracked(Base, CountingEmbedder())
    t.run(lambda s: s.add_all([Person(id=1, first="Ada"), Person(id=2, first="Bob", state=None)]))
    settle(t)
    assert stale(t, Person, lambda p: joined(p.full, p.state)) == []
    t.run(lambda s: setattr(s.get_one(Person, 1), "last", "L."))
    settle(t)
    assert stale(t, Person, lambda p: joined(p.full, p.state)) == []
    assert t.embedder.texts[-1] == "Ada L.\n\nedited"


@pytest.mark.parametrize("when", ["flush", "worker"])
def test_a_key_is_a_source_like_others(tracked: Make, when: str):
    Base = base()

    class Note(Base):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]
        embedding: Mapped[Any | None] = vector(("id", "title"), when)
        embedding_fingerprint: Mapped[str | None] = mark()

    t = tracked(Base, CountingEmbedder())
    t.run(lambda s: s.add(Note(title="a")))
    settle(t)
    assert stale(t, Note, lambda n: joined(n.id, n.title)) == []
    t.run(lambda s: setattr(s.scalars(select(Note)).one(), "id", 77))
    settle(t)
    assert stale(t, Note, lambda n: joined(n.id, n.title)) == []


def test_texts_are_made_of_what_the_database_makes_of_values(tracked: Make):
    Base = base()

    class Product(Base):
        __tablename__ = "product"
        id: Mapped[int] = mapped_column(primary_key=True)
        code: Mapped[str | None] = mapped_column(CHAR(5))
        price: Mapped[Decimal | None] = mapped_column(Numeric(10, 2))
        year: Mapped[int | None]
        embedding: Mapped[Any | None] = vector(("code", "price", "year"))
        embedding_fingerprint: Mapped[str | None] = mark()

    t = tracked(Base, CountingEmbedder())

    def text_of(product: Any) -> str | None:
        return joined(product.code, product.price, product.year)

    t.run(lambda s: s.add(Product(id=1, code="abc", price=Decimal("1.5"), year=True)))
    assert stale(t, Product, text_of) == []
    t.run(lambda s: setattr(s.get_one(Product, 1), "price", Decimal("2.345")))
    assert stale(t, Product, text_of) == []


def test_a_key_and_a_name_that_change_together_mark_the_dependants(tracked: Make):
    Base = base()

    class Author(Base):
        __tablename__ = "author"
        code: Mapped[str] = mapped_column(primary_key=True)
        name: Mapped[str | None]

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        code: Mapped[str | None] = mapped_column(ForeignKey("author.code", onupdate="CASCADE"))
        author: Mapped[Author | None] = relationship(passive_updates=False)
        embedding: Mapped[Any | None] = vector("author.name", "worker")
        embedding_fingerprint: Mapped[str | None] = mark()

    t = tracked(Base, CountingEmbedder())
    t.run(lambda s: s.add(Article(id=1, author=Author(code="a", name="Ada"))))
    settle(t)

    def edit(session: Session) -> None:
        author = session.get_one(Author, "a")
        author.code, author.name = "l", "Lovelace"

    t.run(edit)
    settle(t)
    if t.backend.family == "postgresql":  # SQLite enforces no reference unless it is told to
        assert t.embedder.texts == ["Ada", "Lovelace"]
    assert stale(t, Article, lambda a: a.author and a.author.name) == []


def test_a_reference_to_what_is_no_key_is_followed(tracked: Make):
    Base = base()

    class Country(Base):
        __tablename__ = "country"
        id: Mapped[int] = mapped_column(primary_key=True)
        code: Mapped[str]
        name: Mapped[str]

    class City(Base):
        __tablename__ = "city"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        country_code: Mapped[str | None]
        country: Mapped[Country | None] = relationship(
            primaryjoin=lambda: Country.code == City.country_code, foreign_keys=lambda: City.country_code
        )
        embedding: Mapped[Any | None] = vector(("name", "country.name"), "worker")
        embedding_fingerprint: Mapped[str | None] = mark()

    t = tracked(Base, CountingEmbedder())

    def text_of(city: Any) -> str | None:
        return joined(city.name, city.country and city.country.name)

    t.run(lambda s: s.add_all([Country(id=1, code="uk", name="UK"), City(id=1, name="Bath", country_code="uk")]))
    t.run(lambda s: s.add(City(id=2, name="Rome", country_code="it")))
    settle(t)
    assert stale(t, City, text_of) == []
    t.run(lambda s: setattr(s.get_one(Country, 1), "code", "it"))
    settle(t)
    assert stale(t, City, text_of) == []


def said(article: Any) -> str:
    return " ".join(comment.word for comment in article.comments)


def commented(lazy: Any = "select") -> Any:
    Base = base()

    class Comment(Base):
        __tablename__ = "comment"
        id: Mapped[int] = mapped_column(primary_key=True)
        word: Mapped[str]
        place: Mapped[int] = mapped_column(default=0)
        article_id: Mapped[int | None] = mapped_column(ForeignKey("article.id"))

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        comments: Mapped[list[Comment]] = relationship(order_by=(Comment.place, Comment.id), lazy=lazy)
        embedding: Mapped[Any | None] = vector(said, "worker", depends_on=("comments.word",))
        embedding_fingerprint: Mapped[str | None] = mark()

    Base.Article, Base.Comment = Article, Comment
    return Base


@pytest.mark.parametrize("lazy", ["select", "joined", "selectin", "raise"])
def test_a_collection_without_a_way_back_is_followed(tracked: Make, lazy: str):
    t = tracked(commented(lazy), CountingEmbedder())
    Article, Comment = t.base.Article, t.base.Comment

    def add(session: Session) -> None:
        words = [Comment(id=n, word=word) for n, word in enumerate("abcd", start=1)]
        session.add_all([Article(id=1, comments=words[:2]), Article(id=2, comments=words[2:])])

    def assert_current() -> None:
        settle(t)
        with_texts = t.untracked(
            lambda s: [(a.embedding_fingerprint, digest_of(t.embedder, texts(s, a.id))) for a in s.scalars(rows)]
        )
        assert [one for one, other in with_texts if one != other] == []

    def texts(session: Session, article_id: int) -> str:
        found = select(Comment.word).where(Comment.article_id == article_id).order_by(Comment.place, Comment.id)
        return " ".join(session.scalars(found))

    from sqlalchemy.orm import lazyload

    rows = select(Article).options(lazyload(Article.comments))
    t.run(add)
    assert_current()

    def move(session: Session) -> None:
        # Nobody takes it out of the first article's collection.
        loaded = select(Article).options(lazyload(Article.comments)).where(Article.id == 2)
        article = session.scalars(loaded).one()
        article.comments.append(session.get_one(Comment, 1))

    t.run(move)
    assert_current()
    assert sorted(t.embedder.texts) == ["a b", "a c d", "b", "c d"]
    t.run(lambda s: setattr(s.get_one(Comment, 3), "place", 7))
    assert_current()
    assert t.embedder.texts[-1] == "a d c"
    t.run(lambda s: setattr(s.get_one(Comment, 3), "article_id", 1))
    assert_current()
    t.run(lambda s: s.delete(s.get_one(Comment, 3)))
    assert_current()


def test_a_change_that_makes_the_same_text_is_compared_with_what_the_database_has(tracked: Make):
    t = tracked(article_models(), CountingEmbedder())
    t.run(lambda s: s.add(t.base.Article(id=1, title="a")))

    def edit(session: Session) -> None:
        article = session.get_one(t.base.Article, 1)
        session.execute(
            update(t.base.Article).values(title="other", embedding=None, embedding_fingerprint="counting@1:other"),
            execution_options={"synchronize_session": False},
        )
        article.title, article.body = None, "a"

    t.run(edit)
    assert stale(t, t.base.Article, article_text) == []


def test_no_flush_is_remembered(tracked: Make):
    t = tracked(article_models(), CountingEmbedder())

    def refuse(texts: list[str]) -> None:
        raise EmbedderError("refused")

    def run(session: Session) -> Any:
        article = t.base.Article(id=1, title="a")
        session.add(article)
        t.embedder.fail = refuse
        with pytest.raises(VectorError):
            session.flush()
        session.expunge(article)
        assert session.info == {}
        return weakref.ref(article)

    gone = t.run(run)
    gc.collect()
    assert gone() is None


def test_a_worker_knows_models_that_nobody_has_used_yet(tracked: Make):
    t = tracked(article_models("worker"), CountingEmbedder())
    assert [target.entity for target in t.tracking.targets] == ["article"]


def hooked(when: str = "flush") -> Any:
    """Return a base with Article, which has no related rows."""
    base_ = base()

    class Article(base_):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]
        body: Mapped[str | None]
        views: Mapped[int] = mapped_column(default=0)
        embedding: Mapped[Any | None] = vector(("title", "body"), when)
        embedding_fingerprint: Mapped[str | None] = mark()

    base_.Article = Article
    return base_


@pytest.mark.parametrize("triggers", [False, True])
def test_a_text_that_a_hook_of_the_mapper_changes_is_embedded(tracked: Make, triggers: bool):
    b = hooked()
    if triggers:
        outbox_triggers(b, b.outbox)

    def tidy(mapper: Any, connection: Any, article: Any) -> None:
        if article.title is not None:
            article.title = article.title.strip()
        article.body = f"{article.title} of {article.views}"

    event.listen(b.Article, "before_insert", tidy)
    event.listen(b.Article, "before_update", tidy)
    t = tracked(b, CountingEmbedder())
    by_hand = t.embedder.vector("b\n\nb of 0")
    t.run(lambda s: s.add_all([b.Article(id=1, title=" a "), b.Article(id=2, title=" b ", views=0, embedding=by_hand)]))
    assert stale(t, b.Article, article_text) == []
    t.run(lambda s: setattr(s.get_one(b.Article, 1), "title", " c "))
    assert stale(t, b.Article, article_text) == []
    t.run(lambda s: setattr(s.get_one(b.Article, 1), "views", 7))
    assert stale(t, b.Article, article_text) == []
    assert t.embedder.texts[-1] == "c\n\nc of 7"
    settle(t)


def test_an_expression_that_a_hook_of_the_mapper_sets_is_embedded_as_the_database_made_it(tracked: Make):
    b = hooked()

    def shout(mapper: Any, connection: Any, article: Any) -> None:
        article.body = func.upper(literal(f"b{article.views}"))

    event.listen(b.Article, "before_insert", shout)
    event.listen(b.Article, "before_update", shout)
    t = tracked(b, CountingEmbedder())
    t.run(lambda s: s.add(b.Article(id=1, title="a")))
    assert stale(t, b.Article, article_text) == []
    t.run(lambda s: setattr(s.get_one(b.Article, 1), "views", 7))
    assert stale(t, b.Article, article_text) == []
    assert t.embedder.texts[-1] == "a\n\nB7"


@pytest.mark.parametrize("when", ["flush", "worker"])
def test_a_vector_set_by_hand_is_that_of_the_text_after_the_hooks(tracked: Make, when: str):
    b = hooked(when)
    event.listen(b.Article, "before_insert", lambda _, __, article: setattr(article, "title", article.title.strip()))
    t = tracked(b, CountingEmbedder())
    t.run(lambda s: s.add(b.Article(id=1, title=" a ", embedding=t.embedder.vector("a"))))
    settle(t)
    assert stale(t, b.Article, article_text) == []
    assert t.embedder.texts == []


@pytest.mark.parametrize("when", ["flush", "worker"])
def test_what_later_listeners_change_and_add_is_embedded(tracked: Make, when: str):
    b = hooked(when)
    t = tracked(b, CountingEmbedder())

    def tidy(session: Session, context: Any, instances: Any) -> None:
        for article in [*session.new, *session.dirty]:
            article.title = article.title.strip()
            if article.id < 10 and article in session.new:
                session.add(b.Article(id=article.id + 10, title="More of " + article.title))
                session.add(b.Article(id=article.id + 20, title="By hand", embedding=t.embedder.vector("By hand")))

    event.listen(t.sessions, "before_flush", tidy)
    t.run(lambda s: s.add(b.Article(id=1, title=" a ")))
    settle(t)
    t.run(lambda s: setattr(s.get_one(b.Article, 1), "title", " c "))
    settle(t)
    assert stale(t, b.Article, article_text) == []
    assert "By hand" not in t.embedder.texts


def test_a_row_that_nobody_changes_after_it_was_looked_at_is_not_read_again(tracked: Make):
    b = hooked()
    t = tracked(b, CountingEmbedder())
    said: list[str] = []
    event.listen(t.engine, "before_cursor_execute", lambda *args: said.append(args[2].split()[0]))
    t.run(lambda s: s.add_all(b.Article(id=n, title=f"a{n}", body="b") for n in range(9)))
    assert set(said) <= {"INSERT", "BEGIN"}


@pytest.mark.parametrize("when", ["flush", "worker"])
def test_a_foreign_key_that_a_hook_sets_concerns_the_former_row_too(tracked: Make, when: str):
    b = base()

    class Shelf(b):
        __tablename__ = "shelf"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None]
        books: Mapped[list[Book]] = relationship()
        embedding: Mapped[Any | None] = vector(
            lambda shelf: joined(shelf.name, *sorted(book.title for book in shelf.books)),
            when,
            depends_on=("name", "books.title"),
        )
        embedding_fingerprint: Mapped[str | None] = mark()

    class Book(b):
        __tablename__ = "book"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        wanted: Mapped[int | None]
        shelf_id: Mapped[int | None] = mapped_column(ForeignKey("shelf.id"))

    def text_of(shelf: Any) -> str | None:
        return joined(shelf.name, *sorted(book.title for book in shelf.books))

    t = tracked(b, CountingEmbedder())
    t.run(lambda s: s.add_all([Shelf(id=1, name="one", books=[Book(id=1, title="a")]), Shelf(id=2, name="two")]))
    settle(t)

    def move(mapper: Any, connection: Any, book: Any) -> None:
        book.shelf_id = book.wanted

    event.listen(Book, "before_update", move)
    t.run(lambda s: setattr(s.get_one(Book, 1), "wanted", 2))
    settle(t)
    assert stale(t, Shelf, text_of) == []


@pytest.mark.parametrize("triggers", [False, True])
def test_a_version_that_others_do_not_count_does_not_vouch_for_the_rest_of_a_text(tracked: Make, triggers: bool):
    Base = base()

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        version: Mapped[int] = mapped_column()
        title: Mapped[str | None]
        body: Mapped[str | None]
        embedding: Mapped[Any | None] = vector(("title", "body"))
        embedding_fingerprint: Mapped[str | None] = mark()
        __mapper_args__ = {"version_id_col": version}

    if triggers:
        outbox_triggers(Base, Base.outbox)
    t = tracked(Base, CountingEmbedder())
    t.run(lambda s: s.add(Article(id=1, title="a", body="b")))

    def edit(session: Session) -> None:
        article = session.get_one(Article, 1)
        session.execute(update(Article.__table__).values(body="other"))
        article.title = "c"

    t.run(edit)
    settle(t)
    assert stale(t, Article, article_text) == []
