"""The examples on texts and vectors, run as a user runs them."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.support import sqlite

EXAMPLES = Path(__file__).parents[2] / "examples"
PRODUCTION = EXAMPLES / "worker_in_production"
SQLA_VECTOR = [sys.executable, "-W", "error", "-c", "from sqla_vector.cli.start import main; main()"]


@pytest.fixture(autouse=True)
def _sqlite_vec_is_there() -> None:
    if reason := sqlite.why_vec_unavailable():
        pytest.skip(reason)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'example.db'}"
        return
    with request.getfixturevalue("postgresql_server").database() as found:
        yield found.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def run(*command: str, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_vectors_follow_their_texts(url: str) -> None:
    output = run(sys.executable, "-W", "error", str(EXAMPLES / "text_to_vector_sync.py"), "--url", url)
    embedded = dict(re.findall(r"^(\S.*?)  +texts embedded: (.*)$", output, re.MULTILINE))
    rows = int(output.split(" entries added")[0])
    assert rows > 100
    assert embedded == {
        f"{rows} entries added": f"[{rows}]",
        "a column changed that is no source": "none",
        "a text changed": "[1]",
        "a change taken back before it was written": "none",
        "a text removed": "none",
        "a row deleted": "none",
    }
    assert '"read rows of a csv file" finds csv' in output
    assert '"random password of digits" finds math.sqrt' in output
    assert "a row without text has the vector None" in output
    assert output.endswith(f"{rows - 1} of {rows - 1} rows have the vector of their text\n")


def test_rows_that_are_there_are_embedded(url: str) -> None:
    output = run(sys.executable, "-W", "error", str(EXAMPLES / "embed_existing_data.py"), "--url", url)
    rows = int(output.split(" rows,")[0])
    assert rows > 300
    assert f"check: {rows} missing, 0 current" in output
    assert f"Entry.embedding: {rows:,} of {rows:,} rows to embed, about" in output
    assert f"Entry.embedding: {rows:,} rows, {rows:,} written\n" in output
    assert f"Entry.embedding: {rows:,} rows, 0 written, {rows:,} current\n" in output
    assert re.search(r"^  0\.\d+  textwrap\.\w+$", output, re.MULTILINE)
    assert f"check: 1 stale, {rows - 1} current" in output
    assert output.endswith("all rows are current\n")


def test_the_worker_of_the_production_example_embeds_and_stops_gracefully(url: str) -> None:
    environment = {**os.environ, "DATABASE_URL": url, "SQLA_VECTOR_APP": "app:Session"}
    environment.pop("EMBEDDER_URL", None)
    here: dict[str, Any] = {"cwd": PRODUCTION, "env": environment}
    rows, embedded = re.findall(r"\d+", run(sys.executable, "-W", "error", "app.py", **here))
    assert (int(rows) > 100, embedded) == (True, "0")
    options = worker_options()
    worker = subprocess.Popen([*SQLA_VECTOR, *options], stderr=subprocess.PIPE, text=True, **here)
    try:
        while json.loads(run(*SQLA_VECTOR, "status", "--json", **here))["total"]["pending"]:
            assert worker.poll() is None
        worker.send_signal(signal.SIGTERM)
        _, log = worker.communicate(timeout=60)
    finally:
        worker.kill()
    assert worker.returncode == 0, log
    assert f"{rows} written" in log.replace(",", "")


def worker_options() -> list[str]:
    """Return what the container runs, without the program's name."""
    text = (PRODUCTION / "Dockerfile").read_text()
    found = re.search(r"^CMD (\[.*\])$", text, re.MULTILINE)
    assert found is not None
    program, *options = json.loads(found[1])
    assert program == "sqla-vector"
    return [str(option) for option in options]


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(PRODUCTION / "sqla-vector-worker@.service")
    return parser


def test_every_way_to_run_it_runs_the_same_worker() -> None:
    options = worker_options()
    service = shlex.split(unit()["Service"]["ExecStart"])
    assert [option for option in service[1:] if option not in ("--app", "app:Session")] == options
    (container,) = yaml.safe_load((PRODUCTION / "kubernetes.yaml").read_text())["spec"]["template"]["spec"][
        "containers"
    ]
    assert container["command"][1:] == options


def test_every_way_to_stop_it_leaves_time_for_a_batch() -> None:
    options = worker_options()
    timeout, lease = (float(options[options.index(name) + 1]) for name in ("--timeout", "--lease"))
    pod = yaml.safe_load((PRODUCTION / "kubernetes.yaml").read_text())["spec"]["template"]["spec"]
    compose = yaml.safe_load((PRODUCTION / "compose.yaml").read_text())["services"]["worker"]
    grace = (
        float(unit()["Service"]["TimeoutStopSec"]),
        float(pod["terminationGracePeriodSeconds"]),
        float(compose["stop_grace_period"].removesuffix("s")),
    )
    assert timeout < min(grace) == max(grace) < lease


def test_the_compose_file_follows_the_compose_specification() -> None:
    schema = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(yaml.safe_load((PRODUCTION / "compose.yaml").read_text()), json.loads(schema.read_text()))
