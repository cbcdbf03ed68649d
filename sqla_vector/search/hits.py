"""Results of a search as objects with scores, distance, similarity and source text."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy import Select
from sqlalchemy.inspection import inspect
from sqlalchemy.sql.elements import ColumnElement

from sqla_vector.exc import InvalidStatement
from sqla_vector.expression import Distance, vector_type_of
from sqla_vector.ranked import RankedRows, ranked_rows_of
from sqla_vector.search.parts import Part, TextPart, VectorPart
from sqla_vector.search.scoring import HitScorer, Reranker, arerank_hits, rerank_hits
from sqla_vector.search.stages import (
    distance_column_of,
    distance_of,
    rerank_column_of,
    text_score_column_of,
    text_score_of,
)
from sqla_vector.search.statement import criterion_of, text_match_of

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

__all__ = ["Hit", "HitPart", "HitReader", "asearch", "search"]

T = TypeVar("T")

_NO_PARTS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class HitPart:
    """What one part of a hybrid search says of a row that it found."""

    rank: int
    """From 1, within the part."""
    score: float
    """Larger is better: the metric's similarity, or the score of a text."""


@dataclass(frozen=True, slots=True)
class Hit(Generic[T]):
    """One row that :func:`search` found."""

    entity: T
    """The first thing the statement selects: an object, or a column's value."""
    distance: float | None
    """None where no vector was searched for, or its part has not found the row."""
    similarity: float | None
    """Larger is more similar; see :mod:`sqla_vector.metrics`."""
    text: str | None
    """The source text, where the vector column declares it: ``mapped_column(..., info={"source": ("title",)})``; else
    that of the text index that is searched."""
    row: Any
    """The whole result row."""
    score: float | None = None
    """What the hits are sorted by, larger is better: the similarity, the score of a fusion or that of a second stage.
    None where it is undefined."""
    parts: Mapping[str, HitPart | None] = field(default_factory=lambda: _NO_PARTS)
    """Of a hybrid search, by the names of its parts; None where a part has not found the row."""
    vector: Any = None
    """The row's vector, if the search was asked for it."""


def search(
    session: Session,
    stmt: Select[Any],
    *,
    rerank: Reranker | HitScorer | None = None,
    query: str | None = None,
    k: int | None = None,
    text: Callable[[Hit[Any]], str | None] | None = None,
    vectors: bool = False,
) -> list[Hit[Any]]:
    """Run a statement made by :func:`nearest`, :func:`match_text`, :func:`hybrid` or :func:`rerank`; return hits.

    Args:
        session: runs the statement.
        stmt: the statement.
        rerank: gives the hits another order: a :class:`Reranker`, or a function of the hits.
        query: what was asked for, as a text, for the reranker.
        k: how many of the reranked hits to return; all by default.
        text: returns the text of a hit for the reranker; by default its source text.
        vectors: load the vectors too, as :func:`mmr` needs them.

    Raises:
        InvalidStatement: the statement is no search.
        InvalidOption: no query for a reranker, ``k`` out of its range.
        RerankerError: the reranker failed, or its answer is not what was asked for.
    """
    hits = _load(session, stmt, vectors)
    if rerank is None:
        return hits if k is None else hits[:k]
    return rerank_hits(hits, rerank, query=query, k=k, text=text)


async def asearch(
    session: AsyncSession,
    stmt: Select[Any],
    *,
    rerank: Reranker | HitScorer | None = None,
    query: str | None = None,
    k: int | None = None,
    text: Callable[[Hit[Any]], str | None] | None = None,
    vectors: bool = False,
) -> list[Hit[Any]]:
    """Return the same as :func:`search`, on an AsyncSession; a reranker that is not asynchronous runs in a thread."""
    # In a greenlet as a whole: the source text may be that of a related row, which is loaded then.
    hits = await session.run_sync(_load, stmt, vectors)
    if rerank is None:
        return hits if k is None else hits[:k]
    return await arerank_hits(hits, rerank, query=query, k=k, text=text)


def _load(session: Session, stmt: Select[Any], vectors: bool) -> list[Hit[Any]]:
    reader = HitReader(stmt, vectors=vectors)
    result = session.execute(reader.stmt)
    # Only where a collection is loaded by a join, which repeats rows, and the ORM refuses to go on without: rows of
    # columns, or of an entity that several vectors were found for, may be equal and still be several.
    if getattr(result, "_unique_filter_state", None) is not None:
        result = result.unique(_identity)
    return [reader.hit(row) for row in result]


