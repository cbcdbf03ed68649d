"""check_chunks(): what nothing noticed is reported, and put right."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import insert, text, update
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from sqla_vector.chunking import acheck_chunks, by_sentences, check_chunks
from sqla_vector.exc import InvalidOption
from sqla_vector.tracking import backfill
from tests.chunking.models import document_models, paragraphs, rows_of
from tests.chunking.test_flush import add, wrong
from tests.tracking.conftest import Tracked
from tests.tracking.models import CountingEmbedder

Make = Callable[..., Tracked]


def run_check(t: Tracked, sessions: Any = None, **options: Any) -> Any:
    sessions = t.sessions if sessions is None else sessions
    if t.backend.is_async:
        return t.backend.wait(acheck_chunks(sessions, **options))
    return check_chunks(sessions, **options)


def spoil(t: Tracked) -> None:
    """Change texts and chunks behind the back of everybody."""
    document = t.base.Document.__table__

    def change(connection: Any) -> None:
        connection.execute(update(document).where(document.c.id == 2).values(body=paragraphs(22, 2)))
        connection.execute(update(document).where(document.c.id == 3).values(body=None))
        connection.execute(insert(document), {"id": 6, "body": paragraphs(6)})
        connection.execute(text("UPDATE document_chunk SET start_offset = 1 WHERE document_id = 4"))
        if t.backend.family == "sqlite":  # where foreign keys are not looked at unless one asks for it
            connection.execute(text("DELETE FROM document WHERE id = 5"))

    t.backend.run_connection(t.engine, change)


def test_what_nobody_noticed_is_reported_and_put_right(tracked: Make) -> None:
    t = tracked(document_models(), embedder := CountingEmbedder())
    add(t, **{f"d{n}": paragraphs(n, n + 10) for n in range(1, 6)})
    assert run_check(t).is_clean
    spoil(t)
    is_sqlite = t.backend.family == "sqlite"
    told: list[Any] = []
    report = run_check(t, on_progress=told.append)
    (found,) = report.chunks
    rows, current, orphaned = (5, 1, 1) if is_sqlite else (6, 2, 0)
    assert (found.rows, found.current, found.missing, found.stale) == (rows, current, 1, 3)
    assert (found.invalid, found.orphaned, report.fixed) == (0, orphaned, 0)
    assert found.examples["missing"] == ["[6]"]
    assert found.examples["stale"] == ["[2]", "[3]", "[4]"]
    assert found.examples.get("orphaned", []) == (["[5]"] if is_sqlite else [])
    assert (told[-1].done, told[-1].total) == (rows, rows)
    assert str(report).startswith(f"Document.chunks: {current} of {rows} rows current, 1 missing, 3 stale")
    assert json.loads(json.dumps(report.as_dict()))["is_clean"] is False
    assert wrong(t), "nothing is changed without fix=True"
    embedder.calls.clear()
    report = run_check(t, fix=True)
    assert report.fixed == 4 + orphaned
    assert str(report).endswith(f"\n{4 + orphaned} put right")
    assert wrong(t) == []
    t.work()
    assert wrong(t, embedder) == []
    assert sorted(embedder.texts) == sorted([paragraphs(22), paragraphs(6)])
    assert run_check(t).is_clean


@pytest.mark.backends("psycopg", "pysqlite3")
def test_without_an_outbox_backfill_embeds_what_was_put_right(tracked: Make) -> None:
    t = tracked(document_models(), embedder := CountingEmbedder(), outbox=None)
    rows = [{"id": n, "body": paragraphs(n)} for n in range(450)]
    t.backend.run_connection(t.engine, lambda c: c.execute(insert(t.base.Document.__table__), rows))
    untracked = sessionmaker(t.engine)
    report = check_chunks(untracked, models=t.base, fix=True)
    assert (report.chunks[0].missing, report.fixed) == (450, 450)
    assert report.chunks[0].examples["missing"] == [f"[{n}]" for n in range(5)]
    backfill(t.sessions, t.base.Chunk.embedding)
    assert wrong(t, embedder) == []


@pytest.mark.backends("pysqlite3")
def test_many_orphans_are_found_in_parts(tracked: Make) -> None:
    t = tracked(document_models(), CountingEmbedder())
    add(t, **{f"d{n}": paragraphs(n) for n in range(1, 420)})
    t.backend.run_connection(t.engine, lambda c: c.execute(text("DELETE FROM document WHERE id > 3")))
    assert check_chunks(t.sessions).chunks[0].orphaned == 416
    with t.sessions() as session, session.begin():
        assert check_chunks(session, fix=True).fixed == 416
        assert set(rows_of(session.connection())) == {1, 2, 3}
        session.rollback()
    assert len(t.backend.run_connection(t.engine, rows_of)) == 419, "a session's transaction is its owner's"


@pytest.mark.backends("psycopg", "pysqlite3")
def test_another_splitter_makes_all_stale_and_keeps_what_is_the_same(tracked: Make) -> None:
    base = document_models()
    t = tracked(base, embedder := CountingEmbedder())
    add(t, d1=f"{paragraphs(1)}\n\nA last sentence.", d2=paragraphs(2))
    (chunking,) = (one for one in t.tracking.plans.derived if one.class_ is base.Document)  # type: ignore[attr-defined]
    chunking.splitter = by_sentences(1, 0)  # type: ignore[attr-defined]
    assert check_chunks(t.sessions).chunks[0].stale == 2
    embedder.calls.clear()
    check_chunks(t.sessions, fix=True)
    t.work()
    assert "A last sentence." not in embedder.texts
    assert [row[4] for row in t.backend.run_connection(t.engine, rows_of)[2]] == [
        "Paragraph 2 begins.",
        "It ends with 2.",
    ]


@pytest.mark.backends("pysqlite3")
def test_texts_that_cannot_be_split_are_reported_with_the_reason(tracked: Make) -> None:
    base = document_models(splitter=lambda body: ["not in it"] if "bad" in body else [body])
    t = tracked(base, CountingEmbedder())
    rows = [{"id": 1, "body": "good"}, {"id": 2, "body": "bad"}]
    t.backend.run_connection(t.engine, lambda c: c.execute(insert(base.Document.__table__), rows))
    report = check_chunks(t.sessions, fix=True)
    (found,) = report.chunks
    assert (found.missing, found.invalid, report.fixed) == (1, 1, 1)
    assert found.reasons == {"[2]": "the splitter returned a part of 9 characters that is not in the text after 0"}
    assert not check_chunks(t.sessions).is_clean


def test_bad_options_are_refused() -> None:
    class Base(DeclarativeBase): ...

    class Plain(Base):
        __tablename__ = "plain"
        id: Mapped[int] = mapped_column(primary_key=True)

    with pytest.raises(InvalidOption, match="no class of these models was given to chunked"):
        check_chunks(sessionmaker(), models=Base)
    with pytest.raises(InvalidOption, match="fix must be True or False, got 1"):
        check_chunks(sessionmaker(), fix=1)  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match=r"asynchronous: await acheck_chunks\(\)"):
        check_chunks(async_sessionmaker(), models=document_models())
    with pytest.raises(InvalidOption, match="expected a sessionmaker"):
        check_chunks("sessions", models=Plain)
