"""The demo, run as a user runs it: as a program of its own, into a pipe."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "examples" / "search_python_docs.py"
SOME_MODULES = ("--modules", "csv,json,math,random,shutil")


def run(*arguments: str, without_sqlite_vec: bool = False) -> str:
    """Run the program and return what it printed; warnings are errors."""
    command = [sys.executable, "-W", "error", str(PROGRAM), *arguments]
    if without_sqlite_vec:
        script = (
            "import runpy, sys; sys.modules['sqlite_vec'] = None; sys.argv = sys.argv[1:];"
            "runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        command[3:3] = ["-c", script]
    # An encoding that has none of the table's characters: the program must survive every terminal.
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def names(output: str, title: str) -> list[str]:
    """Return the names in the table under a title, in order."""
    found: list[str] = []
    for line in output.split(f"\n{title}: ", 1)[1].splitlines()[1:]:
        if match := re.match(r"\W+\d+\W+([\w.]+)", line):
            found.append(match[1])
        elif found:
            break
    return found


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'docs.db'}"


def test_the_whole_standard_library_is_indexed_once_and_found(sqlite_url: str):
    first = run("--url", sqlite_url)
    read = re.search(r"([\d,]+) docstrings read", first)
    assert read is not None
    assert int(read[1].replace(",", "")) > 3_000
    assert "csv" in {name.split(".")[0] for name in names(first, "read a csv file")}
    assert "shutil.copytree" in names(first, "copy a directory tree")
    assert {"math.sqrt", "cmath.sqrt"} & set(names(first, "square root"))
    assert "asyncio.tasks.Task" in names(first, "wait for several tasks (class)")

    second = run("--url", sqlite_url, "read", "a", "csv", "file")
    assert "docstrings read" not in second, "the index is used again"
    found = names(second, "read a csv file")
    assert len(found) == 5
    assert found[0].startswith("csv")
    assert len(names(second, f"more like {found[0]}")) == 3


def test_the_same_answers_come_from_postgresql(sqlite_url: str, postgresql_server):
    question = ("random numbers", "--k", "7")
    with postgresql_server.database() as url:
        shown = url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
        answers = [run("--url", shown, *SOME_MODULES, *question) for _ in range(2)]
    assert "searched by hnsw" in answers[0]
    assert "docstrings read" not in answers[1], "the index is used again"
    expected = run("--url", sqlite_url, *SOME_MODULES, *question)
    for answer in answers:
        assert names(answer, "random numbers") == names(expected, "random numbers")
    assert len(names(expected, "random numbers")) == 7


def test_without_sqlite_vec_it_says_so_and_scans(sqlite_url: str):
    output = run("--url", sqlite_url, *SOME_MODULES, "square root", without_sqlite_vec=True)
    assert "sqlite-vec cannot be loaded" in output
    assert names(output, "square root")[0].startswith("math.")


def test_a_question_of_unknown_words_is_answered_in_words(sqlite_url: str):
    assert "No word of" in run("--url", sqlite_url, *SOME_MODULES, "xyzzy")


def test_another_choice_of_modules_builds_the_index_again(sqlite_url: str):
    assert "docstrings read" in run("--url", sqlite_url, *SOME_MODULES, "csv")
    assert "docstrings read" in run("--url", sqlite_url, "--modules", "csv,json", "csv")
    assert "docstrings read" in run("--url", sqlite_url, "--modules", "csv,json", "--rebuild", "csv")
