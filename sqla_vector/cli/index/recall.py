"""``sqla-vector index recall``: how much of what searches should find they find."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from sqla_vector.cli.failure import ExitCode, Failed
from sqla_vector.cli.index.options import (
    KOption,
    MetricOption,
    PlotOption,
    QueriesOption,
    SampleOption,
    SeedOption,
    read_queries,
)
from sqla_vector.cli.index.searched import ColumnArgument, ModelsOption, searching
from sqla_vector.cli.output import Output
from sqla_vector.cli.running import AppOption, JsonOption, TracebackOption
from sqla_vector.tuning import Recall, measure_recall
from sqla_vector.tuning.plot import check_plot_path, plot_recall

__all__ = ["register", "show"]


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command("recall")(_recall)


def _recall(
    column: ColumnArgument,
    app: AppOption = None,
    models: ModelsOption = None,
    k: KOption = 10,
    sample: SampleOption = 100,
    queries: QueriesOption = None,
    ef_search: Annotated[
        list[int] | None, typer.Option("--ef-search", min=1, max=1_000, help="A setting to measure; may be repeated.")
    ] = None,
    probes: Annotated[
        list[int] | None, typer.Option("--probes", min=1, max=32_768, help="A setting to measure; may be repeated.")
    ] = None,
    oversample: Annotated[
        list[int] | None, typer.Option("--oversample", min=1, max=1_000, help="A setting to measure; may be repeated.")
    ] = None,
    recall: Annotated[
        float | None,
        typer.Option("--recall", help="Measure with what tune found for this recall, as nearest(..., recall=) does."),
    ] = None,
    at_least: Annotated[
        float | None, typer.Option("--at-least", min=0, max=1, help="End with 1 if a recall is lower.")
    ] = None,
    metric: MetricOption = None,
    seed: SeedOption = 0,
    plot: PlotOption = None,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Measure searches against exact ones, on your own rows; nothing is changed.

    Without a setting the defaults are measured.  One setting may be repeated: --ef-search 20 --ef-search 80.
    """
    with searching(app, models, as_json=as_json, show_traceback=show_traceback) as database:
        settings = _settings(
            {"ef_search": ef_search, "probes": probes, "oversample": oversample, "recall": [recall] if recall else None}
        )
        if plot is not None:
            check_plot_path(plot)
        vectors = read_queries(queries)
        ((_, attribute),) = database.attributes(column)
        options: dict[str, Any] = {"sample": sample, "queries": vectors, "metric": metric, "seed": seed}
        measured = [
            database.call(partial(measure_recall, column=attribute, k=k, settings=one, **options)) for one in settings
        ]
        database.output.result({"measured": [one.as_dict() for one in measured]})
        show(database.output, measured)
        if plot is not None:
            database.output.message(f"drawn: {plot_recall(measured, plot)}")
    if at_least is not None and any(one.recall < at_least for one in measured):
        raise typer.Exit(ExitCode.FOUND)


def _settings(given: dict[str, list[Any] | None]) -> list[dict[str, Any]]:
    """Return the settings to measure: every value of the one that is repeated, with the others."""
    single = {name: values[0] for name, values in given.items() if values and len(values) == 1}
    repeated = {name: values for name, values in given.items() if values and len(values) > 1}
    if len(repeated) > 1:
        raise Failed(f"only one setting may be repeated, not {' and '.join(sorted(repeated))}")
    for name, values in repeated.items():
        return [{**single, name: value} for value in values]
    return [single]


def show(output: Output, measured: list[Recall]) -> None:
    """Show measurements as a table, and which index served."""
    rows = []
    for one in measured:
        told = ", ".join(f"{name}={value:g}" for name, value in one.settings.items()) or "defaults"
        figures = (one.recall, one.recall_p5, one.median_ms, one.p95_ms, one.exact_median_ms)
        rows.append((told, one.queries, *(f"{figure:.3f}" for figure in figures)))
    names = ("settings", "queries", "recall", "lowest 5 %", "median ms", "95 % ms", "exact ms")
    output.table(names, rows)
    for reason in dict.fromkeys(one.reason for one in measured):
        output.line(reason)
