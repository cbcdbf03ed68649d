"""Another model for a column, from the command line."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from tests.cli.conftest import Shop, on_terminal, wait_for
from tests.support.backends import Backend

BOTH = pytest.mark.backends("psycopg", "asyncpg", "pysqlite3", "sqlite_stdlib", "aiosqlite")
SQLITE = pytest.mark.backends("pysqlite3", "sqlite_stdlib")
COLUMN = "Article.embedding"


@pytest.fixture
def shop(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """The application, which knows the next model too."""
    monkeypatch.setenv("SHOP_NEXT", "2")
    found = Shop(tmp_path, backend, monkeypatch)
    yield found
    found.close()


def model(shop: Shop, command: str, *options: str, code: int = 0) -> Any:
    """Run a command with --json, and return what it printed."""
    return shop.json("model", command, COLUMN, *options, code=code)


def begin(shop: Shop, *titles: str | None) -> None:
    """Add articles, with their vectors by the first model."""
    shop.add(*titles)
    assert shop("worker", "--until-empty").exit_code == 0


def rows(shop: Shop) -> dict[int, tuple[str | None, float | None]]:
    """Return the model and a number of each article's vector: 1 of the first model, 2 of the next one."""
    article = shop.models.Article.__table__
    stmt = select(article.c.id, article.c.embedding, article.c.embedding_fingerprint)
    found = shop.connection(lambda c: c.execute(stmt).all())
    return {
        row.id: (row.embedding_fingerprint.partition(":")[0], float(row.embedding[3]))
        if row.embedding is not None
        else (row.embedding_fingerprint, None)
        for row in found
    }


OLD, NEW, NONE = ("letters@1", 1.0), ("letters@2", 2.0), (None, None)


@BOTH
def test_a_model_is_changed_while_rows_are_edited_and_back_and_for_good(shop: Shop):
    begin(shop, "apple", "pear", "plum", None)
    found = model(shop, "status", code=1)
    assert (found["state"], found["active"], found["wanted"], found["is_ready"]) == (
        None,
        "letters@1",
        "letters@2",
        False,
    )

    found = model(shop, "upgrade", "--yes", "--batch-size", "2")
    assert (found["state"], found["rows"], found["ready"], found["is_ready"]) == ("filling", 4, 4, True)
    assert model(shop, "status")["is_ready"] is True
    assert rows(shop) == {1: OLD, 2: OLD, 3: OLD, 4: NONE}

    shop.sql("UPDATE article SET title = 'apples' WHERE id = 1")
    shop.add("quince")
    assert shop("worker", "--until-empty").exit_code == 0
    assert rows(shop) == {1: OLD, 2: OLD, 3: OLD, 4: NONE, 5: OLD}
    found = model(shop, "status", code=1)
    assert (found["ready"], found["missing"], found["stale"], found["left"], found["is_ready"]) == (3, 1, 1, 2, False)
    error = model(shop, "cutover", "--yes", code=1)["error"]
    assert error.startswith("Article.embedding: 2 of 5 rows have no vector of their text by letters@2")
    assert rows(shop)[2] == OLD

    assert model(shop, "upgrade", "--yes")["is_ready"] is True
    found = model(shop, "cutover", "--yes")
    assert (found["state"], found["active"], found["kept"], found["is_in_force"]) == ("cut over", "letters@2", 4, True)
    assert rows(shop) == {1: NEW, 2: NEW, 3: NEW, 4: NONE, 5: NEW}
    assert shop("check").exit_code == 0
    assert model(shop, "status")["is_in_force"] is True
    assert model(shop, "cutover")["state"] == "cut over"  # nothing to be agreed to

    shop.sql("UPDATE article SET title = 'pears' WHERE id = 2")
    assert shop("worker", "--until-empty").exit_code == 0
    assert rows(shop)[2] == NEW
    found = model(shop, "rollback", "--yes")
    assert (found["state"], found["active"], found["kept"]) == ("rolled back", "letters@1", 0)
    assert rows(shop) == {1: OLD, 2: OLD, 3: OLD, 4: NONE, 5: OLD}
    assert shop("worker", "--until-empty").exit_code == 0  # the one that was edited since
    assert shop("check").exit_code == 0
    assert model(shop, "status", code=1)["state"] == "rolled back"

    model(shop, "upgrade", "--yes")
    shop.sql("UPDATE article SET title = 'plums' WHERE id = 3")
    assert model(shop, "cutover", "--yes", "--catch-up")["state"] == "cut over"
    found = model(shop, "finish", "--yes")
    assert (found["state"], found["kept"], found["is_in_force"]) == ("finished", 0, True)
    assert shop("worker", "--until-empty").exit_code == 0
    assert rows(shop) == {1: NEW, 2: NEW, 3: NEW, 4: NONE, 5: NEW}
    assert shop("check").exit_code == 0
    assert "no change to letters@2 to be rolled back" in model(shop, "rollback", "--yes", code=2)["error"]


