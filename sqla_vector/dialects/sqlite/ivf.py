"""The lists of an index on SQLite: what they are like, and training them anew."""

from __future__ import annotations

import logging
from copy import copy
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Index
from sqlalchemy.engine import Connection

from sqla_vector.dialects.migration import quoted
from sqla_vector.dialects.settings import settings_of
from sqla_vector.dialects.sqlite.connection import RawConnection, begin
from sqla_vector.dialects.sqlite.differing import statements_differ, without_schema
from sqla_vector.dialects.sqlite.index import Vec0Index, vec0_index
from sqla_vector.dialects.sqlite.ivf_functions import UNTRAINED_ROWS
from sqla_vector.dialects.sqlite.reflection import reflect_vec0
from sqla_vector.dialects.sqlite.statements import Vec0Statements
from sqla_vector.exc import IndexNotUsable

__all__ = ["Lists", "advice_on", "lists_of", "note_created", "train"]

logger = logging.getLogger("sqla_vector.sqlite")

_GROWN: Final = 2
"""So many times as many rows as when they were trained make lists out of date."""


@dataclass(frozen=True)
class Lists:
    """The lists of an index."""

    name: str
    trained_rows: int
    """How many rows there were when they were trained."""
    rows: int
    """How many rows there are in them."""
    sizes: tuple[int, ...]
    """How many rows each has; an empty one 0."""

    @property
    def count(self) -> int:
        """How many lists there are."""
        return len(self.sizes)

    @property
    def imbalance(self) -> float:
        """The rows that a search in one list reads, over those if all lists were of one size; 1 is even.

        A vector is looked for where many are: the mean of the squares over the square of the mean.
        """
        if not self.rows:
            return 1.0
        return len(self.sizes) * sum(size * size for size in self.sizes) / self.rows**2

    @property
    def advice(self) -> str | None:
        """Why to train them, or None."""
        if self.rows < UNTRAINED_ROWS:
            return None
        if self.count == 1:
            return (
                f"{self.name} has one list, so that each search reads all {self.rows:,} rows: train it, by "
                "sqla_vector.tuning.optimize()"
            )
        if self.rows > _GROWN * self.trained_rows:
            return (
                f"{self.name} was trained from {self.trained_rows:,} rows and has {self.rows:,}: train it anew, by "
                "sqla_vector.tuning.optimize()"
            )
        return None


def advice_on(connection: Connection, name: str) -> str | None:
    """Return why to train the lists of an index that is known by its name alone, or None."""
    for schema, found in sorted(settings_of(connection.dialect).list_tables, key=str):
        if found == name and (advice := _lists(connection, schema or "main", name).advice) is not None:
            return advice
    return None


def _usable(connection: Connection, index: Index) -> Vec0Index:
    found = vec0_index(index)
    # The connection, not the dialect, knows the schema under schema_translate_map.
    schema = None if found is None else connection.schema_for_object(found.table)
    place = (None if schema == "main" else schema, str(index.name))
    if found is None or place not in settings_of(connection.dialect).list_tables:
        raise IndexNotUsable(
            f'{index.name} is no index in lists in this database; create it with method="ivfflat" '
            "(index.create(), or a migration)"
        )
    return found


def lists_of(connection: Connection, index: Index) -> Lists:
    """Return what the lists of an index are like.

    Raises:
        IndexNotUsable: the database has no such index in lists.
    """
    vec0 = _usable(connection, index)
    return _lists(connection, connection.schema_for_object(vec0.table) or "main", vec0.name)


def _lists(connection: Connection, schema: str, name: str) -> Lists:
    def named(suffix: str) -> str:
        return quoted(connection.dialect, schema, f"{name}{suffix}")

    trained, count = connection.exec_driver_sql(f"SELECT rows, lists FROM {named('_centroids')}").one()
    sizes = [0] * count
    counted = connection.exec_driver_sql(
        f"SELECT c.partition00, count(*) FROM {named('_chunks')} AS c "
        f"JOIN {named('_rowids')} AS r ON r.chunk_id = c.chunk_id GROUP BY 1"
    )
    for number, size in counted:
        sizes[number] = size
    return Lists(name, trained, sum(sizes), tuple(sizes))


def note_created(connection: Connection, vec0: Vec0Index) -> None:
    """Say in the log what the lists of a new index are like."""
    schema = connection.schema_for_object(vec0.table) or "main"
    table = quoted(connection.dialect, schema, vec0.centroids_name)
    raw = RawConnection(connection.connection.dbapi_connection)
    ((rows, count),) = raw.rows(f"SELECT rows, lists FROM {table}")
    _log(vec0.name, rows, count)


def _log(name: str, rows: int, count: int) -> None:
    if rows:
        logger.info("%s has %s lists, trained from %s rows", name, f"{count:,}", f"{rows:,}")
    else:
        logger.info(
            "%s begins as one list, since there are no rows: train it when there are some thousand, by "
            "sqla_vector.tuning.optimize()",
            name,
        )


def train(connection: Connection, index: Index) -> Lists:
    """Train the lists of an index from the rows that are there, and store all rows in them.

    It is part of the caller's transaction, which keeps others from writing meanwhile; they read the old lists until
    it is committed.

    Raises:
        IndexNotUsable: the database has no such index in lists, or another one than is declared.
    """
    vec0 = _usable(connection, index)
    begin(connection, to_write=True)
    _check_is_declared(connection, vec0)
    preparer = copy(connection.dialect.identifier_preparer)
    preparer.schema_for_object = connection.schema_for_object  # type: ignore[assignment]
    statements = Vec0Statements(vec0, preparer).retrain()
    with connection.begin_nested():
        for statement in statements:
            connection.exec_driver_sql(statement)
    found = lists_of(connection, index)
    _log(found.name, found.trained_rows, found.count)
    return found


def _check_is_declared(connection: Connection, vec0: Vec0Index) -> None:
    """Refuse an index that was made from another declaration: the triggers stay, and would write as that one says."""
    there = reflect_vec0(connection, connection.schema_for_object(vec0.table))
    found = next((index for index in there if index.name == vec0.name), None)
    declared = Vec0Statements(vec0, without_schema(connection.dialect.identifier_preparer)).create()
    if found is None or statements_differ(found.statements, declared) is not None:
        raise IndexNotUsable(
            f"{vec0.name} in the database differs from its declaration, so it is not trained; migrate first, or drop "
            "and create it"
        )
