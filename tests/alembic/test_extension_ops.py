"""Creating and dropping the extension within migrations."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import URL, Connection, create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from sqla_vector import ExtensionMissing, InvalidIdentifier, InvalidOption, MigrationError
from sqla_vector.alembic import CreateVectorExtensionOp, DropVectorExtensionOp
from tests.support.change import OLD, articles, assert_search, fill, rows
from tests.support.migrations import Project

POSTGRESQL = pytest.mark.backends("psycopg", "psycopg_async", "psycopg2", "asyncpg")
PSYCOPG = pytest.mark.backends("psycopg")

CREATE = "op.create_vector_extension()"
DROP = "op.drop_vector_extension()"
TABLE = "op.execute('CREATE TABLE trace (id INTEGER)')"


def administrator(project: Project, *statements: str) -> None:
    """Run statements as somebody else."""
    url = project.backend.url.set(drivername="postgresql+psycopg")
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


def schema_of_extension(project: Project) -> str | None:
    """Return where the extension is, None if it is not there."""
    sql = "SELECT nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = 'vector'"
    return project.backend.run_connection(project.engine, lambda c: c.scalar(text(sql)))


def has_trace(project: Project) -> bool:
    """Tell whether what else the revision did is there."""
    sql = text("SELECT to_regclass('trace') IS NOT NULL")
    return bool(project.backend.run_connection(project.engine, lambda c: c.scalar(sql)))


@POSTGRESQL
def test_the_extension_is_created_and_dropped(tmp_path, backend):
    project = Project(tmp_path, backend)
    project.write(CREATE, DROP)
    project.upgrade()
    assert schema_of_extension(project) == "public"
    project.downgrade()
    assert schema_of_extension(project) is None
    project.upgrade()
    assert schema_of_extension(project) == "public"


@POSTGRESQL
def test_an_extension_that_is_there_is_no_error(tmp_path, backend):
    project = Project(tmp_path, backend)
    administrator(project, "CREATE EXTENSION vector")
    project.write('op.create_vector_extension(minimum_version="0.5")')
    project.upgrade()
    assert schema_of_extension(project) == "public"


@POSTGRESQL
def test_tables_find_an_extension_in_a_schema_of_its_own(tmp_path, backend):
    project = Project(tmp_path, backend)
    administrator(project, "CREATE SCHEMA extensions")
    project.write('op.create_vector_extension(schema="extensions")', 'op.drop_vector_extension(schema="extensions")')
    project.upgrade()
    assert schema_of_extension(project) == "extensions"
    project.revision(articles(OLD))
    project.upgrade()
    fill(backend, project.engine, articles(OLD), rows(5))
    assert_search(backend, project.engine, articles(OLD), {row["id"]: row["embedding"] for row in rows(5)})
    assert project.drift(articles(OLD)) == []
    project.downgrade("base")
    assert schema_of_extension(project) is None


@POSTGRESQL
def test_a_version_that_the_server_lacks_is_refused_and_nothing_changes(tmp_path, backend):
    project = Project(tmp_path, backend)
    path = project.write(f'{TABLE}\nop.create_vector_extension(minimum_version="99.0")')
    with pytest.raises(ExtensionMissing, match=r"pgvector [\d.]+ is older than 99\.0"):
        project.upgrade()
    assert schema_of_extension(project) is None
    assert not has_trace(project)
    path.write_text(path.read_text().replace("99.0", "0.8.0"))
    project.upgrade()
    assert schema_of_extension(project) == "public"


@PSYCOPG
def test_after_a_refusal_the_engine_does_not_believe_that_the_extension_is_in_that_schema(tmp_path, backend):
    project = Project(tmp_path, backend)
    administrator(project, "CREATE SCHEMA extensions")
    path = project.write('op.create_vector_extension(schema="extensions", minimum_version="99.0")')
    with pytest.raises(ExtensionMissing):
        project.upgrade()
    path.write_text(path.read_text().replace('schema="extensions", minimum_version="99.0"', ""))
    project.upgrade()
    project.revision(articles(OLD))
    project.upgrade()
    fill(backend, project.engine, articles(OLD), rows(5))
    assert_search(backend, project.engine, articles(OLD), {row["id"]: row["embedding"] for row in rows(5)})


@POSTGRESQL
def test_another_schema_than_the_one_it_is_in_is_refused(tmp_path, backend):
    project = Project(tmp_path, backend)
    administrator(project, "CREATE SCHEMA extensions", "CREATE EXTENSION vector")
    project.write(f'{TABLE}\nop.create_vector_extension(schema="extensions")')
    with pytest.raises(MigrationError, match="is in the schema public, not in extensions"):
        project.upgrade()
    assert schema_of_extension(project) == "public"
    assert not has_trace(project)


@PSYCOPG
def test_a_schema_that_is_missing_is_named(tmp_path, backend):
    project = Project(tmp_path, backend)
    project.write('op.create_vector_extension(schema="nowhere")')
    with pytest.raises(ExtensionMissing, match="nowhere"):
        project.upgrade()
    assert schema_of_extension(project) is None


@pytest.mark.backends("psycopg", "psycopg2", "asyncpg")
def test_a_role_without_the_right_is_told_what_an_administrator_runs(tmp_path, backend):
    role = f"limited_{backend.url.database}"
    project = Project(tmp_path, backend)
    administrator(
        project,
        f"CREATE ROLE {role} LOGIN PASSWORD 'tiger' NOSUPERUSER NOCREATEDB NOCREATEROLE",
        f"GRANT ALL ON SCHEMA public TO {role}",
    )
    owner = project.engine
    try:
        project.engine = backend.make_engine(url=limited(backend.url, role))
        project.write(f"{TABLE}\n{CREATE}")
        with pytest.raises(ExtensionMissing, match="ask an administrator to run: CREATE EXTENSION") as refused:
            project.upgrade()
        assert "tiger" not in str(refused.value)
        project.engine = owner
        assert schema_of_extension(project) is None
        assert not has_trace(project)
        administrator(project, "CREATE EXTENSION vector")
        project.engine = backend.make_engine(url=limited(backend.url, role))
        project.upgrade()
    finally:
        backend.close()
        administrator(project, f"DROP OWNED BY {role} CASCADE", f"DROP ROLE {role}")


def limited(url: URL, role: str) -> URL:
    return url.set(username=role, password="tiger")


@POSTGRESQL
def test_an_extension_that_is_used_is_not_dropped(tmp_path, backend):
    project = Project(tmp_path, backend)
    project.revision(articles(OLD))
    project.upgrade()
    fill(backend, project.engine, articles(OLD), rows(5))
    project.write(DROP)
    with pytest.raises(DBAPIError, match="depend"):
        project.upgrade()
    assert schema_of_extension(project) == "public"
    assert_search(backend, project.engine, articles(OLD), {row["id"]: row["embedding"] for row in rows(5)})


@pytest.mark.backends("pysqlite3", "aiosqlite", "sqlite_numpy")
def test_sqlite_has_no_extension_to_create_or_drop(tmp_path, backend):
    project = Project(tmp_path, backend)
    project.write('op.create_vector_extension(schema="extensions", minimum_version="99.0")', DROP)

    def master(connection: Connection) -> Any:
        return connection.execute(text("SELECT name FROM sqlite_master WHERE name NOT LIKE '%alembic%'")).all()

    project.upgrade()
    assert backend.run_connection(project.engine, master) == []
    project.downgrade()
    assert backend.run_connection(project.engine, master) == []


@pytest.mark.parametrize("version", ["", "new", "0.8.", ".8", "1,0", "0.8.2; DROP", "²", 0.8, 8, True, b"0.8"])
def test_a_version_that_is_none_is_refused(version):
    with pytest.raises(InvalidOption, match=r"minimum_version must be like 0\.8\.2"):
        CreateVectorExtensionOp(minimum_version=version)


@pytest.mark.parametrize("name", ['a"b', "a;DROP TABLE x", "'", "--", "\n", "\0", "", "%s", ":p", "a.b", "x" * 64, 3])
def test_a_schema_that_is_no_name_is_refused(name):
    with pytest.raises(InvalidIdentifier):
        CreateVectorExtensionOp(schema=name)
    with pytest.raises(InvalidIdentifier):
        DropVectorExtensionOp(schema=name)


def test_the_operations_reverse_to_each_other():
    create = CreateVectorExtensionOp("extensions", "0.8.2")
    drop = create.reverse()
    assert isinstance(drop, DropVectorExtensionOp)
    assert drop.schema == "extensions"
    assert drop.reverse().to_diff_tuple() == create.to_diff_tuple()
