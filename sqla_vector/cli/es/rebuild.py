"""``sqla-vector es rebuild``: another index in the place of the one that is searched."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from sqla_vector.cli.application import Application
from sqla_vector.cli.bar import shown_progress
from sqla_vector.cli.es.server import ClientOption, IndexesArgument, Server, working
from sqla_vector.cli.failure import ExitCode, Failed
from sqla_vector.cli.output import Output
from sqla_vector.cli.running import AppOption, JsonOption, TracebackOption, YesOption
from sqla_vector.elasticsearch import Rebuild, RebuildReport, SearchIndex
from sqla_vector.elasticsearch.creation import physical_indexes
from sqla_vector.elasticsearch.errors import translated
from sqla_vector.elasticsearch.names import REBUILD
from sqla_vector.exc import InvalidDocument

__all__ = ["register"]


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command("rebuild")(_rebuild)


def _rebuild(
    names: IndexesArgument = None,
    app: AppOption = None,
    client: ClientOption = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the old index there, without its alias.")] = False,
    skip_refused: Annotated[
        bool, typer.Option("--skip-refused", help="Go on although rows cannot be documents; they will be missing.")
    ] = False,
    verify: Annotated[
        Literal["hash", "full"], typer.Option(help="What is compared with the rows before the new index is searched.")
    ] = "hash",
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Pages written at the same time; by default 4.")
    ] = None,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="Delete the index that an earlier run began to fill, and nothing else.")
    ] = False,
    is_agreed: YesOption = False,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Fill another index from the database, compare it, and put it in the place of the one that is searched.

    Searches and writers go on meanwhile.  Asks before anything is deleted.  May be stopped at any time (Ctrl-C
    finishes the pages in hand) and run again: what is done is passed over.  Ends with 1 if rows cannot be documents,
    with 130 if it was stopped.
    """
    options: dict[str, Any] = {"keep": keep, "skip_refused": skip_refused, "verify": verify, "workers": workers}
    with working(app, client, names, as_json=as_json, show_traceback=show_traceback) as (command, server, indexes):
        application, output = command.application, command.output
        application.connect()
        deleted = _deleted(server, indexes, keep, abandon)
        if deleted:
            when = "" if abandon else " when another has taken its place"
            output.confirm(f"{', '.join(deleted)} will be deleted{when}.", is_agreed=is_agreed)
        if abandon:
            gone = {index.name: _abandoned(application, server, index) for index in indexes}
            output.result({"deleted": gone})
            for name, physical in gone.items():
                output.line(f"{name}: " + (f"{', '.join(physical)} deleted" if physical else "nothing was begun"))
            return
        reports = []
        for index in indexes:
            reports.append(_rebuilt(application, server, index, output, options))
            _show(output, reports[-1])
            if not reports[-1].is_complete:
                break
        output.result({"indexes": [report.as_dict() for report in reports]})
    if not reports[-1].is_complete:
        raise typer.Exit(ExitCode.INTERRUPTED)
    # What an earlier run has found refused is known by its dead entries.
    if any(report.refused or (report.check is not None and report.check.dead) for report in reports):
        raise typer.Exit(ExitCode.FOUND)


def _deleted(server: Server, indexes: list[SearchIndex], keep: bool, abandon: bool) -> list[str]:
    """Return the indexes that there are and will not be there any more."""
    if keep and not abandon:
        return []
    found = []
    for index in indexes:
        with translated(index.name):
            found += physical_indexes(server.blocking, index.name + (REBUILD if abandon else ""))
    return found


def _abandoned(application: Application, server: Server, index: SearchIndex) -> list[str]:
    task = Rebuild(application.sessions, server.client, index)
    return application.wait(task.aabandon()) if application.is_async else task.abandon()


def _rebuilt(
    application: Application, server: Server, index: SearchIndex, output: Output, options: dict[str, Any]
) -> RebuildReport:
    with shown_progress(output, "indexing") as on_progress:
        task = Rebuild(application.sessions, server.client, index, on_progress=on_progress, **options)
        try:
            return application.wait(task.arun(signals=True)) if application.is_async else task.run(signals=True)
        except InvalidDocument as error:
            # What was found is rows; the command and the application are as they must be.
            raise Failed(str(error), ExitCode.FOUND) from error


def _show(output: Output, report: RebuildReport) -> None:
    output.line(str(report))
    for name in report.kept:
        output.line(f"{report.index}: {name} is still there, without the alias")
    for key, reason in report.failures.items():
        output.line(f"{report.index}: {key} cannot be a document: {reason}")
