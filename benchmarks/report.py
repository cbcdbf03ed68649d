"""The figures as a line, as JSON, and as a page of the documentation."""

from __future__ import annotations

import importlib
import json
import platform
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.harness import Figure, Point

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "docs" / "performance-figures.md"
IMAGES = ROOT / "docs" / "images"
PACKAGES = ("SQLAlchemy", "numpy", "psycopg", "asyncpg", "pgvector", "sqlite-vec")
GROUPS = (
    "PostgreSQL, writing",
    "PostgreSQL, reading",
    "PostgreSQL, searching",
    "SQLite",
    "SQLite, in lists",
    "Hybrid search",
    "Everyday",
    "Tracking",
    "Elasticsearch",
    "Costs",
)

HEAD = """# Figures

<!-- Written by `make bench`: change benchmarks/report.py instead. -->

Each line compares two ways of doing one thing that alternated in one run, for the median of the rounds' ratios. "Times
as fast" is better when larger, "times the duration" when smaller. A floor is what the project holds itself to.
"""

SCALING = """## Growth

Time of `nearest()` with k = 10, without a filter, through a `Session`: the median of 40 queries, of each the fastest of
three times. The recall is that against a search by hand. The vectors are clustered as embeddings are. There are no
floors: the table says which kind of index suits a size. Bits say less the fewer there are: below 384 dimensions, binary
precision loses recall as rows grow, and `oversample` has to be set.
"""

REMARKS = {
    "PostgreSQL, searching": (
        "What takes longer than by hand is Python: SQLAlchemy's cache of statements, its parameters and its results "
        "cost a fixed time for each statement, and the search itself takes no longer than that. The rows of the plain "
        "`select()` say how much of it comes without `nearest()`; a ratio under theirs is out of reach. A statement "
        "that is built once, with `bindparam()` for the vector, saves most of the rest. The recall is that of an index "
        "with default settings: hnsw finds vectors with structure, and cannot find Gaussian noise in 384 dimensions, "
        "which is no reason to distrust it on embeddings.\n"
    ),
    "SQLite": (
        "A row counts for the recall if it is no farther than the true tenth, since docstrings repeat each other.\n"
    ),
    "SQLite, in lists": (
        "The clustered vectors are a mixture of normal distributions in 48 dimensions of falling weight, turned into "
        "384 by a random map, a hundred rows a topic, with a little noise; the Gaussian ones have no structure at all, "
        "which no lists can find. Searches take as many probes as a recall of 0.95 takes, or 256.\n"
    ),
    "Everyday": (
        "Through objects and sessions, with an index of the vectors and one of the texts. PostgreSQL has "
        "`shared_buffers` of 1 GB here, room for the index. Of what a hundred rows take under hnsw nearly all is their "
        "places in its graph: without that index they are stored in 5 ms, and with the default of 128 MB it takes "
        "twice as long.\n"
    ),
    "Costs": "Importing is measured in new processes that have imported SQLAlchemy and NumPy, but no ORM.\n",
}

METHODS = {
    "exact": "no index, a scan",
    "vec0": "vec0, full precision",
    "int8": "vec0, int8 with rerank",
    "binary": "binary with rerank",
    "hnsw": "hnsw, full precision",
    "half": "hnsw, half precision with rerank",
}


def line(found: Figure | Point) -> str:
    """Return a figure as a line of text."""
    if isinstance(found, Point):
        size = f"{found.rows:,} x {found.dim}"
        return (
            f"{found.database:12} {found.method:8} {size:>16} {found.milliseconds:10.3f} ms  recall {found.recall:.3f}"
        )
    met = {True: "met", False: "NOT MET", None: ""}[found.is_met]
    compared = f"{found.what} / {found.against}"
    values = f"{found.ours:>16} {found.other:>16} {found.ratio:8.2f}"
    return f"{compared:85} {values}  {found.floor or ''!s:14} {met:8} {found.note}".rstrip()


def versions() -> dict[str, str]:
    """Return the versions of Python, the libraries and SQLite."""
    try:
        sqlite = importlib.import_module("pysqlite3")
    except ImportError:
        sqlite = importlib.import_module("sqlite3")
    libraries = {name: version(name) for name in PACKAGES}
    return {"Python": platform.python_version(), **libraries, "SQLite": str(sqlite.sqlite_version)}


