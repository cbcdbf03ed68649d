"""Which text feeds which vector: ``embedding_column()``, and what a mapped class makes of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Column, event, inspect
from sqlalchemy.orm import ColumnProperty, MappedColumn, Mapper, RelationshipProperty, mapped_column

from sqla_vector.embedding.fingerprint import Fingerprint, Model, fingerprint
from sqla_vector.embedding.source import SourceText
from sqla_vector.exc import InvalidDeclaration, InvalidOption
from sqla_vector.types import VectorType

__all__ = [
    "PRIVATE",
    "Dependency",
    "EmbeddedColumn",
    "EmbeddingSpec",
    "dependencies_of",
    "embedded_columns",
    "embedded_mappers",
    "embedding_column",
]

When = Literal["flush", "worker"]

PRIVATE: Final = "private"
"""Key of ``Column.info``: the column's text must not leave without passing a ``redact`` function."""

_SPEC: Final = "embedding"


@dataclass(frozen=True)
class EmbeddingSpec:
    """What :func:`embedding_column` declares, kept in ``Column.info["embedding"]``."""

    source: SourceText
    embedder: str
    when: When
    fingerprint: str | None


def embedding_column(
    type_: VectorType[Any],
    *,
    source: str | Sequence[str] | Callable[[Any], str | None],
    embedder: str,
    when: When = "flush",
    fingerprint: str | None = None,
    depends_on: Sequence[str] = (),
    template: str | None = None,
    redact: Callable[[str], str | None] | None = None,
    **options: Any,
) -> MappedColumn[Any]:
    r"""Declare a vector column that follows a text.

    ::

        embedding: Mapped[np.ndarray | None] = embedding_column(
            Vector(384), source=("title", "body"), embedder="minilm")
        embedding_fingerprint: Mapped[str | None] = mapped_column(Fingerprint())

    Args:
        type_: the column's type, with a dimension.
        source: the attributes that make the text, also of related rows (``"author.name"``), joined by a blank
            line; or a function from the entity to its text, with ``depends_on``.  A row whose attributes are all
            None or white space has no text, and NULL for its vector.
        embedder: the name under which the embedder is given to ``track()`` and to the worker.
        when: ``flush`` embeds in one call as the session flushes; ``worker`` leaves it to a worker.
        fingerprint: the attribute of the :class:`Fingerprint` column; by default this column's name and
            ``_fingerprint``.
        depends_on: the attributes that a ``source`` function reads.
        template: the text with names of ``source`` in braces: ``"{title}\n\n{body}"``.
        redact: is given each text before it leaves and returns what may be known of it.  Needed where a source
            column is marked private: ``mapped_column(info={"private": True})``.
        **options: those of :func:`sqlalchemy.orm.mapped_column`.

    Raises:
        InvalidOption: an option is none, or contradicts another.  What only the model can show is checked when
            mappers are configured, as :class:`InvalidDeclaration`.
    """
    if not isinstance(type_, VectorType) or type_.dim is None:
        raise InvalidOption(
            f"embedding_column() takes a vector type with a dimension, such as Vector(384), got {type_!r}"
        )
    if type_.kind == "bit":
        raise InvalidOption(
            'embedders make numbers, not bits; declare Vector(n), and an index with precision="binary" over it'
        )
    if not isinstance(embedder, str) or not embedder:
        raise InvalidOption(f"embedder= is the name under which track() is given the embedder, got {embedder!r}")
    if when not in ("flush", "worker"):
        raise InvalidOption(f'when= is "flush" or "worker", got {when!r}')
    if fingerprint is not None and (not isinstance(fingerprint, str) or not fingerprint.isidentifier()):
        raise InvalidOption(f"fingerprint= is the name of an attribute, got {fingerprint!r}")
    text = SourceText.of(source, depends_on, template, redact)
    spec = EmbeddingSpec(text, embedder, when, fingerprint)
    info = {**(options.pop("info", None) or {}), _SPEC: spec, "source": text}
    _validate_as_mappers_configure()
    return mapped_column(type_, info=info, **options)


@dataclass(frozen=True)
class Dependency:
    """An attribute that a text is made of."""

    path: tuple[str, ...]
    """The relationships that lead to it."""
    mapper: Mapper[Any]
    """The class that has it."""
    key: str


