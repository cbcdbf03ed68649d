"""A vector index as a migration knows it: frozen, independent of the models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sqlalchemy import Column, Constraint, Index, MetaData, PrimaryKeyConstraint, Table, UniqueConstraint
from sqlalchemy.engine import Connection
from sqlalchemy.exc import NoSuchTableError
from sqlalchemy.schema import SchemaItem
from sqlalchemy.types import NullType, TypeEngine

from sqla_vector.dialects.migration import ReflectedIndex, verbatim
from sqla_vector.exc import InvalidOption, MigrationError
from sqla_vector.schema import IndexSpec, VectorIndexKey, check_existing_name, check_identifier, vector_index
from sqla_vector.types import VectorType

__all__ = ["IndexDefinition"]

_DEFAULTS: Final[Mapping[str, Any]] = {
    "metric": None,
    "method": "hnsw",
    "precision": "full",
    "include": (),
    "partition_by": (),
    "m": None,
    "ef_construction": None,
    "lists": None,
    "value_range": 1.0,
    "where": None,
}
"""The options of :func:`sqla_vector.vector_index`, and what they are when they are not written."""


@dataclass(frozen=True)
class IndexDefinition:
    """What :func:`sqla_vector.vector_index` declares, with the part of the table that it is made from."""

    name: str
    table_name: str
    column_name: str
    options: Mapping[str, Any]
    """Arguments of :func:`sqla_vector.vector_index`; ``where`` is SQL text."""
    schema: str | None = None
    elements: tuple[SchemaItem, ...] = field(default=(), compare=False)
    """The columns, the key and the unique constraints that the index depends on; empty if they are reflected."""

    def __post_init__(self) -> None:
        check_identifier(self.name, "index name")
        check_existing_name(self.table_name, "table name")
        check_existing_name(self.column_name, "column name")
        if self.schema is not None:
            check_existing_name(self.schema, "schema")
        unknown = sorted(self.options.keys() - _DEFAULTS.keys())
        if unknown:
            raise InvalidOption(f"{self.name}: unknown option {', '.join(unknown)}; there are {', '.join(_DEFAULTS)}")
        where = self.options.get("where")
        if not isinstance(where, str | None):
            raise InvalidOption(f"{self.name}: where takes a predicate as SQL text, got {where!r}")
        self._declare()  # refuses wrong options before anything is run

    def _declare(self) -> Index:
        options = dict(self.options)
        if isinstance(options.get("where"), str):
            options["where"] = verbatim(options["where"])
        return vector_index(self.name, self.column_name, **options)

    @property
    def is_automatic(self) -> bool:
        """Whether the number of rows decides if the index is built."""
        return self.options.get("method") == "auto"

    def bind(self, connection: Connection | None, type_: TypeEngine[Any] | None = None, column: str = "") -> Index:
        """Return the index on a table.

        Args:
            connection: where the table is reflected if the definition does not say what it is like.
            type_: the column's type, where another column is to be indexed than the one that is reflected.
            column: the name of that column.
        """
        name = column or self.column_name
        elements: Iterable[SchemaItem] = self.elements
        if not self.elements and connection is not None:
            elements = elements_of(reflect_table(connection, self.table_name, self.schema))
        elif not self.elements and type_ is None:
            raise MigrationError(
                f"{self.name}: a script is written without a database that could be asked for the type of "
                f"{self.table_name}.{self.column_name}; give table_elements="
            )
        copied = [copied_element(element) for element in elements if not _is_named(element, name)]
        found = next((e for e in elements if _is_named(e, name)), None)
        if type_ is not None:
            copied.append(Column(name, type_))
        elif found is not None:
            copied.append(copied_element(found))
        else:
            raise MigrationError(f"{self.name}: {self.table_name} has no column {name}")
        if not elements:
            # PostgreSQL needs nothing of the other columns but their names.
            copied += [Column(other, NullType()) for other in self.others]
        declared = replace(self, column_name=name)._declare()
        table = Table(self.table_name, MetaData(), *copied, declared, schema=self.schema)
        (index,) = (index for index in table.indexes if index.name == self.name)
        return index

    @property
    def others(self) -> list[str]:
        """The names of the other columns that the index copies."""
        return [*self.options.get("include", ()), *self.options.get("partition_by", ())]

    def written(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, in the order of vector_index()."""
        return {
            name: self.options[name] for name in _DEFAULTS if self.options.get(name, _DEFAULTS[name]) != _DEFAULTS[name]
        }

    @classmethod
    def of(cls, index: Index, key: VectorIndexKey, where: str | None) -> IndexDefinition:
        """Return the definition of a declared index; ``where`` is its predicate as SQL."""
        table = index.table
        assert index.name is not None
        assert table is not None
        spec = replace(
            key.spec,
            include=tuple(table.c[name].name for name in key.spec.include),
            partition_by=tuple(table.c[name].name for name in key.spec.partition_by),
        )
        others = (*spec.include, *spec.partition_by)
        return cls(
            name=str(index.name),
            table_name=table.name,
            column_name=key.column.name,
            options=_options(spec, where),
            schema=table.schema,
            elements=tuple(elements_of(table, (key.column.name, *others))),
        )

    @classmethod
    def of_reflected(cls, found: ReflectedIndex, table: Table, hint: IndexSpec | None) -> IndexDefinition:
        """Return the definition of an index in the database.

        Args:
            found: the index.
            table: the reflected table.
            hint: the declaration of an index of the same name, for what the database does not keep.
        """
        spec = found.spec if hint is None else _completed(found, table, hint)
        others = (*spec.include, *spec.partition_by)
        return cls(
            name=found.name,
            table_name=table.name,
            column_name=found.column_name,
            options=_options(spec, found.where),
            schema=table.schema,
            elements=tuple(_typed(elements_of(table, (found.column_name, *others)), found)),
        )


