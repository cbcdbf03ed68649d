"""Random programs: after a commit and a worker, every document has the chunks of its text, with their vectors.

``SQLA_VECTOR_RUNS`` and ``SQLA_VECTOR_STEPS`` say how many programs, and how long: ``make soak-state``.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from sqlalchemy import delete, event, insert, literal, select, update
from sqlalchemy.exc import IntegrityError, SAWarning
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.orm.exc import FlushError, ObjectDeletedError, StaleDataError

from sqla_vector.chunking import check_chunks
from sqla_vector.tracking import Worker, outbox_triggers, track, untrack
from tests.chunking.models import document_models, paragraphs, why_not_in_step
from tests.chunking.test_flush import split
from tests.support.backends import Backend
from tests.tracking.models import CountingEmbedder

RUNS = int(os.environ.get("SQLA_VECTOR_RUNS", "8"))
STEPS = int(os.environ.get("SQLA_VECTOR_STEPS", "20"))

EXPECTED = (IntegrityError, FlushError, ObjectDeletedError, StaleDataError, SAWarning)
"""What a program may do to itself: the transaction is rolled back."""

keys = st.integers(1, 4)
bodies = st.lists(st.integers(1, 5), max_size=5).map(lambda numbers: paragraphs(*numbers)) | st.sampled_from(
    [None, " "]
)


class Database:
    """A database on which programs are run, one after the other."""

    def __init__(self, backend: Backend, when: str) -> None:
        self.base = document_models(when)
        outbox_triggers(self.base, self.base.outbox)
        self.engine: Any = backend.make_engine()
        if backend.family == "sqlite":
            event.listen(self.engine, "connect", lambda c, _: c.execute("PRAGMA foreign_keys = ON"))
        self.base.metadata.create_all(self.engine)
        self.embedder = CountingEmbedder()
        self.sessions = sessionmaker(self.engine)
        track(self.sessions, embedders={"counting": self.embedder}, models=self.base, outbox=self.base.outbox)
        self.worker = Worker(self.sessions, backoff=0.0, poll=0.001, batch_size=3)

    def clear(self) -> None:
        with self.engine.begin() as connection:
            for table in reversed(self.base.metadata.sorted_tables):
                connection.execute(table.delete())
        self.embedder.calls.clear()


def program(database: Database) -> type[RuleBasedStateMachine]:
    """Return the machine that makes random programs over a database."""
    base = database.base
    document = base.Document.__table__

    class Program(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            database.clear()
            self.session: Session = database.sessions()

        def _do(self, work: Any) -> None:
            try:
                work(self.session)
            except EXPECTED:
                self.session.rollback()

        @rule(key=keys, body=bodies)
        def add(self, key: int, body: str | None) -> None:
            self._do(lambda s: (s.add(base.Document(id=key, body=body)), s.flush()))

        @rule(key=keys, body=bodies)
        def merge(self, key: int, body: str | None) -> None:
            self._do(lambda s: s.merge(base.Document(id=key, body=body)))

        @rule(key=keys, body=bodies, flush=st.booleans())
        def edit(self, key: int, body: str | None, flush: bool) -> None:
            def work(session: Session) -> None:
                found = session.get(base.Document, key)
                if found is not None:
                    found.body = body
                    _ = len(found.chunks)
                if flush:
                    session.flush()

            self._do(work)

        @rule(key=keys, number=st.integers(6, 9), first=st.booleans())
        def insert_a_paragraph(self, key: int, number: int, first: bool) -> None:
            def work(session: Session) -> None:
                found = session.get(base.Document, key)
                if found is not None and isinstance(found.body, str) and found.body:
                    parts = [paragraphs(number), found.body]
                    found.body = "\n\n".join(parts if first else parts[::-1])

            self._do(work)

        @rule(key=keys, other=keys)
        def rename(self, key: int, other: int) -> None:
            def work(session: Session) -> None:
                found = session.get(base.Document, key)
                if found is not None:
                    found.id = other
                session.flush()

            self._do(work)

        @rule(key=keys)
        def remove(self, key: int) -> None:
            def work(session: Session) -> None:
                found = session.get(base.Document, key)
                if found is not None:
                    session.delete(found)

            self._do(work)

        @rule(key=keys, body=bodies)
        def set_to_an_expression(self, key: int, body: str | None) -> None:
            def work(session: Session) -> None:
                found = session.get(base.Document, key)
                if found is not None:
                    found.body = literal(body)  # type: ignore[assignment]

            self._do(work)

        @rule(key=keys, body=bodies)
        def update_by_core(self, key: int, body: str | None) -> None:
            self._do(lambda s: s.execute(update(document).where(document.c.id == key).values(body=body)))

        @rule(key=keys, body=bodies)
        def insert_by_core(self, key: int, body: str | None) -> None:
            self._do(lambda s: s.execute(insert(document), {"id": key, "body": body}))

        @rule(key=keys)
        def delete_by_core(self, key: int) -> None:
            self._do(lambda s: s.execute(delete(document).where(document.c.id == key)))

        @rule(key=keys, body=bodies)
        def try_in_a_savepoint(self, key: int, body: str | None) -> None:
            def work(session: Session) -> None:
                session.flush()
                with session.begin_nested() as savepoint:
                    session.merge(base.Document(id=key, body=body))
                    session.flush()
                    savepoint.rollback()

            self._do(work)

        @rule()
        def give_up(self) -> None:
            self.session.rollback()

        @rule()
        def commit_and_look(self) -> None:
            self._do(lambda s: s.commit())
            self.session.close()
            database.worker.run(until_empty=True)
            with database.engine.connect() as connection:
                assert why_not_in_step(connection, split, database.embedder) == []
                assert connection.execute(select(base.outbox)).all() == []
            assert check_chunks(database.sessions).is_clean

        def teardown(self) -> None:
            self.commit_and_look()
            self.session.close()

    return Program


@pytest.mark.backends("psycopg", "pysqlite3")
@pytest.mark.parametrize("when", ["flush", "worker"])
def test_every_document_has_the_chunks_of_its_text(backend: Backend, when: str) -> None:
    database = Database(backend, when)
    try:
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            program(database),
            settings=settings(
                max_examples=RUNS,
                stateful_step_count=STEPS,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.explicit, Phase.reuse, Phase.generate],
            ),
        )
    finally:
        untrack(database.sessions)
