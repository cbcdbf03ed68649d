"""What may be asked of a class, and the statement for a query."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Select, Table, select
from sqlalchemy.inspection import inspect
from sqlalchemy.orm import ColumnProperty, Mapper

from sqla_vector.asynchrony import AsyncSession
from sqla_vector.embedding import aembed, embed
from sqla_vector.exc import InvalidOption, InvalidQuery
from sqla_vector.query.vector_query import MAX_CANDIDATES, MAX_K, Near, VectorQuery, Words
from sqla_vector.schema import check_whole_number, declared_metrics
from sqla_vector.search import Hit, asearch, hybrid, match_text, nearest, search, text_part, vector_part
from sqla_vector.search.hybrid import default_candidates
from sqla_vector.search.parts import Part
from sqla_vector.text_index import text_indexes
from sqla_vector.tracking.near_text import Question
from sqla_vector.types import VectorType

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from sqla_vector.tracking.targets import GivenEmbedders

__all__ = ["Queryable"]

_LEAST_CANDIDATES: Final = 50


class Queryable:
    """A mapped class with what queries may ask of it.

    A query may come from anywhere: it names nothing that is not allowed here, its values are bound parameters of the
    attributes' types, and how much it may ask for is bounded.

    ::

        articles = Queryable(Article, filters=["lang", "published"], max_k=50)
        hits = articles.search(session, VectorQuery.from_json(request.body))

    Args:
        entity: the class.
        filters: the attributes that filters may name; none by default.
        vectors: the vector attributes that may be searched; all by default.
        texts: the names of the text indexes that may be searched; all by default.
        rerankers: by the names that queries call them: a :class:`~sqla_vector.Reranker` or a function of hits.
        embedders: by name, if not those that ``track()`` was given for the session.
        max_k: how many rows a query may ask for.
        max_candidates: how many candidates it may ask for.
        allow_exact: whether it may bypass indexes, or ask for a metric that no index has.

    Raises:
        InvalidOption: ``entity`` is no mapped class, or has no such attribute or index; a bound is out of its range.
    """

    def __init__(
        self,
        entity: type[Any],
        *,
        filters: Iterable[Any] = (),
        vectors: Iterable[Any] | None = None,
        texts: Iterable[str] | None = None,
        rerankers: Mapping[str, Any] | None = None,
        embedders: GivenEmbedders | None = None,
        max_k: int = 100,
        max_candidates: int = 1_000,
        allow_exact: bool = False,
    ) -> None:
        mapper = inspect(entity, raiseerr=False)
        if not isinstance(mapper, Mapper):
            raise InvalidOption(f"a queryable is of a mapped class, got {entity!r}")
        self.entity = entity
        self._filters = {name: self._attribute(mapper, name) for name in map(_name_of, _listed(filters, "filters"))}
        known = [prop.key for prop in mapper.column_attrs if isinstance(prop.columns[0].type, VectorType)]
        named = known if vectors is None else [_name_of(one) for one in _listed(vectors, "vectors")]
        self._vectors = {name: self._attribute(mapper, name) for name in named}
        for name, attribute in self._vectors.items():
            if name not in known:
                raise InvalidOption(f"{attribute} is no vector column")
        tables = [table for table in mapper.tables if isinstance(table, Table)]
        indexes = [str(index.name) for table in tables for index, _ in text_indexes(table)]
        self._texts = indexes if texts is None else list(_listed(texts, "texts"))
        for name in self._texts:
            if name not in indexes:
                raise InvalidOption(f"{entity.__name__} has no text index {name!r}; it has {_named(indexes)}")
        self._rerankers = dict(rerankers or {})
        self._embedders = embedders
        self._max_k = check_whole_number(max_k, "max_k", 1, MAX_K)
        self._max_candidates = check_whole_number(max_candidates, "max_candidates", max_k, MAX_CANDIDATES)
        if not isinstance(allow_exact, bool):
            raise InvalidOption(f"allow_exact must be True or False, got {allow_exact!r}")
        self._allow_exact = allow_exact

    def _attribute(self, mapper: Mapper[Any], name: Any) -> Any:
        if not isinstance(name, str) or not isinstance(mapper.attrs.get(name), ColumnProperty):
            raise InvalidOption(f"{self.entity.__name__} has no column attribute {name!r}")
        return getattr(self.entity, name)

    # Running queries.

    def select(self, query: VectorQuery, *, session: Session | None = None) -> Select[Any]:
        """Return the statement for a query; texts that are to be near are embedded now.

        Args:
            query: what is asked for.
            session: knows the embedders, and the version of a model that is in force.

        Raises:
            InvalidQuery: it asks for something that is not allowed, for more than is allowed, or for nothing.
            InvalidFilter: its filter names an attribute that is not allowed, or has a value of another type.
            InvalidVector: a vector is none of the attribute's dimension.
            EmbedderError: a text could not be embedded.
        """
        questions = self.questions(query, session)
        return self._statement(
            query, {near: embed(q.embedder, [q.text])[0] for near, q in questions.items()}, questions
        )

    async def aselect(self, query: VectorQuery, *, session: AsyncSession | None = None) -> Select[Any]:
        """Return the same as :meth:`select`; the event loop goes on while texts are embedded."""
        if session is None:
            questions = self.questions(query, None)
        elif isinstance(session, AsyncSession):
            questions = await session.run_sync(lambda sync: self.questions(query, sync))
        else:
            raise InvalidOption("this session is not asynchronous: call select()")
        made = {near: (await aembed(asked.embedder, [asked.text]))[0] for near, asked in questions.items()}
        return self._statement(query, made, questions)

    def search(self, session: Session, query: VectorQuery) -> list[Hit[Any]]:
        """Run a query and return its hits, best first."""
        stmt = self.select(query, session=session)
        return self.finish(query, search(session, stmt, **self.second_stage(query)))

    async def asearch(self, session: AsyncSession, query: VectorQuery) -> list[Hit[Any]]:
        """Return the same as :meth:`search`, on an AsyncSession."""
        stmt = await self.aselect(query, session=session)
        return self.finish(query, await asearch(session, stmt, **self.second_stage(query)))

    # Their parts, which a search elsewhere has too.

    def check(self, query: VectorQuery) -> None:
        """See to it that a query asks for nothing that is not allowed.

        Raises:
            InvalidQuery: it does.
        """
        if not isinstance(query, VectorQuery):
            raise InvalidQuery(f"expected a VectorQuery, got {type(query).__name__}")
        if not query.parts:
            raise InvalidQuery("the query asks for nothing: give it a vector or a text to search for")
        if query.k > self._max_k:
            raise InvalidQuery(f"k is {self._max_k:,} at most here, got {query.k:,}")
        if (query.candidates or 0) > self._max_candidates:
            raise InvalidQuery(f"candidates is {self._max_candidates:,} at most here, got {query.candidates:,}")
        if query.reranker is not None and query.reranker not in self._rerankers:
            raise InvalidQuery(f"there is no reranker {query.reranker!r}; there are {_named(self._rerankers)}")
        if query.exact and not self._allow_exact:
            raise InvalidQuery("exact is not allowed here")
        for near in query.near:
            if near.field not in self._vectors:
                raise InvalidQuery(f"{near.field!r} may not be searched; {_named(self._vectors)} may")
            if near.metric is not None and not self._allow_exact:
                declared = declared_metrics(self._vectors[near.field].__clause_element__())
                if near.metric not in declared:
                    raise InvalidQuery(f"{near.field} is searched by {_named(declared)} here, not by {near.metric}")
        for words in query.match:
            if not self._texts or (words.index is not None and words.index not in self._texts):
                raise InvalidQuery(
                    f"the text index {words.index or '...'} may not be searched; {_named(self._texts)} may"
                )

    def attribute(self, near: Near) -> Any:
        """Return the vector attribute that is searched."""
        return self._vectors[near.field]

    def criteria(self, query: VectorQuery) -> list[Any]:
        """Return a query's filter as SQLAlchemy criteria."""
        return [] if query.filter is None else [query.filter.criterion(self._filters)]

    def questions(self, query: VectorQuery, session: Session | None) -> dict[Near, Question]:
        """Return what is to be embedded, after all that can be wrong otherwise was looked at."""
        given: Any = session
        if isinstance(given, AsyncSession):
            raise InvalidOption("this session is asynchronous: await asearch() or aselect()")
        self.check(query)
        texts = {near: near.text for near in query.near if near.text is not None}
        how = {"session": session, "embedders": self._embedders}
        questions = {near: Question.of(self.attribute(near), text, **how) for near, text in texts.items()}  # type: ignore[arg-type]
        if questions:
            # What is wrong with the rest is told before any text is paid for.
            blank = {near: [1.0] * question.embedder.dimensions for near, question in questions.items()}
            self._statement(query, blank, questions)
        return questions

    def _statement(
        self, query: VectorQuery, made: Mapping[Near, Any], questions: Mapping[Near, Question]
    ) -> Select[Any]:
        stmt = select(self.entity).where(*self.criteria(query))
        wanted = self.wanted(query)
        if len(query.parts) > 1:
            parts = [self._part(part, made, questions, query.exact) for part in query.parts]
            # By default as hybrid() has them, as far as is allowed here.
            candidates = min(self._max_candidates, default_candidates(wanted))
            candidates = max(wanted, candidates if query.candidates is None else query.candidates)
            return hybrid(stmt, parts=parts, k=wanted, fusion=query.fusion, candidates=candidates)
        (part,) = query.parts
        if isinstance(part, Words):
            return match_text(stmt, self.entity, part.text, wanted, index=self._index(part))
        if part in questions and questions[part].criterion is not None:
            stmt = stmt.where(questions[part].criterion)  # type: ignore[arg-type]
        vector = made.get(part, part.vector)
        return nearest(stmt, self.attribute(part), vector, wanted, exact=query.exact, **_options(part))

    def _part(
        self, part: Near | Words, made: Mapping[Near, Any], questions: Mapping[Near, Question], exact: bool
    ) -> Part:
        if isinstance(part, Words):
            return text_part(self.entity, part.text, weight=part.weight, name=part.part, index=self._index(part))
        vector = made.get(part, part.vector)
        where = questions[part].criterion if part in questions else None
        return vector_part(
            self.attribute(part),
            vector,
            name=part.part,
            weight=part.weight,
            exact=exact,
            where=where,
            **_options(part),
        )

    def _index(self, words: Words) -> str | None:
        # The one that is allowed, where the class may have others.
        return self._texts[0] if words.index is None and len(self._texts) == 1 else words.index

    def wanted(self, query: VectorQuery) -> int:
        """Return how many rows the first stage has to find."""
        if query.reranker is None:
            return query.k
        return query.candidates or min(self._max_candidates, max(_LEAST_CANDIDATES, 2 * query.k))

    def second_stage(self, query: VectorQuery) -> dict[str, Any]:
        """Return the options of :func:`sqla_vector.search` that rank hits again, nothing if none does."""
        if query.reranker is None:
            return {}
        asked = next((part.text for part in query.parts if part.text), None)
        return {"rerank": self._rerankers[query.reranker], "query": asked, "k": query.k}

    def finish(self, query: VectorQuery, hits: Sequence[Hit[Any]]) -> list[Hit[Any]]:
        """Return hits with what was asked for."""
        return list(hits) if query.source else [replace(hit, text=None) for hit in hits]


def _options(near: Near) -> dict[str, Any]:
    return {name: getattr(near, name) for name in ("metric", "max_distance", "min_similarity")}


def _name_of(attribute: Any) -> Any:
    return attribute if isinstance(attribute, str) else getattr(attribute, "key", attribute)


def _listed(given: Any, what: str) -> list[Any]:
    if isinstance(given, (str, bytes)) or not isinstance(given, Iterable):
        raise InvalidOption(f"{what}= is a list of names, got {given!r}")
    return list(given)


def _named(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
