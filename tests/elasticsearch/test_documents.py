"""Documents: what rows become, on every database."""

from __future__ import annotations

import datetime
import decimal
import json
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Column, Connection, ForeignKey, Integer, String, Table, TypeDecorator
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    attribute_keyed_dict,
    mapped_column,
    relationship,
)

from sqla_vector import Vector
from sqla_vector.elasticsearch import DenseVector, Document, Field, Keyword, Nested, SearchIndex, Text
from sqla_vector.elasticsearch.documents import to_bytes
from sqla_vector.exc import InvalidDocument
from sqla_vector.tracking import outbox_table
from tests.elasticsearch.library import State, library
from tests.support.backends import AnyEngine, Backend
from tests.support.statements import statements_of

ALL = {
    "title": "title",
    "body": "body",
    "lang": Keyword("lang"),
    "views": "views",
    "score": "score",
    "price": "price",
    "exact_price": Field("price", type="keyword"),
    "is_free": "is_free",
    "published": "published",
    "day": "day",
    "at": "at",
    "state": "state",
    "letter": "letter",
    "token": "token",
    "extra": "extra",
    "embedding": DenseVector("embedding", metric="cosine", index="flat"),
    "half": DenseVector("half", metric="l2", index="hnsw"),
    "bits": "bits",
    "author": "author.name",
    "country": Keyword("author.country.name"),
    "portrait": DenseVector("author.portrait", metric="inner_product", index="hnsw"),
    "tags": "tags.name",
    "comments": Nested("comments", {"author": "author.name", "text": "text", "stars": "stars", "v": "embedding"}),
}

TOKEN = uuid.UUID("12345678-1234-5678-1234-567812345678")


class Shop:
    """A database with rows, and an index of one of its classes."""

    def __init__(self, backend: Backend, engine: AnyEngine, fields: Any = ALL, class_: str = "Article") -> None:
        self.backend, self.engine, self.base = backend, engine, library()
        backend.create_all(engine, self.base.metadata)
        self.index = SearchIndex("articles", getattr(self.base, class_), fields=fields, outbox=self.base.outbox)

    def add(self, *rows: Any) -> None:
        self.backend.run(self.engine, lambda session: session.add_all(rows))

    def run(self, function: Callable[[Connection], Any]) -> Any:
        return self.backend.run_connection(self.engine, function)

    def documents(self, *keys: Any) -> dict[Any, Document]:
        return self.run(lambda c: self.index.documents(c, [k if isinstance(k, tuple) else (k,) for k in keys]))

    def document(self, key: Any) -> Document:
        (found,) = self.documents(key).values()
        return found


def full_article(base: Any) -> Any:
    """Return an article that has everything."""
    ann = base.Author(id=1, name="Ann", country=base.Country(id=1, name="Peru"), portrait=[0, 0, 2])
    return base.Article(
        id=7,
        title="Überschrift",
        body="text " * 100,
        lang="de",
        views=12345,
        score=0.1,
        price=decimal.Decimal("19.9900"),
        is_free=False,
        published=datetime.datetime(2024, 2, 29, 23, 59, 59, 5),
        day=datetime.date(999, 1, 1),
        at=datetime.time(7, 30),
        state=State.DRAFT,
        letter=State.PUBLISHED,
        token=TOKEN,
        extra={"b": [1, 2.5, None, {"c": "d"}], "a": 1e300},
        embedding=[0.1, -0.2, 1e-7],
        half=[0.1, 2, 3],
        bits=[1, 0, 0, 0, 0, 0, 0, 0] + [1] * 8,
        author=ann,
        tags=[base.Tag(id=1, name="zoo"), base.Tag(id=2, name="art"), base.Tag(id=3, name="zoo"), base.Tag(id=4)],
        comments=[
            base.Comment(id=1, text="so so", stars=2, author=ann),
            base.Comment(id=2, text="fine", stars=None, embedding=[1, 2, 3]),
        ],
    )


