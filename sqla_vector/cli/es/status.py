"""``sqla-vector es status``: how the indexes are."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import typer

from sqla_vector.cli.application import Application
from sqla_vector.cli.es.server import ClientOption, IndexesArgument, Server, working
from sqla_vector.cli.failure import ExitCode
from sqla_vector.cli.output import Output, duration
from sqla_vector.cli.running import AppOption, JsonOption, TracebackOption
from sqla_vector.elasticsearch import SearchIndex
from sqla_vector.elasticsearch.creation import physical_indexes
from sqla_vector.elasticsearch.errors import translated
from sqla_vector.elasticsearch.names import REBUILD
from sqla_vector.tracking.status import Queue, status

__all__ = ["IndexState", "look", "register"]


@dataclass(frozen=True)
class IndexState:
    """How an index is."""

    index: str
    physical: tuple[str, ...]
    """What its alias stands for; nothing if there is none."""
    documents: int | None
    """How many searches can find; None without an index."""
    queue: Queue
    """Its entries in the outbox."""
    mapping_drift: tuple[str, ...] = ()
    """How the mapping differs from what is declared."""
    settings_drift: tuple[str, ...] = ()
    """How the settings differ."""
    rebuild: tuple[str, ...] = ()
    """The index that is being filled to take its place."""

    @property
    def drift(self) -> tuple[str, ...]:
        """How it differs from what is declared."""
        return (*self.mapping_drift, *self.settings_drift)

    @property
    def is_well(self) -> bool:
        """Whether it is there, as declared, and no entry is dead."""
        return bool(self.physical) and not self.drift and not self.queue.dead


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command("status")(_status)


def _status(
    names: IndexesArgument = None,
    app: AppOption = None,
    client: ClientOption = None,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Show what each alias stands for, how many documents there are, what waits, and what is not as declared.

    Ends with 1 if an index is not there, is not as declared, or has a dead entry.
    """
    with working(app, client, names, as_json=as_json, show_traceback=show_traceback) as (command, server, indexes):
        command.application.connect()
        found = [look(command.application, server, index) for index in indexes]
        command.output.result({"indexes": [_as_dict(one) for one in found]})
        _show(command.output, found)
    if not all(one.is_well for one in found):
        raise typer.Exit(ExitCode.FOUND)


def look(application: Application, server: Server, index: SearchIndex) -> IndexState:
    """Return how an index is.

    Raises:
        SearchUnavailable: the server cannot be reached.
        SearchError: it refuses.
    """
    queue = application.call(lambda connection: status(connection, index.outbox, index.channel)).total
    with translated(index.name):
        physical = tuple(physical_indexes(server.blocking, index.name))
        rebuild = tuple(physical_indexes(server.blocking, index.name + REBUILD))
        if not physical:
            return IndexState(index.name, (), None, queue, rebuild=rebuild)
        mapping = tuple(index.mapping_drift(server.blocking))
        settings = tuple(index.settings_drift(server.blocking))
        documents = int(server.blocking.count(index=index.name)["count"])
        return IndexState(index.name, physical, documents, queue, mapping, settings, rebuild)


def _as_dict(found: IndexState) -> dict[str, Any]:
    queue = {name: value for name, value in found.queue.as_dict().items() if name != "entity"}
    return {**asdict(found), "queue": queue, "ok": found.is_well}


def _show(output: Output, found: list[IndexState]) -> None:
    rows = [
        (
            one.index,
            ", ".join(one.physical) or None,
            one.documents,
            one.queue.pending,
            one.queue.dead,
            None if one.queue.oldest is None else duration(one.queue.oldest),
            ", ".join(one.rebuild) or None,
        )
        for one in found
    ]
    output.table(("index", "behind the alias", "documents", "pending", "dead", "oldest", "rebuild"), rows)
    for one in found:
        if not one.physical:
            output.line(f"{one.index}: is not there; sqla-vector es create {one.index} makes it")
        for words in one.drift:
            output.line(f"{one.index}: {words}; sqla-vector es rebuild {one.index} makes it as declared")
        if one.queue.dead:
            output.line(f"{one.index}: sqla-vector dead list --index {one.index} says why entries are dead")
