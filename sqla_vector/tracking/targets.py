"""Which rows of which tables have vectors to be kept, and how a row is named in the outbox."""

from __future__ import annotations

import datetime
import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from sqlalchemy import Column, MetaData, Table, TypeDecorator, inspect
from sqlalchemy.orm import Mapper, configure_mappers, registry

from sqla_vector.embedding import EmbeddedColumn, Embedder, Model, embedded_columns
from sqla_vector.embedding.declaration import embedded_mappers
from sqla_vector.embedding.embedder import model_of
from sqla_vector.exc import InvalidDeclaration, InvalidOption
from sqla_vector.tracking.outbox import CHANNEL
from sqla_vector.tracking.versions import Connect, Versions
from sqla_vector.types import VectorType

__all__ = [
    "Embedders",
    "GivenEmbedders",
    "Key",
    "Models",
    "Target",
    "complete_mapper",
    "has_row_of",
    "target_of",
    "targets_of",
]

GivenEmbedders = Mapping[str, Embedder | Model | Versions]
"""The embedders of a program by the names that models call them."""

Key = tuple[Any, ...]
"""A primary key's values, in the order of the table's columns."""

Models = type[Any] | registry | Iterable[type[Any]]
"""A declarative base, a registry, or mapped classes."""

_DECODERS: Final[dict[type, Callable[[Any], Any]]] = {
    int: int,
    str: str,
    uuid.UUID: uuid.UUID,
    datetime.date: datetime.date.fromisoformat,
    datetime.datetime: datetime.datetime.fromisoformat,
}


@dataclass(frozen=True, eq=False)
class Target:
    """The embedded columns that a mapped class declares for one table."""

    mapper: Mapper[Any]
    """The topmost class that has them."""
    table: Table
    columns: tuple[EmbeddedColumn, ...]
    channel: str = CHANNEL
    """Whose entries name the rows."""
    outbox: Table | None = None
    """Where they are, if not in the one that ``track()`` was given."""

    @property
    def entity(self) -> str:
        """The table, as the outbox names it."""
        return self.table.fullname

    @cached_property
    def key_columns(self) -> tuple[Column[Any], ...]:
        """The primary key's columns; a table that declares none has the one that the mapping gives it."""
        mapped = (column for column in self.mapper.primary_key if isinstance(column, Column))
        return tuple(self.table.primary_key.columns) or tuple(c for c in mapped if c.table is self.table)

    @cached_property
    def key_names(self) -> tuple[str, ...]:
        """The attributes that hold the primary key."""
        return tuple(self.mapper.get_property_by_column(column).key for column in self.key_columns)

    @cached_property
    def has_parents(self) -> bool:
        """Whether a row has columns in tables that its class inherits from: a change there does not lock it here."""
        return len(self.mapper.tables) > 1

    @cached_property
    def key_attributes(self) -> tuple[Any, ...]:
        """The same as attributes of the class, for queries."""
        return tuple(getattr(self.mapper.class_, name) for name in self.key_names)

    def key_of(self, mapper: Mapper[Any], identity: Sequence[Any]) -> Key:
        """Return the key of an object's row; its identity may have the columns of another table, in their order."""
        columns = zip(mapper.primary_key, identity, strict=True)
        by_name = {mapper.get_property_by_column(column).key: value for column, value in columns}
        return tuple(by_name[name] for name in self.key_names)

    @cached_property
    def lean(self) -> Table:
        """The table's key, vectors and fingerprints alone, without what the model says of defaults."""
        written = {c.name: c for pair in self.columns for c in (pair.column, pair.fingerprint_column)}
        columns = {c.name: c for c in self.key_columns} | written
        # A Table, not table(): schema_translate_map leaves that one alone.
        copies = (Column(name, column.type) for name, column in columns.items())
        return Table(self.table.name, MetaData(), *copies, schema=self.table.schema)

    @cached_property
    def decoders(self) -> tuple[Callable[[Any], Any], ...]:
        """What makes the key's values of those in a row key.

        Raises:
            InvalidDeclaration: the key is of a type that cannot be written into an outbox.
        """
        return tuple(_decoder(column) for column in self.key_columns)

    @cached_property
    def _has_number(self) -> bool:
        return self.decoders == (int,)

    def encode(self, key: Sequence[Any]) -> str:
        """Return a key as the outbox has it."""
        if len(key) == 1 and type(key[0]) is int:
            return f"[{key[0]}]"
        plain = [_plain(column, value) for column, value in zip(self.key_columns, key, strict=True)]
        return json.dumps(plain, separators=(",", ":"), ensure_ascii=False)

    def decode(self, row_key: str) -> Key:
        """Return the key of an entry.

        Raises:
            ValueError: it is none of this table.
        """
        if self._has_number and row_key[1:-1].isdecimal() and row_key[0] == "[" and row_key[-1] == "]":
            return (int(row_key[1:-1]),)
        values = json.loads(row_key)
        if not isinstance(values, list) or len(values) != len(self.key_columns):
            raise ValueError(f"{row_key} is no key of {self.entity}")
        return tuple(decode(value) for decode, value in zip(self.decoders, values, strict=True))


