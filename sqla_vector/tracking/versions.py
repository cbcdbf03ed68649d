"""Several versions of a model in one program, and which of them a column's vectors are of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import (
    Column,
    Connection,
    Double,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    select,
)

from sqla_vector.embedding import EmbeddedColumn, Embedder, Model
from sqla_vector.embedding.embedder import model_of
from sqla_vector.embedding.fingerprint import MAX_LENGTH
from sqla_vector.exc import InvalidOption
from sqla_vector.schema import check_identifier
from sqla_vector.types import support_of

__all__ = [
    "CUT_OVER",
    "FILLING",
    "FINISHED",
    "ROLLED_BACK",
    "UpgradeRow",
    "Versions",
    "check_upgrades",
    "kept_rows",
    "read_upgrade",
    "upgrade_table",
]

FILLING: Final = "filling"
CUT_OVER: Final = "cut over"
ROLLED_BACK: Final = "rolled back"
FINISHED: Final = "finished"

_MARK: Final = "sqla_vector_upgrade"


def upgrade_table(metadata: MetaData, name: str = "vector_upgrade", schema: str | None = None) -> Table:
    """Declare the tables of changes of model among a project's own, to be created and migrated with them.

    There are two: one with a row for each column whose model was ever changed, and one, called ``<name>_row``, for
    the vectors that are not in the column: those of the new model before the cutover, those of the old one after it.

    Args:
        metadata: the project's.
        name: the first table's name.
        schema: their schema.

    Returns:
        The first table, which :class:`Versions` takes.

    Raises:
        InvalidIdentifier: a name cannot be one.
    """
    check_identifier(name, "table name")
    check_identifier(f"{name}_row", "table name")
    if schema is not None:
        check_identifier(schema, "schema")
    rows = Table(
        f"{name}_row",
        metadata,
        Column("entity", String(255), primary_key=True),
        Column("column_name", String(63), primary_key=True),
        Column("row_key", Text, primary_key=True),
        Column("fingerprint", String(MAX_LENGTH)),
        Column("vector", LargeBinary),
        Column("reason", Text),
        schema=schema,
    )
    return Table(
        name,
        metadata,
        Column("entity", String(255), primary_key=True),
        Column("column_name", String(63), primary_key=True),
        Column("old_model", String(MAX_LENGTH), nullable=False),
        Column("new_model", String(MAX_LENGTH), nullable=False),
        Column("state", String(16), nullable=False),
        Column("position", Text),
        Column("changed_at", Double, nullable=False),
        # PostgreSQL: FOR KEY SHARE, which flushes and workers take, waits for changes of what is in a unique
        # constraint, such as the state, and not for those of the position, which are frequent.
        UniqueConstraint("entity", "column_name", "state", name=f"uq_{name}_state"[:63]),
        schema=schema,
        info={_MARK: rows},
    )


def check_upgrades(table: object) -> Table:
    """Return a table made by :func:`upgrade_table`.

    Raises:
        InvalidOption: it is none.
    """
    if not isinstance(table, Table) or _MARK not in table.info:
        raise InvalidOption(f"upgrades= is the table that upgrade_table(Base.metadata) returns, got {table!r}")
    return table


def kept_rows(upgrades: Table) -> Table:
    """Return the table of the vectors that are not in the column."""
    rows = upgrades.info[_MARK]
    assert isinstance(rows, Table)
    return rows


@dataclass(frozen=True)
class UpgradeRow:
    """The last change of a column's model."""

    old: str
    new: str
    state: str
    position: str | None

    @property
    def active(self) -> str:
        """The model of the vectors in the column."""
        return self.new if self.state in (CUT_OVER, FINISHED) else self.old


def read_upgrade(
    connection: Connection, upgrades: Table, column: EmbeddedColumn, *, hold: bool = False
) -> UpgradeRow | None:
    """Return the last change of a column's model.

    Args:
        connection: in a transaction.
        upgrades: the table.
        column: the column.
        hold: keep the state from being changed until the transaction ends; several transactions may.
    """
    c = upgrades.c
    stmt = select(c.old_model, c.new_model, c.state, c.position).where(*is_of(upgrades, column))
    if hold:
        # On SQLite nobody else can write then; elsewhere it does nothing, and the locks follow.
        support_of(connection.dialect).begin(connection, to_write=True)
        stmt = stmt.with_for_update(read=True, key_share=True)
    row = connection.execute(stmt).first()
    return None if row is None else UpgradeRow(*row)


def is_of(table: Table, column: EmbeddedColumn) -> tuple[Any, Any]:
    """Return the criteria that a row of either table is a column's."""
    embedded = column.column
    return table.c.entity == embedded.table.fullname, table.c.column_name == embedded.name


class Versions:
    """An embedder in several versions: for columns whose model is being changed.

    ``embedders={"minilm": Versions(old, new, upgrades=upgrades)}``.  Which one a column has is read from the database
    in each transaction that needs to know.  A transaction that writes vectors keeps it from being changed until it
    ends, so that no program has to be restarted at the moment of the cutover.

    Args:
        *versions: embedders, the oldest first.  A :class:`~sqla_vector.embedding.Model` is enough where only workers
            embed.
        upgrades: the table made by :func:`upgrade_table`.

    Raises:
        InvalidOption: an argument is none, or two versions are the same.
    """

    def __init__(self, *versions: Embedder | Model, upgrades: Table) -> None:
        self.upgrades = check_upgrades(upgrades)
        self._by_name: dict[str, Embedder | Model] = {}
        for one in versions:
            name = str(one if isinstance(one, Model) else model_of(one))
            if name in self._by_name:
                raise InvalidOption(f"Versions() got {name} twice; another version of a model has another name")
            self._by_name[name] = one
        if not versions:
            raise InvalidOption("Versions() takes embedders, the oldest first")

    @property
    def names(self) -> tuple[str, ...]:
        """The models, ``name@version``."""
        return tuple(self._by_name)

    @property
    def all(self) -> tuple[Embedder | Model, ...]:
        """The embedders."""
        return tuple(self._by_name.values())

    def get(self, name: str) -> Embedder | Model | None:
        """Return the version with a name."""
        return self._by_name.get(name)

    def active(self, connection: Connection, column: EmbeddedColumn, *, hold: bool = False) -> Embedder | Model:
        """Return the version that a column's vectors are of.

        Args:
            connection: in a transaction.
            column: the column.
            hold: keep it from being changed until the transaction ends.

        Raises:
            InvalidOption: it is none of those that were given.
        """
        row = read_upgrade(connection, self.upgrades, column, hold=hold)
        name = self.names[0] if row is None else row.active
        found = self._by_name.get(name)
        if found is None:
            raise InvalidOption(
                f"{column} has vectors of {name}, and Versions() was given {', '.join(self.names)}; give that one, too"
            )
        return found


Connect = Callable[[EmbeddedColumn], Connection]
"""Returns the connection of a transaction that reads or writes a column."""
