"""The program ``sqla-vector``: its commands, and how it is run."""

from __future__ import annotations

import sys
from typing import Annotated, Any, cast

import typer

from sqla_vector import __version__
from sqla_vector.cli import backfill, check, dead, doctor, es, index, model, status, worker
from sqla_vector.cli.failure import ExitCode
from sqla_vector.cli.masking import Masked, Masking

__all__ = ["program", "run"]

program = typer.Typer(
    name="sqla-vector",
    help="Embeddings that are never stale: look after the vectors of an application's rows.",
    epilog="Exit codes: 0 all is well, 1 something was found, 2 wrong use or set-up, 3 out of reach, 4 other errors.",
    no_args_is_help=True,
    add_completion=False,
    # Plain text: the same in a pipe, and nothing of what a user typed is taken for markup.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for commands in (check, worker, backfill, model, status, dead, doctor, es, index):
    commands.register(program)


def _version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"sqla-vector {__version__}")
        raise typer.Exit


@program.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    del version


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code."""
    before = sys.stderr
    sys.stderr = cast("Any", Masked(before, Masking()))
    try:
        program(args=arguments, prog_name="sqla-vector")
    except SystemExit as finished:
        return finished.code if isinstance(finished.code, int) else ExitCode.OK
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    finally:
        sys.stderr = before
    return ExitCode.OK
