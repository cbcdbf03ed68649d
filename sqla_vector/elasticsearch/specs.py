"""The fields of an index as they are: each with its attribute, its mapping, and what makes JSON of its values."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Column
from sqlalchemy.orm import ColumnProperty, InstrumentedAttribute, Mapper, RelationshipProperty

from sqla_vector.coercion import FLOAT32
from sqla_vector.elasticsearch.convert import IGNORE_ABOVE, converter, is_binary, mapping_of
from sqla_vector.elasticsearch.fields import (
    DEFAULT_EF_CONSTRUCTION,
    DEFAULT_M,
    DenseVector,
    Field,
    Keyword,
    Nested,
    Text,
)
from sqla_vector.embedding.declaration import follow, no_column
from sqla_vector.exc import InvalidDeclaration, InvalidDocument, UnsupportedMetric
from sqla_vector.metrics import METRICS, Metric, default_metric, resolve_metric
from sqla_vector.types import VectorType

__all__ = ["DenseVectorSpec", "FieldSpec", "NestedSpec", "leaves", "resolve", "resolved"]

_MOST_DIMENSIONS: Final = 4096
_LEAST_BBQ: Final = 64

_ANALYZED: Final = frozenset({"text", "match_only_text", "search_as_you_type"})

_TINY: Final = 1e-30
"""Squares of lengths between it and its inverse are sure to be float32, in whatever order they are summed up."""


@dataclass(frozen=True, eq=False, kw_only=True)
class FieldSpec:
    """A field of an index."""

    name: str
    """Its name in documents; that of a nested one begins with the object's: ``comments.author``."""
    path: str
    """The attribute, from the index's class on: ``author.name``; of a nested one ``comments.author.name``."""
    kind: str
    """The type of the field: ``text``, ``keyword``, ``long``, ``dense_vector``, ``nested``."""
    parameters: Mapping[str, Any]
    """The further parameters of its mapping."""
    relations: tuple[str, ...]
    """The relationships that lead to the class that has the attribute."""
    attribute: InstrumentedAttribute[Any]
    """The attribute at the end of the path, such as ``Author.name``."""
    is_collection: bool
    """Whether a document has a list of values, since there is a collection on the path."""
    convert: Callable[[Any], Any] = field(repr=False)

    def mapping(self) -> dict[str, Any]:
        """Return the field's mapping."""
        return {"type": self.kind, **self.parameters}

    @property
    def exact(self) -> str | None:
        """The name under which values are compared as a whole, None if they are not."""
        if self.kind not in _ANALYZED:
            is_compared = self.parameters.get("index", True) and self.parameters.get("enabled", True)
            return self.name if is_compared and self.kind != "object" else None
        for name, sub in (self.parameters.get("fields") or {}).items():
            if sub.get("type") == "keyword":
                return f"{self.name}.{name}"
        return None

    @property
    def is_indexed(self) -> bool:
        """Whether anything of a value is found by a query."""
        has_values = self.kind not in _ANALYZED and self.parameters.get("doc_values", True)
        return bool(has_values or self.parameters.get("index", True))

    def to_json(self, value: Any) -> Any:
        """Return a value of the attribute as documents have it; None leaves the field out.

        Raises:
            InvalidDocument: the field does not take it.
        """
        if value is None:
            return None
        try:
            return self.convert(value)
        except InvalidDocument as error:
            raise InvalidDocument(f"{self.name}: {error}") from None

    def of(self, entity: Any) -> Any:
        """Return what a document of an entity has, None if nothing.

        Raises:
            InvalidDocument: the field does not take a value.
        """
        if not self.relations:
            return self.to_json(getattr(entity, self.attribute.key))
        values = [self.to_json(getattr(row, self.attribute.key)) for row in _rows(entity, self.relations)]
        if not self.is_collection:
            return values[0] if values else None
        return self.joined(values)

    def joined(self, values: Iterable[Any]) -> list[Any] | None:
        """Return the values of several rows, in an order of their own: databases keep none."""
        flat = [v for value in values if value is not None for v in (value if isinstance(value, list) else [value])]
        if not flat:
            return None
        by_text = {json.dumps(value, sort_keys=True): value for value in flat}
        return [by_text[text] for text in sorted(by_text)]

    def canonical(self, value: Any) -> Any:
        """Return what a hash is made of, for a value of a document that may have been to the server."""
        return _canonical(value)


