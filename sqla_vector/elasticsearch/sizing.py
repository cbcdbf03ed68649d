"""How large an index becomes: bytes on disk, memory for vectors, shards and nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from sqla_vector.elasticsearch.fields import DEFAULT_M, INDEX_OPTIONS
from sqla_vector.elasticsearch.settings import advised_shards
from sqla_vector.exc import InvalidOption

__all__ = ["Sizing", "bytes_in_source", "bytes_per_vector", "sizing"]

_JSON_BYTES: Final = 10
"""Of a float32 in ``_source``; 9.6 were measured on 9.2, with random vectors of length one and the default codec."""


@dataclass(frozen=True)
class Sizing:
    """What an index needs."""

    vectors: int
    dimensions: int
    index: str
    disk: int
    """Bytes of one copy of the index."""
    memory: int
    """Bytes of memory beside the heap (the file system's cache) for one copy, to be searched at full speed."""
    shards: int
    """Primary shards."""
    replicas: int
    nodes: int
    """Data nodes for all copies, by memory and by disk, and at least one for each copy."""

    @property
    def total_disk(self) -> int:
        """Bytes of all copies."""
        return self.disk * (1 + self.replicas)

    @property
    def total_memory(self) -> int:
        """Bytes of memory beside the heap for all copies."""
        return self.memory * (1 + self.replicas)


def bytes_per_vector(dimensions: int, index: str, m: int = DEFAULT_M, *, bits: bool = False) -> tuple[float, float]:
    """Return the bytes of a vector on disk, and in memory while it is searched.

    In memory, by the Elasticsearch documentation (*Tune approximate kNN search*, "Ensure data nodes have enough
    memory"), with n dimensions:

    ============== =====================
    full float32   4 n
    int8           n + 4
    int4           n / 2 + 4
    bbq            n / 8 + 14
    bits           n / 8
    HNSW graph     4 m more
    ============== =====================

    On disk are these, and of quantized vectors the full ones as well (ibidem, "Reduce vector memory foot-print": 25 %
    more for int8, 12.5 % for int4, 3.125 % for bbq).

    Args:
        dimensions: of a vector.
        index: how it is indexed, as :class:`DenseVector` calls it.
        m: neighbours in the graph.
        bits: whether the vectors are bits.

    Raises:
        InvalidOption: there is no such index.
    """
    if index not in INDEX_OPTIONS:
        raise InvalidOption(f"unknown index {index!r}; use one of {', '.join(INDEX_OPTIONS)}")
    full = dimensions / 8 if bits else dimensions * 4.0
    graph = 4.0 * m if index.endswith("hnsw") else 0.0
    quantized = {"int8": dimensions + 4.0, "int4": dimensions / 2 + 4.0, "bbq": dimensions / 8 + 14.0}
    searched = quantized.get(index.partition("_")[0])
    if searched is None:
        return full + graph, full + graph
    return full + searched + graph, searched + graph


def bytes_in_source(dimensions: int, *, bits: bool = False) -> float:
    """Return the bytes of a vector in ``_source``, as numbers or as hexadecimal digits."""
    return dimensions / 4 if bits else float(dimensions * _JSON_BYTES)


def sizing(
    vectors: int,
    dimensions: int,
    index: str = "int8_hnsw",
    *,
    m: int = DEFAULT_M,
    bits: bool = False,
    other_bytes: int = 1000,
    vectors_in_source: bool = True,
    replicas: int = 1,
    node_memory: int = 64 * 10**9,
    node_disk: int = 2 * 10**12,
) -> Sizing:
    """Return what an index needs, to plan with; measure a part of the data before buying.

    >>> plan = sizing(10_000_000, 384, "bbq_hnsw", vectors_in_source=False)
    >>> round(plan.memory / 1e9, 2), plan.shards, plan.nodes
    (1.26, 1, 2)

    Args:
        vectors: how many.
        dimensions: of each.
        index: how they are indexed, as :class:`DenseVector` calls it.
        m: neighbours in the graph.
        bits: whether they are bits.
        other_bytes: of all other fields of a document on disk.
        vectors_in_source: whether ``_source`` has the vectors too, as this package's indexes have it unless they
            declare ``index.mapping.exclude_source_vectors``; about 10 bytes for each number.
        replicas: further copies of each shard.
        node_memory: bytes of a node.  Half of them, and at most 31 GB, are the heap; of the rest, nine tenths are
            counted for vectors.
        node_disk: bytes of a node, of which 85 % can be used (the server's low watermark).

    Raises:
        InvalidOption: a number is out of its range.
    """
    for name, value, least in (
        ("vectors", vectors, 0),
        ("dimensions", dimensions, 1),
        ("m", m, 2),
        ("other_bytes", other_bytes, 0),
        ("replicas", replicas, 0),
        ("node_memory", node_memory, 10**9),
        ("node_disk", node_disk, 10**9),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidOption(f"{name}= is a whole number from {least:,} on, got {value!r}")
    on_disk, in_memory = bytes_per_vector(dimensions, index, m, bits=bits)
    in_source = bytes_in_source(dimensions, bits=bits) if vectors_in_source else 0.0
    disk, memory = math.ceil(vectors * (on_disk + in_source + other_bytes)), math.ceil(vectors * in_memory)
    heap = min(node_memory // 2, 31 * 10**9)
    copies = 1 + replicas
    nodes = max(
        copies,
        math.ceil(memory * copies / ((node_memory - heap) * 0.9)),
        math.ceil(disk * copies / (node_disk * 0.85)),
    )
    return Sizing(vectors, dimensions, index, disk, memory, advised_shards(disk, vectors), replicas, nodes)
