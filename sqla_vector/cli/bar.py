"""How far a run has come: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from sqla_vector.cli.output import Output, duration
from sqla_vector.tracking import Progress

__all__ = ["shown_progress"]

EVERY: Final = 5.0
"""Seconds between two lines."""


@contextmanager
def shown_progress(output: Output, what: str) -> Iterator[Callable[[Progress], None]]:
    """Yield the function that shows how far a run has come.

    Args:
        output: whose standard error it goes to.
        what: what is done.
    """
    if not output.is_terminal:
        yield _lines(output, what)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    with Bar(*columns, console=Console(file=cast("Any", output.stderr)), transient=True) as bar:
        task = bar.add_task(what, total=None, speed="")

        def show(progress: Progress) -> None:
            bar.update(task, completed=progress.done, total=max(progress.total, progress.done), speed=_speed(progress))

        yield show


def _lines(output: Output, what: str) -> Callable[[Progress], None]:
    said = time.monotonic()

    def show(progress: Progress) -> None:
        nonlocal said
        if time.monotonic() - said >= EVERY:
            said = time.monotonic()
            output.message(
                f"{what} {progress.column}: {progress.done:,} of {progress.total:,} rows, {_speed(progress)}"
            )

    return show


def _speed(progress: Progress) -> str:
    left = progress.seconds_left
    return f"{progress.rate:,.0f} rows/s" + ("" if left is None else f", {duration(left)} left")
