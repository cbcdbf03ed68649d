"""``sqla-vector doctor``: whether everything is there that keeps vectors current."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

import typer

from sqla_vector.cli.application import Application
from sqla_vector.cli.diagnosis import Finding, look_at_database, look_at_embedder
from sqla_vector.cli.es.server import ClientOption, connected
from sqla_vector.cli.failure import ExitCode, Failed, failure_of
from sqla_vector.cli.output import Output
from sqla_vector.cli.running import AppOption, JsonOption, Running, TracebackOption, running
from sqla_vector.embedding import EmbeddedColumn
from sqla_vector.exc import VectorError
from sqla_vector.tracking import Worker
from sqla_vector.tracking.versions import Versions, kept_rows

__all__ = ["register"]


def register(program: typer.Typer) -> None:
    """Add the command."""
    program.command("doctor")(_doctor)


def _doctor(
    app: AppOption = None,
    is_asked: Annotated[
        bool, typer.Option("--embed/--no-embed", help="Have each embedder embed a word, which may cost something.")
    ] = True,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds an embedder has for a call.")] = 120.0,
    lease: Annotated[float, typer.Option(min=0.001, help="Seconds of a worker's lease.")] = 300.0,
    client: ClientOption = None,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Look whether all is there that keeps vectors and indexes current, and say what to do where it is not.

    Ends with 1 if anything fails.  Give --lease and --timeout as the workers have them.
    """
    with running(app, as_json=as_json, show_traceback=show_traceback) as command:
        application, output = command.application, command.output
        found = [
            *_database(application),
            *_embedders(application, timeout, is_asked),
            *_worker(application, lease, timeout),
            *_elasticsearch(command, client),
        ]
        failed = any(finding.state == "fail" for finding in found)
        output.result({"ok": not failed, "findings": [asdict(finding) for finding in found]})
        for finding in found:
            _show(output, finding)
    if failed:
        raise typer.Exit(ExitCode.FOUND)


def _database(application: Application) -> list[Finding]:
    tables = [target.table for target in application.targets]
    if application.tracking.outbox is not None:
        tables.append(application.tracking.outbox)
    versions = [one for one in application.tracking.embedders.given.values() if isinstance(one, Versions)]
    upgrades = dict.fromkeys(table for one in versions for table in (one.upgrades, kept_rows(one.upgrades)))
    metadata = list({id(table.metadata): table.metadata for table in tables}.values())
    try:
        application.connect()
        return application.call(
            lambda c: look_at_database(c, application.targets, application.tracking.outbox, upgrades, metadata)
        )
    except Failed as failed:
        return [Finding("fail", "database", str(failed))]
    except Exception as error:
        return [Finding("fail", "database", str(failure_of(error)))]


def _embedders(application: Application, timeout: float, is_asked: bool) -> Iterator[Finding]:
    known = application.tracking.embedders
    columns: dict[str, list[EmbeddedColumn]] = {}
    for target in application.targets:
        for column in target.columns:
            columns.setdefault(column.spec.embedder, []).append(column)
    for name, needing in columns.items():
        given: Any = known.given.get(name)
        if given is None:
            yield Finding("fail", f"embedder {name}", f"{needing[0]} needs one, and track() was given none of the name")
            continue
        for one in given.all if isinstance(given, Versions) else (given,):
            yield look_at_embedder(needing, one, known, timeout, is_tried=is_asked)


def _worker(application: Application, lease: float, timeout: float) -> Iterator[Finding]:
    if application.tracking.outbox is None:
        return
    try:
        Worker(application.sessions, lease=lease, timeout=timeout)
    except VectorError as error:
        yield Finding("fail", "worker", str(error))
    else:
        yield Finding("ok", "worker", f"a lease of {lease:g} s is longer than the time limit of {timeout:g} s")


def _elasticsearch(command: Running, client: str | None) -> list[Finding]:
    if not command.application.indexes:
        return []
    try:
        with connected(command, client) as server:
            from sqla_vector.cli.es.findings import findings

            return list(findings(command.application, server))
    except Exception as error:
        return [Finding("fail", "elasticsearch", str(failure_of(error)))]


def _show(output: Output, finding: Finding) -> None:
    output.line(f"{finding.state:<4}  {finding.subject}: {finding.message}")
