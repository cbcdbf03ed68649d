"""What an attached engine's SQLite dialect does differently, set on that one dialect object."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from sqlalchemy import Index, Table
from sqlalchemy.engine import Connection
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.schema import CreateIndex, DropIndex, DropTable

from sqla_vector.dialects.settings import settings_of
from sqla_vector.dialects.sqlite.beside import check_table
from sqla_vector.dialects.sqlite.carry import carry, put_back
from sqla_vector.dialects.sqlite.connection import RawConnection, begin, has_changed, note_changed
from sqla_vector.dialects.sqlite.fts5 import (
    Fts5Statements,
    check_fts5,
    drop_fts5_statements,
    fts5_index,
    fts5_indexes,
    is_there,
)
from sqla_vector.dialects.sqlite.fts5_reflection import FTS5_TABLE
from sqla_vector.dialects.sqlite.index import (
    LIST,
    creatable,
    exists,
    vec0_index,
    vec0_indexes,
)
from sqla_vector.dialects.sqlite.inspection import get_indexes, get_table_names, get_view_names, has_index
from sqla_vector.dialects.sqlite.ivf import note_created
from sqla_vector.dialects.sqlite.nulls import VectorSQLCompiler
from sqla_vector.dialects.sqlite.reflection import VEC0_TABLE
from sqla_vector.dialects.sqlite.side_tables import check_names, check_names_are_free, only_ours
from sqla_vector.dialects.sqlite.statements import Vec0Statements, drop_statements
from sqla_vector.dialects.sqlite.tuned import read_tuned
from sqla_vector.exc import IndexNotUsable
from sqla_vector.schema import REFLECTED_SPEC, index_key
from sqla_vector.text_index import REFLECTED_TEXT, text_index_key
from sqla_vector.types import BitVector, HalfVector, SparseVector, Vector

__all__ = ["adapt", "refresh_vec0_tables", "restore"]

logger = logging.getLogger("sqla_vector.sqlite")

_NOTHING: Final = "SELECT 1 WHERE 0"
_SAVEPOINT: Final = "sqla_vector_ddl"

_REFLECTED: Final = {"VECTOR": Vector, "HALFVEC": HalfVector, "SPARSEVEC": SparseVector, "BIT": BitVector}


class VectorDDLCompiler:
    """Mixin for the DDL compiler: a vector index is several statements.

    The compiled string holds all of them, so that a printed script is whole; an execution takes them from
    ``vector_script`` one by one.
    """

    vector_script: list[str] | None = None

    def _script(self: Any, statements: list[str]) -> str:
        self.vector_script = statements
        return ";\n".join(statements)

    def visit_create_index(self: Any, create: CreateIndex, *args: Any, **kw: Any) -> str:
        text = fts5_index(create.element)
        if text is not None:
            check_fts5(text, settings_of(self.dialect))
            if create.if_not_exists and is_there(text, self.preparer, settings_of(self.dialect)):
                return _NOTHING
            check_names(text.table, text.name)
            return self._script(Fts5Statements(text, self.preparer).create())  # type: ignore[no-any-return]
        index = vec0_index(create.element)
        if index is None:
            return super().visit_create_index(create, *args, **kw)  # type: ignore[misc,no-any-return]
        if not creatable(index, settings_of(self.dialect)):
            return _NOTHING
        statements = Vec0Statements(index, self.preparer).create()
        if create.if_not_exists and exists(index, self.preparer, settings_of(self.dialect)):
            return _NOTHING
        check_names(index.table, index.name)
        return self._script(statements)  # type: ignore[no-any-return]

    def visit_drop_index(self: Any, drop: DropIndex, **kw: Any) -> str:
        index = vec0_index(drop.element)
        if index is not None:
            return self._script(Vec0Statements(index, self.preparer).drop())  # type: ignore[no-any-return]
        text = fts5_index(drop.element)
        if text is not None:
            return self._script(Fts5Statements(text, self.preparer).drop())  # type: ignore[no-any-return]
        name, schema = str(drop.element.name), self.preparer.schema_for_object(drop.element.table)
        known, settings = (None if schema == "main" else schema, name), settings_of(self.dialect)
        if known in settings.vec0_tables:
            # Known by its name alone, as in op.drop_index() and in a batch.
            return self._script(drop_statements(name, schema, self.preparer))  # type: ignore[no-any-return]
        if known in settings.fts5_tables:
            return self._script(drop_fts5_statements(name, schema, self.preparer))  # type: ignore[no-any-return]
        return super().visit_drop_index(drop, **kw)  # type: ignore[misc,no-any-return]

    def visit_drop_table(self: Any, drop: DropTable, **kw: Any) -> str:
        statement: str = super().visit_drop_table(drop, **kw)  # type: ignore[misc]
        # SQLite drops a table's triggers with it, but vec0 tables are tables of their own.  Of which schema they are
        # is not known here under schema_translate_map, and the statements bear that they are not there.
        settings, translated = settings_of(self.dialect), self.schema_translate_map is not None
        indexes = [i for i in vec0_indexes(drop.element) if translated or exists(i, self.preparer, settings)]
        texts = [i for i in fts5_indexes(drop.element) if translated or is_there(i, self.preparer, settings)]
        if not indexes and not texts:
            return statement
        dropped = [s for index in indexes for s in Vec0Statements(index, self.preparer).drop()]
        dropped += [s for text in texts for s in Fts5Statements(text, self.preparer).drop()]
        return self._script([*dropped, statement])  # type: ignore[no-any-return]


class VectorExecutionContext:
    """Mixin for the execution context: DDL belongs to the transaction, and a script of it is all or nothing."""

    vector_script: list[str] | None = None

    @classmethod
    def _init_ddl(cls: Any, dialect: Any, connection: Any, dbapi_connection: Any, options: Any, compiled: Any) -> Any:
        context = super()._init_ddl(dialect, connection, dbapi_connection, options, compiled)  # type: ignore[misc]
        script = compiled.vector_script or []
        if compiled.schema_translate_map:
            translated = options.get("schema_translate_map", {})
            script = [
                type(statement)(compiled.preparer._render_schema_translates(statement, translated))
                for statement in script
            ]
        if isinstance(compiled.statement, DropTable):
            owned = _drop_owned(connection, dbapi_connection, compiled.statement.element)
            if owned:
                script = list(dict.fromkeys([*owned, *(script or [context.statement])]))
        if isinstance(compiled.statement, DropTable):
            in_the_way = carry(connection, dbapi_connection, compiled.statement.element)
            script = [*in_the_way, *(script or [context.statement])] if in_the_way else script
        if script and _lost_its_column(connection, dbapi_connection, compiled.statement):
            context.statement = context.unicode_statement = _NOTHING
        elif script:
            rows, element = RawConnection(dbapi_connection).rows, compiled.statement.element
            if isinstance(compiled.statement, CreateIndex):
                schema, name = connection.schema_for_object(element.table), str(element.name)
                check_names_are_free(dialect, rows, schema, name)
                kind = "text" if text_index_key(element) is not None else "vector"
                check_table(rows, schema, element.table, f"{name}: a {kind} index")
            context.vector_script = only_ours(dialect, rows, script)
            # The script runs before it, so that whichever statement fails the savepoint is rolled back.
            context.statement = context.unicode_statement = f"RELEASE SAVEPOINT {_SAVEPOINT}"
        return context

    def pre_exec(self: Any) -> None:
        super().pre_exec()  # type: ignore[misc]
        for schema, name in getattr(self.compiled, "text_tables", ()):
            _check_text_table(self.root_connection, schema, name)
        if self.isddl:
            begin(self.root_connection)
        if not self.vector_script:
            return
        self.cursor.execute(f"SAVEPOINT {_SAVEPOINT}")
        try:
            for statement in self.vector_script:
                self.root_connection._log_info(statement)
                self.cursor.execute(statement)
        except BaseException as error:
            self.cursor.execute(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
            self.cursor.execute(f"RELEASE SAVEPOINT {_SAVEPOINT}")
            self.root_connection._handle_dbapi_exception(error, statement, None, self.cursor, self)

    def post_exec(self: Any) -> None:
        super().post_exec()  # type: ignore[misc]
        if self.vector_script:
            note_changed(self.root_connection)
            refresh_vec0_tables(self.dialect, RawConnection(self.root_connection.connection.dbapi_connection).rows)
        if self.vector_script and isinstance(self.compiled.statement, CreateIndex):
            created = vec0_index(self.compiled.statement.element)
            if created is not None and created.in_lists:
                note_created(self.root_connection, created)
        if self.isddl:
            raw = self.root_connection.connection.dbapi_connection
            put_back(self.root_connection, raw, self.compiled.statement)


def _drop_owned(connection: Connection, dbapi_connection: Any, table: Table) -> list[str]:
    """Return the statements that drop the vec0 and FTS5 tables which triggers of a table keep.

    The table knows what is declared on it; Alembic's ``op.drop_table("item")`` declares nothing.
    """
    schema, preparer = connection.schema_for_object(table), connection.dialect.identifier_preparer
    master = f"{preparer.quote_schema(schema)}.sqlite_master" if schema else "sqlite_master"
    statements: list[str] = []
    for module, drop in _SIDE_TABLES.items():
        if module == "vec0" and settings_of(connection.dialect).sqlite_vec is None:
            continue  # without the extension SQLite cannot drop them
        found = RawConnection(dbapi_connection).rows(
            f"SELECT side.name FROM {master} AS side JOIN {master} AS kept ON kept.name = side.name || '_insert' "
            f"WHERE side.type = 'table' AND side.sql LIKE 'CREATE VIRTUAL TABLE%USING {module}(%' "
            "AND kept.type = 'trigger' AND kept.tbl_name = ? COLLATE NOCASE",
            table.name,
        )
        statements += [statement for (name,) in found for statement in drop(name, schema, preparer)]
    return statements


def _lost_its_column(connection: Connection, dbapi_connection: Any, statement: Any) -> bool:
    """Tell whether a reflected index is to be made on a column that is gone: a batch carries indexes over."""
    if not isinstance(statement, CreateIndex):
        return False
    index, table = statement.element, statement.element.table
    assert table is not None
    vector, text = index_key(index), text_index_key(index)
    if vector is not None and index.dialect_kwargs.get(REFLECTED_SPEC) is not None:
        columns = [vector.column]
    elif text is not None and index.dialect_kwargs.get(REFLECTED_TEXT) is not None:
        columns = text.columns
    else:
        return False
    rows = RawConnection(dbapi_connection).rows(
        "SELECT name FROM pragma_table_info(?, ?)", table.name, connection.schema_for_object(table)
    )
    there = {row[0] for row in rows}
    gone = [column.name for column in columns if column.name not in there]
    if gone:
        logger.info("%s goes with its column %s.%s", index.name, table.name, gone[0])
    return bool(gone)


def _check_text_table(connection: Connection, schema: str | None, name: str) -> None:
    """Refuse a text search without its FTS5 table; another connection may have made it since this one began."""
    settings, known = settings_of(connection.dialect), (None if schema == "main" else schema, name)
    if known not in settings.fts5_tables:
        refresh_vec0_tables(connection.dialect, RawConnection(connection.connection.dbapi_connection).rows)
    if known not in settings.fts5_tables:
        raise IndexNotUsable(
            f"{name}: this database has no such text index, and SQLite cannot search texts without it; create it, for "
            "example by a migration"
        )


_SIDE_TABLES: Final[dict[str, Callable[..., list[str]]]] = {"vec0": drop_statements, "fts5": drop_fts5_statements}
"""How the tables that stand beside others are dropped, by the module that makes them."""


def _do_savepoint(dialect: Any, connection: Connection, name: str) -> None:
    """Open the transaction first: SQLite commits when the savepoint is released that a transaction began with."""
    begin(connection)
    type(dialect).do_savepoint(dialect, connection, name)


def _do_commit(dialect: Any, dbapi_connection: Any) -> None:
    type(dialect).do_commit(dialect, dbapi_connection)
    # Others may have looked meanwhile, and seen what was there before.
    _look_again(dialect, dbapi_connection, is_over=True)


def _do_rollback(dialect: Any, dbapi_connection: Any) -> None:
    type(dialect).do_rollback(dialect, dbapi_connection)
    _look_again(dialect, dbapi_connection, is_over=True)


def _do_rollback_to_savepoint(dialect: Any, connection: Any, name: str) -> None:
    type(dialect).do_rollback_to_savepoint(dialect, connection, name)
    _look_again(dialect, connection.connection, is_over=False)


def _look_again(dialect: Any, dbapi_connection: Any, *, is_over: bool) -> None:
    """Learn again which vec0 tables exist, if the transaction of this connection may have changed that."""
    if has_changed(dbapi_connection, is_over=is_over):
        # The pool's own rollbacks come with its proxy of the connection.
        raw = getattr(dbapi_connection, "dbapi_connection", dbapi_connection)
        refresh_vec0_tables(dialect, RawConnection(raw).rows)


def refresh_vec0_tables(dialect: Dialect, execute: Any) -> None:
    """Learn which vec0 and FTS5 tables exist; ``execute`` runs SQL on a raw connection and returns its rows."""
    quote = dialect.identifier_preparer.quote_schema
    vec0, in_lists, fts5 = set(), set(), set()
    for (schema,) in execute("SELECT name FROM pragma_database_list"):
        rows = execute(
            f"SELECT name, sql, sql LIKE '{VEC0_TABLE}' FROM {quote(schema)}.sqlite_master "
            f"WHERE type = 'table' AND (sql LIKE '{VEC0_TABLE}' OR sql LIKE '{FTS5_TABLE}')"
        )
        for name, sql, is_vec0 in rows:
            place = (None if schema == "main" else schema, name)
            if not is_vec0:
                fts5.add(place)
                continue
            vec0.add(place)
            if f" {LIST} integer partition key" in sql:
                in_lists.add(place)
    settings = settings_of(dialect)
    settings.fts5_tables = fts5
    if (vec0, in_lists) != (settings.vec0_tables, settings.list_tables):
        settings.vec0_tables, settings.list_tables = vec0, in_lists
        settings.forget_compiled()
    read_tuned(dialect, execute, vec0)


def _mixed(mixin: type[Any], inner: Any) -> type[Any]:
    return type(inner.__name__, (mixin, inner), {})


@functools.cache
def _accept_reflected_spec() -> None:
    """Have Index accept the options in which reflected declarations travel; SQLAlchemy keeps one list of options."""
    for option in (REFLECTED_SPEC, REFLECTED_TEXT):
        dialect_name, _, argument = option.partition("_")
        Index.argument_for(dialect_name, argument, None)


def adapt(dialect: Any) -> None:
    """Set what an attached dialect does differently, on this one object."""
    _accept_reflected_spec()
    dialect.statement_compiler = _mixed(VectorSQLCompiler, dialect.statement_compiler)
    dialect.ddl_compiler = _mixed(VectorDDLCompiler, dialect.ddl_compiler)
    dialect.execution_ctx_cls = _mixed(VectorExecutionContext, dialect.execution_ctx_cls)
    dialect.ischema_names = {**dialect.ischema_names, **_REFLECTED}
    for name, function in _REPLACED.items():
        setattr(dialect, name, partial(function, dialect))


def restore(dialect: Any) -> None:
    """Undo :func:`adapt`: what the dialect's class defines shows again."""
    for name in ("statement_compiler", "ddl_compiler", "execution_ctx_cls", "ischema_names", *_REPLACED):
        vars(dialect).pop(name, None)


_REPLACED: Final[dict[str, Callable[..., Any]]] = {
    "do_savepoint": _do_savepoint,
    "do_commit": _do_commit,
    "do_rollback": _do_rollback,
    "do_rollback_to_savepoint": _do_rollback_to_savepoint,
    "get_table_names": get_table_names,
    "get_view_names": get_view_names,
    "has_index": has_index,
    "get_indexes": get_indexes,
}