@BOTH
def test_before_the_cutover_a_rollback_drops_what_was_made(shop: Shop):
    begin(shop, "apple", "pear")
    assert model(shop, "upgrade", "--yes")["kept"] == 2
    assert model(shop, "rollback", "--yes")["kept"] == 0
    assert rows(shop) == {1: OLD, 2: OLD}


@BOTH
def test_rows_that_the_new_model_refuses_are_told_and_prevent_the_cutover_or_are_skipped(shop: Shop):
    begin(shop, "apple", "sour", "pear")
    found = model(shop, "upgrade", "--yes", code=1)
    assert (found["ready"], found["failed"], list(found["reasons"])) == (2, 1, ["[2]"])
    assert "hunter22" not in found["reasons"]["[2]"]
    assert model(shop, "status", code=1)["failed"] == 1
    shown = shop("model", "status", COLUMN)
    assert shown.exit_code == 1
    assert "Article.embedding: [2] cannot be embedded by letters@2: " in shown.stdout
    error = model(shop, "cutover", "--yes", code=1)["error"]
    assert "1 row cannot be embedded by letters@2" in error
    assert "--skip-failed" in error
    assert "hunter22" not in error
    assert rows(shop) == {1: OLD, 2: OLD, 3: OLD}
    assert model(shop, "cutover", "--yes", "--skip-failed")["state"] == "cut over"
    assert rows(shop) == {1: NEW, 2: NONE, 3: NEW}
    assert model(shop, "rollback", "--yes")["active"] == "letters@1"
    assert rows(shop) == {1: OLD, 2: OLD, 3: OLD}


@BOTH
def test_a_dry_run_counts_what_is_to_be_embedded_and_changes_nothing(shop: Shop):
    begin(shop, "apple", "apple", "pear", None)
    found = model(shop, "upgrade", "--dry-run", "--price", "1000000")
    assert (found["column"], found["model"], found["rows"], found["left"]) == (COLUMN, "letters@2", 4, 3)
    assert found["cost"] == found["tokens"] == 2 + 1
    shown = shop("model", "upgrade", COLUMN, "--dry-run")
    assert shown.stdout == "Article.embedding: 3 of 4 rows to embed by letters@2, about 3 tokens\n"
    assert model(shop, "status", code=1)["state"] is None
    model(shop, "upgrade", "--yes")
    assert model(shop, "upgrade", "--dry-run")["left"] == 0


@BOTH
def test_what_asks_is_refused_where_nobody_can_be_asked(shop: Shop):
    begin(shop, "apple", "pear")

    def refused(command: str) -> str:
        return str(model(shop, command, code=2)["error"])

    question = "Article.embedding: 2 of 2 rows to embed by letters@2, about 3 tokens. This is not a terminal"
    assert refused("upgrade").startswith(question)
    assert model(shop, "status", code=1)["state"] is None
    model(shop, "upgrade", "--yes")
    assert model(shop, "upgrade")["is_ready"] is True  # nothing to be agreed to
    assert refused("cutover").startswith("Article.embedding will have the vectors of letters@2 in place of those")
    assert refused("rollback").startswith("Article.embedding: 2 vectors of letters@2 will be dropped.")
    assert rows(shop) == {1: OLD, 2: OLD}
    model(shop, "cutover", "--yes")
    assert refused("rollback").startswith("Article.embedding will have the vectors of letters@1 again")
    assert refused("finish").startswith("Article.embedding: 2 vectors of letters@1 will be dropped, and there")
    assert model(shop, "status")["kept"] == 2


