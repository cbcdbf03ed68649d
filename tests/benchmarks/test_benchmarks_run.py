"""The programs of benchmarks/ run, at sizes that say nothing about speed, and their figures become a page."""

from __future__ import annotations

import gc
import json
import warnings

import pytest

pytest.importorskip("psycopg")
pytest.importorskip("asyncpg")
pytest.importorskip("psutil")

from benchmarks import report
from benchmarks.__main__ import PROGRAMS, main
from benchmarks.harness import Figure, Floor, Point
from tests.support.postgresql import why_unavailable

pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable()))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.soak) if name == "elasticsearch" else name for name in PROGRAMS]
)
def test_program(name, tmp_path, capsys):
    path = tmp_path / "results.json"
    gc.freeze()  # what other tests have left would be looked at in each round
    found = main([name, "--rows", "40", "--repeat", "1", "--json", str(path)])
    assert found
    assert len(capsys.readouterr().out.splitlines()) == len(found)
    kept = json.loads(path.read_text())
    assert len(kept["figures"]) + len(kept["growth"]) == len(found)
    assert kept["versions"]["sqlite-vec"]
    for item in found:
        if isinstance(item, Figure):
            # Nothing of which a page would need more than one line for a name.
            assert item.rows is not None or item.dim is None, item
            assert "|" not in item.what + item.against + item.note
        else:
            assert item.milliseconds > 0
            assert item.recall >= 0.8


def test_keep_replaces_what_was_measured_again(tmp_path):
    path = tmp_path / "results.json"
    first = [
        Figure("SQLite", "a", "b", "1 ms", "2 ms", 0.5, "times the duration", Floor(1.1, at_most=True), "", 10),
        Figure("SQLite", "c", "b", "1 ms", "2 ms", 0.5, "times as fast", Floor(4), "recall@10 0.99", 10),
        *(Point("SQLite", "vec0", rows, 128, rows / 1000, 1.0) for rows in (10, 100)),
    ]
    report.keep(first, {"numpy": "2"}, path)
    again = Figure("SQLite", "c", "b", "1 ms", "5 ms", 5.0, "times as fast", Floor(4), "recall@10 0.98", 10)
    report.keep([again, Point("SQLite", "vec0", 100, 128, 0.2, 0.9)], {"SQLite": "3"}, path)
    kept = json.loads(path.read_text())
    assert [(item["what"], item["ratio"], item["met"]) for item in kept["figures"]] == [
        ("a", 0.5, True),
        ("c", 5, True),
    ]
    assert [item["milliseconds"] for item in kept["growth"]] == [0.01, 0.2]
    assert kept["versions"] == {"numpy": "2", "SQLite": "3"}


def test_render(tmp_path):
    results, page = tmp_path / "results.json", tmp_path / "page.md"
    found = [
        Figure(
            "SQLite", "fast", "slow", "1 ms", "2 ms", 0.5, "times the duration", Floor(1.1, at_most=True), "", 20_000
        ),
        Figure("SQLite", "missed", "it", "1 ms", "2 ms", 2.0, "times as fast", Floor(4), "recall@10 0.98", 20_000),
        Figure("Costs", "import", "nothing", "20 ms", "", 20.0, "ms", Floor(50, at_most=True), dim=None),
        *(Point("SQLite", "vec0", rows, 128, rows / 1000, 1.0) for rows in (10, 100)),
    ]
    report.keep(found, {"numpy": "2"}, results)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # matplotlib's own, while it is imported
        report.render(results, page, tmp_path / "images")
    text = page.read_text()
    assert "| fast | 20,000 x 384 | 1 ms | slow | 2 ms | 0.50 times the duration | at most 1.1 | met |" in text
    assert "2.00 times as fast | at least 4 | **not met** |" in text
    assert "| import |  | 20 ms | nothing |  |  | at most 50 | met |" in text
    assert "- missed / it: recall@10 0.98" in text
    assert "| SQLite | vec0, full precision | 100 | 128 | 0.1 ms | 1.000 |" in text
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == ["growth-rows.png", "ratios.png"]
