"""What is around every command: its application, its output, its errors and its log."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Annotated, Any, cast

import typer

from sqla_vector.cli.application import VARIABLE, Application, opened
from sqla_vector.cli.failure import ExitCode, failure_of
from sqla_vector.cli.masking import Masked, Masking
from sqla_vector.cli.output import Output

__all__ = ["AppOption", "JsonOption", "Running", "TracebackOption", "YesOption", "logging_to", "reporting", "running"]

AppOption = Annotated[
    str | None,
    typer.Option(
        "--app",
        envvar=VARIABLE,
        metavar="MODULE:ATTRIBUTE",
        help="The tracked sessionmaker or async_sessionmaker, or a function that returns it.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else to stdout.")]
TracebackOption = Annotated[bool, typer.Option("--traceback", help="Show where an error comes from.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]


@dataclass(frozen=True)
class Running:
    """A command that is running."""

    application: Application
    output: Output


@contextmanager
def running(
    app: str | None, *, as_json: bool = False, show_traceback: bool = False, level: int = logging.WARNING
) -> Iterator[Running]:
    """Load the application for a command, and close it at the end.

    Args:
        app: how the application is named.
        as_json: whether the result is JSON.
        show_traceback: whether errors are shown with their traceback.
        level: from which on messages of the package are shown, unless the application has arranged for its log.
    """
    with reporting(as_json=as_json, show_traceback=show_traceback) as output, opened(app) as application:
        output.masking.add(application.passwords)
        with logging_to(output.stderr, level):
            yield Running(application, output)


@contextmanager
def reporting(*, as_json: bool = False, show_traceback: bool = False) -> Iterator[Output]:
    """Turn errors into a sentence and an exit code.

    What the application prints goes to standard error meanwhile, so that standard output has the result alone.
    """
    masking = Masking()
    masked = cast("Any", Masked(sys.stderr, masking))
    output = Output(sys.stdout, masked, masking, as_json=as_json)
    with redirect_stdout(masked), redirect_stderr(masked):
        try:
            yield output
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            failure = failure_of(error)
            if failure.code == ExitCode.BROKEN_PIPE:
                raise typer.Exit(failure.code) from None
            if show_traceback:
                masked.write("".join(traceback.format_exception(error)))
            output.message(f"sqla-vector: {failure}")
            output.result({"error": str(failure)})
            raise typer.Exit(failure.code) from error


@contextmanager
def logging_to(stream: Any, level: int) -> Iterator[None]:
    """Show the package's log, where the application has not said what is to become of it."""
    logger = logging.getLogger("sqla_vector")
    if logger.hasHandlers():
        yield
        return
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
