"""Memory and processes for one build, and how far it is."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event, insert, text
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

from sqla_vector import InvalidOption
from sqla_vector.dialects.postgresql import progress
from tests.support.backends import Backend
from tests.support.change import OLD, articles
from tests.support.migrations import Project
from tests.support.statements import statements_of, sync_engine

POSTGRESQL = pytest.mark.backends("psycopg", "psycopg_async", "psycopg2", "asyncpg")
BOTH = pytest.mark.backends("psycopg", "pysqlite3")
PSYCOPG = pytest.mark.backends("psycopg")

NAME = "ix_article_embedding"
COUNT = 3_000


def create(**options: Any) -> str:
    given = "".join(f", {name}={value!r}" for name, value in options.items())
    return f'op.create_vector_index("{NAME}", "article", "embedding", metric="l2"{given})'


def prepared(tmp_path: Path, backend: Backend, count: int = COUNT, **engine_options: Any) -> Project:
    engine = backend.make_engine(**engine_options)
    project = Project(tmp_path, backend, engine)
    metadata = articles(OLD, index=False)
    backend.create_all(engine, metadata)
    vectors = np.random.default_rng(1).normal(size=(count, OLD)).astype(np.float32)
    rows = [{"id": n, "title": "title", "embedding": vector} for n, vector in enumerate(vectors)]
    backend.run(engine, lambda session: session.execute(insert(metadata.tables["article"]), rows) and None)
    return project


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask all the time, and log every answer."""
    monkeypatch.setitem(progress.INTERVAL, "ask", 0.002)
    monkeypatch.setitem(progress.INTERVAL, "log", 0.002)


