"""A filter finds the documents whose rows the database's WHERE finds, or is refused."""

from __future__ import annotations

import datetime
import itertools
import math
import uuid
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    JSON,
    BigInteger,
    Numeric,
    Text,
    and_,
    bindparam,
    false,
    func,
    literal,
    not_,
    or_,
    select,
    text,
    true,
    tuple_,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, aliased, mapped_column

from sqla_vector.elasticsearch import Field, Keyword, SearchIndex
from sqla_vector.elasticsearch import Text as EsText
from sqla_vector.elasticsearch.columns import Columns
from sqla_vector.elasticsearch.filters import MAX_CLAUSES, MAX_DEPTH, MAX_TERMS, filter_query
from sqla_vector.elasticsearch.query import Match, text_query
from sqla_vector.elasticsearch.search import Searcher
from sqla_vector.exc import InvalidFilter, InvalidOption
from sqla_vector.tracking import outbox_table
from tests.elasticsearch.searched import Colour, make_world, put

NUMBERS = [-3, 0, 1, 2, 7, 2**31, -(2**63), 2**63 - 1]
PRICES = [-1.5, -0.0, 0.0, 0.1, 2.0, 1e300]
COSTS = [Decimal("-1.10"), Decimal("0.00"), Decimal("3.30")]
TITLES = ["", "a", "b", "ab", "abc", "B", "ä", "a b", "' OR 1=1 --", '{"match_all":{}}', "*", "日本"]
LANGS = ["en", "de", "*", "e?"]
DATES = [datetime.date(1960, 1, 31), datetime.date(2024, 2, 29), datetime.date(2024, 3, 1)]
TIMES = [datetime.datetime(1969, 12, 31, 23, 59, 59, 999000), datetime.datetime(2024, 2, 29, 12, 0, 0, 1000)]
TOKENS = [uuid.UUID(int=1), uuid.UUID(int=2**127 + 5)]
NAMES = ["Ann", "Bob", "Cid"]
ROWS = 240


def fill(world: Any) -> Any:
    def cycle(values: list[Any], step: int) -> Any:
        return itertools.islice(itertools.cycle([*values, None]), 0, None, step)

    def run(session: Any) -> None:
        authors = [world.Author(id=n, name=name) for n, name in enumerate([*NAMES, None], start=1)]
        tags = [world.Tag(id=n, name=name) for n, name in enumerate(["red", "green", "blue"], start=1)]
        session.add_all([*authors, *tags])
        columns = {
            "number": cycle(NUMBERS, 1),
            "price": cycle(PRICES, 2),
            "cost": cycle(COSTS, 1),
            "title": cycle(TITLES, 3),
            "lang": cycle(LANGS, 2),
            "active": cycle([True, False], 1),
            "born": cycle(DATES, 3),
            "at": cycle(TIMES, 2),
            "colour": cycle(list(Colour), 2),
            "token": cycle(TOKENS, 2),
            "author": cycle(authors, 2),
            "editor": cycle(authors, 3),
        }
        for n in range(ROWS):
            row = world.Article(id=n + 1, **{name: next(values) for name, values in columns.items()})
            row.tags = [tag for bit, tag in enumerate(tags) if n >> bit & 1]
            row.comments = [world.Comment(stars=stars) for stars in (range(n % 4) if n % 3 else [None])]
            session.add(row)

    return run


def leaves(world: Any) -> Any:
    """Return a strategy of comparisons."""
    article = world.Article

    def of(attribute: Any, values: list[Any], *, ordered: bool = True) -> Any:
        value = st.sampled_from([*values, values[0]])
        maybe = st.one_of(value, value, value, st.none())
        kinds = [
            maybe.map(lambda v: attribute == v),
            maybe.map(lambda v: attribute != v),
            st.lists(maybe, max_size=3).map(attribute.in_),
            st.lists(maybe, max_size=3).map(attribute.not_in),
            st.sampled_from([attribute.is_(None), attribute.is_not(None)]),
        ]
        if ordered:
            kinds += [
                value.map(lambda v: attribute < v),
                value.map(lambda v: attribute <= v),
                value.map(lambda v: attribute > v),
                value.map(lambda v: attribute >= v),
                value.map(lambda v: literal(v, attribute.type) > attribute),
                st.tuples(value, value).map(lambda pair: attribute.between(*pair)),
            ]
        return st.one_of(kinds)

    return st.one_of(
        of(article.id, [1, 7, 100]),
        of(article.number, NUMBERS),
        of(article.price, PRICES),
        of(article.cost, COSTS),
        of(article.title, TITLES),
        of(article.lang, LANGS),
        of(article.active, [True, False], ordered=False),
        of(article.born, DATES),
        of(article.at, TIMES),
        of(article.colour, list(Colour), ordered=False),
        of(article.token, TOKENS, ordered=False),
        st.sampled_from(
            [
                article.active,
                not_(article.active),
                article.active.is_(True),
                article.active.is_not(True),
                article.active.is_(False),
                true(),
                false(),
                literal(True),
            ]
        ),
    )


