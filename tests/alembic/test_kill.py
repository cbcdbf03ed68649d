"""A migration is killed at each of its statements, and run again: as if it had never been interrupted.

Every test runs its migration once undisturbed, on a copy of the database, and then for points at which it can be killed
(:class:`tests.support.killing.Counter`), each on a fresh copy: for up to four of them all over it, for each one with
SQLA_VECTOR_TEST_MIGRATION_KILLS=all.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Column, Integer, MetaData, Table, create_engine, text
from sqlalchemy.engine import Connection
from sqlalchemy.pool import NullPool

from sqla_vector import HalfVector, vector_index
from tests.support.backends import Backend
from tests.support.change import CHANGE, OLD, RESTORE, articles, fill, rows, widen
from tests.support.killing import Migrator, migrator
from tests.support.migrations import Project

BOTH = pytest.mark.backends("psycopg", "pysqlite3")
POSTGRESQL = pytest.mark.backends("psycopg")
POINTS = 4

Copies = Callable[[], Any]


@pytest.fixture
def project(tmp_path: Path, backend: Backend) -> Project:
    """A project whose database is copied for each run."""
    return Project(tmp_path, backend)


@pytest.fixture
def copies(tmp_path: Path, backend: Backend, request: pytest.FixtureRequest) -> Copies:
    """Make a copy of the backend's database for a block."""
    numbers = itertools.count(1)
    if backend.family == "sqlite":

        @contextmanager
        def copy_file() -> Iterator[URL]:
            path = tmp_path / f"copy{next(numbers)}.db"
            assert backend.url.database is not None
            if Path(backend.url.database).exists():
                shutil.copy(backend.url.database, path)
            yield backend.url.set(database=str(path))
            path.unlink()

        return copy_file

    server = request.getfixturevalue("postgresql_server")

    @contextmanager
    def copy_database() -> Iterator[URL]:
        admin = create_engine(
            server.url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT", poolclass=NullPool
        )
        name = f"{backend.url.database}_copy{next(numbers)}"
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {backend.url.database}"))
            yield backend.url.set(database=name)
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))

    return copy_database


def snapshot(url: URL) -> dict[str, Any]:
    """Return the schema and the rows of a database."""
    engine = create_engine(url, plugins=["sqla_vector"], poolclass=NullPool)
    read = _sqlite if url.get_backend_name() == "sqlite" else _postgresql
    with engine.connect() as connection:
        return read(connection)


def _postgresql(connection: Connection) -> dict[str, Any]:
    queries = {
        "columns": "SELECT table_name, column_name, ordinal_position, is_nullable, udt_name, format_type(a.atttypid,"
        " a.atttypmod) FROM information_schema.columns JOIN pg_attribute a ON attrelid = table_name::regclass AND"
        " attname = column_name WHERE table_schema = 'public' ORDER BY 1, 3",
        "indexes": "SELECT c.relname, pg_get_indexdef(c.oid), indisvalid FROM pg_index JOIN pg_class c ON"
        " c.oid = indexrelid WHERE c.relnamespace = 'public'::regnamespace ORDER BY 1",
        "triggers": "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal",
        "functions": "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prosrc LIKE '%NEW.%'",
        "constraints": "SELECT conname FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1",
    }
    found: dict[str, Any] = {name: connection.execute(text(sql)).all() for name, sql in queries.items()}
    for (table,) in connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all():
        # Positions differ where an interrupted run added a column and dropped it.
        found[table] = connection.execute(text(f"SELECT {table}::text FROM {table} ORDER BY 1")).all()
    return found


def _sqlite(connection: Connection) -> dict[str, Any]:
    sql = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY 1, 2"
    found: dict[str, Any] = {"master": connection.execute(text(sql)).all()}
    for type_, name, _, statement in found["master"]:
        # The tables behind a vec0 table hold rowids of their own; what is in it is asked of itself.
        if type_ == "table" and "_chunks" not in name and not name.endswith(("_rowids", "_info", "_auxiliary")):
            columns = "rowid, *" if "vec0" in statement else "*"
            found[name] = sorted(map(tuple, connection.execute(text(f'SELECT {columns} FROM "{name}"'))), key=repr)
    return found


def chosen(points: int) -> list[int]:
    """Return the points at which a migration is killed: the first and the last, and others between them."""
    every = range(1, points + 1)
    if points <= POINTS or os.environ.get("SQLA_VECTOR_TEST_MIGRATION_KILLS") == "all":
        return list(every)
    return sorted({every[round(number * (points - 1) / (POINTS - 1))] for number in range(POINTS)})


def assert_survives(project: Project, copies: Copies, direction: str, revision: str, when: str = "before") -> None:
    """Kill a command at each of its points, run it again, and compare with an undisturbed run."""
    project.backend.close()
    with migrator(project.directory) as process:
        with copies() as url:
            undisturbed = process.run(url, direction, revision, when=when)
            assert undisturbed.keys() == {"points"}, undisturbed
            expected = snapshot(url)
        assert undisturbed["points"] > (0 if when == "sent" else 1)
        for point in chosen(undisturbed["points"]):
            with copies() as url:
                assert_survives_at(process, url, direction, revision, point, when, expected)


