"""Documents: what the rows of an index are in Elasticsearch, read from the database many at once."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, select
from sqlalchemy.orm import Mapper, Session, load_only, raiseload, selectinload

from sqla_vector.elasticsearch.convert import checked_text
from sqla_vector.elasticsearch.names import META_FIELD
from sqla_vector.elasticsearch.specs import FieldSpec, NestedSpec, leaves
from sqla_vector.exc import InvalidDocument
from sqla_vector.tracking import texts
from sqla_vector.tracking.related import keys_in
from sqla_vector.tracking.targets import Key, Target
from sqla_vector.values import codec_for

__all__ = ["Document", "document_id", "hash_of", "key_of", "keys_after", "read_documents", "to_bytes"]

_PART: Final = 500
_LONGEST_ID: Final = 512


@dataclass(slots=True)
class Document:
    """A row as Elasticsearch has it."""

    id: str
    key: Key
    body: dict[str, Any]
    """Its fields.  A vector is a float32 array, or hexadecimal for bits; all else is as JSON has it."""
    hash: str
    """Of the fields; equal for equal contents, also when they have been to the server."""
    error: str | None = None
    """Why the row cannot be a document; the body is empty then."""

    def to_bytes(self) -> bytes:
        """Return the body as JSON."""
        return to_bytes(self.body)


def _dumps() -> Callable[[Mapping[str, Any]], bytes]:
    try:
        orjson: Any = importlib.import_module("orjson")
    except ImportError:
        return _plain_bytes
    options = orjson.OPT_SERIALIZE_NUMPY

    def dumps(body: Mapping[str, Any]) -> bytes:
        try:
            # Vectors are half as long as in float64, and need a tenth of the time.
            encoded: bytes = orjson.dumps(body, option=options)
        except TypeError:  # whole numbers of more than 64 bits
            return _plain_bytes(body)
        return encoded

    return dumps


def _plain_bytes(body: Mapping[str, Any]) -> bytes:
    parts = []
    for name, value in body.items():
        # As for a database: nine digits are a float32, and float64 would have twice as many.
        is_vector = isinstance(value, np.ndarray)
        text = codec_for("vector", None).to_text(value) if is_vector else _plain_text(value)
        parts.append(f"{json.dumps(name)}:{text}")
    return f"{{{','.join(parts)}}}".encode()


def _plain_text(value: Any) -> str:
    return json.dumps(value, default=_list_of, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _list_of(value: Any) -> list[Any]:
    if isinstance(value, np.ndarray):
        found: list[Any] = value.tolist()
        return found
    raise TypeError(f"{type(value).__name__} is no JSON")


to_bytes: Final[Callable[[Mapping[str, Any]], bytes]] = _dumps()
"""Returns a body as JSON, by orjson where that is installed."""


def hash_of(specs: Mapping[str, FieldSpec], body: Mapping[str, Any]) -> str:
    """Return the hash of a document's fields: 32 hexadecimal digits.

    Args:
        specs: the fields of the index.
        body: a document's, or a ``_source`` that came from the server.  What it says about itself is left out.
    """
    contents = {}
    for name, value in body.items():
        if name != META_FIELD:
            spec = specs.get(name)
            contents[name] = value if spec is None else spec.canonical(value)
    text = json.dumps(contents, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:32]


def document_id(target: Target, key: Sequence[Any]) -> str:
    """Return the ``_id`` of a row's document: the key itself, or for a composite one its JSON.

    Raises:
        InvalidDocument: it is empty, longer than 512 bytes or no Unicode.
    """
    if len(key) == 1 and type(key[0]) is int:
        return str(key[0])
    row_key = target.encode(key)
    name = str(json.loads(row_key)[0]) if len(key) == 1 else row_key
    checked_text(name)
    if not name:
        raise InvalidDocument("the row's key is empty, which Elasticsearch does not take as an id")
    if len(name.encode()) > _LONGEST_ID:
        raise InvalidDocument(f"the row's key is longer than {_LONGEST_ID} bytes, which an id can have")
    return name


def key_of(target: Target, name: str) -> Key:
    """Return the key of the row whose document has an ``_id``.

    Raises:
        ValueError: no row has it.
    """
    try:
        is_composite = len(target.key_columns) > 1
        key = target.decode(name) if is_composite else tuple(decode(name) for decode in target.decoders)
        is_same = document_id(target, key) == name
    except (ValueError, TypeError, RecursionError):
        is_same = False
    if not is_same:
        raise ValueError(f"{name!r} is the id of no row of {target.entity}")
    return key


def keys_after(connection: Connection, target: Target, after: Key | None, limit: int) -> list[Key]:
    """Return the next keys in the order of the database, from the first one on if ``after`` is None."""
    stmt = select(*target.key_attributes).order_by(*target.key_attributes).limit(limit)
    if after is not None:
        stmt = stmt.where(texts.keys_after(target, after))
    return [tuple(row) for row in connection.execute(stmt)]


def read_documents(
    connection: Connection, target: Target, specs: Mapping[str, FieldSpec], keys: Sequence[Key]
) -> dict[Key, Document]:
    """Return the documents of rows; those that are not there are missing.

    Columns are read in one query for 500 rows, and related rows in one more for each relationship.

    Args:
        connection: in a transaction.
        target: the class.
        specs: the fields of its index.
        keys: of the rows.
    """
    found: dict[Key, Document] = {}
    by_columns = not any(spec.relations for spec in specs.values())
    for start in range(0, len(keys), _PART):
        part = keys[start : start + _PART]
        read = _by_columns if by_columns else _by_entities
        for key, values in read(connection, target, specs, part):
            found[key] = _document(target, specs, key, values)
    return found


def _document(
    target: Target, specs: Mapping[str, FieldSpec], key: Key, value_of: Callable[[FieldSpec], Any]
) -> Document:
    name, body = "", dict[str, Any]()
    try:
        name = document_id(target, key)
        for field, spec in specs.items():
            value = value_of(spec)
            if value is not None:
                body[field] = value
        digest = hash_of(specs, body)
    except InvalidDocument as error:
        return Document(name, key, {}, "", str(error))
    body[META_FIELD] = {"hash": digest, "key": target.encode(key)}
    return Document(name, key, body, digest)


Found = Iterator[tuple[Key, Callable[[FieldSpec], Any]]]


def _by_columns(connection: Connection, target: Target, specs: Mapping[str, FieldSpec], keys: Sequence[Key]) -> Found:
    places = {id(spec): len(target.key_columns) + number for number, spec in enumerate(specs.values())}
    stmt = select(*target.key_attributes, *(spec.attribute for spec in specs.values()))
    stmt = stmt.where(keys_in(connection, target.key_attributes, keys))
    for row in connection.execute(stmt):
        yield tuple(row[: len(target.key_columns)]), _of_row(row, places)


def _of_row(row: Any, places: Mapping[int, int]) -> Callable[[FieldSpec], Any]:
    return lambda spec: spec.to_json(row[places[id(spec)]])


def _of_entity(entity: Any) -> Callable[[FieldSpec], Any]:
    return lambda spec: spec.of(entity)


def _by_entities(connection: Connection, target: Target, specs: Mapping[str, FieldSpec], keys: Sequence[Key]) -> Found:
    stmt = select(*target.key_attributes, target.mapper.class_).options(*_loading(target.mapper, specs))
    stmt = stmt.where(keys_in(connection, target.key_attributes, keys))
    # A session of its own sees the rows as they are, whatever the user's session holds of them.
    with Session(connection, join_transaction_mode="rollback_only", autoflush=False) as session:
        for row in session.execute(stmt):
            yield tuple(row[:-1]), _of_entity(row[-1])


def _loading(mapper: Mapper[Any], specs: Mapping[str, FieldSpec]) -> list[Any]:
    """Return the options that load the fields' columns and no others, with a query for each relationship."""
    wanted: dict[tuple[str, ...], list[Any]] = {(): []}
    for spec in specs.values():
        for depth in range(len(spec.relations) + 1):
            wanted.setdefault(spec.relations[:depth], [])
        if not isinstance(spec, NestedSpec):
            wanted[spec.relations].append(spec.attribute)
            continue
        for child in leaves(spec.children):
            for depth in range(len(child.relations) + 1):
                wanted.setdefault((*spec.relations, *child.relations[:depth]), [])
            wanted[(*spec.relations, *child.relations)].append(child.attribute)
    # What is not named here would be loaded one by one.
    options: list[Any] = [raiseload("*")]
    for path, attributes in wanted.items():
        at, option = mapper, None
        for name in path:
            relation = getattr(at.class_, name)
            option = selectinload(relation) if option is None else option.selectinload(relation)
            at = at.relationships[name].mapper
        keys = [getattr(at.class_, at.get_property_by_column(column).key) for column in at.primary_key]
        columns = list(dict.fromkeys([*keys, *attributes]))
        options.append(load_only(*columns) if option is None else option.load_only(*columns))
    return options