def trees(world: Any) -> Any:
    return st.recursive(
        leaves(world),
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3).map(lambda parts: and_(*parts)),
            st.lists(inner, min_size=1, max_size=3).map(lambda parts: or_(*parts)),
            inner.map(not_),
        ),
        max_leaves=8,
    )


@pytest.fixture
def ready(index_name: str, backend: Any, engine: Any, client: Any) -> Any:
    world = make_world(index_name)
    backend.create_all(engine, world.Base.metadata)
    world.index.create(client)
    backend.run(engine, fill(world))
    backend.run(engine, lambda session: put(session, client, world.index))
    world.searcher = Searcher(client, world.index)
    world.run = lambda function: backend.run(engine, function)
    return world


def found(world: Any, criterion: Any) -> set[int]:
    return {hit.key[0] for hit in world.searcher.search_ids(where=criterion, k=ROWS)}


@pytest.mark.backends("pysqlite3", "psycopg")
def test_a_filter_finds_what_the_database_finds(ready: Any):
    @settings(max_examples=250)
    @given(trees(ready))
    def check(criterion: Any) -> None:
        stmt = select(ready.Article.id).where(criterion)
        assert found(ready, criterion) == ready.run(lambda session: set(session.scalars(stmt)))

    check()


@pytest.mark.backends("pysqlite3")
def test_a_filter_on_related_rows_finds_those_that_have_one(ready: Any):
    article, author, tag, comment = ready.Article, ready.Author, ready.Tag, ready.Comment
    by_author = ready.searcher.field("author")
    cases = [
        (by_author == "Ann", article.author.has(author.name == "Ann")),
        (by_author != "Ann", article.author.has(author.name != "Ann")),
        (by_author.is_(None), ~article.author.has(author.name.is_not(None))),
        (by_author > "Ann", article.author.has(author.name > "Ann")),
        (tag.name == "red", article.tags.any(tag.name == "red")),
        (tag.name != "red", ~article.tags.any(tag.name == "red")),
        (tag.name.in_(["red", "blue"]), article.tags.any(tag.name.in_(["red", "blue"]))),
        (tag.name.not_in(["red", "blue"]), ~article.tags.any(tag.name.in_(["red", "blue"]))),
        (tag.name > "green", article.tags.any(tag.name > "green")),
        (and_(tag.name == "red", tag.name == "blue"), article.tags.any(name="red") & article.tags.any(name="blue")),
        (not_(or_(tag.name == "red", tag.name == "blue")), ~article.tags.any(tag.name.in_(["red", "blue"]))),
        (tag.name.is_(None), ~article.tags.any()),
        (comment.stars == 1, article.comments.any(comment.stars == 1)),
        (comment.stars != 1, ~article.comments.any(comment.stars == 1)),
        (comment.stars.between(1, 2), article.comments.any(comment.stars.between(1, 2))),
        (comment.stars.is_(None), ~article.comments.any(comment.stars.is_not(None))),
    ]
    for criterion, meaning in cases:
        expected = ready.run(lambda session, where=meaning: set(session.scalars(select(article.id).where(where))))
        assert found(ready, criterion) == expected, str(criterion)
        assert expected, "a case that finds nothing shows nothing"


@pytest.mark.backends("pysqlite3")
def test_numbers_are_compared_as_numbers_whatever_their_type(ready: Any):
    number, price = ready.Article.number, ready.Article.price
    cases = [number < 1.5, number > Decimal("1.5"), number >= -0.5, number <= 6.999, price > 0, price == 2, price <= 0]
    cases += [number == literal(1.5), number != literal(1.5), number.between(0.5, 2.5), price < 10.0**30]
    for criterion in cases:
        stmt = select(ready.Article.id).where(criterion)
        assert found(ready, criterion) == ready.run(lambda session, stmt=stmt: set(session.scalars(stmt))), criterion


