"""Measuring, tuning and looking after indexes on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Index, Select, func, literal_column, select, text
from sqlalchemy.engine import Connection
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from sqla_vector.dialects.migration import quoted, verbatim
from sqla_vector.dialects.postgresql.index import DEFAULTS, built, effective_precision
from sqla_vector.dialects.postgresql.search import OVERSAMPLE, default_probes, indexed_distance
from sqla_vector.dialects.postgresql.tuned import load, remember, remembered
from sqla_vector.dialects.tuned import KNOBS, TunedIndex
from sqla_vector.dialects.tuning import IndexFacts, Knob, ServerFacts
from sqla_vector.exc import IndexNotUsable
from sqla_vector.expression import operand
from sqla_vector.schema import VectorIndexKey

__all__ = ["PostgreSQLTuning"]

_DEFAULT_EF_SEARCH: Final = 40
_ENDLESS: Final = 2_000_000_000
"""A LIMIT, without which no index gives rows by distance."""
_FACTS: Final = text(
    "SELECT i.indisvalid AS is_valid, coalesce(c.reloptions, '{}') AS options,"
    " pg_catalog.pg_relation_size(c.oid) AS bytes, pg_catalog.pg_table_size(i.indrelid) AS table_bytes,"
    " s.n_dead_tup AS dead, u.idx_scan AS scans,"
    " greatest(s.last_analyze, s.last_autoanalyze)::text AS analyzed,"
    " p.phase, p.blocks_done, p.blocks_total, p.tuples_done, p.tuples_total"
    " FROM pg_catalog.pg_class c JOIN pg_catalog.pg_index i ON i.indexrelid = c.oid"
    " LEFT JOIN pg_catalog.pg_stat_all_tables s ON s.relid = i.indrelid"
    " LEFT JOIN pg_catalog.pg_stat_all_indexes u ON u.indexrelid = c.oid"
    " LEFT JOIN pg_catalog.pg_stat_progress_create_index p ON p.index_relid = c.oid"
    " WHERE c.oid = pg_catalog.to_regclass(:place)"
)
_LEFT_OVER: Final = text(
    "SELECT n.nspname, c.relname FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid"
    " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
    " WHERE NOT i.indisvalid AND i.indrelid = pg_catalog.to_regclass(:place)"
    " AND pg_catalog.left(c.relname, :length) = :stem"
    " AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_stat_progress_create_index p WHERE p.relid = i.indrelid)"
)


class _IndexedDistance(FunctionElement[float]):
    """The distance by which an index is ordered."""

    inherit_cache = False
    name = "indexed_distance"

    def __init__(self, key: VectorIndexKey, query: Any) -> None:
        super().__init__(key.column, query)
        self.index_key = key


@compiles(_IndexedDistance, "postgresql")
def _render_indexed_distance(element: _IndexedDistance, compiler: SQLCompiler, **kw: Any) -> str:
    column, query = (compiler.process(clause, **kw) for clause in element.clauses)
    return indexed_distance(compiler, element.index_key, column, query)


class PostgreSQLTuning:
    """Implements :class:`sqla_vector.dialects.tuning.TuningSupport`."""

    builds_concurrently = True

    def built(self, index: Index, key: VectorIndexKey) -> str:
        return built(key)

    def knobs(self, connection: Connection, index: Index, key: VectorIndexKey, k: int) -> tuple[Knob, ...]:
        precision = effective_precision(key.spec, key.vector_type.kind, key.dim)
        found = []
        if precision == "binary":
            found.append(
                Knob("oversample", 1, KNOBS["oversample"], OVERSAMPLE["binary"], 'precision="half" keeps more of them')
            )
        if key.spec.method == "ivfflat":
            lists = key.spec.option("lists", DEFAULTS["ivfflat"]["lists"])
            if lists > 1:
                found.append(
                    Knob("probes", 1, lists, default_probes(key.spec), "build it anew, which learns the lists again")
                )
        elif precision != "binary":
            # For binary the candidates that are wanted decide how far the graph is searched.
            highest = KNOBS["ef_search"]
            usual = min(highest, max(_DEFAULT_EF_SEARCH, k * OVERSAMPLE[precision]))
            found.append(
                Knob("ef_search", min(k, highest), highest, usual, "build it with a larger m and ef_construction")
            )
        return tuple(found)

    @contextmanager
    def isolated(self, connection: Connection) -> Iterator[None]:
        if connection._is_autocommit_isolation():
            yield  # each statement's settings end with it
            return
        savepoint = connection.begin_nested()
        try:
            yield
        finally:
            savepoint.rollback()

    def load(self, connection: Connection) -> None:
        load(connection)

    def remembered(self, connection: Connection, index: Index) -> TunedIndex | None:
        return remembered(connection, index)

    def remember(self, connection: Connection, index: Index, tuned: TunedIndex | None) -> None:
        remember(connection, index, tuned)

    def facts(self, connection: Connection, index: Index, key: VectorIndexKey) -> IndexFacts:
        row = connection.execute(_FACTS, {"place": _place(connection, index)}).first()
        if row is None:
            return IndexFacts(None, _table_bytes(connection, index), "missing", {}, None, None, None)
        options = dict(option.split("=", 1) for option in row.options)
        method = "ivfflat" if key.spec.method == "ivfflat" else "hnsw"
        return IndexFacts(
            bytes=row.bytes,
            table_bytes=row.table_bytes,
            state=_state(row),
            options={**DEFAULTS[method], **{name: int(value) for name, value in options.items() if value.isdigit()}},
            dead=row.dead,
            scans=row.scans,
            analyzed=row.analyzed,
        )

    def imbalance(
        self, connection: Connection, index: Index, key: VectorIndexKey, rows: int, samples: Sequence[Any]
    ) -> float | None:
        if key.spec.method != "ivfflat" or not samples or not rows:
            return None
        # pgvector does not tell the sizes of lists. A scan of one list alone, without end, counts it: that of a
        # row's vector is met as often as it has rows, so that the mean is the sum of the squares by the sum.
        settings = {
            "ivfflat.probes": "1",
            "ivfflat.iterative_scan": "off",
            "enable_seqscan": "off",
            "enable_sort": "off",
            "enable_bitmapscan": "off",
        }
        table, total = key.column.table, 0
        with self.isolated(connection):
            for name, value in settings.items():
                connection.execute(select(func.set_config(name, value, True)))
            for sample in samples:
                nearest = _IndexedDistance(key, operand(sample, key.vector_type))
                scan: Select[Any] = select(literal_column("1")).select_from(table).order_by(nearest).limit(_ENDLESS)
                total += connection.scalar(select(func.count()).select_from(scan.subquery())) or 0
        lists = key.spec.option("lists", DEFAULTS["ivfflat"]["lists"])
        return total / len(samples) * lists / rows

    def server(self, connection: Connection) -> ServerFacts:
        row = connection.exec_driver_sql(
            "SELECT pg_catalog.pg_size_bytes(pg_catalog.current_setting('maintenance_work_mem')),"
            " pg_catalog.pg_size_bytes(pg_catalog.current_setting('shared_buffers')),"
            " pg_catalog.current_setting('max_parallel_maintenance_workers')::int"
        ).one()
        return ServerFacts(*row)

    def optimize(self, connection: Connection, index: Index, key: VectorIndexKey, *, concurrently: bool) -> list[str]:
        assert index.table is not None
        place, table = _place(connection, index), _table(connection, index)
        if connection.execute(_FACTS, {"place": place}).first() is None:
            raise IndexNotUsable(f"{index.name} is not in the database; create it (index.create(), or a migration)")
        done = []
        if concurrently:
            stem = f"{str(index.name)[:57]}_ccnew"
            parameters = {"place": table, "stem": stem, "length": len(stem)}
            for schema, name in connection.execute(_LEFT_OVER, parameters).all():
                done.append(f"DROP INDEX CONCURRENTLY {quoted(connection.dialect, schema, name)}")
        done.append(f"REINDEX INDEX {'CONCURRENTLY ' if concurrently else ''}{place}")
        done.append(f"ANALYZE {table}")
        for statement in done:
            connection.execute(verbatim(statement))
        return done

    def vacuum(self, connection: Connection, index: Index) -> list[str]:
        statement = f"VACUUM {_table(connection, index)}"
        connection.execute(verbatim(statement))
        return [statement]


def _place(connection: Connection, index: Index) -> str:
    assert index.table is not None
    return quoted(connection.dialect, connection.schema_for_object(index.table), str(index.name))


def _table(connection: Connection, index: Index) -> str:
    assert index.table is not None
    return quoted(connection.dialect, connection.schema_for_object(index.table), index.table.name)


def _table_bytes(connection: Connection, index: Index) -> int | None:
    found: int | None = connection.scalar(
        text("SELECT pg_catalog.pg_table_size(pg_catalog.to_regclass(:place))"), {"place": _table(connection, index)}
    )
    return found


def _state(row: Any) -> str:
    if row.phase is not None:
        done, total = (row.tuples_done, row.tuples_total) if row.tuples_total else (row.blocks_done, row.blocks_total)
        return f"building ({row.phase}{f', {100 * done // total} %' if total else ''})"
    return "ready" if row.is_valid else "invalid"
