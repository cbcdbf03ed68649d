"""How far the build of an index is, asked over a second connection."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from sqlalchemy.engine import Connection
from sqlalchemy.util import greenlet_spawn

__all__ = ["INTERVAL", "watch_build"]

logger = logging.getLogger("alembic.sqla_vector")

INTERVAL: Final = {"ask": 0.5, "log": 10.0}
"""Seconds between two questions, and between two lines in the log."""

_ASK: Final = (
    "SELECT phase, blocks_done, blocks_total, tuples_done, tuples_total"
    " FROM pg_catalog.pg_stat_progress_create_index WHERE pid = {pid}"
)

Report = Callable[[str, float], None]


@contextmanager
def watch_build(connection: Connection | None, name: str) -> Iterator[None]:
    """Report on an index that is built on a connection: in the log, and on a terminal as a bar.

    The second connection is one more than the pool may hold.  Where there is none to be had, the build goes
    unreported.
    """
    if connection is None:
        yield
        return
    pid = int(connection.exec_driver_sql("SELECT pg_catalog.pg_backend_pid()").scalar_one())
    done = threading.Event()
    with ExitStack() as stack:
        report = _reporter(stack, name)
        watcher = threading.Thread(target=_watch, args=(connection.engine, pid, done, report), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()


def _watch(engine: Any, pid: int, done: threading.Event, report: Report) -> None:
    try:
        if engine.dialect.is_async:
            asyncio.run(greenlet_spawn(_poll, engine, pid, done, report))
        else:
            _poll(engine, pid, done, report)
    except Exception as error:  # the build goes on without a report
        logger.info("the progress of the build is unknown: %s", type(error).__name__)


def _poll(engine: Any, pid: int, done: threading.Event, report: Report) -> None:
    if done.wait(INTERVAL["ask"]):  # most indexes are built before anybody asks
        return
    # A connection of the engine's pool may belong to another event loop, and may be the last one.
    pool = engine.pool.recreate()
    try:
        connection = pool.connect()
        try:
            while True:
                row = _ask(connection, pid)
                if row is not None:
                    report(row[0], _fraction(*row[1:]))
                if done.wait(INTERVAL["ask"]):
                    return
        finally:
            connection.close()
    finally:
        pool.dispose()


def _ask(connection: Any, pid: int) -> Any:
    cursor = connection.cursor()
    try:
        cursor.execute(_ASK.format(pid=pid))
        return cursor.fetchone()
    finally:
        cursor.close()
        connection.rollback()


def _fraction(blocks_done: int, blocks_total: int, tuples_done: int, tuples_total: int) -> float:
    if blocks_total:
        return min(1.0, blocks_done / blocks_total)
    return min(1.0, tuples_done / tuples_total) if tuples_total else 0.0


def _reporter(stack: ExitStack, name: str) -> Report:
    """Return what reports a phase and a fraction: a bar on a terminal if there is rich, and lines in the log."""
    bar = _bar(stack, name) if sys.stderr.isatty() else None
    state = {"asked": 0}
    every = max(1, round(INTERVAL["log"] / INTERVAL["ask"]))

    def report(phase: str, fraction: float) -> None:
        if bar is not None:
            bar(phase, fraction)
        if state["asked"] % every == 0:
            logger.info("building %s: %s, %.0f %%", name, phase, 100 * fraction)
        state["asked"] += 1

    return report


def _bar(stack: ExitStack, name: str) -> Report | None:
    try:
        from rich.console import Console
        from rich.progress import Progress
    except ImportError:
        return None
    progress = stack.enter_context(Progress(console=Console(stderr=True)))
    task = progress.add_task(name, total=1.0)

    def report(phase: str, fraction: float) -> None:
        progress.update(task, completed=fraction, description=f"{name}: {phase}")

    return report
