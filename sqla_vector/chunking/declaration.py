"""``chunked()``: the table of the chunks of a text, declared beside the table that has the text."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import BigInteger, Column, ForeignKeyConstraint, Index, Integer, Table, Text, and_, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapper, class_mapper, mapped_column, registry, relationship

from sqla_vector.chunking.rows import Chunking
from sqla_vector.chunking.splitting import Splitter, by_tokens
from sqla_vector.embedding import Fingerprint, SourceText, embedding_column
from sqla_vector.embedding.declaration import When, dependencies_of
from sqla_vector.exc import InvalidDeclaration, InvalidOption
from sqla_vector.schema import check_identifier, vector_index
from sqla_vector.tracking.derived import declare_derived
from sqla_vector.tracking.targets import Target
from sqla_vector.types import VectorType

__all__ = ["chunked"]

_OWN: Final = {"id", "position", "start", "end", "text", "embedding", "embedding_fingerprint", "metadata", "registry"}


def chunked(
    class_: type[Any],
    source: str | Sequence[str] | Callable[[Any], str | None],
    *,
    vector: VectorType[Any],
    embedder: str,
    splitter: Splitter | None = None,
    when: When = "flush",
    depends_on: Sequence[str] = (),
    template: str | None = None,
    redact: Callable[[str], str | None] | None = None,
    prefix: str = "",
    name: str | None = None,
    tablename: str | None = None,
    collection: str = "chunks",
    parent: str | None = None,
    index: Mapping[str, Any] | None = None,
) -> Any:
    """Declare the chunks of a class's texts: a mapped class and its table, in the metadata of the class.

    ::

        DocumentChunk = chunked(
            Document, "body", vector=Vector(384), embedder="minilm",
            splitter=by_tokens(200, 20), index={"metric": "cosine", "method": "hnsw"},
        )

    It has ``id``, the parent's key (``document_id``), ``position`` from 0, ``text``, ``start`` and ``end`` (where it
    stands in the parent's text, in characters), ``embedding`` and ``embedding_fingerprint``, and a relationship to
    the parent (``document``), which has one to it (``chunks``).  Its rows are written by sessions that are tracked,
    and by workers; a chunk whose text stays the same keeps its row and its vector, wherever it is moved to.

    Args:
        class_: the mapped class that has the text.  Its table has a primary key.
        source: as for :func:`~sqla_vector.embedding.embedding_column`.
        vector: the type of the chunks' vectors, with a dimension.
        embedder: the name under which ``track()`` is given the embedder.
        splitter: by default ``by_tokens()``; or a function from a text to its chunks, as spans ``(start, end)`` or
            as the parts themselves.  It must give the same for the same text.
        when: ``flush`` embeds new chunks as a session flushes, ``worker`` leaves it to a worker.  Chunks are written
            at flush in either case.
        depends_on: as for ``embedding_column()``.
        template: likewise.
        redact: likewise; it is given the whole text before it is split, each chunk before it is embedded, and
            queries, so it has to leave alone what it returned.
        prefix: what the model wants before a text, ``"passage: "``; it is embedded, and not part of the chunk.
        name: of the class; by default that of ``class_`` and ``Chunk``.
        tablename: by default that of ``class_`` and ``_chunk``.
        collection: the relationship of ``class_`` to its chunks, which are in order there.
        parent: that of a chunk to its parent; by default the name of the table of ``class_``.
        index: options of :func:`~sqla_vector.vector_index`, for an index over the vectors.

    Returns:
        The mapped class of the chunks.

    Raises:
        InvalidDeclaration: a name is taken, or the class has no table with a primary key that can be written down.
            What only the complete model can show is checked when mappers are configured.
        InvalidIdentifier: a name cannot be one.
        InvalidOption: an option is none, or contradicts another.
    """
    try:
        # inspect() would configure mappers, which may name classes that are still to come.
        mapper = class_mapper(class_, configure=False)
    except (SQLAlchemyError, TypeError):
        raise InvalidOption(f"chunked() takes a mapped class, got {class_!r}") from None
    table = mapper.local_table
    if not isinstance(table, Table) or not table.primary_key.columns:
        raise InvalidDeclaration(f"{class_.__name__}: chunks belong to the rows of a table with a primary key")
    if splitter is not None and not callable(splitter):
        raise InvalidOption(f"splitter= is a function from a text to its chunks, such as by_tokens(), got {splitter!r}")
    if not isinstance(prefix, str):
        raise InvalidOption(f"prefix= is a text, got {prefix!r}")
    if index is not None and not isinstance(index, Mapping):
        raise InvalidOption(f'index= is the options of a vector_index(), {{"metric": "cosine"}}, got {index!r}')
    text = SourceText.of(source, depends_on, template, redact)
    _ = Target(mapper, table, ()).decoders  # refuses keys that no entry of an outbox can name
    own = check_identifier(f"{table.name}_chunk" if tablename is None else tablename, "table name")
    parent = table.name if parent is None else parent
    keys = {f"{table.name}_{column.name}": column for column in table.primary_key.columns}
    _check_names(mapper, table, own, parent, collection, keys)
    name = check_identifier(f"{class_.__name__}Chunk" if name is None else name, "name")
    if mapper.configured:
        dependencies_of(mapper, text, f"{class_.__name__}.{collection}", "chunked()")
    attributes: dict[str, Any] = {
        "__module__": class_.__module__,
        "__doc__": f"A chunk of a text of {class_.__name__}.",
        "__tablename__": own,
        "id": mapped_column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True, autoincrement=True),
        **{key: mapped_column(column.type, nullable=False) for key, column in keys.items()},
        "position": mapped_column(Integer, nullable=False),
        "start": mapped_column("start_offset", Integer, nullable=False),
        "end": mapped_column("end_offset", Integer, nullable=False),
        "text": mapped_column(Text, nullable=False),
        "embedding": embedding_column(
            vector, source="text", embedder=embedder, when=when, redact=redact, template=_template(prefix)
        ),
        "embedding_fingerprint": mapped_column(Fingerprint()),
        "__table_args__": (
            ForeignKeyConstraint(
                list(keys),
                [f"{table.fullname}.{c.name}" for c in keys.values()],
                ondelete="CASCADE",
                onupdate="CASCADE",
            ),
            # Without the position: a chunk that is moved is then written without a look at any index (HOT).
            Index(f"ix_{own}_parent"[:63], *keys),
            *(() if index is None else (vector_index(f"ix_{own}_embedding"[:63], "embedding", **index),)),
            # Without it SQLite gives the number of a deleted chunk to the next one, which objects and copies of the
            # deleted one would pass for.
            {"schema": table.schema, "sqlite_autoincrement": True},
        ),
    }
    made = _mapped(class_, mapper.registry, name, attributes)
    rows = made.__table__
    joined = and_(*(rows.c[key] == column for key, column in keys.items()))
    foreign = [rows.c[key] for key in keys]
    class_mapper(made, configure=False).add_property(
        parent, relationship(class_, primaryjoin=joined, foreign_keys=foreign, viewonly=True)
    )
    mapper.add_property(
        collection,
        relationship(made, primaryjoin=joined, foreign_keys=foreign, order_by=rows.c.position, viewonly=True),
    )
    chunking = Chunking(class_, made, text, by_tokens() if splitter is None else splitter, tuple(keys), collection)
    declare_derived(chunking, mapper)
    if not mapper.configured:
        # What a text is made of may be in a class that is still to come.
        event.listen(Mapper, "after_configured", lambda: chunking.dependencies, once=True)
    return made


def _check_names(
    mapper: Mapper[Any], table: Table, own: str, parent: str, collection: str, keys: Mapping[str, Column[Any]]
) -> None:
    where = mapper.class_.__name__
    for what, attribute in (("collection", collection), ("parent", parent), *(("a key", key) for key in keys)):
        if not isinstance(attribute, str) or not attribute.isidentifier() or keyword.iskeyword(attribute):
            raise InvalidOption(f"{where}: {what} of chunked() is the name of an attribute, got {attribute!r}")
    if (f"{table.schema}.{own}" if table.schema else own) in table.metadata.tables:
        raise InvalidDeclaration(f"{where}: there is a table {own} already; give chunked() tablename=")
    if collection in mapper._props or hasattr(mapper.class_, collection):
        raise InvalidDeclaration(f"{where} has {collection} already; give chunked() collection=")
    for taken in (_OWN | {parent}) & set(keys) or _OWN & {parent}:
        raise InvalidDeclaration(f"{where}: chunks have {taken} of their own; give chunked() another parent=")


def _template(prefix: str) -> str | None:
    return prefix.replace("{", "{{").replace("}", "}}") + "{text}" if prefix else None


def _mapped(class_: type[Any], mapped_in: registry, name: str, attributes: dict[str, Any]) -> Any:
    """Return a mapped class, of the declarative base of another one if that has one."""
    # The base itself, and not what is between: an abstract class may want columns that chunks have not.
    base = next((one for one in class_.__mro__ if isinstance(vars(one).get("registry"), registry)), None)
    if base is not None:
        return type(base)(name, (base,), attributes)
    return mapped_in.mapped(type(name, (), attributes))