@BOTH
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["upgrade", "Article.title"], 'no embedded column "Article.title"; there are: Article.embedding'),
        (["status", "nothing"], 'no embedded column "nothing"'),
        (["cutover", COLUMN, "--yes"], "cannot be cut over to letters@2, whose vectors were not made; begin with"),
        (["rollback", COLUMN, "--yes"], "there is no change to letters@2 to be rolled back"),
        (["finish", COLUMN, "--yes"], "there was no cutover to letters@2 that could be finished"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_is_said_in_one_sentence(shop: Shop, arguments: list[str], words: str):
    begin(shop, "apple")
    assert words in shop.json("model", *arguments, code=2)["error"]
    shown = shop("model", *arguments)
    assert (shown.stdout, len(shown.stderr.splitlines())) == ("", 1)
    assert rows(shop) == {1: OLD}


@SQLITE
@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["upgrade"],
        ["upgrade", COLUMN, "--batch-size", "0"],
        ["upgrade", COLUMN, "--batch-size", "-1"],
        ["upgrade", COLUMN, "--batch-size", "1000000000"],
        ["upgrade", COLUMN, "--timeout", "nan"],
        ["upgrade", COLUMN, "--price", "-1"],
        ["cutover", COLUMN, "--lock-wait", "0"],
        ["cutover", COLUMN, "--lock-wait", "inf"],
        ["status", COLUMN, "Article.other"],
    ],
    ids=" ".join,
)
def test_options_out_of_their_range_are_refused(shop: Shop, arguments: list[str]):
    begin(shop, "apple")
    done = shop("model", *arguments, *(["--yes"] if arguments[:1] in (["upgrade"], ["cutover"]) else []))
    assert done.exit_code == 2
    assert model(shop, "status", code=1)["state"] is None


@BOTH
def test_the_model_that_a_column_has_already_is_no_new_one(shop: Shop):
    begin(shop, "apple")
    model(shop, "upgrade", "--yes")
    model(shop, "cutover", "--yes")
    for options in (["--yes"], ["--dry-run"]):
        assert "has vectors of letters@2 already" in model(shop, "upgrade", *options, code=2)["error"]
    assert rows(shop) == {1: NEW}


def script(shop: Shop, *arguments: str, **environment: str) -> tuple[int, Any]:
    """Run the script with --json in another environment, and return its exit code and what it printed."""
    known = {name: value for name, value in shop.environment.items() if name != "SHOP_NEXT"}
    done = shop.script("model", *arguments, "--json", env={**known, **environment})
    assert "Traceback" not in done.stderr
    return done.returncode, json.loads(done.stdout)


@SQLITE
def test_an_application_with_one_model_is_told_how_to_name_both(shop: Shop):
    for command in ("upgrade", "status", "cutover", "rollback", "finish"):
        code, found = script(shop, command, COLUMN)
        assert (code, found["error"]) == (
            2,
            (
                'Article.embedding has one embedder; give both, {"letters": Versions(old, new, upgrades=upgrades)}, '
                "to track() and to workers, too"
            ),
        )


@SQLITE
def test_a_new_model_that_is_only_named_cannot_embed(shop: Shop):
    begin(shop, "apple")
    code, found = script(shop, "upgrade", COLUMN, "--yes", SHOP_NAMED="2")
    assert (code, found["error"]) == (
        2,
        "Article.embedding: letters@2 is only the name of a model; here it has to embed",
    )
    assert script(shop, "status", COLUMN, SHOP_NAMED="2")[0] == 1


