"""The application that a command works for: found by ``module:attribute``, and its database."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Table
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sqla_vector.asynchrony import AsyncEngine, async_scoped_session, async_sessionmaker
from sqla_vector.cli.failure import ExitCode, Failed, failure_of
from sqla_vector.elasticsearch import SearchIndex, indexes_of
from sqla_vector.tracking.session import Tracking, key_of, tracking_of
from sqla_vector.tracking.steps import AsyncDriver, Driver, Steps, Transaction, is_asynchronous
from sqla_vector.tracking.targets import Target

__all__ = ["VARIABLE", "Application", "called", "load", "named", "opened"]

T = TypeVar("T")

VARIABLE = "SQLA_VECTOR_APP"
"""The environment variable that names the application."""


def load(name: str | None) -> Any:
    """Return the tracked sessions that ``module:attribute`` names; the current directory is importable.

    Raises:
        Failed: they cannot be had, with what to do.
    """
    if not name:
        raise Failed(
            f"no application was named; give --app module:attribute, or set {VARIABLE}. The attribute is the "
            "sessionmaker that track() was given, or a function that returns it"
        )
    return _sessions(named(name, "--app", "myapp.db:Session", "the sessionmaker"), name)


def named(name: str, option: str, example: str, what: str) -> Any:
    """Return what ``module:attribute`` names; the current directory is importable.

    Args:
        name: of it.
        option: by which it was named.
        example: of a name.
        what: it should be.

    Raises:
        Failed: there is none.
    """
    module_name, colon, path = name.partition(":")
    if not colon or not path or not all(part.isidentifier() for part in (*module_name.split("."), *path.split("."))):
        raise Failed(f'{option} is module:attribute, such as {example}; got "{name}"')
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    found: Any = _import(module_name)
    for part in path.split("."):
        if not hasattr(found, part):
            raise Failed(f"{module_name} has no attribute {path}; {option} names {what}, or what returns it")
        found = getattr(found, part)
    return found


def called(function: Callable[[], Any], name: str, what: str) -> Any:
    """Return what a function of the application returns.

    Raises:
        Failed: it fails, or has to be awaited.
    """
    try:
        found = function()
    except (Exception, SystemExit) as error:
        raise Failed(f"{name} failed: {_said(error)}") from error
    if inspect.iscoroutine(found):
        found.close()
        raise Failed(f"{name} is asynchronous; name a function that returns {what} itself")
    return found


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise Failed(f"there is no module {error.name}, neither in {Path.cwd()} nor installed") from error
        raise Failed(f"{name} cannot be imported: {_said(error)}") from error
    except (Exception, SystemExit) as error:
        raise Failed(f"{name} cannot be imported: {_said(error)}") from error


def _said(error: BaseException) -> str:
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if isinstance(error, KeyError) and last is not None and last.tb_frame.f_globals.get("__name__") == "os":
        return f"the environment variable {error.args[0]} is not set"
    frames = traceback.extract_tb(error.__traceback__)
    where = [frame for frame in frames if "importlib" not in frame.filename and frame.filename != __file__]
    at = f" ({Path(where[-1].filename).name}, line {where[-1].lineno})" if where else ""
    return f"{type(error).__name__}: {error}{at}"


def _sessions(found: Any, name: str) -> Any:
    """Return the maker that an attribute is, or that it returns."""
    makers = (sessionmaker, async_sessionmaker, scoped_session, async_scoped_session)
    if callable(found) and not isinstance(found, (*makers, type)):
        found = called(found, name, "the async_sessionmaker")
    if isinstance(found, (scoped_session, async_scoped_session)):
        found = found.session_factory
    is_class = isinstance(found, type) and issubclass(found, Session)
    if not is_class and not isinstance(found, (sessionmaker, async_sessionmaker)):
        raise Failed(f"{name} is no sessionmaker and no async_sessionmaker, but {type(found).__name__}")
    if tracking_of(found) is None:
        raise Failed(f"the sessions of {name} are not tracked; call track({name.partition(':')[2]}, ...) in the module")
    return found


class Application:
    """Tracked sessions and the database behind them, for synchronous and asynchronous programs alike.

    Args:
        sessions: what :func:`load` returned.
        name: how it was named.
    """

    def __init__(self, sessions: Any, name: str) -> None:
        tracking = tracking_of(key_of(sessions))
        assert tracking is not None  # load() has seen to it
        self.sessions = sessions
        self.name = name
        self.tracking: Tracking = tracking
        self.is_async = is_asynchronous(sessions)
        self.targets: tuple[Target, ...] = tracking.targets
        self.indexes: tuple[SearchIndex, ...] = indexes_of(tracking.outbox) if tracking.outbox is not None else ()
        """What Elasticsearch has of the rows: the indexes that are declared with its outbox."""
        if not self.targets and not self.indexes:
            raise Failed(f"the models of {name} have no embedded column; declare one with embedding_column()")
        self._runner: asyncio.Runner | None = None
        self._engines = _engines(sessions)

    @property
    def passwords(self) -> list[str]:
        """The passwords of its databases, as far as URLs have them."""
        return [str(engine.url.password) for engine in self._engines if engine.url.password]

    @property
    def outbox(self) -> Table:
        """The outbox.

        Raises:
            Failed: there is none.
        """
        if self.tracking.outbox is None:
            raise Failed(f"{self.name} has no outbox; give track() outbox=, what outbox_table(Base.metadata) returned")
        return self.tracking.outbox

    @property
    def all_targets(self) -> tuple[Target, ...]:
        """The classes with embedded columns, and those of which there are indexes."""
        return (*self.targets, *(index.target for index in self.indexes))

    def target(self, name: str) -> Target | None:
        """Return the target of a table's name or a class's, None if there is none."""
        targets = self.all_targets
        by_table = [target for target in targets if target.entity == name]
        by_class = [target for target in targets if target.mapper.class_.__name__ == name]
        return next(iter((*by_table, *by_class)), None)

    def attribute(self, name: str) -> Any:
        """Return an embedded column's attribute by its name, ``Article.embedding`` or ``article.embedding``.

        Raises:
            Failed: there is none.
        """
        for target in self.targets:
            for column in target.columns:
                if name in (str(column), f"{target.entity}.{column.key}", f"{target.entity}.{column.column.name}"):
                    return getattr(column.mapper.class_, column.key)
        have = ", ".join(str(column) for target in self.targets for column in target.columns)
        raise Failed(f'there is no embedded column "{name}"; there are: {have}')

    def call(self, function: Callable[[Connection], T], *, to_write: bool = False) -> T:
        """Call a function with a connection in a transaction, which is committed after it.

        Raises:
            Failed: the database cannot be reached.
        """

        def steps() -> Steps[T]:
            found: T = yield Transaction(self._noting(function), to_write=to_write)
            return found

        return self.run(steps())

    def _noting(self, function: Callable[[Connection], T]) -> Callable[[Connection], T]:
        def noted(connection: Connection) -> T:
            self._engines.add(connection.engine)
            return function(connection)

        return noted

    def run(self, steps: Steps[T]) -> T:
        """Do the steps of a run."""
        table = self.tracking.outbox if self.tracking.outbox is not None else self.all_targets[0].table
        mappers = [target.mapper for target in self.all_targets]
        if self.is_async:
            return self.wait(AsyncDriver(self.sessions, table, mappers).run(steps))
        return Driver(self.sessions, table, mappers).run(steps)

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the event loop of this command."""
        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(coroutine)

    def connect(self) -> None:
        """Try whether the database can be reached.

        Raises:
            Failed: it cannot.
        """
        try:
            self.call(lambda connection: None)
        except Exception as error:
            if isinstance(error, Failed):
                raise
            said = " ".join(str(getattr(error, "orig", None) or error).split())
            raise Failed(f"the database cannot be reached: {said}", ExitCode.UNREACHABLE) from error

    def close(self) -> None:
        """Give connections back, and end the event loop."""
        for engine in self._engines:
            if not self.is_async:
                engine.dispose()
        if self._runner is not None:
            self._runner.run(self._dispose())
            self._runner.close()

    async def _dispose(self) -> None:
        for engine in self._engines:
            await AsyncEngine(engine).dispose()


def _engines(sessions: Any) -> set[Engine]:
    """Return the engines that a maker was given; others are met when they connect."""
    options: dict[str, Any] = getattr(sessions, "kw", {})
    found = [options.get("bind"), *(options.get("binds") or {}).values()]
    engines = [getattr(bind, "sync_engine", getattr(bind, "engine", None)) for bind in found]
    return {engine for engine in engines if isinstance(engine, Engine)}


@contextmanager
def opened(name: str | None) -> Iterator[Application]:
    """Load an application, and close it at the end."""
    application = Application(load(name), str(name))
    try:
        yield application
    finally:
        try:
            application.close()
        except Exception as error:  # what the command did is done, whatever becomes of its connections
            sys.stderr.write(f"warning: {failure_of(error)}\n")
