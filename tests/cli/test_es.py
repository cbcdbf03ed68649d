"""``sqla-vector es``, on every kind of program, with a real server."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import elasticsearch
import pytest
from elasticsearch import Elasticsearch
from sqlalchemy import insert
from sqlalchemy.orm import Session

from sqla_vector.cli.es.findings import version_finding
from sqla_vector.cli.es.search import _asked, _Wanted
from sqla_vector.cli.failure import Failed
from tests.cli.conftest import Shop, on_terminal, wait_for
from tests.elasticsearch.searched import make_world
from tests.support.backends import Backend
from tests.support.elasticsearch_server import Server

pytestmark = pytest.mark.backends("psycopg", "asyncpg", "pysqlite3", "aiosqlite")

ONE_OF_EACH = pytest.mark.backends("psycopg", "aiosqlite")
ONE = pytest.mark.backends("pysqlite3")
WITHOUT_SERVER = pytest.mark.backends("pysqlite3", "aiosqlite")


class IndexedShop(Shop):
    """The application of ``indexed.py``."""

    source = "indexed.py"
    client: Elasticsearch

    @property
    def name(self) -> str:
        """The index of articles."""
        return str(self.models.name)

    @property
    def titles(self) -> dict[str, str | None]:
        """What the index has."""
        self.client.indices.refresh(index=self.name)
        found = self.client.search(index=self.name, size=1000)
        return {hit["_id"]: hit["_source"].get("title") for hit in found["hits"]["hits"]}

    def state(self, code: int = 0) -> Any:
        """Return the status of the index of articles."""
        return self.json("es", "status", self.name, code=code)["indexes"][0]


@pytest.fixture
def shop(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elasticsearch_node: Server
) -> Iterator[IndexedShop]:
    name = f"sqla-vector-test-{uuid.uuid4().hex[:12]}"
    monkeypatch.setenv("INDEX_NAME", name)
    monkeypatch.setenv("NODE_URL", elasticsearch_node.url)
    monkeypatch.setenv("ELASTICSEARCH_URL", elasticsearch_node.url)
    monkeypatch.delenv("SQLA_VECTOR_ELASTICSEARCH", raising=False)
    with Elasticsearch(elasticsearch_node.url, request_timeout=60) as client:
        found = IndexedShop(tmp_path, backend, monkeypatch)
        found.client = client
        yield found
        found.close()
        for index in client.indices.get(index=f"{name}*", expand_wildcards="all", features="aliases"):
            client.indices.delete(index=index)


def test_an_index_is_created_filled_followed_and_compared(shop: IndexedShop) -> None:
    assert set(shop.json("es", "create")["created"]) == {shop.name, f"{shop.name}-pages"}
    shop.add("apple", "pear")
    outcome = shop.json("es", "sync", "--until-empty")
    assert outcome["written"] == 2
    assert shop.titles == {"1": "apple", "2": "pear"}
    shop("worker", "--until-empty")
    found = shop.json("es", "check")["indexes"]
    assert [one["is_equal"] for one in found] == [True, True]
    assert found[0]["pending"] == 2  # the vectors have come, and are not in the documents yet
    shop.json("es", "sync", shop.name, "--until-empty")
    state = shop.state()
    assert (state["documents"], state["queue"]["pending"], state["ok"], state["rebuild"]) == (2, 0, True, [])
    assert shop.json("es", "check", shop.name)["indexes"][0]["pending"] == 0


def test_what_is_there_is_not_created_again(shop: IndexedShop) -> None:
    assert "created, as" in shop("es", "create", shop.name).stdout
    again = shop("es", "create")
    assert again.exit_code == 0
    assert f"{shop.name}: is there already" in again.stdout
    named = shop("es", "create", shop.name)
    assert named.exit_code == 2
    assert "is there already" in named.stderr


def test_check_finds_and_repairs_what_differs(shop: IndexedShop) -> None:
    shop("es", "create")
    shop.add("one", "two", "three")
    shop("worker", "--until-empty")
    shop("es", "sync", "--until-empty")
    shop.client.delete(index=shop.name, id="1", version=10**6, version_type="external")
    about = {"hash": "0", "key": "[9]"}
    shop.client.index(index=shop.name, id="9", document={"title": "extra", "_sqla_vector": about}, refresh=True)
    shop.client.update(index=shop.name, id="2", doc={"title": "changed"}, refresh=True)
    found = shop.json("es", "check", shop.name, code=1)["indexes"][0]
    assert (found["missing"], found["extra"], found["stale"]) == (1, 1, 1)
    shown = shop("es", "check", shop.name)
    assert shown.exit_code == 1
    assert f"{shop.name}: extra 9" in shown.stdout
    assert "1 missing, 1 extra, 1 stale" in shown.stdout


def test_check_with_fix_repairs_and_ends_with_0(shop: IndexedShop) -> None:
    shop("es", "create")
    shop.add("one", "two", "three")
    shop("worker", "--until-empty")
    shop("es", "sync", "--until-empty")
    shop.client.update(index=shop.name, id="2", doc={"title": "changed"}, refresh=True)
    shop.connection(lambda c: c.execute(shop.models.outbox.delete()))
    found = shop.json("es", "check", "--fix", shop.name)["indexes"][0]
    assert (found["stale"], found["noted"], found["repaired"]) == (1, 1, 1)
    assert shop.titles["2"] == "two"
    assert shop.json("es", "check")["indexes"][0]["is_equal"]


def test_check_says_what_to_do_where_there_is_no_index(shop: IndexedShop) -> None:
    shown = shop("es", "check", shop.name)
    assert shown.exit_code == 1
    assert f"{shop.name}: is not there; sqla-vector es rebuild {shop.name} makes and fills it" in shown.stdout
    assert shop.json("es", "check", shop.name, code=1)["indexes"][0]["is_equal"] is False


def test_check_asks_for_a_rebuild_where_the_database_was_restored(shop: IndexedShop) -> None:
    shop("es", "create")
    shop.add("one")
    shop("es", "sync", "--until-empty")
    body = shop.client.get(index=shop.name, id="1")["_source"]
    shop.client.index(index=shop.name, id="1", document=body, version=10**12, version_type="external", refresh=True)
    shown = shop("es", "check", shop.name)
    assert shown.exit_code == 1
    assert "restored from a backup" in shown.stdout
    assert f"sqla-vector es rebuild {shop.name}" in shown.stdout


def test_a_rebuild_fills_an_index_from_the_rows(shop: IndexedShop) -> None:
    shop.add("one", "two")
    shop("worker", "--until-empty")
    (report,) = shop.json("es", "rebuild", shop.name)["indexes"]  # nothing is deleted, so nothing is asked
    assert (report["rows"], report["written"], report["is_complete"], report["replaced"]) == (2, 2, True, [])
    assert shop.titles == {"1": "one", "2": "two"}
    assert shop.state()["physical"] == [report["physical"]]


def test_a_rebuild_asks_before_it_deletes_the_old_index(shop: IndexedShop) -> None:
    shop("es", "create", shop.name)
    shop.add("one")
    (before,) = shop.state()["physical"]
    refused = shop("es", "rebuild", shop.name)
    assert refused.exit_code == 2
    assert f"{before} will be deleted when another has taken its place." in refused.stderr
    assert "give --yes" in refused.stderr
    assert shop.state()["physical"] == [before]
    kept = shop("es", "rebuild", shop.name, "--keep")
    assert kept.exit_code == 0, kept.output
    assert f"{before} is still there, without the alias" in kept.stdout
    assert shop.client.indices.exists(index=before)
    (second,) = shop.state()["physical"]
    assert shop.json("es", "rebuild", shop.name, "--yes")["indexes"][0]["replaced"] == [second]
    assert not shop.client.indices.exists(index=second)
    assert shop.titles == {"1": "one"}


@ONE
def test_a_rebuild_on_a_terminal_asks_and_shows_a_bar(shop: IndexedShop) -> None:
    shop("es", "create", shop.name)
    shop.add("one")
    code, shown = on_terminal(["es", "rebuild", shop.name], shop, answer="n\n")
    assert code == 2
    assert "nothing was done" in shown
    code, shown = on_terminal(["es", "rebuild", shop.name], shop, answer="y\n")
    assert code == 0, shown
    assert "indexing" in shown
    assert "1 row, 1 written" in shown


@ONE
def test_a_rebuild_that_was_stopped_goes_on(shop: IndexedShop) -> None:
    shop.add("one", "two")
    slow = {**shop.environment, "INDEX_SLOW": "1"}
    process = shop.start("es", "rebuild", shop.name, "--workers", "1", env=slow)
    try:
        wait_for(process.stderr, "reading begins")
        process.send_signal(signal.SIGTERM)
        (shop.directory / "go").touch()
        shown, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "stopped before the end; run it again to go on" in shown
    state = shop.state(code=1)
    assert (state["physical"], len(state["rebuild"])) == ([], 1)
    (report,) = shop.json("es", "rebuild", shop.name)["indexes"]
    assert (report["is_complete"], report["physical"]) == (True, state["rebuild"][0])
    assert shop.titles == {"1": "one", "2": "two"}


@ONE
def test_a_check_that_was_stopped_says_so(shop: IndexedShop) -> None:
    shop.add("one")
    assert shop("es", "rebuild", shop.name).exit_code == 0
    process = shop.start("es", "check", shop.name, env={**shop.environment, "INDEX_SLOW": "1"})
    try:
        wait_for(process.stderr, "reading begins")
        process.send_signal(signal.SIGTERM)
        (shop.directory / "go").touch()
        shown, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "stopped before the end" in shown


@ONE
def test_rows_that_cannot_be_documents_end_a_rebuild(shop: IndexedShop) -> None:
    shop.connection(lambda c: c.execute(insert(shop.models.Page.__table__), [{"book": "b" * 600, "number": 1}]))
    refused = shop("es", "rebuild", f"{shop.name}-pages")
    assert refused.exit_code == 1
    assert "1 rows cannot be documents" in refused.stderr
    assert refused.stdout == ""
    assert shop("es", "rebuild", f"{shop.name}-pages", "--abandon", "--yes").exit_code == 0
    left_out = shop("es", "rebuild", f"{shop.name}-pages", "--skip-refused")
    assert left_out.exit_code == 1, left_out.output
    assert shop.json("es", "status", f"{shop.name}-pages", code=0)["indexes"][0]["documents"] == 0


@ONE
def test_a_rebuild_that_goes_on_ends_with_1_for_what_an_earlier_one_refused(shop: IndexedShop) -> None:
    pages = f"{shop.name}-pages"
    assert shop("es", "create", pages).exit_code == 0
    shop.connection(lambda c: c.execute(insert(shop.models.Page.__table__), [{"book": "b" * 600, "number": 1}]))
    shop("es", "sync", pages, "--until-empty")
    assert shop("es", "rebuild", pages, "--yes").exit_code == 1
    (report,) = shop.json("es", "rebuild", pages, "--yes", "--skip-refused", code=1)["indexes"]
    assert (report["is_complete"], report["check"]["dead"]) == (True, 1)


def test_a_query_of_which_nobody_makes_a_vector_is_for_its_words() -> None:
    index = make_world("books").index
    with pytest.raises(Failed, match="give --by text"), Session() as session:
        _asked(session, index, index.vectors["embedding"], _Wanted("tea", None, "both", "embedding", 3))


@ONE_OF_EACH
def test_what_a_rebuild_began_is_shown_and_can_be_abandoned(shop: IndexedShop) -> None:
    from sqla_vector.elasticsearch.creation import create

    shop("es", "create", shop.name)
    begun = create(shop.client, shop.models.articles, "begun", alias=f"{shop.name}-rebuild")
    assert shop.state()["rebuild"] == [begun]
    assert shop("es", "rebuild", shop.name, "--abandon").exit_code == 2
    assert shop.json("es", "rebuild", shop.name, "--abandon", "--yes")["deleted"] == {shop.name: [begun]}
    assert not shop.client.indices.exists(index=begun)
    assert "nothing was begun" in shop("es", "rebuild", shop.name, "--abandon").stdout


@ONE_OF_EACH
def test_status_tells_what_is_not_as_it_must_be(shop: IndexedShop) -> None:
    missing = shop("es", "status")
    assert missing.exit_code == 1
    assert f"sqla-vector es create {shop.name} makes it" in missing.stdout
    shop("es", "create")
    shop.client.indices.put_settings(index=shop.name, settings={"index.refresh_interval": "7s"})
    found = shop.state(code=1)
    assert found["settings_drift"][0].endswith("setting index.refresh_interval is 7s, and 1s is declared")
    assert not found["ok"]
    assert "is 7s, and 1s is declared; sqla-vector es rebuild" in shop("es", "status").stdout


@ONE_OF_EACH
def test_status_and_dead_know_the_entries_of_an_index(shop: IndexedShop) -> None:
    shop("es", "create")
    shop.add("one", "two")
    channel = shop.models.articles.channel
    shop.sql(f"UPDATE vector_outbox SET state = 'dead', reason = 'too long' WHERE channel = '{channel}'")
    found = shop.json("status")
    assert (found["total"]["pending"], found["indexes"][shop.name]["total"]["dead"]) == (2, 2)
    assert f"\n{shop.name} " in shop("status").stdout
    assert shop.state(code=1)["queue"]["dead"] == 2
    assert f"sqla-vector dead list --index {shop.name}" in shop("es", "status").stdout
    without = shop("dead", "list")
    assert f"2 dead entries of an index: --index {shop.name}" in without.stderr
    listed = shop.json("dead", "list", "--index", shop.name)
    assert {entry["reason"] for entry in listed["entries"]} == {"too long"}
    assert shop.json("dead", "replay", "--index", shop.name, "--key", "1") == {"replayed": 1}
    assert shop("dead", "drop", "--index", shop.name, "--all").exit_code == 2  # nobody can be asked
    assert shop.json("dead", "drop", "--index", shop.name, "--all", "--yes") == {"dropped": 1}
    assert shop.json("es", "sync", "--until-empty")["written"] == 1
    unknown = shop("dead", "list", "--index", "nothing")
    assert unknown.exit_code == 2
    assert 'there is no index "nothing"' in unknown.stderr
    assert shop("dead", "list", "--index", "_all").exit_code == 2


def _filled(shop: IndexedShop) -> None:
    shop.add("a banana", "trees", "the banana tree")
    shop("worker", "--until-empty")
    assert shop("es", "rebuild").exit_code == 0
    shop("es", "sync", "--until-empty")
    shop.client.indices.refresh(index=shop.name)


def test_search_by_vector_by_words_and_by_both(shop: IndexedShop) -> None:
    _filled(shop)
    nearest = shop.json("es", "search", shop.name, "a banana", "--by", "vector")["hits"]
    assert (nearest[0]["key"], nearest[0]["fields"]["title"]) == ("1", "a banana")
    assert nearest[0]["distance"] == pytest.approx(0, abs=1e-6)
    words = shop.json("es", "search", shop.name, "banana", "--by", "text")["hits"]
    assert {hit["key"] for hit in words} == {"1", "3"}
    assert words[0]["distance"] is None
    both = shop("es", "search", shop.name, "trees", "-k", "1")
    assert both.stdout.splitlines()[1].split()[:2] == ["1", "2"]
    nothing = shop("es", "search", shop.name, "zebra", "--by", "text")
    assert (nothing.exit_code, nothing.stdout) == (1, "")


@ONE_OF_EACH
def test_search_for_what_is_like_a_row(shop: IndexedShop) -> None:
    _filled(shop)
    assert shop.json("es", "search", shop.name, "--like", "2")["hits"][0]["key"] == "2"
    for key, reason in (("7", "has no row 7"), ("x", 'has the key "x"'), ("[1", 'has the key "[1"')):
        refused = shop("es", "search", shop.name, "--like", key)
        assert refused.exit_code == 2
        assert reason in refused.stderr
    shop.sql("UPDATE article SET embedding = NULL WHERE id = 2")
    assert "has no vector in embedding yet" in shop("es", "search", shop.name, "--like", "2").stderr


@WITHOUT_SERVER
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["search", "{name}"], "give what is searched for, or --like"),
        (["search", "{name}", "x", "--like", "1"], "give what is searched for, or --like"),
        (["search", "{name}", "x", "--field", "title"], 'no field of vectors "title"; it has: embedding'),
        (["search", "{name}-pages", "x", "--by", "vector"], "has no vectors of the rows themselves"),
        (["status", "nothing"], 'there is no index "nothing"; there are: '),
        (["sync", "*"], 'there is no index "*"'),
        (["check", "_all"], 'there is no index "_all"'),
        (["rebuild", "../x"], 'there is no index "../x"'),
        (["create", "{name}*"], "there is no index"),
        (["status", "--elasticsearch", "{module}:nothing"], "has no attribute nothing; --elasticsearch names"),
        (["status", "--elasticsearch", "nothing"], "--elasticsearch is module:attribute"),
        (["status", "--elasticsearch", "{module}:name"], "got str"),
        (["status", "--elasticsearch", "{module}:make_other_client"], "with these sessions"),
        (["status", "--elasticsearch", "{module}:make_later"], "is asynchronous; name a function that returns"),
        (["status", "--elasticsearch", "{module}:fail"], "failed: RuntimeError: no client"),
        (["sync", "--timeout", "300"], "lease (300 s) must be longer than timeout (300 s)"),
    ],
)
def test_bad_input_ends_with_2_and_a_sentence(shop: IndexedShop, arguments: list[str], reason: str) -> None:
    given = [one.format(name=shop.name, module=shop.module) for one in arguments]
    refused = shop("es", *given)
    assert refused.exit_code == 2, refused.output
    assert reason in refused.stderr
    assert "hunter" not in refused.output
    assert refused.stdout == ""


@ONE_OF_EACH
def test_the_applications_own_client_is_used(shop: IndexedShop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELASTICSEARCH_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("SQLA_VECTOR_ELASTICSEARCH", f"{shop.module}:make_client")
    assert shop("es", "create").exit_code == 0
    assert shop.state()["documents"] == 0


@WITHOUT_SERVER
@pytest.mark.parametrize("command", ["create", "status", "check", "rebuild", "search"])
def test_a_server_that_is_out_of_reach_is_3_and_no_secret_is_shown(
    shop: IndexedShop, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELASTICSEARCH_URL", "http://me:hunter2222@127.0.0.1:1")
    arguments = [shop.name, "x", "--by", "text"] if command == "search" else []
    failed = shop("es", command, *arguments, "--traceback")
    assert failed.exit_code == 3, failed.output
    assert "did not answer" in failed.stderr
    assert "hunter2222" not in failed.output
    assert "bWU6aHVudGVyMjIyMg" not in failed.output  # as it is in the header


@ONE_OF_EACH
def test_a_sync_waits_for_a_server_that_is_out_of_reach(shop: IndexedShop) -> None:
    environment = {**shop.environment, "ELASTICSEARCH_URL": "http://me:hunter2222@127.0.0.1:1"}
    shop.add("one")
    process = shop.start("es", "sync", env=environment)
    try:
        said = wait_for(process.stderr, "cannot be used, next attempt in")
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, rest
    assert "hunter2222" not in said + rest
    assert len(shop.entries()) == 2  # nothing is lost: that of the vector, that of the document


@ONE
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (None, "no Elasticsearch was named; give --elasticsearch"),
        ("search.example", "ELASTICSEARCH_URL is no address"),
        ("file:///etc/passwd", "ELASTICSEARCH_URL is no address"),
        ("me:hunter2222@search.example", "ELASTICSEARCH_URL is no address"),
    ],
)
def test_an_address_that_is_none(
    shop: IndexedShop, url: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if url is None:
        monkeypatch.delenv("ELASTICSEARCH_URL")
    else:
        monkeypatch.setenv("ELASTICSEARCH_URL", url)
    refused = shop("es", "status")
    assert refused.exit_code == 2
    assert reason in refused.stderr
    assert "hunter2222" not in refused.output


@ONE
def test_the_key_of_the_environment_is_sent_and_never_shown(shop: IndexedShop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELASTICSEARCH_API_KEY", "hunter2222-key")
    assert shop("es", "create").exit_code == 0  # a server without security takes every key
    shop.sql("UPDATE vector_outbox SET reason = 'hunter2222-key'")
    assert "hunter2222" not in shop("es", "status", "--traceback").output


@ONE_OF_EACH
def test_several_processes_share_the_work(shop: IndexedShop) -> None:
    shop("es", "create")
    rows = [{"title": f"article {number}"} for number in range(60)]
    shop.connection(lambda c: c.execute(insert(shop.models.Article.__table__), rows))
    done = shop.script("es", "sync", "--workers", "2", "--until-empty", "--batch-size", "5", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["written"] == 60
    assert "2 processes: " in done.stderr
    assert len(shop.titles) == 60


@ONE_OF_EACH
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_sync_with_0(shop: IndexedShop, number: int) -> None:
    shop("es", "create")
    shop.add("one")
    process = shop.start("es", "sync", "--poll", "0.05")
    try:
        _wait_until_empty(shop)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert "1 written" in said
    assert "ResourceWarning" not in said
    assert "Unclosed" not in said


def _wait_until_empty(shop: IndexedShop) -> None:
    channel = shop.models.articles.channel
    while any(entry.channel == channel for entry in shop.entries()):
        pass


@ONE_OF_EACH
def test_a_sync_of_an_index_that_is_not_there_ends_when_it_shall_be_emptied(shop: IndexedShop) -> None:
    shop("es", "create", f"{shop.name}-pages")
    shop.add("one")
    failed = shop("es", "sync", "--until-empty")
    assert failed.exit_code == 2
    assert f"there is no index {shop.name}" in failed.stderr
    assert not shop.client.indices.exists(index=shop.name)


@ONE_OF_EACH
def test_nothing_is_left_open(shop: IndexedShop) -> None:
    commands = (["es", "create"], ["es", "status"], ["es", "sync", "--until-empty"], ["es", "check"], ["doctor"])
    for arguments in commands:
        done = shop.script(*arguments, env={**shop.environment, "PYTHONWARNINGS": "always::ResourceWarning"})
        assert done.returncode == 0, done.stdout + done.stderr
        assert "ResourceWarning" not in done.stderr
        assert "Unclosed" not in done.stderr


@ONE_OF_EACH
def test_doctor_looks_at_the_server_and_the_indexes(shop: IndexedShop, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = shop("doctor")
    assert missing.exit_code == 1
    assert f"fail  index {shop.name}: is not there" in missing.stdout
    shop("es", "create")
    well = shop("doctor")
    assert well.exit_code == 0, well.stdout
    (version,) = {node["version"] for node in shop.client.nodes.info()["nodes"].values()}
    assert f"ok    elasticsearch: version {version}" in well.stdout
    assert f"ok    index {shop.name}: is {shop.name}-" in well.stdout
    shop.client.indices.put_settings(index=shop.name, settings={"index.blocks.read_only_allow_delete": True})
    shop.client.indices.put_settings(index=f"{shop.name}-pages", settings={"index.refresh_interval": "7s"})
    findings = {(one["state"], one["subject"]) for one in shop.json("doctor", code=1)["findings"]}
    assert ("fail", f"index {shop.name}") in findings
    assert ("warn", f"index {shop.name}-pages") in findings
    assert "index.blocks.read_only_allow_delete" in shop("doctor").stdout
    monkeypatch.setenv("ELASTICSEARCH_URL", "http://me:hunter2222@127.0.0.1:1")
    away = shop("doctor")
    assert away.exit_code == 1
    assert "fail  elasticsearch: Elasticsearch did not answer" in away.stdout
    assert "hunter2222" not in away.output
    monkeypatch.delenv("ELASTICSEARCH_URL")
    assert "fail  elasticsearch: no Elasticsearch was named" in shop("doctor").stdout


@ONE
def test_doctor_tells_of_what_is_dead_and_of_a_rebuild(shop: IndexedShop) -> None:
    from sqla_vector.elasticsearch.creation import create

    shop("es", "create")
    begun = create(shop.client, shop.models.articles, "begun", alias=f"{shop.name}-rebuild")
    shop.add("one")
    shop.sql("UPDATE vector_outbox SET state = 'dead'")
    shop.client.indices.put_mapping(index=shop.models.pages.name, dynamic="true")
    shown = shop("doctor")
    assert shown.exit_code == 1
    assert f"warn  index {shop.name}: 1 entries are dead; sqla-vector dead list --index {shop.name}" in shown.stdout
    assert f"ok    index {shop.name}: is being rebuilt, as {begun}" in shown.stdout
    assert f"fail  index {shop.name}-pages: " in shown.stdout
    assert "dynamic is true, and strict is declared" in shown.stdout


@pytest.mark.parametrize(
    ("version", "state", "words"),
    [
        ("8.18.9", "fail", "8.19 is needed at least"),
        ("7.17.0", "fail", "8.19 is needed at least"),
        (f"{elasticsearch.__version__[0]}.99.0-SNAPSHOT", "ok", "nothing that is used takes a licence"),
        (f"{elasticsearch.__version__[0] + 1}.0.0", "ok", f"version {elasticsearch.__version__[0] + 1}.0.0, client "),
    ],
)
def test_the_client_has_to_go_with_the_server(version: str, state: str, words: str) -> None:
    found = version_finding(version)
    assert found.state == state
    assert words in found.message


def test_a_client_that_is_newer_than_the_server_is_named() -> None:
    found = version_finding("8.19.2")
    is_newer = elasticsearch.__version__[0] > 8
    assert found.state == ("fail" if is_newer else "ok")
    assert ("pip install 'elasticsearch<9'" in found.message) == is_newer


@ONE_OF_EACH
def test_a_sync_that_fails_stops_those_of_other_indexes(shop: IndexedShop) -> None:
    shop("es", "create")
    shop.add("one")
    shop("es", "sync", "--until-empty")
    body = shop.client.get(index=shop.name, id="1")["_source"]
    shop.client.index(index=shop.name, id="1", document=body, version=10**12, version_type="external", refresh=True)
    shop.sql("UPDATE article SET title = 'two'")
    failed = shop("es", "sync")  # until it is stopped
    assert failed.exit_code == 2
    assert "restored from a backup" in failed.stderr


@ONE
def test_an_application_without_an_index_says_so(
    backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Shop(tmp_path, backend, monkeypatch)
    try:
        refused = plain("es", "status")
        assert refused.exit_code == 2
        assert "has no index; declare one by SearchIndex" in refused.stderr
        assert plain.json("status")["indexes"] == {}
    finally:
        plain.close()


@ONE
def test_without_the_client_the_command_names_the_package(shop: IndexedShop) -> None:
    (shop.directory / "elasticsearch.py").write_text("raise ImportError('not installed')")
    program = "import sys; sys.path.insert(0, '.'); from sqla_vector.cli.start import main; main()"
    source = (
        (shop.directory / f"{shop.module}.py")
        .read_text()
        .replace("from elasticsearch import AsyncElasticsearch, Elasticsearch\n", "")
    )
    (shop.directory / f"{shop.module}.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "-c", program, "es", "status"],
        capture_output=True,
        text=True,
        env=shop.environment,
        timeout=60,
    )
    assert done.returncode == 2
    assert "pip install 'sqla-vector[elasticsearch]'" in done.stderr
