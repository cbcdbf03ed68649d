"""Searches as values: a query that travels as JSON, and what may be asked of a class."""

from sqla_vector.query.federated import FederatedHit, Source, afederated, federated
from sqla_vector.query.filters import AllOf, AnyOf, Compare, Filter, Not
from sqla_vector.query.queryable import Queryable
from sqla_vector.query.vector_query import Near, VectorQuery, Words

__all__ = [
    "AllOf",
    "AnyOf",
    "Compare",
    "FederatedHit",
    "Filter",
    "Near",
    "Not",
    "Queryable",
    "Source",
    "VectorQuery",
    "Words",
    "afederated",
    "federated",
]
