"""Chunks that a worker brings into step: what triggers noticed, related rows, and vectors that are left to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import delete, insert, text, update

from sqla_vector.exc import InvalidOption
from sqla_vector.tracking import outbox_triggers
from tests.chunking.models import document_models, paragraphs, rows_of
from tests.chunking.test_flush import add, edit, wrong
from tests.tracking.conftest import Tracked
from tests.tracking.models import CountingEmbedder

Make = Callable[..., Tracked]


@pytest.mark.parametrize("when", ["flush", "worker"])
def test_what_no_session_saw_is_brought_into_step_by_the_worker(tracked: Make, when: str) -> None:
    base = document_models(when)
    outbox_triggers(base, base.outbox)
    t = tracked(base, embedder := CountingEmbedder())
    document = base.Document.__table__

    def core(statement: Any, *parameters: Any) -> None:
        t.backend.run_connection(t.engine, lambda c: c.execute(statement, *parameters))

    core(insert(document), [{"id": n, "body": paragraphs(n, n + 1)} for n in range(1, 4)])
    assert t.backend.run_connection(t.engine, rows_of) == {}
    t.work()
    assert wrong(t, embedder) == []
    embedder.calls.clear()
    core(update(document).where(document.c.id == 1).values(body=paragraphs(77, 1, 2)))
    core(text("UPDATE document SET body = NULL WHERE id = 2"))
    t.work()
    assert wrong(t, embedder) == []
    assert embedder.texts == [paragraphs(77)]
    embedder.calls.clear()
    core(update(document).values(title="another title"))
    t.work()
    assert embedder.calls == []
    assert t.entries() == []


def test_vectors_are_left_to_the_worker_and_chunks_are_not(tracked: Make) -> None:
    t = tracked(document_models("worker"), embedder := CountingEmbedder())
    add(t, d1=paragraphs(1, 2))
    assert wrong(t) == []
    assert embedder.calls == []
    assert [entry.entity for entry in t.entries()] == ["document_chunk"] * 2
    outcome = t.work()
    assert (outcome.written, outcome.dead) == (2, 0)
    assert wrong(t, embedder) == []
    edit(t, 1, paragraphs(3, 1, 2))
    assert len(t.entries()) == 1
    t.work()
    assert wrong(t, embedder) == []
    assert sorted(embedder.texts) == [paragraphs(n) for n in (1, 2, 3)]


def test_texts_of_related_rows_are_chunked_by_the_worker(tracked: Make) -> None:
    base = document_models(related=True)
    t = tracked(base, embedder := CountingEmbedder())
    t.run(
        lambda s: s.add_all(
            [
                base.Author(id=1, name="Ada wrote."),
                base.Document(id=1, author_id=1, body=paragraphs(1, 2)),
                base.Document(id=2, author_id=1, body=paragraphs(3)),
            ]
        )
    )
    expected = {1: ["Ada wrote.", paragraphs(1), paragraphs(2)], 2: ["Ada wrote.", paragraphs(3)]}

    def texts() -> dict[int, list[str]]:
        rows = t.backend.run_connection(t.engine, rows_of)
        return {id_: [row[4] for row in found] for id_, found in rows.items()}

    assert texts() == expected
    embedder.calls.clear()
    t.run(lambda s: setattr(s.get(base.Author, 1), "name", "Eve wrote."))
    assert embedder.calls == []
    t.work()
    assert texts() == {id_: ["Eve wrote.", *found[1:]] for id_, found in expected.items()}
    assert embedder.texts == ["Eve wrote."]
    t.run(lambda s: setattr(s.get(base.Document, 1), "author", None))
    assert texts()[1] == expected[1][1:]


def test_a_text_that_cannot_be_split_is_dead_alone(tracked: Make) -> None:
    def split(body: str) -> list[tuple[int, int]]:
        return [(0, 10_000)] if body.startswith("bad") else [(0, len(body))]

    base = document_models(splitter=split)
    outbox_triggers(base, base.outbox)
    t = tracked(base, CountingEmbedder())
    rows = [{"id": 1, "body": "good"}, {"id": 2, "body": "bad"}, {"id": 3, "body": "good, too"}]
    t.backend.run_connection(t.engine, lambda c: c.execute(insert(base.Document.__table__), rows))
    t.work()
    assert set(t.backend.run_connection(t.engine, rows_of)) == {1, 3}
    (dead,) = t.entries("dead")
    assert (dead.entity, dead.row_key) == ("document", "[2]")
    assert dead.reason == (
        "Document.chunks: the splitter returned what is no part of a text of 3 characters: (0, 10000)"
    )


@pytest.mark.backends(family="postgresql", is_async=False)
def test_a_document_that_somebody_is_changing_is_left_for_later(tracked: Make) -> None:
    base = document_models()
    outbox_triggers(base, base.outbox)
    t = tracked(base, embedder := CountingEmbedder())
    document = base.Document.__table__
    t.backend.run_connection(t.engine, lambda c: c.execute(insert(document), {"id": 1, "body": paragraphs(1)}))
    worker = t.worker()
    with t.engine.begin() as other:
        other.execute(update(document).values(body=paragraphs(2)))
        assert t.once(worker).late == 1
        assert t.backend.run_connection(t.engine, rows_of) == {}
    t.work()
    assert wrong(t, embedder) == []
    assert paragraphs(1) not in embedder.texts


@pytest.mark.backends("psycopg", "pysqlite3")
def test_a_model_that_is_changed_is_changed_for_chunks_as_for_any_column(tracked: Make) -> None:
    from sqla_vector.tracking import backfill

    t = tracked(document_models(), CountingEmbedder())
    add(t, d1=paragraphs(1, 2))
    newer = CountingEmbedder("2")
    report = backfill(t.sessions, t.base.Chunk.embedding, embedders={"counting": newer}, models=t.base)
    assert report.written == 2
    assert wrong(t, newer) == []


@pytest.mark.backends("pysqlite3")
def test_without_an_outbox_a_flush_needs_none_unless_a_worker_embeds(tracked: Make) -> None:
    t = tracked(document_models(), embedder := CountingEmbedder(), outbox=None)
    add(t, d1=paragraphs(1))
    assert wrong(t, embedder) == []


@pytest.mark.backends("pysqlite3")
def test_what_is_left_to_a_worker_needs_an_outbox(tracked: Make) -> None:
    t = tracked(document_models("worker"), CountingEmbedder(), outbox=None)
    with pytest.raises(InvalidOption, match=r"DocumentChunk\.embedding is left to a worker"):
        add(t, d1=paragraphs(1))
    t = Tracked(t.backend, t.backend.make_engine(), document_models(related=True), CountingEmbedder(), outbox=None)
    with pytest.raises(InvalidOption, match="document is left to a worker"):
        add(t, d2=paragraphs(1))


@pytest.mark.backends("psycopg", "asyncpg", "pysqlite3")
def test_deletes_of_the_database_cascade(tracked: Make) -> None:
    t = tracked(document_models(), CountingEmbedder())
    add(t, d1=paragraphs(1, 2), d2=paragraphs(3))

    def remove(connection: Any) -> None:
        if t.backend.family == "sqlite":
            connection.execute(text("PRAGMA foreign_keys = ON"))
        connection.execute(delete(t.base.Document.__table__).where(t.base.Document.id == 1))

    t.backend.run_connection(t.engine, remove)
    assert set(t.backend.run_connection(t.engine, rows_of)) == {2}
