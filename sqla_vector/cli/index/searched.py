"""The database and the vector columns that ``sqla-vector index`` works on: tracked sessions are not needed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import typer
from sqlalchemy import Column, Connection, Engine, Table
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Mapper, configure_mappers, registry, scoped_session, sessionmaker

from sqla_vector.asynchrony import AsyncEngine, async_scoped_session, async_sessionmaker
from sqla_vector.cli.application import VARIABLE, called, named
from sqla_vector.cli.failure import ExitCode, Failed, failure_of
from sqla_vector.cli.output import Output
from sqla_vector.cli.running import logging_to, reporting
from sqla_vector.tracking.session import key_of, tracking_of
from sqla_vector.types import VectorType

__all__ = ["ColumnArgument", "Database", "ModelsOption", "searching"]

T = TypeVar("T")

ColumnArgument = Annotated[str, typer.Argument(metavar="CLASS.COLUMN", help="The vector column: Article.embedding.")]
ModelsOption = Annotated[
    str | None,
    typer.Option(
        "--models",
        metavar="MODULE:ATTRIBUTE",
        help="The declarative base, where the sessions are not tracked.",
    ),
]


@dataclass(frozen=True)
class _Attribute:
    """A mapped vector column."""

    name: str
    """``Article.embedding``"""
    other: str
    """``article.embedding``, by the table"""
    attribute: Any


class Database:
    """An engine, synchronous or not, and the mapped vector columns.

    Args:
        engine: an Engine or AsyncEngine.
        attributes: the columns.
        output: of the command.
    """

    def __init__(self, engine: Engine | AsyncEngine, attributes: list[_Attribute], output: Output) -> None:
        self.engine = engine
        self.output = output
        self._attributes = attributes
        self._runner = asyncio.Runner()

    def attributes(self, name: str | None) -> list[tuple[str, Any]]:
        """Return the vector columns, or the one that is named, by their names.

        Raises:
            Failed: there is none.
        """
        found = [(one.name, one.attribute) for one in self._attributes if name in (None, one.name, one.other)]
        if not found:
            have = ", ".join(one.name for one in self._attributes) or "none"
            raise Failed(f'there is no vector column "{name or ""}"; there are: {have}')
        return found

    def call(self, function: Callable[[Connection], T]) -> T:
        """Call a function with a connection in a transaction, which is committed after it.

        Raises:
            Failed: the database cannot be reached.
        """
        if isinstance(self.engine, AsyncEngine):
            return self.wait(self._call(self.engine, function))
        with self._reached(self.engine.connect) as connection, connection, connection.begin():
            return function(connection)

    async def _call(self, engine: AsyncEngine, function: Callable[[Connection], T]) -> T:
        connection = engine.connect()
        try:
            await connection.start()
        except (DBAPIError, OSError) as error:
            raise _unreachable(error) from error
        try:
            async with connection.begin():
                return await connection.run_sync(function)
        finally:
            await connection.close()

    @contextmanager
    def _reached(self, connect: Callable[[], Connection]) -> Iterator[Connection]:
        try:
            connection = connect()
        except (DBAPIError, OSError) as error:
            raise _unreachable(error) from error
        yield connection

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the event loop of this command."""
        return self._runner.run(coroutine)

    def close(self) -> None:
        """Give connections back, and end the event loop."""
        if isinstance(self.engine, AsyncEngine):
            self.wait(self.engine.dispose())
        else:
            self.engine.dispose()
        self._runner.close()


def _unreachable(error: Exception) -> Failed:
    said = " ".join(str(getattr(error, "orig", None) or error).split())
    return Failed(f"the database cannot be reached: {said}", ExitCode.UNREACHABLE)


@contextmanager
def searching(
    app: str | None, models: str | None, *, as_json: bool = False, show_traceback: bool = False
) -> Iterator[Database]:
    """Load the application for a command, and close its database at the end."""
    with reporting(as_json=as_json, show_traceback=show_traceback) as output:
        if not app:
            raise Failed(
                f"no application was named; give --app module:attribute, or set {VARIABLE}. The attribute is a "
                "sessionmaker or async_sessionmaker, or a function that returns one"
            )
        sessions = _sessions(app)
        engine = _engine(sessions, app)
        output.masking.add([str(engine.url.password)] if engine.url.password else [])
        database = Database(engine, _attributes(sessions, app, models), output)
        try:
            with logging_to(output.stderr, logging.WARNING):
                yield database
        finally:
            try:
                database.close()
            except Exception as error:  # what the command did is done, whatever becomes of its connections
                output.message(f"warning: {failure_of(error)}")


def _sessions(name: str) -> Any:
    found = named(name, "--app", "myapp.db:Session", "the sessionmaker")
    makers = (sessionmaker, async_sessionmaker, scoped_session, async_scoped_session)
    if callable(found) and not isinstance(found, (*makers, type)):
        found = called(found, name, "the async_sessionmaker")
    if isinstance(found, (scoped_session, async_scoped_session)):
        found = found.session_factory
    if not isinstance(found, (sessionmaker, async_sessionmaker)):
        raise Failed(f"{name} is no sessionmaker and no async_sessionmaker, but {type(found).__name__}")
    return found


def _engine(sessions: Any, name: str) -> Engine | AsyncEngine:
    bind = sessions.kw.get("bind")
    found = getattr(bind, "engine", bind)
    if isinstance(bind, AsyncEngine):
        return bind
    if isinstance(found, Engine):
        # An async_sessionmaker may have been given a synchronous engine of an asynchronous driver.
        return AsyncEngine(found) if found.dialect.is_async else found
    raise Failed(f"the sessions of {name} have no engine, so there is no database to look at: sessionmaker(engine)")


def _attributes(sessions: Any, name: str, models: str | None) -> list[_Attribute]:
    registries = [_registry(models)] if models else _tracked(sessions, name)
    mappers = {mapper for one in registries for mapper in one.mappers}
    found: dict[Any, _Attribute] = {}
    # A class before those that inherit its column.
    for mapper in sorted(mappers, key=lambda mapper: (len(list(mapper.iterate_to_root())), mapper.class_.__name__)):
        for column, attribute in _columns(mapper):
            found.setdefault(column, attribute)
    return sorted(found.values(), key=lambda one: one.name)


def _registry(models: str) -> registry:
    found: Any = named(models, "--models", "myapp.models:Base", "the declarative base")
    found = getattr(found, "registry", found)
    if not isinstance(found, registry):
        raise Failed(f"{models} is no declarative base and no registry, but {type(found).__name__}")
    configure_mappers()
    return found


def _tracked(sessions: Any, name: str) -> list[registry]:
    tracking = tracking_of(key_of(sessions))
    if tracking is None:
        raise Failed(
            f"the sessions of {name} are not tracked, so they do not tell what is mapped: give --models module:Base"
        )
    mappers = [target.mapper for target in tracking.targets]
    return list(dict.fromkeys(mapper.registry for mapper in mappers))


def _columns(mapper: Mapper[Any]) -> Iterator[tuple[Column[Any], _Attribute]]:
    class_ = mapper.class_
    for one in mapper.column_attrs:
        column = one.columns[0]
        if isinstance(column, Column) and isinstance(column.type, VectorType) and isinstance(column.table, Table):
            name, other = f"{class_.__name__}.{one.key}", f"{column.table.name}.{column.name}"
            yield column, _Attribute(name, other, getattr(class_, one.key))
