"""``VectorQuery``: a search as a value, which travels as JSON and is run wherever the rows are."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from sqla_vector.coercion import as_array, as_float
from sqla_vector.exc import InvalidQuery, InvalidVector, VectorError, shown
from sqla_vector.fusion import LEAST_WEIGHT, MOST_WEIGHT, RRF, Fusion, Weighted
from sqla_vector.query.filters import Filter, both, checked_size, filter_from_json, filter_of

__all__ = ["Near", "VectorQuery", "Words"]

VERSION: Final = 1
"""Of the JSON form; one of another version is refused."""

MAX_K: Final = 10_000
MAX_CANDIDATES: Final = 100_000
MAX_PARTS: Final = 16
MAX_DIMENSIONS: Final = 16_000
LONGEST_TEXT: Final = 100_000
LONGEST_JSON: Final = 4_000_000
"""Characters: ten vectors of the largest dimension."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Near:
    """A search for the rows nearest to a vector, or to that of a text."""

    field: str
    """The vector attribute."""
    vector: Any = None
    """Of shape (dim,); kept as a tuple of numbers."""
    text: str | None = None
    """Embedded by the attribute's embedder when the query is run."""
    name: str | None = None
    """Of the part in the results of a hybrid search; by default the attribute's."""
    weight: float = 1.0
    metric: str | None = None
    max_distance: float | None = None
    min_similarity: float | None = None

    def __post_init__(self) -> None:
        _check_name(self.field, "near: field")
        _check_part(self)
        if (self.vector is None) == (self.text is None):
            raise InvalidQuery(f"near {self.field}: give a vector or a text")
        if self.text is not None:
            _check_text(self.text, f"near {self.field}: text")
        if self.metric is not None:
            _check_name(self.metric, f"near {self.field}: metric")
        if self.max_distance is not None and self.min_similarity is not None:
            raise InvalidQuery(f"near {self.field}: give max_distance or min_similarity, not both")
        for what in ("max_distance", "min_similarity"):
            bound = getattr(self, what)
            if bound is not None:
                object.__setattr__(self, what, _number(bound, f"near {self.field}: {what}"))
        if self.vector is not None:
            object.__setattr__(self, "vector", _vector(self.vector, self.field))

    @property
    def part(self) -> str:
        """What its part of a hybrid search is called."""
        return self.name or self.field


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """A search for the rows whose texts match a query."""

    text: str
    index: str | None = None
    """The name of the text index, if the class has several."""
    name: str | None = None
    weight: float = 1.0

    def __post_init__(self) -> None:
        _check_text(self.text, "match: text")
        if self.index is not None:
            _check_name(self.index, "match: index")
        _check_part(self)

    @property
    def part(self) -> str:
        """What its part of a hybrid search is called."""
        return self.name or "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorQuery:
    """A search: for vectors, texts or both, among the rows that a filter leaves.

    A value: each method returns another query.  :meth:`to_json` and :meth:`from_json` carry it between programs, and
    :class:`~sqla_vector.query.Queryable` runs it on a class, with the attributes that it is allowed to name.

    ::

        query = VectorQuery().near_text("embedding", "tea").where(Article.lang == "en").top(20)

    Raises:
        InvalidQuery: an option is none, or is out of its range.
        InvalidFilter: a filter cannot be written as data.
        InvalidVector: a query is no vector.
    """

    near: tuple[Near, ...] = ()
    match: tuple[Words, ...] = ()
    filter: Filter | None = None
    k: int = 10
    candidates: int | None = None
    """Rows of each part that are fused, or of the search that are ranked again."""
    fusion: Fusion | None = None
    """By ranks if it is not said."""
    reranker: str | None = None
    """The name of a reranker that :class:`~sqla_vector.query.Queryable` was given."""
    exact: bool = False
    """Bypass indexes."""
    source: bool = False
    """Whether hits have their source text."""

    def __post_init__(self) -> None:
        for what, kind in (("near", Near), ("match", Words)):
            parts = tuple(getattr(self, what))
            if not all(isinstance(part, kind) for part in parts):
                raise InvalidQuery(f"{what} has items of type {kind.__name__} only")
            object.__setattr__(self, what, parts)
        if len(self.parts) > MAX_PARTS:
            raise InvalidQuery(f"a query has {MAX_PARTS} parts at most, got {len(self.parts)}")
        if self.filter is not None and not isinstance(self.filter, Filter):
            raise InvalidQuery(f"filter is a Filter, got {type(self.filter).__name__}; use where()")
        if self.filter is not None:
            checked_size(self.filter)
        _check_whole(self.k, "k", 1, MAX_K)
        if self.candidates is not None:
            _check_whole(self.candidates, "candidates", self.k, MAX_CANDIDATES)
        if self.fusion is not None and not isinstance(self.fusion, (RRF, Weighted)):
            raise InvalidQuery(f"fusion is rrf() or weighted(), got {type(self.fusion).__name__}")
        if self.reranker is not None:
            _check_name(self.reranker, "rerank")
        for what in ("exact", "source"):
            if not isinstance(getattr(self, what), bool):
                raise InvalidQuery(f"{what} must be true or false, got {shown(getattr(self, what))}")

    @property
    def parts(self) -> tuple[Near | Words, ...]:
        """All searches of which it is made."""
        return (*self.near, *self.match)

    # Fluent.

    def similar_to(self, field: Any, vector: Any, **options: Any) -> VectorQuery:
        """Add a search for the rows nearest to a vector.

        Args:
            field: the vector attribute, ``Article.embedding`` or its name.
            vector: of shape (dim,).
            **options: ``name``, ``weight``, ``metric``, ``max_distance``, ``min_similarity``.
        """
        return replace(self, near=(*self.near, Near(field=_name_of(field), vector=vector, **options)))

    def near_text(self, field: Any, text: str, **options: Any) -> VectorQuery:
        """Add a search for the rows nearest to a text, which the attribute's embedder embeds when the query is run."""
        return replace(self, near=(*self.near, Near(field=_name_of(field), text=text, **options)))

    def matching(self, text: str, **options: Any) -> VectorQuery:
        """Add a search for the rows whose texts match a query.

        Args:
            text: as for :func:`~sqla_vector.match_text`.
            **options: ``index``, ``name``, ``weight``.
        """
        return replace(self, match=(*self.match, Words(text=text, **options)))

    def hybrid(
        self, text: str, *, fusion: Fusion | None = None, candidates: int | None = None, **options: Any
    ) -> VectorQuery:
        """Add a search for words to that for vectors, and say how the two are fused."""
        return replace(
            self.matching(text, **options),
            fusion=self.fusion if fusion is None else fusion,
            candidates=self.candidates if candidates is None else candidates,
        )

    def where(self, *criteria: Any) -> VectorQuery:
        """Leave rows out that do not meet criteria: SQLAlchemy's, of a documented subset, or :class:`Filter`."""
        found = self.filter
        for criterion in criteria:
            found = both(found, criterion if isinstance(criterion, Filter) else filter_of(criterion))
        return replace(self, filter=found)

    def threshold(self, *, max_distance: float | None = None, min_similarity: float | None = None) -> VectorQuery:
        """Leave out rows that are too far from the vector that was added last."""
        if not self.near:
            raise InvalidQuery("threshold() is about a vector; call similar_to() or near_text() before")
        *others, last = self.near
        bounded = replace(last, max_distance=max_distance, min_similarity=min_similarity)
        return replace(self, near=(*others, bounded))

    def rerank(self, name: str, *, candidates: int | None = None) -> VectorQuery:
        """Have the best rows ranked again, by a reranker that the program knows by a name."""
        return replace(self, reranker=name, candidates=self.candidates if candidates is None else candidates)

    def include_source(self, include: bool = True) -> VectorQuery:
        """Have the source text in the hits."""
        return replace(self, source=include)

    def top(self, k: int) -> VectorQuery:
        """Say how many rows are wanted."""
        return replace(self, k=k)

    # As data.

    def to_dict(self) -> dict[str, Any]:
        """Return the query as JSON has it, without what has its default."""
        found: dict[str, Any] = {"version": VERSION, "k": self.k}
        if self.near:
            found["near"] = [_given(part) for part in self.near]
        if self.match:
            found["match"] = [_given(part) for part in self.match]
        if self.filter is not None:
            found["where"] = self.filter.to_json()
        if self.candidates is not None:
            found["candidates"] = self.candidates
        if isinstance(self.fusion, RRF):
            found["fusion"] = {"type": "rrf", "k": self.fusion.k}
        elif self.fusion is not None:
            found["fusion"] = {"type": "weighted", "alpha": self.fusion.alpha, "normalize": self.fusion.normalize}
        if self.reranker is not None:
            found["rerank"] = self.reranker
        for name, is_set in (("exact", self.exact), ("include_source", self.source)):
            if is_set:
                found[name] = True
        return found

    def to_json(self) -> str:
        """Return the query as JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_dict(cls, data: object) -> VectorQuery:
        """Return the query that data from anywhere describes.

        Raises:
            InvalidQuery: it describes none, or has something that is not known here, or is of another version.
            InvalidFilter: its filter is none.
            InvalidVector: a vector is none.
        """
        given = _object(data, "a query", _KEYS)
        version = given.pop("version", None)
        if type(version) is not int or version != VERSION:
            raise InvalidQuery(f"a query has version {VERSION} here, got {shown(version)}")
        options: dict[str, Any] = {key: given[key] for key in ("k", "candidates", "exact") if key in given}
        for key, to in (("rerank", "reranker"), ("include_source", "source")):
            if key in given:
                options[to] = given[key]
        for key, kind, known in (("near", Near, _NEAR), ("match", Words, _WORDS)):
            if key in given:
                options[key] = tuple(kind(**_part(item, key, known)) for item in _list(given[key], key))
        if "where" in given:
            options["filter"] = filter_from_json(given["where"])
        if "fusion" in given:
            options["fusion"] = _fusion(given["fusion"])
        return cls(**options)

    @classmethod
    def from_json(cls, text: str | bytes) -> VectorQuery:
        """Return the query that JSON from anywhere describes; see :meth:`from_dict`."""
        if not isinstance(text, (str, bytes, bytearray)):
            raise InvalidQuery(f"from_json() takes JSON, got {type(text).__name__}; from_dict() takes data")
        if len(text) > LONGEST_JSON:
            raise InvalidQuery(f"a query has {LONGEST_JSON:,} characters at most, got {len(text):,}")
        try:
            data = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            if isinstance(error, VectorError):
                raise
            raise InvalidQuery("a query is JSON, and this cannot be read") from None
        return cls.from_dict(data)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Be a field of a Pydantic model: read from JSON or data, written as data."""
        from pydantic_core import core_schema

        def read(value: Any) -> VectorQuery:
            return value if isinstance(value, cls) else cls.from_dict(value)

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.plain_serializer_function_ser_schema(cls.to_dict)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "object", "title": "VectorQuery", "required": ["version"]}


