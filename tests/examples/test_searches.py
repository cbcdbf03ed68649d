"""The examples of searches in SQL, run as a user runs them, on both databases."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import sqlite

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Give the arguments that name the database."""
    if request.param == "sqlite":
        if reason := sqlite.why_vec_unavailable():
            pytest.skip(reason)
        yield []
    else:
        server: Any = request.getfixturevalue("postgresql_server")
        with server.database() as found:
            yield ["--url", found.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)]


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def listed(output: str, what: str) -> list[str]:
    """Return the names below a line, best first."""
    part = re.search(rf"^{re.escape(what)}:\n((?:  .*\n)+)", output, re.MULTILINE)
    assert part is not None, output
    return [line.split()[2] for line in part[1].splitlines()]


def test_basic_vector_search(url: list[str]) -> None:
    output = run("basic_vector_search.py", *url)
    nearest = listed(output, "the 3 nearest")
    assert nearest[0] == "random.Random.choice"
    assert len({*nearest, *listed(output, "the next 3")}) == 6
    assert len(listed(output, "the 3 nearest classes")) == 3
    assert "math.isqrt" in listed(output, "most like math.sqrt")
    assert "the best hit: random.Random.choice, similarity 0." in output
    assert re.search(r"^\d+ of \d+ are at least 0.3 similar$", output, re.MULTILINE)
    assert "basic_entry_embedding" in output.splitlines()[-1]


def test_hybrid_search(url: list[str]) -> None:
    output = run("hybrid_search.py", *url)
    lists = ("by both", "by both, words count for a tenth", "by two vectors and words", "functions preferred")
    for what in lists:
        assert len(listed(output, what)) == 5
        assert listed(output, what)[0] == "random.Random.choice"
    different = listed(output, "that differ")
    assert len({*different}) == 5
    assert different != listed(output, "by both")
    classes = listed(output, "by both, classes only")
    assert len(classes) == 5
    assert all(re.search(rf"\bclass +{re.escape(name)} ", output) for name in classes)
    assert re.search(r"random\.Random\.choice  \(text 1, name 1, words 1\)", output)
    archives = listed(run("hybrid_search.py", "read a zip archive", *url), "by both")
    assert any(name.startswith("zipfile") for name in archives)
