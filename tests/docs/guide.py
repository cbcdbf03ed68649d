"""A guide as a series of steps, carried out in a project of its own.

Beside the markers of :mod:`tests.docs.pages` a block may have one of these before it, and each may begin with
``postgresql`` if it is for that database alone::

    <!-- file: name -->        the block is this file
    <!-- async: name -->       the block is this file where the engine is asynchronous
    <!-- edit: name -->        a diff: what stands behind - is replaced by what stands behind +
    <!-- generated: name -->   what a command wrote into this file, but for white space
    <!-- start -->             from here on in another, empty directory
    <!-- again: name -->       there, the file of this name as it was before

A ``shell`` block is run line by line, in one shell each.  ``# fails`` at its end says that it does, and a ``text``
block after it is a part of what it says.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_STEP = re.compile(
    r"^(?:<!-- (?P<only>postgresql ?)?(?:(?P<kind>file|async|edit|generated): (?P<name>\S+) )?-->\n)?"
    r"```(?P<language>python|diff|ini|shell|text)\n(?P<body>.*?)^```$"
    r"|^<!-- (?P<alone>start|again)(?:: (?P<file>\S+))? -->$",
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
            yield Step(line, kind, match["name"] or match["file"] or "", match["body"] or "", bool(match["only"]))


class Guide:
    """Follows a page.

    Args:
        page: the page.
        directory: an empty directory, in which the projects are made.
        url: the database's URL.
        async_url: the same with an asynchronous driver, if Alembic shall use one.
        second: the two URLs of another database, for what comes after ``start``; None leaves that out.
    """

    def __init__(
        self,
        page: Path,
        directory: Path,
        url: str,
        *,
        async_url: str | None = None,
        second: tuple[str, str | None] | None = None,
    ) -> None:
        self._page = page
        self._root = directory
        self._directory = directory / "1"
        self._directory.mkdir()
        self._url = url
        self._async_url = async_url
        self._second = second
        self._said = ""
        # They stand later on the page than the file whose place they take.
        self._async_files = {step.name: step.body for step in steps(page) if step.kind == "async"}

    def follow(self) -> list[str]:
        """Carry out all steps, and return the commands that were run."""
        commands = []
        for step in steps(self._page):
            if step.kind == "start":
                if self._second is None:
                    return commands
                self._directory = self._root / "2"
                self._directory.mkdir()
                self._url, self._async_url = self._second
            elif not step.is_for_postgresql or self._url.startswith("postgresql"):
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
            body = step.body if self._async_url is None else self._async_files.get(step.name, step.body)
            path.write_text(body, encoding="utf-8")
        elif step.kind == "again":
            path.write_bytes((self._root / "1" / step.name).read_bytes())
        elif step.kind == "edit":
            path.write_text(edited(path.read_text(encoding="utf-8"), step.body, where), encoding="utf-8")
        elif step.kind == "generated":
            assert _squeezed(step.body) in _squeezed(path.read_text(encoding="utf-8")), f"{where}:\n{path.read_text()}"
        return []

    def _run(self, line: str, where: str) -> None:
        command, _, comment = line.partition("  # ")
        is_alembic = command.startswith("alembic ")
        if is_alembic and command.startswith("alembic init"):
            if self._async_url is not None:
                command = command.replace("init", "init -t async")
            elif (self._directory / "migrations").exists():
                return
        url = self._async_url if is_alembic and self._async_url is not None else self._url
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
