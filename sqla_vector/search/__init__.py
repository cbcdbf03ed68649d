"""Search: a Select goes in, a Select comes out."""

from sqla_vector.search.hits import Hit, asearch, search
from sqla_vector.search.hybrid import hybrid
from sqla_vector.search.nearest import criterion_of, nearest, nearest_each, nearest_to
from sqla_vector.search.parts import vector_part

__all__ = ["Hit", "asearch", "criterion_of", "hybrid", "nearest", "nearest_each", "nearest_to", "search", "vector_part"]
