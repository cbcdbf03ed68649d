"""The SQL functions of an index in lists: to train it, to assign rows to lists, to choose the lists of a search.

A trigger has no memory, and the centroids are too large to hand over for every row.  So they are known by a name,
their *generation*, that stands beside them in the index's own table and is another one after each training::

    vector_ivf_list(NEW.embedding, 'cosine', generation, CASE WHEN vector_ivf_known(generation) THEN NULL ELSE
                    centroids END)

The generation is read in the transaction of the statement; what is cached under it never changes.  So a row that is
written, and a search, use the centroids of the snapshot that they see, whatever other connections train, commit or
roll back.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from math import ceil, sqrt
from typing import Any, Final
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from sqla_vector.clustering import ROWS_PER_LIST, Centroids, Reservoir, lists_for, train

__all__ = ["SAMPLE_BYTES", "SPACES", "UNTRAINED_ROWS", "ListFunctions"]

logger = logging.getLogger("sqla_vector.sqlite")

SPACES: Final = ("cosine", "l2", "bits")
"""In what space lists are near: by angle, by Euclidean distance, by the number of different bits."""

SAMPLE_BYTES: Final = 96 * 2**20
"""The most memory that the sample takes from which lists are trained."""

UNTRAINED_ROWS: Final = 10_000
"""From so many rows on an index of one list should be trained."""

_LEAST_SAMPLE: Final = 10_000
_KEPT: Final = 8
_BATCH_BYTES: Final = 8 * 2**20

_SHARED: WeakValueDictionary[str, Centroids] = WeakValueDictionary()
"""What the connections of this process know; connections to one file share it."""


def _unpacked(blob: bytes, space: str) -> NDArray[np.float32]:
    """Return a stored vector as float32; bits as 0 and 1, of which Euclidean distance counts the different ones."""
    if space == "bits":
        return np.unpackbits(np.frombuffer(blob, np.uint8)).astype(np.float32)
    return np.frombuffer(blob, "<f4")


class _Known(threading.local):
    """What a thread knows: within a statement, which runs in one, nobody else takes it away."""

    def __init__(self) -> None:
        self.centroids: OrderedDict[str, Centroids] = OrderedDict()


class ListFunctions:
    """The functions of all connections."""

    def __init__(self) -> None:
        self._here = _Known()
        self._untrained: dict[str, int] = {}

    @property
    def _known(self) -> OrderedDict[str, Centroids]:
        return self._here.centroids

    def functions(self) -> dict[str, tuple[int, Callable[..., Any]]]:
        """Return name, number of arguments and function; they take NULL, and depend on what came before."""
        return {
            "vector_ivf_known": (1, self.known),
            "vector_ivf_list": (4, self.list_of),
            "vector_ivf_probe": (5, self.probe),
        }

    def aggregates(self) -> dict[str, tuple[int, Callable[[], Any]]]:
        """Return name, number of arguments and class of the aggregates."""
        return {"vector_ivf_train": (3, _Train), "vector_ivf_assign": (5, partial(_Assign, self))}

    def known(self, generation: str) -> bool:
        """Tell whether the centroids of a generation need not be handed over; they are kept then."""
        if generation not in self._known:
            shared = _SHARED.get(generation)
            if shared is None:
                return False
            self._keep(generation, shared)
        self._known.move_to_end(generation)
        return True

    def _keep(self, generation: str, centroids: Centroids) -> None:
        self._known[generation] = centroids
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)

    def centroids(self, width: int, space: str, generation: str, blob: bytes | None) -> Centroids:
        """Return the centroids of a generation, which are handed over if they are not known."""
        found = self._known.get(generation)
        if found is None:
            if blob is None:
                raise ValueError(f"no centroids of generation {generation}")
            matrix = np.frombuffer(blob, "<f4").reshape(-1, width)
            found = _SHARED[generation] = Centroids(matrix, spherical=space == "cosine")
            self._keep(generation, found)
        return found

    def list_of(self, vector: bytes | None, space: str, generation: str, blob: bytes | None) -> int | None:
        """Return the list that a vector belongs to."""
        if vector is None:
            return None
        unpacked = _unpacked(vector, space)
        centroids = self.centroids(len(unpacked), space, generation, blob)
        if len(centroids) == 1:
            self._notice(generation)
            return 0
        return int(centroids.nearest(unpacked)[0])

    def _notice(self, generation: str) -> None:
        """Say once that an index has grown in one list."""
        count = self._untrained[generation] = self._untrained.get(generation, 0) + 1
        if count == UNTRAINED_ROWS:
            logger.warning(
                "%s has one list, so that each search reads all rows, and this program alone has added %s: "
                "train it, by sqla_vector.tuning.optimize()",
                generation.partition(":")[0],
                f"{count:,}",
            )

    def probe(self, vector: bytes | None, probes: int | None, space: str, generation: str, blob: bytes | None) -> str:
        """Return the lists nearest to a vector as a JSON array; by default the square root of their number."""
        if vector is None:
            return "[]"
        unpacked = _unpacked(vector, space)
        centroids = self.centroids(len(unpacked), space, generation, blob)
        count = probes or ceil(sqrt(len(centroids)))
        return f"[{','.join(map(str, centroids.nearest(unpacked, count).tolist()))}]"


class _Train:
    """Aggregate ``vector_ivf_train(vector, space, lists)``: the centroids of a column, as one blob.

    ``lists`` is NULL for as many as suit the number of rows.
    """

    def __init__(self) -> None:
        self._reservoir: Reservoir | None = None
        self._space = ""
        self._lists: int | None = None

    def step(self, blob: bytes, space: str, lists: int | None) -> None:
        vector = _unpacked(blob, space)
        if self._reservoir is None:
            self._space, self._lists = space, lists
            capacity = SAMPLE_BYTES // (4 * len(vector))
            if lists is not None:
                capacity = min(capacity, max(_LEAST_SAMPLE, ROWS_PER_LIST * lists))
            self._reservoir = Reservoir(max(1, capacity), len(vector))
        self._reservoir.add(vector)

    def finalize(self) -> bytes | None:
        reservoir = self._reservoir
        if reservoir is None:
            return None
        lists = self._lists or lists_for(reservoir.seen)
        sample = reservoir.sample()[: max(_LEAST_SAMPLE, ROWS_PER_LIST * lists)]
        return train(sample, lists, spherical=self._space == "cosine").astype("<f4").tobytes()


class _Assign:
    """Aggregate ``vector_ivf_assign(number, vector, space, generation, centroids)``: ``{"list": [number, ...], ...}``.

    Many rows at once are multiplied with the centroids many times faster than one by one.
    """

    def __init__(self, functions: ListFunctions) -> None:
        self._functions = functions
        self._centroids: Centroids | None = None
        self._vectors: list[NDArray[np.float32]] = []
        self._numbers: list[int] = []
        self._batch = 1
        self._done: list[tuple[NDArray[np.int64], NDArray[np.int32]]] = []

    def step(self, number: int, blob: bytes, space: str, generation: str, centroids: bytes | None) -> None:
        vector = _unpacked(blob, space)
        if self._centroids is None:
            self._centroids = self._functions.centroids(len(vector), space, generation, centroids)
            self._batch = max(64, _BATCH_BYTES // (4 * len(vector)))
        self._numbers.append(number)
        self._vectors.append(vector)
        if len(self._numbers) == self._batch:
            self._flush()

    def _flush(self) -> None:
        if self._centroids is not None and self._numbers:
            assigned = self._centroids.assign(np.stack(self._vectors)).astype(np.int32)
            self._done.append((np.array(self._numbers, np.int64), assigned))
        self._numbers, self._vectors = [], []

    def finalize(self) -> str:
        self._flush()
        numbers = np.concatenate([done[0] for done in self._done])
        lists = np.concatenate([done[1] for done in self._done])
        order = np.argsort(lists, kind="stable")
        numbers, lists = numbers[order], lists[order]
        found, starts = np.unique(lists, return_index=True)
        parts = []
        for number, members in zip(found.tolist(), np.split(numbers, starts[1:]), strict=True):
            parts.append(f'"{number}":[{",".join(map(str, members.tolist()))}]')
        return f"{{{','.join(parts)}}}"
