"""The command line: ``python -m benchmarks [NAME ...] [--rows N] [--repeat N] [--json PATH]``."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from benchmarks import report
from benchmarks.harness import Figure, Point, Run

PROGRAMS = {
    "writes": "PostgreSQL: ORM, Core, bulk.load; psycopg and asyncpg",
    "reads": "PostgreSQL: columns, entities, bulk.read; psycopg and asyncpg",
    "nearest": "PostgreSQL: nearest() on an hnsw index",
    "sqlite": "SQLite: nearest() over vec0, reduced precision, writes to an indexed table",
    "lists": "SQLite: an index in lists against exact vec0, inserts into it, and a million rows",
    "everyday": "both databases: a row stored, a hundred, a search, at 100,000 rows",
    "hybrid": "both databases: a hybrid search against its two parts, one after the other",
    "plugin": "what the plugin costs a model without vectors, and importing the package",
    "memory": "memory while a generator of a million rows is loaded",
    "migrations": "both databases: what comparing models with vectors adds to Alembic's autogenerate",
    "tracking": "both databases: flushes of tracked sessions, the worker, check",
    "elasticsearch": "PostgreSQL and Elasticsearch: a full load, searches, the lag of a change",
    "scaling": "both databases: how searches grow with rows and dimension",
}


def main(arguments: list[str] | None = None) -> list[Figure | Point]:
    """Run programs, print their figures, and keep them if they have their full size."""
    listed = "\n".join(f"  {name:13} {says}" for name, says in PROGRAMS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", epilog=f"programs:\n{listed}", formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("name", nargs="*", help="the programs to run (default: all)")
    parser.add_argument("--rows", type=int, help="at most so many rows, to try something out")
    parser.add_argument("--repeat", type=int, default=5, help="rounds of each comparison (default: 5)")
    parser.add_argument(
        "--json", type=Path, help=f"where to keep the figures (default: {report.RESULTS.name},\nif full)"
    )
    parser.add_argument("--million", action="store_true", help="let scaling, lists go up to 1,000,000 rows on SQLite")
    options = parser.parse_args(arguments)
    unknown = set(options.name) - set(PROGRAMS)
    if unknown:
        parser.error(f"no program {', '.join(sorted(unknown))}")
    if options.repeat < 1 or (options.rows is not None and options.rows < 20):
        parser.error("--repeat takes a number from 1, --rows from 20")

    figures: list[Figure | Point] = []
    latency_rounds = 600 if options.rows is None else 60 if options.rows > 1000 else 10
    with Run(options.rows, options.repeat, latency_rounds, options.million) as run:
        for name in options.name or PROGRAMS:
            for figure in importlib.import_module(f"benchmarks.{name}").measure(run):
                figures.append(figure)
                print(report.line(figure), flush=True)
        versions = report.versions() | run.server_versions()
    path = options.json or (report.RESULTS if options.rows is None else None)
    if path is not None:
        report.keep(figures, versions, path)
    if path == report.RESULTS:
        report.render()
    return figures


if __name__ == "__main__":
    main()
