"""The protocol of embedders, the check of every answer, and waiting for asynchronous ones."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_vector import Vector
from sqla_vector.embedding import CallableEmbedder, Embedder, aembed, embed
from sqla_vector.embedding.cache import CachedEmbedder
from sqla_vector.embedding.embedder import model_of
from sqla_vector.exc import EmbedderError, EmbedderUnavailable, InvalidOption, VectorError
from tests.support.backends import AnyEngine, Backend

TEXTS = ["a", "bb", "a"]
VECTORS = [[1.0, 97.0], [2.0, 98.0], [1.0, 97.0]]


def lengths(texts: list[str]) -> Any:
    return [[len(text), ord(text[0])] for text in texts]


async def slow_lengths(texts: list[str]) -> Any:
    await asyncio.sleep(0)
    return lengths(texts)


def embedder(function: Any = lengths) -> CallableEmbedder:
    return CallableEmbedder(function, name="lengths", version="1", dimensions=2)


class ByHand:
    """An embedder that knows nothing of this package."""

    name = "by-hand"
    version = "1"
    dimensions = 2

    async def embed(self, texts: list[str]) -> Any:
        return await slow_lengths(texts)


EMBEDDERS = {
    "a function": embedder(),
    "a coroutine function": embedder(slow_lengths),
    "a class of one's own": ByHand(),
    "a cache over a function": CachedEmbedder(embedder()),
    "a cache over a coroutine function": CachedEmbedder(ByHand()),
}
any_embedder = pytest.mark.parametrize("any_", EMBEDDERS.values(), ids=EMBEDDERS.keys())


@any_embedder
def test_embed_gives_a_checked_matrix(any_: Embedder):
    assert isinstance(any_, Embedder)
    found = embed(any_, TEXTS)
    assert found.dtype == np.float32
    assert found.tolist() == VECTORS
    assert embed(any_, tuple(TEXTS)).tolist() == VECTORS


@any_embedder
async def test_aembed_gives_the_same(any_: Embedder):
    assert (await aembed(any_, TEXTS)).tolist() == VECTORS


def test_no_text_asks_nobody():
    def fails(texts: list[str]) -> Any:
        raise AssertionError

    assert embed(embedder(fails), []).shape == (0, 2)
    assert asyncio.run(aembed(embedder(fails), [])).shape == (0, 2)


def test_one_text_is_no_list_of_texts():
    with pytest.raises(InvalidOption, match=r"give \[text\]"):
        embed(embedder(), "cats")


ANSWERS: dict[str, Any] = {
    "one too few": [[1, 2]],
    "one too many": [[1, 2]] * 3,
    "none": [],
    "an empty array": np.empty((0, 2)),
    "a dimension too many": [[1, 2, 3]] * 2,
    "the other way round": np.ones((3, 2)).T,
    "flat": [1, 2],
    "a flat array": np.ones(2),
    "three dimensions": np.ones((2, 2, 1)),
    "ragged": [[1, 2], [1]],
    "NaN": [[1, 2], [1, float("nan")]],
    "NaN in an array": np.array([[1, 2], [1, np.nan]]),
    "infinity": np.array([[1, 2], [-np.inf, 1]]),
    "too large for float32": np.array([[1, 2], [1, 1e39]]),
    "None": None,
    "a row of None": [[1, 2], None],
    "a number": 5,
    "a text": "[[1, 2], [3, 4]]",
    "bytes": b"12345678",
    "texts": [["1", "2"]] * 2,
    "complex": np.ones((2, 2), dtype=complex),
    "booleans": np.ones((2, 2), dtype=bool),
    "objects": np.array([[1, None], [1, 2]], dtype=object),
    "a mapping": {"a": [1, 2], "b": [1, 2]},
    "an error": ValueError("broken"),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
@pytest.mark.parametrize("is_async", [False, True], ids=["function", "coroutine"])
def test_a_wrong_answer_is_refused_as_a_whole(answer: Any, is_async: bool):
    def give(texts: list[str]) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def agive(texts: list[str]) -> Any:
        return give(texts)

    given = embedder(agive if is_async else give)
    with pytest.raises(EmbedderError, match="the embedder lengths"):
        embed(given, ["a", "b"])
    with pytest.raises(EmbedderError, match="the embedder lengths"):
        asyncio.run(aembed(given, ["a", "b"]))
    cached = CachedEmbedder(given)
    with pytest.raises(EmbedderError, match="the embedder lengths"):
        embed(cached, ["a", "b"])
    assert len(cached._cache) == 0  # type: ignore[arg-type]


def test_a_generator_that_fails_is_refused():
    def give(texts: list[str]) -> Iterator[list[int]]:
        yield [1, 2]
        raise RuntimeError("connection lost")

    with pytest.raises(EmbedderError, match="connection lost"):
        embed(embedder(give), ["a", "b"])


@pytest.mark.parametrize("error", [ConnectionRefusedError("refused"), TimeoutError("late"), BrokenPipeError()])
def test_an_embedder_that_cannot_be_reached_blames_no_text(error: Exception):
    def give(texts: list[str]) -> Any:
        raise error

    with pytest.raises(EmbedderUnavailable) as caught:
        embed(embedder(give), ["a"])
    assert caught.value.__cause__ is error


def test_the_embedders_own_verdict_stays():
    def give(texts: list[str]) -> Any:
        raise EmbedderUnavailable("full", retry_after=7.0)

    with pytest.raises(EmbedderUnavailable, match="full") as caught:
        embed(embedder(give), ["a"])
    assert caught.value.retry_after == 7.0


def test_an_interrupt_is_no_error_of_the_embedder():
    def give(texts: list[str]) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(embedder(give), ["a"])


@pytest.mark.parametrize("any_", [embedder(slow_lengths), ByHand()], ids=["callable", "class"])
async def test_a_coroutine_is_told_to_await(any_: Embedder):
    with pytest.raises(EmbedderError, match="use await aembed"):
        embed(any_, TEXTS)
    # No event loop is harmed, and no coroutine is left behind, which would be a warning.
    assert (await aembed(any_, TEXTS)).tolist() == VECTORS
    assert embed(embedder(), TEXTS).tolist() == VECTORS


async def test_the_event_loop_goes_on_while_a_function_embeds():
    going_on, ended = threading.Event(), []

    def give(texts: list[str]) -> Any:
        ended.append(going_on.wait(10))
        return lengths(texts)

    async def go_on() -> None:
        going_on.set()

    found, _ = await asyncio.gather(aembed(embedder(give), TEXTS), go_on())
    assert found.tolist() == VECTORS
    assert ended == [True]


async def test_below_a_cache_an_asynchronous_embedder_runs_in_the_callers_event_loop():
    loops: list[Any] = []

    async def give(texts: list[str]) -> Any:
        loops.append(asyncio.get_running_loop())
        return lengths(texts)

    await aembed(CachedEmbedder(embedder(give)), TEXTS)
    assert loops == [asyncio.get_running_loop()]


async def test_cancelling_ends_the_wait():
    waiting = asyncio.Event()

    async def give(texts: list[str]) -> Any:
        waiting.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(aembed(embedder(give), TEXTS))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]
    embedding: Mapped[Any | None] = mapped_column(Vector(2))


@any_embedder
def test_embedding_while_a_session_flushes(backend: Backend, engine: AnyEngine, any_: Embedder):
    backend.create_all(engine, Base.metadata)

    def body(session: Session) -> None:
        @event.listens_for(session, "before_flush")
        def embed_new(session: Session, *_: Any) -> None:
            notes = list(session.new)
            for note, vector in zip(notes, embed(any_, [note.text for note in notes]), strict=True):
                note.embedding = vector

        session.add_all([Note(id=1, text="a"), Note(id=2, text="bb")])
        session.flush()
        session.expire_all()
        assert {note.text: note.embedding.tolist() for note in session.query(Note)} == {"a": [1, 97], "bb": [2, 98]}

    backend.run(engine, body)


@pytest.mark.backends("aiosqlite", "asyncpg")
def test_an_asynchronous_session_goes_on_after_a_failure(backend: Backend, engine: AnyEngine):
    backend.create_all(engine, Base.metadata)

    async def fails(texts: list[str]) -> Any:
        raise RuntimeError("broken")

    async def body() -> None:
        async with AsyncSession(engine) as session:  # type: ignore[arg-type]

            def attempt(sync: Session) -> None:
                sync.add(Note(id=1, text="a", embedding=embed(embedder(slow_lengths), ["a"])[0]))
                embed(embedder(fails), ["a"])

            with pytest.raises(EmbedderError, match="broken"):
                await session.run_sync(attempt)
            await session.commit()
            assert (await session.get_one(Note, 1)).embedding.tolist() == [1, 97]

    backend.wait(body())


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (lengths, "it has no name and no version and no dimensions and no embed"),
        (None, "NoneType is no embedder"),
        (type("Half", (), {"name": "a", "version": "1", "embed": lengths})(), "it has no dimensions"),
    ],
)
def test_what_is_no_embedder_is_told_how_to_become_one(thing: Any, message: str):
    with pytest.raises(InvalidOption, match=message) as caught:
        model_of(thing)
    assert "CallableEmbedder(function, name=" in str(caught.value)


@pytest.mark.parametrize("dimensions", [0, -1, 2.5, "2", True, None])
def test_a_dimension_that_cannot_be_is_refused(dimensions: Any):
    with pytest.raises(InvalidOption, match="must say its dimensions"):
        CallableEmbedder(lengths, name="a", version="1", dimensions=dimensions)


def test_a_callable_embedder_checks_what_it_is_given():
    function: Any = "lengths"
    with pytest.raises(InvalidOption, match="needs a function"):
        CallableEmbedder(function, name="a", version="1", dimensions=2)
    with pytest.raises(InvalidOption, match="a model's name"):
        CallableEmbedder(lengths, name="a b", version="1", dimensions=2)


def test_every_error_is_one_of_the_package():
    assert issubclass(EmbedderUnavailable, EmbedderError)
    assert issubclass(EmbedderError, VectorError)


WITHOUT_GREENLET = """
import sys
sys.modules["greenlet"] = None
from sqla_vector.embedding import CallableEmbedder, embed

async def ones(texts):
    return [[1.0]] * len(texts)

print(embed(CallableEmbedder(ones, name="a", version="1", dimensions=1), ["a"]).tolist())
"""


def test_without_greenlet_a_synchronous_program_embeds_all_the_same():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_GREENLET], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("[[1.0]]\n", "")
