"""Tracking of sessions: ``track()`` and ``untrack()``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary

from sqlalchemy import Table, event
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sqla_vector.asynchrony import AsyncSession, async_scoped_session, async_sessionmaker
from sqla_vector.exc import InvalidOption
from sqla_vector.tracking.events import OnEvent
from sqla_vector.tracking.listener import Listener
from sqla_vector.tracking.observe import Watch
from sqla_vector.tracking.outbox import check_outbox
from sqla_vector.tracking.plans import Plans
from sqla_vector.tracking.targets import Embedders, GivenEmbedders, Models, Target

__all__ = ["Tracking", "track", "tracking_behind", "tracking_of", "trackings", "untrack"]

OnOutage = Literal["raise", "defer"]


@dataclass(frozen=True)
class Tracking:
    """What :func:`track` was given, and what follows from it."""

    embedders: Embedders
    outbox: Table | None
    plans: Plans = field(repr=False)
    _stop: Callable[[], None] = field(repr=False)

    @property
    def targets(self) -> tuple[Target, ...]:
        """The classes with embedded columns."""
        return self.plans.targets


_TRACKED: WeakKeyDictionary[Any, Tracking] = WeakKeyDictionary()


def track(
    sessions: Any,
    *,
    embedders: GivenEmbedders,
    outbox: Table | None = None,
    models: Models | None = None,
    on_outage: OnOutage = "raise",
    on_event: OnEvent | None = None,
) -> Tracking:
    """Keep the embedded columns of what sessions write.

    Columns with ``when="flush"`` are embedded as a session flushes, in one call for all its objects; for those with
    ``when="worker"`` an entry goes into the outbox, in the same transaction.  Rollback leaves nothing of either.

    Args:
        sessions: a ``sessionmaker``, a ``scoped_session``, a subclass of ``Session`` or ``Session`` itself, one
            session, or an ``async_sessionmaker``, a subclass of ``AsyncSession``, one of its sessions.
        embedders: by the names that ``embedding_column(embedder=...)`` gives.  A :class:`~sqla_vector.embedding.Model`
            is enough where only workers embed.
        outbox: the table made by :func:`outbox_table`; needed for columns with ``when="worker"`` and for texts made
            of related rows.
        models: a declarative base, a registry or mapped classes, where not all that are mapped are meant.
        on_outage: while an embedder cannot be reached, ``raise`` has the flush fail, ``defer`` leaves its rows to a
            worker.
        on_event: is called within a flush with each :class:`~sqla_vector.tracking.TextsEmbedded`, and with each
            :class:`~sqla_vector.tracking.Outage` that leaves rows to a worker.  Asynchronous sessions await it if
            it is asynchronous.  One that fails is logged.

    Returns:
        What a :class:`~sqla_vector.tracking.Worker` takes from the sessions it is given.

    Raises:
        InvalidOption: an argument is none, or the sessions are tracked already.
    """
    if on_outage not in ("raise", "defer"):
        raise InvalidOption(f'on_outage= is "raise" or "defer", got {on_outage!r}')
    if outbox is not None:
        check_outbox(outbox)
    elif on_outage == "defer":
        raise InvalidOption('on_outage="defer" leaves rows to a worker, by an outbox; give track(..., outbox=outbox)')
    if _is_tracked(key_of(sessions)):
        raise InvalidOption("these sessions are tracked already; untrack() them first")
    known, plans = Embedders(embedders), Plans(models)
    watch = Watch(on_event, is_async=_is_asynchronous(sessions))
    listener = Listener(plans, known, outbox, on_outage == "defer", watch)
    key = key_of(sessions)
    stop = _listen(key, listener)
    found = _TRACKED[key] = Tracking(known, outbox, plans, stop)
    return found


def untrack(sessions: Any) -> None:
    """Undo :func:`track`; sessions that are not tracked stay as they are."""
    found = _TRACKED.pop(key_of(sessions), None)
    if found is not None:
        found._stop()


def tracking_of(sessions: Any) -> Tracking | None:
    """Return how sessions are tracked, None if they are not."""
    return _TRACKED.get(key_of(sessions))


def tracking_behind(sessions: Any) -> Tracking | None:
    """Return the same as :func:`tracking_of`, and of one session also how those of its maker are tracked."""
    found = tracking_of(sessions)
    session = key_of(sessions)
    if found is None and isinstance(session, Session):
        for key, tracking in list(_TRACKED.items()):
            if isinstance(session, _class_of(key)):
                return tracking
    return found


def trackings() -> tuple[Tracking, ...]:
    """Return how sessions are tracked, of all that are."""
    return tuple(_TRACKED.values())


def _class_of(key: Any) -> type[Any] | tuple[()]:
    """Return the class of the sessions that are tracked by a key, nothing for a session."""
    if isinstance(key, async_sessionmaker):
        return key.kw.get("sync_session_class") or ()
    if isinstance(key, sessionmaker):
        return key.class_
    if isinstance(key, type):
        return key.sync_session_class if issubclass(key, AsyncSession) else key
    return ()


def _is_tracked(key: Any) -> bool:
    """Tell whether sessions that a key stands for, or some of them, would be listened to twice."""
    if isinstance(key, async_sessionmaker):
        mine, is_new = key.kw.get("sync_session_class") or key.class_.sync_session_class, True
    elif isinstance(key, type) and issubclass(key, AsyncSession):
        mine, is_new = key.sync_session_class, True
    else:
        mine, is_new = (type(key) if isinstance(key, Session) else _class_of(key)), isinstance(key, Session)
    for other in list(_TRACKED):
        theirs = _class_of(other)
        if key is other or issubclass(mine, theirs):
            return True
        # Asynchronous sessions get a class of their own, of which there are none yet.
        if not is_new and (issubclass(theirs, mine) if theirs else isinstance(other, mine)):
            return True
    return False


def key_of(sessions: Any) -> Any:
    """Return the object that stands for sessions.

    Raises:
        InvalidOption: they are none.
    """
    if isinstance(sessions, (scoped_session, async_scoped_session)):
        sessions = sessions.session_factory
    if isinstance(sessions, type) and issubclass(sessions, AsyncSession):
        if sessions is AsyncSession:
            raise InvalidOption("track an async_sessionmaker, or a subclass of AsyncSession, not AsyncSession itself")
        return sessions
    if isinstance(sessions, AsyncSession):
        return sessions.sync_session
    is_class = isinstance(sessions, type) and issubclass(sessions, Session)
    if is_class or isinstance(sessions, (sessionmaker, async_sessionmaker, Session)):
        return sessions
    raise InvalidOption(
        f"expected a sessionmaker, an async_sessionmaker, a Session or a class of them, got {sessions!r}"
    )


def _is_asynchronous(sessions: Any) -> bool:
    if isinstance(sessions, (async_sessionmaker, async_scoped_session, AsyncSession)):
        return True
    return isinstance(sessions, type) and issubclass(sessions, AsyncSession)


def _listen(key: Any, listener: Listener) -> Callable[[], None]:
    undo: Callable[[], None] = lambda: None  # noqa: E731
    target = key
    if isinstance(key, async_sessionmaker):
        target, undo = _own_class(key.kw, key.class_.sync_session_class)
    elif isinstance(key, type) and issubclass(key, AsyncSession):
        target, undo = _own_class_of(key)
    elif isinstance(key, sessionmaker):
        target = key.class_
    listeners: dict[str, Callable[..., Any]] = {
        "before_flush": listener.before_flush,
        "after_flush": listener.after_flush,
        "after_soft_rollback": listener.after_soft_rollback,
    }
    for name, function in listeners.items():
        event.listen(target, name, function)

    def stop() -> None:
        for name, function in listeners.items():
            event.remove(target, name, function)
        undo()

    return stop


def _own_class(options: dict[str, Any], default: type[Session]) -> tuple[type[Session], Callable[[], None]]:
    """Give an async_sessionmaker a class of sessions that nobody else has."""
    before = options.get("sync_session_class")
    made = options["sync_session_class"] = _subclass(before or default)

    def undo() -> None:
        # Sessions are made of it no longer; those that live are not listened to any more.
        if options.get("sync_session_class") is made:
            if before is None:
                del options["sync_session_class"]
            else:
                options["sync_session_class"] = before

    return made, undo


def _own_class_of(class_: type[AsyncSession]) -> tuple[type[Session], Callable[[], None]]:
    had = "sync_session_class" in vars(class_)
    before = class_.sync_session_class
    made = class_.sync_session_class = _subclass(before)

    def undo() -> None:
        if had:
            class_.sync_session_class = before
        elif class_.sync_session_class is made:
            del class_.sync_session_class

    return made, undo


def _subclass(base: type[Session]) -> type[Session]:
    return type(base.__name__, (base,), {})
