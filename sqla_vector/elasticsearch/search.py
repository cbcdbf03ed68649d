"""``Searcher``: vectors, words and filters in, ORM objects in the order of their rank out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from sqlalchemy.sql.elements import ColumnElement

from sqla_vector.asynchrony import AsyncSession, async_scoped_session
from sqla_vector.elasticsearch import procedure
from sqla_vector.elasticsearch.aggregations import aggregated_name
from sqla_vector.elasticsearch.columns import Columns
from sqla_vector.elasticsearch.plan import PagedOptions, Plan, SearchOptions, make_plan
from sqla_vector.elasticsearch.query import Knn, Match
from sqla_vector.elasticsearch.results import Bucket, Cursor, SearchPage
from sqla_vector.elasticsearch.steps import Steps, arun, run
from sqla_vector.exc import InvalidOption, PackageMissing
from sqla_vector.fusion import Fusion
from sqla_vector.schema import check_whole_number

if TYPE_CHECKING:
    from elasticsearch import AsyncElasticsearch, Elasticsearch
    from sqlalchemy.orm import Session, scoped_session

    from sqla_vector.elasticsearch.index import SearchIndex

    AnySession = Session | scoped_session[Any]

__all__ = ["Searcher"]

R = TypeVar("R")

_MOST_BUCKETS = 100


class Searcher:
    """Searches one index and answers with the rows of the database.

    ::

        searcher = Searcher(Elasticsearch(url), articles)
        page = searcher.search(session, knn=Knn("embedding", vector), text="tea", where=Article.lang == "en")
        for hit in page:
            print(hit.rank, hit.entity.title, hit.distance)

    It has no state, so one may serve all threads of a program.  It asks the index of its name and no other.

    Args:
        client: ``Elasticsearch`` for the methods without, ``AsyncElasticsearch`` for those with ``a`` before their
            names.  It remains the caller's, who closes it.
        index: what is searched.

    Raises:
        InvalidOption: ``client`` is none.
        PackageMissing: ``elasticsearch`` is not installed.
    """

    def __init__(self, client: Elasticsearch | AsyncElasticsearch, index: SearchIndex) -> None:
        try:
            from elasticsearch import AsyncElasticsearch, Elasticsearch
        except ImportError:
            raise PackageMissing(
                "searching needs Elasticsearch's client: pip install 'sqla-vector[elasticsearch]'"
            ) from None
        if not isinstance(client, (Elasticsearch, AsyncElasticsearch)):
            raise InvalidOption(f"client is Elasticsearch or AsyncElasticsearch, got {type(client).__name__}")
        self.index = index
        self._client = client
        self._is_async = isinstance(client, AsyncElasticsearch)

    @cached_property
    def _columns(self) -> Columns:
        return Columns(self.index)

    def field(self, name: str) -> ColumnElement[Any]:
        """Return what stands for a field in ``where``, where an attribute is several fields: ``editor`` or ``author``.

        Raises:
            InvalidOption: there is no such field.
        """
        return self._columns.element(name)

    def search(
        self,
        session: AnySession,
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
    ) -> SearchPage[Any]:
        """Return the best ``k`` rows for vectors, words, or both; with neither, rows that match ``where``.

        Several lists (of a text and of each vector) are fused.  Rows are loaded by one query of the session; documents
        whose rows it does not see are left out and named in :attr:`SearchPage.dropped`.

        Args:
            session: of the database.
            knn: the vectors; a filtered search finds ``k`` rows as long as so many match.
            text: the words; a string searches all text fields.
            where: criteria on attributes of the class that are fields of the index; several in a list must all be met.
            k: how many rows, 1 to 10,000.
            fusion: :func:`~sqla_vector.fusion.rrf` by default, or :func:`~sqla_vector.fusion.weighted`.
            window: how many rows of each list are fused; by default twice ``k``, and at least 50.
            highlight: return the parts of the texts that have the words.
            aggs: counts and figures by names of one's own: :class:`Terms`, or Elasticsearch's form.  They are about all
                documents that match a text or a filter; in a search for vectors alone, about the nearest ones.
            refresh: make everything that was written before findable first.
            paged: make :attr:`SearchPage.next` for :meth:`next_page`; for texts and filters.
            options: loader options, such as ``selectinload(Article.author)``.

        Raises:
            InvalidOption: an option is none, or two contradict each other.
            InvalidFilter: ``where`` cannot be translated.
            InvalidText: ``text`` is none.
            InvalidVector: a query is no vector of its field.
            IndexMissing: the index is not there.
            SearchUnavailable: Elasticsearch does not answer, or has no capacity.
            SearchError: it refuses.
        """
        plan = self._plan(
            knn=knn,
            text=text,
            where=where,
            k=k,
            fusion=fusion,
            window=window,
            highlight=highlight,
            aggs=aggs,
            refresh=refresh,
            paged=paged,
            options=options,
        )
        return self._run(procedure.search(plan, load=True), session)

    async def asearch(
        self,
        session: AsyncSession,
        **search: Unpack[PagedOptions],
    ) -> SearchPage[Any]:
        """Return the same as :meth:`search`, with an asynchronous client and an AsyncSession."""
        plan = self._plan(**search)
        return await self._arun(procedure.search(plan, load=True), session)

    def search_ids(
        self,
        **search: Unpack[SearchOptions],
    ) -> SearchPage[None]:
        """Return keys, scores and distances without a database; distances follow from scores, in float32's precision.

        Args and errors are those of :meth:`search`.
        """
        plan = self._plan(**search)
        return self._run(procedure.search(plan, load=False), None)

    async def asearch_ids(
        self,
        **search: Unpack[SearchOptions],
    ) -> SearchPage[None]:
        """Return the same as :meth:`search_ids`, with an asynchronous client."""
        plan = self._plan(**search)
        return await self._arun(procedure.search(plan, load=False), None)

    def next_page(self, session: AnySession, cursor: Cursor) -> SearchPage[Any]:
        """Return the page after one, of the index as it was at the first.

        Args:
            session: of the database, as it is now.
            cursor: :attr:`SearchPage.next`; it is valid for two minutes.

        Raises:
            SearchError: it is closed, or too old.
        """
        return self._run(procedure.next_page(self._own(cursor), load=True), session)

    async def anext_page(self, session: AsyncSession, cursor: Cursor) -> SearchPage[Any]:
        """Return the same as :meth:`next_page`, with an asynchronous client and an AsyncSession."""
        return await self._arun(procedure.next_page(self._own(cursor), load=True), session)

    def close(self, cursor: Cursor | None) -> None:
        """End a search by pages before its last page, so that the server need not keep it open."""
        if cursor is not None:
            self._run(procedure.close(self._own(cursor)), None)

    async def aclose(self, cursor: Cursor | None) -> None:
        """Do the same as :meth:`close`, with an asynchronous client."""
        if cursor is not None:
            await self._arun(procedure.close(self._own(cursor)), None)

    def pages(self, session: AnySession, *, k: int = 100, **search: Any) -> Iterator[SearchPage[Any]]:
        """Yield all pages of ``k`` rows of a search for words or by a filter, and close it, also when left early.

        Args:
            session: of the database.
            k: how many rows a page has.
            **search: as for :meth:`search`.
        """
        page = self.search(session, k=k, paged=True, **search)
        cursor = page.next
        try:
            yield page
            while cursor is not None:
                following, cursor = cursor, None
                page = self.next_page(session, following)
                cursor = page.next
                yield page
        finally:
            self.close(cursor)

    async def apages(self, session: AsyncSession, *, k: int = 100, **search: Any) -> AsyncIterator[SearchPage[Any]]:
        """Yield the same as :meth:`pages`, with an asynchronous client and an AsyncSession.

        Whoever leaves early closes it by ``contextlib.aclosing(searcher.apages(...))``, as with all asynchronous
        generators.
        """
        page = await self.asearch(session, k=k, paged=True, **search)
        cursor = page.next
        try:
            yield page
            while cursor is not None:
                following, cursor = cursor, None
                page = await self.anext_page(session, following)
                cursor = page.next
                yield page
        finally:
            await self.aclose(cursor)

    def nearest_by(
        self,
        session: AnySession,
        knn: Knn,
        by: str,
        *,
        k: int = 3,
        values: Sequence[Any] | None = None,
        buckets: int = 10,
        where: Any = None,
        refresh: bool = False,
        options: Sequence[Any] = (),
    ) -> list[Bucket[Any]]:
        """Return the ``k`` nearest rows for each value of a field.

        Args:
            session: of the database.
            knn: the vector.
            by: the field.
            k: how many rows for each value.
            values: the values; by default the most frequent ones among the documents that have a vector.
            buckets: how many of these, 1 to 100.
            where: as for :meth:`search`.
            refresh: likewise.
            options: likewise.

        Returns:
            A bucket for each value, the most frequent one first.

        Raises:
            InvalidOption: an option is none; the field's values cannot be counted.
        """
        return self._run(self._nearest_by(knn, by, k, values, buckets, where, refresh, options), session)

    async def anearest_by(
        self,
        session: AsyncSession,
        knn: Knn,
        by: str,
        *,
        k: int = 3,
        values: Sequence[Any] | None = None,
        buckets: int = 10,
        where: Any = None,
        refresh: bool = False,
        options: Sequence[Any] = (),
    ) -> list[Bucket[Any]]:
        """Return the same as :meth:`nearest_by`, with an asynchronous client and an AsyncSession."""
        return await self._arun(self._nearest_by(knn, by, k, values, buckets, where, refresh, options), session)

    def _nearest_by(
        self,
        knn: Knn,
        by: str,
        k: int,
        values: Sequence[Any] | None,
        buckets: int,
        where: Any,
        refresh: bool,
        options: Sequence[Any],
    ) -> Steps[list[Bucket[Any]]]:
        name = aggregated_name(self.index, by)
        check_whole_number(buckets, "buckets", 1, _MOST_BUCKETS)
        if not isinstance(knn, Knn):
            raise InvalidOption(f"nearest_by() needs one Knn(field, vector), got {type(knn).__name__}")
        plan = self._plan(knn=knn, where=where, k=k, refresh=refresh, options=options)
        conditions = None
        if values is not None:
            if isinstance(values, str) or not isinstance(values, Collection) or not 1 <= len(values) <= _MOST_BUCKETS:
                raise InvalidOption(f"values= is a list of 1 to {_MOST_BUCKETS} values")
            conditions = [(value, self._columns.named(by).equal(value)) for value in values]
        return procedure.nearest_by(plan, name, conditions, buckets, load=True)

    def _plan(self, **search: Unpack[PagedOptions]) -> Plan:
        return make_plan(self.index, self._columns, **search)

    def _own(self, cursor: Cursor) -> Cursor:
        if not isinstance(cursor, Cursor) or cursor.plan.index is not self.index:
            raise InvalidOption("a page follows one of the same Searcher's index: give what its page had as next")
        return cursor

    def _run(self, steps: Steps[R], session: Any) -> R:
        if self._is_async:
            raise InvalidOption(
                "the client is asynchronous; use the method with an a before its name, such as asearch()"
            )
        if isinstance(session, (AsyncSession, async_scoped_session)):
            raise InvalidOption(
                "this session is asynchronous; use the method with an a before its name, and AsyncElasticsearch"
            )
        return run(steps, self._client, session, self.index.name)

    async def _arun(self, steps: Steps[R], session: Any) -> R:
        if not self._is_async:
            raise InvalidOption(
                "the client is not asynchronous; use the method without an a before its name, or AsyncElasticsearch"
            )
        if session is not None and not isinstance(session, (AsyncSession, async_scoped_session)):
            raise InvalidOption("this session is not asynchronous; give an AsyncSession")
        return await arun(steps, self._client, session, self.index.name)
