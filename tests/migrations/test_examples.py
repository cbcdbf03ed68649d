"""The migrations of the examples' tables, up and down, empty and with rows."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext as AlembicContext
from pytest_alembic import Config as CheckedConfig
from pytest_alembic import MigrationContext, runner
from pytest_alembic.tests import default as checks
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, String, Table, inspect, select
from sqlalchemy.orm import Session

import sqla_vector.alembic
from sqla_vector import MigrationError, Vector, explain_nearest, nearest
from tests.support.backends import AnyEngine, Backend

ROOT = Path(__file__).parents[2]
DATABASES = pytest.mark.backends("psycopg", "pysqlite3", "sqlite_stdlib")
CHECKS = [
    checks.test_single_head_revision,
    checks.test_upgrade,
    checks.test_model_definitions_match_ddl,
    checks.test_up_down_consistency,
]


@pytest.fixture
def config(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Alembic's configuration as in alembic.ini, without its logging, for the backend's database."""
    monkeypatch.setenv("SQLA_VECTOR_EXAMPLES_URL", backend.url.render_as_string(hide_password=False))
    monkeypatch.syspath_prepend(ROOT / "examples")
    found = Config(stdout=io.StringIO())
    found.set_main_option("script_location", str(ROOT / "migrations"))
    return found


@pytest.fixture
def alembic_runner(config: Config, engine: AnyEngine) -> Iterator[MigrationContext]:
    with runner(CheckedConfig(alembic_config=config), engine) as context:  # type: ignore[arg-type] - both are engines
        yield context


def table(dim: int) -> Table:
    columns = [Column("id", Integer, primary_key=True), *(Column(name, String) for name in ("name", "kind", "text"))]
    return Table("python_docs_entry", MetaData(), *columns, Column("embedding", Vector(dim)))


def insert_rows(backend: Backend, engine: AnyEngine, count: int = 1_200, dim: int = 256) -> list[dict[str, Any]]:
    generator = np.random.default_rng(7)
    rows = [
        {
            "id": number,
            "name": f"module{number % 40}.function{number}",
            "kind": ("function", "class")[number % 2],
            "text": f"Do the thing number {number} of {number % 13}.",
            "embedding": generator.normal(size=dim).astype(np.float32),
        }
        for number in range(1, count + 1)
    ]
    backend.run_connection(engine, lambda connection: connection.execute(table(dim).insert(), rows) and None)
    return rows


def read_rows(backend: Backend, engine: AnyEngine, dim: int) -> list[dict[str, Any]]:
    stmt = select(table(dim)).order_by("id")
    return backend.run_connection(engine, lambda connection: [dict(r) for r in connection.execute(stmt).mappings()])


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert {**one, "embedding": None} == {**other, "embedding": None}
        assert np.array_equal(one["embedding"], other["embedding"])


def index_of(backend: Backend, engine: AnyEngine) -> dict[str, Any] | None:
    found = backend.run_connection(engine, lambda connection: inspect(connection).get_indexes("python_docs_entry"))
    return next((index for index in found if index["name"] == "python_docs_entry_embedding"), None)


def revision_0004() -> ModuleType:
    spec = importlib.util.spec_from_file_location("r4", ROOT / "migrations/versions/0004_more_dimensions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@DATABASES
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("test_"))
def test_the_checks_of_pytest_alembic_hold(check: Callable[[MigrationContext], None], alembic_runner: MigrationContext):
    check(alembic_runner)


@DATABASES
def test_rows_survive_all_the_way_up_and_down(backend: Backend, engine: AnyEngine, config: Config):
    command.upgrade(config, "0001")
    before = insert_rows(backend, engine)
    for revision in ("0002", "0003"):
        command.upgrade(config, revision)
        assert index_of(backend, engine) is not None
        assert_same(read_rows(backend, engine, 256), before)

    command.upgrade(config, "0004")
    embedded = revision_0004().embed(before)
    expected = [{**row, "embedding": vector} for row, vector in zip(before, embedded, strict=True)]
    assert_same(read_rows(backend, engine, 384), expected)

    for revision in ("0003", "0002", "0001"):
        command.downgrade(config, revision)
        assert_same(read_rows(backend, engine, 256), before)
    assert index_of(backend, engine) is None
    command.downgrade(config, "base")
    names = backend.run_connection(engine, lambda connection: inspect(connection).get_table_names())
    assert names == ["alembic_version"]


