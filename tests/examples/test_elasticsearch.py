"""The examples on Elasticsearch, run as a user runs them."""

from __future__ import annotations

import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from elasticsearch import Elasticsearch

from tests.support import sqlite
from tests.support.elasticsearch_server import Server

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _sqlite_vec_is_there() -> None:
    if reason := sqlite.why_vec_unavailable():
        pytest.skip(reason)


@pytest.fixture
def index(elasticsearch_node: Server) -> Iterator[str]:
    """A name that no index has; that none is left is a part of each test."""
    name = f"sqla-vector-test-{uuid.uuid4().hex[:12]}"
    yield name
    with Elasticsearch(elasticsearch_node.url, request_timeout=60) as client:
        left = list(client.indices.get(index=f"{name}*", expand_wildcards="all", features="aliases"))
        for physical in left:
            client.indices.delete(index=physical)
    assert left == []


@pytest.fixture
def postgresql(postgresql_server: Any) -> Iterator[str]:
    with postgresql_server.database() as url:
        yield url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def listed(output: str, what: str) -> list[str]:
    """Return the names below a line."""
    part = re.search(rf"^{re.escape(what)}:\n((?:  .*\n)+)", output, re.MULTILINE)
    assert part is not None, output
    return [line.split()[-1] for line in part[1].splitlines()]


def check_hybrid(output: str) -> None:
    written, rows = map(int, output.partition(" documents written")[0].split(" of "))
    assert written == rows > 100
    assert any(name.startswith("random.") for name in listed(output, "by meaning"))
    for what in ("by meaning", "by words", "by both", "by both, words count for a tenth"):
        assert len(listed(output, what)) == 3
    classes = listed(output, "by both, classes only")
    assert classes
    assert all(re.search(rf"\bclass +{re.escape(name)}$", output, re.MULTILINE) for name in classes)
    assert re.search(r"\"file\": \{.*'function': \d+", output)
    assert '"tangerines" finds math.sqrt: Unpack a parcel of tangerines.' in output
    assert output.endswith("equal to the database: True\n")


def test_hybrid_search_beside_sqlite(elasticsearch_node: Server, index: str) -> None:
    check_hybrid(run("elasticsearch_hybrid_search.py", "--elasticsearch", elasticsearch_node.url, "--index", index))


def test_hybrid_search_beside_postgresql(elasticsearch_node: Server, index: str, postgresql: str) -> None:
    check_hybrid(
        run(
            "elasticsearch_hybrid_search.py",
            "--elasticsearch",
            elasticsearch_node.url,
            "--index",
            index,
            "--url",
            postgresql,
        )
    )


def test_all_backends_give_the_same_rows(elasticsearch_node: Server, index: str, postgresql: str) -> None:
    output = run(
        "vector_multi_backend.py",
        *("--postgresql", postgresql),
        *("--elasticsearch", elasticsearch_node.url, "--index", index),
    )
    for backend in ("SQLite", "Elasticsearch", "PostgreSQL"):
        assert f"{backend}: 4 questions, 10 rows each, the same rows and distances\n" in output
    assert re.search(r"^square root: math\.sqrt 0\.\d{3}", output, re.MULTILINE)


def test_without_servers_sqlite_answers_alone() -> None:
    output = run("vector_multi_backend.py")
    assert "SQLite: 4 questions, 10 rows each, the same rows" in output
    assert "PostgreSQL" not in output
    assert "Elasticsearch" not in output
