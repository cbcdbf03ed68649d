"""``sqla-vector worker``: works off the outbox."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Annotated

import typer

from sqla_vector.cli.application import Application
from sqla_vector.cli.crew import is_member, run_crew, stopped_with_parent
from sqla_vector.cli.output import Output
from sqla_vector.cli.running import AppOption, JsonOption, TracebackOption, logging_to, reporting, running
from sqla_vector.tracking import Outcome, Worker

__all__ = ["register"]

logger = logging.getLogger("sqla_vector.cli")


def register(program: typer.Typer) -> None:
    """Add the command."""
    program.command("worker")(_worker)


def _worker(
    app: AppOption = None,
    batch_size: Annotated[int, typer.Option(min=1, max=10_000, help="Entries taken at a time.")] = 256,
    lease: Annotated[
        float, typer.Option(min=0.001, help="Seconds after which others may take what was not finished.")
    ] = 300.0,
    timeout: Annotated[
        float, typer.Option(min=0, help="Seconds an embedder has for a call, less than the lease; 0 waits for ever.")
    ] = 120.0,
    attempts: Annotated[int, typer.Option(min=1, max=1000, help="How often a row is tried before it is dead.")] = 5,
    poll: Annotated[float, typer.Option(min=0.001, help="Seconds between two looks at an empty outbox.")] = 1.0,
    until_empty: Annotated[bool, typer.Option("--until-empty", help="Stop when no entry is pending.")] = False,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that share the work.")] = 1,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Embed what changed: take entries from the outbox until stopped.

    SIGTERM or Ctrl-C finishes the batch in hand and ends with 0; a second one ends at once, and what was in hand is
    taken up by others when the lease ends.  The log goes to standard error.
    """
    if workers > 1:
        options = {"batch-size": batch_size, "lease": lease, "timeout": timeout, "attempts": attempts, "poll": poll}
        arguments = ["worker", "--json", *(f"--{name}={value}" for name, value in options.items())]
        arguments += [f"--app={app}"] * (app is not None) + ["--until-empty"] * until_empty
        arguments += ["--traceback"] * show_traceback
        with (
            reporting(as_json=as_json, show_traceback=show_traceback) as output,
            logging_to(output.stderr, logging.INFO),
        ):
            outcome = run_crew(arguments, workers)
            _tell(output, f"{workers} workers", outcome)
        return
    with running(app, as_json=as_json, show_traceback=show_traceback, level=logging.INFO) as command:
        worker = Worker(
            command.application.sessions,
            batch_size=batch_size,
            lease=lease,
            timeout=timeout or None,
            attempts=attempts,
            poll=poll,
        )
        if is_member():
            stopped_with_parent(worker.stop)
        outcome = _run(command.application, worker, until_empty)
        _tell(command.output, worker.name, outcome)


def _run(application: Application, worker: Worker, until_empty: bool) -> Outcome:
    signals = not is_member()
    if worker.is_async:
        return application.wait(worker.arun(until_empty=until_empty, signals=signals))
    return worker.run(until_empty=until_empty, signals=signals)


def _tell(output: Output, name: str, outcome: Outcome) -> None:
    found = {name: number for name, number in asdict(outcome).items() if number}
    output.result(asdict(outcome))
    described = ", ".join(f"{number:,} {name}" for name, number in found.items()) or "nothing was to be done"
    logger.info("%s: %s", name, described)
