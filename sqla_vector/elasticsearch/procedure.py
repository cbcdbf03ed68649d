"""How searches proceed, step by step, whoever carries the steps out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from sqla_vector.elasticsearch.dsl import Query, all_of
from sqla_vector.elasticsearch.errors import failure_of
from sqla_vector.elasticsearch.found import FoundList, found_list, hits_of, ordered, within
from sqla_vector.elasticsearch.loading import Row, loader, measurer
from sqla_vector.elasticsearch.query import MARGIN, MAX_HITS, KnnQuery
from sqla_vector.elasticsearch.results import Bucket, Cursor, SearchPage
from sqla_vector.elasticsearch.steps import Ask, Load, Steps
from sqla_vector.exc import VectorError
from sqla_vector.tracking.targets import Key

if TYPE_CHECKING:
    from sqla_vector.elasticsearch.index import SearchIndex
    from sqla_vector.elasticsearch.plan import Plan

__all__ = ["close", "nearest_by", "next_page", "search"]

KEEP_ALIVE: Final = "2m"
"""For how long a search with pages waits for the next one."""
_WIDER: Final = 8


def search(plan: Plan, *, load: bool) -> Steps[SearchPage[Any]]:
    """Search once, or begin to search by pages."""
    index = plan.index
    if plan.refresh:
        yield Ask("indices.refresh", {"index": index.name})
    if plan.paged:
        opened = yield Ask("open_point_in_time", {"index": index.name, "keep_alive": KEEP_ALIVE})
        return (yield from _page(Cursor(plan, opened["id"], [], 0), load=load))
    sizes = plan.sizes()
    answers = yield from _ask(index, [*plan.bodies(sizes), *plan.figures()])
    figures = (answers.pop() if plan.has_own_figures else answers[0]).get("aggregations", {})
    is_exact = not plan.is_fused and not plan.has_text and plan.knns[0].is_exact
    while is_exact and _ends_in_a_tie(plan, sizes[0], answers[0]):
        sizes = [min(sizes[0] * _WIDER, MAX_HITS)]
        answers = yield from _ask(index, plan.bodies(sizes))
    knns = ([None] if plan.has_text else []) + list(plan.knns)
    lists = [
        found_list(
            index,
            knn,
            answer,
            keep_order=knn is None and not plan.is_fused,
            bounded=not (load and knn is not None and knn.is_own),
        )
        for knn, answer in zip(knns, answers, strict=True)
    ]
    if load and plan.is_fused:
        yield from _drop_the_far(index, lists)
    found = ordered(lists, plan.fusion)
    found = found[: plan.k] if plan.is_fused else found
    rows = yield from _rows(index, [one.key for one in found], plan.knns, plan.options, load=load)
    hits, dropped = hits_of(lists, found, rows, plan.k)
    total = answers[0]["hits"].get("total", {}).get("value")
    return SearchPage(tuple(hits), figures, tuple(dropped), total, None)


def next_page(cursor: Cursor, *, load: bool) -> Steps[SearchPage[Any]]:
    """Go on where a page has ended."""
    return (yield from _page(cursor, load=load))


def close(cursor: Cursor) -> Steps[None]:
    """Have the server forget a search with pages."""
    yield from _close(cursor.pit)


def _page(cursor: Cursor, *, load: bool) -> Steps[SearchPage[Any]]:
    plan = cursor.plan
    body = plan.bodies([plan.k])[0]
    body["pit"] = {"id": cursor.pit, "keep_alive": KEEP_ALIVE}
    if cursor.after:
        body["search_after"] = cursor.after
        body.pop("aggs", None)
    try:
        (answer,) = yield from _ask(None, [body])
        pit, given = answer.get("pit_id", cursor.pit), answer["hits"]["hits"]
        found = found_list(plan.index, None, answer, keep_order=True, bounded=False)
        rows = yield from _rows(plan.index, [key for key, _ in found.scores], (), plan.options, load=load)
    except Exception:
        yield from _close(cursor.pit)
        raise
    hits, dropped = hits_of([found], ordered([found], plan.fusion), rows, plan.k, cursor.found)
    following = None
    if len(given) == plan.k:
        following = replace(cursor, pit=pit, after=given[-1]["sort"], found=cursor.found + len(hits))
    else:
        yield from _close(pit)
    total = answer["hits"]["total"]["value"]
    return SearchPage(tuple(hits), answer.get("aggregations", {}), tuple(dropped), total, following)


def nearest_by(
    plan: Plan, name: str, conditions: Sequence[tuple[Any, Query]] | None, buckets: int, *, load: bool
) -> Steps[list[Bucket[Any]]]:
    """Find the nearest rows for each value of a field.

    Each value is searched by itself, so that each has its k rows however far they are.

    Args:
        plan: of the search, with one :class:`KnnQuery`.
        name: of the field, as its values are counted.
        conditions: values with the queries for the documents that have them; None for the most frequent ones.
        buckets: how many of these.
        load: whether to load rows.
    """
    (knn,) = plan.knns
    if plan.refresh:
        yield Ask("indices.refresh", {"index": plan.index.name})
    counts: list[int | None] = []
    if conditions is None:
        wanted = all_of([*_given(plan.filter), {"exists": {"field": knn.spec.name}}])
        aggs = {"values": {"terms": {"field": name, "size": buckets}}}
        body = {"query": {"bool": {"filter": [wanted]}}, "size": 0, "_source": False, "aggs": aggs}
        (answer,) = yield from _ask(plan.index, [body])
        counted = answer["aggregations"]["values"]["buckets"]
        conditions = [_condition(name, one) for one in counted]
        counts = [one["doc_count"] for one in counted]
    if not conditions:
        return []
    size = min(plan.k + (MARGIN if knn.is_exact else 0), MAX_HITS)
    answers: dict[int, Any] = {}
    wanted_still = list(range(len(conditions)))
    while wanted_still:
        bodies = []
        for number in wanted_still:
            part = knn.body(size, all_of([*_given(plan.filter), conditions[number][1]]), plan.k)
            bodies.append({**part, "size": size, "_source": False, "track_total_hits": False})
        answers.update(zip(wanted_still, (yield from _ask(plan.index, bodies)), strict=True))
        tied = [number for number in wanted_still if _ends_in_a_tie(plan, size, answers[number])]
        wanted_still, size = tied if knn.is_exact else [], min(size * _WIDER, MAX_HITS)
    lists = [
        found_list(plan.index, knn, answers[number], keep_order=False, bounded=not load)
        for number in range(len(conditions))
    ]
    keys = dict.fromkeys(key for one in lists for key, _ in one.scores)
    rows = yield from _rows(plan.index, list(keys), plan.knns, plan.options, load=load)
    made = []
    for number, ((value, _), one) in enumerate(zip(conditions, lists, strict=True)):
        hits, dropped = hits_of([one], ordered([one], plan.fusion), rows, plan.k)
        made.append(Bucket(value, counts[number] if counts else None, tuple(hits), tuple(dropped)))
    return made


def _given(query: Query | None) -> Iterable[Query]:
    return () if query is None else (query,)


def _condition(name: str, bucket: Mapping[str, Any]) -> tuple[Any, Query]:
    """Return a bucket's value and the query for its documents."""
    # Booleans and dates have numbers as keys, and beside them what a query understands.
    said = bucket.get("key_as_string", bucket["key"])
    value = {"true": True, "false": False}.get(said, said) if "key_as_string" in bucket else said
    return value, {"term": {name: {"value": value}}}


