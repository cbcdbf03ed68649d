"""What the commands do, on every kind of program and database."""

from __future__ import annotations

import pytest

from tests.cli.conftest import Shop

pytestmark = pytest.mark.backends("psycopg", "asyncpg", "pysqlite3", "sqlite_stdlib", "aiosqlite")


def test_a_worker_embeds_what_waits_and_tells_what_it_did(shop: Shop):
    shop.add("apple", "pear", "poison")
    outcome = shop.json("worker", "--until-empty", "--attempts", "1")
    assert (outcome["written"], outcome["dead"]) == (2, 1)
    assert shop.vectors() == 2


def test_status_tells_entries_by_what_they_wait_for(shop: Shop):
    shop.add("due", "leased", "retrying", "postponed", "dead")
    later = "available_at = available_at + 1000"
    shop.sql(f"UPDATE vector_outbox SET claimed_by = 'here:7:abc', {later} WHERE row_key = '[2]'")
    shop.sql(f"UPDATE vector_outbox SET attempts = 1, {later} WHERE row_key = '[3]'")
    shop.sql(f"UPDATE vector_outbox SET {later} WHERE row_key = '[4]'")
    shop.sql("UPDATE vector_outbox SET state = 'dead' WHERE row_key = '[5]'")
    shop.sql("UPDATE vector_outbox SET created_at = created_at - 100 WHERE row_key = '[1]'")
    found = shop.json("status")
    (article,) = found["entities"]
    assert {name: article[name] for name in ("entity", "due", "leased", "retrying", "postponed", "dead")} == {
        "entity": "article",
        "due": 1,
        "leased": 1,
        "retrying": 1,
        "postponed": 1,
        "dead": 1,
    }
    assert article["pending"] == found["total"]["pending"] == 4
    assert 100 <= article["oldest"] < 1000
    (worker,) = found["workers"]
    assert (worker["worker"], worker["entries"]) == ("here:7", 1)
    assert 0 < worker["seconds_left"] <= 1000
    assert found["rates"] is None
    assert "article  1" in shop("status").stdout


def test_rates_are_known_after_a_second_look(shop: Shop):
    from sqla_vector.tracking.status import rates, status

    outbox = shop.models.outbox
    before = shop.connection(lambda c: status(c, outbox))
    shop.add("one", "two", "three")
    shop("worker", "--until-empty")
    shop.add("four")
    after = shop.connection(lambda c: status(c, outbox))
    found = rates(before, after)
    assert found.written == pytest.approx(4 * 60 / found.seconds)
    assert found.done == pytest.approx(3 * 60 / found.seconds)
    idle = shop.json("status", "--watch", "0.1")["rates"]
    assert (idle["written"], idle["done"]) == (0, 0)
    assert "per minute: 0 written, 0 done" in shop("status", "--watch", "0.1").stdout


def test_dead_entries_are_listed_with_their_reasons_without_secrets(shop: Shop):
    shop.add("poison", "poisonous")
    shop("worker", "--until-empty", "--attempts", "1")
    shop.sql("UPDATE vector_outbox SET reason = 'see https://me:hunter22@models.example/'")
    found = shop.json("dead", "list")
    assert found["count"] == 2
    assert {entry["row_key"] for entry in found["entries"]} == {"[1]", "[2]"}
    assert found["entries"][0]["reason"] == "see https://me:***@models.example/"
    shown = shop("dead", "list", "--limit", "1")
    assert "hunter22" not in shown.output
    assert shown.stdout.count("article") == 1
    assert "1 more; --limit shows them" in shown.stderr


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        (["--entity", "article"], {"[1]", "[2]", '["2"]'}),
        (["--entity", "Article"], {"[1]", "[2]", '["2"]'}),
        (["--key", "1"], {"[1]"}),
        (["--key", "2"], {"[2]", '["2"]'}),
        (["--key", '["2"]'], {'["2"]'}),
        (["--reason", "TIMED"], {"[1]"}),
        (["--reason", "%"], set()),
        (["--older-than", "1h"], {"[2]"}),
        (["--older-than", "1h", "--key", "1"], set()),
    ],
)
def test_dead_entries_are_chosen_by_all_that_is_said(shop: Shop, options: list[str], keys: set[str]):
    _bury(shop)
    assert {entry["row_key"] for entry in shop.json("dead", "list", *options)["entries"]} == keys


def _bury(shop: Shop) -> None:
    shop.add("a", "b", "c")
    shop.sql("UPDATE vector_outbox SET state = 'dead', attempts = 5, reason = 'refused'")
    shop.sql("UPDATE vector_outbox SET reason = 'timed out' WHERE row_key = '[1]'")
    shop.sql("UPDATE vector_outbox SET available_at = available_at - 7200 WHERE row_key = '[2]'")
    shop.sql("UPDATE vector_outbox SET row_key = '[\"2\"]' WHERE row_key = '[3]'")


def test_what_is_replayed_is_tried_as_if_for_the_first_time(shop: Shop):
    _bury(shop)
    assert shop.json("dead", "replay", "--key", "[2]") == {"replayed": 1}
    (entry,) = [one for one in shop.entries() if one.state == "pending"]
    assert (entry.row_key, entry.attempts, entry.reason) == ("[2]", 0, None)
    shop("worker", "--until-empty")
    assert shop.vectors() == 1
    assert "2 entries are tried again" in shop("dead", "replay", "--all").stdout
    assert {one.state for one in shop.entries()} == {"pending"}


def test_what_is_dropped_is_gone_and_check_reports_its_row(shop: Shop):
    _bury(shop)
    assert shop.json("dead", "drop", "--reason", "timed", "--yes") == {"dropped": 1}
    assert {one.row_key for one in shop.entries()} == {"[2]", '["2"]'}
    assert shop.json("check", code=1)["columns"][0]["unnoticed"] == 2  # its own row, and that of the odd key


