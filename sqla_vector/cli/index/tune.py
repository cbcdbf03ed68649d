"""``sqla-vector index tune``: the cheapest settings that hold a recall."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from sqla_vector.cli.failure import ExitCode
from sqla_vector.cli.index.options import (
    KOption,
    MetricOption,
    PlotOption,
    QueriesOption,
    SampleOption,
    SeedOption,
    read_queries,
)
from sqla_vector.cli.index.recall import show
from sqla_vector.cli.index.searched import ColumnArgument, ModelsOption, searching
from sqla_vector.cli.running import AppOption, JsonOption, TracebackOption
from sqla_vector.tuning import tune
from sqla_vector.tuning.plot import check_plot_path, plot_recall

__all__ = ["register"]


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command("tune")(_tune)


def _tune(
    column: ColumnArgument,
    app: AppOption = None,
    models: ModelsOption = None,
    recall: Annotated[float, typer.Option("--recall", help="What is to be held, over 0 and under 1.")] = 0.95,
    k: KOption = 10,
    sample: SampleOption = 100,
    queries: QueriesOption = None,
    remember: Annotated[
        bool, typer.Option("--remember/--no-remember", help="Keep it with the index, for nearest(..., recall=).")
    ] = True,
    metric: MetricOption = None,
    seed: SeedOption = 0,
    plot: PlotOption = None,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Find the cheapest ef_search, probes or oversample that hold a recall, and keep them with the index.

    Ends with 1 if the recall cannot be reached, or not be kept.
    """
    with searching(app, models, as_json=as_json, show_traceback=show_traceback) as database:
        if plot is not None:
            check_plot_path(plot)
        vectors = read_queries(queries)
        ((_, attribute),) = database.attributes(column)
        found = database.call(
            partial(
                tune,
                column=attribute,
                target_recall=recall,
                k=k,
                sample=sample,
                queries=vectors,
                metric=metric,
                remember=remember,
                seed=seed,
            )
        )
        database.output.result(found.as_dict())
        show(database.output, list(found.measured))
        database.output.line(found.reason)
        if plot is not None:
            database.output.message(f"drawn: {plot_recall(found.measured, plot)}")
    if not found.is_reached or (remember and not found.is_remembered):
        raise typer.Exit(ExitCode.FOUND)
