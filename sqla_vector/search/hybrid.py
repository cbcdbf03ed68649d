"""Hybrid search: several searches of the same rows, by vectors and by text, fused in one statement.

Each part finds its own best rows; a row that only one of them finds is a row of the result.  The parts are joined
by UNION ALL and GROUP BY key, the full outer join that every database has.

Sources: Cormack, Clarke and Büttcher, *Reciprocal rank fusion outperforms Condorcet and individual rank learning
methods*, SIGIR 2009; Lee, *Analyses of multiple evidence combination*, SIGIR 1997.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Float, Integer, Select, bindparam, case, cast, func, literal_column, null, select, union_all
from sqlalchemy.sql.elements import ColumnElement
from sqlalchemy.types import TypeEngine

from sqla_vector.exc import InvalidOption
from sqla_vector.expression import DISTANCE_VALUE, vector_type_of
from sqla_vector.fusion import RRF, Fusion, Weighted
from sqla_vector.ranked import PLACE, Composer, RankedRows, key_name, ordered_by
from sqla_vector.schema import check_whole_number
from sqla_vector.search.nearest import MAX_K
from sqla_vector.search.parts import Part, text_part, vector_part
from sqla_vector.search.statement import check_statement

__all__ = ["default_candidates", "hybrid"]

MAX_PARTS = 32
LEAST_CANDIDATES = 50

_DOUBLE = Float(53)
_INTEGER = Integer()


def hybrid(
    stmt: Select[Any],
    column: Any = None,
    *,
    vector: object = None,
    text: object = None,
    parts: Sequence[Part] | None = None,
    k: int = 10,
    fusion: Fusion | None = None,
    candidates: int | None = None,
    metric: str | None = None,
    max_distance: float | None = None,
    min_similarity: float | None = None,
    exact: bool = False,
    index: str | None = None,
    min_score: float | None = None,
) -> Select[Any]:
    """Return ``stmt`` limited to the ``k`` best rows of several searches, best first.

    The rows end with ``score``, and for each part ``<name>_rank`` (from 1) and ``<name>_score``, which are None where
    the part has not found the row.  Every part looks at the rows that the statement selects, criteria that are
    added later included; a row that one part alone finds is in the result.  Ties are in primary key order.

    Args:
        stmt: a select of entities or columns, without LIMIT and ORDER BY.
        column: the vector column, for ``vector``.  Its entity is what is searched for ``text``; without a column,
            the one entity of the statement is.
        vector: a vector of shape (dim,), or an SQL expression of one; makes a part named ``vector``.
        text: a query as for :func:`match_text`; makes a part named ``text``.
        parts: instead of ``column``, ``vector`` and ``text``: what :func:`vector_part` and :func:`text_part` return,
            all of one table.
        k: how many rows, from 1.
        fusion: :func:`~sqla_vector.fusion.rrf` by default, or :func:`~sqla_vector.fusion.weighted`.
        candidates: how many rows of each part are fused, at least ``k``; by default the larger of 50 and twice
            ``k``.  Pages (``offset()``) come out of these.
        metric: as for :func:`nearest`, of ``vector``.
        max_distance: leave out of the part rows that are farther; they may come by another part.
        min_similarity: likewise for rows that are less similar; instead of ``max_distance``.
        exact: bypass vector indexes.
        index: the name of the text index, if the entity has several.
        min_score: leave out of the part ``text`` rows that score less.

    Raises:
        InvalidOption: an option out of its range; no part, two of the same name, or parts of different tables.
        InvalidStatement: ``stmt`` has LIMIT, OFFSET or ORDER BY, or is no Select.
        InvalidVector: ``vector`` is no vector of the column's dimension.
    """
    check_statement(stmt, "hybrid")
    check_whole_number(k, "k", 1, MAX_K)
    if candidates is None:
        candidates = default_candidates(k)
    check_whole_number(candidates, "candidates", k, MAX_K)
    if fusion is not None and not isinstance(fusion, (RRF, Weighted)):
        raise InvalidOption(f"fusion= is rrf() or weighted(), got {type(fusion).__name__}")
    if parts is None:
        parts = []
        if vector is not None:
            if column is None:
                raise InvalidOption("hybrid() needs the vector column: hybrid(select(Article), Article.embedding, ...)")
            options = {
                "metric": metric,
                "max_distance": max_distance,
                "min_similarity": min_similarity,
                "exact": exact,
            }
            parts = [vector_part(column, vector, name="vector", **options)]  # type: ignore[arg-type]
        if text is not None:
            entity = _entity_of(stmt) if column is None else _owner_of(column)
            parts = [*parts, text_part(entity, text, index=index, min_score=min_score)]
    elif any(one is not None for one in (vector, text, column)):
        raise InvalidOption("hybrid() takes parts=, or a column with vector= and text=; not both")
    return fused(stmt, _checked(parts), RRF() if fusion is None else fusion, k, candidates)


def default_candidates(k: int) -> int:
    """Return how many rows of each part are fused if it is not said."""
    return min(MAX_K, max(LEAST_CANDIDATES, 2 * k))


def fused(stmt: Select[Any], parts: Sequence[Part], fusion: Fusion, k: int, candidates: int) -> Select[Any]:
    """Return a statement joined to the fused rows of its parts."""
    templates = [part.template(candidates) for part in parts]
    keys = templates[0].keys
    for part, template in zip(parts, templates, strict=True):
        if not _same_rows(keys, template.keys):
            raise InvalidOption(
                f"the parts {parts[0].name} and {part.name} are of different tables; hybrid() fuses searches of one"
            )
    composer = HybridComposer(parts, fusion, len(keys))
    rows = RankedRows.of(templates, composer, k)
    more = [rows.c[f"{part.name}_{what}"] for part in parts for what in ("rank", "score")]
    by = ordered_by(composer.order, rows.c)
    return (
        stmt.add_columns(rows.c.score, *more)
        .where(*(rows.c[key_name(number)] == key for number, key in enumerate(keys)))
        .order_by(*by, *keys)
        .limit(literal_column(str(k), _INTEGER))
    )


def _entity_of(stmt: Select[Any]) -> Any:
    """Return the one entity or table that a statement selects."""
    described = [one["entity"] for one in stmt.column_descriptions if one.get("entity") is not None]
    found = described or list(stmt.get_final_froms())
    if not found or any(one is not found[0] for one in found):
        raise InvalidOption("hybrid() cannot tell what text= is of; give parts=[text_part(Article, ...)]")
    return found[0]


def _owner_of(column: Any) -> Any:
    """Return the entity, alias or table that a column belongs to."""
    parent = getattr(column, "parent", None)
    return getattr(parent, "entity", None) if parent is not None else vector_type_of(column)[0].table


def _checked(parts: Sequence[Part]) -> Sequence[Part]:
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, Part) for part in parts):
        raise InvalidOption("parts= takes a list of vector_part(...) and text_part(...)")
    if not 1 <= len(parts) <= MAX_PARTS:
        raise InvalidOption(f"hybrid() fuses 1 to {MAX_PARTS} parts, got {len(parts)}; give vector=, text= or parts=")
    names = [part.name for part in parts]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InvalidOption(f"two parts are called {' and '.join(sorted(twice))}; give each a name=")
    return parts


def _same_rows(keys: Sequence[ColumnElement[Any]], others: Sequence[ColumnElement[Any]]) -> bool:
    """Tell whether keys of two tables or aliases are of the same rows."""
    one, two = (getattr(key[0], "table", None) for key in (keys, others))
    return one == two and len(keys) == len(others)


class HybridComposer(Composer):
    """Fuses the searches of parts.  Its parameters are made once, since the statement is known by them."""

    def __init__(self, parts: Sequence[Part], fusion: Fusion, keys: int) -> None:
        self.parts = parts
        self.fusion = fusion
        self._keys = [key_name(number) for number in range(keys)]
        shares = [part.weight for part in parts]
        if isinstance(fusion, Weighted):
            shares = fusion.shares([(part.kind, part.weight) for part in parts])
            if not any(shares):
                raise InvalidOption(f"with alpha={fusion.alpha:g} no part of the search counts")
        self._shares = [bindparam(None, share, type_=_DOUBLE, unique=True) if share else None for share in shares]
        self._rrf_k = bindparam(None, fusion.k if isinstance(fusion, RRF) else 0, type_=_INTEGER, unique=True)
        counting = [part for part, share in zip(parts, shares, strict=True) if share]
        # By rank if there is nothing to fuse: two scores may differ by less than what is left of it after scaling.
        self.order = (f"{counting[0].name}_rank",) if len(counting) == 1 else ("-score",)
        named: list[tuple[str, TypeEngine[Any]]] = [("score", DISTANCE_VALUE)]
        for part in parts:
            rank, score = _named(part)
            named += [(rank, _INTEGER), (score, DISTANCE_VALUE)]
        self.columns = [*named, (PLACE, _INTEGER)]
        self.parameters = [self._rrf_k, *(share for share in self._shares if share is not None)]

    @property
    def plan(self) -> tuple[Any, ...]:
        fusion = self.fusion.normalize if isinstance(self.fusion, Weighted) else "rrf"
        parts = ((part.name, share is None) for part, share in zip(self.parts, self._shares, strict=True))
        return fusion, *parts

    def compose(self, searches: Sequence[Select[Any]], wanted: ColumnElement[int] | None) -> Select[Any]:
        arms = [
            self._arm(number, part, share, search)
            for number, (part, share, search) in enumerate(zip(self.parts, self._shares, searches, strict=True))
            if share is not None
        ]
        if len(arms) == 1:
            return self._alone(arms[0])
        rows = union_all(*arms).subquery()
        keys = [rows.c[name] for name in self._keys]
        if len(arms) > 2:
            # Added up the largest first, so that rows with the same ranks in other parts have the very same score.
            place = func.row_number().over(partition_by=keys, order_by=(rows.c.contribution.desc(), rows.c.part))
            rows = select(*rows.c, place.label(PLACE)).subquery()
            keys = [rows.c[name] for name in self._keys]
            terms = [_where(rows.c.place, place, rows.c.contribution) for place in range(1, len(arms) + 1)]
        else:
            parts = [number for number, share in enumerate(self._shares) if share is not None]
            terms = [_where(rows.c.part, number, rows.c.contribution) for number in parts]
        zero = literal_column("0.0", _DOUBLE)
        score: ColumnElement[Any] = func.coalesce(terms[0], zero)
        for term in terms[1:]:
            score = score + func.coalesce(term, zero)
        columns: list[ColumnElement[Any]] = []
        for number, (part, share) in enumerate(zip(self.parts, self._shares, strict=True)):
            rank, value = _named(part)
            if share is None:
                columns += _missing(part)
            else:
                columns.append(_where(rows.c.part, number, rows.c.rank).label(rank))
                columns.append(_where(rows.c.part, number, rows.c.score).label(value))
        return self._placed(select(*keys, score.label("score"), *columns).group_by(*keys))

    def _alone(self, arm: Select[Any]) -> Select[Any]:
        rows = arm.subquery()
        columns: list[ColumnElement[Any]] = []
        for part, share in zip(self.parts, self._shares, strict=True):
            rank, value = _named(part)
            columns += _missing(part) if share is None else [rows.c.rank.label(rank), rows.c.score.label(value)]
        keys = [rows.c[name] for name in self._keys]
        return select(*keys, rows.c.contribution.label("score"), *columns, rows.c.rank.label(PLACE))

    def _placed(self, grouped: Select[Any]) -> Select[Any]:
        """Return fused rows with their place among all, from 1."""
        rows = grouped.subquery()
        order = (rows.c.score.desc(), *(rows.c[name] for name in self._keys))
        return select(*rows.c, func.row_number().over(order_by=order).label(PLACE))

    def _arm(self, number: int, part: Part, share: ColumnElement[float], search: Select[Any]) -> Select[Any]:
        """Return the keys that a part found, with rank, score and what it contributes."""
        found = search.subquery()
        keys = [found.c[name] for name in self._keys]
        order = func.row_number().over(order_by=(part.order(found), *keys))
        rows = select(*keys, order.label("rank"), part.score(found).label("score")).subquery()
        return select(
            *(rows.c[name] for name in self._keys),
            literal_column(str(number), _INTEGER).label("part"),
            rows.c.rank,
            rows.c.score,
            self._contribution(share, rows.c.rank, rows.c.score).label("contribution"),
        )

    def _contribution(
        self, share: ColumnElement[float], rank: ColumnElement[int], score: ColumnElement[float]
    ) -> ColumnElement[float]:
        """Return the same as the fusion's ``fuse()``, operation by operation."""
        if isinstance(self.fusion, RRF):
            # A cast, or the databases would divide in numbers of other types.
            return share / cast(self._rrf_k + rank, _DOUBLE)
        low, high = func.min(score).over(), func.max(score).over()
        one, zero = literal_column("1.0", _DOUBLE), literal_column("0.0", _DOUBLE)
        match self.fusion.normalize:
            case "minmax":
                return share * case((high > low, (score - low) / (high - low)), else_=one)
            case "max":
                largest = case((-low > high, -low), else_=high)
                return share * case((largest > zero, score / largest), else_=zero)
            case _:
                return share * score


def _where(column: ColumnElement[int], number: int, value: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return the value of the one row of a group that has a number."""
    return func.max(case((column == literal_column(str(number), _INTEGER), value)))


def _named(part: Part) -> tuple[str, str]:
    return f"{part.name}_rank", f"{part.name}_score"


def _missing(part: Part) -> list[ColumnElement[Any]]:
    """Return the columns of a part that does not count."""
    rank, score = _named(part)
    return [cast(null(), _INTEGER).label(rank), cast(null(), DISTANCE_VALUE).label(score)]
