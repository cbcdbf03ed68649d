"""Vectors of texts that were embedded before: the same text is paid for once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Column, Engine, LargeBinary, MetaData, String, Table, insert, select
from sqlalchemy.exc import IntegrityError

from sqla_vector.embedding.embedder import Embedder, embed, model_of
from sqla_vector.embedding.fingerprint import MAX_LENGTH, fingerprint
from sqla_vector.schema import check_identifier, check_whole_number

__all__ = ["CachedEmbedder", "MemoryCache", "TableCache", "VectorCache", "cache_table"]

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

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """Return the vectors of texts; texts that are equal are embedded once."""
        keys = [str(fingerprint(self._model, text)) for text in texts]
        known = dict(self._cache.get(list(dict.fromkeys(keys))))
        wanted = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if wanted:
            made = dict(zip(wanted, embed(self._embedder, list(wanted.values())), strict=True))
            self._cache.put(made)
            known |= made
        return np.stack([known[key] for key in keys]) if keys else np.empty((0, self.dimensions), np.float32)


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
    """
    check_identifier(name, "table name")
    return Table(
        name,
        metadata,
        Column("fingerprint", String(MAX_LENGTH), primary_key=True),
        Column("vector", LargeBinary, nullable=False),
        schema=schema,
    )


class TableCache:
    """Keeps vectors in a table, for all processes and for good.

    It has transactions of its own: what was paid for stays, also when the transaction that needed it is undone.

    Args:
        engine: the table's database.
        table: made by :func:`cache_table`.
    """

    def __init__(self, engine: Engine, table: Table) -> None:
        self._engine = engine
        self._table = table

    def get(self, keys: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Return the vectors that are known."""
        found: dict[str, NDArray[np.float32]] = {}
        columns = self._table.c
        with self._engine.connect() as connection:
            for start in range(0, len(keys), _PART):
                wanted = columns.fingerprint.in_(keys[start : start + _PART])
                rows = connection.execute(select(columns.fingerprint, columns.vector).where(wanted))
                found.update({key: np.frombuffer(vector, dtype="<f4") for key, vector in rows})
        return found

    def put(self, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Keep vectors; another process may have kept the same ones meanwhile."""
        rows = [
            {"fingerprint": key, "vector": np.asarray(vector, dtype="<f4").tobytes()} for key, vector in vectors.items()
        ]
        if not rows:
            return
        try:
            with self._engine.begin() as connection:
                connection.execute(insert(self._table), rows)
        except IntegrityError:
            for row in rows:
                try:
                    with self._engine.begin() as connection:
                        connection.execute(insert(self._table), row)
                except IntegrityError:
                    continue
