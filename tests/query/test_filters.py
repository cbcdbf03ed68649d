"""Filters as data: what they may say, and that nothing else gets through."""

from __future__ import annotations

import datetime
import enum
import json
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    DateTime,
    Enum,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    SmallInteger,
    Table,
    Uuid,
    and_,
    bindparam,
    create_engine,
    func,
    insert,
    literal,
    not_,
    or_,
    select,
    true,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_vector.exc import InvalidFilter
from sqla_vector.query import AllOf, AnyOf, Compare, Filter, Not
from sqla_vector.query.filters import MAX_COMPARISONS, MAX_DEPTH, MAX_VALUES, filter_from_json, filter_of
from tests.support.backends import Backend


class Colour(enum.Enum):
    RED = "r"
    GREEN = "g"


class Lang(enum.StrEnum):
    """Of a column of plain text."""

    ENGLISH = "en"


class Shade(enum.Enum):
    LIGHT = "l"
    DARK = "d"


class Base(DeclarativeBase): ...


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    lang: Mapped[str | None] = mapped_column("language")
    views: Mapped[int | None]
    small: Mapped[int | None] = mapped_column(SmallInteger)
    large: Mapped[int | None] = mapped_column(BigInteger)
    price: Mapped[float | None]
    cost: Mapped[Decimal | None] = mapped_column(Numeric(10, 2))
    active: Mapped[bool | None]
    born: Mapped[datetime.date | None]
    at: Mapped[datetime.datetime | None]
    hour: Mapped[datetime.time | None]
    token: Mapped[uuid.UUID | None]
    colour: Mapped[Colour | None] = mapped_column(Enum(Colour))
    size: Mapped[str | None] = mapped_column(Enum("s", "m"))
    shade: Mapped[Shade | None] = mapped_column(Enum(Shade, values_callable=lambda all_: [one.value for one in all_]))
    word: Mapped[str | None] = mapped_column(Uuid(as_uuid=False))
    seen: Mapped[datetime.datetime | None] = mapped_column(DateTime(timezone=True))
    blob: Mapped[bytes | None] = mapped_column(LargeBinary)


COLUMNS = {name: getattr(Item, name) for name in Item.__mapper__.column_attrs.keys()}  # noqa: SIM118
WHEN = datetime.datetime(2026, 1, 2, 3, 4, 5)
TOKEN = uuid.UUID(int=7)


def sql(criterion: Any) -> str:
    return str(criterion.compile(dialect=sqlite.dialect(), compile_kwargs={"render_postcompile": True}))


values = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
)
names = st.sampled_from(sorted(COLUMNS))
comparisons = st.one_of(
    st.builds(Compare, names, st.sampled_from(["eq", "ne", "lt", "le", "gt", "ge"]), values),
    st.builds(Compare, names, st.just("in"), st.lists(values, max_size=5)),
    st.builds(Compare, names, st.just("between"), st.lists(values, min_size=2, max_size=2)),
    st.builds(Compare, names, st.just("is_null")),
)
filters = st.recursive(
    comparisons,
    lambda part: st.one_of(
        st.builds(AllOf, st.lists(part, max_size=3).map(tuple)),
        st.builds(AnyOf, st.lists(part, max_size=3).map(tuple)),
        st.builds(Not, part),
    ),
    max_leaves=8,
)


@given(filters)
def test_json_carries_every_filter(given_: Filter) -> None:
    assume(depth(given_) <= MAX_DEPTH)
    assert filter_from_json(json.loads(json.dumps(given_.to_json(), allow_nan=False))) == given_


def depth(filter_: Filter) -> int:
    match filter_:
        case Not(part):
            return 1 + depth(part)
        case AllOf(parts) | AnyOf(parts):
            return 1 + max(map(depth, parts), default=0)
    return 0


