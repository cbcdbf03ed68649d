"""Operations on the extension, as data."""

from __future__ import annotations

import re
from typing import Any

from alembic.operations import MigrateOperation, Operations

from sqla_vector.exc import InvalidOption
from sqla_vector.schema import check_identifier

__all__ = ["CreateVectorExtensionOp", "DropVectorExtensionOp"]


def _is_version(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)*", value, re.ASCII) is not None


@Operations.register_operation("create_vector_extension")
class CreateVectorExtensionOp(MigrateOperation):
    """Create the extension ``vector``."""

    def __init__(self, schema: str | None = None, minimum_version: str | None = None) -> None:
        self.schema = None if schema is None else check_identifier(schema, "schema")
        if minimum_version is not None and not _is_version(minimum_version):
            raise InvalidOption(f"minimum_version must be like 0.8.2, got {minimum_version!r}")
        self.minimum_version = minimum_version

    @classmethod
    def create_vector_extension(
        cls, operations: Operations, *, schema: str | None = None, minimum_version: str | None = None
    ) -> None:
        """Create pgvector's extension where it is missing; on SQLite there is nothing to create.

        Args:
            operations: given by Alembic.
            schema: the schema to create it in, which must exist; else the first of the search path.
            minimum_version: the oldest version of pgvector that will do, for example ``"0.8.2"``.

        Raises:
            ExtensionMissing: this role may not create it, the server does not have it, or it is too old.
            MigrationError: it is there, in another schema.
        """
        operations.invoke(cls(schema, minimum_version))

    def reverse(self) -> MigrateOperation:
        return DropVectorExtensionOp(self.schema)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("create_vector_extension", self.schema)


@Operations.register_operation("drop_vector_extension")
class DropVectorExtensionOp(MigrateOperation):
    """Drop the extension ``vector``."""

    def __init__(self, schema: str | None = None) -> None:
        self.schema = None if schema is None else check_identifier(schema, "schema")

    @classmethod
    def drop_vector_extension(cls, operations: Operations, *, schema: str | None = None) -> None:
        """Drop pgvector's extension; refused by the server while a column uses it.  On SQLite nothing is done.

        Args:
            operations: given by Alembic.
            schema: where it was created, so that the reverse creates it there.
        """
        operations.invoke(cls(schema))

    def reverse(self) -> MigrateOperation:
        return CreateVectorExtensionOp(self.schema)

    def to_diff_tuple(self) -> tuple[Any, ...]:
        return ("drop_vector_extension", self.schema)
