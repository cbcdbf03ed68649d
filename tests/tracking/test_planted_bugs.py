"""Bugs that are planted, one by one: what looks for lost rows finds each of them.

A situation is a short story that ends well; with the bug planted it must not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from sqla_vector.embedding import embedded_columns
from sqla_vector.exc import EmbedderError, EmbedderUnavailable
from sqla_vector.tracking import calls, jobs, listener, outbox, worker
from sqla_vector.tracking.listener import Listener
from tests.support.invariant import Finding, find
from tests.support.points import Boom, PointedEmbedder, Points
from tests.tracking.conftest import Tracked
from tests.tracking.models import article_models

pytestmark = pytest.mark.long

Make = Callable[..., Tracked]
Patch = pytest.MonkeyPatch
Situation = Callable[[Make], None]
Bug = Callable[[Patch], None]

PATIENCE = 30.0
"""Seconds after which the entries that are left are left for good."""


def scene(tracked: Make, when: str = "worker", *, related: bool = True, **options: Any) -> Tracked:
    """Return a database with two authors and four articles that are current."""
    t = tracked(article_models(when, related=related), PointedEmbedder(), **options)
    t.run(lambda s: s.add_all(t.base.Author(id=n, name=f"author {n}") for n in (1, 2)))
    t.run(lambda s: s.add_all(t.base.Article(id=n, title=f"title {n}", author_id=1 + n % 2) for n in range(1, 5)))
    t.work()
    t.embedder.calls.clear()
    return t


def a_worker(t: Tracked) -> worker.Worker:
    return t.worker(lease=0.3, timeout=None, attempts=3, max_backoff=0.0)


def settle(t: Tracked, *, must_be_current: bool = True) -> Finding:
    """Work until nothing is pending, and look for what was lost."""
    until, one = time.monotonic() + PATIENCE, a_worker(t)
    while t.entries("pending") and time.monotonic() < until:
        t.once(one)
    related = "author.name" in embedded_columns(t.base.Article)[0].spec.source.paths
    found = find(t.backend.url, related=related, must_be_current=must_be_current).check()
    assert found.pending == 0
    return found


def title(t: Tracked, id_: int, value: str | None) -> None:
    """Change an article in a transaction of a tracked session."""
    t.run(lambda s: setattr(s.get_one(t.base.Article, id_), "title", value))


def while_embedding(t: Tracked, function: Callable[[], None]) -> None:
    """Have something happen while the next text is embedded."""

    def once(texts: list[str]) -> None:
        t.embedder.fail = None
        function()

    t.embedder.fail = once


# Situations.


def everything_is_changed(tracked: Make) -> None:
    t = scene(tracked)
    title(t, 1, "edited")
    settle(t)
    t.run(lambda s: setattr(s.get_one(t.base.Article, 2), "author", None))
    settle(t)
    title(t, 2, None)
    t.run(lambda s: s.add(t.base.Article(id=5, title="new", author_id=2)))
    settle(t)
    t.run(lambda s: setattr(s.get_one(t.base.Author, 1), "name", "renamed"))
    settle(t)
    t.run(lambda s: setattr(s.get_one(t.base.Article, 3), "author", None))
    t.run(lambda s: s.delete(s.get_one(t.base.Article, 4)))
    t.run(lambda s: s.add_all(t.base.Article(id=n, title=f"one of {n}", body="body") for n in range(10, 20)))
    settle(t)


def a_worker_is_stopped_anywhere(tracked: Make) -> None:
    t = scene(tracked)
    points = t.embedder.points = Points(t.engine)
    number, has_fired = 0, True
    while has_fired:
        number += 1
        title(t, 1, f"edited {number}")
        with points.watched(number):
            with suppress(Boom):
                t.once(a_worker(t))
            has_fired = points.has_fired
        settle(t)


def a_program_rolls_back(tracked: Make) -> None:
    t = scene(tracked)

    def change(session: Session) -> None:
        session.add(t.base.Article(id=7, title="not to be"))
        session.flush()
        raise Boom

    with pytest.raises(Boom):
        t.run(change)
    find(t.backend.url, related=True).check()


def a_worker_comes_before_the_commit(tracked: Make) -> None:
    t = scene(tracked, related=False)
    with t.sessions() as session:
        session.get_one(t.base.Article, 1).title = "edited"
        session.flush()
        t.once(a_worker(t))
        session.commit()
    settle(t)


def another_worker_overtakes(tracked: Make) -> None:
    t = scene(tracked)

    def edit_and_embed() -> None:
        title(t, 1, "second")
        t.once(a_worker(t))

    title(t, 1, "first")
    while_embedding(t, edit_and_embed)
    t.once(a_worker(t))
    settle(t)


def another_worker_looks_meanwhile(tracked: Make) -> None:
    t = scene(tracked)
    title(t, 1, "edited")
    while_embedding(t, lambda: t.once(a_worker(t)))
    t.once(t.worker(lease=60.0, timeout=None))
    settle(t)
    assert len(t.embedder.texts) == 1


def a_row_of_the_batch_is_edited(tracked: Make) -> None:
    t = scene(tracked, related=False)
    with t.backend.make_engine().begin() as connection:
        outbox.put(connection, t.base.outbox, [("article", "[2]")])  # it is current
    title(t, 1, "edited")
    while_embedding(t, lambda: title(t, 2, "edited, too"))
    t.once(a_worker(t))
    settle(t)


def a_row_is_locked(tracked: Make) -> None:
    t = scene(tracked)
    title(t, 1, "edited")
    with t.engine.connect() as connection:  # type: ignore[union-attr]
        connection.execute(update(t.base.Article).where(t.base.Article.id == 1).values(views=7))
        t.once(a_worker(t))
        connection.commit()
    settle(t)


def an_author_is_renamed_while_an_article_is_added(tracked: Make) -> None:
    t = scene(tracked)
    with t.sessions() as session:
        session.get_one(t.base.Author, 1).name = "renamed"
        session.flush()  # there is no article 5 yet
        t.run(lambda s: s.add(t.base.Article(id=5, title="new", author_id=1)))
        t.once(a_worker(t))
        session.commit()
    settle(t)


def a_text_is_refused(tracked: Make) -> None:
    def refuse(texts: list[str]) -> None:
        if any("bad" in text for text in texts):
            raise EmbedderError("refused")

    t = scene(tracked)
    t.embedder.fail = refuse
    for id_, value in ((1, "good"), (2, "bad"), (3, "fine")):
        title(t, id_, value)
    found = settle(t, must_be_current=False)
    assert (found.current, found.dead) == (3, 1)
    title(t, 2, "better")
    assert settle(t).dead == 0


def two_workers_fail(tracked: Make) -> None:
    t = scene(tracked)

    def refuse(texts: list[str]) -> None:
        raise EmbedderError("refused")

    def slowly(texts: list[str]) -> None:
        # The lease passes, and another worker takes the entry, and a later one of the same row, and fails at both.
        with t.backend.make_engine().begin() as connection:
            # Of the same text: a failure of another one would be forgotten.
            outbox.put(connection, t.base.outbox, [("article", "[1]")])
            connection.execute(update(t.base.outbox).values(available_at=0.0))
        t.embedder.fail = refuse
        t.once(t.worker(attempts=1, timeout=None))
        refuse(texts)

    title(t, 1, "bad")
    t.embedder.fail = slowly
    t.once(t.worker(attempts=1, timeout=None))
    assert settle(t, must_be_current=False).dead == 1


def a_call_fails_once(tracked: Make) -> None:
    def fail() -> None:
        raise EmbedderError("try again")

    t = scene(tracked)
    title(t, 1, "edited")
    while_embedding(t, fail)
    t.once(a_worker(t))
    assert settle(t).dead == 0


def an_embedder_is_out_of_reach(tracked: Make) -> None:
    def fail(texts: list[str]) -> None:
        raise EmbedderUnavailable("down", retry_after=0.0)

    t = scene(tracked)
    title(t, 1, "edited")
    t.embedder.fail = fail
    one = t.worker(timeout=None, attempts=1, max_backoff=0.0)
    for _ in range(3):
        t.once(one)
    t.embedder.fail = None
    assert settle(t).dead == 0


def a_flush_is_deferred(tracked: Make) -> None:
    def fail() -> None:
        raise EmbedderUnavailable("down")

    t = scene(tracked, "flush", on_outage="defer")
    while_embedding(t, fail)
    t.run(lambda s: s.add(t.base.Article(id=5, title="new")))
    while_embedding(t, fail)
    title(t, 1, "edited")
    settle(t)


def two_programs_edit_parts(tracked: Make) -> None:
    t = tracked(article_models("flush"), PointedEmbedder())
    t.run(lambda s: s.add(t.base.Article(id=1, title="a", body="b")))

    def change(session: Session) -> None:
        article = session.get_one(t.base.Article, 1)
        session.execute(update(t.base.Article).values(body="other"), execution_options={"synchronize_session": False})
        article.title = "c"

    t.run(change)
    find(t.backend.url, must_be_current=True).check()


# Bugs.


def write_in_a_transaction_of_its_own(patch: Patch, place: Any, name: str) -> None:
    """Have a function of the outbox commit at once, whatever becomes of the rest."""
    function = getattr(place, name)

    def planted(connection: Any, *rest: Any, **options: Any) -> Any:
        with connection.engine.begin() as other:
            return function(other, *rest, **options)

    patch.setattr(place, name, planted)


def acknowledged_before_the_write(patch: Patch) -> None:
    take = worker.take

    def planted(connection: Any, table: Any, *rest: Any, **options: Any) -> Any:
        batch = take(connection, table, *rest, **options)
        outbox.acknowledge(connection, table, batch.token, [id_ for row in batch.rows.values() for id_ in row.ids])
        return batch

    patch.setattr(worker, "take", planted)


def entries_in_another_transaction(patch: Patch) -> None:
    write_in_a_transaction_of_its_own(patch, listener, "put")


def text_not_looked_at_again(patch: Patch) -> None:
    def planted(connection: Any, batch: Any, target: Any, column: Any, batch_jobs: Any, embedders: Any) -> Any:
        rows = [
            jobs.Write(job.state.key, batch.vectors.get((column.spec.embedder, job.state.text)), job.wanted)
            for job in batch_jobs
        ]
        jobs.write(connection, target, column, rows)
        return {(target.entity, row.key) for row in rows}

    patch.setattr(jobs, "_write_column", planted)


def fingerprint_of_now_with_the_vector_of_before(patch: Patch) -> None:
    def planted(connection: Any, batch: Any, target: Any, column: Any, batch_jobs: Any, embedders: Any) -> Any:
        now = jobs.read(connection, target, column, [job.state.key for job in batch_jobs])
        model = embedders.model(column)
        rows = []
        for job in batch_jobs:
            vector = batch.vectors.get((column.spec.embedder, job.state.text))
            if job.state.key in now:
                rows.append(jobs.Write(job.state.key, vector, now[job.state.key].wanted(model)))
        jobs.write(connection, target, column, rows)
        return {(target.entity, row.key) for row in rows}

    patch.setattr(jobs, "_write_column", planted)


def leases_that_nobody_respects(patch: Patch) -> None:
    claim = jobs.claim
    patch.setattr(jobs, "claim", lambda c, table, token, limit, lease, *rest: claim(c, table, token, limit, 0.0, *rest))


def leases_that_never_end(patch: Patch) -> None:
    claim = jobs.claim
    patch.setattr(jobs, "claim", lambda c, table, token, limit, lease, *rest: claim(c, table, token, limit, 1e6, *rest))
    patch.setitem(globals(), "PATIENCE", 2.0)


def newer_entries_acknowledged_too(patch: Patch) -> None:
    def planted(connection: Any, table: Any, token: str, ids: Any) -> None:
        c = table.c
        names = connection.execute(table.select().where(c.id.in_(ids))).all()
        for entry in names:
            connection.execute(table.delete().where(c.entity == entry.entity, c.row_key == entry.row_key))

    patch.setattr(jobs, "acknowledge", planted)


def acknowledged_in_place_of_postponed(patch: Patch) -> None:
    patch.setattr(
        jobs, "postpone", lambda connection, table, token, ids, seconds: jobs.acknowledge(connection, table, token, ids)
    )


def planted_bury(patch: Patch, **changes: Any) -> None:
    """Have a failure written down otherwise."""
    bury = jobs.bury

    def planted(connection: Any, table: Any, token: str, entry: Any, reason: str, seconds: float | None) -> Any:
        given = {"reason": reason, "seconds": seconds, **changes}
        return bury(connection, table, token, entry, given["reason"], given["seconds"])

    patch.setattr(jobs, "bury", planted)


def failures_acknowledged(patch: Patch) -> None:
    patch.setattr(jobs, "bury", lambda c, table, token, entry, *rest: jobs.acknowledge(c, table, token, [entry.id]))


def dead_without_a_reason(patch: Patch) -> None:
    planted_bury(patch, reason="")


def never_dead(patch: Patch) -> None:
    planted_bury(patch, seconds=0.0)
    patch.setitem(globals(), "PATIENCE", 2.0)


def dead_at_once(patch: Patch) -> None:
    planted_bury(patch, seconds=None)


def dead_for_good(patch: Patch) -> None:
    patch.setattr(jobs, "_forget_dead", lambda *ignored: None)


def other_dead_entries_deleted_by_one_who_lost_the_lease(patch: Patch) -> None:
    def planted(connection: Any, table: Any, token: str, entry: Any, reason: str, seconds: float | None) -> None:
        c = table.c
        state = {"state": "dead", "reason": reason, "claimed_by": None}
        connection.execute(table.update().where(c.id == entry.id, c.claimed_by == token).values(state))
        same = (c.entity == entry.entity, c.row_key == entry.row_key, c.state == "dead", c.id != entry.id)
        connection.execute(table.delete().where(*same))

    patch.setattr(jobs, "bury", planted)


def an_outage_counts_as_a_failure(patch: Patch) -> None:
    class Never(Exception): ...

    patch.setattr(calls, "EmbedderUnavailable", Never)


def deferred_rows_forgotten(patch: Patch) -> None:
    embed = Listener._embed

    def planted(self: Listener, flush: Any, wishes: Any) -> None:
        embed(self, flush, wishes)
        flush.deferred.clear()

    patch.setattr(Listener, "_embed", planted)
    patch.setattr(Listener, "_look_again", lambda *ignored, **options: None)
    patch.setattr(listener, "_to_be_noted", lambda *ignored, **options: [])


def edits_not_noticed(patch: Patch) -> None:
    noted = listener._to_be_noted
    patch.setattr(
        listener, "_to_be_noted", lambda flush, plan, state: [] if state.key is not None else noted(flush, plan, state)
    )


def related_rows_not_watched(patch: Patch) -> None:
    patch.setattr("sqla_vector.tracking.related.Dependant.keys_of", lambda *ignored: set())


def related_rows_not_locked(patch: Patch) -> None:
    patch.setattr(jobs, "lock_related", lambda connection, target, column, keys: set(keys))


def partial_edits_not_verified(patch: Patch) -> None:
    patch.setattr(Listener, "_look_again", lambda *ignored, **options: None)


def locked_rows_taken_for_done(patch: Patch) -> None:
    write_column = jobs._write_column

    def planted(connection: Any, batch: Any, *rest: Any) -> Any:
        written = write_column(connection, batch, *rest)
        for row in batch.rows.values():
            row.is_late = False
        return written

    patch.setattr(jobs, "_write_column", planted)


def vectors_mixed_up(patch: Patch) -> None:
    write = jobs.write

    def planted(connection: Any, target: Any, column: Any, rows: Any) -> None:
        vectors = [row.vector for row in rows]
        mixed = [replace(row, vector=vector) for row, vector in zip(rows, [*vectors[1:], *vectors[:1]], strict=True)]
        write(connection, target, column, mixed)

    patch.setattr(jobs, "write", planted)


def vectors_kept_without_a_text(patch: Patch) -> None:
    write = jobs.write
    patch.setattr(
        jobs, "write", lambda c, target, column, rows: write(c, target, column, [r for r in rows if r.fingerprint])
    )


ANYWHERE: tuple[tuple[Bug, Situation], ...] = (
    (acknowledged_before_the_write, a_worker_is_stopped_anywhere),
    (leases_that_never_end, a_worker_is_stopped_anywhere),
    (text_not_looked_at_again, another_worker_overtakes),
    (fingerprint_of_now_with_the_vector_of_before, another_worker_overtakes),
    (leases_that_nobody_respects, another_worker_looks_meanwhile),
    (newer_entries_acknowledged_too, a_row_of_the_batch_is_edited),
    (acknowledged_in_place_of_postponed, an_embedder_is_out_of_reach),
    (an_outage_counts_as_a_failure, an_embedder_is_out_of_reach),
    (failures_acknowledged, a_call_fails_once),
    (dead_at_once, a_call_fails_once),
    (dead_without_a_reason, a_text_is_refused),
    (never_dead, a_text_is_refused),
    (dead_for_good, a_text_is_refused),
    (other_dead_entries_deleted_by_one_who_lost_the_lease, two_workers_fail),
    (deferred_rows_forgotten, a_flush_is_deferred),
    (edits_not_noticed, everything_is_changed),
    (related_rows_not_watched, everything_is_changed),
    (vectors_mixed_up, everything_is_changed),
    (vectors_kept_without_a_text, everything_is_changed),
    (partial_edits_not_verified, two_programs_edit_parts),
)

# Two transactions that write at a time, which SQLite has not.
TWO_WRITERS: tuple[tuple[Bug, Situation], ...] = (
    (entries_in_another_transaction, a_program_rolls_back),
    (entries_in_another_transaction, a_worker_comes_before_the_commit),
    (locked_rows_taken_for_done, a_row_is_locked),
    (related_rows_not_locked, an_author_is_renamed_while_an_article_is_added),
)


def _situations(pairs: tuple[tuple[Bug, Situation], ...]) -> list[Any]:
    found = dict.fromkeys(situation for _, situation in pairs)
    return [pytest.param(situation, id=situation.__name__) for situation in found]


def _bugs(pairs: tuple[tuple[Bug, Situation], ...]) -> list[Any]:
    return [pytest.param(bug, found, id=f"{bug.__name__}-{found.__name__}") for bug, found in pairs]


@pytest.mark.parametrize("situation", _situations(ANYWHERE))
@pytest.mark.backends("psycopg", "pysqlite3")
def test_every_situation_ends_well(tracked: Make, situation: Situation) -> None:
    situation(tracked)


@pytest.mark.parametrize("situation", _situations(TWO_WRITERS))
@pytest.mark.backends("psycopg", "psycopg2")
def test_every_situation_of_two_writers_ends_well(tracked: Make, situation: Situation) -> None:
    situation(tracked)


@pytest.mark.parametrize(("bug", "situation"), _bugs(ANYWHERE))
@pytest.mark.backends("psycopg", "pysqlite3")
def test_a_planted_bug_is_found(tracked: Make, monkeypatch: Patch, bug: Bug, situation: Situation) -> None:
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        situation(tracked)


@pytest.mark.parametrize(("bug", "situation"), _bugs(TWO_WRITERS))
@pytest.mark.backends("psycopg")
def test_a_planted_bug_of_two_writers_is_found(
    tracked: Make, monkeypatch: Patch, bug: Bug, situation: Situation
) -> None:
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        situation(tracked)
