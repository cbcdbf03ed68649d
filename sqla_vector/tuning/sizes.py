"""How large an index becomes, what building it needs, and how long it takes: pgvector's own formulas.

Sources: the structures and macros of pgvector's source, ``src/hnsw.h`` (``HNSW_ELEMENT_TUPLE_SIZE``,
``HNSW_NEIGHBOR_TUPLE_SIZE``, ``HnswElementData``), ``src/hnswbuild.c`` (what goes on a page), ``src/ivfflat.h``,
``src/ivfbuild.c`` (50 samples a list, 10,000 at least) and ``src/ivfkmeans.c`` (``ElkanKmeans``, which refuses to
start if its arrays do not fit into ``maintenance_work_mem``); PostgreSQL's page layout.  Levels of a graph: Malkov
and Yashunin, *Efficient and robust approximate nearest neighbor search using Hierarchical Navigable Small World
graphs*, 2018: an element is on a level with a probability of ``m ** -level``.
"""

from __future__ import annotations

from math import ceil, log10
from typing import Final

__all__ = [
    "hnsw_build_bytes",
    "hnsw_build_seconds",
    "hnsw_bytes",
    "ivfflat_build_bytes",
    "ivfflat_build_seconds",
    "ivfflat_bytes",
    "scan_seconds",
    "vec0_bytes",
    "vector_bytes",
]

_PAGE: Final = 8192
_USABLE: Final = _PAGE - 24 - 8
"""A page without its header and the space of the index method."""
_ITEM: Final = 4
"""What a page keeps of each of its tuples: ItemIdData."""
_ELEMENT_HEADER: Final = 72
_NEIGHBOR_HEADER: Final = 4
_TID: Final = 6
_INDEX_TUPLE_HEADER: Final = 8
_ELEMENT: Final = 128
"""HnswElementData, with its lock."""
_CANDIDATE: Final = 16
"""HnswCandidate."""


_VEC0_ROW: Final = 16


def _aligned(size: float) -> int:
    return -(-ceil(size) // 8) * 8


def vector_bytes(dim: int, precision: str) -> int:
    """Return the size of a vector in an index: ``full`` 4 bytes an element, ``half`` 2, ``binary`` a bit."""
    return 8 + {"full": 4 * dim, "half": 2 * dim, "int8": dim, "binary": -(-dim // 8)}[precision]


def _levels_above(m: int) -> float:
    """Return on how many levels an element is beside the lowest, in the mean: the sum of ``m ** -level``."""
    return 1 / (m - 1)


def hnsw_bytes(rows: int, dim: int, precision: str, m: int) -> int:
    """Return the size of an hnsw index on disk."""
    element = _aligned(_ELEMENT_HEADER + vector_bytes(dim, precision)) + _ITEM
    neighbors = _aligned(_NEIGHBOR_HEADER + _TID * m * (2 + _levels_above(m))) + _ITEM
    # An element and its neighbours are on one page, or each begins another one.
    rows_of_page = _USABLE // (element + neighbors) or 0.5
    return _PAGE * (ceil(rows / rows_of_page) + 1)


def hnsw_build_bytes(rows: int, dim: int, precision: str, m: int) -> int:
    """Return the memory of the graph while it is built, which is to fit into ``maintenance_work_mem``."""
    above = _levels_above(m)
    lists = 8 * (1 + above) + (8 + _CANDIDATE * 2 * m) + above * (8 + _CANDIDATE * m)
    return rows * (_ELEMENT + _aligned(vector_bytes(dim, precision)) + _aligned(lists))


def hnsw_build_seconds(rows: int, dim: int, precision: str, m: int, ef_construction: int, processes: int) -> float:
    """Return about how long building takes, if the graph fits into memory.

    A row is compared with some ``m * ef_construction`` others; a comparison takes a third of a microsecond and a
    nanosecond for each element (measured; other machines differ by some factors).
    """
    microseconds = 0.3 + dim / (30_000 if precision == "binary" else 1_000)
    growth = max(1.0, log10(max(rows, 10)) / 4)
    return rows * m * ef_construction * microseconds * growth / 1e6 / max(1, processes)


def ivfflat_bytes(rows: int, dim: int, precision: str, lists: int) -> int:
    """Return the size of an ivfflat index on disk."""
    vector = vector_bytes(dim, precision)
    rows_of_page = max(1, _USABLE // (_aligned(_INDEX_TUPLE_HEADER + vector) + _ITEM))
    lists_of_page = max(1, _USABLE // (_aligned(8 + vector) + _ITEM))
    # The last page of each list is half full in the mean.
    return _PAGE * (1 + ceil(rows / rows_of_page) + ceil(lists / 2) + ceil(lists / lists_of_page))


def ivfflat_build_bytes(rows: int, dim: int, precision: str, lists: int) -> int:
    """Return the memory of learning the lists; if it is more than ``maintenance_work_mem``, pgvector refuses."""
    item, samples = _aligned(vector_bytes(dim, precision)), min(rows, max(50 * lists, 10_000))
    arrays = samples * item + 2 * lists * item
    return arrays + 4 * (lists * dim + 4 * lists + 2 * samples + samples * lists + lists * lists)


def ivfflat_build_seconds(rows: int, dim: int, lists: int) -> float:
    """Return about how long building takes: each row, and each sample some twenty times, meets every list."""
    samples = min(rows, max(50 * lists, 10_000))
    return (rows + 20 * samples) * lists * dim * 3e-10


def vec0_bytes(rows: int, dim: int, precision: str) -> int:
    """Return the size of a vec0 table on SQLite: the vectors, their rowids, and where each is."""
    return rows * (vector_bytes(dim, precision) + _VEC0_ROW)


def scan_seconds(rows: int, dim: int, precision: str = "full") -> float:
    """Return about how long an exact search takes that reads all vectors: some 2 GB a second."""
    return rows * (vector_bytes(dim, precision) + 40) / 2e9