def test_numbers_beyond_the_fields_range_are_not_sent(index_name: str):
    world = make_world(index_name)
    exists = {"exists": {"field": "number"}}
    number = world.Article.number
    assert translated(world, number < 2**63) == exists
    assert translated(world, number > 2**63) == {"match_none": {}}
    assert translated(world, number == 2**70) == {"match_none": {}}
    assert translated(world, number != 2**70) == exists
    assert translated(world, number < math.inf) == exists
    assert translated(world, world.Article.price < math.inf) == {"exists": {"field": "price"}}
    assert translated(world, world.Article.price > math.inf) == {"match_none": {}}


def translated(world: Any, *criteria: Any) -> Any:
    return filter_query(Columns(world.index), criteria)


def test_values_are_values(index_name: str):
    world = make_world(index_name)
    hostile = ["' OR 1=1 --", '{"match_all":{}}', "*", "\0", "a" * 32_766, "_exists_:x", "${jndi:x}"]
    for value in hostile:
        assert translated(world, world.Article.lang == value) == {"term": {"lang": {"value": value}}}
    assert translated(world, world.Article.lang.in_(hostile)) == {"terms": {"lang": hostile}}


def refused(world: Any) -> list[Any]:
    article = world.Article
    deep: Any = article.number == 1
    for n in range(1000):
        deep = and_(article.id == n, or_(article.id == n, deep))
    return [
        article.lang == {"value": "x"},
        article.lang == ["x"],
        article.lang.in_([{"index": "other", "id": "1", "path": "x"}]),
        article.lang == 5,
        article.lang == b"x",
        article.lang == "\ud800",
        article.number == "1",
        article.number == True,  # noqa: E712
        article.number < math.nan,
        article.active == 1,
        article.active > literal(True),
        article.born == datetime.datetime(2024, 1, 1),
        article.at == datetime.date(2024, 1, 1),
        article.colour == "no such colour",
        article.colour < Colour.GREEN,
        article.colour.between(Colour.RED, Colour.GREEN),
        article.lang == "a" * 32_767,
        article.lang > "ä" * 16_384,
        article.lang.in_(["en", "a" * 32_767]),
        article.cost == Decimal("sNaN"),
        article.body == "analyzed",
        article.secret == "no field",
        article.embedding == [0.0] * 8,
        article.lang.like("e%"),
        article.lang.startswith("e"),
        article.lang.icontains("e"),
        article.lang.regexp_match("e.*"),
        article.number.between(1, 2, symmetric=True),
        article.number.is_distinct_from(1),
        article.number + 1 == 2,
        func.lower(article.lang) == "en",
        article.number == article.id,
        article.id.in_(select(article.number)),
        article.id == select(article.number).scalar_subquery(),
        tuple_(article.id, article.number).in_([(1, 2)]),
        article.number == bindparam("later"),
        article.tags.any(world.Tag.name == "red"),
        aliased(article).lang == "en",
        article.number,
        text("1=1"),
        "lang = 'en'",
        {"lang": "en"},
        True,
        5 == 6,
        deep,
        or_(*(article.id == n for n in range(MAX_CLAUSES + 1))),
        article.id.in_(range(MAX_TERMS + 1)),
        world.Author.name == "Ann",  # author or editor
    ]


def test_what_is_not_supported_is_refused(index_name: str):
    world = make_world(index_name)
    accepted = []
    for criterion in refused(world):
        with pytest.raises(InvalidFilter) as caught:
            accepted.append(translated(world, criterion))
        assert "a" * 100 not in str(caught.value)
    assert not accepted


def texts(name: str) -> tuple[Any, Any]:
    """Map a class whose values the index has in other ways than the database."""

    class Base(DeclarativeBase): ...

    class Thing(Base):
        __tablename__ = "thing"
        id: Mapped[int] = mapped_column(primary_key=True)
        big: Mapped[int | None] = mapped_column(BigInteger)
        cost: Mapped[Decimal | None] = mapped_column(Numeric(20, 4))
        loose: Mapped[Decimal | None] = mapped_column(Numeric)
        rate: Mapped[float | None]
        words: Mapped[str | None] = mapped_column(Text)
        extra: Mapped[Any | None] = mapped_column(JSON)

    fields = {
        "big": Keyword("big"),
        "cost": Keyword("cost"),
        "loose": Keyword("loose"),
        "rate": Keyword("rate"),
        "words": Keyword("words"),
        "kept": Keyword("words", index=False, doc_values=False),
        "shown": EsText("words", index=False),
        "extra": Field("extra", type="flattened"),
    }
    outbox = outbox_table(Base.metadata)
    return Thing, SearchIndex(name, Thing, fields=fields, outbox=outbox, settings={"number_of_replicas": 0})


