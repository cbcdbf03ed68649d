"""``sqla-vector status``: how the outbox is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Annotated, Final

import typer

from sqla_vector.cli.output import Output, duration
from sqla_vector.cli.running import AppOption, JsonOption, TracebackOption, running
from sqla_vector.tracking.status import Queue, Rates, Status, rates, status
from sqla_vector.tracking.steps import Pause, Steps

__all__ = ["register"]

_COUNTS: Final = ("due", "leased", "retrying", "postponed", "dead", "oldest")


def register(program: typer.Typer) -> None:
    """Add the command."""
    program.command("status")(_status)


def _status(
    app: AppOption = None,
    watch: Annotated[
        float | None,
        typer.Option(min=0.1, max=86400, metavar="SECONDS", help="Look again after so long, and tell the rates."),
    ] = None,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Show what waits, what workers have, what is dead, and how old the oldest entry is.

    An outbox keeps nothing of what is done, so rates take a second look: --watch 10.
    """
    with running(app, as_json=as_json, show_traceback=show_traceback) as command:
        application, output = command.application, command.output
        outbox = application.outbox
        application.connect()
        found = application.call(lambda connection: status(connection, outbox))
        speed = None
        if watch is not None:
            before = found
            application.run(_pause(watch))
            found = application.call(lambda connection: status(connection, outbox))
            speed = rates(before, found)
        indexes = {
            index.name: application.call(partial(status, outbox=index.outbox, channel=index.channel))
            for index in application.indexes
        }
        output.result(
            {
                **found.as_dict(),
                "indexes": {name: one.as_dict() for name, one in indexes.items()},
                "rates": None if speed is None else asdict(speed),
            }
        )
        _show(output, found, indexes, speed)


def _pause(seconds: float) -> Steps[None]:
    yield Pause(seconds)


def _show(output: Output, found: Status, indexes: Mapping[str, Status], speed: Rates | None) -> None:
    queues = (*found.queues, found.total) if len(found.queues) != 1 else found.queues
    output.table(("entity", *_COUNTS), (_row(_entity(queue), queue) for queue in queues))
    if indexes:
        output.line("")
        output.table(("index", *_COUNTS), (_row(name, one.total) for name, one in indexes.items()))
    leases = [lease for one in (found, *indexes.values()) for lease in one.leases]
    if leases:
        output.line("")
        rows = [(lease.worker, lease.entries, duration(lease.seconds_left)) for lease in leases]
        output.table(("worker", "entries", "lease ends in"), rows)
    if speed is not None:
        output.line("")
        if speed.written is None or speed.done is None:
            output.line("rates: this role may not look at the counter of the outbox")
        else:
            output.line(f"per minute: {speed.written:,.0f} written, {speed.done:,.0f} done")


def _entity(queue: Queue) -> str:
    return queue.entity if queue.entity is not None else "all"


def _row(name: str, queue: Queue) -> tuple[object, ...]:
    oldest = None if queue.oldest is None else duration(queue.oldest)
    return (name, queue.due, queue.leased, queue.retrying, queue.postponed, queue.dead, oldest)
