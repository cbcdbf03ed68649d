"""``SearchIndex``: a mapped class as documents of an Elasticsearch index."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Table, inspect
from sqlalchemy.orm import Mapper, configure_mappers

from sqla_vector.elasticsearch import creation
from sqla_vector.elasticsearch.documents import Document, document_id, hash_of, key_of, keys_after, read_documents
from sqla_vector.elasticsearch.fields import Field, Nested, declared_fields
from sqla_vector.elasticsearch.mapping import definition_of, mapping_of_index
from sqla_vector.elasticsearch.names import channel_of, check_index_name
from sqla_vector.elasticsearch.settings import EXCLUDE_VECTORS, GC_DELETES, advised_shards, checked_settings, seconds_of
from sqla_vector.elasticsearch.sizing import bytes_in_source, bytes_per_vector
from sqla_vector.elasticsearch.specs import DenseVectorSpec, FieldSpec, leaves, resolve, resolved
from sqla_vector.exc import InvalidOption
from sqla_vector.tracking.mirrors import Mirror, declare_mirror, mirrors
from sqla_vector.tracking.outbox import check_outbox
from sqla_vector.tracking.targets import Key, Target

if TYPE_CHECKING:
    from elasticsearch import Elasticsearch

__all__ = ["SearchIndex", "indexes_of"]

_DECLARED = "sqla_vector_indexes"
"""Where a class keeps its indexes: for as long as the class is there, as it keeps its mirrors."""

_OTHER_BYTES = 1000
"""Of the fields of a document that are no vectors, where only the number of documents is known."""


class SearchIndex:
    """An Elasticsearch index whose documents are the rows of a mapped class.

    ::

        articles = SearchIndex(
            "articles",
            Article,
            fields={
                "title": "title",
                "lang": Keyword("lang"),
                "author": "author.name",
                "tags": "tags.name",
                "embedding": DenseVector("embedding", metric="cosine", index="int8_hnsw"),
                "comments": Nested("comments", {"author": "author", "text": "text"}),
            },
            outbox=outbox,
        )

    From then on every change of what a document is made of is noted in the outbox: by sessions of which
    :func:`sqla_vector.tracking.track` knows, by workers, and by triggers where there are any.

    Args:
        name: an alias; the index behind it has a suffix, so that another one can take its place.
        class_: the mapped class.
        fields: a dict from names of fields to attributes, or to what declares more of them; or a list of attributes.
        outbox: the table made by :func:`sqla_vector.tracking.outbox_table`.
        settings: of the index, in place of those that are advised: 1 replica, a refresh every second, tombstones that
            stay for an hour, vectors kept in ``_source``.
        expected_size: how many documents (a whole number), or how large it is on disk (``"300gb"``): for the number of
            shards, about 30 GB in each.

    Raises:
        InvalidIdentifier: a name cannot be one.
        InvalidOption: an option is none; or there is another index of that name in the same outbox.
        InvalidDeclaration: an attribute cannot be a field.  Of related rows that is found out when mappers are
            configured, or when the fields are needed.
        UnsupportedMetric: Elasticsearch does not have a metric.
    """

    def __init__(
        self,
        name: str,
        class_: type[Any],
        *,
        fields: Mapping[str, str | Field] | Iterable[str],
        outbox: Table,
        settings: Mapping[str, Any] | None = None,
        expected_size: int | str | None = None,
    ) -> None:
        self.name = check_index_name(name)
        mapper = inspect(class_, raiseerr=False) if isinstance(class_, type) else None
        if not isinstance(mapper, Mapper):
            raise InvalidOption(f"the index {name} is of a mapped class, got {class_!r}")
        self.outbox = check_outbox(outbox)
        self.channel = channel_of(name)
        """The channel of its entries in the outbox; equals the name where that is a plain identifier."""
        self.declared = declared_fields(fields)
        self._given_settings = dict(settings) if isinstance(settings, Mapping) else settings
        self._expected_size = _checked_size(expected_size)
        self._lock = threading.Lock()
        checked_settings(self._given_settings)
        for field, one in self.declared.items():
            # What has no related rows can be checked at once, also before the class is complete.
            if mapper.configured or not ("." in one.path or isinstance(one, Nested)):
                resolve(mapper, field, one, f"{name}.{field}")
        self.mirror = declare_mirror(Mirror(self.channel, self.outbox, class_, tuple(self._paths())))
        mapper.class_manager.info.setdefault(_DECLARED, {})[self.mirror] = self

    def __repr__(self) -> str:
        return f"SearchIndex({self.name!r}, {self.mirror.class_.__name__})"

    def _paths(self) -> list[str]:
        found = []
        for field in self.declared.values():
            inner = field.fields.values() if isinstance(field, Nested) else ()
            found += [f"{field.path}.{child.path}" for child in inner] or [field.path]
        return list(dict.fromkeys(found))

    @property
    def mapper(self) -> Mapper[Any]:
        """The class."""
        return self.mirror.mapper

    @property
    def target(self) -> Target:
        """The rows, as the outbox names them."""
        return self.mirror.target

    @property
    def entity(self) -> str:
        """The table of the rows."""
        return self.target.entity

    @cached_property
    def fields(self) -> dict[str, FieldSpec]:
        """The fields of a document by their names, in the order of the declaration."""
        configure_mappers()
        return resolved(self.mapper, self.declared, self.name)

    @cached_property
    def vectors(self) -> dict[str, DenseVectorSpec]:
        """The fields of vectors by their names, nested ones included."""
        return {spec.name: spec for spec in leaves(self.fields) if isinstance(spec, DenseVectorSpec)}

    def mapping(self) -> dict[str, Any]:
        """Return the mapping of the index."""
        return mapping_of_index(self.fields, self.entity, self.definition)

    def settings(self) -> dict[str, Any]:
        """Return the settings of the index by their full names."""
        return checked_settings(self._given_settings, self._shards())

    @cached_property
    def definition(self) -> str:
        """A hash of mapping and settings."""
        return definition_of(self.fields, self.settings())

    @property
    def tombstone_seconds(self) -> float:
        """For how many seconds a deleted document's version is remembered."""
        return seconds_of(self.settings()[GC_DELETES]) or 0.0

    def _shards(self) -> int | None:
        size = self._expected_size
        if size is None:
            return None
        if isinstance(size, float):
            return advised_shards(size)
        each = float(_OTHER_BYTES)
        excluded = checked_settings(self._given_settings)[EXCLUDE_VECTORS] not in (False, "false")
        for spec in self.vectors.values():
            bits = spec.element_type == "bit"
            on_disk, _ = bytes_per_vector(spec.dim, spec.index, spec.m, bits=bits)
            each += on_disk if excluded else on_disk + bytes_in_source(spec.dim, bits=bits)
        return advised_shards(size * each, size)

    def document_id(self, key: Sequence[Any]) -> str:
        """Return the ``_id`` of a row's document: the key itself, or for a composite one its JSON.

        Raises:
            InvalidDocument: the key is empty, longer than 512 bytes or no Unicode.
        """
        return document_id(self.target, key)

    def key_of(self, document_id: str) -> Key:
        """Return the key of the row whose document has an ``_id``.

        Raises:
            ValueError: no row has it.
        """
        return key_of(self.target, document_id)

    def hash_of(self, body: Mapping[str, Any]) -> str:
        """Return the hash of the fields of a document, or of a ``_source`` that came from the server."""
        return hash_of(self.fields, body)

    def documents(self, connection: Connection, keys: Sequence[Key]) -> dict[Key, Document]:
        """Return the documents of rows as a transaction sees them; rows that are not there are missing.

        Rows are read by 500, and what is related to them with one query for each relationship.

        Args:
            connection: in a transaction.
            keys: of the rows.
        """
        return read_documents(connection, self.target, self.fields, keys)

    def keys_after(self, connection: Connection, after: Key | None, limit: int) -> list[Key]:
        """Return the next keys of rows in the order of the database, from the first one on if ``after`` is None."""
        return keys_after(connection, self.target, after, limit)

    def create(self, client: Elasticsearch, suffix: str | None = None) -> str:
        """Create the index and its alias in one step, and return the name of the index behind the alias.

        Args:
            client: with the right to create indexes.
            suffix: ends that name; by default the time.

        Raises:
            IndexExists: it is there already.
            SearchError: the server refuses to create it.
        """
        return creation.create(client, self, suffix)

    def check_current(self, client: Elasticsearch) -> None:
        """See to it that the index is there and has the declared mapping.

        Raises:
            IndexMissing: it is not there.
            IndexDrift: its mapping is another.
        """
        creation.check_current(client, self)

    def mapping_drift(self, client: Elasticsearch) -> list[str]:
        """Say in words how the mapping of the index differs from the declared one, nothing if it does not.

        Raises:
            IndexMissing: there is no index.
        """
        return creation.mapping_drift(client, self)

    def settings_drift(self, client: Elasticsearch) -> list[str]:
        """Say in words how the settings of the index differ from the declared ones, nothing if they do not.

        Raises:
            IndexMissing: there is no index.
        """
        return creation.settings_drift(client, self)


def indexes_of(outbox: Table) -> tuple[SearchIndex, ...]:
    """Return the indexes whose changes an outbox notes, in the order of their names."""
    declared = [
        inspect(mirror.class_).class_manager.info.get(_DECLARED, {}).get(mirror)
        for mirror in mirrors()
        if mirror.outbox is outbox
    ]
    return tuple(sorted((index for index in declared if index is not None), key=lambda index: str(index.name)))


_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "pb": 10**15}


def _checked_size(size: object) -> int | float | None:
    """Return a number of documents, or bytes as a float."""
    if isinstance(size, str):
        number, unit = size[:-2].strip(), size[-2:].lower()
        if number.isascii() and number.isdecimal() and unit in _UNITS:
            return float(int(number) * _UNITS[unit])
    elif size is None or (isinstance(size, int) and not isinstance(size, bool) and size >= 0):
        return size
    raise InvalidOption(f"expected_size= is a number of documents, or bytes such as '300gb'; got {size!r}")