def _ends_in_a_tie(plan: Plan, size: int, answer: Mapping[str, Any]) -> bool:
    """Tell whether more rows may be as near as the k-th of an exact search, of which those with the least key count."""
    hits = answer["hits"]["hits"]
    if len(hits) < size or size >= MAX_HITS:
        return False
    last: bool = hits[plan.k - 1]["_score"] == hits[-1]["_score"]
    return last


def _ask(index: SearchIndex | None, bodies: Sequence[Mapping[str, Any]]) -> Steps[list[Any]]:
    """Send searches in one request and return an answer to each; without an index they name a point in time."""
    # Half an answer, because a shard is away, must not look like a whole one.
    whole = {"allow_partial_search_results": False}
    if len(bodies) == 1:
        body = dict(bodies[0])
        source = body.pop("_source")
        where = {} if index is None else {"index": index.name}
        return [(yield Ask("search", {**where, **body, **whole, "source": source}))]
    assert index is not None
    searches = [part for body in bodies for part in (whole, body)]
    answer = yield Ask("msearch", {"index": index.name, "searches": searches})
    for one in answer["responses"]:
        if "error" in one:
            raise failure_of(one.get("status", 0), one, index.name)
    found: list[Any] = answer["responses"]
    return found


def _drop_the_far(index: SearchIndex, lists: Sequence[FoundList]) -> Steps[None]:
    """Leave out of lists what the database says to be farther than their bounds.

    Scores are rounded or of quantized vectors, so that they can be on the other side of any bound.
    """
    bounded = [one for one in lists if one.knn is not None and one.knn.is_own and one.knn.max_distance is not None]
    keys = list(dict.fromkeys(key for one in bounded for key, _ in one.scores))
    if keys:
        knns = [one.knn for one in bounded if one.knn is not None]
        distances = yield Load(measurer(index, keys, knns))
        for number, one in enumerate(bounded):
            within(one, number, distances)


def _rows(
    index: SearchIndex, keys: Sequence[Key], knns: Sequence[KnnQuery], options: Sequence[Any], *, load: bool
) -> Steps[Mapping[str, Row] | None]:
    if not load:
        return None
    if not keys:
        return {}
    rows: Mapping[str, Row] = yield Load(loader(index, keys, knns, options))
    return rows


def _close(pit: str) -> Steps[None]:
    # It ends by itself after KEEP_ALIVE: nothing is lost if the server cannot be told.
    with suppress(VectorError):
        yield Ask("close_point_in_time", {"id": pit})