@SQLITE
def test_a_third_model_waits_for_the_second(shop: Shop):
    begin(shop, "apple")
    model(shop, "upgrade", "--yes")
    code, found = script(shop, "upgrade", COLUMN, "--yes", SHOP_NEXT="2 3")
    assert (code, "is being changed to letters@2 already" in found["error"]) == (2, True)
    model(shop, "cutover", "--yes")
    model(shop, "finish", "--yes")
    assert script(shop, "status", COLUMN, SHOP_NEXT="2 3")[0] == 1
    known = {**shop.environment, "SHOP_NEXT": "2 3"}
    assert (
        "letters@3 is to follow; sqla-vector model upgrade" in shop.script("model", "status", COLUMN, env=known).stdout
    )
    assert script(shop, "upgrade", COLUMN, "--yes", SHOP_NEXT="2 3")[0] == 0
    assert script(shop, "cutover", COLUMN, "--yes", SHOP_NEXT="2 3")[0] == 0
    assert rows(shop) == {1: ("letters@3", 2.0)}


@BOTH
def test_without_its_tables_the_database_is_said_to_refuse_and_the_doctor_misses_them(shop: Shop):
    begin(shop, "apple")
    shop.sql("DROP TABLE vector_upgrade")
    shop.sql("DROP TABLE vector_upgrade_row")
    for command in ("upgrade", "status", "cutover", "rollback", "finish"):
        error = model(shop, command, code=2)["error"]
        assert error.startswith("the database refused: ")
        assert "vector_upgrade" in error
    findings = shop.json("doctor", code=1)["findings"]
    failed = {finding["subject"] for finding in findings if finding["state"] == "fail"}
    assert {"table vector_upgrade", "table vector_upgrade_row"} <= failed


@pytest.mark.backends("psycopg", "asyncpg")
def test_a_database_that_cannot_be_reached_has_an_exit_code_of_its_own(shop: Shop):
    url = shop.backend.url.set(host="127.0.0.1", port=1, query={}).render_as_string(hide_password=False)
    done = shop.script("model", "status", COLUMN, "--json", env={**shop.environment, "SHOP_URL": url})
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["error"].startswith("the database cannot be reached")


# Terminals and pipes.


@SQLITE
@pytest.mark.parametrize(("answer", "code", "state"), [("y\n", 0, "filling"), ("n\n", 2, None)])
def test_on_a_terminal_it_is_asked_about_and_has_a_bar(shop: Shop, answer: str, code: int, state: str | None):
    begin(shop, "apple", "pear")
    ended, shown = on_terminal(["model", "upgrade", COLUMN, "--price", "5"], shop, answer)
    assert (
        "Article.embedding: 2 of 2 rows to embed by letters@2, about 3 tokens, cost about 0.00. Go on? [y/N]" in shown
    )
    assert (ended, model(shop, "status", code=0 if state else 1)["state"]) == (code, state)
    bar = shown.partition("[y/N]")[2]
    assert ("2/2" in bar and "rows/s" in bar and "left" in bar) == (code == 0)


@SQLITE
@pytest.mark.parametrize(("answer", "code", "expected"), [("y\n", 0, NEW), ("n\n", 2, OLD)])
def test_on_a_terminal_the_cutover_is_asked_about(shop: Shop, answer: str, code: int, expected: Any):
    begin(shop, "apple")
    model(shop, "upgrade", "--yes")
    ended, shown = on_terminal(["model", "cutover", COLUMN], shop, answer)
    assert "in place of those of letters@1. Go on? [y/N]" in shown
    assert (ended, rows(shop)) == (code, {1: expected})
    if code:
        return
    ended, shown = on_terminal(["model", "finish", COLUMN], shop, "n\n")
    assert "there will be no way back. Go on? [y/N]" in shown
    assert (ended, model(shop, "status")["kept"]) == (2, 1)
    ended, shown = on_terminal(["model", "rollback", COLUMN], shop, "y\n")
    assert (ended, rows(shop)) == (0, {1: OLD})


