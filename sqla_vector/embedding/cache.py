"""Vectors of texts that were embedded before: the same text is paid for once."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Column, Engine, LargeBinary, MetaData, String, Table, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.pool import SingletonThreadPool, StaticPool

from sqla_vector.embedding.embedder import Embedder, embed, model_of
from sqla_vector.embedding.fingerprint import MAX_LENGTH, fingerprint
from sqla_vector.exc import InvalidOption
from sqla_vector.schema import check_identifier, check_whole_number
from sqla_vector.types import support_of

__all__ = ["CachedEmbedder", "MemoryCache", "TableCache", "VectorCache", "cache_table"]

logger = logging.getLogger("sqla_vector.embedding")

_PART = 500
"""Keys in one query: databases limit the parameters of a statement."""


class VectorCache(Protocol):
    """Keeps vectors by the fingerprints of their texts, which name the model too."""

    def get(self, keys: Sequence[str]) -> Mapping[str, NDArray[np.float32]]:
        """Return the vectors that are known."""

    def put(self, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Keep vectors."""


class CachedEmbedder:
    """An embedder that asks another one only for texts it has not seen.

    A cache that fails is logged and passed over: it saves work, and never is a reason for work to fail.

    Args:
        embedder: makes the vectors.
        cache: keeps them; by default 10,000 in memory.
    """

    def __init__(self, embedder: Embedder, cache: VectorCache | None = None) -> None:
        self._model = model_of(embedder)
        self._embedder = embedder
        self._cache: VectorCache = MemoryCache() if cache is None else cache
        self.name = embedder.name
        self.version = embedder.version
        self.dimensions = embedder.dimensions
        self.query_prefix = getattr(embedder, "query_prefix", "")

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """Return the vectors of texts; texts that are equal are embedded once.

        Raises:
            EmbedderError: as :func:`sqla_vector.embedding.embed`; nothing of a refused answer is kept.
        """
        keys = [str(fingerprint(self._model, text)) for text in texts]
        known = self._known(list(dict.fromkeys(keys)))
        wanted = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if wanted:
            made = dict(zip(wanted, embed(self._embedder, list(wanted.values())), strict=True))
            self._keep(made)
            known |= made
        return np.stack([known[key] for key in keys]) if keys else np.empty((0, self.dimensions), np.float32)

    def _known(self, keys: list[str]) -> dict[str, NDArray[np.float32]]:
        try:
            found = self._cache.get(keys)
        except Exception as error:
            logger.warning("the cache of %s cannot be read: %s", self._model, _reason(error))
            return {}
        # Kept for a model of the same name and version that was asked for another dimension, or damaged.
        return {
            key: vector
            for key, vector in found.items()
            if vector.shape == (self.dimensions,) and np.isfinite(vector).all()
        }

    def _keep(self, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        try:
            self._cache.put(vectors)
        except Exception as error:
            logger.warning("the cache of %s cannot keep %d vectors: %s", self._model, len(vectors), _reason(error))


def _reason(error: Exception) -> str:
    # The driver's own words: SQLAlchemy's have the parameters too.
    original = getattr(error, "orig", None) or error
    return f"{type(original).__name__}: {original}"


class MemoryCache:
    """Keeps the vectors used last, in this process.

    Args:
        max_vectors: how many; 10,000 of 384 dimensions take 15 MB.
    """

    def __init__(self, max_vectors: int = 10_000) -> None:
        self._max = check_whole_number(max_vectors, "max_vectors", 1, 10**9)
        self._vectors: OrderedDict[str, NDArray[np.float32]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._vectors)

    def get(self, keys: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Return the vectors that are known."""
        with self._lock:
            found = {key: self._vectors[key] for key in keys if key in self._vectors}
            for key in found:
                self._vectors.move_to_end(key)
            return found

    def put(self, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Keep vectors, and forget those not used for longest."""
        with self._lock:
            for key, vector in vectors.items():
                self._vectors[key] = _frozen(vector)
                self._vectors.move_to_end(key)
            while len(self._vectors) > self._max:
                self._vectors.popitem(last=False)


def _frozen(vector: Any) -> NDArray[np.float32]:
    copied = np.array(vector, dtype=np.float32)
    copied.setflags(write=False)
    return copied


def cache_table(metadata: MetaData, name: str = "vector_embedding_cache", schema: str | None = None) -> Table:
    """Declare the table of a :class:`TableCache` among a project's own, to be created and migrated with them.

    Args:
        metadata: the project's.
        name: the table's name.
        schema: its schema.

    Raises:
        InvalidIdentifier: a name cannot be one.
    """
    check_identifier(name, "table name")
    if schema is not None:
        check_identifier(schema, "schema")
    return Table(
        name,
        metadata,
        Column("fingerprint", String(MAX_LENGTH), primary_key=True),
        Column("vector", LargeBinary, nullable=False),
        schema=schema,
    )


class TableCache:
    """Keeps vectors in a table, for all processes and for good.

    It has connections and transactions of its own: what was paid for stays, also when the transaction that needed
    it is undone.  It waits a tenth of a second for a lock at most.  On SQLite, where one transaction writes at a
    time, give it a file of its own: in the file that a session is writing to nothing can be kept meanwhile.

    Args:
        engine: the table's database; best one of its own, since a session that waits here for a second connection
            holds one already.
        table: made by :func:`cache_table`.

    Raises:
        InvalidOption: the engine is asynchronous, or has one connection for everybody, as SQLite in memory has: its
            transaction would be that of the session.
    """

    def __init__(self, engine: Engine, table: Table) -> None:
        if not isinstance(engine, Engine):
            raise InvalidOption(
                f"TableCache needs an Engine, got {type(engine).__name__}; beside an AsyncEngine make one of the same "
                "database with create_engine()"
            )
        if isinstance(engine.pool, (SingletonThreadPool, StaticPool)):
            raise InvalidOption(
                "TableCache needs connections of its own, and this engine has one for everybody, as SQLite in memory "
                "has; use MemoryCache(), or a file"
            )
        self._engine = engine
        self._table = table
        self._support = support_of(engine.dialect)

    def get(self, keys: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Return the vectors that are known."""
        found: dict[str, NDArray[np.float32]] = {}
        columns = self._table.c
        with self._engine.connect() as connection, self._support.brief_lock_wait(connection):
            for start in range(0, len(keys), _PART):
                wanted = columns.fingerprint.in_(keys[start : start + _PART])
                rows = connection.execute(select(columns.fingerprint, columns.vector).where(wanted))
                # A length that is no multiple of 4 is no vector.
                found.update({key: np.frombuffer(data, dtype="<f4") for key, data in rows if len(data) % 4 == 0})
        return found

    def put(self, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Keep vectors; another process may have kept the same ones meanwhile."""
        # Sorted: two transactions that insert the same keys in different orders would wait for each other.
        rows = [
            {"fingerprint": key, "vector": np.asarray(vector, dtype="<f4").tobytes()}
            for key, vector in sorted(vectors.items(), key=lambda item: item[0])
        ]
        if not rows:
            return
        try:
            self._insert(rows)
        except IntegrityError:
            for row in rows:
                try:
                    self._insert([row])
                except IntegrityError:
                    continue

    def _insert(self, rows: list[dict[str, Any]]) -> None:
        with self._engine.connect() as connection, self._support.brief_lock_wait(connection):
            connection.execute(insert(self._table), rows)
            connection.commit()