def _identity(row: Any) -> tuple[Any, ...]:
    """Return what tells a row from others: eager loading by a join repeats those that have several related ones."""
    return tuple(value if isinstance(value, Hashable) else _contents(value) for value in row)


def _contents(value: Any) -> Any:
    # An array may be long, and its representation leaves elements out.
    return value.tobytes() if hasattr(value, "tobytes") else repr(value)


class HitReader:
    """Makes hits of the rows of a statement.

    Attributes:
        stmt: the statement to run.
    """

    def __init__(self, stmt: Select[Any], *, vectors: bool = False) -> None:
        self._rows = ranked_rows_of(stmt) if isinstance(stmt, Select) else None
        self._parts: Sequence[Part] = () if self._rows is None else getattr(self._rows.composer, "parts", ())
        self._texts: tuple[ColumnElement[Any], ...] = ()
        self._distance: Distance | None = None
        for part in self._parts:
            if isinstance(part, TextPart):
                self._texts = self._texts or text_match_of(part.stmt).texts
            elif isinstance(part, VectorPart) and self._distance is None:
                self._distance = criterion_of(part.stmt).distance
                self._first = part.name
        if not self._parts:
            found = text_score_of(stmt)
            if found is None:
                self._distance = distance_of(stmt)
            else:
                self._texts = found.texts
        # By the columns themselves: the statement may have others of these names.
        self._measure = text_score_column_of(stmt) if self._distance is None else distance_column_of(stmt)
        self._reranked = rerank_column_of(stmt)
        self._vector = None
        if vectors:
            if self._distance is None:
                raise InvalidStatement("vectors=True needs a search for a vector; this one has none")
            self._vector = self._distance.operands[0].label(None)
            stmt = stmt.add_columns(self._vector)
        self.stmt = stmt

    def hit(self, row: Any) -> Hit[Any]:
        """Return a row as a hit."""
        distance, similarity, parts = self._measured(row)
        if self._reranked is not None:
            score = row._mapping[self._reranked]
        elif self._parts and self._rows is not None:
            score = row._mapping[self._rows.c.score]
        else:
            score = row._mapping[self._measure] if self._distance is None else similarity
        vector = None if self._vector is None else row._mapping[self._vector]
        return Hit(row[0], distance, similarity, self._text(row[0]), row, score, parts, vector)

    def _measured(self, row: Any) -> tuple[float | None, float | None, Mapping[str, HitPart | None]]:
        parts: Mapping[str, HitPart | None] = _NO_PARTS
        if self._rows is not None and self._parts:
            parts = MappingProxyType({part.name: _part(row, self._rows, part.name) for part in self._parts})
        if self._distance is None:
            return None, None, parts
        metric = self._distance.metric
        if not self._parts:
            distance = float(row._mapping["distance" if self._measure is None else self._measure])
            return distance, metric.similarity(distance, self._dim), parts
        found = parts[self._first]
        return (None, None, parts) if found is None else (metric.distance(found.score, self._dim), found.score, parts)

    def _text(self, entity: object) -> str | None:
        """Return the source text of the vector, else the text that is searched."""
        state = inspect(entity, raiseerr=False)
        if state is None:
            return None
        text = None if self._distance is None else _source_text(entity, state.mapper, self._distance.operands[0])
        if text is not None or not self._texts:
            return text
        tables = state.mapper.tables
        own = [base for column in self._texts for base in column.base_columns if base.table in tables]
        names = [state.mapper.get_property_by_column(column).key for column in own]
        return _joined(entity, names) if names else None

    @property
    def _dim(self) -> int:
        assert self._distance is not None
        return vector_type_of(self._distance.operands[0])[1].dim or 1


def _part(row: Any, rows: RankedRows, name: str) -> HitPart | None:
    rank = row._mapping[rows.c[f"{name}_rank"]]
    return None if rank is None else HitPart(int(rank), float(row._mapping[rows.c[f"{name}_score"]]))


def _source_text(entity: object, mapper: Any, column: ColumnElement[Any]) -> str | None:
    # The column of an alias has no info, and an entity that is joined to the vector's has not its attributes.
    source = next((base.info.get("source") for base in column.base_columns if base.table in mapper.tables), None)
    if source is None:
        return None
    if callable(source):
        text = source(entity)
        return None if text is None else str(text)
    return _joined(entity, (source,) if isinstance(source, str) else source)


def _joined(entity: object, names: Sequence[str]) -> str:
    return "\n\n".join(str(part) for name in names if (part := getattr(entity, name, None)) is not None)
