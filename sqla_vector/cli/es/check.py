"""``sqla-vector es check``: whether the indexes equal the database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from sqla_vector.cli.application import Application
from sqla_vector.cli.bar import shown_progress
from sqla_vector.cli.es.server import ClientOption, IndexesArgument, Server, working
from sqla_vector.cli.failure import ExitCode
from sqla_vector.cli.output import Output
from sqla_vector.cli.running import AppOption, JsonOption, TracebackOption
from sqla_vector.elasticsearch import CheckReport, Reconcile, SearchIndex
from sqla_vector.elasticsearch.errors import translated
from sqla_vector.exc import DatabaseRestored, IndexMissing

__all__ = ["register"]


@dataclass(frozen=True)
class _Checked:
    """What was found of an index."""

    index: SearchIndex
    report: CheckReport | None = None
    drift: tuple[str, ...] = ()
    problem: str | None = None
    """Why nothing can be compared."""

    @property
    def is_equal(self) -> bool:
        """Whether it is as declared, and has what the database has."""
        return self.report is not None and self.report.is_equal and not self.drift

    def is_well(self, fix: bool) -> bool:
        """Whether nothing is left to be done; after a repair, if all that differed is repaired."""
        report = self.report
        if not fix or report is None:
            return self.is_equal
        return report.is_complete and not report.dead and report.noted == report.repaired and not self.drift

    def as_dict(self) -> dict[str, Any]:
        """Return it as what can be written as JSON."""
        found: dict[str, Any] = {"index": self.index.name} if self.report is None else self.report.as_dict()
        return {**found, "is_equal": self.is_equal, "drift": list(self.drift), "problem": self.problem}


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command("check")(_check)


def _check(
    names: IndexesArgument = None,
    app: AppOption = None,
    client: ClientOption = None,
    fix: Annotated[bool, typer.Option("--fix", help="Repair what differs, and nothing else.")] = False,
    fast: Annotated[
        bool, typer.Option("--fast", help="Compare the hashes that documents have of themselves, not each field.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Pages compared at the same time; by default 4.")
    ] = None,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Compare every row with its document, and every document with its row.

    Writers need not pause: what waits in the outbox is no difference.  Ends with 1 if an index differs, with --fix if
    something could not be repaired; with 130 if it was stopped.
    """
    options = {"fast": fast, "workers": workers}
    with working(app, client, names, as_json=as_json, show_traceback=show_traceback) as (command, server, indexes):
        command.application.connect()
        found = []
        for index in indexes:
            found.append(_of(command.application, server, index, command.output, fix, options))
            _show(command.output, found[-1])
            if found[-1].report is not None and not found[-1].report.is_complete:
                break
        command.output.result({"indexes": [one.as_dict() for one in found]})
    if any(one.report is not None and not one.report.is_complete for one in found):
        raise typer.Exit(ExitCode.INTERRUPTED)
    if not all(one.is_well(fix) for one in found):
        raise typer.Exit(ExitCode.FOUND)


def _of(
    application: Application, server: Server, index: SearchIndex, output: Output, fix: bool, options: dict[str, Any]
) -> _Checked:
    try:
        with translated(index.name):
            drift = (*index.mapping_drift(server.blocking), *index.settings_drift(server.blocking))
        with shown_progress(output, "comparing") as on_progress:
            task = Reconcile(application.sessions, server.client, index, on_progress=on_progress, **options)
            if application.is_async:
                return _Checked(index, application.wait(task.arun(fix=fix, signals=True)), drift)
            return _Checked(index, task.run(fix=fix, signals=True), drift)
    except IndexMissing:
        return _Checked(index, problem=f"is not there; sqla-vector es rebuild {index.name} makes and fills it")
    except DatabaseRestored as error:
        return _Checked(index, problem=f"{error}, by sqla-vector es rebuild {index.name}")


def _show(output: Output, found: _Checked) -> None:
    name = found.index.name
    if found.problem is not None:
        output.line(f"{name}: {found.problem}")
    for words in found.drift:
        output.line(f"{name}: {words}; sqla-vector es rebuild {name} makes it as declared")
    if found.report is None:
        return
    output.line(str(found.report))
    for one in found.report.examples:
        output.line(f"{name}: {one.kind} {one.id}" + (f": {', '.join(one.what)}" if one.what else ""))
