"""Building an index anew, without a change of what it is."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import Index
from sqlalchemy.engine import Connection, Engine

from sqla_vector.dialects.tuned import TunedIndex
from sqla_vector.dialects.tuning import TuningSupport
from sqla_vector.engine import connection_of
from sqla_vector.exc import InvalidOption
from sqla_vector.schema import VectorIndexKey
from sqla_vector.tuning.stats import imbalance_of
from sqla_vector.tuning.target import count_vectors, searched
from sqla_vector.types import support_of

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
    from sqlalchemy.orm import Session

__all__ = ["aoptimize", "optimize"]


def optimize(
    bind: Engine | Session | Connection,
    column: Any,
    *,
    metric: str | None = None,
    concurrently: bool = True,
    vacuum: bool = False,
) -> list[str]:
    """Build the index of a column anew from the rows that are there, and return what was done.

    PostgreSQL: ``REINDEX INDEX CONCURRENTLY``, while others read and write, and ``ANALYZE``; what an interrupted
    run left behind is dropped first.  That is outside of any transaction, so give the engine.  SQLite: lists are
    learned anew; any other vec0 table is made anew, which frees the places that deleted rows left; in a
    transaction, during which others may read.  Settings that :func:`sqla_vector.tuning.tune` found stay, and may
    be more or less than the index wants now: tune again.

    Args:
        bind: an Engine; or a Session or Connection, to be part of its transaction.
        column: the vector column, ``Article.embedding``.
        metric: as for :func:`sqla_vector.nearest`.
        concurrently: PostgreSQL: False blocks writers meanwhile, is faster, and can be part of a transaction.
        vacuum: give space back afterwards, by VACUUM: on PostgreSQL of the table, on SQLite of the whole file.
            Needs an engine.

    Raises:
        IndexNotUsable: the column has no index, or it is not in the database.
        InvalidOption: a transaction was given for what cannot be in one.
    """
    index, key = searched(column, metric).index()
    if isinstance(bind, Engine):
        return _by_engine(bind, index, key, concurrently=concurrently, vacuum=vacuum)
    connection = connection_of(bind, "aoptimize()")
    support: TuningSupport = support_of(connection.dialect).tuning()
    if vacuum or (concurrently and support.builds_concurrently):
        what = "VACUUM" if vacuum else "REINDEX CONCURRENTLY"
        raise InvalidOption(
            f"{what} cannot be part of a transaction: give optimize() the engine, or concurrently=False and no vacuum"
        )
    done = support.optimize(connection, index, key, concurrently=False)
    _note_lists(connection, support, index, key)
    return done


async def aoptimize(bind: AsyncEngine | AsyncSession | AsyncConnection, column: Any, **options: Any) -> list[str]:
    """Do the same as :func:`optimize`, on an AsyncEngine, AsyncSession or AsyncConnection."""
    if not hasattr(bind, "sync_engine") or not hasattr(bind, "connect"):
        return await bind.run_sync(lambda sync: optimize(sync, column, **options))
    async with bind.connect() as connection:
        # Within its greenlet the engine opens connections as a synchronous one does.
        return await connection.run_sync(lambda sync: optimize(sync.engine, column, **options))


def _by_engine(engine: Engine, index: Index, key: VectorIndexKey, *, concurrently: bool, vacuum: bool) -> list[str]:
    support: TuningSupport = support_of(engine.dialect).tuning()
    if concurrently and support.builds_concurrently:
        with engine.connect() as connection:
            apart = connection.execution_options(isolation_level="AUTOCOMMIT")
            done = support.optimize(apart, index, key, concurrently=True)
    else:
        with engine.begin() as connection:
            done = support.optimize(connection, index, key, concurrently=False)
    with engine.begin() as connection:
        _note_lists(connection, support, index, key)
    if vacuum:
        with engine.connect() as connection:
            done += support.vacuum(connection.execution_options(isolation_level="AUTOCOMMIT"), index)
    return done


def _note_lists(connection: Connection, support: TuningSupport, index: Index, key: VectorIndexKey) -> None:
    """Note how uneven lists are as they are new: later they are compared with that."""
    rows = count_vectors(connection, key.column)
    imbalance = imbalance_of(connection, support, index, key, rows)
    if imbalance is None:
        return
    known, built = support.remembered(connection, index), support.built(index, key)
    if known is None or known.built != built:
        known = TunedIndex(built, rows)
    support.remember(connection, index, replace(known, rows=rows, imbalance=imbalance))
    support.load(connection)
