"""Elasticsearch: an index that equals the database, and search that answers with ORM objects."""

from sqla_vector.elasticsearch.documents import Document
from sqla_vector.elasticsearch.fields import DenseVector, Field, Keyword, Nested, Text
from sqla_vector.elasticsearch.index import SearchIndex
from sqla_vector.elasticsearch.sizing import Sizing, sizing
from sqla_vector.elasticsearch.specs import DenseVectorSpec, FieldSpec, NestedSpec
from sqla_vector.elasticsearch.sync import Sync

__all__ = [
    "DenseVector",
    "DenseVectorSpec",
    "Document",
    "Field",
    "FieldSpec",
    "Keyword",
    "Nested",
    "NestedSpec",
    "SearchIndex",
    "Sizing",
    "Sync",
    "Text",
    "sizing",
]
