"""One algorithm for synchronous and asynchronous programs: a generator says what is to be done, a driver does it.

A generator yields steps and is sent their results; a step that fails is raised where it was yielded.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent import futures
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from numpy.typing import NDArray
from sqlalchemy import Connection, Table
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.orm import Mapper, Session, sessionmaker

from sqla_vector.asynchrony import AsyncSession, async_sessionmaker
from sqla_vector.embedding import Embedder, aembed, embed
from sqla_vector.exc import EmbedderUnavailable, InvalidOption
from sqla_vector.tracking.patience import has_passing_state
from sqla_vector.types import support_of

__all__ = [
    "AnyOf",
    "AsyncDriver",
    "Call",
    "Driver",
    "Embedding",
    "Pause",
    "Start",
    "Step",
    "Steps",
    "Transaction",
    "is_asynchronous",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Transaction:
    """Call a function with a connection in a transaction, which is committed after it."""

    function: Callable[[Connection], Any]
    to_write: bool = True


@dataclass(frozen=True)
class Embedding:
    """Embed texts, outside of any transaction."""

    embedder: Embedder
    texts: list[str]
    timeout: float | None
    """Seconds after which it counts as out of reach."""


@dataclass(frozen=True)
class Pause:
    """Wait, unless told to stop meanwhile."""

    seconds: float


@dataclass(frozen=True)
class Call:
    """Call a function of the user, which may be asynchronous in an asynchronous program."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Start:
    """Begin with other steps beside these: in a thread, or in a task; answered by what :class:`AnyOf` waits for."""

    steps: Generator[Any, Any, Any]


@dataclass(frozen=True)
class AnyOf:
    """Wait until one of the runs that were started has ended; answered by those that have: ``run.result()``."""

    runs: list[Any]


Step = Transaction | Embedding | Pause | Call | Start | AnyOf
Steps = Generator[Step, Any, T]


def is_asynchronous(sessions: Any) -> bool:
    """Tell whether a maker makes sessions that are awaited.

    Raises:
        InvalidOption: it makes none.
    """
    if isinstance(sessions, async_sessionmaker) or (isinstance(sessions, type) and issubclass(sessions, AsyncSession)):
        return True
    if isinstance(sessions, sessionmaker) or (isinstance(sessions, type) and issubclass(sessions, Session)):
        return False
    raise InvalidOption(f"expected a sessionmaker or an async_sessionmaker, got {sessions!r}")


def _timed_out(embedder: Embedder, timeout: float) -> EmbedderUnavailable:
    return EmbedderUnavailable(f"the embedder {embedder.name} gave no answer within {timeout:g} seconds")


def _begin(session: Session, outbox: Table, mappers: Iterable[Mapper[Any]], to_write: bool) -> Connection:
    # As flushes do: of several databases, a session may know by its classes alone which is theirs.
    connections = [session.connection(bind_arguments={"mapper": mapper}) for mapper in mappers]
    connection = connections[0] if connections else session.connection(bind_arguments={"clause": outbox})
    if any(other is not connection for other in connections):
        raise InvalidOption("these models are in several databases; name those of one, as models= or columns=")
    support_of(connection.dialect).begin(connection, to_write=to_write)
    return connection