def _plain(column: Column[Any], value: Any) -> Any:
    if isinstance(column.type, TypeDecorator) and not isinstance(value, (int, str, uuid.UUID, datetime.date)):
        value = column.type.process_bind_param(value, None)  # type: ignore[arg-type]
    if isinstance(value, uuid.UUID):
        return str(value)
    return value.isoformat() if isinstance(value, datetime.date) else value


def _decoder(column: Column[Any]) -> Callable[[Any], Any]:
    type_: Any = column.type
    inner = type_.impl_instance if isinstance(type_, TypeDecorator) else type_
    try:
        decode = _DECODERS.get(inner.python_type)
    except NotImplementedError:
        decode = None
    if decode is str and getattr(inner, "enums", None) is not None:
        decode = None
    if decode is None:
        raise InvalidDeclaration(
            f"{column.table.name}.{column.name}: keys of type {type_!r} cannot be written into an outbox; "
            "integers, strings, UUIDs, dates and datetimes can"
        )
    if isinstance(type_, TypeDecorator):
        return lambda value: type_.process_result_value(decode(value), None)  # type: ignore[arg-type]
    return decode


def targets_of(models: Models | None = None) -> tuple[Target, ...]:
    """Return the targets of models, of all that are mapped if None.

    Raises:
        InvalidDeclaration: two classes have a table of one name, or a table's key cannot be written down.
        InvalidOption: models are none.
    """
    declared: dict[tuple[Mapper[Any], Table], list[EmbeddedColumn]] = {}
    for mapper in sorted(_mappers(models), key=lambda m: (m.class_.__module__, m.class_.__qualname__)):
        inherited = {c.column for c in embedded_columns(mapper.inherits)} if mapper.inherits is not None else set()
        for column in embedded_columns(mapper):
            if column.column not in inherited and isinstance(column.column.table, Table):
                declared.setdefault((mapper, column.column.table), []).append(column)
    targets = tuple(Target(mapper, table, tuple(columns)) for (mapper, table), columns in declared.items())
    tables: dict[str, Table] = {}
    for target in targets:
        _ = target.decoders
        if tables.setdefault(target.entity, target.table) is not target.table:
            raise InvalidDeclaration(
                f"two models have a table {target.entity}; name those that are meant, such as models=Base"
            )
    return targets


def _mappers(models: Models | None) -> set[Mapper[Any]]:
    configure_mappers()
    if models is None:
        return set(embedded_mappers())
    if isinstance(models, registry):
        return {mapper for mapper in models.mappers if embedded_columns(mapper)}
    if isinstance(models, type):
        mapped = inspect(models, raiseerr=False)
        if isinstance(mapped, Mapper):
            return set(mapped.self_and_descendants)
        own = getattr(models, "registry", None)
        if isinstance(own, registry):
            below = {m for m in own.mappers if issubclass(m.class_, models)}
            return {mapper for mapper in below if embedded_columns(mapper)}
    elif isinstance(models, Iterable):
        listed = list(models)
        if listed and all(isinstance(model, type) for model in listed):
            return set().union(*(_mappers(model) for model in listed))
    raise InvalidOption(f"models= is a declarative base, a registry or mapped classes, got {models!r}")


def complete_mapper(class_: type[Any]) -> Mapper[Any]:
    """Return the mapper of a class, with all that its relationships add."""
    configure_mappers()
    found: Mapper[Any] = inspect(class_)
    return found


def has_row_of(mapper: Mapper[Any], other: Mapper[Any]) -> bool:
    """Tell whether an object of a class has a row in the table of another: the same, or one that it inherits from.

    With concrete inheritance it has none: ``Mapper.isa()`` is about the classes alone.
    """
    at: Mapper[Any] | None = mapper
    while at is not None and at is not other:
        at = None if at.concrete else at.inherits
    return at is not None


def target_of(attribute: Any, targets: Sequence[Target]) -> tuple[Target, EmbeddedColumn]:
    """Return the target and the embedded column of an attribute such as ``Article.embedding``.

    Raises:
        InvalidOption: it is no embedded column.
    """
    mapper, key = inspect(getattr(attribute, "parent", None), raiseerr=False), getattr(attribute, "key", None)
    if isinstance(mapper, Mapper):
        for target in targets:
            for column in target.columns:
                if column.key == key and has_row_of(mapper, target.mapper):
                    return target, column
    raise InvalidOption(
        f"expected an attribute that embedding_column() declares, such as Article.embedding; got {attribute!r}"
    )


