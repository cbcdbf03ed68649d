"""What can be seen of flushes and workers: events for callbacks, the log, and OpenTelemetry where it is installed.

Nothing here has a text, a vector or the key of a service in it.
"""

from __future__ import annotations

import inspect
import logging
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from sqlalchemy.util import await_only

from sqla_vector.embedding.embedder import runs_in_greenlet
from sqla_vector.exc import InvalidOption
from sqla_vector.tracking.events import (
    BatchFinished,
    Event,
    OnEvent,
    Outage,
    RowFailed,
    TextsEmbedded,
    WorkerStarted,
    WorkerStopped,
)
from sqla_vector.tracking.steps import Call, Steps

if TYPE_CHECKING:
    from sqla_vector.tracking.telemetry import Telemetry

__all__ = ["Watch"]

logger = logging.getLogger("sqla_vector.tracking")


class Watch:
    """Tells the log, OpenTelemetry and a function of the user what happens.

    Args:
        on_event: the function.
        is_async: whether it may be asynchronous.

    Raises:
        InvalidOption: it is no function, or asynchronous in a synchronous program.
    """

    def __init__(self, on_event: OnEvent | None, *, is_async: bool) -> None:
        if on_event is not None and not callable(on_event):
            raise InvalidOption(f"on_event= is a function that is called with each event, got {on_event!r}")
        if not is_async and _is_coroutine_function(on_event):
            raise InvalidOption("on_event= is asynchronous, and these sessions are not; give a function without async")
        self._on_event = on_event
        self._telemetry = _telemetry()

    @property
    def sees_queue(self) -> bool:
        """Whether somebody wants to know what is in the outbox."""
        return self._on_event is not None or self._telemetry is not None

    def span(self, name: str, started: int | None = None, **attributes: str | int) -> AbstractContextManager[Any]:
        """Return what surrounds a piece of work: a span of OpenTelemetry, or nothing.

        Args:
            name: the span's.
            started: when it began, in nanoseconds since 1970, if not now.
            **attributes: the span's.
        """
        return nullcontext() if self._telemetry is None else self._telemetry.span(name, started, attributes)

    def past(self, name: str, started: int, ended: int) -> None:
        """Note a piece of work that is over, in nanoseconds since 1970."""
        if self._telemetry is not None:
            self._telemetry.past(name, started, ended)

    def tell(self, event: Event) -> Steps[None]:
        """Tell of an event in an algorithm of steps; a function that fails is logged and passed over."""
        self._note(event)
        if self._on_event is not None:
            try:
                _refuse((yield Call(self._on_event, (event,))))
            except Exception as error:
                _complain(event, error)

    def tell_now(self, event: Event) -> None:
        """Tell of an event in a flush."""
        self._note(event)
        if self._on_event is not None:
            try:
                answer = self._on_event(event)
                if inspect.isawaitable(answer) and runs_in_greenlet():
                    answer = await_only(answer)
                _refuse(answer)
            except Exception as error:
                _complain(event, error)

    def _note(self, event: Event) -> None:
        _log(event)
        if self._telemetry is not None:
            self._telemetry.record(event)


@lru_cache(maxsize=1)
def _telemetry() -> Telemetry | None:
    try:
        from sqla_vector.tracking.telemetry import Telemetry
    except ImportError:
        return None
    return Telemetry()


def _is_coroutine_function(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _refuse(answer: Any) -> None:
    """Refuse a coroutine that nobody awaits: a function was given that returns one in a synchronous program."""
    if inspect.iscoroutine(answer):
        answer.close()
        raise TypeError("on_event returned a coroutine, which nobody awaits here")


def _complain(event: Event, error: Exception) -> None:
    logger.warning("on_event failed at %s: %s", type(event).__name__, type(error).__name__, exc_info=error)


def _log(event: Event) -> None:
    if isinstance(event, Outage):
        what = "the database" if event.of == "database" else event.name
        if event.pause is None:
            logger.warning("%s cannot be used, its rows are left to a worker: %s", what, event.reason)
        else:
            logger.warning("%s cannot be used, next attempt in %.1f s: %s", what, event.pause, event.reason)
    elif isinstance(event, RowFailed):
        # Not the reason: the outbox is behind the database's doors, and a log often is not.
        level, end = (logging.INFO, "and is dead") if event.is_dead else (logging.DEBUG, "and is tried again")
        logger.log(level, "%s %s failed by %s, attempt %d, %s", event.entity, event.row_key, *_last(event), end)
    elif isinstance(event, WorkerStarted):
        logger.info("%s starts", event.worker)
    elif isinstance(event, WorkerStopped):
        logger.info("%s stops: %s", event.worker, event.outcome)
    elif isinstance(event, BatchFinished):
        times = (event.claim_seconds, event.embed_seconds, event.write_seconds)
        logger.debug("%s: %s; claim %.3f s, embed %.3f s, write %.3f s", event.worker, event.outcome, *times)
    elif isinstance(event, TextsEmbedded):
        logger.debug("%s embedded %d texts in %.3f s", event.model, event.texts, event.seconds)


def _last(event: RowFailed) -> tuple[str, int]:
    return event.kind, event.attempts
