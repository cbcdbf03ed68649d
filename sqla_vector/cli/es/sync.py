"""``sqla-vector es sync``: has the documents follow their rows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import asdict
from typing import Annotated, Any

import typer

from sqla_vector.cli.application import Application
from sqla_vector.cli.crew import is_member, run_crew, stopped_with_parent
from sqla_vector.cli.es.server import ClientOption, IndexesArgument, working
from sqla_vector.cli.output import Output
from sqla_vector.cli.running import AppOption, JsonOption, TracebackOption, logging_to, reporting
from sqla_vector.elasticsearch import Sync
from sqla_vector.tracking import Outcome
from sqla_vector.tracking.patience import stopped_by_signals

__all__ = ["register", "run_all"]

logger = logging.getLogger("sqla_vector.cli")


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command("sync")(_sync)


def _sync(
    names: IndexesArgument = None,
    app: AppOption = None,
    client: ClientOption = None,
    batch_size: Annotated[int, typer.Option(min=1, max=10_000, help="Entries taken at a time.")] = 1000,
    lease: Annotated[
        float, typer.Option(min=0.001, help="Seconds after which others may take what was not finished.")
    ] = 300.0,
    timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds the server has for a request, less than the lease.")
    ] = 60.0,
    poll: Annotated[float, typer.Option(min=0.001, help="Seconds between two looks at an empty outbox.")] = 1.0,
    until_empty: Annotated[bool, typer.Option("--until-empty", help="Stop when no entry is pending.")] = False,
    workers: Annotated[int, typer.Option(min=1, max=256, help="Processes that share the work.")] = 1,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Write what changed into the indexes: take their entries from the outbox until stopped.

    SIGTERM or Ctrl-C finishes the batches in hand and ends with 0; a second one ends at once, and what was in hand is
    taken up by others when the lease ends.  The log goes to standard error.
    """
    if workers > 1:
        options = {"batch-size": batch_size, "lease": lease, "timeout": timeout, "poll": poll}
        arguments = ["es", "sync", "--json", *(f"--{name}={value}" for name, value in options.items())]
        arguments += [f"--app={app}"] * (app is not None) + [f"--elasticsearch={client}"] * (client is not None)
        arguments += ["--until-empty"] * until_empty + ["--traceback"] * show_traceback + ["--", *(names or ())]
        with (
            reporting(as_json=as_json, show_traceback=show_traceback) as output,
            logging_to(output.stderr, logging.INFO),
        ):
            outcome = run_crew(arguments, workers)
            _tell(output, f"{workers} processes", outcome)
        return
    with working(app, client, names, as_json=as_json, show_traceback=show_traceback, level=logging.INFO) as (
        command,
        server,
        indexes,
    ):
        given: dict[str, Any] = {"batch_size": batch_size, "lease": lease, "timeout": timeout, "poll": poll}
        syncs = [Sync(command.application.sessions, server.client, index, **given) for index in indexes]
        outcome = run_all(command.application, syncs, until_empty=until_empty)
        _tell(command.output, ", ".join(index.name for index in indexes), outcome)


def run_all(application: Application, syncs: Sequence[Sync], *, until_empty: bool) -> Outcome:
    """Run several at once until all of them end, and return what they did.

    When one of them fails, the others finish what they have.
    """

    def stop() -> None:
        for sync in syncs:
            sync.stop()

    if is_member():
        stopped_with_parent(stop)
    with nullcontext() if is_member() else stopped_by_signals(lambda: _stop(stop)):
        if application.is_async:
            return application.wait(_arun_all(syncs, stop, until_empty))
        with ThreadPoolExecutor(len(syncs)) as threads:
            runs = [threads.submit(sync.run, until_empty=until_empty) for sync in syncs]
            # Signals are handled while it waits.
            wait(runs, return_when=FIRST_EXCEPTION)
            if any(run.done() and run.exception() for run in runs):
                stop()
        return sum((run.result() for run in runs), Outcome())


async def _arun_all(syncs: Sequence[Sync], stop: Callable[[], None], until_empty: bool) -> Outcome:
    runs = [asyncio.ensure_future(sync.arun(until_empty=until_empty)) for sync in syncs]
    await asyncio.wait(runs, return_when=asyncio.FIRST_EXCEPTION)
    if any(run.done() and run.exception() for run in runs):
        stop()
        await asyncio.wait(runs)
    return sum((run.result() for run in runs), Outcome())


def _stop(stop: Callable[[], None]) -> None:
    logger.info("the indexes' batches in hand are finished, then it stops")
    stop()


def _tell(output: Output, name: str, outcome: Outcome) -> None:
    output.result(asdict(outcome))
    found = {name: number for name, number in asdict(outcome).items() if number}
    described = ", ".join(f"{number:,} {name}" for name, number in found.items()) or "nothing was to be done"
    logger.info("%s: %s", name, described)
