"""``sqla-vector check``: whether every row has the vector of its text."""

from __future__ import annotations

from typing import Annotated

import typer

from sqla_vector.chunking import ChunkReport, acheck_chunks, check_chunks
from sqla_vector.cli.failure import ExitCode
from sqla_vector.cli.output import Output, counted
from sqla_vector.cli.running import AppOption, JsonOption, Running, TracebackOption, running
from sqla_vector.tracking import Report, acheck, check
from sqla_vector.tracking.session import tracking_of

__all__ = ["register"]


def register(program: typer.Typer) -> None:
    """Add the command."""
    program.command("check")(_check)


def _check(
    app: AppOption = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Write an entry for each such row that has none, so that workers see to it.")
    ] = False,
    columns: Annotated[
        list[str] | None, typer.Option("--column", metavar="CLASS.COLUMN", help="Only this column; may be repeated.")
    ] = None,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Compare every row's vector with its text and the present model, and chunks with the texts that they are of.

    Ends with 1 if a row is not current or an entry is dead; with --fix, if such a row has no entry that a worker
    sees to, or only a dead one, or if chunks could not be put right.
    """
    with running(app, as_json=as_json, show_traceback=show_traceback) as command:
        command.application.connect()
        # Chunks first: those that are added have entries then, of which the other report knows.
        chunks = None if columns else _chunks(command, fix)
        report = _report(command, fix, columns)
        found = report.as_dict()
        is_clean = report.is_clean
        is_settled = report.unnoticed == 0 and not any(one.dead for one in report.backlogs)
        if chunks is not None:
            is_clean, is_settled = is_clean and chunks.is_clean, is_settled and chunks.is_settled
            found |= {"is_clean": is_clean, "chunks": chunks.as_dict()}
        command.output.result(found)
        _show(command.output, report)
        if chunks is not None:
            _show_chunks(command.output, chunks)
    if not (is_settled if fix else is_clean):
        raise typer.Exit(ExitCode.FOUND)


def _chunks(command: Running, fix: bool) -> ChunkReport | None:
    application = command.application
    tracking = tracking_of(application.sessions)
    if tracking is None or not tracking.plans.derived:
        return None
    if application.is_async:
        return application.wait(acheck_chunks(application.sessions, fix=fix))
    return check_chunks(application.sessions, fix=fix)


def _report(command: Running, fix: bool, names: list[str] | None) -> Report:
    application = command.application
    columns = None if not names else [application.attribute(name) for name in names]
    if fix:
        _ = application.outbox  # says what is missing
    if application.is_async:
        return application.wait(acheck(application.sessions, columns=columns, fix=fix))
    return check(application.sessions, columns=columns, fix=fix)


def _show(output: Output, report: Report) -> None:
    rows = [
        (
            one.column,
            one.model,
            one.rows,
            one.current,
            one.missing,
            one.stale,
            one.other_model,
            one.orphaned,
            one.invalid,
            one.unnoticed,
        )
        for one in report.columns
    ]
    names = ("rows", "current", "missing", "stale", "other model", "orphaned", "invalid", "unnoticed")
    output.table(("column", "model", *names), rows)
    for one in report.columns:
        for other, number in sorted(one.other_models.items()):
            output.line(f"{one.column}: {counted(number, 'vector', 'vectors')} by {other}")
        for kind, keys in one.examples.items():
            output.line(f"{one.column}: {kind.replace('_', ' ')}, for example {', '.join(keys)}")
        for key, reason in one.reasons.items():
            output.line(f"{one.column}: {key} cannot be embedded: {reason}")
    for backlog in report.backlogs:
        output.line(
            f"outbox, {backlog.entity}: {backlog.pending:,} pending, {backlog.dead:,} dead, "
            f"{backlog.without_row:,} without a row"
        )
    if report.fixed:
        output.line(f"{counted(report.fixed, 'entry was', 'entries were')} written")


def _show_chunks(output: Output, report: ChunkReport) -> None:
    rows = [(o.chunks, o.rows, o.current, o.missing, o.stale, o.orphaned, o.invalid) for o in report.chunks]
    output.table(("chunks", "rows", "current", "missing", "stale", "orphaned", "invalid"), rows)
    for one in report.chunks:
        for kind, keys in one.examples.items():
            if keys:
                output.line(f"{one.chunks}: {kind}, for example {', '.join(keys)}")
        for key, reason in one.reasons.items():
            output.line(f"{one.chunks}: {key} cannot be split: {reason}")
    if report.fixed:
        output.line(f"the chunks of {counted(report.fixed, 'row were', 'rows were')} put right")
