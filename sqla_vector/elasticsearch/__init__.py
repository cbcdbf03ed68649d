"""Elasticsearch: an index that equals the database, and search that answers with ORM objects."""

from sqla_vector.elasticsearch.aggregations import Terms
from sqla_vector.elasticsearch.documents import Document
from sqla_vector.elasticsearch.fields import DenseVector, Field, Keyword, Nested, Text
from sqla_vector.elasticsearch.index import SearchIndex, indexes_of
from sqla_vector.elasticsearch.query import Knn, Match
from sqla_vector.elasticsearch.rebuild import Rebuild, RebuildReport
from sqla_vector.elasticsearch.reconcile import Reconcile, acheck, afix, check, fix
from sqla_vector.elasticsearch.report import CheckReport, Difference
from sqla_vector.elasticsearch.results import Bucket, Cursor, PartHit, SearchHit, SearchPage
from sqla_vector.elasticsearch.search import Searcher
from sqla_vector.elasticsearch.sizing import Sizing, sizing
from sqla_vector.elasticsearch.specs import DenseVectorSpec, FieldSpec, NestedSpec
from sqla_vector.elasticsearch.sync import Sync
from sqla_vector.elasticsearch.vector_query import asearch_query, search_query

__all__ = [
    "Bucket",
    "CheckReport",
    "Cursor",
    "DenseVector",
    "DenseVectorSpec",
    "Difference",
    "Document",
    "Field",
    "FieldSpec",
    "Keyword",
    "Knn",
    "Match",
    "Nested",
    "NestedSpec",
    "PartHit",
    "Rebuild",
    "RebuildReport",
    "Reconcile",
    "SearchHit",
    "SearchIndex",
    "SearchPage",
    "Searcher",
    "Sizing",
    "Sync",
    "Terms",
    "Text",
    "acheck",
    "afix",
    "asearch_query",
    "check",
    "fix",
    "indexes_of",
    "search_query",
    "sizing",
]
