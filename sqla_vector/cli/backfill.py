"""``sqla-vector backfill``: vectors for the rows that are there already."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from sqla_vector.cli.bar import shown_progress
from sqla_vector.cli.failure import ExitCode
from sqla_vector.cli.output import Output, counted
from sqla_vector.cli.running import AppOption, JsonOption, Running, TracebackOption, YesOption, running
from sqla_vector.tracking.backfill import Backfill, BackfillReport

__all__ = ["register"]


def register(program: typer.Typer) -> None:
    """Add the command."""
    program.command("backfill")(_backfill)


def _backfill(
    column: Annotated[str, typer.Argument(metavar="CLASS.COLUMN", help="The embedded column: Article.embedding.")],
    app: AppOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count rows, tokens and cost.")] = False,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Batches that are embedded at the same time.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, max=10_000, help="Texts that are embedded together.")] = 256,
    timeout: Annotated[
        float, typer.Option(min=0, help="Seconds an embedder has for a call; 0 waits for ever.")
    ] = 120.0,
    price: Annotated[
        float | None, typer.Option(min=0, max=1e9, help="For the cost: of a million tokens, in any currency.")
    ] = None,
    is_agreed: YesOption = False,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Embed all rows of a column that are not current.

    Counts them first, and asks.  May be stopped at any time (Ctrl-C finishes the batches in hand) and run again: what
    is done is passed over.  Ends with 1 if rows were refused or left, with 130 if it was stopped.
    """
    with running(app, as_json=as_json, show_traceback=show_traceback) as command:
        output = command.output
        command.application.connect()
        options: dict[str, Any] = {
            "workers": workers,
            "batch_size": batch_size,
            "timeout": timeout or None,
            "price_per_million_tokens": price,
        }
        report = None
        if dry_run or not is_agreed:
            report = _run(command, column, options, dry_run=True)
            if not dry_run and report.stale and report.is_complete:
                output.confirm(_question(report), is_agreed=is_agreed)
        if not dry_run and (report is None or (report.stale and report.is_complete)):
            report = _run(command, column, options, dry_run=False)
        assert report is not None
        _tell(output, report)
    if not report.is_complete:
        raise typer.Exit(ExitCode.INTERRUPTED)
    if report.failed or report.left:
        raise typer.Exit(ExitCode.FOUND)


def _run(command: Running, column: str, options: dict[str, Any], *, dry_run: bool) -> BackfillReport:
    application = command.application
    with shown_progress(command.output, "counting" if dry_run else "embedding") as on_progress:
        backfill = Backfill(application.sessions, application.attribute(column), on_progress=on_progress, **options)
        if application.is_async:
            return application.wait(backfill.arun(dry_run=dry_run, signals=True))
        return backfill.run(dry_run=dry_run, signals=True)


def _question(report: BackfillReport) -> str:
    cost = "" if report.cost is None else f", cost about {report.cost:,.2f}"
    return (
        f"{counted(report.stale, 'row', 'rows')} of {report.column} will be embedded by {report.model}, "
        f"about {report.tokens:,} tokens{cost}."
    )


def _tell(output: Output, report: BackfillReport) -> None:
    output.result({**asdict(report), "after": None if report.after is None else [str(part) for part in report.after]})
    output.line(str(report))
    for key, reason in report.failures.items():
        output.line(f"{report.column}: {key} failed: {reason}")