CRITERIA = [
    Item.lang == "en",
    Item.lang != "en",
    literal("en") == Item.lang,
    Item.views > 3,
    literal(3) > Item.views,
    Item.views.between(1, 5),
    not_(Item.views.between(1, 5)),
    Item.views.in_([1, 2]),
    Item.views.not_in([1, 2]),
    Item.lang.is_(None),
    Item.lang.is_not(None),
    Item.active,
    not_(Item.active),
    Item.active.is_(True),
    Item.active.is_not(True),
    not_(Item.active.is_(True)),
    not_(or_(Item.active.is_(False), Item.views > 3)),
    Item.lang == Lang.ENGLISH,
    Item.shade == Shade.DARK,
    Item.shade.in_([Shade.DARK]),
    Item.word == str(uuid.UUID(int=7 * 10**30)),
    Item.price > Decimal("1.25"),
    and_(Item.lang == "en", or_(Item.views > 3, Item.price <= 1.5)),
    not_(or_(Item.lang == "en", Item.views > 3)),
    Item.born == datetime.date(2026, 1, 2),
    Item.at >= WHEN,
    Item.hour < WHEN.time(),
    Item.cost > Decimal("1.25"),
    Item.token == TOKEN,
    Item.colour == Colour.RED,
    Item.size == "s",
    Item.large == 2**40,
    true(),
]


ROWS = [
    {
        "id": number,
        "lang": (None, "en", "de")[number % 3],
        "views": None if number % 7 == 0 else number % 6,
        "small": number,
        "large": 2**40 if number % 2 else 1,
        "price": None if number % 5 == 0 else number / 4,
        "cost": Decimal(number) / 8,
        "active": (None, True, False)[number % 3],
        "born": datetime.date(2026, 1, 1 + number % 4),
        "at": WHEN + datetime.timedelta(days=number - 10),
        "hour": datetime.time(number % 24),
        "token": uuid.UUID(int=number),
        "colour": (None, Colour.RED, Colour.GREEN)[number % 3],
        "size": ("s", "m")[number % 2],
        "shade": (None, Shade.LIGHT, Shade.DARK)[number % 3],
        "word": str(uuid.UUID(int=number * 10**30)),
    }
    for number in range(1, 40)
]


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with engine.connect() as connection:
        Session(connection).execute(insert(Item), ROWS)
        yield connection
    engine.dispose()


def found(connection: Connection, criterion: Any) -> list[int]:
    return list(connection.scalars(select(Item.id).where(criterion).order_by(Item.id)))


@pytest.mark.parametrize("number", range(len(CRITERIA)))
def test_a_criterion_finds_the_same_after_it_was_data(connection: Connection, number: int) -> None:
    criterion: Any = CRITERIA[number]
    again = filter_from_json(json.loads(json.dumps(filter_of(criterion).to_json()))).criterion(COLUMNS)
    assert found(connection, again) == found(connection, criterion)
    assert found(connection, criterion)


def test_a_number_of_numpy_is_a_number() -> None:
    assert filter_of(Item.views == np.int64(3)) == Compare("views", "eq", 3)


small = st.integers(-1, 7)
typed = st.recursive(
    st.one_of(
        st.builds(Compare, st.just("views"), st.sampled_from(["eq", "ne", "lt", "le", "gt", "ge"]), small),
        st.builds(Compare, st.just("views"), st.just("in"), st.lists(small, max_size=3)),
        st.builds(Compare, st.just("views"), st.just("between"), st.tuples(small, small)),
        st.builds(Compare, st.just("lang"), st.sampled_from(["eq", "ne"]), st.sampled_from(["en", "de", "fr"])),
        st.builds(Compare, st.sampled_from(["views", "lang"]), st.just("is_null")),
    ),
    lambda part: st.one_of(
        st.builds(AllOf, st.lists(part, max_size=3).map(tuple)),
        st.builds(AnyOf, st.lists(part, max_size=3).map(tuple)),
        st.builds(Not, part),
    ),
    max_leaves=6,
)


