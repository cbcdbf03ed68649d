"""From the server's answers to hits: lists by part, fused, with rows, distances and ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sqla_vector.elasticsearch.loading import Row
from sqla_vector.elasticsearch.query import KnnQuery
from sqla_vector.elasticsearch.results import PartHit, SearchHit
from sqla_vector.fusion import Fusion, Part, by_score
from sqla_vector.tracking.targets import Key

if TYPE_CHECKING:
    from sqla_vector.elasticsearch.index import SearchIndex

__all__ = ["Found", "FoundList", "found_list", "hits_of", "ordered"]


@dataclass(frozen=True, slots=True)
class FoundList:
    """What one list has, best first."""

    knn: KnnQuery | None
    """None of a text."""
    scores: list[tuple[Key, float]]
    ids: dict[Key, str]
    highlights: dict[Key, Mapping[str, list[str]]]
    foreign: list[str]
    """The ids of documents that are no keys."""

    @property
    def kind(self) -> Literal["text", "vector"]:
        """What found it."""
        return "text" if self.knn is None else "vector"


@dataclass(frozen=True, slots=True)
class Found:
    """A row in its place."""

    key: Key
    score: float
    ranks: tuple[int | None, ...]


def found_list(
    index: SearchIndex, knn: KnnQuery | None, answer: Mapping[str, Any], *, keep_order: bool, bounded: bool
) -> FoundList:
    """Return what an answer has.

    Args:
        index: the declared index.
        knn: what was asked; None for a text.
        answer: the server's.
        keep_order: leave the rows as the server has sorted them; else equal scores are in the order of keys.
        bounded: leave out by its score what is farther than the query's bound.
    """
    found = FoundList(knn, [], {}, {}, [])
    for hit in answer["hits"]["hits"]:
        name = hit["_id"]
        try:
            key = index.key_of(name)
        except ValueError:
            found.foreign.append(name)
            continue
        score = hit["_score"] or 0.0
        if bounded and knn is not None and not knn.is_near(knn.distance(score)):
            continue
        found.scores.append((key, score))
        found.ids[key] = name
        if "highlight" in hit:
            found.highlights[key] = hit["highlight"]
    if not keep_order:
        found.scores[:] = by_score(found.scores)
    return found


def ordered(lists: Sequence[FoundList], fusion: Fusion) -> list[Found]:
    """Return the rows of all lists, best first."""
    if len(lists) == 1:
        return [Found(key, score, (rank,)) for rank, (key, score) in enumerate(lists[0].scores, start=1)]
    parts = [Part(one.kind, one.scores, 1.0 if one.knn is None else one.knn.weight) for one in lists]
    return [Found(fused.key, fused.score, fused.ranks) for fused in fusion.fuse(parts)]


def hits_of(
    lists: Sequence[FoundList], found: Sequence[Found], rows: Mapping[str, Row] | None, k: int, before: int = 0
) -> tuple[list[SearchHit[Any]], list[str]]:
    """Return the first ``k`` hits, and the ids of the documents that have no row, or a row without vector.

    Args:
        lists: what was found.
        found: their rows, best first.
        rows: the loaded rows by the ids of documents; None if only keys are asked for.
        k: how many.
        before: how many the pages before had.
    """
    ids = {key: name for one in lists for key, name in one.ids.items()}
    scores = [dict(one.scores) for one in lists]
    dropped: list[str] = [name for one in lists for name in one.foreign]
    made = []
    for one in found:
        row = None if rows is None else rows.get(ids[one.key])
        if rows is not None and row is None:
            dropped.append(ids[one.key])
            continue
        made.append(_hit(one, lists, scores, row))
    only = lists[0].knn if len(lists) == 1 else None
    if only is not None and rows is not None:
        # The database's distances decide, where a score is rounded or of a quantized vector.
        dropped += [ids[hit.key] for hit in made if hit.distance is None]
        made = [hit for hit in made if hit.distance is not None and only.is_near(hit.distance)]
        made.sort(key=lambda hit: (hit.distance, hit.key))
    placed = [_at(rank, hit) for rank, hit in enumerate(made[:k], start=before + 1)]
    return placed, list(dict.fromkeys(dropped))


def _hit(found: Found, lists: Sequence[FoundList], scores: Sequence[Mapping[Key, float]], row: Row | None) -> Any:
    parts: list[PartHit | None] = []
    distances = iter(row.distances) if row is not None else None
    first: PartHit | None = None
    is_first = True
    highlights: Mapping[str, list[str]] = {}
    for one, known, rank in zip(lists, scores, found.ranks, strict=True):
        knn = one.knn
        distance = next(distances) if knn is not None and distances is not None else None
        part = None
        if rank is not None:
            score = known[found.key]
            similarity = None
            if knn is not None:
                if row is None or not knn.is_own:
                    distance = knn.distance(score)
                similarity = None if distance is None else knn.similarity(distance)
            part = PartHit(rank, score, distance, similarity)
            highlights = one.highlights.get(found.key, highlights)
        if knn is not None and is_first:
            first, is_first = part, False
        parts.append(part)
    return SearchHit(
        entity=None if row is None else row.entity,
        key=found.key,
        rank=0,
        score=found.score,
        distance=None if first is None else first.distance,
        similarity=None if first is None else first.similarity,
        highlights=highlights,
        parts=tuple(parts),
    )


def _at(rank: int, hit: SearchHit[Any]) -> SearchHit[Any]:
    return SearchHit(hit.entity, hit.key, rank, hit.score, hit.distance, hit.similarity, hit.highlights, hit.parts)
