"""What sqla_vector costs where it is not used: a model without vectors, and the import."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from statistics import median
from typing import Any

from sqlalchemy import Engine, create_engine
from sqlalchemy.orm import Session

from benchmarks.harness import Figure, Floor, Run, Variant
from benchmarks.models import Plain
from benchmarks.postgresql import engine as postgresql_engine

GROUP = "Costs"
OBJECTS = 500

TIMED = """
import sqlalchemy, numpy
from time import perf_counter
started = perf_counter()
import sqla_vector
print((perf_counter() - started) * 1000)
"""


def flush(engine: Engine, count: int) -> Callable[[], Any]:
    """Return what makes a session with objects to flush."""

    def prepare() -> Session:
        session = Session(engine)
        session.connection()
        session.add_all([Plain(title=f"title {number}") for number in range(count)])
        return session

    return prepare


def flushes(run: Run, what: str, attached: Engine, plain: Engine) -> Figure:
    """Compare flushes of the same objects through two engines; nothing is kept."""
    count = run.size(OBJECTS)

    def variant(engine: Engine, opened: ExitStack) -> Variant:
        def prepare() -> Session:
            opened.close()
            return opened.enter_context(flush(engine, count)())

        return Variant(lambda session: session.flush(), prepare)

    with ExitStack() as ours, ExitStack() as theirs:
        variants = variant(attached, ours), variant(plain, theirs)
        found = run.compare(*variants, rounds=min(run.latency_rounds, 300), warm_up=5)
    return found.duration(
        GROUP, f"flush of {count} objects without vectors, {what}", "no plugin", 1.02, rows=count, dim=None
    )


def import_time(run: Run) -> Figure:
    """Import the package in new processes that have SQLAlchemy and numpy already."""
    times = [
        float(subprocess.run([sys.executable, "-c", TIMED], check=True, capture_output=True, text=True).stdout)
        for _ in range(max(3, 3 * run.repeat))
    ]
    found = min(times)
    return Figure(
        GROUP,
        "import sqla_vector",
        "after sqlalchemy and numpy",
        f"{found:.1f} ms",
        "",
        found,
        "ms",
        Floor(50, at_most=True),
        f"the fastest of {len(times)} processes; their median {median(times):.0f} ms",
        dim=None,
    )


def measure(run: Run) -> Iterator[Figure]:
    """Compare flushes on both databases, then time the import."""
    with postgresql_engine(run) as attached, postgresql_engine(run, plugin=False) as plain:
        yield flushes(run, "PostgreSQL", attached, plain)
    with run.directory() as directory:
        attached = create_engine(f"sqlite:///{directory / 'attached.db'}", plugins=["sqla_vector"])
        # The same driver module, which the plugin may have chosen.
        plain = create_engine(f"sqlite:///{directory / 'plain.db'}", module=attached.dialect.dbapi)
        Plain.__table__.create(attached)
        Plain.__table__.create(plain)
        yield flushes(run, "SQLite", attached, plain)
        attached.dispose()
        plain.dispose()
    yield import_time(run)
