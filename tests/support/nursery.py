"""Processes that edit and processes that work, forked quickly, so that many of them can be killed.

One process (:class:`Nursery`) imports everything, uses a database once, closes its connections, and then forks a
child for each order.  It has a single thread, which is what makes the fork safe; a child begins with everything
compiled, so that what it is killed in is the work and not its beginning.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event, func, make_url, select
from sqlalchemy.exc import DBAPIError, SAWarning
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.orm.exc import ObjectDeletedError, StaleDataError

from sqla_vector.tracking import Worker, track
from tests.support import sqlite
from tests.support.points import PointedEmbedder, Points
from tests.tracking.models import article_models

ROOT = Path(__file__).parents[2]
ROWS = 40
"""Articles that the editors keep, roughly."""

BATCH = 8


class LoggingEmbedder(PointedEmbedder):
    """Writes down each text before it is embedded, in a file that outlives the process."""

    def __init__(self, path: str, seconds: float = 0.0) -> None:
        super().__init__()
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._seconds = seconds

    def embed(self, texts: list[str]) -> Any:
        os.write(self._file, (json.dumps(texts) + "\n").encode())
        if self._seconds:
            time.sleep(self._seconds)  # a model takes its time, in which much can happen
        return super().embed(texts)


def repeated(path: Path) -> int:
    """Return how many texts were embedded once more than needed."""
    calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    counts = Counter(text for call in calls for text in call)
    return sum(counts.values()) - len(counts)


def engine_of(url: URL) -> Engine:
    """Return an engine with which processes that are killed use a database."""
    options: dict[str, Any] = {"pool_size": 2}
    if url.get_backend_name() == "sqlite" and not sqlite.stdlib_loads_extensions():
        from pysqlite3 import dbapi2

        options["module"] = dbapi2
    engine = create_engine(url, plugins=["sqla_vector"], **options)
    if url.get_backend_name() == "sqlite":

        @event.listens_for(engine, "connect")
        def connect(connection: Any, record: Any) -> None:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = OFF")  # what a killed process wrote is written

    return engine


class Editor:
    """Makes random changes until it is told to stop; no two of its texts are the same.

    Args:
        base: the models.
        sessions: tracked.
        name: of this editor, part of its texts.
    """

    def __init__(self, base: Any, sessions: Any, name: str) -> None:
        self.base, self.sessions, self.name = base, sessions, name
        self.count = 0
        self.random = random.Random(name)
        self._stopped = False

    def stop(self, *ignored: Any) -> None:
        """Stop after the transaction."""
        self._stopped = True

    def run(self) -> None:
        """Edit, in one transaction after the other."""
        while not self._stopped:
            try:
                self.edit()
            except (DBAPIError, StaleDataError, ObjectDeletedError):
                # Another editor was there first, or the connection was cut: a program would try again, too.
                time.sleep(0.005)

    def edit(self) -> None:
        """Make some changes in one transaction, and commit it, or roll it back."""
        with self.sessions() as session:
            for _ in range(self.random.randint(1, 3)):
                if self.random.random() < 0.25:
                    savepoint = session.begin_nested()
                    self._change(session)
                    session.flush()
                    (savepoint.rollback if self.random.random() < 0.5 else savepoint.commit)()
                else:
                    self._change(session)
                if self.random.random() < 0.5:
                    session.flush()
                    time.sleep(self.random.random() * 0.004)  # in which others meet an open transaction
            (session.rollback if self.random.random() < 0.2 else session.commit)()

    def text(self) -> str:
        """Return a text that nobody has used."""
        self.count += 1
        return f"{self.name} writes the text {self.count}"

    def _change(self, session: Session) -> None:
        article, author = self.base.Article, self.base.Author
        ids = session.scalars(select(article.id)).all()
        found = session.get(article, self.random.choice(ids)) if ids else None
        kind = self.random.random()
        if found is None or (kind < 0.25 and len(ids) < 1.5 * ROWS):
            authors = session.scalars(select(author.id)).all()
            session.add(article(title=self.text(), body="body", author_id=self.random.choice([*authors, None])))
        elif kind < 0.55:
            setattr(found, self.random.choice(("title", "body")), self.text())
        elif kind < 0.6:
            found.title, found.body = None, " "
        elif kind < 0.7:
            found.views += 1
        elif kind < 0.8:
            found.title = self.text()
            found.author = session.scalars(select(author).order_by(func.random()).limit(1)).first()
        elif kind < 0.9:
            other = session.scalars(select(author).order_by(func.random()).limit(1)).first()
            if other is None or self.random.random() < 0.3:
                session.add(author(name=self.text()))
            elif self.random.random() < 0.2:
                session.delete(other)
            else:
                other.name = self.text()
        else:
            session.delete(found)


def change(base: Any, session: Session, number: int) -> None:
    """Change everything that can change, in two flushes, of rows 1 to 4 and of authors 1 and 2."""
    article, author = base.Article, base.Author
    session.get_one(article, 1).title = f"edited {number}"
    session.add(article(id=100 + number, title=f"new {number}", author_id=1))
    session.flush()
    session.get_one(author, 2).name = f"renamed {number}"
    session.get_one(article, 2).body = f"more {number}"
    session.delete(session.get_one(article, 100 + number))
    session.add(article(id=200 + number, title="to be seen", body="" if number % 2 else "body"))


def begin(base: Any, session: Session) -> None:
    """Add the rows that :func:`change` changes."""
    session.add_all(base.Author(id=n, name=f"author {n}") for n in (1, 2))
    session.add_all(base.Article(id=n, title=f"title {n}", author_id=1 + n % 2) for n in range(1, 5))


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _Scene:
    """What all children of a nursery share."""

    def __init__(self, url: str, log: str, related: bool, when: str, has_rows: bool) -> None:
        self.url = make_url(url)
        self.base = article_models(when, related=related)
        self.log = log
        self.engine = engine_of(self.url)
        self.sessions = sessionmaker(self.engine)
        self.base.metadata.create_all(self.engine)
        self.embedder = LoggingEmbedder(log)
        track(self.sessions, embedders={"counting": self.embedder}, models=self.base, outbox=self.base.outbox)
        # Compile what the children need.
        warm = Editor(self.base, self.sessions, "first")
        for _ in range(0 if has_rows else 60):
            warm.edit()
        if has_rows:
            with self.sessions.begin() as session:
                begin(self.base, session)
        self.worker().run(until_empty=True)
        self.engine.dispose()
        gc.freeze()

    def worker(self, **options: Any) -> Worker:
        self.embedder._seconds = options.pop("seconds", 0.0)
        given = {"batch_size": BATCH, "lease": 2.0, "timeout": None, "poll": 0.02, "backoff": 0.01, "max_backoff": 0.1}
        return Worker(self.sessions, **{**given, **options})

    def work(self, until_empty: bool = False, **options: Any) -> None:
        self.worker(**options).run(until_empty=until_empty, signals=True)

    def edit(self, name: str) -> None:
        editor = Editor(self.base, self.sessions, name)
        signal.signal(signal.SIGTERM, editor.stop)
        editor.run()

    def die_working(self, at: int, number: int) -> None:
        """Work, and be killed at a point."""
        with self._points.watched(at, _die):
            self.worker(lease=0.2).run(until_empty=True)

    def die_editing(self, at: int, number: int) -> None:
        """Make the changes of an edit that is numbered, and be killed at a point."""
        with self._points.watched(at, _die), self.sessions.begin() as session:
            change(self.base, session, number)

    def change(self, number: int) -> None:
        with self.sessions.begin() as session:
            change(self.base, session, number)

    @cached_property
    def _points(self) -> Points:
        points = self.embedder.points = Points(self.engine)
        return points

    def fill(self, count: int) -> None:
        with self.sessions.begin() as session:
            session.add_all(self.base.Article(title=f"title {n}", body="body") for n in range(count))


def main(make_scene: Callable[..., Any] = _Scene) -> None:
    """Fork for each order that comes in, a line each, and answer with the number of the process.

    Args:
        make_scene: makes what all children share, of the first line; its methods are what they can do.
    """
    # Lost connections, and editors who delete one row, are what is meant to happen here.
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore", SAWarning)
    first = json.loads(sys.stdin.readline())
    scene = make_scene(**first)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        match order.pop("do"):
            case "fork":
                answer = _fork(getattr(scene, order.pop("role")), order)
            case "signal":
                os.kill(order["pid"], order["number"])
                answer = {}
            case "wait":
                answer = {"status": os.waitstatus_to_exitcode(os.waitpid(order["pid"], 0)[1])}
        print(json.dumps(answer), flush=True)


def _fork(role: Callable[..., None], options: dict[str, Any]) -> dict[str, Any]:
    pid = os.fork()
    if pid:
        return {"pid": pid}
    status = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        random.seed()
        role(**options)
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


class Nursery:
    """The process that forks.

    Args:
        url: of an empty database.
        log: a file for the texts that are embedded.
        related: whether the author's name is part of an article's text.
        when: vectors are made.
        has_rows: begin with the rows that :func:`change` changes, and not with random ones.
    """

    def __init__(
        self, url: URL, log: Path, *, related: bool = False, when: str = "worker", has_rows: bool = False
    ) -> None:
        address = url.render_as_string(hide_password=False)
        self._begin("tests.support.nursery", url=address, log=str(log), related=related, when=when, has_rows=has_rows)

    def _begin(self, module: str, **scene: Any) -> None:
        """Start the process: a module that calls :func:`main`, and the first line for it."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._living: set[int] = set()
        self._ask(**scene)

    def _ask(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def fork(self, role: str, **options: Any) -> int:
        """Start a process that works (``work``), edits (``edit``), or adds rows (``fill``)."""
        pid: int = self._ask(do="fork", role=role, **options)["pid"]
        self._living.add(pid)
        return pid

    def signal(self, pid: int, number: int) -> None:
        """Send a signal."""
        self._ask(do="signal", pid=pid, number=number)

    def wait(self, pid: int) -> int:
        """Wait for the end of a process, and return its exit code, negative if a signal ended it."""
        status: int = self._ask(do="wait", pid=pid)["status"]
        self._living.discard(pid)
        return status

    def kill(self, pid: int) -> int:
        """Kill a process, and return its exit code, which tells whether it lived until then."""
        self.signal(pid, signal.SIGKILL)
        return self.wait(pid)

    def stop(self, pid: int) -> int:
        """Have a process finish what it has in hand, and return its exit code."""
        self.signal(pid, signal.SIGTERM)
        return self.wait(pid)

    def close(self) -> None:
        """End all processes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for pid in sorted(self._living):
            self.kill(pid)
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@contextmanager
def nursery(url: URL, log: Path, **options: Any) -> Iterator[Nursery]:
    """Start a process that forks others, and end them all."""
    found = Nursery(url, log, **options)
    try:
        yield found
    finally:
        found.close()


if __name__ == "__main__":
    main()