def test_a_row_becomes_a_document(backend: Backend, engine: AnyEngine):
    shop = Shop(backend, engine)
    shop.add(full_article(shop.base))
    document = shop.document(7)
    body = json.loads(document.to_bytes())
    about = body.pop("_sqla_vector")
    assert (document.id, document.key, document.error) == ("7", (7,), None)
    assert about == {"hash": document.hash, "key": "[7]"}
    assert len(document.hash) == 32
    price = {"price": 19.99, "exact_price": "19.9900"}
    assert {k: v for k, v in body.items() if k not in ("embedding", "half", "body", "comments")} == price | {
        "title": "Überschrift",
        "lang": "de",
        "views": 12345,
        "score": 0.1,
        "is_free": False,
        "published": "2024-02-29T23:59:59.000005Z",
        "day": "0999-01-01",
        "at": "07:30:00",
        "state": "DRAFT",
        "letter": "p",
        "token": str(TOKEN),
        "extra": {"b": [1, 2.5, None, {"c": "d"}], "a": 1e300},
        "bits": "80ff",
        "author": "Ann",
        "country": "Peru",
        "portrait": [0.0, 0.0, 2.0],
        "tags": ["art", "zoo"],
    }
    assert body["comments"] == [
        {"author": "Ann", "text": "so so", "stars": 2},
        {"text": "fine", "v": [1.0, 2.0, 3.0]},
    ]
    assert np.float32(body["embedding"]).tobytes() == np.float32([0.1, -0.2, 1e-7]).tobytes()
    assert np.float32(body["half"]).tobytes() == np.float16([0.1, 2, 3]).astype(np.float32).tobytes()
    assert document.body["embedding"].dtype == np.float32


def test_what_is_null_is_left_out(backend: Backend, engine: AnyEngine):
    shop = Shop(backend, engine)
    shop.add(shop.base.Article(id=1))
    document = shop.document(1)
    assert document.body == {"_sqla_vector": {"hash": document.hash, "key": "[1]"}}


def test_a_vector_that_is_pending_comes_later(backend: Backend, engine: AnyEngine):
    shop = Shop(backend, engine, {"title": "title", "embedding": "embedding"})
    shop.add(shop.base.Article(id=1, title="a"))
    before = shop.document(1)
    shop.backend.run(engine, lambda s: setattr(s.get(shop.base.Article, 1), "embedding", [1, 2, 3]))
    after = shop.document(1)
    assert list(before.body) == ["title", "_sqla_vector"]
    assert list(after.body) == ["title", "embedding", "_sqla_vector"]
    assert before.hash != after.hash


def test_rows_that_are_not_there_are_missing(backend: Backend, engine: AnyEngine):
    shop = Shop(backend, engine, ["title"])
    shop.add(shop.base.Article(id=1, title="a"), shop.base.Article(id=3, title="c"))
    assert set(shop.documents(3, 2, 1)) == {(1,), (3,)}
    assert shop.documents() == {}


def test_vectors_without_a_direction_are_left_out_under_cosine(backend: Backend, engine: AnyEngine):
    fields = {
        "cosine": DenseVector("embedding", metric="cosine", index="flat"),
        "l2": DenseVector("embedding", metric="l2", index="flat"),
    }
    shop = Shop(backend, engine, fields)
    vectors = {1: [0, 0, 0], 2: [1e-30, 0, 0], 3: [1e-16, 0, 0], 4: [0, 1e16, 0]}
    shop.add(*(shop.base.Article(id=key, embedding=vector) for key, vector in vectors.items()))
    found = shop.documents(*vectors)
    both = ["cosine", "l2"]
    assert [[k for k in both if k in found[key,].body] for key in vectors] == [["l2"], ["l2"], both, both]


