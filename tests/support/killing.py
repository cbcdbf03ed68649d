"""Migrations in a process that is killed at one of its statements.

One process (:class:`Migrator`) imports everything once and forks for each run, so that a run costs no import.  It has
a single thread and no connection, which is what makes the fork safe.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, create_engine, event, make_url
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.pool import NullPool

from tests.support.change import widen

ROOT = Path(__file__).parents[2]

READS = re.compile(r"\s*(SELECT|SHOW|PRAGMA|EXPLAIN)\b", re.IGNORECASE)
DDL = re.compile(r"\s*(CREATE|DROP|ALTER)\b", re.IGNORECASE)


class Counter:
    """Counts the points at which a database changes, and kills this process at one of them.

    A point is before a statement that writes, or before a commit.  What lies between two points is the same to the
    database, unless ``when`` is ``sent``: then the server gets the statement of the point, and this process ends
    without waiting for the answer.
    """

    def __init__(self, kill_at: int, when: str) -> None:
        self.points = 0
        self._kill_at = kill_at
        self._when = when

    def reach(self, statement: str, cursor: Any = None) -> None:
        """Count a point."""
        if READS.match(statement):
            return
        if self._when == "sent":
            if not DDL.match(statement):
                return
            self.points += 1
            if self.points == self._kill_at:
                cursor.connection.pgconn.send_query(statement.encode())
                os.kill(os.getpid(), signal.SIGKILL)
            return
        self.points += 1
        if self.points == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def _engine(url: URL, counter: Counter) -> Engine:
    """Return an engine whose every cursor counts, those of scripts behind SQLAlchemy's events too."""
    arguments: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":
        arguments["factory"] = _sqlite_factory(counter)
    else:
        import psycopg

        class Cursor(psycopg.Cursor[Any]):
            def execute(self, query: Any, *rest: Any, **kw: Any) -> Any:
                counter.reach(str(query), self)
                return super().execute(query, *rest, **kw)

            def executemany(self, query: Any, *rest: Any, **kw: Any) -> None:
                counter.reach(str(query), self)
                super().executemany(query, *rest, **kw)

        arguments["cursor_factory"] = Cursor
    engine = create_engine(url, plugins=["sqla_vector"], poolclass=NullPool, connect_args=arguments)

    @event.listens_for(engine, "commit")
    def commit(connection: Connection) -> None:
        counter.reach("COMMIT")

    return engine


def _sqlite_factory(counter: Counter) -> Any:
    from tests.support.sqlite import stdlib_loads_extensions

    if stdlib_loads_extensions():
        import sqlite3
    else:
        from pysqlite3 import dbapi2 as sqlite3  # type: ignore[no-redef]

    class Cursor(sqlite3.Cursor):
        def execute(self, sql: str, *rest: Any) -> Any:
            counter.reach(sql)
            return super().execute(sql, *rest)

        def executemany(self, sql: str, *rest: Any) -> Any:
            counter.reach(sql)
            return super().executemany(sql, *rest)

    class Counting(sqlite3.Connection):
        def cursor(self, factory: Any = Cursor) -> Any:
            return super().cursor(factory)

    return Counting


def _run(order: dict[str, Any]) -> int:
    """Run one command of Alembic and return the number of points."""
    counter = Counter(order["kill_at"], order["when"])
    engine = _engine(make_url(order["url"]), counter)

    def connected(function: Any) -> None:
        with engine.connect() as connection:
            function(connection)

    config = Config()
    config.set_main_option("script_location", order["directory"])
    config.attributes.update(connected=connected, options={"render_as_batch": True}, backfill=widen)
    getattr(command, order["direction"])(config, order["revision"])
    return counter.points


def main() -> None:
    """Fork for each order that comes in, a line each, and answer with what became of it."""
    for line in sys.stdin:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            try:
                answer: dict[str, Any] = {"points": _run(json.loads(line))}
            except BaseException as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            os.write(writer, json.dumps(answer).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            answered = pipe.read()
        _, status = os.waitpid(pid, 0)
        was_killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(json.dumps({"killed": True} if was_killed else json.loads(answered)), flush=True)


class Migrator:
    """The process that forks.

    Args:
        directory: the project's.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.killing"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, url: URL, direction: str, revision: str, *, kill_at: int = 0, when: str = "before") -> dict[str, Any]:
        """Run a command, and return how many points it had, or that it was killed, or its error."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {
            "url": url.render_as_string(hide_password=False),
            "directory": str(self._directory),
            "direction": direction,
            "revision": revision,
            "kill_at": kill_at,
            "when": when,
        }
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@contextmanager
def migrator(directory: Path) -> Iterator[Migrator]:
    """Start a process that migrates, and end it."""
    found = Migrator(directory)
    try:
        yield found
    finally:
        found.close()


if __name__ == "__main__":
    main()
