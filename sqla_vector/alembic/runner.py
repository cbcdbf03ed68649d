"""How operations run their statements, or write them into a script."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from alembic.ddl.impl import DefaultImpl
from alembic.operations import Operations
from sqlalchemy.engine import Connection, Dialect
from sqlalchemy.sql.expression import Executable

from sqla_vector.dialects.migration import MigrationSupport, verbatim
from sqla_vector.engine import attach_connection
from sqla_vector.exc import MigrationError
from sqla_vector.types import support_of

__all__ = ["OperationsRunner"]


class OperationsRunner:
    """Implements :class:`sqla_vector.dialects.migration.Runner` over Alembic's operations."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        if self.connection is not None:
            # An env.py whose engine has no plugin: reflection would not know the types.
            attach_connection(self.connection)

    @property
    def dialect(self) -> Dialect:
        return self._impl.dialect

    @property
    def _impl(self) -> DefaultImpl:
        impl = self._operations.impl
        assert isinstance(impl, DefaultImpl)  # another one only within a batch, which has no such operations
        return impl

    @property
    def support(self) -> MigrationSupport:
        """What the dialect module provides."""
        support: MigrationSupport = support_of(self.dialect).migration()
        return support

    @property
    def connection(self) -> Connection | None:
        # Not kept: within an autocommit block Alembic has another one.
        impl = self._impl
        return None if impl.as_sql else impl.connection

    def execute(self, statement: Executable | str) -> None:
        impl, connection = self._impl, self.connection
        if connection is None:
            impl.static_output(_written(statement, impl.dialect) + impl.command_terminator)
        elif isinstance(statement, str):
            connection.execute(verbatim(statement))
        else:
            connection.execute(statement)

    @contextmanager
    def autocommit(self) -> Iterator[None]:
        context = self._operations.migration_context
        if self.connection is not None and context._in_external_transaction:
            raise MigrationError(
                "this operation commits by itself, which the transaction around this migration does not allow; "
                "let Alembic begin the transaction, with context.begin_transaction()"
            )
        with context.autocommit_block():
            yield

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self.execute("BEGIN")
        try:
            yield
        except BaseException:
            self.execute("ROLLBACK")
            raise
        self.execute("COMMIT")

    def rebuild_table(self, table: str, schema: str | None) -> AbstractContextManager[Any]:
        return self._operations.batch_alter_table(table, schema=schema, recreate="always")


def _written(statement: Any, dialect: Dialect) -> str:
    """Return a statement as a script has it."""
    if isinstance(statement, str):
        return statement
    compiled = str(statement.compile(dialect=dialect)).strip()
    # Compiled for a driver that takes parameters by %, which a script does not.
    return compiled.replace("%%", "%") if dialect.identifier_preparer._double_percents else compiled