def assert_survives_at(
    process: Migrator, url: URL, direction: str, revision: str, point: int, when: str, expected: dict[str, Any]
) -> None:
    assert process.run(url, direction, revision, kill_at=point, when=when) == {"killed": True}
    again = process.run(url, direction, revision)
    assert "error" not in again, f"killed at point {point}: {again}"
    found = snapshot(url)
    for name in expected.keys() | found.keys():
        assert found.get(name) == expected.get(name), f"killed at point {point}: {name} differs"


def filled(project: Project, metadata: MetaData, count: int = 5) -> None:
    """Create a table and fill it, as a first revision would."""
    project.backend.create_all(project.engine, metadata)
    dim = metadata.tables["article"].c.embedding.type.dim
    fill(project.backend, project.engine, metadata, rows(count, dim))


def with_index(metadata: MetaData, **options: Any) -> MetaData:
    """Give a model another vector index."""
    table: Table = metadata.tables["article"]
    table.append_constraint(vector_index("ix_article_embedding", "embedding", **options))
    return metadata


@BOTH
def test_creating_a_table_with_its_index(project, copies):
    project.revision(articles(OLD))
    assert_survives(project, copies, "upgrade", "head")


@BOTH
def test_dropping_a_table_with_its_index(project, copies):
    project.revision(articles(OLD))
    project.upgrade()
    fill(project.backend, project.engine, articles(OLD), rows(5))
    assert_survives(project, copies, "downgrade", "base")


@BOTH
def test_another_index(project, copies):
    filled(project, articles(OLD))
    project.revision(with_index(articles(OLD, index=False), metric="cosine"))
    assert_survives(project, copies, "upgrade", "head")


@BOTH
def test_dropping_an_index(project, copies):
    filled(project, articles(OLD))
    project.revision(articles(OLD, index=False))
    assert_survives(project, copies, "upgrade", "head")


@BOTH
def test_columns_and_an_index_in_one_revision(project, copies):
    filled(project, articles(OLD, index=False))
    metadata = articles(OLD)
    metadata.tables["article"].append_column(Column("pages", Integer, server_default="1", nullable=False))
    project.revision(metadata)
    assert_survives(project, copies, "upgrade", "head")


CONCURRENTLY = """\
op.create_vector_index("ix_article_embedding", "article", "embedding", metric="l2", concurrently=True)
"""
REBUILT = """\
op.rebuild_vector_index(
    "ix_article_embedding", "article", "embedding", metric="cosine", existing={"metric": "l2"}, concurrently=True
)
"""


@POSTGRESQL
@pytest.mark.parametrize("when", ["before", "sent"])
def test_an_index_built_concurrently(project, copies, when):
    filled(project, articles(OLD, index=False))
    project.write(CONCURRENTLY)
    assert_survives(project, copies, "upgrade", "head", when)


@POSTGRESQL
@pytest.mark.parametrize("when", ["before", "sent"])
def test_an_index_rebuilt_concurrently(project, copies, when):
    filled(project, articles(OLD))
    project.write(REBUILT)
    assert_survives(project, copies, "upgrade", "head", when)


@POSTGRESQL
@pytest.mark.parametrize("when", ["before", "sent"])
def test_an_index_dropped_concurrently(project, copies, when):
    filled(project, articles(OLD))
    project.write('op.drop_vector_index("ix_article_embedding", "article", concurrently=True)')
    assert_survives(project, copies, "upgrade", "head", when)


@POSTGRESQL
def test_a_change_of_dimension(project, copies):
    filled(project, articles(OLD))
    project.write(CHANGE, RESTORE)
    assert_survives(project, copies, "upgrade", "head")


@POSTGRESQL
def test_a_change_of_dimension_whose_server_goes_on_alone(project, copies):
    filled(project, articles(OLD))
    project.write(CHANGE, RESTORE)
    assert_survives(project, copies, "upgrade", "head", "sent")


@pytest.mark.backends("pysqlite3")
def test_a_change_of_a_required_column(project, copies):
    # SQLite copies the table for it, beside all that it does for another column.
    metadata = articles(OLD, nullable=False)
    project.backend.create_all(project.engine, metadata)
    fill(project.backend, project.engine, metadata, rows(3, with_null=False))
    project.write(CHANGE, RESTORE)
    assert_survives(project, copies, "upgrade", "head")


@BOTH
def test_the_way_back_from_a_change_of_dimension(project, copies):
    filled(project, articles(OLD))
    project.attributes["backfill"] = widen
    project.write(CHANGE, RESTORE)
    project.upgrade()
    assert_survives(project, copies, "downgrade", "base")


@BOTH
def test_dropping_what_was_kept(project, copies):
    filled(project, articles(OLD))
    project.attributes["backfill"] = widen
    project.write(CHANGE, RESTORE)
    project.upgrade()
    project.write('op.drop_kept_vector_column("article", "embedding")')
    assert_survives(project, copies, "upgrade", "head")


@BOTH
def test_a_conversion_in_place(project, copies):
    filled(project, articles(OLD))
    metadata = articles(OLD)
    metadata.tables["article"].c.embedding.type = HalfVector(OLD)
    project.revision(metadata)
    assert_survives(project, copies, "upgrade", "head")
