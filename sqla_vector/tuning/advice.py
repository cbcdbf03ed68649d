"""Which index a column wants, if any, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any, Final

from sqla_vector.clustering import lists_for
from sqla_vector.exc import InvalidOption
from sqla_vector.metrics import default_metric, resolve_metric
from sqla_vector.schema import AUTO_INDEX_ROWS, MAX_LISTS, check_share, check_whole_number, declared_metrics
from sqla_vector.tuning.sizes import (
    hnsw_build_bytes,
    hnsw_build_seconds,
    hnsw_bytes,
    ivfflat_build_bytes,
    ivfflat_build_seconds,
    ivfflat_bytes,
    scan_seconds,
    vec0_bytes,
)
from sqla_vector.tuning.target import count_vectors, declared_on, searched_column, support_for
from sqla_vector.types import VectorType

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

__all__ = ["Advice", "aadvise", "advise"]

_MEMORY_SHARE: Final = 0.5
"""The share of the memory that an index may take before it is made smaller: the table wants some too."""
_BINARY_DIM: Final = 512
"""From so many dimensions on, bits tell vectors apart well enough to choose candidates."""
_SLOW_SCAN: Final = 0.05
"""An exact search that takes longer, in seconds, wants an index in lists on SQLite."""
_SPARSE: Final = 200
"""So many elements of a sparse vector are taken to be not 0."""
_VEC0_DIM: Final = 8_192
_SQLITE_BUILD: Final = 128 * 2**20
"""What learning lists takes on SQLite at most, about: a sample of the rows."""
_HALF_DIM, _BINARY_ONLY_DIM, _TOO_MANY = 2_000, 4_000, 16_000
"""Above these, pgvector indexes a ``Vector`` in half precision, in binary alone, and not at all."""


@dataclass(frozen=True)
class Advice:
    """What :func:`advise` advises."""

    column: str
    rows: int
    dim: int
    method: str
    """``none``, ``hnsw``, ``ivfflat``, or ``vec0`` (SQLite, which scans its own copy of the vectors)."""
    precision: str
    options: Mapping[str, int]
    """``m`` and ``ef_construction``, or ``lists``."""
    index_bytes: int
    """Its size, on disk and, to be fast, in memory."""
    build_bytes: int
    """The memory that building it wants: of ``maintenance_work_mem``, where there is such."""
    build_seconds: float
    """About how long building takes; machines differ by some factors."""
    exact_seconds: float
    """About how long an exact search takes, which needs no index."""
    declaration: str | None
    """The line to declare, None where no index is advised."""
    declared: tuple[str, ...]
    """The names of the indexes that are declared."""
    reason: str
    """Why, in a sentence or two."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)

    def __str__(self) -> str:
        return self.reason if self.declaration is None else f"{self.declaration}\n{self.reason}"


@dataclass(frozen=True)
class Situation:
    """All that an advice depends on."""

    column: str
    """``article.embedding``"""
    kind: str
    dim: int
    rows: int
    metric: str
    target_recall: float
    memory: int | None
    """Bytes that indexes may take; PostgreSQL's ``shared_buffers`` unless somebody says."""
    maintenance: int | None
    """``maintenance_work_mem``; None on SQLite."""
    workers: int
    is_sqlite: bool
    has_ivfflat: bool
    """Whether pgvector's ivfflat has them."""
    has_vec0: bool
    """Whether vec0 has the metric and the kind."""


def advise(
    session: Session | Connection,
    column: Any,
    *,
    target_recall: float = 0.95,
    rows: int | None = None,
    memory: int | None = None,
    metric: str | None = None,
) -> Advice:
    """Return which index a column wants: none, or of what method, options and precision, and why.

    Nothing is measured but the number of rows: see :func:`sqla_vector.tuning.measure_recall` for what an index
    really finds, and :func:`sqla_vector.tuning.tune` for its searches.

    Args:
        session: a Session or Connection.
        column: the vector column, ``Article.embedding``.
        target_recall: the share of the true nearest that searches are to find.
        rows: how many vectors there will be; by default as many as there are.
        memory: bytes that the index may take; by default half of PostgreSQL's ``shared_buffers``, and on SQLite
            no limit.
        metric: by default that of the column's index, or cosine (hamming for bits).

    Raises:
        InvalidOption: an option out of its range, or a column without a dimension.

    Sources:
        pgvector's manual: ``lists`` from rows / 1,000, or their square root above a million; hnsw has "better
        query performance than IVFFlat (in terms of speed-recall tradeoff)", "slower build times and uses more
        memory".  hnswlib's ALGO_PARAMS.md: M from 12 to 48, more for a high recall and a high dimension.
    """
    check_share(target_recall, "target_recall")
    if rows is not None:
        check_whole_number(rows, "rows", 0, 10**12)
    if memory is not None:
        check_whole_number(memory, "memory", 1, 2**60)
    found = searched_column(column)
    type_ = found.type
    assert isinstance(type_, VectorType)
    if type_.dim is None:
        raise InvalidOption(
            f"{type_.column_name} has no dimension, by which an index is chosen; declare it, as Vector(384)"
        )
    if metric is None:
        declared = declared_metrics(found)
        chosen = resolve_metric(declared[0]) if declared else default_metric(type_.kind)
    else:
        chosen = resolve_metric(metric, type_.kind, type_.column_name)
    connection, support = support_for(session, "aadvise()")
    server = support.server(connection)
    is_sqlite = server.maintenance_work_mem is None
    if memory is None and server.shared_buffers is not None:
        memory = int(_MEMORY_SHARE * server.shared_buffers)
    situation = Situation(
        column=f"{found.table.name}.{found.name}",
        kind=type_.kind,
        dim=type_.dim,
        rows=count_vectors(connection, found) if rows is None else rows,
        metric=chosen.name,
        target_recall=target_recall,
        memory=memory,
        maintenance=server.maintenance_work_mem,
        workers=server.parallel_workers,
        is_sqlite=is_sqlite,
        has_ivfflat=type_.kind in chosen.ivfflat_kinds,
        has_vec0=type_.kind != "sparsevec" and chosen.vec0_metric is not None,
    )
    names = tuple(str(index.name) for index, _ in declared_on(found))
    return advised(situation, found.name, names)


