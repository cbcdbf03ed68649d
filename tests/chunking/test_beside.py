"""Chunks beside everything else: several writers, another model, copies elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import select, text

from sqla_vector.tracking import Upgrade, Versions, upgrade_table
from sqla_vector.tracking.mirrors import Mirror, declare_mirror
from tests.chunking.models import document_models, paragraphs, rows_of
from tests.chunking.test_flush import add, edit, wrong
from tests.tracking.conftest import Tracked
from tests.tracking.models import CountingEmbedder

Make = Callable[..., Tracked]


@pytest.mark.backends("psycopg")
def test_the_later_of_two_writers_has_the_chunks_of_its_text(tracked: Make) -> None:
    t = tracked(document_models(), embedder := CountingEmbedder())
    add(t, d1=paragraphs(1, 2))
    failed: list[BaseException] = []

    def write_later() -> None:
        try:
            edit(t, 1, paragraphs(5, 2))
        except BaseException as error:
            failed.append(error)

    with t.sessions() as first:
        first.get(t.base.Document, 1).body = paragraphs(2, 3, 4)
        first.flush()
        second = threading.Thread(target=write_later)
        second.start()
        waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
        with t.engine.connect() as connection:
            while not connection.scalar(waiting):  # until the second one stands at the row
                assert second.is_alive()
                connection.rollback()
        first.commit()
    second.join(60)
    assert failed == []
    assert wrong(t, embedder) == []
    assert [row[4] for row in t.backend.run_connection(t.engine, rows_of)[1]] == paragraphs(5, 2).split("\n\n")


@pytest.mark.backends("psycopg", "pysqlite3")
def test_a_model_is_changed_while_documents_are_edited(tracked: Make) -> None:
    base = document_models()
    upgrades = upgrade_table(base.metadata)
    old, new = CountingEmbedder("1"), CountingEmbedder("2")
    t = tracked(base, Versions(old, new, upgrades=upgrades))
    add(t, d1=paragraphs(1, 2), d2=paragraphs(3))
    upgrade = Upgrade(t.sessions, base.Chunk.embedding)
    upgrade.fill()
    edit(t, 1, paragraphs(7, 1))
    assert wrong(t, old) == []
    upgrade.cutover()
    assert wrong(t, new) == []
    edit(t, 2, paragraphs(8, 3))
    assert wrong(t, new) == []
    assert paragraphs(8) not in old.texts
    upgrade.rollback()
    t.work()
    assert wrong(t, old) == []


@pytest.mark.backends("psycopg", "pysqlite3")
def test_who_has_copies_of_chunks_learns_of_each_that_comes_goes_or_moves(tracked: Make) -> None:
    base = document_models()
    declare_mirror(Mirror("copies", base.outbox, base.Chunk, ("text", "position")))
    t = tracked(base, CountingEmbedder())

    def noted() -> list[str]:
        """Return the keys in the channel, and empty it."""
        rows = [entry.row_key for entry in t.entries() if entry.channel == "copies"]
        t.backend.run_connection(t.engine, lambda c: c.execute(base.outbox.delete()))
        return sorted(set(rows))

    def keys(*texts: str) -> list[str]:
        found = t.untracked(lambda s: s.execute(select(base.Chunk.id, base.Chunk.text)).all())
        return sorted(f"[{id_}]" for id_, chunk in found if chunk in texts)

    add(t, d1=paragraphs(1, 2, 3))
    assert noted() == keys(*(paragraphs(n) for n in (1, 2, 3)))
    gone = keys(paragraphs(1))
    edit(t, 1, paragraphs(2, 4, 3))
    assert noted() == sorted([*gone, *keys(paragraphs(2), paragraphs(4))])
