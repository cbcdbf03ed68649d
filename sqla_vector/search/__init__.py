"""Search: a Select goes in, a Select comes out."""

from sqla_vector.search.boosts import recency, saturation
from sqla_vector.search.diversity import mmr
from sqla_vector.search.grouping import best_per_group
from sqla_vector.search.hits import Hit, HitPart, asearch, search
from sqla_vector.search.hybrid import hybrid
from sqla_vector.search.nearest import nearest, nearest_each, nearest_to
from sqla_vector.search.paging import astream, cursor_of, page_after, stream
from sqla_vector.search.parts import text_part, vector_part
from sqla_vector.search.rerank import rerank
from sqla_vector.search.scoring import Reranker, arerank_hits, rerank_hits
from sqla_vector.search.stages import score_of
from sqla_vector.search.statement import criterion_of
from sqla_vector.search.text import match_text

__all__ = [
    "Hit",
    "HitPart",
    "Reranker",
    "arerank_hits",
    "asearch",
    "astream",
    "best_per_group",
    "criterion_of",
    "cursor_of",
    "hybrid",
    "match_text",
    "mmr",
    "nearest",
    "nearest_each",
    "nearest_to",
    "page_after",
    "recency",
    "rerank",
    "rerank_hits",
    "saturation",
    "score_of",
    "search",
    "stream",
    "text_part",
    "vector_part",
]