def keep(found: list[Figure | Point], used: dict[str, str], path: Path) -> None:
    """Put figures into a file, in the place of those of the same name."""
    kept = json.loads(path.read_text()) if path.exists() else {}

    def merged(kind: type[Any], section: str, *key: str) -> list[dict[str, Any]]:
        new = [item.as_json() for item in found if isinstance(item, kind)]
        return list({tuple(item[name] for name in key): item for item in [*kept.get(section, ()), *new]}.values())

    content = {
        "versions": kept.get("versions", {}) | used,
        "figures": merged(Figure, "figures", "group", "what", "against"),
        "growth": merged(Point, "growth", "database", "method", "rows", "dim"),
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def render(results: Path = RESULTS, page: Path = PAGE, images: Path = IMAGES) -> None:
    """Write the documentation's page and its plots from the kept figures."""
    found = json.loads(results.read_text())
    images.mkdir(parents=True, exist_ok=True)
    parts = [HEAD, _versions(found["versions"])]
    if found["figures"]:
        _plot_ratios(found["figures"], images / "ratios.png")
        parts.append("![Ratios compared with their floors](images/ratios.png)\n")
    for group in GROUPS:
        members = [figure for figure in found["figures"] if figure["group"] == group]
        if members:
            parts.append(f"## {group}\n\n" + "\n".join(_figures(members)) + "\n")
            parts.extend(_notes(members))
            if group in REMARKS:
                parts.append(REMARKS[group])
    if found["growth"]:
        parts.extend([SCALING, "\n".join(_growth(found["growth"])) + "\n"])
        for name, label, fixed in (("rows", "rows", "dim"), ("dim", "dimensions", "rows")):
            if _plot_growth(found["growth"], name, fixed, label, images / f"growth-{name}.png"):
                parts.append(f"![Time of a search by {label}](images/growth-{name}.png)\n")
    page.write_text("\n".join(parts))


def _versions(used: dict[str, str]) -> str:
    return "Versions: " + ", ".join(f"{name} {number}" for name, number in used.items()) + ".\n"


def _size(figure: dict[str, Any]) -> str:
    if figure["rows"] is None:
        return ""
    return f"{figure['rows']:,}" + (f" x {figure['dim']}" if figure["dim"] else "")


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _figures(members: list[dict[str, Any]]) -> Iterator[str]:
    yield "| figure | rows x dimensions | ours | against | theirs | ratio | floor | |"
    yield "|---|---|---|---|---|---|---|---|"
    for figure in members:
        # A figure that is not a ratio says its value, in its unit, as ours.
        ratio = f"{_ratio(figure['ratio'])} {figure['unit']}" if figure["other"] else ""
        met = {True: "met", False: "**not met**", None: ""}[figure["met"]]
        cells = [figure["what"], _size(figure), figure["ours"], figure["against"], figure["other"], ratio]
        yield f"| {' | '.join([*cells, figure['floor'] or '', met])} |"


def _notes(members: list[dict[str, Any]]) -> Iterator[str]:
    notes = [f"- {figure['what']} / {figure['against']}: {figure['note']}" for figure in members if figure["note"]]
    if notes:
        yield "\n".join(notes) + "\n"


def _growth(points: list[dict[str, Any]]) -> Iterator[str]:
    yield "| database | search | rows | dimensions | median | recall@10 |"
    yield "|---|---|---:|---:|---:|---:|"
    for point in sorted(points, key=lambda p: (p["database"], p["dim"], p["rows"], list(METHODS).index(p["method"]))):
        yield (
            f"| {point['database']} | {METHODS[point['method']]} | {point['rows']:,} | {point['dim']} "
            f"| {point['milliseconds']:.3g} ms | {point['recall']:.3f} |"
        )


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    return importlib.import_module("matplotlib.pyplot")


def _plot_ratios(figures: list[dict[str, Any]], path: Path) -> None:
    """Draw how far each figure is on the good side of its floor."""
    plt = _pyplot()
    shown = [figure for figure in figures if figure["floor"] is not None]
    if not shown:
        return

    def lead(figure: dict[str, Any]) -> float:
        kind, _, value = figure["floor"].rpartition(" ")
        ratio = max(figure["ratio"], 0.01)
        return float(value) / ratio if kind == "at most" else ratio / float(value)

    leads = [lead(figure) for figure in shown]
    names = [" / ".join(filter(None, (figure["what"], figure["against"]))) for figure in shown]
    plot, axes = plt.subplots(figsize=(10, 0.34 * len(shown) + 1.2), layout="constrained")
    axes.barh(
        range(len(shown)),
        [lead - 1 for lead in leads],
        left=1,
        color=["#3f7fbf" if figure["met"] else "#c44e52" for figure in shown],
    )
    axes.set_yticks(range(len(shown)), names, fontsize=7)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("times as good as the floor")
    plot.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(plot)


def _series(points: Iterable[dict[str, Any]], by: str) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for point in sorted(points, key=lambda point: (list(METHODS).index(point["method"]), point[by])):
        found.setdefault(METHODS[point["method"]], []).append((point[by], point["milliseconds"]))
    return {name: values for name, values in found.items() if len(values) > 1}


def _plot_growth(points: list[dict[str, Any]], by: str, fixed: str, label: str, path: Path) -> bool:
    """Draw one panel for each database, at the size of the other axis for which there are most points."""
    plt = _pyplot()
    panels: list[tuple[str, dict[str, list[tuple[int, float]]]]] = []
    for database in sorted({point["database"] for point in points}):
        of_database = [point for point in points if point["database"] == database]
        size_of: Callable[[int], int] = lambda size, of=of_database: len(  # noqa: E731
            {point[by] for point in of if point[fixed] == size}
        )
        size = max(sorted({point[fixed] for point in of_database}), key=size_of)
        series = _series([point for point in of_database if point[fixed] == size], by)
        if series:
            noun = "dimensions" if fixed == "dim" else "rows"
            panels.append((f"{database}, {size:,} {noun}", series))
    if not panels:
        return False
    plot, grid = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.6), layout="constrained", squeeze=False)
    for axes, (title, series) in zip(grid[0], panels, strict=True):
        for name, values in series.items():
            axes.plot(*zip(*values, strict=True), marker="o", markersize=4, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        ticks = sorted({value for values in series.values() for value, _ in values})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set(title=title, xlabel=label, ylabel="median, ms")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    plot.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(plot)
    return True
