"""A text index as a migration knows it: frozen, independent of the models."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Column, Index, MetaData, Table
from sqlalchemy.engine import Connection
from sqlalchemy.schema import SchemaItem

from sqla_vector.alembic.definition import copied_element, elements_of, reflect_table
from sqla_vector.dialects.migration import ReflectedText
from sqla_vector.exc import MigrationError
from sqla_vector.schema import check_existing_name, check_identifier
from sqla_vector.text_index import TextIndexKey, TextIndexSpec, text_index

__all__ = ["TextIndexDefinition"]


@dataclass(frozen=True)
class TextIndexDefinition:
    """What :func:`sqla_vector.text_index` declares, with the part of the table that it is made from."""

    name: str
    table_name: str
    columns: tuple[str, ...]
    weights: tuple[float, ...] | None = None
    language: str = "simple"
    schema: str | None = None
    elements: tuple[SchemaItem, ...] = field(default=(), compare=False)
    """The columns, the key and the unique constraints that the index depends on; empty if they are reflected."""

    def __post_init__(self) -> None:
        check_identifier(self.name, "index name")
        check_existing_name(self.table_name, "table name")
        for column in self.columns:
            check_existing_name(column, "column name")
        if self.schema is not None:
            check_existing_name(self.schema, "schema")
        self._declare()  # refuses wrong options before anything is run

    def _declare(self) -> Index:
        return text_index(self.name, *self.columns, weights=self.weights, language=self.language)

    def bind(self, connection: Connection | None) -> Index:
        """Return the index on a table.

        Args:
            connection: where the table is reflected if the definition does not say what it is like.
        """
        elements: Iterable[SchemaItem] = self.elements
        if not self.elements:
            if connection is None:
                raise MigrationError(
                    f"{self.name}: a script is written without a database that could be asked for the columns of "
                    f"{self.table_name}; give table_elements="
                )
            elements = elements_of(reflect_table(connection, self.table_name, self.schema))
        there = {element.name for element in elements if isinstance(element, Column)}
        for column in self.columns:
            if column not in there:
                raise MigrationError(f"{self.name}: {self.table_name} has no column {column}")
        items = [copied_element(element) for element in elements]
        table = Table(self.table_name, MetaData(), *items, self._declare(), schema=self.schema)
        (index,) = (index for index in table.indexes if index.name == self.name)
        return index

    def written(self) -> dict[str, Any]:
        """Return the options that differ from their defaults."""
        return {
            **({} if self.weights is None else {"weights": list(self.weights)}),
            **({} if self.language == "simple" else {"language": self.language}),
        }

    @classmethod
    def of(cls, index: Index, key: TextIndexKey) -> TextIndexDefinition:
        """Return the definition of a declared index."""
        assert index.table is not None
        columns = tuple(column.name for column in key.columns)
        return cls._of(str(index.name), index.table, columns, key.spec.weights, key.spec.language)

    @classmethod
    def of_reflected(cls, found: ReflectedText, table: Table, hint: TextIndexSpec | None) -> TextIndexDefinition:
        """Return the definition of an index in the database.

        Args:
            found: the index.
            table: the reflected table.
            hint: the declaration of an index of the same name: the database keeps the order of its weights alone.
        """
        spec = found.spec
        same = hint is not None and hint.labels == spec.labels
        weights = hint.weights if hint is not None and same else spec.weights
        return cls._of(found.name, table, spec.columns, weights, spec.language)

    @classmethod
    def _of(
        cls, name: str, table: Table, columns: tuple[str, ...], weights: tuple[float, ...], language: str
    ) -> TextIndexDefinition:
        return cls(
            name=name,
            table_name=table.name,
            columns=columns,
            weights=None if set(weights) == {1.0} else weights,
            language=language,
            schema=table.schema,
            elements=tuple(elements_of(table, columns)),
        )