async def aadvise(session: AsyncSession | AsyncConnection, column: Any, **options: Any) -> Advice:
    """Return the same as :func:`advise`, on an AsyncSession or AsyncConnection."""

    def run(sync: Session | Connection) -> Advice:
        return advise(sync, column, **options)

    return await session.run_sync(run)


def advised(situation: Situation, key: str, declared: tuple[str, ...] = ()) -> Advice:
    """Return the advice for a situation; ``key`` is the column's name in its class."""
    if situation.is_sqlite:
        choice = _on_sqlite(situation)
    elif situation.rows < AUTO_INDEX_ROWS:
        choice = _none(situation, "a scan of so few rows is as fast as an index, and exact")
    else:
        choice = _on_postgresql(situation)
    declaration = None if choice.method == "none" else _declaration(situation, key, choice)
    return Advice(
        column=situation.column,
        rows=situation.rows,
        dim=situation.dim,
        method=choice.method,
        precision=choice.precision,
        options=choice.options,
        index_bytes=choice.index_bytes,
        build_bytes=choice.build_bytes,
        build_seconds=round(choice.build_seconds, 1),
        exact_seconds=round(scan_seconds(situation.rows, situation.dim, _stored(situation)), 4),
        declaration=declaration,
        declared=declared,
        reason=choice.reason,
    )


@dataclass(frozen=True)
class _Choice:
    method: str
    precision: str
    options: Mapping[str, int]
    index_bytes: int
    build_bytes: int
    build_seconds: float
    reason: str


def _stored(situation: Situation) -> str:
    """Return the precision of the column itself."""
    return {"halfvec": "half", "bit": "binary"}.get(situation.kind, "full")


def _none(situation: Situation, why: str) -> _Choice:
    taken = 1000 * scan_seconds(situation.rows, situation.dim, _stored(situation))
    return _Choice("none", "full", {}, 0, 0, 0.0, f"{situation.rows:,} rows: {why} (about {taken:.1f} ms)")


def _on_postgresql(situation: Situation) -> _Choice:
    dim, rows = situation.dim, situation.rows
    if dim > {"bit": 64_000, "sparsevec": 10**9}.get(situation.kind, _TOO_MANY):
        return _none(situation, f"pgvector indexes no {dim:,} dimensions of {situation.kind}, so searches scan")
    m, ef_construction = _graph(situation)
    precision, why = _precision(situation, m)
    stored = _stored(situation) if precision == "full" else precision
    width = min(dim, _SPARSE) if situation.kind == "sparsevec" else dim
    size, maintenance = hnsw_bytes(rows, width, stored, m), situation.maintenance or 0
    found = f"{rows:,} rows of {dim:,} dimensions: "
    if situation.has_ivfflat and situation.memory is not None and size > 4 * situation.memory:
        # Not even nearly in memory, where a graph is walked from page to page; lists are read in one go.
        lists = min(MAX_LISTS, ceil(rows / 1000) if rows <= 1_000_000 else ceil(sqrt(rows)))
        learning = ivfflat_build_bytes(rows, dim, stored, lists)
        found += f"hnsw would take {_size(size)}, and is slow where it does not stay in memory "
        found += f"({_size(situation.memory)}); ivfflat reads whole lists. {why}"
        found += _for_build(learning, maintenance, "it is refused")
        index_bytes, seconds = ivfflat_bytes(rows, dim, stored, lists), ivfflat_build_seconds(rows, dim, lists)
        return _Choice("ivfflat", precision, {"lists": lists}, index_bytes, learning, seconds, found.strip())
    graph = hnsw_build_bytes(rows, width, stored, m)
    seconds = hnsw_build_seconds(rows, width, stored, m, ef_construction, 1 + situation.workers)
    found += "hnsw finds more in the same time than ivfflat, and needs no training; "
    found += f"m={m} suits a recall of {situation.target_recall:g}. {why}"
    found += _for_build(graph, maintenance, "it takes many times as long")
    options = {"m": m, "ef_construction": ef_construction}
    return _Choice("hnsw", precision, options, size, graph, seconds, found.strip())


