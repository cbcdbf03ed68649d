"""How long what fails is waited for, and how a run is asked to stop."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Final

from sqlalchemy.exc import DataError, DBAPIError, InterfaceError, OperationalError, SQLAlchemyError, StatementError

from sqla_vector.exc import InvalidOption, VectorError

__all__ = [
    "Backoff",
    "check_seconds",
    "has_passing_state",
    "is_of_a_row",
    "is_of_values",
    "is_passing",
    "said",
    "stopped_by_signals",
    "why_of",
]

_PASSING: Final = frozenset({"08", "40", "53", "55", "57", "58"})
"""Connections, rollbacks (deadlocks), resources, states of objects (locks), interventions of operators, the system:
the classes of Appendix A of PostgreSQL's manual whose errors are not about what was asked for."""


@dataclass(frozen=True)
class Backoff:
    """Pauses that grow with the failures, varied at random, so that processes do not come back all at once.

    Args:
        first: seconds after the first failure at most.
        longest: seconds at most.
    """

    first: float
    longest: float

    def after(self, failures: int, asked_for: float | None = None) -> float:
        """Return the seconds to wait after a number of failures, no less than what somebody asked for."""
        if asked_for is not None:
            return asked_for * random.uniform(1.0, 1.1)
        most = min(self.longest, self.first * 2.0 ** min(failures - 1, 30))
        return random.uniform(most / 2, most)


def is_passing(error: Exception) -> bool:
    """Tell whether the database may work again without anybody changing a program."""
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated or isinstance(error, (OperationalError, InterfaceError)):
        return True
    return error.orig is not None and has_passing_state(error.orig)


def has_passing_state(error: BaseException) -> bool:
    """Tell the same by PostgreSQL's code of an error: of asyncpg's, SQLAlchemy makes no OperationalError."""
    return str(getattr(error, "sqlstate", None))[:2] in _PASSING


def is_of_values(error: Exception) -> bool:
    """Tell whether a database, or a column's type, refuses a value: other rows can be read."""
    if isinstance(error, DBAPIError):
        # By PostgreSQL's code, since of asyncpg's errors SQLAlchemy makes no DataError.
        return isinstance(error, DataError) or str(getattr(error.orig, "sqlstate", None)).startswith("22")
    if isinstance(error, StatementError):
        return True
    # A type may raise anything at a value.  What SQLAlchemy and this package raise is about how they are used, and
    # what the system raises about the system, whichever row comes.
    return not isinstance(error, (SQLAlchemyError, VectorError, OSError, MemoryError)) and not has_passing_state(error)


def is_of_a_row(error: Exception) -> bool:
    """Tell whether an error as rows are written may be about one of them: the others can be written."""
    return not is_passing(error) and (isinstance(error, (DBAPIError, VectorError)) or is_of_values(error))


def why_of(error: Exception) -> str:
    """Return what may be known of an error at a row: what a type says of a value may have the value in it."""
    return said(error) if isinstance(error, (DBAPIError, VectorError)) else type(error).__name__


def said(error: Exception) -> str:
    """Return what a database says in its first line: in the others PostgreSQL shows the row."""
    # The driver's own words: SQLAlchemy's have the parameters too.
    lines = str(getattr(error, "orig", None) or error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def check_seconds(value: object, name: str, least: float) -> float:
    """Return a number of seconds.

    Raises:
        InvalidOption: it is none, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < float("inf"):
        raise InvalidOption(f"{name} is a number of seconds, {least:g} or more, got {value!r}")
    return float(value)


@contextmanager
def stopped_by_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Call a function at the first SIGTERM or SIGINT; at the second one the process ends at once."""
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if came:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        came.append(number)
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
