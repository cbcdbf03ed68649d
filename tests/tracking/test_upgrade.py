"""A column whose model is changed: filled beside it, exchanged in one transaction, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Mapped, mapped_column

from sqla_vector import Vector, nearest, vector_index
from sqla_vector.embedding import Fingerprint, Model, embedding_column, fingerprint
from sqla_vector.embedding.embedder import model_of
from sqla_vector.exc import EmbedderError, EmbedderUnavailable, InvalidOption, MigrationError
from sqla_vector.tracking import Upgrade, Versions, active_embedder, check, is_current, outbox_triggers, upgrade_table
from sqla_vector.tracking.versions import kept_rows
from tests.support.backends import AnyEngine, Backend
from tests.tracking.conftest import Tracked
from tests.tracking.models import DIM, POISON, CountingEmbedder, article_models, picky_models


def upgradable(when: str = "flush", **options: Any) -> Any:
    """Return the models with the table of changes."""
    base = article_models(when, **options)
    base.upgrades = upgrade_table(base.metadata)
    return base


class Changing:
    """Tracked sessions that know two versions, and what changes the one into the other."""

    def __init__(self, tracked: Tracked, old: CountingEmbedder, new: CountingEmbedder) -> None:
        self.t, self.old, self.new = tracked, old, new
        self.base = tracked.base

    def upgrade(self, **options: Any) -> Upgrade:
        return Upgrade(self.t.sessions, self.base.Article.embedding, models=self.base, **options)

    def do(self, name: str, upgrade: Upgrade | None = None, **options: Any) -> Any:
        """Call a method, or its asynchronous twin."""
        upgrade = upgrade or self.upgrade()
        if self.t.backend.is_async:
            return self.t.backend.wait(getattr(upgrade, f"a{name}")(**options))
        return getattr(upgrade, name)(**options)

    def add(self, *titles: str | None, first: int = 1) -> None:
        self.t.run(lambda s: s.add_all(self.base.Article(id=n, title=t) for n, t in enumerate(titles, first)))

    def edit(self, id_: int, title: str | None) -> None:
        self.t.run(lambda s: setattr(s.get(self.base.Article, id_), "title", title))

    def rows(self) -> list[Any]:
        article = self.base.Article
        columns = (article.id, article.title, article.embedding, article.embedding_fingerprint)
        return list(self.t.untracked(lambda s: s.execute(select(*columns).order_by(article.id)).all()))

    def assert_all(self, embedder: CountingEmbedder) -> None:
        """Every row has the vector of its text by one model."""
        for id_, title, vector, mark in self.rows():
            assert mark == (None if title is None else fingerprint(model_of(embedder), title)), (id_, title)
            assert (vector is None) == (title is None), id_
            assert title is None or np.array_equal(vector, embedder.vector(title)), (id_, title)

    def kept(self) -> int:
        stmt = select(func.count()).select_from(kept_rows(self.base.upgrades))
        return int(self.t.backend.run_connection(self.t.engine, lambda c: c.scalar(stmt)))


@pytest.fixture
def changing(tracked: Callable[..., Tracked]) -> Iterator[Callable[..., Changing]]:
    """Make sessions that know both versions."""

    def make(base: Any = None, *, when: str = "flush", new: Any = None, **options: Any) -> Changing:
        base = base or upgradable(when)
        old, new = CountingEmbedder(version="1"), new or CountingEmbedder(version="2")
        return Changing(tracked(base, Versions(old, new, upgrades=base.upgrades), **options), old, new)

    return make


Make = Callable[..., Changing]


def test_the_old_model_is_in_force_until_the_cutover_and_the_new_one_after_it(changing: Make) -> None:
    c = changing()
    c.add("a", None, "c")
    status = c.do("fill")
    assert (status.state, status.rows, status.ready, status.left, status.is_ready) == ("filling", 3, 3, 0, True)
    assert (status.old, status.new, status.active) == ("counting@1", "counting@2", "counting@1")
    c.add("d", first=4)
    c.edit(1, "a2")
    c.edit(2, "b2")
    c.edit(3, None)
    c.assert_all(c.old)
    status = c.do("status")
    assert (status.ready, status.missing, status.stale, status.is_ready) == (1, 2, 1, False)
    status = c.do("cutover")
    assert (status.state, status.active, status.kept) == ("cut over", "counting@2", 3)
    c.assert_all(c.new)
    c.add("e", first=5)
    c.edit(1, "a3")
    c.assert_all(c.new)
    assert c.do("finish").state == "finished"
    assert c.kept() == 0
    c.edit(1, "a4")
    c.assert_all(c.new)


def test_texts_are_embedded_once_by_the_new_model(changing: Make) -> None:
    c = changing()
    c.add(*(f"title {n}" for n in range(30)))
    upgrade = c.upgrade(batch_size=7)
    c.do("fill", upgrade)
    c.do("fill", upgrade)
    c.do("cutover", upgrade)
    assert sorted(c.new.texts) == sorted(f"title {n}" for n in range(30))
    assert max(map(len, c.new.calls)) == 7
    c.assert_all(c.new)


def test_a_cutover_alone_embeds_what_is_missing(changing: Make) -> None:
    c = changing()
    c.add("a", "b")
    c.do("fill")
    c.add(*(f"more {n}" for n in range(20)), first=3)
    c.do("cutover", c.upgrade(batch_size=4))
    c.assert_all(c.new)


def test_a_rollback_before_the_cutover_drops_the_new_vectors(changing: Make) -> None:
    c = changing()
    c.add("a", "b")
    c.do("fill")
    assert c.kept() == 2
    assert c.do("rollback").state == "rolled back"
    assert c.kept() == 0
    c.edit(1, "a2")
    c.assert_all(c.old)
    c.do("fill")
    c.do("cutover")
    c.assert_all(c.new)


def test_a_rollback_after_the_cutover_brings_the_old_vectors_back(changing: Make) -> None:
    c = changing()
    c.add("a", "b", "c", "d")
    c.do("fill")
    c.do("cutover")
    c.edit(1, "a2")
    c.edit(2, None)
    c.add("e", first=5)
    c.t.run(lambda s: s.delete(s.get(c.base.Article, 3)))
    calls = len(c.old.calls)
    status = c.do("rollback")
    assert (status.state, status.active, status.kept) == ("rolled back", "counting@1", 0)
    assert len(c.old.calls) == calls
    rows = {row.id: row.embedding_fingerprint for row in c.rows()}
    assert rows == {
        1: fingerprint(Model("counting", "1"), "a"),
        2: None,
        4: fingerprint(Model("counting", "1"), "d"),
        5: None,
    }
    assert sorted(entry.row_key for entry in c.t.entries()) == ["[1]", "[5]"]
    c.t.work()
    c.assert_all(c.old)
    assert c.t.entries() == []


def test_a_rollback_without_an_outbox_says_that_one_is_needed(changing: Make) -> None:
    c = changing(outbox=None)
    c.add("a", "b")
    c.do("fill")
    c.do("cutover")
    c.edit(1, "a2")
    with pytest.raises(InvalidOption, match="give outbox="):
        c.do("rollback")
    c.assert_all(c.new)
    c.do("rollback", c.upgrade(outbox=c.base.outbox))
    assert [row.embedding_fingerprint for row in c.rows()] == [
        fingerprint(Model("counting", "1"), "a"),
        fingerprint(Model("counting", "1"), "b"),
    ]


def test_a_worker_embeds_by_the_model_that_is_in_force(changing: Make) -> None:
    c = changing(when="worker")
    c.add("a", "b", "c")
    c.t.work()
    c.do("fill")
    c.edit(1, "a2")
    c.t.work()
    c.assert_all(c.old)
    c.edit(2, "b2")  # pending at the cutover
    c.do("cutover")
    c.assert_all(c.new)
    c.edit(3, "c2")
    c.t.work()
    c.assert_all(c.new)
    assert c.t.entries() == []


@pytest.mark.backends(is_async=False)
def test_a_batch_in_hand_at_the_cutover_is_embedded_again(changing: Make) -> None:
    c = changing(when="worker")
    c.add("a")
    c.t.work()
    c.do("fill")
    c.edit(1, "a2")
    done: list[str] = []

    def cut_over(texts: list[str]) -> None:
        if not done:
            done.append("cut over")
            c.do("cutover")

    c.old.fail = cut_over
    outcome = c.t.work()
    assert done == ["cut over"]
    assert outcome.late == 1
    c.assert_all(c.new)
    assert c.t.entries() == []


def test_edits_of_core_are_noticed(changing: Make) -> None:
    base = upgradable()
    outbox_triggers(base, base.outbox)
    c = changing(base)
    article = base.Article
    c.add("a", "b", "c")
    c.do("fill")
    c.t.run(lambda s: s.execute(update(article.__table__).where(article.id == 1).values(title="a2")))
    c.t.run(lambda s: s.execute(insert(article.__table__).values(id=9, title="i", views=0)))
    status = c.do("status")
    assert (status.missing, status.stale) == (1, 1)
    c.do("cutover")
    c.assert_all(c.new)
    c.t.run(lambda s: s.execute(update(article.__table__).where(article.id == 2).values(title="b2")))
    c.t.work()
    c.assert_all(c.new)


def test_a_text_that_the_new_model_refuses_prevents_the_cutover_or_is_skipped(changing: Make) -> None:
    def refuse(texts: list[str]) -> None:
        if "bad" in texts:
            raise EmbedderError("refused")

    c = changing(new=CountingEmbedder(version="2", fail=refuse))
    c.add(*("bad" if n == 7 else f"t{n}" for n in range(1, 12)))
    status = c.do("fill")
    assert (status.ready, status.failed, status.is_ready) == (10, 1, False)
    assert status.reasons == {"[7]": "refused"}
    with pytest.raises(MigrationError, match=r"1 rows cannot be embedded by counting@2.*\[7\]: refused"):
        c.do("cutover")
    c.assert_all(c.old)
    c.do("cutover", skip_failed=True)
    rows = {row.id: row.embedding_fingerprint for row in c.rows()}
    assert rows.pop(7) is None
    assert all(mark.startswith("counting@2:") for mark in rows.values())
    # The worker says why.
    c.t.work(attempts=1)
    (entry,) = c.t.entries()
    assert (entry.state, entry.row_key) == ("dead", "[7]")
    c.do("rollback")
    c.assert_all(c.old)


def test_a_refused_text_that_is_corrected_is_embedded(changing: Make) -> None:
    def refuse(texts: list[str]) -> None:
        if "bad" in texts:
            raise EmbedderError("refused")

    c = changing(new=CountingEmbedder(version="2", fail=refuse))
    c.add("a", "bad")
    c.do("fill")
    c.edit(2, "good")
    c.do("cutover")
    c.assert_all(c.new)


def test_an_outage_is_waited_for(changing: Make) -> None:
    failures = [EmbedderUnavailable("down", retry_after=0.0) for _ in range(3)]

    def fail(texts: list[str]) -> None:
        if failures:
            raise failures.pop()

    c = changing(new=CountingEmbedder(version="2", fail=fail))
    c.add("a", "b")
    assert c.do("fill").is_ready
    assert failures == []


def test_a_filling_that_is_told_to_stop_finishes_its_batch_and_goes_on_later(changing: Make) -> None:
    c = changing()
    c.add(*(f"t{n}" for n in range(10)))
    upgrade = c.upgrade(batch_size=4, on_progress=lambda progress: upgrade.stop())
    status = c.do("fill", upgrade)
    assert (status.state, status.is_stopped, status.kept, status.is_ready) == ("filling", True, 4, False)
    assert c.do("fill", upgrade).kept == 4  # it stays told
    seen: list[Any] = []
    assert c.do("fill", c.upgrade(on_progress=seen.append)).is_ready
    assert [(p.before, p.done, p.total) for p in seen] == [(4, 10, 10)]
    assert seen[0].rate == pytest.approx(6 / seen[0].seconds)
    assert sorted(c.new.texts) == sorted(f"t{n}" for n in range(10))


def test_a_filling_stops_while_it_waits_for_an_embedder_that_is_out_of_reach(changing: Make) -> None:
    def fail(texts: list[str]) -> None:
        upgrade.stop()
        raise EmbedderUnavailable("down", retry_after=3600.0)

    c = changing(new=CountingEmbedder(version="2", fail=fail))
    c.add("a", "b")
    upgrade = c.upgrade()
    status = c.do("fill", upgrade)
    assert (status.is_stopped, status.kept) == (True, 0)
    c.new.fail = None
    status = c.do("fill")
    assert (status.ready, status.failed) == (2, 0)


def test_what_a_filling_has_to_do_is_counted_before(changing: Make) -> None:
    def refuse(texts: list[str]) -> None:
        if "bad" in texts:
            raise EmbedderError("refused")

    c = changing(new=CountingEmbedder(version="2", fail=refuse))
    c.add("a", "a", "bbb bbb bbb", None, "bad")
    estimate = c.do("estimate", count_tokens=len)
    assert (estimate.column, estimate.model) == ("Article.embedding", "counting@2")
    assert (estimate.rows, estimate.left, estimate.tokens) == (5, 4, 15)  # texts that are the same are embedded once
    assert c.do("estimate").tokens == 1 + 3 + 1
    assert c.new.calls == []
    assert c.do("status").state is None
    c.do("fill")
    c.edit(1, "cc")
    estimate = c.do("estimate", count_tokens=len)
    assert (estimate.left, estimate.tokens) == (2, 5)  # the one edited, and the one refused, which is tried again
    c.do("cutover", skip_failed=True)
    with pytest.raises(MigrationError, match="has vectors of counting@2 already"):
        c.do("estimate")
    with pytest.raises(InvalidOption, match="count_tokens= is a function"):
        c.do("estimate", count_tokens=4)


def test_progress_is_told(changing: Make) -> None:
    c = changing()
    c.add(*(f"t{n}" for n in range(10)))
    seen: list[Any] = []
    c.do("fill", c.upgrade(batch_size=4, on_progress=seen.append))
    assert [(p.column, p.done, p.total) for p in seen] == [("Article.embedding", n, 10) for n in (4, 8, 10)]


@pytest.mark.backends(is_async=False)
def test_check_knows_which_model_is_in_force(changing: Make) -> None:
    c = changing()
    c.add("a", "b")
    c.do("fill")
    assert check(c.t.sessions, models=c.base).columns[0].model == "counting@1"
    c.do("cutover")
    report = check(c.t.sessions, models=c.base)
    assert (report.is_clean, report.columns[0].model) == (True, "counting@2")

    def look(session: Any) -> Any:
        article = session.get(c.base.Article, 1)
        return is_current(session, article, "embedding"), active_embedder(session, c.base.Article.embedding)

    assert c.t.run(look) == (True, c.new)


def test_two_columns_of_one_embedder_are_changed_one_by_one(changing: Make) -> None:
    base = upgradable("worker")

    class Note(base):  # type: ignore[misc,valid-type]
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True)
        text: Mapped[str]
        embedding: Mapped[Any | None] = embedding_column(Vector(DIM), source="text", embedder="counting", when="worker")
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

    c = changing(base)
    c.add("a")
    c.t.run(lambda s: s.add(Note(id=1, text="a")))
    c.t.work()
    c.do("fill")
    c.do("cutover")
    c.edit(1, "b")
    c.t.run(lambda s: setattr(s.get(Note, 1), "text", "b"))
    c.t.work()
    c.assert_all(c.new)
    mark = c.t.untracked(lambda s: s.scalar(select(Note.embedding_fingerprint)))
    assert mark == fingerprint(Model("counting", "1"), "b")
    assert c.t.entries() == []


def test_a_third_model_follows_the_second(changing: Make) -> None:
    c = changing()
    c.add("a", "b")
    c.do("fill")
    c.do("cutover")
    third = CountingEmbedder(version="3")
    more = {"counting": Versions(c.old, c.new, third, upgrades=c.base.upgrades)}
    with pytest.raises(MigrationError, match=r"is being changed to counting@2 already.*finish\(\)"):
        c.do("fill", c.upgrade(embedders=more))
    c.do("finish")
    c.do("fill", c.upgrade(embedders=more))
    c.do("cutover", c.upgrade(embedders=more))
    c.assert_all(third)
    # A program that was not told of it must not write vectors of another model.
    with pytest.raises(InvalidOption, match=r"has vectors of counting@3.*give that one, too"):
        c.edit(1, "c")


def test_what_cannot_be_is_refused(changing: Make) -> None:
    c = changing()
    c.add("a")
    for name in ("cutover", "rollback", "finish"):
        with pytest.raises(MigrationError, match=r"there (is no change|was no cutover)"):
            c.do(name)
    c.do("fill")
    third = {"counting": Versions(c.old, c.new, CountingEmbedder(version="3"), upgrades=c.base.upgrades)}
    with pytest.raises(MigrationError, match=r"is being changed to counting@2 already.*rollback\(\)"):
        c.do("fill", c.upgrade(embedders=third))
    with pytest.raises(MigrationError, match="there was no cutover"):
        c.do("finish")
    c.do("cutover")
    c.do("cutover")
    with pytest.raises(MigrationError, match="has vectors of counting@2 already"):
        c.do("fill")
    c.do("finish")
    c.do("finish")
    with pytest.raises(MigrationError, match="there is no change"):
        c.do("rollback")


def test_arguments_that_are_none_are_refused(changing: Make) -> None:
    c = changing()
    table, one = c.base.upgrades, c.old
    with pytest.raises(InvalidOption, match="got counting@1 twice"):
        Versions(one, CountingEmbedder(), upgrades=table)
    with pytest.raises(InvalidOption, match="takes embedders, the oldest first"):
        Versions(upgrades=table)
    with pytest.raises(InvalidOption, match="upgrade_table"):
        Versions(one, upgrades=c.base.outbox)
    wide = CountingEmbedder(version="2", dim=8)
    with pytest.raises(InvalidOption, match=r"op\.change_vector_column\(\)"):
        c.upgrade(embedders={"counting": Versions(one, wide, upgrades=table)})
    with pytest.raises(InvalidOption, match="has one embedder"):
        c.upgrade(embedders={"counting": one})
    with pytest.raises(InvalidOption, match="expected an attribute"):
        Upgrade(c.t.sessions, c.base.Article.title, models=c.base)
    with pytest.raises(InvalidOption, match="lock_wait is a number of seconds"):
        c.upgrade(lock_wait=0)
    with pytest.raises(InvalidOption, match="batch_size"):
        c.upgrade(batch_size=0)
    with pytest.raises(InvalidOption, match="skip_failed must be True or False"):
        c.do("cutover", skip_failed="yes")
    only = {"counting": Versions(one, Model("counting", "2"), upgrades=table)}
    for name in ("fill", "estimate"):
        with pytest.raises(InvalidOption, match="only the name of a model"):
            c.do(name, c.upgrade(embedders=only))
    assert c.do("status", c.upgrade(embedders=only)).state is None


@pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")
def test_the_index_has_the_new_vectors_after_the_cutover(changing: Make, backend: Backend, engine: AnyEngine) -> None:
    base = upgradable()
    table = base.Article.__table__
    index = vector_index("ix_article_embedding", "embedding", metric="l2", method="hnsw")
    table.append_constraint(index)
    c = changing(base)
    c.add(*(f"text {n}" for n in range(200)))
    c.do("fill")
    query = c.new.vector("text 17")
    for step, embedder in (("cutover", c.new), ("rollback", c.old)):
        c.do(step)
        distances = {n: float(np.linalg.norm(embedder.vector(f"text {n - 1}") - query)) for n in range(1, 201)}
        expected = sorted(distances, key=lambda n: (distances[n], n))[:10]
        found = c.t.untracked(
            lambda s: s.execute(nearest(select(base.Article.id), base.Article.embedding, query)).all()
        )
        assert [distances[row[0]] for row in found] == pytest.approx([distances[n] for n in expected], abs=1e-6)
        exact = nearest(select(base.Article.id), base.Article.embedding, query, exact=True)
        assert [row[0] for row in found] == [
            row[0] for row in c.t.untracked(lambda s, stmt=exact: s.execute(stmt).all())
        ]


def test_a_row_that_cannot_be_read_keeps_no_other_one_from_the_new_model(changing: Callable[..., Changing]) -> None:
    base = picky_models()
    base.upgrades = upgrade_table(base.metadata)
    c = changing(base)
    c.add("a", "b", "c")
    c.t.work()
    c.t.backend.run_connection(c.t.engine, lambda connection: connection.execute(POISON))
    status = c.do("fill")
    assert (status.ready, status.failed, status.is_ready) == (2, 1, False)
    with pytest.raises(MigrationError, match="the row cannot be read: KeyError"):
        c.do("cutover")
    c.do("cutover", skip_failed=True)
    marks = select(base.Article.id, base.Article.embedding_fingerprint).order_by(base.Article.id)
    found = dict(c.t.untracked(lambda s: s.execute(marks).all()))
    new = model_of(c.new)
    assert found == {1: fingerprint(new, "a"), 2: None, 3: fingerprint(new, "c")}
    c.do("rollback")
    assert c.t.untracked(lambda s: s.execute(marks).all())[1][1] == fingerprint(model_of(c.old), "b")
