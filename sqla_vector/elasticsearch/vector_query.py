"""A :class:`~sqla_vector.query.VectorQuery` run by Elasticsearch, with the hits that the database would give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqla_vector.asynchrony import AsyncSession
from sqla_vector.elasticsearch.query import Knn, Match
from sqla_vector.elasticsearch.results import SearchHit, SearchPage
from sqla_vector.elasticsearch.specs import DenseVectorSpec
from sqla_vector.embedding import aembed, embed
from sqla_vector.exc import InvalidOption, InvalidQuery
from sqla_vector.query import Near, Queryable, VectorQuery, Words
from sqla_vector.search import Hit, HitPart, arerank_hits, rerank_hits
from sqla_vector.web_query import parse

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from sqla_vector.elasticsearch.search import Searcher

__all__ = ["asearch_query", "search_query"]


def search_query(
    searcher: Searcher, session: Session, queryable: Queryable, query: VectorQuery, *, refresh: bool = False
) -> list[Hit[Any]]:
    """Run a query in Elasticsearch and return its hits with the rows of the database, best first.

    What the query may ask for is what ``queryable`` allows.  It has to be about what the index has: vectors are those
    of its fields of the same attributes, filters those of its fields.  Texts are words, all of which have to be there.

    Args:
        searcher: of the index of the same class.
        session: of the database.
        queryable: what may be asked.
        query: what is asked.
        refresh: make everything that was written before findable first.

    Raises:
        InvalidQuery: the query asks for something that is not allowed, or that Elasticsearch does not have.
        InvalidFilter: likewise of its filter.
        SearchError: Elasticsearch refuses or cannot be reached, as for :meth:`Searcher.search`.
    """
    questions = queryable.questions(query, session)
    made = {near: embed(asked.embedder, [asked.text])[0] for near, asked in questions.items()}
    page = searcher.search(session, refresh=refresh, **_options(searcher, queryable, query, made))
    second = queryable.second_stage(query)
    hits = _hits(page, query)
    return queryable.finish(query, rerank_hits(hits, second.pop("rerank"), **second) if second else hits)


async def asearch_query(
    searcher: Searcher, session: AsyncSession, queryable: Queryable, query: VectorQuery, *, refresh: bool = False
) -> list[Hit[Any]]:
    """Return the same as :func:`search_query`, with an asynchronous client and an AsyncSession."""
    if not isinstance(session, AsyncSession):
        raise InvalidOption("this session is not asynchronous: call search_query()")
    questions = await session.run_sync(lambda sync: queryable.questions(query, sync))
    made = {near: (await aembed(asked.embedder, [asked.text]))[0] for near, asked in questions.items()}
    page = await searcher.asearch(session, refresh=refresh, **_options(searcher, queryable, query, made))
    second = queryable.second_stage(query)
    hits = _hits(page, query)
    if second:
        hits = await arerank_hits(hits, second.pop("rerank"), **second)
    return queryable.finish(query, hits)


def _options(searcher: Searcher, queryable: Queryable, query: VectorQuery, made: Mapping[Near, Any]) -> dict[str, Any]:
    if searcher.index.mapper.class_ is not queryable.entity:
        raise InvalidOption(
            f"the index is of {searcher.index.mapper.class_.__name__}, and the queryable of {queryable.entity.__name__}"
        )
    if len(query.match) > 1:
        raise InvalidQuery("a search in Elasticsearch has one text, got several")
    text = None
    for words in query.match:
        text = Match(_words(words), operator="and", type="cross_fields")
    knn = [
        Knn(
            _field(searcher, queryable, near),
            made.get(near, near.vector),
            exact=query.exact,
            max_distance=near.max_distance,
            min_similarity=near.min_similarity,
            weight=near.weight,
        )
        for near in query.near
    ]
    found: dict[str, Any] = {"k": queryable.wanted(query), "knn": knn or None, "text": text}
    if criteria := queryable.criteria(query):
        found["where"] = criteria
    if len(query.parts) > 1:
        found["fusion"] = query.fusion
        if query.candidates is not None:
            found["window"] = max(found["k"], query.candidates)
    return found


def _words(words: Words) -> str:
    """Return the words of a text, if it is made of nothing else."""
    alternatives = parse(words.text).alternatives
    if len(alternatives) > 1 or any(one.unwanted or any(len(p) > 1 for p in one.wanted) for one in alternatives):
        raise InvalidQuery(
            "a search in Elasticsearch takes words that must all be there; quotes, or, and minus are for the database"
        )
    return " ".join(word for one in alternatives for phrase in one.wanted for word in phrase)


def _field(searcher: Searcher, queryable: Queryable, near: Near) -> str:
    """Return the field that has an attribute's vectors, of the metric that is asked for."""
    attribute = queryable.attribute(near)
    specs = [spec for spec in searcher.index.fields.values() if isinstance(spec, DenseVectorSpec)]
    fields = [spec for spec in specs if not spec.relations and spec.attribute.key == attribute.key]
    fitting = [spec for spec in fields if near.metric in (None, spec.metric)]
    if not fitting:
        asked = near.field if near.metric is None else f"{near.field} by {near.metric}"
        raise InvalidQuery(f"the index {searcher.index.name} has no field for {asked}")
    # The one that has its name, before others of the same attribute.
    return min(fitting, key=lambda spec: spec.name != near.field).name


def _hits(page: SearchPage[Any], query: VectorQuery) -> list[Hit[Any]]:
    names = [*(part.part for part in query.match), *(part.part for part in query.near)]
    return [_hit(found, names) for found in page]


def _hit(found: SearchHit[Any], names: Sequence[str]) -> Hit[Any]:
    score = found.similarity if found.similarity is not None and len(names) == 1 else found.score
    hit: Hit[Any] = Hit(found.entity, found.distance, found.similarity, None, None, score)
    if len(names) < 2:
        return hit
    parts = {
        name: None if part is None else HitPart(part.rank, part.score if part.similarity is None else part.similarity)
        for name, part in zip(names, found.parts, strict=True)
    }
    return replace(hit, parts=parts)
