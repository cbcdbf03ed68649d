"""What tune() found, in the comment of the index: it stays with the index through REINDEX, dumps and renames."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import Index, event, text
from sqlalchemy.engine import Connection

from sqla_vector.dialects.migration import quoted, verbatim
from sqla_vector.dialects.settings import settings_of
from sqla_vector.dialects.tuned import TunedIndex, note_tuned

__all__ = ["FIND", "carry_comment", "load", "parse", "remember", "remembered"]

_BEGIN: Final = "[sqla_vector {"

FIND: Final = (
    "(SELECT pg_catalog.json_agg(pg_catalog.json_build_array("
    "tn.nspname, tc.relname, pg_catalog.pg_table_is_visible(tc.oid), td.description))::text"
    " FROM pg_catalog.pg_class tc JOIN pg_catalog.pg_am ta ON ta.oid = tc.relam AND ta.amname IN ('hnsw', 'ivfflat')"
    " JOIN pg_catalog.pg_namespace tn ON tn.oid = tc.relnamespace"
    " JOIN pg_catalog.pg_description td ON td.objoid = tc.oid AND td.objsubid = 0"
    " AND td.classoid = 'pg_catalog.pg_class'::pg_catalog.regclass"
    f" AND pg_catalog.strpos(td.description, '{_BEGIN}') > 0)"
)
"""A subquery that gives all comments of vector indexes in which something is remembered, as JSON."""


def parse(found: str | None) -> dict[tuple[str | None, str], TunedIndex]:
    """Return what the result of :data:`FIND` says, by schema and name."""
    rows: Iterable[Any] = json.loads(found) if found else ()
    known: dict[tuple[str | None, str], TunedIndex] = {}
    for schema, name, is_visible, comment in rows:
        _, tuned = _split(comment)
        if tuned is not None:
            known[schema, name] = tuned
            if is_visible:
                known[None, name] = tuned
    return known


def load(connection: Connection) -> None:
    """Learn what is remembered in a database."""
    found = connection.execute(text(f"SELECT {FIND}")).scalar_one()
    note_tuned(settings_of(connection.dialect), parse(found))
    # Without the plugin nobody has told the settings of the engine.
    connection.engine.clear_compiled_cache()


def remembered(connection: Connection, index: Index) -> TunedIndex | None:
    """Return what is remembered of an index."""
    return _split(_comment(connection, index))[1]


def remember(connection: Connection, index: Index, tuned: TunedIndex | None) -> None:
    """Write into the comment of an index, beside what people wrote there."""
    assert index.table is not None
    said, _ = _split(_comment(connection, index))
    parts = [said] if said else []
    if tuned is not None:
        parts.append(f"[sqla_vector {tuned.to_json()}]")
    written = " ".join(parts).replace("\\", "\\\\").replace("'", "''")
    place = quoted(connection.dialect, connection.schema_for_object(index.table), str(index.name))
    _take_back_with(connection)
    connection.execute(verbatim(f"COMMENT ON INDEX {place} IS " + (f"E'{written}'" if parts else "NULL")))


def _take_back_with(connection: Connection) -> None:
    """Have the engine know what it knew before, if the transaction is rolled back."""
    settings = settings_of(connection.dialect)
    before, is_open = dict(settings.tuned), [True]

    def committed(_: Connection) -> None:
        is_open.clear()

    def rolled_back(_: Connection) -> None:
        if is_open:
            is_open.clear()
            note_tuned(settings, before)
            connection.engine.clear_compiled_cache()

    event.listen(connection, "commit", committed)
    event.listen(connection, "rollback", rolled_back)


def carry_comment(dialect: Any, schema: str | None, old: str, new: str) -> str:
    """Return the statement that gives an index the comment of another one, if that is there and has one."""
    before, after = quoted(dialect, schema, old), quoted(dialect, schema, new)
    return (
        "DO $sqla_vector$ DECLARE said text := pg_catalog.obj_description("
        f"pg_catalog.to_regclass({_literal(before)}), 'pg_class'); "
        "BEGIN IF said IS NOT NULL THEN "
        f"EXECUTE pg_catalog.concat({_literal(f'COMMENT ON INDEX {after} IS ')}, pg_catalog.quote_literal(said)); "
        "END IF; END $sqla_vector$"
    )


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _comment(connection: Connection, index: Index) -> str | None:
    assert index.table is not None
    place = quoted(connection.dialect, connection.schema_for_object(index.table), str(index.name))
    found: str | None = connection.scalar(
        text("SELECT pg_catalog.obj_description(pg_catalog.to_regclass(:place), 'pg_class')"), {"place": place}
    )
    return found


def _split(comment: str | None) -> tuple[str, TunedIndex | None]:
    """Return what people wrote into a comment, and what this package did."""
    said, begin, rest = (comment or "").rpartition(_BEGIN)
    if not begin:
        return comment or "", None
    written, end, after = rest.rpartition("}]")
    tuned = TunedIndex.from_json("{" + written + "}") if end else None
    if tuned is None:
        return comment or "", None
    return " ".join(part for part in (said.strip(), after.strip()) if part), tuned
