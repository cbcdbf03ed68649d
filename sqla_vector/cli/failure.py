"""How a command ends that cannot do what it was asked to: exit codes, and a sentence for each error."""

from __future__ import annotations

from enum import IntEnum

from sqlalchemy.exc import DBAPIError, NoSuchModuleError, SQLAlchemyError

from sqla_vector.exc import SearchUnavailable, VectorError

__all__ = ["ExitCode", "Failed", "failure_of"]


class ExitCode(IntEnum):
    """What a script can tell from the exit code."""

    OK = 0
    FOUND = 1
    """The command found something: vectors that are not current, a check of ``doctor`` that failed."""
    USAGE = 2
    """The command, the application or the database is not as it must be; nothing was changed."""
    UNREACHABLE = 3
    """The database, or Elasticsearch, cannot be reached."""
    FAILED = 4
    """Something else went wrong."""
    INTERRUPTED = 130
    """Ctrl-C."""
    BROKEN_PIPE = 141
    """Nobody reads the output any more."""


class Failed(Exception):
    """Ends a command.

    Args:
        message: one sentence, for the user.
        code: the exit code.
    """

    def __init__(self, message: str, code: ExitCode = ExitCode.USAGE) -> None:
        super().__init__(message)
        self.code = code


def failure_of(error: Exception) -> Failed:
    """Return how a command ends for the sake of an error."""
    if isinstance(error, Failed):
        return error
    if isinstance(error, DBAPIError):
        # The driver's own words: SQLAlchemy's have the statement and its parameters too.
        said = " ".join(str(error.orig).split())
        if error.connection_invalidated:
            return Failed(f"the connection to the database was lost: {said}", ExitCode.UNREACHABLE)
        return Failed(f"the database refused: {said}; sqla-vector doctor tells what is missing")
    if isinstance(error, SearchUnavailable):
        return Failed(str(error), ExitCode.UNREACHABLE)
    if isinstance(error, (VectorError, NoSuchModuleError)):
        return Failed(str(error))
    if isinstance(error, SQLAlchemyError):
        return Failed(f"{type(error).__name__}: {error}")
    return Failed(f"{type(error).__name__}: {error}", ExitCode.FAILED)
