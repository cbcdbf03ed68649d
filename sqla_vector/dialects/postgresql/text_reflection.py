"""The text indexes of a database, and how they differ from their declarations."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import text
from sqlalchemy.engine import Connection

from sqla_vector.dialects.migration import ReflectedText
from sqla_vector.dialects.postgresql.text import GAP, SEPARATOR
from sqla_vector.text_index import TextIndexKey, TextIndexSpec, weights_of_labels

__all__ = ["reflect_texts", "text_difference"]

_FIND: Final = text(
    "SELECT c.relname AS name, t.relname AS table_name, i.indisvalid AS is_valid,"
    " pg_catalog.pg_get_indexdef(i.indexrelid, 1, false) AS expression FROM pg_catalog.pg_index i"
    " JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid"
    " JOIN pg_catalog.pg_am am ON am.oid = c.relam AND am.amname = 'gin'"
    " JOIN pg_catalog.pg_class t ON t.oid = i.indrelid"
    " JOIN pg_catalog.pg_namespace n ON n.oid = t.relnamespace"
    " WHERE n.nspname = coalesce(CAST(:schema AS TEXT), pg_catalog.current_schema())"
    " AND i.indnatts = 1 AND i.indexprs IS NOT NULL AND i.indpred IS NULL"
    " ORDER BY c.relname"
)

_PART: Final = re.compile(
    r"(?P<weighted>setweight\()?to_tsvector\('(?P<language>[^']+)'::regconfig, "
    r"COALESCE\(regexp_replace\(\(?(?P<column>\"(?:[^\"]|\"\")+\"|\w+)(?:\)?::text)?, "
    r"'(?P<separator>[^']*)'::text, ' '::text, 'g'::text\), ''::text\)\)"
    r"(?(weighted), '(?P<label>[A-D])'::\"char\"\))"
)
"""What pg_get_indexdef() shows for one column."""
_BETWEEN: Final = GAP.replace("'|:100'", "'''|'':100'")
_NEITHER: Final = re.compile(r"[()\s]")


@dataclass(frozen=True)
class Part:
    """How one column is indexed."""

    column: str
    language: str
    label: str
    separator: str


def reflect_texts(connection: Connection, schema: str | None) -> list[ReflectedText]:
    """Return the text indexes of a schema that could have been declared, by one query."""
    return [
        ReflectedText(row.name, row.table_name, _spec(parts), parts, row.is_valid, is_shared=True)
        for row in connection.execute(_FIND, {"schema": schema})
        if (parts := _parts(row.expression))
    ]


def _parts(expression: str) -> tuple[Part, ...]:
    """Return how columns are indexed by an expression, nothing if it is another one than ours."""
    found = list(_PART.finditer(expression))
    between = _NEITHER.sub("", _PART.sub("@", expression))
    if not found or between != f"||{_BETWEEN}||".join("@" * len(found)):
        return ()
    return tuple(
        Part(_unquoted(match["column"]), match["language"], match["label"] or "A", match["separator"])
        for match in found
    )


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _spec(parts: Sequence[Part]) -> TextIndexSpec:
    columns, labels = tuple(part.column for part in parts), [part.label for part in parts]
    return TextIndexSpec(columns, weights_of_labels(labels), parts[0].language)


def text_difference(key: TextIndexKey, found: ReflectedText) -> str | None:
    """Return in what an index differs from its declaration, None if in nothing."""
    if not found.is_valid:
        return "its build was interrupted"
    parts: tuple[Part, ...] = found.definition
    language, names = parts[0].language, [column.name for column in key.columns]
    for what, old, new in (
        ("columns", [part.column for part in parts], names),
        ("order of weights", [part.label for part in parts], list(key.spec.labels)),
    ):
        if old != new:
            return f"{what} {', '.join(old)} to {', '.join(new)}"
    if not _is_same_language(language, key.spec.language) or len({part.language for part in parts}) > 1:
        return f"language {language} to {key.spec.language}"
    if {part.separator for part in parts} != {SEPARATOR}:
        return "what separates words"
    return None


def _is_same_language(found: str, declared: str) -> bool:
    # A configuration is shown with its schema unless that is on the search path.
    if "." in found and "." in declared:
        return found == declared
    return found.rpartition(".")[2] == declared.rpartition(".")[2]
