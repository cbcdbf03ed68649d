"""Transactions that met others, and are done again."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError

from sqla_vector.tracking.patience import is_passing
from sqla_vector.tracking.steps import Pause, Steps, Transaction

__all__ = ["ATTEMPTS", "insist"]

ATTEMPTS: Final = 20


def insist(function: Callable[[Connection], Any]) -> Steps[Any]:
    """Do a transaction again that met another one, or that inserted what another one was just inserting."""
    attempt = 0
    while True:
        attempt += 1
        try:
            return (yield Transaction(function))
        except DBAPIError as error:
            if not (is_passing(error) or isinstance(error, IntegrityError)) or attempt == ATTEMPTS:
                raise
        yield Pause(random.uniform(0.02, 0.1) * attempt)