_KEYS: Final = frozenset(
    {"version", "k", "near", "match", "where", "candidates", "fusion", "rerank", "exact", "include_source"}
)
_NEAR: Final = frozenset({"field", "vector", "text", "name", "weight", "metric", "max_distance", "min_similarity"})
_WORDS: Final = frozenset({"text", "index", "name", "weight"})
_FUSIONS: Final = {"rrf": (RRF, {"k"}), "weighted": (Weighted, {"alpha", "normalize"})}


def _given(part: Near | Words) -> dict[str, Any]:
    """Return a part as JSON has it."""
    names = sorted(_NEAR if isinstance(part, Near) else _WORDS)
    values = {name: getattr(part, name) for name in names}
    found = {name: value for name, value in values.items() if value is not None and (name != "weight" or value != 1.0)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _object(data: object, what: str, known: frozenset[str] | set[str]) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise InvalidQuery(f"{what} is an object, got {type(data).__name__}")
    for key in data:
        if key not in known:
            raise InvalidQuery(f"{what} has no {shown(key)}; it may have {', '.join(sorted(known))}")
    return dict(data)


def _list(data: object, what: str) -> list[Any]:
    if not isinstance(data, list):
        raise InvalidQuery(f"{what} is a list, got {type(data).__name__}")
    if len(data) > MAX_PARTS:
        raise InvalidQuery(f"a query has {MAX_PARTS} parts at most, got {len(data):,}")
    return data


def _part(data: object, what: str, known: frozenset[str]) -> dict[str, Any]:
    found = _object(data, f"an item of {what}", known)
    needed = "field" if what == "near" else "text"
    if needed not in found:
        raise InvalidQuery(f"an item of {what} has no {needed}")
    return found


def _fusion(data: object) -> Fusion:
    given = _object(data, "fusion", {"type", "k", "alpha", "normalize"})
    kind = given.pop("type", None)
    if not isinstance(kind, str) or kind not in _FUSIONS:
        raise InvalidQuery(f"fusion has type rrf or weighted, got {shown(kind)}")
    made, known = _FUSIONS[kind]
    _object(given, f"the fusion {kind}", known)
    fusion: Fusion = made(**given)
    return fusion


def _refuse_constant(name: str) -> Any:
    raise InvalidQuery(f"a number must be finite, got {name}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        # Two programs may take different ones of them.
        raise InvalidQuery("an object has a key twice")
    return found


def _name_of(attribute: Any) -> Any:
    return attribute if isinstance(attribute, str) else getattr(attribute, "key", attribute)


def _check_name(name: object, what: str) -> None:
    if not isinstance(name, str) or not name.isidentifier() or len(name) > 63:
        raise InvalidQuery(f"{what} is a name, got {shown(name)}")


def _check_text(text: object, what: str) -> None:
    if not isinstance(text, str):
        raise InvalidQuery(f"{what} is a text, got {type(text).__name__}")
    if len(text) > LONGEST_TEXT:
        raise InvalidQuery(f"{what} has {LONGEST_TEXT:,} characters at most, got {len(text):,}")


def _check_whole(value: object, what: str, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidQuery(f"{what} is a whole number from {low:,} to {high:,}, got {shown(value)}")


def _number(value: object, what: str) -> float:
    found = as_float(value)
    if found is None or math.isinf(found):
        raise InvalidQuery(f"{what} is a finite number, got {shown(value)}")
    return found


def _check_part(part: Near | Words) -> None:
    if part.name is not None:
        _check_name(part.name, "the name of a part")
    weight = _number(part.weight, "weight")
    if not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
        raise InvalidQuery(f"weight is larger than 0, from 0.000001 to 1,000,000, got {weight:g}")
    object.__setattr__(part, "weight", weight)


def _vector(given: Any, field_name: str) -> tuple[Any, ...]:
    """Return a vector as numbers that JSON has, exactly those of its elements."""
    # Bits are read as such; among numbers true is none.
    is_bits = isinstance(given, (list, tuple)) and bool(given) and all(type(one) is bool for one in given)
    array = np.array(given) if is_bits else as_array(given, field_name)
    if array.dtype.kind not in "fiub":
        raise InvalidVector(f"{field_name}: expected numbers, got an array of {array.dtype}")
    if not 1 <= len(array) <= MAX_DIMENSIONS:
        raise InvalidVector(f"{field_name}: a vector has 1 to {MAX_DIMENSIONS:,} dimensions, got {len(array):,}")
    if array.dtype.kind == "f":
        array = array.astype(np.float64)
        if not np.isfinite(array).all():
            raise InvalidVector(f"{field_name}: the elements of a vector are finite numbers")
    return tuple(array.tolist())
