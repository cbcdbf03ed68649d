"""Vectors for rows that are there already, from the command line."""

from __future__ import annotations

import signal

import pytest

from tests.cli.conftest import Shop, on_terminal, wait_for

BOTH = pytest.mark.backends("psycopg", "asyncpg", "pysqlite3", "sqlite_stdlib", "aiosqlite")
SQLITE = pytest.mark.backends("pysqlite3", "sqlite_stdlib")
COLUMN = "Article.embedding"


def _fill(shop: Shop, *titles: str) -> None:
    shop.add(*titles)
    shop.sql("DELETE FROM vector_outbox")


@BOTH
def test_a_dry_run_counts_and_embeds_nothing(shop: Shop):
    _fill(shop, "apple", "pear pear")
    found = shop.json("backfill", COLUMN, "--dry-run", "--price", "1000000")
    assert (found["stale"], found["written"], found["is_complete"]) == (2, 0, True)
    assert found["cost"] == found["tokens"] > 0
    assert shop.vectors() == 0


@BOTH
def test_it_embeds_what_is_not_current(shop: Shop):
    _fill(shop, *(f"text {number}" for number in range(20)))
    found = shop.json("backfill", COLUMN, "--yes", "--batch-size", "6", "--workers", "2")
    assert (found["rows"], found["written"], found["is_complete"]) == (20, 20, True)
    assert shop.vectors() == 20
    assert "20 rows, 0 written, 20 current" in shop("backfill", COLUMN, "--yes").stdout


@BOTH
def test_without_agreement_it_is_refused_where_nobody_can_be_asked(shop: Shop):
    _fill(shop, "apple", "pear")
    error = shop.json("backfill", COLUMN, code=2)["error"]
    assert error.startswith("2 rows of Article.embedding will be embedded by letters@1, about")
    assert "give --yes" in error
    assert shop.vectors() == 0
    shop("backfill", COLUMN, "--yes")
    assert shop("backfill", COLUMN).exit_code == 0  # nothing to be agreed to


@BOTH
def test_refused_rows_are_told_and_the_others_embedded(shop: Shop):
    _fill(shop, "apple", "poison", "pear")
    found = shop.json("backfill", COLUMN, "--yes", code=1)
    assert (found["written"], found["failed"]) == (2, 1)
    assert list(found["failures"]) == ["[2]"]


@SQLITE
@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["Article.title"],
        ["nothing"],
        [COLUMN, "--batch-size", "0"],
        [COLUMN, "--batch-size", "-1"],
        [COLUMN, "--batch-size", "1000000000"],
        [COLUMN, "--workers", "0"],
        [COLUMN, "--price", "-1"],
        [COLUMN, "--price", "nan"],
    ],
    ids=" ".join,
)
def test_options_out_of_their_range_are_refused(shop: Shop, arguments: list[str]):
    _fill(shop, "apple")
    assert shop("backfill", "--yes", *arguments).exit_code == 2
    assert shop.vectors() == 0


@SQLITE
@pytest.mark.parametrize(("answer", "code", "vectors"), [("y\n", 0, 2), ("n\n", 2, 0)])
def test_on_a_terminal_it_is_asked_about_and_has_a_bar(shop: Shop, answer: str, code: int, vectors: int):
    _fill(shop, "apple", "pear")
    ended, shown = on_terminal(["backfill", COLUMN, "--price", "5"], shop, answer)
    assert "2 rows of Article.embedding will be embedded by letters@1" in shown
    assert "cost about 0.00" in shown
    assert (ended, shop.vectors()) == (code, vectors)
    bar = shown.partition("[y/N]")[2]
    assert ("2/2" in bar and "rows/s" in bar) == (code == 0)


@SQLITE
def test_a_backfill_that_is_stopped_finishes_what_it_has_and_goes_on_later(shop: Shop):
    _fill(shop, "slow one", "two", "three")
    process = shop.start("backfill", COLUMN, "--yes", "--batch-size", "1")
    wait_for(process.stderr, "embedding begins")
    process.send_signal(signal.SIGINT)
    (shop.directory / "go").touch()
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert shop.vectors() >= 1
    assert shop("backfill", COLUMN, "--yes").exit_code == 0
    assert shop.vectors() == 3


@SQLITE
def test_two_backfills_at_once_do_no_harm(shop: Shop):
    _fill(shop, *(f"text {number}" for number in range(30)))
    both = [shop.start("backfill", COLUMN, "--yes", "--batch-size", "3") for _ in range(2)]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert shop.vectors() == 30


@SQLITE
def test_lines_tell_how_far_it_is_where_there_is_no_terminal(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sqla_vector.cli.bar.EVERY", 0.0)
    _fill(shop, "apple", "pear")
    shown = shop("backfill", COLUMN, "--yes", "--batch-size", "1")
    assert "embedding Article.embedding: 1 of 2 rows, " in shown.stderr
    assert "rows/s" in shown.stderr
    assert shown.stdout.startswith("Article.embedding: 2 rows, 2 written")
