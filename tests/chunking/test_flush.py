"""Chunks as a session flushes: in step with the text, in the same transaction, and embedded if they are new."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event, func, inspect, select, text, update

from sqla_vector.exc import EmbedderError, EmbedderUnavailable, InvalidText
from tests.chunking.models import document_models, paragraphs, rows_of, vectors_of, why_not_in_step
from tests.tracking.conftest import Tracked
from tests.tracking.models import CountingEmbedder

Make = Callable[..., Tracked]


def split(body: str) -> list[tuple[int, int]]:
    """Split what paragraphs() makes; a program of its own."""
    return [match.span() for match in re.finditer(r"Paragraph \d+ begins\. It ends with \d+\.|\S[^\n]*", body)]


def wrong(t: Tracked, embedder: CountingEmbedder | None = None) -> list[str]:
    found: list[str] = t.backend.run_connection(t.engine, lambda c: why_not_in_step(c, split, embedder))
    return found


def add(t: Tracked, **bodies: str | None) -> None:
    document = t.base.Document
    t.run(lambda s: s.add_all(document(id=int(name[1:]), body=body) for name, body in bodies.items()))


def edit(t: Tracked, id_: int, body: str | None) -> None:
    t.run(lambda s: setattr(s.get(t.base.Document, id_), "body", body))


def test_chunks_are_written_and_embedded_with_their_document(tracked: Make) -> None:
    t = tracked(document_models(), embedder := CountingEmbedder())
    add(t, d1=paragraphs(1, 2, 3), d2=None, d3="  ", d4="One line")
    assert wrong(t, embedder) == []
    assert len(embedder.calls) == 1
    assert sorted(embedder.texts) == sorted([*paragraphs(1, 2, 3).split("\n\n"), "One line"])
    for chunk_text, vector in t.untracked(lambda s: vectors_of(s, t.base)).items():
        assert np.array_equal(vector, embedder.vector(chunk_text))


def test_only_new_chunks_are_embedded_wherever_the_others_move_to(tracked: Make) -> None:
    t = tracked(document_models(), embedder := CountingEmbedder())
    add(t, d1=paragraphs(*range(1, 21)))
    before = {row[4]: row[6] for row in t.backend.run_connection(t.engine, rows_of)[1]}
    embedder.calls.clear()
    edit(t, 1, paragraphs(99, *range(1, 21)))
    assert embedder.texts == [paragraphs(99)]
    edit(t, 1, paragraphs(*range(20, 0, -1)))
    assert embedder.texts == [paragraphs(99)]
    edit(t, 1, paragraphs(*range(20, 0, -1), 20))  # a second chunk with the text of another
    assert wrong(t, embedder) == []
    rows = t.backend.run_connection(t.engine, rows_of)[1]
    assert {row[6] for row in rows} >= set(before.values()), "a chunk that stays keeps its row"
    edit(t, 1, None)
    assert t.backend.run_connection(t.engine, rows_of) == {}


def test_chunks_go_with_their_document(tracked: Make) -> None:
    t = tracked(document_models(), CountingEmbedder())
    add(t, d1=paragraphs(1, 2), d2=paragraphs(3))
    t.run(lambda s: s.delete(s.get(t.base.Document, 1)))
    assert set(t.backend.run_connection(t.engine, rows_of)) == {2}
    assert wrong(t) == []


def test_a_rollback_leaves_nothing(tracked: Make) -> None:
    t = tracked(document_models(), embedder := CountingEmbedder())
    add(t, d1=paragraphs(1, 2))
    before = t.backend.run_connection(t.engine, rows_of)

    def change(session: Any) -> None:
        document = session.get(t.base.Document, 1)
        document.body = paragraphs(7, 8, 9)
        session.add(t.base.Document(id=2, body=paragraphs(4)))
        session.flush()
        with session.begin_nested() as savepoint:
            document.body = paragraphs(1)
            session.flush()
            savepoint.rollback()
        assert len(session.scalars(select(t.base.Chunk)).all()) == 4
        session.rollback()

    t.backend.run(t.engine, lambda s: None)
    if t.backend.is_async:

        async def run() -> None:
            async with t.sessions() as session:
                await session.run_sync(change)

        t.backend.wait(run())
    else:
        with t.sessions() as session:
            change(session)
    assert t.backend.run_connection(t.engine, rows_of) == before
    assert wrong(t, embedder) == []


def test_a_savepoint_that_is_rolled_back_takes_its_chunks_along(tracked: Make) -> None:
    t = tracked(document_models(), embedder := CountingEmbedder())
    add(t, d1=paragraphs(1, 2))

    def change(session: Any) -> None:
        savepoint = session.begin_nested()
        session.get(t.base.Document, 1).body = paragraphs(3)
        session.flush()
        savepoint.rollback()
        session.get(t.base.Document, 1).body = paragraphs(1, 4)

    t.run(change)
    assert wrong(t, embedder) == []


def test_relationships_lead_both_ways_and_show_what_was_written(tracked: Make) -> None:
    t = tracked(document_models(), CountingEmbedder())

    def change(session: Any) -> None:
        document = t.base.Document(id=1, body=paragraphs(1, 2))
        session.add(document)
        session.flush()
        assert [chunk.text for chunk in document.chunks] == paragraphs(1, 2).split("\n\n")
        second = document.chunks[1]
        assert (second.position, second.document) == (1, document)
        document.body = paragraphs(2, 3)
        session.flush()
        assert [chunk.text for chunk in document.chunks] == paragraphs(2, 3).split("\n\n")
        assert (second.position, second.start, second.text) == (0, 0, paragraphs(2))
        assert document.body[second.start : second.end] == second.text

    t.run(change)


def test_another_key_takes_the_chunks_along(tracked: Make) -> None:
    t = tracked(document_models(), embedder := CountingEmbedder())
    add(t, d1=paragraphs(1, 2))
    t.run(lambda s: setattr(s.get(t.base.Document, 1), "id", 9))
    assert set(t.backend.run_connection(t.engine, rows_of)) == {9}
    assert wrong(t, embedder) == []


def test_an_expression_as_a_text_is_chunked_as_the_database_made_it(tracked: Make) -> None:
    t = tracked(document_models(), embedder := CountingEmbedder())
    add(t, d1=paragraphs(1))
    t.run(lambda s: setattr(s.get(t.base.Document, 1), "body", func.replace(t.base.Document.body, "1", "5")))
    assert wrong(t, embedder) == []
    assert [row[4] for row in t.backend.run_connection(t.engine, rows_of)[1]] == [paragraphs(5)]


def test_an_embedder_that_fails_has_the_flush_fail(tracked: Make) -> None:
    def fail(texts: list[str]) -> None:
        raise ValueError("no")

    t = tracked(document_models(), CountingEmbedder(fail=fail))
    with pytest.raises(EmbedderError, match="counting"):
        add(t, d1=paragraphs(1))
    assert t.backend.run_connection(t.engine, rows_of) == {}
    add(t, d1=None)


def test_an_embedder_that_is_away_leaves_new_chunks_to_a_worker(tracked: Make) -> None:
    embedder = CountingEmbedder()

    def away(texts: list[str]) -> None:
        raise EmbedderUnavailable("away")

    embedder.fail = away
    t = tracked(document_models(), embedder, on_outage="defer")
    add(t, d1=paragraphs(1, 2))
    assert wrong(t) == []
    assert [(e.entity, e.state) for e in t.entries()] == [("document_chunk", "pending")] * 2
    embedder.fail = None
    t.work()
    assert wrong(t, embedder) == []
    assert t.entries() == []


@pytest.mark.backends("psycopg", "pysqlite3")
def test_a_splitter_that_fails_has_the_flush_fail_and_says_nothing_of_the_text(tracked: Make) -> None:
    def fail(body: str) -> Any:
        raise ValueError(f"cannot split {body}")

    t = tracked(document_models(splitter=fail), CountingEmbedder())
    with pytest.raises(InvalidText, match=r"Document\.chunks: the splitter failed: ValueError in test_flush") as caught:
        add(t, d1="A secret.")
    assert "secret" not in str(caught.value)


@pytest.mark.backends("psycopg", "pysqlite3")
def test_a_prefix_is_embedded_and_no_part_of_the_chunk(tracked: Make) -> None:
    t = tracked(document_models(prefix="{passage}: "), embedder := CountingEmbedder())
    add(t, d1=paragraphs(1))
    assert embedder.texts == ["{passage}: " + paragraphs(1)]
    assert wrong(t) == []
    assert np.array_equal(
        t.untracked(lambda s: s.scalars(select(t.base.Chunk.embedding)).one()), embedder.vector(embedder.texts[0])
    )
    embedder.calls.clear()
    edit(t, 1, paragraphs(1, 2))
    assert embedder.texts == ["{passage}: " + paragraphs(2)]


@pytest.mark.backends("psycopg", "pysqlite3")
def test_texts_are_redacted_before_they_are_split(tracked: Make) -> None:
    def redact(body: str) -> str | None:
        return None if body.startswith("All of it") else re.sub(r"Dr\. \w+", "[name]", body)

    t = tracked(document_models(redact=redact), embedder := CountingEmbedder())
    add(t, d1="We met Dr. Miller. It was late. She left.", d2="All of it is secret.")
    assert embedder.texts == ["We met [name]. It was late.", "She left."]
    assert {id_: [row[4] for row in rows] for id_, rows in t.backend.run_connection(t.engine, rows_of).items()} == {
        1: embedder.texts
    }


@pytest.mark.backends("psycopg", "aiosqlite")
def test_loaded_chunks_that_are_gone_say_so(tracked: Make) -> None:
    t = tracked(document_models(), CountingEmbedder())
    add(t, d1=paragraphs(1, 2))

    def change(session: Any) -> None:
        document = session.get(t.base.Document, 1)
        first, second = document.chunks
        document.body = paragraphs(2)
        session.flush()
        assert second.position == 0
        assert inspect(first).expired

    t.run(change)


@pytest.mark.backends("psycopg", "pysqlite3")
def test_what_is_not_watched_is_left_alone(tracked: Make) -> None:
    t = tracked(document_models(), embedder := CountingEmbedder())
    add(t, d1=paragraphs(1))
    t.untracked(lambda s: s.execute(text("DELETE FROM document_chunk")))
    t.run(lambda s: setattr(s.get(t.base.Document, 1), "title", "A title"))
    assert t.backend.run_connection(t.engine, rows_of) == {}
    edit(t, 1, paragraphs(1, 2))  # and what is wrong is put right with the next change of the text
    assert wrong(t, embedder) == []
    t.run(lambda s: s.execute(update(t.base.Document).values(title="B")))
    assert len(embedder.calls) == 2


@pytest.mark.backends("psycopg", "pysqlite3")
def test_a_new_document_whose_chunks_were_looked_at_is_added_again(tracked: Make) -> None:
    t = tracked(document_models(), embedder := CountingEmbedder())
    with t.sessions() as session:
        document = t.base.Document(body=paragraphs(1, 2))
        session.add(document)
        session.flush()
        assert len(document.chunks) == 2
        session.rollback()
        document.id = None
        session.add(document)
        session.flush()
        assert [chunk.text for chunk in document.chunks] == paragraphs(1, 2).split("\n\n")
        session.commit()
    assert wrong(t, embedder) == []


@pytest.mark.backends("psycopg", "pysqlite3")
@pytest.mark.parametrize("cascades", [False, True])
def test_loaded_chunks_of_a_deleted_document_do_not_pass_for_others(tracked: Make, cascades: bool) -> None:
    t = tracked(document_models(), embedder := CountingEmbedder())
    if t.engine.dialect.name == "sqlite" and cascades:
        event.listen(t.engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys = ON"))
        t.engine.dispose()
    add(t, d1=paragraphs(1, 2))
    with t.sessions() as session:
        document = session.get(t.base.Document, 1)
        chunks = list(document.chunks)
        session.delete(document)
        session.commit()
        assert all(inspect(chunk).expired for chunk in chunks)
        other = t.base.Document(id=2, body=paragraphs(7, 8))
        session.add(other)
        session.commit()
        assert [chunk.text for chunk in other.chunks] == paragraphs(7, 8).split("\n\n")
    assert wrong(t, embedder) == []


@pytest.mark.backends("psycopg", "pysqlite3")
def test_loaded_chunks_name_the_document_by_its_new_key(tracked: Make) -> None:
    t = tracked(document_models(), CountingEmbedder())
    if t.engine.dialect.name == "sqlite":
        event.listen(t.engine, "connect", lambda connection, _: connection.execute("PRAGMA foreign_keys = ON"))
        t.engine.dispose()
    add(t, d1=paragraphs(1, 2))

    def change(session: Any) -> None:
        document = session.get(t.base.Document, 1)
        chunks = list(document.chunks)
        document.id = 9
        session.flush()
        assert [chunk.document_id for chunk in chunks] == [9, 9]

    t.run(change)


@pytest.mark.backends("psycopg", "pysqlite3")
def test_loaded_chunks_are_where_they_were_after_a_savepoint_is_rolled_back(tracked: Make) -> None:
    t = tracked(document_models(), CountingEmbedder())
    add(t, d1=paragraphs(1, 2))

    def places(document: Any) -> list[tuple[int, str]]:
        return [(chunk.position, document.body[chunk.start : chunk.end]) for chunk in document.chunks]

    def change(session: Any) -> None:
        document = session.get(t.base.Document, 1)
        before, chunks = places(document), list(document.chunks)
        savepoint = session.begin_nested()
        document.body = paragraphs(3, 1, 2)
        session.flush()
        assert [chunk.position for chunk in document.chunks] == [0, 1, 2]
        ghost = document.chunks[0]
        savepoint.rollback()
        assert places(document) == before
        assert document.chunks == chunks
        document.body = paragraphs(4, 1, 2)
        session.flush()
        assert [chunk.text for chunk in document.chunks] == paragraphs(4, 1, 2).split("\n\n")
        assert ghost not in chunks

    t.run(change)
