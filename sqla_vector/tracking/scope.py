"""What a run over existing rows is about: whose sessions, which columns, which embedders, which outbox."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.orm import Session, scoped_session

from sqla_vector.asynchrony import AsyncSession, async_scoped_session
from sqla_vector.embedding import EmbeddedColumn
from sqla_vector.exc import InvalidOption
from sqla_vector.tracking.outbox import check_outbox
from sqla_vector.tracking.session import tracking_behind
from sqla_vector.tracking.steps import AsyncDriver, Driver, is_asynchronous
from sqla_vector.tracking.targets import Embedders, GivenEmbedders, Models, Target, target_of, targets_of

__all__ = ["Scope"]


@dataclass(frozen=True)
class Scope:
    """What a run is about."""

    sessions: Any
    is_async: bool
    embedders: Embedders
    outbox: Table | None
    columns: tuple[tuple[Target, EmbeddedColumn], ...]

    @classmethod
    def of(
        cls,
        what: str,
        sessions: Any,
        *,
        embedders: GivenEmbedders | None,
        outbox: Table | None,
        models: Models | None,
        columns: Iterable[Any] | None,
    ) -> Scope:
        """Return what a run is about; what is not given is that of :func:`~sqla_vector.tracking.track`.

        Args:
            what: the name of the run in messages.
            sessions: a maker of sessions, or a session, in whose transaction everything happens.
            embedders: by name.
            outbox: the table.
            models: a declarative base, a registry or mapped classes.
            columns: attributes such as ``Article.embedding``; all if None.

        Raises:
            InvalidOption: an argument is none, or there are no embedders.
        """
        if isinstance(sessions, (scoped_session, async_scoped_session)):
            sessions = sessions.session_factory
        is_async = isinstance(sessions, AsyncSession)
        if not isinstance(sessions, (Session, AsyncSession)):
            is_async = is_asynchronous(sessions)
        tracking = tracking_behind(sessions)
        if embedders is None and tracking is None:
            raise InvalidOption(f"{what} has no embedders; give embedders=, or track() the sessions before")
        known = Embedders(embedders) if embedders is not None else tracking.embedders  # type: ignore[union-attr]
        if outbox is None and tracking is not None:
            outbox = tracking.outbox
        targets = targets_of(models) if models is not None or tracking is None else tracking.targets
        chosen = [(target, column) for target in targets for column in target.columns]
        if columns is not None:
            if isinstance(columns, str) or not isinstance(columns, Iterable):
                raise InvalidOption(f"columns= is a list of attributes, such as [Article.embedding], got {columns!r}")
            chosen = list(dict.fromkeys(target_of(attribute, targets) for attribute in columns))
        for _, column in chosen:
            known.check(column)
        return cls(sessions, is_async, known, None if outbox is None else check_outbox(outbox), tuple(chosen))

    @property
    def targets(self) -> tuple[Target, ...]:
        """The classes that have the columns."""
        return tuple(dict.fromkeys(target for target, _ in self.columns))

    def driver(self, what: str, *, is_async: bool) -> Any:
        """Return what does the steps of a run.

        Raises:
            InvalidOption: the sessions are of the other kind.
        """
        if is_async != self.is_async:
            other = f"await a{what}()" if self.is_async else f"call {what}()"
            kind = "asynchronous" if self.is_async else "not asynchronous"
            raise InvalidOption(f"these sessions are {kind}: {other}")
        table = self.outbox if self.outbox is not None else self.columns[0][0].table
        mappers = [target.mapper for target in self.targets]
        if isinstance(self.sessions, AsyncSession):
            return AsyncDriver(lambda: _AsyncOpen(self.sessions), table, mappers)  # type: ignore[arg-type,return-value]
        if isinstance(self.sessions, Session):
            return Driver(lambda: _Open(self.sessions), table, mappers)  # type: ignore[arg-type,return-value]
        driver: type[Any] = AsyncDriver if self.is_async else Driver
        return driver(self.sessions, table, mappers)


@dataclass(frozen=True)
class _Open:
    """A session that is open already, and stays open: its transaction is its owner's."""

    session: Session

    def __enter__(self) -> _Open:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def begin(self) -> AbstractContextManager[None]:
        return nullcontext()

    def connection(self, **options: Any) -> Connection:
        return self.session.connection(**options)


@dataclass(frozen=True)
class _AsyncOpen:
    """The same of an asynchronous session."""

    session: AsyncSession

    async def __aenter__(self) -> _AsyncOpen:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        pass

    def begin(self) -> nullcontext[None]:
        return nullcontext()

    async def run_sync(self, function: Any) -> Any:
        return await self.session.run_sync(function)
