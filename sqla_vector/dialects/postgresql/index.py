"""How a vector index is spelled for pgvector."""

from __future__ import annotations

import logging
from typing import Any, Final

from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from sqla_vector.dialects.postgresql.types import qualified, type_sql
from sqla_vector.exc import IndexNotUsable
from sqla_vector.schema import IndexSpec, VectorIndexKey

__all__ = ["DEFAULTS", "MAX_INDEXED", "built", "effective_precision", "index_expression"]

logger = logging.getLogger("sqla_vector.postgresql")

MAX_INDEXED: Final = {"vector": 2_000, "halfvec": 4_000, "bit": 64_000, "sparsevec": 1_000_000_000}
"""The largest dimension that pgvector indexes, by kind (sparse vectors: 1,000 non-zero elements)."""


DEFAULTS: Final = {"hnsw": {"m": 16, "ef_construction": 64}, "ivfflat": {"lists": 100}}
"""pgvector's own values of the options of an index."""


def built(key: VectorIndexKey) -> str:
    """Return what is built for a declared index, as far as it decides how well it finds: ``hnsw full l2 m=16 ...``."""
    spec = key.spec
    method = "ivfflat" if spec.method == "ivfflat" else "hnsw"
    options = {name: spec.option(name, default) for name, default in DEFAULTS[method].items()}
    precision = effective_precision(spec, key.vector_type.kind, key.dim)
    return " ".join([method, precision, spec.metric_name, *(f"{name}={value}" for name, value in options.items())])


def effective_precision(spec: IndexSpec, kind: str, dim: int) -> str:
    """Return the precision that the index is built with: ``full``, ``half`` or ``binary``.

    int8 is SQLite's, half stands in for it.  Above 2,000 dimensions full precision cannot be indexed and half
    is taken; above 4,000 only binary can.
    """
    if spec.precision == "binary":
        return "binary"
    if kind == "vector" and (spec.precision in ("half", "int8") or dim > MAX_INDEXED["vector"]):
        return "half"
    return "full"


def index_expression(compiler: Any, column: str, kind: str, dim: int, precision: str) -> tuple[str, str]:
    """Return the indexed expression over ``column`` (SQL), and the kind of its value."""
    if precision == "half":
        return f"({column}::{type_sql(compiler, 'halfvec', dim)})", "halfvec"
    if precision == "binary":
        return (
            f"({qualified(compiler, 'binary_quantize')}({column})::{type_sql(compiler, 'bit', dim)})",
            "bit",
        )
    return column, kind


@compiles(VectorIndexKey, "postgresql")
def _render_key(element: VectorIndexKey, compiler: SQLCompiler, **kw: Any) -> str:
    spec, dim = element.spec, element.dim
    kind: str = element.vector_type.kind
    name = element.vector_type.column_name
    precision = effective_precision(spec, kind, dim)
    expression, indexed_kind = index_expression(compiler, compiler.process(element.column, **kw), kind, dim, precision)
    if dim > MAX_INDEXED[indexed_kind]:
        raise IndexNotUsable(
            f"{name} has {dim:,} dimensions and pgvector indexes at most {MAX_INDEXED[indexed_kind]:,} "
            f'of {indexed_kind}; use vector_index(..., precision="binary")'
        )
    if precision == "half" and spec.precision == "full":
        logger.warning("%s has %d dimensions, over 2,000: its index is built in half precision", name, dim)
    opclass = "bit_hamming_ops" if precision == "binary" else spec.metric.opclass(indexed_kind)
    return f"{expression} {qualified(compiler, opclass)}"
