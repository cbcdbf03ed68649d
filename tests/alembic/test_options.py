"""``sqla_vector.alembic.options()``: the project's own options hold beside those of this package."""

from __future__ import annotations

from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import produce_migrations
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, Text, create_engine, text

import sqla_vector.alembic
from sqla_vector import Vector, vector_index
from tests.support.backends import Backend
from tests.support.migrations import Project
from tests.support.sqlite import database_url

ONE_OF_EACH = pytest.mark.backends("psycopg", "asyncpg", "pysqlite3", "sqlite_stdlib", "aiosqlite")


def models(dim: int = 8, *, name: str = "article", schema: str | None = None, **options: Any) -> MetaData:
    metadata = MetaData()
    Table(
        name,
        metadata,
        Column("id", Integer, primary_key=True),
        Column("lang", String(8)),
        Column("embedding", Vector(dim)),
        *([vector_index(f"ix_{name}", "embedding", **options)] if options else []),
        schema=schema,
    )
    return metadata


def prepared(tmp_path: Any, backend: Backend, metadata: MetaData, **options: Any) -> Project:
    project = Project(tmp_path, backend, **options)
    backend.create_all(project.engine, metadata)
    return project


@ONE_OF_EACH
def test_include_object_decides_about_vector_indexes_too(tmp_path, backend: Backend):
    asked: list[tuple[Any, ...]] = []

    def include(object_: Any, name: Any, type_: str, reflected: bool, compare_to: Any) -> bool:
        asked.append((name, type_, reflected, compare_to is not None))
        return type_ != "index"

    project = prepared(tmp_path, backend, models(metric="l2"), include_object=include)
    assert project.drift(models(metric="cosine")) == []
    assert ("ix_article", "index", False, True) in asked
    asked.clear()
    assert project.drift(models()) == []
    assert ("ix_article", "index", True, False) in asked
    bare = prepared(tmp_path / "bare", backend, models(name="page"), include_object=include)
    asked.clear()
    both = models(name="page", metric="l2")
    models(metric="l2").tables["article"].to_metadata(both)
    assert bare.drift(both) == []
    assert ("ix_page", "index", False, False) in asked


@ONE_OF_EACH
def test_a_table_that_include_object_leaves_out_is_left_alone(tmp_path, backend: Backend):
    def include(object_: Any, name: Any, type_: str, reflected: bool, compare_to: Any) -> bool:
        return not (type_ == "table" and name == "article")

    project = prepared(tmp_path, backend, models(metric="l2"), include_object=include)
    assert project.drift(models(16, metric="cosine")) == []
    assert project.drift(MetaData()) == []


@ONE_OF_EACH
def test_include_name_hides_vector_indexes_of_the_database(tmp_path, backend: Backend):
    def include(name: str | None, type_: str, parents: Any) -> bool:
        return not (type_ == "index" and name == "ix_article")

    project = prepared(tmp_path, backend, models(metric="l2"), include_name=include)
    assert project.drift(models()) == []


@ONE_OF_EACH
def test_compare_type_false_compares_no_types(tmp_path, backend: Backend):
    project = prepared(tmp_path, backend, models(), compare_type=False)
    assert project.drift(models(16)) == []


@ONE_OF_EACH
@pytest.mark.parametrize(("answer", "expected"), [(False, []), (None, ["ChangeVectorColumnOp"])])
def test_a_compare_type_of_the_project_is_asked(tmp_path, backend: Backend, answer: Any, expected: list[str]):
    asked = []

    def compare(context: Any, inspected_column: Any, column: Any, inspected_type: Any, type_: Any) -> Any:
        asked.append((column.name, repr(inspected_type), repr(type_)))
        return answer

    project = prepared(tmp_path, backend, models(), compare_type=compare)
    assert [difference[0] for difference in project.drift(models(16))] == expected
    assert ("embedding", "Vector(dim=8)", "Vector(dim=16)") in asked


@ONE_OF_EACH
def test_process_revision_directives_sees_the_operations(tmp_path, backend: Backend):
    seen: list[str] = []

    def process(context: Any, revision: Any, directives: Any) -> None:
        seen.extend(type(op).__name__ for op in directives[0].upgrade_ops.ops)
        directives[:] = []

    project = Project(tmp_path, backend, process_revision_directives=process)
    command.revision(project.config(models(metric="l2")), "none", autogenerate=True)
    assert seen == ["CreateVectorExtensionOp", "CreateTableOp", "CreateVectorIndexOp"]
    assert list(project.versions.glob("*.py")) == []


