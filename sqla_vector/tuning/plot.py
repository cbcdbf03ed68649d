"""Recall against latency, as a picture: PNG by matplotlib, or one HTML file that loads nothing."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from math import floor, log10
from pathlib import Path
from typing import Final

from sqla_vector.exc import InvalidOption, PackageMissing
from sqla_vector.tuning.recall import Recall

__all__ = ["check_plot_path", "plot_recall"]

_FORMATS: Final = (".png", ".html")
_WIDTH, _HEIGHT = 760, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 50, 60
_INK, _LINE, _PALE, _EXACT = "#222222", "#3f51b5", "#9fa8da", "#c62828"


def check_plot_path(path: str | Path) -> Path:
    """Return where a plot is to be written, if it can be: before anything is measured.

    Raises:
        InvalidOption: the file's name does not end in .png or .html, or its directory is not there.
        PackageMissing: a PNG needs matplotlib.
    """
    found = Path(path)
    if found.suffix.lower() not in _FORMATS:
        raise InvalidOption(f"a plot is written as {' or '.join(_FORMATS)}, by the file's name; got {found.name!r}")
    if not found.parent.is_dir():
        raise InvalidOption(f"there is no directory {str(found.parent)!r} for the plot")
    if found.suffix.lower() == ".png":
        _figure_class()
    return found


def plot_recall(measured: Sequence[Recall], path: str | Path, *, title: str | None = None) -> Path:
    """Draw recall against latency, a point for each measurement, and return where it was written.

    Args:
        measured: what :func:`sqla_vector.tuning.measure_recall` returned for several settings, or
            ``tune(...).measured``.
        path: a file; its name decides the format, ``.png`` (needs matplotlib: the extra ``plot``) or ``.html``.
        title: over the picture; by default the index's name and k.

    Raises:
        InvalidOption: nothing was measured, or the path is of another format or in no directory.
        PackageMissing: a PNG needs matplotlib.
    """
    if not measured or not all(isinstance(one, Recall) for one in measured):
        raise InvalidOption("there is nothing to plot: give what measure_recall() returned, or tune(...).measured")
    target = check_plot_path(path)
    # Of settings that were measured twice the one with more queries.
    best = {tuple(sorted(one.settings.items())): one for one in sorted(measured, key=lambda one: one.queries)}
    points = sorted(best.values(), key=lambda one: (one.recall, one.median_ms))
    first = points[0]
    heading = title or f"{first.index or 'exact search'}: recall@{first.k} against latency"
    if target.suffix.lower() == ".png":
        _write_png(points, target, heading)
    else:
        target.write_text(_html(points, heading), encoding="utf-8")
    return target


def _label(point: Recall) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in point.settings.items()) or "defaults"


def _figure_class() -> type:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PackageMissing("a PNG needs matplotlib: pip install 'sqla-vector[plot]'; .html needs nothing") from error
    return Figure


def _write_png(points: Sequence[Recall], path: Path, title: str) -> None:
    # Without pyplot, which would choose a backend for the whole program.
    figure = _figure_class()(figsize=(_WIDTH / 100, _HEIGHT / 100), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    recalls = [point.recall for point in points]
    axes.plot(recalls, [point.median_ms for point in points], "o-", color=_LINE, label="median")
    axes.plot(recalls, [point.p95_ms for point in points], "o", color=_PALE, label="95 of 100 within")
    axes.axhline(points[0].exact_median_ms, color=_EXACT, linestyle="--", label="exact search, median")
    for point in points:
        at = (point.recall, point.median_ms)
        axes.annotate(_label(point), at, textcoords="offset points", xytext=(4, 6), fontsize=7, color=_INK)
    axes.set(title=title, xlabel="recall", ylabel="milliseconds", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path)


def _html(points: Sequence[Recall], title: str) -> str:
    rows = "".join(
        f"<tr><td>{escape(_label(p))}</td><td>{p.recall:.4f}</td><td>{p.recall_p5:.4f}</td><td>{p.median_ms:.3f}</td>"
        f"<td>{p.p95_ms:.3f}</td><td>{p.queries}</td><td>{escape(p.index or 'none')}</td></tr>"
        for p in points
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>body{{font:14px system-ui,sans-serif;color:{_INK};margin:2em}}"
        "table{border-collapse:collapse;margin-top:1em}td,th{padding:.2em .8em;text-align:right}"
        "td:first-child,th:first-child{text-align:left}tr:nth-child(even){background:#f3f3f9}</style></head><body>"
        f"<h1>{escape(title)}</h1>{_svg(points)}<table><thead><tr><th>settings</th><th>recall</th>"
        "<th>lowest 5 %</th><th>median ms</th><th>95 % within ms</th><th>queries</th><th>index</th></tr></thead>"
        f"<tbody>{rows}</tbody></table><p>An exact search takes {points[0].exact_median_ms:.3f} ms (median).</p>"
        "</body></html>\n"
    )


def _svg(points: Sequence[Recall]) -> str:
    exact = points[0].exact_median_ms
    low, high = _around([point.recall for point in points], 0.0, 1.0)
    times = [t for point in points for t in (point.median_ms, point.p95_ms)] + [exact]
    bottom, top = floor(log10(min(times))), floor(log10(max(times))) + 1

    def x(recall: float) -> float:
        return round(_LEFT + (recall - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(milliseconds: float) -> float:
        return round(
            _HEIGHT - _BOTTOM - (log10(milliseconds) - bottom) / (top - bottom) * (_HEIGHT - _TOP - _BOTTOM), 1
        )

    drawn = []
    for power in range(bottom, top + 1):
        at = y(10.0**power)
        drawn.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at}" y2="{at}" stroke="#dddddd"/>')
        drawn.append(f'<text x="{_LEFT - 8}" y="{at + 4}" text-anchor="end">{10.0**power:g}</text>')
    for part in range(6):
        recall = low + (high - low) * part / 5
        drawn.append(f'<text x="{x(recall)}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle">{recall:.3g}</text>')
    drawn.append(
        f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(exact)}" y2="{y(exact)}" stroke="{_EXACT}" '
        'stroke-dasharray="6 4"><title>exact search</title></line>'
    )
    line = " ".join(f"{x(point.recall)},{y(point.median_ms)}" for point in points)
    drawn.append(f'<polyline points="{line}" fill="none" stroke="{_LINE}" stroke-width="2"/>')
    for point in points:
        said = f"{_label(point)}: recall {point.recall:.4f}, median {point.median_ms:.3f} ms, p95 {point.p95_ms:.3f} ms"
        at = x(point.recall)
        drawn.append(f'<circle cx="{at}" cy="{y(point.p95_ms)}" r="4" fill="{_PALE}"/>')
        drawn.append(
            f'<circle cx="{at}" cy="{y(point.median_ms)}" r="5" fill="{_LINE}"><title>{escape(said)}</title></circle>'
        )
        drawn.append(f'<text x="{at + 7}" y="{y(point.median_ms) - 7}" font-size="10">{escape(_label(point))}</text>')
    drawn.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 15}" text-anchor="middle">recall</text>')
    drawn.append(
        f'<text x="{_LEFT}" y="{_TOP - 20}">milliseconds: dark the median, pale 95 of 100 within, dashed exact</text>'
    )
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-size="12" fill="{_INK}">{"".join(drawn)}</svg>'


def _around(values: Sequence[float], lowest: float, highest: float) -> tuple[float, float]:
    """Return a range around values, which is never empty."""
    margin = max(0.01, 0.08 * (max(values) - min(values)))
    return max(lowest, min(values) - margin), min(highest + 0.02, max(values) + margin)
