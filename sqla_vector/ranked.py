"""Rows with scores as an item of FROM, searched for within the statement that they stand in.

Hybrid search and grouping rank rows by searches of their own.  These have to look where the statement looks: at
the rows that its WHERE and its joins leave, criteria that are added later included.  What they are is known when
the statement is compiled, so :class:`RankedRows` keeps its searches as templates, and
:mod:`sqla_vector.dialects.ranked` completes them then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select
from sqlalchemy.sql.base import _clone
from sqlalchemy.sql.elements import ColumnClause, ColumnElement
from sqlalchemy.sql.selectable import Subquery
from sqlalchemy.sql.visitors import iterate

__all__ = ["PLACE", "Compose", "RankedRows", "Template", "key_name", "ranked_rows_of", "refers_to"]

PLACE = "place"
"""The column of ranked rows that numbers them from 1."""


@dataclass(frozen=True)
class Template:
    """A search of the keys of one table, to be limited to the rows of a statement."""

    stmt: Select[Any]
    """Selects the keys first, as :func:`key_name` calls them; of one table, without criteria of the statement."""
    keys: tuple[ColumnElement[Any], ...]
    """The primary key columns of that table or alias."""


Compose = Callable[[Sequence[Select[Any]], ColumnElement[int] | None], Select[Any]]
"""From completed searches, and the number of rows that are wanted or None for all, to the ranked rows.

Called again at compilation, it must use the same parameters again.
"""


def key_name(number: int) -> str:
    """Return what a part of the key is called in templates and in ranked rows."""
    return f"k{number}"


class RankedRows(Subquery):
    """A subquery of keys, scores and ranks that follows the criteria of the statement that it stands in.

    Two with the same element compile to the same SQL: ``templates`` and ``compose`` are how to make it anew.
    """

    inherit_cache = True

    templates: tuple[Template, ...]
    compose: Compose
    order: tuple[str, ...]
    """The names of the columns it is sorted by; descending where they begin with "-"."""
    k: int | None
    """How many rows the statement wants, so that no more are handed to it; None for all."""

    @classmethod
    def of(
        cls, templates: Sequence[Template], compose: Compose, order: Sequence[str] = (), k: int | None = None
    ) -> RankedRows:
        """Return what ``compose`` makes of searches."""
        made = cls._construct(compose([template.stmt for template in templates], None))
        made.templates, made.compose, made.order, made.k = tuple(templates), compose, tuple(order), k
        return made

    def with_element(self, element: Select[Any]) -> Subquery:
        """Return this item of FROM with another SELECT of the same columns inside."""
        clone = self._clone()
        clone.element = element
        return clone

    def _copy_internals(self, clone: Callable[..., Any] = _clone, **kw: Any) -> None:
        super()._copy_internals(clone=clone, **kw)
        self.templates = tuple(
            Template(clone(one.stmt, **kw), tuple(clone(key, **kw) for key in one.keys)) for one in self.templates
        )


def refers_to(criterion: ColumnElement[Any], rows: RankedRows) -> bool:
    """Tell whether a criterion is one of ranked rows."""
    return any(isinstance(one, ColumnClause) and _is_of(one, rows) for one in iterate(criterion))


def _is_of(column: ColumnClause[Any], rows: RankedRows) -> bool:
    table = column.table
    return isinstance(table, RankedRows) and not table._cloned_set.isdisjoint(rows._cloned_set)


def ranked_rows_of(stmt: Select[Any]) -> RankedRows | None:
    """Return the ranked rows that a statement is joined to, or None."""
    for criterion in stmt._where_criteria:
        for element in iterate(criterion):
            if isinstance(element, ColumnClause) and isinstance(element.table, RankedRows):
                return element.table
    return None
