"""The script as a process of its own: terminals, pipes, signals, and what a user gets wrong."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import sqla_vector
from sqla_vector.cli.program import program
from tests.cli.conftest import SCRIPT, Shop, on_terminal, wait_for

SQLITE = pytest.mark.backends("pysqlite3", "sqlite_stdlib")
BOTH = pytest.mark.backends("psycopg", "asyncpg", "pysqlite3", "sqlite_stdlib", "aiosqlite")


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {name: value for name, value in os.environ.items() if name not in ("SQLA_VECTOR_APP", "PYTHONPATH")}
    return subprocess.run(
        [SCRIPT, *arguments], cwd=cwd, env={**known, **environment}, capture_output=True, text=True, timeout=60
    )


# What a user gets wrong.


@pytest.mark.parametrize(
    ("app", "words"),
    [
        (None, "no application was named; give --app module:attribute, or set SQLA_VECTOR_APP"),
        ("", "no application was named"),
        ("shop", "--app is module:attribute"),
        ("shop:", "--app is module:attribute"),
        ("../shop:Session", "--app is module:attribute"),
        ("nowhere.db:Session", "there is no module nowhere, neither in"),
        ("json.nowhere:Session", "there is no module json.nowhere"),
        ("broken:Session", "broken cannot be imported: ZeroDivisionError: division by zero (broken.py, line 1)"),
        ("needy:Session", "needy cannot be imported: ModuleNotFoundError: No module named 'not_installed'"),
        ("leaving:Session", "leaving cannot be imported: SystemExit: 0"),
        ("unset:Session", "unset cannot be imported: the environment variable NOWHERE_URL is not set"),
        ("json:Session", "json has no attribute Session"),
        ("json:dumps", "json:dumps failed: TypeError"),
        ("json:decoder", "json:decoder is no sessionmaker and no async_sessionmaker, but module"),
        ("postgresql://me:hunter22@db/x:y", '--app is module:attribute, such as myapp.db:Session; got "postgresql://me:***@'),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_application_is_said_in_one_sentence(
    app: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "needy.py").write_text("import not_installed\n")
    (tmp_path / "leaving.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "unset.py").write_text("import os\nos.environ['NOWHERE_URL']\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SQLA_VECTOR_APP", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    done = CliRunner().invoke(program, ["status", *([] if app is None else ["--app", app])])
    assert words in done.stderr
    assert (done.exit_code, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "hunter22" not in done.stderr


def test_an_application_that_cannot_be_imported_is_said_by_the_script_too(tmp_path: Path):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    done = run("status", "--json", "--app", "broken:x", cwd=tmp_path)
    said = "broken cannot be imported: ZeroDivisionError: division by zero (broken.py, line 1)"
    assert (done.returncode, json.loads(done.stdout), done.stderr) == (2, {"error": said}, f"sqla-vector: {said}\n")


def test_a_traceback_is_shown_if_it_is_asked_for(tmp_path: Path):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    done = run("status", "--app", "broken:x", "--traceback", cwd=tmp_path)
    assert "Traceback (most recent call last)" in done.stderr
    assert "ZeroDivisionError" in done.stderr


@SQLITE
@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        ("untracked", "are not tracked; call track(untracked, ...) in the module"),
        ("make_later", "is asynchronous; name a function that returns"),
        ("need", "failed: TypeError"),
        ("engine", "is no sessionmaker and no async_sessionmaker, but Engine"),
        ("nothing", "has no attribute nothing"),
    ],
)
def test_what_an_attribute_must_be_is_said(shop: Shop, attribute: str, words: str):
    assert words in shop.json("status", "--app", f"{shop.module}:{attribute}", code=2)["error"]


@BOTH
def test_a_function_that_returns_the_sessions_is_as_good(shop: Shop):
    done = shop.script("status", "--json", "--app", f"{shop.module}:make")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["total"]["pending"] == 0
    assert "this application talks" in done.stderr  # what it prints is not in the result


@SQLITE
@pytest.mark.parametrize(
    "arguments",
    [
        ["worker", "--batch-size", "0"],
        ["worker", "--batch-size", "-1"],
        ["worker", "--batch-size", "1000000000"],
        ["worker", "--batch-size", "many"],
        ["worker", "--lease", "0"],
        ["worker", "--lease", "nan"],
        ["worker", "--lease", "10", "--timeout", "10"],
        ["worker", "--attempts", "-1"],
        ["worker", "--poll", "inf"],
        ["worker", "--workers", "0"],
        ["worker", "--unknown"],
        ["dead", "list", "--older-than", "yesterday"],
        ["dead", "list", "--older-than", "-1h"],
        ["dead", "list", "--limit", "0"],
        ["status", "--watch", "0"],
        ["check", "--column", "Nothing.embedding"],
        ["check", "--column", "Article.title"],
        ["nothing"],
    ],
    ids=" ".join,
)
def test_options_out_of_their_range_are_refused(shop: Shop, arguments: list[str]):
    shop.add("one")
    done = shop(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr
    assert shop.vectors() == 0


@pytest.mark.parametrize("arguments", [["{}"], ["worker", "--poll", "{}"]])
def test_a_password_is_not_repeated_where_it_was_typed_in_the_wrong_place(arguments: list[str], tmp_path: Path):
    done = run(*(word.format("postgresql://me:hunter22@db/x") for word in arguments), cwd=tmp_path)
    assert done.returncode == 2
    assert "hunter22" not in done.stderr
    assert len(arguments) > 1 or "postgresql://me:***@db/x" in done.stderr


def test_without_its_packages_the_command_line_says_what_to_install(tmp_path: Path):
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError(\"No module named 'typer'\", name='typer')\n")
    done = subprocess.run(
        [sys.executable, "-m", "sqla_vector.cli.start", "status"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(sqla_vector.__file__).parents[1]}"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2
    assert done.stderr == "sqla-vector needs the package typer; run: pip install 'sqla-vector[cli]'\n"


def test_version_and_help_need_no_application(tmp_path: Path):
    assert run("--version", cwd=tmp_path).stdout == f"sqla-vector {sqla_vector.__version__}\n"
    shown = CliRunner().invoke(program, ["--help"]).stdout
    assert "Exit codes" in shown
    for command in ("check", "worker", "backfill", "model", "status", "dead", "doctor"):
        assert command in shown
        assert CliRunner().invoke(program, [command, "--help"]).exit_code == 0


# Databases that cannot be reached.


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg"])
@pytest.mark.backends("psycopg")
def test_a_database_that_cannot_be_reached_has_an_exit_code_of_its_own(shop: Shop, driver: str):
    url = f"postgresql+{driver}://me:hunter22@127.0.0.1:1/x"
    for command in (["status"], ["check"], ["dead", "list"]):
        done = shop.script(*command, "--json", env={**shop.environment, "SHOP_URL": url})
        assert done.returncode == 3, done.stderr
        assert json.loads(done.stdout)["error"].startswith("the database cannot be reached")
        assert "hunter22" not in done.stdout + done.stderr
    done = shop.script("doctor", env={**shop.environment, "SHOP_URL": url})
    assert done.returncode == 1
    assert "fail  database: the database cannot be reached" in done.stdout
    assert "hunter22" not in done.stdout + done.stderr


@pytest.mark.backends("psycopg", "asyncpg")
def test_a_wrong_password_is_not_repeated(shop: Shop):
    url = shop.backend.url.set(database="missing_database").render_as_string(hide_password=False)
    done = shop.script("status", "--traceback", env={**shop.environment, "SHOP_URL": url})
    assert done.returncode == 3, done.stderr
    assert "missing_database" in done.stderr


@SQLITE
def test_an_empty_database_is_named_with_the_command_that_tells_more(shop: Shop, tmp_path: Path):
    done = shop.script("status", env={**shop.environment, "SHOP_URL": f"sqlite:///{tmp_path}/empty.db"})
    assert done.returncode == 2
    assert "no such table" in done.stderr
    assert "sqla-vector doctor" in done.stderr


@SQLITE
def test_the_doctor_misses_the_plugin_on_sqlite(shop: Shop):
    done = shop.script("doctor", env={**shop.environment, "SHOP_PLUGINS": ""})
    assert done.returncode == 1
    assert "fail  plugin: SQLite needs sqla_vector's functions" in done.stdout


# Terminals and pipes.


@BOTH
def test_dropping_is_refused_where_nobody_can_be_asked(shop: Shop):
    shop.add("one")
    shop.sql("UPDATE vector_outbox SET state = 'dead'")
    done = shop.script("dead", "drop", "--all")
    assert done.returncode == 2
    assert "1 dead entry will be deleted. This is not a terminal, so nobody can be asked: give --yes" in done.stderr
    assert len(shop.entries()) == 1
    assert shop.script("dead", "drop", "--all", "--yes").returncode == 0
    assert shop.entries() == []


@SQLITE
@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, 0), ("n\n", 2, 1), ("\n", 2, 1), ("\x04", 2, 1)])
def test_on_a_terminal_dropping_is_asked_about(shop: Shop, answer: str, code: int, left: int):
    shop.add("one")
    shop.sql("UPDATE vector_outbox SET state = 'dead'")
    ended, shown = on_terminal(["dead", "drop", "--all"], shop, answer)
    assert "1 dead entry will be deleted. Go on? [y/N]" in shown
    assert (ended, len(shop.entries())) == (code, left)


@SQLITE
def test_a_terminal_shows_a_table_and_what_a_reason_holds_does_nothing_to_it(shop: Shop):
    shop.add("one")
    shop.sql("UPDATE vector_outbox SET state = 'dead', reason = 'a' || char(27) || '[31m [red]b' || char(10) || 'c'")
    for environment in ({}, {"NO_COLOR": "1"}):
        code, shown = on_terminal(["dead", "list"], shop, **environment)
        assert code == 0
        assert "a [31m [red]b c" in shown
        assert "\x1b[31m" not in shown
    assert "\x1b" not in shown  # with NO_COLOR
    assert "\x1b" not in shop.script("dead", "list").stdout


@SQLITE
def test_nobody_complains_of_a_reader_that_has_gone(shop: Shop):
    shop.add(*(f"text {number}" for number in range(3)))
    shop.sql("UPDATE vector_outbox SET state = 'dead', reason = 'refused'")
    process = shop.start("dead", "list")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 141
    assert said == "this application talks as it is imported\n"


# Signals.


@BOTH
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_that_is_told_to_stop_finishes_what_it_has(shop: Shop, number: int):
    shop.add("slow one")
    worker = shop.start("worker", "--json")
    wait_for(worker.stderr, "embedding begins")
    worker.send_signal(number)
    wait_for(worker.stderr, "stops when its batch is finished")
    (shop.directory / "go").touch()
    out, _ = worker.communicate(timeout=60)
    assert worker.returncode == 0
    assert json.loads(out)["written"] == 1
    assert shop.vectors() == 1


@BOTH
def test_a_worker_that_is_told_twice_ends_at_once_and_loses_nothing(shop: Shop):
    shop.add("slow one")
    worker = shop.start("worker", "--lease", "1", "--timeout", "0.9")
    wait_for(worker.stderr, "embedding begins")
    worker.send_signal(signal.SIGTERM)
    wait_for(worker.stderr, "stops when its batch is finished")
    worker.send_signal(signal.SIGTERM)
    worker.communicate(timeout=60)
    assert worker.returncode == -signal.SIGTERM
    (shop.directory / "go").touch()
    assert shop.script("worker", "--until-empty").returncode == 0
    assert shop.vectors() == 1


@BOTH
def test_two_workers_at_once_share_the_work(shop: Shop):
    shop.add(*(f"text {number}" for number in range(40)))
    both = [shop.start("worker", "--until-empty", "--batch-size", "5", "--json") for _ in range(2)]
    written = [json.loads(worker.communicate(timeout=120)[0])["written"] for worker in both]
    assert sum(written) == shop.vectors() == 40


@BOTH
def test_a_crew_shares_the_work_and_tells_what_all_of_it_did(shop: Shop):
    shop.add(*(f"text {number}" for number in range(20)))
    done = shop.script("worker", "--workers", "2", "--until-empty", "--batch-size", "3", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["written"] == shop.vectors() == 20


@SQLITE
def test_a_crew_is_stopped_by_one_signal_to_all_of_it(shop: Shop):
    shop.add("slow one")
    crew = shop.start("worker", "--workers", "2", start_new_session=True)
    wait_for(crew.stderr, "embedding begins")
    os.killpg(crew.pid, signal.SIGTERM)  # as a supervisor does
    wait_for(crew.stderr, "the worker processes stop")
    (shop.directory / "go").touch()
    crew.communicate(timeout=60)
    assert crew.returncode == 0
    assert shop.vectors() == 1


@SQLITE
def test_a_crew_whose_members_fail_ends_with_their_code(shop: Shop):
    done = shop.script("worker", "--workers", "2", "--app", "nowhere:x")
    assert done.returncode == 2
    assert "there is no module nowhere" in done.stderr


@SQLITE
def test_a_crew_ends_with_the_one_that_looks_after_it(shop: Shop):
    crew = shop.start("worker", "--workers", "2", "--poll", "0.05")
    wait_for(crew.stderr, " starts")
    wait_for(crew.stderr, " starts")
    crew.kill()
    # Standard error stays open as long as a member has it.
    readable, _, _ = select.select([crew.stderr], [], [], 60)
    assert readable
    crew.communicate(timeout=60)


@SQLITE
def test_interrupted_commands_end_with_130(shop: Shop):
    process = shop.start("status", "--watch", "600")
    wait_for(process.stderr, "this application talks")
    shop.sql("SELECT 1")
    _interrupt_when(process, lambda: "S" in Path(f"/proc/{process.pid}/stat").read_text().split(")")[1])
    process.communicate(timeout=60)
    assert process.returncode == 130


def _interrupt_when(process: subprocess.Popen[str], is_waiting: Callable[[], bool]) -> None:
    while not is_waiting():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