def test_options_without_arguments_are_enough():
    found = sqla_vector.alembic.options()
    assert found["autogenerate_plugins"] == ["alembic.autogenerate.*", "sqla_vector"]
    assert found["include_object"](None, "anything", "table", False, None) is True
    assert found["include_name"]("anything", "table", {}) is True
    assert found["render_item"]("type", Text(), None) is False


def test_plugins_of_the_project_are_kept():
    found = sqla_vector.alembic.options(autogenerate_plugins=["alembic.autogenerate.*", "sqla_vector", "~other"])
    assert found["autogenerate_plugins"] == ["alembic.autogenerate.*", "sqla_vector", "~other"]


@pytest.mark.backends("psycopg", "asyncpg")
def test_tables_of_other_schemas_migrate_with_their_indexes(tmp_path, backend: Backend):
    project = Project(tmp_path, backend, include_schemas=True)
    backend.run_connection(project.engine, lambda connection: connection.execute(text('CREATE SCHEMA "Library"')))
    metadata = models(metric="l2", schema="Library", where=text("lang = 'en'"))
    models(metric="cosine").tables["article"].to_metadata(metadata)
    project.revision(metadata)
    project.upgrade()
    assert project.drift(metadata) == []
    changed = models(16, metric="cosine", schema="Library")
    project.revision(changed)
    project.upgrade()
    assert project.drift(changed) == []
    project.downgrade()
    assert project.drift(metadata) == []
    project.downgrade()


MULTIDB_ENV = """\
from alembic import context
from sqlalchemy import create_engine

import sqla_vector.alembic

config = context.config
metadatas, urls = config.attributes["metadatas"], config.attributes["urls"]
for name in ("engine1", "engine2"):
    engine = create_engine(urls[name], plugins=["sqla_vector"])
    with engine.connect() as connection:
        context.configure(
            connection=connection,
            upgrade_token=f"{name}_upgrades",
            downgrade_token=f"{name}_downgrades",
            **sqla_vector.alembic.options(target_metadata=metadatas[name], render_as_batch=True),
        )
        with context.begin_transaction():
            context.run_migrations(engine_name=name)
        connection.commit()
    engine.dispose()
"""

MULTIDB_TEMPLATE = '''\
"""${message}"""
from alembic import op
import sqlalchemy as sa
${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade(engine_name: str) -> None:
    globals()[f"upgrade_{engine_name}"]()


def downgrade(engine_name: str) -> None:
    globals()[f"downgrade_{engine_name}"]()

% for name in ("engine1", "engine2"):

def upgrade_${name}() -> None:
    ${context.get(f"{name}_upgrades", "pass")}


def downgrade_${name}() -> None:
    ${context.get(f"{name}_downgrades", "pass")}

% endfor
'''


@pytest.mark.backends("psycopg")
def test_several_databases_migrate_in_one_revision(tmp_path, backend: Backend):
    """The environment of Alembic's multidb template, over PostgreSQL and SQLite."""
    project = Project(tmp_path, backend)
    (project.directory / "env.py").write_text(MULTIDB_ENV)
    (project.directory / "script.py.mako").write_text(MULTIDB_TEMPLATE)
    metadatas = {"engine1": models(metric="cosine"), "engine2": models(name="page", metric="l2")}
    urls = {"engine1": backend.url, "engine2": database_url(tmp_path)}
    config = Config()
    config.set_main_option("script_location", str(project.directory))
    config.attributes.update(metadatas=metadatas, urls=urls)
    script = command.revision(config, "first", autogenerate=True, rev_id="0001")
    assert script is not None
    assert not isinstance(script, list)
    first, second = script.module.upgrade_engine1, script.module.upgrade_engine2
    assert first is not second
    command.upgrade(config, "head")
    for name, metadata in metadatas.items():
        engine = create_engine(urls[name], plugins=["sqla_vector"])
        with engine.connect() as connection:
            assert _drift(connection, metadata) == []
        engine.dispose()
    command.downgrade(config, "base")


def _drift(connection: Connection, metadata: MetaData) -> list[Any]:
    options = sqla_vector.alembic.options(target_metadata=metadata)
    script = produce_migrations(MigrationContext.configure(connection, opts=options), metadata)
    assert script.upgrade_ops is not None
    return list(script.upgrade_ops.as_diffs())
