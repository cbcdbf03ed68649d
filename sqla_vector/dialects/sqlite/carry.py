"""Outbox triggers outlive a batch, in which Alembic copies a table, drops it and renames the copy.

SQLite drops a table's triggers with it, and refuses the renaming while triggers of other tables name one that is gone.
So all of them are dropped with the table and created again when the copy has its name.
"""

from __future__ import annotations

import logging
import re
from typing import Any, Final

from sqlalchemy.engine import Connection

from sqla_vector.dialects.capture import LABEL, parse_description
from sqla_vector.dialects.migration import quoted
from sqla_vector.dialects.sqlite.capture import capture_description
from sqla_vector.dialects.sqlite.connection import RawConnection

__all__ = ["carry", "put_back"]

logger = logging.getLogger("alembic.sqla_vector")

_CARRIED: Final = "sqla_vector.carried"
_COPY: Final = "_alembic_tmp_"
_EVENT: Final = re.compile(r"(?:AFTER|BEFORE) (INSERT|UPDATE|DELETE) ON ")

_Key = tuple[str | None, str]


def carry(connection: Connection, dbapi_connection: Any, table: Any) -> list[str]:
    """Return the statements that drop the outbox triggers in a batch's way, which are kept for :func:`put_back`."""
    schema, copy = connection.schema_for_object(table), f"{_COPY}{table.name}"[:50]
    dialect, raw = connection.dialect, RawConnection(dbapi_connection)
    master = f"{quoted(dialect, schema)}.sqlite_master" if schema else "sqlite_master"
    if not list(raw.rows(f"SELECT 1 FROM {master} WHERE type = 'table' AND name = ?", copy)):
        return []
    rows = raw.rows(f"SELECT name, tbl_name, sql FROM {master} WHERE type = 'trigger' AND sql LIKE '%/* {LABEL} %'")
    # Any that has the name anywhere: to carry one too many does no harm.
    carried = [row for row in rows if table.name.lower() in f"{row[1]} {row[2]}".lower()]
    connection.info.setdefault(_CARRIED, {})[schema, copy] = carried
    prefix = f"{quoted(dialect, schema)}." if schema else ""
    return [f"DROP TRIGGER {prefix}{quoted(dialect, name)}" for name, _, _ in carried]


def put_back(connection: Connection, dbapi_connection: Any, renaming: Any) -> None:
    """Create again what was carried, when the copy has the table's name; not what names a column that is gone."""
    key: _Key = (getattr(renaming, "schema", None), str(getattr(renaming, "table_name", "")))
    carried = connection.info.get(_CARRIED, {}).pop(key, None)
    if not carried or not hasattr(renaming, "new_table_name"):
        return
    schema, _ = key
    prefix = f"{quoted(connection.dialect, schema)}." if schema else ""
    raw, lost = RawConnection(dbapi_connection), set()
    for name, table, sql in carried:
        for statement in (
            sql.replace("CREATE TRIGGER ", f"CREATE TRIGGER {prefix}", 1),
            _probe(raw, prefix, table, sql),
        ):
            try:
                raw.rows(statement)
            except Exception as error:  # of whichever driver
                if "no such column" not in str(error):
                    raise
                raw.rows(f"DROP TRIGGER {prefix}{quoted(connection.dialect, name)}")
                lost.add((table, parse_description(capture_description(sql) or "")[0]))
    for table, trigger in sorted(lost):
        logger.warning(
            "%s, the outbox trigger of %s, names a column that is gone and is dropped; op.create_outbox_trigger() "
            "creates it anew, and autogenerate writes it",
            trigger,
            table,
        )


def _probe(raw: RawConnection, prefix: str, table: str, sql: str) -> str:
    """Return a statement that has SQLite compile a trigger, which CREATE TRIGGER does not, and does nothing."""
    found = _EVENT.search(sql)
    assert found is not None
    name = f'{prefix}"{table}"'
    match found.group(1):
        case "INSERT":
            return f"EXPLAIN INSERT INTO {name} DEFAULT VALUES"
        case "DELETE":
            return f"EXPLAIN DELETE FROM {name}"
    # Without computed columns, which cannot be set.
    columns = raw.rows("SELECT name FROM pragma_table_info(?, ?)", table, prefix.strip('."') or "main")
    column = next(iter(columns))[0]
    return f'EXPLAIN UPDATE {name} SET "{column}" = "{column}"'