@DATABASES
def test_the_last_revision_serves_the_program_of_the_example(backend: Backend, engine: AnyEngine, config: Config):
    command.upgrade(config, "0003")
    rows = insert_rows(backend, engine)
    command.upgrade(config, "head")
    from search_python_docs import Entry  # importable since the fixture

    vectors = revision_0004().embed(rows)

    def ask(session: Session) -> tuple[Any, Any]:
        stmt = nearest(select(Entry).where(Entry.kind == "class"), Entry.embedding, vectors[6], k=3)
        return session.execute(stmt).all(), explain_nearest(session, stmt)

    found, plan = backend.run(engine, ask)
    assert found[0][0].id == 7
    assert [entry.kind for entry, _ in found] == ["class"] * 3
    assert backend.family == "postgresql" or plan.index == "python_docs_entry_embedding"


@DATABASES
def test_the_index_is_another_one_from_revision_to_revision(backend: Backend, engine: AnyEngine, config: Config):
    found = []
    for revision in ("0002", "0003", "0004"):
        command.upgrade(config, revision)
        index = index_of(backend, engine)
        assert index is not None
        options = index["dialect_options"]
        found.append(
            index["vector"]["metric"] if backend.family == "sqlite" else options["postgresql_ops"]["embedding"]
        )
    names = [name.rpartition("vector_")[2].removesuffix("_ops") for name in found]
    assert names == ["l2", "cosine", "cosine"]


@DATABASES
def test_without_the_old_vectors_the_way_back_is_refused_and_nothing_changes(
    backend: Backend, engine: AnyEngine, config: Config
):
    command.upgrade(config, "0003")
    insert_rows(backend, engine, 40)
    command.upgrade(config, "0005")
    before = read_rows(backend, engine, 384)
    with pytest.raises(MigrationError, match="and no column embedding__old with the old ones is there"):
        command.downgrade(config, "0003")
    assert_same(read_rows(backend, engine, 384), before)
    assert index_of(backend, engine) is not None
    command.upgrade(config, "head")
    command.check(config)


@DATABASES
def test_old_vectors_that_are_kept_are_no_difference(backend: Backend, engine: AnyEngine, config: Config):
    command.upgrade(config, "0003")
    insert_rows(backend, engine, 40)
    command.upgrade(config, "0004")
    from search_python_docs import Base  # importable since the fixture

    def compare(connection: Connection) -> tuple[list[Any], set[str]]:
        options = sqla_vector.alembic.options(target_metadata=Base.metadata)
        context = AlembicContext.configure(connection, opts=options)
        columns = {column["name"] for column in inspect(connection).get_columns("python_docs_entry")}
        return compare_metadata(context, Base.metadata), columns

    differences, columns = backend.run_connection(engine, compare)
    assert "embedding__old" in columns
    assert differences == []
    command.upgrade(config, "0005")
    command.check(config)
    assert "embedding__old" not in backend.run_connection(engine, compare)[1]


@pytest.mark.backends("psycopg")
def test_the_whole_history_can_be_written_as_a_script(backend: Backend, engine: AnyEngine, config: Config):
    config.output_buffer = io.StringIO()
    command.upgrade(config, "base:head", sql=True)
    script = config.output_buffer.getvalue()
    # A concurrent build cannot be in a transaction, nor in one call of the driver with others.
    parts = re.split(r"(?<=;)\n\n", script)
    assert isinstance(engine, Engine)
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        for part in parts:
            if part.strip():
                connection.exec_driver_sql(part.replace("%", "%%"))
    command.check(config)


@pytest.mark.backends("pysqlite3", "sqlite_stdlib")
def test_on_sqlite_the_change_of_dimension_wants_a_database(backend: Backend, config: Config):
    config.output_buffer = io.StringIO()
    command.upgrade(config, "base:0003", sql=True)
    assert "USING vec0(" in config.output_buffer.getvalue()
    with pytest.raises(MigrationError, match="run this migration online"):
        command.upgrade(config, "0003:0004", sql=True)


def run(*arguments: str, url: str) -> str:
    environment = {**os.environ, "SQLA_VECTOR_EXAMPLES_URL": url}
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@DATABASES
def test_the_commands_of_env_py_work_from_the_root_of_the_repository(backend: Backend, engine: AnyEngine):
    url = backend.url.render_as_string(hide_password=False)
    assert "0001 -> 0002" in run("-m", "alembic", "upgrade", "head", url=url)
    assert "No new upgrade operations detected" in run("-m", "alembic", "check", url=url)
    script = run("-m", "alembic", "upgrade", "0001:0003", "--sql", url=url)
    assert ("USING vec0(" if backend.family == "sqlite" else "USING hnsw") in script
    program = ("examples/search_python_docs.py", "--url", url, "--modules", "csv,json", "read", "csv")
    assert "docstrings read" in run(*program, url=url)
    assert "No new upgrade operations detected" in run("-m", "alembic", "check", url=url)
    assert "0005 -> 0004" in run("-m", "alembic", "downgrade", "-1", url=url)
