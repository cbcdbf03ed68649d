"""The commands of ``sqla-vector index``."""

from __future__ import annotations

import typer

from sqla_vector.cli.index import advise, optimize, recall, stats, tune

__all__ = ["register"]


def register(program: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Vector indexes: how they are, how well they find, what to set.",
    )
    for commands in (stats, recall, tune, advise, optimize):
        commands.register(group)
    program.add_typer(group, name="index")