def test_dropping_nothing_needs_no_agreement(shop: Shop):
    assert shop.json("dead", "drop", "--all") == {"dropped": 0}


@pytest.mark.parametrize("command", ["replay", "drop"])
def test_nothing_is_meant_if_nothing_is_said(shop: Shop, command: str):
    _bury(shop)
    assert "give --all" in shop.json("dead", command, code=2)["error"]
    assert "--all means all" in shop.json("dead", command, "--all", "--key", "1", code=2)["error"]
    assert {one.state for one in shop.entries()} == {"dead"}


def test_a_table_that_nobody_knows_is_refused_and_one_that_is_gone_is_not(shop: Shop):
    _bury(shop)
    assert 'no table "nowhere"' in shop.json("dead", "list", "--entity", "nowhere", code=2)["error"]
    shop.sql("UPDATE vector_outbox SET entity = 'former' WHERE row_key = '[1]'")
    assert shop.json("dead", "replay", "--entity", "former") == {"replayed": 1}


def test_check_tells_what_is_not_current_and_has_it_fixed(shop: Shop):
    shop.add("one", "two", None)
    shop("worker", "--until-empty")
    assert shop.json("check")["is_clean"]
    shop.sql("UPDATE article SET embedding = NULL, embedding_fingerprint = NULL WHERE id = 1")
    shop.sql("DELETE FROM vector_outbox")
    shown = shop("check")
    assert shown.exit_code == 1
    assert "missing, for example [1]" in shown.stdout
    (column,) = shop.json("check", "--column", "Article.embedding", code=1)["columns"]
    assert (column["rows"], column["missing"], column["unnoticed"]) == (3, 1, 1)
    assert shop.json("check", "--fix", "--column", "article.embedding")["fixed"] == 1
    shop("worker", "--until-empty")
    assert shop("check").exit_code == 0


def test_check_with_fix_fails_while_an_entry_is_dead(shop: Shop):
    shop.add("poison")
    shop("worker", "--until-empty", "--attempts", "1")
    assert shop.json("check", "--fix", code=1)["backlogs"][0]["dead"] == 1


def test_check_tells_vectors_of_other_models(shop: Shop):
    shop.add("one", "two")
    shop("worker", "--until-empty")
    shop.sql("UPDATE article SET embedding_fingerprint = 'letters@0:abc' WHERE id = 1")
    assert "1 vector by letters@0" in shop("check").stdout


def test_the_doctor_is_content_with_a_program_as_it_should_be(shop: Shop):
    found = shop.json("doctor")
    assert found["ok"]
    assert {one["state"] for one in found["findings"]} == {"ok"}
    assert {"clock", "database", "extension", "plugin", "table article", "Article.embedding"} <= {
        one["subject"] for one in found["findings"]
    }


def _complaints(shop: Shop, *options: str) -> dict[str, str]:
    result = shop("doctor", *options)
    lines = [line for line in result.stdout.splitlines() if line.startswith("fail")]
    assert result.exit_code == (1 if lines else 0)
    return dict(line.removeprefix("fail").strip().split(": ", 1) for line in lines)


def test_the_doctor_finds_triggers_that_are_not_as_declared(shop: Shop):
    from sqla_vector.dialects.capture import captures_of
    from sqla_vector.types import support_of

    (capture,) = captures_of(shop.models.Base.metadata)

    def drop(connection) -> None:
        for statement in support_of(connection.dialect).captures().drop(capture.name, None, connection.dialect):
            connection.exec_driver_sql(statement)

    shop.connection(drop)
    assert "are not there" in _complaints(shop)["triggers of article"]


def test_the_doctor_finds_what_was_not_migrated(shop: Shop):
    shop.sql("ALTER TABLE vector_outbox DROP COLUMN reason")
    shop.sql("ALTER TABLE article RENAME COLUMN embedding_fingerprint TO something")
    found = _complaints(shop)
    assert found["outbox vector_outbox"] == "lacks reason; run the migrations"
    assert found["table article"] == "lacks embedding_fingerprint; run the migrations"


def test_the_doctor_finds_an_empty_database(shop: Shop):
    shop.backend.drop_all(shop.engine, shop.models.Base.metadata)
    found = _complaints(shop)
    assert "is not there" in found["table article"]
    assert "is not there" in found["outbox vector_outbox"]


def test_the_doctor_says_what_is_wrong_with_a_lease(shop: Shop):
    assert "must be longer than timeout" in _complaints(shop, "--lease", "10", "--timeout", "20")["worker"]


def test_the_doctor_waits_for_an_embedder_no_longer_than_it_was_told(shop: Shop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SHOP_HANGS", "1")
    result = shop.script("doctor", "--timeout", "0.2")
    assert result.returncode == 1
    assert "fail  embedder letters@1: the embedder letters gave no answer within 0.2 seconds" in result.stdout
    assert shop.script("doctor", "--no-embed").returncode == 0


def test_a_database_of_another_dimension_is_noticed(shop: Shop):
    if shop.backend.family == "postgresql":
        shop.sql("ALTER TABLE article ALTER COLUMN embedding TYPE vector(5)")
    else:
        shop.sql("ALTER TABLE article RENAME TO former")
        shop.sql(
            "CREATE TABLE article (id INTEGER PRIMARY KEY, title TEXT, embedding VECTOR(5), "
            "embedding_fingerprint VARCHAR(255))"
        )
    assert "Vector(dim=5) in the database" in _complaints(shop, "--no-embed")["Article.embedding"]
