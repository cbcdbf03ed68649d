"""Embedded columns in every way of mapping a class, and what a model that lacks something is told."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Annotated, Any
from weakref import ref

import numpy as np
import pytest
from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table, Text, select
from sqlalchemy.ext.asyncio import AsyncAttrs
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    aliased,
    backref,
    column_property,
    configure_mappers,
    declared_attr,
    mapped_column,
    registry,
    relationship,
    synonym,
)

from sqla_vector import BitVector, HalfVector, SparseVector, Vector, asearch, nearest, search
from sqla_vector.embedding import EmbeddedColumn, Fingerprint, Model, embedded_columns, embedding_column, fingerprint
from sqla_vector.exc import InvalidDeclaration, InvalidOption
from tests.support.backends import AnyEngine, Backend

MODEL = Model("minilm", "1")


def columns_of(class_: Any) -> dict[str, EmbeddedColumn]:
    return {column.key: column for column in embedded_columns(class_)}


def base() -> Any:
    class Base(DeclarativeBase):
        pass

    return Base


class Mixin:
    """What a project gives to each of its models that has a text."""

    title: Mapped[str | None]
    embedding: Mapped[Any | None] = embedding_column(Vector(2), source="title", embedder="minilm")
    embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())


def test_a_declaration_tells_text_and_fingerprint():
    class Article(Mixin, base()):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)

    (column,) = embedded_columns(Article)
    assert str(column) == "Article.embedding"
    assert (column.fingerprint_key, column.spec.embedder, column.spec.when) == (
        "embedding_fingerprint",
        "minilm",
        "flush",
    )
    article = Article(title="Cats")
    assert column.text_of(article) == "Cats"
    assert column.fingerprint_of(article, MODEL) == fingerprint(MODEL, "Cats")
    assert column.fingerprint_of(Article(title=" "), MODEL) is None
    assert embedded_columns(inspect_mapper(Article)) is embedded_columns(Article)


def inspect_mapper(class_: Any) -> Any:
    from sqlalchemy import inspect as sa_inspect

    return sa_inspect(class_)


def test_a_mixin_serves_several_models():
    b = base()

    class One(Mixin, b):
        __tablename__ = "one"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Two(Mixin, b):
        __tablename__ = "two"
        id: Mapped[int] = mapped_column(primary_key=True)

    assert columns_of(One)["embedding"].column is One.__table__.c.embedding
    assert columns_of(Two)["embedding"].column is Two.__table__.c.embedding


def test_a_declared_attr_chooses_by_class():
    class Chooses:
        @declared_attr
        @classmethod
        def embedding(cls) -> Mapped[Any | None]:
            return embedding_column(Vector(2), source=cls.text_source, embedder="minilm")  # type: ignore[attr-defined]

        @declared_attr
        @classmethod
        def embedding_fingerprint(cls) -> Mapped[str | None]:
            return mapped_column(Fingerprint())

    class Book(Chooses, base()):
        __tablename__ = "book"
        text_source = ("name",)
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]

    assert columns_of(Book)["embedding"].text_of(Book(name="Cats")) == "Cats"


def test_single_table_inheritance():
    class Document(Mixin, base()):
        __tablename__ = "document"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(String(10))
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "document"}

    class Picture(Document):
        caption: Mapped[str | None]
        seen: Mapped[Any | None] = embedding_column(Vector(3), source=("title", "caption"), embedder="clip")
        seen_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())
        __mapper_args__ = {"polymorphic_identity": "picture"}

    assert set(columns_of(Document)) == {"embedding"}
    assert set(columns_of(Picture)) == {"embedding", "seen"}
    picture = Picture(title="Cats", caption="asleep")
    assert {key: c.text_of(picture) for key, c in columns_of(Picture).items()} == {
        "embedding": "Cats",
        "seen": "Cats\n\nasleep",
    }


def test_joined_inheritance():
    class Animal(Mixin, base()):
        __tablename__ = "animal"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str] = mapped_column(String(10))
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}

    class Dog(Animal):
        __tablename__ = "dog"
        id: Mapped[int] = mapped_column(ForeignKey("animal.id"), primary_key=True)
        trick: Mapped[str]
        tricks: Mapped[Any | None] = embedding_column(Vector(2), source=("title", "trick"), embedder="minilm")
        tricks_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())
        __mapper_args__ = {"polymorphic_identity": "dog"}

    assert columns_of(Dog)["embedding"].column.table is Animal.__table__
    assert columns_of(Dog)["tricks"].text_of(Dog(title="Rex", trick="sits")) == "Rex\n\nsits"


def test_a_fingerprint_in_another_table_of_the_class_is_refused():
    class Animal(base()):
        __tablename__ = "animal"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

    class Dog(Animal):
        __tablename__ = "dog"
        id: Mapped[int] = mapped_column(ForeignKey("animal.id"), primary_key=True)
        embedding: Mapped[Any | None] = embedding_column(Vector(2), source="title", embedder="minilm")

    with pytest.raises(InvalidDeclaration, match="must be columns of one table, to be written together"):
        Dog.registry.configure()


Embedding = Annotated[np.ndarray, embedding_column(Vector(2), source="title", embedder="minilm")]
Mark = Annotated[str, mapped_column(Fingerprint())]


def test_annotated():
    class Article(base()):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        embedding: Mapped[Embedding | None]
        embedding_fingerprint: Mapped[Mark | None]

    class Note(base()):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        embedding: Mapped[Embedding | None]
        embedding_fingerprint: Mapped[Mark | None]

    for class_ in (Article, Note):
        assert columns_of(class_)["embedding"].text_of(class_(title="Cats")) == "Cats"
        assert columns_of(class_)["embedding"].column is class_.__table__.c.embedding


def test_dataclass_mapping():
    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    class Article(Base):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        embedding: Mapped[Any | None] = embedding_column(
            Vector(2), source="title", embedder="minilm", default=None, init=False, repr=False
        )
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint(), default=None, init=False)

    article = Article(id=1, title="Cats")
    assert columns_of(Article)["embedding"].text_of(article) == "Cats"


def test_several_vectors_of_one_model():
    class Article(base()):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        body: Mapped[str | None]
        short: Mapped[Any | None] = embedding_column(Vector(2), source="title", embedder="a", fingerprint="short_of")
        whole: Mapped[Any | None] = embedding_column(
            HalfVector(3), source=("title", "body"), embedder="b", when="worker", template="{title}: {body}"
        )
        sparse: Mapped[Any | None] = embedding_column(SparseVector(9), source="body", embedder="splade")
        short_of: Mapped[str | None] = mapped_column(Fingerprint())
        whole_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())
        sparse_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

    article = Article(title="Cats", body=None)
    assert {key: c.text_of(article) for key, c in columns_of(Article).items()} == {
        "short": "Cats",
        "whole": "Cats: ",
        "sparse": None,
    }


def test_two_vectors_do_not_share_a_fingerprint():
    class Article(base()):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        a: Mapped[Any | None] = embedding_column(Vector(2), source="title", embedder="a", fingerprint="of")
        b: Mapped[Any | None] = embedding_column(Vector(2), source="title", embedder="b", fingerprint="of")
        of: Mapped[str | None] = mapped_column(Fingerprint())

    with pytest.raises(InvalidDeclaration, match=r"Article.b: of is the fingerprint of a already"):
        Article.registry.configure()


def test_imperative_mapping():
    mapper_registry = registry()
    table = Table(
        "article",
        mapper_registry.metadata,
        Column("id", Integer, primary_key=True),
        Column("headline", Text),
        embedding_column(Vector(2), source="title", embedder="minilm", name="embedding").column,
        Column("embedding_fingerprint", Fingerprint()),
    )

    class Article:
        def __init__(self, title: str) -> None:
            self.title = title

    mapper_registry.map_imperatively(Article, table, properties={"title": table.c.headline})
    assert columns_of(Article)["embedding"].text_of(Article("Cats")) == "Cats"


def vectors_beside(**parent: Any) -> tuple[Any, Any]:
    """Return a class, and one whose vectors are those of its texts, with a relationship or a backref to it."""
    b = base()

    class Article(b):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str | None]
        if "backref" in parent:
            vectors = relationship("ArticleVector", backref=backref("article"))

    class ArticleVector(b):
        __tablename__ = "article_vector"
        article_id: Mapped[int] = mapped_column(ForeignKey("article.id"), primary_key=True)
        embedding: Mapped[Any | None] = embedding_column(Vector(2), source="article.title", embedder="minilm")
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())
        if "backref" not in parent:
            article: Mapped[Article] = relationship()

    ArticleVector.__mapper__.registry.configure()
    return Article, ArticleVector


@pytest.mark.parametrize("parent", [{}, {"backref": True}], ids=["relationship", "backref"])
def test_a_vector_table_refers_to_its_parent(parent: dict[str, Any]):
    article_class, vector_class = vectors_beside(**parent)
    column = columns_of(vector_class)["embedding"]
    (dependency,) = column.dependencies
    assert (dependency.path, dependency.key, dependency.mapper.class_) == (("article",), "title", article_class)
    assert column.text_of(vector_class(article=article_class(title="Cats"))) == "Cats"
    assert column.text_of(vector_class(article=article_class())) is None
    assert column.text_of(vector_class()) is None


def test_a_backref_is_known_whichever_class_is_configured_first():
    b = base()

    class Article(b):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
        embedding: Mapped[Any | None] = embedding_column(Vector(2), source="author.name", embedder="minilm")
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())
        tagged: Mapped[Any | None] = embedding_column(
            Vector(2), source=lambda article: article.author.name, depends_on="author", embedder="minilm"
        )
        tagged_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

    class Author(b):
        __tablename__ = "author"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        articles = relationship(Article, backref="author")

    configure_mappers()
    assert [str(c) for c in embedded_columns(Article)] == ["Article.embedding", "Article.tagged"]
    assert embedded_columns(Author) == ()


def with_tags(**options: Any) -> Any:
    b = base()

    class Tag(b):
        __tablename__ = "tag"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        article_id: Mapped[int] = mapped_column(ForeignKey("article.id"))

    class Article(b):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        tags: Mapped[list[Tag]] = relationship()
        embedding: Mapped[Any | None] = embedding_column(Vector(2), embedder="minilm", **options)
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

    Article.registry.configure()
    return Article, Tag


def test_a_function_may_read_a_collection():
    def text(article: Any) -> str:
        return f"{article.title} {' '.join(sorted(tag.name for tag in article.tags))}"

    article_class, tag_class = with_tags(source=text, depends_on=("title", "tags", "tags.name"))
    column = columns_of(article_class)["embedding"]
    article = article_class(title="Cats", tags=[tag_class(name="pets"), tag_class(name="fur")])
    assert column.text_of(article) == "Cats fur pets"
    assert [(d.path, d.key) for d in column.dependencies] == [((), "title"), ((), "tags"), (("tags",), "name")]


REFUSED = {
    "no such column": ({"source": "titel"}, r"Article.titel is no mapped column.*columns are .*title"),
    "no such column for a function": ({"source": str, "depends_on": "titel"}, r"Article.titel is no mapped column"),
    "a collection": ({"source": "tags"}, r"Article.tags is no mapped column"),
    "through a collection": ({"source": "tags.name"}, r"tags is a collection.*depends_on=\('tags.name', ...\)"),
    "no relationship": ({"source": "title.name"}, r"Article.title is no relationship"),
    "no such relationship": ({"source": "author.name"}, r"Article.author is no relationship"),
    "itself": ({"source": "embedding"}, r"is a vector or a fingerprint"),
    "its fingerprint": ({"source": ("title", "embedding_fingerprint")}, r"is a vector or a fingerprint"),
    "not NULL": ({"source": "title", "nullable": False}, r"Article.embedding must take NULL.*nullable=True"),
    "no fingerprint": (
        {"source": "title", "fingerprint": "mark"},
        r"Article.embedding needs a column.*add to the class:\n    mark: Mapped\[str \| None\] = mapped_column\(Fin",
    ),
    "no type of a fingerprint": ({"source": "title", "fingerprint": "title"}, r"add to the class:\n    title:"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_model_that_lacks_something_is_refused_when_mappers_configure(options: dict[str, Any], message: str):
    with pytest.raises(InvalidDeclaration, match=message):
        with_tags(**options)


def test_the_line_to_add_is_the_one_that_helps():
    def model(line: str) -> Any:
        namespace = {**globals(), "Base": base()}
        code = f"""
        class Article(Base):
            __tablename__ = "article"
            id: Mapped[int] = mapped_column(primary_key=True)
            title: Mapped[str]
            embedding: Mapped[Any | None] = embedding_column(Vector(2), source="title", embedder="minilm")
            {line}
        """
        exec(inspect.cleandoc(code), namespace)  # noqa: S102 - the line of the message
        return namespace["Article"]

    lacking = model("")
    with pytest.raises(InvalidDeclaration) as caught:
        embedded_columns(lacking)
    assert embedded_columns(model(str(caught.value).splitlines()[-1].strip()))


def test_a_fingerprint_that_refuses_null_is_refused():
    class Article(base()):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        embedding: Mapped[Any | None] = embedding_column(Vector(2), source="title", embedder="minilm")
        embedding_fingerprint: Mapped[str] = mapped_column(Fingerprint())

    with pytest.raises(InvalidDeclaration, match=r"Article.embedding_fingerprint must take NULL"):
        Article.registry.configure()


@pytest.mark.parametrize("name", ["upper", "other", "both"])
def test_what_is_no_column_is_no_source(name: str):
    class Article(base()):
        __tablename__ = "article"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str] = mapped_column()
        other = synonym("title")
        both = column_property(title + title)
        embedding: Mapped[Any | None] = embedding_column(Vector(2), source=name, embedder="minilm")
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

        @hybrid_property
        def upper(self) -> str:
            return self.title.upper()

    with pytest.raises(InvalidDeclaration, match=f"Article.{name} is no mapped column"):
        Article.registry.configure()


def private_title(**options: Any) -> Any:
    class Person(base()):
        __tablename__ = "person"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str] = mapped_column(info={"private": True})
        embedding: Mapped[Any | None] = embedding_column(Vector(2), embedder="minilm", **options)
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

    Person.registry.configure()
    return Person


@pytest.mark.parametrize("options", [{"source": "title"}, {"source": lambda p: p.title, "depends_on": "title"}])
def test_a_private_column_is_no_source_without_redact(options: dict[str, Any]):
    with pytest.raises(InvalidDeclaration, match=r"title is marked private.*redact="):
        private_title(**options)
    person = private_title(**options, redact=lambda text: text.replace("Ada", "***"))
    assert columns_of(person)["embedding"].text_of(person(title="Ada L.")) == "*** L."


WRONG_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no dimension": ({"type_": Vector()}, "a vector type with a dimension"),
    "a class": ({"type_": Vector}, "a vector type with a dimension"),
    "another type": ({"type_": Text()}, "a vector type with a dimension"),
    "bits": ({"type_": BitVector(8)}, "embedders make numbers, not bits"),
    "no name": ({"embedder": ""}, "embedder= is the name"),
    "an embedder": ({"embedder": SimpleNamespace()}, "embedder= is the name"),
    "another time": ({"when": "later"}, 'when= is "flush" or "worker"'),
    "redact": ({"redact": "x"}, "redact= is a function"),
    "fingerprint": ({"fingerprint": "a b"}, "fingerprint= is the name of an attribute"),
    "a column as fingerprint": ({"fingerprint": Column("f")}, "fingerprint= is the name of an attribute"),
    "a column as source": ({"source": mapped_column(Text)}, "source takes names of attributes"),
}


@pytest.mark.parametrize(("options", "message"), WRONG_OPTIONS.values(), ids=WRONG_OPTIONS.keys())
def test_an_option_that_cannot_be_is_refused_at_once(options: dict[str, Any], message: str):
    given: dict[str, Any] = {"type_": Vector(2), "source": "title", "embedder": "minilm", **options}
    with pytest.raises(InvalidOption, match=message):
        embedding_column(given.pop("type_"), **given)


@pytest.mark.parametrize("entity", [5, "Article", SimpleNamespace, None])
def test_only_mapped_classes_have_embedded_columns(entity: Any):
    with pytest.raises(InvalidOption, match="those of a mapped class"):
        embedded_columns(entity)


class Library(DeclarativeBase):
    pass


class Author(AsyncAttrs, Library):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Article(AsyncAttrs, Library):
    __tablename__ = "article"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str | None]
    author_id: Mapped[int | None] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author | None] = relationship()
    embedding: Mapped[Any | None] = embedding_column(
        Vector(2),
        source=("title", "author.name"),
        embedder="minilm",
        redact=lambda text: text.replace("Ada", "A."),
        info={"of": "the project"},
    )
    embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())


def test_the_declaration_survives_a_copy_of_its_table():
    copied = Library.metadata.tables["article"].to_metadata(MetaData()).c.embedding
    assert copied.info == Article.__table__.c.embedding.info
    assert copied.info["of"] == "the project"
    assert copied.info["source"](Article(title="Cats")) == "Cats"


def with_articles(backend: Backend, engine: AnyEngine) -> None:
    backend.create_all(engine, Library.metadata)

    def fill(session: Session) -> None:
        ada = Author(id=1, name="Ada")
        session.add(Article(id=1, title="Cats", author=ada, embedding=[1, 0]))
        session.add(Article(id=2, title=None, embedding=[0.9, 0.1]))

    backend.run(engine, fill)


@pytest.mark.parametrize("entity", [Article, aliased(Article)], ids=["class", "alias"])
def test_a_hit_has_the_text_that_was_embedded(backend: Backend, engine: AnyEngine, entity: Any):
    with_articles(backend, engine)
    column = columns_of(Article)["embedding"]
    stmt = nearest(select(entity), entity.embedding, [1, 0], k=2)

    def body(session: Session) -> None:
        hits = search(session, stmt)
        # None stays None, and what is not to be known is not shown here either.
        assert [hit.text for hit in hits] == ["Cats\n\nA.", None]
        assert [hit.text for hit in hits] == [column.text_of(hit.entity) for hit in hits]
        # The first entity is another one: the text is of the vector's row, which is not there.
        joined = nearest(select(Author).join(Article), Article.embedding, [1, 0], k=1)
        assert [hit.text for hit in search(session, joined)] == [None]
        assert [hit.text for hit in search(session, nearest(select(Article.id), Article.embedding, [1, 0], k=1))] == [
            None
        ]

    backend.run(engine, body)


@pytest.mark.backends("aiosqlite", "asyncpg", "psycopg_async")
def test_an_asynchronous_session_loads_what_a_text_needs(backend: Backend, engine: AnyEngine):
    with_articles(backend, engine)
    from sqlalchemy.ext.asyncio import AsyncSession

    async def body() -> None:
        async with AsyncSession(engine) as session:  # type: ignore[arg-type]
            hits = await asearch(session, nearest(select(Article), Article.embedding, [1, 0], k=1))
            assert [hit.text for hit in hits] == ["Cats\n\nA."]
        async with AsyncSession(engine) as session:  # type: ignore[arg-type]
            article = await session.get_one(Article, 1)
            assert (await article.awaitable_attrs.author).name == "Ada"
            assert columns_of(Article)["embedding"].text_of(article) == "Cats\n\nA."
        async with AsyncSession(engine) as session:  # type: ignore[arg-type]
            article = await session.get_one(Article, 1)
            text_of: Callable[[Any], Any] = lambda _: columns_of(Article)["embedding"].text_of(article)  # noqa: E731
            assert await session.run_sync(text_of) == "Cats\n\nA."

    backend.wait(body())


def test_a_model_that_nobody_has_any_more_is_forgotten():
    def make() -> ref[Any]:
        class Own(DeclarativeBase): ...

        class Passing(Own):
            __tablename__ = "passing"
            id: Mapped[int] = mapped_column(primary_key=True)
            title: Mapped[str]
            embedding: Mapped[Any | None] = embedding_column(Vector(2), source="title", embedder="minilm")
            embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

        assert embedded_columns(Passing) is embedded_columns(Passing)
        return ref(Passing)

    passing = make()
    gc.collect()
    assert passing() is None
