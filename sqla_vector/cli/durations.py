"""Times as they are typed: ``90``, ``90s``, ``30m``, ``2h``, ``7d``."""

from __future__ import annotations

import re
from typing import Final

import typer

__all__ = ["seconds_of"]

_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_WRITTEN: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([smhdw]?)\Z")


def seconds_of(written: str) -> float:
    """Return a time in seconds.

    Raises:
        typer.BadParameter: it is none.
    """
    match = _WRITTEN.match(written)
    if match is None:
        raise typer.BadParameter(f"{written!r} is no time; write 90s, 30m, 2h or 7d")
    return float(match[1]) * _UNITS[match[2]]