class Driver:
    """Does steps in a synchronous program.

    Args:
        sessions: makes sessions.
        outbox: a table of the database that is meant.
        mappers: the classes whose database it is, where they are known.
    """

    def __init__(self, sessions: Callable[[], Session], outbox: Table, mappers: Iterable[Mapper[Any]] = ()) -> None:
        self._sessions = sessions
        self._outbox = outbox
        self._mappers = tuple(mappers)
        # Not an Event, whose lock the pause may hold that a signal's handler interrupts: it would wait for ever.
        self._stopped: SimpleQueue[None] = SimpleQueue()

    def stop(self) -> None:
        """Let pauses end, now and from now on; may be called from a signal's handler."""
        self._stopped.put(None)

    def run(self, steps: Steps[T]) -> T:
        """Do all steps, and return the generator's result."""
        advance: Callable[[], Step] = lambda: next(steps)  # noqa: E731
        while True:
            try:
                step = advance()
            except StopIteration as finished:
                result: T = finished.value
                return result
            try:
                answer = self._do(step)
            except BaseException as error:
                advance = _throwing(steps, error)
            else:
                advance = _sending(steps, answer)

    def _do(self, step: Step) -> Any:
        if isinstance(step, Transaction):
            with self._sessions() as session, session.begin():
                return step.function(_begin(session, self._outbox, self._mappers, step.to_write))
        if isinstance(step, Embedding):
            return self._embed(step)
        if isinstance(step, Call):
            return step.function(*step.arguments)
        if isinstance(step, Start):
            return self._start(step.steps)
        if isinstance(step, AnyOf):
            return futures.wait(step.runs, return_when=futures.FIRST_COMPLETED).done
        try:
            self._stopped.get(timeout=step.seconds)
        except Empty:
            return False
        self._stopped.put(None)  # for the next pause
        return True

    def _start(self, steps: Steps[Any]) -> futures.Future[Any]:
        future: futures.Future[Any] = futures.Future()

        def run() -> None:
            try:
                future.set_result(self.run(steps))
            except BaseException as error:
                future.set_exception(error)

        # Not of a pool, whose threads the end of the program would wait for.
        threading.Thread(target=contextvars.copy_context().run, args=(run,), daemon=True).start()
        return future

    def _embed(self, step: Embedding) -> NDArray[Any]:
        if step.timeout is None:
            return embed(step.embedder, step.texts)
        answers: SimpleQueue[Any] = SimpleQueue()
        done = threading.Event()

        def run() -> None:
            try:
                answers.put((embed(step.embedder, step.texts), None))
            except BaseException as error:
                answers.put((None, error))
            done.set()

        # A thread of its own, since one that hangs for good must not keep the program from going on, nor from ending.
        # It has the context of its caller, by which spans know where they belong.
        context, name = contextvars.copy_context(), f"embedding by {step.embedder.name}"
        threading.Thread(target=context.run, args=(run,), name=name, daemon=True).start()
        if not done.wait(step.timeout):
            raise _timed_out(step.embedder, step.timeout)
        vectors, error = answers.get()
        if error is not None:
            raise error
        found: NDArray[Any] = vectors
        return found


class AsyncDriver:
    """Does steps in a coroutine.

    Args:
        sessions: makes asynchronous sessions.
        outbox: a table of the database that is meant.
        mappers: the classes whose database it is, where they are known.
    """

    def __init__(
        self, sessions: Callable[[], AsyncSession], outbox: Table, mappers: Iterable[Mapper[Any]] = ()
    ) -> None:
        self._sessions = sessions
        self._outbox = outbox
        self._mappers = tuple(mappers)
        self._stopped = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    def stop(self) -> None:
        """Let pauses end, now and from now on; may be called from anywhere."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopped.set)
        else:
            self._stopped.set()

    async def run(self, steps: Steps[T]) -> T:
        """Do all steps, and return the generator's result."""
        self._loop = asyncio.get_running_loop()
        advance: Callable[[], Step] = lambda: next(steps)  # noqa: E731
        while True:
            try:
                step = advance()
            except StopIteration as finished:
                result: T = finished.value
                return result
            try:
                answer = await self._do(step)
            except BaseException as error:
                advance = _throwing(steps, error)
            else:
                advance = _sending(steps, answer)

    async def _do(self, step: Step) -> Any:
        if isinstance(step, Transaction):
            try:
                async with self._sessions() as session, session.begin():
                    return await session.run_sync(
                        lambda inner: step.function(_begin(inner, self._outbox, self._mappers, step.to_write))
                    )
            except Exception as error:
                if _is_out_of_reach(error):
                    raise OperationalError(None, None, error) from error
                raise
        if isinstance(step, Embedding):
            try:
                return await asyncio.wait_for(aembed(step.embedder, step.texts), step.timeout)
            except TimeoutError:
                raise _timed_out(step.embedder, step.timeout or 0.0) from None
        if isinstance(step, Call):
            answer = step.function(*step.arguments)
            return await answer if inspect.isawaitable(answer) else answer
        if isinstance(step, Start):
            return asyncio.create_task(self.run(step.steps))
        if isinstance(step, AnyOf):
            return (await asyncio.wait(step.runs, return_when=asyncio.FIRST_COMPLETED))[0]
        if self._stopped.is_set():  # wait_for() has no look at it when there are no seconds
            return True
        try:
            return await asyncio.wait_for(self._stopped.wait(), step.seconds)
        except TimeoutError:
            return False


def _is_out_of_reach(error: Exception) -> bool:
    """Tell whether asyncpg could not connect: SQLAlchemy passes on its errors of that as they are."""
    return not isinstance(error, SQLAlchemyError) and (isinstance(error, OSError) or has_passing_state(error))


def _sending(steps: Steps[Any], answer: Any) -> Callable[[], Step]:
    return lambda: steps.send(answer)


def _throwing(steps: Steps[Any], error: BaseException) -> Callable[[], Step]:
    return lambda: steps.throw(error)
