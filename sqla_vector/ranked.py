"""Rows with scores as an item of FROM, searched for within the statement that they stand in.

Hybrid search and grouping rank rows by searches of their own.  These have to look where the statement looks: at
the rows that its WHERE and its joins leave, criteria that are added later included.  What they are is known when
the statement is compiled, so :class:`RankedRows` keeps its searches as templates, and
:mod:`sqla_vector.dialects.ranked` completes them then.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, column, select
from sqlalchemy.sql.elements import ColumnClause, ColumnElement
from sqlalchemy.sql.selectable import Subquery
from sqlalchemy.sql.visitors import InternalTraversal, iterate
from sqlalchemy.types import TypeEngine

__all__ = ["PLACE", "Composer", "RankedRows", "Template", "key_name", "ordered_by", "ranked_rows_of", "refers_to"]

PLACE = "place"
"""The column of ranked rows that numbers them from 1."""


@dataclass(frozen=True)
class Template:
    """A search of the keys of one table, to be limited to the rows of a statement."""

    stmt: Select[Any]
    """Selects the keys first, as :func:`key_name` calls them; of one table, without criteria of the statement."""
    keys: tuple[ColumnElement[Any], ...]
    """The primary key columns of that table or alias."""


class Composer(ABC):
    """Makes ranked rows of searches."""

    columns: Sequence[tuple[str, TypeEngine[Any]]]
    """The names and types of what it selects beside the keys."""
    order: tuple[str, ...]
    """The names of the columns it is sorted by; descending where they begin with "-"."""
    parameters: Sequence[ColumnElement[Any]] = ()
    """Parameters and columns that it uses, the same ones at every call."""

    @property
    @abstractmethod
    def plan(self) -> tuple[Any, ...]:
        """What decides the SQL beside the searches and the values of parameters; hashable."""

    @abstractmethod
    def compose(self, searches: Sequence[Select[Any]], wanted: ColumnElement[int] | None) -> Select[Any]:
        """Return the ranked rows.

        Args:
            searches: the templates' statements, limited to the rows of the statement.
            wanted: how many rows are wanted, or None for all.
        """


def key_name(number: int) -> str:
    """Return what a part of the key is called in templates and in ranked rows."""
    return f"k{number}"


class RankedRows(Subquery):
    """A subquery of keys, scores and ranks that follows the criteria of the statement that it stands in.

    Its own element only names the columns.  What stands for it is composed when a statement is compiled, which
    happens once for many executions.
    """

    inherit_cache = None  # type: ignore[assignment]  # it has internals of its own
    _traverse_internals = [
        *Subquery._traverse_internals,
        ("searches", InternalTraversal.dp_clauseelement_list),
        ("flat_keys", InternalTraversal.dp_clauseelement_list),
        ("parameters", InternalTraversal.dp_clauseelement_list),
        ("plan", InternalTraversal.dp_plain_obj),
    ]

    searches: list[Select[Any]]
    flat_keys: list[ColumnElement[Any]]
    parameters: list[ColumnElement[Any]]
    plan: tuple[Any, ...]
    composer: Composer
    k: int | None

    @classmethod
    def of(cls, templates: Sequence[Template], composer: Composer, k: int | None = None) -> RankedRows:
        """Return what a composer makes of searches.

        Args:
            templates: the searches.
            composer: makes ranked rows of them.
            k: how many rows the statement wants, so that no more are handed to it; None for all.
        """
        keys = [(key_name(number), key.type) for number, key in enumerate(templates[0].keys)]
        made = cls._construct(select(*(column(name, type_) for name, type_ in (*keys, *composer.columns))))
        made.searches = [template.stmt for template in templates]
        made.flat_keys = [key for template in templates for key in template.keys]
        made.parameters = list(composer.parameters)
        made.plan = (type(composer).__name__, k, *composer.plan)
        made.composer, made.k = composer, k
        return made

    @property
    def templates(self) -> list[Template]:
        """The searches."""
        count = len(self.flat_keys) // len(self.searches)
        keys = [tuple(self.flat_keys[start : start + count]) for start in range(0, len(self.flat_keys), count)]
        return [Template(stmt, one) for stmt, one in zip(self.searches, keys, strict=True)]

    @property
    def keys(self) -> tuple[ColumnElement[Any], ...]:
        """The primary key columns of the table that is searched."""
        return self.templates[0].keys

    def with_element(self, element: Select[Any]) -> Subquery:
        """Return this item of FROM with another SELECT of the same columns inside."""
        clone = self._clone()
        clone.element = element
        return clone


def ordered_by(names: Sequence[str], columns: Any) -> list[ColumnElement[Any]]:
    """Return the columns of an order, descending where their names begin with "-"."""
    return [columns[name[1:]].desc() if name.startswith("-") else columns[name] for name in names]


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
