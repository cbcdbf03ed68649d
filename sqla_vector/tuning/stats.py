"""How an index is: its size, whether it is ready, what was found for it, and whether its lists are out of date."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Index
from sqlalchemy.engine import Connection

from sqla_vector.dialects.tuned import Tuned, TunedIndex
from sqla_vector.dialects.tuning import TuningSupport
from sqla_vector.schema import VectorIndexKey
from sqla_vector.tuning.queries import draw
from sqla_vector.tuning.target import Searched, count_vectors, declared_on, searched_column, support_for
from sqla_vector.types import support_of

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
    from sqlalchemy.orm import Session

__all__ = ["IndexStats", "aindex_stats", "index_stats"]

SAMPLED_ROWS: Final = 50
"""By so many rows the lists of an ivfflat are looked at."""
_GROWN: Final = 2.0
_UNEVEN: Final = 1.5


@dataclass(frozen=True)
class IndexStats:
    """What :func:`index_stats` tells of an index."""

    name: str
    column: str
    method: str
    """``hnsw``, ``ivfflat`` or ``vec0``."""
    precision: str
    metric: str
    options: Mapping[str, int]
    """With which it was built."""
    state: str
    """``ready``, ``building (...)``, ``invalid`` (its build was interrupted) or ``missing``."""
    rows: int
    """Rows of the table that have a vector."""
    bytes: int | None
    """The index's size on disk; None where there is none."""
    table_bytes: int | None
    """That of the table with its vectors; None on SQLite, which does not tell."""
    dead: int | None
    """PostgreSQL: dead rows of the table.  SQLite: places of the index that hold no vector."""
    scans: int | None
    """PostgreSQL: how often it was used since the statistics were reset."""
    analyzed: str | None
    """PostgreSQL: when the planner's statistics were last gathered."""
    tuned: tuple[Tuned, ...]
    """What :func:`sqla_vector.tuning.tune` found for it."""
    imbalance: float | None
    """How uneven the lists of an ivfflat are: the rows that a search in one list reads, over those if all lists were
    of one size.  1 is even; on PostgreSQL an estimate."""
    imbalance_before: float | None
    """The same when it was last tuned or optimized."""
    rows_before: int | None
    """How many rows had a vector then."""
    advice: str | None
    """What to do about it; None if all is well."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {**asdict(self), "tuned": [{"k": e.k, "recall": e.recall, **e.settings} for e in self.tuned]}


def index_stats(session: Session | Connection, column: Any) -> list[IndexStats]:
    """Return how the vector indexes of a column are, those that are declared and not there included.

    Args:
        session: a Session or Connection.
        column: the vector column, ``Article.embedding``.

    Raises:
        InvalidOption: it is no vector column of a table.
    """
    found = searched_column(column)
    connection, support = support_for(session, "aindex_stats()")
    rows = count_vectors(connection, found)
    return [_stats(connection, support, index, key, rows) for index, key in declared_on(found)]


async def aindex_stats(session: AsyncSession | AsyncConnection, column: Any) -> list[IndexStats]:
    """Return the same as :func:`index_stats`, on an AsyncSession or AsyncConnection."""

    def run(sync: Session | Connection) -> list[IndexStats]:
        return index_stats(sync, column)

    return await session.run_sync(run)


def _stats(connection: Connection, support: TuningSupport, index: Index, key: VectorIndexKey, rows: int) -> IndexStats:
    facts = support.facts(connection, index, key)
    method, precision = support_of(connection.dialect).served_by(key)
    is_ready = facts.state == "ready"
    known = support.remembered(connection, index) if facts.state != "missing" else None
    imbalance = imbalance_of(connection, support, index, key, rows) if is_ready and rows else None
    name = str(index.name)
    return IndexStats(
        name=name,
        column=f"{key.column.table.name}.{key.column.name}",
        method=method,
        precision=precision,
        metric=key.spec.metric_name,
        options=facts.options,
        state=facts.state,
        rows=rows,
        bytes=facts.bytes,
        table_bytes=facts.table_bytes,
        dead=facts.dead,
        scans=facts.scans,
        analyzed=facts.analyzed,
        tuned=known.entries if known is not None else (),
        imbalance=imbalance,
        imbalance_before=known.imbalance if known is not None else None,
        rows_before=facts.trained_rows or (known.rows if known is not None else None),
        advice=facts.advice or advice_for(name, facts.state, rows, imbalance, known, support.built(index, key)),
    )


def imbalance_of(
    connection: Connection, support: TuningSupport, index: Index, key: VectorIndexKey, rows: int
) -> float | None:
    """Return how uneven the lists of an index are, looked at by some rows; None if it has none."""
    if key.spec.method != "ivfflat" or not rows:
        return None
    target = Searched(key.column, key.spec.metric_name, ((index, key),))
    samples = [question.vector for question in draw(connection, target, SAMPLED_ROWS, None, 0)]
    found = support.imbalance(connection, index, key, rows, samples)
    return None if found is None else round(found, 3)


def advice_for(
    name: str,
    state: str,
    rows: int,
    imbalance: float | None,
    known: TunedIndex | None,
    built: str,
) -> str | None:
    """Return what to do about an index, None if all is well."""
    if state == "missing":
        return f"{name} is declared and not in the database; create it (index.create(), or a migration)"
    if state == "invalid":
        return f"{name} is INVALID, its build was interrupted: optimize() builds it anew"
    if state != "ready":
        return None
    if known is not None and known.built != built:
        return f"{name} was tuned as {known.built} and is {built} now: tune it again"
    if imbalance is None or known is None:
        return None
    if rows > _GROWN * known.rows:
        return (
            f"{name} has {rows:,} rows, and had {known.rows:,} when it was last tuned or optimized: optimize() learns "
            "its lists anew"
        )
    if known.imbalance and imbalance > _UNEVEN * known.imbalance:
        return (
            f"{name}: a search in one list reads {imbalance / known.imbalance:.1f} times as many rows as when it was "
            "last tuned or optimized, since its lists fit the rows no longer: optimize() learns them anew"
        )
    return None
