"""``sqla-vector index optimize``: an index built anew."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sqla_vector.asynchrony import AsyncEngine
from sqla_vector.cli.index.options import MetricOption
from sqla_vector.cli.index.searched import ColumnArgument, Database, ModelsOption, searching
from sqla_vector.cli.running import AppOption, JsonOption, TracebackOption, YesOption
from sqla_vector.tuning import aoptimize, index_stats, optimize

__all__ = ["register"]


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command("optimize")(_optimize)


def _optimize(
    column: ColumnArgument,
    app: AppOption = None,
    models: ModelsOption = None,
    concurrently: Annotated[
        bool,
        typer.Option(
            "--concurrently/--no-concurrently",
            help="PostgreSQL: while others write; without is faster and blocks them.",
        ),
    ] = True,
    vacuum: Annotated[bool, typer.Option("--vacuum", help="Give space back too; on SQLite of the whole file.")] = False,
    metric: MetricOption = None,
    is_agreed: YesOption = False,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Build the index of a column anew from its rows, and gather statistics; asks first, since it may take long."""
    with searching(app, models, as_json=as_json, show_traceback=show_traceback) as database:
        ((name, attribute),) = database.attributes(column)
        found = database.call(lambda connection: index_stats(connection, attribute))
        rows = found[0].rows if found else 0
        if found:
            database.output.confirm(
                f"The index of {name} will be built anew from {rows:,} vectors.", is_agreed=is_agreed
            )
        done = _done(database, attribute, {"concurrently": concurrently, "vacuum": vacuum, "metric": metric})
        database.output.result({"done": done})
        for line in done:
            database.output.line(line)


def _done(database: Database, attribute: Any, options: dict[str, Any]) -> list[str]:
    if isinstance(database.engine, AsyncEngine):
        return database.wait(aoptimize(database.engine, attribute, **options))
    return optimize(database.engine, attribute, **options)