def test_a_row_that_cannot_be_a_document_says_why(backend: Backend, engine: AnyEngine):
    shop = Shop(backend, engine, {"embedding": "embedding", "views": Field("views", type="byte")})
    base = shop.base
    shop.add(base.Article(id=1, embedding=[1e30, 0, 0]), base.Article(id=2, views=128), base.Article(id=3, views=127))
    found = shop.documents(1, 2, 3)
    assert "embedding: the vector is so long" in (found[1,].error or "")
    assert found[2,].error == "views: 128 is out of the range of a field of type byte"
    assert (found[2,].body, found[2,].hash, found[2,].id) == ({}, "", "2")
    assert found[3,].error is None


@pytest.mark.parametrize("count", [1, 1203])
def test_queries_do_not_grow_with_rows(backend: Backend, engine: AnyEngine, count: int):
    shop = Shop(backend, engine)
    base = shop.base
    tags = [base.Tag(id=n, name=f"t{n}") for n in range(5)]
    countries = [base.Country(id=n, name=f"c{n}") for n in range(3)]
    authors = [base.Author(id=n, name=f"a{n}", country=countries[n % 3]) for n in range(7)]
    articles = [
        base.Article(
            id=n,
            title=f"{n}",
            author=authors[n % 7],
            tags=[tags[n % 5]],
            comments=[base.Comment(text=f"{n}", author=authors[n % 3])],
        )
        for n in range(count)
    ]
    shop.add(*articles)
    with statements_of(engine) as statements:
        found = shop.documents(*range(count))
    assert len(found) == count
    assert {d.body["title"]: d.body["author"] for d in found.values()} == {f"{n}": f"a{n % 7}" for n in range(count)}
    # For 500 rows one, and one for each of author, country, tags, comments and the comments' authors.
    parts = -(-count // 500)
    assert len([s for s in statements if s.lstrip().upper().startswith("SELECT")]) <= 6 * parts


def test_columns_are_read_without_objects(backend: Backend, engine: AnyEngine):
    shop = Shop(backend, engine, ["title", "embedding"])
    shop.add(shop.base.Article(id=1, title="a", body="not asked for"))
    with statements_of(engine) as statements:
        shop.documents(1)
    (statement,) = [s for s in statements if "article" in s]
    assert "body" not in statement


def test_documents_are_those_of_the_transaction(backend: Backend, engine: AnyEngine):
    shop = Shop(backend, engine)
    shop.add(full_article(shop.base))

    def change(session: Session) -> Document:
        author = session.get_one(shop.base.Author, 1)
        author.name = "Bea"
        session.flush()
        author.name = "not flushed"
        found = shop.index.documents(session.connection(), [(7,)])[7,]
        # The session's own objects are neither used nor changed.
        assert author.name == "not flushed"
        return found

    found = backend.run(engine, change)
    assert found.body["author"] == "Bea"


def test_composite_keys(backend: Backend, engine: AnyEngine):
    shop = Shop(backend, engine, {"text": "text"}, "Page")
    key = ('Wörter "und"\n', 3)
    shop.add(shop.base.Page(book=key[0], number=3, text="drei"), shop.base.Page(book="b", number=1))
    document = shop.document(key)
    assert document.id == '["Wörter \\"und\\"\\n",3]'
    assert document.body["_sqla_vector"]["key"] == document.id
    assert shop.index.key_of(document.id) == key
    assert set(shop.documents(key, ("b", 1), ("b", 2))) == {key, ("b", 1)}


def test_text_keys(backend: Backend, engine: AnyEngine):
    spellings = ["a", "ü" * 256, "7", '["a"]', " ", "a/b?c=d#e", "_all", "x\ny"]
    refused = {"": "is empty", "ü" * 257: "is longer than 512 bytes"}
    shop = Shop(backend, engine, {"meaning": "meaning"}, "Word")
    shop.add(*(shop.base.Word(spelling=spelling, meaning="m") for spelling in (*spellings, *refused)))
    found = shop.documents(*spellings, *refused)
    assert [found[spelling,].id for spelling in spellings] == spellings
    for spelling in spellings:
        assert shop.index.key_of(spelling) == (spelling,)
    for spelling, message in refused.items():
        assert message in (found[spelling,].error or "")
        with pytest.raises(InvalidDocument, match=message):
            shop.index.document_id((spelling,))


def test_keys_come_in_the_order_of_the_database(backend: Backend, engine: AnyEngine):
    shop = Shop(backend, engine, {"text": "text"}, "Page")
    keys = [("a", 1), ("a", 2), ("b", 1), ("c", 9)]
    shop.add(*(shop.base.Page(book=book, number=number) for book, number in reversed(keys)))
    found: list[Any] = []
    after: Any = None
    while part := shop.run(lambda c, after=after: shop.index.keys_after(c, after, 3)):
        found += part
        after = part[-1]
    assert found == keys


@pytest.mark.parametrize(
    "name", ["07", "+7", " 7", "7.0", "٧", "x", "", "[7]", "null", "1e3", "9" * 5000, "[" * 100_000]
)
def test_an_id_that_no_row_has_is_none(name: str):
    base = library()
    index = SearchIndex("articles", base.Article, fields=["title"], outbox=base.outbox)
    pages = SearchIndex("pages", base.Page, fields=["text"], outbox=base.outbox)
    assert index.key_of("7") == (7,)
    assert index.key_of("-7") == (-7,)
    for one in (index, pages):
        with pytest.raises(ValueError, match="is the id of no row of"):
            one.key_of(name)


@pytest.mark.parametrize("name", ['["a",1,2]', '["a"]', '["a", 1]', '["a",1.0]', '["a",true]', '[1,"a"]', '{"a":1}'])
def test_an_id_that_no_row_of_a_composite_key_has_is_none(name: str):
    base = library()
    pages = SearchIndex("pages", base.Page, fields=["text"], outbox=base.outbox)
    assert pages.key_of('["a",1]') == ("a", 1)
    with pytest.raises(ValueError, match="is the id of no row of page"):
        pages.key_of(name)


def spec_of(field: str | Field) -> Any:
    base = library()
    return SearchIndex("articles", base.Article, fields={"x": field}, outbox=base.outbox).fields["x"]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("published", datetime.datetime(2024, 1, 1), "2024-01-01T00:00:00.000000Z"),
        (
            "published",
            datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
            "2023-12-31T22:00:00.000000Z",
        ),
        ("price", decimal.Decimal("0.1"), 0.1),
        (Field("price", type="long"), decimal.Decimal("12.000"), 12),
        (Field("score", type="long"), 12.0, 12),
        (Field("price", type="keyword"), decimal.Decimal("1E+3"), "1000"),
        (Field("views", type="keyword"), 7, "7"),
        (Field("is_free", type="keyword"), True, "true"),
        ("views", np.int64(7), 7),
        ("score", np.float32(0.5), 0.5),
        ("views", 2**63 - 1, 2**63 - 1),
        (Field("views", type="unsigned_long"), 2**64 - 1, 2**64 - 1),
        ("title", "\0 𝄞", "\0 𝄞"),
        ("extra", [1, {"a": None}], [1, {"a": None}]),
        ("extra", 2**80, 2**80),
        ("title", None, None),
    ],
)
def test_values_become_json(field: Any, value: Any, expected: Any):
    found = spec_of(field).to_json(value)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("score", float("nan"), "nan is no number"),
        ("score", float("-inf"), "-inf is no number"),
        ("price", decimal.Decimal("NaN"), "NaN is no number"),
        ("price", decimal.Decimal("1e400"), "larger than any double"),
        ("views", 2**63, "out of the range of a field of type long"),
        (Field("views", type="unsigned_long"), -1, "out of the range"),
        (Field("price", type="long"), decimal.Decimal("1.25"), "1.25 is no whole number"),
        (Field("price", type="long"), decimal.Decimal("9007199254740993.5"), "no whole number"),
        (Field("score", type="integer"), 1.5, "1.5 is no whole number"),
        (Field("score", type="long"), 1e300, "out of the range"),
        ("title", "a\ud800b", "half a character at position 1"),
        ("extra", {"a": float("nan")}, "nan is no number"),
        ("extra", {"\udfff": 1}, "half a character"),
        ("title", object(), "values of type object cannot be written"),
        ("title", b"x", "values of type bytes cannot be written"),
        ("published", datetime.datetime.max.replace(tzinfo=datetime.timezone(-datetime.timedelta(hours=1))), "range"),
        ("embedding", [1, 2], "3 dimensions is expected"),
        ("embedding", [1, float("nan"), 2], "has NaN"),
    ],
)
def test_values_that_json_has_not_are_refused(field: Any, value: Any, message: str):
    with pytest.raises(InvalidDocument, match=f"^x: .*{message}"):
        spec_of(field).to_json(value)


