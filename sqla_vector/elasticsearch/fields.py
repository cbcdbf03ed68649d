"""What a field of a document is declared to be: the attribute it has its value of, and how it is indexed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from sqla_vector.elasticsearch.names import check_field_name
from sqla_vector.exc import InvalidOption

__all__ = [
    "DEFAULT_EF_CONSTRUCTION",
    "DEFAULT_M",
    "INDEX_OPTIONS",
    "DenseVector",
    "Field",
    "Keyword",
    "Nested",
    "Text",
    "declared_fields",
]

INDEX_OPTIONS: Final = (
    "hnsw",
    "int8_hnsw",
    "int4_hnsw",
    "bbq_hnsw",
    "flat",
    "int8_flat",
    "int4_flat",
    "bbq_flat",
)
"""How a ``dense_vector`` can be indexed."""

DEFAULT_M: Final = 16
DEFAULT_EF_CONSTRUCTION: Final = 100
"""The server's own defaults."""

_PATH: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*\Z")


class Field:
    """A field of the documents.

    Args:
        path: the attribute that it has its value of: ``"title"``; of a related row ``"author.name"``; of all rows of a
            collection ``"tags.name"``, whose values are sorted and each there once.
        **mapping: parameters of the mapping in place of those that follow from the column's type: ``type="keyword"``,
            ``analyzer="english"``, ``index=False``.

    Raises:
        InvalidOption: the path is none, or a parameter is not for this kind of field.
    """

    def __init__(self, path: str, **mapping: Any) -> None:
        if not isinstance(path, str) or not _PATH.match(path):
            raise InvalidOption(
                f'a field is declared by the attribute it is of, "title" or "author.name"; got {path!r}'
            )
        self.path = path
        self.parameters: dict[str, Any] = mapping
        self._check()

    def _check(self) -> None:
        type_ = self.parameters.get("type", "")
        if not isinstance(type_, str):
            raise InvalidOption(f"{self}: type= is the name of a field type, got {type_!r}")
        better = {"dense_vector": "DenseVector", "nested": "Nested"}.get(type_)
        if better is not None:
            raise InvalidOption(f"{self}: fields of type {type_} are declared by {better}(...)")
        for name in ("properties", "copy_to", "dynamic") if type_ != "object" else ():
            if name in self.parameters:
                raise InvalidOption(f"{self}: a field has no parameter {name}=; each field is declared by itself")

    def __str__(self) -> str:
        return f"{type(self).__name__}({self.path!r})"

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.parameters.items())
        return f"{type(self).__name__}({self.path!r}{options})"


class Text(Field):
    """A field that is searched by words.

    Args:
        path: the attribute.
        keyword: whether its values can also be compared and counted as a whole, in a sub-field ``keyword``; by default
            as far as the column is a ``String``, and not a ``Text``.
        **mapping: further parameters: ``analyzer=``, ``search_analyzer=``, ``index_options=``.
    """

    def __init__(self, path: str, *, keyword: bool | None = None, **mapping: Any) -> None:
        self.keyword = keyword
        super().__init__(path, **mapping)

    def _check(self) -> None:
        super()._check()
        if self.keyword is not None and not isinstance(self.keyword, bool):
            raise InvalidOption(f"{self}: keyword= is True or False, got {self.keyword!r}")
        if "type" in self.parameters:
            raise InvalidOption(f"{self} has its type; give Field({self.path!r}, type=...) for another one")
        if self.keyword is not None and "fields" in self.parameters:
            raise InvalidOption(f"{self}: give keyword=, or all sub-fields by fields=")


class Keyword(Field):
    """A field whose values are compared, sorted and counted as a whole.

    Values of more than 8,191 characters are kept and not indexed: Elasticsearch takes 32,766 bytes.

    Args:
        path: the attribute.
        **mapping: further parameters: ``normalizer=``, ``ignore_above=``.
    """

    def _check(self) -> None:
        super()._check()
        if "type" in self.parameters:
            raise InvalidOption(f"{self} has its type; give Field({self.path!r}, type=...) for another one")


