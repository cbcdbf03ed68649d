"""Preparing a SQLite connection: load sqlite-vec where that is possible, register the functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy.engine import Connection

from sqla_vector.dialects.settings import Settings
from sqla_vector.dialects.sqlite.functions import AGGREGATES, FUNCTIONS, STAND_INS
from sqla_vector.dialects.sqlite.ivf_functions import ListFunctions

__all__ = [
    "RawConnection",
    "begin",
    "brief_lock_wait",
    "has_changed",
    "is_prepared",
    "note_changed",
    "prepare",
    "state",
]


_CHANGED: Final = "sqla_vector_changed"
"""Where the pool keeps of a connection that vec0 tables may be others at the end of its transaction."""


class RawConnection:
    """The driver's connection, of ``sqlite3``, ``pysqlite3`` or ``aiosqlite``, behind one set of calls."""

    def __init__(self, dbapi_connection: Any) -> None:
        self._adapted = dbapi_connection
        self._is_async = hasattr(dbapi_connection, "run_async")

    def call(self, name: str, *args: Any, **kw: Any) -> Any:
        """Call a method of the connection."""
        if not self._is_async:
            return getattr(self._adapted, name)(*args, **kw)

        async def run(connection: Any) -> Any:
            # aiosqlite wraps only some of sqlite3's methods; all must run in its own thread.
            return await connection._execute(getattr(connection._conn, name), *args, **kw)

        return self._adapted.run_async(run)

    def has(self, name: str) -> bool:
        """Tell whether the connection has a method."""
        inner = self._adapted.driver_connection._conn if self._is_async else self._adapted
        return hasattr(inner, name)

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        inner = self._adapted.driver_connection._conn if self._is_async else self._adapted
        return bool(inner.in_transaction)

    @property
    def commits_itself(self) -> bool:
        """Whether every statement is a transaction of its own (AUTOCOMMIT)."""
        inner = self._adapted.driver_connection._conn if self._is_async else self._adapted
        # From Python 3.12 on the driver may be told so by an attribute; then its commit() would not end a BEGIN.
        return inner.isolation_level is None or getattr(inner, "autocommit", None) is True

    @property
    def changes(self) -> int:
        """How many rows this connection has inserted, updated and deleted so far."""
        inner = self._adapted.driver_connection._conn if self._is_async else self._adapted
        return int(inner.total_changes)

    def rows(self, sql: str, *parameters: Any) -> Iterable[Any]:
        """Run a query and return its rows."""
        cursor = self._adapted.cursor()
        try:
            cursor.execute(sql, parameters)
            return list(cursor.fetchall())
        finally:
            cursor.close()


def _load_sqlite_vec(connection: RawConnection) -> str | None:
    """Load sqlite-vec and return its version, or None where Python's SQLite or the package lacks."""
    try:
        import sqlite_vec
    except ImportError:
        return None
    if not connection.has("enable_load_extension"):
        return None
    connection.call("enable_load_extension", True)
    try:
        connection.call("load_extension", sqlite_vec.loadable_path())
    finally:
        connection.call("enable_load_extension", False)
    (row,) = connection.rows("SELECT vec_version()")
    return str(row[0])


def begin(connection: Connection, *, to_write: bool = False) -> None:
    """Open a transaction if none is open: sqlite3 does it before INSERT, but not before DDL or a savepoint.

    Without it CREATE TABLE is committed at once, whatever transaction SQLAlchemy is in.

    Args:
        connection: the connection.
        to_write: keep others from writing at once, not from the first statement on that writes.
    """
    raw = RawConnection(connection.connection.dbapi_connection)
    if not raw.in_transaction and not raw.commits_itself:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if to_write else "BEGIN")


def note_changed(connection: Connection) -> None:
    """Note that a transaction makes or drops vec0 tables, or writes beside them: its end has them looked for again."""
    connection.info[_CHANGED] = True


def has_changed(dbapi_connection: Any, *, is_over: bool) -> bool:
    """Tell whether the transaction of a connection from the pool has done so; one that is over has no longer."""
    try:
        info = getattr(dbapi_connection, "info", None) or {}
    except NotImplementedError:  # SQLAlchemy's own, by which an engine gets to know the database
        return False
    return bool(info.pop(_CHANGED, False) if is_over else info.get(_CHANGED))


def state(connection: Connection) -> object | None:
    """Return what is equal as long as neither this connection nor another one changes a row.

    Source: SQLite's manual, PRAGMA data_version, which commits of other connections change, in each database;
    sqlite3_total_changes().
    """
    own = connection.connection.dbapi_connection
    raw = RawConnection(own)
    if not raw.in_transaction:
        return None
    quote = connection.dialect.identifier_preparer.quote_schema
    schemas = [name for (name,) in raw.rows("SELECT name FROM pragma_database_list WHERE name <> 'temp' ORDER BY seq")]
    versions = [raw.rows(f"PRAGMA {quote(name)}.data_version") for name in schemas]
    # Both numbers are the connection's own, so that those of another one say nothing.
    return own, raw.changes, schemas, versions


@contextmanager
def brief_lock_wait(connection: Connection) -> Iterator[None]:
    """Have a connection wait 100 ms at most for another's transaction to end, and then as long as before."""
    raw = RawConnection(connection.connection.dbapi_connection)
    ((before,),) = raw.rows("PRAGMA busy_timeout")
    raw.rows(f"PRAGMA busy_timeout = {min(int(before), 100)}")
    try:
        yield
    finally:
        raw.rows(f"PRAGMA busy_timeout = {int(before)}")


def is_prepared(connection: RawConnection) -> bool:
    """Tell whether :func:`prepare` has seen the connection."""
    return bool(connection.rows("SELECT 1 FROM pragma_function_list WHERE name = 'vector_l2_normalize'"))


def _none_for_none(function: Any) -> Any:
    def call(*arguments: Any) -> Any:
        return None if None in arguments else function(*arguments)

    return call


def _all_none_for_none(functions: Mapping[str, tuple[int, Any]]) -> dict[str, tuple[int, Any]]:
    return {name: (arguments, _none_for_none(function)) for name, (arguments, function) in functions.items()}


# All connections have the same functions, which live as long as the program: a connection may outlive its close() by a
# statement that a traceback holds, and pysqlite3 then gives its functions up without holding the interpreter's lock,
# which ends the process if they have no other owner.
_FUNCTIONS: Final = _all_none_for_none(FUNCTIONS)
_WITH_STAND_INS: Final = _all_none_for_none(FUNCTIONS | STAND_INS)
_LISTS: Final = ListFunctions()
_LIST_FUNCTIONS: Final = _LISTS.functions()
_AGGREGATES: Final = AGGREGATES | _LISTS.aggregates()


def prepare(connection: RawConnection, settings: Settings) -> None:
    """Give a new connection all that the compiled SQL calls."""
    settings.sqlite_vec = _load_sqlite_vec(connection) if settings.load_extension else None
    settings.has_fts5 = bool(connection.rows("SELECT 1 FROM pragma_module_list WHERE name = 'fts5'"))
    for name, (arguments, function) in (_FUNCTIONS if settings.sqlite_vec else _WITH_STAND_INS).items():
        connection.call("create_function", name, arguments, function, deterministic=True)
    for name, (arguments, function) in _LIST_FUNCTIONS.items():
        connection.call("create_function", name, arguments, function)
    for name, (arguments, aggregate) in _AGGREGATES.items():
        connection.call("create_aggregate", name, arguments, aggregate)