def test_numbers_that_are_texts_have_no_order_and_the_digits_of_their_column(index_name: str):
    thing, index = texts(index_name)
    columns = Columns(index)

    def term(criterion: Any) -> Any:
        return filter_query(columns, [criterion])

    assert term(thing.big == 9) == {"term": {"big": {"value": "9"}}}
    for equal in ("1.1", "1.10", "1.1000", "11e-1"):
        assert term(thing.cost == Decimal(equal)) == {"term": {"cost": {"value": "1.1000"}}}
    assert term(thing.cost == Decimal("-0.0")) == {"term": {"cost": {"value": "0.0000"}}}
    assert term(thing.cost.in_([Decimal("1E+3"), Decimal("0.00001")])) == {"term": {"cost": {"value": "1000.0000"}}}
    for nothing in ("1.00001", "1e-9999", "1e9999", "Infinity"):
        assert term(thing.cost == Decimal(nothing)) == {"match_none": {}}
    for criterion in (
        thing.big < 9,
        thing.big.between(1, 2),
        thing.big == True,  # noqa: E712
        thing.cost >= Decimal(1),
        thing.cost == Decimal("NaN"),
        thing.cost == Decimal("sNaN"),
        thing.loose == Decimal("1.1"),
        thing.rate == 1.0,
    ):
        with pytest.raises(InvalidFilter):
            term(criterion)


def test_words_are_searched_in_what_is_indexed(index_name: str, client: Any):
    _, index = texts(index_name)
    index.create(client)
    with pytest.raises(InvalidOption, match="no text field to search"):
        text_query(index, "tea")
    with pytest.raises(InvalidOption, match="'shown' is not indexed"):
        text_query(index, Match("tea", ["shown"]))
    assert Searcher(client, index).search_ids(text=Match("tea", ["words"])).total == 0


def test_nothing_is_asked_of_what_is_not_indexed(index_name: str, client: Any):
    _, index = texts(index_name)
    searcher = Searcher(client, index)
    for name in ("kept", "shown", "extra"):
        field = searcher.field(name)
        for criterion in (field.is_(None), field.is_not(None), field != "a"):
            with pytest.raises(InvalidFilter):
                filter_query(Columns(index), [criterion])


@pytest.mark.backends("pysqlite3")
def test_a_value_that_is_too_long_to_be_indexed_is_a_value(index_name: str, backend: Any, engine: Any, client: Any):
    thing, index = texts(index_name)
    backend.create_all(engine, thing.metadata)
    index.create(client)
    rows = [thing(id=1, words="a"), thing(id=2, words="x" * 9_000), thing(id=3), thing(id=4, words="b")]
    backend.run(engine, lambda session: session.add_all(rows))
    backend.run(engine, lambda session: put(session, client, index))
    searcher = Searcher(client, index)
    words = searcher.field("words")
    cases = {words.is_(None): {3}, words.is_not(None): {1, 2, 4}, words != "a": {2, 4}, words.not_in(["a", "b"]): {2}}
    for criterion, expected in cases.items():
        assert {hit.key[0] for hit in searcher.search_ids(where=criterion)} == expected


def test_the_deepest_filter_is_taken_by_the_server(index_name: str, client: Any):
    world = make_world(index_name)
    world.index.create(client)
    article = world.Article
    deep: Any = article.number == 1
    for n in range(MAX_DEPTH // 2):
        deep = and_(article.id != n, or_(article.number != n, deep))
    searcher = Searcher(client, world.index)
    assert len(searcher.search_ids(where=deep)) == 0
    assert len(searcher.search_ids(where=not_(deep))) == 0
    assert len(searcher.search_ids(where=article.id.in_(range(MAX_TERMS)))) == 0
    assert len(searcher.search_ids(where=or_(*(article.id != n for n in range(MAX_CLAUSES))))) == 0


def test_an_attribute_of_which_there_are_several_fields_is_named(index_name: str, client: Any):
    world = make_world(index_name)
    searcher = Searcher(client, world.index)
    assert translated(world, searcher.field("editor") == "Ann") == {"term": {"editor": {"value": "Ann"}}}
    with pytest.raises(InvalidOption, match="no field 'nobody'"):
        searcher.field("nobody")
