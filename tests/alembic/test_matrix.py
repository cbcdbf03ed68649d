"""From every variation of the models to every other one and back, through the text of a generated migration."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import produce_migrations
from alembic.autogenerate.api import AutogenContext
from alembic.autogenerate.render import _render_python_into_templatevars
from alembic.migration import MigrationContext
from alembic.operations import Operations
from mako.template import Template
from sqlalchemy import Connection, MetaData, inspect, text
from sqlalchemy.engine.reflection import Inspector

import sqla_vector.alembic
from tests.alembic.variations import SCHEMA, VARIATIONS, Variation
from tests.support import sqlite
from tests.support.backends import Backend
from tests.support.migrations import TEMPLATE

# As pgvector's documentation says: Alembic writes the types of another package, not their import.
REVISION = Template(TEMPLATE.replace("${imports", "import pgvector.sqlalchemy\n${imports"))

MATRIX_VARIABLE = "SQLA_VECTOR_TEST_MATRIX"
SAMPLE = 16
DATABASES = ("psycopg", "sqlite_stdlib" if sqlite.stdlib_loads_extensions() else "pysqlite3")

CHECK_ALONE = """\
import pathlib, runpy, sys, warnings
warnings.simplefilter("error")
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.py")):
    before = set(sys.modules)
    found = runpy.run_path(str(path), run_name="revision")
    assert callable(found["upgrade"]) and callable(found["downgrade"])
