"""What a command prints: results to standard output, as text or JSON, and everything else to standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sqla_vector.cli.failure import ExitCode, Failed
from sqla_vector.cli.masking import Masking

__all__ = ["Output", "counted", "duration", "plain"]


class Output:
    """Where a command's results go.

    Args:
        stdout: for results.
        stderr: for everything else.
        masking: hides secrets.
        as_json: whether results are JSON.
    """

    def __init__(self, stdout: TextIO, stderr: TextIO, masking: Masking, *, as_json: bool = False) -> None:
        self._stdout = stdout
        self.stderr = stderr
        self.masking = masking
        self.as_json = as_json

    @property
    def is_terminal(self) -> bool:
        """Whether somebody looks at the messages."""
        return self.stderr.isatty()

    def result(self, value: Any) -> None:
        """Print a result as JSON, if that was asked for."""
        if self.as_json:
            self._write(json.dumps(self.masking.masked(value), ensure_ascii=False) + "\n")

    def line(self, text: str) -> None:
        """Print a line of a result, unless JSON was asked for."""
        if not self.as_json:
            self._write(plain(self.masking(text)) + "\n")

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Print a table, unless JSON was asked for; where nobody looks, no line is cut or wrapped."""
        if self.as_json:
            return
        written = [[plain(self.masking(_shown(cell))) for cell in row] for row in rows]
        if self._stdout.isatty():
            style = "" if os.environ.get("NO_COLOR") else "bold"
            table = Table(*headers, box=None, pad_edge=False, header_style=style)
            for row in written:
                table.add_row(*map(Text, row))
            console = Console(file=self._stdout, highlight=False)
            with console.capture() as captured:
                console.print(table)
            self._write(captured.get())
            return
        widths = [max(map(len, column)) for column in zip(headers, *written, strict=True)]
        for row in [list(headers), *written]:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            self._write("  ".join(cells).rstrip() + "\n")

    def message(self, text: str) -> None:
        """Say something that is no result."""
        self.stderr.write(plain(self.masking(text)) + "\n")
        self.stderr.flush()

    def confirm(self, question: str, *, is_agreed: bool) -> None:
        """Ask on a terminal whether to go on.

        Args:
            question: what is going to happen.
            is_agreed: whether ``--yes`` was given.

        Raises:
            Failed: nobody is there to be asked, or the answer is not yes.
        """
        if is_agreed:
            return
        if not sys.stdin.isatty() or not self.is_terminal:
            raise Failed(f"{question} This is not a terminal, so nobody can be asked: give --yes to do it")
        self.stderr.write(f"{plain(self.masking(question))} Go on? [y/N] ")
        self.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise Failed("nothing was done")

    def _write(self, text: str) -> None:
        try:
            self._stdout.write(text)
            self._stdout.flush()
        except BrokenPipeError:
            # What is still buffered has nowhere to go, and Python would complain of it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stdout.fileno())
            raise Failed("", ExitCode.BROKEN_PIPE) from None


def plain(text: str) -> str:
    """Return a text as one line: what rows and servers say may hold what a terminal obeys."""
    return "".join(char if char.isprintable() else " " for char in text)


def counted(number: int, one: str, many: str) -> str:
    """Return a number of things: ``1 entry``, ``1,200 entries``."""
    return f"{number:,} {one if number == 1 else many}"


def duration(seconds: float) -> str:
    """Return a time as people say it: ``12 s``, ``3 min``, ``2.5 h``, ``4.0 d``."""
    for unit, size in (("d", 86400.0), ("h", 3600.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{max(seconds, 0):.0f} s"


def _shown(cell: Any) -> str:
    if cell is None:
        return "-"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
