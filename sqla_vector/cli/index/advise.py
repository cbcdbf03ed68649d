"""``sqla-vector index advise``: which index a column wants."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from sqla_vector.cli.index.options import MetricOption
from sqla_vector.cli.index.searched import ModelsOption, searching
from sqla_vector.cli.index.stats import size
from sqla_vector.cli.output import Output, duration
from sqla_vector.cli.running import AppOption, JsonOption, TracebackOption
from sqla_vector.tuning import Advice, advise

__all__ = ["register"]


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command("advise")(_advise)


def _advise(
    column: Annotated[
        str | None, typer.Argument(metavar="CLASS.COLUMN", help="Only this column: Article.embedding.")
    ] = None,
    app: AppOption = None,
    models: ModelsOption = None,
    recall: Annotated[float, typer.Option("--recall", help="What searches are to find, over 0 and under 1.")] = 0.95,
    rows: Annotated[
        int | None,
        typer.Option("--rows", min=0, max=10**12, help="How many there will be; by default as there are."),
    ] = None,
    memory: Annotated[
        int | None, typer.Option("--memory", min=1, metavar="MB", help="Megabytes that the index may take.")
    ] = None,
    metric: MetricOption = None,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Say which index a column wants, of which size, and why; nothing is measured but the number of rows."""
    with searching(app, models, as_json=as_json, show_traceback=show_traceback) as database:
        room = None if memory is None else memory * 2**20
        found = [
            database.call(
                partial(advise, column=attribute, target_recall=recall, rows=rows, memory=room, metric=metric)
            )
            for _, attribute in database.attributes(column)
        ]
        database.output.result({"columns": [one.as_dict() for one in found]})
        for one in found:
            _show(database.output, one)


def _show(output: Output, one: Advice) -> None:
    output.line(f"{one.column}: {one.declaration or 'no index'}")
    output.line(f"  {one.reason}")
    if one.declaration is not None:
        built = f", built in about {duration(one.build_seconds)}" if one.build_seconds else ""
        output.line(f"  index {size(one.index_bytes)}{built}")
    if one.declared:
        output.line(f"  declared: {', '.join(one.declared)}")