def _for_build(needed: int, maintenance: int, otherwise: str) -> str:
    if needed <= maintenance:
        return ""
    return f"Set maintenance_work_mem to {_size(needed)} for the build (it is {_size(maintenance)}), or {otherwise}."


def _graph(situation: Situation) -> tuple[int, int]:
    """Return ``m`` and ``ef_construction``: pgvector's defaults, more where much is to be found."""
    if situation.target_recall > 0.98:
        return 32, 200
    if situation.target_recall > 0.95 or situation.dim > 1_000:
        return 24, 128
    return 16, 64


def _precision(situation: Situation, m: int) -> tuple[str, str]:
    """Return the most precise form of the vectors that pgvector indexes and that fits into memory, and why."""
    dim, rows = situation.dim, situation.rows
    if situation.kind in ("bit", "sparsevec"):
        return "full", ""
    limits = {"full": _HALF_DIM, "half": _BINARY_ONLY_DIM, "binary": _TOO_MANY}
    if situation.kind == "halfvec":
        limits = {"full": _BINARY_ONLY_DIM, "binary": _TOO_MANY}
    allowed = [precision for precision, limit in limits.items() if dim <= limit]
    if dim < _BINARY_DIM:
        allowed.remove("binary")
    first, why = allowed[0], ""
    if first != "full":
        why = f"pgvector indexes so many dimensions in {first} precision only. "
    sizes = {p: hnsw_bytes(rows, dim, _stored(situation) if p == "full" else p, m) for p in allowed}
    memory = situation.memory
    if memory is None:
        return first, why
    precision = next((p for p in allowed if sizes[p] <= memory), allowed[-1])
    if precision != first:
        why += f"In {precision} precision it takes {_size(sizes[precision])} (memory for it: {_size(memory)}). "
    return precision, why


def _on_sqlite(situation: Situation) -> _Choice:
    dim, rows = situation.dim, situation.rows
    if not situation.has_vec0:
        return _none(situation, f"vec0 has no {situation.metric} of {situation.kind}, so searches scan")
    if dim > _VEC0_DIM:
        return _none(situation, f"vec0 takes at most {_VEC0_DIM:,} dimensions, so searches scan")
    if rows < AUTO_INDEX_ROWS:
        return _none(situation, "a scan of so few rows is as fast as an index, and exact")
    stored = _stored(situation)
    taken, size = scan_seconds(rows, dim, stored), vec0_bytes(rows, dim, stored)
    found = f"{rows:,} rows of {dim:,} dimensions: "
    if taken <= _SLOW_SCAN or not situation.has_ivfflat:
        found += f"vec0 scans its own copy of the vectors in about {1000 * taken:.0f} ms, and finds everything"
        return _Choice("vec0", "full", {}, size, 0, 0.0, found + _for_memory(situation, size))
    lists = min(MAX_LISTS, lists_for(rows))
    found += f"an exact scan takes about {1000 * taken:.0f} ms, and ivfflat reads some lists only. It learns them from "
    found += "the rows that are there: create it after loading, or optimize() it then"
    seconds = ivfflat_build_seconds(rows, dim, lists)
    size += 4 * lists * dim
    found += _for_memory(situation, size)
    return _Choice("ivfflat", "full", {"lists": lists}, size, _SQLITE_BUILD, seconds, found)


def _for_memory(situation: Situation, size: int) -> str:
    """Return what to say of an index on SQLite that takes more than it may."""
    if situation.memory is None or size <= situation.memory:
        return ""
    told = f". It takes {_size(size)}, more than the memory for it ({_size(situation.memory)})"
    # Of int8 and bits only measuring tells whether they suit the vectors.
    return (
        told if situation.kind == "bit" else f'{told}: measure what precision="int8" or "binary" finds, which take less'
    )


def _declaration(situation: Situation, key: str, choice: _Choice) -> str:
    options: dict[str, Any] = {"metric": situation.metric}
    if choice.method != "vec0":
        options["method"] = choice.method
    if choice.precision != "full":
        options["precision"] = choice.precision
    options |= choice.options
    told = ", ".join(f"{name}={json.dumps(value)}" for name, value in options.items())
    return f'vector_index("ix_{situation.column.replace(".", "_")}", "{key}", {told})'


def _size(number: float) -> str:
    for unit in ("kB", "MB", "GB"):
        number /= 1024
        if number < 1024:
            return f"{number:.0f} {unit}" if number >= 10 else f"{number:.1f} {unit}"
    return f"{number / 1024:.1f} TB"