def holds(filter_: Filter, row: dict[str, Any]) -> bool | None:
    """Tell whether a row meets a filter, in SQL's three values."""
    match filter_:
        case Not(part):
            one = holds(part, row)
            return None if one is None else not one
        case AllOf(parts) | AnyOf(parts):
            decides = isinstance(filter_, AnyOf)
            answers = [holds(part, row) for part in parts]
            return decides if decides in answers else None if None in answers else not decides
    assert isinstance(filter_, Compare)
    have, value = row[filter_.field], filter_.value
    if filter_.op == "is_null":
        return have is None
    if filter_.op == "in" and not value:
        return False
    if have is None:
        return None
    compared: dict[str, Any] = {
        "eq": lambda: have == value,
        "ne": lambda: have != value,
        "lt": lambda: have < value,
        "le": lambda: have <= value,
        "gt": lambda: have > value,
        "ge": lambda: have >= value,
        "in": lambda: have in value,
        "between": lambda: value[0] <= have <= value[1],
    }
    return bool(compared[filter_.op]())


@given(typed)
def test_a_filter_finds_what_it_says(connection: Connection, given_: Filter) -> None:
    expected = [row["id"] for row in ROWS if holds(given_, row)]
    assert found(connection, given_.criterion(COLUMNS)) == expected


@pytest.mark.parametrize(
    "criterion",
    [
        func.lower(Item.lang) == "en",
        Item.lang.like("e%"),
        Item.lang == Item.size,
        Item.views + 1 == 3,
        Item.lang == bindparam("x"),
        Item.blob == b"x",
        Item.lang == "a\0b",
        Item.lang == "\ud800",
        Item.views == 2**64,
        Item.price == float("nan"),
        "language = 'en'",
        False,
        None,
    ],
    ids=str,
)
def test_a_criterion_outside_of_the_subset_is_refused(criterion: Any) -> None:
    with pytest.raises(InvalidFilter):
        filter_of(criterion)


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {"field": "lang", "op": "eq", "value": "en"}
    for _ in range(depth):
        found = {"not": found}
    return found


ENEMIES: list[Any] = [
    None,
    [],
    "lang = 'en'",
    3,
    {},
    {"lang": "en"},
    {"author' OR '1'='1' --": 1},
    {"all": {}},
    {"any": "x"},
    {"all": [], "any": []},
    {"not": None},
    {"not": []},
    {"field": "lang"},
    {"field": "lang", "op": "eq"},
    {"field": "lang", "op": "eq", "value": None},
    {"field": "lang", "op": "eq", "value": {"$ne": 1}},
    {"field": "lang", "op": "eq", "value": ["en"]},
    {"field": "lang", "op": "like", "value": "%"},
    {"field": "lang", "op": "or", "value": "x"},
    {"field": "lang", "op": ["eq"], "value": "x"},
    {"field": "lang", "op": "eq", "value": "a\0"},
    {"field": "lang", "op": "eq", "value": "\udfff"},
    {"field": "lang", "op": "eq", "value": "x" * 10_001},
    {"field": "lang", "op": "eq", "value": 1, "more": 1},
    {"field": "lang' OR '1'='1' --", "op": "eq", "value": 1},
    {"field": "Item.lang", "op": "eq", "value": "x"},
    {"field": 3, "op": "eq", "value": 1},
    {"field": ["lang"], "op": "eq", "value": 1},
    {"field": "views", "op": "in", "value": 3},
    {"field": "views", "op": "in", "value": list(range(MAX_VALUES + 1))},
    {"field": "views", "op": "in", "value": [[1]]},
    {"field": "views", "op": "in", "value": [None]},
    {"field": "views", "op": "between", "value": [1]},
    {"field": "views", "op": "is_null", "value": 1},
    {"field": "views", "op": "eq", "value": 2**63},
    {"field": "price", "op": "eq", "value": float("inf")},
    {"all": [{"all": [{"any": []}] * 100}] * 100},
    nested(MAX_DEPTH + 1),
    nested(900),
    {"all": [{"field": "views", "op": "in", "value": list(range(MAX_VALUES))}] * 11},
]


