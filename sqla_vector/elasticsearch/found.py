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

__all__ = ["Found", "FoundList", "found_list", "hits_of", "ordered", "within"]


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


@dataclass(slots=True)
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
    bound = knn if bounded and knn is not None and knn.max_distance is not None else None
    for hit in answer["hits"]["hits"]:
        name = hit["_id"]
        try:
            key = index.key_of(name)
        except ValueError:
            found.foreign.append(name)
            continue
        if key in found.ids:
            continue  # a second document of the row, written by hand with a routing
        score = hit["_score"] or 0.0
        if bound is not None and not bound.is_near(bound.distance(score)):
            continue
        found.scores.append((key, score))
        found.ids[key] = name
        if "highlight" in hit:
            found.highlights[key] = hit["highlight"]
    if not keep_order:
        found.scores[:] = by_score(found.scores)
    return found


def within(found: FoundList, number: int, distances: Mapping[str, Sequence[float | None]]) -> None:
    """Leave out of a list what is farther than its bound; what has no row stays, and is named as dropped.

    Args:
        found: the list.
        number: of its distance among those of a row.
        distances: by the ids of documents.
    """
    knn, ids = found.knn, found.ids
    if knn is not None:
        found.scores[:] = [
            (key, score)
            for key, score in found.scores
            if (there := distances.get(ids[key])) is None or knn.is_near(there[number])
        ]


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
    dropped = [name for one in lists for name in one.foreign]
    chosen: list[tuple[Found, Row | None]] = [(one, None) for one in found]
    if rows is not None:
        dropped += [ids[one.key] for one in found if ids[one.key] not in rows]
        chosen = [(one, row) for one in found if (row := rows.get(ids[one.key])) is not None]
        knn = lists[0].knn if len(lists) == 1 else None
        if knn is not None:
            # The database's distances decide, where a score is rounded or of a quantized vector.
            far = [(_distance(knn, 0, one.score, row), one, row) for one, row in chosen]
            dropped += [ids[one.key] for distance, one, _ in far if distance is None]
            near = [
                (distance, one, row) for distance, one, row in far if distance is not None and knn.is_near(distance)
            ]
            near.sort(key=lambda placed: (placed[0], placed[1].key))
            chosen = [(one, row) for _, one, row in near]
    hits = [_hit(rank, one, lists, scores, row) for rank, (one, row) in enumerate(chosen[:k], start=before + 1)]
    return hits, list(dict.fromkeys(dropped))


def _distance(knn: KnnQuery, number: int, score: float, row: Row | None) -> float | None:
    """Return the distance that the database has computed, or what follows from the score."""
    return knn.distance(score) if row is None or not knn.is_own else row.distances[number]


def _hit(
    rank: int,
    found: Found,
    lists: Sequence[FoundList],
    scores: Sequence[Mapping[Key, float]],
    row: Row | None,
) -> SearchHit[Any]:
    parts: list[PartHit | None] = []
    of_vectors: list[PartHit | None] = []
    highlights: Mapping[str, list[str]] = {}
    for one, known, rank_there in zip(lists, scores, found.ranks, strict=True):
        part = None
        if rank_there is not None:
            score, distance = known[found.key], None
            if one.knn is not None:
                distance = _distance(one.knn, len(of_vectors), score, row)
            similarity = None if distance is None or one.knn is None else one.knn.similarity(distance)
            part = PartHit(rank_there, score, distance, similarity)
            highlights = one.highlights.get(found.key, highlights)
        parts.append(part)
        if one.knn is not None:
            of_vectors.append(part)
    first = of_vectors[0] if of_vectors else None
    return SearchHit(
        None if row is None else row.entity,
        found.key,
        rank,
        found.score,
        None if first is None else first.distance,
        None if first is None else first.similarity,
        highlights,
        tuple(parts),
    )
