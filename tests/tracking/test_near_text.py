"""What near_text() sends to an embedder, and what it refuses before it sends anything."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqla_vector import Vector
from sqla_vector.embedding import CallableEmbedder, Embedder, Fingerprint, Model, embedding_column
from sqla_vector.embedding.adapters import OllamaEmbedder, OpenAIEmbedder, SentenceTransformerEmbedder
from sqla_vector.embedding.cache import CachedEmbedder
from sqla_vector.exc import EmbedderError, EmbedderUnavailable, InvalidOption, InvalidStatement, InvalidText
from sqla_vector.tracking import Versions, anear_text, near_text, track, untrack, upgrade_table
from tests.tracking.models import DIM, CountingEmbedder


class Base(DeclarativeBase): ...


class Letter(Base):
    __tablename__ = "letter"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(info={"private": True})
    embedding: Mapped[Any | None] = embedding_column(
        Vector(DIM),
        source="text",
        embedder="counting",
        redact=lambda text: None if text == "secret" else re.sub(r"\S+@\S+", "[address]", text),
    )
    embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())


upgrades = upgrade_table(Base.metadata)


@pytest.fixture
def embedder() -> CountingEmbedder:
    return CountingEmbedder()


def near(embedder: Any, text: Any = "cats", **options: Any) -> Any:
    return near_text(select(Letter.id), Letter.embedding, text, embedders={"counting": embedder}, **options)


def vector_in(stmt: Any) -> Any:
    """Return the vector that a statement searches for."""
    values = stmt.compile().params.values()
    return next(value for value in values if isinstance(value, np.ndarray))


def test_the_vector_of_the_statement_is_that_of_the_text(embedder: CountingEmbedder) -> None:
    assert np.array_equal(vector_in(near(embedder, "cats", k=3)), embedder.vector("cats"))
    assert embedder.calls == [["cats"]]


def test_a_query_is_redacted_as_the_rows_were(embedder: CountingEmbedder) -> None:
    near(embedder, "what does ada@example.com say?")
    assert embedder.calls == [["what does [address] say?"]]
    with pytest.raises(InvalidText, match=r"nothing to search for in Letter\.embedding"):
        near(embedder, "secret")
    assert len(embedder.calls) == 1


class Prefixed(CountingEmbedder):
    query_prefix = "query: "


def test_a_prefix_is_the_embedders_or_the_calls() -> None:
    embedder = Prefixed()
    near(embedder)
    near(embedder, prefix="ask: ")
    near(embedder, prefix="")
    near(embedder, "query@example.com", prefix="to@me ")  # a prefix is nobody's secret
    assert embedder.texts == ["query: cats", "ask: cats", "cats", "to@me [address]"]


def test_equal_queries_are_paid_for_once_where_there_is_a_cache() -> None:
    embedder = Prefixed()
    cached = CachedEmbedder(embedder)
    first, second = near(cached), near(cached)
    assert embedder.texts == ["query: cats"]
    assert np.array_equal(vector_in(first), vector_in(second))


@pytest.mark.parametrize(
    "made",
    [
        CallableEmbedder(len, name="a", version="1", dimensions=2, query_prefix="q: "),
        OpenAIEmbedder("a", dimensions=2, query_prefix="q: "),
        OllamaEmbedder("a", dimensions=2, query_prefix="q: "),
        SentenceTransformerEmbedder(
            type("Encoder", (), {"get_embedding_dimension": lambda self: 2})(),
            name="a",
            version="1",
            query_prefix="q: ",
        ),
    ],
    ids=lambda made: type(made).__name__,
)
def test_embedders_have_a_prefix(made: Any) -> None:
    assert made.query_prefix == "q: "
    assert isinstance(made, Embedder)
    assert CachedEmbedder(made).query_prefix == "q: "


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "nothing to search for"),
        (" \n\t", "nothing to search for"),
        (None, "nothing to search for"),
        (b"cats", "must be a string, got bytes"),
        (["cats"], "must be a string, got list"),
        ("ca\ud800ts", "lone surrogate at position 2"),
    ],
)
def test_what_is_no_text_is_refused_and_nobody_is_asked(embedder: CountingEmbedder, text: Any, message: str) -> None:
    with pytest.raises(InvalidText, match=message):
        near(embedder, text)
    assert embedder.calls == []


@pytest.mark.parametrize(
    "text", ["\0", "שלום", "e\u0301", "x " * 500_000], ids=["NUL", "right to left", "accent", "long"]
)
def test_any_other_text_goes_as_it_is(embedder: CountingEmbedder, text: str) -> None:
    near(embedder, text)
    assert embedder.calls == [[text]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be"),
        ({"any_model": 1}, "any_model must be True or False, got 1"),
        ({"prefix": 7}, "a query's prefix is a text, got 7"),
        ({"max_distance": "far"}, "max_distance must be a number"),
        ({"ef_search": 0}, "ef_search"),
    ],
)
def test_an_option_out_of_its_range_is_refused_and_nobody_is_asked(
    embedder: CountingEmbedder, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidOption, match=message):
        near(embedder, **options)
    assert embedder.calls == []


@pytest.mark.parametrize("column", [Letter.text, Letter.__table__.c.embedding, "embedding", None, Letter])
def test_a_column_that_is_not_embedded_is_refused(embedder: CountingEmbedder, column: Any) -> None:
    with pytest.raises(InvalidOption, match=r"such as Article\.embedding; got"):
        near_text(select(Letter), column, "cats", embedders={"counting": embedder})


def test_a_statement_that_cannot_be_extended_is_refused_and_nobody_is_asked(embedder: CountingEmbedder) -> None:
    with pytest.raises(InvalidStatement, match="LIMIT"):
        near_text(select(Letter.id).limit(3), Letter.embedding, "cats", embedders={"counting": embedder})
    assert embedder.calls == []


ANSWERS: dict[str, Any] = {
    "too many": lambda texts: [[1.0] * DIM] * 2,
    "none": lambda texts: [],
    "another dimension": lambda texts: [[1.0] * (DIM + 1)],
    "NaN": lambda texts: [[float("nan")] * DIM],
    "no vectors": lambda texts: "vectors",
    "nothing": lambda texts: None,
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_a_wrong_answer_is_an_error_of_the_embedder(answer: Any) -> None:
    wrong = CallableEmbedder(answer, name="wrong", version="1", dimensions=DIM)
    with pytest.raises(EmbedderError, match="wrong"):
        near(wrong)
    with pytest.raises(EmbedderError, match="wrong"):
        asyncio.run(anear_text(select(Letter.id), Letter.embedding, "cats", embedders={"counting": wrong}))


def test_an_embedder_that_is_away_says_so_without_the_query() -> None:
    def away(texts: list[str]) -> Any:
        raise ConnectionError(f"no route for {texts[0]}")

    with pytest.raises(EmbedderUnavailable) as caught:
        near(CallableEmbedder(away, name="away", version="1", dimensions=DIM), "a long question about cats")
    assert "question" not in str(caught.value)


def test_an_embedder_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidOption, match=r"Letter\.embedding has 4 dimensions, and the embedder counting makes 5"):
        near(CountingEmbedder(dim=5))
    with pytest.raises(InvalidOption, match="only the name of a model"):
        near(Model("counting", "1"))
    with pytest.raises(InvalidOption, match="needs an embedder named 'counting', got other"):
        near_text(select(Letter.id), Letter.embedding, "cats", embedders={"other": CountingEmbedder()})


@pytest.fixture
def makers() -> Iterator[list[Any]]:
    made = [sessionmaker(create_engine("sqlite://", plugins=["sqla_vector"])) for _ in range(2)]
    yield made
    for maker in made:
        untrack(maker)


def test_without_a_session_there_must_be_one_embedder(embedder: CountingEmbedder, makers: list[Any]) -> None:
    def find(**options: Any) -> Any:
        return near_text(select(Letter.id), Letter.embedding, "cats", **options)

    with pytest.raises(InvalidOption, match=r"no embedders; give embedders=, or track\(\)"):
        find()
    track(makers[0], embedders={"counting": embedder}, models=Base)
    find()
    assert embedder.texts == ["cats"]
    other = CountingEmbedder("2")
    track(makers[1], embedders={"counting": other}, models=Base)
    with pytest.raises(InvalidOption, match=r"tracked with different embedders for Letter\.embedding"):
        find()
    Base.metadata.create_all(makers[1].kw["bind"])
    with makers[1]() as session:
        find(session=session)
    assert other.texts == ["cats"]
    untrack(makers[0])
    untrack(makers[1])
    track(makers[0], embedders={"counting": Versions(embedder, other, upgrades=upgrades)}, models=Base)
    with pytest.raises(InvalidOption, match="several versions of its embedder; give session="):
        find()


def test_sessions_of_the_other_kind_are_refused(embedder: CountingEmbedder) -> None:
    with pytest.raises(InvalidOption, match=r"asynchronous: await anear_text\(\)"):
        near(embedder, session=AsyncSession())
    with pytest.raises(InvalidOption, match=r"not asynchronous: call near_text\(\)"):
        asyncio.run(
            anear_text(
                select(Letter.id),
                Letter.embedding,
                "cats",
                session=Session(),  # type: ignore[arg-type]
                embedders={"counting": embedder},
            )
        )
    assert embedder.calls == []
