"""Search by a text: it is embedded as the rows were, and the rows nearest to it are searched."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sqlalchemy import Select, inspect, literal_column, select
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.util import AliasedInsp
from sqlalchemy.sql.elements import ColumnElement

from sqla_vector.asynchrony import AsyncSession
from sqla_vector.dialects.prefix import begins_with
from sqla_vector.embedding import EmbeddedColumn, Embedder, aembed, embed, embedded_columns
from sqla_vector.embedding.embedder import model_of
from sqla_vector.embedding.source import clean
from sqla_vector.exc import InvalidOption, InvalidText, ModelMismatch
from sqla_vector.search import nearest
from sqla_vector.tracking.session import tracking_behind, trackings
from sqla_vector.tracking.targets import Embedders, GivenEmbedders

__all__ = ["Question", "anear_text", "near_text"]


def near_text(
    stmt: Select[Any],
    column: Any,
    text: str,
    k: int = 10,
    *,
    session: Session | None = None,
    embedders: GivenEmbedders | None = None,
    prefix: str | None = None,
    any_model: bool = False,
    **options: Any,
) -> Select[Any]:
    """Return what :func:`sqla_vector.nearest` returns for the vector of a text, by the embedder of the column.

    The text is embedded now, and the statement can be run later.  It finds rows whose fingerprint is of the model
    that embedded the text, and no others: vectors of two models cannot be compared.  While a model is being
    changed that is the old one until the cutover, and the new one from then on.  A ``redact=`` of the column is
    given the text, as it was given those of the rows.

    Args:
        stmt: as for :func:`~sqla_vector.nearest`.
        column: an attribute that ``embedding_column()`` declares, ``Article.embedding``; of an alias too.
        text: what to search for.
        k: how many rows.
        session: the one that will run the statement.  It knows the embedders if it is tracked, which of several
            :class:`~sqla_vector.tracking.Versions` is in force, and whether the rows are by that model at all.
        embedders: by name, if not those of :func:`track`.  Without a session, those of the tracked sessions that
            have the column are asked, if there is one embedder among them.
        prefix: what the model wants before a query, ``"query: "``; by default the embedder's ``query_prefix``.
        any_model: search rows by other models too, and rows of which nothing says what they are by.
        **options: those of :func:`~sqla_vector.nearest`.

    Raises:
        EmbedderError: the embedder failed, or its answer is no vector.
        EmbedderUnavailable: it cannot be reached.
        InvalidOption: an argument is none, or there is no embedder, or more than one.
        InvalidStatement: as :func:`~sqla_vector.nearest` does, before anything is embedded.
        InvalidText: there is nothing to search for in the text, or ``redact=`` left nothing of it.
        ModelMismatch: all rows are by other models (with a session).
    """
    if isinstance(session, AsyncSession):
        raise InvalidOption("this session is asynchronous: await anear_text()")
    how = {"session": session, "embedders": embedders, "prefix": prefix, "any_model": any_model}
    query = _Query.of(stmt, column, k, options, text, **how)
    return query.statement(embed(query.question.embedder, [query.question.text])[0])


async def anear_text(
    stmt: Select[Any],
    column: Any,
    text: str,
    k: int = 10,
    *,
    session: AsyncSession | None = None,
    embedders: GivenEmbedders | None = None,
    prefix: str | None = None,
    any_model: bool = False,
    **options: Any,
) -> Select[Any]:
    """Return the same as :func:`near_text`; the event loop goes on while the text is embedded."""
    how = {"embedders": embedders, "prefix": prefix, "any_model": any_model}
    if session is None:
        query = _Query.of(stmt, column, k, options, text, **how)
    elif isinstance(session, AsyncSession):
        query = await session.run_sync(lambda s: _Query.of(stmt, column, k, options, text, session=s, **how))
    else:
        raise InvalidOption("this session is not asynchronous: call near_text()")
    return query.statement((await aembed(query.question.embedder, [query.question.text]))[0])


@dataclass(frozen=True)
class Question:
    """A text to be searched for, as it is embedded, and the rows among which it may be."""

    text: str
    embedder: Embedder
    criterion: ColumnElement[bool] | None
    """Keeps to rows by the embedder's model; None for any."""

    @classmethod
    def of(
        cls,
        attribute: Any,
        text: str,
        *,
        session: Session | None = None,
        embedders: GivenEmbedders | None = None,
        prefix: str | None = None,
        any_model: bool = False,
    ) -> Question:
        """Return the question for a column; see :func:`near_text`."""
        entity, column = _column_of(attribute)
        if not isinstance(any_model, bool):
            raise InvalidOption(f"any_model must be True or False, got {any_model!r}")
        wanted = _text_of(column, text)
        embedder = _embedder(column, attribute, session, embedders)
        before = getattr(embedder, "query_prefix", "") if prefix is None else prefix
        if not isinstance(before, str):
            raise InvalidOption(f"a query's prefix is a text, got {before!r}")
        if any_model:
            return cls(before + wanted, embedder, None)
        if session is not None:
            _check_rows(session, column, embedder)
        return cls(before + wanted, embedder, begins_with(getattr(entity, column.fingerprint_key), _mark(embedder)))