@dataclass(frozen=True, eq=False, kw_only=True)
class DenseVectorSpec(FieldSpec):
    """A field of vectors."""

    metric: str
    """The name of the metric, as in :data:`sqla_vector.metrics.METRICS`."""
    dim: int
    similarity: str
    """What Elasticsearch calls the metric."""
    index: str
    """How it is indexed."""
    element_type: str
    """``float`` or ``bit``."""

    @property
    def m(self) -> int:
        """How many neighbours a vector has in the graph, if there is one."""
        return int(self.parameters["index_options"].get("m", DEFAULT_M))

    def canonical(self, value: Any) -> Any:
        if self.element_type == "bit":
            return str(value).lower() if isinstance(value, str) else _hex(np.asarray(value, np.int8).view(np.uint8))
        return hashlib.sha256(np.ascontiguousarray(value, dtype="<f4").tobytes()).hexdigest()


@dataclass(frozen=True, eq=False, kw_only=True)
class NestedSpec(FieldSpec):
    """A field of objects."""

    children: Mapping[str, FieldSpec]
    """The fields of the objects, by their names in them."""

    def mapping(self) -> dict[str, Any]:
        properties = {name: child.mapping() for name, child in self.children.items()}
        return {"type": "nested", "dynamic": "strict", "properties": properties}

    @property
    def exact(self) -> str | None:
        return None

    def of(self, entity: Any) -> Any:
        objects = []
        for row in _rows(entity, self.relations):
            values = {name: child.of(row) for name, child in self.children.items()}
            objects.append({name: value for name, value in values.items() if value is not None})
        if not self.is_collection:
            return objects[0] if objects else None
        return sorted(objects, key=lambda one: json.dumps(self._canonical(one), sort_keys=True)) or None

    def canonical(self, value: Any) -> Any:
        return [self._canonical(one) for one in value] if isinstance(value, list) else self._canonical(value)

    def _canonical(self, one: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for name, value in one.items():
            child = self.children.get(name)
            found[name] = _canonical(value) if child is None else child.canonical(value)
        return found


def _rows(entity: Any, relations: tuple[str, ...]) -> Iterator[Any]:
    """Yield the related rows at the end of relationships."""
    if not relations:
        yield entity
        return
    related = getattr(entity, relations[0])
    if related is None:
        return
    if isinstance(related, Mapping):
        related = list(related.values())
    for row in related if isinstance(related, Iterable) else (related,):
        yield from _rows(row, relations[1:])


def _canonical(value: Any) -> Any:
    if type(value) is float and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    return value


def _hex(array: NDArray[Any]) -> str:
    return array.tobytes().hex()


def leaves(specs: Mapping[str, FieldSpec]) -> Iterator[FieldSpec]:
    """Yield fields, and in place of objects the fields that these have."""
    for spec in specs.values():
        if isinstance(spec, NestedSpec):
            yield from spec.children.values()
        else:
            yield spec


def resolved(mapper: Mapper[Any], fields: Mapping[str, Field], index: str) -> dict[str, FieldSpec]:
    """Return the fields of an index.

    Raises:
        InvalidDeclaration: a path leads to nothing that can be indexed, or its column not in this way.
        UnsupportedMetric: Elasticsearch does not have a metric.
    """
    return {name: resolve(mapper, name, declared, f"{index}.{name}") for name, declared in fields.items()}


def resolve(mapper: Mapper[Any], name: str, declared: Field, where: str) -> FieldSpec:
    """Return one field; ``mapper`` may be unconfigured if there is no relationship on its path."""
    if isinstance(declared, Nested):
        return _nested(mapper, name, declared, where)
    dependency, collection = follow(mapper, declared.path, where)
    prop = dependency.mapper._props.get(dependency.key)
    if isinstance(prop, RelationshipProperty):
        raise InvalidDeclaration(
            f"{where}: {dependency.mapper.class_.__name__}.{dependency.key} is a relationship; name an attribute, "
            f"as in '{declared.path}.name', or declare Nested('{declared.path}', ...)"
        )
    if not isinstance(prop, ColumnProperty) or not isinstance(prop.columns[0], Column):
        raise no_column(dependency.mapper, dependency.key, where)
    _check_loadable(mapper, dependency.path, where)
    common = _Common(
        name, declared.path, dependency.path, getattr(dependency.mapper.class_, dependency.key), bool(collection)
    )
    type_ = prop.columns[0].type
    if isinstance(type_, VectorType):
        return _dense(common, declared, type_, where)
    if isinstance(declared, DenseVector):
        raise InvalidDeclaration(f"{where}: {declared.path} is a column of type {type_!r}, and no vector")
    if is_binary(type_):
        raise InvalidDeclaration(f"{where}: {declared.path} has bytes, which documents cannot have; leave it out")
    mapping = _mapping(declared, mapping_of(type_))
    kind = mapping.pop("type", None)
    if kind is None:
        raise InvalidDeclaration(
            f"{where}: no field type follows from {type_!r}; give one, as in Field('{declared.path}', type='keyword')"
        )
    found: FieldSpec = common.spec(FieldSpec, kind, mapping, converter(type_, kind))
    return found


@dataclass(frozen=True)
class _Common:
    name: str
    path: str
    relations: tuple[str, ...]
    attribute: InstrumentedAttribute[Any]
    is_collection: bool

    def spec(self, class_: Any, kind: str, parameters: Mapping[str, Any], convert: Any, **more: Any) -> Any:
        return class_(**vars(self), kind=kind, parameters=dict(parameters), convert=convert, **more)


def _mapping(declared: Field, derived: Mapping[str, Any] | None) -> dict[str, Any]:
    given = declared.parameters
    derived = dict(derived or {})
    if isinstance(declared, Text):
        sub = derived.get("fields") or {"keyword": {"type": "keyword", "ignore_above": IGNORE_ABOVE}}
        wanted = "fields" in derived if declared.keyword is None else declared.keyword
        return {"type": "text", **({"fields": sub} if wanted else {}), **given}
    if isinstance(declared, Keyword):
        is_short = derived.get("type") not in ("text", None)
        return {"type": "keyword", **({} if is_short else {"ignore_above": IGNORE_ABOVE}), **given}
    # The parameters of one type mean nothing to another.
    kept = derived if given.get("type") in (None, derived.get("type")) else {}
    return {**kept, **given}


def _nested(mapper: Mapper[Any], name: str, declared: Nested, where: str) -> NestedSpec:
    *_, last = declared.path.split(".")
    dependency, collection = follow(mapper, f"{declared.path}.", where)
    _check_loadable(mapper, dependency.path, where)
    children = {}
    for key, child in declared.fields.items():
        spec = resolve(dependency.mapper, key, child, f"{where}.{key}")
        changes: dict[str, Any] = {"name": f"{name}.{key}", "path": f"{declared.path}.{spec.path}"}
        children[key] = type(spec)(**{**vars(spec), **changes})
    parent = mapper
    for relation in dependency.path[:-1]:
        parent = parent.relationships[relation].mapper
    common = _Common(name, declared.path, dependency.path, getattr(parent.class_, last), bool(collection))
    found: NestedSpec = common.spec(NestedSpec, "nested", {}, lambda value: value, children=children)
    return found


def _check_loadable(mapper: Mapper[Any], path: tuple[str, ...], where: str) -> None:
    """Refuse relationships whose rows cannot be loaded for many entities at once."""
    for name in path:
        prop = mapper.relationships[name]
        if prop.lazy in ("dynamic", "write_only"):
            raise InvalidDeclaration(
                f'{where}: {mapper.class_.__name__}.{name} is lazy="{prop.lazy}": its rows cannot be loaded for many '
                "entities at once; declare another relationship beside it, with viewonly=True, and name that"
            )
        mapper = prop.mapper


def _dense(common: _Common, declared: Field, type_: VectorType[Any], where: str) -> DenseVectorSpec:
    if not isinstance(declared, DenseVector):
        if type(declared) is not Field or declared.parameters:
            raise InvalidDeclaration(f"{where}: {declared.path} is a vector; declare it by DenseVector(...)")
        declared = DenseVector(declared.path)
    if type_.kind == "sparsevec":
        raise InvalidDeclaration(f"{where}: {declared.path} is a sparse vector, for which Elasticsearch has no field")
    if type_.dim is None:
        raise InvalidDeclaration(f"{where}: {declared.path} needs a dimension, such as {type(type_).__name__}(384)")
    if common.is_collection:
        raise InvalidDeclaration(
            f"{where}: a document has one vector in a field, and {declared.path} are many; put it into Nested(...)"
        )
    is_bit = type_.kind == "bit"
    metric = (
        default_metric(type_.kind)
        if declared.metric is None
        else resolve_metric(declared.metric, type_.kind, f"{where}: {declared.path}")
    )
    if metric.elasticsearch_similarity is None:
        usable = ", ".join(m.name for m in METRICS.values() if m.elasticsearch_similarity and type_.kind in m.kinds)
        raise UnsupportedMetric(f"{where}: Elasticsearch has no {metric.name} metric for {type_.kind}; it has {usable}")
    index = declared.index or ("hnsw" if is_bit else "int8_hnsw")
    _check_dimension(type_.dim, index, is_bit, f"{where}: {declared.path}")
    options: dict[str, Any] = {"type": index}
    if index.endswith("hnsw"):
        # Written out, so that an index that has others is seen to differ.
        options["m"] = declared.m or DEFAULT_M
        options["ef_construction"] = declared.ef_construction or DEFAULT_EF_CONSTRUCTION
    if declared.oversample is not None:
        options["rescore_vector"] = {"oversample": declared.oversample}
    parameters: dict[str, Any] = {"dims": type_.dim, "index": True, "similarity": metric.elasticsearch_similarity}
    if is_bit:
        parameters["element_type"] = "bit"
    parameters["index_options"] = options
    convert = functools.partial(_bits if is_bit else _floats, type_=type_, metric=metric)
    found: DenseVectorSpec = common.spec(
        DenseVectorSpec,
        "dense_vector",
        parameters,
        convert,
        metric=metric.name,
        dim=type_.dim,
        similarity=metric.elasticsearch_similarity,
        index=index,
        element_type="bit" if is_bit else "float",
    )
    return found


def _check_dimension(dim: int, index: str, is_bit: bool, where: str) -> None:
    most = _MOST_DIMENSIONS * 8 if is_bit else _MOST_DIMENSIONS
    if dim > most:
        raise InvalidDeclaration(f"{where} has {dim:,} dimensions, and Elasticsearch takes {most:,} at most")
    if is_bit and dim % 8:
        raise InvalidDeclaration(f"{where} has {dim:,} bits, and Elasticsearch takes multiples of 8")
    if is_bit and index not in ("hnsw", "flat"):
        raise InvalidDeclaration(f"{where} has bits already, which are not quantized; index= is hnsw or flat")
    if index.startswith("bbq") and dim < _LEAST_BBQ:
        raise InvalidDeclaration(
            f"{where} has {dim} dimensions, and index={index!r} takes {_LEAST_BBQ} at least; use int8_hnsw or hnsw"
        )
    if index.startswith("int4") and dim % 2:
        raise InvalidDeclaration(f"{where} has {dim} dimensions, and index={index!r} takes even numbers only")


def _floats(value: Any, *, type_: VectorType[Any], metric: Metric) -> NDArray[np.float32] | None:
    vector = np.ascontiguousarray(value, dtype=FLOAT32)
    if vector.shape != (type_.dim,):
        raise InvalidDocument(f"a vector of {type_.dim:,} dimensions is expected, got an array of shape {vector.shape}")
    with np.errstate(all="ignore"):
        if _TINY < np.dot(vector, vector) < 1 / _TINY:
            return vector
    if not np.isfinite(vector).all():
        raise InvalidDocument("the vector has NaN or infinity")
    if metric.zero_is_undefined:
        # As the server reckons: squares that are no float32 any more are zero.
        with np.errstate(all="ignore"):
            square = (vector * vector).sum()
        if not np.isfinite(square):
            raise InvalidDocument("the vector is so long that its length is no float32, which cosine needs")
        if not square:
            # The server refuses what has no direction, which no search would find either.
            return None
    return vector


def _bits(value: Any, *, type_: VectorType[Any], metric: Metric) -> str:
    return _hex(np.packbits(np.asarray(value, dtype=np.bool_)))
