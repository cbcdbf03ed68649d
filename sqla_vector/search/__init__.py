"""Search: a Select goes in, a Select comes out."""

from sqla_vector.search.hits import Hit, asearch, search
from sqla_vector.search.nearest import criterion_of, nearest, nearest_each, nearest_to

__all__ = ["Hit", "asearch", "criterion_of", "nearest", "nearest_each", "nearest_to", "search"]
