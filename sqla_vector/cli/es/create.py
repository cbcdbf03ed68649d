"""``sqla-vector es create``: makes the indexes that are declared."""

from __future__ import annotations

import typer

from sqla_vector.cli.es.server import ClientOption, IndexesArgument, working
from sqla_vector.cli.output import counted
from sqla_vector.cli.running import AppOption, JsonOption, TracebackOption
from sqla_vector.elasticsearch.errors import translated
from sqla_vector.exc import IndexExists

__all__ = ["register"]


def register(group: typer.Typer) -> None:
    """Add the command."""
    group.command("create")(_create)


def _create(
    names: IndexesArgument = None,
    app: AppOption = None,
    client: ClientOption = None,
    as_json: JsonOption = False,
    show_traceback: TracebackOption = False,
) -> None:
    """Make indexes with their aliases, empty: those that are not there yet, or those that are named.

    Rows that are in the database already come into them by es rebuild.
    """
    with working(app, client, names, as_json=as_json, show_traceback=show_traceback) as (command, server, indexes):
        created: dict[str, str | None] = {}
        for index in indexes:
            try:
                with translated(index.name):
                    created[index.name] = index.create(server.blocking)
            except IndexExists:
                if names:
                    raise
                created[index.name] = None
        command.output.result({"created": created})
        for name, physical in created.items():
            said = "is there already" if physical is None else f"created, as {physical}"
            command.output.line(f"{name}: {said}")
        number = sum(physical is not None for physical in created.values())
        if number:
            command.output.message(
                f"{counted(number, 'index is', 'indexes are')} empty; sqla-vector es rebuild fills them from the rows"
            )
