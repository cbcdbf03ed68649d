"""Which field a mapped attribute is, and how its values are compared there."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation, localcontext
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import ARRAY, Enum, Float, Integer, Numeric, TypeDecorator, column
from sqlalchemy.sql.elements import ClauseElement, ColumnElement

from sqla_vector.elasticsearch.convert import TEXTUAL, raw_type
from sqla_vector.elasticsearch.dsl import MATCH_NONE, Query, any_of
from sqla_vector.elasticsearch.names import META_FIELD
from sqla_vector.elasticsearch.specs import FieldSpec, NestedSpec
from sqla_vector.exc import InvalidFilter, InvalidOption

if TYPE_CHECKING:
    from sqla_vector.elasticsearch.index import SearchIndex

__all__ = ["Columns", "FieldRef"]

_MARK: Final = "sqla_vector_field"

_INTEGERS: Final[Mapping[str, tuple[int, int]]] = {
    "byte": (-(2**7), 2**7 - 1),
    "short": (-(2**15), 2**15 - 1),
    "integer": (-(2**31), 2**31 - 1),
    "long": (-(2**63), 2**63 - 1),
    "unsigned_long": (0, 2**64 - 1),
}
_FLOATS: Final = frozenset({"double", "float", "half_float", "scaled_float"})
_DATES: Final = frozenset({"date", "date_nanos"})
_IGNORING: Final = frozenset({"ignore_above", "ignore_malformed"})
"""Parameters by which a field leaves a value out of the index."""
_LONGEST: Final = 32_766
"""Bytes of a term (Lucene's IndexWriter.MAX_TERM_LENGTH)."""
_DIGITS: Final = 2_000
"""More than a Numeric of a database can be declared with."""
_COMPARABLE: Final = frozenset({*_INTEGERS, *_FLOATS, *_DATES, "boolean", "keyword", "text"})


@dataclass(frozen=True, slots=True)
class FieldRef:
    """A field as filters see it."""

    name: str
    """In the document, with the names of the objects that it is in: ``comments.author``."""
    kind: str
    spec: FieldSpec
    exact_name: str | None
    """What ``term`` and ``range`` are asked of: the field, or the sub-field that has a text as a whole."""
    nested_in: str | None
    """The nested object that it is in."""
    is_collection: bool
    """Whether a document can have several values."""
    type_: Any
    """The column's type."""

    def __str__(self) -> str:
        return f"the field {self.name!r}"

    def exists(self) -> Query:
        """Return the query for documents that have a value."""
        if self.kind in ("object", "flattened"):
            raise InvalidFilter(f"{self} is an object, of which Elasticsearch does not know whether it has a value")
        if not self.spec.is_indexed:
            raise self._not_indexed()
        found = self._nested({"exists": {"field": self.name}})
        if not self.spec.parameters.keys() & _IGNORING:
            return found
        # What is too long is there all the same; the names of such fields are those of the document as a whole.
        return any_of([found, {"term": {"_ignored": self.name}}])

    def equal(self, value: Any) -> Query:
        """Return the query for documents that have this value."""
        return self.one_of([value])

    def one_of(self, values: list[Any]) -> Query:
        """Return the query for documents that have one of these values, none of which is None."""
        name = self._exact()
        terms = [term for value in values for term in self._terms(value)]
        if not terms:
            return MATCH_NONE
        query: Query = {"term": {name: {"value": terms[0]}}} if len(terms) == 1 else {"terms": {name: terms}}
        return self._nested(query)

    def range(self, operator: str, value: Any) -> Query:
        """Return the query for documents with a value that is ``lt``, ``lte``, ``gt`` or ``gte`` another."""
        return self._nested(self._bounded({operator: value}))

    def between(self, low: Any, high: Any) -> Query:
        """Return the query for documents with one value that is at least ``low`` and at most ``high``."""
        return self._nested(self._bounded({"gte": low, "lte": high}))

    def _bounded(self, bounds: Mapping[str, Any]) -> Query:
        name = self._exact()
        if self.kind == "boolean":
            raise InvalidFilter(f"{self} is a boolean, which has no order; compare it by == or is_()")
        if isinstance(raw_type(self.type_), Enum):
            raise InvalidFilter(
                f"{self} is an enumeration, which databases order by declaration and Elasticsearch by name; compare "
                "it by == or in_()"
            )
        if self._has_numbers_as_texts:
            raise InvalidFilter(
                f"{self} ({self.kind}) has numbers as texts, whose order is another; declare a field of the attribute "
                "that has numbers"
            )
        found: dict[str, Any] = {}
        for operator, value in bounds.items():
            bound = self._bound(operator, self._checked(value))
            if bound is None:
                return MATCH_NONE
            found.update(bound)
        return {"range": {name: found}} if found else {"exists": {"field": self.name}}

    def _bound(self, operator: str, value: Any) -> dict[str, Any] | None:
        """Return a bound as the field takes it: None if no value can be within, nothing if all are."""
        if self.kind in _INTEGERS:
            low, high = _INTEGERS[self.kind]
            if operator in ("gt", "gte"):
                least = value if value in (math.inf, -math.inf) else math.ceil(value)
                least = least + 1 if operator == "gt" and least == value else least
                return None if least > high else {} if least <= low else {"gte": least}
            most = value if value in (math.inf, -math.inf) else math.floor(value)
            most = most - 1 if operator == "lt" and most == value else most
            return None if most < low else {} if most >= high else {"lte": most}
        if self.kind in _FLOATS:
            number = _as_float(value)
            if math.isinf(number):
                return {} if (number > 0) == (operator in ("lt", "lte")) else None
            if number == 0.0:
                # Lucene sorts -0.0 before 0.0; to SQL they are the same.
                number = -0.0 if operator in ("gte", "lt") else 0.0
            return {operator: number}
        return {operator: self._as_document(value)}

    def _terms(self, value: Any) -> Iterator[Any]:
        checked = self._checked(value)
        if self.kind in _INTEGERS:
            low, high = _INTEGERS[self.kind]
            if low <= checked <= high and checked == math.floor(checked):
                yield int(checked)
        elif self.kind in _FLOATS:
            number = _as_float(checked)
            if number == 0.0:
                yield from (0.0, -0.0)
            elif not math.isinf(number):
                yield number
        elif isinstance(checked, Decimal):
            if (text := self._scaled(checked)) is not None:
                yield text
        else:
            yield self._as_document(checked)

    def _scaled(self, value: Decimal) -> str | None:
        """Return a number as text with as many digits as the column's values have, None if it has more."""
        scale = None if isinstance(self.type_, TypeDecorator) else getattr(self.type_, "scale", None)
        if scale is None:
            raise InvalidFilter(
                f"{self} ({self.kind}) has numbers as texts, of which it is not known how many digits they have; give "
                "the column a scale, or declare a field of the attribute that has numbers"
            )
        with localcontext(prec=_DIGITS):
            try:
                found = value.quantize(Decimal(1).scaleb(-scale))
            except InvalidOperation:  # it has more digits than any column
                return None
        if found != value:
            return None
        text: str = self._as_document(found if found else abs(found))
        return text

    def _checked(self, value: Any) -> Any:
        """Return a value if it is of the field's type."""
        if self.kind in _INTEGERS or self.kind in _FLOATS:
            if isinstance(value, bool) or not isinstance(value, (int, float, Decimal)):
                raise self._refused("a number", value)
            self._check_number(value)
        elif self.kind == "boolean":
            if not isinstance(value, bool):
                raise self._refused("True or False", value)
        elif self.kind in _DATES:
            if not isinstance(value, datetime.date) or isinstance(value, datetime.datetime) != self._has_time:
                raise self._refused("a datetime" if self._has_time else "a date", value)
        elif not isinstance(value, self._python_type) or (isinstance(value, bool) and self._has_numbers_as_texts):
            raise self._refused(f"a {self._python_type.__name__}", value)
        elif self._has_numbers_as_texts:
            self._check_number(value)
            if isinstance(value, float):
                raise InvalidFilter(
                    f"{self} ({self.kind}) has numbers as texts, and a float has several; declare a field of the "
                    "attribute that has numbers"
                )
        return value

    def _check_number(self, value: Any) -> None:
        # By is_nan() first: to compare a signalling NaN is an error.
        if value.is_nan() if isinstance(value, Decimal) else value != value:
            raise InvalidFilter(f"{self} cannot be compared with NaN")

    @property
    def _has_numbers_as_texts(self) -> bool:
        return self.kind in TEXTUAL and isinstance(raw_type(self.type_), (Integer, Numeric, Float))

    def _not_indexed(self) -> InvalidFilter:
        return InvalidFilter(
            f"{self} ({self.kind}) is not indexed, so that nothing can be asked of it; declare another field of the "
            "attribute"
        )

    @property
    def _has_time(self) -> bool:
        return issubclass(self._python_type, datetime.datetime)

    @property
    def _python_type(self) -> type:
        raw = raw_type(self.type_)
        if isinstance(raw, Enum) and raw.enum_class is not None:
            return raw.enum_class
        try:
            found: type = self.type_.python_type
        except NotImplementedError:
            return str
        return found

    def _as_document(self, value: Any) -> Any:
        try:
            found = self.spec.to_json(value)
        except ValueError as error:
            raise InvalidFilter(f"{self} cannot have the value that it is compared with: {error}") from None
        if isinstance(found, (list, dict)) or found is None:
            raise self._refused("a single value", value)
        if isinstance(found, str):
            try:
                encoded = found.encode()
            except UnicodeEncodeError:
                raise InvalidFilter(
                    f"{self} is compared with a text that is not Unicode: it has a lone surrogate"
                ) from None
            if len(encoded) > _LONGEST:
                raise InvalidFilter(
                    f"{self} is compared with a text of {len(encoded):,} bytes, and Elasticsearch indexes {_LONGEST:,} "
                    "at most; compare it in the database"
                )
        return found

    def _refused(self, expected: str, value: Any) -> InvalidFilter:
        return InvalidFilter(f"{self} is compared with {expected}, got {type(value).__name__}")

    def _exact(self) -> str:
        if self.exact_name is None and not self.spec.is_indexed:
            raise self._not_indexed()
        if self.exact_name is None:
            raise InvalidFilter(
                f"{self} ({self.kind}) can only be asked whether it has a value, by is_(None); "
                "declare a Keyword field of the attribute, or Text(..., keyword=True), to compare values"
            )
        return self.exact_name

    def _nested(self, query: Query) -> Query:
        if self.nested_in is None or query == MATCH_NONE:
            return query
        return {"nested": {"path": self.nested_in, "query": query}}


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


class Columns:
    """The fields of an index by the columns that they have their values of.

    Args:
        index: the declared index.
    """

    def __init__(self, index: SearchIndex) -> None:
        self._class = index.mapper.class_.__name__
        self._by_name: dict[str, FieldRef] = {}
        self._by_column: dict[Any, list[tuple[int, FieldRef]]] = {}
        for spec in index.fields.values():
            if isinstance(spec, NestedSpec):
                for child in spec.children.values():
                    self._add(_ref(child, spec.name, spec.is_collection), len(spec.relations) + len(child.relations))
            else:
                self._add(_ref(spec, None, False), len(spec.relations))
        self.key_field = self._key_field(index)

    def _add(self, ref: FieldRef, steps: int) -> None:
        self._by_name[ref.name] = ref
        for found in ref.spec.attribute.property.columns:
            self._by_column.setdefault(found, []).append((steps, ref))

    def _key_field(self, index: SearchIndex) -> str:
        """Return the field that sorts documents by key: as the database does where the key is a field by itself."""
        first, *others = index.target.key_columns
        for ref in self._by_name.values():
            is_own = not ref.spec.relations and ref.nested_in is None and not others
            if is_own and ref.exact_name is not None and first in ref.spec.attribute.property.columns:
                return ref.exact_name
        return f"{META_FIELD}.key"

    def named(self, name: str) -> FieldRef:
        """Return a field by its name.

        Raises:
            InvalidOption: there is none of that name.
        """
        if not isinstance(name, str) or name not in self._by_name:
            raise InvalidOption(f"the index has no field {name!r}; it has {', '.join(self._by_name)}")
        return self._by_name[name]

    def element(self, name: str) -> ColumnElement[Any]:
        """Return what stands for a field in a filter."""
        ref = self.named(name)
        return column(name, ref.type_)._annotate({_MARK: ref})

    def find(self, element: Any) -> FieldRef | None:
        """Return the field that a column is, None if ``element`` is no column.

        Raises:
            InvalidFilter: a column that is no field, or of which there are several.
        """
        if not isinstance(element, ClauseElement) or element.__visit_name__ not in ("column", "label"):
            return None
        marked = element._annotations.get(_MARK)
        if isinstance(marked, FieldRef):
            return marked
        found = self._by_column.get(element._deannotate())
        if not found:
            raise InvalidFilter(
                f"the index has no field of {element}; a filter uses attributes of {self._class} and of the related "
                "classes that the index declares, and no aliases of them"
            )
        # The row's own attribute before that of a related row of the same class.
        nearest = min(steps for steps, _ in found)
        refs = [ref for steps, ref in found if steps == nearest]
        comparable = [ref for ref in refs if ref.exact_name is not None] or refs
        names = {ref.spec.path for ref in comparable}
        if len(names) > 1:
            fields = " and ".join(repr(ref.name) for ref in comparable)
            raise InvalidFilter(f"{element} is the fields {fields}; say which by searcher.field(name)")
        return comparable[0]


def _ref(spec: FieldSpec, nested_in: str | None, in_collection: bool) -> FieldRef:
    type_ = spec.attribute.property.columns[0].type
    is_comparable = spec.kind in _COMPARABLE and not isinstance(raw_type(type_), ARRAY)
    return FieldRef(
        name=spec.name,
        kind=spec.kind,
        spec=spec,
        exact_name=spec.exact if is_comparable else None,
        nested_in=nested_in,
        is_collection=spec.is_collection or in_collection,
        type_=type_,
    )
