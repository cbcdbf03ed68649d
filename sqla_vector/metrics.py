"""The table of metrics: one line of facts each, for every backend.

A *distance* is what the database computes and sorts by, smaller is nearer.  A *similarity* is derived from it,
larger is more similar, and is the same number on every backend.

Sources: the pgvector manual (operators and operator classes), the sqlite-vec manual (scalar functions and
``distance_metric``), the Elasticsearch manual (``dense_vector`` similarity).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from sqla_vector.exc import InvalidOption, UnsupportedMetric

__all__ = ["METRICS", "Kind", "Metric", "MetricName", "default_metric", "resolve_metric"]

Kind = Literal["vector", "halfvec", "sparsevec", "bit"]
MetricName = Literal["cosine", "l2", "l1", "inner_product", "hamming", "jaccard"]

_FLOAT_KINDS: Final[frozenset[Kind]] = frozenset({"vector", "halfvec", "sparsevec"})
_BIT_KINDS: Final[frozenset[Kind]] = frozenset({"bit"})


@dataclass(frozen=True, slots=True)
class Metric:
    """The facts about one metric."""

    name: MetricName
    """Name in this package's API."""
    function: str
    """Name of the comparator method and of the free function (as in pgvector-python)."""
    kinds: frozenset[Kind]
    """Column kinds that have the metric."""
    postgresql_operator: str
    """pgvector's distance operator."""
    postgresql_opclass: str
    """Suffix of pgvector's operator class; the prefix is the column kind."""
    ivfflat_kinds: frozenset[Kind]
    """Column kinds for which pgvector's ivfflat has the operator class."""
    sqlite_function: str
    """Scalar function: sqlite-vec's own (``vec_``), or one that the plugin registers (``vector_``)."""
    vec0_metric: str | None
    """``distance_metric`` of a vec0 column, or None when vec0 has no such metric."""
    elasticsearch_similarity: str | None
    """``similarity`` of a ``dense_vector`` field, or None."""
    similarity_formula: str
    """How the similarity follows from the distance d (and the dimension n)."""
    similarity: Callable[[float, int], float]
    """``(distance, dimension) -> similarity``."""
    distance: Callable[[float, int], float]
    """``(similarity, dimension) -> distance``, the inverse; infinity where no distance is that dissimilar."""
    zero_is_undefined: bool = False
    """Whether the distance to a zero vector is undefined."""

    def opclass(self, kind: str) -> str:
        """Return the name of pgvector's operator class for a column kind."""
        return f"{kind}_{self.postgresql_opclass}"


def _inverse_of_reciprocal(similarity: float, dimension: int) -> float:
    return 1.0 / similarity - 1.0 if similarity > 0.0 else float("inf")


METRICS: Final[dict[str, Metric]] = {
    metric.name: metric
    for metric in (
        Metric(
            name="cosine",
            function="cosine_distance",
            kinds=_FLOAT_KINDS,
            postgresql_operator="<=>",
            postgresql_opclass="cosine_ops",
            ivfflat_kinds=frozenset({"vector", "halfvec"}),
            sqlite_function="vec_distance_cosine",
            vec0_metric="cosine",
            elasticsearch_similarity="cosine",
            similarity_formula="1 - d",
            similarity=lambda d, n: 1.0 - d,
            distance=lambda s, n: 1.0 - s,
            zero_is_undefined=True,
        ),
        Metric(
            name="l2",
            function="l2_distance",
            kinds=_FLOAT_KINDS,
            postgresql_operator="<->",
            postgresql_opclass="l2_ops",
            ivfflat_kinds=frozenset({"vector", "halfvec"}),
            sqlite_function="vec_distance_l2",
            vec0_metric="l2",
            elasticsearch_similarity="l2_norm",
            similarity_formula="1 / (1 + d)",
            similarity=lambda d, n: 1.0 / (1.0 + d),
            distance=_inverse_of_reciprocal,
        ),
        Metric(
            name="l1",
            function="l1_distance",
            kinds=_FLOAT_KINDS,
            postgresql_operator="<+>",
            postgresql_opclass="l1_ops",
            ivfflat_kinds=frozenset(),
            sqlite_function="vec_distance_l1",
            vec0_metric="l1",
            elasticsearch_similarity=None,
            similarity_formula="1 / (1 + d)",
            similarity=lambda d, n: 1.0 / (1.0 + d),
            distance=_inverse_of_reciprocal,
        ),
        Metric(
            name="inner_product",
            function="max_inner_product",
            kinds=_FLOAT_KINDS,
            postgresql_operator="<#>",
            postgresql_opclass="ip_ops",
            ivfflat_kinds=frozenset({"vector", "halfvec"}),
            sqlite_function="vector_negative_inner_product",
            vec0_metric=None,
            elasticsearch_similarity="max_inner_product",
            similarity_formula="-d",
            similarity=lambda d, n: -d,
            distance=lambda s, n: -s,
        ),
        Metric(
            name="hamming",
            function="hamming_distance",
            kinds=_BIT_KINDS,
            postgresql_operator="<~>",
            postgresql_opclass="hamming_ops",
            ivfflat_kinds=_BIT_KINDS,
            sqlite_function="vec_distance_hamming",
            vec0_metric="hamming",
            elasticsearch_similarity="l2_norm",
            similarity_formula="1 - d / n",
            similarity=lambda d, n: 1.0 - d / n,
            distance=lambda s, n: (1.0 - s) * n,
        ),
        Metric(
            name="jaccard",
            function="jaccard_distance",
            kinds=_BIT_KINDS,
            postgresql_operator="<%>",
            postgresql_opclass="jaccard_ops",
            ivfflat_kinds=frozenset(),
            sqlite_function="vector_jaccard_distance",
            vec0_metric=None,
            elasticsearch_similarity=None,
            similarity_formula="1 - d",
            similarity=lambda d, n: 1.0 - d,
            distance=lambda s, n: 1.0 - s,
        ),
    )
}


def default_metric(kind: str) -> Metric:
    """Return the metric used when none is named: cosine, or hamming for bits."""
    return METRICS["hamming" if kind == "bit" else "cosine"]


def resolve_metric(name: str, kind: str | None = None, column: str = "the column") -> Metric:
    """Return the metric called ``name``, checking that columns of ``kind`` have it.

    Raises:
        InvalidOption: there is no such metric.
        UnsupportedMetric: the metric exists, but not for this kind of column.
    """
    metric = METRICS.get(name) if isinstance(name, str) else None
    if metric is None:
        raise InvalidOption(f"unknown metric {name!r}; use one of {', '.join(METRICS)}")
    if kind is not None and kind not in metric.kinds:
        usable = ", ".join(m.name for m in METRICS.values() if kind in m.kinds)
        raise UnsupportedMetric(f"{column} is a {kind} column and has no {name} metric; it has {usable}")
    return metric
