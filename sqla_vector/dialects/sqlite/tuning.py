"""Measuring, tuning and looking after indexes on SQLite."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from math import ceil, sqrt
from typing import Any, Final

from sqlalchemy import Index
from sqlalchemy.engine import Connection
from sqlalchemy.schema import CreateIndex, DropIndex

from sqla_vector.dialects.migration import quoted
from sqla_vector.dialects.settings import settings_of
from sqla_vector.dialects.sqlite.connection import RawConnection
from sqla_vector.dialects.sqlite.index import Vec0Index, exists, is_in_lists, vec0_index
from sqla_vector.dialects.sqlite.ivf import Lists, lists_of, train
from sqla_vector.dialects.sqlite.search import MAX_K, OVERSAMPLE
from sqla_vector.dialects.sqlite.tuned import load, remember, remembered
from sqla_vector.dialects.tuned import KNOBS, TunedIndex
from sqla_vector.dialects.tuning import IndexFacts, Knob, ServerFacts
from sqla_vector.exc import IndexNotUsable
from sqla_vector.schema import VectorIndexKey

__all__ = ["SQLiteTuning"]

_MORE_PRECISE: Final = "keep more of the vectors: int8 in place of binary, or full"


_ROW: Final = 16
"""About what vec0 takes to remember where a row is."""


class SQLiteTuning:
    """Implements :class:`sqla_vector.dialects.tuning.TuningSupport`."""

    builds_concurrently = False

    def built(self, index: Index, key: VectorIndexKey) -> str:
        vec0 = vec0_index(index)
        return "none" if vec0 is None else vec0.built

    def knobs(self, connection: Connection, index: Index, key: VectorIndexKey, k: int) -> tuple[Knob, ...]:
        vec0, found = vec0_index(index), []
        if vec0 is None:
            return ()
        # With more candidates than vec0 returns the search is an exact scan.
        highest = min(KNOBS["oversample"], (MAX_K - 1) // k)
        if vec0.precision != "full" and highest > 0:
            usual = min(highest, OVERSAMPLE[vec0.precision])
            found.append(Knob("oversample", 1, highest, usual, _MORE_PRECISE))
        lists = self._lists(connection, index)
        if lists is not None and lists.count > 1:
            found.append(Knob("probes", 1, lists.count, ceil(sqrt(lists.count)), "train it anew by optimize()"))
        return tuple(found)

    def _lists(self, connection: Connection, index: Index) -> Lists | None:
        """Return the lists of an index, None if it has none or is not there."""
        vec0 = self._there(connection, index)
        if vec0 is None:
            return None
        dialect = connection.dialect
        is_listed = is_in_lists(vec0, dialect.identifier_preparer, settings_of(dialect))
        return lists_of(connection, index) if is_listed else None

    def _there(self, connection: Connection, index: Index) -> Vec0Index | None:
        """Return the vec0 table of an index, None if it is not there; one declared for PostgreSQL alone never is."""
        vec0, dialect = vec0_index(index), connection.dialect
        is_there = vec0 is not None and exists(vec0, dialect.identifier_preparer, settings_of(dialect))
        return vec0 if is_there else None

    def isolated(self, connection: Connection) -> AbstractContextManager[None]:
        return nullcontext()  # a search sets nothing here

    def load(self, connection: Connection) -> None:
        load(connection)

    def remembered(self, connection: Connection, index: Index) -> TunedIndex | None:
        return remembered(connection, index)

    def remember(self, connection: Connection, index: Index, tuned: TunedIndex | None) -> None:
        remember(connection, index, tuned)

    def facts(self, connection: Connection, index: Index, key: VectorIndexKey) -> IndexFacts:
        vec0 = self._there(connection, index)
        if vec0 is None:
            return IndexFacts(None, None, "missing", {}, None, None, None)
        dialect, raw = connection.dialect, RawConnection(connection.connection.dbapi_connection)
        schema = connection.schema_for_object(vec0.table) or "main"

        def beneath(part: str) -> str:
            return quoted(dialect, schema, f"{vec0.name}_{part}")

        # The blobs are what is large; SQLite tells their length without reading them.
        ((blobs,),) = raw.rows(f"SELECT coalesce(sum(length(vectors)), 0) FROM {beneath('vector_chunks00')}")
        ((places, maps),) = raw.rows(
            "SELECT coalesce(sum(size), 0), coalesce(sum(length(validity) + length(rowids)), 0) "
            f"FROM {beneath('chunks')}"
        )
        ((taken,),) = raw.rows(f"SELECT count(*) FROM {beneath('rowids')}")
        lists, size = self._lists(connection, index), blobs + maps + _ROW * taken
        if lists is None:
            return IndexFacts(size, None, "ready", {}, places - taken, None, None)
        options = {"lists": lists.count}
        return IndexFacts(size, None, "ready", options, places - taken, None, None, lists.trained_rows, lists.advice)

    def imbalance(
        self, connection: Connection, index: Index, key: VectorIndexKey, rows: int, samples: Sequence[Any]
    ) -> float | None:
        lists = self._lists(connection, index)
        return None if lists is None else lists.imbalance

    def server(self, connection: Connection) -> ServerFacts:
        return ServerFacts(None, None, 0)

    def optimize(self, connection: Connection, index: Index, key: VectorIndexKey, *, concurrently: bool) -> list[str]:
        if self._there(connection, index) is None:
            raise IndexNotUsable(f"{index.name} is not in the database; create it (index.create(), or a migration)")
        if self._lists(connection, index) is not None:
            lists = train(connection, index)
            done = f"{index.name} trained anew: {lists.count:,} lists"
        else:
            self._make_anew(connection, index)
            done = f"{index.name} made anew from the rows of its table"
        connection.exec_driver_sql(f"ANALYZE {_table(connection, index)}")
        return [done, f"ANALYZE {_table(connection, index)}"]

    def _make_anew(self, connection: Connection, index: Index) -> None:
        tuned = remembered(connection, index)
        # vec0 gives back the places that rows left only when all of a chunk's are free; made anew it has none.
        with connection.begin_nested():
            connection.execute(DropIndex(index))
            connection.execute(CreateIndex(index))
            if tuned is not None:
                remember(connection, index, tuned)
        load(connection)

    def vacuum(self, connection: Connection, index: Index) -> list[str]:
        assert index.table is not None
        schema = connection.schema_for_object(index.table)
        statement = f"VACUUM {quoted(connection.dialect, schema)}" if schema else "VACUUM"
        connection.exec_driver_sql(statement)
        return [statement]


def _table(connection: Connection, index: Index) -> str:
    assert index.table is not None
    return quoted(connection.dialect, connection.schema_for_object(index.table), index.table.name)
