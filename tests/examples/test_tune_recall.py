"""The example on recall, run as a user runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import sqlite

EXAMPLE = Path(__file__).parents[2] / "examples" / "tune_recall.py"


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_recall_is_measured_found_and_searched_with(
    database: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if reason := sqlite.why_vec_unavailable():
        pytest.skip(reason)
    plot = tmp_path / "recall.html"
    if database == "sqlite":
        output = run("--plot", str(plot))
    else:
        with request.getfixturevalue("postgresql_server").database() as url:
            shown = url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
            output = run("--plot", str(plot), "--url", shown)
    assert 'advice: vector_index("ix_tune_text_embedding", "embedding", metric="cosine", method=' in output
    before = re.search(r"recall with oversample=4: (0\.\d+), served by ix_tune_text$", output, re.MULTILINE)
    assert before is not None
    assert float(before[1]) < 0.95
    found = re.search(r"ix_tune_text holds recall 0\.95 at k=10 with oversample=(\d+): (\S+) in", output)
    assert found is not None
    assert float(found[2]) >= 0.95
    assert "ix_tune_text: ready, 3,000 rows, tuned for [0.95]" in output
    assert re.search(rf"^10 rows; ix_tune_text serves .*, tuned for recall 0\.95: oversample={found[1]}$", output, re.M)
    assert "<svg" in plot.read_text()


def run(*arguments: str) -> str:
    command: Any = [sys.executable, "-W", "error", str(EXAMPLE), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
