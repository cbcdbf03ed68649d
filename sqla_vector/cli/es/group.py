"""The commands of ``sqla-vector es``."""

from __future__ import annotations

import typer

from sqla_vector.cli.es import check, create, rebuild, search, status, sync

__all__ = ["register"]


def register(program: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, help="Keep Elasticsearch's indexes as the database is."
    )
    for commands in (create, sync, rebuild, check, status, search):
        commands.register(group)
    program.add_typer(group, name="es")