def test_deep_json_is_refused():
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidDocument, match="nested too deeply"):
        spec_of("extra").to_json(deep)
    while deep:
        deep = deep[0]


def test_a_hash_is_of_contents():
    base = library()
    nested = Nested("comments", ["embedding"])
    fields = {"v": "embedding", "score": "score", "extra": "extra", "bits": "bits", "c": nested}
    index = SearchIndex("articles", base.Article, fields=fields, outbox=base.outbox)
    vector = np.float32([0.1, 1 / 3, 1e-30])
    body = {
        "v": vector,
        "score": 3.0,
        "extra": {"a": 1.0, "b": [2]},
        "bits": "00ff",
        "c": [{"embedding": vector}],
        "_sqla_vector": {"hash": "x"},
    }
    digest = index.hash_of(body)
    back = json.loads(to_bytes(body))
    assert index.hash_of(back) == digest
    assert index.hash_of(dict(reversed(back.items()))) == digest
    assert index.hash_of({**back, "score": 3, "extra": {"b": [2.0], "a": 1}, "bits": [0, -1]}) == digest
    assert index.hash_of({**back, "v": [float(x) for x in vector.astype(np.float64)]}) == digest
    for changed in (
        {"v": np.nextafter(vector, np.float32(1))},
        {"score": 3.0000000000000004},
        {"extra": {"a": 1, "b": [2, 2]}},
        {"bits": "01ff"},
        {"c": [{"embedding": np.nextafter(vector, np.float32(1))}]},
        {"other": 1},
    ):
        assert index.hash_of({**back, **changed}) != digest
    assert index.hash_of({k: v for k, v in back.items() if k != "v"}) != digest


