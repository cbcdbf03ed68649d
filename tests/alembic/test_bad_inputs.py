"""What is no name, no option or no vector column is refused with a typed error, and nothing is changed."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import pytest
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Column, Connection, ForeignKey, Integer, MetaData, String, Table, quoted_name

import sqla_vector.alembic
from sqla_vector import HalfVector, InvalidIdentifier, InvalidOption, UnsupportedMetric, Vector, VectorError
from sqla_vector import vector_index as declare
from tests.support.backends import Backend

BOTH = pytest.mark.backends("psycopg", "asyncpg", "pysqlite3", "aiosqlite")
ONE = pytest.mark.backends("psycopg", "pysqlite3")

NO_NAMES = {
    "quote": 'a"b',
    "statement": "a;DROP TABLE item",
    "apostrophe": "'",
    "comment": "--",
    "newline": "a\nb",
    "NUL": "a\x00b",
    "empty": "",
    "percent": "%s",
    "parameter": ":p",
    "dot": "a.b",
    "64 bytes": "a" * 64,
    "64 bytes of few characters": "ä" * 32,
    "never quoted": quoted_name('x"; DROP TABLE item; --', quote=False),
    "number": 7,
    "none": None,
    "bytes": b"item",
}
TYPES = {"type_": HalfVector(3), "existing_type": Vector(3)}
CHANGE = {"type_": Vector(4), "existing_type": Vector(3), "backfill": "later"}
RESTORE = {"type_": Vector(4), "existing_type": Vector(3)}
CALLS: dict[str, dict[str, Any]] = {
    "create_vector_index": {"index_name": "ix_new", "table_name": "item", "column_name": "e", "schema": None},
    "rebuild_vector_index": {"index_name": "ix", "table_name": "item", "column_name": "e", "schema": None},
    "drop_vector_index": {"index_name": "ix", "table_name": "item", "schema": None},
    "convert_vector_column": {"table_name": "item", "column_name": "e", "schema": None, **TYPES},
    "change_vector_column": {"table_name": "item", "column_name": "e", "schema": None, **CHANGE},
    "restore_vector_column": {"table_name": "item", "column_name": "e", "schema": None, **RESTORE},
    "drop_kept_vector_column": {"table_name": "item", "column_name": "e", "schema": None},
    "create_vector_extension": {"schema": None},
    "drop_vector_extension": {"schema": None},
}
ARGUMENTS = [
    (directive, argument)
    for directive, given in CALLS.items()
    for argument in given
    if argument in ("index_name", "table_name", "column_name", "schema")
]


def item() -> Table:
    return Table(
        "item",
        MetaData(),
        Column("id", Integer, primary_key=True),
        Column("title", String(9)),
        Column("e", Vector(3)),
        declare("ix", "e", metric="l2"),
    )


def everything(connection: Connection) -> list[Any]:
    sql = (
        "SELECT type, name, sql FROM sqlite_master ORDER BY 1, 2"
        if connection.dialect.name == "sqlite"
        else "SELECT 'c', concat_ws(' ', table_name, column_name, data_type) FROM information_schema.columns"
        " WHERE table_schema = 'public' UNION ALL SELECT 'i', indexdef FROM pg_indexes WHERE schemaname = 'public'"
        " UNION ALL SELECT 's', nspname FROM pg_namespace WHERE nspname !~ '^pg'"
        " UNION ALL SELECT 'e', extname FROM pg_extension ORDER BY 1, 2"
    )
    return [tuple(row) for row in connection.exec_driver_sql(sql)]


def refusing(backend: Backend, attempt: Callable[[Operations], object], error: Any = VectorError) -> list[str]:
    """Try on a connection and for a script; return the messages. Neither changes or writes anything."""
    engine = backend.make_engine()
    backend.create_all(engine, item().metadata)
    messages = []

    def online(connection: Connection) -> None:
        before = everything(connection)
        with pytest.raises(error) as caught:
            attempt(Operations(MigrationContext.configure(connection)))
        messages.append(str(caught.value))
        assert everything(connection) == before

    backend.run_connection(engine, online)
    assert backend.run_connection(engine, everything)
    output = io.StringIO()
    context = MigrationContext.configure(
        url=str(backend.url.render_as_string(hide_password=False)), opts={"as_sql": True, "output_buffer": output}
    )
    with pytest.raises(error) as caught:
        attempt(Operations(context))
    assert output.getvalue() == ""
    return [*messages, str(caught.value)]


@BOTH
@pytest.mark.parametrize(("directive", "argument"), ARGUMENTS)
def test_what_is_no_name_is_refused_wherever_a_name_is_given(backend, directive, argument):
    def attempt(op: Operations) -> None:
        caught: VectorError | None = None
        for what, name in NO_NAMES.items():
            if name is None and argument == "schema":
                continue
            with pytest.raises(InvalidIdentifier) as refused:
                getattr(op, directive)(**{**CALLS[directive], argument: name})
            assert repr(name)[:20] in str(refused.value), what
            caught = refused.value
        assert caught is not None
        raise caught

    refusing(backend, attempt, InvalidIdentifier)


@ONE
@pytest.mark.parametrize("name", ["select", "ORDER", "user"])
def test_an_index_is_not_named_by_a_reserved_word(backend, name):
    refusing(backend, lambda op: op.create_vector_index(name, "item", "e"), InvalidIdentifier)


INDEX_OPTIONS = {
    "unknown metric": ({"metric": "manhattan"}, InvalidOption, "manhattan"),
    "metric of bits": ({"metric": "hamming"}, UnsupportedMetric, "hamming"),
    "unknown option": ({"ef": 3}, InvalidOption, "ix_new: unknown option ef; there are metric, "),
    "injected option": ({"m) ; DROP TABLE item; --": 3}, InvalidOption, "unknown option"),
    "unknown method": ({"method": "btree"}, InvalidOption, "btree"),
    "unknown precision": ({"precision": "quarter"}, InvalidOption, "quarter"),
    "m too small": ({"m": 1}, InvalidOption, "m must be a whole number from 2 to 100"),
    "m as text": ({"m": "16); DROP TABLE item; --"}, InvalidOption, "m must be a whole number"),
    "m True": ({"m": True}, InvalidOption, "m must be a whole number"),
    "ef_construction too large": ({"ef_construction": 1001}, InvalidOption, "ef_construction must be"),
    "lists 0": ({"method": "ivfflat", "lists": 0}, InvalidOption, "lists must be"),
    "lists of hnsw": ({"lists": 10}, InvalidOption, "lists is no option of hnsw"),
    "value_range": ({"precision": "int8", "value_range": -1}, InvalidOption, "value_range"),
    "include a number": ({"include": [3]}, InvalidOption, "include takes column names"),
    "include what is not there": ({"include": ["nothing"]}, InvalidOption, "item has no column 'nothing'"),
    "a predicate of nonsense": ({"where": 5}, InvalidOption, "where"),
    "a column without a vector": ({"column_name": "title"}, InvalidOption, r"item\.title is no vector column"),
    "a missing column": ({"column_name": "nothing"}, VectorError, "item has no column nothing"),
    "memory": ({"maintenance_work_mem": "1; DROP TABLE item"}, InvalidOption, "maintenance_work_mem must be a number"),
    "memory as a number": ({"maintenance_work_mem": 5}, InvalidOption, "maintenance_work_mem must be a number"),
    "no memory": ({"maintenance_work_mem": ""}, InvalidOption, "maintenance_work_mem must be a number"),
    "workers": ({"parallel_workers": -1}, InvalidOption, "parallel_workers must be a whole number"),
    "workers True": ({"parallel_workers": True}, InvalidOption, "parallel_workers must be a whole number"),
    "workers as text": ({"parallel_workers": "1; DROP TABLE item"}, InvalidOption, "parallel_workers must be"),
}
ELEMENTS = [Column("id", Integer, primary_key=True), Column("title", String(9)), Column("e", Vector(3))]


@BOTH
@pytest.mark.parametrize("directive", ["create_vector_index", "rebuild_vector_index"])
@pytest.mark.parametrize("case", INDEX_OPTIONS)
def test_options_of_an_index_that_cannot_be_are_refused(backend, directive, case):
    options, error, message = INDEX_OPTIONS[case]
    given = {"index_name": "ix_new", "table_name": "item", "column_name": "e", "table_elements": ELEMENTS, **options}
    found = refusing(backend, lambda op: getattr(op, directive)(**given), error)
    for refusal in found:
        assert re.search(message, refusal)


NO_ELEMENTS = {
    "text": ["id"],
    "a number": [3],
    "a reference": [*ELEMENTS, ForeignKey("x.y")],
    "a table": [item()],
    "none": [None],
}


@ONE
@pytest.mark.parametrize("case", NO_ELEMENTS)
def test_table_elements_of_another_kind_are_refused(backend, case):
    found = refusing(
        backend, lambda op: op.create_vector_index("ix_new", "item", "e", table_elements=NO_ELEMENTS[case])
    )
    assert all("table_elements" in message for message in found)


CHANGES = {
    "batch_size 0": {"batch_size": 0},
    "batch_size -1": {"batch_size": -1},
    "batch_size True": {"batch_size": True},
    "batch_size a thousand million": {"batch_size": 10**9},
    "backfill a number": {"backfill": 5},
    "backfill another word": {"backfill": "now; DROP TABLE item"},
    "source without an embedder": {"backfill": list, "source": "title"},
    "source with a quote": {"backfill": list, "source": 'a"b'},
    "an index of nonsense": {"indexes": [{"index_name": 'a"b'}]},
    "an index without a name": {"indexes": [{"metric": "l2"}]},
    "an index with an unknown option": {"indexes": [{"index_name": "ix", "ef": 1}]},
    "an existing index of nonsense": {"existing_indexes": [{"index_name": "a; DROP TABLE item"}]},
    "a type of nonsense": {"type_": "VECTOR(3); DROP TABLE item"},
    "an existing type of nonsense": {"existing_type": "VECTOR(3)"},
}


@ONE
@pytest.mark.parametrize("case", CHANGES)
def test_changes_of_a_column_that_cannot_be_are_refused(backend, case):
    refusing(backend, lambda op: op.change_vector_column("item", "e", **{**CHANGE, **CHANGES[case]}))


@ONE
@pytest.mark.parametrize("types", [(Vector(4), Vector(3)), (String(9), Vector(3)), (Vector(3), Vector(3)), ("x", "y")])
def test_types_that_do_not_convert_are_refused(backend, types):
    new, old = types
    refusing(backend, lambda op: op.convert_vector_column("item", "e", type_=new, existing_type=old), InvalidOption)


@ONE
@pytest.mark.parametrize("version", ["", "8; DROP TABLE item", "1.x", ".", 8, "-1"])
def test_a_minimum_version_that_is_none_is_refused(backend, version):
    refusing(backend, lambda op: op.create_vector_extension(minimum_version=version), InvalidOption)


MISSING = {
    "create_vector_index": {"index_name": "ix_new"},
    "rebuild_vector_index": {"index_name": "ix_new"},
    "convert_vector_column": TYPES,
    "change_vector_column": CHANGE,
    "restore_vector_column": RESTORE,
}


@BOTH
@pytest.mark.parametrize("directive", MISSING)
@pytest.mark.parametrize(("table", "column"), [("nothing", "e"), ("item", "nothing"), ("select", "e"), ("Item", "e")])
def test_a_table_or_column_that_is_missing_is_named(backend, directive, table, column):
    engine = backend.make_engine()
    backend.create_all(engine, item().metadata)

    def check(connection: Connection) -> None:
        if backend.family == "sqlite" and table == "Item":
            return  # SQLite does not tell upper case from lower case
        before = everything(connection)
        given = {"table_name": table, "column_name": column, **MISSING[directive]}
        with pytest.raises(VectorError, match=table if table != "item" else column):
            getattr(Operations(MigrationContext.configure(connection)), directive)(**given)
        assert everything(connection) == before

    backend.run_connection(engine, check)


@ONE
def test_names_in_models_are_literals_in_a_migration(backend):
    """However they are made, they cannot become code of the migration."""
    evil = 'e"); import os; os.abort() #\n\'"""'
    metadata = MetaData()
    Table("t", metadata, Column("id", Integer, primary_key=True), Column(evil, Vector(3)), Column("f", Vector(3)))
    engine = backend.make_engine()

    def render(connection: Connection) -> str:
        options = sqla_vector.alembic.options(target_metadata=metadata)
        context = MigrationContext.configure(connection, opts=options)
        script = produce_migrations(context, metadata)
        assert script.upgrade_ops is not None
        return str(render_python_code(script.upgrade_ops, migration_context=context))

    code = backend.run_connection(engine, render)
    assert repr(evil) in code
    compile(code.replace("\n    ", "\n"), "migration", "exec") if not code.startswith(" ") else None
    assert "\nimport os" not in code

    indexed = MetaData()
    Table("t", indexed, Column("id", Integer, primary_key=True), Column(evil, Vector(3)), declare("ix", evil))
    metadata = indexed
    with pytest.raises(InvalidIdentifier, match="column name"):
        backend.run_connection(engine, render)