@SQLITE
def test_lines_tell_how_far_it_is_where_there_is_no_terminal(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sqla_vector.cli.bar.EVERY", 0.0)
    begin(shop, "apple", "pear")
    shown = shop("model", "upgrade", COLUMN, "--yes", "--batch-size", "1")
    assert "embedding Article.embedding: 1 of 2 rows, " in shown.stderr
    assert "rows/s" in shown.stderr
    assert shown.stdout == "Article.embedding: 2 of 2 rows ready for letters@2\n"
    shown = shop("model", "status", COLUMN)
    header, row = shown.stdout.splitlines()
    assert " ".join(header.split()) == "column state old new active rows ready missing stale failed kept"
    assert " ".join(row.split()) == "Article.embedding filling letters@1 letters@2 letters@1 2 2 0 0 0 2"
    said = shop("model", "cutover", COLUMN, "--yes").stdout
    assert said == "Article.embedding: has the vectors of letters@2, 2 vectors of letters@1 beside it\n"
    said = shop("model", "rollback", COLUMN, "--yes").stdout
    assert said == "Article.embedding: rolled back, has the vectors of letters@1\n"


@SQLITE
def test_nobody_complains_of_a_reader_that_has_gone(shop: Shop):
    begin(shop, "apple")
    process = shop.start("model", "status", COLUMN)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 141
    assert said == "this application talks as it is imported\n"


# Signals, and others at work.


@BOTH
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_filling_that_is_told_to_stop_finishes_its_batch_and_goes_on_later(shop: Shop, number: int):
    begin(shop, "one", "two", "late three", "four", "five")
    process = shop.start("model", "upgrade", COLUMN, "--yes", "--json", "--batch-size", "1")
    wait_for(process.stderr, "embedding begins")
    process.send_signal(number)
    (shop.directory / "go").touch()
    out, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    found = json.loads(out)
    assert (found["state"], found["is_stopped"], found["kept"], found["is_ready"]) == ("filling", True, 3, False)
    assert rows(shop) == dict.fromkeys(range(1, 6), OLD)
    found = model(shop, "status", code=1)
    assert (found["ready"], found["missing"]) == (3, 2)
    assert "2 of 5 rows have no vector" in model(shop, "cutover", "--yes", code=1)["error"]
    assert model(shop, "upgrade", "--yes")["is_ready"] is True
    model(shop, "cutover", "--yes")
    assert rows(shop) == dict.fromkeys(range(1, 6), NEW)


@BOTH
def test_a_filling_that_is_told_twice_ends_at_once_and_loses_one_batch(shop: Shop):
    begin(shop, "one", "late two", "three")
    process = shop.start("model", "upgrade", COLUMN, "--yes", "--batch-size", "1")
    wait_for(process.stderr, "embedding begins")
    while process.poll() is None:  # Python may take two that come at once for one
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    (shop.directory / "go").touch()
    found = model(shop, "status", code=1)
    assert (found["ready"], found["missing"]) == (1, 2)
    assert model(shop, "upgrade", "--yes")["is_ready"] is True


@BOTH
def test_two_fillings_at_once_share_the_work(shop: Shop):
    begin(shop, *(f"text {number}" for number in range(30)))
    both = [shop.start("model", "upgrade", COLUMN, "--yes", "--batch-size", "3") for _ in range(2)]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert model(shop, "status")["ready"] == 30


@BOTH
def test_a_filling_whose_change_is_taken_back_says_so(shop: Shop):
    begin(shop, "late one", "two")
    process = shop.start("model", "upgrade", COLUMN, "--yes", "--json", "--batch-size", "1")
    wait_for(process.stderr, "embedding begins")
    model(shop, "rollback", "--yes")
    (shop.directory / "go").touch()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert json.loads(out)["error"] == "Article.embedding: the change to letters@2 was ended meanwhile"
    kept = shop.connection(lambda c: c.scalar(text("SELECT count(*) FROM vector_upgrade_row")))
    assert (kept, rows(shop)) == (0, {1: OLD, 2: OLD})