@pytest.mark.parametrize("seed", range(20))
def test_vectors_are_written_to_the_last_bit(seed: int):
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2**32, 500, dtype=np.uint32).view(np.float32)
    vector = bits[np.isfinite(bits)]
    back = np.float32(json.loads(to_bytes({"v": vector, "c": [{"v": vector}]}))["v"])
    assert back.tobytes() == vector.tobytes()


def test_rows_that_are_related_to_rows_of_the_same_table(backend: Backend, engine: AnyEngine):
    class Base(DeclarativeBase):
        pass

    class Node(Base):
        __tablename__ = "node"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        other: Mapped[str]
        parent_id: Mapped[int | None] = mapped_column(ForeignKey("node.id"))
        parent: Mapped[Any] = relationship("Node", remote_side="Node.id", back_populates="children")
        children: Mapped[list[Any]] = relationship("Node", back_populates="parent")

    fields = {
        "title": "title",
        "parent": "parent.other",
        "third": "parent.parent.parent.title",
        "children": "children.other",
        "nested": Nested("children", {"t": "title", "c": "children.other", "p": "parent.title"}),
    }
    index = SearchIndex("nodes", Node, fields=fields, outbox=outbox_table(Base.metadata))
    backend.create_all(engine, Base.metadata)
    last = 60
    nodes = [Node(id=n, title=f"t{n}", other=f"o{n}", parent_id=n // 2 or None) for n in range(1, last)]
    backend.run(engine, lambda session: session.add_all(nodes))
    with statements_of(engine) as statements:
        found = backend.run_connection(engine, lambda c: index.documents(c, [(n,) for n in range(1, last)]))
    assert len([s for s in statements if s.startswith("SELECT")]) <= 8

    def below(n: int) -> list[int]:
        return [child for child in (2 * n, 2 * n + 1) if child < last]

    for n in range(1, last):
        expected = {
            "title": f"t{n}",
            "parent": f"o{n // 2}" if n // 2 else None,
            "third": f"t{n // 8}" if n // 8 else None,
            "children": sorted(f"o{child}" for child in below(n)) or None,
        }
        body = found[n,].body
        assert {name: body.get(name) for name in expected} == expected
        nested = {one["t"]: (one["p"], one.get("c", [])) for one in body.get("nested", [])}
        assert nested == {f"t{c}": (f"t{n}", sorted(f"o{g}" for g in below(c))) for c in below(n)}


class Celsius(TypeDecorator[Any]):
    """Degrees, kept as tenths."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else round(value * 10)

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value / 10


def test_collections_of_every_kind_and_decorated_types(backend: Backend, engine: AnyEngine):
    class Base(DeclarativeBase):
        pass

    class City(Base):
        __tablename__ = "city"
        id: Mapped[int] = mapped_column(primary_key=True)
        warmth: Mapped[float] = mapped_column(Celsius)
        kind: Mapped[str] = mapped_column(String(10))
        embedding: Mapped[Any] = mapped_column(Vector(2))
        streets: Mapped[dict[str, Any]] = relationship("Street", collection_class=attribute_keyed_dict("name"))
        squares: Mapped[set[Any]] = relationship("Square", collection_class=set)
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "city"}

    class Port(City):
        ships: Mapped[int | None]
        __mapper_args__ = {"polymorphic_identity": "port"}

    class Street(Base):
        __tablename__ = "street"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        city_id: Mapped[int] = mapped_column(ForeignKey("city.id"))

    class Square(Base):
        __tablename__ = "square"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str]
        city_id: Mapped[int] = mapped_column(ForeignKey("city.id"))

    outbox = outbox_table(Base.metadata)
    fields = {"warmth": Field("warmth", type="double"), "streets": "streets.name", "squares": "squares.name"}
    cities = SearchIndex("cities", City, fields=fields, outbox=outbox)
    ports = SearchIndex("ports", Port, fields=["ships", "embedding"], outbox=outbox)
    backend.create_all(engine, Base.metadata)

    def fill(session: Session) -> None:
        street, other = Street(name="z"), Street(name="a")
        session.add(City(id=1, warmth=20.5, embedding=[1, 2], streets={"z": street, "a": other}))
        session.add(Port(id=2, warmth=-1, ships=3, embedding=[3, 4], squares={Square(name="s")}))

    backend.run(engine, fill)

    def read(connection: Connection) -> Any:
        return cities.documents(connection, [(1,), (2,)]), ports.documents(connection, [(1,), (2,)])

    found, harbours = backend.run_connection(engine, read)
    assert [{k: v for k, v in found[n,].body.items() if k != "_sqla_vector"} for n in (1, 2)] == [
        {"warmth": 20.5, "streets": ["a", "z"]},
        {"warmth": -1.0, "squares": ["s"]},
    ]
    assert list(harbours) == [(2,)]
    assert harbours[2,].body["ships"] == 3


def test_a_table_without_a_class_of_its_own(backend: Backend, engine: AnyEngine):
    class Base(DeclarativeBase):
        pass

    table = Table("note", Base.metadata, Column("note_id", Integer, primary_key=True), Column("note_text", String(50)))

    class Note(Base):
        __table__ = table
        key = table.c.note_id
        text = table.c.note_text

    index = SearchIndex("notes", Note, fields={"text": Text("text")}, outbox=outbox_table(Base.metadata))
    backend.create_all(engine, Base.metadata)
    backend.run(engine, lambda session: session.add(Note(key=4, text="four")))
    found = backend.run_connection(engine, lambda c: index.documents(c, [(4,)]))
    assert found[4,].body["text"] == "four"
