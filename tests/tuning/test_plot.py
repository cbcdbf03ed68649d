"""plot_recall(): a picture as PNG, or as HTML that loads nothing."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from sqla_vector import InvalidOption, PackageMissing
from sqla_vector.tuning import Recall, SearchPlan, plot_recall

FIRST = Recall(
    k=10,
    settings={"ef_search": 10},
    queries=50,
    recall=0.81,
    recall_p5=0.5,
    recall_p50=0.8,
    median_ms=0.4,
    p95_ms=0.9,
    exact_median_ms=12.0,
    plan=SearchPlan("ix_item_e", "hnsw", "full", "ix_item_e serves the search (hnsw)", ""),
)
MEASURED = [FIRST, replace(FIRST, settings={"ef_search": 80}, recall=0.97, median_ms=1.4, p95_ms=2.2)]


def test_a_png_shows_what_was_measured(tmp_path: Path):
    import matplotlib.image

    written = plot_recall(MEASURED, tmp_path / "recall.png")
    assert written.read_bytes().startswith(b"\x89PNG")
    image = matplotlib.image.imread(written)
    assert image.shape[0] > 400
    # Where the line is there are pixels of its colour.
    blue = np.array([0x3F, 0x51, 0xB5]) / 255
    assert (np.abs(image[..., :3] - blue).max(axis=-1) < 0.02).sum() > 100


def test_html_needs_nothing_else_and_shows_what_was_measured(tmp_path: Path):
    shown = plot_recall(MEASURED, tmp_path / "recall.html", title="<b>&amp; ours").read_text()
    assert not re.search(r"(src|href)=|@import|url\(|<script", shown)
    assert "&lt;b&gt;&amp;amp; ours" in shown
    picture = re.search(r"<svg.*</svg>", shown)
    assert picture is not None
    tree = ElementTree.fromstring(picture[0])
    dots = [(float(e.attrib["cx"]), float(e.attrib["cy"])) for e in tree.iter("{http://www.w3.org/2000/svg}circle")]
    assert len(dots) == 4
    (first, _), (second, _) = dots[1], dots[3]
    assert first < second  # more recall is further right
    assert dots[1][1] > dots[3][1]  # more time is further up
    width, height = float(tree.attrib["width"]), float(tree.attrib["height"])
    assert all(0 < x < width and 0 < y < height for x, y in dots)
    for words in ("ef_search=10", "ef_search=80", "0.9700", "An exact search takes 12.000 ms"):
        assert words in shown


def test_one_point_and_no_time_at_all_can_be_drawn(tmp_path: Path):
    for one in (FIRST, replace(FIRST, recall=1.0, settings={}, median_ms=1e-3, p95_ms=1e-3, exact_median_ms=1e-3)):
        assert "defaults" in plot_recall([one], tmp_path / "one.html").read_text() or one is FIRST


def test_of_settings_measured_twice_the_larger_measurement_is_drawn(tmp_path: Path):
    again = replace(FIRST, queries=100, recall=0.83)
    shown = plot_recall([again, FIRST], tmp_path / "recall.html").read_text()
    assert "0.8300" in shown
    assert "0.8100" not in shown


def test_what_cannot_be_drawn_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for path in ("recall.pdf", "recall", "recall.html.exe"):
        with pytest.raises(InvalidOption, match=r"a plot is written as \.png or \.html"):
            plot_recall(MEASURED, tmp_path / path)
    with pytest.raises(InvalidOption, match="there is no directory"):
        plot_recall(MEASURED, tmp_path / "nowhere" / "recall.html")
    for nothing in ([], [1]):
        with pytest.raises(InvalidOption, match="there is nothing to plot"):
            plot_recall(nothing, tmp_path / "recall.html")  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PackageMissing, match=r"pip install 'sqla-vector\[plot\]'"):
        plot_recall(MEASURED, tmp_path / "recall.png")
    assert plot_recall(MEASURED, tmp_path / "recall.html").exists()