@pytest.mark.parametrize("enemy", ENEMIES, ids=lambda enemy: str(enemy)[:60].encode(errors="replace").decode())
def test_data_that_is_no_filter_is_refused(enemy: Any) -> None:
    with pytest.raises(InvalidFilter) as refused:
        filter_from_json(enemy)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("op", ["eq", "lt", "in", "between"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lang", 3),
        ("lang", True),
        ("views", "3"),
        ("views", True),
        ("views", 1.5),
        ("views", 2**31),
        ("small", 2**15),
        ("price", "1"),
        ("price", False),
        ("cost", "1; DROP TABLE item"),
        ("cost", "NaN"),
        ("cost", "1e140000"),
        ("cost", "1e-20000"),
        ("at", "2026-01-01T12:00:00+02:00"),
        ("hour", "10:00:00-23:59"),
        ("seen", "9999-12-31T23:59:59-14:00"),
        ("word", "zzz"),
        ("shade", "l"),
        ("active", 1),
        ("born", "yesterday"),
        ("born", 3),
        ("at", "2026-13-01"),
        ("hour", "25:00"),
        ("token", "x"),
        ("colour", "BLUE"),
        ("colour", 1),
        ("size", "xl"),
        ("blob", "x"),
    ],
)
def test_a_value_of_another_type_than_the_attribute_is_refused(field: str, value: Any, op: Any) -> None:
    given_ = {"eq": value, "lt": value, "in": [value], "between": [value, value]}[op]
    with pytest.raises(InvalidFilter, match=field):
        Compare(field, op, given_).criterion(COLUMNS)


@pytest.mark.parametrize(("field", "value"), [("active", True), ("colour", "RED"), ("size", "s")])
def test_what_databases_do_not_order_is_not_ordered(field: str, value: Any) -> None:
    for op in ("lt", "le", "gt", "ge"):
        with pytest.raises(InvalidFilter, match=f"{field} has values that databases do not order"):
            Compare(field, op, value).criterion(COLUMNS)  # type: ignore[arg-type]
    with pytest.raises(InvalidFilter, match="do not order"):
        Compare(field, "between", [value, value]).criterion(COLUMNS)


@pytest.mark.backends("psycopg", "asyncpg", "pysqlite3", "aiosqlite")
def test_a_moment_is_the_same_in_every_zone(backend: Backend) -> None:
    table = Table("t", MetaData(), Column("id", Integer, primary_key=True), Column("at", DateTime(timezone=True)))
    moments = [datetime.datetime(2026, 1, 1, hour, tzinfo=datetime.UTC) for hour in (10, 12)]

    def check(connection: Connection) -> None:
        table.create(connection)
        connection.execute(insert(table), [{"id": n, "at": at} for n, at in enumerate(moments, start=1)])
        for said in ("2026-01-01T10:00:00", "2026-01-01T12:00:00+02:00", "2026-01-01T10:00:00Z"):
            criterion = Compare("at", "eq", said).criterion({"at": table.c.at})
            assert list(connection.scalars(select(table.c.id).where(criterion))) == [1]

    backend.run_connection(backend.make_engine(), check)


def test_an_attribute_that_is_not_allowed_is_not_reached() -> None:
    with pytest.raises(InvalidFilter, match=r"may not name 'price'.*allowed are: lang"):
        Compare("price", "eq", 1.0).criterion({"lang": Item.lang})
    with pytest.raises(InvalidFilter, match="allowed are: none"):
        Not(AllOf((Compare("lang", "is_null"),))).criterion({})


def test_values_are_parameters_and_no_sql() -> None:
    enemy = "' OR 1=1; DROP TABLE item --"
    criterion = AnyOf((Compare("lang", "eq", enemy), Compare("lang", "in", [enemy]))).criterion(COLUMNS)
    assert "DROP" not in sql(criterion)
    assert enemy in criterion.compile().params.values()


def test_a_filter_is_no_longer_than_it_may_be() -> None:
    few = {"all": [{"field": "views", "op": "eq", "value": 1}] * MAX_COMPARISONS}
    assert len(filter_from_json(few).to_json()["all"]) == MAX_COMPARISONS
    with pytest.raises(InvalidFilter, match="comparisons at most"):
        filter_from_json({"all": [few, few]})
