"""What a dialect module provides for migrations, and what it is given."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from sqlalchemy import Column, Index, MetaData, Table, TextClause, text
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.sql.expression import Executable
from sqlalchemy.types import TypeEngine

from sqla_vector.exc import InvalidIdentifier, InvalidOption
from sqla_vector.schema import IndexSpec, VectorIndexKey, check_existing_name, check_identifier, check_whole_number
from sqla_vector.text_index import TextIndexKey, TextIndexSpec

__all__ = [
    "PLAIN",
    "BuildOptions",
    "MigrationSupport",
    "ReflectedIndex",
    "ReflectedText",
    "Runner",
    "beside",
    "kept",
    "named_index",
    "quoted",
    "verbatim",
    "watcher",
]


_MEMORY: Final = re.compile(r"[1-9][0-9]{0,8}(kB|MB|GB|TB)\Z")


class Runner(Protocol):
    """Runs statements on a connection, or writes them into a script."""

    @property
    def dialect(self) -> Dialect:
        """The dialect in use."""

    @property
    def connection(self) -> Connection | None:
        """The connection, None when a script is written."""

    def execute(self, statement: Executable | str) -> None:
        """Run a statement, or write it out; a string goes to the driver as it is."""

    def autocommit(self) -> AbstractContextManager[None]:
        """Commit what was done so far, and each statement of the block by itself."""

    def transaction(self) -> AbstractContextManager[None]:
        """Within :meth:`autocommit`: make one transaction of several statements."""

    def rebuild_table(self, table: str, schema: str | None) -> AbstractContextManager[Any]:
        """Return Alembic's batch operations on a table."""


@dataclass(frozen=True)
class BuildOptions:
    """How an index is built, which has no part in what is built."""

    concurrently: bool = False
    """PostgreSQL: without blocking writes, outside of any transaction."""
    if_not_exists: bool = False
    """Do nothing if the same index is there."""
    maintenance_work_mem: str | None = None
    """PostgreSQL: memory for this build, for example ``2GB``."""
    parallel_workers: int | None = None
    """PostgreSQL: processes for this build, beside the one that builds anyway."""

    def __post_init__(self) -> None:
        memory = self.maintenance_work_mem
        if memory is not None and not (isinstance(memory, str) and _MEMORY.match(memory)):
            raise InvalidOption(f"maintenance_work_mem must be a number and a unit, such as 512MB, got {memory!r}")
        if self.parallel_workers is not None:
            check_whole_number(self.parallel_workers, "parallel_workers", 0, 1024)


PLAIN: Final = BuildOptions()
"""A build without anything special."""


@dataclass(frozen=True)
class ReflectedIndex:
    """A vector index as found in the database."""

    name: str
    table_name: str
    column_name: str
    spec: IndexSpec
    """The declaration, as far as the database keeps it."""
    where: str | None
    """The predicate of a partial index, SQL."""
    is_valid: bool
    """Whether its build was finished."""
    definition: Any
    """What the dialect module compares with a declaration."""
    unknown: frozenset[str]
    """The fields of the declaration that this database does not keep."""
    is_shared: bool
    """Whether other packages declare indexes of this form too."""
    type_: TypeEngine[Any] | None = None
    """The column's type, where the table may not tell it."""

    def has_plain_names(self) -> bool:
        """Tell whether it could have been declared; one of other names is somebody else's."""
        try:
            check_identifier(self.name, "index name")
            check_existing_name(self.table_name, "table name")
            check_existing_name(self.column_name, "column name")
        except InvalidIdentifier:
            return False
        return True


@dataclass(frozen=True)
class ReflectedText:
    """A text index as found in the database; the weights are those that its labels usually have."""

    name: str
    table_name: str
    spec: TextIndexSpec
    definition: Any
    """What the dialect module compares with a declaration."""
    is_valid: bool = True
    """Whether its build was finished."""
    is_shared: bool = False
    """Whether others may declare such an index too: reflected, it is one like any other."""


