"""Limits that workers of several processes keep to together."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import MetaData, Table, insert, select

from sqla_vector.dialects.clock import database_now
from sqla_vector.exc import EmbedderUnavailable, InvalidIdentifier, InvalidOption
from sqla_vector.tracking import Backfill, RateLimit, check, limits_table
from sqla_vector.tracking.limits import Limits
from sqla_vector.tracking.steps import Pause, Transaction
from tests.docs.pages import ROOT
from tests.tracking import limited
from tests.tracking.conftest import Tracked
from tests.tracking.models import CountingEmbedder
from tests.tracking.test_backfill import go, put_rows
from tests.tracking.test_check import run_check

Make = Callable[..., Tracked]

NUMBERS = st.floats(0.1, 1000, allow_nan=False)


@given(
    limit=NUMBERS,
    per=NUMBERS,
    burst=st.floats(0.01, 1),
    calls=st.lists(st.tuples(st.floats(0, 100), st.integers(1, 2000)), max_size=40),
)
def test_no_time_has_more_than_the_bucket_and_what_flows_in(
    limit: float, per: float, burst: float, calls: list[tuple[float, int]]
) -> None:
    rate = RateLimit(texts=limit, per=per, burst=burst)
    full = rate.capacities["texts"]
    levels: dict[str, float] = {}
    now = last = 0.0
    taken: list[tuple[float, float]] = []
    for pause, number in calls:
        now += pause
        need = {"requests": 1.0, "texts": float(number), "tokens": 0.0}
        answer = rate.take(levels, now - last, need)
        if isinstance(answer, float):
            # Whoever waits as long as it says is served.
            assert answer > 0
            now += answer
            answer = rate.take(levels, now - last, need)
        assert isinstance(answer, dict), answer
        levels, last = answer, now
        taken.append((now, number))
    for begin in range(len(taken)):
        for end in range(begin, len(taken)):
            seconds = taken[end][0] - taken[begin][0]
            used = sum(number for _, number in taken[begin : end + 1])
            # A call that is larger than the bucket waits for a full one, and the next ones wait for what it took.
            largest = max(full, taken[end][1])
            assert used <= (largest + seconds * limit / per) * (1 + 1e-6) + 1e-6


@given(
    texts=st.lists(st.text(max_size=60), min_size=1, max_size=30),
    requests=st.none() | NUMBERS,
    most=NUMBERS,
    tokens=NUMBERS,
)
def test_a_part_fits_the_buckets_and_one_more_text_would_not(
    texts: list[str], requests: float | None, most: float, tokens: float
) -> None:
    limit = RateLimit(requests=requests, texts=most, tokens=tokens, count_tokens=len)
    number = limit.fitting(texts)
    assert 1 <= number <= len(texts)

    def fits(count: int) -> bool:
        need = limit.need_of(texts[:count])
        return all(need[kind] <= full for kind, full in limit.capacities.items())

    assert number == 1 or fits(number)
    assert number == len(texts) or not fits(number + 1)


def test_a_bucket_that_somebody_used_tomorrow_is_no_reason_to_wait_for_a_day() -> None:
    limit = RateLimit(requests=60)
    # The clock was set back.
    assert limit.take({"requests": 5.0}, -86400.0, limit.need_of(["a"])) == {"requests": 4.0}
    # The limit was lowered, or another kind added.
    assert limit.take({"requests": 1000.0, "texts": None}, 0.0, limit.need_of(["a"])) == {"requests": 59.0}


def test_tokens_that_cannot_be_counted_are_estimated() -> None:
    def count(text: str) -> int:
        raise ValueError(text)

    assert RateLimit(tokens=10, count_tokens=count).need_of(["12345", "1"])["tokens"] == 3


@pytest.mark.parametrize("name", ["requests", "texts", "tokens", "per", "burst"])
@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), True, "60"])
def test_rates_that_are_none_are_refused(name: str, bad: Any) -> None:
    with pytest.raises(InvalidOption, match=f"RateLimit: {name} must be a number over 0"):
        RateLimit(**{"requests": 1, name: bad})


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidOption, match="limits nothing"):
        RateLimit(per=1)
    with pytest.raises(InvalidOption, match="burst must be a number over 0 up to 1"):
        RateLimit(requests=1, burst=1.5)
    with pytest.raises(InvalidOption, match="count_tokens= is a function"):
        RateLimit(tokens=1, count_tokens=4)  # type: ignore[arg-type]


def test_limits_that_contradict_themselves_are_refused() -> None:
    table = limits_table(MetaData())
    limit = RateLimit(requests=1)
    for limits in ([limit], {"minilm": 60}, "minilm", limit):
        with pytest.raises(InvalidOption, match="limits= is a dict"):
            Limits(limits, table, ["minilm"])  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="names 'other', which is no embedder; there are minilm"):
        Limits({"other": limit}, table, ["minilm"])
    for wrong in (None, "vector_limits", Table("vector_limits", MetaData())):
        with pytest.raises(InvalidOption, match="limits= needs limits_table="):
            Limits({"minilm": limit}, wrong, ["minilm"])  # type: ignore[arg-type]
    for name in ("a b;", "", "x" * 64):
        with pytest.raises(InvalidIdentifier):
            limits_table(MetaData(), name)


def test_whoever_waits_has_no_transaction() -> None:
    limits = Limits({"minilm": RateLimit(requests=1)}, limits_table(MetaData()), ["minilm"])
    steps = limits.share("minilm", ["a"])
    assert isinstance(next(steps), Transaction)
    wait = steps.send(3.0)
    assert isinstance(wait, Pause)
    assert 3.0 <= wait.seconds < 4.0
    assert isinstance(steps.send(False), Transaction)
    with pytest.raises(StopIteration) as finished:
        steps.send(0.0)
    assert finished.value.value == 1
    # A program that is to stop is not kept waiting.
    steps = limits.share("minilm", ["a"])
    next(steps)
    steps.send(3.0)
    with pytest.raises(EmbedderUnavailable, match="stopped while waiting"):
        steps.send(True)


def test_whoever_is_served_too_late_again_and_again_asks_for_less() -> None:
    limits = Limits({"minilm": RateLimit(texts=8)}, limits_table(MetaData()), ["minilm"])
    steps = limits.share("minilm", ["a"] * 20)
    next(steps)
    numbers = []
    for _ in range(5):
        steps.send(1.0)
        step = steps.send(False)
        assert isinstance(step, Transaction)
        numbers.append(step.function.keywords["need"]["texts"])  # type: ignore[attr-defined]
    assert numbers == [8.0, 4.0, 2.0, 1.0, 1.0]


def limits_of(t: Tracked, limit: RateLimit) -> dict[str, Any]:
    """Return the options of a worker or a backfill."""
    return {"limits": {"counting": limit}, "limits_table": t.base.limits}


def test_a_batch_is_split_into_what_the_bucket_holds(tracked: Make) -> None:
    t = tracked(limited.models(), CountingEmbedder())
    t.run(lambda s: s.add_all(t.base.Article(title=f"t{n}") for n in range(25)))
    t.work(**limits_of(t, RateLimit(texts=10, per=0.1)))
    assert [len(call) for call in t.embedder.calls] == [10, 10, 5]
    assert run_check(t).is_clean
    put_rows_again(t, 7)
    filling = Backfill(
        t.sessions, t.base.Article.embedding, models=t.base, **limits_of(t, RateLimit(tokens=10, per=0.1))
    )
    t.embedder.calls.clear()
    assert go(t, filling).written == 7
    assert [len(call) for call in t.embedder.calls] == [3, 3, 1]
    rows = t.untracked(lambda s: s.execute(select(t.base.limits)).all())
    assert [(row.name, row.requests) for row in rows] == [("counting", None)]


def put_rows_again(t: Tracked, count: int) -> None:
    """Put rows in place of those that are there, each of three tokens."""
    t.untracked(lambda s: s.execute(t.base.Article.__table__.delete()))
    put_rows(t, [{"title": f"{n:010}"} for n in range(count)])


def test_a_worker_without_a_share_gives_its_entries_back(tracked: Make) -> None:
    t = tracked(limited.models(), CountingEmbedder())
    t.run(lambda s: s.add_all(t.base.Article(title=f"t{n}") for n in range(6)))
    limit = RateLimit(texts=4, per=1_000_000)
    # What was embedded with the share that there was is written.
    outcome = t.once(t.worker(attempts=1, **limits_of(t, limit)))
    assert (outcome.entries, outcome.written, outcome.postponed, outcome.dead) == (6, 4, 2, 0)
    assert [(entry.state, entry.attempts, entry.claimed_by) for entry in t.entries()] == [("pending", 0, None)] * 2
    # Other processes know that the bucket is empty, and one without limits goes on.
    other = t.worker(**limits_of(t, limit))
    while (outcome := t.once(other)).entries == 0:
        pass  # they are due in a moment
    assert outcome.postponed == outcome.entries
    assert t.work().written == 2
    assert [len(call) for call in t.embedder.calls] == [4, 2]


def test_a_worker_that_waits_for_a_share_stops_when_it_is_told_to(tracked: Make) -> None:
    t = tracked(limited.models(), CountingEmbedder())
    t.run(lambda s: s.add_all(t.base.Article(title=f"t{n}") for n in range(6)))
    worker: Any = None

    def count(text: str) -> int:
        if t.embedder.calls:
            worker.stop()
        return 1

    # The rest of the share comes in a minute.
    worker = t.worker(**limits_of(t, RateLimit(tokens=4, per=120, count_tokens=count)))
    outcome = t.backend.wait(worker.arun()) if worker.is_async else worker.run()
    assert (outcome.written, outcome.postponed) == (4, 2)
    assert [entry.claimed_by for entry in t.entries()] == [None, None]


def test_a_backfill_that_waits_for_a_share_stops_when_it_is_told_to(tracked: Make) -> None:
    t = tracked(limited.models(), CountingEmbedder())
    put_rows(t, [{"title": f"t{n}"} for n in range(12)])
    filling: Any = None

    def count(text: str) -> int:
        if t.embedder.calls:
            filling.stop()
        return 1

    limit = RateLimit(tokens=4, per=120, count_tokens=count)
    options = limits_of(t, limit)
    filling = Backfill(t.sessions, t.base.Article.embedding, models=t.base, batch_size=4, **options)
    report = go(t, filling)
    assert (report.written, report.is_complete, report.after) == (4, False, (4,))


def test_the_table_is_an_ordinary_one_for_alembic(tracked: Make) -> None:
    t = tracked(limited.models(), CountingEmbedder())

    def differences(connection: Any) -> list[Any]:
        options = {
            "include_object": lambda item, name, type_, reflected, to: type_ != "table" or name == "vector_limits"
        }
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), t.base.metadata))

    assert t.backend.run_connection(t.engine, differences) == []
    t.backend.run_connection(t.engine, t.base.limits.drop)
    found = t.backend.run_connection(t.engine, differences)
    assert [(name, table.name) for name, table in found] == [("add_table", "vector_limits")]


@pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")
def test_processes_stay_below_a_limit_together(tracked: Make) -> None:
    base = limited.models()
    t = tracked(base, CountingEmbedder())
    t.run(lambda s: s.add_all(base.Article(id=n, title=f"t{n}") for n in range(1, 91)))
    put_more(t, range(91, 121))
    url = t.backend.url.render_as_string(hide_password=False)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.tracking.limited", url, role],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for role in ("worker", "worker", "backfill")
    ]
    try:
        assert [process.stdout.readline() for process in processes if process.stdout] == ["ready\n"] * 3
        began = t.untracked(lambda s: s.scalar(select(database_now())))
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        codes = [process.wait(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert codes == [0, 0, 0]
    calls = t.untracked(lambda s: s.execute(select(base.calls).order_by(base.calls.c.at)).all())
    texts = 0
    for call in calls:
        # No more calls were made up to any moment than shares had been given out.
        texts += call.texts
        assert texts <= limited.PER_SECOND * (limited.BURST + call.at - began) + 1e-3
    assert texts >= 120
    report = check(t.sessions, models=base)
    assert (report.columns[0].current, report.columns[0].rows) == (120, 120)


def put_more(t: Tracked, ids: Any) -> None:
    """Write rows that nobody listens to."""
    values = [{"id": number, "title": f"t{number}", "views": 0} for number in ids]
    t.untracked(lambda s: s.execute(insert(t.base.Article), values))