print("imported")
"""


class Database:
    """A database that is migrated within one connection, in this process and without files."""

    def __init__(self, backend: Backend, connection: Connection) -> None:
        self.family = backend.family
        self.connection = connection

    def context(self, metadata: MetaData) -> MigrationContext:
        """Return what ``env.py`` sets up."""
        options = sqla_vector.alembic.options(
            target_metadata=metadata,
            include_schemas=self.family == "postgresql",
            render_as_batch=self.family == "sqlite",
            sqlalchemy_module_prefix="sa.",
            alembic_module_prefix="op.",
            user_module_prefix=None,
            upgrade_token="upgrades",
            downgrade_token="downgrades",
        )
        return MigrationContext.configure(self.connection, opts=options)

    def revision(self, metadata: MetaData) -> str:
        """Return the text of the revision that autogenerate writes; empty where it finds nothing to do."""
        context = self.context(metadata)
        script = produce_migrations(context, metadata)
        assert script.upgrade_ops is not None
        if script.upgrade_ops.is_empty():
            return ""
        written: dict[str, Any] = {}
        # What alembic.command does with a script, without its files.
        _render_python_into_templatevars(AutogenContext(context, metadata), script, written)
        names = dict.fromkeys(("message", "up_revision", "down_revision", "branch_labels", "depends_on"))
        return str(REVISION.render(**names, **written))

    def migrate(self, revision: str, metadata: MetaData, direction: str) -> None:
        """Run the ``upgrade()`` or ``downgrade()`` of a revision."""
        namespace: dict[str, Any] = {}
        with Operations.context(self.context(metadata)):
            exec(compile(revision, "revision", "exec"), namespace)  # noqa: S102 - it is what this is about
            namespace[direction]()

    def create(self, metadata: MetaData) -> None:
        """Make the database anew, as an application does."""
        self.empty()
        metadata.create_all(self.connection)

    def empty(self) -> None:
        """Remove everything."""
        if self.family == "postgresql":
            for schema in ("public", SCHEMA):
                self.connection.execute(text(f"DROP SCHEMA IF EXISTS {schema} CASCADE"))
                self.connection.execute(text(f"CREATE SCHEMA {schema}"))
            return
        found = MetaData()
        found.reflect(self.connection)
        found.drop_all(self.connection)

    def schema(self) -> dict[str, Any]:
        """Return all that the database has, in a form that can be compared."""
        return _postgresql_schema(self.connection) if self.family == "postgresql" else _sqlite_schema(self.connection)


def _reflected(inspector: Inspector, schema: str | None) -> Iterator[tuple[str, Any]]:
    """Yield what SQLAlchemy reflects: columns by their names, constraints and indexes without an order."""
    for (_, table), columns in inspector.get_multi_columns(schema=schema).items():
        for column in columns:
            described = {**column, "type": repr(column["type"])}
            yield f"column {schema}.{table}.{column['name']}", described
    for what, method in (
        ("indexes", inspector.get_multi_indexes),
        ("unique", inspector.get_multi_unique_constraints),
        ("foreign keys", inspector.get_multi_foreign_keys),
        ("checks", inspector.get_multi_check_constraints),
    ):
        for (_, table), found in method(schema=schema).items():
            yield f"{what} of {schema}.{table}", sorted(repr(sorted(item.items(), key=str)) for item in found)
    for (_, table), key in inspector.get_multi_pk_constraint(schema=schema).items():
        yield f"key of {schema}.{table}", key


def _postgresql_schema(connection: Connection) -> dict[str, Any]:
    found: dict[str, Any] = {}
    inspector = inspect(connection)
    for schema in (None, SCHEMA):
        found.update(_reflected(inspector, schema))
    own = "NOT EXISTS (SELECT 1 FROM pg_depend WHERE objid = p.oid AND deptype = 'e')"
    for statement in (
        "SELECT schemaname || '.' || indexname, indexdef FROM pg_indexes WHERE schemaname IN ('public', 'library')",
        "SELECT 'valid ' || indexrelid::regclass, indisvalid FROM pg_index WHERE NOT indisvalid",
        "SELECT 'extension ' || extname, extnamespace::regnamespace::text FROM pg_extension",
        "SELECT 'trigger ' || tgname, tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal",
        f"SELECT 'function ' || proname, 1 FROM pg_proc p WHERE pronamespace = 'public'::regnamespace AND {own}",
        "SELECT conrelid::regclass || conname, pg_get_constraintdef(oid) FROM pg_constraint p WHERE conrelid > 0",
    ):
        found.update(map(tuple, connection.execute(text(statement.replace(":", "\\:")))))
    return found


def _sqlite_schema(connection: Connection) -> dict[str, Any]:
    found: dict[str, Any] = dict(_reflected(inspect(connection), None))
    rows = connection.execute(
        text("SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
    )
    for type_, name, table, sql in rows:
        plain = None if sql is None else re.sub(r"\s+", " ", re.sub(r"[\"`\[\]]", "", sql)).strip()
        # A column that was dropped and added again comes last: the same clauses, in another order.
        found[f"{type_} {name}"] = (table, _clauses(plain) if type_ == "table" and plain else plain)
    return found


def _clauses(sql: str) -> tuple[list[str], str]:
    """Return the clauses of a CREATE TABLE without an order, and what stands after them."""
    inner, _, tail = sql.partition("(")[2].rpartition(")")
    clauses, depth = [""], 0
    for character in inner:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            clauses.append("")
        else:
            clauses[-1] += character
    return sorted(re.sub(r" ?([()]) ?", r"\1", clause).strip() for clause in clauses), tail.strip()


@contextmanager
def opened(backend: Backend) -> Iterator[Database]:
    engine = backend.make_engine()
    with engine.connect() as connection:
        yield Database(backend, connection)


def chosen(before: Variation) -> list[Variation]:
    """Return the variations to which a test migrates from ``before``."""
    if os.environ.get(MATRIX_VARIABLE) == "full":
        return VARIATIONS
    # Shifted from one to the next, so that every variation is migrated to.
    return VARIATIONS[VARIATIONS.index(before) % SAMPLE :: SAMPLE]


def indexes_of(metadata: MetaData) -> dict[str, set[Any]]:
    return {table.key: set(table.indexes) for table in metadata.tables.values()}


def check_pair(database: Database, was: dict[str, Any], before: Variation, after: Variation) -> str:
    """Migrate from one to the other and back to the schema that was; return the revision."""
    connection, target = database.connection, after.metadata(database.family)
    indexes = indexes_of(target)
    revision = database.revision(target)
    connection.commit()
    if before is after:
        assert revision == "", f"a second autogenerate is not empty:\n{revision}"
    if revision:
        database.migrate(revision, target, "upgrade")
        connection.commit()
        again = database.revision(target)
        assert again == "", f"after the upgrade autogenerate is not empty:\n{again}\nThe upgrade was:\n{revision}"
        connection.commit()
        database.migrate(revision, target, "downgrade")
        connection.commit()
    assert indexes_of(target) == indexes, "the models are not as they were"
    now = database.schema()
    connection.commit()
    differences = [f"{key}: {was.get(key)} is {now.get(key)}" for key in was | now if was.get(key) != now.get(key)]
    assert not differences, "the downgrade differs:\n" + "\n".join(differences) + f"\n{revision}"
    return revision


def check_alone(revisions: set[str], directory: Path) -> None:
    """Import revisions in a process that has nothing else."""
    directory.mkdir()
    for number, revision in enumerate(sorted(revisions)):
        (directory / f"{number:04}.py").write_text(revision)
    done = subprocess.run(
        [sys.executable, "-c", CHECK_ALONE, str(directory)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "imported\n", done.stderr


@pytest.mark.backends(*DATABASES)
@pytest.mark.parametrize("before", VARIATIONS, ids=lambda variation: variation.name)
def test_models_migrate_to_every_variation_and_back_without_drift(before: Variation, backend: Backend, tmp_path: Path):
    """From 49 variations to every 16th on each database, 151 pairs; with SQLA_VECTOR_TEST_MATRIX=full to 49, 2,401.

    The downgrade leaves the database as it was made, so that the next pair begins there.
    """
    revisions: set[str] = set()
    failures: list[str] = []
    with opened(backend) as database:
        database.create(before.metadata(database.family))
        was = database.schema()
        database.connection.commit()
        for after in chosen(before):
            try:
                revisions.add(check_pair(database, was, before, after))
            except Exception as error:
                failures.append(f"{before.name} to {after.name}: {type(error).__name__}: {error}")
                database.connection.rollback()
                database.create(before.metadata(database.family))
                database.connection.commit()
    assert not failures, f"{len(failures)} pairs fail\n" + "\n\n".join(failures[:5])
    check_alone(revisions - {""}, tmp_path / "revisions")
