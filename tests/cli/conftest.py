"""An application in a directory of its own, and the command line on it."""

from __future__ import annotations

import itertools
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, text
from typer.testing import CliRunner

from sqla_vector.tracking import untrack
from tests.support.backends import Backend

SCRIPT = Path(sys.executable).parent / "sqla-vector"
_numbers = itertools.count(1)


class Shop:
    """The application of ``shop.py`` on a backend's database.

    Each one has a module of its own name, so that several can be imported in one process.
    """

    source = "shop.py"

    def __init__(self, directory: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        self.backend, self.directory, self.monkeypatch = backend, directory, monkeypatch
        self.module = f"shop_{next(_numbers)}"
        self.app = f"{self.module}:Session"
        shutil.copy(Path(__file__).parent / self.source, directory / f"{self.module}.py")
        monkeypatch.chdir(directory)
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setenv("SHOP_URL", backend.url.render_as_string(hide_password=False))
        monkeypatch.setenv("SQLA_VECTOR_APP", self.app)
        self.engine = backend.make_engine()
        sys.path.insert(0, str(directory))
        self.models: Any = __import__(self.module)
        backend.create_all(self.engine, self.models.Base.metadata)

    def __call__(self, *arguments: str, **options: Any) -> Any:
        """Run a command in this process, and return its result."""
        from sqla_vector.cli.program import program

        return CliRunner().invoke(program, list(arguments), catch_exceptions=False, **options)

    def json(self, *arguments: str, code: int = 0) -> Any:
        """Run a command with --json, and return what it printed."""
        result = self(*arguments, "--json")
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start the script in a process of its own."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        return subprocess.Popen([SCRIPT, *arguments], **{**streams, "text": True, "env": self.environment, **options})

    def script(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the script in a process of its own."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        options = {**streams, "text": True, "timeout": 120, "env": self.environment, **options}
        return subprocess.run([SCRIPT, *arguments], **options)

    @property
    def environment(self) -> dict[str, str]:
        """What a new process gets; it has no more on its path than a user's."""
        return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def add(self, *titles: str | None) -> None:
        """Add articles, by statements that only the triggers notice."""
        rows = [{"title": title} for title in titles]
        self.connection(lambda c: c.execute(insert(self.models.Article.__table__), rows))

    def connection(self, function: Callable[[Any], Any]) -> Any:
        """Call a function with a connection in a transaction."""
        return self.backend.run_connection(self.engine, function)

    def sql(self, statement: str) -> Any:
        """Run a statement."""
        return self.connection(lambda c: c.execute(text(statement)))

    def entries(self) -> list[Any]:
        """Return the outbox."""
        stmt = self.models.outbox.select().order_by(self.models.outbox.c.id)
        return list(self.connection(lambda c: c.execute(stmt).all()))

    def vectors(self) -> int:
        """Return how many articles have a vector."""
        return int(self.connection(lambda c: c.scalar(text("SELECT count(embedding_fingerprint) FROM article"))))

    def close(self) -> None:
        untrack(self.models.Session)
        engine = self.models.engine
        if self.backend.is_async:
            self.backend.wait(engine.dispose())
        else:
            engine.dispose()
        del sys.modules[self.module]


def on_terminal(arguments: list[str], shop: Shop, answer: str = "", **environment: str) -> tuple[int, str]:
    """Run the script on a terminal, answer its question, and return its exit code and all that was shown."""
    ours, theirs = pty.openpty()
    env = {**shop.environment, "TERM": "xterm", "COLUMNS": "100", **environment}
    with subprocess.Popen([SCRIPT, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        shown, is_answered = b"", not answer
        while True:
            try:
                read = os.read(ours, 65536)
            except OSError:  # Linux says so at the end
                break
            if not read:
                break
            shown += read
            if not is_answered and b"[y/N]" in shown:
                os.write(ours, answer.encode())
                is_answered = True
        os.close(ours)
        return process.wait(60), shown.decode()


def wait_for(stream: Any, words: str) -> str:
    """Read lines until one has these words."""
    seen = ""
    while words not in seen:
        line = stream.readline()
        assert line, f"ended without {words!r}: {seen}"
        seen += line
    return seen


@pytest.fixture
def shop(backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """The application, on an empty database with its tables."""
    found = Shop(tmp_path, backend, monkeypatch)
    yield found
    found.close()
