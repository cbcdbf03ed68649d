"""How much memory loading a generator of a million rows takes, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from threading import Event, Thread
from typing import Any

import numpy as np
import psutil
from sqlalchemy import create_engine, make_url

from benchmarks.data import clustered
from benchmarks.harness import Figure, Floor, Run
from benchmarks.models import Base, Ours
from sqla_vector import bulk

GROUP = "Costs"


def peak_above_start(url: str, rows: int) -> float:
    """Load rows that a generator makes, and return the peak of resident memory above that at the start, in MB."""
    engine = create_engine(url, plugins=["sqla_vector"])
    Base.metadata.drop_all(engine, [Ours.__table__])
    Base.metadata.create_all(engine, [Ours.__table__])
    vectors = list(clustered(1000))
    process, done = psutil.Process(), Event()
    peak = start = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, process.memory_info().rss)

    watcher = Thread(target=watch)
    watcher.start()
    with engine.begin() as connection:
        # A copy of each vector, as a model would make new ones.
        generator = ({"id": n, "embedding": np.copy(vectors[n % 1000])} for n in range(rows))
        assert bulk.load(connection, Ours, generator) == rows
    done.set()
    watcher.join()
    engine.dispose()
    return (peak - start) / 1e6


def figure(url: Any, rows: int, what: str) -> Figure:
    """Measure in a new process."""
    command = [sys.executable, "-m", "benchmarks.memory", str(rows)]
    given = url.render_as_string(hide_password=False)
    found = float(subprocess.run(command, check=True, input=given, stdout=subprocess.PIPE, text=True).stdout)
    return Figure(
        GROUP,
        f"bulk.load() of a generator, {what}",
        "peak memory above start",
        f"{found:.0f} MB",
        "",
        found,
        "MB",
        Floor(200, at_most=True),
        rows=rows,
    )


def measure(run: Run) -> Iterator[Figure]:
    """Measure on both databases."""
    rows = run.size(1_000_000)
    yield figure(run.postgresql().set(drivername="postgresql+psycopg"), rows, "PostgreSQL")
    with run.directory() as directory:
        yield figure(make_url(f"sqlite:///{directory / 'memory.db'}"), rows, "SQLite")


if __name__ == "__main__":
    print(peak_above_start(sys.stdin.read().strip(), int(sys.argv[1])))
