"""``sqla-vector index list`` and ``stats``: which indexes there are, and how they are."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from sqla_vector.cli.failure import ExitCode
from sqla_vector.cli.index.searched import Database, ModelsOption, searching
from sqla_vector.cli.output import Output
from sqla_vector.cli.running import AppOption, JsonOption, TracebackOption
from sqla_vector.tuning import IndexStats, index_stats

__all__ = ["register", "size"]


def register(group: typer.Typer) -> None:
    """Add the commands."""
    group.command("list")(_list)
    group.command("stats")(_stats)


def _list(
    app: AppOption = None,
    models: ModelsOption = None,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """List the vector columns and their indexes, those that are declared and not there included."""
    with searching(app, models, as_json=as_json, show_traceback=show_traceback) as database:
        found = [(name, _found(database, name)) for name, _ in database.attributes(None)]
        rows = [
            (name, one.name, one.method, one.precision, one.metric, one.state, one.rows, size(one.bytes))
            for name, indexes in found
            for one in indexes
        ]
        without = [name for name, indexes in found if not indexes]
        listed = [
            {
                "column": name,
                "indexes": [
                    {part: value for part, value in one.as_dict().items() if part in _LISTED} for one in indexes
                ],
            }
            for name, indexes in found
        ]
        database.output.result({"columns": listed})
        if rows:
            names = ("column", "index", "method", "precision", "metric", "state", "rows", "size")
            database.output.table(names, rows)
        for name in without:
            database.output.line(f"{name} has no index")


_LISTED = ("name", "method", "precision", "metric", "options", "state", "rows", "bytes")


def _stats(
    column: Annotated[
        str | None, typer.Argument(metavar="CLASS.COLUMN", help="Only this column: Article.embedding.")
    ] = None,
    app: AppOption = None,
    models: ModelsOption = None,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Show how each index is, what was found for it, and whether its lists fit the rows that there are now.

    Ends with 1 if something is to be done about one.
    """
    with searching(app, models, as_json=as_json, show_traceback=show_traceback) as database:
        found = [one for name, _ in database.attributes(column) for one in _found(database, name)]
        database.output.result({"indexes": [one.as_dict() for one in found]})
        for one in found:
            _show(database.output, one)
        if not found:
            database.output.line("no index is declared")
    if any(one.advice is not None for one in found):
        raise typer.Exit(ExitCode.FOUND)


def _found(database: Database, name: str) -> list[IndexStats]:
    ((_, attribute),) = database.attributes(name)
    return database.call(partial(index_stats, column=attribute))


def _show(output: Output, one: IndexStats) -> None:
    options = ", ".join(f"{name}={value}" for name, value in one.options.items())
    output.line(f"{one.name} on {one.column}: {one.method}, {one.precision}, {one.metric}; {one.state}")
    output.line(f"  rows {one.rows:,}, index {size(one.bytes)}" + (f", {options}" if options else ""))
    if one.table_bytes is not None:
        used = f"used {one.scans or 0:,} times"
        output.line(f"  table {size(one.table_bytes)}, analyzed {one.analyzed or 'never'}, {used}")
    if one.dead:
        output.line(f"  {one.dead:,} dead rows or free places")
    if one.imbalance is not None:
        before = "" if one.imbalance_before is None else f", {one.imbalance_before:.2f} before"
        output.line(f"  lists: imbalance {one.imbalance:.2f}{before} (1 is even)")
    for entry in one.tuned:
        told = ", ".join(f"{name}={value}" for name, value in entry.settings.items())
        output.line(f"  tuned: recall {entry.recall:g} at k={entry.k} with {told}")
    if one.advice is not None:
        output.line(f"  {one.advice}")


def size(number: int | None) -> str:
    """Return a number of bytes as people say it."""
    if number is None:
        return "-"
    shown = float(number)
    for unit in ("bytes", "kB", "MB", "GB"):
        if shown < 1024:
            return f"{shown:.0f} {unit}" if unit == "bytes" or shown >= 10 else f"{shown:.1f} {unit}"
        shown /= 1024
    return f"{shown:.1f} TB"
