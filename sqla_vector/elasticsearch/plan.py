"""A search as it was asked for, checked, and the requests it needs; no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypedDict

from sqlalchemy.sql.base import ExecutableOption

from sqla_vector.elasticsearch.aggregations import aggregations
from sqla_vector.elasticsearch.columns import Columns
from sqla_vector.elasticsearch.dsl import MATCH_ALL, Query
from sqla_vector.elasticsearch.filters import filter_query
from sqla_vector.elasticsearch.query import MARGIN, MAX_HITS, Knn, KnnQuery, Match, TextQuery, knn_query, text_query
from sqla_vector.exc import InvalidOption
from sqla_vector.fusion import RRF, Fusion, Weighted
from sqla_vector.schema import check_whole_number

if TYPE_CHECKING:
    from sqla_vector.elasticsearch.index import SearchIndex

__all__ = ["PagedOptions", "Plan", "SearchOptions", "make_plan"]

_LEAST_WINDOW: Final = 50
_PLAIN: Final[Mapping[str, Any]] = {"_source": False}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be found.

    Without a text and without vectors it is everything that the filter admits, in the order of the keys.
    """

    index: SearchIndex
    key_field: str
    """By which documents are sorted in the order of their keys."""
    k: int
    knns: tuple[KnnQuery, ...]
    text: TextQuery | None
    filter: Query | None
    fusion: Fusion
    window: int
    """How many rows of each list are fused."""
    highlight: bool
    aggregations: Mapping[str, Any]
    refresh: bool
    paged: bool
    options: tuple[Any, ...]

    @property
    def has_text(self) -> bool:
        """Whether the first list is of a text, or of a filter alone."""
        return self.text is not None or not self.knns

    @property
    def is_fused(self) -> bool:
        """Whether there are several lists."""
        return self.has_text + len(self.knns) > 1

    def sizes(self) -> list[int]:
        """Return how many rows of each list are asked for."""
        if self.is_fused:
            return [self.window] * (self.has_text + len(self.knns))
        margin = MARGIN if self.knns and self.knns[0].is_exact else 0
        return [min(self.k + margin, MAX_HITS)]

    def bodies(self, sizes: Sequence[int]) -> list[dict[str, Any]]:
        """Return one request for each list."""
        found = []
        if self.has_text:
            found.append(self._text_body(sizes[0]))
        for knn, size in zip(self.knns, sizes[self.has_text :], strict=True):
            found.append({**knn.body(size, self.filter, self.k), "size": size, **_PLAIN, "track_total_hits": False})
        if self.aggregations and not self.has_own_figures:
            found[0]["aggs"] = self.aggregations
        return found

    @property
    def has_own_figures(self) -> bool:
        """Whether aggregations are asked for by a request of their own.

        An exact search asks for more rows than are wanted, and they are about those that are.
        """
        return bool(self.aggregations) and not self.has_text and not self.is_fused and self.knns[0].is_exact

    def figures(self) -> list[dict[str, Any]]:
        """Return the request for the aggregations, if it is one of their own."""
        if not self.has_own_figures:
            return []
        knn = self.knns[0].body(self.k, self.filter, self.k)
        return [{**knn, "size": 0, **_PLAIN, "track_total_hits": False, "aggs": self.aggregations}]

    def _text_body(self, size: int) -> dict[str, Any]:
        body: dict[str, Any] = {"size": size, **_PLAIN}
        if self.is_fused:
            body["track_total_hits"] = False
        if self.text is None:
            return {**body, "query": {"bool": {"filter": [self.filter or MATCH_ALL]}}, "sort": [self.key_field]}
        conditions: dict[str, Any] = {"must": [self.text.query]}
        if self.filter is not None:
            conditions["filter"] = [self.filter]
        body["query"] = {"bool": conditions}
        body["sort"] = [{"_score": "desc"}, {self.key_field: "asc"}]
        if self.highlight:
            # The texts are somebody's: what they have of HTML must not become part of a page.
            body["highlight"] = {"encoder": "html", "fields": {name: {} for name in self.text.fields}}
        return body


class SearchOptions(TypedDict, total=False):
    """What a search for keys can be told; see :meth:`sqla_vector.elasticsearch.Searcher.search`."""

    knn: Knn | Sequence[Knn] | None
    text: Match | str | None
    where: Any
    k: int
    fusion: Fusion | None
    window: int | None
    highlight: bool
    aggs: Mapping[str, Any] | None
    refresh: bool


class PagedOptions(SearchOptions, total=False):
    """What a search for rows can be told besides."""

    paged: bool
    options: Sequence[Any]


def make_plan(
    index: SearchIndex,
    columns: Columns,
    *,
    knn: Knn | Sequence[Knn] | None = None,
    text: Match | str | None = None,
    where: Any = None,
    k: int = 10,
    fusion: Fusion | None = None,
    window: int | None = None,
    highlight: bool = False,
    aggs: Mapping[str, Any] | None = None,
    refresh: bool = False,
    paged: bool = False,
    options: Sequence[Any] = (),
) -> Plan:
    """Return a checked search.

    Raises:
        InvalidOption: an option is none, or two contradict each other.
        InvalidFilter: ``where`` cannot be translated.
        InvalidText: ``text`` is none.
        InvalidVector: a query is no vector of its field.
    """
    k = check_whole_number(k, "k", 1, MAX_HITS)
    given = () if knn is None else (knn,) if isinstance(knn, Knn) else tuple(_several(knn))
    for name, flag in (("highlight", highlight), ("refresh", refresh), ("paged", paged)):
        if not isinstance(flag, bool):
            raise InvalidOption(f"{name} must be True or False, got {flag!r}")
    if paged and given:
        raise InvalidOption(
            "a search for vectors has no pages: ask for a larger k; paged=True is for texts and filters"
        )
    if fusion is not None and not isinstance(fusion, (RRF, Weighted)):
        raise InvalidOption(f"fusion= is rrf() or weighted(), got {type(fusion).__name__}")
    if window is not None:
        window = max(check_whole_number(window, "window", 1, MAX_HITS), k)
    if not isinstance(options, (list, tuple)) or not all(isinstance(one, ExecutableOption) for one in options):
        raise InvalidOption("options= is a list of loader options, such as selectinload(Article.author)")
    return Plan(
        index=index,
        key_field=columns.key_field,
        k=k,
        knns=tuple(knn_query(index, one) for one in given),
        text=None if text is None else text_query(index, text),
        filter=filter_query(columns, _criteria(where)),
        fusion=RRF() if fusion is None else fusion,
        window=min(max(_LEAST_WINDOW, 2 * k), MAX_HITS) if window is None else window,
        highlight=highlight,
        aggregations=aggregations(index, aggs),
        refresh=refresh,
        paged=paged,
        options=tuple(options),
    )


def _several(knn: object) -> Sequence[Knn]:
    if not isinstance(knn, (list, tuple)) or not knn:
        raise InvalidOption(f"knn= is Knn(field, vector), or several of them; got {type(knn).__name__}")
    return knn


def _criteria(where: Any) -> Sequence[Any]:
    if where is None:
        return ()
    return tuple(where) if isinstance(where, (list, tuple)) else (where,)
