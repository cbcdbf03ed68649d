"""A guide as a series of steps, carried out in a project of its own.

Beside the markers of :mod:`tests.docs.pages` a block may have one of these before it, and each may begin with
``postgresql`` if it is for that database alone::

    <!-- file: name -->        the block is this file
    <!-- async: name -->       the block is this file where the engine is asynchronous
    <!-- edit: name -->        a diff: what stands behind - is replaced by what stands behind +
    <!-- generated: name -->   what a command wrote into this file, but for white space
    <!-- start -->             from here on in another, empty directory, with another database
    <!-- again: name -->       there, the file of this name as it was in the first

A ``shell`` block is run line by line, in one shell each.  ``# fails`` at its end says that it does, and a ``text``
block after it is a part of what it says.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL

_STEP = re.compile(
    r"^(?:<!-- (?P<only>postgresql ?)?(?:(?P<kind>file|async|edit|generated): (?P<name>\S+) )?-->\n)?"
    r"```(?P<language>python|diff|ini|shell|text)\n(?P<body>.*?)^```$"
    r"|^<!-- (?P<only_alone>postgresql ?)?(?P<alone>start|again)(?:: (?P<file>\S+))? -->$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Step:
    """A block of a guide that does something."""

    line: int
    kind: str
    """``file``, ``async``, ``edit``, ``generated``, ``shell``, ``text``, ``start`` or ``again``."""
    name: str
    body: str
    is_for_postgresql: bool


def steps(page: Path) -> Iterator[Step]:
    """Yield the steps of a page in order."""
    text = page.read_text(encoding="utf-8")
    for match in _STEP.finditer(text):
        kind = match["kind"] or match["alone"] or (match["language"] if match["language"] in ("shell", "text") else "")
        if kind:
            line = text.count("\n", 0, match.start()) + 1
            yield Step(
                line,
                kind,
                match["name"] or match["file"] or "",
                match["body"] or "",
                bool(match["only"] or match["only_alone"]),
            )


class Guide:
    """Follows a page.

    Args:
        page: the page.
        directory: an empty directory, in which the projects are made.
        databases: makes a new database, and returns its URL.
        async_driver: what the engine of the first project runs on, if it is asynchronous.
    """

    def __init__(
        self, page: Path, directory: Path, databases: Callable[[], URL], *, async_driver: str | None = None
    ) -> None:
        self._page = page
        self._root = directory
        self._databases = databases
        self._async_driver = async_driver
        self._projects = 0
        self._said = ""
        # They stand later on the page than the file whose place they take.
        self._async_files = {step.name: step.body for step in steps(page) if step.kind == "async"}
        self._files: dict[str, str] = {}
        self._start()

    def _start(self) -> None:
        self._projects += 1
        self._directory = self._root / str(self._projects)
        self._directory.mkdir()
        url = self._databases()
        self._url = url.render_as_string(hide_password=False)
        self._alembic_url, self._is_async = self._url, self._projects == 1 and self._async_driver is not None
        if self._is_async:
            self._alembic_url = url.set(drivername=str(self._async_driver)).render_as_string(hide_password=False)

    def follow(self) -> list[str]:
        """Carry out all steps, and return the commands that were run."""
        commands = []
        for step in steps(self._page):
            if step.is_for_postgresql and not self._url.startswith("postgresql"):
                continue
            if step.kind == "start":
                self._start()
            else:
                commands += self._carry_out(step)
        return commands

    def _carry_out(self, step: Step) -> list[str]:
        where = f"{self._page.name}, line {step.line}"
        if step.kind == "shell":
            lines = step.body.strip().splitlines()
            for line in lines:
                self._run(line, where)
            return lines
        if step.kind == "text":
            assert step.body.strip() in self._said, f"{where}: {self._said}"
            return []
        path = self._directory / step.name
        if step.kind == "file":
            self._files.setdefault(step.name, step.body)
            body = self._async_files.get(step.name, step.body) if self._is_async else step.body
            path.write_text(body, encoding="utf-8")
        elif step.kind == "again":
            path.write_text(self._files[step.name], encoding="utf-8")
        elif step.kind == "edit":
            path.write_text(edited(path.read_text(encoding="utf-8"), step.body, where), encoding="utf-8")
        elif step.kind == "generated":
            assert _squeezed(step.body) in _squeezed(path.read_text(encoding="utf-8")), f"{where}:\n{path.read_text()}"
        return []

    def _run(self, line: str, where: str) -> None:
        command, _, comment = line.partition("  # ")
        if self._is_async:
            command = command.replace("alembic init", "alembic init -t async")
        url = self._alembic_url if command.startswith("alembic ") else self._url
        done = subprocess.run(
            command,
            shell=True,  # what a reader types into one
            cwd=self._directory,
            env={
                **os.environ,
                "DATABASE_URL": url,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "PYTHONWARNINGS": "error",
                "PYTHONPATH": str(self._directory),
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
        self._said = done.stdout + done.stderr
        assert (done.returncode != 0) == (comment == "fails"), f"{where}: {command}\n{self._said}"


def edited(text: str, diff: str, where: str) -> str:
    """Return a text in which the lines behind ``-`` are replaced by those behind ``+``; indentation stays."""
    for before, after in re.findall(r"((?:^-.*\n)+)((?:^\+.*\n)*)", diff, re.MULTILINE):
        removed = [line[1:].strip() for line in before.splitlines()]
        added = textwrap.dedent("".join(line[1:] + "\n" for line in after.splitlines())).splitlines()
        pattern = re.compile(r"\s*\n\s*".join(map(re.escape, removed)))
        match = pattern.search(text)
        assert match is not None, f"{where}: there is no {removed} in\n{text}"
        start_of_line = text.rfind("\n", 0, match.start()) + 1
        indentation = re.match(r"\s*", text[start_of_line : match.start()])
        assert indentation is not None
        text = text[: match.start()] + f"\n{indentation[0]}".join(added) + text[match.end() :]
    return text


def _squeezed(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())