class Embedders:
    """The embedders of a program by the names that models call them.

    Args:
        given: an embedder for each name; a :class:`Model` where a program only needs to know what rows should have,
            and leaves the embedding to workers; :class:`Versions` while a model is being changed.

    Raises:
        InvalidOption: an entry is none of them.
    """

    def __init__(self, given: GivenEmbedders) -> None:
        if not isinstance(given, dict) or not all(isinstance(name, str) and name for name in given):
            raise InvalidOption(f'embedders= is a dict from names to embedders, {{"minilm": embedder}}, got {given!r}')
        self._given = dict(given)
        self._versions = {name: one for name, one in given.items() if isinstance(one, Versions)}
        self._models = {
            name: one if isinstance(one, Model) else model_of(one)
            for name, one in given.items()
            if not isinstance(one, Versions)
        }

    @property
    def given(self) -> GivenEmbedders:
        """What was given."""
        return dict(self._given)

    def at(self, connect: Connect, *, hold: bool = False) -> Embedders:
        """Return the embedders as they are in a transaction: of several versions, the one that a column has.

        What was found once is not read again.

        Args:
            connect: returns the transaction's connection.
            hold: keep others from changing a model until the transaction ends, because it writes vectors.
        """
        return _Settled(self, connect, hold) if self._versions else self

    def versions(self, column: EmbeddedColumn) -> Versions | None:
        """Return the versions that were given for a column, None if it has one embedder."""
        return self._versions.get(column.spec.embedder)

    def model(self, column: EmbeddedColumn) -> Model:
        """Return the model of a column's vectors.

        Raises:
            InvalidOption: nothing was given under the name.
        """
        found = self._models.get(column.spec.embedder)
        if found is None:
            raise self._missing(column)
        return found

    def embedder(self, column: EmbeddedColumn) -> Embedder:
        """Return the embedder of a column.

        Raises:
            InvalidOption: none was given under the name, or one of another dimension.
        """
        return self._fitting(column, self._given.get(column.spec.embedder))

    def check(self, column: EmbeddedColumn, *, to_embed: bool = False) -> None:
        """See to it that something was given for a column, without asking which of several versions it has.

        Raises:
            InvalidOption: nothing, or one of another dimension; or no embedder where one is needed.
        """
        versions = self.versions(column)
        if versions is None:
            _ = self.embedder(column) if to_embed else self.model(column)
            return
        type_ = column.column.type
        for one in versions.all:
            if isinstance(one, Model):
                _ = self._fitting(column, one) if to_embed else None
            elif isinstance(type_, VectorType) and type_.dim != one.dimensions:
                raise InvalidOption(
                    f"{column} has {type_.dim:,} dimensions, and {model_of(one)} makes {one.dimensions:,}: that is "
                    "another type of column, so change it in a migration, by op.change_vector_column()"
                )

    def _fitting(self, column: EmbeddedColumn, found: Embedder | Model | Versions | None) -> Embedder:
        if found is None or isinstance(found, (Model, Versions)):
            raise self._missing(column)
        type_ = column.column.type
        if isinstance(type_, VectorType) and type_.dim != found.dimensions:
            raise InvalidOption(
                f"{column} has {type_.dim:,} dimensions, and the embedder {found.name} makes {found.dimensions:,}"
            )
        return found

    def _missing(self, column: EmbeddedColumn) -> InvalidOption:
        name = column.spec.embedder
        if name in self._versions and not isinstance(self, _Settled):
            return InvalidOption(
                f'{column} has several versions of its embedder; give this run the one in force, {{"{name}": ...}}'
            )
        if name in self._given:
            return InvalidOption(f'{column} is embedded here, and embedders["{name}"] is only the name of a model')
        have = ", ".join(sorted(self._given)) or "none"
        return InvalidOption(f'{column} needs an embedder named {name!r}, got {have}; give embedders={{"{name}": ...}}')


class _Settled(Embedders):
    """The embedders as they are in one transaction."""

    def __init__(self, whole: Embedders, connect: Connect, hold: bool) -> None:
        self._given, self._versions, self._models = whole._given, whole._versions, whole._models
        self._connect, self._hold = connect, hold
        self._active: dict[Column[Any], tuple[Model, Embedder | Model]] = {}

    def at(self, connect: Connect, *, hold: bool = False) -> Embedders:
        return _Settled(self, connect, hold)

    def model(self, column: EmbeddedColumn) -> Model:
        versions = self.versions(column)
        return super().model(column) if versions is None else self._find(column, versions)[0]

    def embedder(self, column: EmbeddedColumn) -> Embedder:
        versions = self.versions(column)
        return super().embedder(column) if versions is None else self._fitting(column, self._find(column, versions)[1])

    def _find(self, column: EmbeddedColumn, versions: Versions) -> tuple[Model, Embedder | Model]:
        found = self._active.get(column.column)
        if found is None:
            one = versions.active(self._connect(column), column, hold=self._hold)
            found = self._active[column.column] = (one if isinstance(one, Model) else model_of(one), one)
        return found
