"""Vectors beside the column: those of the new model before a cutover, those of the old one after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, delete, func, insert, select

from sqla_vector.embedding import EmbeddedColumn
from sqla_vector.tracking.related import keys_in
from sqla_vector.tracking.targets import Key, Target
from sqla_vector.tracking.versions import is_of, kept_rows
from sqla_vector.types import VectorType, support_of

__all__ = ["Aside", "Shelf"]


@dataclass(frozen=True, slots=True)
class Aside:
    """A row's vector that is not in the column."""

    fingerprint: str | None
    """The one of the vector, or of the text that could not be embedded."""
    vector: Any = None
    reason: str | None = None
    """Why there is no vector."""


@dataclass(frozen=True)
class Shelf:
    """The vectors of one column that are not in it.

    Args:
        upgrades: the table made by :func:`~sqla_vector.tracking.versions.upgrade_table`.
        target: the class.
        column: one of its columns.
    """

    upgrades: Table
    target: Target
    column: EmbeddedColumn

    def read(self, connection: Connection, keys: Sequence[Key], *, vectors: bool = False) -> dict[Key, Aside]:
        """Return what there is for some rows; the vectors themselves only if asked for."""
        rows = kept_rows(self.upgrades)
        c = rows.c
        by_name = {self.target.encode(key): key for key in keys}
        named = support_of(connection.dialect).members(c.row_key, list(by_name))
        columns = [c.row_key, c.fingerprint, c.reason, *([c.vector] if vectors else [])]
        stmt = select(*columns).where(*is_of(rows, self.column), named)
        found: dict[Key, Aside] = {}
        for name, fingerprint, reason, *blob in connection.execute(stmt):
            vector = self._codec.from_blob(blob[0]) if blob and blob[0] is not None else None
            found[by_name[name]] = Aside(fingerprint, vector, reason)
        return found

    def write(self, connection: Connection, rows: Mapping[Key, Aside | None]) -> None:
        """Put rows in the place of what there was for them; None takes it away."""
        if not rows:
            return
        table = kept_rows(self.upgrades)
        by_name = {self.target.encode(key): aside for key, aside in rows.items()}
        named = support_of(connection.dialect).members(table.c.row_key, list(by_name))
        connection.execute(delete(table).where(*is_of(table, self.column), named))
        where, codec = str(self.column), self._codec
        fixed = {"entity": self.column.column.table.fullname, "column_name": self.column.column.name}
        values = [
            {
                **fixed,
                "row_key": name,
                "fingerprint": aside.fingerprint,
                "vector": None if aside.vector is None else codec.to_blob(codec.coerce(aside.vector, where)),
                "reason": aside.reason,
            }
            for name, aside in by_name.items()
            if aside is not None
        ]
        if values:
            connection.execute(insert(table), values)

    def clear(self, connection: Connection) -> None:
        """Take everything away."""
        table = kept_rows(self.upgrades)
        connection.execute(delete(table).where(*is_of(table, self.column)))

    def count(self, connection: Connection) -> int:
        """Return how many vectors there are."""
        table = kept_rows(self.upgrades)
        stmt = select(func.count()).select_from(table).where(*is_of(table, self.column), table.c.vector.is_not(None))
        return int(connection.scalar(stmt) or 0)

    def in_column(self, connection: Connection, keys: Sequence[Key]) -> dict[Key, Any]:
        """Return the vectors that are in the column."""
        if not keys:
            return {}
        columns = self.target.key_columns
        stmt = select(*columns, self.column.column).where(keys_in(connection, columns, keys))
        return {tuple(row[:-1]): row[-1] for row in connection.execute(stmt)}

    @property
    def _codec(self) -> Any:
        type_ = self.column.column.type
        assert isinstance(type_, VectorType)
        return type_.codec