@dataclass(frozen=True)
class EmbeddedColumn:
    """An embedded column of a mapped class."""

    mapper: Mapper[Any]
    key: str
    """The vector's attribute."""
    fingerprint_key: str
    column: Column[Any]
    fingerprint_column: Column[Any]
    spec: EmbeddingSpec
    dependencies: tuple[Dependency, ...]

    def __str__(self) -> str:
        return f"{self.mapper.class_.__name__}.{self.key}"

    @property
    def source(self) -> SourceText:
        """What makes its text."""
        return self.spec.source

    def text_of(self, entity: object) -> str | None:
        """Return what may be known of an entity's text, None if it has none."""
        return self.spec.source(entity)

    def fingerprint_of(self, entity: object, model: Model) -> str | None:
        """Return the fingerprint that the entity's vector must have."""
        return fingerprint(model, self.text_of(entity))


_KNOWN: WeakSet[Mapper[Any]] = WeakSet()
"""The mappers with embedded columns, as far as they are configured."""

_EMBEDDED: Final = "sqla_vector_embedded"


def embedded_columns(entity: type[Any] | Mapper[Any]) -> tuple[EmbeddedColumn, ...]:
    """Return the embedded columns of a mapped class, inherited ones included.

    Raises:
        InvalidDeclaration: something is missing in the model.
        InvalidOption: it is no mapped class.
    """
    mapper = inspect(entity, raiseerr=False)
    if not isinstance(mapper, Mapper):
        raise InvalidOption(f"embedded columns are those of a mapped class, got {entity!r}")
    mapper.registry.configure(cascade=True)
    # With the class itself: in a WeakKeyDictionary the columns, which refer to the mapper, would keep it for good.
    kept = mapper.class_manager.info
    if _EMBEDDED not in kept:
        kept[_EMBEDDED] = tuple(_embedded(mapper))
    found: tuple[EmbeddedColumn, ...] = kept[_EMBEDDED]
    return found


def embedded_mappers() -> frozenset[Mapper[Any]]:
    """Return all mappers with embedded columns that were configured."""
    return frozenset(_KNOWN)


@functools.cache
def _validate_as_mappers_configure() -> None:
    """Listen from the first declaration on; importing the package listens to nothing."""
    incomplete: WeakKeyDictionary[Mapper[Any], None] = WeakKeyDictionary()

    @event.listens_for(Mapper, "mapper_configured")
    def configured(mapper: Mapper[Any], class_: type[Any]) -> None:
        for column in _declared(mapper):
            _KNOWN.add(mapper)
            source = column.spec.source
            if source.function is None and not any("." in path for path in source.paths):
                _with_dependencies(column)
            else:
                # A relationship may be the backref of one whose class is not configured yet.
                incomplete[mapper] = None

    @event.listens_for(Mapper, "after_configured")
    def all_configured() -> None:
        while incomplete:
            mapper, _ = incomplete.popitem()
            for _ in _embedded(mapper):
                pass


def _embedded(mapper: Mapper[Any]) -> Iterator[EmbeddedColumn]:
    return (_with_dependencies(column) for column in _declared(mapper))


def _declared(mapper: Mapper[Any]) -> list[EmbeddedColumn]:
    """Return the embedded columns as far as the class itself tells, without what their texts depend on."""
    found: list[EmbeddedColumn] = []
    for key, prop in mapper._props.items():  # .attrs would configure mappers, which is what is going on
        column = prop.columns[0] if isinstance(prop, ColumnProperty) else None
        spec = column.info.get(_SPEC) if isinstance(column, Column) else None
        if isinstance(column, Column) and isinstance(spec, EmbeddingSpec):
            found.append(_checked(mapper, key, column, spec))
    for before, column_ in enumerate(found):
        for other in found[:before]:
            if other.fingerprint_column is column_.fingerprint_column:
                raise InvalidDeclaration(
                    f"{column_}: {column_.fingerprint_key} is the fingerprint of {other.key} already; "
                    "each vector has one of its own"
                )
    return found