class DenseVector(Field):
    """A field of vectors that are searched by distance.

    A vector of zeros has no direction: Elasticsearch refuses it under cosine, so documents leave it out, and it never
    is in a result, as in SQL.

    Args:
        path: the attribute, of type ``Vector``, ``HalfVector`` or ``BitVector``.
        metric: ``cosine``, ``l2`` or ``inner_product``; for bits ``hamming``.  By default cosine, and hamming for bits.
        index: ``hnsw`` searches a graph of full vectors; ``int8_hnsw``, ``int4_hnsw`` and ``bbq_hnsw`` one of vectors
            of 8, 4 and 1 bits for each dimension, which need that much less memory; ``flat``, ``int8_flat``,
            ``int4_flat`` and ``bbq_flat`` have no graph, and a search looks at every vector.  By default
            ``int8_hnsw``, and ``hnsw`` for bits.
        m: how many neighbours a vector has in the graph, 2 to 512; by default 16.
        ef_construction: how many candidates are looked at for them, up to 3,200; by default 100.
        oversample: by which factor more candidates of a quantized index are rescored with full vectors, 1 to 10, or 0
            for none.  By default the server's own.

    Raises:
        InvalidOption: an option is none, or contradicts another.
    """

    def __init__(
        self,
        path: str,
        *,
        metric: str | None = None,
        index: str | None = None,
        m: int | None = None,
        ef_construction: int | None = None,
        oversample: float | None = None,
    ) -> None:
        self.metric, self.index, self.m, self.ef_construction = metric, index, m, ef_construction
        self.oversample = oversample
        super().__init__(path)

    def _check(self) -> None:
        if self.index is not None and self.index not in INDEX_OPTIONS:
            raise InvalidOption(f"{self}: index= is one of {', '.join(INDEX_OPTIONS)}; got {self.index!r}")
        for name, value, least, most in (("m", self.m, 2, 512), ("ef_construction", self.ef_construction, 1, 3200)):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise InvalidOption(f"{self}: {name}= is a whole number from {least} to {most:,}, got {value!r}")
            if self.index is not None and not self.index.endswith("hnsw"):
                raise InvalidOption(f"{self}: {name}= is about a graph, and {self.index} has none")
        if self.oversample is not None:
            factor = self.oversample
            if (
                isinstance(factor, bool)
                or not isinstance(factor, (int, float))
                or not (factor == 0 or 1 <= factor < 10)
            ):
                raise InvalidOption(f"{self}: oversample= is 0, or from 1 to less than 10; got {factor!r}")
            if self.index in ("hnsw", "flat"):
                raise InvalidOption(f"{self}: oversample= is about quantized vectors, and {self.index} has full ones")


class Nested(Field):
    """The rows of a collection, or a related row, as objects that are searched each by itself.

    Args:
        path: the relationship: ``"comments"``.
        fields: what each object has, as for the index itself, by attributes of the related class:
            ``{"author": "author.name", "text": "text"}``.

    Raises:
        InvalidOption: the path is none, or there are no fields.
    """

    def __init__(self, path: str, fields: Mapping[str, str | Field] | Iterable[str]) -> None:
        super().__init__(path)
        self.fields = declared_fields(fields)
        for name, field in self.fields.items():
            if isinstance(field, Nested):
                raise InvalidOption(
                    f"{self}: {name} is nested in something nested; give it paths, such as 'author.name'"
                )


def declared_fields(fields: object) -> dict[str, Field]:
    """Return fields by their names.

    Args:
        fields: a dict from names to paths or fields, or the names of attributes.

    Raises:
        InvalidOption: it is neither, or empty.
        InvalidIdentifier: a name cannot be one.
    """
    if isinstance(fields, str) or not isinstance(fields, (Mapping, Iterable)):
        raise InvalidOption(f"fields= is a dict from names to attributes, or a list of attributes; got {fields!r}")
    if not isinstance(fields, Mapping):
        listed = list(fields)
        for name in listed:
            if not isinstance(name, str):
                raise InvalidOption(f"a list of fields has names of attributes only, got {name!r}; give a dict")
            if listed.count(name) > 1:
                raise InvalidOption(f"the field {name!r} is declared twice")
        fields = {name: name for name in listed}
    if not fields:
        raise InvalidOption("an index has fields; name the attributes that its documents are made of")
    found: dict[str, Field] = {}
    for name, given in fields.items():
        check_field_name(name)
        if not isinstance(given, (str, Field)):
            raise InvalidOption(f"the field {name!r} is an attribute or a Field, such as Text('body'); got {given!r}")
        found[name] = Field(given) if isinstance(given, str) else given
    return found