class MigrationSupport(Protocol):
    """What a dialect module provides for migrations."""

    def lacks_extension(self, connection: Connection) -> bool | None:
        """Tell whether the extension has to be created before the first vector column; None if there is no such."""

    def create_extension(self, run: Runner, schema: str | None, minimum_version: str | None) -> None:
        """Create the extension if it is missing, and check its version."""

    def drop_extension(self, run: Runner, schema: str | None) -> None:
        """Drop the extension."""

    def reflect(self, connection: Connection, schema: str | None) -> list[ReflectedIndex]:
        """Return the vector indexes of a schema."""

    def reflect_texts(self, connection: Connection, schema: str | None) -> list[ReflectedText]:
        """Return the text indexes of a schema."""

    def text_difference(
        self, connection: Connection, index: Index, key: TextIndexKey, found: ReflectedText
    ) -> str | None:
        """Return in what a text index differs from its declaration, None if in nothing."""

    def is_wanted(self, connection: Connection, index: Index, key: VectorIndexKey) -> bool:
        """Tell whether this database builds a declared index at all."""

    def difference(
        self, connection: Connection, index: Index, key: VectorIndexKey, found: ReflectedIndex
    ) -> str | None:
        """Return in what an index differs from its declaration, None if in nothing."""

    def create_index(self, run: Runner, index: Index, build: BuildOptions) -> None:
        """Build an index."""

    def drop_index(
        self, run: Runner, name: str, table: str, schema: str | None, *, if_exists: bool, concurrently: bool
    ) -> None:
        """Drop an index."""

    def drop_text_index(
        self, run: Runner, name: str, table: str, schema: str | None, *, if_exists: bool, concurrently: bool
    ) -> None:
        """Drop a text index."""

    def rebuild_index(self, run: Runner, index: Index, build: BuildOptions) -> None:
        """Build an index anew; the old one serves until the new one is there."""

    def convert_column(self, run: Runner, column: Column[Any], existing: Column[Any]) -> None:
        """Change a column's type in place, converting what it holds."""

    def retype_empty_column(self, run: Runner, column: Column[Any]) -> None:
        """Change the type of a column that holds no vectors."""

    def lock(self, run: Runner, table: Table) -> None:
        """Keep others from writing until the transaction ends."""

    def prepare_shadow(self, run: Runner, column: Column[Any], shadow: Column[Any]) -> None:
        """Note which rows change while a shadow column is filled: their shadow becomes NULL again."""

    def forget_shadow(self, run: Runner, column: Column[Any]) -> None:
        """Undo :meth:`prepare_shadow`."""

    def row_version(self, column: Column[Any]) -> Any:
        """Return an expression that differs when somebody wrote a row's vector in this column."""

    def builds_before_swap(self) -> bool:
        """Tell whether the index of a shadow column can be built on it and renamed with it."""

    def rename_index(self, run: Runner, old: str, new: str, schema: str | None) -> None:
        """Rename an index."""

    def rename_columns(self, run: Runner, table: Table, names: dict[str, str], nullable: dict[str, bool]) -> None:
        """Rename columns of a table, in the order given, and set whether they take NULL (by their old names)."""

    def drop_column(self, run: Runner, column: Column[Any]) -> None:
        """Drop a column."""


def named_index(name: str, table: str, schema: str | None) -> Index:
    """Return an Index that has a name and a table and is good for nothing but to be dropped."""
    return Index(name, Table(table, MetaData(), Column("dropped"), schema=schema).c.dropped)


def beside(name: str) -> str:
    """Return the name of what is made beside an index or a column, to take its place."""
    return f"{name[:58]}__new"


def kept(name: str) -> str:
    """Return the name under which a column is kept after another took its place."""
    return f"{name[:58]}__old"


def watcher(column: Column[Any]) -> str:
    """Return the name of the trigger that notes changes for a shadow column; one name per table and column."""
    shadow = str.__str__(column.name)
    return f"{column.table.name[:28]}_{shadow.removesuffix('__new')[:28]}__new"


def verbatim(sql: str) -> TextClause:
    """Return SQL that is sent as it is: what looks like a parameter in it is none."""
    return text(sql.replace(":", "\\:"))


def quoted(dialect: Dialect, *names: str | None) -> str:
    """Return names quoted where they need it and joined by dots; None is left out."""
    return ".".join(_quoted(dialect, names))


def _quoted(dialect: Dialect, names: tuple[str | None, ...]) -> Iterator[str]:
    for name in names:
        if name is not None:
            # As plain str: a quoted_name may forbid quoting.
            yield dialect.identifier_preparer.quote(str.__str__(name))