def _checked(mapper: Mapper[Any], key: str, column: Column[Any], spec: EmbeddingSpec) -> EmbeddedColumn:
    where = f"{mapper.class_.__name__}.{key}"
    fingerprint_key = spec.fingerprint or f"{key}_fingerprint"
    beside = _column(mapper, fingerprint_key)
    if beside is None or not isinstance(beside.type, Fingerprint):
        raise InvalidDeclaration(
            f"{where} needs a column that says which text and model its vector is of; add to the class:\n"
            f"    {fingerprint_key}: Mapped[str | None] = mapped_column(Fingerprint())"
        )
    if not beside.nullable or not column.nullable:
        name = key if not column.nullable else fingerprint_key
        raise InvalidDeclaration(
            f"{mapper.class_.__name__}.{name} must take NULL, for rows without text and rows still to be embedded; "
            f"write Mapped[... | None], or nullable=True"
        )
    if beside.table is not column.table:
        raise InvalidDeclaration(f"{where} and {fingerprint_key} must be columns of one table, to be written together")
    return EmbeddedColumn(mapper, key, fingerprint_key, column, beside, spec, ())


def _with_dependencies(embedded: EmbeddedColumn) -> EmbeddedColumn:
    return replace(embedded, dependencies=dependencies_of(embedded.mapper, embedded.spec.source, str(embedded)))


def dependencies_of(
    mapper: Mapper[Any], source: SourceText, where: str, declared_by: str = "embedding_column()"
) -> tuple[Dependency, ...]:
    """Return what a text is made of.

    Args:
        mapper: the class whose rows have the text.
        source: what makes it.
        where: says whose text it is, in messages.
        declared_by: the function that is given the source.

    Raises:
        InvalidDeclaration: an attribute is none that a text can be made of, or its text may not leave.
    """
    made = source.function is not None
    dependencies = tuple(_dependency(mapper, path, where, made) for path in source.paths)
    hidden = [d for d in dependencies if _is_private(d)]
    if hidden and source.redact is None:
        raise InvalidDeclaration(
            f"{where}: {'.'.join((*hidden[0].path, hidden[0].key))} is marked private, so its text may not leave as it "
            f"is; give {declared_by} redact=, a function that returns what may be known of it"
        )
    return dependencies


def _column(mapper: Mapper[Any], key: str) -> Column[Any] | None:
    prop = mapper._props.get(key)
    if isinstance(prop, ColumnProperty) and isinstance(prop.columns[0], Column):
        return prop.columns[0]
    return None


def _dependency(mapper: Mapper[Any], path: str, where: str, by_function: bool) -> Dependency:
    """Find the attribute at a path; only a function makes a text of a collection, or of a related row as such."""
    where = f"{where}: source {path!r}"
    found, is_many = follow(mapper, path, where)
    if is_many and not by_function:
        raise InvalidDeclaration(
            f"{where}: {is_many} is a collection; give a function as source, with depends_on=({path!r}, ...)"
        )
    owner, key = found.mapper, found.key
    column = _column(owner, key)
    if column is None and not (by_function and isinstance(owner._props.get(key), RelationshipProperty)):
        raise no_column(owner, key, where)
    if column is not None and isinstance(column.type, (VectorType, Fingerprint)):
        raise InvalidDeclaration(f"{where} is a vector or a fingerprint, of which no text is made")
    return found


def follow(mapper: Mapper[Any], path: str, where: str) -> tuple[Dependency, str]:
    """Follow relationships to an attribute.

    Args:
        mapper: the class at which the path begins.
        path: relationships and an attribute, with dots between them.
        where: says whose path it is.

    Returns:
        What the path leads to, and the first collection on it, if there is one.

    Raises:
        InvalidDeclaration: one of them is no relationship.
    """
    *relations, key = path.split(".")
    owner, collection = mapper, ""
    for name in relations:
        prop = owner._props.get(name)
        if not isinstance(prop, RelationshipProperty):
            raise InvalidDeclaration(f"{where}: {owner.class_.__name__}.{name} is no relationship")
        if prop.uselist:
            collection = collection or f"{owner.class_.__name__}.{name}"
        owner = prop.mapper
    return Dependency(tuple(relations), owner, key), collection


def no_column(owner: Mapper[Any], key: str, where: str) -> InvalidDeclaration:
    """Return the error of an attribute that is no column."""
    have = ", ".join(sorted(k for k, p in owner._props.items() if isinstance(p, ColumnProperty)))
    return InvalidDeclaration(
        f"{where}: {owner.class_.__name__}.{key} is no mapped column, so that its changes cannot be noticed; "
        f"columns are {have}"
    )


def _is_private(dependency: Dependency) -> bool:
    column = _column(dependency.mapper, dependency.key)
    return column is not None and bool(column.info.get(PRIVATE))
