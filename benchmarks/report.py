"""The figures as a line, as JSON, and as a page of the documentation."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path

from benchmarks.harness import Figure

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results.json"
PAGE = ROOT / "docs" / "performance-figures.md"
PACKAGES = ("SQLAlchemy", "numpy", "psycopg", "asyncpg", "pgvector", "sqlite-vec")


def line(figure: Figure) -> str:
    """Return a figure as a line of text."""
    met = {True: "met", False: "NOT MET", None: ""}[figure.is_met]
    compared = f"{figure.what} / {figure.against}"
    values = f"{figure.ours:>16} {figure.other:>16} {figure.ratio:8.2f}"
    return f"{compared:75} {values}  {figure.floor or ''!s:14} {met}"


def keep(figures: list[Figure], path: Path) -> None:
    """Put figures into a file, in the place of those of the same name."""
    kept = json.loads(path.read_text())["figures"] if path.exists() else []
    new = {(f.group, f.what, f.against): f.as_json() for f in figures}
    merged = {(f["group"], f["what"], f["against"]): f for f in kept} | new
    versions = {"Python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    path.write_text(json.dumps({"versions": versions, "figures": list(merged.values())}, indent=1) + "\n")


def render() -> None:
    """Write the documentation's page and its plots from the kept figures."""
