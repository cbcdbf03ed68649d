"""A process that embeds within a limit that it shares with others: ``python -m tests.tracking.limited URL worker``.

It says when it is ready, and begins when it is told to.  Its embedder writes down each call, by the database's clock.
"""

from __future__ import annotations

import importlib
import itertools
import os
import signal
import sys
from typing import Any

from sqlalchemy import Column, Double, Engine, Integer, Table, create_engine, insert, make_url
from sqlalchemy.orm import sessionmaker

from sqla_vector.dialects.clock import database_now
from sqla_vector.tracking import Backfill, RateLimit, Worker, limits_table
from tests.support import sqlite
from tests.tracking.models import CountingEmbedder, article_models

PER_SECOND = 40.0
BURST = 0.25
LIMIT = RateLimit(texts=PER_SECOND, per=1.0, burst=BURST)


def models() -> Any:
    """Return articles, with a table of limits and one of calls."""
    base = article_models("worker")
    base.limits = limits_table(base.metadata)
    base.calls = Table(
        "calls", base.metadata, Column("id", Integer, primary_key=True), Column("at", Double), Column("texts", Integer)
    )
    return base


def make_engine(url: str) -> Engine:
    """Return an engine as the tests have it."""
    options: dict[str, Any] = {}
    if make_url(url).get_backend_name() == "sqlite" and not sqlite.stdlib_loads_extensions():
        options["module"] = importlib.import_module("pysqlite3.dbapi2")
    return create_engine(url, plugins=["sqla_vector"], **options)


class NotingEmbedder(CountingEmbedder):
    """Writes down each call."""

    def __init__(self, engine: Engine, calls: Table) -> None:
        def note(texts: list[str]) -> None:
            with engine.begin() as connection:
                connection.execute(insert(calls).values(at=database_now(), texts=len(texts)))

        super().__init__(fail=note)


class Killer:
    """Kills this process at a call."""

    def __init__(self, at: int) -> None:
        self._at = at
        self._calls = itertools.count(1)

    def __call__(self, texts: list[str]) -> None:
        if next(self._calls) == self._at:
            os.kill(os.getpid(), signal.SIGKILL)


def main(url: str, role: str) -> None:
    """Work until nothing is left to do."""
    base = models()
    engine = make_engine(url)
    options: dict[str, Any] = {
        "embedders": {"counting": NotingEmbedder(engine, base.calls)},
        "models": base,
        "outbox": base.outbox,
        "limits": {"counting": LIMIT},
        "limits_table": base.limits,
        "batch_size": 16,
    }
    with engine.connect():
        print("ready", flush=True)
    sys.stdin.readline()
    if role == "killed":
        options |= {"limits": None, "embedders": {"counting": CountingEmbedder(fail=Killer(4))}, "batch_size": 5}
    if role == "worker":
        Worker(sessionmaker(engine), poll=0.01, **options).run(until_empty=True)
    else:
        Backfill(sessionmaker(engine), base.Article.embedding, workers=2, **options).run()
    engine.dispose()


if __name__ == "__main__":
    main(*sys.argv[1:])