def settings_during(project: Project) -> list[tuple[str, str]]:
    """Note the settings in force at each CREATE INDEX, from the same connection."""
    seen: list[tuple[str, str]] = []

    @event.listens_for(sync_engine(project.engine), "before_cursor_execute")
    def look(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "CREATE INDEX" in statement:
            seen.append(show(connection))

    return seen


def show(connection: Any) -> tuple[str, str]:
    names = ("maintenance_work_mem", "max_parallel_maintenance_workers")
    memory, workers = (connection.exec_driver_sql(f"SHOW {name}").scalar() for name in names)
    return memory, workers


@POSTGRESQL
@pytest.mark.parametrize("concurrently", [False, True])
def test_memory_and_workers_hold_for_the_build_alone(tmp_path, backend, concurrently):
    project = prepared(tmp_path, backend, 10)
    before = project.backend.run_connection(project.engine, show)
    seen = settings_during(project)
    after: list[Any] = []

    @event.listens_for(sync_engine(project.engine), "after_cursor_execute")
    def look(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "UPDATE article" in statement:
            after.append(show(connection))

    built = create(maintenance_work_mem="77MB", parallel_workers=0, concurrently=concurrently)
    project.write(f"{built}\nop.execute('UPDATE article SET title = title')")
    project.upgrade()
    assert before != ("77MB", "0")
    assert seen == [("77MB", "0")]
    assert after == [before]
    assert project.backend.run_connection(project.engine, show) == before


@PSYCOPG
@pytest.mark.parametrize("concurrently", [False, True])
def test_a_build_that_fails_leaves_no_setting_behind(tmp_path, backend, concurrently):
    project = prepared(tmp_path, backend, 10, poolclass=QueuePool, pool_size=1, max_overflow=0)
    before = project.backend.run_connection(project.engine, show)
    created = create(maintenance_work_mem="77MB", parallel_workers=0, concurrently=concurrently)
    project.write(created.replace("metric=", "where='length(title) / 0 = 1', metric="))
    with pytest.raises(Exception, match="division by zero"):
        project.upgrade()
    # The pool's only connection is the one that built.
    assert project.backend.run_connection(project.engine, show) == before


@PSYCOPG
def test_a_rebuild_takes_them_too(tmp_path, backend):
    project = prepared(tmp_path, backend, 10)
    seen = settings_during(project)
    given = "maintenance_work_mem='88MB', parallel_workers=1"
    project.write(f'{create()}\nop.rebuild_vector_index("{NAME}", "article", "embedding", metric="l2", {given})')
    project.upgrade()
    assert seen[-1] == ("88MB", "1")


@BOTH
@pytest.mark.parametrize("value", ["", "2", "2 GB", "0MB", "-1MB", "2gb", "1MB'; DROP TABLE article; --", 64, True])
def test_memory_that_is_none_is_refused(tmp_path, backend, value):
    project = prepared(tmp_path, backend, 10)
    project.write(create(maintenance_work_mem=value))
    with pytest.raises(InvalidOption, match="maintenance_work_mem must be"):
        project.upgrade()
    assert project.drift(articles(OLD, index=False)) == []


@BOTH
@pytest.mark.parametrize("value", [-1, 1025, 2.5, "3", True])
def test_a_number_of_workers_that_is_none_is_refused(tmp_path, backend, value):
    project = prepared(tmp_path, backend, 10)
    project.write(create(parallel_workers=value))
    with pytest.raises(InvalidOption, match="parallel_workers must be"):
        project.upgrade()
    assert project.drift(articles(OLD, index=False)) == []


@pytest.mark.backends("pysqlite3")
def test_sqlite_has_no_use_for_them(tmp_path, backend):
    project = prepared(tmp_path, backend, 10)
    project.write(create(maintenance_work_mem="64MB", parallel_workers=2))
    project.upgrade()
    assert project.drift(articles(OLD)) == []


LINE = re.compile(rf"building {NAME}: .+, \d{{1,3}} %")


@POSTGRESQL
@pytest.mark.parametrize("concurrently", [False, True])
def test_a_long_build_is_reported_in_the_log(tmp_path, backend, caplog, impatient, concurrently):
    project = prepared(tmp_path, backend)
    threads = threading.active_count()
    project.write(create(concurrently=concurrently))
    with caplog.at_level(logging.INFO, "alembic.sqla_vector"):
        project.upgrade()
    lines = [record.getMessage() for record in caplog.records if record.name == "alembic.sqla_vector"]
    reported = [line for line in lines if LINE.fullmatch(line)]
    assert any("loading tuples" in line for line in reported), lines
    assert not [line for line in lines if "unknown" in line]
    assert threading.active_count() <= threads + (1 if backend.is_async else 0)
    assert connections(project) == 1


def connections(project: Project) -> int:
    """Return how many connections to the database there are, our own included."""
    sql = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type LIKE 'client%'"
    )
    return int(project.backend.run_connection(project.engine, lambda c: c.scalar(sql)))


@PSYCOPG
def test_a_short_build_asks_for_nothing(tmp_path, backend):
    project = prepared(tmp_path, backend, 10)
    opened: list[Any] = []
    event.listen(sync_engine(project.engine).pool, "connect", lambda *args: opened.append(args))
    project.write(create())
    project.upgrade()
    assert opened == []


@pytest.mark.backends("psycopg", "psycopg2")
@pytest.mark.parametrize(
    "options",
    [{"poolclass": QueuePool, "pool_size": 1, "max_overflow": 0}, {"poolclass": NullPool}, {"poolclass": StaticPool}],
    ids=["of one", "null", "static"],
)
def test_no_pool_stands_in_the_way(tmp_path, backend, caplog, impatient, options):
    project = prepared(tmp_path, backend, **options)
    project.write(create())
    with caplog.at_level(logging.INFO, "alembic.sqla_vector"):
        project.upgrade()
    assert LINE.search(caplog.text)
    assert project.drift(articles(OLD)) == []
    assert connections(project) == 1


@PSYCOPG
def test_a_build_goes_on_if_nobody_can_be_asked(tmp_path, backend, caplog, impatient, monkeypatch):
    project = prepared(tmp_path, backend)
    monkeypatch.setattr(progress, "_ASK", "SELECT nothing {pid}")
    project.write(create())
    with caplog.at_level(logging.INFO, "alembic.sqla_vector"):
        project.upgrade()
    assert "the progress of the build is unknown" in caplog.text
    assert project.drift(articles(OLD)) == []
    assert connections(project) == 1


@pytest.mark.backends("psycopg", "asyncpg")
def test_a_terminal_shows_a_bar(tmp_path, backend, impatient, monkeypatch):
    pytest.importorskip("rich")
    project = prepared(tmp_path, backend)
    project.write(create())
    controller, terminal = os.openpty()
    shown = bytearray()

    def read() -> None:
        while True:
            try:
                part = os.read(controller, 4096)
            except OSError:  # the other end was closed
                return
            if not part:
                return
            shown.extend(part)

    reader = threading.Thread(target=read)
    with os.fdopen(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "160")
        reader.start()
        project.upgrade()
        monkeypatch.undo()
    reader.join()
    os.close(controller)
    assert NAME.encode() in shown
    assert b"loading tuples" in shown
    assert b"%" in shown


@PSYCOPG
def test_no_terminal_no_bar(tmp_path, backend, impatient, capfd):
    project = prepared(tmp_path, backend)
    project.write(create())
    project.upgrade()
    assert NAME not in capfd.readouterr().err


@PSYCOPG
def test_a_change_of_dimension_builds_its_index_beside_with_a_report(tmp_path, backend, caplog, impatient):
    project = prepared(tmp_path, backend)
    project.write(
        "def widen(rows):\n    return [[*row['embedding'], 1] for row in rows]\n\n"
        "op.change_vector_column('article', 'embedding', type_=sqla_vector.Vector(4), "
        "existing_type=sqla_vector.Vector(3), backfill=widen, "
        f"indexes=[{{'index_name': '{NAME}', 'metric': 'l2'}}])"
    )
    with caplog.at_level(logging.INFO, "alembic.sqla_vector"), statements_of(project.engine) as sent:
        project.upgrade()
    assert any("CREATE INDEX CONCURRENTLY" in statement for statement in sent)
    assert f"building {NAME}__new: " in caplog.text
    assert project.drift(articles(4)) == []
