"""Tracked sessions on every backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import sessionmaker

from sqla_vector.tracking import Worker, track, untrack
from tests.support.backends import AnyEngine, Backend


class Tracked:
    """A database with the tables of a model, and tracked sessions on it."""

    def __init__(
        self,
        backend: Backend,
        engine: AnyEngine,
        base: Any,
        embedder: Any,
        more: Any = None,
        **options: Any,
    ) -> None:
        self.backend, self.engine, self.base, self.embedder = backend, engine, base, embedder
        backend.create_all(engine, base.metadata)
        maker: Any = async_sessionmaker if backend.is_async else sessionmaker
        self.sessions = maker(engine, expire_on_commit=False)
        options.setdefault("outbox", base.outbox)
        self.tracking = track(self.sessions, embedders={"counting": embedder, **(more or {})}, models=base, **options)

    def run(self, function: Callable[[Any], Any]) -> Any:
        """Call a function with a tracked session in a transaction, commit, and return what it returned."""
        if not self.backend.is_async:
            with self.sessions() as session, session.begin():
                return function(session)

        async def run() -> Any:
            async with self.sessions() as session, session.begin():
                return await session.run_sync(function)

        return self.backend.wait(run())

    def untracked(self, function: Callable[[Any], Any]) -> Any:
        """Call a function with a session that nobody listens to."""
        return self.backend.run(self.engine, function)

    def worker(self, **options: Any) -> Worker:
        """Return a worker that loses no time."""
        options = {"models": self.base, "backoff": 0.0, "poll": 0.01, **options}
        return Worker(self.sessions, **options)

    def work(self, worker: Worker | None = None, **options: Any) -> Any:
        """Work until nothing is pending."""
        worker = worker or self.worker(**options)
        if worker.is_async:
            return self.backend.wait(worker.arun(until_empty=True))
        return worker.run(until_empty=True)

    def once(self, worker: Worker) -> Any:
        """Work off one batch."""
        return self.backend.wait(worker.arun_once()) if worker.is_async else worker.run_once()

    def entries(self, state: str | None = None) -> list[Any]:
        """Return the entries of the outbox."""
        outbox = self.base.outbox
        stmt = outbox.select().order_by(outbox.c.id)
        if state is not None:
            stmt = stmt.where(outbox.c.state == state)
        return list(self.backend.run_connection(self.engine, lambda c: c.execute(stmt).all()))


@pytest.fixture
def tracked(backend: Backend, engine: AnyEngine) -> Iterator[Callable[..., Tracked]]:
    """Make tracked sessions on a backend's database; they are tracked until the test ends."""
    made: list[Tracked] = []

    def make(base: Any, embedder: Any, **options: Any) -> Tracked:
        made.append(Tracked(backend, engine, base, embedder, **options))
        return made[-1]

    yield make
    for one in made:
        untrack(one.sessions)