def _completed(found: ReflectedIndex, table: Table, hint: IndexSpec) -> IndexSpec:
    """Return the declaration of an index in the database, with what the database does not keep from another one."""
    unknown = found.unknown
    if hint.precision != "binary" or found.spec.precision != "binary" or _is_known(found.spec, hint):
        unknown -= {"metric_name"}
    if "method" in unknown and hint.method == "ivfflat":
        unknown -= {"method", "options"}  # SQLite keeps no other method, but this one
    spec = replace(found.spec, **{name: getattr(hint, name) for name in unknown})
    spec = replace(
        spec,
        # An index that is there was built, whatever the number of rows.
        method=found.spec.method if spec.method == "auto" else spec.method,
        include=tuple(name for name in spec.include if name in table.c),
        partition_by=tuple(name for name in spec.partition_by if name in table.c),
    )
    type_ = table.c[found.column_name].type
    has_ivfflat = spec.precision == "binary" or getattr(type_, "kind", None) in spec.metric.ivfflat_kinds
    if spec.method == "ivfflat" and not has_ivfflat:
        return replace(spec, method=found.spec.method, options=found.spec.options)
    return spec


def _is_known(found: IndexSpec, hint: IndexSpec) -> bool:
    """Tell whether a metric that was found is another than the hint's for all that is known."""
    return hint.metric.zero_is_undefined and not found.metric.zero_is_undefined


def _options(spec: IndexSpec, where: str | None) -> dict[str, Any]:
    return {
        "metric": spec.metric_name,
        "method": spec.method,
        "precision": spec.precision,
        "include": spec.include,
        "partition_by": spec.partition_by,
        "value_range": spec.value_range,
        "where": where,
        **dict(spec.options),
    }


def reflect_table(connection: Connection, name: str, schema: str | None) -> Table:
    """Return a table as it is in the database."""
    try:
        return Table(name, MetaData(), schema=schema, autoload_with=connection, resolve_fks=False)
    except NoSuchTableError as error:
        raise MigrationError(f"there is no table {'.'.join(filter(None, (schema, name)))}") from error


def elements_of(table: Table, names: Sequence[str] | None = None) -> list[SchemaItem]:
    """Return the columns of a table that an index depends on, with the key and the unique constraints.

    Args:
        table: the table.
        names: the columns that the index names; None for all of the table.
    """
    key = [column.name for column in table.primary_key.columns]
    unique = [[c.name for c in con.columns] for con in table.constraints if isinstance(con, UniqueConstraint)]
    unique += [[c.name for c in index.columns] for index in table.indexes if index.unique and len(index.columns)]
    groups = sorted({tuple(sorted(group)) for group in unique if group})
    wanted = {*key, *(name for group in groups for name in group), *(names or [c.name for c in table.columns])}
    columns = [
        Column(column.name, column.type, nullable=column.nullable) for column in table.columns if column.name in wanted
    ]
    constraints: list[Constraint] = [PrimaryKeyConstraint(*key)] if key else []
    return [*columns, *constraints, *(UniqueConstraint(*group) for group in groups)]


def _typed(elements: list[SchemaItem], found: ReflectedIndex) -> Iterator[SchemaItem]:
    """Yield a table's elements, the indexed column with the type that the index knows where the table does not."""
    for element in elements:
        if _is_named(element, found.column_name) and found.type_ is not None:
            assert isinstance(element, Column)
            is_vector = isinstance(element.type, VectorType)
            yield element if is_vector else Column(element.name, found.type_, nullable=element.nullable)
        else:
            yield element


def _is_named(element: SchemaItem, name: str) -> bool:
    return isinstance(element, Column) and element.name == name


def copied_element(element: Any) -> Any:
    """Return a copy, since an element can belong to one table only."""
    if isinstance(element, Column):
        return Column(element.name, element.type, nullable=element.nullable, primary_key=element.primary_key)
    if isinstance(element, (PrimaryKeyConstraint, UniqueConstraint)):
        names = [str(getattr(c, "name", c)) for c in element._pending_colargs]
        return type(element)(*names)
    raise InvalidOption(f"table_elements takes columns, a PrimaryKeyConstraint and UniqueConstraints, not {element!r}")
