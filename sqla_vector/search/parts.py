"""The parts of a hybrid search: what each looks for, and how much it counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, literal_column, select, type_coerce
from sqlalchemy.sql.annotation import _deep_deannotate
from sqlalchemy.sql.elements import ColumnElement

from sqla_vector.expression import vector_type_of
from sqla_vector.functions import similarity_from
from sqla_vector.fusion import Kind, check_weight
from sqla_vector.ranked import Template, key_name
from sqla_vector.schema import check_identifier
from sqla_vector.search.nearest import nearest
from sqla_vector.search.statement import criterion_of, text_match_of
from sqla_vector.search.text import match_text

__all__ = ["Part", "TextPart", "VectorPart", "select_keys", "text_part", "vector_part"]


def select_keys(keys: Sequence[ColumnElement[Any]], *more: Any) -> Select[Any]:
    """Return a select of keys under the names that templates have them by."""
    # Not the columns themselves: a foreign key among them would offer another way to join the result.
    named = [type_coerce(key, key.type).label(key_name(number)) for number, key in enumerate(keys)]
    return select(*named, *more)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A search that is one part of a hybrid one; made by :func:`vector_part` or :func:`text_part`."""

    kind: Kind
    name: str
    weight: float

    def __post_init__(self) -> None:
        check_weight(self.weight)
        usable = isinstance(self.name, str) and self.name
        check_identifier(f"{self.name}_rank" if usable else self.name, "name")

    def template(self, candidates: int) -> Template:
        """Return the search for the best ``candidates`` rows."""
        raise NotImplementedError

    def score(self, found: Any) -> ColumnElement[float]:
        """Return the score of a row that the search found, larger is better."""
        raise NotImplementedError

    def order(self, found: Any) -> ColumnElement[Any]:
        """Return what the search sorts by."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class VectorPart(Part):
    """The rows nearest to a vector; its score is the metric's similarity."""

    column: Any
    stmt: Select[Any]
    """Of the keys, nearest first, for one row."""
    options: dict[str, Any]
    vector: Any
    where: tuple[ColumnElement[bool], ...] = ()

    def template(self, candidates: int) -> Template:
        keys = criterion_of(self.stmt).keys
        rows = select_keys(keys).where(*self.where)
        return Template(nearest(rows, self.column, self.vector, candidates, **self.options), keys)

    def score(self, found: Any) -> ColumnElement[float]:
        metric = criterion_of(self.stmt).distance.metric_name
        return similarity_from(found.c.distance, metric, vector_type_of(self.column)[1])

    def order(self, found: Any) -> ColumnElement[Any]:
        column: ColumnElement[Any] = found.c.distance
        return column


@dataclass(frozen=True, kw_only=True)
class TextPart(Part):
    """The rows whose texts match a query; its score is that of :func:`match_text`."""

    entity: Any
    stmt: Select[Any]
    """A search for one row."""
    query: Any
    options: dict[str, Any]

    def template(self, candidates: int) -> Template:
        # Without annotations, which would make an ORM statement of it, with criteria of its own.
        keys = tuple(key._deannotate() for key in text_match_of(self.stmt).keys)
        return Template(match_text(select_keys(keys), self.entity, self.query, candidates, **self.options), keys)

    def score(self, found: Any) -> ColumnElement[float]:
        column: ColumnElement[float] = found.c.score
        return column

    def order(self, found: Any) -> ColumnElement[Any]:
        column: ColumnElement[Any] = found.c.score
        return column.desc()


def text_part(
    entity: Any,
    query: Any,
    *,
    weight: float = 1.0,
    name: str = "text",
    index: str | None = None,
    min_score: float | None = None,
) -> TextPart:
    """Return a part of :func:`hybrid` that looks for the rows whose texts match a query.

    Args:
        entity: what is searched, as for :func:`match_text`.
        query: likewise.
        weight: how much the part counts beside the others.
        name: what its columns in the result begin with, ``<name>_rank`` and ``<name>_score``.
        index: the name of the text index, if the entity has several.
        min_score: leave out of this part rows that score less.

    Raises:
        InvalidOption: the entity has no text index, or several and none is named; an option out of its range.
        InvalidText: ``query`` is no string, or no Unicode that can be encoded.
    """
    options = {"index": index, "min_score": min_score}
    # For its checks, now and not when the statement is complete.
    stmt = match_text(select(literal_column("1")), entity, query, 1, **options)  # type: ignore[arg-type]
    return TextPart(kind="text", name=name, weight=weight, entity=entity, stmt=stmt, query=query, options=options)


def vector_part(
    column: Any,
    vector: object,
    *,
    weight: float = 1.0,
    name: str | None = None,
    metric: str | None = None,
    max_distance: float | None = None,
    min_similarity: float | None = None,
    exact: bool = False,
    oversample: int | None = None,
    ef_search: int | None = None,
    probes: int | None = None,
    recall: float | None = None,
    where: ColumnElement[bool] | None = None,
) -> VectorPart:
    """Return a part of :func:`hybrid` that looks for the rows nearest to a vector.

    Args:
        column: the vector column, for example ``Article.title_embedding``.
        vector: as for :func:`nearest`.
        weight: how much the part counts beside the others.
        name: what its columns in the result begin with, ``<name>_rank`` and ``<name>_score``; by default the
            column's name.
        metric: as for :func:`nearest`.
        max_distance: leave out of this part rows that are farther.
        min_similarity: leave out of this part rows that are less similar; instead of ``max_distance``.
        exact: as for :func:`nearest`.
        oversample: likewise.
        ef_search: likewise.
        probes: likewise.
        recall: likewise.
        where: leave out of this part rows that do not meet a criterion on their own columns; they may come by
            another part.

    Raises:
        InvalidOption: an option out of its range.
        InvalidVector: ``vector`` is no vector of the column's dimension.
    """
    options = {
        "metric": metric,
        "max_distance": max_distance,
        "min_similarity": min_similarity,
        "exact": exact,
        "oversample": oversample,
        "ef_search": ef_search,
        "probes": probes,
        "recall": recall,
    }
    element, _ = vector_type_of(column)
    # For its checks, now and not when the statement is complete.
    stmt = nearest(select(element), column, vector, 1, **options)  # type: ignore[arg-type]
    # Without annotations, which would make an ORM statement of the template, with criteria of its own.
    criteria = () if where is None else (_deep_deannotate(where),)
    return VectorPart(
        kind="vector",
        name=str(element.key) if name is None else name,
        weight=weight,
        column=column,
        stmt=stmt,
        options=options,
        vector=vector,
        where=criteria,
    )