@dataclass(frozen=True)
class _Query:
    """A search that wants for a vector."""

    base: Select[Any]
    attribute: Any
    k: int
    options: dict[str, Any]
    question: Question

    @classmethod
    def of(cls, stmt: Select[Any], attribute: Any, k: int, options: dict[str, Any], text: str, **how: Any) -> _Query:
        question = Question.of(attribute, text, **how)
        query = cls(stmt, attribute, k, options, question)
        # What nearest() refuses, it refuses now, before anybody is paid for a vector.
        query.statement(np.ones(question.embedder.dimensions, np.float32))
        if question.criterion is None:
            return query
        return replace(query, base=stmt.where(question.criterion))

    def statement(self, vector: Any) -> Select[Any]:
        return nearest(self.base, self.attribute, vector, self.k, **self.options)


def _column_of(attribute: Any) -> tuple[Any, EmbeddedColumn]:
    """Return the class, or its alias, that an attribute is of, and what is declared for it."""
    parent = inspect(getattr(attribute, "parent", None), raiseerr=False)
    if isinstance(parent, (Mapper, AliasedInsp)):
        for column in embedded_columns(parent.mapper):
            if column.key == getattr(attribute, "key", None):
                return parent.entity, column
    raise InvalidOption(
        f"near_text() searches a column that embedding_column() declares, such as Article.embedding; got {attribute!r}"
    )


def _text_of(column: EmbeddedColumn, text: object) -> str:
    wanted = clean(text)
    redact = column.spec.source.redact
    if wanted is not None and redact is not None:
        wanted = clean(redact(wanted))
    if wanted is None:
        raise InvalidText(
            f"there is nothing to search for in {column}: the text is empty, or nothing of it may be known"
        )
    return wanted


def _embedder(
    column: EmbeddedColumn, attribute: Any, session: Session | None, given: GivenEmbedders | None
) -> Embedder:
    """Return the embedder of a column's vectors."""
    if given is not None:
        known = [Embedders(given)]
    elif session is not None and (tracking := tracking_behind(session)) is not None:
        known = [tracking.embedders]
    else:
        known = [tracking.embedders for tracking in trackings() if _is_of(tracking.targets, column)]
    if not known:
        raise InvalidOption("near_text() has no embedders; give embedders=, or track() the sessions before")
    if session is not None:
        known = [one.at(lambda c: session.connection(bind_arguments={"mapper": c.mapper})) for one in known]
    elif any(one.versions(column) for one in known):
        raise InvalidOption(
            f"{column} has several versions of its embedder; give session=, which knows the one in force"
        )
    found = {id(one): one for one in (embedders.embedder(column) for embedders in known)}
    if len(found) > 1:
        raise InvalidOption(f"sessions are tracked with different embedders for {column}; give session= or embedders=")
    return next(iter(found.values()))


def _is_of(targets: Any, column: EmbeddedColumn) -> bool:
    return any(column.column is one.column for target in targets for one in target.columns)


def _mark(embedder: Embedder) -> str:
    """Return how fingerprints of an embedder's vectors begin."""
    return f"{model_of(embedder)}:"


def _check_rows(session: Session, column: EmbeddedColumn, embedder: Embedder) -> None:
    """See to it that there are rows to be found, if there are any.

    Raises:
        ModelMismatch: all rows are by other models.
    """
    connection = session.connection(bind_arguments={"mapper": column.mapper})
    mark = column.fingerprint_column
    mine: Any = select(literal_column("1")).where(begins_with(mark, _mark(embedder))).limit(1)
    if connection.scalar(mine) is not None:
        return
    other = connection.scalar(select(mark).where(mark.is_not(None)).limit(1))
    if other is not None:
        raise ModelMismatch(
            f"{column} has vectors of {str(other).rpartition(':')[0] or 'an unknown model'}, and none of "
            f"{model_of(embedder)}, by which the query would be embedded; give embedders= with the model of the rows, "
            "or embed the rows by this one: backfill() does, and Upgrade() while searches go on"
        )
