"""Vectors in SQLAlchemy: one model and one ``select()`` on PostgreSQL (pgvector) and SQLite (sqlite-vec)."""

from sqla_vector import dialects  # registers how our own elements compile
from sqla_vector.coercion import SparseArray
from sqla_vector.engine import Capabilities, VectorPlugin, acapabilities, attach, capabilities, detach
from sqla_vector.exc import (
    BulkLoadError,
    DimensionMismatch,
    ExtensionMissing,
    IndexNotUsable,
    InvalidIdentifier,
    InvalidOption,
    InvalidStatement,
    InvalidText,
    InvalidVector,
    MigrationError,
    NonFiniteVector,
    PackageMissing,
    PluginMissing,
    UnsupportedMetric,
    VectorError,
)
from sqla_vector.functions import (
    avg,
    binary_quantize,
    cosine_distance,
    distance,
    hamming_distance,
    inner_product,
    jaccard_distance,
    l1_distance,
    l2_distance,
    l2_norm,
    l2_normalize,
    max_inner_product,
    similarity,
    subvector,
    sum,
    vector_dims,
)
from sqla_vector.schema import vector_index
from sqla_vector.search import Hit, asearch, nearest, nearest_each, nearest_to, search
from sqla_vector.search.text import match_text
from sqla_vector.text_expression import Snippet
from sqla_vector.text_index import text_index
from sqla_vector.tuning import SearchPlan, aexplain_nearest, explain_nearest
from sqla_vector.types import BitVector, HalfVector, SparseVector, Vector

__version__ = "0.1.0.dev0"

__all__ = [
    "BitVector",
    "BulkLoadError",
    "Capabilities",
    "DimensionMismatch",
    "ExtensionMissing",
    "HalfVector",
    "Hit",
    "IndexNotUsable",
    "InvalidIdentifier",
    "InvalidOption",
    "InvalidStatement",
    "InvalidText",
    "InvalidVector",
    "MigrationError",
    "NonFiniteVector",
    "PackageMissing",
    "PluginMissing",
    "SearchPlan",
    "Snippet",
    "SparseArray",
    "SparseVector",
    "UnsupportedMetric",
    "Vector",
    "VectorError",
    "VectorPlugin",
    "acapabilities",
    "aexplain_nearest",
    "asearch",
    "attach",
    "avg",
    "binary_quantize",
    "capabilities",
    "cosine_distance",
    "detach",
    "dialects",
    "distance",
    "explain_nearest",
    "hamming_distance",
    "inner_product",
    "jaccard_distance",
    "l1_distance",
    "l2_distance",
    "l2_norm",
    "l2_normalize",
    "match_text",
    "max_inner_product",
    "nearest",
    "nearest_each",
    "nearest_to",
    "search",
    "similarity",
    "subvector",
    "sum",
    "text_index",
    "vector_dims",
    "vector_index",
]
