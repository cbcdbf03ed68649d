"""Chunks beside everything else: several writers, another model, copies elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sqlalchemy import ForeignKey, Table, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, load_only, mapped_column

from sqla_vector import Vector
from sqla_vector.chunking import chunked
from sqla_vector.embedding import Fingerprint, embedding_column
from sqla_vector.tracking import Upgrade, Versions, outbox_table, upgrade_table
from sqla_vector.tracking.mirrors import Mirror, declare_mirror
from tests.chunking.models import document_models, paragraphs, rows_of
from tests.chunking.test_flush import add, edit, wrong
from tests.tracking.conftest import Tracked
from tests.tracking.models import DIM, CountingEmbedder

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


def story_models(*, chunks: bool) -> Any:
    """Return a base with Story, of which each row is one in two tables, with chunks or with a vector in a third one."""

    class Base(DeclarativeBase):
        outbox: Table

    class Item(Base):
        __tablename__ = "item"
        id: Mapped[int] = mapped_column(primary_key=True)
        kind: Mapped[str]
        name: Mapped[str | None]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "item"}

    class Story(Item):
        __tablename__ = "story"
        id: Mapped[int] = mapped_column(ForeignKey("item.id"), primary_key=True)
        plot: Mapped[str | None]
        __mapper_args__ = {"polymorphic_identity": "story"}

    class Tale(Story):
        __tablename__ = "tale"
        id: Mapped[int] = mapped_column(ForeignKey("story.id"), primary_key=True)
        embedding: Mapped[Any | None] = embedding_column(Vector(DIM), source=("name", "plot"), embedder="counting")
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())
        __mapper_args__ = {"polymorphic_identity": "tale"}

    Base.Item, Base.Story, Base.Tale = Item, Story, Tale
    if chunks:
        Base.Scene = chunked(Story, ("name", "plot"), vector=Vector(DIM), embedder="counting", collection="scenes")
    Base.outbox = outbox_table(Base.metadata)
    return Base


def wait_until_one_waits(t: Tracked, thread: threading.Thread) -> None:
    """Wait until a transaction stands at a lock, or a thread has ended."""
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with t.engine.connect() as connection:
        while thread.is_alive() and not connection.scalar(waiting):
            connection.rollback()


def write_plot(t: Tracked, failed: list[BaseException]) -> None:
    """Change what is in the second table, without a look at the first one."""
    story = t.base.Story

    def write(session: Any) -> None:
        session.scalars(select(story).options(load_only(story.id))).one().plot = "d"

    try:
        t.run(write)
    except BaseException as error:
        failed.append(error)


@pytest.mark.backends("psycopg")
def test_two_writers_of_the_tables_of_one_row_leave_the_chunks_of_both_parts(tracked: Make) -> None:
    t = tracked(story_models(chunks=True), CountingEmbedder())
    t.run(lambda s: s.add(t.base.Story(id=1, name="a", plot="b")))
    failed: list[BaseException] = []
    second = threading.Thread(target=write_plot, args=(t, failed))
    with t.sessions() as first:
        first.scalars(select(t.base.Item)).one().name = "c"
        first.flush()
        second.start()
        wait_until_one_waits(t, second)
        first.commit()
    second.join(60)
    assert failed == []
    assert t.untracked(lambda s: s.scalars(select(t.base.Scene.text)).all()) == ["c\n\nd"]


@pytest.mark.backends("psycopg")
def test_a_row_of_several_tables_does_not_change_while_its_text_is_embedded(tracked: Make) -> None:
    t = tracked(story_models(chunks=False), embedder := CountingEmbedder())
    t.run(lambda s: s.add(t.base.Tale(id=1, name="a", plot="b")))
    failed: list[BaseException] = []
    second = threading.Thread(target=write_plot, args=(t, failed))

    def meanwhile(texts: list[str]) -> None:
        embedder.fail = None
        second.start()
        wait_until_one_waits(t, second)

    def edit_name(session: Any) -> None:
        session.scalars(select(t.base.Item)).one().name = "c"  # the plot is not loaded
        embedder.fail = meanwhile

    t.run(edit_name)
    second.join(60)
    assert failed == []
    t.work()
    found = t.untracked(lambda s: s.execute(select(t.base.Tale.name, t.base.Tale.plot, t.base.Tale.embedding)).one())
    assert found[:2] == ("c", "d")
    assert np.array_equal(found[2], embedder.vector("c\n\nd"))
